"""The k-NN probe of a pre-training, and the labelled images it reads."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.vit import CropViT
from tests.train.pretraining import curve, fresh_accelerate, train  # noqa: F401
from train.common.config import ConfigError
from train.datasets.labelled import labelled_images
from train.pretrain.knn import KnnProbe


@pytest.fixture
def halves(tmp_path):
    """Images that are bright above or below, and are labelled so; a third label is a coin's."""
    rows, rng = [], np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 60, (40, 40))
        above = i % 2
        pixels[:20] += 150 * above
        pixels[20:] += 150 * (1 - above)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        labels = [("below", "above")[above], *(["coin"] if rng.random() < 0.5 else [])]
        rows.append([f"{i}.png", "|".join(labels), "train" if i < 40 else "val", f"p{i // 2}"])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file", "labels", "split", "patient_id"], *rows, ["60.png", "", "train", "x"]]
        )
    return tmp_path / "labels.csv"


def test_a_table_of_labels(halves):
    found = labelled_images(halves)
    assert found.names == ["above", "below", "coin"] and len(found.paths) == 60
    assert np.array_equal(found.labels_NL[:4, 0], [0, 1, 0, 1]) and np.array_equal(
        found.labels_NL.sum(0)[:2], [30, 30]
    )
    assert list(found.part("validate")) == list(range(40, 60)) and found.patients[5] == "p2"


def test_studies_and_folders_of_classes(tmp_path):
    study = {"schema": 1, "study_id": "s", "split": "test", "labels": {"Edema": 1, "Fracture": 0, "Mass": -1}}
    images = [{"path": "a.png", "view": "PA"}, {"path": "b.png", "view": "lateral"}]
    other = {"schema": 1, "study_id": "t", "patient_id": "p", "split": "train", "labels": {"Mass": 1}}
    lines = [
        study | {"images": images},
        other | {"images": images[:1]},
        other | {"study_id": "u", "labels": None},
    ]
    (tmp_path / "studies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = labelled_images(tmp_path / "studies.jsonl")
    assert found.names == ["Edema", "Fracture", "Mass"] and len(found.paths) == 2
    assert np.array_equal(found.labels_NL, [[1, 0, np.nan], [np.nan, np.nan, 1]], equal_nan=True)
    assert list(found.patients) == ["s", "p"]
    for name in ("train/sick", "train/well/deep", "validate/well", "test/sick"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / "tree" / name / "x.png")
    found = labelled_images(tmp_path / "tree")
    assert found.names == ["sick", "well"] and list(found.splits) == ["train", "train", "validate", "test"]
    assert np.array_equal(found.labels_NL, [[1, 0], [0, 1], [0, 1], [1, 0]])
    Image.new("L", (9, 9)).save(tmp_path / "tree" / "train" / "loose.png")
    with pytest.raises(ValueError, match="lies in no class"):
        labelled_images(tmp_path / "tree")
    (tmp_path / "bad.csv").write_text("file,label\na.png,x\n")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) labels, split"):
        labelled_images(tmp_path / "bad.csv")


def test_what_can_be_seen_is_found(halves):
    probe = KnnProbe(str(halves), 28)
    assert probe.names == ["above", "below", "coin"]
    torch.manual_seed(0)
    found = probe(CropViT(28, 7, 32, 1, 2, 0.5), torch.device("cpu"))
    assert 0.7 < found < 0.97  # two labels perfectly, one by chance: about 0.83


def test_a_run_with_a_probe(halves, tmp_path, capsys):
    data, out = halves.parent, tmp_path / "run"
    assert train(data, out, "--probe", str(halves), "--probe_steps", "4", "--logging_steps", "3") == 0
    said = capsys.readouterr().out
    assert "k-NN AUROC before training 0." in said and "(above, below, coin)" in said
    with_probe = {line["step"]: line.get("knn_auroc") for line in curve(out)}
    assert (
        list(with_probe) == [3, 4, 6]
        and with_probe[3] is None
        and with_probe[4] > 0.5
        and with_probe[6] > 0.5
    )
    assert train(data, tmp_path / "plain", "--logging_steps", "3") == 0  # and it changes nothing
    assert curve(tmp_path / "plain")[-1] == {k: v for k, v in curve(out)[-1].items() if k != "knn_auroc"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,labels,split\n", "no labelled image"),
        ("file,labels,split\n0.png,a,train\n1.png,b,val\n", "no label has 5"),
    ],
)
def test_a_source_that_cannot_serve_is_refused(halves, text, message):
    (halves.parent / "few.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        KnnProbe(str(halves.parent / "few.csv"), 28)
