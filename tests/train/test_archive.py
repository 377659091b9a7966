"""`cxr prepare`: X-rays shrunk once, interrupted and gone on with, and pre-training from them."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from cxr.cli.main import main
from encoder import files
from encoder.radiograph import GREY_RULE, read
from encoder.store import StoreError
from train.datasets.archive import Archive, ArchiveError, index_lines, prepare
from train.datasets.folder import image_paths, shrink
from train.datasets.index import index as write_index


@pytest.fixture
def films(tmp_path):
    """Two patients' images of several sizes and depths, and a file that is none."""
    rng = np.random.default_rng(0)
    for i in range(9):
        folder = tmp_path / "films" / f"p{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        if i % 3:
            pixels = rng.integers(0, 256, (40 + i, 50), dtype=np.uint8)
        else:
            pixels = rng.integers(0, 65536, (60, 40 + i), dtype=np.uint16)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "films" / "p1" / "broken.png").write_bytes(b"no image")
    return tmp_path / "films"


def test_images_are_those_of_the_reader(films, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", str(films), "--out", str(out), "--short-side", "32", "--workers", "2"]) == 3
    said = capsys.readouterr()
    assert "10 images found, 0 were there, 9 added" in said.err and "1 left out: " in said.err
    images = Archive(out)
    assert len(images) == 9 and [s[0].name for s in images.skipped] == ["broken.png"]
    for path, i in zip(images.paths, range(9), strict=True):
        wanted = shrink(read(path).pixels, 32)
        assert images[i].dtype == np.uint8 and np.array_equal(images[i], wanted) and min(wanted.shape) == 32
    with tarfile.open(out / "images-00000.tar") as tar:  # any tool can read it
        names = tar.getnames()
        assert len(names) == 9 and np.array_equal(
            np.asarray(Image.open(tar.extractfile(names[3]))), images[3]
        )


@pytest.mark.parametrize("side", [30, 64])
def test_what_is_taken_out_of_an_archive_reads_as_it_was_put_in(tmp_path, side):
    """A PNG of low contrast and a DICOM, shrunk or whole: no level is stretched on the way, nor twice."""
    rng, folder = np.random.default_rng(0), tmp_path / "films"
    folder.mkdir()
    levels = rng.integers(90, 141, (40, 52)).astype(np.uint8)
    Image.fromarray(levels).save(folder / "a.png")
    dicom_file(folder / "b.dcm", "p")
    list(prepare(image_paths(folder), tmp_path / "out", short_side=side, workers=1))
    images = Archive(tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "images-00000.tar") as tar:
        tar.extractall(tmp_path / "taken", filter="data")
    taken = sorted((tmp_path / "taken").glob("*.png"))
    assert len(taken) == len(images) == 2
    for i, path in enumerate(taken):
        again = read(path)
        assert np.array_equal(again.stored, images[i])
        assert np.array_equal(shrink(again.pixels, side), images[i])
        original = shrink(read(images.paths[i]).pixels, side, bits=16) / 65535
        assert np.abs(again.pixels - original).max() <= 0.5 / 255 + 1e-4
    if side == 64:
        assert np.array_equal(images[0], levels)


def test_an_archive_of_the_rule_before_is_read_but_not_added_to(films, tmp_path):
    list(prepare(image_paths(films)[:2], tmp_path / "out", short_side=32, workers=1))
    about = tmp_path / "out" / "prepared.json"
    row = json.loads(about.read_text())
    assert row.pop("grey_rule") == GREY_RULE
    about.write_text(json.dumps(row))
    assert len(Archive(tmp_path / "out")) == 2
    with pytest.raises(StoreError, match=r"grey_rule None \(now 2\)"):
        list(prepare(image_paths(films), tmp_path / "out", short_side=32, workers=1))


def test_sixteen_bits_keep_the_grey_levels(films, tmp_path):
    list(prepare(sorted(films.rglob("0.png")), tmp_path / "out", short_side=512, bits=16, workers=1))
    line = index_lines(tmp_path / "out")[0]
    with (tmp_path / "out" / "images-00000.tar").open("rb") as file:
        file.seek(line["offset"])
        stored = np.asarray(Image.open(io.BytesIO(file.read(line["size"]))))
    pixels = read(films / "p0" / "0.png").pixels
    assert stored.dtype == np.uint16 and len(np.unique(stored)) > 1000
    np.testing.assert_allclose(stored / 65535, pixels, atol=1e-4)
    assert np.abs(Archive(tmp_path / "out")[0] - pixels * 255).max() <= 1


@pytest.mark.parametrize(
    ("module", "name", "at"),
    [
        (files, "sync", 5),  # while the second shard is written
        (files.json, "dumps", 7),  # when it is there, before its lines are in the index
    ],
)
def test_an_interrupted_run_goes_on(films, tmp_path, monkeypatch, module, name, at):
    paths = sorted(films.rglob("*.png"))
    list(prepare(paths, tmp_path / "whole", short_side=32, workers=1, per_shard=4))
    out, count = tmp_path / "out", 0

    def dying(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(KeyboardInterrupt):
            list(prepare(paths, out, short_side=32, workers=1, per_shard=4))
    with (out / "index.jsonl").open("a") as index:
        index.write('{"path": "cut o')
    added = list(prepare(paths, out, short_side=32, workers=1, per_shard=4))
    assert 0 < len(added) < len(paths)
    a, b = Archive(out), Archive(tmp_path / "whole")
    assert a.paths == b.paths and all(np.array_equal(a[i], b[i]) for i in range(len(b)))
    assert not list(prepare(paths, out, short_side=32, workers=1))  # nothing is left to do
    new = films / "p1" / "99.png"
    shutil.copy(films / "p1" / "1.png", new)
    assert [line["path"] for line in prepare([*paths, new], out, short_side=32, workers=1)] == [str(new)]
    assert np.array_equal(Archive(out)[-1 + len(Archive(out))], a[a.paths.index(films / "p1" / "1.png")])


def test_patients_are_kept_out(films, tmp_path, capsys):
    (tmp_path / "test_patients.txt").write_text("p1\n\n4\n")
    command = ["prepare", str(films), "--out", str(tmp_path / "out"), "--short-side", "32"]
    assert main([*command, "--exclude", str(tmp_path / "test_patients.txt")]) == 0
    names = {path.name for path in Archive(tmp_path / "out").paths}
    assert names == {"0.png", "2.png", "6.png", "8.png"}  # of the other patient, but for file 4
    assert main([*command, "--exclude", str(tmp_path / "absent.txt")]) == 2


def test_patients_are_kept_out_by_what_dicom_says(tmp_path):
    for number, patient in enumerate(("A7", "B8", "A7")):
        dicom_file(tmp_path / "films" / f"{number}.dcm", patient)
    (tmp_path / "out_of.txt").write_text("A7\n")
    command = [
        "prepare",
        str(tmp_path / "films"),
        "--exclude",
        str(tmp_path / "out_of.txt"),
        "--short-side",
        "16",
    ]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    images = Archive(tmp_path / "out")
    assert [p.name for p in images.paths] == ["1.dcm"]
    assert [(p.name, code) for p, code, _ in images.skipped] == [("0.dcm", "excluded"), ("2.dcm", "excluded")]
    assert main([*command, "--out", str(tmp_path / "index.csv")]) == 0
    assert [path.name for path in image_paths(tmp_path / "index.csv")] == ["1.dcm"]


def dicom_file(path, patient):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Modality, data.PatientID, data.StudyInstanceUID = "CR", patient, "1.2.4"
    data.Rows = data.Columns = 20
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.SamplesPerPixel, data.PixelRepresentation = 7, 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8).tobytes()
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def test_an_index_is_gone_on_with_and_trained_from(films, tmp_path, capsys):
    """A tree that is listed once: what is there is not read again, a line that was cut off is written anew."""
    out = tmp_path / "index.csv"
    assert main(["prepare", str(films), "--out", str(out), "--workers", "2"]) == 3
    said = capsys.readouterr().err
    assert "10 images found, 0 were there, 9 added" in said and "1 left out: not_an_image" in said
    whole = out.read_text()
    assert whole.splitlines()[0] == "file,view,width,height,error"
    assert sorted(image_paths(out)) == sorted(p for p in films.rglob("*.png") if p.name != "broken.png")
    out.write_text("".join(whole.splitlines(keepends=True)[:4]) + whole.splitlines()[4][:-3])
    assert main(["prepare", str(films), "--out", str(out), "--workers", "1"]) == 3
    assert "3 were there" in capsys.readouterr().err and out.read_text() == whole
    assert not list(write_index(sorted(films.rglob("*.png")), out, workers=1))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert main(["prepare", str(films), "--out", str(tmp_path / "other.csv")]) == 2
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_pretraining_keeps_out_what_is_named(films, tmp_path):
    from train.common.config import ConfigError
    from train.pretrain.config import PretrainConfig
    from train.pretrain.data import load_data

    (tmp_path / "names.txt").write_text("\ufeffp1\n4.png\n", encoding="utf-8")
    (films / "p1" / "broken.png").unlink()
    list(prepare(sorted(films.rglob("*.png")), tmp_path / "out", short_side=32, workers=1))
    shapes = {
        "size": 28,
        "patch_size": 7,
        "local_crops_size": 14,
        "short_side": 32,
        "exclude": str(tmp_path / "names.txt"),
    }
    samples, _ = load_data(PretrainConfig(data=[str(films), str(tmp_path / "out")], **shapes))
    assert [p.name for p in samples.images.paths] == ["0.png", "2.png", "6.png", "8.png"] * 2
    (tmp_path / "names.txt").write_text("films\n")
    with pytest.raises(ConfigError, match="every image is named"):
        load_data(PretrainConfig(data=[str(films)], **shapes))
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(ConfigError, match="names nothing"):
        load_data(PretrainConfig(data=[str(films)], **shapes))


def test_refusals(films, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", str(films), "--out", str(out), "--short-side", "32"]) == 3
    assert main(["prepare", str(films), "--out", str(out)]) == 2
    assert "short_side 32 (now 518)" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert main(["prepare", str(films), "--out", str(films)]) == 2
    assert "is not empty and no archive" in capsys.readouterr().err
    with pytest.raises(ArchiveError, match=r"no prepared\.json"):
        Archive(films)
    with pytest.raises(ValueError, match="bits must be 8 or 16"):
        list(prepare([], tmp_path / "y", bits=12))


def test_pretraining_from_an_archive_is_that_from_the_files(films, tmp_path, capsys):
    """Also beside a folder; and an archive needs the files no more."""
    from train.pretrain.config import PretrainConfig
    from train.pretrain.data import load_data

    (films / "p1" / "broken.png").unlink()
    list(prepare(sorted(films.rglob("*.png")), tmp_path / "out", short_side=32, workers=1))
    shapes = {"size": 28, "patch_size": 7, "local_crops_size": 14, "short_side": 32}
    both, counts = load_data(PretrainConfig(data=[str(tmp_path / "out"), str(films)], **shapes))[0], 9
    assert both.counts == [counts, counts] and len(both.images) == 18
    assert all(np.array_equal(both.images[i], both.images[9 + i]) for i in range(9))
    prints = [load_data(PretrainConfig(data=[str(d)], **shapes))[1] for d in (tmp_path / "out", films)]
    assert prints[0] == prints[1] and prints[0].endswith(f", grey rule {GREY_RULE}")
    about = tmp_path / "out" / "prepared.json"
    about.write_text(json.dumps({k: v for k, v in json.loads(about.read_text()).items() if k != "grey_rule"}))
    old = load_data(PretrainConfig(data=[str(tmp_path / "out")], **shapes))[1]
    assert f"{old}, grey rule {GREY_RULE}" == prints[0]
    shutil.rmtree(films)
    samples, _ = load_data(PretrainConfig(data=[str(tmp_path / "out")], **shapes))
    assert samples[0][0].global_GHW.shape == (2, 28, 28)
    lines = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert all({"path", "shard", "offset", "size"} == set(line) for line in lines)
