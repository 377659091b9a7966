"""The whole of train.pretrain on a few tiny images: learning steps, resuming, refusing, two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoder.convert import save_backbone
from encoder.selfdistill.heads import DINOHead
from encoder.selfdistill.losses import Centre
from encoder.state_dicts import load_encoder, save_dinov2
from encoder.transforms import Preprocessing
from encoder.vit import CropViT, sincos_positions
from tests.killed import killed_run
from train.common.config import ConfigError, load_config, recipe_path
from train.common.entry import entry
from train.pretrain import loop, session
from train.pretrain.__main__ import main
from train.pretrain.config import PretrainConfig
from train.pretrain.data import Samples, collate, multi_crop
from train.pretrain.model import Distilled
from train.pretrain.optim import apply_schedules, parameter_groups
from train.pretrain.watch import effective_rank, flops_per_image

ROOT = Path(__file__).parents[2]
TINY = [
    "--size=28 --patch_size=7 --hidden_size=16 --num_hidden_layers=2 --num_attention_heads=2 --local_crops_size=14",
    "--local_crops_number=2 --head_n_prototypes=16 --head_hidden_dim=16 --head_bottleneck_dim=8 --batch_size=4",
    "--max_steps=6 --warmup_steps=2 --freeze_last_layer_steps=1 --layerscale=0.5 --warmup_teacher_temp_steps=3",
    "--drop_path_rate=0.2 --precision=fp32 --short_side=32 --logging_steps=1 --save_steps=2 --threads=1",
    "--learning_rate=0.01",
]
TINY = " ".join(TINY).split()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(10):
        rng = np.random.default_rng(i)
        grey = np.linspace(0, 200, 40)[None] * rng.random() + rng.random((36, 1)) * 55
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(True)


def pretraining(*words):
    return entry(main, "train.pretrain", list(words))


def train(images, out, *options):
    return pretraining(*TINY, "--data", str(images), "--out", str(out), *options)


def curve(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def weights(out):
    return load_file(out / "encoder" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(images, out) == 0
    AcceleratorState._reset_state(True)
    return out


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


@pytest.mark.parametrize("options", [(), ("--centring", "running_mean"), ("--separate_ibot_head", "true")])
def test_resuming_is_bit_for_bit(images, whole, tmp_path, options):
    reference = whole
    if options:
        reference = tmp_path / "reference"
        assert train(images, reference, *options) == 0
    parts = tmp_path / "parts"
    assert train(images, parts, "--stop_at", "3", *options) == 0
    assert len(curve(parts)) == 3
    assert train(images, parts, "--dataloader_num_workers", "1", "--save_steps", "50", *options) == 0
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
    assert f"resuming after step {stopped}" in capsys.readouterr().out
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
    assert "done: 6 steps" in capsys.readouterr().out
    assert same(before, weights(whole))


def test_another_config_or_other_images_are_refused(images, whole, tmp_path, capsys):
    assert train(images, whole, "--learning_rate", "0.02", "--momentum_teacher", "0.9") == 2
    error = capsys.readouterr().err
    assert "learning_rate: 0.01 there, 0.02 now" in error and "momentum" in error and "--out" in error
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for path in sorted(images.iterdir())[:5]:
        (fewer / path.name).write_bytes(path.read_bytes())
    assert train(fewer, whole) == 2
    assert "images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--size", "30"], "multiples of patch"),
        (["--weights", "1", "2"], "2 weights for 1"),
        (["--centring", "none"], "centring"),
        (["--precision", "fp8"], "one of auto, bf16, fp32, not 'fp8'"),
        (["--mask_ratio_min_max", "0.5", "0.1"], "mask_ratio"),
        (["--drop_path_rate", "1.0"], "drop_path"),
        (["--report_to", "paper"], "report_to must be"),
        (["--init", "nowhere"], "nowhere does not exist"),
        (["--init_head", "nowhere"], "nowhere does not exist"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(images, tmp_path, capsys, options, message):
    assert train(images, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_effective_rank():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(40, 8)))
    q -= q.mean(0)
    for rank in (1, 3, 8):
        x = q[:, :rank] @ rng.normal(size=(rank, 20))
        values = np.linalg.svd(x - x.mean(0), compute_uv=False)[:rank]
        shares = values / values.sum()
        wanted = np.exp(-(shares * np.log(shares)).sum())
        assert float(effective_rank(torch.tensor(x))) == pytest.approx(wanted, rel=1e-6)
    assert float(effective_rank(torch.ones(5, 3))) == 1


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


def test_no_data_is_refused(tmp_path, capsys):
    assert pretraining(*TINY, "--out", str(tmp_path / "run")) == 2
    assert "--data" in capsys.readouterr().err


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


def test_init_of_another_shape_is_refused(images, tmp_path, capsys):
    save_dinov2(CropViT(28, 7, 32, 2, 2, 0.5), tmp_path / "start", Preprocessing(size=28))
    assert train(images, tmp_path / "run", "--init", str(tmp_path / "start")) == 2
    assert "width is 32 there and 16 in the recipe" in capsys.readouterr().err


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


def test_the_head_of_the_recipe_is_that_of_the_released_file():
    """dino_head.safetensors of microsoft/rad-dino is 92.6 MB."""
    c = load_config(PretrainConfig, "pretrain", ["--recipe", "rad_dino_vitb14_518"])
    with torch.device("meta"):
        head = DINOHead(c.hidden_size, c.head_n_prototypes, c.head_hidden_dim, c.head_bottleneck_dim)
    assert sum(p.numel() for p in head.parameters()) * 4 / 1e6 == pytest.approx(92.6, abs=0.1)


@pytest.mark.parametrize("recipe", ["rad_dino_vitb14_518", "rad_dino_1gpu", "continue_pretraining"])
def test_recipes_say_why(recipe):
    c = load_config(PretrainConfig, "pretrain", ["--recipe", recipe])
    assert (
        c.size,
        c.patch_size,
        c.hidden_size,
        c.num_hidden_layers,
        c.num_attention_heads,
        c.local_crops_size,
    ) == (518, 14, 768, 12, 12, 98)
    assert (
        c.warmup_steps < c.max_steps
        and c.head_warmup_steps < c.max_steps
        and c.warmup_teacher_temp_steps < c.max_steps
    )
    lines = recipe_path(recipe).read_text().partition("pretrain:\n")[2].splitlines()
    plain = ("save_steps", "dataloader_num_workers")
    unsaid = [line for line in lines if "#" not in line and not line.strip().startswith(plain)]
    assert not unsaid


@pytest.mark.parametrize("recipe", ["demo", "mini", "real_encoder", "real_small"])
def test_the_small_recipes_load(recipe):
    c = load_config(PretrainConfig, "pretrain", ["--recipe", recipe])
    assert c.size % c.patch_size == c.local_crops_size % c.patch_size == 0 and c.warmup_steps < c.max_steps


def config(**changes) -> PretrainConfig:
    tiny = PretrainConfig(
        data=["x"], size=28, patch_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        local_crops_size=14, local_crops_number=2, head_n_prototypes=16,
        head_hidden_dim=16, head_bottleneck_dim=8, batch_size=4, max_steps=6, drop_path_rate=0.2, layerscale=0.5,
    )  # fmt: skip
    return replace(tiny, **changes)


def grey_images(n):
    return [np.random.default_rng(i).integers(0, 256, (36, 40)).astype(np.uint8) for i in range(n)]


def test_samples_depend_on_seed_and_number_alone():
    images = grey_images(5)
    one, two = Samples(images, [5], config()), Samples(images, [5], config())
    later = [two[i] for i in (7, 3)]  # in another order, as in another process
    for (crops, masks, residual), position in zip(later, (7, 3), strict=True):
        crops2, masks2, residual2 = one[position]
        assert all(np.array_equal(a, b) for a, b in zip(crops, crops2, strict=True))
        assert np.array_equal(masks, masks2) and np.array_equal(residual, residual2)
    other = Samples(images, [5], config(seed=1))[3]
    assert not np.array_equal(other[0].global_GHW, one[3][0].global_GHW)


def test_an_epoch_holds_each_image_as_often_as_weighted():
    samples = Samples(grey_images(7), [4, 3], config(data=["a", "b"], weights=[1.5, 2.0]))
    assert samples.epoch_length == 12
    epochs = [[samples.image_index(12 * e + i) for i in range(12)] for e in range(3)]
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=7)
        assert sorted(counts[:4]) == [1, 1, 2, 2] and list(counts[4:]) == [2, 2, 2]
    assert epochs[0] != epochs[1]
    assert samples.image_index(3) == epochs[0][3]


def test_collate_orders_crop_by_crop():
    samples = Samples(grey_images(5), [5], config())
    items = [samples[i] for i in range(3)]
    batch = collate(items)
    assert batch.global_GBHW.shape == (6, 28, 28) and batch.local_LBHW.shape == (6, 14, 14)
    for g in range(2):
        for b in range(3):
            assert np.array_equal(batch.global_GBHW[g * 3 + b], items[b][0].global_GHW[g])
            assert np.array_equal(batch.masks_GBP[g * 3 + b], items[b][1][g].ravel())
            assert np.array_equal(batch.residual_LRS[:, :, g * 3 + b], items[b][2][:, :, g])
    flat = batch.masks_GBP.flatten()
    assert flat[batch.masked_M].all() and len(batch.masked_M) == flat.sum()
    per_image = torch.zeros(6).index_add(0, batch.masked_M // 16, batch.weights_M)
    torch.testing.assert_close(per_image, batch.masks_GBP.any(1).float())


def test_parameter_groups_are_dinov2s():
    c = config(layerwise_decay=0.5, patch_embed_lr_mult=0.2)
    model = Distilled(c)
    by_parameter = {id(p): group for group in parameter_groups(model, c) for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(by_parameter) == len(names)

    def group(name):
        g = by_parameter[id(names[name])]
        return g["lr_scale"], g["decays"], g["last_layer"]

    assert group("backbone.patch_embed.proj.weight") == (0.2 * 0.125, True, False)
    assert group("backbone.patch_embed.proj.bias") == (0.2 * 0.125, False, False)
    assert group("backbone.pos_embed") == group("backbone.mask_token") == (0.125, True, False)
    assert group("backbone.blocks.0.attn.qkv.weight") == (0.25, True, False)
    assert group("backbone.blocks.1.ls1.gamma") == (0.5, False, False)
    assert group("backbone.blocks.1.norm2.weight") == (0.5, False, False)
    assert group("backbone.norm.weight") == (1.0, False, False)
    assert group("dino_head.mlp.0.weight") == (1.0, True, False)
    assert group("dino_head.last_layer.weight_v") == (1.0, True, True)


def test_schedules_reach_the_groups():
    c = config(
        warmup_steps=2,
        freeze_last_layer_steps=3,
        head_warmup_steps=2,
        weight_decay=0.1,
        weight_decay_end=0.3,
        learning_rate=1.0,
        layerwise_decay=1.0,
    )
    model = Distilled(c)
    optimizer = torch.optim.AdamW(parameter_groups(model, c))

    def at(step):
        apply_schedules(optimizer, step, c)
        groups = optimizer.param_groups
        pick = lambda **want: next(g for g in groups if all(g[k] == v for k, v in want.items()))  # noqa: E731
        last = pick(last_layer=True, decays=True)["lr"]
        head = pick(last_layer=False, backbone=False, decays=True)
        return pick(backbone=True, lr_scale=1.0)["lr"], head["lr"], last, head["weight_decay"]

    assert at(0)[0] == at(1)[0] == 0 < at(2)[0] < at(5)[0] * 10
    assert at(0)[1] == pytest.approx(1 / 3) and at(2)[1] == 1.0
    assert at(2)[2] == 0 < at(3)[2]
    assert at(0)[3] == 0.1 < at(3)[3] < at(6)[3] == 0.3
    assert all(g["weight_decay"] == 0 for g in optimizer.param_groups if not g["decays"])


def test_counted_operations_are_those_of_pytorch():
    c = config(drop_path_rate=0.0, separate_ibot_head=True)
    model = Distilled(c)
    batch = collate([Samples(grey_images(4), [4], c)[i] for i in range(4)])
    augment = multi_crop(c).on_device
    global_x, local_x = (
        augment(batch.global_GBHW, batch.global_look),
        augment(batch.local_LBHW, batch.local_look),
    )
    with sdpa_kernel(SDPBackend.MATH):  # whose products every version counts
        with FlopCounterMode(display=False) as teacher, torch.no_grad():
            model(global_x, None, batch, masked=False)
        with FlopCounterMode(display=False) as student:
            out = model(global_x, local_x, batch, masked=True)
            sum(x.sum() for x in out).backward()
    counted = (teacher.get_total_flops() + student.get_total_flops()) / 4
    assert flops_per_image(c) == pytest.approx(counted, rel=0.15)  # masks vary; no gradient for pixels


def test_ten_kills_change_nothing(images, tmp_path):
    """kill -9 at random steps and in the middle of random files: the curve is the uninterrupted one, bit for bit."""
    rng = np.random.default_rng(0)
    longer = ("--max_steps", "30", "--save_steps", "2")
    assert train(images, tmp_path / "whole", *longer) == 0
    argv = [*TINY, *longer, "--data", str(images), "--out", str(tmp_path / "run")]
    kills = 0
    for _ in range(10):
        where = ("update", "file")[int(rng.integers(2))]
        kills += killed_run(argv, where, int(rng.integers(1, 8))) == -signal.SIGKILL
    assert kills == 10 and 2 < len(curve(tmp_path / "run")) < 30  # it came on, and was not done
    assert train(images, tmp_path / "run", *longer) == 0
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(("init", "stds"), [("dinov2", (0.02, 0.02)), ("fan_in", (64**-0.5, 256**-0.5))])
def test_initial_weights(init, stds):
    c = config(hidden_size=64, num_attention_heads=1, weight_init=init, position_embedding="sincos")
    torch.manual_seed(0)
    backbone = Distilled(c).backbone
    for layer, std in zip((backbone.blocks[1].attn.qkv, backbone.blocks[1].mlp.fc2), stds, strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
    torch.testing.assert_close(backbone.pos_embed[0, 1:], sincos_positions(4, 64))


def test_config_errors_name_all_problems():
    with pytest.raises(ConfigError, match=r"steps must be at least 1") as error:
        PretrainConfig(max_steps=0, size=515, hidden_size=30, position_embedding="sincos", weight_init="he")
    for message in ("multiples of patch", "multiple of 4", "weight_init must be dinov2 or fan_in"):
        assert message in str(error.value)


GOLDEN = Path(__file__).parent / "golden_pretrain.json"


@pytest.fixture
def twenty(tmp_path):
    """Options of the golden run. Its weights come from NumPy: PyTorch's initial ones change with its version."""
    rng = np.random.default_rng(0)
    for name, module in (("backbone", CropViT(28, 7, 16, 2, 2, 0.5)), ("head", DINOHead(16, 16, 16, 8))):
        for parameter in module.parameters():
            parameter.data = torch.from_numpy(rng.normal(0.1, 0.3, parameter.shape).astype(np.float32))
        save_file(
            {k: v.contiguous() for k, v in module.state_dict().items()}, tmp_path / f"{name}.safetensors"
        )
    options = [
        "--init",
        str(tmp_path / "backbone.safetensors"),
        "--init_head",
        str(tmp_path / "head.safetensors"),
    ]
    return [*options, "--num_attention_heads", "2", "--max_steps", "20", "--save_steps", "20"]


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


def on_two(module, images, out, *options):
    """train.pretrain, or what stands in for it, in two processes; returns what was said."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "--cpu",
        "-m",
        module,
    ]
    command = [*launch, *TINY, "--data", str(images), "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("module", ["train.pretrain", "tests.train.fsdp2_on_cpus"])
def test_two_processes_learn_what_one_learns(images, twenty, tmp_path, module, monkeypatch):
    """Same seed, same global batch, float32: the same curve to rounding, and the golden one. The run goes on in two
    processes, and ends in one."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # the one, too
    out = tmp_path / "two"
    if module == "train.pretrain":
        assert "on 2 x cpu" in on_two(module, images, out, *twenty, "--stop_at", "4")
        assert "resuming after step 4" in on_two(module, images, out, *twenty, "--stop_at", "19")
    else:  # the same files: one process reads what several wrote
        assert "on 2 x cpu" in on_two(module, images, out, *twenty, "--stop_at", "12")
    assert train(images, out, *twenty) == 0
    assert train(images, tmp_path / "one", *twenty) == 0
    ours, reference = curve(out), curve(tmp_path / "one")
    wanted = json.loads(GOLDEN.read_text())["losses"]
    assert len(ours) == len(reference) == 20
    for a, b, golden in zip(ours, reference, wanted, strict=True):
        if a["step"] <= 5:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)
        assert {name: a[name] for name in golden} == pytest.approx(golden, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_launch_files_are_accelerates(name):
    config = load_config_from_file(str(ROOT / "train" / "launch" / f"{name}.yaml"))
    assert config.num_processes == 8 and config.precision == "no"
    if name == "fsdp2":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]],
        )  # fmt: skip
        plugin.set_auto_wrap_policy(
            Distilled(
                PretrainConfig(
                    size=28, patch_size=7, hidden_size=16, num_attention_heads=2, local_crops_size=14
                )
            )
        )


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


def test_parts_of_a_batch_are_spread_alike(images, tmp_path):
    """Two processes see the parts that one sees, and their gradients add up."""
    options = ("--gradient_accumulation_steps", "2", "--batch_size", "8", "--dataloader_num_workers", "0")
    assert "on 2 x cpu" in on_two("train.pretrain", images, tmp_path / "two", *options)
    assert train(images, tmp_path / "one", *options) == 0
    for a, b in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)
    assert train(images, tmp_path / "none", "--gradient_accumulation_steps", "3") == 2


def test_a_batch_in_parts_gives_its_gradient(images, tmp_path, monkeypatch):
    """Where no loss looks beyond its part (no KoLeo, centres that stand still), parts make no difference."""
    monkeypatch.setattr(Centre, "update", lambda self, logits_BK: None)
    options = (
        "--koleo_loss_weight",
        "0",
        "--centring",
        "running_mean",
        "--mask_sample_probability",
        "1",
        "--stop_at",
        "1",
    )
    assert train(images, tmp_path / "whole", *options) == 0
    assert train(images, tmp_path / "parts", *options, "--gradient_accumulation_steps", "2") == 0
    (a,), (b,) = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    for name in ("loss", "dino_global", "dino_local", "ibot", "grad_norm"):
        assert a[name] == pytest.approx(b[name], rel=1e-5), name


def test_compiled_blocks_learn_the_same(images, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    assert train(images, tmp_path / "plain") == 0
    assert train(images, tmp_path / "compiled", "--torch_compile", "true") == 0
    for a, b in zip(curve(tmp_path / "plain"), curve(tmp_path / "compiled"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)
