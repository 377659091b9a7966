"""What the kernels become on sm_80 and sm_90. Triton compiles for them on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed, so there is nothing to compile with")

ROOT = Path(__file__).parents[3]


def compiled(what: str) -> list[dict]:
    # which this process has set; Triton's cache knows kernels by their source, the compiler and the target
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "attention_tiles.py", what, "--workers", "1"],
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


# the compiler takes three seconds for each that it has not compiled before
@pytest.mark.slow
def test_no_register_spills_and_tensor_cores_do_the_products():
    """Entries of the table that our trainings use; on sm_90 read by TMA."""
    found = compiled("used")
    assert len(found) == 2 * 3 * 2  # architectures, kernels, and what attention_tiles.py lists
    for entry in found:
        assert "error" not in entry, entry
        assert entry["LDL"] == entry["STL"] == 0, entry  # local memory: spilled registers
        assert entry["shared"] <= (227 if entry["arch"] == 90 else 99) * 1024, (
            entry
        )  # 99: sm_89, by the same code
        if entry["arch"] == 90:
            assert entry["HGMMA"] > 0 and entry["UTMALDG"] > 0, entry
        else:
            assert entry["HMMA"] > 0, entry
