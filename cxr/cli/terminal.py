"""What every sub-command needs: its error, types of options, files below a folder, names a terminal can show."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from encoder.errors import UserError, printable
from encoder.files import no_file

if TYPE_CHECKING:
    from rich.console import Console

# Beside radiographs, folders hold these; whatever else lies there is tried, for DICOM files may have any name.
NOT_IMAGES = {".md", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".html", ".pdf", ".py"}
# Pixels a side of a model's input; four times RAD-DINO's would be 2,072.
LONGEST_SIDE = 4096
# Exit statuses; main.py tells users of them.
NOTHING_DONE, PARTLY_DONE = 1, 3
DEVICE = "Device: cpu, cuda, cuda:1, ... (default: a GPU if there is one)."
MODEL = "Findings model: mini (shipped), a directory or a hub id."
BASE = "Base model of an adapter, where it is not where the adapter remembers it."


class Options(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Declare an option, as argparse's method of this name does."""


class UsageError(UserError):
    """Report a mistake in the command line; told in one line, exit status 2."""


def console(stderr: bool = False) -> Console:
    """Return a terminal that wraps nothing by itself, and styles only what is marked up: neither the words of a report
    nor the name of a file. Where nobody reads on (`| head`), it raises BrokenPipeError, as print does; rich's own ends
    the process with status 1."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> NoReturn:
            raise BrokenPipeError

    return Terminal(soft_wrap=True, highlight=False, emoji=False, stderr=stderr)


def status_of(refused: int, total: int) -> int:
    """Return the exit status of a command that was given `total` files or studies and could not use `refused`."""
    if not refused:
        return 0
    return NOTHING_DONE if refused >= total else PARTLY_DONE


def json_option(parser: Options, what: str) -> None:
    """Add --json, which prints `what` for programs: one JSON document on stdout, unless `what` says otherwise."""
    parser.add_argument("--json", action="store_true", help=f"Print {what} for programs.")


def print_json(content: Any, indent: int | None = 1) -> None:
    """Print a JSON document, in ASCII: whatever the terminal's encoding, it is what `json.loads` reads."""
    print(json.dumps(content, indent=indent, allow_nan=False), flush=True)


def no_more_readers() -> None:
    """Let what is still to be printed go nowhere, because the reader has left (`| head`)."""
    for stream in (sys.stdout, sys.stderr):
        # Tests put objects without a descriptor in their place, and a closed stream is None.
        with suppress(AttributeError, OSError, ValueError):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def positive(text: str) -> int:
    """Read a whole number of at least 1, as an option's type."""
    return _whole(text, 1)


def processes(text: str) -> int:
    """Read how many processes to start, as an option's type."""
    from encoder.workers import MOST_WORKERS

    return _whole(text, 1, MOST_WORKERS)


def seed(text: str) -> int:
    """Read a whole number of at least 0, as an option's type."""
    return _whole(text, 0)


def count(text: str) -> int:
    """Read how many, 0 or more, as an option's type."""
    return _whole(text, 0)


def side(text: str) -> int:
    """Read pixels a side, as an option's type."""
    return _whole(text, 1, LONGEST_SIDE)


def replicates(text: str) -> int:
    """Read how many times to resample, as an option's type."""
    from eval.resampling import MOST_REPLICATES

    return _whole(text, 1, MOST_REPLICATES)


def number(text: str) -> float:
    """Read a finite number, as an option's type."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"must be a number, not {text[:40]!r}")
    return found


def share(text: str) -> float:
    """Read a number from 0 to 1, as an option's type."""
    found = number(text)
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text[:40]!r}")
    return found


def _whole(text: str, least: int, most: int = 2**63 - 1) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        # Not all of it: a text may have thousands of digits.
        upto = "" if most == 2**63 - 1 else f" and at most {most}"
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}{upto}, not {text[:40]!r}"
        )
    return number


def echo(text: str) -> None:
    """Print a line of what the user asked for. It may hold names that users gave: of files, studies, columns."""
    print(printable(text), flush=True)


def tell(text: str) -> None:
    """Print a line about the work itself on stderr: progress, a warning, what was written where."""
    print(printable(text), file=sys.stderr, flush=True)


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
    if problem := no_file(path):
        raise UsageError(problem)
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


def files_below(folder: Path, refused: list[str] | None = None) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders that may be radiographs; hidden ones are passed over. A folder
    that cannot be read is told on stderr, and its name appended to `refused`."""

    def left_out(error: OSError) -> None:
        tell(f"{error.filename} cannot be read and is left out: {error.strerror}")
        if refused is not None:
            refused.append(str(error.filename))

    for where, folders, names in os.walk(folder, onerror=left_out):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(where, name)
            if not name.startswith(".") and path.suffix.lower() not in NOT_IMAGES and path.is_file():
                yield path
