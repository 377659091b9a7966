"""Which images an encoder has seen: by name, by path, and by pixels."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from cxr.cli.main import main as cxr
from encoder.radiograph import read
from tests.train.test_labelled_releases import chexpert, nih, rsna
from train.datasets.archive import prepare
from train.datasets.index import index
from train.datasets.labelled import KINDS, load
from train.probe.leaks import (  # fmt: skip
    SIDE,
    TOLERANCE,
    LeakError,
    _entries,
    image_name,
    known_leaks,
    same_pixels,
    shared_by_name,
    shared_by_pixels,
    thumbnail,
)


def write(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg", "patient00001/study1/view1_frontal"),
        ("C:\\data\\patient00001\\study1\\view1_frontal.png", "patient00001/study1/view1_frontal"),
        ("files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.dcm",
         "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"),
        ("images_001/images/00000001_000.png", "00000001_000"),
        ("/x/nih_00000001_000_512px.jpg", "00000001_000"),
        ("0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm", "0004cfab-14fd-4e49-80ba-63a80b6bddd6"),
        ("All247images/JPCLN001.IMG", "jpcln001"),
        ("1.2.826.0.1.3680043.2", "1.2.826.0.1.3680043.2"),
        ("216840111366964012819207061112010315104455352_04-024-184.png",
         "216840111366964012819207061112010315104455352_04-024-184"),
        ("1.png", None), ("train/sick/image12.png", None), ("No Finding", None), ("study/frontal.jpg", None),
    ],
)  # fmt: skip
def test_what_names_an_image(text, name):
    assert image_name(text)[0] == name


def test_nih_in_a_list_of_another_layout(tmp_path):
    nih(tmp_path)
    found = load("nih", tmp_path)
    listed = write(tmp_path / "seen.csv", ["dataset", "path"], ["NIH-CXR", "x/00000025_000.png"],
                   ["PadChest", "00000026_000.png"], ["BRAX", "a/b.png"])  # fmt: skip
    shared = shared_by_name(found, [listed])
    assert [(s.path.name, s.split, s.how, s.seen) for s in shared] == [
        ("00000025_000.png", "test", "name", "x/00000025_000.png")
    ]
    (tmp_path / "seen.txt").write_text("00000001_000.png\n00000025_001\n")
    shared = shared_by_name(found, [listed, tmp_path / "seen.txt"])
    assert [s.path.stem for s in shared] == ["00000001_000", "00000025_000", "00000025_001"]


def test_rsna_through_its_nih_names(tmp_path):
    rsna(tmp_path)
    found = load("rsna", tmp_path)
    (tmp_path / "seen.txt").write_text("images/00000003_001.png\n")
    (shared,) = shared_by_name(found, [tmp_path / "seen.txt"])
    assert (
        shared.row == 7 and shared.path.name.startswith("00000007-00d4") and shared.split == found.splits[7]
    )
    (tmp_path / "own.txt").write_text(f"{found.paths[0].name}\n")
    assert [s.row for s in shared_by_name(found, [tmp_path / "own.txt"])] == [0]


def test_chexpert_by_patient_study_and_view(tmp_path):
    chexpert(tmp_path)
    found = load("chexpert", tmp_path)
    names = ["train/patient00002/study1/view1_frontal.png", "train/patient00002/study2/view1_frontal.png"]
    (tmp_path / "seen.txt").write_text("\n".join(names))
    assert [s.row for s in shared_by_name(found, [tmp_path / "seen.txt"])] == [1]


def films(folder, count, seed=0):
    """Smooth pictures, no two alike."""
    rng = np.random.default_rng(seed)
    for n in range(count):
        coarse = Image.fromarray(rng.random((9, 7), np.float32)).resize((200, 260), Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse) * 180 + rng.normal(0, 4, (260, 200))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{n}.png")


@pytest.fixture
def probe(tmp_path):
    films(tmp_path / "probe", 6)
    rows = [["file", "labels", "split", "patient_id"]]
    rows += [
        [f"probe/{n}.png", "odd" if n % 2 else "even", "test" if n > 2 else "train", n] for n in range(6)
    ]
    return write(tmp_path / "probe.csv", *rows)


def test_names_that_are_anyones_count_by_their_path(tmp_path, probe):
    found = load(probe)
    films(tmp_path / "other", 3, seed=1)  # 0.png to 2.png
    assert shared_by_name(found, [tmp_path / "other"]) == []
    assert [s.how for s in shared_by_name(found, [tmp_path / "probe"])] == ["path"] * 6
    paths = sorted((tmp_path / "probe").glob("*.png"))
    list(index(paths[4:], tmp_path / "index.csv", workers=1))
    list(prepare(paths[:1], tmp_path / "archive", short_side=32, workers=1))
    shared = shared_by_name(found, [tmp_path / "index.csv", tmp_path / "archive"])
    assert [s.row for s in shared] == [0, 4, 5] and shared[0].listed_in.endswith("archive")


def test_lists_that_cannot_be_used(tmp_path, probe):
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("empty.txt", "names no image"), ("none.csv", "cannot be read as a list")):
        with pytest.raises(LeakError, match=message):
            shared_by_name(load(probe), [tmp_path / name])


def test_pixels_find_what_was_stored_again(tmp_path, probe):
    films(tmp_path / "seen", 4, seed=1)
    film = Image.open(tmp_path / "probe/4.png")
    film.save(tmp_path / "seen/jpeg.jpg", quality=20)
    Image.open(tmp_path / "probe/1.png").resize((100, 130), Image.Resampling.BICUBIC).save(
        tmp_path / "seen/s.png"
    )
    deep = (
        np.asarray(Image.open(tmp_path / "probe/5.png")).astype(np.uint16) * 40 + 900
    )  # another range of greys
    Image.fromarray(deep).save(tmp_path / "seen/deep.png")
    Image.open(tmp_path / "probe/0.png").crop((40, 40, 200, 260)).save(tmp_path / "seen/cropped.png")
    shared = shared_by_pixels(load(probe), [tmp_path / "seen"])
    assert [(s.row, s.seen.rpartition("/")[2]) for s in shared] == [
        (1, "s.png"),
        (4, "jpeg.jpg"),
        (5, "deep.png"),
    ]
    assert all(s.how == "pixels" and s.difference < TOLERANCE for s in shared)
    list(prepare(sorted((tmp_path / "seen").glob("*.*")), tmp_path / "archive", short_side=100, workers=1))
    assert [s.row for s in shared_by_pixels(load(probe), [tmp_path / "archive"])] == [1, 4, 5]


def test_the_quick_search_finds_what_a_slow_one_finds():
    rng = np.random.default_rng(0)
    b_Mhw = rng.integers(0, 256, (40, SIDE, SIDE), np.uint8)
    steps = rng.integers(-9, 10, (12, SIDE, SIDE))
    a_Nhw = (
        (b_Mhw[:12].astype(int) + steps * np.linspace(0, 2, 12)[:, None, None]).clip(0, 255).astype(np.uint8)
    )
    for tolerance in (0.0, 2.0, 5.0, 100.0):
        expected = []
        for n, a_hw in enumerate(a_Nhw):
            differences = [np.abs(a_hw.astype(float) - b_hw).mean() for b_hw in b_Mhw]
            m = int(np.argmin(differences))
            expected += [(n, m, differences[m])] if differences[m] <= tolerance else []
        found = same_pixels(a_Nhw, b_Mhw, tolerance)
        assert [f[:2] for f in found] == [e[:2] for e in expected]
        assert np.allclose([f[2] for f in found], [e[2] for e in expected])


def test_a_thumbnail_of_nothing_is_grey(tmp_path, probe):
    assert (thumbnail(np.ones((70, 90))) == 128).all()
    x = read(tmp_path / "probe/0.png").pixels
    assert np.abs(thumbnail(x).astype(int) - thumbnail(0.3 * x + 0.1)).max() <= 1


def test_what_is_known_of_rad_dino():
    saw = {k: known_leaks("rad-dino", k) for k in KINDS} | {
        k: known_leaks("RAD-DINO", k) for k in ("padchest", "brax")
    }
    seen = {kind for kind, text in saw.items() if "saw images of" in text and "not known" not in text}
    assert seen == {"mimic-cxr", "chexpert", "chexpert-plus", "nih", "rsna", "padchest", "brax"}
    assert (
        "part of nih, in its pre-training, without labels: all images, those of its test list too"
        in saw["rsna"]
    )
    for kind in ("vindr-cxr", "candid-ptx", "iu-xray", "jsrt", "montgomery", "shenzhen"):
        assert "is not among the data sets" in known_leaks("rad-dino", kind)
    assert "not known" in known_leaks("rad-dino", "") and "not recorded" in known_leaks("mine", "nih")


def main(words):
    return cxr(["leaks", *words])


def test_the_command(tmp_path, probe, capsys):
    out = tmp_path / "shared.csv"
    asked = [str(probe), "--list", str(tmp_path / "probe/"), "--workers", "1"]
    assert main([*asked, "--out", str(out)]) == 1
    assert "test      3 of 3 images were seen" in capsys.readouterr().out
    assert len(list(csv.DictReader(out.open()))) == 6
    assert main([*asked, "--out", str(out)]) == 2 and "exists" in capsys.readouterr().err
    assert main([str(probe), "--encoder", "rad-dino"]) == 0 and "not known" in capsys.readouterr().out
    films(tmp_path / "other", 1, seed=1)
    assert main([str(probe), "--pixels", str(tmp_path / "other"), "--workers", "1"]) == 0
    assert main(["rsnaa:/x", "--encoder", "rad-dino"]) == 2 and "vindr-cxr, rsna" in capsys.readouterr().err


def test_a_list_that_is_no_text_is_refused_and_acquits_nobody(tmp_path):
    for number, data in enumerate((b"\x89PNG\r\n\x1a\n\0\0", bytes(range(256)), b"p1.png\n\xff\xfe\n")):
        file = tmp_path / f"{number}.bin"
        file.write_bytes(data)
        with pytest.raises(LeakError, match=f"{file} is not a text"):
            list(_entries(file))
    (tmp_path / "names").write_text("p1.png\np\u00e4tient 2\n", encoding="utf-8")
    assert len(list(_entries(tmp_path / "names"))) == 2


def test_an_encoder_of_which_nothing_is_recorded_is_not_acquitted(tmp_path, capsys):
    (tmp_path / "p1.png").touch()
    table = tmp_path / "t.csv"
    table.write_text("image,labels,split\np1.png,Edema,test\n")
    for encoder, status in (("nobody's", 1), ("rad-dino", 0)):
        assert cxr(["leaks", str(table), "--encoder", encoder]) == status
    assert "is not recorded here" in capsys.readouterr().out
