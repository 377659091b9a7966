"""The encoder that is trained: timm's VisionTransformer, over crops of several sizes in one pass.

Shape letters: B images, C width, P patches, T tokens of all crops, S crops, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from encoder.attention.wiring import TimmAttention
from encoder.errors import ModelError


class Features(NamedTuple):
    """Hold the tokens after the final LayerNorm."""

    cls_BC: Tensor
    patches_BPC: Tensor


class Rows(NamedTuple):
    """Select the rows of x that enter one residual branch: crops of a dense batch, tokens of a pack."""

    index: Tensor | None  # int64; None: all
    scale: Tensor | None  # what the outcome is multiplied by
    pack: dict  # cu_seqlens and max_seqlen of those tokens; empty for a dense batch


class CropBlock(Block):
    """timm's Block, whose branches compute only the rows that stochastic depth keeps."""

    def forward(
        self, x: Tensor, attention: Rows | None = None, mlp: Rows | None = None, only: Rows | None = None
    ) -> Tensor:
        """Run the block. `only` selects the tokens that are needed after it; the others skip the MLP."""
        x = self._residual(x, self._attend, attention or ALL)
        if only is None:
            return self._residual(x, self._transform, mlp or ALL)
        x = x.flatten(0, -2).index_select(0, only.index)
        branch = self._transform(x, {})
        return x + (branch if only.scale is None else branch * only.scale)

    def _attend(self, x: Tensor, pack: dict) -> Tensor:
        return self.ls1(self.attn(self.norm1(x), **pack))

    def _transform(self, x: Tensor, pack: dict) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x)))

    def _residual(self, x: Tensor, branch: Callable[[Tensor, dict], Tensor], rows: Rows) -> Tensor:
        if rows.index is None:
            return x + branch(x, rows.pack)
        out = branch(x.index_select(0, rows.index), rows.pack) * rows.scale
        return x.index_add(0, rows.index, out.to(x.dtype))


ALL = Rows(None, None, {})


class CropViT(VisionTransformer):
    """DINOv2's ViT (`vit_*_patch14_dinov2` of timm: LayerScale, a CLS token, no registers) with a mask token.

    `size` and `patch` are in pixels; `size` fixes only the grid of the position embeddings, any multiple of `patch`
    can be passed in. State-dict keys are timm's plus `mask_token` (1, width).
    """

    def __init__(
        self,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        layerscale: float = 1e-5,
        mlp_ratio: int = 4,
        attention: str = "cxr",
    ) -> None:
        if size % patch:
            raise ModelError(f"image size {size} is not a multiple of the patch size {patch}")
        if width % heads:
            raise ModelError(f"width {width} is not a multiple of the number of heads {heads}")
        super().__init__(
            img_size=size,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            init_values=layerscale,
            num_classes=0,
            dynamic_img_size=True,
            attn_layer=TimmAttention,
            block_fn=CropBlock,
        )
        self.size, self.patch, self.heads, self.depth = size, patch, heads, depth
        self.mlp_ratio, self.layerscale = mlp_ratio, layerscale
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        for block in self.blocks:
            block.attn.attention = attention

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Draw timm's initial weights and set the mask token to 0, as DINOv2 does."""
        super().init_weights(mode, needs_reset)
        if hasattr(self, "mask_token"):  # timm calls this before the token exists
            nn.init.zeros_(self.mask_token)

    def forward_crops(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        residual_LRS: Tensor | None = None,
    ) -> list[Features]:
        """Encode all crops in one pass.

        crops: one (B, 3, H, W) tensor a resolution, H and W multiples of the patch; B may differ between them.
        masks: for each of them None or bool (B, P), True where the patch is replaced by the mask token.
        residual_LRS: stochastic depth, on the CPU: what each of the two residual branches of each block is multiplied
            by, for each crop in order (0, or 1 / probability of keeping); None keeps all. A crop with 0 is not
            computed at all, as in DINOv2.

        On an accelerator the tokens of all crops go through every layer as one packed sequence, where attention sees
        `cu_seqlens`. On a CPU each resolution goes through by itself: the activations stay in the cache, which was
        measured 10 to 30 % faster.
        """
        features = []
        for tokens, residual in self._passes(crops, masks, residual_LRS):
            x = self._blocks(tokens, residual)
            shapes = [(x.shape[0], x.shape[1]) for x in tokens]
            parts = x.split([b * n for b, n in shapes]) if len(tokens) > 1 else [x]
            parts = [part.reshape(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]
            features += [Features(part[:, 0], part[:, 1:]) for part in parts]
        return features

    def forward_wanted(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None,
        residual_LRS: Tensor | None,
        wanted_M: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the CLS tokens of all crops (S, C), and of the patches only those at `wanted_M` (M, C):
        places in the flattened (B, P) patches of the first resolution. They are as `forward_crops` gives them
        but for rounding: the last block's MLP and the norm see these tokens alone.
        """
        cls, patches = [], None
        for number, (tokens, residual) in enumerate(self._passes(crops, masks, residual_LRS)):
            lengths = [x.shape[1] for x in tokens for _ in range(x.shape[0])]
            crop = torch.arange(len(lengths), device=wanted_M.device)
            if len(tokens) > 1:
                cu_seqlens, _ = _packing(tuple((x.shape[0], x.shape[1]) for x in tokens), wanted_M.device)
                index = cu_seqlens[:-1].long()
            else:
                index = crop * lengths[0]
            if number == 0:
                of, patch = wanted_M // (lengths[0] - 1), wanted_M % (lengths[0] - 1)
                index = torch.cat([index, of * lengths[0] + 1 + patch])
                crop = torch.cat([crop, of])
            x = self._blocks(tokens, residual, (index, crop))
            cls.append(x[: len(lengths)])
            if number == 0:
                patches = x[len(lengths) :]
        return torch.cat(cls), patches

    def _passes(
        self, crops: Sequence[Tensor], masks: Sequence[Tensor | None] | None, residual_LRS: Tensor | None
    ) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """Tokens of the resolutions that go through the blocks together, and what their branches are multiplied by."""
        masks = [None] * len(crops) if masks is None else masks
        tokens = [self._embed(x, mask) for x, mask in zip(crops, masks, strict=True)]
        if tokens[0].device.type != "cpu":
            yield tokens, residual_LRS
            return
        sizes = [x.shape[0] for x in tokens]
        residuals = [None] * len(tokens) if residual_LRS is None else residual_LRS.split(sizes, dim=-1)
        yield from (([x], residual) for x, residual in zip(tokens, residuals, strict=True))

    def _blocks(
        self,
        tokens: Sequence[Tensor],
        residual_LRS: Tensor | None,
        only: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """One resolution as a dense batch (S, N, C), several as a pack (T, C); after the norm. `only`: places of the
        tokens that are wanted, and the crops they are of; then (tokens, C)."""
        shapes = tuple((x.shape[0], x.shape[1]) for x in tokens)
        x, pack = tokens[0], {}
        if len(tokens) > 1:
            x = torch.cat([x.flatten(0, 1) for x in tokens])
            cu_seqlens, max_seqlen = _packing(shapes, x.device)
            pack = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        if residual_LRS is None:
            plan = repeat(Rows(None, None, pack))
        else:
            plan = _kept_rows(residual_LRS, shapes, x)
        for block in self.blocks[:-1]:
            x = block(x, next(plan), next(plan))
        last = None
        if only is not None:
            scale = None if residual_LRS is None else _to_device(residual_LRS[-1, 1], x.device)[only[1], None]
            last = Rows(only[0], scale, {})
        return self.norm(self.blocks[-1](x, next(plan), next(plan), last))

    def _embed(self, x_BCHW: Tensor, mask_BP: Tensor | None) -> Tensor:
        x_BhwC = self.patch_embed(x_BCHW)
        if mask_BP is not None:
            x_BPC = x_BhwC.flatten(1, 2)
            x_BPC = torch.where(mask_BP[..., None], self.mask_token.to(x_BPC.dtype), x_BPC)
            x_BhwC = x_BPC.view_as(x_BhwC)
        return self._pos_embed(x_BhwC)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, h, w, C) -> tokens (B, 1 + P, C), CLS first, with position embeddings.

        Other grids than the native one are interpolated as transformers' Dinov2 does it (bicubic, not antialiased), so
        that the exported model gives the same output at every size.
        """
        pos_1NC = self.pos_embed
        if x.shape[1:3] != self.patch_embed.grid_size:
            pos_1NC = torch.cat(
                [pos_1NC[:, :1], resample_pos_embed(pos_1NC[:, 1:], tuple(x.shape[1:3]))], dim=1
            )
        cls_B1C = self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([cls_B1C, x.flatten(1, 2)], dim=1) + pos_1NC


def sincos_positions(side: int, width: int) -> Tensor:
    """Return position embeddings (side * side, width) made of sines and cosines of row and column.

    Wavelengths go from 2 patches to twice the image, which tells neighbours apart as well as halves; the amplitude is
    a half, as large as what the patch embedding gives at the start. Raises ValueError unless `width` is a multiple
    of 4.
    """
    if width % 4:
        raise ValueError(
            f"position embeddings of sines and cosines need a width that is a multiple of 4, not {width}"
        )
    frequency_F = math.pi * side ** -torch.linspace(0, 1, width // 4)  # radians a patch
    # Said where, because under torch.device("meta") transformers 5 may leave linspace, and it alone, on the CPU.
    angle_sF = torch.arange(side, device=frequency_F.device)[:, None] * frequency_F
    wave_sC = torch.cat([angle_sF.sin(), angle_sF.cos()], dim=1)
    rows, columns = wave_sC[:, None].expand(-1, side, -1), wave_sC.expand(side, -1, -1)
    return 0.5 * torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _kept_rows(residual_LRS: Tensor, shapes: tuple[tuple[int, int], ...], x: Tensor) -> Iterator[Rows]:
    """Return the rows of each residual branch, in order.

    How many there are is read from `residual_LRS` on the CPU, so that nothing waits for the device.
    """
    scales = residual_LRS.flatten(0, 1)
    kept = scales != 0
    kept[:, 0] |= ~kept.any(1)  # a branch without any crop would leave its parameters without a gradient
    branch, crop = kept.nonzero(as_tuple=True)
    crops_per_branch = kept.sum(1).tolist()
    scale = scales[branch, crop]
    packed = x.dim() == 2
    lengths_S = torch.tensor([n for count, n in shapes for _ in range(count)])
    tokens_per_branch = (kept * lengths_S).sum(1).tolist()
    longest = (kept * lengths_S).amax(1).tolist()
    crop, scale, lengths_S = (_to_device(t, x.device) for t in (crop, scale, lengths_S))
    if not packed:
        for rows, factor in zip(crop.split(crops_per_branch), scale.split(crops_per_branch), strict=True):
            yield Rows(rows, factor[:, None, None], {})
        return
    lengths = lengths_S[crop]
    starts_S = lengths_S.cumsum(0) - lengths_S
    total = sum(tokens_per_branch)
    before = lengths.cumsum(0) - lengths
    rows = torch.arange(total, device=x.device)
    rows = rows + (starts_S[crop] - before).repeat_interleave(lengths, output_size=total)
    factors = scale.repeat_interleave(lengths, output_size=total)[:, None]
    parts = (rows.split(tokens_per_branch), factors.split(tokens_per_branch), lengths.split(crops_per_branch))
    for some, factor, mine, max_seqlen in zip(*parts, longest, strict=True):
        cu_seqlens = F.pad(mine.cumsum(0, dtype=torch.int32), (1, 0))
        yield Rows(some, factor, {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen})


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def resample_pos_embed(pos_1PC: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample the position embeddings of a square grid of patches (without CLS) to another grid."""
    side = round(pos_1PC.shape[1] ** 0.5)
    if side * side != pos_1PC.shape[1]:
        raise ValueError(f"{pos_1PC.shape[1]} position embeddings are not a square grid")
    pos_1Chw = pos_1PC.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    pos_1Chw = F.interpolate(pos_1Chw, size=grid, mode="bicubic", align_corners=False)
    return pos_1Chw.flatten(2).transpose(1, 2).to(pos_1PC.dtype)


@lru_cache(maxsize=32)
def _packing(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, int]:
    lengths = [n for count, n in shapes for _ in range(count)]
    with torch.inference_mode(False):  # kept, and a tensor made in that mode could not be used in training
        cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    return cu_seqlens, max(lengths)
