"""What is between the towers: which features a model reads, and a projector that starts well.

`fold` and `unfold` move the standardisation of features into the projector and out of it again, so that a projector is
trained on standardised features and saved as the stock one of raw features.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from encoder.towers import hidden_states
from vlm.parts import parts

LAYERS = (-1,)  # the last block's output; stock Llava takes it before the final LayerNorm


def patches(llava: nn.Module, features_BNC: Tensor) -> Tensor:
    """Return the patch tokens of a tower's features, without CLS and registers, which come first."""
    config = llava.config
    count = getattr(config, "grid", 0) ** 2 or config.image_seq_length
    return features_BNC[:, features_BNC.shape[1] - count :]


@torch.no_grad()
def statistics(llava: nn.Module, features_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (C,), (C,) of every channel over the patch tokens, to standardise
    features by; 0 and 1 for a projector that normalises by itself."""
    x_TC = patches(llava, features_BNC).double().flatten(0, 1)
    if hasattr(parts(llava).projector, "resampler"):
        return torch.zeros(x_TC.shape[1]), torch.ones(x_TC.shape[1])
    mean_C, std_C = x_TC.mean(0), x_TC.std(0)
    return mean_C.float(), std_C.clamp_min(1e-3 * float(std_C.mean()) + 1e-8).float()


def linears(projector: nn.Module) -> list[nn.Linear]:
    """Return the linear layers in order."""
    return [m for name, m in projector.named_children() if name.startswith("linear_")]


@torch.no_grad()
def calibrate(llava: nn.Module, features_BNC: Tensor, gain: float = 3.0) -> None:
    """Initialise a fresh projector so that training is well-conditioned: linear_1 sees standardised features, and the
    output has mean 0 and `gain` times the standard deviation of the token embeddings.

    `features_BNC` are the tower's features of some images, CLS first. The standardisation is folded into linear_1, so
    the model stays stock.
    """
    projector = parts(llava).projector
    generator = torch.Generator().manual_seed(0)
    for linear in linears(projector):
        w = torch.randn(linear.weight.shape, generator=generator) * linear.in_features**-0.5
        linear.weight.copy_(w)
        linear.bias.zero_()
    fold(projector, *statistics(llava, features_BNC))
    std = gain * float(llava.get_input_embeddings().weight.float().std())
    mean_H = torch.zeros(linears(projector)[-1].out_features)
    rescale(projector, patches(llava, features_BNC).float(), mean_H, std)


@torch.no_grad()
def spread(projector: nn.Module, x_BNC: Tensor) -> tuple[Tensor, float]:
    """Return the mean (H,) of the projector's output, and its standard deviation about that."""
    out_TH = projector(x_BNC).flatten(0, 1)
    return out_TH.mean(0), float((out_TH - out_TH.mean(0)).std())


@torch.no_grad()
def rescale(projector: nn.Module, x_BNC: Tensor, mean_H: Tensor, std: float) -> None:
    """Give the projector's output this mean and standard deviation, by its last linear."""
    now_H, now = spread(projector, x_BNC)
    last = linears(projector)[-1]
    last.weight.mul_(std / now)
    last.bias.copy_(mean_H.to(now_H) + (last.bias - now_H) * (std / now))


@torch.no_grad()
def fold(projector: nn.Module, mean_C: Tensor, std_C: Tensor) -> None:
    """Turn a projector of standardised features into the same function of raw ones."""
    w, mean_C, std_C = _first(projector, mean_C, std_C)
    bias = projector.linear_1.bias.double() - (w / std_C) @ mean_C
    projector.linear_1.weight.copy_(w / std_C)
    projector.linear_1.bias.copy_(bias)


@torch.no_grad()
def unfold(projector: nn.Module, mean_C: Tensor, std_C: Tensor) -> None:
    """Undo `fold`, so that the projector can be trained on standardised features."""
    w, mean_C, std_C = _first(projector, mean_C, std_C)
    bias = projector.linear_1.bias.double() + w @ mean_C
    projector.linear_1.weight.copy_(w * std_C)
    projector.linear_1.bias.copy_(bias)


def _first(projector: nn.Module, mean_C: Tensor, std_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weight of linear_1 and the statistics of its inputs, in double precision: with pixel_shuffle
    a token holds the channels of several patches."""
    w = projector.linear_1.weight.double()
    patches_in = w.shape[1] // len(mean_C)
    return w, *(x.double().to(w.device).repeat(patches_in) for x in (mean_C, std_C))


class FeatureTower(nn.Module):
    """Stand in for a frozen vision tower: the "pixels" it is given are features (B, 1 + N, C) computed
    before. It standardises them, and the model is otherwise the stock one, in training and in generation."""

    def __init__(self, mean_C: Tensor, std_C: Tensor, layers: Sequence[int] = LAYERS):
        super().__init__()
        self.layers = list(layers)
        self.final_norm = nn.Identity()  # features that are read after the norm are kept so
        self.register_buffer("mean_C", mean_C, persistent=False)
        self.register_buffer("std_C", std_C, persistent=False)

    def forward(self, pixel_values: Tensor, **kwargs) -> SimpleNamespace:
        """Standardise features (B, 1 + N, C layers); return them split by layer, as a tower's hidden
        states."""
        x_BNC = (pixel_values.float() - self.mean_C) / self.std_C
        parts = x_BNC.chunk(len(self.layers), dim=-1)
        return SimpleNamespace(
            hidden_states=dict(zip(self.layers, parts, strict=True)), last_hidden_state=parts[-1]
        )


class StandardTower(FeatureTower):
    """Around a vision tower that works in every step: its features, standardised. In evaluation mode for good, and
    without a gradient, unless it is `trained`."""

    def __init__(
        self,
        tower: nn.Module,
        mean_C: Tensor,
        std_C: Tensor,
        layers: Sequence[int],
        norm: bool,
        trained: bool = False,
    ):
        super().__init__(mean_C, std_C, layers)
        self.tower, self.norm, self.trained = tower, norm, trained
        tower.requires_grad_(trained)

    def freeze_unused(self, pixels_BCHW: Tensor) -> None:
        """Freeze the parameters that no gradient reaches (mask token, last norm, later blocks): DistributedDataParallel
        would wait for them."""
        weights = [p for p in self.tower.parameters() if p.requires_grad]
        with torch.enable_grad():
            states = self(pixels_BCHW).hidden_states.values()
            total = sum(x.square().sum() for x in states)
            for p, g in zip(weights, torch.autograd.grad(total, weights, allow_unused=True), strict=True):
                p.requires_grad_(g is not None)

    def train(self, mode: bool = True) -> StandardTower:
        """Set training mode on a tower that is `trained`; a frozen one stays in evaluation mode."""
        return super().train(mode and self.trained)

    def forward(self, pixel_values: Tensor, **kwargs) -> SimpleNamespace:
        """Encode pixels (B, 3, H, W), then standardise; no gradient where the tower is frozen."""
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            states = hidden_states(self.tower, pixel_values, self.layers, self.norm)
        return super().forward(torch.cat(states, dim=-1))


@torch.no_grad()
def tower_features(
    tower: nn.Module, pixels_BCHW: Tensor, layers: Sequence[int] = LAYERS, norm: bool = False
) -> Tensor:
    """Return what the model reads of the tower: hidden states, CLS and registers first, those of several
    layers side by side (B, extra + N, C layers)."""
    return torch.cat(hidden_states(tower, pixels_BCHW, layers, norm), dim=-1)


def layers_of(llava: nn.Module) -> list[int]:
    """Return the layers whose hidden states a model reads."""
    layers = llava.config.vision_feature_layer
    return [layers] if isinstance(layers, int) else list(layers)


def normed(llava: nn.Module) -> bool:
    """Tell whether a model reads hidden states after the tower's final LayerNorm."""
    return bool(getattr(llava.config, "feature_norm", False))


def describe_features(layers: Sequence[int], norm: bool = False, tokens: int | None = None) -> str:
    """Say in words, for model cards and logs, which hidden states the projector takes, and how many
    tokens."""
    where = "after" if norm else "before"
    fewer = "" if tokens is None else f", as {tokens} tokens"
    return f"hidden_states{list(layers)}, {where} the final LayerNorm, without CLS{fewer}"
