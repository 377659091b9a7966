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


def missing(value: object) -> bool:
    """Tell whether a value is missing by the study contract: None, "" or NaN."""
    return value is None or value == "" or value != value


class ScoreError(ValueError):
    """Input that cannot be scored; the message says what, where and what to do."""

    # encoder.errors.UserError's protocol, by attribute: this room imports no other
    exit_status = 2


@dataclass(frozen=True)
class Loaded:
    """The records of one side. `numbered` where they have no ids of their own and stand in order; `said` names the
    columns that were taken for others; `brings` whether predictions bring a reference each."""

    records: list[Record]
    numbered: bool = False
    said: str = ""
    brings: bool = False


def load(source: Source, what: str, section: str = "findings") -> list[Record]:
    """Return the records of `read_side`."""
    return read_side(source, what, section).records


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
    keys = {key for _, record in placed for key in record}
    # "Study ID" and "Ground Truth" are names, too; those of the contracts are taken as they are.
    known = {*IDS, *PREDICTED, *REFERENCES, *PLAIN, *SECTIONS}
    spelt = {like: key for key in sorted(keys) if (like := _like(key)) in known and like not in keys}
    if spelt:
        placed = [(place, {**r, **{like: r.get(key) for like, key in spelt.items()}}) for place, r in placed]
        keys |= spelt.keys()
    predicted = what == "prediction"
    own = PREDICTED if predicted else REFERENCES
    column = next((name for name in IDS if name in keys), None)
    renamed = {} if column in (None, "study_id") else {"study_id": column}
    # "generated" beside "findings" is the prediction.
    texts = [name for name in own if name in keys]
    if section in SECTIONS and texts and (section not in keys or predicted):
        if len(texts) > 1:
            raise ScoreError(
                f"{where}: which column holds the {what}s, {' or '.join(map(repr, texts))}? Leave one, or call it "
                f"{section!r}"
            )
        renamed[section] = texts[0]
    elif section in SECTIONS and section not in keys and (plain := [name for name in PLAIN if name in keys]):
        renamed[section] = plain[0]
    if predicted and "reference" not in keys:
        others = [name for name in REFERENCES if name in keys]
        others += [section] if section in renamed and section in keys else []
        # ReXrank's object: `report` beside `model_prediction`.
        others = others or [name for name in PLAIN if name in keys and renamed.get(section) in PREDICTED]
        if len(others) > 1:
            raise ScoreError(
                f"{where}: which column holds the references, {' or '.join(map(repr, others))}? Leave one"
            )
        if others:
            renamed["reference"] = others[0]
    numbered = column is None
    if numbered and not (section in keys or section in renamed or section not in SECTIONS):
        shown = ", ".join(sorted(key if re.fullmatch(r"\w{1,30}", key) else "..." for key in map(str, keys)))
        raise ScoreError(
            f"{where}: no column holds an id ({', '.join(IDS[:3])}, ...) or the {what}s ({section}, "
            f"{', '.join(own[:3])}, ...); there are {shown}"
        )
    if numbered:
        texts_of = {section, *renamed.values(), *PREDICTED, *REFERENCES, *PLAIN, *SECTIONS, *BESIDE}
        if unread := sorted(key for key in keys if _like(key) not in texts_of):
            shown = ", ".join(
                repr(key) if re.fullmatch(r"[\w :-]{1,30}", str(key)) else "..." for key in unread
            )
            raise ScoreError(
                f"{where}: no column holds an id ({', '.join(IDS[:2])}, ...), and {shown} may be one; call it "
                "'study_id', or leave it out to pair the texts by their order"
            )
    records: list[Record] = []
    for number, (_, record) in enumerate(placed, 1):
        changed = {name: record.get(old) for name, old in renamed.items()}
        records.append({**record, **changed, **({"study_id": str(number)} if numbered else {})})
    only_spelt = {like: like for like in spelt if like not in renamed.values()}
    taken = [f"{name} from {spelt.get(old, old)!r}" for name, old in {**only_spelt, **renamed}.items()]
    taken = ["paired by order", *taken] if numbered else taken
    brings = predicted and any(not missing(record.get("reference")) for record in records)
    return Loaded(records, numbered, f"{what}s: {', '.join(taken)}" if taken else "", brings)


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
    without a heading holds reports."""
    text = read_text(path, what).lstrip("\r\n")
    known = {*IDS, *PREDICTED, *REFERENCES, *PLAIN, *SECTIONS}
    first = text.partition("\n")[0].rstrip("\r")
    # Spreadsheets of many countries write semicolons.
    named = [d for d in ",;\t" if d in first and known & {_like(n.strip('"')) for n in first.split(d)}]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else (named or [","])[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(lines, [])
        alone = len(header) == 1 and _like(header[0]) not in known
        if alone and re.fullmatch(r"\w*(?: \w+){0,2}", header[0].strip()):
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
            yield f"{path}, line 1", {"report": header[0]}
            header = ["report"]
        for row in lines:
            if not row:
                continue
            if len(row) > len(header):
                raise ScoreError(
                    f"{path}, line {lines.line_num}: {len(row)} cells under {len(header)} names; "
                    'texts with commas must be in quotes: "..."'
                )
            record: dict[str, Any] = {
                key: value or None for key, value in zip(header, row, strict=False) if key
            }
            if re.fullmatch(r"\d+(\.\d+)?", (record.get("age") or "").strip()):
                record["age"] = float(record["age"])
            if record.get("view"):
                record["images"] = [{"view": record.pop("view").strip()}]
            yield f"{path}, line {lines.line_num}", record
    except csv.Error as error:
        raise ScoreError(f"{path}, line {lines.line_num}: not CSV ({error})") from error


_READERS = {".csv": _read_table, ".tsv": _read_table, ".json": _read_json}


def keys_of(record: Record) -> str:
    """Names of keys for a message; a report that stands where a name should is not shown."""
    return ", ".join(key if re.fullmatch(r"\w{1,30}", str(key)) else "..." for key in map(str, record))
