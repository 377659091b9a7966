"""A linear head on frozen patch tokens, and the floors it has to beat: what of segmentation needs no encoder at all.

Shape letters: N images, P patches (g x g), C features, H, W pixels of the masks.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2)  # penalties tried; the best on validation is kept
PCA_COMPONENTS = (16, 32, 64, 128)


def dice(predicted_NHW: np.ndarray, truth_NHW: np.ndarray) -> np.ndarray:
    """Dice of each image, (N,): 2 |A and B| / (|A| + |B|); NaN where both are empty."""
    A, B = (np.asarray(x, bool).reshape(len(x), -1) for x in (predicted_NHW, truth_NHW))
    total = A.sum(1) + B.sum(1)
    return np.divide(2 * (A & B).sum(1), total, out=np.full(len(A), np.nan), where=total > 0)


class LinearHead:
    """One logistic regression for all patches: token (C,) -> share of the patch that the structure covers.

    Logits are enlarged bilinearly to the masks' size; positive ones are the structure. Convex, so that the outcome is
    the features' and no schedule's.
    """

    def __init__(self, ridge: float = 1e-4, steps: int = 100) -> None:
        self.ridge, self.steps = ridge, steps

    def fit(self, tokens_NPC: Tensor, masks_NHW: Tensor) -> LinearHead:
        x_MC = tokens_NPC.flatten(0, 1).float()
        side = round(tokens_NPC.shape[1] ** 0.5)
        y_M = F.adaptive_avg_pool2d(masks_NHW.float()[:, None], side).flatten()
        self.mean, self.std = x_MC.mean(0), x_MC.std(0).clamp(min=1e-6)
        x_MC = (x_MC - self.mean) / self.std
        self.w = torch.zeros(x_MC.shape[1], device=x_MC.device, requires_grad=True)
        self.b = torch.zeros((), device=x_MC.device, requires_grad=True)
        solver = torch.optim.LBFGS(
            [self.w, self.b], max_iter=self.steps, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            solver.zero_grad()
            loss = F.binary_cross_entropy_with_logits(x_MC @ self.w + self.b, y_M)
            loss = loss + self.ridge / 2 * self.w.square().sum()
            loss.backward()
            return loss

        solver.step(closure)
        return self

    @torch.no_grad()
    def predict(self, tokens_NPC: Tensor, size: int) -> np.ndarray:
        """-> bool (N, size, size)."""
        side = round(tokens_NPC.shape[1] ** 0.5)
        logits_NP = ((tokens_NPC.float() - self.mean) / self.std) @ self.w + self.b
        maps_N1gg = logits_NP.unflatten(1, (side, side))[:, None]
        return (F.interpolate(maps_N1gg, size=(size, size), mode="bilinear")[:, 0] > 0).cpu().numpy()
