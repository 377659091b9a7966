"""Runs of train.pretrain on a few tiny images: learning steps, resuming, stopping, golden losses."""

# Fixtures are imported.
# ruff: noqa: F401, F811

import json
import os
import shutil
import signal
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

from encoder.convert import save_backbone
from encoder.selfdistill.heads import DINOHead
from encoder.selfdistill.losses import Centre
from encoder.state_dicts import load_encoder, save_dinov2
from encoder.transforms import Preprocessing
from encoder.vit import CropViT
from tests.forked import killed_run
from tests.train.pretraining import (
    GOLDEN,
    curve,
    fresh_accelerate,
    images,
    options,
    same,
    train,
    twenty,
    weights,
    whole,
)
from train.pretrain import loop


def test_a_run_leaves_an_encoder_metrics_and_checkpoints(whole):
    model = load_encoder(whole / "encoder")
    out = model(torch.randn(1, 3, 28, 28))
    assert out.last_hidden_state.shape == (1, 17, 16)
    assert Preprocessing.from_pretrained(whole / "encoder").size == 28
    assert [line["step"] for line in curve(whole)] == list(range(1, 7))
    for line in curve(whole):
        assert all(np.isfinite(value) for value in line.values())
        assert 0 <= line["teacher_entropy"] <= line["usage_entropy"] + 1e-4 <= np.log(16) + 1e-3
        assert line["kl_uniform"] == pytest.approx(np.log(16) - line["usage_entropy"], abs=1e-5)
        assert 1 <= line["feature_rank"] <= 8  # crops
    checkpoint = whole / "checkpoints" / "step_00000006"
    assert {p.suffix for p in checkpoint.iterdir()} == {".safetensors", ".json"}  # nothing is pickled
    teacher = load_file(checkpoint / "teacher.safetensors")
    assert torch.equal(teacher["backbone.norm.weight"], weights(whole)["layernorm.weight"])
    student = load_file(checkpoint / "student.safetensors")
    assert not torch.equal(student["backbone.norm.weight"], teacher["backbone.norm.weight"])


def test_a_run_goes_on_in_the_precision_it_began_with(images, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("train.common.processes.multiplies_bf16", lambda: True)
    shutil.copytree(whole, tmp_path / "run")
    assert train(images, tmp_path / "run", "--precision", "auto") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["precision"] == "fp32"


@pytest.mark.parametrize("more", [(), ("--centring", "running_mean"), ("--separate_ibot_head", "true")])
def test_resuming_is_bit_for_bit(images, whole, tmp_path, more):
    reference = whole
    if more:
        reference = tmp_path / "reference"
        assert train(images, reference, *more) == 0
    parts = tmp_path / "parts"
    assert train(images, parts, "--stop_at", "3", *more) == 0
    assert len(curve(parts)) == 3
    assert train(images, parts, "--dataloader_num_workers", "1", "--save_steps", "50", *more) == 0
    assert curve(parts) == curve(reference)
    assert same(weights(parts), weights(reference))


def test_an_interrupt_saves_and_the_same_command_goes_on(images, whole, tmp_path, monkeypatch, capsys):
    original = loop.update_teacher
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(loop, "update_teacher", interrupted)
    assert train(images, tmp_path / "run") == 130
    assert "the same command resumes" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    stopped = len(curve(tmp_path / "run"))
    assert stopped in (3, 4)  # at the end of the step, or of the next where the signal came late
    assert train(images, tmp_path / "run") == 0
    assert f"resuming at step {stopped}" in capsys.readouterr().out
    assert curve(tmp_path / "run") == curve(whole) and same(weights(tmp_path / "run"), weights(whole))


def test_a_kill_is_survived_from_the_last_good_checkpoint(images, whole, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(images, out, "--stop_at", "4") == 0
    newest = out / "checkpoints" / "step_00000004"
    (newest / "student.safetensors").write_bytes(b"")  # as after a kill and a crash of the disk
    (out / "checkpoints" / ".step_00000006.new").mkdir()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss"')
    assert train(images, out) == 0
    assert "damaged" in capsys.readouterr().out
    assert curve(out) == curve(whole) and same(weights(out), weights(whole))


def test_a_finished_run_is_left_as_it_is(images, whole, capsys):
    before = weights(whole)
    assert train(images, whole) == 0
    said, told = capsys.readouterr()
    assert "done: 6 steps" in said
    words = f"--encoder {whole / 'encoder'} --llm LLM --studies STUDIES --out {whole.parent / 'findings'}"
    assert f"next: cxr finetune {words}" in told
    assert same(before, weights(whole))


def test_numbers_go_to_tensorboard(images, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(images, tmp_path / "run") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    shown = {scalar.step: scalar.value for scalar in events.Scalars("loss")}
    assert shown == {line["step"]: pytest.approx(line["loss"]) for line in curve(tmp_path / "run")}
    assert train(images, tmp_path / "quiet", "--report_to", "none") == 0
    assert not (tmp_path / "quiet" / "tensorboard").exists()
    assert train(images, tmp_path / "other", "--report_to", "comet_ml") == 2
    assert "comet_ml is not installed" in capsys.readouterr().err


def test_three_bad_steps_end_the_run_and_one_is_left_out(images, tmp_path, monkeypatch, capsys):
    original, steps = loop.losses, []

    def poisoned(*args):
        parts = original(*args)
        steps.append(1)
        if len(steps) == 2 or len(steps) > 3:
            parts["ibot"] = parts["ibot"] * torch.nan
            parts["loss"] = parts["loss"] * torch.nan
        return parts

    monkeypatch.setattr(loop, "losses", poisoned)
    assert train(images, tmp_path / "run") == 1
    said = capsys.readouterr().out
    assert len(steps) == 6 and "3 steps in a row were not finite, up to 5: " in said
    assert "ibot, loss, gradient norm (process 0)" in said
    assert "step_00000004" in said
    state = load_file(tmp_path / "run" / "checkpoints" / "step_00000004" / "student.safetensors")
    assert all(x.isfinite().all() for x in state.values())
    batch = load_file(tmp_path / "run" / "bad_step" / "00000005-process-0.safetensors")
    assert batch["global_GBHW"].shape == (2 * 4, 28, 28) and batch["global_GBHW"].dtype == torch.uint8
    about = json.loads((tmp_path / "run" / "bad_step" / "00000005-process-0.json").read_text())
    assert about["samples"] == [20, 21, 22, 23] and all(Path(p).is_file() for p in about["images"])


def test_heads_warm_up_while_the_backbone_stands_still(images, tmp_path):
    torch.manual_seed(3)
    start = CropViT(28, 7, 16, 2, 2, 0.5)
    save_dinov2(start, tmp_path / "start", Preprocessing(size=28))
    out = tmp_path / "run"
    options = ("--init", str(tmp_path / "start"), "--head_warmup_steps", "2", "--save_total_limit", "9")
    assert train(images, out, *options) == 0
    student = {step: load_file(out / f"checkpoints/step_{step:08d}/student.safetensors") for step in (2, 4)}
    for name, tensor in start.state_dict().items():
        assert torch.equal(student[2][f"backbone.{name}"], tensor), name
    moved = [
        name for name, x in start.state_dict().items() if not torch.equal(student[4][f"backbone.{name}"], x)
    ]
    assert len(moved) == len(start.state_dict())
    assert not torch.equal(student[2]["dino_head.mlp.0.weight"], student[4]["dino_head.mlp.0.weight"])


def test_a_released_head_is_gone_on_with(images, tmp_path, capsys):
    """By the names of dino_head.safetensors; the backbone from a file of the DINOv2 repository, of another size."""
    torch.manual_seed(3)
    start = CropViT(56, 7, 16, 2, 2, 0.5)
    save_backbone(start, tmp_path / "backbone.safetensors", "dinov2")
    head = DINOHead(16, 32, 24, 8)
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, tmp_path / "dino_head.safetensors")
    shapes = [
        "--head_n_prototypes=32",
        "--head_hidden_dim=24",
        "--head_bottleneck_dim=8",
        "--learning_rate=0",
        "--learning_rate_end=0",
    ]
    options = ("--init", str(tmp_path / "backbone.safetensors"))
    options += ("--init_head", str(tmp_path / "dino_head.safetensors"))
    assert train(images, tmp_path / "run", *options, *shapes, "--separate_ibot_head", "true") == 0
    said = capsys.readouterr().out
    assert (
        f"started from {len(start.state_dict())} tensors" in said
        and "8 of" in said
        and "fresh heads" not in said
    )
    student = load_file(next((tmp_path / "run" / "checkpoints").iterdir()) / "student.safetensors")
    for name, tensor in head.state_dict().items():
        for part in ("dino_head", "ibot_head"):
            torch.testing.assert_close(student[f"{part}.{name}"], tensor, rtol=1e-3, atol=1e-4)
    assert student["backbone.pos_embed"].shape[1] == 1 + (28 // 7) ** 2
    assert train(images, tmp_path / "other", *options) == 2
    err = capsys.readouterr().err
    assert "--init_head" in err and "has shape" in err and not (tmp_path / "other" / "checkpoints").exists()


@pytest.mark.slow
def test_ten_kills_change_nothing(images, tmp_path):
    """kill -9 at random steps and in the middle of random files: the curve is the uninterrupted one, bit for bit."""
    rng = np.random.default_rng(0)
    longer = ("--max_steps", "30", "--save_steps", "2")
    assert train(images, tmp_path / "whole", *longer) == 0
    argv = options(images, tmp_path / "run", *longer)
    kills = 0
    for _ in range(10):
        where = ("update", "file")[int(rng.integers(2))]
        kills += killed_run(argv, where, int(rng.integers(1, 8))) == -signal.SIGKILL
    assert kills == 10 and 2 < len(curve(tmp_path / "run")) < 30  # it came on, and was not done
    assert train(images, tmp_path / "run", *longer) == 0
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]


def test_golden_losses(images, twenty, tmp_path):
    """Twenty steps under a fixed seed, as they were when the file was written (with CXR_WRITE_GOLDEN=1): whatever
    changes them changes what everybody's runs learn."""
    assert train(images, tmp_path / "run", *twenty) == 0
    names = ("step", "dino_global", "dino_local", "ibot", "koleo", "loss", "teacher_entropy", "grad_norm")
    ours = [{name: line[name] for name in names} for line in curve(tmp_path / "run")]
    if os.environ.get("CXR_WRITE_GOLDEN"):
        rows = ",\n".join(json.dumps({k: round(v, 6) for k, v in line.items()}) for line in ours)
        GOLDEN.write_text(f'{{"torch": "{torch.__version__}", "losses": [\n{rows}\n]}}\n')
    wanted = json.loads(GOLDEN.read_text())["losses"]
    assert len(ours) == len(wanted) == 20
    for line, golden in zip(ours, wanted, strict=True):
        assert line == pytest.approx(golden, rel=1e-3, abs=1e-4), line["step"]


def test_a_batch_in_parts_gives_its_gradient(images, tmp_path, monkeypatch):
    """Where no loss looks beyond its part (no KoLeo, centres that stand still), parts make no difference."""
    monkeypatch.setattr(Centre, "update", lambda self, logits_BK: None)
    more = ["--koleo_loss_weight", "0", "--centring", "running_mean", "--mask_sample_probability", "1"]
    more += ["--stop_at", "1"]
    assert train(images, tmp_path / "whole", *more) == 0
    assert train(images, tmp_path / "parts", *more, "--gradient_accumulation_steps", "2") == 0
    (a,), (b,) = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    for name in ("loss", "dino_global", "dino_local", "ibot", "grad_norm"):
        assert a[name] == pytest.approx(b[name], rel=1e-5), name


# Each block is compiled by itself, so one stands for all.
ONE_BLOCK = ("--num_hidden_layers", "1", "--stop_at", "2")


@pytest.fixture(scope="module")
def one_block(images, tmp_path_factory):
    """Two steps of one block that is not compiled."""
    out = tmp_path_factory.mktemp("runs") / "one_block"
    assert train(images, out, *ONE_BLOCK) == 0
    AcceleratorState._reset_state(True)
    return out


# code is generated and compiled
@pytest.mark.slow
def test_compiled_blocks_learn_the_same(images, one_block, tmp_path, monkeypatch):
    """As torch.compile traces a block and its gradients, with our kernels in it; the code generator is left out."""
    compiled = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    torch.compiler.reset()
    counters.clear()
    assert train(images, tmp_path / "run", *ONE_BLOCK, "--torch_compile", "true") == 0
    # Student and teacher were compiled whole.
    assert counters["frames"]["ok"] >= 2 and not counters["graph_break"]
    for a, b in zip(curve(one_block), curve(tmp_path / "run"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generated_code_learns_the_same(images, one_block, tmp_path, monkeypatch):
    """The whole of torch.compile, for losses and gradients of one step, as scalar C++ without helper processes."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)
    torch.compiler.reset()
    assert train(images, tmp_path / "run", *ONE_BLOCK, "--stop_at", "1", "--torch_compile", "true") == 0
    (line,) = curve(tmp_path / "run")
    assert line == pytest.approx(curve(one_block)[0], rel=1e-3, abs=1e-3)
