"""Probes of frozen features, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from eval.probes.linear import knn_scores, logistic_scores
from eval.probes.measures import auroc, replicate_weights, weighted_auroc
from eval.probes.segmentation import LinearHead, dice


def test_auroc_is_scikit_learns_with_ties_and_weights():
    rng = np.random.default_rng(0)
    for digits in (0, 1, 8):  # many ties, some, none
        y = rng.integers(0, 2, 60)
        scores = rng.normal(size=60).round(digits) + 0.4 * y
        assert auroc(y, scores) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
        weights = rng.integers(0, 4, (5, 60))
        wanted = [roc_auc_score(y, scores, sample_weight=w) for w in weights]
        assert weighted_auroc(y, scores, weights) == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(auroc(np.ones(3), np.arange(3.0))) and np.isnan(auroc(np.array([]), np.array([])))


def test_replicates_draw_whole_patients():
    weights = replicate_weights(["a", "b", "a", "c"], 50)
    assert weights.shape == (50, 4) and (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all() and weights.std() > 0


def test_knn_is_scikit_learns():
    rng = np.random.default_rng(1)
    x, test, y = rng.normal(size=(50, 8)), rng.normal(size=(9, 8)), rng.integers(0, 2, (50, 3)).astype(float)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, test)]
    other = KNeighborsClassifier(
        7, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)
    )  # of unit vectors: the cosine
    for label in range(3):
        wanted = other.fit(unit[0], y[:, label]).predict_proba(unit[1])[:, 1]
        assert knn_scores(x, y, test, k=7)[:, label] == pytest.approx(wanted, abs=1e-5)


def test_an_unknown_label_has_no_vote():
    x = np.eye(3)
    y = np.array([[1.0], [np.nan], [0.0]])
    assert knn_scores(x, y, np.array([[1.0, 1.0, 0.0]]), k=2)[0, 0] == 1
    assert np.isnan(knn_scores(x, y, np.array([[0.0, 1.0, 0.0]]), k=1)[0, 0])
    assert knn_scores(x, y, x[:1], k=20).shape == (1, 1)  # fewer images than neighbours


def test_logistic_regression_finds_what_is_there():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 10)) * 50 + 7
    y = np.stack([x[:, 3] > 7, rng.random(300) < 0.5, np.zeros(300)], axis=1).astype(float)
    y[::7, 0] = np.nan
    scores = logistic_scores((x[:150], y[:150]), (x[150:200], y[150:200]), x[200:])
    known = ~np.isnan(y[200:, 0])
    assert auroc(y[200:, 0][known], scores[known, 0]) > 0.97
    assert 0.3 < auroc(y[200:, 1], scores[:, 1]) < 0.7
    assert np.isnan(scores[:, 2]).all()


def test_dice_is_f1_of_the_pixels():
    rng = np.random.default_rng(3)
    a, b = rng.random((4, 9, 7)) < 0.4, rng.random((4, 9, 7)) < 0.6
    wanted = [f1_score(x.ravel(), y.ravel()) for x, y in zip(b, a, strict=True)]
    assert dice(a, b) == pytest.approx(wanted, abs=1e-12)
    assert dice(a[:1], a[:1])[0] == 1 and dice(a[:1], ~a[:1])[0] == 0
    assert np.isnan(dice(np.zeros((1, 3, 3)), np.zeros((1, 3, 3)))[0])


def test_a_linear_head_finds_a_linear_structure():
    """Tokens that say how much of their patch is covered: the mask comes back but for the interpolation."""
    torch.manual_seed(0)
    masks = torch.nn.functional.interpolate(torch.rand(20, 1, 3, 3), 64, mode="bicubic")[:, 0] > 0.5
    cover = torch.nn.functional.adaptive_avg_pool2d(masks.float()[:, None], 16).flatten(1)
    tokens = torch.randn(20, 256, 6) * 3 + 1
    tokens[..., 2] = 100 * cover
    head = LinearHead().fit(tokens[:12], masks[:12])
    assert dice(head.predict(tokens[12:], 64), masks[12:].numpy()).min() > 0.9
    tokens[..., 2] = 0
    blind = LinearHead().fit(tokens[:12], masks[:12])
    assert dice(blind.predict(tokens[12:], 64), masks[12:].numpy()).mean() < 0.75
