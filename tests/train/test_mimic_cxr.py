"""MIMIC-CXR and MIMIC-CXR-JPG, in miniature, and the sections of its reports. All texts are made up."""

from __future__ import annotations

import csv
import gzip
import zipfile
from pathlib import Path

import pytest

from train.datasets.reports import mimic_cxr
from train.datasets.reports.mimic_sections import MISLEADING, report_fields, section_name, sections
from train.datasets.reports.priors import link_priors
from vlm.study import Image, Prior, Study, StudyError

TITLE = " " * 33 + "FINAL REPORT\n"
LINE = " " + "_" * 78 + "\n"


# Sections


def test_a_plain_report():
    report = (
        f"{TITLE} EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old woman with cough  // ?effusion\n"
        " \n TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  ___\n \n FINDINGS: \n \n Large left effusion\n"
        " is new.  The upper lungs are clear.\n \n IMPRESSION: \n \n Large left pleural effusion\n"
    )
    assert sections(report) == {
        "preamble": "FINAL REPORT",
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old woman with cough // ?effusion",  # what was removed stays marked
        "technique": "Chest PA and lateral",
        "comparison": "___",
        "findings": "Large left effusion is new. The upper lungs are clear.",
        "impression": "Large left pleural effusion",
    }
    assert sections(report.replace("\n", "\r\n")) == sections(report)
    assert sections(report.replace("\n", "\r")) == sections(report)


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("FINDINGS", "findings"),
        ("FINIDNGS", "findings"),
        ("IMPRESSION AND RECOMMENDATION", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("CONCLUSION", "impression"),
        ("CHEST, TWO VIEWS", "findings"),
        ("CHEST, PA AND LATERAL", "findings"),
        ("PORTABLE AP RADIOGRAPH", "findings"),
        ("REASON FOR EXAMINATION", "indication"),
        ("CLINICAL INFORMATION", "history"),
        ("PERTINENT HISTORY", "history"),
        ("CHEST HISTORY", "history"),
        ("REFERENCE EXAM", "comparison"),
        ("WETREAD", "wet read"),
        (" NOTE ", "note"),
    ],
)
def test_the_names_of_headings(heading, name):
    assert section_name(heading) == name


def test_the_last_section_of_a_name_wins():
    found = sections(f"{TITLE} FINDINGS:  First.\n \n IMPRESSION:  One.\n \n FINDINGS:  Second.\n")
    assert (found["findings"], found["impression"]) == ("Second.", "One.")


def test_an_addendum_stands_above_the_final_report():
    report = (
        f"{' ' * 33}FINAL ADDENDUM\n ADDENDUM:  A nodule was missed.\n \n IMPRESSION:  Nodule.\n \n{LINE}{TITLE}"
        " FINDINGS:  Clear.\n \n IMPRESSION:  No pneumonia.\n"
    )
    found = sections(report)
    assert (found["findings"], found["impression"]) == ("Clear.", "No pneumonia.")
    assert found["addendum"] == "A nodule was missed."


def test_a_wet_read_is_not_the_report():
    report = f" WET READ: ___ ___ 9:30 PM\n  Pneumothorax.\n{LINE}{TITLE} FINDINGS:  No pneumothorax.\n"
    assert sections("\n" + report)["wet read"].startswith("___ ___ 9:30 PM Pneumothorax. ")
    for text in (report, "\n" + report):
        assert sections(text)["findings"] == "No pneumothorax."


def test_a_title_that_looks_like_findings_is_dropped():
    report = f"{TITLE} CHEST, PA AND LATERAL:\n \n INDICATION:  Cough.\n \n IMPRESSION:  Normal.\n"
    assert sections(report) == {"preamble": "FINAL REPORT", "indication": "Cough.", "impression": "Normal."}
    # With a text it is what is seen; empty findings further down do not hide it.
    report = f"{TITLE} HISTORY:  Cough.\n \n CHEST, PA AND LATERAL:\n Normal heart.\n \n FINDINGS:\n \n DATE:  ___\n"
    assert sections(report)["findings"] == "Normal heart."


def test_no_section_of_interest():
    report = f"{TITLE} CHEST RADIOGRAPH\n \n Lungs are clear.\n \n Heart is normal.\n"
    assert sections(report) == {
        "full report": "FINAL REPORT CHEST RADIOGRAPH",
        "last_paragraph": "Lungs are clear. Heart is normal.",
    }
    report = f"{TITLE} INDICATION:  Cough.\n \n Lungs are clear.\n"  # the indication must not give it away
    assert sections(report) == {
        "preamble": "FINAL REPORT",
        "indication": "Cough.",
        "last_paragraph": "Lungs are clear.",
    }
    assert sections("") == {"full report": ""}
    assert sections("clear lungs") == {"full report": "clear lungs"}


def test_what_is_no_heading():
    report = (
        f"{TITLE} FINDINGS:  There are two things: first, the\n heart: it is large.\nNOTE: not indented.\n"
        " IMPRESSION without colon, DATE:___\n IMPRESSION 2:  Number.\n"
    )
    found = sections(report)
    assert list(found) == ["preamble", "findings"]
    assert found["findings"].endswith(
        "it is large. NOTE: not indented. IMPRESSION without colon, DATE:___ IMPRESSION 2: Number."
    )


def test_a_heading_right_below_one_that_stands_alone_belongs_to_it():
    # As the official scripts read it, to avoid worse.
    assert sections(f"{TITLE} FINDINGS:\n HEART: large.\n LUNGS: clear.\n") == {
        "preamble": "FINAL REPORT",
        "findings": "HEART: large.",
        "lungs": "clear.",
    }


def test_the_fields_of_a_study():
    found = {
        "indication": "Cough.",
        "history": "Smoker.",
        "comparison": "",
        "findings": "Clear.",
        "lungs": "x",
    }
    assert report_fields(found) == {
        "indication": "Cough.", "technique": None, "comparison": None, "findings": "Clear.", "impression": None,
    }  # fmt: skip
    assert report_fields({"indication": "", "history": "Smoker."})["indication"] == "Smoker."
    assert report_fields({"reason for the study": "Fever."})["indication"] == "Fever."
    assert report_fields({"reason for the study": "Fever.", "history": "Smoker."})["indication"] == "Smoker."


# The releases

METADATA = [
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
]  # fmt: skip
# dicom_id, subject_id, study_id, split, ViewPosition, StudyDate, StudyTime
IMAGES = (
    ("0a-lat", "10000032", "50414267", "train", "LATERAL", "21800506", "213014.531"),
    ("0b-odd", "10000032", "50414267", "train", "LAO", "21800506", "213014.531"),
    ("0c-ap", "10000032", "50414267", "train", "AP", "21800506", "213014.531"),
    ("0d-pa", "10000032", "50414267", "train", "PA", "21800506", "213014.531"),
    ("1a-ap", "10000032", "50000001", "train", "AP", "21800506", "80556.875"),
    ("2a-ll", "10000032", "53189527", "train", "LL", "21800626", "165500.312"),
    ("2b-no", "10000032", "53189527", "train", "", "21800626", "165500.312"),
    ("3a-pa", "11000011", "50000002", "validate", "PA", "21500101", "120000"),
    ("4a-ap", "19000099", "50000003", "test", "AP", "21600101", "90000"),
)
CONDITIONS = ["Atelectasis", "Edema", "No Finding"]
REPORTS = {
    "p10000032/s50414267": f"{TITLE} INDICATION:  Cough.\n \n FINDINGS:  Later.\n \n IMPRESSION:  Worse.\n",
    "p10000032/s50000001": f"{TITLE} HISTORY:  Fever.\n \n COMPARISON:  None.\n \n FINDINGS:  Earlier.\n",
    "p10000032/s53189527": f"{TITLE} FINDINGS:  Lateral only.\n",
    "p11000011/s50000002": f"{TITLE} TECHNIQUE:  PA.\n \n IMPRESSION:  Normal.\n",
}


def write_table(path: Path, header: list[str], rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_reports(folder: Path, line_end: str = "\n") -> None:
    for name, text in REPORTS.items():
        path = folder / "files" / name[:3] / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.replace("\n", line_end).encode())


def write_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("files/p10/", "")
        for name, text in REPORTS.items():
            archive.writestr(f"files/{name[:3]}/{name}.txt", text)
    return path


def write_tables(root: Path, version: str = "2.0.0", end: str = ".csv.gz") -> None:
    start = f"{root}/mimic-cxr-{version}-"
    splits = [(dicom, study, patient, split) for dicom, patient, study, split, *_ in IMAGES]
    write_table(Path(f"{start}split{end}"), ["dicom_id", "study_id", "subject_id", "split"], splits)
    metadata = [
        (dicom, patient, study, "CHEST", view, 3056, 2544, date, time, "", "", "Erect")
        for dicom, patient, study, _, view, date, time in IMAGES
    ]
    write_table(Path(f"{start}metadata{end}"), METADATA, metadata)


def write_labels(path: Path, edema: str = "-1.0") -> None:
    rows = [
        ("10000032", "50414267", "1.0", edema, ""),
        ("10000032", "50000001", "", "0.0", ""),
        ("11000011", "50000002", "", "", ""),
        ("12345678", "59999999", "", "", "1.0"),
    ]
    write_table(path, ["subject_id", "study_id", *CONDITIONS], rows)


@pytest.fixture
def release(tmp_path) -> Path:
    """MIMIC-CXR-JPG with the reports beside the images."""
    root = tmp_path / "jpg"
    write_tables(root)
    write_labels(root / "mimic-cxr-2.0.0-chexpert.csv.gz")
    write_reports(root)
    for dicom, patient, study, *_ in IMAGES:
        path = root / f"files/{'p' + patient[:2]}/p{patient}/s{study}/{dicom}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never opened")
    return root


def by_id(found: list[Study]) -> dict[str, Study]:
    return {study.study_id: study for study in found}


def test_mimic_cxr_jpg(release):
    found = mimic_cxr.studies(release)
    assert [study.study_id for study in found] == ["50414267", "50000001", "50000002", "50000003"]
    later, earlier, other, without = found
    folder = "files/p10/p10000032/s50414267"
    assert later == Study(
        study_id="50414267",
        patient_id="10000032",
        split="train",
        images=[
            Image(f"{folder}/0d-pa.jpg", "PA"),
            Image(f"{folder}/0c-ap.jpg", "AP"),
            Image(f"{folder}/0a-lat.jpg", "lateral"),
            Image(f"{folder}/0b-odd.jpg", "unknown"),
        ],
        indication="Cough.",
        findings="Later.",
        impression="Worse.",
        labels={"Atelectasis": 1, "Edema": -1},
        # 8:05 is before 21:30, though "80556.875" is not before "213014.531"
        prior=Prior([Image("files/p10/p10000032/s50000001/1a-ap.jpg", "AP")], "Earlier."),
    )
    assert all(path.is_file() for path in later.image_paths(release))
    assert (earlier.indication, earlier.comparison, earlier.prior) == ("Fever.", "None.", None)
    assert earlier.labels == {"Edema": 0}
    assert (other.split, other.technique, other.findings, other.labels) == ("validate", "PA.", None, None)
    assert without == Study(  # no report, no labels, no age, no sex
        "50000003", "19000099", "test", [Image("files/p19/p19000099/s50000003/4a-ap.jpg", "AP")]
    )


def test_studies_without_a_frontal_image(release):
    found = by_id(mimic_cxr.studies(release, frontal_only=False, priors=False))
    assert len(found) == 5
    assert [image.view for image in found["53189527"].images] == ["lateral", "unknown"]
    assert found["53189527"].findings == "Lateral only."
    assert all(study.prior is None for study in found.values())
    found = by_id(mimic_cxr.studies(release, frontal_only=False))
    assert found["53189527"].prior.findings == "Later."


def test_dicom_release(tmp_path):
    write_tables(tmp_path)
    columns = ["subject_id", "study_id", "dicom_id", "path"]
    write_table(tmp_path / "cxr-record-list.csv.gz", columns, [])
    write_zip(tmp_path / "mimic-cxr-reports.zip")
    found = by_id(mimic_cxr.studies(tmp_path))
    assert found["50000002"].images[0].path == "files/p11/p11000011/s50000002/3a-pa.dcm"
    assert found["50414267"].findings == "Later."
    assert found["50414267"].labels is None


def test_the_images_that_are_there_say_which_release_it_is(release):
    write_table(release / "cxr-record-list.csv.gz", ["subject_id"], [])
    assert mimic_cxr.studies(release)[0].images[0].path.endswith(".jpg")
    for path in release.rglob("*.jpg"):
        path.rename(path.with_suffix(".png"))
    assert mimic_cxr.studies(release)[0].images[0].path.endswith(".png")


def test_unpacked_tables_and_newer_versions(release):
    expected = mimic_cxr.studies(release)
    for path in release.glob("*.csv.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert mimic_cxr.studies(release) == expected
    write_tables(release, "2.1.0")
    write_labels(release / "mimic-cxr-2.1.0-chexpert.csv.gz", edema="1.0")
    write_table(release / "mimic-cxr-2.1.0-test-set-labeled.csv", ["study_id", "Edema"], [])
    assert mimic_cxr.studies(release)[0].labels == {"Atelectasis": 1, "Edema": 1}


def test_negbio_serves_where_chexpert_is_missing(release):
    write_labels(release / "mimic-cxr-2.0.0-negbio.csv.gz", edema="0.0")
    assert mimic_cxr.studies(release)[0].labels["Edema"] == -1
    (release / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    assert mimic_cxr.studies(release)[0].labels["Edema"] == 0


@pytest.mark.parametrize("place", ["files", "folder", "unpacked", "zip", "zip in folder"])
def test_reports_elsewhere(release, tmp_path, place):
    expected = mimic_cxr.studies(release)
    for path in release.rglob("*.txt"):
        path.unlink()
    elsewhere = tmp_path / "reports"
    elsewhere.mkdir()
    if place == "zip":
        reports = write_zip(elsewhere / "any-name.zip")
    elif place == "zip in folder":
        write_zip(elsewhere / "mimic-cxr-reports.zip")
        reports = elsewhere
    else:
        inner = elsewhere / "mimic-cxr-reports" if place == "unpacked" else elsewhere
        write_reports(inner, "\r\n")
        reports = inner / "files" if place == "files" else elsewhere
    assert mimic_cxr.studies(release, reports) == expected
    assert mimic_cxr.studies(str(release), str(reports)) == expected


def write_sectioned(folder: Path) -> Path:
    path = folder / "mimic_cxr_sectioned.csv"
    header = ["study", "impression", "findings", "last_paragraph", "comparison"]
    rows = [("s50414267", "", "Of the\n table.", "", "___"), ("s50000002", "Fine.", "", "", "")]
    write_table(path, header, rows)
    return path


def test_sectioned_table_with_reports(release):
    write_sectioned(release)
    found = by_id(mimic_cxr.studies(release))
    study = found["50414267"]
    assert (study.findings, study.impression, study.comparison) == ("Of the table.", None, "___")
    assert study.indication == "Cough."
    earlier = found["50000001"]  # not in the table
    assert (earlier.findings, earlier.indication, earlier.comparison) == (None, "Fever.", "None.")
    assert (found["50000002"].impression, found["50000002"].technique) == ("Fine.", "PA.")
    assert study.prior.findings is None  # the prior has the findings of the table, too


def test_sectioned_table_alone(release, tmp_path):
    for path in release.rglob("*.txt"):
        path.unlink()
    found = by_id(mimic_cxr.studies(release, write_sectioned(tmp_path)))
    assert (found["50414267"].findings, found["50414267"].indication) == ("Of the table.", None)
    assert found["50414267"].comparison == "___"
    # A copy of the script that keeps more sections
    header = ["study", "findings", "impression", "history", "technique"]
    write_table(release / "mimic_cxr_sectioned.csv.gz", header, [("s50414267", "A.", "B.", "C.", "D.")])
    study = by_id(mimic_cxr.studies(release))["50414267"]
    assert (study.findings, study.impression, study.indication, study.technique) == ("A.", "B.", "C.", "D.")


def test_reports_with_misleading_headings_are_left_out(release, monkeypatch):
    assert len(MISLEADING) == 54
    monkeypatch.setattr(mimic_cxr, "MISLEADING", {"50414267"})
    study = by_id(mimic_cxr.studies(release))["50414267"]
    assert (study.findings, study.impression, study.indication) == (None, None, None)
    assert study.labels and study.images and study.prior


def test_age_and_sex_of_mimic_iv(release):
    rows = [("10000032", "F", 52, 2180, "2014 - 2016", ""), ("11000011", "M", 118, 2140, "2014 - 2016", "")]
    columns = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
    write_table(release / "patients.csv.gz", columns, rows)
    found = by_id(mimic_cxr.studies(release))
    assert (found["50414267"].age, found["50414267"].sex) == (52, "F")
    assert (found["50000002"].age, found["50000002"].sex) == (None, "M")  # 128 years
    assert (found["50000003"].age, found["50000003"].sex) == (None, None)
    rows = [("10000032", "F", 52, 2177, "", "")]
    write_table(release / "patients.csv.gz", columns, rows)
    assert by_id(mimic_cxr.studies(release))["50414267"].age == 55


def test_a_study_without_time_is_no_prior(release):
    start = release / "mimic-cxr-2.0.0-metadata.csv.gz"
    text = gzip.decompress(start.read_bytes()).decode()
    start.write_bytes(gzip.compress(text.replace("80556.875", "").encode()))
    assert by_id(mimic_cxr.studies(release))["50414267"].prior is None


def test_missing_files(release, tmp_path):
    with pytest.raises(StudyError, match="nowhere does not exist"):
        mimic_cxr.studies(tmp_path / "nowhere")
    with pytest.raises(StudyError, match="nowhere does not exist"):
        mimic_cxr.studies(release, tmp_path / "nowhere")
    with pytest.raises(
        StudyError,
        match=r"mimic-cxr-2\.0\.0-split\.csv\.gz is missing.*physionet\.org/content/mimic-cxr-jpg/",
    ):
        mimic_cxr.studies(tmp_path)
    for path in release.rglob("*.txt"):
        path.unlink()
    with pytest.raises(
        StudyError, match=r"mimic-cxr-reports\.zip is missing.*physionet\.org/content/mimic-cxr/"
    ):
        mimic_cxr.studies(release)
    write_reports(release)
    (release / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    for keywords in ({"priors": False}, {"frontal_only": False}):
        with pytest.raises(StudyError, match=r"mimic-cxr-2\.0\.0-metadata\.csv\.gz is missing"):
            mimic_cxr.studies(release, **keywords)
    found = mimic_cxr.studies(release, frontal_only=False, priors=False)
    assert {image.view for study in found for image in study.images} == {"unknown"}


def test_tables_that_cannot_be_used(release):
    split = release / "mimic-cxr-2.0.0-split.csv.gz"
    good = split.read_bytes()
    split.write_bytes(good[:-20])
    with pytest.raises(StudyError, match=r"split\.csv\.gz cannot be read \(EOFError\)"):
        mimic_cxr.studies(release)
    split.write_bytes(b"<html>log in</html>")
    with pytest.raises(StudyError, match=r"split\.csv\.gz cannot be read \(BadGzipFile\)"):
        mimic_cxr.studies(release)
    write_table(split, ["dicom_id", "study_id", "subject_id"], [])
    with pytest.raises(
        StudyError, match=r"split\.csv\.gz: the column\(s\) split are missing; it has dicom_id, "
    ):
        mimic_cxr.studies(release)
    columns = ["dicom_id", "study_id", "subject_id", "split"]
    write_table(split, columns, [("a", "1", "2", "train"), ("b", "1")])
    with pytest.raises(StudyError, match=r"split\.csv\.gz, line 3: 2 cells, where the header has 4"):
        mimic_cxr.studies(release)
    write_table(split, columns, [("a", "1", "2", "fold3")])
    with pytest.raises(StudyError, match=r"split\.csv\.gz: unknown split 'fold3'"):
        mimic_cxr.studies(release)
    write_table(split, columns, [("a", "1", "2", "train"), ("b", "1", "2", "test")])
    with pytest.raises(StudyError, match="study 1 have different patients or splits"):
        mimic_cxr.studies(release)
    split.write_bytes(good)
    write_labels(release / "mimic-cxr-2.0.0-chexpert.csv.gz", edema="yes")
    with pytest.raises(StudyError, match=r"chexpert\.csv\.gz: study 50414267 has the label 'yes'"):
        mimic_cxr.studies(release)
    write_labels(release / "mimic-cxr-2.0.0-chexpert.csv.gz")
    (release / "mimic-cxr-reports.zip").write_bytes(b"half a download")
    with pytest.raises(StudyError, match=r"mimic-cxr-reports\.zip cannot be read \(BadZipFile\)"):
        mimic_cxr.studies(release)


# Priors


def test_the_latest_earlier_study_is_the_prior():
    a, b, c, d = (
        Study(f"s{i}", "p", images=[Image(f"{i}.jpg", "PA")], findings=f"F{i}") for i in (4, 3, 2, 1)
    )
    stranger, unknown = Study("s5", "q", findings="F5"), Study("s6", findings="F6")
    undated = Study("s7", "p", findings="F7")
    everyone = [c, undated, a, stranger, d, unknown, b]
    link_priors(everyone, {"s4": 1, "s3": 2, "s2": 3, "s1": 4, "s5": 1.5, "s6": 1})
    assert [s.prior and s.prior.findings for s in (a, b, c, d)] == [None, "F4", "F3", "F2"]
    assert b.prior == Prior([Image("4.jpg", "PA")], "F4")
    assert (stranger.prior, unknown.prior, undated.prior) == (None, None, None)
    b.prior.images[0].view = "AP"  # a copy
    assert a.images[0].view == "PA"


def test_studies_of_one_moment_are_not_earlier():
    a, b, c = (Study(f"s{i}", "p", findings=f"F{i}") for i in (1, 2, 3))
    link_priors([b, c, a], {"s1": (21800506, 100.0), "s2": (21800506, 100.0), "s3": (21800506, 100.5)})
    assert (a.prior, b.prior) == (None, None)
    assert c.prior == Prior([], "F2")


def test_what_serves_as_a_prior():
    images = Study("s1", "p", images=[Image("1.jpg")])
    nothing = Study("s2", "p", impression="I.")
    kept = Study("s3", "p", findings="F3", prior=Prior(findings="own"))
    last = Study("s4", "p")
    after_nothing = Study("s5", "p")
    link_priors([images, nothing, kept, last, after_nothing], {f"s{i}": i for i in range(1, 6)})
    assert nothing.prior == Prior([Image("1.jpg")])
    assert kept.prior == Prior(findings="own")
    assert (last.prior, after_nothing.prior) == (Prior(findings="F3"), Prior(findings="F3"))
