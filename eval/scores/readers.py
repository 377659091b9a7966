"""Reports as people have them: JSON Lines, JSON, CSV, with the names of columns that are common, brought to records.

| form | known by |
|---|---|
| the project's contracts | JSON Lines, CSV or JSON with `study_id` and `findings` or `impression` |
| a table of one's own | an id under one of IDS, texts under one of PREDICTED and REFERENCES |
| ReXrank's JSON | an object of studies by id, with `report` and `model_prediction` |
| CXR-Report-Metric's pair of CSV files | `study_id` and `report` in each |
| R2Gen's pair of CSV files | one column without a heading, a report a line |

Texts without ids are paired by their order, as long as both sides have as many.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
Source = str | Path | Iterable[Record]

IDS = (
    "study_id",
    "id",
    "studyid",
    "study",
    "case_id",
    "report_id",
    "image_id",
    "dicom_id",
    "uid",
    "filename",
    "accession",
)
PREDICTED = (
    "prediction", "predictions", "predicted", "generated", "generated_report", "generated_text", "model_prediction",
    "candidate", "candidate_report", "hypothesis", "hyp", "output",
)  # fmt: skip
REFERENCES = (
    "reference", "references", "ground_truth", "groundtruth", "gt", "gts", "gt_report", "reference_report",
    "ground_truth_report", "target",
)  # fmt: skip
PLAIN = ("report", "text")
"""Names of a text whose side the file says."""
BESIDE = ("patient_id", "subject_id", "age", "sex", "gender", "view", "indication", "split", "model")
"""Columns that may stand beside texts without ids; any other may be an id of another name."""
SECTIONS = ("findings", "impression")


_NO_NAME = ("", "nan", "none", "null", "<na>")


def missing(value: object) -> bool:
    """Tell whether a value is missing by the study contract: None, "" or NaN."""
    return value is None or value == "" or value != value


def blank(value: object) -> bool:
    """Tell whether a cell is empty: None, NaN, white space, or what tables write for nothing ("nan", "None")."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in _NO_NAME)


class ScoreError(ValueError):
    """Input that cannot be scored; the message says what, where and what to do."""

    # encoder.errors.UserError's protocol, by attribute: this room imports no other
    exit_status = 2


@dataclass(frozen=True)
class Loaded:
    """The records of one side. `numbered` where they have no ids of their own and stand in order; `said` names the
    columns that were taken for others; `brings` whether predictions bring a reference each."""

    records: list[dict[str, Any]]
    numbered: bool = False
    said: str = ""
    brings: bool = False


def load(source: Source, what: str, section: str = "findings") -> list[Record]:
    """Return the records of `read_side`."""
    return list(read_side(source, what, section).records)


def read_side(source: Source, what: str, section: str = "findings") -> Loaded:
    """Read the records of a file (JSON Lines, JSON, CSV, TSV), or of an iterable of mappings.

    `what` is "prediction", "reference" or "training study"; it decides what a column may be called, and messages say
    it. Each record comes with a `study_id` and its text under the name of the section; a prediction that brings its
    reference has it as `reference`.

    Raises ScoreError if the file is missing, empty or not UTF-8, if a line is not a JSON object, or if columns cannot
    be told apart; the message names file and line.
    """
    placed = rows_of(source, what)
    where = str(source) if isinstance(source, str | Path) else f"the {what}s"
    found = _named(placed, where, what, section)
    for (place, given), record in zip(placed, found.records, strict=True):
        if isinstance(record.get("study_id"), str):
            record["study_id"] = record["study_id"].strip()
        if missing(record.get("study_id")):
            raise ScoreError(f"{place}: a {what} needs a 'study_id'; its keys are {keys_of(given)}")
        if not isinstance(record["study_id"], str | int):
            raise ScoreError(
                f"{place}: the 'study_id' of a {what} must be a text or a whole number, not "
                f"{type(record['study_id']).__name__}"
            )
    return found


def rows_of(source: Source, what: str) -> list[tuple[str, Record]]:
    """Return the records of a file or an iterable as they are, each with its place. Raises ScoreError."""
    if isinstance(source, str | Path):
        path = Path(source)
        placed = list(_READERS.get(path.suffix.lower(), _read_lines)(path, what))
        where = str(path)
    else:
        placed = [(f"{what} {i}", r) for i, r in enumerate(source)]
        where = f"the {what}s"
    if not placed:
        raise ScoreError(f"{where}: there is not a single {what}")
    for place, record in placed:
        if not isinstance(record, Mapping):
            raise ScoreError(f"{place}: a {what} must be a JSON object, found {type(record).__name__}")
    return placed


def _named(placed: Sequence[tuple[str, Record]], where: str, what: str, section: str) -> Loaded:
    """Give the columns their names of the contracts."""
    rows, spelt = _spelt([record for _, record in placed], where)
    keys = {key for row in rows for key in row}
    predicted = what == "prediction"
    own = PREDICTED if predicted else REFERENCES
    column = next((name for name in IDS if name in keys), None)
    # name of the contract -> the columns that it is taken from, the usual one first
    taken: dict[str, list[str]] = {} if column in (None, "study_id") else {"study_id": [column]}
    beside: list[str] = []
    if section in SECTIONS:
        texts, beside = _texts(rows, where, what, section, own)
        if texts not in ([], [section]):
            taken[section] = texts
    if predicted:
        columns = [name for name in REFERENCES if name in keys]
        if "reference" not in keys:
            # "findings" beside "generated", or ReXrank's `report` beside `model_prediction`.
            columns += [name for name in beside if name == section or not columns]
        if columns not in ([], ["reference"]):
            others = [row for row in rows if "reference" not in row]
            _check_one(others, columns, where, "references")
            taken["reference"] = columns
    numbered = column is None
    if numbered and not (section in keys or section in taken or section not in SECTIONS):
        shown = ", ".join(sorted(key if re.fullmatch(r"\w{1,30}", key) else "..." for key in map(str, keys)))
        raise ScoreError(
            f"{where}: no column holds an id ({', '.join(IDS[:3])}, ...) or the {what}s ({section}, "
            f"{', '.join(own[:3])}, ...); there are {shown}"
        )
    if numbered:
        texts_of = {section, *PREDICTED, *REFERENCES, *PLAIN, *SECTIONS, *BESIDE}
        if unread := sorted(key for key in keys if _like(key) not in texts_of):
            shown = ", ".join(
                repr(key) if re.fullmatch(r"[\w :-]{1,30}", str(key)) else "..." for key in unread
            )
            raise ScoreError(
                f"{where}: no column holds an id ({', '.join(IDS[:2])}, ...), and {shown} may be one; call it "
                "'study_id', or leave it out to pair the texts by their order"
            )
    records: list[dict[str, Any]] = []
    used: dict[str, Counter[str]] = {name: Counter() for name in taken}
    for number, row in enumerate(rows, 1):
        record = dict(row)
        for name, columns in taken.items():
            old = next((c for c in columns if c in row), None)
            record[name] = None if old is None else row[old]
            used[name].update([old] if old else [])
        if numbered:
            record["study_id"] = str(number)
        records.append({**_of_context(row.get("context")), **record})
    said = [
        f"{name} from {_said_of(columns, used[name], spelt)}"
        for name, columns in taken.items()
        if used[name].keys() != {name}
    ]
    read = {column for columns in taken.values() for column in columns}
    said = [f"{like} from {key!r}" for like, key in spelt.items() if like not in read] + said
    said = ["paired by order", *said] if numbered else said
    brings = predicted and any(not missing(record.get("reference")) for record in records)
    return Loaded(records, numbered, f"{what}s: {', '.join(said)}" if said else "", brings)


def _spelt(records: Sequence[Record], where: str) -> tuple[list[Record], dict[str, str]]:
    """Return the records with columns such as "Study ID" and "Ground Truth" under the names of the contracts, too,
    and from which columns these came. What has a name of the contracts already is taken as it is.

    Raises ScoreError where a record has two that are spelt alike.
    """
    known = {*IDS, *PREDICTED, *REFERENCES, *PLAIN, *SECTIONS}
    keys = {key for record in records for key in record}
    like_of = {key: like for key in keys if (like := _like(key)) in known and like != key}
    if not like_of:
        return list(records), {}
    rows: list[Record] = []
    spelt: dict[str, str] = {}
    for record in records:
        new: dict[str, str] = {}
        for key in record:
            like = like_of.get(key, "")
            if not like or like in record:
                continue
            if like in new:
                raise ScoreError(
                    f"{where}: which column holds {like!r}, {new[like]!r} or {key!r}? Leave one, or call it {like!r}"
                )
            new[like] = key
        spelt |= new
        rows.append({**record, **{like: record[key] for like, key in new.items()}})
    return rows, spelt


def _texts(
    rows: Sequence[Record], where: str, what: str, section: str, own: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the columns of the texts, the usual one first: a row without it may have another; and the columns that
    stand beside a prediction in its own row, which is what a reference does. Raises ScoreError."""
    names = [name for name in own if any(name in row for row in rows)]
    others = [name for name in (section, *PLAIN) if any(name in row for row in rows)]
    if what != "prediction":
        # A reference's own section comes first.
        without = [row for row in rows if section not in row]
        _check_one(without, names, where, f"{what}s", section)
        if section in others:
            return [section, *names, *others[1:]], []
        return [*names, *others], []
    _check_one(rows, names, where, f"{what}s", section)
    if not names:
        return others, []
    has = [row for row in rows if any(name in row for name in names)]
    beside = [name for name in others if any(name in row for row in has)]
    return [*names, *(name for name in others if name not in beside)], beside


def _check_one(
    rows: Sequence[Record], names: Sequence[str], where: str, what: str, section: str = ""
) -> None:
    """Raise ScoreError if a row has several of the columns."""
    for row in rows:
        if len(found := [name for name in names if name in row]) > 1:
            called = f", or call it {section!r}" if section else ""
            raise ScoreError(
                f"{where}: which column holds the {what}, {' or '.join(map(repr, found))}? Leave one{called}"
            )


def _said_of(columns: Sequence[str], used: Counter[str], spelt: Mapping[str, str]) -> str:
    """Say from which columns a text was taken, and how often where there are several."""
    found = [column for column in columns if used[column]] or columns[:1]
    names = [repr(spelt.get(column, column)) for column in found]
    if len(found) == 1:
        return names[0]
    return " and ".join(
        f"{name} ({used[c]} of {used.total()} rows)" for name, c in zip(names, found, strict=True)
    )


_CONTEXT = re.compile(r"(Age|Gender|Indication|Comparison)\s*:", re.I)


def context_of(text: str) -> dict[str, Any]:
    """Read the fields of ReXrank's context, such as "Age:60-70.Gender:F.Indication: Cough. Comparison: None.", into
    those of a study; an age is the middle of its range of years."""
    parts = _CONTEXT.split(text)[1:]
    named = {name.lower(): words.strip() for name, words in zip(parts[::2], parts[1::2], strict=True)}
    found: dict[str, Any] = {}
    if age := re.match(r"(\d{1,3})(?:\s*-\s*(\d{1,3}))?", named.get("age", "")):
        first, last = int(age[1]), int(age[2] or age[1])
        found["age"] = (first + last) / 2
    if sex := re.match(r"[FM]", named.get("gender", "").upper()):
        found["sex"] = sex[0]
    for name in ("indication", "comparison"):
        if named.get(name, "").strip(" ."):
            found[name] = named[name]
    return found


def _of_context(context: object) -> dict[str, Any]:
    """Return age and sex of ReXrank's context, by which subgroups are made."""
    found = context_of(context) if isinstance(context, str) else {}
    return {name: found[name] for name in ("age", "sex") if name in found}


def _like(name: object) -> str:
    """Return a column's name in lower case, with underscores."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def read_text(path: Path, what: str) -> str:
    """Return the text of a file. Raises ScoreError if it is missing or not UTF-8."""
    if path.is_dir():
        raise ScoreError(f"{path} is a folder; give the file of {what}s in it")
    if not path.is_file():
        raise ScoreError(f"{path}: no such file of {what}s")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ScoreError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _read_lines(path: Path, what: str) -> Iterable[tuple[str, Any]]:
    for number, line in enumerate(read_text(path, what).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line, parse_constant=lambda _: None)
        except RecursionError:
            raise ScoreError(f"{path}, line {number}: nested too deeply") from None
        except json.JSONDecodeError as error:
            raise ScoreError(
                f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}); each line is one object, a "
                ".json file one list or object"
            ) from error
        except ValueError as error:
            raise ScoreError(f"{path}, line {number}: not JSON (a number of thousands of digits)") from error


def _read_json(path: Path, what: str) -> Iterable[tuple[str, Any]]:
    """Records of a JSON file: a list of them, or an object of them, or of texts, by id. Lines of JSON will do."""
    text = read_text(path, what)
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except RecursionError:
        raise ScoreError(f"{path}: nested too deeply") from None
    except ValueError:
        yield from _read_lines(path, what)
        return
    if isinstance(found, Mapping) and not any(name in found for name in IDS):
        for key, value in found.items():
            if isinstance(value, str):
                value = {"report": value}
            elif not isinstance(value, Mapping):
                raise ScoreError(
                    f"{path}: as an object it holds a {what} or a text by each id; under {key[:30]!r} is "
                    f"{type(value).__name__}"
                )
            yield f"{path}, {key[:30]!r}", {"study_id": key, **value}
        return
    for number, value in enumerate(found if isinstance(found, list) else [found], 1):
        yield f"{path}, {what} {number}", value


def _read_table(path: Path, what: str) -> Iterable[tuple[str, Any]]:
    """Rows of a CSV or TSV file; an empty cell becomes null, `age` a number, `view` the image's. A single column
    without a heading holds reports; there a blank line before another row is an empty report."""
    text = read_text(path, what)
    known = {*IDS, *PREDICTED, *REFERENCES, *PLAIN, *SECTIONS}
    first = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    # Spreadsheets of many countries write semicolons.
    named = [d for d in ",;\t" if d in first and known & {_like(n.strip('"')) for n in first.split(d)}]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else (named or [","])[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header: list[str] = []
        blanks: list[int] = []
        while not header and (row := next(lines, None)) is not None:
            header = row
            blanks += [] if row else [lines.line_num]
        alone = len(header) == 1 and _like(header[0]) not in known
        if alone and re.fullmatch(r"\w+(?: \w+){0,2}", header[0].strip()):
            raise ScoreError(
                f"{path}: the one column begins with {header[0][:30]!r}: is that a heading or a report? Call a column "
                "of reports 'report', and end a report with a full stop"
            )
        if twice := [name for name in header if header.count(name) > 1]:
            raise ScoreError(f"{path}: there are several columns {twice[0]!r}")
        if len(header) > 1 and not known.intersection(map(_like, header)):
            raise ScoreError(
                f"{path}: the first line names no column that is known: an id ({', '.join(IDS[:3])}, ...) and "
                f"findings, impression, {PREDICTED[0]}, {REFERENCES[0]} or the like"
            )
        if alone:
            for number in blanks:
                yield f"{path}, line {number}", {"report": None}
            yield f"{path}, line {lines.line_num}", {"report": header[0] or None}
            header = ["report"]
        blanks = []
        of_reports = len(header) == 1 and _like(header[0]) not in IDS
        for row in lines:
            if not row:
                # Whether it is a report shows where another row follows.
                blanks += [lines.line_num] if of_reports else []
                continue
            for number in blanks:
                yield f"{path}, line {number}", {header[0]: None}
            blanks = []
            if len(row) > len(header):
                raise ScoreError(
                    f"{path}, line {lines.line_num}: {len(row)} cells under {len(header)} names; "
                    'texts with commas must be in quotes: "..."'
                )
            cells = [*row, *[""] * (len(header) - len(row))]
            record: dict[str, Any] = {
                key: value or None for key, value in zip(header, cells, strict=True) if key
            }
            if re.fullmatch(r"\d+(\.\d+)?", (record.get("age") or "").strip()):
                record["age"] = float(record["age"])
            if "view" in record and (view := record.pop("view")):
                record["images"] = [{"view": view.strip()}]
            yield f"{path}, line {lines.line_num}", record
    except csv.Error as error:
        raise ScoreError(f"{path}, line {lines.line_num}: not CSV ({error})") from error


_READERS = {".csv": _read_table, ".tsv": _read_table, ".json": _read_json}


def keys_of(record: Record) -> str:
    """Names of keys for a message; a report that stands where a name should is not shown."""
    return ", ".join(key if re.fullmatch(r"\w{1,30}", str(key)) else "..." for key in map(str, record))
