"""What every sub-command needs: its error, types of options, files below a folder, names a terminal can show."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
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


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders that may be radiographs; hidden ones are passed over."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix.lower() not in NOT_IMAGES:
            yield path
