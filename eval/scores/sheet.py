"""A sheet of sufficient statistics: rows are studies, columns are what the scores need to know of them.

Every score adds its columns and a function of their *sums*; intervals, subgroups and paired tests then need
nothing but the sheet. The first column counts studies, so that a mean is a ratio of sums as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.resampling import bootstrap_sums, patient_sums, percentile_interval
from eval.signature import Score, signature


@dataclass(frozen=True)
class Measure:
    """A score as a function of summed columns (..., K) -> (...)."""

    key: str
    signature: str
    of: Callable[[np.ndarray], np.ndarray]


class Sheet:
    """Columns of N studies and the measures computed from their sums. `choices` are added to every signature."""

    def __init__(self, n: int, **choices: object):
        self.n = n
        self._choices = signature("", **choices)
        self.measures: dict[str, Measure] = {}
        self._blocks: list[np.ndarray] = [np.ones((n, 1))]
        self._width = 1

    def columns(self, block_NK: np.ndarray) -> slice:
        """Add columns (N, K); returns where they stand."""
        block_NK = np.asarray(block_NK, dtype=np.float64)
        if block_NK.ndim != 2 or len(block_NK) != self.n:
            raise ValueError(f"a block of this sheet is ({self.n}, K), got {block_NK.shape}")
        start = self._width
        self._blocks.append(block_NK)
        self._width += block_NK.shape[1]
        return slice(start, self._width)

    def add(self, key: str, signature: str, of: Callable[[np.ndarray], np.ndarray], where: slice) -> None:
        """Add a measure of the columns `where`; `of` sees sums (..., K) of those columns alone."""
        if key in self.measures:
            raise ValueError(f"measure {key!r} is already on the sheet")
        self.measures[key] = Measure(key, signature + self._choices, lambda sums: of(sums[..., where]))

    def add_mean(self, key: str, signature: str, values_N: np.ndarray) -> None:
        """Add the mean of a value per study."""
        where = self.columns(np.asarray(values_N, dtype=np.float64)[:, None])
        self.measures[key] = Measure(
            key, signature + self._choices, lambda sums: sums[..., where.start] / sums[..., 0]
        )

    @property
    def stats_NK(self) -> np.ndarray:
        """Return all columns, (N, K)."""
        return np.concatenate(self._blocks, axis=1)

    def scores(
        self,
        groups: Sequence[Hashable] | None = None,
        *,
        n_boot: int = 1000,
        seed: int = 0,
        rows_N: np.ndarray | None = None,
    ) -> dict[str, Score]:
        """Return every measure with its 95 % percentile bootstrap interval over patients (`groups`).

        `rows_N` (bool) are the studies to look at, all without it; there must be one at least.
        """
        stats_NK = self.stats_NK
        if rows_N is not None:
            stats_NK = stats_NK[rows_N]
            groups = None if groups is None else [g for g, row in zip(groups, rows_N, strict=True) if row]
        sums_PK = patient_sums(stats_NK, groups)
        total_K, replicates_BK = sums_PK.sum(axis=0), bootstrap_sums(sums_PK, n_boot, seed)
        scores = {}
        for key, measure in self.measures.items():
            low, high = percentile_interval(measure.of(replicates_BK))
            value = float(measure.of(total_K))
            scores[key] = Score(key, value, low, high, len(stats_NK), measure.signature)
        return scores
