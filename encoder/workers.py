"""Worker processes that do not outlive the one that started them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

# Seconds after which a worker notices at the latest that its parent is gone.
WATCHED = 1.0
# Processes that one command may start. More than this would only wait for each other and take memory.
MOST_WORKERS = max(64, 4 * (os.cpu_count() or 1))


def pool(workers: int | None = None, initializer: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Return a pool of `workers` processes (None: one a core, at most 32; never more than MOST_WORKERS) that end with
    this one, also when it is killed. Left to themselves they would sleep for good, with the memory and the locks that
    they have from it."""
    # a process that only ends with another does without (30 ms)
    from concurrent.futures import ProcessPoolExecutor

    if workers is None:
        workers = min(32, os.cpu_count() or 1)
    return ProcessPoolExecutor(
        min(workers, MOST_WORKERS), initializer=_begin, initargs=(os.getpid(), initializer)
    )


def end_with(parent: int) -> None:
    """End this process within about a second once its `parent` (a process id) is gone, however that ended."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _begin(parent: int, initializer: Callable[[], None] | None) -> None:
    end_with(parent)
    if initializer:
        initializer()


def _watch(parent: int) -> None:
    # Who started this process is `parent`, or a server that ends with it. A killed parent may still be there, as a
    # process that nobody has waited for, but its children are not its own any more.
    starter = os.getppid()
    while os.getppid() == starter and _there(parent):
        time.sleep(WATCHED)
    os._exit(1)


def _there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    # killed, and nobody has waited for it yet; elsewhere than on Linux that cannot be seen so
    with suppress(OSError):
        return b") Z" not in Path(f"/proc/{process}/stat").read_bytes()
    return True
