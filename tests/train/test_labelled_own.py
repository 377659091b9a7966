"""One's own images with masks, age and sex, the phantoms, and how masks are decoded."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.radiograph import read
from train.datasets.labelled import labelled_images, load
from train.datasets.masks import MaskError, Runs, decode_runs, image_size, mask_of, read_mask
from train.phantom.population import write_population
from vlm.study import load_studies


def write(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def table(tmp_path):
    half = np.zeros((6, 4), np.uint8)
    half[:3] = 255
    for name in "abc":
        picture(tmp_path / f"{name}.png", np.arange(24, dtype=np.uint8).reshape(6, 4))
        picture(tmp_path / f"m/{name}.png", half)
    header = [
        "image",
        "mask",
        "mask_heart",
        "mask_kind",
        "split",
        "age",
        "sex",
        "weight",
        "height",
        "source_file",
    ]
    return write(
        tmp_path / "table.csv",
        header,
        ["a.png", "m/a.png", "m/b.png", "manual", "train", "045Y", "female", "80", "2", "p1"],
        ["b.png", "m/b.png", "", "model-made", "val", "", "m", "", "", "p2"],
        ["c.png", "m/c.png", "", "manual", "test", "7.5", "x", "50", "", "p3"],
        ["", "m/c.png", "", "manual", "test", "", "", "", "", "p3"],
    )


def test_a_table_without_labels_but_with_masks_and_more(table):
    found = load(table, columns={"patient_id": "source_file", "mask_lungs": "mask"})
    assert found.names == [] and found.labels_NL.shape == (3, 0) and found.kind == ""
    assert found.structures == ["heart", "lungs"] and list(found.patients) == ["p1", "p2", "p3"]
    assert list(found.splits) == ["train", "validate", "test"] and list(found.sex) == ["F", "M", ""]
    assert np.array_equal(found.numbers["age"], [45, np.nan, 7.5], equal_nan=True)
    assert np.array_equal(found.numbers["bmi"], [20, np.nan, np.nan], equal_nan=True)
    assert list(found.also["source_file"]) == ["p1", "p2", "p3"]
    assert found.mask(0).shape == (2, 6, 4) and found.mask(0)[:, :3].all() and not found.mask(0)[:, 3:].any()
    assert found.mask(1) is None and found.mask(1, "lungs").sum() == 12 and found.mask(1, "heart") is None
    assert list(found.masked()) == [0] and list(found.masked("lungs")) == [0, 1, 2]
    with pytest.raises(ValueError, match="no structure is called 'liver'; there are heart, lungs"):
        found.mask(0, "liver")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) labels"):
        labelled_images(table)  # a probe of labels needs some
    assert load(table).structures == ["heart", "mask"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "split"], ["a", "train"]], "no label, no mask, no age, sex"),
        ([["file", "labels"], ["a", "x"]], r"lacks the column\(s\) split"),
        ([["name", "split"], ["a", "train"]], "one of file, path, image"),
        ([["file", "split", "age"], ["a", "train", "1"], ["b", "train", "old"]], "line 3: age 'old' is not a number"),
        ([["file", "split", "weight"], ["a", "train", "8000"]], "line 2: weight '8000' is not a number"),
        ([["file", "split", "labels"], ["a", "middle", "x"]], "line 2: unknown split"),
        ([["file", "split", "sex", "patient_id"], ["a", "train", "f", "p"], ["b", "test", "f", "p"]],
         r"1 patient\(s\) have images in several splits; scores"),
    ],
)  # fmt: skip
def test_tables_that_cannot_serve(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "table.csv", *rows))


def test_sources_and_options_that_do_not_exist(tmp_path, table):
    for source in ("vindr:/data", "nowhere.csv"):
        with pytest.raises(ValueError, match=r"neither a data set that is known .*vindr-cxr, rsna"):
            load(source)
    with pytest.raises(ValueError, match="neither a data set"):
        load("vindr", tmp_path)
    with pytest.raises(ValueError, match="say where it lies, as in nih:/data/nih"):
        load("nih")
    with pytest.raises(ValueError, match=r"headers mean\(s\) nothing for nih; there are view"):
        load("nih", tmp_path, headers=False)
    with pytest.raises(ValueError, match=r"view mean\(s\) nothing for a table; there are columns"):
        load(table, view="PA")
    with pytest.raises(ValueError, match="nothing is called weigth"):
        load(table, columns={"weigth": "age"})
    with pytest.raises(ValueError, match=r"lacks the column\(s\) patient"):
        load(table, columns={"patient_id": "patient"})


def test_labels_are_read_as_before_where_some_are_not_known(tmp_path):
    rows = [
        ["file", "labels", "split", "age"],
        ["a", "Edema", "train", 1],
        ["b", "", "test", 2],
        ["c", "X", "", 3],
    ]
    file = write(tmp_path / "table.csv", *rows)
    found = load(file)
    assert np.array_equal(found.labels_NL, [[1], [np.nan]], equal_nan=True)
    assert len(labelled_images(file).paths) == 1


def test_studies_may_have_masks(tmp_path):
    line = {
        "study_id": "s",
        "patient_id": "p",
        "split": "test",
        "age": 40,
        "sex": "F",
        "weight": 60,
        "bmi": 20,
    }
    images = [{"path": "i/a.png"}, {"path": "i/b.png"}, {"path": "i/c.png", "view": "lateral"}]
    lines = [
        line | {"images": images, "masks": {"lungs": "m/a.png"}},
        line | {"images": images, "split": None},
    ]
    (tmp_path / "studies.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    picture(tmp_path / "i/a.png", np.eye(5, dtype=np.uint8))
    picture(tmp_path / "m/a.png", np.eye(5, dtype=np.uint8))
    found = load(tmp_path)  # a folder with a studies.jsonl
    assert found.paths == [tmp_path / "i/a.png", tmp_path / "i/b.png"] and found.structures == ["lungs"]
    assert np.array_equal(found.mask(0)[0], np.eye(5, dtype=bool)) and found.mask(1) is None
    assert (
        found.numbers["age"][0] == 40 and found.numbers["weight"][0] == 60 and found.numbers["bmi"][1] == 20
    )


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_phantoms(tmp_path, kind):
    write_population(tmp_path / "p", studies=12, size=96, format=kind, workers=1, prevalence=4)
    found = load(f"phantom:{tmp_path / 'p'}")
    assert found.kind == "phantom" and "lungs" in found.structures and len(found.structures) > 1
    assert list(found.masked()) == list(range(len(found.paths)))
    lungs, empty = found.structures.index("lungs"), 0
    for i, path in enumerate(found.paths):
        masks_KHW = found.mask(i)
        assert masks_KHW.shape[1:] == read(path).pixels.shape and masks_KHW[lungs].any()
        empty += sum(not mask_HW.any() for mask_HW in masks_KHW)
    assert empty  # what is not there is known not to be there
    assert set(found.sex) <= {"F", "M"} and not np.isnan(found.numbers["age"]).any()
    assert len(found.names) >= 10
    said = {-1: np.nan}  # a possible finding is not known, one that is not named is not there
    for labels_L, study in zip(found.labels_NL, load_studies(tmp_path / "p" / "studies.jsonl"), strict=True):
        wanted = [said.get(value := study.labels.get(name, 0), value) for name in found.names]
        np.testing.assert_array_equal(labels_L, wanted)
    assert len(load("phantom", tmp_path / "p").part("train")) > 0


@pytest.mark.skipif(not os.environ.get("CXR_DATA"), reason="CXR_DATA names no folder with real data")
def test_the_masks_of_the_real_data():
    file = Path(os.environ["CXR_DATA"]) / "masks" / "masks.csv"
    found = load(file, columns={"mask_lungs": "mask"})
    assert found.structures == ["lungs"] and len(found.paths) == 691 and len(found.part("test")) == 31
    rows = found.part("test")[:5]
    assert all(found.mask(i).shape == (1, *read(found.paths[i]).pixels.shape) for i in rows)
    assert all(0.05 < found.mask(i).mean() < 0.6 for i in rows)


# Decoding


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
@pytest.mark.parametrize("kind", ["0 and 1", "0 and 255", "bilevel", "colour"])
def test_pictures_of_all_sorts_are_the_same_mask(tmp_path, suffix, kind):
    mask_HW = np.random.default_rng(0).random((7, 9)) < 0.4
    pixels = {
        "0 and 1": mask_HW.astype(np.uint8),
        "0 and 255": mask_HW.astype(np.uint8) * 255,
        "bilevel": mask_HW,
        "colour": np.stack([mask_HW.astype(np.uint8) * 255] * 3, -1),
    }[kind]
    picture(tmp_path / f"m.{suffix}", pixels)
    assert np.array_equal(read_mask(tmp_path / f"m.{suffix}"), mask_HW)


def test_masks_of_other_depths_and_none(tmp_path):
    mask_HW = np.eye(8, dtype=bool)
    picture(tmp_path / "deep.png", mask_HW.astype(np.uint16) * 40000)
    assert np.array_equal(read_mask(tmp_path / "deep.png"), mask_HW)
    colours = np.dstack([mask_HW.astype(np.uint8) * 255] * 3 + [np.full((8, 8), 255, np.uint8)])
    picture(tmp_path / "alpha.png", colours)
    assert np.array_equal(read_mask(tmp_path / "alpha.png"), mask_HW)
    picture(tmp_path / "empty.png", np.zeros((8, 8), np.uint8))
    assert not read_mask(tmp_path / "empty.png").any()
    large = np.kron(mask_HW, np.ones((20, 20), bool))
    Image.fromarray(large.astype(np.uint8) * 255).save(tmp_path / "m.jpg", quality=60)
    assert (read_mask(tmp_path / "m.jpg") != large).mean() < 0.01


def test_runs_of_pixels_column_by_column():
    # by hand: gap 2, then 2 pixels (rows 2 and 0 of columns 0 and 1), gap 1, then 1 pixel
    mask_HW = decode_runs(Runs("2 2 1 1", (3, 2)))
    assert np.array_equal(mask_HW, [[0, 1], [0, 0], [1, 1]])
    assert not decode_runs(Runs("-1", (3, 2))).any()
    rng = np.random.default_rng(0)
    for _ in range(5):  # and back, by a loop of our own
        mask_HW = rng.random((6, 5)) < 0.5
        words, gap, length = [], 0, 0
        for pixel in mask_HW.T.ravel():
            if pixel:
                length += 1
            elif length:
                words, gap, length = [*words, gap, length], 1, 0
            else:
                gap += 1
        words += [gap, length] if length else []
        assert np.array_equal(decode_runs(Runs(" ".join(map(str, words)), (6, 5))), mask_HW)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 a", "whole numbers"), ("1", "in pairs"), ("5 2", "go beyond 3 x 2"), ("-2 3", "not neg")],
)
def test_runs_that_are_none(text, message):
    with pytest.raises(MaskError, match=f"table.csv: .*{message}"):
        decode_runs(Runs(text, (3, 2), "table.csv"))


def test_masks_that_do_not_fit(tmp_path):
    picture(tmp_path / "m.png", np.ones((4, 8), np.uint8))
    assert mask_of((tmp_path / "m.png",), (2, 4)).all() and not mask_of((), (2, 4)).any()
    for broken, message in (("text.png", "cannot be read"), ("none.png", "does not exist")):
        if broken == "text.png":
            (tmp_path / broken).write_text("no picture")
        with pytest.raises(MaskError, match=message):
            mask_of((tmp_path / broken,), (4, 4))
    with pytest.raises(MaskError, match="has 4 x 8 pixels and the image 4 x 4, of another shape"):
        mask_of((tmp_path / "m.png",), (4, 4))
    with pytest.raises(MaskError, match="neither PNG nor JPEG nor a DICOM"):
        image_size(tmp_path / "text.png")


def test_the_size_of_an_image_that_lies_on_its_side(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == read(tmp_path / "a.jpg").pixels.shape == (8, 6)
