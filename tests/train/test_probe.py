"""cxr probe on planted data: what is there is found, what is not is not, and nothing is computed twice."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image as Picture

from encoder.transforms import Preprocessing
from eval.probes import findings
from tests.forked import run_in_processes
from train.common.config import ConfigError
from train.probe.__main__ import main

SMALL = [
    "--threads",
    "1",
    "--dataloader_num_workers",
    "0",
    "--bootstrap",
    "100",
    "--layers",
    "1",
    "--draws",
    "2",
    "--shares",
    "0.5",
    "1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Something bright on the left or right (label, mask), as high as the patient is old; sex shows in nothing."""
    folder, rng, rows = tmp_path_factory.mktemp("probe"), np.random.default_rng(0), []
    for i in range(90):
        left, age = bool(rng.random() < 0.5), int(rng.integers(20, 90))
        pixels, mask = rng.integers(0, 40, (40, 40)), np.zeros((40, 40), np.uint8)
        top, start = int(rng.integers(2, 8)), 3 if left else 22
        mask[top : top + 6 + age // 4, start : start + 15] = 255
        pixels[mask > 0] += 150
        for name, x in ((f"{i}.png", pixels), (f"{i}-mask.png", mask)):
            Picture.fromarray(x.clip(0, 255).astype(np.uint8)).save(folder / name)
        rows.append({
            "image": f"{i}.png", "mask": f"{i}-mask.png", "labels": "Left" if left else "Right", "age": age,
            "sex": "FM"[int(rng.integers(2))], "patient_id": f"p{i // 2}",
            "split": ("train", "train", "train", "validate", "test")[i // 2 % 5],
        })  # fmt: skip
    rows[7]["image"] = "absent.png"
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "data.csv"


def values(report: dict, task: str, metric: str, what: str = "") -> dict[tuple[str, str], float]:
    return {
        (r["encoder"], r["head"]): r["value"]
        for r in report["tasks"][task]["scores"]
        if r["metric"] == metric and what in (r.get("structure") or r["name"])
    }


# three encoders, nine tasks
@pytest.mark.slow
def test_encoders_side_by_side(data, encoder_dir, tmp_path, capsys, monkeypatch):
    # labels are permuted twenty times otherwise, half of the work
    monkeypatch.setattr(findings, "permuted", partial(findings.permuted, n=4))
    ours, random = str(encoder_dir), f"random:{encoder_dir}@1"
    command = [
        "--data",
        str(data),
        "--encoders",
        ours,
        random,
        "pixels",
        "--out",
        str(tmp_path / "out"),
        *SMALL,
        "--clusters",
        "4",
    ]
    tasks = ["classification", "attentive", "knn", "few-shot", "permuted", "metadata", "retrieval", "segmentation",
             "unsupervised"]  # fmt: skip
    assert main([*command, "--tasks", *tasks]) == 0
    report = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert list(report["tasks"]) == tasks
    auroc = values(report, "classification", "auroc", "Left")
    assert set(auroc) == {(e, "linear") for e in (ours, random, "pixels")} and min(auroc.values()) > 0.9
    assert min(values(report, "attentive", "auroc", "Left").values()) > 0.9
    assert all(abs(v - 0.5) < 0.3 for v in values(report, "permuted", "auroc", "Left").values())
    r2 = values(report, "metadata", "r2")
    assert r2["pixels", "age"] > 0.5 and "r2" not in {
        r["metric"] for r in report["tasks"]["metadata"]["scores"] if r["head"] == "sex"
    }
    dice = values(report, "segmentation", "dice")
    assert dice["pixels", "raw patches + position"] > 0.9 > dice["pixels", "mean mask"]
    assert 0.3 < dice[ours, "linear"] < 0.9  # random weights
    for found in report["tasks"].values():
        for row in found["scores"]:
            low, high = row["interval"]
            assert row["value"] is None or low is None or low - 1e-9 <= row["value"] <= high + 1e-9
        assert {r["encoder"] for r in found[f"{ours} less"]} <= {random, "pixels"}
    page = (tmp_path / "out" / "probe.html").read_text()
    assert (
        "class='dots'" in page and "data:image/png" in page and "http" not in page.replace("http-equiv", "")
    )
    shown = capsys.readouterr().out
    assert "1 images cannot be read" in shown and "AUROC" in page and f"{ours}: classification" in shown

    # again: nothing is computed twice
    assert main([*command, "--tasks", *tasks]) == 0
    again = capsys.readouterr().out
    assert "features of" not in again and "classification," not in again
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["tasks"] == report["tasks"]


def test_what_cannot_be_is_said(data, encoder_dir, tmp_path):
    command = ["--data", str(data), "--encoders", str(encoder_dir), "--out", str(tmp_path / "out"), *SMALL]
    for more, message in (
        (["--tasks", "classify"], "few-shot"),
        (["--tasks", "classification", "--labels", "Edema"], "Left, Right"),
        (["--encoders", "pixels", "pixels"], "named twice"),
        (["--data", str(tmp_path / "absent.csv")], "absent.csv"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([*command, *more])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def written(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_what_the_data_says_now_is_what_is_judged(data, encoder_dir, tmp_path, capsys):
    """A corrected label, mask or split is judged anew; what did not change is not."""
    own = tmp_path / "data"
    shutil.copytree(data.parent, own)
    command = [
        "--data",
        str(own / "data.csv"),
        "--encoders",
        str(encoder_dir),
        "--out",
        str(tmp_path / "out"),
        *SMALL,
    ]
    command += ["--tasks", "knn", "metadata", "segmentation"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert all(f"{task}, " in first for task in ("knn", "metadata", "segmentation"))
    part = json.loads(next((tmp_path / "out" / "parts").glob("knn-*.json")).read_text())
    assert part["encoder"] == str(encoder_dir) and part["outcomes"]["knn"]["images"][0].endswith(".png")

    table = rows_of(own / "data.csv")
    table[0]["labels"] = "Left" if table[0]["labels"] == "Right" else "Right"
    written(own / "data.csv", table)
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "knn, " in again and "metadata, " not in again and "segmentation, " not in again
    mask = own / table[0]["mask"]
    Picture.fromarray(np.zeros((40, 40), np.uint8)).save(mask)
    assert main([*command, "--clusters", "3"]) == 0
    again = capsys.readouterr().out
    assert "segmentation, " in again and "knn, " not in again and "features of" not in again


# probes of two encoders
@pytest.mark.slow
def test_a_task_that_fails_stops_no_other_and_is_said(data, encoder_dir, tmp_path, capsys, monkeypatch):
    # of all that could be asked for: decoders learn for minutes, and say nothing more here
    monkeypatch.setattr("train.probe.run.TASKS", ("classification", "metadata", "segmentation"))
    own = tmp_path / "data"
    shutil.copytree(data.parent, own)
    table = rows_of(own / "data.csv")
    for row in table:  # nothing of Left to learn attention from, and no age in the test split
        row["labels"] = row["labels"] if row["split"] != "train" else "Right"
        row["age"] = "" if row["split"] == "test" else row["age"]
        row["sex"] = ""
    written(own / "data.csv", table)
    command = ["--data", str(own / "data.csv"), "--encoders", str(encoder_dir), "pixels", *SMALL]
    command += ["--out", str(tmp_path / "out"), "--also", "attentive"]
    assert main([*command, "--outside", "left-out"]) == 0
    shown = capsys.readouterr().out
    assert "no attentive: no finding can be learnt" in shown and "metadata is left out: neither age" in shown
    report = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert report["tasks"]["segmentation"]["scores"] and any("attentive" in note for note in report["notes"])
    with pytest.raises(ConfigError, match="task metadata: neither age"):
        main([*command, "--tasks", "metadata"])


def test_encoders_that_see_other_pixels_are_not_compared(data, encoder_dir, tmp_path):
    """Left out of the count is what an encoder's crop does not see: another crop, another count."""
    own = tmp_path / "data"
    own.mkdir()
    table = rows_of(data)
    for row in table:
        for name in (row["image"], row["mask"]):
            if (data.parent / name).is_file():
                Picture.open(data.parent / name).resize((40, 52)).save(own / name)
    written(own / "data.csv", table)
    stretched = tmp_path / "stretched"
    shutil.copytree(encoder_dir, stretched)
    Preprocessing(size=28, mode="stretch").save_pretrained(stretched)
    command = ["--data", str(own / "data.csv"), "--encoders", str(encoder_dir), str(stretched), *SMALL]
    command += ["--out", str(tmp_path / "out"), "--tasks", "segmentation", "--outside", "left-out"]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert any("is not compared with" in note for note in report["notes"])
    assert {row["encoder"] for row in report["tasks"]["segmentation"]["scores"]} == {
        str(encoder_dir),
        str(stretched),
    }


# decoders learn twice
@pytest.mark.slow
def test_two_processes_find_what_one_finds(data, encoder_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # all of them
    command = [
        "--data",
        str(data),
        "--encoders",
        str(encoder_dir),
        *SMALL,
        "--tasks",
        "knn",
        "segmentation",
    ]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    done = run_in_processes("train.probe", [*command, "--out", str(tmp_path / "two")], 2, tmp_path / "said")
    assert done.codes == [0, 0], done.complained
    assert len(list((tmp_path / "two" / "features").glob("*/index-1.jsonl"))) == 1
    one, two = (json.loads((tmp_path / name / "probe.json").read_text())["tasks"] for name in ("one", "two"))
    for task in one:
        for a, b in zip(one[task]["scores"], two[task]["scores"], strict=True):
            assert a["value"] == pytest.approx(b["value"], abs=1e-3, nan_ok=True)
