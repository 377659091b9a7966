"""A pre-training on a few tiny images, for the tests of train.pretrain: to be imported, fixtures too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file

from encoder.selfdistill.heads import DINOHead
from encoder.vit import CropViT
from train.common.entry import entry
from train.pretrain.__main__ import main
from train.pretrain.config import PretrainConfig

TINY = [
    "--size=28 --patch_size=7 --hidden_size=16 --num_hidden_layers=2 --num_attention_heads=2 --local_crops_size=14",
    "--local_crops_number=2 --head_n_prototypes=16 --head_hidden_dim=16 --head_bottleneck_dim=8 --batch_size=4",
    "--max_steps=6 --warmup_steps=2 --freeze_last_layer_steps=1 --layerscale=0.5 --warmup_teacher_temp_steps=3",
    "--drop_path_rate=0.2 --precision=fp32 --short_side=32 --logging_steps=1 --save_steps=2 --threads=1",
    "--learning_rate=0.01",
]
TINY = " ".join(TINY).split()
# Losses of `twenty`, a line a step.
GOLDEN = Path(__file__).parent / "golden_pretrain.json"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with ten pictures of 16 bits: their grey levels are stretched to their range, as those of 8 bits once
    were, so that the golden losses are those of 0.1."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(10):
        rng = np.random.default_rng(i)
        grey = np.linspace(0, 200, 40)[None] * rng.random() + rng.random((36, 1)) * 55
        Image.fromarray(grey.astype(np.uint16)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(images, out) == 0
    AcceleratorState._reset_state(True)
    return out


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Let the next run of this process begin as the first."""
    yield
    AcceleratorState._reset_state(True)


def pretraining(*words: str) -> int:
    """Run train.pretrain in this process with this command line; returns its exit status."""
    return entry(main, "train.pretrain", list(words))


def options(images: Path, out: Path, *more: str) -> list[str]:
    """Return the command line of a tiny run."""
    return [*TINY, "--data", str(images), "--out", str(out), *more]


def train(images: Path, out: Path, *more: str) -> int:
    """Run or resume a tiny run in this process; returns its exit status."""
    return pretraining(*options(images, out, *more))


def curve(out: Path) -> list[dict]:
    """Return the lines of metrics.jsonl without their speed."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the encoder that a run left."""
    return load_file(out / "encoder" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def config(**changes) -> PretrainConfig:
    """Return the config of a tiny run that reads nothing."""
    tiny = PretrainConfig(
        data=["x"], size=28, patch_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        local_crops_size=14, local_crops_number=2, head_n_prototypes=16,
        head_hidden_dim=16, head_bottleneck_dim=8, batch_size=4, max_steps=6, drop_path_rate=0.2, layerscale=0.5,
    )  # fmt: skip
    return replace(tiny, **changes)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory) -> list[str]:
    """Options of the golden run. Its weights come from NumPy: PyTorch's initial ones change with its version."""
    folder, rng = tmp_path_factory.mktemp("start"), np.random.default_rng(0)
    for name, module in (("backbone", CropViT(28, 7, 16, 2, 2, 0.5)), ("head", DINOHead(16, 16, 16, 8))):
        for parameter in module.parameters():
            parameter.data = torch.from_numpy(rng.normal(0.1, 0.3, parameter.shape).astype(np.float32))
        state = {k: v.contiguous() for k, v in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    start = ["--init", str(folder / "backbone.safetensors"), "--init_head", str(folder / "head.safetensors")]
    return [*start, "--num_attention_heads", "2", "--max_steps", "20", "--save_steps", "20"]
