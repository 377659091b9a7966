"""What is between the towers: which features a model reads, and a projector that starts well.

`fold` and `unfold` move the standardisation of features into the projector and out of it again, so that a projector is
trained on standardised features and saved as the stock one of raw features.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

LAYERS = (-1,)  # the last block's output; stock Llava takes it before the final LayerNorm


@torch.no_grad()
def statistics(features_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel over the patch tokens, without CLS, the first: (C,), (C,)."""
    x_TC = features_BNC[:, 1:].double().flatten(0, 1)
    mean_C, std_C = x_TC.mean(0), x_TC.std(0)
    return mean_C.float(), std_C.clamp_min(1e-3 * float(std_C.mean()) + 1e-8).float()


@torch.no_grad()
def calibrate(llava: nn.Module, features_BNC: Tensor, gain: float = 3.0) -> None:
    """Initialise a fresh projector so that training is well-conditioned: linear_1 sees standardised features, and the
    output has mean 0 and `gain` times the standard deviation of the token embeddings.

    `features_BNC` are the tower's un-normed features of some images, CLS first. The standardisation is folded into
    linear_1, so the model stays stock.
    """
    projector = llava.model.multi_modal_projector
    generator = torch.Generator().manual_seed(0)
    for linear in (projector.linear_1, projector.linear_2):
        w = torch.randn(linear.weight.shape, generator=generator) * linear.in_features**-0.5
        linear.weight.copy_(w)
        linear.bias.zero_()
    fold(projector, *statistics(features_BNC))
    std = gain * float(llava.get_input_embeddings().weight.std())
    rescale(projector, features_BNC[:, 1:].float(), torch.zeros(projector.linear_2.out_features), std)


@torch.no_grad()
def spread(projector: nn.Module, x_BNC: Tensor) -> tuple[Tensor, float]:
    """Mean (H,) of the projector's output, and its standard deviation about that."""
    out_TH = projector(x_BNC).flatten(0, 1)
    return out_TH.mean(0), float((out_TH - out_TH.mean(0)).std())


@torch.no_grad()
def rescale(projector: nn.Module, x_BNC: Tensor, mean_H: Tensor, std: float) -> None:
    """Give the projector's output this mean and standard deviation, by its last linear."""
    now_H, now = spread(projector, x_BNC)
    projector.linear_2.weight.mul_(std / now)
    projector.linear_2.bias.copy_(mean_H.to(now_H) + (projector.linear_2.bias - now_H) * (std / now))


@torch.no_grad()
def fold(projector: nn.Module, mean_C: Tensor, std_C: Tensor) -> None:
    """A projector of standardised features -> the same function of raw ones."""
    w = projector.linear_1.weight.double() / std_C.double().to(projector.linear_1.weight.device)
    bias = projector.linear_1.bias.double() - w @ mean_C.double().to(w.device)
    projector.linear_1.weight.copy_(w)
    projector.linear_1.bias.copy_(bias)


@torch.no_grad()
def unfold(projector: nn.Module, mean_C: Tensor, std_C: Tensor) -> None:
    """The inverse of `fold`: the projector may then be trained on standardised features."""
    w = projector.linear_1.weight.double()
    bias = projector.linear_1.bias.double() + w @ mean_C.double().to(w.device)
    projector.linear_1.weight.copy_(w * std_C.double().to(w.device))
    projector.linear_1.bias.copy_(bias)


class FeatureTower(nn.Module):
    """Stands in for a frozen vision tower: the "pixels" it is given are features (B, 1 + N, C) computed before. It
    standardises them, and the model is otherwise the stock one, in training and in generation."""

    def __init__(self, mean_C: Tensor, std_C: Tensor, layers: Sequence[int] = LAYERS):
        super().__init__()
        self.layers = list(layers)
        self.register_buffer("mean_C", mean_C, persistent=False)
        self.register_buffer("std_C", std_C, persistent=False)

    def forward(self, pixel_values: Tensor, **kwargs) -> SimpleNamespace:
        x_BNC = (pixel_values.float() - self.mean_C) / self.std_C
        parts = x_BNC.chunk(len(self.layers), dim=-1)
        return SimpleNamespace(
            hidden_states=dict(zip(self.layers, parts, strict=True)), last_hidden_state=parts[-1]
        )


@torch.no_grad()
def tower_features(tower: nn.Module, pixels_BCHW: Tensor, layers: Sequence[int] = LAYERS) -> Tensor:
    """What stock Llava reads of the tower: un-normed hidden states, CLS first, those of several layers side by side
    (B, 1 + N, C layers)."""
    states = tower(pixels_BCHW, output_hidden_states=True).hidden_states
    return torch.cat([states[layer] for layer in layers], dim=-1)


def layers_of(llava: nn.Module) -> list[int]:
    """The layers whose hidden states a model reads."""
    layers = llava.config.vision_feature_layer
    return [layers] if isinstance(layers, int) else list(layers)


def describe_features(layers: Sequence[int]) -> str:
    return f"hidden_states{list(layers)}, before the final LayerNorm, without CLS"
