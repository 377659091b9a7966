"""What goes wrong: errors that are the user's to mend, and those of models."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# What the system says without a name when it writes to a file that is open.
OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Report a mistake that the user can mend, in one line without a traceback. The message says what was
    wrong, what was got, what is accepted and what to do. Rooms that import no other (eval/scores) keep the
    protocol by the attribute alone."""

    # of the command that meets it
    exit_status = 2


class ModelError(UserError, ValueError):
    """Parts that do not belong together, or a directory that holds no such model; the message names both sides."""


def printable(text: str, keep: str = "") -> str:
    """Return the text with every character escaped that does something to a terminal and shows nothing.

    These are control characters (C0, DEL, C1), ends of lines, reversals of the writing direction in Unicode,
    and bytes that are not UTF-8. File names may hold any of them. Those in `keep` stay.
    """
    return UNSEEN.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest of `known`, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)


def of_the_disk(error: BaseException, path: str | Path | None = None) -> OSError | None:
    """Return the OSError that safetensors and tokenizers wrap in errors of their own (a full disk, say); None for
    other errors."""
    if type(error).__name__ in ("SafetensorError", "Exception") and (
        found := re.search(r"\bos (?:error|\{ code:) (\d+)", str(error), re.I)
    ):
        return OSError(int(found[1]), os.strerror(int(found[1])), None if path is None else str(path))
    return None


@contextmanager
def naming(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Give what the disk says of the block the name of the file `path`, where it has none, or that of `temporary`."""
    try:
        yield
    except OSError as error:
        nameless = error.filename is None and error.errno in OF_WRITING
        if nameless or (temporary is not None and error.filename == str(temporary)):
            error.filename = str(path)
        raise


def not_installed(error: BaseException) -> UserError | None:
    """Return the error of the user's that a missing package is, where only a part of the system was installed; None for
    any other error, and for a module of our own that is missing."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    if package in ("cxr", "encoder", "vlm", "train", "eval"):
        return None
    return UserError(
        f"this needs the package {package}, which is not installed here; `pip install cxr-vlm` brings it (scoring "
        "alone does without: docs/install.md)"
    )


def said_of(error: Exception) -> str:
    """Return what to tell of an error: of the system's the file and the reason, without its number, and what to do."""
    if not (isinstance(error, OSError) and error.errno and error.strerror):
        return str(error)
    name = "" if error.filename is None else os.fsdecode(error.filename)
    # what is written has another name until it is whole, and a lock beside it (encoder.files)
    name = re.sub(r"(^|/)\.([^/]+)\.(?:(?:[0-9a-f]{8}|\d+)\.new|lock)$", r"\1\2", name)
    todo = {
        errno.ENOSPC: "; make room and run the same command again",
        errno.EDQUOT: "; make room and run the same command again",
        errno.EFBIG: "; raise the limit of file sizes (ulimit -f), or choose another place",
        errno.EROFS: "; choose a place that can be written",
        errno.EACCES: "; choose another place, or get leave to use it",
    }.get(error.errno, "")
    return f"{name}: {error.strerror}{todo}" if name else f"{error.strerror}{todo}"


@contextmanager
def reading(folder: str | Path, what: str) -> Iterator[None]:
    """Turn what a library raises at a spoilt file of a model (cut off, of another kind) into a ModelError of one line.

    The libraries that read models have no error of their own for that: it may be any.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # a defect of a library in Rust comes as an error that is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{folder}: {what} cannot be read: {first_line(error)}") from error
