"""Multi-label F1 against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from eval.scores.label_f1 import (
    FIVE,
    add_label_f1,
    binarize,
    columns,
    condition_table,
    confusion,
    example_f1,
    macro_f1,
    macro_f1_all,
    macro_f1_reference,
    micro_f1,
    weighted_f1,
)
from eval.scores.phrases import CONDITIONS
from eval.scores.sheet import Sheet
from eval.scores.suite import score
from eval.signature import parse_signature


def random_labels(rng, n=60, rare=True):
    """Label matrices with every value; some conditions never occur in the reference."""
    p = [0.25, 0.25, 0.1, 0.4]
    ref, hyp = (rng.choice([1, 0, -1, np.nan], size=(n, 14), p=p) for _ in range(2))
    if rare:
        ref[:, [3, 9]] = np.nan
        hyp[:, 9] = 0
    return ref, hyp


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", ["neg", "pos"])
def test_equals_sklearn(seed, policy):
    ref, hyp = random_labels(np.random.default_rng(seed))
    y, z = binarize(ref, policy), binarize(hyp, policy)
    counts_N3C = confusion(y, z)
    total = counts_N3C.sum(axis=0)
    oracle = {
        a: f1_score(y, z, average=a, zero_division=0) for a in ("micro", "macro", "weighted", "samples")
    }
    assert micro_f1(total) == pytest.approx(oracle["micro"], abs=1e-12)
    assert macro_f1_all(total) == pytest.approx(oracle["macro"], abs=1e-12)
    # what neither side has is left out, as in scikit-learn with NaN for what is not defined
    either = f1_score(y, z, average="macro", zero_division=np.nan)
    assert macro_f1(total) == pytest.approx(either, abs=1e-12) != pytest.approx(oracle["macro"])
    assert weighted_f1(total) == pytest.approx(oracle["weighted"], abs=1e-12)
    assert example_f1(counts_N3C).mean() == pytest.approx(oracle["samples"], abs=1e-12)
    supported = y.any(axis=0)
    among = f1_score(y[:, supported], z[:, supported], average="macro", zero_division=0)
    assert macro_f1_reference(total, supported) == pytest.approx(among, abs=1e-12)
    precision, recall, f1, support = precision_recall_fscore_support(y, z, zero_division=0)
    for i, row in enumerate(condition_table(ref, hyp, policy)):
        assert row["condition"] == CONDITIONS[i] and row["support"] == support[i]
        # scikit-learn's zero stands for what is not defined
        got = [row["precision"] or 0, row["recall"] or 0, row["f1"] or 0]
        assert got == pytest.approx([precision[i], recall[i], f1[i]], abs=1e-12)
        assert (row["f1"] is None) == (not y[:, i].any() and not z[:, i].any())


def test_sheet_holds_every_average_of_both_policies():
    ref, hyp = random_labels(np.random.default_rng(7), n=200)
    sheet = Sheet(200)
    add_label_f1(sheet, ref, hyp, labeller="rules-1", reference="text", min_support=40)
    scores = sheet.scores()
    for policy in ("neg", "pos"):
        y, z = binarize(ref, policy), binarize(hyp, policy)
        five = columns(FIVE)
        common = np.maximum(y.sum(axis=0), z.sum(axis=0)) >= 40
        oracle = {
            "14/micro": f1_score(y, z, average="micro", zero_division=0),
            "14/macro": f1_score(y, z, average="macro", zero_division=np.nan),
            "14/macro-all": f1_score(y, z, average="macro", zero_division=0),
            "14/example": f1_score(y, z, average="samples", zero_division=0),
            "5/weighted": f1_score(y[:, five], z[:, five], average="weighted", zero_division=0),
            "14/macro-40": f1_score(y[:, common], z[:, common], average="macro", zero_division=0),
            "Edema": f1_score(y[:, 4], z[:, 4], zero_division=0),
        }
        for key, value in oracle.items():
            assert scores[f"label-f1/{key}/{policy}"].value == pytest.approx(value, abs=1e-12), key
    name, choices = parse_signature(scores["label-f1/14/macro/neg"].signature)
    assert name == "label-f1"
    assert choices == {
        "labeller": "rules-1",
        "n": "14",
        "avg": "macro",
        "support": "either",
        "unc": "neg",
        "ref": "text",
    }
    # the old definition keeps its signature
    old = parse_signature(scores["label-f1/14/macro-all/neg"].signature)[1]
    assert old == {"labeller": "rules-1", "n": "14", "avg": "macro", "unc": "neg", "zero": "0", "ref": "text"}
    assert "min-support:40" in scores["label-f1/14/macro-40/pos"].signature


def test_uncertainty_policies_differ_as_stated():
    labels = np.array([[1, 0, -1, np.nan]])
    assert binarize(labels, "neg").tolist() == [[True, False, False, False]]
    assert binarize(labels, "pos").tolist() == [[True, False, True, False]]


def test_nothing_supported_is_undefined_not_zero():
    none = np.zeros((3, 14))
    total = confusion(none, none).sum(axis=0)
    assert macro_f1_all(total) == 0 and np.isnan(macro_f1(total)) and np.isnan(micro_f1(total))
    assert np.isnan(macro_f1(total, np.zeros(14, dtype=bool))) and np.isnan(weighted_f1(total))


def test_the_macro_mean_sees_what_was_invented():
    """Three of four reports gain two findings that no reference has."""
    ref, hyp = np.zeros((100, 14)), np.zeros((100, 14))
    ref[:, 13] = hyp[:, 13] = 1
    perfect = confusion(ref, hyp).sum(axis=0)
    hyp[:75, [8, 11]] = 1
    invented = confusion(ref, hyp).sum(axis=0)
    assert macro_f1(perfect) == 1 and macro_f1(invented) == pytest.approx(1 / 3)
    # the old ones do not
    every = np.ones(14, dtype=bool)
    assert macro_f1_reference(invented, every) == macro_f1_reference(perfect, every) == 1
    assert macro_f1_all(invented) == macro_f1_all(perfect)


def test_support_is_that_of_the_group():
    """A subgroup's macro over frequent conditions takes those that are frequent in it."""
    ref = np.zeros((80, 14))
    ref[:40, 4] = ref[:, 13] = 1
    hyp = ref.copy()
    hyp[:20, 4] = 0
    sheet = Sheet(80)
    add_label_f1(sheet, ref, hyp, min_support=30)
    rows_N = np.arange(80) >= 20
    key = "label-f1/14/macro-30/neg"
    whole, group = sheet.scores()[key], sheet.scores(rows_N=rows_N)[key]
    assert (whole.over, group.over) == ("2 of 14", "1 of 14")
    assert whole.value == pytest.approx((2 / 3 + 1) / 2) and group.value == 1


@pytest.mark.parametrize("labels", [[[2.0]], [[0.5]], [[np.inf]]])
def test_refuses_other_labels(labels):
    with pytest.raises(ValueError, match="labels are 1, 0, -1 or NaN"):
        binarize(np.array(labels), "neg")


def test_refuses_other_policies_and_shapes():
    with pytest.raises(ValueError, match="'maybe'"):
        binarize(np.zeros((1, 14)), "maybe")
    with pytest.raises(ValueError, match="one shape"):
        confusion(np.zeros((2, 14)), np.zeros((3, 14)))


def test_a_reference_that_mentions_none_of_the_14_counts_and_one_that_is_not_judged_does_not():
    rows = [
        ("Emphysema without acute disease.", "Large left pleural effusion. Pneumothorax."),
        ("Large left pleural effusion.", "Large left pleural effusion."),
        ("Kein Pneumothorax. Herz normal groß.", "Pneumothorax."),
    ]
    references = [{"study_id": str(i), "findings": r} for i, (r, _) in enumerate(rows)]
    predictions = [{"study_id": str(i), "findings": p} for i, (_, p) in enumerate(rows)]
    scores = score(predictions, references, clinical_models="none")
    # One right, two invented: 2 / (2 + 2); the third study is left out of all numbers of its conditions.
    assert scores["label-f1/14/micro/neg"].value == 0.5
    assert scores.problems["reference that is not judged"] == ["2"]
    of = {row["condition"]: row for row in scores.conditions["label-f1"]["neg"]}
    assert of["Pneumothorax"]["predicted"] == 1 and of["Pneumothorax"]["f1"] == 0
    for row in of.values():
        p, r, f1 = row["precision"], row["recall"], row["f1"]
        if p and r:
            assert f1 == pytest.approx(2 * p * r / (p + r))
    assert scores.studies[2]["invented"] == []
