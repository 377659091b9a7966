"""A sheet of sufficient statistics: rows are studies, columns are what the scores need to know of them.

Every score adds its columns and a function of their *sums*; intervals (`eval.intervals`), subgroups and paired tests
then need nothing but the sheet. The first column counts studies, so that a mean is a ratio of sums as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from eval.intervals import Jackknife, Kind
from eval.resampling import patient_sums
from eval.signature import Score, signature

Better = Literal["higher", "lower", "neither"]
"""Which values are better; counts and lengths are neither."""
Of = Callable[[np.ndarray], np.ndarray]
"""A function of summed columns (..., K) -> (...)."""


@dataclass(frozen=True)
class Measure:
    """A score as a function of the summed columns of a sheet, and how it is shown.

    `kind` says how its interval is made (a count has none), and `units` gives the units of a share (`eval.intervals`).
    `studies` gives how many studies count, `over` of how many things (of `whole`) a mean is taken, `positives` how many
    positives it stands on, or each of its conditions (..., C); all are functions of sums, too. `each` is the value of a
    single study, where that is another formula than `of`. `chosen` makes `of` for a group whose total sums are known:
    which conditions have support is decided on the group, not anew in each replicate.
    """

    key: str
    signature: str
    of: Of
    title: str
    better: Better = "higher"
    headline: bool = False
    family: str = ""
    kind: Kind | Literal["count"] = "fraction"
    units: Of | None = None
    studies: Of | None = None
    over: Of | None = None
    whole: int = 0
    positives: Of | None = None
    each: Of | None = None
    chosen: Callable[[np.ndarray], Of] | None = None
    # Whether `whole` is the number of studies at hand, of a subgroup say.
    whole_of_rows: bool = False
    # Its own columns, and `of` of them alone.
    where: slice = field(default_factory=lambda: slice(0))
    own: Of | None = None

    def at(self, total_K: np.ndarray) -> Of:
        """Return the function for a group with these total sums."""
        return self.chosen(total_K) if self.chosen else self.of


@dataclass(frozen=True)
class SheetScore(Score):
    """A number of a sheet, with its heading, which way is better, and what it stands on.

    `over` says of how many things a mean is taken ("3 of 14"); `no_interval` says why there is none.
    """

    title: str = ""
    better: Better = "higher"
    headline: bool = False
    family: str = ""
    over: str = ""
    no_interval: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the score as a dict for JSON; NaN becomes None, and what says nothing is left out."""
        more = {"title": self.title, "better": self.better, "headline": self.headline}
        said = {"over": self.over, "no_interval": self.no_interval}
        return {**super().to_json(), **more, **{name: text for name, text in said.items() if text}}


class FamilyFailed(Exception):
    """A family of another package failed; `family` names it."""

    def __init__(self, family: str, why: str):
        super().__init__(why)
        self.family = family


@contextmanager
def guard(family: str) -> Iterator[None]:
    """Run what belongs to a family of another package: numpy's warnings are not the user's.

    Raises FamilyFailed for whatever is raised: it costs this family, and no others.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    except FamilyFailed:
        raise
    # One may even end the program.
    except (Exception, SystemExit) as error:
        raise FamilyFailed(family, f"{type(error).__name__}: {error}") from error


class Sheet:
    """Columns of N studies and the measures computed from their sums. `choices` are added to every signature.

    `foreign` names the families of other packages. One whose functions fail is dropped, and stands in `failed` with
    the reason.
    """

    def __init__(self, n: int, **choices: object):
        self.n = n
        self._choices = signature("", **choices)
        self.measures: dict[str, Measure] = {}
        self._blocks: list[np.ndarray] = [np.ones((n, 1))]
        self._width = 1
        # Of the measures that are being added: their family, and what their signatures say besides.
        self.family = self.more = ""
        self.foreign: set[str] = set()
        self.failed: dict[str, str] = {}

    def columns(self, block_NK: np.ndarray) -> slice:
        """Add columns (N, K); returns where they stand."""
        if np.iscomplexobj(block_NK):
            raise ValueError("complex numbers are no scores")
        block_NK = np.asarray(block_NK, dtype=np.float64)
        if block_NK.ndim != 2 or len(block_NK) != self.n:
            raise ValueError(f"a block of this sheet is ({self.n}, K), got {block_NK.shape}")
        start = self._width
        self._blocks.append(block_NK)
        self._width += block_NK.shape[1]
        return slice(start, self._width)

    def add(
        self,
        key: str,
        signature: str,
        of: Of,
        where: slice,
        *,
        title: str = "",
        better: Better = "higher",
        headline: bool = False,
        kind: Kind | Literal["count"] = "fraction",
        whole: int = 0,
        whole_of_rows: bool = False,
        chosen: Callable[[np.ndarray], Of] | None = None,
        **functions: Of | None,
    ) -> None:
        """Add a measure of the columns `where`; all its functions see sums (..., K) of those columns alone.

        `functions` are `units`, `studies`, `over`, `positives` and `each` of Measure. Raises ValueError if the key is
        there.
        """
        if key in self.measures:
            raise ValueError(f"measure {key!r} is already on the sheet")

        def here(function: Of) -> Of:
            return lambda sums: function(sums[..., where])

        self.measures[key] = Measure(
            key,
            signature + self._choices + self.more,
            here(of),
            title or key,
            better,
            headline,
            self.family,
            kind,
            whole=whole,
            whole_of_rows=whole_of_rows,
            where=where,
            own=of,
            chosen=(lambda total_K: here(chosen(total_K[where]))) if chosen else None,
            **{name: here(function) for name, function in functions.items() if function},
        )

    def add_mean(self, key: str, signature: str, values_N: np.ndarray, **shown: Any) -> None:
        """Add the mean of a value per study; studies whose value is NaN are left out. `shown` is as in `add`.

        Values in [0, 1] make a fraction, others a number, unless `kind` says otherwise.
        """
        if np.iscomplexobj(values_N):
            raise ValueError("complex numbers are no scores")
        values_N = np.asarray(values_N, dtype=np.float64)
        there_N = ~np.isnan(values_N)
        known_N = values_N[there_N]
        if len(known_N) and (known_N.min() < 0 or known_N.max() > 1):
            shown = {"kind": "number", **shown}
        where = self.columns(np.stack([np.where(there_N, values_N, 0.0), there_N], axis=1))
        self.add_ratio(key, signature, where, **shown)

    def add_ratio(self, key: str, signature: str, where: slice, **shown: Any) -> None:
        """Add the ratio of the sums of two columns, where the second counts studies; NaN where it is 0."""
        counted = {"studies": lambda sums: sums[..., 1], "units": lambda sums: sums[..., 1]}
        self.add(key, signature, ratio, where, **{**counted, **shown})

    def check(self, family: str) -> None:
        """Try the functions of a family's measures. Raises ValueError for one that gives another shape than it takes or
        an infinite number, and whatever a function raises. NaN says that a value is not defined."""
        stats_NK = self.stats_NK
        for key, measure in self.measures.items():
            if measure.family != family:
                continue
            if measure.better not in ("higher", "lower", "neither"):
                raise ValueError(f"{key}: better is {measure.better!r}; accepted are higher, lower, neither")
            total = measure.at(stats_NK.sum(axis=0))(stats_NK.sum(axis=0))
            each = (measure.each or measure.of)(stats_NK)
            if np.shape(total) != () or np.shape(each) != (self.n,):
                raise ValueError(
                    f"{key}: sums of shape (K,) and ({self.n}, K) make {np.shape(total)} and {np.shape(each)}, where "
                    f"() and ({self.n},) are wanted"
                )
            if any(np.isinf(x).any() for x in (stats_NK[:, measure.where], total, each)):
                raise ValueError(f"{key}: a value is infinite; NaN leaves a study out")

    def drop(self, family: str) -> None:
        """Remove the measures of a family."""
        self.measures = {k: m for k, m in self.measures.items() if m.family != family}
        self.family = self.more = ""

    def fail(self, error: FamilyFailed) -> None:
        """Remove the measures of a family that failed, and remember why."""
        self.drop(error.family)
        self.failed[error.family] = str(error)

    def guarded(self, measure: Measure, function: Of) -> Of:
        """Return a function of a measure which raises FamilyFailed if it fails and belongs to another package, and for
        another shape than it takes."""
        if measure.family not in self.foreign:
            return function

        def safe(sums: np.ndarray) -> np.ndarray:
            with guard(measure.family):
                found = np.asarray(function(sums), dtype=np.float64)
                if found.shape != np.shape(sums)[:-1]:
                    raise ValueError(f"{measure.key}: sums of shape {np.shape(sums)} make {found.shape}")
                return found

        return safe

    @property
    def stats_NK(self) -> np.ndarray:
        """Return all columns, (N, K)."""
        return np.concatenate(self._blocks, axis=1)

    def scores(
        self,
        groups: Sequence[Hashable] | None = None,
        *,
        intervals: bool = True,
        rows_N: np.ndarray | None = None,
    ) -> dict[str, SheetScore]:
        """Return every measure with its 95 % interval over patients (`groups`), or without any.

        `rows_N` (bool) are the studies to look at, all without it; there must be one at least.
        """
        stats_NK = self.stats_NK
        if rows_N is not None:
            stats_NK = stats_NK[rows_N]
            groups = None if groups is None else [g for g, row in zip(groups, rows_N, strict=True) if row]
        sums_PK = patient_sums(stats_NK, groups)
        # The first column counts studies.
        jackknife = Jackknife(sums_PK, sums_PK[:, 0], patient_sums(_once(stats_NK, groups), groups))
        found = {}
        for key, measure in list(self.measures.items()):
            if measure.family not in self.foreign:
                found[key] = _scored(measure, jackknife, intervals)
            elif key in self.measures:
                try:
                    with guard(measure.family):
                        found[key] = _scored(measure, jackknife, intervals)
                except FamilyFailed as error:
                    self.fail(error)
        return {key: score for key, score in found.items() if key in self.measures}


def _once(stats_NK: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Return the columns with 0 for a study that equals an earlier one of its patient in every column."""
    if groups is None or len(set(groups)) == len(groups):
        return stats_NK
    seen: set[tuple[Hashable, bytes]] = set()
    first_N = np.ones(len(stats_NK), bool)
    for i, group in enumerate(groups):
        row = group, stats_NK[i].tobytes()
        first_N[i] = row not in seen
        seen.add(row)
    return np.where(first_N[:, None], stats_NK, 0.0)


def _scored(measure: Measure, jackknife: Jackknife, with_interval: bool) -> SheetScore:
    total_K = jackknife.total_K
    of = measure.at(total_K)
    value = float(of(total_K))
    studies = int(total_K[0]) if measure.studies is None else round(float(measure.studies(total_K)))
    whole = int(total_K[0]) if measure.whole_of_rows else measure.whole
    over = f"{round(float(measure.over(total_K)))} of {whole}" if measure.over else ""
    low, high, why = float("nan"), float("nan"), ""
    if with_interval and value == value and measure.kind != "count":
        positives = None if measure.positives is None else measure.positives(total_K)
        kind = measure.kind if 0 <= value <= 1 else "number"
        low, high, why = jackknife.interval(of, kind, units=measure.units, positives=positives)
    return SheetScore(
        measure.key, value, low, high, studies, measure.signature, measure.title, measure.better,
        measure.headline, measure.family, over, why,
    )  # fmt: skip


def ratio(sums: np.ndarray) -> np.ndarray:
    """Return the ratio (...) of two summed columns (..., 2); NaN where the second is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)
