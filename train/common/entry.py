"""How a training starts and ends as a program: its own exit status, and one line for what the user can mend."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal, TextIO

from encoder.errors import UserError, of_the_disk, printable, said_of
from encoder.startup import begin_program
from encoder.workers import end_with
from train.common.processes import all_processes, is_main

# What a disk says: full, over quota, a file too large, read-only, closed, broken.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# Exit statuses of what was stopped by SIGINT or SIGTERM and can be resumed.
INTERRUPTED, TERMINATED = 130, 143
# Where a launcher wants to read the exit status: accelerate ends with 1, whatever its training ended with.
STATUS_FILE = "CXR_STATUS_FILE"
# The process of `cxr` that launched this one, through accelerate; whatever ends it ends the training.
LAUNCHED_BY = "CXR_LAUNCHED_BY"
# The stdout of a program, while all that it prints goes to stderr.
_stdout: list[TextIO] = []


def results() -> TextIO:
    """Return the stream for what the user asked for; a training that is run as a program prints its log on stderr."""
    return _stdout[-1] if _stdout else sys.stdout


class Stopped(KeyboardInterrupt):
    """A stop by SIGINT or SIGTERM, as `exit_status` says."""

    def __init__(self, exit_status: int = INTERRUPTED) -> None:
        super().__init__()
        self.exit_status = exit_status


def status_of_stop(stop: KeyboardInterrupt) -> int:
    """Return the exit status of a command that was stopped."""
    return stop.exit_status if isinstance(stop, Stopped) else INTERRUPTED


@contextmanager
def log_on_stderr() -> Iterator[None]:
    """Let what is printed go to stderr, but for what is printed to `results()`."""
    _stdout.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout.pop()


def next_command(*words: Any, where: str = "") -> None:
    """Say on stderr, at the end of a command, what to type next; `where` explains words that stand for something.

    To be called by one process.
    """
    command = shlex.join(printable(str(word)) for word in words)
    print(f"next: {command}{f'  ({where})' if where else ''}", file=sys.stderr, flush=True)


def made_beside(out: Path, what: Literal["encoder", "llm"]) -> Path | None:
    """Return the newest model of a kind that a training wrote into a folder beside `out`, if there is one."""
    if what == "encoder":
        found = [path.parent for path in out.parent.glob("*/encoder/config.json")]
    else:
        found = [
            path.parent
            for path in out.parent.glob("*/tokenizer.json")
            if (path.parent / "run.json").is_file()
        ]
        found = [folder for folder in found if (folder / "model.safetensors").is_file()]
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)


def free_beside(out: Path, name: str) -> Path:
    """Return a folder beside `out` that is not there yet: one of this name, if it is free."""
    found = out.with_name(name)
    return out.with_name(f"{out.name}_{name}") if found.exists() else found


def next_is_to_judge(model: Path, studies: str, split: str | None) -> None:
    """Say on stderr how a model that was trained is judged: on studies that it has not learned from, if there are any,
    and beside findings for shuffled and blank images. To be called by one process."""
    which = ["--split", split] if split else []
    out = model.parent
    next_command(
        "cxr", "generate", studies, *which, "--model", model,
        "--out", out / "predictions.jsonl", "--floors", out / "floors",
    )  # fmt: skip


def entry(main: Callable[[list[str]], int], name: str, argv: list[str] | None = None) -> int:
    """Run a training's `main` in all its processes; returns its exit status.

    `main` gets the command line and reads it before it imports anything slow, so that --help and mistakes are answered
    at once. A UserError is one line on the error stream, told by the first process alone. In a program (without `argv`)
    what `main` prints is a log, and goes to the error stream, too.
    """
    if argv is None:
        begin_program()
        if LAUNCHED_BY in os.environ:
            end_with(int(os.environ[LAUNCHED_BY]))
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        return main(words)
    with all_processes(), log_on_stderr() if argv is None else nullcontext():
        status = _run(main, name, words)
        if STATUS_FILE in os.environ and is_main():
            # A launcher that was killed has taken its folder with it: nobody asks any more.
            with suppress(OSError):
                Path(os.environ[STATUS_FILE]).write_text(str(status))
        return status


def _run(main: Callable[[list[str]], int], name: str, words: list[str]) -> int:
    try:
        return main(words)
    except UserError as error:
        if is_main():
            print(f"{name}: {printable(str(error))}", file=sys.stderr, flush=True)
        return error.exit_status
    except SystemExit as stop:  # a mistake on the command line, which the parser has told
        return stop.code if isinstance(stop.code, int) else 1
    # a second Ctrl-C, or one before the first step
    except KeyboardInterrupt as stop:
        if is_main():
            print(
                f"{name}: stopped; run the same command to resume from what was saved",
                file=sys.stderr,
                flush=True,
            )
        return status_of_stop(stop)
    except Exception as error:
        disk = of_the_disk(error) or error
        if not (isinstance(disk, OSError) and disk.errno in DISK):
            raise
        # each process may be the one that writes
        print(f"{name}: {printable(said_of(disk))}", file=sys.stderr, flush=True)
        return UserError.exit_status
