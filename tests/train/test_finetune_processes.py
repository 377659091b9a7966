"""Fine-tuning in one process and in two, and when the power fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import run_in_processes
from tests.tiny import SMALL, metrics
from tests.train.finetune_changes import killed_at, split_finetuning
from vlm.load import load_model

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
# Steps: a checkpoint after 4, scores after 5, a kill in the last.
FEW = ["--max_steps", "7"]


@pytest.fixture
def words(encoder_dir, llm_dir, studies_file, features_dir, tmp_path):
    """The command line of a tiny fine-tuning into a folder of that name."""
    parts = ["--encoder", str(encoder_dir), "--llm", str(llm_dir), "--studies", str(studies_file)]
    parts += ["--features_dir", str(features_dir)]
    return lambda out, *more: [*SMALL, *more, *parts, "--out", str(tmp_path / out)]


@pytest.fixture
def forked(words, tmp_path):
    """Run it in so many processes; -> their exit codes."""

    def run(out: str, processes: int, *more: str, change=None) -> list[int]:
        ended = run_in_processes("train.finetune", words(out, *more), processes, tmp_path / "said", change)
        if any(code not in (0, KILLED) for code in ended.codes):
            raise AssertionError("".join(ended.complained))
        return ended.codes

    return run


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_changes_nothing_and_two_processes_learn_what_one_learns(train, forked, tmp_path, processes):
    """Kill -9 of all processes at step 6, after the checkpoint of step 4: the same losses and the same adapter, bit for
    bit. Two processes and one: equal up to rounding."""
    more = [*FEW, "--align_steps", "4"] if processes == 2 else FEW
    assert train("one", *more) == 0
    if processes == 2:
        assert forked("whole", 2, *more) == [0, 0]
    whole = tmp_path / ("one" if processes == 1 else "whole")
    assert forked("parts", processes, *more, change=killed_at(6)) == [KILLED] * processes
    assert not (tmp_path / "parts" / "adapter").exists()
    assert forked("parts", processes, *more) == [0] * processes
    assert metrics(tmp_path / "parts") == metrics(whole)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes()

    same_curve(tmp_path / "parts", tmp_path / "one")


def same_curve(run: Path, other: Path, rel: float = 1e-4) -> None:
    ours, reference = metrics(run), metrics(other)
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference, strict=True):
        assert a == pytest.approx(b, rel=rel, abs=rel / 10)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--llm_dtype", "bf16", "--precision", "bf16"), ("--lora", "false")])
def test_weights_that_two_processes_share_learn_what_one_learns(train, forked, tmp_path, options):
    """FSDP2: the same curve; what is saved is whole, of LoRA the adapter alone; what one process began the two go on
    with. Nine validation studies: the two do not have as many."""
    more = (*FEW, *options, "--eval_studies", "9", "--eval_batch_size", "4", "--merge")
    assert train("one", *more) == 0
    assert forked("two", 1, *more, change=killed_at(6)) == [KILLED]
    assert forked("two", 2, *more, change=split_finetuning) == [0, 0]
    half = "bf16" in options
    same_curve(tmp_path / "two", tmp_path / "one", rel=2e-2 if half else 1e-4)
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors")[0 if half else 1 :]:
        ours, reference = (load_file(tmp_path / run / name) for run in ("two", "one"))
        assert ours.keys() == reference.keys()
        for key, x in ours.items():
            assert x.dtype == reference[key].dtype
            torch.testing.assert_close(x, reference[key], rtol=2e-2, atol=2e-2 if half else 2e-4, msg=key)
    assert load_model(tmp_path / "two" / ("adapter" if half else "merged"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_learns_what_one_process_learns(train, forked, words, tmp_path, stage):
    """What one process began two go on with, under ZeRO, by the launch file; the adapter is that of one process."""
    more = ("--eval_studies", "9", "--eval_batch_size", "4")
    assert train("one", *more) == 0
    assert forked("two", 1, *more, change=killed_at(6)) == [KILLED]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command += ["--config_file", str(ROOT / "train" / "launch" / f"deepspeed_zero{stage}.yaml")]
    command += ["-m", "tests.train.finetune_deepspeed_on_cpus", *words("two", *more)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=240)
    same_curve(tmp_path / "two", tmp_path / "one")
    name = "adapter/adapter_model.safetensors"
    ours, reference = (load_file(tmp_path / run / name) for run in ("two", "one"))
    assert ours.keys() == reference.keys()
    for key, x in ours.items():
        torch.testing.assert_close(x, reference[key], rtol=1e-2, atol=2e-4, msg=key)
