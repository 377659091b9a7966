"""Image lists, the decoded cache, and tables of one's own."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch.utils.data import DataLoader

from encoder.radiograph import InputError, read
from train.datasets import folder
from train.datasets.folder import Radiographs, image_paths, shrink
from train.datasets.table import load_table
from vlm.study import Image, Study, StudyError, save_studies

RNG = np.random.default_rng(0)


def picture(path: Path, H: int = 40, W: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(RNG.integers(0, 256, (H, W)).astype(np.uint8)).save(path)
    return path


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


# image_paths


def test_a_folder(tmp_path):
    for name in ("b/2.PNG", "b/1.jpeg", "a.jpg", ".hidden/x.png", "b/.x.png", "c.dcm"):
        picture(tmp_path / "p.png").rename(tmp_path / "p.tmp")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p.tmp").rename(tmp_path / name)
    for name in ("notes.txt", "table.csv", "d.json", "no_suffix", "DICOMDIR"):
        (tmp_path / name).write_text("x" * 200)
    (tmp_path / "1.2.840.77").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(tmp_path / "pipe")
    expected = ["1.2.840.77", "IM0001", "a.jpg", "b/1.jpeg", "b/2.PNG", "c.dcm"]
    assert names(image_paths(tmp_path), tmp_path) == expected


def test_a_folder_of_splits(tmp_path):
    picture(tmp_path / "train/a.png")
    picture(tmp_path / "val/b.png")
    assert names(image_paths(tmp_path, "validate"), tmp_path) == ["val/b.png"]
    assert names(image_paths(str(tmp_path), "train"), tmp_path) == ["train/a.png"]
    with pytest.raises(folder.NoSplits, match="no sub-folder 'test'"):
        image_paths(tmp_path, "test")


def test_a_csv(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "\ufefffile,split\nx/a.png,train\nx/b.png,valid\nx/a.png,train\n,train\n", encoding="utf-8"
    )
    assert names(image_paths(table), tmp_path) == ["x/a.png", "x/b.png"]
    assert names(image_paths(table, "val"), tmp_path) == ["x/b.png"]
    with pytest.raises(ValueError, match="holds no images of split 'test'"):
        image_paths(table, "test")
    table.write_text("name,view\na.png,PA\n")
    with pytest.raises(ValueError, match="no column file or path or image; it has name, view"):
        image_paths(table)
    table.write_text("path\na.png\n")
    with pytest.raises(folder.NoSplits, match="no column 'split'"):
        image_paths(table, "train")


def test_studies_and_a_folder_that_holds_them(tmp_path):
    picture(tmp_path / "masks/m.png")
    studies = [
        Study("1", split="train", images=[Image("images/a.dcm"), Image("images/b.dcm", "lateral")]),
        Study("2", split="test", images=[Image("images/c.dcm")]),
    ]
    save_studies(studies, tmp_path / "studies.jsonl")
    assert names(image_paths(tmp_path), tmp_path) == ["images/a.dcm", "images/b.dcm", "images/c.dcm"]
    assert names(image_paths(tmp_path / "studies.jsonl", "test"), tmp_path) == ["images/c.dcm"]


def test_sources_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        image_paths(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no images"):
        image_paths(tmp_path)
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match="neither a folder nor"):
        image_paths(tmp_path / "x.txt")
    with pytest.raises(StudyError, match="unknown split"):
        image_paths(tmp_path, "holdout")


# Radiographs


def test_shrink():
    assert shrink(RNG.random((100, 250), np.float32), 50).shape == (50, 125)
    assert shrink(RNG.random((250, 100), np.float32), 50).shape == (125, 50)
    assert shrink(RNG.random((30, 20), np.float32), 50).shape == (30, 20)
    ramp = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (400, 1))
    small = shrink(ramp, 100)
    means = ramp.reshape(100, 4, 100, 4).mean((1, 3)) * 255
    assert small.dtype == np.uint8 and np.abs(small[:, 2:-2] - means[:, 2:-2]).max() < 1
    checks = (np.indices((400, 400)).sum(0) % 2).astype(np.float32)  # antialiased, this is grey
    assert np.ptp(shrink(checks, 100)[2:-2, 2:-2].astype(int)) <= 1


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [picture(tmp_path / f"{i}.png", 40 + i, 60) for i in range(6)]
    paths[2].write_text("not an image")
    (tmp_path / "5.png").unlink()
    return paths


def test_decoding_on_access_replaces_what_cannot_be_read(files, logged):
    images = Radiographs(files, 20)
    assert len(images) == 6 and images[0].shape == (20, 30) and images[0].dtype == np.uint8
    assert np.array_equal(images[0], shrink(read(files[0]).pixels, 20))
    assert np.array_equal(images[2], images[3]) and "not_an_image" in logged.text
    assert np.array_equal(images[5], images[0]) and np.array_equal(images[-2], images[4])
    with pytest.raises(IndexError):
        images[6]
    with pytest.raises(InputError, match="none of the 2 images"):
        Radiographs([files[2], files[5]], 20)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_holds_what_is_readable(files, tmp_path, logged, workers):
    cache = tmp_path / "cache"
    images = Radiographs(files, 20, cache, workers=workers)
    assert images.paths == [files[i] for i in (0, 1, 3, 4)] and len(images) == 4
    assert [(path, code) for path, code, _ in images.skipped] == [
        (files[2], "not_an_image"),
        (files[5], "unreadable"),
    ]
    assert "2 of 6 images cannot be read" in logged.text
    with next(cache.glob("*/unreadable.csv")).open(newline="") as file:
        assert [row["code"] for row in csv.DictReader(file)] == ["not_an_image", "unreadable"]
    for i, path in enumerate(images.paths):
        assert np.array_equal(images[i], shrink(read(path).pixels, 20))
    assert np.array_equal(images[-1], images[3]) and len(list(images)) == 4
    images[0][:] = 0  # a copy, not the file
    assert images[0].any()


def test_the_cache_is_used_again_until_something_changes(files, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = Radiographs(files, 20, cache, workers=0)
    pixels = [image.copy() for image in first]
    monkeypatch.setattr(folder, "read", lambda *_: pytest.fail("decoded again"))
    again = Radiographs(files, 20, cache, workers=0)
    assert again.skipped == first.skipped and all(map(np.array_equal, again, pixels))
    monkeypatch.undo()
    os.utime(files[0], (1, 1))
    Radiographs(files, 20, cache, workers=0)
    Radiographs(files, 10, cache, workers=0)
    # another version of the rule by which stored values become grey levels
    monkeypatch.setattr(folder, "GREY_RULE", folder.GREY_RULE + 1)
    Radiographs(files, 10, cache, workers=0)
    assert len(list(cache.iterdir())) == 4


def test_an_interrupted_build_goes_on(files, tmp_path, monkeypatch):
    whole = list(Radiographs(files, 20, tmp_path / "whole", workers=0))
    decoded = []

    def until_the_fourth(path, limits):
        decoded.append(path)
        if len(decoded) == 4:
            raise KeyboardInterrupt
        return read(path, limits)

    monkeypatch.setattr(folder, "read", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        Radiographs(files, 20, tmp_path / "cut", workers=0)
    state = next((tmp_path / "cut").iterdir())
    assert not (state / "complete").exists()
    with (state / "index.jsonl").open("a") as file:  # the machine stopped in the middle of a line,
        file.write("[20, 3")
    with (state / "pixels.u8").open("ab") as file:  # and of an image
        file.write(b"rubbish")
    images = Radiographs(files, 20, tmp_path / "cut", workers=0)
    assert decoded[4:] == files[3:], "what was done already is not done again"
    assert len(images) == len(whole) and all(map(np.array_equal, images, whole))


def test_pixels_lost_from_the_cache_are_decoded_again(files, tmp_path):
    whole = list(Radiographs(files, 20, tmp_path / "c", workers=0))
    state = next((tmp_path / "c").iterdir())
    (state / "complete").unlink()
    os.truncate(state / "pixels.u8", 700)  # one image of 20 x 30 and a bit
    assert all(map(np.array_equal, Radiographs(files, 20, tmp_path / "c", workers=0), whole))


def _open(arguments) -> int:
    files, cache = arguments
    return int(sum(int(image.sum()) for image in Radiographs(files, 20, cache, workers=0)))


def test_processes_share_one_build(files, tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.map(_open, [(files, tmp_path / "c")] * 3)
    assert len(set(sums)) == 1 and len(list((tmp_path / "c").iterdir())) == 1


def test_in_a_data_loader(files, tmp_path):
    images = Radiographs(files, 20, tmp_path / "c", workers=0)
    images[0]  # opens the memory map, which must not travel to the workers
    loaded = DataLoader(images, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    loaded = list(loaded)
    assert all(torch.equal(x, torch.from_numpy(y)) for x, y in zip(loaded, images, strict=True))


def test_no_images_at_all(files, tmp_path):
    with pytest.raises(ValueError, match="no image paths"):
        Radiographs([], 20)
    with pytest.raises(ValueError, match="short_side"):
        Radiographs(files, 0)
    with pytest.raises(InputError, match="none of the 1 images"):
        Radiographs(files[2:3], 20, tmp_path / "c", workers=0)


def test_real_images(cxr_data, tmp_path):
    paths = image_paths(cxr_data / "images_only/images.csv", "test")
    assert len(paths) == 99 and all(path.is_file() for path in paths)
    mixed = paths[:5] + image_paths(cxr_data / "dicom/odd")
    images = Radiographs(mixed, 64, tmp_path / "c", workers=0)
    assert len(images) == 5 + 3 and all(min(image.shape) == 64 for image in images)
    assert len(images) + len(images.skipped) == len(mixed)


# Tables


def test_a_table_of_images(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "study_id,subject_id,file,ViewPosition,age,gender,findings,split,Edema,Pneumonia,site\n"
        "s1,p1,a.png,PA,063Y,Female,Clear lungs.,val,0,1.0,north\n"
        "s1,p1,b.png,LATERAL,63,F,,val,,,\n"
        "s2,p2,c.png,chest ap,,,nan,train,-1,,south\n"
    )
    studies = load_table(path, labels=["Edema", "Pneumonia"], keep=["site"], image_root="images")
    assert studies == [
        Study(
            "s1",
            "p1",
            "validate",
            [Image("images/a.png", "PA"), Image("images/b.png", "lateral")],
            age=63,
            sex="F",
            findings="Clear lungs.",
            labels={"Edema": 0, "Pneumonia": 1},
            extra={"site": "north"},
        ),
        Study(
            "s2", "p2", "train", [Image("images/c.png", "AP")], labels={"Edema": -1}, extra={"site": "south"}
        ),
    ]


def test_a_table_of_studies_with_columns_of_ones_own(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [
        {"exam": 1, "films": ["a.dcm", "b.dcm"], "text": "Clear.", "view": ["PA", "lateral"]},
        {"exam": 2, "films": "c.dcm|d.dcm", "view": "AP", "age": 40.5},
        {"exam": 3, "findings": "ignored, for text was named"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    studies = load_table(path, columns={"study_id": "exam", "image": "films", "findings": "text"})
    assert [s.study_id for s in studies] == ["1", "2", "3"]
    assert studies[0].images == [Image("a.dcm", "PA"), Image("b.dcm", "lateral")]
    assert studies[1].images == [Image("c.dcm", "AP"), Image("d.dcm", "AP")] and studies[1].age == 40.5
    assert studies[2].images == [] and studies[0].findings == "Clear." and studies[2].findings is None


def test_a_bare_list_of_images_names_its_own_studies(tmp_path):
    (tmp_path / "t.csv").write_text("path\nx/a.png\nx/b.png\n")
    assert load_table(tmp_path / "t.csv") == [
        Study("x/a.png", images=[Image("x/a.png")]),
        Study("x/b.png", images=[Image("x/b.png")]),
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n", {}, r"t\.csv: no column holds images or study ids"),
        ("file\na.png\n", {"columns": {"findings": "report"}}, "no column 'report'; there are file"),
        ("file\na.png\n", {"columns": {"finding": "file"}}, "no field is called finding"),
        ("file\na.png\n", {"labels": ["Edema"]}, "no column 'Edema'"),
        ("file,split\na.png,holdout\n", {}, "line 2: unknown split 'holdout'"),
        ("file,Edema\na.png,maybe\n", {"labels": ["Edema"]}, "label 'Edema'"),
        ("file,view\na.png|b.png|c.png,PA|AP\n", {}, "3 images, but 2 views"),
        ("id,findings\n1,Clear.\n1,Edema.\n", {}, "line 3: study '1' has another findings"),
        ("id,findings\n1,Clear, no effusion.\n", {}, "line 2: more or fewer cells"),
        ("id,file\n,\n", {}, "neither a study id nor an image"),
    ],
)
def test_bad_tables(tmp_path, text, options, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(StudyError, match=message):
        load_table(tmp_path / "t.csv", **options)


def test_tables_of_another_kind(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(StudyError, match=r"a \.csv, \.tsv or \.jsonl"):
        load_table(tmp_path / "t.xlsx")
    (tmp_path / "t.tsv").write_text("file\tfindings\na.png\tClear, with a comma.\n")
    assert load_table(tmp_path / "t.tsv")[0].findings == "Clear, with a comma."
    (tmp_path / "t.jsonl").write_text('{"file": "a"}\n{')
    with pytest.raises(StudyError, match="line 2: not valid JSON"):
        load_table(tmp_path / "t.jsonl")
