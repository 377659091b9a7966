"""The end of a fine-tuning: the trained weights folded back into a model with its tower, and written."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from train.finetune.config import Finetune
from train.finetune.examples import Examples, spaced
from vlm import model as models
from vlm import projector as projectors
from vlm.findings import OUTLIERS
from vlm.hub import resolve
from vlm.load import load_model
from vlm.outliers import Outliers, pooled

# Training images that say what an ordinary one is.
LEAST_KNOWN, MOST_KNOWN = 200, 2000


def finish(model: models.FindingsModel, examples: Examples, config: Finetune, base: Path) -> Path:
    """Write OUT/adapter, OUT/merged and, of a trained encoder, OUT/encoder, as `config` asks for. The tower of `model`
    is in its place, and its projector reads raw features. Returns the folder that `cxr generate` takes."""
    out = Path(config.out)
    for name in ("adapter", "merged", "encoder"):
        # Of an end that was cut off.
        if (out / name).exists():
            shutil.rmtree(out / name)
    model.llava.eval()
    if config.train_encoder:
        models.save_encoder(model, out / "encoder")
        model.meta.encoder_sha256 = models.weights_sha256(out / "encoder")
        print(f"wrote {out / 'encoder'}")
    known = known_images(model, examples, config.init)
    written = []
    if config.lora and not config.train_encoder:
        models.save_adapter(model, out / "adapter", base)
        written.append(out / "adapter")
    if config.merge or not config.lora:
        if config.llm_dtype == "nf4":
            # Into the weights before they were quantised.
            model = load_model(out / "adapter", attention=config.attention, dtype=torch.bfloat16)
        models.save(models.merge(model), out / "merged", models.DTYPES[config.merged_dtype])
        written.append(out / "merged")
    for folder in written:
        if known:
            known.save(folder / OUTLIERS)
        print(f"wrote {folder}")
    return written[0]


def known_images(model: models.FindingsModel, examples: Examples, init: str | None) -> Outliers | None:
    """Return statistics of the training images, by which generation warns about others; where those are few, `init`'s;
    where there can be none, None, with the reason on the screen."""
    tower = model.parts.vision_tower
    inherited = resolve(init) / OUTLIERS if init else None
    if tower.config.model_type != "dinov2" or projectors.normed(model.llava):
        print(
            "no warnings about unusual images: they need a DINOv2 tower's features before the final LayerNorm"
        )
        return None
    layers, depth = projectors.layers_of(model.llava), tower.config.num_hidden_layers
    last = next((i for i, layer in enumerate(layers) if layer in (-1, depth)), None)
    few = len(examples) < LEAST_KNOWN
    if few and inherited is not None and inherited.is_file():
        return Outliers.load(inherited)
    if few or last is None:
        why = (
            f"{len(examples)} training images are too few" if few else "the last layer is not among --layers"
        )
        print(f"no warnings about unusual images: {why} (cxr outliers makes them from more)")
        return None
    rows = torch.tensor(spaced(len(examples), MOST_KNOWN)).unique()
    patients = [(s := examples.studies[i]).patient_id or s.study_id for i in rows.tolist()]
    with torch.inference_mode():
        parts = []
        for part in rows.split(64):
            x_BNC = examples.first(part.tolist()).chunk(len(layers), dim=-1)[last]
            parts.append(pooled(tower.layernorm(x_BNC.to(tower.device))))
    return Outliers.fit(torch.cat(parts), encoder_sha256=model.meta.encoder_sha256, patients=patients)
