"""Tables of ratings: CSV, JSON or JSON Lines, found in a folder by their columns.

A message names file, line and column, and never shows a cell that may be a report.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.scores.readers import ScoreError, blank, read_text, rows_of


@dataclass(frozen=True)
class Row:
    """A row of a table, by plain names of columns, and where it stands."""

    place: str
    cells: Mapping[str, Any]

    def get(self, column: str) -> Any:
        """Return a cell; None if it is not there."""
        return self.cells.get(column)


@dataclass(frozen=True)
class Table:
    """The rows of a file. `columns` are plain names: lower case, with underscores."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]

    def called(self, names: Mapping[str, str]) -> Table:
        """Return the table with columns under other names (new name -> plain name)."""
        rows = [
            Row(row.place, {**row.cells, **{new: row.get(old) for new, old in names.items()}})
            for row in self.rows
        ]
        return Table(self.path, self.columns, rows)


class Need:
    """The columns that a table must have. Each is given by the names that it may have, the first of which is ours."""

    def __init__(self, *columns: tuple[str, ...]) -> None:
        self.columns = columns

    def lacks(self, table: Table) -> list[str]:
        """Return what is missing, each with all the names that are accepted."""
        there = set(table.columns)
        return [" or ".join(names) for names in self.columns if not there.intersection(names)]

    def names(self, table: Table) -> dict[str, str]:
        """Return our name -> the table's, of a table that lacks nothing."""
        return {names[0]: next(name for name in names if name in table.columns) for names in self.columns}


def pick(need: Need, tables: Sequence[Table], where: Path, title: str) -> Table:
    """Return the one table that has the columns, under our names. Raises ScoreError if there is none, or several."""
    found = [table for table in tables if not need.lacks(table)]
    if len(found) > 1:
        raise ScoreError(
            f"{where}: {' and '.join(t.path.name for t in found)} have the same columns; give one of them alone"
        )
    if found:
        return found[0].called(need.names(found[0]))
    close = min(tables, key=lambda table: len(need.lacks(table)))
    wanted = ", ".join(names[0] for names in need.columns)
    raise ScoreError(
        f"{where}: {title} needs a file with the columns {wanted}; the closest, {close.path.name}, has no "
        f"{', no '.join(need.lacks(close))}"
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def tables_of(path: Path, *, strict: bool = True) -> list[Table]:
    """Read a file, or the CSV, JSON and JSON Lines files of a folder.

    Raises ScoreError if there is nothing to read, or for a file that cannot be read, which not `strict` leaves out.
    """
    if path.is_file():
        return [read_table(path)]
    if not path.is_dir():
        raise ScoreError(f"{path}: no such file or folder of ratings")
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in _READERS and p.is_file())
    if not files and strict:
        raise ScoreError(f"{path}: the folder holds no file of ratings (.csv, .json, .jsonl)")
    found = []
    for file in files:
        try:
            found.append(read_table(file))
        except ScoreError:
            if strict:
                raise
    return found


def read_table(path: Path) -> Table:
    """Read a CSV file with a header, JSON Lines, or a JSON list of records. Raises ScoreError."""
    if path.suffix.lower() not in _READERS:
        raise ScoreError(f"{path}: ratings are read from {', '.join(_READERS)}; save it as one of these")
    records = list(_READERS[path.suffix.lower()](path))
    if not records:
        raise ScoreError(f"{path}: there is not a single row")
    rows, columns = [], dict[str, None]()
    for place, record in records:
        if not isinstance(record, Mapping):
            raise ScoreError(f"{place}: a row must be a JSON object, found {type(record).__name__}")
        cells = {plain(name): value for name, value in record.items()}
        columns |= dict.fromkeys(cells)
        rows.append(Row(place, cells))
    # pandas' index has no name of its own.
    named = tuple(c for c in columns if re.fullmatch(r"\w{1,40}", c) and not c.startswith("unnamed"))
    return Table(path, named, rows)


def plain(name: object) -> str:
    """Return the name of a column in lower case, with underscores."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def _of_csv(path: Path) -> Iterable[tuple[str, Any]]:
    lines = csv.reader(io.StringIO(read_text(path, "rating"), newline=""), strict=True)
    try:
        header = [plain(name) for name in next(lines, [])]
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise ScoreError(f"{path}: there are several columns {twice[0][:40]!r}")
        for row in lines:
            if len(row) > len(header):
                raise ScoreError(
                    f"{path}, line {lines.line_num}: {len(row)} cells under {len(header)} names; "
                    'texts with commas must be in quotes: "..."'
                )
            if row:
                cells = dict.fromkeys(header) | dict(zip(header, row, strict=False))
                yield f"{path}, line {lines.line_num}", cells
    except csv.Error as error:
        raise ScoreError(f"{path}, line {lines.line_num}: not CSV ({error})") from error


def _of_json(path: Path) -> Iterable[tuple[str, Any]]:
    """Records of a list, or of an object that holds one list (`train`, `data`, ...; the hub's `rows`). Lines of JSON
    will do."""
    try:
        found = json.loads(read_text(path, "rating"))
    except RecursionError:
        raise ScoreError(f"{path}: nested too deeply") from None
    except json.JSONDecodeError:
        yield from _of_lines(path)
        return
    if isinstance(found, Mapping):
        lists = [value for value in found.values() if isinstance(value, list) and value]
        rows = [value for value in lists if isinstance(value[0], Mapping) and len(value[0]) > 1]
        found = rows[0] if len(rows) == 1 else found
    for number, value in enumerate(found if isinstance(found, list) else [found], 1):
        inner = value.get("row") if isinstance(value, Mapping) else None
        yield f"{path}, row {number}", inner if isinstance(inner, Mapping) else value


def _of_lines(path: Path) -> Iterable[tuple[str, Any]]:
    return rows_of(path, "row")


_READERS = {".csv": _of_csv, ".json": _of_json, ".jsonl": _of_lines}


# --- cells ------------------------------------------------------------------------------------------------------------


def text_of(row: Row, column: str) -> str:
    """Return a cell as text; a whole number that pandas wrote as 3.0 is 3. Raises ScoreError if it is empty."""
    value = row.get(column)
    if blank(value):
        raise ScoreError(f"{row.place}: no {column}")
    text = str(value).strip()
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text


def number_of(row: Row, column: str) -> float:
    """Return a cell as a number; NaN if it is empty. Raises ScoreError for anything else."""
    value = row.get(column)
    if blank(value):
        return math.nan
    try:
        found = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ScoreError(f"{row.place}: {column} must be a number, not {_shown(value)}")
    return found


def count_of(row: Row, column: str) -> float:
    """Return a cell as a whole number of at least 0; NaN if it is empty. Raises ScoreError for anything else."""
    found = number_of(row, column)
    if found == found and (found < 0 or found != int(found)):
        raise ScoreError(f"{row.place}: {column} must be a whole number of at least 0, not {_shown(found)}")
    return found


def _shown(value: Any) -> str:
    """Return a value for a message. A cell of words may be a report that stands in the wrong column."""
    text = str(value)
    return (
        text
        if re.fullmatch(r"[\w.+-]{1,12}", text)
        else "a text"
        if isinstance(value, str)
        else type(value).__name__
    )
