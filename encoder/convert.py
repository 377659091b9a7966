"""Encoder weights of any origin in, any dialect out: transformers' Dinov2 (RAD-DINO, DINOv2), files of the DINOv2
repository (also RAD-DINO's `backbone_compatible.safetensors`), timm.

Sizes are read from the tensors, so no model has to be named. Nothing is left over, and nothing missing is invented but
the mask token, which timm's files do not have; both are counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoder.errors import ModelError
from encoder.files import write_atomically
from encoder.hub import resolve
from encoder.state_dicts import (
    ConversionError,
    dinov2_to_timm,
    load_encoder,
    load_strict,
    save_dinov2,
    timm_to_dinov2,
    transformers_to_timm,
)
from encoder.towers import load_tower, tower_config
from encoder.transforms import Preprocessing
from encoder.vit import CropViT
from encoder.weights import check_types, first_odd, none_of_them, read_header

if TYPE_CHECKING:
    from transformers import Dinov2Model

DIALECTS = ("transformers", "timm", "dinov2")
FILES = (".safetensors", ".pth", ".pt", ".bin")
HEAD_WIDTH = 64  # of attention, in every DINOv2 model
FOREIGN = {
    "register_tokens": "has register tokens",
    "mlp.w12": "has a SwiGLU MLP",
    "mlp.weights_in": "has a SwiGLU MLP",
}
HEADS = re.compile(r"^(dino_head|ibot_head|head)\.")  # of training checkpoints; not the encoder's


@dataclass
class Loaded:
    """An encoder and where it comes from."""

    backbone: CropViT
    dialect: str  # one of DIALECTS
    tensors: int  # read
    left_out: list[str]  # names of heads beside the backbone
    added: list[str]  # what the file does not have
    preprocessing: Preprocessing | None = None  # if the origin says


def load_backbone(path: str | Path, size: int | None = None, heads: int | None = None) -> Loaded:
    """Load an encoder from a transformers directory, a hub id or "mini", of a findings model its tower; or
    from a .safetensors, .pth, .pt or .bin file in any of DIALECTS.

    size: pixels; position embeddings of another grid are resampled (bicubic, as DINOv2 does). heads: of attention, by
    default of 64 each. Raises ConversionError if it is not a plain DINOv2 encoder, ModelError for a name
    that is none, FileNotFoundError.
    """
    given, path = str(path), Path(path)
    if not path.is_file() and path.suffix not in FILES:
        path = resolve(given, "encoder", "nor a weights file, ")
    if path.is_dir():
        model = _tower(path)
        names = [name for name in model.state_dict() if name]
        state, dialect, left_out = transformers_to_timm(model.state_dict()), "transformers", []
        heads, layerscale = model.config.num_attention_heads, model.config.layerscale_value
        preprocessing = _preprocessing(path)
    else:
        raw = read_tensors(path)
        left_out = [name for name in raw if HEADS.match(name)]
        names = [name for name in raw if name not in left_out]
        state, dialect = _to_timm({name: raw[name] for name in names}, path)
        layerscale, preprocessing = 1e-5, None
    added = [] if "mask_token" in state else ["mask_token"]
    backbone = _like(state, path, size, heads, layerscale)
    state.setdefault("mask_token", torch.zeros_like(backbone.mask_token))
    try:
        load_strict(backbone, state)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    return Loaded(backbone.eval(), dialect, len(names), left_out, added, preprocessing)


def difference(a: CropViT, b: CropViT) -> float:
    """Return the greatest difference of two encoders' tokens on one random image, which both take."""
    side = 4 * a.patch
    x_BCHW = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return (a.forward_features(x_BCHW) - b.forward_features(x_BCHW)).abs().max().item()


def save_backbone(
    backbone: CropViT, out: str | Path, dialect: str, preprocessing: Preprocessing | None = None
) -> None:
    """Write a transformers directory, or a .safetensors file with the names of the DINOv2 repository or of
    timm (which has no mask token). Raises ConversionError for another dialect."""
    out = Path(out)
    if dialect == "transformers":
        save_dinov2(backbone, out, preprocessing or Preprocessing(size=backbone.size))
        return
    if dialect not in DIALECTS:
        raise ConversionError(f"no dialect {dialect!r}; there are {', '.join(DIALECTS)}")
    state = timm_to_dinov2(backbone.state_dict())
    if dialect == "timm":
        del state["mask_token"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(out) as part:
        save_file({name: x.detach().cpu().contiguous() for name, x in state.items()}, part, {"format": "pt"})


def _tower(folder: Path) -> Dinov2Model:
    """Load an encoder directory, or a findings model's tower, as a Dinov2Model. Raises ConversionError for
    another tower."""
    config, within = tower_config(folder)
    if not within:
        return load_encoder(folder, attention="sdpa")
    if config.model_type != "dinov2":
        raise ConversionError(f"{folder} holds a {config.model_type} tower, expected dinov2")
    return load_tower(folder, "sdpa")[0]


def _preprocessing(folder: Path) -> Preprocessing | None:
    """Return None if there is none, or one of another kind (DINOv2's own crops 224 pixels from 256)."""
    try:
        return Preprocessing.from_pretrained(folder)
    except (FileNotFoundError, ValueError):
        return None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pth, .pt or .bin file by name, without the prefixes of training
    checkpoints. Raises ConversionError for a file without tensors or with anything else in it,
    FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            check_types(read_header(path))
            saved = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError as error:
        raise ConversionError(str(error)) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ConversionError(f"{path}: no weights that can be read safely ({error})") from error
    except Exception as error:  # whatever unpickling raises
        raise ConversionError(
            f"{path}: no weights that can be read safely ({type(error).__name__})"
        ) from error
    for key in (
        "teacher",
        "model",
        "state_dict",
    ):  # of training checkpoints; DINOv2's encoder is the teacher's
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping) or not all(isinstance(x, Tensor) for x in saved.values()) or not saved:
        raise ConversionError(f"{path}: holds no tensors by name")
    state = dict(saved)
    if odd := first_odd(state.items()):
        raise ConversionError(str(none_of_them(path, odd)))
    for prefix in ("module.", "backbone.", "dinov2.", "model."):
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): x for name, x in state.items()}
    return state


def _to_timm(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors by timm's names, and the dialect they were in."""
    for part, what in FOREIGN.items():
        if any(part in name for name in state):
            raise ConversionError(f"{path}: the encoder {what}; only plain DINOv2 ViTs can be converted")
    try:
        if any(name.startswith(("embeddings.", "encoder.layer.")) for name in state):
            return transformers_to_timm(state), "transformers"
        return dinov2_to_timm(state), "dinov2" if "mask_token" in state else "timm"
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


def _like(
    state: Mapping[str, Tensor], path: Path, size: int | None, heads: int | None, layerscale: float
) -> CropViT:
    """Return an encoder of the size that the tensors have."""
    try:
        width, channels, patch, _ = state["patch_embed.proj.weight"].shape
        grid = (state["pos_embed"].shape[1] - 1) ** 0.5
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        state["blocks.0.ls1.gamma"]
    except KeyError as error:
        raise ConversionError(f"{path}: no DINOv2 encoder, it has no {error}") from error
    except (ValueError, IndexError):
        found = ", ".join(
            f"{name} {list(state[name].shape)}" for name in ("patch_embed.proj.weight", "pos_embed")
        )
        raise ConversionError(f"{path}: no DINOv2 encoder, by the shapes of its tensors: {found}") from None
    if channels != 3 or grid != int(grid) or hidden % width:
        raise ConversionError(
            f"{path}: {channels} channels, {state['pos_embed'].shape[1]} positions and {hidden} hidden units at width "
            f"{width} are not those of a DINOv2 encoder"
        )
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    if heads is None and width % HEAD_WIDTH:
        raise ConversionError(
            f"{path}: width {width} does not divide into heads of {HEAD_WIDTH}; give the number of heads"
        )
    return CropViT(
        size or int(grid) * patch,
        patch,
        width,
        depth,
        heads or width // HEAD_WIDTH,
        layerscale,
        hidden // width,
    )
