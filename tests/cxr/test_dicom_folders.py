"""Folders of DICOM files, archives and DICOMDIRs become studies. What is expected is written by hand."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from cxr.cli.inputs import grouped
from cxr.cli.main import main
from encoder.errors import UserError
from encoder.media import MediaError, MediaLimits, Member, members
from encoder.radiograph import read
from tests.tiny import make_llm
from train.datasets.films import film_header
from train.datasets.reports.dicom import Rules
from vlm import model as models
from vlm import projector as projectors
from vlm.build import build
from vlm.predictions import study_sha256
from vlm.prompts import PromptStyle
from vlm.study import load_studies

CR, DX, RAW = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "1.1.1"))
SR, PR, KO, CT = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("88.11", "11.1", "88.59", "2"))
SHORT = ["--max-new-tokens", "2"]
ONE, TWO, THREE, FOUR = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4"


def film(path: Path, study: str | None = None, pixels: bool = True, **tags) -> Path:
    """Write a DICOM file of 40 x 40 pixels, different in each file, of which only `tags` are told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.SOPClassUID, data.Modality, data.SOPInstanceUID = CR, "CR", generate_uid()
    if study:
        data.StudyInstanceUID = study
    if pixels:
        seed = int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:4], "big")
        values = np.random.default_rng(seed).integers(0, 4096, (40, 40)).astype(np.uint16)
        data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = 40, 40, 1, 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.PhotometricInterpretation = "MONOCHROME2"
        data.add_new("PixelData", "OW", values.tobytes())
    for name, value in tags.items():
        setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)
    return path


def group(*inputs: Path, tell: bool = True, **rules):
    return grouped(dict(enumerate(inputs)), Rules(**rules), [], told=tell)[0].studies


def drawn(studies) -> dict[str, tuple[list[str], list[str] | None]]:
    """Study -> (file and view of its images, files of its prior's)."""
    return {
        s.study_id: (
            [f"{Path(i.path).name} {i.view}" for i in s.images],
            s.prior and [Path(i.path).name for i in s.prior.images],
        )
        for s in studies
    }


@pytest.fixture
def disc(tmp_path):
    """Three studies of one patient, one of another, a film that says nothing, a picture, and what is no film."""
    folder = tmp_path / "disc"
    ann = {"PatientID": "A17", "PatientSex": "F", "PatientBirthDate": "19600630"}
    film(
        folder / "1/b",
        ONE,
        **ann,
        StudyDate="20200101",
        StudyTime="1000",
        ViewPosition="LL",
        InstanceNumber=1,
    )
    film(
        folder / "1/a",
        ONE,
        **ann,
        StudyDate="20200101",
        StudyTime="1000",
        ViewPosition="PA",
        InstanceNumber=2,
    )
    # only a lateral film: no prior of the next, which has the first
    film(folder / "2/a", TWO, **ann, StudyDate="20200301", SeriesDescription="CHEST LAT")
    film(
        folder / "3/a", THREE, **ann, StudyDate="20200629", ProtocolName="Thorax ap",
        ReasonForTheRequestedProcedure="Fever,\r\n cough", AdmittingDiagnosesDescription="Sepsis",
        RequestedProcedureDescription="XR chest",
    )  # fmt: skip
    film(folder / "4/a", FOUR, PatientID="B9", PatientAge="007M", StudyDate="20210101", ViewPosition="AP")
    film(folder / "bare")
    Picture.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40)).save(folder / "photo.png")
    film(folder / "1/report", ONE, False, **ann, Modality="SR", SOPClassUID=SR)
    film(folder / "1/key", ONE, False, **ann, Modality="KO", SOPClassUID=KO)
    film(folder / "1/shown", ONE, False, **ann, Modality="PR", SOPClassUID=PR)
    film(folder / "1/slice", ONE, **ann, Modality="CT", SOPClassUID=CT)
    film(folder / "1/wrist", ONE, **ann, BodyPartExamined="WRIST", ViewPosition="AP", InstanceNumber=0)
    return folder


EXPECTED = {
    "1/a": (["b lateral", "a PA"], None),
    "2/a": (["a lateral"], ["b", "a"]),
    "3/a": (["a AP"], ["b", "a"]),
    "4/a": (["a AP"], None),
    "bare": (["bare unknown"], None),
    "photo.png": (["photo.png unknown"], None),
}


def test_files_of_one_study_are_one_study(disc, capsys):
    studies = group(disc)
    assert drawn(studies) == EXPECTED and [s.study_id for s in studies] == list(EXPECTED)
    said = capsys.readouterr().err
    assert said == "5 files that are not chest X-rays are left out: 1 CT, 1 KO, 1 PR, 1 SR, 1 wrist\n"
    one, _, three, four, bare, photo = studies
    assert (one.age, one.sex, one.indication) == (59, "F", None)
    # the day before the birthday
    assert three.age == 59 and three.indication == "Fever, cough" and three.extra["procedure"] == "XR chest"
    assert four.age == pytest.approx(7 / 12, abs=1e-3)
    # equal patients have equal names, which are not their own
    assert one.patient_id == three.patient_id != four.patient_id
    assert one.patient_id == "p" + hmac.new(b"cxr patient", b"A17", "sha256").hexdigest()[:16]
    assert bare.patient_id is None and photo.patient_id is None and not photo.extra
    assert [s.extra.get("order") for s in studies] == [1, 2, 3, 1, None, None]
    written = repr([(s.patient_id, s.extra, [i.extra for i in s.images]) for s in studies])
    assert not any(word in written for word in ("A17", "B9", "2020", "1960", ONE))
    assert drawn(group(disc)) == drawn(studies)


def test_plain_names_a_key_and_dates(disc):
    plain = group(disc, patient_ids="plain", dates=True)
    assert [s.patient_id for s in plain] == ["A17"] * 3 + ["B9", None, None]
    assert plain[0].extra["study_uid"] == ONE and plain[0].extra["study_date"] == "20200101"
    keyed = group(disc, key=b"secret")
    assert keyed[0].patient_id == "p" + hmac.new(b"secret", b"A17", "sha256").hexdigest()[:16]


def test_a_study_a_file(disc, capsys):
    names = sorted(str(p.relative_to(disc)) for p in disc.rglob("*") if p.is_file())
    studies = group(disc, per_file=True)
    assert [s.study_id for s in studies] == names and all(len(s.images) == 1 for s in studies)
    assert not any(s.prior for s in studies) and not capsys.readouterr().err


def test_studies_of_equal_names_and_uids_in_two_inputs_are_two(tmp_path):
    for hospital in ("a", "b"):
        film(tmp_path / hospital / "film", ONE, PatientID="1", ViewPosition="PA")
        film(tmp_path / hospital / "side", ONE, PatientID="1", ViewPosition="LL")
    studies = group(tmp_path / "a", tmp_path / "b")
    assert [s.study_id for s in studies] == [str(tmp_path / h / "film") for h in "ab"]
    for study, hospital in zip(studies, "ab", strict=True):
        assert {Path(i.path).parent.name for i in study.images} == {hospital}


def test_files_named_one_by_one_are_grouped_and_always_tried(tmp_path):
    pa = film(tmp_path / "x/pa", ONE, PatientID="1", ViewPosition="PA")
    lateral = film(tmp_path / "y/lateral", ONE, PatientID="1", ViewPosition="LL")
    knee = film(tmp_path / "knee", TWO, PatientID="1", BodyPartExamined="KNEE")
    assert drawn(group(lateral, pa, knee)) == {
        "pa": (["lateral lateral", "pa PA"], None),
        "knee": (["knee unknown"], None),
    }
    assert group(tmp_path / "knee", tmp_path / "x")[0].study_id == "knee"
    with pytest.raises(UserError, match="more than once"):
        group(pa, pa)


def test_one_uid_of_two_patients_is_two_studies(tmp_path):
    film(tmp_path / "a", ONE, PatientID="1")
    film(tmp_path / "b", ONE, PatientID="2")
    assert drawn(group(tmp_path)) == {"a": (["a unknown"], None), "b": (["b unknown"], None)}


@pytest.mark.parametrize("blank", ["ANONYMOUS", "0", "000", "", "Anonymized"])
def test_an_id_that_everybody_has_names_nobody(tmp_path, blank):
    film(tmp_path / "a", ONE, PatientID=blank, StudyDate="20200101")
    film(tmp_path / "b", TWO, PatientID=blank, StudyDate="20210101")
    assert [(s.patient_id, s.prior) for s in group(tmp_path)] == [(None, None)] * 2


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_priors_are_of_one_person_and_strictly_earlier(tmp_path, capsys):
    old, new = {"StudyDate": "20200101"}, {"StudyDate": "20210101"}
    # one ID of two people
    film(tmp_path / "a1", "1.1", PatientID="1", PatientSex="F", **old)
    film(tmp_path / "a2", "1.2", PatientID="1", PatientSex="M", **new)
    # of two hospitals
    film(tmp_path / "b1", "2.1", PatientID="2", IssuerOfPatientID="X", **old)
    film(tmp_path / "b2", "2.2", PatientID="2", IssuerOfPatientID="Y", **new)
    # one day, of which one study has no time
    film(tmp_path / "c1", "3.1", PatientID="3", StudyTime="0900", **old)
    film(tmp_path / "c2", "3.2", PatientID="3", **old)
    # and of which both have
    film(tmp_path / "d1", "4.1", PatientID="4", StudyTime="090000.5", **old)
    film(tmp_path / "d2", "4.2", PatientID="4", StudyTime="0901", **old)
    # a date that is none
    film(tmp_path / "e1", "5.1", PatientID="5", StudyDate="00000000")
    film(tmp_path / "e2", "5.2", PatientID="5", **old)
    priors = {name: prior for name, (_, prior) in drawn(group(tmp_path)).items() if prior}
    assert priors == {"d2": ["d1"]}
    assert "1 patient ID belongs to several people" in capsys.readouterr().err


def test_the_main_image_of_several_of_a_view(tmp_path, capsys):
    p = {"PatientID": "1", "ViewPosition": "PA"}
    made = {"AcquisitionDate": "20200101", "StudyDate": "20200101"}
    shown, raw = "FOR PRESENTATION", "FOR PROCESSING"
    # raw data of the same view stand back, whatever their numbers; those of another view are all there is of it
    film(tmp_path / "1raw", ONE, **p, InstanceNumber=1, PresentationIntentType=raw, SOPClassUID=RAW)
    film(tmp_path / "1shown", ONE, **p, InstanceNumber=2, PresentationIntentType=shown, SOPClassUID=DX)
    film(tmp_path / "1side", ONE, **p | {"ViewPosition": "LL"}, InstanceNumber=0, PresentationIntentType=raw)
    # the earlier acquisition, though its number in its series is greater
    film(tmp_path / "2late", TWO, **p, **made, AcquisitionTime="1005", InstanceNumber=1)
    film(tmp_path / "2soon", TWO, **p, **made, AcquisitionTime="1001", InstanceNumber=2)
    # without times the numbers, not as texts
    film(tmp_path / "3a", THREE, **p, InstanceNumber=10)
    film(tmp_path / "3b", THREE, **p, InstanceNumber=9)
    # an annotated or processed copy stands behind
    film(tmp_path / "4a", FOUR, **p, InstanceNumber=1, ImageType=["DERIVED", "SECONDARY"])
    film(tmp_path / "4b", FOUR, **p, InstanceNumber=2, ImageType=["DERIVED", "PRIMARY"])
    film(tmp_path / "4c", FOUR, **p, InstanceNumber=3, ImageType=["ORIGINAL", "PRIMARY"])
    assert {name: images for name, (images, _) in drawn(group(tmp_path, priors=False)).items()} == {
        "1shown": ["1shown PA", "1side lateral"],
        "2soon": ["2soon PA", "2late PA"],
        "3b": ["3b PA", "3a PA"],
        "4c": ["4c PA", "4b PA", "4a PA"],
    }
    assert capsys.readouterr().err.startswith("1 file of raw detector data is left out")


@pytest.mark.parametrize(
    ("tags", "indication"),
    [
        ({"ReasonForStudy": "Cough"}, "Cough"),
        ({"AdmittingDiagnosesDescription": ["COPD", "Fall"]}, "COPD; Fall"),
        ({"RequestedProcedureDescription": "XR chest PA"}, None),
        ({"ReasonForTheRequestedProcedure": "n/a", "ReasonForStudy": "-"}, None),
    ],
)
def test_indications(tmp_path, tags, indication):
    assert film_header(film(tmp_path / "a", ONE, **tags)).indication == indication


def test_an_indication_in_the_request(tmp_path):
    item = Dataset()
    item.ReasonForTheRequestedProcedure = "Dyspnoea"
    path = film(
        tmp_path / "a", ONE, RequestAttributesSequence=Sequence([item]), AdmittingDiagnosesDescription="x"
    )
    assert film_header(path).indication == "Dyspnoea"
    # in another character set
    path = film(tmp_path / "b", ONE, SpecificCharacterSet="ISO_IR 192", ReasonForStudy="Dyspnée")
    assert film_header(path).indication == "Dyspnée"


def test_headers_of_damaged_files_never_raise(disc, tmp_path):
    data = (disc / "3/a").read_bytes()
    rng = np.random.default_rng(5)
    for at in range(0, 700, 23):
        (tmp_path / "cut").write_bytes(data[:at])
        film_header(tmp_path / "cut")
        changed = bytearray(data)
        for place in rng.integers(128, 900, 4):
            changed[place] = rng.integers(256)
        (tmp_path / "changed").write_bytes(changed)
        film_header(tmp_path / "changed")
    # no preamble, and no group length: as some devices write it
    bare = data[132:]
    (tmp_path / "bare").write_bytes(bare)
    assert film_header(tmp_path / "bare").study_uid == THREE
    for nothing in (b"", b"\x89PNG\r\n\x1a\n", b"<xml/>" * 100):
        (tmp_path / "nothing").write_bytes(nothing)
        assert film_header(tmp_path / "nothing") is None


# Generation


@pytest.fixture(scope="module")
def model_dir(encoder_dir, tmp_path_factory):
    """A model that is shown laterals and priors."""
    style = PromptStyle(lateral=True, prior_image=True)
    import torch

    model = build(encoder_dir, make_llm(tmp_path_factory.mktemp("llm"), seed=3), prompt=style)
    pixels_BCHW = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    projectors.calibrate(model.llava, projectors.tower_features(model.llava.model.vision_tower, pixels_BCHW))
    folder = tmp_path_factory.mktemp("model")
    models.save(model, folder)
    return str(folder)


def rows(path):
    return {row["study_id"]: row for row in map(json.loads, Path(path).read_text().splitlines())}


def seen(row):
    return [(shown["role"], Path(shown["path"]).name) for shown in row["images"]]


def test_predictions_say_which_images_they_saw(model_dir, disc, tmp_path, capsys):
    out, floors = tmp_path / "p.jsonl", tmp_path / "floors"
    command = ["generate", str(disc), "--model", model_dir, *SHORT, "--indication", "Pain"]
    assert main([*command, "--out", str(out), "--floors", str(floors)]) == 0
    assert "refused" not in capsys.readouterr().err
    own, blank, shuffled = rows(out), rows(floors / "blank.jsonl"), rows(floors / "shuffled.jsonl")
    assert list(own) == list(EXPECTED)
    assert seen(own["1/a"]) == [("Frontal", "a"), ("Lateral", "b")]
    assert seen(own["3/a"]) == [("Frontal", "a"), ("Prior", "a")]
    assert [Path(i["path"]).parent.name for i in own["3/a"]["images"]] == ["3", "1"]
    assert own["1/a"]["patient_id"].startswith("p") and "A17" not in out.read_text()
    assert all(row["images"] == [] for row in blank.values())
    for name, row in shuffled.items():
        assert row["images"] and row["images"] != own[name]["images"]
    others = sorted(row["images"][0]["path"] for row in shuffled.values())
    assert others == sorted(row["images"][0]["path"] for row in own.values())


def test_an_unreadable_main_image_gives_way_to_another_of_the_study(model_dir, tmp_path):
    film(tmp_path / "films/1", ONE, PatientID="1", ViewPosition="PA", InstanceNumber=1)
    film(tmp_path / "films/2", ONE, PatientID="1", ViewPosition="PA", InstanceNumber=2)
    film(tmp_path / "films/3", TWO, PatientID="2", ViewPosition="PA")
    film(tmp_path / "films/4", TWO, PatientID="2", ViewPosition="LL")
    for name in "13":
        path = tmp_path / "films" / name
        path.write_bytes(path.read_bytes()[:-100])
    out = tmp_path / "p.jsonl"
    assert main(["generate", str(tmp_path / "films"), "--model", model_dir, *SHORT, "--out", str(out)]) == 3
    one, two = rows(out).values()
    assert seen(one) == [("Frontal", "2")] and any(w["code"] == "truncated" for w in one["warnings"])
    assert two["error"]["code"] == "truncated" and two["images"] == []
    # The study is called by the film that gave way, so the warning says whose findings these are.
    assert list(rows(out)) == ["1", "3"]
    (said,) = (w["message"] for w in one["warnings"] if w["code"] == "truncated")
    assert said.startswith("the frontal image was left out: ") and said.endswith(
        f". Shown in its place: {tmp_path / 'films' / '2'}"
    )


def test_only_what_is_no_film(model_dir, tmp_path, capsys):
    film(tmp_path / "films/a", ONE, False, Modality="SR", SOPClassUID=SR)
    assert main(["generate", str(tmp_path / "films"), "--model", model_dir]) == 2
    said = capsys.readouterr().err
    assert "1 file that is not a chest X-ray is left out: 1 SR" in said and "no study found" in said


def test_what_is_left_out_has_one_name_however_it_is_told(tmp_path, capsys):
    """Of an MR, by its modality and by its SOP class alone."""
    mr, enhanced = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
    film(tmp_path / "films/a", ONE, Modality="MR", SOPClassUID=mr)
    film(tmp_path / "films/b", TWO, Modality="", SOPClassUID=mr)
    film(tmp_path / "films/c", THREE, Modality="OT", SOPClassUID=enhanced)
    film(tmp_path / "films/d", FOUR, False, Modality="", SOPClassUID=SR)
    film(tmp_path / "films/e", FOUR, False, Modality="", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.1")
    assert group(tmp_path / "films") == []
    assert (
        capsys.readouterr().err == "5 files that are not chest X-rays are left out: 3 MR, 1 RTIMAGE, 1 SR\n"
    )


# Archives


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    return path


def test_an_archive_is_read_in_place(model_dir, disc, tmp_path, capsys):
    archive = zipped(disc, tmp_path / "export.zip")
    studies = group(archive)
    assert drawn(studies) == {f"export.zip/{name}": made for name, made in EXPECTED.items()}
    for inside, outside in zip(studies, group(disc), strict=True):
        assert (read(inside.images[0].source).pixels == read(outside.images[0].path).pixels).all()
        assert inside.patient_id == outside.patient_id
    there = sorted(tmp_path.rglob("*"))
    out = tmp_path / "p.jsonl"
    command = ["generate", "--model", model_dir, *SHORT]
    assert main([*command, str(archive), "--out", str(out)]) == 0
    assert main([*command, str(disc), "--out", str(tmp_path / "q.jsonl")]) == 0
    inside, outside = rows(out), rows(tmp_path / "q.jsonl")
    for name, row in outside.items():
        other = inside[f"export.zip/{name}"]
        assert other["findings"] == row["findings"] and seen(other) == seen(row)
    assert len({row["study_sha256"] for row in inside.values()}) == len(inside)
    assert inside["export.zip/1/a"]["images"][0]["path"] == f"{archive}/1/a"
    assert sorted(tmp_path.rglob("*")) == sorted([*there, out, tmp_path / "q.jsonl"])


def test_a_study_in_an_archive_is_known_by_its_contents(disc, tmp_path):
    """A resumed run takes a prediction only if the study is the same; in an archive, too."""

    def digests(studies):
        return [study_sha256(replace(s, study_id="s")) for s in studies]

    archive = zipped(disc, tmp_path / "a.zip")
    before = digests(group(archive))
    assert before == digests(group(disc))
    Picture.fromarray(np.zeros((40, 40), np.uint8)).save(disc / "photo.png")
    after = digests(group(zipped(disc, archive)))
    assert after[:-1] == before[:-1] and after[-1] != before[-1]


def test_archives_in_a_folder_and_in_archives(disc, tmp_path, capsys):
    folder = tmp_path / "all"
    folder.mkdir()
    inner = zipped(disc, tmp_path / "inner.zip")
    with zipfile.ZipFile(folder / "outer.zip", "w") as archive:
        archive.write(disc / "4/a", "film")
        archive.write(inner, "inner.zip")
        archive.write(inner, "without_suffix")
        archive.writestr("__MACOSX/._film", b"junk")
        archive.writestr(".hidden", b"junk")
        archive.writestr("README.txt", b"words")
    with zipfile.ZipFile(folder / "letter.docx", "w") as archive:
        archive.writestr("word/document.xml", b"<x/>")
    (folder / "broken.zip").write_bytes(inner.read_bytes()[:300])
    shutil.copy(disc / "bare", folder / "bare")
    studies = group(folder)
    assert [s.study_id for s in studies] == ["bare", "letter.docx", "outer.zip/film"]
    said = capsys.readouterr().err
    assert "outer.zip: 2 archives in it are not opened" in said
    assert "broken.zip: this zip archive is damaged" in said and said.count("left out") == 1


def with_member(path: Path, name: str, data: bytes = b"x", mode: int = 0o100644, flags: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("n" * len(name))
        info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(info, data)
    # zipfile itself writes no such names and flags
    raw = path.read_bytes().replace(b"n" * len(name), name.encode())
    if flags:
        for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = raw.index(mark) + at
            raw = raw[:place] + struct.pack("<H", flags) + raw[place + 2 :]
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"name": "../../etc/film"}, "points outside"),
        ({"name": "a/../../film"}, "points outside"),
        ({"name": "..\\film"}, "points outside"),
        ({"name": "/etc/film"}, "points outside"),
        ({"name": "C:/film"}, "points outside"),
        ({"name": "film", "mode": 0o120777, "data": b"/etc/passwd"}, "is a link"),
        ({"name": "film", "flags": 1}, "is encrypted"),
        ({"name": "film", "data": bytes(3 << 20)}, "more than 200 times its size"),
    ],
)
def test_archives_that_are_not_safe(tmp_path, capsys, member, message):
    path = with_member(tmp_path / "bad.zip", **member)
    with pytest.raises(MediaError, match=message):
        members(path)
    assert main(["generate", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and len(said.splitlines()) == 1


def test_limits_of_archives(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in "abc":
            archive.writestr(name, bytes(1000))
    assert [m.inner for m in members(path)] == ["a", "b", "c"]
    for limits, message in (
        ({"max_members": 2}, "3 files, more than 2"),
        ({"max_bytes": 999}, "unfolds to 1000 bytes, more than 999"),
        ({"max_total": 2999}, "unfolds to 3000 bytes, more than 2999"),
        ({"max_directory": 100}, "too many files"),
    ):
        with pytest.raises(MediaError, match=message):
            members(path, MediaLimits(**limits))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("a", b"again")
    with pytest.raises(MediaError, match="occurs twice"):
        members(path)


def test_a_member_that_says_it_is_smaller_than_it_is(tmp_path):
    """The size that is stated bounds what is decompressed."""
    path = with_member(tmp_path / "a.zip", "film", bytes(1 << 20))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<L", raw, raw.index(b"PK\x01\x02") + 24, 100)
    path.write_bytes(raw)
    (member,) = members(path)
    assert member.size == 100
    try:
        assert len(member.read()) <= 100
    except MediaError as error:
        assert "damaged" in str(error)


def test_damaged_archives_give_one_line(disc, tmp_path):
    data = zipped(disc, tmp_path / "good.zip").read_bytes()
    rng = np.random.default_rng(7)
    for number in range(60):
        changed = bytearray(data)
        if number % 2:
            changed = changed[: rng.integers(len(data))]
        # in the directory, where it hurts
        low = max(0, len(changed) - 900)
        for place in rng.integers(low, max(low + 1, len(changed)), 6 if changed else 0):
            changed[place] = rng.integers(256)
        path = tmp_path / "changed.zip"
        path.write_bytes(bytes(changed))
        try:
            found = members(path)
        except MediaError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            continue
        for member in found:
            film_header(member)


def test_a_member_survives_processes(disc, tmp_path):
    """It is handed to other processes, and read after a fork from a position of its own."""
    import multiprocessing

    member = members(zipped(disc, tmp_path / "a.zip"))[0]
    whole = member.read()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(Member.read, [member] * 6) == [whole] * 6


# DICOMDIRs


def test_a_dicomdir_names_its_files(disc, tmp_path, capsys):
    index = FileSet()
    for name in ("1/a", "1/b", "3/a"):
        path = disc / name
        # a file set wants these of each
        data = dcmread(path)
        data.SeriesInstanceUID, data.StudyID, data.SeriesNumber = generate_uid(), "1", 1
        data.PatientName, data.InstanceNumber = "X", data.get("InstanceNumber") or 1
        data.StudyTime = data.get("StudyTime") or "1200"
        index.add(data)
    index.write(tmp_path / "cd")
    dicomdir = tmp_path / "cd" / "DICOMDIR"
    studies = group(dicomdir)
    assert [[i.view for i in s.images] for s in studies] == [["lateral", "PA"], ["AP"]]
    assert studies[1].prior and len(studies[1].prior.images) == 2
    # in its folder it is passed over
    assert drawn(group(tmp_path / "cd")) == drawn(studies)
    assert not capsys.readouterr().err
    # small letters on the disk, a file that is missing, and another that nobody named
    lost = Path(studies[1].images[0].path)
    lost.unlink()
    film(tmp_path / "cd" / "other", FOUR)
    for path in sorted(tmp_path.joinpath("cd").rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.lower()))
    assert len(group(tmp_path / "cd" / "dicomdir")) == 1
    assert "1 of the 3 files that it names are missing" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("parts", [["..", "film"], ["/etc", "film"], ["LINK"], ["LINKED", "film"]])
def test_a_dicomdir_that_points_elsewhere(disc, tmp_path, parts):
    folder = tmp_path / "cd"
    folder.mkdir()
    film(tmp_path / "film")
    os.symlink(tmp_path / "film", folder / "LINK")
    os.symlink(tmp_path, folder / "LINKED")
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", parts
    path = folder / "DICOMDIR"
    film(path, pixels=False, SOPClassUID="1.2.840.10008.1.3.10", DirectoryRecordSequence=Sequence([record]))
    with pytest.raises(MediaError, match=r"outside of its folder|is a link"):
        group(path)


def test_a_studies_file_of_a_folder(disc, tmp_path, capsys):
    zipped(disc, disc / "again.zip")
    out = tmp_path / "made" / "studies.jsonl"
    command = ["studies", "make", "dicom", str(disc), "--out", str(out)]
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "again.zip: a studies file can name no files in an archive" in said
    assert "1 study has no frontal image" in said
    studies = load_studies(out)
    assert [s.study_id for s in studies] == [name for name in EXPECTED if name != "2/a"]
    assert drawn(studies)["3/a"] == EXPECTED["3/a"]
    assert studies[0].images[0].path == "../disc/1/b"
    assert all(p.is_file() for s in studies for p in s.image_paths(out.parent))
    assert not any(word in out.read_text() for word in ("A17", "2020", ONE))
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--laterals", "--patient-ids", "plain", "--dates"]) == 3
    studies = load_studies(out)
    assert [s.study_id for s in studies] == list(EXPECTED) and studies[0].patient_id == "A17"
    assert studies[0].extra["study_date"] == "20200101"
    assert main([*command, "--overwrite", "--column", "age=x"]) == 2
    assert "--column means nothing for dicom" in capsys.readouterr().err
    assert main(["studies", "make", "dicom", str(disc / "again.zip"), "--out", str(tmp_path / "o")]) == 2
    # generation from the file, and from the folder, shows the same
    (disc / "again.zip").unlink()
    assert drawn(load_studies(out)) == drawn(group(disc, tell=False, patient_ids="plain"))


def test_file_names_that_are_not_utf8(tmp_path):
    odd = os.fsdecode(b"films/M\xfcller")
    film(tmp_path / odd, ONE, PatientID="1")
    out = tmp_path / "studies.jsonl"
    assert main(["studies", "make", "dicom", str(tmp_path / "films"), "--out", str(out)]) == 0
    assert load_studies(out)[0].image_paths(tmp_path)[0].is_file()


def test_real_files(cxr_data, capsys):
    studies = group(cxr_data / "dicom" / "radiograph")
    assert drawn(studies) == {
        "DX_thorax_Fuji_DOG_small.dcm": (["DX_thorax_Fuji_DOG_small.dcm lateral"], None),
        "RG1_chestPA_J2K_lossy.dcm": (
            ["RG1_chestPA_J2K_lossy.dcm PA", "RG1_chestPA_JPEGLS_nearlossless.dcm PA"],
            None,
        ),
        "RSNA_chestPA_JPEGbaseline.dcm": (
            ["RSNA_chestPA_JPEGbaseline.dcm PA", "RSNA_chestPA_fakeMONOCHROME1.dcm PA"],
            None,
        ),
    }
    assert [(s.age, s.sex) for s in studies] == [(5, "F"), (64, "F"), (62, "M")]
    assert (
        "8 files that are not chest X-rays are left out: 6 extremity, 1 hip, 1 teeth"
        in capsys.readouterr().err
    )
    odd = group(cxr_data / "dicom" / "odd", per_file=False)
    names = {s.study_id for s in odd}
    assert "DICOMDIR" not in names and not names & {
        "test-SR.dcm",
        "MR_small.dcm",
        "rtplan.dcm",
        "eCT_Supplemental.dcm",
    }
    assert {"truncated_RG1_J2K.dcm", "empty_file.dcm", "not_dicom_xml.dcm"} <= names


def test_what_cannot_be_opened_is_refused_by_generate_and_left_out_of_a_list(tmp_path, capsys):
    disc = tmp_path / "disc"
    film(disc / "film.dcm", ONE, ViewPosition="PA")
    Picture.fromarray(np.zeros((40, 40), np.uint8)).save(disc / "film.png")
    Picture.fromarray(np.zeros((40, 40), np.uint8)).save(disc / "film.jpg")
    unread = {
        "empty.dcm": b"",
        "zeros.dcm": bytes(2000),
        "words.dcm": b"<xml>",
        "magic.dcm": bytes(128) + b"DICM",
    }
    for name, content in unread.items():
        (disc / name).write_bytes(content)
    assert set(unread) < {s.study_id for s in group(disc)}
    capsys.readouterr()
    out = tmp_path / "s.jsonl"
    for more in ([], ["--per-file", "--overwrite"]):
        assert main(["studies", "make", "dicom", str(disc), "--out", str(out), *more]) == 3
        assert {s.study_id for s in load_studies(out)} == {"film.dcm", "film.png", "film.jpg"}
        said = capsys.readouterr().err
        assert (
            "4 files are neither DICOM nor PNG nor JPEG, or damaged, and left out: empty.dcm, magic.dcm"
            in said
        )
    assert (
        main(["studies", "make", "dicom", str(disc / "empty.dcm"), "--out", str(tmp_path / "t.jsonl")]) == 1
    )
    said = capsys.readouterr().err
    assert "left out: empty.dcm" in said and "no study was found" in said


def test_a_modality_that_says_nothing_is_read_as_a_radiograph(tmp_path):
    film(tmp_path / "film.dcm", ONE, Modality="OT")
    assert [s.study_id for s in group(tmp_path)] == ["film.dcm"]
    assert [w.code for w in read(tmp_path / "film.dcm").warnings if "modality" in w.code]
