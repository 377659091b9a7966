"""train.pretrain in two processes, and how accelerate may spread it."""

# Fixtures are imported.
# ruff: noqa: F401, F811

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from tests.forked import two_processes
from tests.train.fsdp2_on_cpus import split_pretraining
from tests.train.pretraining import (
    GOLDEN,
    curve,
    fresh_accelerate,
    images,
    options,
    train,
    twenty,
)
from tests.train.pretraining import config as tiny_config
from train.common.config import ConfigError
from train.common.launcher import LAUNCH_FILES
from train.pretrain import session
from train.pretrain.model import Distilled

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one(images, twenty, tmp_path_factory):
    """The golden run in one process."""
    out = tmp_path_factory.mktemp("runs") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert train(images, out, *twenty) == 0
    AcceleratorState._reset_state(True)
    return out


def check_against(one, out):
    """Compare with one process to rounding, and with the golden losses."""
    wanted = json.loads(GOLDEN.read_text())["losses"]
    for ours, theirs, golden in zip(curve(out), curve(one), wanted, strict=True):
        if ours["step"] <= 5:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        assert {name: ours[name] for name in golden} == pytest.approx(golden, rel=1e-3, abs=1e-4)


def forked(folder, images, out, *more, change=None):
    """Train in two processes; returns what was said."""
    ended = two_processes(options(images, out, *more), folder, change)
    assert ended.codes == [0, 0], ended.complained
    return "".join(ended.said)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(images, twenty, one, tmp_path, monkeypatch):
    """Same seed, same global batch, float32: the same curve to rounding, and the golden one. The run resumes in two
    processes, and ends in one. Two that accelerate launches are in tests/cxr/test_names.py."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    out = tmp_path / "two"
    assert "on 2 x cpu" in forked(tmp_path, images, out, *twenty, "--stop_at", "4")
    said = forked(tmp_path, images, out, *twenty, "--stop_at", "19")
    assert "on 2 x cpu" in said and said.count("resuming at step 4") == 1
    assert train(images, out, *twenty) == 0
    check_against(one, out)


# processes that share a training, several times
@pytest.mark.slow
def test_split_weights_learn_what_whole_ones_learn(images, twenty, one, tmp_path, monkeypatch):
    """Two processes under FSDP2. They leave the same files: one process reads what several wrote."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    out = tmp_path / "two"
    said = forked(tmp_path, images, out, *twenty, "--stop_at", "12", change=split_pretraining)
    assert "on 2 x cpu" in said
    assert train(images, out, *twenty) == 0
    check_against(one, out)


def test_parts_of_a_batch_are_spread_alike(images, tmp_path):
    """Two processes see the parts that one sees, and their gradients add up."""
    more = ("--gradient_accumulation_steps", "2", "--batch_size", "8")
    assert "on 2 x cpu" in forked(tmp_path, images, tmp_path / "two", *more)
    assert train(images, tmp_path / "one", *more) == 0
    for a, b in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)


def test_a_signal_to_one_process_stops_both_after_the_same_step(images, tmp_path):
    ended = two_processes(options(images, tmp_path / "run", "--max_steps", "60"), tmp_path, interrupt_second)
    assert set(ended.codes) <= {130, 143} and "Traceback" not in "".join(ended.complained)
    assert "the same command resumes" in ended.said[0]
    stopped = len(curve(tmp_path / "run"))
    # At the end of the step, or of the next where the flag came late.
    assert stopped in (3, 4)
    assert (tmp_path / "run" / "checkpoints" / f"step_{stopped:08d}" / "state.json").is_file()


def interrupt_second():
    """Let the second process get SIGTERM in its third step."""
    from train.pretrain import loop

    original, steps = loop.update_teacher, []

    def interrupted(*args):
        steps.append(1)
        if os.environ["RANK"] == "1" and len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    loop.update_teacher = interrupted


@pytest.mark.parametrize("what", ["probe", "out", "disk"])
def test_what_the_first_process_refuses_ends_both(images, tmp_path, what):
    """It alone reads the labelled images, claims the folder and writes; one line says what is wrong."""
    out, more = tmp_path / "run", []
    if what == "probe":
        more = ["--probe", "nowhere"]
    elif what == "out":
        out.mkdir()
        (out / "thesis.txt").touch()
    else:
        assert train(images, out, "--stop_at", "3", "--report_to", "none") == 0
        (out / "metrics.jsonl").unlink()
        (out / "metrics.jsonl").symlink_to("/dev/full")
    ended = two_processes(options(images, out, "--report_to", "none", *more), tmp_path)
    assert ended.codes == [2, 2]
    assert ended.complained[1] == "" and ended.complained[0].startswith("train.pretrain: ")
    wanted = {"probe": "nowhere does not exist", "out": "not a run", "disk": "No space left on device"}
    assert wanted[what] in ended.complained[0] and ended.complained[0].count("\n") == 1


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_launch_files_are_accelerates(name):
    launch = load_config_from_file(str(LAUNCH_FILES / f"{name}.yaml"))
    assert launch.num_processes == 8 and launch.mixed_precision == "no"
    if name == "fsdp2":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[launch.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]],
        )  # fmt: skip
        plugin.set_auto_wrap_policy(Distilled(tiny_config()))


@pytest.mark.parametrize(
    ("kind", "version", "message"),
    [
        ("DEEPSPEED", 0, "not on DEEPSPEED"),
        ("FSDP", 1, "not on FSDP of version 1"),
        ("FSDP", 2, ""),
        ("NO", 0, ""),
    ],
)
def test_other_ways_of_spreading_are_refused(kind, version, message):
    accelerator = SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=version == 2)
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        session.check_kind(accelerator)
