"""One encoder, three dialects: timm, transformers' Dinov2, the DINOv2 repository. Strict: every tensor finds its
place or the conversion fails with the names of those that did not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from encoder.errors import ModelError, UserError
from encoder.fields import check_companions, config_is_blamed
from encoder.files import open_to_readers
from encoder.transforms import Preprocessing
from encoder.vit import CropViT, resample_pos_embed
from encoder.weights import check_config, check_fit, check_numbers, stored_in

if TYPE_CHECKING:
    from transformers import Dinov2Config, Dinov2Model

WEIGHTS = "model.safetensors"

# timm name <-> name in a transformers file (the names of the hub, which the library maps to those of its modules);
# qkv is split, the rest is renamed
_OUTER = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_INNER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.proj": "attention.output.dense",
    "ls1": "layer_scale1",
    "ls2": "layer_scale2",
}
_QKV = {"q": "query", "k": "key", "v": "value"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)")


class ConversionError(UserError, ValueError):
    """A state dict with names or shapes that do not fit; the message lists them."""


def timm_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's tensors (plus `mask_token`) as files of transformers' Dinov2Model name them."""
    out: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        if name in _OUTER:
            out[_OUTER[name]] = tensor
        elif block and block[2] == "attn.qkv" and block[3] in ("weight", "bias"):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[f"encoder.layer.{block[1]}.attention.attention.{_QKV[part]}.{block[3]}"] = piece
        elif block and block[2] in _INNER and (block[3] == "gamma") == block[2].startswith("ls"):
            leaf = "lambda1" if block[3] == "gamma" else block[3]
            out[f"encoder.layer.{block[1]}.{_INNER[block[2]]}.{leaf}"] = tensor
        else:
            unknown.append(name)
    _fail(unknown, "timm")
    return out


def transformers_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename in the other direction; q, k and v are joined to timm's `qkv`. Takes the names of files and
    those that the modules have in memory since transformers 5."""
    outer = {theirs: ours for ours, theirs in _OUTER.items()}
    inner = {theirs: ours for ours, theirs in _INNER.items()}
    out: dict[str, Tensor] = {}
    qkv: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in state.items():
        name = name.replace(".attention.o_proj.", ".attention.output.dense.")
        name = re.sub(r"\.attention\.([qkv])_proj\.", lambda m: f".attention.attention.{_QKV[m[1]]}.", name)
        projection = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(\w+)\.(weight|bias)", name)
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)", name)
        if name in outer:
            out[outer[name]] = tensor
        elif projection and projection[2] in _QKV.values():
            qkv.setdefault((projection[1], projection[3]), {})[projection[2]] = tensor
        elif layer and layer[2] in inner:
            out[f"blocks.{layer[1]}.{inner[layer[2]]}.{'gamma' if layer[3] == 'lambda1' else layer[3]}"] = (
                tensor
            )
        else:
            unknown.append(name)
    for (index, leaf), parts in qkv.items():
        if len(parts) != 3:
            unknown += [
                f"encoder.layer.{index}.attention.attention.{part}.{leaf} without its siblings"
                for part in parts
            ]
        else:
            out[f"blocks.{index}.attn.qkv.{leaf}"] = torch.cat([parts[part] for part in _QKV.values()])
    _fail(unknown, "transformers Dinov2")
    return out


def timm_to_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's tensors as the DINOv2 repository does. The names are the same; names foreign to both are
    refused."""
    _fail([name for name in state if name not in _OUTER and not _is_block(name)], "timm")
    return dict(state)


def dinov2_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the DINOv2 repository's tensors as timm does; `blocks.0.3.` of its chunked checkpoints becomes
    `blocks.3.`."""
    out = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): tensor for name, tensor in state.items()}
    _fail([name for name in out if name not in _OUTER and not _is_block(name)], "DINOv2")
    if len(out) != len(state):
        raise ConversionError(f"{len(state)} tensors became {len(out)}: two names of blocks coincide")
    return out


def load_strict(model: torch.nn.Module, state: Mapping[str, Tensor]) -> int:
    """Load every tensor of `state` into `model`, each exactly once; returns how many.

    `pos_embed` of another square grid is resampled. Raises ConversionError naming what is missing, left over, or of
    another shape.
    """
    state = dict(state)
    own = model.state_dict()
    pos = state.get("pos_embed")
    if pos is not None and "pos_embed" in own and pos.shape != own["pos_embed"].shape:
        side = round((own["pos_embed"].shape[1] - 1) ** 0.5)
        state["pos_embed"] = torch.cat([pos[:, :1], resample_pos_embed(pos[:, 1:], (side, side))], dim=1)
    problems = [f"missing {name}" for name in own.keys() - state.keys()]
    problems += [f"left over {name}" for name in state.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if problems:
        raise ConversionError(_list("the weights do not fit the model", problems))
    model.load_state_dict(state)
    return len(state)


def dinov2_config(vit: CropViT) -> Dinov2Config:
    """Return the transformers config of this encoder."""
    from transformers import Dinov2Config

    return Dinov2Config(
        architectures=["Dinov2Model"],
        hidden_size=vit.embed_dim,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.heads,
        mlp_ratio=vit.mlp_ratio,
        image_size=vit.size,
        patch_size=vit.patch,
        layer_norm_eps=vit.norm.eps,
        layerscale_value=vit.layerscale,
    )


def from_dinov2(model: Dinov2Model) -> CropViT:
    """Return transformers' Dinov2Model as our trainable encoder."""
    config = model.config
    if config.use_swiglu_ffn or not config.use_mask_token or not config.qkv_bias:
        raise ConversionError(
            "only Dinov2 models with a plain MLP, qkv biases and a mask token can be converted"
        )
    size, patch = (x if isinstance(x, int) else x[0] for x in (config.image_size, config.patch_size))
    vit = CropViT(
        size,
        patch,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.layerscale_value,
        config.mlp_ratio,
    )
    load_strict(vit, transformers_to_timm(model.state_dict()))
    return vit.eval()


def save_dinov2(backbone: CropViT, folder: str | Path, preprocessing: Preprocessing) -> None:
    """Write the encoder checkpoint directory: config.json, model.safetensors, preprocessor_config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = timm_to_transformers(backbone.state_dict())
    save_file(
        {name: x.detach().cpu().contiguous() for name, x in state.items()}, folder / WEIGHTS, {"format": "pt"}
    )
    dinov2_config(backbone).save_pretrained(folder)
    preprocessing.save_pretrained(folder)
    open_to_readers(folder)


def load_encoder(folder: str | Path, attention: str = "cxr_attention") -> Dinov2Model:
    """Load an encoder checkpoint directory as transformers' Dinov2Model, in evaluation mode, with our
    attention.

    Raises FileNotFoundError if the directory lacks a file, ConversionError if weights are missing or left over.
    """
    from transformers import AutoConfig, Dinov2Model

    import encoder.attention.wiring  # noqa: F401  (registers cxr_attention)

    folder = Path(folder)
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist; is {folder} an encoder checkpoint directory?"
            )
    try:
        check_companions(folder)
        check_config(folder, stored := stored_in(folder))
        with config_is_blamed(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type == "dinov2":
            check_fit(Dinov2Model, folder, config, stored)
    except ModelError as error:
        raise ConversionError(str(error)) from None
    if config.model_type != "dinov2":
        raise ConversionError(f"{folder} holds a {config.model_type} model, expected dinov2")
    model, report = Dinov2Model.from_pretrained(
        folder,
        attn_implementation=attention,
        output_loading_info=True,
        dtype=torch.float32,
        use_safetensors=True,
    )
    problems = [f"{kind} {name}" for kind in ("missing_keys", "unexpected_keys") for name in report[kind]]
    problems += [f"mismatched {item}" for item in report.get("mismatched_keys", ())]
    if problems:
        raise ConversionError(_list(f"{folder} does not fit Dinov2Model", problems))
    try:
        check_numbers(model, folder, stored)
    except ModelError as error:
        raise ConversionError(str(error)) from None
    return model.eval()


def _is_block(name: str) -> bool:
    block = _BLOCK.fullmatch(name)
    return bool(block) and (block[2] in _INNER or block[2] == "attn.qkv")


def _fail(unknown: list[str], dialect: str) -> None:
    if unknown:
        raise ConversionError(_list(f"names that {dialect} encoders do not have", unknown))


def _list(what: str, items: list[str]) -> str:
    more = f" and {len(items) - 8} more" if len(items) > 8 else ""
    return f"{what}: {', '.join(sorted(items)[:8])}{more}"
