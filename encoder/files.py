"""Files that two runs may want at the same time, or that a run was killed in the middle of writing."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from encoder.errors import UserError, naming, of_the_disk, printable

# Paths may hold bytes that are not UTF-8, which so survive being written and read.
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}

# Bytes of a line; a longer one is not a line of text, and would be read into memory as a whole.
LONGEST_LINE = 1 << 26


class InputFileError(UserError, OSError):
    """A file that is named as an input and cannot be one."""


def no_file(path: str | Path) -> str:
    """Say that what is there is a pipe, a socket or a device, whose reading may never end; "" for all else, and for
    nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    return f"{path} is not a regular file but a pipe, a socket or a device; give a regular file"


def check_input(path: str | Path) -> None:
    """Raise InputFileError for a pipe, a socket or a device; what is not there passes."""
    if problem := no_file(path):
        raise InputFileError(problem)


def text_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[str]:
    """Yield the lines of a text file with their ends.

    Raises InputFileError for a pipe or a device and for a line of over 64 MiB, OSError, and UnicodeDecodeError.
    """
    check_input(path)
    with path.open(encoding=encoding) as file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise InputFileError(
                    f"{path} has a line of over {LONGEST_LINE} characters; is it a text file?"
                )
            yield line


@contextmanager
def one_at_a_time(
    path: Path, waiting: str, patience: float = -1, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock file `path` while the block lasts.

    Where another process holds it, this says `waiting` and waits, for at most `patience` seconds unless that is
    negative. Raises filelock.Timeout, and OSError where the file cannot be made.
    """
    # Not above: half of the time that importing this file would take.
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # filelock takes some files that cannot be made for held ones (of /proc, say), and would wait for ever.
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
        (say or partial(print, file=sys.stderr, flush=True))(printable(waiting))
        lock.acquire(timeout=patience)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold the right to write the file `path` while the block lasts; another process that wants it says so and waits.

    The lock is `.NAME.lock` beside the file, and goes when the block ends. A folder that is not there is made. Raises
    OSError where the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with one_at_a_time(lock, f"another process is writing {path}; waiting for it"):
        try:
            yield
        finally:
            # A waiting process holds the old file open: filelock sees that its name is gone, and opens a new
            # one.
            lock.unlink(missing_ok=True)


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; the file there replaces `path` once the block has ended.

    Readers see the old content or the new one, also after a crash of the machine. If the block raises, or removes the
    file, `path` stays as it was and nothing is left behind; a killed process alone leaves `.NAME.xxxxxxxx.new`. The
    file has the permissions of any new file, whoever wrote it (safetensors' own are for the owner alone).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    with naming(path, temporary), temporary.open("xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        with naming(path, temporary):
            yield temporary
            if not temporary.exists():
                return
            temporary.chmod(mode)
            sync(temporary)
            temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if disk := of_the_disk(error, path):
            raise disk from error
        raise
    sync(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as UTF-8, as `write_atomically` does."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, **TEXT)


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file, as `write_atomically` does."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def open_to_readers(folder: Path) -> None:
    """Give the files of a folder the permissions of any new file; safetensors' own are for the owner alone."""
    probe = folder / f".{os.urandom(4).hex()}.new"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def sweep(folder: Path, start: str = "") -> None:
    """Remove what killed processes left of `write_atomically` in `folder`, of files whose names begin with `start`. To
    be called only where nobody else writes these."""
    for left in folder.glob(f".{glob.escape(start)}*.????????.new"):
        left.unlink(missing_ok=True)


def replace_folder(new: Path, final: Path) -> None:
    """Replace folder `final` by `new`. Between two renames `final` is briefly absent."""
    old = None
    if final.exists():
        old = final.with_name(f".{final.name}.old.{os.getpid()}")
        final.rename(old)
    new.rename(final)
    sync(final.parent)
    if old:
        shutil.rmtree(old)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot sync a folder.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def whole_lines(path: Path) -> bytes:
    """Return the lines of a file that grows by lines, without a last one that was cut off, or is just being written."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def append(path: Path, lines: bytes) -> None:
    """Add whole lines to a file, and wait until they are on the disk; a line that was cut off before is dropped.

    Only one process may append at a time: hold a lock.
    """
    if not lines:
        return
    with naming(path), path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.truncate(len(whole_lines(path)))
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def append_json(path: Path, lines: Iterable[Any]) -> None:
    """Add a JSON value a line, as `append` does."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    # A path that is not UTF-8 comes out as JSON's \udcXX.
    append(path, text.encode("utf-8", "backslashreplace"))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that `append_json` wrote; [] where there is none. Lines that are not JSON
    objects are skipped: earlier versions left them where a process was killed, and a disk may have damaged
    them."""
    if not path.is_file():
        return []
    found = []
    for line in whole_lines(path).decode(**TEXT).split("\n"):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file that `write_json` wrote holds. Raises InputFileError if it is no longer an
    object, and OSError."""
    try:
        row = json.loads(path.read_text(**TEXT))
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise InputFileError(
            f"{path} is damaged: it is not a JSON object; restore it, or begin in a new folder"
        )
    return row


def sha256_of(*files: Path) -> str:
    """Return the hex digest of what `files` contain, one after the other. Raises OSError."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def key_of(content: Any) -> str:
    """Return 16 hex digits that name `content` (anything that has a JSON form)."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
