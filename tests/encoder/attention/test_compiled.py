"""What the kernels become on sm_80 and sm_90. Triton compiles for them on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed, so there is nothing to compile with")


def test_no_register_spills_and_tensor_cores_do_the_products(tmp_path):
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    env.pop("TRITON_INTERPRET", None)  # which this process has set
    done = subprocess.run(
        [sys.executable, "-m", "tests.encoder.attention.compiled"],
        cwd=Path(__file__).parents[3],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 30
    for entry in found:
        assert entry["LDL"] == entry["STL"] == 0, entry  # local memory: spilled registers
        assert entry["HGMMA" if entry["arch"] == 90 else "HMMA"] > 0, entry
        assert entry["shared"] <= (227 if entry["arch"] == 90 else 99) * 1024, (
            entry
        )  # 99: sm_89, by the same code
