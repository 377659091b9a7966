"""How a training starts and ends as a program: its own exit status, and one line for what the user can mend."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from encoder.errors import UserError, of_the_disk, printable, said_of
from encoder.startup import begin_program
from train.common.processes import all_processes, is_main

# What a disk says: full, over quota, a file too large, read-only, closed, broken.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
INTERRUPTED = 130  # exit status of what was stopped by SIGINT or SIGTERM and can be resumed
# Where a launcher wants to read the exit status: accelerate ends with 1, whatever its training ended with.
STATUS_FILE = "CXR_STATUS_FILE"


def entry(main: Callable[[list[str]], int], name: str, argv: list[str] | None = None) -> int:
    """Run a training's `main` in all its processes; returns its exit status.

    `main` gets the command line and reads it before it imports anything slow, so that --help and mistakes are answered
    at once. A UserError is one line on the error stream, told by the first process alone.
    """
    if argv is None:
        begin_program()
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        return main(words)
    with all_processes():
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
    except KeyboardInterrupt:  # a second Ctrl-C, or one before the first step
        if is_main():
            print(
                f"{name}: stopped; run the same command to resume from what was saved",
                file=sys.stderr,
                flush=True,
            )
        return INTERRUPTED
    except Exception as error:
        disk = of_the_disk(error) or error
        if not (isinstance(disk, OSError) and disk.errno in DISK):
            raise
        # each process may be the one that writes
        print(f"{name}: {printable(said_of(disk))}", file=sys.stderr, flush=True)
        return UserError.exit_status
