"""Reports that radiologists have rated: public sets as they are downloaded, and tables of one's own.

| name | set | known by |
|---|---|---|
| rexval | ReXVal 1.0.0 (PhysioNet) | `study_number`, `candidate_type`, ... beside `gt_report`, `radgraph`, ... |
| radevalx | RadEvalX (PhysioNet) | `report_id`, `error_type`, `one` to `eight`; reports by `study_id` |
| radeval-expert | RadEvalExpertDataset (hub) | `prediction1`, `annotation1`, ... in one row |
| rate-eval | RaTE-Eval (hub) | a reference, a candidate and a human score |
| own | any table | `study_id`, `reference`, `prediction`, and the columns that `--rating` names |

Files are found by their columns, not by their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from eval.agreement import sets
from eval.agreement.files import Need, Table, pick, tables_of
from eval.agreement.sets import CANDIDATE, CANDIDATES, CATEGORIES, REFERENCE, SCORE, SLOTS, Pairs
from eval.scores.inputs import report_text
from eval.scores.readers import ScoreError

MOST_REPORTS = 4_000
"""Memory and time grow with the square."""
LEAST_REPORTS = 3


@dataclass(frozen=True)
class Caution:
    """What to keep in mind about the agreement of metrics whose keys begin as one of `keys`."""

    mark: str
    text: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Rating:
    """What raters said of N reports, (N,); NaN where it is missing."""

    name: str
    better: Literal["higher", "lower"]
    values_N: np.ndarray


@dataclass
class Rated:
    """N rated reports. `ids` name a pair of reference and report, `studies` say which pairs belong together."""

    name: str
    title: str
    ids: list[str]
    studies: list[str]
    references: list[str]
    predictions: list[str]
    ratings: list[Rating]
    files: list[Path]
    notes: list[str] = field(default_factory=list)
    cautions: tuple[Caution, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Set:
    """A set of ratings: the tables that it needs, the first of which tells it from others, and its reader."""

    title: str
    needs: tuple[Need, ...]
    load: Callable[..., Pairs]
    better: Literal["higher", "lower"] = "lower"
    cautions: tuple[Caution, ...] = ()


SETS: dict[str, Set] = {
    "rexval": Set(
        "ReXVal",
        (
            Need(("study_number",), ("candidate_type",), ("rater_index",), ("error_category",),
                 ("clinically_significant",), ("num_errors",)),
            Need(("study_id",), ("gt_report", "ground_truth", "reference"), *((name,) for name in CANDIDATES)),
        ),
        sets.rexval,
        cautions=(
            Caution(
                "*",
                "RadCliQ's coefficients were fitted on these ratings: its agreement here is not a test of it",
                ("radcliq",),
            ),
            Caution(
                "+",
                "the four candidates of a study were chosen by these metrics, as the best by each: this favours or "
                "harms them, and tells little about the reports of a model",
                ("radgraph", "bertscore", "chexbert-vector", "bleu-"),
            ),
        ),
    ),
    "radevalx": Set(
        "RadEvalX",
        (
            Need(("report_id",), ("error_type",), *((name,) for name in CATEGORIES)),
            Need(("study_id", "report_id"), ("ground_truth", "gt_report", "reference"),
                 ("candidate_report", "prediction", "candidate")),
        ),
        sets.radevalx,
    ),
    "radeval-expert": Set(
        "RadEvalExpertDataset",
        (Need(("ground_truth",), *((f"{name}{slot}",) for name in ("prediction", "annotation") for slot in SLOTS)),),
        sets.expert,
    ),
    "rate-eval": Set("RaTE-Eval", (Need(REFERENCE, CANDIDATE, SCORE),), sets.rate_eval, "higher"),
    "own": Set("own ratings", (Need(("study_id",), REFERENCE, CANDIDATE),), sets.own),
}  # fmt: skip
"""In the order in which they are looked for."""


def load_ratings(
    path: str | Path, which: str | None = None, *, ratings: Sequence[str] = (), higher: bool = False
) -> Rated:
    """Read rated reports from a file or a folder.

    which: a name of SETS; by default the columns tell, and `ratings` mean "own".
    ratings: the columns of a table of one's own that hold ratings; `higher` says that more is better there.

    Raises ScoreError if no set is recognised, if a column, a report or a number is missing, or if there are too few or
    too many reports.
    """
    path = Path(path)
    if which is not None and which not in SETS:
        raise ScoreError(f"no set {which!r}; there are {', '.join(SETS)}")
    tables = tables_of(path)
    name = which or ("own" if ratings else _recognised(path, tables))
    if name != "own" and (ratings or higher):
        raise ScoreError("--rating and --higher-is-better are for a table of your own (--set own)")
    kind = SETS[name]
    if path.is_file() and len(kind.needs) > 1:
        # The other file lies beside it.
        tables += [t for t in tables_of(path.parent, strict=False) if t.path != path]
    chosen = [pick(need, tables, path, kind.title) for need in kind.needs]
    pairs = kind.load(*chosen, *((ratings,) if name == "own" else ()))
    better: Literal["higher", "lower"] = "higher" if higher else kind.better
    return _rated(name, kind, better, [table.path for table in chosen], pairs)


def _recognised(path: Path, tables: list[Table]) -> str:
    # RadEvalX's table of reports is like any other one.
    telling = [("rexval", need) for need in SETS["rexval"].needs]
    telling += [(name, SETS[name].needs[0]) for name in ("radevalx", "radeval-expert")]
    lacking = [(name, need, table, need.lacks(table)) for name, need in telling for table in tables]
    name, need, table, lacks = min(lacking, key=lambda found: len(found[3]) / len(found[1].columns))
    if not lacks:
        return name
    if len(lacks) <= len(need.columns) / 2:
        raise ScoreError(
            f"{path}: this is closest to {SETS[name].title}, but {table.path.name} has no column {lacks[0]}"
        )
    # A table with study ids may count errors under any name: its owner has to say.
    for name in ("own", "rate-eval"):
        if any(not SETS[name].needs[0].lacks(table) for table in tables):
            return name
    for table in tables:
        if len(lacks := SETS["rate-eval"].needs[0].lacks(table)) == 1:
            raise ScoreError(
                f"{path}: this is closest to RaTE-Eval, but {table.path.name} has no column {lacks[0]}; it has "
                f"{', '.join(table.columns)}"
            )
    raise ScoreError(
        f"{path}: not a set of ratings that is known by its columns; {tables[0].path.name} has the columns "
        f"{', '.join(tables[0].columns) or 'none'}. Accepted are {', '.join(SETS)}; one of your own has study_id, "
        "reference, prediction, and ratings that --rating names"
    )


def _rated(
    name: str, kind: Set, better: Literal["higher", "lower"], files: list[Path], pairs: Pairs
) -> Rated:
    """Leave out what has no reference or no rating, and say so."""
    where = ", ".join(path.name for path in files)
    if twice := [key for key, n in Counter(pairs.ids).items() if n > 1]:
        raise ScoreError(f"{where}: the report {twice[0]!r} stands there twice")
    read = [report_text(value) for value in pairs.references]
    written = [report_text(value) for value in pairs.predictions]
    values = {rating: np.array(found, np.float64) for rating, found in pairs.ratings.items()}
    whole_N = np.array([wrong is None for _, wrong in read], dtype=bool)
    rated_N = np.any([~np.isnan(found) for found in values.values()], axis=0) if values else whole_N & False
    rows = np.flatnonzero(whole_N & rated_N)
    notes = list(pairs.notes)
    for kept_N, said in ((whole_N, "a reference"), (rated_N, "a rating")):
        if lost := int((~kept_N).sum()):
            notes.append(f"{lost} of {len(kept_N)} reports without {said} are left out")
    if empty := sum(not written[i][0] for i in rows):
        notes.append(f"{empty} candidate reports are empty and are scored as empty reports")
    for rating, found in values.items():
        if (lost := int(np.isnan(found[rows]).sum())) and len(values) > 1:
            notes.append(f"{lost} reports with another rating have none of {rating!r}")
    if len(rows) < LEAST_REPORTS:
        raise ScoreError(f"{where}: {len(rows)} rated reports; at least {LEAST_REPORTS} are needed")
    if len(rows) > MOST_REPORTS:
        raise ScoreError(
            f"{where}: {len(rows)} rated reports; at most {MOST_REPORTS:,} are taken, for time grows with the square: "
            "draw a sample of studies"
        )
    return Rated(
        name, kind.title, [pairs.ids[i] for i in rows], [pairs.studies[i] for i in rows],
        [read[i][0] for i in rows], [written[i][0] for i in rows],
        [Rating(rating, better, found[rows]) for rating, found in values.items()], files, notes, kind.cautions,
    )  # fmt: skip
