"""Fine-tuning in one process and in two, and when the power fails."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.tiny import SMALL, metrics
from train.launcher import accelerate_command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch(encoder_dir, llm_dir, studies_file, tmp_path):
    """Run a module through accelerate; -> its exit status."""

    def run(out: str, processes: int, module: str = "train.finetune", *more: str, **env: str) -> int:
        command = [
            *accelerate_command(module, processes=processes),
            *SMALL,
            *more,
            "--studies",
            str(studies_file),
        ]
        command += ["--encoder", str(encoder_dir), "--llm", str(llm_dir), "--out", str(tmp_path / out)]
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL, start_new_session=True
        )  # a session of its own, so that the kill ends this run alone
        return process.wait(timeout=240)

    return run


@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_changes_nothing_and_two_processes_learn_what_one_learns(train, launch, tmp_path, processes):
    """Kill -9 of all processes at step 6, after the checkpoint of step 4: the same losses and the same adapter, bit for
    bit. Two processes and one: equal up to rounding."""
    more = ["--align_steps", "4"] if processes == 2 else []
    assert train("one", *more) == 0
    if processes == 2:
        assert launch("whole", 2, "train.finetune", *more) == 0
    whole = tmp_path / ("one" if processes == 1 else "whole")
    killed = launch("parts", processes, "tests.train.finetune_killed", *more, CXR_KILLED_AT="6")
    assert killed == -signal.SIGKILL and not (tmp_path / "parts" / "adapter").exists()
    assert launch("parts", processes, "train.finetune", *more) == 0
    assert metrics(tmp_path / "parts") == metrics(whole)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes()

    ours, reference = metrics(tmp_path / "parts"), metrics(tmp_path / "one")
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
