"""Any image encoder, frozen, with one face: X-rays in, CLS and patch tokens out.

    encoder_of("runs/encoder/encoder")          ours, RAD-DINO, DINOv2 with or without registers, CLIP, SigLIP, timm's
    encoder_of("microsoft/rad-dino")            ViTs: a transformers directory, or a hub id
    encoder_of("mini")                          the tower of a findings model, merged; a directory, or a hub id
    encoder_of("dinov2_vitb14.pth")             a file of the DINOv2 repository or of timm
    encoder_of("random:microsoft/rad-dino@1")   the same architecture with random weights (seed 1): a baseline
    encoder_of("pixels")                        no encoder, but grey levels, which probes reduce by PCA: a baseline

Shape letters: B images, P patches (grid x grid, row by row), C channels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder import towers
from encoder.convert import FILES, load_backbone
from encoder.errors import ModelError
from encoder.files import sha256_of
from encoder.hub import resolve, weights_sha256
from encoder.transforms import Preprocessing
from encoder.vit import CropViT

# Name, side of the whole image, and side of a patch, of what shows grey levels.
PIXELS, SIDE, PATCH = "pixels", 64, 14


class Tokens(NamedTuple):
    """Hold what an encoder makes of images.

    Attributes:
        cls_BC: what the encoder itself takes for the image: CLS, or what its head pools (SigLIP, timm).
        patches_BPC: after the final LayerNorm, if it has one before pooling; of several layers side by side.
    """

    cls_BC: Tensor
    patches_BPC: Tensor


class Encoder(nn.Module, ABC):
    """Encode images with frozen weights; every kind of encoder has this face.

    Attributes:
        name: as it was asked for.
        sha256: of its weights; of what they were drawn from, if they are random.
        width: channels C of CLS.
        patch_width: channels of a patch token.
        patch: pixels a side of a patch.
        grid: patches a side.
        depth: blocks.
        preprocessing: turns grey levels (H, W) into what `forward` takes.
    """

    def __init__(
        self, name: str, sha256: str, width: int, patch: int, depth: int, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.name, self.sha256, self.width, self.patch, self.depth = name, sha256, width, patch, depth
        self.preprocessing, self.grid = preprocessing, preprocessing.size // patch
        self.patch_width = width

    @torch.inference_mode()
    def forward(self, pixels_B3HW: Tensor, layers: int = 1) -> Tokens:
        """Return the tokens of the last block; patches of the last `layers` blocks side by side (B, P, C layers)."""
        return self.tokens(pixels_B3HW, layers)

    @abstractmethod
    def tokens(self, pixels_B3HW: Tensor, layers: int) -> Tokens:
        """Encode (B, 3, H, W) into CLS (B, C) and the patches of the last `layers` blocks (B, P, C
        layers)."""


class Tower(Encoder):
    """A vision model of transformers (encoder/towers.py)."""

    def __init__(self, name: str, sha256: str, tower: nn.Module, preprocessing: Preprocessing) -> None:
        shape = towers.shape_of(tower.config)
        super().__init__(name, sha256, shape.width, shape.patch, shape.depth, preprocessing)
        self.tower, self.shape = tower, shape

    def tokens(self, pixels_B3HW: Tensor, layers: int) -> Tokens:
        """Encode (B, 3, H, W); final LayerNorm on every layer. Raises ModelError if it has fewer `layers`."""
        towers.check_layers(range(-layers, 0), self.shape, hasattr(self.tower, "timm_model"))
        if hasattr(self.tower, "timm_model"):
            timm = self.tower.timm_model
            final_BNC, maps = timm.forward_intermediates(
                pixels_B3HW, indices=layers, norm=True, output_fmt="NLC"
            )
            return Tokens(timm.forward_head(final_BNC, pre_logits=True), torch.cat(maps, -1))
        several = layers > 1
        out = self.tower(pixels_B3HW, output_hidden_states=several, return_dict=True)
        norm = towers.final_norm(self.tower)
        # CLIP's alone leaves its last hidden state as it is before the LayerNorm
        last_BNC = out.last_hidden_state
        last_BNC = norm(last_BNC) if self.tower.config.model_type == "clip_vision_model" else last_BNC
        states = [norm(x) for x in out.hidden_states[-layers:-1]] if several else []
        cls_BC = last_BNC[:, 0] if self.shape.extra else out.pooler_output
        return Tokens(cls_BC, torch.cat([x[:, self.shape.extra :] for x in [*states, last_BNC]], -1))


class Backbone(Encoder):
    """Our own ViT, from a file."""

    def __init__(self, name: str, sha256: str, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__(name, sha256, backbone.embed_dim, backbone.patch, backbone.depth, preprocessing)
        self.backbone = backbone

    def tokens(self, pixels_B3HW: Tensor, layers: int) -> Tokens:
        """Encode (B, 3, H, W); final LayerNorm on every layer. Raises ModelError if it has fewer `layers`."""
        depth = len(self.backbone.blocks)
        if layers > depth:
            raise ModelError(f"{self.name} has {depth} layers, not {layers}")
        found = self.backbone.forward_intermediates(
            pixels_B3HW, indices=layers, return_prefix_tokens=True, norm=True, output_fmt="NLC",
            intermediates_only=True,
        )  # fmt: skip
        return Tokens(found[-1][1][:, 0], torch.cat([patches for patches, _ in found], -1))


class Pixels(Encoder):
    """CLS is the image, 64 x 64 grey levels; a patch token is the patch."""

    def __init__(self, size: int = 224) -> None:
        preprocessing = Preprocessing(size=size, mean=0.5, std=0.25)
        super().__init__(PIXELS, PIXELS, SIDE**2, PATCH, 1, preprocessing)
        self.patch_width = PATCH**2

    def tokens(self, pixels_B3HW: Tensor, layers: int) -> Tokens:
        """Return grey levels: the image at SIDE x SIDE as CLS (B, SIDE²), and the pixels of each patch (B,
        P, PATCH²)."""
        x_B1HW = pixels_B3HW[:, :1]
        small_BC = F.adaptive_avg_pool2d(x_B1HW, SIDE).flatten(1)
        side = self.grid * PATCH
        return Tokens(small_BC, F.unfold(x_B1HW[..., :side, :side], PATCH, stride=PATCH).transpose(1, 2))


def encoder_of(name: str | Path, size: int | None = None, attention: str = "cxr") -> Encoder:
    """Return the encoder of that name (see above), in float32, on the CPU, in evaluation mode.

    `size`: pixels a side instead of what it was made for (DINOv2s resample their position embeddings; others cannot).
    `attention`: cxr (our kernel), sdpa or reference. Raises ModelError for what is not an encoder or cannot be read,
    and for pickled weights that are more than tensors.
    """
    name = str(name)
    if name == PIXELS:
        return Pixels(size or 224)
    if name.startswith("random:"):
        return _random(name, size, attention)
    if name.endswith(FILES):
        return _from_file(name, size)
    from encoder.attention.wiring import TRANSFORMERS

    if attention not in TRANSFORMERS:
        raise ModelError(f"attention {attention!r} is unknown; there are {', '.join(TRANSFORMERS)}")
    folder = resolve(name, "encoder", "nor 'pixels', nor 'random:ENCODER', nor a weights file, ")
    tower, preprocessing = towers.load_tower(folder, TRANSFORMERS[attention])
    return encoder_of_tower(name, weights_sha256(folder), tower, preprocessing, size)


def encoder_of_tower(
    name: str, sha256: str, tower: nn.Module, preprocessing: Preprocessing, size: int | None = None
) -> Encoder:
    """Make an encoder of a loaded vision model. Raises ModelError where it cannot take images of that `size`."""
    preprocessing = _resized(
        tower.config.model_type, preprocessing, size, name, getattr(tower.config, "patch_size", 1)
    )
    return Tower(name, sha256, tower, preprocessing).eval()


def _from_file(name: str, size: int | None) -> Encoder:
    from encoder.state_dicts import ConversionError

    try:
        loaded = load_backbone(name, size)
    except (ConversionError, FileNotFoundError) as error:
        raise ModelError(str(error)) from None
    preprocessing = loaded.preprocessing or Preprocessing(size=loaded.backbone.size)
    return Backbone(name, sha256_of(Path(name)), loaded.backbone, preprocessing).eval()


def _random(name: str, size: int | None, attention: str) -> Encoder:
    """Return an encoder as the library that has the architecture initialises it."""
    origin, _, seed = name.removeprefix("random:").partition("@")
    if not seed.isdecimal() and seed:
        raise ModelError(f"{name}: the seed after @ is a number")
    encoder = encoder_of(origin, size, attention)
    if isinstance(encoder, Pixels):
        raise ModelError("pixels have no weights to be random")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed or 0))
        if isinstance(encoder, Backbone):
            b = encoder.backbone
            encoder.backbone = CropViT(
                b.size, b.patch, b.embed_dim, b.depth, b.heads, b.layerscale, mlp_ratio=b.mlp_ratio
            ).eval()
        else:
            fresh = type(encoder.tower)._from_config(
                encoder.tower.config, attn_implementation=encoder.tower.config._attn_implementation
            )
            encoder.tower.load_state_dict(fresh.state_dict())
    encoder.name = name
    encoder.sha256 = hashlib.sha256(f"random {seed or 0} {encoder.sha256}".encode()).hexdigest()
    return encoder


def _resized(
    kind: str, preprocessing: Preprocessing, size: int | None, name: str, patch: int
) -> Preprocessing:
    if size is None or size == preprocessing.size:
        return preprocessing
    if not kind.startswith("dinov2"):
        raise ModelError(f"{name}: a {kind} takes only images of {preprocessing.size} px")
    if size < patch:
        raise ModelError(f"{name}: images of {size} px are smaller than a patch of {patch} px")
    return replace(preprocessing, size=size)
