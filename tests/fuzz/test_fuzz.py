"""Damaged files of all kinds: each is read, or refused by its code."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import run as harness
from tests.fuzz.kinds import FAULTS, Kind, kinds, mutant, outcome
from tests.fuzz.mutators import flip_bits

SEED = 22


def test_500_damaged_files():
    counts = harness.run(500, SEED)
    assert sum(map(sum, (of.values() for of in counts.values()))) == 500
    bad = {(kind, what) for kind, of in counts.items() for what in of if what.startswith(FAULTS)}
    assert not bad
    # the damage is neither so light that all is read, nor so heavy that nothing is
    for kind, of in counts.items():
        refused = sum(n for what, n in of.items() if what.startswith("refused"))
        assert 0 < refused < sum(of.values()), kind


def test_every_seed_is_sound_and_damage_repeats(tmp_path):
    for name, kind in kinds().items():
        for seed in kind.seeds:
            assert outcome(kind, seed, tmp_path) in ("ok", "warned"), name
        assert mutant(kind, harness.generator(1, 5)) == mutant(kind, harness.generator(1, 5))
        assert len({mutant(kind, harness.generator(1, i)) for i in range(40)}) > 30


def end(data: bytes, folder: Path) -> str:
    os._exit(5)


def hang(data: bytes, folder: Path) -> str:
    time.sleep(1000)
    return "ok"


def fail(data: bytes, folder: Path) -> str:
    return str(int("x"))


@pytest.mark.parametrize(
    ("reader", "found"), [(end, "DEATH: 5"), (hang, "TIMEOUT"), (fail, "UNTYPED: ValueError")]
)
def test_the_harness_sees_what_must_not_be(reader, found, monkeypatch):
    kind = Kind([b"seed"], (flip_bits,), reader, 1)
    monkeypatch.setattr(harness, "kinds", lambda: {"x": kind})
    monkeypatch.setattr(harness, "PATIENCE", 0.3)
    (counts,) = harness.run(3, 0).values()
    assert all(what.startswith(found) and n == 3 for what, n in counts.items()) and counts
    assert isinstance(mutant(kind, np.random.default_rng(0)), bytes)
