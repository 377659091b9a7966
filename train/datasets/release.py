"""Files of a data set's release: finding its tables, packed or not, reading some of their columns, finding its images,
and splits where it has none.

(`train/datasets/table.py` reads a user's own table, whose columns are to be guessed.)
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from vlm.study import StudyError


def missing_file(root: Path, name: str, source: str, more: str = "") -> StudyError:
    """Return the error that says which file of a release is missing and where it comes from."""
    return StudyError(f"{root}: {name} is missing. It is part of {source}; put it there. {more}".rstrip())


def find_table(folder: Path, name: str) -> Path | None:
    """Return the newest of the tables with a name such as `mimic-cxr-*-split.csv`, packed or unpacked."""
    if not folder.is_dir():
        return None
    found = [*folder.glob(name), *folder.glob(f"{name}.gz")]
    return max(
        found, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], path.name), default=None
    )


def rows_of(path: Path) -> Iterator[list[str]]:
    """Return the rows of a table, the header first; all have as many cells as it."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            while (
                header and not header[-1]
            ):  # a comma at the end of the line, in the header only or everywhere
                header.pop()
            yield header
            for row in reader:
                while len(row) > len(header) and not row[-1]:
                    row.pop()
                if len(row) == len(header):
                    yield row
                elif row:
                    message = f"{len(row)} cells, where the header has {len(header)}"
                    raise StudyError(f"{path}, line {reader.line_num}: {message}")
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}); is it complete?") from None


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """Return the cells of `columns` and `optional`, row by row; "" where an optional column does not
    exist."""
    rows = rows_of(path)
    header = next(rows)
    check_columns(path, header, columns)
    cells = itemgetter(*(header.index(n) if n in header else len(header) for n in (*columns, *optional)))
    for row in rows:
        row.append("")  # the cell of a column that does not exist
        yield cells(row)


def check_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Raise StudyError, which names the columns, if any of `columns` is missing from a table's header."""
    if missing := [column for column in columns if column not in header]:
        has = ", ".join(header)[:500] or "no header"
        raise StudyError(f"{path}: the column(s) {', '.join(missing)} are missing; it has {has}")


def as_number(text: str) -> float | None:
    """Return a cell as a float; None if it is empty, not a number or not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


SUFFIXES = (
    ".dicom",
    ".dcm",
    ".png",
    ".jpg",
    ".jpeg",
)  # of images; the earlier one is taken where there are several


def images_below(*folders: Path) -> dict[str, Path]:
    """Map names without ending to images, of all files below the folders that exist. A file that ends in none
    of SUFFIXES counts with its whole name, unless it is a table, a text or hidden: some releases name DICOM
    files by a UID only."""
    found: dict[str, Path] = {}
    for folder in folders:
        for root, below, files in os.walk(folder):
            below.sort()
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in SUFFIXES:
                    if name.startswith(".") or suffix.lower() in (
                        ".csv",
                        ".txt",
                        ".gz",
                        ".zip",
                        ".json",
                        ".pdf",
                    ):
                        continue
                    stem, suffix = name, ""
                known = found.get(stem)
                if known is None or _rank(suffix) < _rank(known.suffix):
                    found[stem] = Path(root, name)
    return found


def _rank(suffix: str) -> int:
    suffix = suffix.lower()
    return SUFFIXES.index(suffix) if suffix in SUFFIXES else 0


def hashed_split(patient: str, shares: Mapping[str, float]) -> str:
    """Return the split of a patient, whatever other patients there are, from a hash of the id. `shares` add
    up to 1."""
    u = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        if u < share:
            return split
        u -= share
    return list(shares)[-1]
