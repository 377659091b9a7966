"""How the rows of each set of ratings become pairs of reports with numbers.

The forms are those of the sets' documentation. RaTE-Eval's names of columns and the annotation cells of
RadEvalExpertDataset could not be seen, so their readers take several forms. What cannot be read is missing, never zero.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.agreement.files import Row, Table, blank, count_of, number_of, plain, text_of
from eval.scores.readers import PREDICTED, REFERENCES, ScoreError

NAN = float("nan")


@dataclass
class Pairs:
    """Pairs as a loader finds them; `ratings` has a list of values for each name."""

    ids: list[str] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)
    predictions: list[Any] = field(default_factory=list)
    ratings: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def add(self, key: str, study: str, reference: Any, prediction: Any, **ratings: float) -> None:
        """Add a pair; an underscore in the name of a rating stands for a space."""
        self.ids.append(key)
        self.studies.append(study)
        self.references.append(reference)
        self.predictions.append(prediction)
        for name, value in ratings.items():
            self.ratings[name.replace("_", " ")].append(value)


# --- ReXVal -----------------------------------------------------------------------------------------------------------

CANDIDATES = ("radgraph", "bertscore", "s_emb", "bleu")


def rexval(errors: Table, reports: Table) -> Pairs:
    """Read ReXVal: counts by rater and category, four candidates a study. Raises ScoreError."""
    pairs = Pairs()
    row_of, written = _numbered(errors, "study_number", reports, pairs.notes)
    # (row, candidate) -> rater -> (category, significant) -> errors; None where the count is blank
    counted: dict[tuple[int, str], dict[str, dict[tuple[str, bool], float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in errors.rows:
        candidate = text_of(row, "candidate_type")
        if candidate not in CANDIDATES:
            raise ScoreError(f"{row.place}: candidate_type must be one of {', '.join(CANDIDATES)}")
        reading = counted[row_of[text_of(row, "study_number")], candidate][text_of(row, "rater_index")]
        cell = (text_of(row, "error_category"), _truth(row, "clinically_significant"))
        if cell in reading:
            raise ScoreError(
                f"{row.place}: the same rater counts category {cell[0]} of this report a second time"
            )
        reading[cell] = count_of(row, "num_errors")
    readings = [reading for raters in counted.values() for reading in raters.values()]
    cells = {cell for reading in readings for cell in reading}
    # A file that holds no zero leaves them out; in any other a cell that is not there is missing.
    sparse = not any(0 in reading.values() for reading in readings)
    if sparse:
        pairs.notes.append("no count is 0: categories that a rater does not list count as no errors")
    left_out = 0
    for at, report in enumerate(reports.rows):
        for candidate in CANDIDATES:
            sums = []
            for reading in counted.get((at, candidate), {}).values():
                if any(n != n for n in reading.values()) or not (sparse or reading.keys() == cells):
                    left_out += 1
                    continue
                both = [sum(n for (_, grave), n in reading.items() if grave or every) for every in (1, 0)]
                sums.append(both)
            errors_2 = np.mean(sums, axis=0) if sums else (NAN, NAN)
            pairs.add(
                f"{written[at]}/{candidate}", written[at], report.get("gt_report"), report.get(candidate),
                errors=float(errors_2[0]), significant_errors=float(errors_2[1]),
            )  # fmt: skip
    raters = len({rater for found in counted.values() for rater in found})
    pairs.notes.append(f"errors of a report: summed over categories, mean of up to {raters} raters")
    if left_out:
        pairs.notes.append(f"{left_out} readings with missing counts are left out of these means")
    return pairs


def _numbered(
    counts: Table, column: str, reports: Table, notes: list[str]
) -> tuple[dict[str, int], list[str]]:
    """Find which row of the reports a number of the counts means. Returns number -> row, and each row's own number.

    Numbers are the reports' ids if all of them are; else rows, from 1 if that is the least, else from 0. Raises
    ScoreError if some are neither.
    """
    given = dict.fromkeys(text_of(row, column) for row in counts.rows)
    ids = [text_of(row, "study_id") for row in reports.rows]
    if given.keys() <= set(ids):
        if twice := [key for key, n in Counter(ids).items() if n > 1]:
            raise ScoreError(f"{reports.path}: the study_id {twice[0]!r} stands in several rows")
        notes.append(f"{column} was read as the study_id of {reports.path.name}")
        return {key: at for at, key in enumerate(ids)}, ids
    numbers = sorted(int(key) for key in given if re.fullmatch(r"\d{1,9}", key))
    first = 1 if numbers and numbers[0] == 1 else 0
    row_of = {str(at + first): at for at in range(len(reports.rows))}
    if strange := [key for key in given if key not in row_of]:
        shown = strange[0] if re.fullmatch(r"\w{1,20}", strange[0]) else "of another kind"
        raise ScoreError(
            f"{counts.path}: {column} {shown} is neither a study_id of {reports.path.name} nor one of its "
            f"{len(reports.rows)} rows, counted from {first}"
        )
    notes.append(f"{column} was read as the row of {reports.path.name}, counted from {first}")
    return row_of, list(row_of)


def _truth(row: Row, column: str) -> bool:
    said = text_of(row, column).lower()
    if said in ("true", "1", "yes", "significant"):
        return True
    if said in ("false", "0", "no", "insignificant"):
        return False
    raise ScoreError(f"{row.place}: {column} must be True or False")


# --- RadEvalX ---------------------------------------------------------------------------------------------------------

CATEGORIES = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def radevalx(errors: Table, reports: Table) -> Pairs:
    """Read RadEvalX: two rows of counts a report. Raises ScoreError."""
    pairs = Pairs()
    row_of, written = _numbered(errors, "report_id", reports, pairs.notes)
    sums: dict[tuple[int, bool], list[float]] = defaultdict(list)
    for row in errors.rows:
        said = text_of(row, "error_type").lower().removeprefix("clinically ")
        if said not in ("significant", "insignificant"):
            raise ScoreError(f"{row.place}: error_type must be significant or insignificant")
        at = row_of[text_of(row, "report_id")]
        # A blank makes the sum NaN.
        sums[at, said == "significant"].append(sum(count_of(row, name) for name in CATEGORIES))
    if several := [key for key, found in sums.items() if len(found) > 1]:
        pairs.notes.append(f"{len(several)} counts of errors have several rows: their mean is taken")
    for at, report in enumerate(reports.rows):
        grave, slight = (
            float(np.mean(sums[at, kind])) if (at, kind) in sums else NAN for kind in (True, False)
        )
        pairs.add(
            written[at], written[at], report.get("ground_truth"), report.get("candidate_report"),
            errors=grave + slight, significant_errors=grave,
        )  # fmt: skip
    return pairs


# --- RadEvalExpertDataset ---------------------------------------------------------------------------------------------

SLOTS = (1, 2, 3)
_SEVERITY = re.compile(
    r"^\W*(?:clinically\s+)?(?P<kind>significant|insignificant|non-?significant)\b[^\d]*$", re.I
)
_CATEGORY = re.compile(r"^\W*(?P<number>\d{1,2})\s*[.):](?P<rest>.*)$")
# Neither part of a decimal number nor of a negative one.
_COUNT = re.compile(r"(?<![\d.-])\d{1,3}(?![\d]|\.\d)")


def annotated(cell: Any) -> dict[bool, dict[int, int]]:
    """Return the errors that an annotation cell counts: by whether they are significant, then by category.

    A line that names a severity is followed by one line a category: its number, words, and the count as the last whole
    number. A severity is left out if one of its lines cannot be read or a category comes twice.
    """
    found: dict[bool, dict[int, int]] = {}
    broken: set[bool] = set()
    severity: bool | None = None
    for line in (str(cell) if isinstance(cell, str) else "").splitlines():
        if not line.strip(" \t*_#-"):
            continue
        if head := _SEVERITY.match(line):
            severity = head["kind"].lower() == "significant"
            broken |= {severity} & found.keys()
            found.setdefault(severity, {})
        elif severity is None:
            # Before the first heading nothing can be counted.
            return {}
        else:
            category = _CATEGORY.match(line)
            counts = _COUNT.findall(category["rest"]) if category else []
            if not category or not counts or int(category["number"]) in found[severity]:
                broken.add(severity)
                continue
            found[severity][int(category["number"])] = int(counts[-1])
    return {kind: counts for kind, counts in found.items() if counts and kind not in broken}


def expert(table: Table) -> Pairs:
    """Read RadEvalExpertDataset: three candidates a row, with an annotation each. Raises ScoreError."""
    pairs = Pairs()
    rows = [
        (number, slot, row, annotated(row.get(f"annotation{slot}")))
        for number, row in enumerate(table.rows, 1)
        for slot in SLOTS
        if not (blank(row.get(f"prediction{slot}")) and blank(row.get(f"annotation{slot}")))
    ]
    # All cells count the same categories; one that counts others lacks some.
    usual = {
        kind: Counter(frozenset(read[kind]) for *_, read in rows if kind in read).most_common(1)
        for kind in (True, False)
    }
    unread = []
    for number, slot, row, read in rows:
        grave, slight = (
            float(sum(read[kind].values()))
            if kind in read and read[kind].keys() == usual[kind][0][0]
            else NAN
            for kind in (True, False)
        )
        if grave + slight != grave + slight:
            unread.append(f"{number}/{slot}")
        # Findings and impression of the same films are one study; without films the reference says which it is.
        study = row.get("images_path")
        study = row.get("ground_truth") if blank(study) else study
        pairs.add(
            f"{number}/{slot}", str(study), row.get("ground_truth"), row.get(f"prediction{slot}"),
            errors=grave + slight, significant_errors=grave,
        )  # fmt: skip
    if unread:
        pairs.notes.append(
            f"{len(unread)} of {len(rows)} annotation cells cannot be read, or only in part: missing, not zero "
            f"({', '.join(unread[:3])}{', ...' if len(unread) > 3 else ''})"
        )
    if len(unread) == len(rows):
        raise ScoreError(
            f"{table.path}: no annotation cell can be read; expected are a line 'Clinically significant errors:' and "
            "lines '1. ...: COUNT' below it, then the same for insignificant ones"
        )
    pairs.studies = _labels(pairs.studies)
    return pairs


# --- RaTE-Eval, and tables of one's own -------------------------------------------------------------------------------

REFERENCE = (*REFERENCES, "ref", "refs")
CANDIDATE = (*PREDICTED, "pred", "pred_report", "similar_report", "findings")
SCORE = (
    "score", "human_score", "rating", "human_rating", "expert_score", "radiologist_score", "similarity",
    "normalized_score",
)  # fmt: skip
PAIR = ("id", "pair_id")


def rate_eval(table: Table) -> Pairs:
    """Read RaTE-Eval: a pair and its score a row. Raises ScoreError."""
    pairs = Pairs()
    keys = _ids(table, [str(number) for number in range(1, len(table.rows) + 1)])
    for key, row in zip(keys, table.rows, strict=True):
        reference = row.get("reference")
        pairs.add(key, str(reference), reference, row.get("prediction"), human_score=number_of(row, "score"))
    pairs.studies = _labels(pairs.studies)
    return pairs


def own(table: Table, names: Sequence[str] = ()) -> Pairs:
    """Read a table of one's own; `names` are its columns of ratings. Raises ScoreError if one is not there."""
    others = [name for name in table.columns if name not in {"study_id", *REFERENCE, *CANDIDATE, *PAIR}]
    there = f"other columns of {table.path.name} are {', '.join(others) or 'none'}"
    if not names:
        raise ScoreError(f"{table.path}: which column holds the ratings? Give --rating NAME; {there}")
    pairs = Pairs()
    studies = [text_of(row, "study_id") for row in table.rows]
    several, seen = Counter(studies), Counter[str]()
    ids = []
    for study in studies:
        seen[study] += 1
        ids.append(f"{study}/{seen[study]}" if several[study] > 1 else study)
    columns = {name: plain(name) for name in names}
    if absent := [name for name, column in columns.items() if column not in table.columns]:
        raise ScoreError(f"{table.path}: no column {absent[0]!r}; {there}")
    for key, study, row in zip(_ids(table, ids), studies, table.rows, strict=True):
        pairs.add(key, study, row.get("reference"), row.get("prediction"))
        for name, column in columns.items():
            pairs.ratings[name].append(number_of(row, column))
    return pairs


def _ids(table: Table, otherwise: list[str]) -> list[str]:
    """Return the table's own pair ids if it has them, each once."""
    for name in PAIR:
        found = ["" if blank(row.get(name)) else text_of(row, name) for row in table.rows]
        if all(found) and len(set(found)) == len(found):
            return found
    return otherwise


def _labels(keys: Iterable[str]) -> list[str]:
    """Number what may be a report, so that no report stands in the results; whatever the order of the rows."""
    keys = list(keys)
    known = {key: str(number) for number, key in enumerate(sorted(set(keys)), 1)}
    return [known[key] for key in keys]
