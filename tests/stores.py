"""Writers of stores, in processes of their own that may be killed at any moment at which something reaches the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.forked import context

SIDE = 28


def start(work: Callable[..., None], *arguments: Any, die_at: int = 0, together: Any = None) -> Any:
    """Start `work` in a process, which kills itself before its `die_at`-th fsync, and begins when all others of the
    barrier `together` have come so far."""
    process = context().Process(target=_run, args=(work, arguments, die_at, together))
    process.start()
    return process


def ended(process: Any) -> int:
    """Wait for a process; returns its exit code (-9 if it was killed)."""
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError("the writer hangs")
    return process.exitcode


def barrier(parties: int) -> Any:
    return context().Barrier(parties)


def _run(work: Callable[..., None], arguments: tuple, die_at: int, together: Any) -> None:
    from encoder import workers

    # The workers of a killed process hold its lock until they notice.
    workers.WATCHED = 0.05
    count, sync = 0, os.fsync

    def dying(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = dying
    if together is not None:
        together.wait(60)
    work(*arguments)


def embedded(films: list[Path], out: Path) -> None:
    """`cxr embed`, two images a batch and four a file."""
    from encoder.embed import embed
    from encoder.frozen import encoder_of

    encoder = encoder_of("pixels", SIDE)
    list(embed([str(f) for f in films], encoder, out, about={}, patches=True, batch_size=2, per_file=4))


def extracted(films: list[Path], out: Path) -> None:
    """The features of probes, two images a batch and four a file."""
    from encoder import features
    from encoder.frozen import encoder_of

    features.MOST = 4
    features.extract(encoder_of("pixels", SIDE), films, out, patches=True, batch=2)


def prepared(films: list[Path], out: Path) -> None:
    """`cxr prepare`, four images a shard."""
    from train.datasets.archive import prepare

    list(prepare(films, out, short_side=SIDE, workers=1, per_shard=4))


def indexed(films: list[Path], out: Path) -> None:
    """`cxr prepare` into a CSV, four images at a time."""
    from train.datasets import index

    index.PER_FLUSH = 4
    list(index.index(films, out / "index.csv", workers=1))


def parent_of_sleepers(pids: Path) -> None:
    """A process that is killed while its workers have nothing to do."""
    from encoder.workers import pool

    with pool(2) as processes:
        found = {processes.submit(_pid).result() for _ in range(2)}
        pids.write_text(" ".join(map(str, found)))
        os.kill(os.getpid(), signal.SIGKILL)


def _pid() -> int:
    return os.getpid()
