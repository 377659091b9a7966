"""`cxr_llava`: the findings model where stock Llava cannot say it.

Stock Llava has a projector of two layers on hidden states before the final LayerNorm, one CLS token at most, and as
many image tokens as patches. Anything else (a deeper projector, normed features as MAIRA-2's, register tokens, timm
towers, fewer tokens an image) is this model, which transformers' Auto classes know after `import vlm`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModel

from encoder import towers
from encoder.attention import attention

REDUCTIONS = ("none", "pixel_shuffle", "pool", "resampler")


@strict
class CxrLlavaConfig(LlavaConfig):
    """LlavaConfig, and what stock Llava has no words for."""

    model_type = "cxr_llava"

    projector_depth: int = 2  # linear layers with GELU between
    feature_norm: bool = False  # features after the tower's final LayerNorm
    token_reduction: str = "none"  # one of REDUCTIONS
    reduction: int = 2  # patches a side that become one token; of a resampler: tokens a side
    grid: int = 37  # patches a side


def is_stock(depth: int, norm: bool, reduction: str, shape: towers.Shape) -> bool:
    """Tell whether transformers' Llava can express this config."""
    return depth == 2 and not norm and reduction == "none" and shape.stock


def token_grid(grid: int, reduction: str, factor: int) -> int:
    """Return how many image tokens a side the language model sees of `grid` patches a side."""
    return {"none": grid, "resampler": factor}.get(reduction, math.ceil(grid / factor))


class Projector(nn.Module):
    """Map features (B, N, C) to tokens of the language model (B, M, H): fewer of them, if asked for, then the
    linear layers.

    The layers are `linear_1`, GELU, `linear_2`, ...: stock Llava's names, so that its files fit.

    `pixel_shuffle` puts r x r neighbours side by side in one token, `pool` takes their mean. Both repeat the
    last row and column of a grid that r does not divide. Unlike zeros, that commutes with standardising the
    features.
    """

    def __init__(self, config: CxrLlavaConfig):
        super().__init__()
        layers = config.vision_feature_layer
        shape = towers.shape_of(config.vision_config)
        width = shape.width * (1 if isinstance(layers, int) else len(layers))
        self.how, self.factor, self.grid = config.token_reduction, config.reduction, config.grid
        if self.how == "resampler":
            self.resampler = Resampler(width, config.reduction**2)
        hidden, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.depth = config.projector_depth
        self.act = ACT2FN[config.projector_hidden_act]
        first = width * (config.reduction**2 if self.how == "pixel_shuffle" else 1)
        for i in range(1, self.depth + 1):
            setattr(self, f"linear_{i}", nn.Linear(first if i == 1 else hidden, hidden, bias=bias))

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Map patch features (B, N, C) to image tokens (B, M, hidden); M is N where tokens are not
        reduced."""
        x = self.fewer(x_BNC)
        for i in range(1, self.depth + 1):
            x = getattr(self, f"linear_{i}")(x if i == 1 else self.act(x))
        return x

    def fewer(self, x_BNC: Tensor) -> Tensor:
        """Reduce the tokens (B, N, C) as `token_reduction` says; they lie in a square grid, row by row.

        Returns:
            (B, N, C) unchanged, (B, M, C) of a resampler or a pool, or (B, M, C r²) of a pixel shuffle.
        """
        if self.how == "none":
            return x_BNC
        if self.how == "resampler":
            return self.resampler(x_BNC)
        r, missing = self.factor, -self.grid % self.factor
        x_BCHW = x_BNC.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x_BCHW = F.pad(x_BCHW, (0, missing, 0, missing), mode="replicate")
        if self.how == "pool":
            return F.avg_pool2d(x_BCHW, r).flatten(2).transpose(1, 2)
        x_BhwrrC = x_BCHW.unflatten(3, (-1, r)).unflatten(2, (-1, r)).permute(0, 2, 4, 3, 5, 1)
        return x_BhwrrC.flatten(3).flatten(1, 2)


class Resampler(nn.Module):
    """Learned queries that look at the patches once (a Perceiver resampler of one block): (B, N, C) -> (B, Q, C). The
    patches are normalised first; their positions are in the features."""

    def __init__(self, width: int, queries: int):
        super().__init__()
        self.heads = max(1, width // 64)
        while width % self.heads:
            self.heads -= 1
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw queries of unit variance and weights of variance 1 / inputs; biases are 0."""
        nn.init.normal_(self.queries, std=1.0)
        for linear in (self.q, self.kv, self.out, self.mlp[0], self.mlp[2]):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Attend from the learned queries to the patches, then apply the MLP: (B, N, C) -> (B, Q, C)."""
        B, N, C = x_BNC.shape
        kv_BN2HD = self.kv(self.norm(x_BNC)).view(B, N, 2, self.heads, C // self.heads)
        q_QC = self.queries + self.q(self.queries)
        q_BQHD = q_QC.to(kv_BN2HD.dtype).view(1, len(q_QC), self.heads, -1).expand(B, -1, -1, -1).contiguous()
        seen_BQC = attention(q_BQHD, *kv_BN2HD.unbind(2)).flatten(2)
        x_BQC = q_QC + self.out(seen_BQC)
        return x_BQC + self.mlp(self.norm_mlp(x_BQC))


class CxrLlavaModel(LlavaModel):
    """Extend transformers' LlavaModel by a projector of any depth that can reduce the image tokens."""

    config_class = CxrLlavaConfig

    def __init__(self, config: CxrLlavaConfig):
        super(LlavaModel, self).__init__(config)  # whose projector knows two layers and a width of all towers
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = Projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_image_features(
        self,
        pixel_values,
        vision_feature_layer=None,
        vision_feature_select_strategy=None,
        image_sizes=None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode images; `pooler_output` is a list of (M, H), one an image."""
        layers = (
            vision_feature_layer if vision_feature_layer is not None else self.config.vision_feature_layer
        )
        layers = [layers] if isinstance(layers, int) else list(layers)
        states = towers.hidden_states(self.vision_tower, pixel_values, layers, self.config.feature_norm)
        x_BNC = torch.cat([x[:, x.shape[1] - self.config.grid**2 :] for x in states], dim=-1)
        projected = self.multi_modal_projector(x_BNC)
        return BaseModelOutputWithPooling(last_hidden_state=states[-1], pooler_output=list(projected))


class CxrLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """Put the language model's head on CxrLlavaModel; `generate` is transformers' own."""

    config_class = CxrLlavaConfig

    def __init__(self, config: CxrLlavaConfig):
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = CxrLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(CxrLlavaConfig.model_type, CxrLlavaConfig)
AutoModelForImageTextToText.register(CxrLlavaConfig, CxrLlavaForConditionalGeneration)
