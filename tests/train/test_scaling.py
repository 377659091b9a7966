"""The scaling study: nested data, reused points, curves; an interruption changes nothing."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image as Picture

import train.pretrain.__main__ as pretrain
from train.common.config import ConfigError
from train.common.entry import INTERRUPTED
from train.probe.scaling import draw, judged_by, main, points_of, read_study

FIELDS = {
    "short_side": 36, "size": 28, "patch_size": 7, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1, "drop_path_rate": 0.0, "local_crops_size": 14, "local_crops_number": 2,
    "head_n_prototypes": 16, "head_hidden_dim": 16, "head_bottleneck_dim": 8, "batch_size": 4, "max_steps":
    3, "warmup_steps": 1, "warmup_teacher_temp_steps": 2, "freeze_last_layer_steps": 0, "logging_steps": 3,
    "save_steps": 2, "dataloader_num_workers": 0,
}  # fmt: skip


@pytest.fixture
def study(tmp_path):
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "images").mkdir()
    for i in range(30):
        left = i % 2 == 0
        pixels = rng.integers(0, 60, (40, 40))
        pixels[10:30, 2 : 18 if left else 2] += 150
        pixels[10:30, 22 : 38 if not left else 22] += 150
        name = f"images/{i}.png"
        Picture.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
        split = ("train", "train", "validate", "test", "test")[i // 2 % 5]
        rows.append(
            {"image": name, "labels": "Left" if left else "Right", "split": split, "patient_id": f"p{i}"}
        )
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    made = {
        "data": [str(tmp_path / "images")], "fields": FIELDS, "amounts": [12, 6], "seeds": [0, 1],
        "variants": {"all": {}, "without iBOT": {"ibot_loss_weight": 0.0}},
        "probe": {
            "data": str(tmp_path / "labels.csv"), "tasks": ["knn"], "dataloader_num_workers": 0,
            "bootstrap": 50, "vectors": "cls",
        },
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(made))
    return tmp_path / "study.yaml"


# twelve trainings
@pytest.mark.slow
def test_a_study_is_drawn_and_an_interruption_changes_nothing(study, tmp_path, monkeypatch):
    assert main([str(study), "--out", str(tmp_path / "whole"), "--threads", "1"]) == 0
    found = json.loads((tmp_path / "whole" / "scaling.json").read_text())["points"]
    auroc = [r for r in found if r["metric"] == "auroc" and r["of"] == "macro"]
    assert len(auroc) == 8 and {(r["variant"], r["amount"], r["seed"]) for r in auroc} == {
        (v, a, s) for v in ("all", "without iBOT") for a in (6, 12) for s in (0, 1)
    }
    assert all(r["interval"][0] is None or r["interval"][0] <= r["value"] <= r["interval"][1] for r in auroc)
    page = (tmp_path / "whole" / "scaling.html").read_text()
    assert "without iBOT" in page and page.count("<circle") >= 8 and "<polyline" in page

    train, count = pretrain.main, 0

    def stopping(argv):
        nonlocal count
        count += 1
        if count == 3:
            # as a signal stops it: what it has learned so far is there
            assert train([*argv, "--stop_at", "2"]) == 0
            return INTERRUPTED
        return train(argv)

    monkeypatch.setattr(pretrain, "main", stopping)
    # half of the points tell it as well
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | {"seeds": [1]}))
    command = [str(study), "--out", str(tmp_path / "parts"), "--threads", "1"]
    assert main(command) == INTERRUPTED
    assert main(command) == 0 and count == 3 + 2  # two were finished
    parts = json.loads((tmp_path / "parts" / "scaling.json").read_text())["points"]
    assert parts == [row for row in found if row["seed"] == 1]


def test_amounts_are_nested_and_wrong_studies_are_refused(study, tmp_path):
    points = {p.name: p for p in points_of(read_study(study))}
    listed = {}
    for name in ("all-6-0", "all-12-0", "all-6-1"):
        draw(points[name], tmp_path / f"{name}.csv")
        listed[name] = set((tmp_path / f"{name}.csv").read_text().split())
    assert listed["all-6-0"] < listed["all-12-0"] and listed["all-6-0"] != listed["all-6-1"]
    content = yaml.safe_load(study.read_text())
    for wrong, message in (
        ({"amount": [3]}, "not amount"), ({"amounts": []}, "at least 1"), ({"fields": {"stepz": 3}}, "stepz"),
        ({"amounts": [100]}, "there are 30"), ({"probe": {}}, "probe needs data"),
    ):  # fmt: skip
        study.write_text(yaml.safe_dump({**content, **wrong}))
        with pytest.raises(ConfigError, match=message):
            draw(points_of(read_study(study))[0], tmp_path / "x.csv")


def test_what_is_judged_is_never_learned_from_and_a_point_is_what_the_study_says(study, tmp_path):
    content = yaml.safe_load(study.read_text()) | {"amounts": [6], "seeds": [0], "variants": {"all": {}}}
    study.write_text(yaml.safe_dump(content))
    command = [str(study), "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main(command) == 0
    judged = judged_by(content["probe"])
    drawn = (tmp_path / "out" / "data" / "all-6-0.csv").read_text().split()[1:]
    assert len(judged) == 18 and len(drawn) == 6 and not judged & set(drawn)
    with pytest.raises(ConfigError, match="there are 12"):
        draw(points_of(read_study(study) | {"amounts": [13]})[0], tmp_path / "x.csv", judged)

    weights = (tmp_path / "out" / "points" / "all-6-0" / "encoder" / "model.safetensors").stat().st_mtime_ns
    content["probe"]["tasks"] = ["knn", "classification"]  # another question to the same encoders
    study.write_text(yaml.safe_dump(content))
    assert main(command) == 0
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())["points"]
    assert {row["task"] for row in found} == {"knn", "classification"}
    assert (
        tmp_path / "out" / "points" / "all-6-0" / "encoder" / "model.safetensors"
    ).stat().st_mtime_ns == weights
    study.write_text(yaml.safe_dump(content | {"variants": {"all": {"koleo_weight": 0.0}}}))
    with pytest.raises(ConfigError, match="the study now says"):
        main(command)
    study.write_text(yaml.safe_dump(content | {"variants": {"a b": {}, "a_b": {}}}))
    with pytest.raises(ConfigError, match="same name"):
        main(command)
