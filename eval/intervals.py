"""Confidence intervals over patients, of scores that are functions of summed statistics (`eval.resampling`).

The standard error is the jackknife's: every patient is left out once. It sees a condition that hangs on one patient,
which a percentile bootstrap does not, and needs no random draws. How it becomes an interval depends on the score:

| kind | scores | interval |
|---|---|---|
| `share` | each unit counts or does not: rates, precision, sensitivity | Wilson's, with the effective number of units |
| `f1` | 2 tp / (2 tp + fp + fn) of one condition | that of the share tp / (tp + fp + fn), mapped to F1 |
| `fraction` | any other score in [0, 1] | Student's t on the logit scale |
| `number` | scores without such bounds | Student's t |

`benchmarks/coverage.py` measures how often they hold the true value, and from how many patients and positives on.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from eval.resampling import Metric, patient_sums

NOTHING = 1e-6
"""As good as 0, or as 1 less this as good as 1."""
Kind = Literal["share", "f1", "fraction", "number"]
LEAST_PATIENTS = 5
"""With fewer, an interval spans half of the scale and more."""
ALIKE = "equal for all patients"
NONE = "no positives"
"""Why there is no interval of a score that is 0 by definition where neither side has a condition."""
LEAST_POSITIVES = 5
"""With fewer, an interval of F1 spans more than half of the scale; with one it does not hold for a strong system."""


class Jackknife:
    """The P patients of a set, each of them left out in turn.

    `sums_PK` are sums of statistics per patient, `studies_P` how many studies each has (equally many without it),
    `distinct_PK` the sums over those of its studies that differ (all without it).
    """

    def __init__(
        self, sums_PK: np.ndarray, studies_P: np.ndarray | None = None, distinct_PK: np.ndarray | None = None
    ):
        self.sums_PK = np.asarray(sums_PK, dtype=np.float64)
        self.total_K: np.ndarray = self.sums_PK.sum(axis=0)
        self.rest_PK: np.ndarray = self.total_K - self.sums_PK
        self.patients = len(self.sums_PK)
        studies_P = np.ones(self.patients) if studies_P is None else np.asarray(studies_P, dtype=np.float64)
        self.distinct_PK = self.sums_PK if distinct_PK is None else np.asarray(distinct_PK, dtype=np.float64)
        # Kish's effective number: 50 studies of one patient and one of each of 9 others are not worth 10 patients.
        self.effective = float(studies_P.sum() ** 2 / (studies_P**2).sum())

    def quantile(self, level: float = 0.95) -> float:
        """Return the quantile of Student's t for a two-sided interval, with as many degrees of freedom as there are
        effective patients less one."""
        return _student(max(self.effective - 1, 1.0), level)

    def values(self, of: Metric) -> np.ndarray:
        """Return the score without each patient, (P, ...); the score of all where it is not defined without one."""
        value = of(self.total_K)
        values_P = of(self.rest_PK)
        return np.where(np.isnan(values_P), value, values_P)

    def interval(
        self,
        of: Metric,
        kind: Kind = "number",
        *,
        units: Metric | None = None,
        positives: Any = None,
        level: float = 0.95,
    ) -> tuple[float, float, str]:
        """Return the bounds of the interval of a score and "", or NaN, NaN and why no interval is given.

        `units` (for `share` and `f1`) gives the number of units from sums: the denominator of the share, for F1
        tp + fp + fn. `positives` is how many positives the score stands on, or how many each of its conditions has,
        (C,), NaN for one that is not in the mean. Raises ValueError for a share without `units`.
        """
        value = float(of(self.total_K))
        why = "" if value == value else "not defined"
        why = why or too_few_patients(self.patients) or too_few_positives(positives)
        if why:
            return float("nan"), float("nan"), why
        if kind in ("share", "f1"):
            if units is None:
                raise ValueError(f"an interval of kind {kind!r} needs `units`")
            low, high = self._share(of, units, kind == "f1", level)
            return low, high, ""
        se = float(standard_error(self.values(of)))
        t = self.quantile(level)
        # BLEU of captioning adds tiny numbers, so that a perfect text is not quite 1.
        if kind == "fraction" and abs(value - (end := round(value))) < NOTHING:
            # Every patient has the same, 0 or 1: each is one trial.
            low, high = wilson(float(end), self.effective, t)
            return min(low, value), max(high, value), ""
        if se <= 1e-12 * abs(value):
            return float("nan"), float("nan"), ALIKE
        if kind == "number":
            return value - t * se, value + t * se, ""
        centre, half = np.log(value / (1 - value)), t * se / (value * (1 - value))
        return _sigmoid(centre - half), _sigmoid(centre + half), ""

    def _share(self, of: Metric, units: Metric, f1: bool, level: float) -> tuple[float, float]:
        """Return Wilson's bounds with the number of independent units that would have the jackknife's error."""
        value, values_P = float(of(self.total_K)), self.values(of)
        if f1:
            # F1 = 2 J / (1 + J), where J is the share of tp among tp + fp + fn.
            value, values_P = value / (2 - value), values_P / (2 - values_P)
        units_P = np.asarray(units(self.sums_PK))
        se = float(standard_error(values_P))
        # Where all units are alike the error is 0, and each patient that has any is one unit.
        alike = not 0 < value < 1 or not se
        n = float((units_P > 0).sum()) if alike else value * (1 - value) / se**2
        # Equal studies of a patient are no more units than one of them.
        low, high = wilson(value, min(n, float(units(self.distinct_PK).sum())), self.quantile(level))
        return (2 * low / (1 + low), 2 * high / (1 + high)) if f1 else (low, high)


def too_few_patients(patients: int) -> str:
    """Say that there are too few patients for an interval; "" if there are enough."""
    return f"fewer than {LEAST_PATIENTS} patients" if patients < LEAST_PATIENTS else ""


def too_few_positives(positives: Any) -> str:
    """Say that there are too few positives, of the score or of a condition in its mean; "" if there are enough."""
    if positives is None:
        return ""
    counts = np.asarray(positives, dtype=np.float64)
    rare, counted = int((counts < LEAST_POSITIVES).sum()), int((~np.isnan(counts)).sum())
    if not counted:
        return NONE
    if not rare:
        return ""
    few = f"fewer than {LEAST_POSITIVES} positives"
    return few if not counts.ndim else f"{rare} of {counted} conditions with {few}"


def brief(why: str) -> str:
    """Return why there is no interval as tables say it: conditions with too few positives are "rare"."""
    few = f"fewer than {LEAST_POSITIVES} positives"
    return re.sub(rf"(\d+) of \d+ conditions with {few}", r"\1 rare", why).replace(few, "rare")


RARE = f"rare: fewer than {LEAST_POSITIVES} positives, and no interval"
"""What `brief` means."""


def standard_error(values_P: np.ndarray) -> np.ndarray:
    """Return the jackknife standard error (...) from values without each of P patients, (P, ...)."""
    patients = len(values_P)
    squares = (values_P - values_P.mean(axis=0)) ** 2
    se: np.ndarray = np.sqrt((patients - 1) / patients * squares.sum(axis=0))
    return se


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Return the bounds of Wilson's interval of a share among `n` units (Wilson 1927), for the quantile `z`."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)


def paired_interval(
    metric: Metric,
    stats_a_NK: np.ndarray,
    stats_b_NK: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
) -> tuple[Any, Any, Any]:
    """Return metric(a) - metric(b) and its interval: Student's t with the jackknife over patients.

    A metric may give several values at once, (..., M); then so are these. The interval is NaN with fewer than
    LEAST_PATIENTS patients, and where all patients have the same difference. Raises ValueError if the two have not the
    same samples.
    """
    if np.shape(stats_a_NK) != np.shape(stats_b_NK):
        raise ValueError(
            f"paired systems need the same samples; found {np.shape(stats_a_NK)} and {np.shape(stats_b_NK)}"
        )
    k = np.shape(stats_a_NK)[1]
    ones_N1 = np.ones((len(stats_a_NK), 1))
    sums_PK = patient_sums(np.concatenate([stats_a_NK, stats_b_NK, ones_N1], axis=1), groups)
    both = Jackknife(sums_PK, sums_PK[:, -1])

    def gap(sums: np.ndarray) -> np.ndarray:
        return metric(sums[..., :k]) - metric(sums[..., k : 2 * k])

    difference = np.asarray(gap(both.total_K))
    half = np.full_like(difference, np.nan, dtype=np.float64)
    if not too_few_patients(both.patients):
        se = standard_error(both.values(gap))
        size = np.abs(metric(both.total_K[:k])) + np.abs(metric(both.total_K[k : 2 * k]))
        half = np.where(se > 1e-12 * size, both.quantile(level) * se, np.nan)
    bounds = difference, difference - half, difference + half
    return tuple(float(x) for x in bounds) if not difference.ndim else bounds  # type: ignore[return-value]


def _sigmoid(x: float) -> float:
    # Two forms, since exp overflows on one side of each.
    small = float(np.exp(-abs(x)))
    return 1 / (1 + small) if x > 0 else small / (1 + small)


@cache
def _student(freedom: float, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))
