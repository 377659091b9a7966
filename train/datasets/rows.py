"""The rows of a user's own table, CSV, TSV or JSON Lines, each with its line. Every message names the file.

(`train/datasets/release.py` reads the tables of known releases, packed ones too.)
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoder.files import text_lines
from vlm.study import StudyError

# Characters of a cell: reports are longer than the csv module's own limit.
LONGEST_CELL = 1 << 24
# No id and no name of a file has one; a quote that is not closed brings them into a cell.
BREAK = re.compile(r"[\r\n\0]")
# What the csv module says -> what it means.
MEANT = {
    "unexpected end of data": 'a quote (") is opened in this row and never closed',
    "expected after": 'a quote (") inside a quoted cell; write it twice, or close the cell before it',
    "field larger than": f'a cell of over {LONGEST_CELL} characters; is a quote (") not closed?',
}


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, {column: cell}) of a table. Cells of a CSV are texts, those of JSON Lines what JSON has, but for
    NaN, which is None. Raises StudyError with file and line."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _objects(path)
    elif suffix in (".csv", ".tsv"):
        table = cells(path)
        _, names = next(table, (1, []))
        for line, row in table:
            yield line, dict(zip(names, row, strict=True))
    else:
        raise StudyError(f"{path}: a table is a .csv, .tsv or .jsonl file")


def cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where it begins, cells) of each row of a CSV or TSV, the names of the columns first; all have as many
    cells as it. Empty rows are left out. Raises StudyError with file and line."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    line, names = 1, list[str]()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            # Spreadsheets of many countries write semicolons for commas.
            delimiter = max(",;\t", key=first.count) if path.suffix.lower() == ".csv" else "\t"
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            while (row := next(reader, None)) is not None:
                if row and not names:
                    names = [name.strip() or f"column_{i}" for i, name in enumerate(row, 1)]
                    if twice := [name for name in names if names.count(name) > 1]:
                        raise StudyError(
                            f"{path}: there are several columns {twice[0]!r}; give each its own name"
                        )
                    yield line, names
                elif row:
                    if len(row) != len(names):
                        raise StudyError(
                            f"{path}, line {line}: more or fewer cells than the header has columns"
                        )
                    yield line, row
                line = reader.line_num + 1
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text; save the table as UTF-8") from None
    except csv.Error as error:
        meant = next((meant for said, meant in MEANT.items() if said in str(error)), f"not a table ({error})")
        raise StudyError(f"{path}, line {line}: {meant}") from None


def one_line(text: str, column: str) -> str:
    """Return an id, or the name of a file, without spaces around it. Raises StudyError if it holds a line break."""
    text = text.strip()
    if BREAK.search(text):
        raise StudyError(
            f'column {column!r} holds a line break in an id or a path; is a quote (") not closed?'
        )
    return text


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        for number, line in enumerate(text_lines(path), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=lambda _: None)
            except json.JSONDecodeError as error:
                raise StudyError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
            except ValueError:
                raise StudyError(f"{path}, line {number}: a number of thousands of digits") from None
            if not isinstance(row, dict):
                raise StudyError(f"{path}, line {number}: not an object")
            for column, value in row.items():
                if not _is_finite(value):
                    raise StudyError(
                        f"{path}, line {number}: column {column!r} holds a number that is too large"
                    )
            yield number, row
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text; save the table as UTF-8") from None
    except RecursionError:
        raise StudyError(f"{path}, line {number}: nested too deeply") from None


def _is_finite(value: Any) -> bool:
    """Tell whether every number in a JSON value can be written again; 1e999 is read as infinity."""
    if isinstance(value, list | dict):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
