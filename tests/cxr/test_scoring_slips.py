"""Slips of a hurried user of `cxr.score` and `cxr.metric`: told at once by a UserError's one line, never scored."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import cxr
from vlm.prediction import Prediction
from vlm.study import Study

REFERENCES = ["The lungs are clear.", "Large effusion on the left.", "Cardiomegaly."]
PREDICTIONS = ["Lungs clear.", "Small effusion.", "Normal heart."]
score = partial(cxr.score, n_boot=2, clinical_models="none")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, PREDICTIONS), "references: None; accepted are a list of texts"),
        ((5, PREDICTIONS), "references: int; accepted are"),
        ((REFERENCES, 5), "predictions: int; accepted are"),
        ((Study("a", findings="Clear."), PREDICTIONS), "references: one Study alone; give a list"),
        ((REFERENCES, Prediction("a", findings="Clear.")), "predictions: one Prediction alone; give a list"),
    ],
)
def test_what_is_not_a_side_is_told(given, words):
    with pytest.raises(ValueError, match=words) as refused:
        score(*given)
    assert refused.value.exit_status == 2


def test_an_open_file_is_not_a_list_of_its_lines(tmp_path):
    """Lines of JSON are texts, too, and would be scored."""
    path = tmp_path / "reports.jsonl"
    path.write_text('{"study_id": "a", "findings": "Clear."}\n')
    with path.open() as file, pytest.raises(ValueError, match="references: an open file; give its path"):
        score(file, path)
    with pytest.raises(ValueError, match=f"references: {tmp_path} is a folder; give a file"):
        score(tmp_path, path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_boot": -1}, "n_boot must be a whole number of at least 0, not -1"),
        ({"n_boot": 1.5}, "n_boot must be a whole number of at least 0, not 1.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"seed": None}, "seed must be a whole number of at least 0, not None"),
        ({"min_support": "a"}, "min_support must be a whole number of at least 0, not 'a'"),
        ({"floors": [PREDICTIONS]}, r"floors are {name: predictions}, or the folder .*, not list"),
        ({"groups": 5}, r"groups are a list of patients, or {study_id: patient}, not int"),
        ({"groups": "abc"}, "groups are a list of patients"),
        ({"groups": [["a"], ["b"], ["c"]]}, "a patient of groups is a text or a number, not list"),
        ({"training": "absent.jsonl"}, "^training: absent.jsonl is not a file"),
        ({"compare": 5}, "^compare: int; accepted are"),
        ({"floors": {"blank": 5}}, "^floor blank: int; accepted are"),
    ],
)
def test_a_setting_that_cannot_be_is_told_before_anything_is_scored(settings, words):
    with pytest.raises(ValueError, match=words) as refused:
        score(REFERENCES, PREDICTIONS, **settings)
    assert refused.value.exit_status == 2


def test_what_is_meant_all_the_same():
    def scores(*given, **settings):
        # as text, in which what is not a number equals itself
        return str(score(*given, **settings).scores)

    expected = scores(REFERENCES, PREDICTIONS)
    one, same = (scores(REFERENCES, PREDICTIONS, profiles=given) for given in ("coco", ("coco",)))
    assert one == same and len(one) < len(expected)
    groups = ["a", "a", "b"]
    assert scores(REFERENCES, PREDICTIONS, groups=groups) == scores(
        REFERENCES, PREDICTIONS, groups=np.array(groups)
    )
    assert score(REFERENCES, PREDICTIONS, groups=np.array(groups)).patients == 2
    assert scores(REFERENCES, PREDICTIONS, seed=np.int64(0)) == expected

    class LazyFrame:
        """As much of polars' as is needed: it has columns only when it is collected."""

        def collect(self):
            class Frame:
                columns = ("reference", "prediction")

                def to_dicts(self):
                    pairs = zip(REFERENCES, PREDICTIONS, strict=True)
                    return [{"reference": reference, "prediction": made} for reference, made in pairs]

            return Frame()

    assert scores(LazyFrame()) == expected


def test_a_metric_says_what_was_meant():
    with pytest.raises(ValueError, match="no score 'rouge-l/cocoo'; did you mean rouge-l/coco"):
        cxr.metric("rouge-l/cocoo")
    with pytest.raises(ValueError, match="not NoneType"):
        cxr.metric(None)
    metric = cxr.metric("rouge-l/coco")
    for given, name in (("Clear.", ["Clear."]), "references"), ((["Clear."], "Clear."), "predictions"):
        with pytest.raises(ValueError, match=f"{name} is one text, where a list of texts is meant"):
            metric.per_sample(*given)
