"""Slips of a hurried user of `cxr.score` and `cxr.metric`: told at once by a UserError's one line, never scored."""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import pytest

import cxr
import eval as eval_room
from cxr.cli.terminal import replicates
from eval.report import write_page
from vlm.prediction import Prediction
from vlm.study import Study

REFERENCES = ["The lungs are clear.", "Large effusion on the left.", "Cardiomegaly."]
PREDICTIONS = ["Lungs clear.", "Small effusion.", "Normal heart."]
score = partial(cxr.score, clinical_models="none")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, PREDICTIONS), "references: None; accepted are a list of texts"),
        ((5, PREDICTIONS), "references: int; accepted are"),
        ((REFERENCES, 5), "predictions: int; accepted are"),
        ((Study("a", findings="Clear."), PREDICTIONS), "references: a single Study; give a list"),
        ((REFERENCES, Prediction("a", findings="Clear.")), "predictions: a single Prediction; give a list"),
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
        ({"intervals": 100}, "intervals is True or False, not 100"),
        # of which each is a matrix product: hours without a word
        ({"seed": 2**70}, "seed must be a whole number of at least 0, not 1180591620717411303424"),
        ({"profiles": 5}, r"profiles are names, of coco, .*, not 5"),
        ({"profiles": "zz"}, "no lexical profile 'zz'; there are coco, "),
        ({"profiles": ["coco", None]}, r"profiles are names, of coco, .*, not None"),
        ({"clinical_models": 5}, r"clinical_models are names, of auto, none, .*chexbert.*, not 5"),
        ({"clinical_models": ["chexbert", object()]}, "clinical_models are .*, not object$"),
        ({"weights": 5}, "weights is the folder of the clinical models' weights, not 5"),
        ({"device": 5}, "device is a name such as 'cpu' or 'cuda:1', not 5"),
        ({"reference_labels": 5}, "reference_labels is 5; accepted are 'text' and 'study'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"seed": None}, "seed must be a whole number of at least 0, not None"),
        ({"min_support": "a"}, "min_support must be a whole number of at least 0, not 'a'"),
        (
            {"floors": [PREDICTIONS]},
            r"floors \(baselines\) are {name: predictions}, or the folder .*, not list",
        ),
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


@pytest.mark.parametrize(
    "settings", [{"intervals": "no"}, {"profiles": 5}, {"clinical_models": 5}, {"weights": 5}]
)
def test_eval_score_checks_them_itself(settings):
    sides = [[{"study_id": "a", "findings": text}] for text in ("Clear.", "Edema.")]
    with pytest.raises(eval_room.ScoreError, match=f"^{next(iter(settings))} "):
        eval_room.score(*sides, **settings)


def test_without_resampling_there_are_no_intervals(tmp_path):
    references, predictions = REFERENCES * 4, PREDICTIONS * 4
    found = score(
        references, predictions, intervals=False, compare=references, floors={"nearest": predictions}
    )
    with_some = score(references, predictions, compare=references, floors={"nearest": predictions})
    page = write_page(tmp_path / "x.html", title="x", scores=found).read_text()
    for shown in (str(found), repr(found), found._repr_html_(), page):
        assert "nan" not in shown.lower().replace("dominan", "") and "replicates" not in shown
        assert f"{found['rouge-l/coco'].value:.3f}"[1:] in shown
    assert "no intervals" in str(found) and "[–" not in page
    # the numbers are those that have intervals otherwise
    value = f"{found['rouge-l/coco'].value:.3f}"
    assert value in str(found) and f"{value} [" in str(with_some) and f"{value} [" not in str(found)
    (own,) = (d for d in found.comparisons[0].differences if d.name == "rouge-l/coco")
    assert f"{own.difference:+.3f}" in str(found)
    assert found.to_json()["scores"][0]["interval"] == [None, None]


def test_the_command_line_has_the_same_limit():
    with pytest.raises(argparse.ArgumentTypeError, match="at most 100000"):
        replicates("100001")
    assert replicates("100000") == 100_000


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
    for name in ("weights", "device", "column"):
        with pytest.raises(ValueError, match=f"^{name} is"):
            cxr.metric("rouge-l/coco", **{name: 5})
    metric = cxr.metric("rouge-l/coco")
    for given, words in (
        ((None, 5), "references must be a list of texts, not NoneType"),
        ((["Clear."], 5), "predictions must be a list of texts, not int"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            metric.per_sample(*given)
        assert refused.value.exit_status == 2
    for completions, words in ((5, "must be a list of texts, not int"), ([5], "are texts, or chats")):
        with pytest.raises(ValueError, match=words):
            metric(completions=completions, findings=["Clear."])
    assert metric.per_sample(iter(["Clear."]), np.array(["Clear."])).tolist() == [1]
    for given, name in (("Clear.", ["Clear."]), "references"), ((["Clear."], "Clear."), "predictions"):
        with pytest.raises(ValueError, match=f"{name} is one text, where a list of texts is meant"):
            metric.per_sample(*given)
