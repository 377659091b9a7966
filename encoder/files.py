"""Files that two runs may want at the same time, or that a run was killed in the middle of writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def one_at_a_time(
    path: Path, waiting: str, patience: float = -1, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock file `path` while the block lasts. Where another process has it, says `waiting` and waits, for at
    most `patience` seconds unless that is negative. Raises filelock.Timeout."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        (say or partial(print, flush=True))(waiting)
        lock.acquire(timeout=patience)
    try:
        yield
    finally:
        lock.release()


def whole_lines(path: Path) -> bytes:
    """The lines of a file that grows by lines; a last one that was cut off is cut away."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole
