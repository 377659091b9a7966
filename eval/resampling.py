"""Intervals and tests by resampling patients, from sufficient statistics.

A metric here is a function of *summed* statistics: it takes sums (..., K) over samples and returns values (...).
Corpus scores and F1 are such functions, and a mean is one too if the count is a column. One matrix product of
resampling weights and per-patient sums then replaces a thousand evaluations. Studies of one patient resemble each
other, so whole patients are drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

Metric = Callable[[np.ndarray], np.ndarray]
# Beyond it the bounds of an interval move less than their last digit, and memory grows.
MOST_REPLICATES = 100_000
_CHUNK = 256  # replicates at a time: a few tens of MB at 10,000 patients


def patient_sums(stats_NK: np.ndarray, groups: Sequence[Hashable] | None = None) -> np.ndarray:
    """Return sums of statistics (N, K) over the samples of each patient, (P, K), patients in order of
    appearance.

    Without `groups` every sample is its own patient. Raises ValueError if the counts differ or there is no sample.
    """
    stats_NK = np.asarray(stats_NK, dtype=np.float64)
    if not len(stats_NK):
        raise ValueError("there are no samples to resample")
    if groups is None:
        return stats_NK
    if len(groups) != len(stats_NK):
        raise ValueError(f"{len(stats_NK)} samples but {len(groups)} patient ids")
    index: dict[Hashable, int] = {}
    patient_N = np.array([index.setdefault(g, len(index)) for g in groups])
    sums_PK = np.zeros((len(index), stats_NK.shape[1]))
    np.add.at(sums_PK, patient_N, stats_NK)
    return sums_PK


def in_order(
    stats_NK: np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, list[Hashable] | None]:
    """Return samples and their patients, sorted by patient: what is drawn then depends on who they are, and not on the
    order of the samples. Without `groups` they stay as they are."""
    if groups is None or len(groups) != len(stats_NK):
        return stats_NK, None if groups is None else list(groups)
    order = sorted(range(len(groups)), key=lambda i: _name(groups[i]))
    return np.asarray(stats_NK)[order], [groups[i] for i in order]


def _name(patient: Hashable) -> list[tuple[int, str]]:
    """Return the parts of a patient's id by which it is sorted: whole numbers in their order, then texts."""
    parts = patient if isinstance(patient, tuple) else (patient,)
    return [(int(p), "") if isinstance(p, int | np.integer) else (sys.maxsize, str(p)) for p in parts]


def bootstrap_sums(sums_PK: np.ndarray, n_boot: int = 1000, seed: int = 0) -> np.ndarray:
    """Return sums of statistics in `n_boot` bootstrap replicates of the P patients, (n_boot, K)."""
    rng = np.random.default_rng(seed)
    patients = len(sums_PK)
    replicates = []
    for start in range(0, n_boot, _CHUNK):
        size = min(_CHUNK, n_boot - start)
        weights_BP = rng.multinomial(patients, np.full(patients, 1 / patients), size=size)
        replicates.append(weights_BP.astype(np.float64) @ sums_PK)
    return np.concatenate(replicates) if replicates else np.empty((0, sums_PK.shape[1]))


def percentile_interval(values_B: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values (B, ...): two numbers, or arrays (...) of them. NaN
    replicates (metric undefined there) are left out."""
    values_B = np.asarray(values_B, dtype=np.float64)
    if not len(values_B) and values_B.ndim > 1:
        nothing: Any = np.full(values_B.shape[1:], np.nan)
        return nothing, nothing
    if values_B.ndim > 1:
        columns = [percentile_interval(column_B, level) for column_B in values_B.reshape(len(values_B), -1).T]
        low, high = np.array(columns).T.reshape(2, *values_B.shape[1:])
        return low, high
    values_B = values_B[~np.isnan(values_B)]
    if not len(values_B):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(values_B, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap(
    metric: Metric,
    stats_NK: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return the metric of all samples and the bounds of its percentile bootstrap interval over patients."""
    sums_PK = patient_sums(*in_order(stats_NK, groups))
    value = float(metric(sums_PK.sum(axis=0)))
    low, high = percentile_interval(metric(bootstrap_sums(sums_PK, n_boot, seed)), level)
    return value, low, high


def paired_bootstrap(
    metric: Metric,
    stats_a_NK: np.ndarray,
    stats_b_NK: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return metric(a) - metric(b) and its percentile interval; both systems see the same drawn patients.

    A metric may give several values at once, (..., M); then so are these.
    """
    a_PK, b_PK = _paired(stats_a_NK, stats_b_NK, groups)
    both_BK = bootstrap_sums(np.concatenate([a_PK, b_PK], axis=1), n_boot, seed)
    k = a_PK.shape[1]
    difference = _scalar(metric(a_PK.sum(axis=0)) - metric(b_PK.sum(axis=0)))
    low, high = percentile_interval(metric(both_BK[:, :k]) - metric(both_BK[:, k:]), level)
    return difference, low, high


def paired_permutation(
    metric: Metric,
    stats_a_NK: np.ndarray,
    stats_b_NK: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Return the two-sided p of metric(a) - metric(b) under swapping the systems within random patients.

    (c + 1) / (n + 1) with c the permutations at least as extreme: never 0 (Phipson and Smyth 2010). Permutations in
    which the metric is not defined count as extreme; NaN where it is not defined of the systems themselves. A metric
    may give several values at once, (..., M); then so is this.
    """
    a_PK, b_PK = _paired(stats_a_NK, stats_b_NK, groups)
    total_a, total_b, swap_PK = a_PK.sum(axis=0), b_PK.sum(axis=0), b_PK - a_PK
    observed = np.abs(metric(total_a) - metric(total_b))
    # rounding of the sums must not turn a tie with the observed difference into "less extreme"
    least = observed - _rounding(metric, observed, a_PK, b_PK)
    rng = np.random.default_rng(seed)
    extreme = np.zeros(np.shape(observed), dtype=np.int64)
    for start in range(0, n_permutations, _CHUNK):
        size = min(_CHUNK, n_permutations - start)
        swapped_BK = rng.integers(0, 2, size=(size, len(a_PK))).astype(np.float64) @ swap_PK
        differences_B = metric(total_a + swapped_BK) - metric(total_b - swapped_BK)
        extreme += (~(np.abs(differences_B) < least)).sum(axis=0)
    p: float = _scalar(np.where(np.isnan(observed), np.nan, (extreme + 1) / (n_permutations + 1)))
    return p


def _rounding(metric: Metric, observed: np.ndarray, a_PK: np.ndarray, b_PK: np.ndarray) -> np.ndarray:
    """Return by how much rounding may change a difference, (...).

    A sum of P numbers is off by about P units of the last digit of what was added, and large numbers of either sign may
    add up to a small one: so the metric of the absolute values counts, where it is finite.
    """
    size: Any = np.zeros(np.shape(observed))
    for sums_PK in (a_PK, b_PK):
        found = [np.abs(metric(sums_PK.sum(axis=0)))]
        if (sums_PK < 0).any():
            found.append(np.abs(metric(np.abs(sums_PK).sum(axis=0))))
        size = size + np.max(np.where(np.isfinite(found), found, 0.0), axis=0)
    rounding: np.ndarray = 1e-9 * observed + (16 + len(a_PK)) * np.finfo(np.float64).eps * size
    return rounding


def bootstrap_p(differences_B: np.ndarray) -> float:
    """Return the two-sided p of a difference from its bootstrap replicates (B,): twice the share of them on the
    rarer side of 0.

    (c + 1) / (B + 1), so never 0. Replicates of exactly 0, and those in which it is not defined, count on both sides.
    """
    differences_B = np.asarray(differences_B)
    fewer = min((~(differences_B > 0)).sum(), (~(differences_B < 0)).sum())
    return min(1.0, 2 * (int(fewer) + 1) / (len(differences_B) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values by Holm's step-down method over a family of tests (Holm 1979); keys keep their
    order."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda k: p_values[k])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def _paired(
    stats_a_NK: np.ndarray, stats_b_NK: np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    if np.shape(stats_a_NK) != np.shape(stats_b_NK):
        raise ValueError(
            f"paired systems need the same samples; found {np.shape(stats_a_NK)} and {np.shape(stats_b_NK)}"
        )
    return patient_sums(*in_order(stats_a_NK, groups)), patient_sums(*in_order(stats_b_NK, groups))


def _scalar(x: Any) -> Any:
    return float(x) if np.ndim(x) == 0 else x
