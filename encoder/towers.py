"""Vision towers: what a findings model needs to know of each family of image encoder.

    dinov2 (RAD-DINO, ours), dinov2_with_registers, CLIP, SigLIP, and any ViT of timm that transformers wraps

A tower's hidden states are asked for by index, as transformers has them: 0 the embeddings, -1 the last block's output,
before the final LayerNorm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from encoder.errors import ModelError, reading
from encoder.fields import check_companions, config_is_blamed, read_config
from encoder.hub import of_a_run
from encoder.transforms import Preprocessing
from encoder.weights import check_config, check_fit, check_numbers, quiet_loading, stored_in

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONTAINED = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
}  # checkpoints that also hold a text tower
CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "timm_wrapper": "TimmWrapperModel",
}
# The findings models of vlm, which hold a tower.
FINDINGS_MODELS = ("llava", "cxr_llava")
NORMS = ("layernorm", "post_layernorm", "vision_model.post_layernorm", "timm_model.norm")


@dataclass(frozen=True)
class Shape:
    """The sizes of a tower."""

    width: int  # channels of a token
    depth: int  # blocks
    patch: int  # pixels a side
    extra: int  # tokens before the patches: CLS, registers
    stock: bool  # whether stock Llava reads its hidden states rightly


def shape_of(config: PreTrainedConfig) -> Shape:
    """Return the shape of a tower. Raises ModelError for an unknown family."""
    kind = config.model_type
    if kind == "timm_wrapper":
        return _timm_shape(json.dumps(_timm_fields(config), sort_keys=True))
    if kind not in CLASSES:
        raise ModelError(f"a {kind} model is not a vision tower; choose one of {', '.join(CLASSES)}")
    extra = {"siglip_vision_model": 0, "dinov2_with_registers": 1 + getattr(config, "num_register_tokens", 0)}
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    tokens = extra.get(kind, 1)
    return Shape(config.hidden_size, config.num_hidden_layers, patch, tokens, stock=tokens <= 1)


def load_tower(
    folder: str | Path, attention: str, size: int | None = None
) -> tuple[nn.Module, Preprocessing]:
    """Load an encoder directory: (tower in fp32 and evaluation mode, its preprocessing). `attention` is
    transformers' name of it; timm's towers have their own. The text towers of CLIP and SigLIP are left out,
    and of a findings model (merged) all but its tower. Raises ModelError."""
    import transformers

    folder = Path(folder)
    config, within = tower_config(folder)
    kind = CONTAINED.get(config.model_type, config.model_type)
    if kind not in CLASSES:
        raise ModelError(f"{folder}: a {kind} model; vision towers are {', '.join(CLASSES)}")
    check_companions(folder)
    with reading(folder, "its preprocessing"):
        preprocessing = Preprocessing.from_pretrained(folder)
    stored = stored_in(folder)
    row = check_config(folder, stored)
    # Text tower, language model; classifier.
    contained = within or kind != config.model_type
    part_of = {"config": config, "key_mapping": {r"^(model\.)?vision_tower\.": ""}} if within else {}
    cls = getattr(transformers, CLASSES[kind])
    own = {"key_mapping": part_of["key_mapping"]} if within else {}
    vision = config if kind == config.model_type else config.vision_config
    check_fit(cls, folder, vision, stored, part=contained or kind == "timm_wrapper", **own)
    with loading(folder, "its weights"):
        model, report = cls.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **part_of,
            **({} if kind == "timm_wrapper" else {"attn_implementation": attention}),
        )
    left = [] if contained or kind == "timm_wrapper" else list(report["unexpected_keys"])
    problems = [*report["missing_keys"], *map(str, report.get("mismatched_keys", ())), *left]
    if problems:
        raise ModelError(f"{folder}: {len(problems)} tensors do not fit {CLASSES[kind]}, first {problems[0]}")
    if "quantization_config" not in row:
        check_numbers(model, folder, stored)
    shape = shape_of(model.config)
    if preprocessing.size % shape.patch:
        raise ModelError(f"{folder}: {preprocessing.size} px is not a multiple of patch size {shape.patch}")
    return model.eval(), preprocessing


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Silence what transformers prints while it loads; the caller reports missing and unused weights in a line. Raises
    ModelError for a damaged file."""
    with quiet_loading(), reading(folder, what):
        yield


def tower_config(folder: Path) -> tuple[PreTrainedConfig, bool]:
    """Return the configuration of an encoder directory, or of the tower of a findings model, and whether it
    is that. Raises ModelError, which says what else the directory is."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} is an adapter; give the model it belongs to, or a merged one")
        raise ModelError(
            f"{folder / 'config.json'} does not exist; is {folder} an encoder checkpoint directory?{of_a_run(folder)}"
        )
    row, path = read_config(folder), folder / "config.json"
    if row.get("model_type") in FINDINGS_MODELS and not isinstance(row.get("vision_config"), dict):
        raise ModelError(f"{path}: vision_config must hold the tower's fields; restore the file")
    with config_is_blamed(folder):
        if row.get("model_type") in FINDINGS_MODELS:
            fields = dict(row["vision_config"])
            return AutoConfig.for_model(fields.pop("model_type"), **fields), True
        return AutoConfig.from_pretrained(folder, trust_remote_code=False), False


def final_norm(tower: nn.Module) -> nn.Module:
    """Return the LayerNorm after the last block. Raises ModelError where the tower has none."""
    if hasattr(tower, "final_norm"):  # features computed before
        return tower.final_norm
    for name in NORMS:
        try:
            return tower.get_submodule(name)
        except AttributeError:
            continue
    raise ModelError(f"{type(tower).__name__} has none of the known final LayerNorms: {', '.join(NORMS)}")


def hidden_states(
    tower: nn.Module, pixels_BCHW: Tensor, layers: Sequence[int], norm: bool = False
) -> list[Tensor]:
    """Return the hidden states of `layers`, each (B, extra + N, C), after the final LayerNorm if `norm`."""
    if hasattr(tower, "timm_model"):
        depth = len(tower.timm_model.blocks)
        blocks = [layer - 1 if layer >= 0 else depth + layer for layer in layers]
        wanted = sorted(set(blocks))
        maps = tower.timm_model.forward_intermediates(pixels_BCHW, indices=wanted, intermediates_only=True)
        states = [maps[wanted.index(block)].flatten(2).transpose(1, 2) for block in blocks]
    else:
        found = tower(pixels_BCHW, output_hidden_states=True, return_dict=True).hidden_states
        states = [found[layer] for layer in layers]
    return [final_norm(tower)(x_BNC) for x_BNC in states] if norm else states


def check_layers(layers: Sequence[int], shape: Shape, timm: bool = False) -> None:
    """Raise ModelError for hidden states that a tower does not have; timm's towers return those of blocks
    only."""
    lowest = -shape.depth if timm else -shape.depth - 1
    bad = [i for i in layers if not lowest <= i <= shape.depth or (timm and i == 0)]
    if bad or not layers:
        first = 1 if timm else 0
        raise ModelError(
            f"layers {list(layers)}: there are hidden states {first} to {shape.depth} (or -1 to {lowest})"
        )


def _timm_fields(config: PreTrainedConfig) -> dict:
    return {"architecture": config.architecture, "arguments": config.model_args or {}}


_timm_shapes: dict[str, Shape] = {}


def _timm_shape(key: str) -> Shape:
    if key not in _timm_shapes:
        import timm

        fields = json.loads(key)
        with torch.device("meta"):
            model = timm.create_model(
                fields["architecture"], pretrained=False, num_classes=0, **fields["arguments"]
            )
        if not hasattr(model, "blocks") or not hasattr(model, "patch_embed"):
            raise ModelError(f"{fields['architecture']} is no ViT: it has no blocks or no patches")
        patch = model.patch_embed.patch_size[0]
        # forward_intermediates gives the patches alone
        _timm_shapes[key] = Shape(model.embed_dim, len(model.blocks), patch, 0, stock=False)
    return _timm_shapes[key]
