"""Studies: what is read is what was written, and what is wrong is said with its line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.study import (
    Image,
    Prior,
    Study,
    StudyError,
    counts,
    load_studies,
    normalise_split,
    save_studies,
    study_from_json,
    study_to_json,
    validate,
)

FULL = {
    "schema": 1,
    "study_id": "s1",
    "patient_id": "p1",
    "split": "train",
    "images": [
        {"path": "images/a.dcm", "view": "PA", "hash": "ff"},
        {"path": "images/b.png", "view": "lateral"},
    ],
    "indication": "Cough.",
    "technique": "PA and lateral.",
    "comparison": "None.",
    "age": 63,
    "sex": "F",
    "prior": {"images": [{"path": "images/0.dcm", "view": "AP"}], "findings": "Clear.", "days": 4},
    "findings": "Größeres Herz. <b>&amp;",
    "impression": "Cardiomegaly.",
    "labels": {"Cardiomegaly": 1, "Edema": 0, "Pneumonia": -1},
    "diagnoses": ["heart failure"],
    "masks": {"lungs": "masks/a.png"},
    "source": "here",
}


def write(path: Path, *rows) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_what_is_written_is_what_was_read(tmp_path):
    source = write(tmp_path / "a.jsonl", FULL, "", {"study_id": "s2"})
    studies = load_studies(source)
    save_studies(studies, tmp_path / "new" / "b.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new/b.jsonl").read_text().splitlines()]
    assert lines == [FULL, {"schema": 1, "study_id": "s2", "images": []}]
    assert load_studies(tmp_path / "new/b.jsonl") == studies
    study = studies[0]
    assert study.extra == {"masks": {"lungs": "masks/a.png"}, "source": "here"}
    assert study.images[0].extra == {"hash": "ff"} and study.prior.extra == {"days": 4}
    assert study.image_paths(tmp_path) == [tmp_path / "images/a.dcm", tmp_path / "images/b.png"]
    assert "Größeres" in (tmp_path / "new/b.jsonl").read_text(encoding="utf-8")


def test_empty_null_and_nan_are_missing(tmp_path):
    row = '{"study_id": 7, "patient_id": "", "age": NaN, "sex": null, "findings": " ", "labels": {"Edema": null}}'
    study = load_studies(write(tmp_path / "a.jsonl", row))[0]
    assert study == Study("7", labels={})
    assert study_from_json({"study_id": "a", "age": "", "labels": "", "images": "", "prior": ""}) == Study(
        "a"
    )


def test_split_names():
    assert [normalise_split(s) for s in ("train", "Val", "dev", " valid ", "TEST")] == [
        "train", "validate", "validate", "validate", "test",
    ]  # fmt: skip
    with pytest.raises(StudyError, match="holdout"):
        normalise_split("holdout")
    assert study_from_json({"study_id": "a", "split": "dev"}).split == "validate"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be an object"),
        ("[" * 5000, "nested|JSON"),
        ({"images": []}, "study_id"),
        ({"study_id": "a", "schema": 2}, "schema"),
        ({"study_id": "a", "age": "63Y"}, "age"),
        ({"study_id": "a", "age": True}, "age"),
        ({"study_id": "a", "findings": ["x"]}, "findings"),
        ({"study_id": "a", "images": "a.png"}, "images"),
        ({"study_id": "a", "images": ["a.png"]}, "images"),
        ({"study_id": "a", "images": [{"view": "PA"}]}, "path"),
        ({"study_id": "a", "labels": {"Edema": 2}}, "Edema"),
        ({"study_id": "a", "labels": {"Edema": "yes"}}, "Edema"),
        ({"study_id": "a", "prior": "s0"}, "prior"),
        ({"study_id": "a", "diagnoses": "flu"}, "diagnoses"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", {"study_id": "ok"}, "", row)
    with pytest.raises(StudyError, match=message) as caught:
        load_studies(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00\x80" * 9)
    with pytest.raises(StudyError, match="UTF-8"):
        load_studies(tmp_path / "a.jsonl")
    with pytest.raises(FileNotFoundError):
        load_studies(tmp_path / "absent.jsonl")
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"study_id": "a"}\r\n')
    assert load_studies(tmp_path / "bom.jsonl") == [Study("a")]


def test_nothing_is_overwritten_or_half_written(tmp_path):
    path = tmp_path / "a.jsonl"
    save_studies([Study("old")], path)
    with pytest.raises(StudyError, match="exists"):
        save_studies([Study("new")], path)
    with pytest.raises(StudyError, match="study 'bad'"):  # NaN is no JSON
        save_studies([Study("new"), Study("bad", age=float("nan"))], path, overwrite=True)
    assert load_studies(path) == [Study("old")] and os.listdir(tmp_path) == ["a.jsonl"]
    save_studies((Study(name) for name in "ab"), path, overwrite=True)
    assert [study.study_id for study in load_studies(path)] == ["a", "b"]


def test_validate(tmp_path):
    (tmp_path / "a.png").touch()

    def study(study_id: str, findings: str | None = "Clear.", path: str = "a.png", **rest) -> Study:
        return Study(study_id, images=[Image(path, rest.pop("view", "PA"))], findings=findings, **rest)

    good = [study("1", patient_id="p", split="train"), study("2", patient_id="p", split="train")]
    assert validate(good, tmp_path) == []
    bad = [
        study("missing", path="b.png"),
        study("prior", prior=Prior([Image("c.png")])),
        study("twice"),
        study("twice"),
        study("view", view="PAA"),
        study("split", split="holdout", path="d.png"),
        study("none", findings="None"),
        study("nan", findings=" nan. "),
        study("empty", findings=None),
        study("sex", sex="W"),
        Study("blind", findings="Clear."),
    ]
    (tmp_path / "d.png").touch()
    found = [(p.code, p.study_id) for p in validate(bad, tmp_path)]
    assert found == [
        ("missing_file", "missing"),
        ("missing_file", "prior"),
        ("duplicate_study", "twice"),
        ("unknown_view", "view"),
        ("unknown_split", "split"),
        ("not_text", "none"),
        ("not_text", "nan"),
        ("no_findings", "empty"),
        ("bad_sex", "sex"),
        ("no_images", "blind"),
    ]
    leak = [study("1", patient_id="p", split="train"), study("2", patient_id="p", split="test", path="d.png")]
    (problem,) = validate(leak, tmp_path)
    assert problem.code == "patient_across_splits" and "train (1), test (2)" in problem.message
    leak = [study("1", patient_id="p", split="train"), study("2", patient_id="q", split="test")]
    assert [p.code for p in validate(leak, tmp_path)] == ["image_across_splits"]


def test_counts():
    summary = counts([study_from_json(FULL), Study("2", split="test", images=[Image("x")])])
    assert (summary["studies"], summary["patients"], summary["images"]) == (2, 1, 3)
    assert summary["splits"] == {"train": 1, "test": 1}
    assert summary["views"] == {"PA": 1, "lateral": 1, "unknown": 1}
    assert summary["with"]["findings"] == summary["with"]["prior"] == 1


def test_studies_are_read_without_torch():
    script = "import sys, vlm.study; sys.exit(bool({'torch', 'numpy', 'pydicom'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("name", ["pairs", "iu_text"])
def test_real_studies_survive_the_round_trip(cxr_data, name):
    path = cxr_data / name / "studies.jsonl"
    studies = load_studies(path)
    with path.open(encoding="utf-8") as file:
        assert [study_to_json(study) for study in studies] == [json.loads(line) for line in file]
    found = {p.code for p in validate(studies, path.parent)}
    assert found == (set() if name == "pairs" else {"no_images", "no_findings"})
