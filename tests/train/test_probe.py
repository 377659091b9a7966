"""cxr probe on planted data: what is there is found, what is not is not, and nothing is computed twice."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image as Picture

from train.config import ConfigError
from train.probe import main

SMALL = [
    "--threads",
    "1",
    "--workers",
    "0",
    "--replicates",
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


def test_encoders_side_by_side(data, encoder_dir, tmp_path, capsys):
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
    assert "<svg" in page and "data:image/png" in page and "http" not in page.replace("http-equiv", "")
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
