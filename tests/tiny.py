"""Tiny encoder, language model and studies, for the tests of `vlm` and `train`. The studies follow their images:
where the bright patch lies decides the findings."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from vlm.study import Image, Prior, Study, save_studies

# Before the imports of a program that a test starts: what they make is no garbage, and looking takes seconds.
FAST_START = "import gc; gc.disable()\n"
SIZE, PATCH = 28, 7  # 4 x 4 patch tokens
SMALL = [  # a fine-tuning
    "--batch_size", "8", "--warmup_steps", "2", "--max_steps", "10", "--eval_steps", "5", "--save_steps", "4",
    "--logging_steps", "3", "--max_new_tokens", "8", "--dataloader_num_workers", "0", "--eval_studies", "8",
    "--lora_rank", "4",
    "--precision", "fp32", "--threads", "1",
]  # fmt: skip
FINDINGS = (
    "There is a large left pleural effusion.",
    "Moderate right pneumothorax is present.",
    "The heart is enlarged.",
    "The lungs are clear.",
)


def make_encoder(folder: Path, seed: int = 0, size: int = SIZE) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    from encoder.transforms import Preprocessing

    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=PATCH, image_size=size, mlp_ratio=2,
        layerscale_value=0.5,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    Preprocessing(size=size).save_pretrained(folder)
    return folder


def make_tower(kind: str, folder: Path) -> Path:
    """A vision tower: dinov2, registers, clip (with its text tower, as released), siglip, timm."""
    import transformers as tr

    from encoder.transforms import Preprocessing

    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "image_size": SIZE,
    }

    torch.manual_seed(1)
    if kind == "dinov2":
        return make_encoder(folder)
    if kind == "registers":
        config = tr.Dinov2WithRegistersConfig(
            **common, mlp_ratio=2, num_register_tokens=3, layerscale_value=0.5
        )
        tr.Dinov2WithRegistersModel(config).save_pretrained(folder)
    elif kind == "clip":
        text = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "vocab_size": 99,
        }
        vision = {**common, "intermediate_size": 64}
        tr.CLIPModel(tr.CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    elif kind == "siglip":
        tr.SiglipVisionModel(tr.SiglipVisionConfig(**common, intermediate_size=64)).save_pretrained(folder)
    else:
        arguments = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2}
        config = tr.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=arguments)
        tr.TimmWrapperModel(config).save_pretrained(folder)
    mean = (0.481, 0.458, 0.408) if kind == "clip" else 0.5
    Preprocessing(SIZE, "stretch" if kind == "siglip" else "crop", mean, 0.25).save_pretrained(folder)
    return folder


def make_llm(folder: Path, seed: int = 0) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    from train.finetune.language_model.loop import train_tokenizer

    texts = [f"Indication: Fever and cough.\nPrior: {f}\nFindings: {f}" for f in FINDINGS]
    tokenizer = train_tokenizer(texts * 4, 340)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_studies(folder: Path, n: int, seed: int = 0) -> Path:
    """n studies, every fifth for validation; some with indication or prior, so that prompts differ in length."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    studies = []
    for i in range(n):
        kind = i % len(FINDINGS)
        pixels = rng.integers(20, 60, (48, 48))
        if kind < 3:
            top, left = ((24, 4), (4, 28), (20, 16))[kind]
            pixels[top : top + 20, left : left + 16] += 180
        Picture.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        prior = Prior(findings=FINDINGS[int(rng.integers(4))]) if rng.random() < 0.3 else None
        indication = ("Fever", "Cough and fever for three days", None)[int(rng.integers(3))]
        studies.append(
            Study(
                f"s{i}", f"p{i}", "validate" if i % 5 == 4 else "train", [Image(f"images/{i}.png", "PA")],
                indication=indication, prior=prior, findings=FINDINGS[kind],
            )
        )  # fmt: skip
    save_studies(studies, folder / "studies.jsonl")
    return folder / "studies.jsonl"


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def make_older(run: Path, renamed: dict[str, str], *absent: str) -> None:
    """Rewrite the record of a run as a version before 0.2 wrote it: fields by their old names, some not there yet."""
    old_names = {new: old for old, new in renamed.items()}
    record = json.loads((run / "run.json").read_text())
    assert set(absent) <= set(record) and set(old_names) & set(record)
    record = {old_names.get(name, name): value for name, value in record.items() if name not in absent}
    (run / "run.json").write_text(json.dumps(record))


@pytest.fixture(scope="session")
def tower_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {k: make_tower(k, root / k) for k in ("dinov2", "registers", "clip", "siglip", "timm")}


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def llm_dir(tmp_path_factory) -> Path:
    return make_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def studies_file(tmp_path_factory) -> Path:
    return make_studies(tmp_path_factory.mktemp("studies"), 80)


@pytest.fixture(scope="session")
def calibrated_model(encoder_dir, llm_dir):
    from vlm import projector as projectors
    from vlm.build import build

    model = build(encoder_dir, llm_dir)
    pixels_BCHW = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    projectors.calibrate(model.llava, projectors.tower_features(model.llava.model.vision_tower, pixels_BCHW))
    return model


@pytest.fixture
def findings_model(calibrated_model):
    """A fresh model with a calibrated projector: built once, and copied for each test."""
    return copy.deepcopy(calibrated_model)
