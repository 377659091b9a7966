"""PadChest in miniature, with the columns of its release. All texts are made up."""

from __future__ import annotations

import csv
import gzip

import pytest

from train.datasets.reports import padchest
from vlm.study import Image, Prior, StudyError, load_studies, save_studies

NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)
HEADER = COLUMNS.split(",")


def row(
    image, study, projection="PA", patient="p1", date="20140915", report=" torax sin hallazgos . ", **cells
):
    return {
        "ImageID": f"{image}.png",
        "ImageDir": "0",
        "StudyDate_DICOM": date,
        "StudyID": study,
        "PatientID": patient,
        "PatientBirth": "1930.0",
        "PatientSex_DICOM": "F",
        "ViewPosition_DICOM": "POSTEROANTERIOR",
        "Projection": projection,
        "MethodProjection": "Manual review of DICOM fields",
        "Pediatric": "No",
        "Report": report,
        "MethodLabel": "Physician",
        "Labels": "['pulmonary fibrosis', ' kyphosis', \"chilaiditi's sign\", '', 'kyphosis']",
    } | cells


ROWS = [
    row("b", "s1", "L", ImageDir="54.0"),
    row("a", "s1", "PA"),
    row("c", "s1", "COSTAL"),
    row("d", "s2", "AP_horizontal", date="20150101", report="nan", Labels="", PatientSex_DICOM="", PatientBirth="nan"),
    row("e", "s3", "L", date="20130101"),
    row("f", "s4", "EXCLUDE"),
    row("g", "s5", "", patient="p2", report=" . . .", Labels="['normal']", MethodLabel="RNN_model",
        ViewPosition_DICOM="ANTEROPOSTERIOR", PatientBirth="1800"),
]  # fmt: skip


def write(root, rows=ROWS, header=HEADER, name=NAME):
    (root / name).parent.mkdir(exist_ok=True)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(root / name, "wt", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, header, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def test_studies(tmp_path):
    write(tmp_path)
    first, second, other = padchest.studies(tmp_path)
    assert (first.study_id, first.patient_id, first.split) == ("s1", "p1", None)
    assert first.images == [Image("0/a.png", "PA"), Image("54/b.png", "lateral")]  # not the ribs
    assert first.findings == "torax sin hallazgos." and first.impression is None
    assert first.diagnoses == ["pulmonary fibrosis", "kyphosis", "chilaiditi's sign"]
    assert first.extra == {"language": "es", "labels_by": "Physician"}
    assert (first.age, first.sex) == (84, "F")
    assert (second.findings, second.diagnoses, second.age, second.sex) == (None, None, None, None)
    assert second.images == [Image("0/d.png", "AP")] and second.extra == {}
    assert (other.findings, other.diagnoses, other.age) == (None, ["normal"], None)
    assert other.images[0].view == "AP" and other.extra == {"labels_by": "RNN_model"}
    save_studies([first, second, other], tmp_path / "studies.jsonl")
    assert load_studies(tmp_path / "studies.jsonl") == [first, second, other]


def test_priors(tmp_path):
    write(tmp_path)
    first, second, _ = padchest.studies(tmp_path)
    assert first.prior is None
    assert second.prior == Prior(first.images, first.findings)
    first, _, lateral, _ = padchest.studies(tmp_path, frontal_only=False)
    assert first.prior == Prior(lateral.images, lateral.findings)
    assert all(s.prior is None for s in padchest.studies(tmp_path, priors=False))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ("54/b.png", "0/a.png"),
        ("images/0/a.png", "images/0/a.png"),
        ("pictures/0/a.png", "pictures/0/a.png"),
        ("images-224/b.png", "images-224/a.png"),
        ("a.png", "a.png"),
        ("other/figure.png", "0/a.png"),
    ],
)
def test_where_the_images_are(tmp_path, there, expected):
    write(tmp_path)
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    assert padchest.studies(tmp_path)[0].images[0].path == expected


@pytest.mark.parametrize("name", [f"{NAME}.gz", f"labels_csv/{NAME}"])
def test_other_tables(tmp_path, name):
    write(tmp_path, name=name)
    assert len(padchest.studies(tmp_path)) == 3


def test_few_columns(tmp_path):
    write(tmp_path, header=[*padchest.COLUMNS])
    first = padchest.studies(tmp_path)[0]
    assert (first.age, first.sex, first.diagnoses, first.extra) == (None, None, None, {"language": "es"})


def test_what_is_missing(tmp_path):
    with pytest.raises(StudyError, match="does not exist"):
        padchest.studies(tmp_path / "elsewhere")
    with pytest.raises(
        StudyError, match=r"PADCHEST_chest_x_ray_images_labels_160K_01\.02\.19\.csv is missing"
    ):
        padchest.studies(tmp_path)
    write(tmp_path, header=[name for name in HEADER if name != "Projection"])
    with pytest.raises(StudyError, match=r"the column\(s\) Projection are missing"):
        padchest.studies(tmp_path)


def test_rows_that_are_wrong(tmp_path):
    write(tmp_path, [row("a", "")])
    with pytest.raises(StudyError, match="no ImageID or no StudyID"):
        padchest.studies(tmp_path)
    write(tmp_path, [row("a", "s1"), row("b", "s1", patient="p2")])
    with pytest.raises(StudyError, match="study s1 have different patients"):
        padchest.studies(tmp_path)
