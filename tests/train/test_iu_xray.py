"""IU X-Ray in miniature, in its three forms. All texts are made up."""

from __future__ import annotations

import csv
import json

import pytest

from train.datasets.reports import iu_xray
from vlm.study import Image, StudyError, load_studies, save_studies

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="CXR1"/>
   <pmcId id="1"/>
   <MedlineCitation Owner="Indiana University" Status="supplied by publisher">
      <Article PubModel="Electronic"><Abstract>
         <AbstractText Label="COMPARISON">XXXX, XXXX.</AbstractText>
         <AbstractText Label="INDICATION">XXXX-year-old male, cough   XXXX .</AbstractText>
         <AbstractText Label="FINDINGS">Lungs &lt; clear XXXX. No XXXX, effusion.</AbstractText>
         <AbstractText Label="IMPRESSION"/>
      </Abstract></Article>
   </MedlineCitation>
   <MeSH>
      <major>Cardiomegaly/mild</major>
      <major>Cardiomegaly/borderline  </major>
      <automatic>cardiomegaly</automatic>
   </MeSH>
   <parentImage id="CXR1_1_IM-0001-3001">
      <figureId>F1</figureId><caption>Xray Chest PA and Lateral</caption>
   </parentImage>
   <parentImage id="CXR1_1_IM-0001-4001">
      <figureId>F2</figureId><caption>Xray Chest PA and Lateral</caption>
   </parentImage>
</eCitation>"""
SINGLE = """<eCitation><uId id="CXR10"/><MeSH><major>normal</major></MeSH><Abstract>
<AbstractText Label="FINDINGS">Normal.</AbstractText></Abstract>
<parentImage id="CXR10_IM-0002-1001"><caption>PA chest radiograph</caption></parentImage></eCitation>"""
NO_IMAGE = '<eCitation><AbstractText Label="FINDINGS">Normal.</AbstractText></eCitation>'


def write_csv(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def projections(root):
    write_csv(
        root / "indiana_projections.csv",
        "uid,filename,projection",
        ["1", "1_IM-0001-4001.dcm.png", "Lateral"],
        ["1", "1_IM-0001-3001.dcm.png", "Frontal"],
        ["2", "2_IM-0652-2001.dcm.png", "Lateral"],
    )


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


@pytest.fixture
def xml(tmp_path):
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    for name, text in (("1", REPORT), ("10", SINGLE), ("2", NO_IMAGE)):
        (folder / f"{name}.xml").write_text(text, encoding="utf-8")
    return tmp_path


# R2Gen


def test_r2gen(tmp_path):
    entry = {
        "id": "CXR2_IM-0652",
        "report": "The XXXX are clear . No effusion .",
        "image_path": ["CXR2_IM-0652/0.png", "CXR2_IM-0652/1.png"],
        "split": "train",
    }
    other = {"id": "CXR3_IM-0001-1001", "report": "nan", "image_path": []}
    (tmp_path / "annotation.json").write_text(json.dumps({"train": [entry], "val": [other], "test": []}))
    (study,) = iu_xray.studies(tmp_path)
    assert (study.study_id, study.split, study.patient_id) == ("CXR2_IM-0652", "train", None)
    assert study.findings == "The are clear. No effusion."
    assert study.images == [Image("images/CXR2_IM-0652/0.png"), Image("images/CXR2_IM-0652/1.png")]
    assert study.extra == {"text": "r2gen"}
    assert [(s.split, s.findings) for s in iu_xray.studies(tmp_path, frontal_only=False)][1] == (
        "validate",
        None,
    )

    touch(tmp_path, "CXR2_IM-0652/0.png")  # unpacked without the folder of images
    assert iu_xray.studies(tmp_path)[0].images[0].path == "CXR2_IM-0652/0.png"
    save_studies(iu_xray.studies(tmp_path), tmp_path / "studies.jsonl")
    assert load_studies(tmp_path / "studies.jsonl") == iu_xray.studies(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [{"id": "a", "image_path": []}]}, r"train\[0\]: the key\(s\) report are missing"),
        ({"train": [{"id": "a", "report": "", "image_path": [1]}]}, "must be a list of paths"),
        ({"train": [{"id": "a", "report": "", "image_path": [], "subject_id": 1}]}, "MIMIC-CXR, not IU"),
        ({"train": ["a"]}, "not an object"),
        ({"train": {}}, "must be a list"),
        ({"other": []}, "unknown split 'other'"),
        ([], "train, val and test"),
    ],
)
def test_r2gen_that_is_wrong(tmp_path, content, message):
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    with pytest.raises(StudyError, match=message):
        iu_xray.studies(tmp_path)


def test_r2gen_cut_short(tmp_path):
    (tmp_path / "annotation.json").write_text('{"train": [')
    with pytest.raises(StudyError, match=r"annotation\.json cannot be read"):
        iu_xray.studies(tmp_path)


# Open-i's XML


def test_xml(xml):
    first, single = iu_xray.studies(xml)
    assert (first.study_id, first.patient_id, first.split) == ("CXR1", None, None)
    assert first.images == [
        Image("NLMCXR_png/CXR1_1_IM-0001-3001.png"),
        Image("NLMCXR_png/CXR1_1_IM-0001-4001.png"),
    ]
    assert first.indication == "year-old male, cough."
    assert first.findings == "Lungs < clear. No, effusion."
    assert first.impression is None and first.comparison is None  # nothing but removed words
    assert first.technique == "Xray Chest PA and Lateral"
    assert first.diagnoses == ["Cardiomegaly"]
    assert first.extra == {
        "mesh": ["Cardiomegaly/mild", "Cardiomegaly/borderline"],
        "mesh_automatic": ["cardiomegaly"],
    }
    # The caption of an only image is about it; 10 comes after 2.
    assert (single.study_id, single.images[0].view) == ("CXR10", "PA")
    assert [s.study_id for s in iu_xray.studies(xml, frontal_only=False)] == ["CXR1", "CXR2", "CXR10"]


def test_xml_with_views_and_images_elsewhere(xml):
    projections(xml)
    touch(xml, "dcm/1/1_IM-0001-3001.dcm", "dcm/1/1_IM-0001-4001.dcm", "pictures/CXR1_1_IM-0001-4001.png")
    assert iu_xray.studies(xml)[0].images == [
        Image("dcm/1/1_IM-0001-3001.dcm", "frontal"),
        Image("pictures/CXR1_1_IM-0001-4001.png", "lateral"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><eCitation/>', "DOCTYPE or ENTITY"),
        ("<eCitation>", r"1\.xml is not well-formed XML: line 1"),
        ("", "not well-formed"),
    ],
)
def test_xml_that_is_refused(xml, text, message):
    (xml / "ecgen-radiology" / "1.xml").write_text(text)
    with pytest.raises(StudyError, match=message):
        iu_xray.studies(xml)


def test_xml_in_another_encoding_is_refused(xml):
    bomb = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><eCitation/>'
    (xml / "ecgen-radiology" / "1.xml").write_bytes(bomb.encode("utf-16"))
    with pytest.raises(StudyError, match="UTF-8"):
        iu_xray.studies(xml)


# Kaggle


def kaggle(root, header="uid,MeSH,Problems,image,indication,comparison,findings,impression"):
    projections(root)
    write_csv(
        root / "indiana_reports.csv",
        header,
        ["1", "Opacity/lung;Scoliosis", "Opacity;Scoliosis", "Xray Chest PA and Lateral", "XXXX", "None.",
         "Opacity, XXXX.", "1. Opacity."],
        ["2", "normal", "normal", "Chest", "", "", "", "Normal."],
        ["3", "normal", "normal", "Chest", "Cough", "", "nan", "Normal."],
    )  # fmt: skip


def test_kaggle(tmp_path):
    kaggle(tmp_path)
    (study,) = iu_xray.studies(tmp_path)  # study 2 has a lateral image only, study 3 none
    assert study.study_id == "CXR1"
    assert study.images == [
        Image("images/images_normalized/1_IM-0001-3001.dcm.png", "frontal"),
        Image("images/images_normalized/1_IM-0001-4001.dcm.png", "lateral"),
    ]
    assert (study.findings, study.impression) == ("Opacity.", "1. Opacity.")
    assert (study.indication, study.comparison) == (None, "None.")
    assert study.diagnoses == ["Opacity", "Scoliosis"]
    assert study.extra == {"mesh": ["Opacity/lung", "Scoliosis"]}
    everything = iu_xray.studies(tmp_path, frontal_only=False)
    assert [(s.study_id, len(s.images), s.findings) for s in everything[1:]] == [
        ("CXR2", 1, None),
        ("CXR3", 0, None),
    ]

    touch(tmp_path, "flat/1_IM-0001-3001.dcm.png")
    assert iu_xray.studies(tmp_path)[0].images[0].path == "flat/1_IM-0001-3001.dcm.png"


def test_kaggle_that_is_incomplete(tmp_path):
    kaggle(tmp_path, "uid,MeSH,Problems,image,indication,comparison,text,impression")
    with pytest.raises(StudyError, match=r"indiana_reports\.csv: the column\(s\) findings are missing"):
        iu_xray.studies(tmp_path)
    (tmp_path / "indiana_projections.csv").unlink()
    with pytest.raises(StudyError, match=r"indiana_projections\.csv is missing"):
        iu_xray.studies(tmp_path)


# Which form


def test_the_form_is_found_or_chosen(xml):
    kaggle(xml)
    assert len(iu_xray.studies(xml)) == 2
    assert len(iu_xray.studies(xml, "csv")) == 1
    with pytest.raises(StudyError, match=r"annotation\.json is missing"):
        iu_xray.studies(xml, "r2gen")
    with pytest.raises(StudyError, match="there are r2gen, xml, csv"):
        iu_xray.studies(xml, "parquet")


def test_nothing_there(tmp_path):
    with pytest.raises(StudyError, match=r"annotation\.json .*ecgen-radiology.*indiana_reports\.csv"):
        iu_xray.studies(tmp_path)
    with pytest.raises(StudyError, match=r"ecgen-radiology/\*\.xml is missing"):
        iu_xray.studies(tmp_path, "xml")
    with pytest.raises(StudyError, match=r"indiana_reports\.csv is missing"):
        iu_xray.studies(tmp_path, "csv")
    with pytest.raises(StudyError, match="does not exist"):
        iu_xray.studies(tmp_path / "elsewhere")
