"""The projection head of DINO and iBOT: three layers, a bottleneck on the unit sphere, K prototypes.

Shape letters: B samples (images or masked patches), C width, D bottleneck, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """A linear layer without bias whose rows have norm `weight_g` (weight normalisation, Salimans and Kingma 2016).

    The parameters are called as in DINOv2's released heads: `weight_g` (K, 1), `weight_v` (K, D).
    """

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions as nn.Linear draws its weights and set all lengths to 1, as DINOv2 does."""
        nn.init.ones_(self.weight_g)
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)  # that of nn.Linear, as in DINOv2

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map (B, D) to logits (B, K): products with the prototypes, each scaled to its own length."""
        # what torch.nn.utils.parametrizations.weight_norm calls: fused, where the formula makes six passes over K x D
        return F.linear(x_BD, torch._weight_norm(self.weight_v, self.weight_g, 0))


class DINOHead(nn.Module):
    """Linear, GELU, linear, GELU, linear to the bottleneck, L2 normalisation, prototypes: features (B, width) to
    logits (B, prototypes). State-dict keys are DINOv2's (`mlp.0.weight` ... `last_layer.weight_v`)."""

    def __init__(self, width: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last_layer = Prototypes(bottleneck, prototypes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw linear weights from a normal of deviation 0.02, truncated at ±2; biases are 0, as in
        DINOv2."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer.reset_parameters()

    def forward(self, x_BC: Tensor) -> Tensor:
        """Map (B, C) to logits (B, K); the bottleneck (B, D) has unit length before the prototypes."""
        x_BD = self.mlp(x_BC)
        eps = 1e-6 if x_BD.dtype == torch.float16 else 1e-12  # 1e-12 is zero in half precision
        return self.last_layer(F.normalize(x_BD, dim=-1, eps=eps))
