"""CheXpert Plus in miniature, with the columns of its release. All texts are made up."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from train.datasets.reports import chexpert_plus
from vlm.study import Image, Prior, StudyError, load_studies, save_studies

COLUMNS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_clinical_history,section_history,section_comparison,section_technique,"
    "section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,"
    "section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)
HEADER = COLUMNS.split(",")


def row(path, order="1", side="Frontal", **cells):
    split, patient = path.split("/")[:2]
    return {
        "path_to_image": f"{path}.jpg",
        "path_to_dcm": f"{path}.dcm",
        "frontal_lateral": side,
        "ap_pa": "AP" if side == "Frontal" else "",
        "deid_patient_id": patient,
        "patient_report_date_order": order,
        "report": "NARRATIVE: not used",
        "age": "63.0",
        "sex": "Female",
        "split": split,
    } | cells


ROWS = [
    row("train/patient00001/study1/view2_lateral", "2", "Lateral", section_findings="Clear  lungs,\nno effusion.",
        section_impression="1. NORMAL.", section_history="Cough.", section_clinical_history="Fever.",
        section_comparison="None", section_technique="Two views."),
    row("train/patient00001/study1/view1_frontal", "2", ap_pa="PA", section_findings="CLEAR LUNGS"),
    row("train/patient00001/study2/view1_frontal", "1", section_impression="Edema.", age="", sex="Unknown"),
    row("train/patient00001/study3/view1_lateral", "3", "Lateral"),
    row("valid/patient64541/study1/view1_frontal", "1", ap_pa="LL", deid_patient_id="", age="63.5", sex="Male"),
]  # fmt: skip


def write(root, rows=ROWS, header=HEADER, name="df_chexpert_plus_240401.csv"):
    opened = gzip.open if name.endswith(".gz") else open
    with opened(root / name, "wt", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, header, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def write_labels(root, kind, *rows, folder="chexbert_labels"):
    (root / folder).mkdir(exist_ok=True)
    (root / folder / f"{kind}_fixed.json").write_text("\n".join(json.dumps(r) for r in rows) + "\n")


def touch(root, path):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()


def test_studies(tmp_path):
    write(tmp_path)
    first, second, valid = chexpert_plus.studies(tmp_path)
    assert (first.study_id, first.patient_id, first.split) == ("patient00001_study1", "patient00001", "train")
    assert first.images == [
        Image("PNG/train/patient00001/study1/view1_frontal.png", "PA"),
        Image("PNG/train/patient00001/study1/view2_lateral.png", "lateral"),
    ]
    assert (first.findings, first.impression) == ("Clear lungs, no effusion.", "1. NORMAL.")
    assert (first.indication, first.technique, first.comparison) == ("Fever. Cough.", "Two views.", None)
    assert (first.age, first.sex, first.labels, first.extra) == (63, "F", None, {})
    assert (second.findings, second.impression, second.age, second.sex) == (None, "Edema.", None, None)
    assert (valid.split, valid.patient_id, valid.images[0].view) == ("validate", "patient64541", "frontal")
    assert (valid.age, valid.sex, valid.findings) == (63.5, "M", None)
    save_studies([first, second, valid], tmp_path / "studies.jsonl")
    assert load_studies(tmp_path / "studies.jsonl") == [first, second, valid]


def test_priors_are_in_the_order_of_the_reports(tmp_path):
    write(tmp_path)
    first, second, valid = chexpert_plus.studies(tmp_path)
    assert first.prior == Prior([Image("PNG/train/patient00001/study2/view1_frontal.png", "AP")], None)
    assert second.prior is None and valid.prior is None
    third = chexpert_plus.studies(tmp_path, frontal_only=False)[2]
    assert third.prior.findings == "Clear lungs, no effusion."
    assert all(s.prior is None for s in chexpert_plus.studies(tmp_path, priors=False))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (
            "PNG/PNG/train/patient00001/study2/view1_frontal.png",
            "PNG/PNG/train/patient00001/study2/view1_frontal.png",
        ),
        ("train/patient00001/study2/view1_frontal.jpg", "train/patient00001/study2/view1_frontal.jpg"),
        (
            "DICOM/Uncompressed/train/patient00001/study2/view1_frontal.dcm",
            "DICOM/Uncompressed/train/patient00001/study2/view1_frontal.dcm",
        ),
    ],
)
def test_where_the_images_are(tmp_path, there, expected):
    write(tmp_path)
    touch(tmp_path, there)
    assert chexpert_plus.studies(tmp_path)[1].images[0].path == expected


def test_where_the_images_are_said_to_be(tmp_path):
    write(tmp_path)
    touch(tmp_path, "PNG/train/patient00001/study1/view1_frontal.png")
    touch(tmp_path, "small/valid/patient64541/study1/view1_frontal.JPG")
    found = chexpert_plus.studies(tmp_path, images="small")
    assert found[1].images[0].path == "small/train/patient00001/study2/view1_frontal.JPG"
    with pytest.raises(StudyError, match="is not a folder"):
        chexpert_plus.studies(tmp_path, images="large")


@pytest.mark.parametrize("folder", ["chexbert_labels", "labels", "."])
def test_labels(tmp_path, folder):
    write(tmp_path)
    key = "train/patient00001/study{}/view{}.jpg".format
    write_labels(
        tmp_path,
        "findings",
        {
            "path_to_image": key(1, "2_lateral"),
            "Edema": 1.0,
            "Pneumonia": -1.0,
            "Fracture": 0.0,
            "No Finding": None,
        },
        {"path_to_image": key(1, "1_frontal"), "Edema": 0.0},
        {"path_to_image": key(2, "1_frontal"), "No Finding": 1.0},  # of a text that is not there
        {"path_to_image": "train/patient9/study9/view1_frontal.jpg", "Edema": 1.0},
        folder=folder,
    )
    write_labels(tmp_path, "report", {"path_to_image": key(2, "1_frontal"), "Edema": 1.0}, folder=folder)
    first, second, _ = chexpert_plus.studies(tmp_path)
    assert first.labels == {"Edema": 1, "Pneumonia": -1, "Fracture": 0}
    assert second.labels is None
    first, second, _ = chexpert_plus.studies(tmp_path, labels="report")
    assert (first.labels, second.labels) == (None, {"Edema": 1})


def test_labels_that_are_wrong(tmp_path):
    write(tmp_path)
    with pytest.raises(StudyError, match="no labels of 'both'"):
        chexpert_plus.studies(tmp_path, labels="both")
    key = "train/patient00001/study1/view2_lateral.jpg"
    write_labels(tmp_path, "findings", {"path_to_image": key, "Edema": 2})
    with pytest.raises(StudyError, match="patient00001_study1 has a 'Edema' other than"):
        chexpert_plus.studies(tmp_path)
    write_labels(tmp_path, "findings", {"path_to_image": key}, {"Edema": 1})
    with pytest.raises(StudyError, match="line 2: not an object with a path_to_image"):
        chexpert_plus.studies(tmp_path)
    (tmp_path / "chexbert_labels" / "findings_fixed.json").write_text('{"path_to')
    with pytest.raises(StudyError, match=r"findings_fixed\.json, after line 1: it cannot be read"):
        chexpert_plus.studies(tmp_path)


def test_a_packed_table(tmp_path):
    write(tmp_path, name="df_chexpert_plus_240401.csv.gz")
    assert len(chexpert_plus.studies(tmp_path)) == 3


def test_few_columns(tmp_path):
    write(tmp_path, header=[*chexpert_plus.COLUMNS])
    first, second, _ = chexpert_plus.studies(tmp_path, priors=False)
    assert (first.patient_id, first.age, first.indication) == ("patient00001", None, None)
    assert second.images[0].view == "frontal"


def test_what_is_missing(tmp_path):
    with pytest.raises(StudyError, match=r"df_chexpert_plus_240401\.csv is missing"):
        chexpert_plus.studies(tmp_path)
    with pytest.raises(StudyError, match="does not exist"):
        chexpert_plus.studies(tmp_path / "elsewhere")
    write(
        tmp_path,
        header=[name for name in HEADER if name not in ("section_findings", "patient_report_date_order")],
    )
    with pytest.raises(StudyError, match=r"section_findings, patient_report_date_order are missing"):
        chexpert_plus.studies(tmp_path)


def test_rows_that_are_wrong(tmp_path):
    write(tmp_path, [row("train/p1/s1/view1")])
    with pytest.raises(StudyError, match=r"path_to_image 'train/p1/s1/view1\.jpg' is not like"):
        chexpert_plus.studies(tmp_path)
    write(tmp_path, [row("holdout/patient00001/study1/view1_frontal")])
    with pytest.raises(StudyError, match="patient00001_study1: unknown split 'holdout'"):
        chexpert_plus.studies(tmp_path)
