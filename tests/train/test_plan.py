"""The memory plan: counts known from the literature at full size, activations as a real forward pass keeps them."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
import torch

from cxr.cli.main import main as cxr
from encoder.transforms import Preprocessing
from tests.tiny import SIZE
from train.common.config import load_config
from train.finetune.config import Finetune
from train.finetune.plan import activations, dry_model, plan, weight_bytes
from vlm import adapters
from vlm.build import build
from vlm.prompts import PromptStyle

# of more than 128 keys: below, our attention on a CPU keeps the probabilities, which it does not on a GPU
SHAPE = {"batch": 2, "text": 150, "images": 2, "answer": 5}


def planned(words):
    return cxr(["plan", *words])


def config(**changes) -> Finetune:
    return Finetune(out="-", studies=["-"], lora_rank=4, **changes)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """The configurations of RAD-DINO and of Vicuna-7B v1.5, without weights."""
    from transformers import Dinov2Config, LlamaConfig

    folder = tmp_path_factory.mktemp("full")
    Dinov2Config(image_size=518, patch_size=14).save_pretrained(folder / "rad-dino")  # ViT-B is the default
    Preprocessing().save_pretrained(folder / "rad-dino")
    LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5).save_pretrained(
        folder / "vicuna"
    )  # 7B is the default
    return folder / "rad-dino", folder / "vicuna"


@pytest.mark.parametrize(
    "options", [{}, {"projector_depth": 4, "feature_norm": True}, {"token_reduction": "pool"}]
)
@pytest.mark.parametrize("lora", [True, False])
def test_activations_are_those_that_a_real_forward_pass_keeps(encoder_dir, llm_dir, options, lora):
    names = {"projector_depth": "depth", "feature_norm": "norm", "token_reduction": "reduction"}
    real = build(encoder_dir, llm_dir, **{names[k]: v for k, v in options.items()}).llava.requires_grad_(
        False
    )
    if lora:
        real = adapters.add_lora(real, 4)
    else:
        for part in (real.model.language_model, real.model.multi_modal_projector, real.lm_head):
            part.requires_grad_(True)
    dry = dry_model(encoder_dir, llm_dir, config(lora=lora, **options))
    assert {p.device.type for p in dry.parameters()} == {"meta"}
    assert {n: p.shape for n, p in dry.named_parameters() if p.requires_grad} == {
        n: p.shape for n, p in real.named_parameters() if p.requires_grad
    }
    wanted = activations(real.train(), **SHAPE, bf16=False)
    assert activations(dry.train(), **SHAPE, bf16=False) == pytest.approx(wanted, rel=0.02)
    assert wanted > 0


SEVEN_B = {"batch": 1, "text": 256, "answer": 128, "bf16": True}


@pytest.fixture(scope="module")
def seven_b(full_size):
    """The model of these configurations under LoRA of rank 64, frozen in bfloat16, on the meta device."""
    return dry_model(
        *full_size, Finetune(out="-", studies=["-"], lora_rank=64, lora_alpha=128, llm_dtype="bf16")
    )


@pytest.fixture(scope="module")
def cheap(seven_b):
    """What it takes with blocks that are computed anew."""
    return plan(seven_b, **SEVEN_B, images=1, checkpointing=True)


def test_counts_at_full_size(cheap):
    """Llama-7B has 6,738,415,616 parameters; LoRA of rank 64 on all its linears 159,907,840; ViT-B/14 at 518 px
    86,580,480 with the mask token."""
    rows = {part: (count, trained) for part, count, trained in cheap.parameters}
    assert rows["lora"] == (159_907_840, 159_907_840)
    assert rows["language_model"][0] + rows["lm_head"][0] == 6_738_415_616 and rows["language_model"][1] == 0
    assert rows["vision_tower"] == (86_581_248, 0) or rows["vision_tower"] == (86_580_480, 0)
    projector = 768 * 4096 + 4096 + 4096**2 + 4096
    assert rows["multi_modal_projector"] == (2 * projector, projector)  # as it was, and as it is trained


# plans of models at full size
@pytest.mark.slow
def test_checkpointing_and_more_images_move_the_plan_as_they_should(seven_b, cheap):
    one = plan(seven_b, **SEVEN_B, images=1, checkpointing=False)
    three = plan(seven_b, **SEVEN_B, images=3, checkpointing=False)
    assert 2 < three.activations / one.activations < 3
    assert cheap.activations < one.activations / 8
    assert one.gradients * 2 == one.optimizer and one.weights == cheap.weights
    assert 13.4e9 < one.weights < 15.5e9  # two bytes each, and those of tower, projector and LoRA
    assert cheap.total < 40e9 < 80e9  # one image a study and a 7B model: a GPU of 80 GB has room
    # QLoRA: Llama-7B's 6,476,005,376 weights of linears in 4.127 bits instead of 16
    saved = cheap.weights - weight_bytes(seven_b, nf4=True)
    assert saved == pytest.approx(6_476_005_376 * (2 - 4.127 / 8), rel=1e-6)


def test_the_command(full_size, capsys):
    rad_dino, vicuna = map(str, full_size)
    options = ["--encoder", rad_dino, "--llm", vicuna, "--lora_rank", "64", "--batch_size", "4"]
    assert planned([*options, "--images", "2", "--gradient_checkpointing", "true", "--processes", "2"]) == 0
    out = capsys.readouterr().out
    assert (
        "2 studies of 2 images, 2,994 tokens each" in out and "159,907,840 trained" in out and "total" in out
    )
    assert planned(["--encoder", rad_dino]) == 2 and "--llm" in capsys.readouterr().err
    assert json.loads((full_size[1] / "config.json").read_text())["hidden_size"] == 4096
    assert torch.get_default_device().type == "cpu" and SIZE == 28


# plans of models at full size
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["findings_vicuna7b_lora", "findings_small_llm", "llava_rad_two_stage"])
def test_recipes_say_what_they_are_and_fit_a_gpu(full_size, recipe, capsys):
    config = load_config(Finetune, "finetune", ["--recipe", recipe, "--out", "-", "--studies", "-"])
    assert PromptStyle(**{f.name: getattr(config, f.name) for f in fields(PromptStyle)}).wording == "instruct"
    rad_dino, vicuna = map(str, full_size)
    command = [
        "--recipe",
        recipe,
        "--encoder",
        rad_dino,
        "--llm",
        vicuna,
        "--processes",
        "8",
        "--gradient_checkpointing",
        "true",
    ]
    assert planned(command) == 0
    total = float(re.search(r"total ([\d.]+) GB", capsys.readouterr().out)[1])
    assert total < 80  # of a 7B model, both
