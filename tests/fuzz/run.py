"""Mutants are read in a forked process: one that ends it or hangs is counted, and the next process begins behind it."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tests.fuzz.kinds import FAULTS, Kind, kinds, mutant, outcome

# Seconds for one mutant, on a busy machine.
PATIENCE = 30.0


def run(n: int, seed: int, only: str | None = None, keep: str | None = None) -> dict[str, Counter[str]]:
    """-> kind -> outcome -> how many of `n` mutants. With `keep`, a folder gets those that must not be."""
    known = kinds()
    if only:
        known = {only: known[only]}
    shares = np.array([kind.share for kind in known.values()])
    turns = np.random.default_rng(seed).choice(len(shares), n, p=shares / shares.sum())
    names = list(known)
    plan = [(names[k], i) for i, k in enumerate(turns)]
    counts: dict[str, Counter[str]] = {name: Counter() for name in known}
    at = 0
    while at < len(plan):
        for what in _batch(known, plan[at:], seed):
            name, i = plan[at]
            counts[name][what] += 1
            if keep and what.startswith(FAULTS):
                folder = Path(keep)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{seed}-{i}-{name}").write_bytes(mutant(known[name], generator(seed, i)))
                print(f"{name} {i}: {what}", flush=True)
            at += 1
    return counts


def generator(seed: int, i: int) -> np.random.Generator:
    """Of mutant `i`, whatever came before it."""
    return np.random.default_rng([seed, i])


def _batch(known: dict[str, Kind], plan: list[tuple[str, int]], seed: int) -> Iterator[str]:
    """Outcomes of `plan`, up to the first that ends the process or hangs."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_read_all, args=(known, plan, seed, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        for _ in plan:
            if not ours.poll(PATIENCE):
                yield "TIMEOUT"
                return
            try:
                yield ours.recv_bytes().decode()
            except EOFError:
                process.join(5)
                yield f"DEATH: {process.exitcode}"
                return
    finally:
        process.kill()
        process.join()


def _read_all(known: dict[str, Kind], plan: list[tuple[str, int]], seed: int, to: Connection) -> None:
    # what pydicom or Pillow say is not for this screen
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with tempfile.TemporaryDirectory() as folder:
        for name, i in plan:
            data = mutant(known[name], generator(seed, i))
            to.send_bytes(outcome(known[name], data, Path(folder)).encode("utf-8", "backslashreplace"))


def table(counts: dict[str, Counter[str]]) -> str:
    """A row for each outcome, a column for each kind."""
    order = {name: place for place, name in enumerate(("ok", "warned"))}
    rows = sorted({what for of in counts.values() for what in of}, key=lambda w: (order.get(w, 9), w))
    width = max([9, *map(len, rows)])
    lines = [" " * width + "".join(f"{name:>{len(name) + 3}}" for name in counts)]
    for row in rows:
        lines.append(
            f"{row:{width}}" + "".join(f"{counts[name][row] or '-':>{len(name) + 3}}" for name in counts)
        )
    return "\n".join(lines)
