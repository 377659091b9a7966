"""What frozen features know of labels: k nearest neighbours, logistic regression, AUROC with intervals over patients.

Shape letters: N images to learn from, M to judge, C features, L labels, B replicates. Labels are 1, 0, or NaN where it
is not known.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C; the best on validation is kept
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of DINO's weighted k-NN (arXiv 2104.14294)


def knn_scores(
    train_NC: np.ndarray,
    labels_NL: np.ndarray,
    test_MC: np.ndarray,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """(M, L) shares of positives among the k most similar images, weighted by exp(cosine / temperature).

    Images whose label is not known have no vote on it; NaN where none of the k has one.
    """
    train_NC, test_MC = (_unit(x) for x in (train_NC, test_MC))
    k = min(k, len(train_NC))
    scores_ML = np.empty((len(test_MC), labels_NL.shape[1]))
    for start in range(0, len(test_MC), 1024):
        similar = test_MC[start : start + 1024] @ train_NC.T
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(similar, nearest, 1) - 1) / temperature)
        votes = labels_NL[nearest]
        known = ~np.isnan(votes)
        total = (weights[..., None] * known).sum(1)
        positive = (weights[..., None] * np.where(known, votes, 0)).sum(1)
        scores_ML[start : start + 1024] = np.divide(
            positive, total, out=np.full(total.shape, np.nan), where=total > 0
        )
    return scores_ML


def logistic_scores(
    train: tuple[np.ndarray, np.ndarray], validate: tuple[np.ndarray, np.ndarray], test_MC: np.ndarray
) -> np.ndarray:
    """(M, L) logits of one logistic regression a label on standardised features; the penalty with the best AUROC on
    `validate` is kept. NaN for labels without both kinds in `train`."""
    scale = StandardScaler().fit(train[0])
    x_train, x_validate, x_test = (scale.transform(x) for x in (train[0], validate[0], test_MC))
    scores_ML = np.full((len(test_MC), train[1].shape[1]), np.nan)
    for label in range(train[1].shape[1]):
        y, y_validate = train[1][:, label], validate[1][:, label]
        known, known_validate = ~np.isnan(y), ~np.isnan(y_validate)
        if len(np.unique(y[known])) < 2:
            continue
        best = -1.0
        for C in PENALTIES:
            model = LogisticRegression(C=C, max_iter=2000)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(x_train[known], y[known])
            found = auroc(y_validate[known_validate], model.decision_function(x_validate[known_validate]))
            if best < 0 or found > best:
                best = found
                scores_ML[:, label] = model.decision_function(x_test)
    return scores_ML


def auroc(labels_M: np.ndarray, scores_M: np.ndarray) -> float:
    """Area under the ROC curve, ties counting a half; NaN without both kinds."""
    return float(weighted_auroc(labels_M, scores_M, np.ones((1, len(labels_M))))[0])


def weighted_auroc(labels_M: np.ndarray, scores_M: np.ndarray, weights_BM: np.ndarray) -> np.ndarray:
    """AUROC for several weightings of the same images (B,), such as how often a replicate drew each: the share of
    weighted (positive, negative) pairs in the right order."""
    labels_M, weights_BM = np.asarray(labels_M, bool), np.asarray(weights_BM, np.float64)
    if not len(labels_M):
        return np.full(len(weights_BM), np.nan)
    order = np.argsort(scores_M, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(np.asarray(scores_M)[order]) != 0])
    positive = np.add.reduceat((weights_BM * labels_M)[:, order], first, axis=1)
    negative = np.add.reduceat((weights_BM * ~labels_M)[:, order], first, axis=1)
    below = negative.cumsum(1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return np.divide((positive * below).sum(1), pairs, out=np.full(len(weights_BM), np.nan), where=pairs > 0)


def replicate_weights(groups: Sequence[Hashable], n_boot: int = 1000, seed: int = 0) -> np.ndarray:
    """How often each image is in each bootstrap replicate of the patients, (n_boot, M)."""
    _, patient_M = np.unique(np.array([str(g) for g in groups]), return_inverse=True)
    patients = patient_M.max() + 1
    rng = np.random.default_rng(seed)
    return rng.multinomial(patients, np.full(patients, 1 / patients), size=n_boot)[:, patient_M]


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
