"""What every sub-command needs of a terminal: its error, progress, printable names, the files below a folder."""

from __future__ import annotations

from pathlib import Path

from encoder.errors import UserError

# Beside radiographs, folders hold these; whatever else lies there is tried, for DICOM files may have any name.
NOT_IMAGES = {".md", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".html", ".pdf", ".py"}


class UsageError(UserError):
    """Something about the command line; printed without a traceback, exit status 2."""


def printable(text: str) -> str:
    """Without what no terminal can show: the bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def files_below(folder: Path):
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix.lower() not in NOT_IMAGES:
            yield path


def bar(items, what: str, total: int | None = None):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=len(items) if total is None else total)
        for item in items:
            bar.advance(task)
            yield item
