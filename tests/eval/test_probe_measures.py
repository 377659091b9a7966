"""AUPRC, R2, MAE, their intervals and paired differences: against scikit-learn, and by simulation."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score, roc_auc_score

from eval.probes import measures
from eval.probes.judged import Judged, Part
from eval.probes.results import Gap, compared, measured, table
from eval.resampling import bootstrap_p


def judged(truth_ML, *draws, patients=None, **more) -> Judged:
    truth_ML = np.asarray(truth_ML, float)
    names = [f"finding {i}" for i in range(truth_ML.shape[1])]
    patients = np.arange(len(truth_ML)) if patients is None else patients
    floor = np.full((1, len(names)), 0.5)
    return Judged(names, truth_ML, np.stack(draws), floor, patients, choices={"features": "cls"}, **more)


@pytest.mark.parametrize("digits", [0, 1, 8])  # many ties, some, none
def test_measures_are_scikit_learns_with_ties_and_weights(digits):
    rng = np.random.default_rng(digits)
    y = rng.integers(0, 2, 70)
    scores = rng.normal(size=70).round(digits) + 0.3 * y
    weights = rng.integers(0, 4, (300, 70))  # more than one chunk
    weights[0] = 1
    some = np.r_[:5, 250:262, 299]
    for ours, theirs, truth in (
        (measures.weighted_auprc, average_precision_score, y),
        (measures.weighted_auroc, roc_auc_score, y),
        (measures.weighted_r2, r2_score, 60 + 20 * rng.normal(size=70).round(digits)),
        (measures.weighted_mae, mean_absolute_error, y + 40.0),
    ):
        found = ours(truth, scores, weights)
        wanted = [theirs(truth, scores, sample_weight=w) for w in weights[some]]
        assert found[some] == pytest.approx(wanted, abs=1e-9)
        assert found[0] == pytest.approx(theirs(truth, scores), abs=1e-9)


def test_measures_of_nothing_or_of_one_kind_are_not_defined():
    ones = np.ones((2, 3))
    for measure in (measures.weighted_auroc, measures.weighted_auprc, measures.weighted_r2):
        assert np.isnan(measure(np.zeros(3), np.arange(3.0), ones)).all()
        assert np.isnan(measure(np.zeros(0), np.zeros(0), np.ones((2, 0)))).all()
    assert np.isnan(measures.weighted_mae(np.zeros(0), np.zeros(0), np.ones((2, 0)))).all()
    assert measures.auprc(np.ones(3), np.arange(3.0)) == 1
    assert np.isnan(measures.weighted_auprc([1, 0, 0], [3.0, 2, 1], np.array([[0, 1, 1]]))[0])


def test_intervals_cover_the_truth_and_widen_with_patients():
    """AUROC of two normals a distance apart is Phi(d / sqrt 2); patients with five like images know less than five."""
    rng = np.random.default_rng(0)
    covered, ratio = 0, []
    for _ in range(120):
        y = rng.integers(0, 2, 60).repeat(5)
        scores = y + rng.normal(size=60).repeat(5)  # images of a patient are alike
        one = judged(y[:, None], scores[:, None, None].reshape(-1, 1), patients=np.arange(60).repeat(5))
        (by_patient,) = measured(one, "auroc", n_boot=150)
        covered += by_patient.low <= 0.7602 <= by_patient.high
        ratio.append(by_patient.high - by_patient.low)
    assert 0.88 <= covered / 120 <= 0.99
    (by_image,) = measured(judged(y[:, None], scores[:, None]), "auroc", n_boot=150)
    assert ratio[-1] > 1.7 * (by_image.high - by_image.low)
    assert by_patient.patients == 60 and by_image.patients == by_patient.n == 300


def test_numbers_say_what_they_are():
    rng = np.random.default_rng(1)
    y = (rng.random((200, 4)) < [0.5, 0.3, 0.02, 0.5]).astype(float)
    y[:50, 0] = np.nan
    y[:, 3] = np.where(rng.random(200) < 0.5, np.nan, 1)
    one = judged(y, rng.normal(size=(200, 4)) + np.nan_to_num(y))
    found = {f.name: f for f in measured(one, "auprc", n_boot=50)}
    first, rare, one_kind, macro = (
        found[f"auprc/{n}"] for n in ("finding 0", "finding 2", "finding 3", "macro")
    )
    assert first.n == 150 and first.positives == np.nansum(y[:, 0])
    assert first.floor == pytest.approx(first.prevalence) == pytest.approx(np.nanmean(y[:, 0]))
    assert first.value == pytest.approx(average_precision_score(y[50:, 0], one.scores_DML[0, 50:, 0]))
    assert first.signature == "auprc|features:cls|boot:50-patients"
    assert not np.isnan(rare.value) and macro.more["findings"] == ["finding 0", "finding 1"]
    assert macro.value == pytest.approx(np.mean([first.value, found["auprc/finding 1"].value]))
    assert "avg:macro" in macro.signature and "findings:2" in macro.signature
    assert one_kind.value == 1  # AUPRC needs no negatives; AUROC does:
    auroc = measured(one, "auroc", n_boot=50)[3]
    assert auroc.to_json()["value"] is None and auroc.more["reasons"] == [
        "the test images are all of one kind"
    ]
    assert (
        json.loads(json.dumps([f.to_json() for f in found.values()], allow_nan=False))[0]["interval"][0] > 0
    )
    lines = table(found.values()).splitlines()
    assert "prevalence" in lines[0] and f"{first.prevalence:.3f}" in lines[1]


def test_too_few_findings_have_no_mean():
    one = judged(np.eye(6)[:, :2], np.zeros((6, 2)))
    macro = measured(one, "auroc", n_boot=10)[-1]
    assert np.isnan(macro.value) and macro.more["reasons"] == [
        "no finding that 10 patients have and 10 have not"
    ]
    (missing,) = compared(*[judged(np.full((6, 1), np.nan), np.zeros((6, 1)))] * 2, "auroc", n_boot=10)
    assert np.isnan(missing.p) and missing.to_json()["difference"] is None


def test_draws_are_averaged_and_their_spread_is_given():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, (80, 2)).astype(float)
    draws = [rng.normal(size=(80, 2)) + y for _ in range(3)]
    draws[1][:, 1] = np.nan  # no head
    chosen = [[{}, {"reason": "no positive"} if d == 1 else {}] for d in range(3)]
    first, second, macro = measured(judged(y, *draws, chosen=chosen), "auroc", n_boot=20)
    values = [roc_auc_score(y[:, 0], draw[:, 0]) for draw in draws]
    assert first.value == pytest.approx(np.mean(values)) and first.more["draws"] == pytest.approx(values)
    assert first.more["spread"] == pytest.approx(np.std(values, ddof=1))
    assert second.more["draws"][1] is None and second.more["reasons"] == ["no positive"]
    assert second.value == pytest.approx(np.mean([second.more["draws"][d] for d in (0, 2)]))
    assert macro.more["draws"][1] is None and macro.value == pytest.approx((first.value + second.value) / 2)


def test_identical_answers_do_not_differ():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, (60, 3)).astype(float)
    one = judged(y, rng.normal(size=(60, 3)))
    for metric in ("auprc", "auroc"):
        for gap in compared(one, one, metric, n_boot=40):
            assert gap.difference == gap.low == gap.high == 0 and gap.p == 1


def test_a_difference_is_found_and_held_against_the_family():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, (150, 3)).astype(float)
    noise = rng.normal(size=(150, 3))
    good, poor = judged(y, 2 * y + noise), judged(y, np.c_[noise[:, :1], (2 * y + noise)[:, 1:] + 0.01])
    gaps = compared(good, poor, "auroc", n_boot=300)
    assert [gap.name for gap in gaps] == [*(f"auroc/finding {i}" for i in range(3)), "auroc/macro"]
    assert (
        gaps[0].low > 0.1 and gaps[0].p == pytest.approx(2 / 301) and gaps[0].p_holm == pytest.approx(6 / 301)
    )
    assert gaps[0].difference == pytest.approx(gaps[0].value - gaps[0].other) and gaps[1].p == 1
    assert gaps[3].difference == pytest.approx(gaps[0].difference / 3) and np.isnan(gaps[3].p_holm)
    back = compared(poor, good, "auroc", n_boot=300)[0]
    assert (back.difference, back.low, back.p) == pytest.approx(
        (-gaps[0].difference, -gaps[0].high, gaps[0].p)
    )
    assert "p (Holm)" in table(gaps) and isinstance(gaps[0], Gap)
    assert gaps[0].n == gaps[0].patients == 150
    assert gaps[0].signature == "auroc|features:cls|paired:bootstrap|boot:300-patients|holm:3"


def test_p_is_right_where_nothing_differs():
    rng = np.random.default_rng(5)
    below = 0
    for _ in range(150):
        y = rng.integers(0, 2, (60, 1)).astype(float)
        a, b = (judged(y, y + rng.normal(size=y.shape)) for _ in range(2))
        below += compared(a, b, "auroc", n_boot=99, least=5)[0].p <= 0.1
    assert 0.04 <= below / 150 <= 0.17
    assert bootstrap_p(np.array([1.0, 2, 3])) == 0.5 and bootstrap_p(np.array([np.nan] * 9)) == 1


def test_only_the_same_images_are_compared():
    y = np.array([[1.0], [0], [np.nan]])
    one = judged(y, np.zeros((3, 1)), images=["a", "b", "c"])
    for other, what in (
        (judged(y, np.zeros((3, 1)), images=["a", "c", "b"]), "other images"),
        (judged(y, np.zeros((3, 1)), images=["a", "b", "c"], patients=[1, 1, 2]), "other patients"),
        (judged(1 - y, np.zeros((3, 1)), images=["a", "b", "c"]), "other labels"),
        (judged(y, np.zeros((3, 1)), np.zeros((3, 1)), images=["a", "b", "c"]), "other draws"),
        (judged(y, np.full((3, 1), np.nan), images=["a", "b", "c"]), "other draws"),
    ):
        with pytest.raises(ValueError, match=what):
            compared(one, other, "auroc")
    named_otherwise = judged(y, np.zeros((3, 1)), images=["a", "b", "c"], patients=["x", "y", "z"])
    compared(one, named_otherwise, "auroc", n_boot=5)


def test_answers_survive_json():
    rng = np.random.default_rng(6)
    y = np.where(rng.random((20, 2)) < 0.2, np.nan, rng.integers(0, 2, (20, 2)))
    chosen = [[{"C": 0.1, "validation": 0.7}, {"reason": "no positive"}]]
    one = judged(
        y,
        np.c_[rng.normal(size=20), np.full(20, np.nan)],
        chosen=chosen,
        patients=[f"p{i // 2}" for i in range(20)],
    )
    text = json.dumps(one.to_json(), allow_nan=False)
    assert "p1" not in text
    other = Judged.from_json(json.loads(text))
    assert np.array_equal(one.scores_DML, other.scores_DML, equal_nan=True) and other.chosen == chosen
    assert measured(one, "auroc", n_boot=9)[0] == measured(other, "auroc", n_boot=9)[0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a row of labels and a patient"):
        Part(np.zeros((3, 2)), np.zeros((3, 1)), ["a", "b"])
    with pytest.raises(ValueError, match="1 images are not finite, those of row 2"):
        Part(np.array([[0], [0], [np.inf]]), np.zeros((3, 1)), list("abc"))
    with pytest.raises(ValueError, match="no answer"):
        judged(np.ones((3, 1)), np.array([[1.0], [np.nan], [2]]))
    with pytest.raises(ValueError, match="white space"):
        Judged(
            ["a"], np.ones((1, 1)), np.ones((1, 1, 1)), np.ones((1, 1)), [1], choices={"features": "my own"}
        )
    with pytest.raises(ValueError, match="metric 'f1' is unknown"):
        measured(judged(np.ones((3, 1)), np.ones((3, 1))), "f1")
