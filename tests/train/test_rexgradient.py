"""ReXGradient-160K in miniature, with the keys of its metadata. All texts are made up."""

from __future__ import annotations

import csv
import json

import pytest

from train.datasets.reports import rexgradient
from vlm.study import Image, Prior, StudyError, load_studies, save_studies


def place(patient, number, image):
    return f"deid_png/{patient}/A{number}/studies/1.2.{number}/series/1.2.3/instances/1.2.3.{image}.png"


def entry(patient, number, date, views=("PA", "LATERAL"), **more):
    return f"p{patient}_aA{number}_s1.2.{number}", {
        "StudyInstanceUid": f"1.2.{number}",
        "PatientID": patient,
        "AccessionNumber": f"A{number}",
        "StudyDate": date,
        "StudyDescription": "XR CHEST 2 VIEWS",
        "PatientSex": "F",
        "PatientAge": "045Y",
        "EthnicGroup": None,
        "ImagePath": [f"../{place(patient, number, i)}" for i in range(len(views))],
        "ImageViewPosition": list(views),
        "ImageModality": ["DX"] * len(views),
        "Indication": "Cough.",
        "Comparison": "None",
        "Findings": "Clear  lungs.\n",
        "Impression": "Normal.",
    } | more


def write(root, split, *entries, folder="metadata", ending="_metadata_view_position.json"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"{split}{ending}").write_text(
        json.dumps(dict(entries))
    )  # NaN where a value is not a number


@pytest.fixture
def release(tmp_path):
    write(
        tmp_path,
        "train",
        entry("GRDN1", 2, 20150301, ("LATERAL", "AP", "UNKNOWN")),
        entry("GRDN1", 1, 20150101, Findings=float("nan"), PatientAge="006M", PatientSex="O"),
        entry("GRDN1", 3, "20150301", PatientAge=None),
        entry("GRDN2", 4, None, ("UNKNOWN", None)),
    )
    write(tmp_path, "test", entry("GRDN3", 5, 20160101))
    return tmp_path


def test_studies(release):
    second, first, third, test = rexgradient.studies(release)
    assert (second.study_id, second.patient_id, second.split) == ("pGRDN1_aA2_s1.2.2", "GRDN1", "train")
    assert second.images == [
        Image(place("GRDN1", 2, 1), "AP"),
        Image(place("GRDN1", 2, 0), "lateral"),
        Image(place("GRDN1", 2, 2), "unknown"),
    ]
    assert (second.findings, second.impression, second.indication) == ("Clear lungs.", "Normal.", "Cough.")
    assert (second.comparison, second.technique) == (None, "XR CHEST 2 VIEWS")
    assert (second.age, second.sex) == (45, "F")
    assert (first.findings, first.age, first.sex) == (None, 0.5, None)
    assert third.age is None
    assert (test.split, test.patient_id) == ("test", "GRDN3")
    everything = rexgradient.studies(release, frontal_only=False)
    assert len(everything) == 5 and everything[3].images[0].view == "unknown"
    save_studies(everything, release / "studies.jsonl")
    assert load_studies(release / "studies.jsonl") == everything


def test_priors_are_of_an_earlier_day(release):
    second, first, third, _ = rexgradient.studies(release)
    assert first.prior is None
    assert second.prior == third.prior == Prior(first.images, None)
    assert all(s.prior is None for s in rexgradient.studies(release, priors=False))


@pytest.mark.parametrize(
    ("written", "view"),
    [
        ("PA", "PA"),
        ("POSTERO_ANTERIOR", "PA"),
        ("ANTERO_POSTERIOR", "AP"),
        ("AP AXIAL", "AP"),
        ("AP (KUB)", "unknown"),
        ("DECUBITUS", "unknown"),
        ("LL", "lateral"),
        ("LAT", "lateral"),
        ("LPO", "unknown"),
        ("N/A", "unknown"),
        (None, "unknown"),
    ],
)
def test_views(tmp_path, written, view):
    write(tmp_path, "valid", entry("GRDN1", 1, 20150101, [written]))
    (study,) = rexgradient.studies(tmp_path, frontal_only=False)
    assert (study.images[0].view, study.split) == (view, "validate")


def test_other_places(tmp_path):
    study_id, content = entry("GRDN1", 1, 20150101, ImageViewPosition=["PA"])  # one view for two images
    del content["PatientID"]
    write(tmp_path, "train", (study_id, content), folder="download/metadata")
    (tmp_path / "images" / "deid_png").mkdir(parents=True)
    (study,) = rexgradient.studies(tmp_path, frontal_only=False)
    assert study.images == [Image(f"images/{place('GRDN1', 1, i)}") for i in range(2)]
    assert study.patient_id == "GRDN1"
    write(tmp_path, "train", entry("GRDN9", 9, 20150101), folder=".", ending="_metadata.json")
    assert rexgradient.studies(tmp_path, frontal_only=False) == [study]  # the better metadata come first


def test_reports_of_the_table(tmp_path):
    study_id, content = entry("GRDN1", 1, 20150101)
    for name in ("Indication", "Comparison", "Findings", "Impression"):
        del content[name]
    write(tmp_path, "train", (study_id, content), ending="_metadata.json")
    with pytest.raises(
        StudyError, match=r"train_metadata\.csv is missing.*The JSON beside it has no reports"
    ):
        rexgradient.studies(tmp_path)
    with (tmp_path / "metadata" / "train_metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "Findings", "Impression"], [study_id, "Clear.", ""]])
    (study,) = rexgradient.studies(tmp_path)
    assert (study.findings, study.impression, study.images[0].view) == ("Clear.", None, "PA")


def test_what_is_missing(tmp_path):
    with pytest.raises(StudyError, match="does not exist"):
        rexgradient.studies(tmp_path / "elsewhere")
    with pytest.raises(StudyError, match=r"metadata/train_metadata_view_position\.json is missing"):
        rexgradient.studies(tmp_path)
    write(tmp_path, "train", ("x", {"Findings": "Clear."}))
    with pytest.raises(StudyError, match="the key ImagePath is missing in study x; it has Findings"):
        rexgradient.studies(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ', "cannot be read"),
        ("{}", "by their ids"),
        ('{"a": 1}', "study a is not an object"),
        ("3", "by their"),
    ],
)
def test_metadata_that_are_wrong(tmp_path, text, message):
    write(tmp_path, "train")
    (tmp_path / "metadata" / "train_metadata_view_position.json").write_text(text)
    with pytest.raises(StudyError, match=message):
        rexgradient.studies(tmp_path)


def test_a_list_of_studies(tmp_path):
    study_id, content = entry("GRDN1", 1, 20150101)
    write(tmp_path, "train")
    path = tmp_path / "metadata" / "train_metadata_view_position.json"
    path.write_text(json.dumps([{"id": study_id} | content]))
    assert [s.study_id for s in rexgradient.studies(tmp_path)] == [study_id]
