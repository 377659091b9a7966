"""Two sets of predictions for the same studies, paired: differences with intervals, permutation tests, Holm."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from eval.intervals import ALIKE, NOTHING, paired_interval, too_few_patients, too_few_positives
from eval.resampling import holm, paired_permutation
from eval.scores.inputs import POLICIES
from eval.scores.sheet import Better, FamilyFailed, Sheet
from eval.signature import Score, number

PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Difference:
    """A score of both, the first minus the second with its 95 % interval, and p before and after Holm.

    `no_interval` says why there is none.
    """

    name: str
    value: float
    other: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    title: str = ""
    better: Better = "higher"
    no_interval: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the difference as a dict for JSON; NaN becomes None."""
        return {
            "name": self.name,
            "title": self.title,
            "better": self.better,
            "value": number(self.value),
            "other": number(self.other),
            "difference": number(self.difference),
            "interval": [number(self.low), number(self.high)],
            "p": number(self.p),
            "p_holm": number(self.p_holm),
            **({"no_interval": self.no_interval} if self.no_interval else {}),
        }


@dataclass(frozen=True)
class Comparison:
    """Hold what `score(..., compare=OTHER)` found."""

    other: str  # what it was compared with
    scores: Mapping[str, Score]  # of the other predictions
    differences: list[Difference]
    problems: dict[str, list[str]]  # of the other predictions
    n_permutations: int = PERMUTATIONS

    def to_json(self) -> dict[str, Any]:
        """Return settings, differences, scores and problems of the inputs as a dict for JSON."""
        return {
            "other": self.other,
            "n_permutations": self.n_permutations,
            "p_adjusted": "Holm",
            "differences": [d.to_json() for d in self.differences],
            "scores": [s.to_json() for s in self.scores.values()],
            "inputs": {
                kind: {"count": len(ids), "policy": POLICIES[kind], "study_ids": ids}
                for kind, ids in self.problems.items()
            },
        }


def differences(
    sheet: Sheet,
    other: Sheet,
    keys: Sequence[str],
    patients: Sequence[Hashable],
    *,
    seed: int = 0,
    n_permutations: int = PERMUTATIONS,
    intervals: bool = True,
) -> list[Difference]:
    """Return the difference of every key, paired by patient: both systems see the same drawn patients, and
    are swapped within patients.

    p has the form (c + 1) / (n + 1) and is adjusted by Holm over `keys`. A family of another package whose functions
    fail is dropped from `sheet`, and so are its keys.
    """
    while True:
        keys = [key for key in keys if key in sheet.measures and key in other.measures]
        measures = [sheet.measures[key] for key in keys]
        # Each measure's own columns side by side: the sheets may hold other things besides, in other places.
        a_NK, b_NK = (
            np.concatenate(
                [np.zeros((s.n, 0)), *(s.stats_NK[:, s.measures[key].where] for key in keys)], axis=1
            )
            for s in (sheet, other)
        )
        own = [sheet.guarded(m, m.own or m.of) for m in measures]
        ends = np.cumsum([m.where.stop - m.where.start for m in measures])

        def metric(sums: np.ndarray, own: Any = own, ends: np.ndarray = ends) -> np.ndarray:
            parts = np.split(sums, ends[:-1], axis=-1)
            return np.stack([of(part) for of, part in zip(own, parts, strict=True)], axis=-1)

        if not keys:
            return []
        try:
            # Numbers of another package may be too large to be squared.
            quiet: Literal["ignore"] | None = "ignore" if sheet.foreign else None
            with np.errstate(over=quiet, invalid=quiet):
                difference, low, high = paired_interval(metric, a_NK, b_NK, patients)
                p = paired_permutation(metric, a_NK, b_NK, patients, n_permutations=n_permutations, seed=seed)
                values, others = metric(a_NK.sum(axis=0)), metric(b_NK.sum(axis=0))
            break
        except FamilyFailed as error:
            sheet.fail(error)
    why = [""] * len(keys)
    if intervals:
        totals = [s.stats_NK.sum(axis=0) for s in (sheet, other)]
        few = too_few_patients(len(set(patients)))
        for i, key in enumerate(keys):
            both = list(zip((sheet.measures[key], other.measures[key]), totals, strict=True))
            rare = [too_few_positives(m.positives(total)) if m.positives else "" for m, total in both]
            # Where a score has no interval its difference has none.
            why[i] = few or rare[0] or rare[1]
            if not why[i] and np.isfinite(difference[i]) and not np.isfinite(low[i]):
                why[i] = ALIKE
            shares = measures[i].kind in ("share", "f1", "fraction")
            if shares and max(abs(values[i]), abs(others[i])) < 1 + NOTHING:
                most = max(1.0, abs(difference[i]))
                low[i], high[i] = np.clip((low[i], high[i]), -most, most)
    # One for each of `keys`.
    unknown_M = np.array([not intervals or bool(reason) for reason in why])
    low, high = (np.where(unknown_M, np.nan, bounds) for bounds in (low, high))
    tested = {key: float(x) for key, x in zip(keys, np.atleast_1d(p), strict=True) if x == x}
    adjusted = holm(tested)
    nan = float("nan")
    return [
        Difference(
            key, float(values[i]), float(others[i]), float(difference[i]), float(low[i]), float(high[i]),
            tested.get(key, nan), adjusted.get(key, nan), measures[i].title, measures[i].better, why[i],
        )
        for i, key in enumerate(keys)
    ]  # fmt: skip


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with p adjusted by Holm over all their scores together."""
    p = {f"{i} {d.name}": d.p for i, found in enumerate(comparisons) for d in found.differences if d.p == d.p}
    over_all = holm(p)
    return [
        replace(
            found,
            differences=[
                replace(d, p_holm=over_all.get(f"{i} {d.name}", float("nan"))) for d in found.differences
            ],
        )
        for i, found in enumerate(comparisons)
    ]
