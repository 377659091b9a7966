"""AUROC, AUPRC, R2, MAE of many weightings at once: what intervals over patients are made of.

A weighting is how often a bootstrap replicate drew each image. Every function takes the truth (M,), the scores (M,) and
weights (B, M), and returns (B,), NaN where it is not defined; with the weights of `ones` it is the plain number.

Shape letters: M images judged, B replicates, K distinct scores.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

_CHUNK = 256  # replicates at a time: some 20 MB an array at 10,000 images


def auroc(labels_M: np.ndarray, scores_M: np.ndarray) -> float:
    """Return the area under the ROC curve, ties counting a half; NaN without both kinds."""
    return float(weighted_auroc(labels_M, scores_M, np.ones((1, len(labels_M))))[0])


def auprc(labels_M: np.ndarray, scores_M: np.ndarray) -> float:
    """Average precision; NaN without positives."""
    return float(weighted_auprc(labels_M, scores_M, np.ones((1, len(labels_M))))[0])


def weighted_auroc(labels_M: np.ndarray, scores_M: np.ndarray, weights_BM: np.ndarray) -> np.ndarray:
    """Return the share of weighted (positive, negative) pairs in the right order, ties counting a half."""
    found = []
    for positive, negative in _by_score(labels_M, scores_M, weights_BM):
        below = negative.cumsum(1) - negative / 2
        found.append(_over((positive * below).sum(1), positive.sum(1) * negative.sum(1)))
    return np.concatenate(found)


def weighted_auprc(labels_M: np.ndarray, scores_M: np.ndarray, weights_BM: np.ndarray) -> np.ndarray:
    """Average precision as scikit-learn defines it: the precision at every distinct score, weighted by the recall that
    it adds; nothing is interpolated."""
    found = []
    for positive, negative in _by_score(labels_M, scores_M, weights_BM):
        positive, negative = positive[:, ::-1], negative[:, ::-1]
        hits = positive.cumsum(1)
        precision = _over(
            hits, hits + negative.cumsum(1), otherwise=0.0
        )  # nothing drawn yet, no recall either
        found.append(_over((positive * precision).sum(1), positive.sum(1)))
    return np.concatenate(found)


def weighted_r2(truth_M: np.ndarray, predicted_M: np.ndarray, weights_BM: np.ndarray) -> np.ndarray:
    """Compute 1 - squared error / squared distance from the mean of the same weighting; NaN where the truth
    does not vary."""
    truth_M, predicted_M = np.asarray(truth_M, np.float64), np.asarray(predicted_M, np.float64)
    if not len(truth_M):
        return np.full(len(weights_BM), np.nan)
    y_M = truth_M - truth_M.mean()  # else the difference of two large sums
    statistics_M4 = np.stack([np.ones_like(y_M), y_M, y_M**2, (truth_M - predicted_M) ** 2], 1)
    n, y, y2, error = (_times(weights_BM, statistics_M4)).T
    spread = y2 - _over(y**2, n, otherwise=0.0)
    return 1 - _over(error, np.where(spread > 1e-12 * y2, spread, 0.0))


def weighted_mae(truth_M: np.ndarray, predicted_M: np.ndarray, weights_BM: np.ndarray) -> np.ndarray:
    """Return the mean absolute error, in the truth's unit."""
    error_M = np.abs(np.asarray(truth_M, np.float64) - predicted_M)
    return weighted_mean(truth_M, error_M, weights_BM)


def weighted_mean(truth_M: np.ndarray, scores_M: np.ndarray, weights_BM: np.ndarray) -> np.ndarray:
    """Return the mean of the scores, which are judgements themselves; the truth is not looked at."""
    scores_M = np.asarray(scores_M, np.float64)
    total, n = _times(weights_BM, np.stack([scores_M, np.ones_like(scores_M)], 1)).T
    return _over(total, n)


def replicate_weights(groups: Sequence[Hashable], n_boot: int = 1000, seed: int = 0) -> np.ndarray:
    """Return how often each image is in each bootstrap replicate of the patients, int16 (n_boot, M)."""
    _, patient_M = np.unique(np.array([str(g) for g in groups]), return_inverse=True)
    patients = patient_M.max() + 1
    rng = np.random.default_rng(seed)
    weights_BM = np.empty((n_boot, len(patient_M)), np.int16)
    for start in range(0, n_boot, _CHUNK):
        size = min(_CHUNK, n_boot - start)
        drawn_BP = rng.multinomial(patients, np.full(patients, 1 / patients), size=size)
        weights_BM[start : start + size] = drawn_BP[:, patient_M]
    return weights_BM


def _by_score(
    labels_M: np.ndarray, scores_M: np.ndarray, weights_BM: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weight of the positives and of the negatives at every distinct score, ascending: (b, K) both, a few replicates
    at a time."""
    labels_M, scores_M = np.asarray(labels_M, bool), np.asarray(scores_M)
    order = np.argsort(scores_M, kind="stable")
    labels_M, scores_M = labels_M[order], scores_M[order]
    first = np.flatnonzero(np.diff(scores_M, prepend=np.nan) != 0)
    for start in range(0, len(weights_BM), _CHUNK):
        weights = np.asarray(weights_BM[start : start + _CHUNK])[:, order].astype(np.float64)
        both = weights * labels_M, weights * ~labels_M
        if len(first) < len(order):
            both = tuple(np.add.reduceat(x, first, axis=1) for x in both)
        yield both


def _times(weights_BM: np.ndarray, statistics_MK: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            np.asarray(weights_BM[start : start + _CHUNK], np.float64) @ statistics_MK
            for start in range(0, len(weights_BM), _CHUNK)
        ]
    )


def _over(a: np.ndarray, b: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """a / b, `otherwise` where b is not positive."""
    return np.divide(a, b, out=np.full(np.shape(a), otherwise), where=b > 0)
