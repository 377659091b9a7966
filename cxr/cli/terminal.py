"""What every sub-command needs: its error, types of options, files below a folder, names a terminal can show."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from encoder.errors import UserError

# Beside radiographs, folders hold these; whatever else lies there is tried, for DICOM files may have any name.
NOT_IMAGES = {".md", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".html", ".pdf", ".py"}
DEVICE = "Device: cpu, cuda, cuda:1, ... (default: a GPU if there is one)."
MODEL = "Findings model: mini (shipped), a directory or a hub id."
BASE = "Base model of an adapter, where it is not where the adapter remembers it."


class Options(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action: ...


class UsageError(UserError):
    """Something about the command line; told in one line, exit status 2."""


def positive(text: str) -> int:
    """A whole number of at least 1, as an option's type."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1 or number > 2**63 - 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return number


def printable(text: str) -> str:
    """Return the text without what no terminal can show: the bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_target(
    path: Path,
    kind: str,
    ours: Callable[[Path], bool],
    *,
    reads: Iterable[Path] = (),
    overwrite: bool | None = None,
) -> None:
    """Raise UsageError unless the file `path` may be written, before hours of work and not after.

    Args:
        kind: what is written, as the message calls it: "predictions".
        ours: whether a file holds such a thing. No other is ever replaced.
        reads: what the command reads, which it must not write over.
        overwrite: whether the user allows it to be replaced; None where that needs no leave.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a file to write")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UsageError(f"{above} is a file; choose another place for {path.name}")
    if not path.exists():
        return
    there = path.stat()
    for read in reads:
        try:
            found = read.stat()
        except (OSError, ValueError):
            continue
        if (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino):
            raise UsageError(f"{path} is what this command reads; choose another file to write")
    if overwrite is False:
        raise UsageError(f"{path} exists; choose another file or give --overwrite")
    if not ours(path):
        raise UsageError(
            f"{path} exists and does not hold {kind}, so it is not replaced; choose another file"
        )


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders that may be radiographs; hidden ones are passed over. A folder
    that cannot be read is told on stderr."""

    def tell(error: OSError) -> None:
        where = printable(str(error.filename))
        print(f"{where} cannot be read and is left out: {error.strerror}", file=sys.stderr)

    for where, folders, names in os.walk(folder, onerror=tell):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(where, name)
            if not name.startswith(".") and path.suffix.lower() not in NOT_IMAGES and path.is_file():
                yield path
