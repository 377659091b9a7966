"""Files of a data set's release: finding its tables, packed or not, and reading some of their columns.

(`train/datasets/table.py` reads a user's own table, whose columns are to be guessed.)
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from vlm.study import StudyError


def missing_file(root: Path, name: str, source: str, more: str = "") -> StudyError:
    return StudyError(f"{root}: {name} is missing. It is part of {source}; put it there. {more}".rstrip())


def find_table(folder: Path, name: str) -> Path | None:
    """The newest of the tables with a name such as `mimic-cxr-*-split.csv`, packed or unpacked."""
    if not folder.is_dir():
        return None
    found = [*folder.glob(name), *folder.glob(f"{name}.gz")]
    return max(
        found, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], path.name), default=None
    )


def rows_of(path: Path) -> Iterator[list[str]]:
    """The rows of a table, the header first; all have as many cells as it."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            yield header
            for row in reader:
                if len(row) == len(header):
                    yield row
                elif row:
                    message = f"{len(row)} cells, where the header has {len(header)}"
                    raise StudyError(f"{path}, line {reader.line_num}: {message}")
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}); is it complete?") from None


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """The cells of `columns` and `optional`, row by row; "" where an optional column does not exist."""
    rows = rows_of(path)
    header = next(rows)
    check_columns(path, header, columns)
    cells = itemgetter(*(header.index(n) if n in header else len(header) for n in (*columns, *optional)))
    for row in rows:
        row.append("")  # the cell of a column that does not exist
        yield cells(row)


def check_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in header]:
        has = ", ".join(header)[:500] or "no header"
        raise StudyError(f"{path}: the column(s) {', '.join(missing)} are missing; it has {has}")


def as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
