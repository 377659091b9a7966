"""`cxr.score`: whatever holds the texts, the numbers are `eval.score`'s, and what does not pair is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cxr
from eval.scores.suite import score as score_records
from vlm.study import study_to_json

REFERENCES = [
    "The lungs are clear.",
    "Large left effusion.",
    "Moderate cardiomegaly. No edema.",
    "Right pneumothorax.",
]
PREDICTIONS = ["Lungs clear.", "Moderate left effusion.", "The heart is enlarged.", "No pneumothorax."]
IDS = ["a", "b", "c", "d"]
QUICK: dict[str, Any] = {"clinical_models": "none"}


class Column:
    """A column of pandas: values and an index."""

    def __init__(self, values: list, index: list | None = None):
        self.values, self.index = values, index if index is not None else list(range(len(values)))

    def __iter__(self):
        return iter(self.values)


class Frame:
    """What of a pandas data frame is used."""

    def __init__(self, columns: dict[str, list], index: list | None = None):
        self.columns, self._data = list(columns), columns
        self.index = index if index is not None else list(range(len(next(iter(columns.values())))))

    def to_dict(self, orient: str) -> list[dict]:
        assert orient == "records"
        return [dict(zip(self._data, row, strict=True)) for row in zip(*self._data.values(), strict=True)]


class Polars:
    """What of a polars data frame is used."""

    def __init__(self, columns: dict[str, list]):
        self.columns, self._rows = list(columns), Frame(columns).to_dict("records")

    def to_dicts(self) -> list[dict]:
        return self._rows


def predictions(**more) -> list[cxr.Prediction]:
    return [
        cxr.Prediction(key, findings=text, model="m", decoding={"method": "greedy"}, **more)
        for key, text in zip(IDS, PREDICTIONS, strict=True)
    ]


def studies() -> list[cxr.Study]:
    return [
        cxr.Study(key, images=[cxr.Image("x.png", "PA")], findings=text, age=40.0 + i)
        for i, (key, text) in enumerate(zip(IDS, REFERENCES, strict=True))
    ]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    """By the room's own function, of plain records."""
    scores = score_records(
        [{"study_id": k, "findings": t} for k, t in zip(IDS, PREDICTIONS, strict=True)],
        [{"study_id": k, "findings": t} for k, t in zip(IDS, REFERENCES, strict=True)],
        **QUICK,
    )
    return {key: s.value for key, s in scores.scores.items()}


def values(scores: cxr.Scores) -> dict[str, float]:
    return {key: s.value for key, s in scores.scores.items()}


def ids(scores: cxr.Scores) -> list[str]:
    return [row["study_id"] for row in scores.studies]


def test_references_come_first_and_every_form_gives_the_same(expected, tmp_path):
    table = {"reference": REFERENCES, "prediction": PREDICTIONS}
    named = {"study_id": [np.int64(7), np.int64(8), np.int64(9), np.int64(10)], **table}
    seven = ["7", "8", "9", "10"]
    refs = lines(tmp_path / "studies.jsonl", [study_to_json(study) for study in studies()])
    preds = lines(tmp_path / "predictions.jsonl", [p.to_json() for p in predictions()])
    csv = tmp_path / "reports.csv"
    rows = [f'{k},"{p}","{r}"\n' for k, p, r in zip(IDS, PREDICTIONS, REFERENCES, strict=True)]
    csv.write_text("study_id,findings,reference\n" + "".join(rows))
    back, answers = IDS[::-1], PREDICTIONS[::-1]
    forms: dict[str, tuple[tuple, list[str]]] = {
        "lists": ((REFERENCES, PREDICTIONS), list("0123")),
        "tuples": ((tuple(REFERENCES), tuple(PREDICTIONS)), list("0123")),
        "generators": ((iter(REFERENCES), iter(PREDICTIONS)), list("0123")),
        "NumPy": ((np.array(REFERENCES), np.array(PREDICTIONS, object)), list("0123")),
        "columns": ((Column(REFERENCES), Column(PREDICTIONS)), list("0123")),
        "indexed columns": ((Column(REFERENCES, IDS), Column(PREDICTIONS, IDS)), IDS),
        "column and list": ((Column(REFERENCES, IDS), PREDICTIONS), IDS),
        "mappings": ((dict(zip(IDS, REFERENCES, strict=True)), dict(zip(back, answers, strict=True))), IDS),
        "table": ((Frame(named),), seven), "polars": ((Polars(named),), seven),
        "table without ids": ((Frame(table),), list("0123")), "records": ((Polars(named).to_dicts(),), seven),
        "table as of a CSV": ((Frame({"study_id": IDS, "reference": REFERENCES, "findings": PREDICTIONS}),), IDS),
        "table of a data set": ((Frame({"study_id": IDS, "findings": REFERENCES, "prediction": PREDICTIONS}),), IDS),
        "two tables": (
            (Frame({"study_id": IDS, "reference": REFERENCES}), Polars({"study_id": back, "prediction": answers})), IDS,
        ),
        "two tables by index": ((Frame({"findings": REFERENCES}, IDS), Frame({"findings": answers}, back)), IDS),
        "objects": ((studies(), predictions()[::-1]), IDS),
        "texts and predictions": ((REFERENCES, predictions()), IDS),
        "predictions of one name": (
            (REFERENCES, [cxr.Prediction("image", findings=t) for t in PREDICTIONS]), list("0123"),
        ),
        "studies and texts": ((studies(), PREDICTIONS), IDS),
        "records without ids": (
            ([{"findings": t} for t in REFERENCES], [{"findings": t} for t in PREDICTIONS]), list("0123"),
        ),
        "files": ((refs, str(preds)), IDS), "file and objects": ((refs, predictions()), IDS), "one file": ((csv,), IDS),
    }  # fmt: skip
    for name, (given, keys) in forms.items():
        scores = cxr.score(*given, **QUICK)
        assert values(scores) == pytest.approx(expected, nan_ok=True), name
        assert ids(scores) == keys, name
    swapped = cxr.score(PREDICTIONS, REFERENCES, **QUICK)
    assert values(swapped) != pytest.approx(expected, nan_ok=True)


def test_what_else_a_table_says_counts():
    table = Frame(
        {
            "study_id": IDS, "reference": REFERENCES, "prediction": PREDICTIONS, "age": [30, 30.0, float("nan"), 70],
            "view": ["PA", "AP", None, "PA"], "sex": ["F", "M", "F", None], "patient_id": ["p", "p", "q", "q"],
        }
    )  # fmt: skip
    scores = cxr.score(table, **QUICK)
    assert scores.patients == 2
    assert {g.attribute for g in scores.subgroups} == {"age", "view", "sex"}


def test_what_is_missing_is_treated_as_ever():
    class NA:
        def __eq__(self, other):
            return self

        def __bool__(self):
            raise TypeError("has no truth")

        __hash__ = None

    scores = cxr.score(["Clear.", None, float("nan"), NA(), ""], ["Clear.", "x", "y", "z", "w"], **QUICK)
    assert scores.n == 1 and scores.problems["reference without findings"] == ["1", "2", "3", "4"]
    scores = cxr.score(REFERENCES, [None, *PREDICTIONS[1:]], **QUICK)
    assert scores.n == 4 and scores.problems["empty prediction"] == ["0"]
    refused = [*predictions()[:3], cxr.Prediction("d", error={"code": "truncated", "message": "cut"})]
    assert cxr.score(studies(), refused, **QUICK).problems["failed prediction"] == ["d"]


def test_sides_that_are_swapped_are_refused(tmp_path):
    refs = lines(tmp_path / "studies.jsonl", [study_to_json(study) for study in studies()])
    preds = lines(tmp_path / "predictions.jsonl", [p.to_json() for p in predictions()])
    swapped = [(preds, refs), (str(preds), REFERENCES), (predictions(), studies()), (refs, refs)]
    for given in [*swapped, (REFERENCES, studies()), (REFERENCES, [cxr.Study("a")])]:
        with pytest.raises(ValueError, match=r"references come first: cxr.score\(references, predictions\)"):
            cxr.score(*given, **QUICK)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((REFERENCES, PREDICTIONS[:3]), "4 references but 3 predictions"),
        ((REFERENCES,), "give references and predictions, or a table"),
        ((Frame({"reference": REFERENCES}),), "columns `reference` and `prediction`"),
        ((Frame({"findings": REFERENCES}),), "columns `reference` and `prediction`"),
        (([], []), "not a single reference"),
        ((REFERENCES, []), "not a single prediction"),
        (("The lungs are clear.", "x"), "references: a single text is not a file"),
        ((REFERENCES, "lost.jsonl"), "predictions: lost.jsonl is not a file"),
        (([REFERENCES], PREDICTIONS), "1 references but 4 predictions"),  # several of one study
        ((REFERENCES, [PREDICTIONS]), "a list of list; accepted are texts"),
        (([*REFERENCES[:3], 7], PREDICTIONS), "not mixed"),
        ((set(REFERENCES), PREDICTIONS), "a set has no order"),
        (({"a": REFERENCES}, {"a": PREDICTIONS}), "{study_id: text}"),
        ((Column(REFERENCES, IDS), Column(PREDICTIONS, IDS[::-1])), "different indexes"),
        ((dict(zip(IDS, REFERENCES, strict=True)), dict(zip("wxyz", PREDICTIONS, strict=True))), "do not meet"),
    ],
)  # fmt: skip
def test_what_does_not_pair_is_refused(given, words):
    with pytest.raises(ValueError, match=words) as caught:
        cxr.score(*given, **QUICK)
    assert caught.value.exit_status == 2 and "lungs" not in str(caught.value)


def test_texts_are_not_paired_with_a_file(tmp_path):
    preds = lines(tmp_path / "predictions.jsonl", [p.to_json() for p in predictions()])
    with pytest.raises(ValueError, match="references have no ids, by which a file is matched"):
        cxr.score(REFERENCES, preds, **QUICK)


def test_impressions_comparisons_and_floors_take_the_same_forms(expected):
    both = cxr.score(REFERENCES, PREDICTIONS, section="impression", **QUICK)
    assert both.settings["section"] == "impression"
    assert [s.value for s in both.scores.values()] == pytest.approx(list(expected.values()), nan_ok=True)
    with pytest.raises(ValueError, match="records that have findings and impression"):
        cxr.score(REFERENCES, PREDICTIONS, section="both", **QUICK)
    compared = cxr.score(
        REFERENCES, PREDICTIONS, compare=REFERENCES, floors={"mine": ["Clear."] * 4}, **QUICK
    )
    differences = {d.name: d.other for d in compared.comparisons[0].differences}
    assert differences["rouge-l/coco"] == 1 and any(f.name == "mine" for f in compared.floors)
    by_id = cxr.score(studies(), predictions(), compare=dict(zip(IDS, REFERENCES, strict=True)), **QUICK)
    assert {d.name: d.other for d in by_id.comparisons[0].differences}["rouge-l/coco"] == 1
    with pytest.raises(ValueError, match="4 references but 2 compare"):
        cxr.score(REFERENCES, PREDICTIONS, compare=["a", "b"], **QUICK)


def test_its_options_are_the_rooms():
    ours, theirs = (inspect.signature(f).parameters for f in (cxr.score, score_records))
    assert list(ours)[:2] == ["references", "predictions"] and list(theirs)[:2] == [
        "predictions",
        "references",
    ]
    assert {k: p.default for k, p in list(ours.items())[2:]} == {
        k: p.default for k, p in list(theirs.items())[2:]
    }


def test_scores_show_their_headlines():
    scores = cxr.score(REFERENCES, PREDICTIONS, floors={"<b>": ["Clear."] * 4}, **QUICK)
    micro = scores["label-f1/14/micro/neg"]
    shown = f"F1-14 micro {micro.value:.3f}"
    assert repr(scores).startswith("Scores(4 studies: F1-14 macro ") and shown in repr(scores)
    assert "\n" not in repr(scores) and "The lungs" not in repr(scores)
    html = scores._repr_html_()
    assert f"<td>{micro.value:.3f}</td>" in html and "constant report" in html
    assert "&lt;b&gt;" in html and "<b>" not in html
