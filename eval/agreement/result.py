"""How well metrics agree with radiologists: coefficients with intervals over studies, and tests of their differences.

**Sign.** A positive coefficient means that the metric ranks reports as the radiologists do: error counts, and metrics
of which less is better, are turned round first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from eval.agreement.coefficients import COVERED, LEAST_STUDIES, Coefficients
from eval.agreement.metrics import Metric
from eval.agreement.ratings import Rated, Rating
from eval.resampling import holm, percentile_interval
from eval.scores.readers import ScoreError
from eval.scores.registry import NotComputed
from eval.scores.result import is_kind, write_whole
from eval.signature import number

KIND = "cxr-agreement"
CONVENTION = "positive: the metric ranks reports as the radiologists do"
INTERVAL = "95 % percentile bootstrap over studies"
DIGITS = 12
NOTHING = 1e-15


@dataclass(frozen=True)
class Agreed:
    """One metric and one rating. `difference` is its tau less the best one's, of the reports that both are defined of;
    `p` tests that, `p_holm` is adjusted for all pairs of metrics."""

    metric: Metric
    tau: float
    tau_interval: tuple[float, float]
    rho: float
    rho_interval: tuple[float, float]
    reports: int
    studies: int
    undefined: int
    difference: float = float("nan")
    difference_interval: tuple[float, float] = (float("nan"), float("nan"))
    p: float = float("nan")
    p_holm: float = float("nan")


@dataclass(frozen=True)
class Pair:
    """The difference of two metrics' tau on the reports that both are defined of."""

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float


@dataclass
class OfRating:
    """What was found for one rating; metrics by falling tau, those without one last."""

    rating: Rating
    reports: int
    studies: int
    metrics: list[Agreed]
    pairs: list[Pair]
    best: str


@dataclass
class Agreement:
    """All ratings of a set; `eval.agreement.tables` shows them."""

    rated: Rated
    ratings: list[OfRating]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    not_computed: list[NotComputed] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object (schema 1): every number and no report; what is not defined is null."""
        metrics = {a.metric.key: a.metric for of in self.ratings for a in of.metrics}
        return {
            "schema": 1,
            "kind": KIND,
            "set": self.rated.name,
            "title": self.rated.title,
            "files": [path.name for path in self.rated.files],
            "reports": len(self.rated),
            "studies": len(set(self.rated.studies)),
            "settings": self.settings,
            "notes": self.notes,
            "warnings": [c.text for c in self.rated.cautions],
            "ratings": [_of_rating(of) for of in self.ratings],
            "not_computed": [m.to_json() for m in self.not_computed],
            "values": [
                {
                    "id": key,
                    "study": self.rated.studies[i],
                    "ratings": {r.name: number(r.values_N[i]) for r in self.rated.ratings},
                    "metrics": {name: number(m.values_N[i]) for name, m in metrics.items()},
                }
                for i, key in enumerate(self.rated.ids)
            ],
        }

    def save(self, path: Path) -> None:
        """Write `to_json()`, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def _of_rating(of: OfRating) -> dict[str, Any]:
    def interval(bounds: tuple[float, float]) -> list[float | None]:
        return [number(bound) for bound in bounds]

    return {
        "name": of.rating.name,
        "better": of.rating.better,
        "reports": of.reports,
        "studies": of.studies,
        "best": of.best or None,
        "metrics": [
            {
                "name": a.metric.key, "title": a.metric.title, "better": a.metric.better,
                "signature": a.metric.signature, "tau_b": number(a.tau), "tau_b_interval": interval(a.tau_interval),
                "spearman": number(a.rho), "spearman_interval": interval(a.rho_interval), "reports": a.reports,
                "studies": a.studies, "undefined": a.undefined, "difference": number(a.difference),
                "difference_interval": interval(a.difference_interval), "p": number(a.p), "p_holm": number(a.p_holm),
            }
            for a in of.metrics
        ],
        "differences": [
            {
                "first": p.first, "second": p.second, "difference": number(p.difference),
                "interval": interval(p.interval), "p": number(p.p), "p_holm": number(p.p_holm),
            }
            for p in of.pairs
        ],
    }  # fmt: skip


def is_agreement(path: Path) -> bool:
    """Tell whether the file is what `cxr agree --out` writes. Never raises; a pipe is not opened."""
    return is_kind(path, KIND)


def agree(
    rated: Rated,
    metrics: Sequence[Metric],
    *,
    n_boot: int = 1000,
    seed: int = 0,
    notes: Sequence[str] = (),
    not_computed: Sequence[NotComputed] = (),
) -> Agreement:
    """Return how well metrics agree with every rating of a set.

    Intervals are percentiles of `n_boot` replicates over studies. The test of a difference divides it by its standard
    deviation over the replicates and asks Student's t with studies - 1 degrees of freedom; Holm adjusts for all pairs
    of metrics, since which one is the best is known only afterwards. With fewer than 10 studies there are neither.

    Raises ScoreError if there is no metric, or two of one name.
    """
    names = [metric.key for metric in metrics]
    if not names:
        raise ScoreError("there is no metric to compare with the ratings")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ScoreError(f"there are two metrics called {twice[0]!r}")
    settings = {
        "convention": CONVENTION, "coefficient": "Kendall tau-b, Spearman", "interval": INTERVAL, "n_boot": n_boot,
        "seed": seed, "p": "t of the bootstrap standard error, studies - 1 degrees of freedom",
        "p_adjusted": "Holm over all pairs of metrics",
    }  # fmt: skip
    found = [_agree_with(rating, rated.studies, metrics, n_boot, seed) for rating in rated.ratings]
    return Agreement(rated, found, settings, [*rated.notes, *notes], list(not_computed))


def _agree_with(
    rating: Rating, studies: Sequence[str], metrics: Sequence[Metric], n_boot: int, seed: int
) -> OfRating:
    rated_N = ~np.isnan(rating.values_N)
    names_N = np.array(studies)[rated_N]
    turned_N = rating.values_N[rated_N] * (-1 if rating.better == "lower" else 1)
    coefficients = Coefficients(turned_N, names_N.tolist(), n_boot=n_boot, seed=seed)
    values = [_rounded(m.values_N[rated_N]) * (-1 if m.better == "lower" else 1) for m in metrics]
    there = [~np.isnan(v) for v in values]
    agreed: list[Agreed] = []
    taus: dict[tuple[int, bytes], tuple[np.ndarray, np.ndarray]] = {}
    for at, metric in enumerate(metrics):
        rows_N = there[at]
        tau, rho = taus[at, rows_N.tobytes()] = coefficients.of(values[at], rows_N)
        n, undefined = len(set(names_N[rows_N])), int((~rows_N).sum())
        bounds = _interval(tau, n), _interval(rho, n)
        agreed.append(
            Agreed(
                metric, float(tau[0]), bounds[0], float(rho[0]), bounds[1], int(rows_N.sum()), n, undefined
            )
        )
    defined = [at for at, a in enumerate(agreed) if a.tau == a.tau]
    wide = [at for at in defined if agreed[at].reports >= COVERED * len(names_N)] or defined
    best = max(wide, key=lambda at: agreed[at].tau, default=-1)

    def tau_of(at: int, rows_N: np.ndarray) -> np.ndarray:
        """Return the tau of a metric on reports that another one is defined of, too."""
        if (at, rows_N.tobytes()) not in taus:
            taus[at, rows_N.tobytes()] = coefficients.of(values[at], rows_N)
        return taus[at, rows_N.tobytes()][0]

    found = {}
    for a, b in combinations(defined, 2):
        both_N = there[a] & there[b]
        n = len(set(names_N[both_N]))
        difference = tau_of(a, both_N) - tau_of(b, both_N)
        found[a, b] = float(difference[0]), _interval(difference, n), _p(difference, n)
    adjusted = holm({f"{a} {b}": p for (a, b), (*_, p) in found.items() if p == p})
    pairs = {
        (a, b): Pair(metrics[a].key, metrics[b].key, *numbers, adjusted.get(f"{a} {b}", float("nan")))
        for (a, b), numbers in found.items()
    }
    rows = [
        _from_best(a, pairs.get((min(at, best), max(at, best))), 1 if at < best else -1)
        for at, a in enumerate(agreed)
    ]
    rows.sort(key=lambda a: -a.tau if a.tau == a.tau else np.inf)
    name = metrics[best].key if best >= 0 else ""
    return OfRating(rating, len(names_N), len(set(names_N)), rows, list(pairs.values()), name)


def _rounded(values_N: np.ndarray) -> np.ndarray:
    """Round to DIGITS digits: values that are equal but for the order of additions are ties.

    What is that small beside the greatest is 0, such as the tiny number that BLEU of captioning adds.
    """
    rounded_N = np.array([float(f"{value:.{DIGITS - 1}e}") for value in values_N])
    known_N = rounded_N[np.isfinite(rounded_N)]
    rounded_N[np.abs(rounded_N) < NOTHING * np.abs(known_N).max(initial=0)] = 0.0
    # -0.0, turned round or not, is 0.
    return rounded_N + 0.0


def _from_best(a: Agreed, pair: Pair | None, sign: int) -> Agreed:
    """Return a metric with its difference from the best; `sign` is -1 if the pair has the best first."""
    if pair is None:
        return a
    low, high = sorted(sign * bound for bound in pair.interval)
    return replace(
        a, difference=sign * pair.difference, difference_interval=(low, high), p=pair.p, p_holm=pair.p_holm
    )


def _interval(values: np.ndarray, studies: int) -> tuple[float, float]:
    """Return the interval of a coefficient or a difference (1 + n_boot,), the first of which is its value."""
    if studies < LEAST_STUDIES or values[0] != values[0]:
        return float("nan"), float("nan")
    low, high = percentile_interval(values[1:])
    return float(low), float(high)


def _p(difference: np.ndarray, studies: int) -> float:
    """Return the two-sided p of a difference (1 + n_boot,) by the standard deviation of its replicates."""
    replicates = difference[1:][~np.isnan(difference[1:])]
    if studies < LEAST_STUDIES or len(replicates) < 2 or difference[0] != difference[0]:
        return float("nan")
    deviation = float(replicates.std(ddof=1))
    if deviation < 1e-12:
        return 1.0 if abs(difference[0]) < 1e-12 else float("nan")
    from scipy.stats import t

    return float(2 * t.sf(abs(difference[0]) / deviation, studies - 1))
