"""A linear head on frozen patch tokens, and the baselines that it has to beat, which need no encoder at all.

Shape letters: N images, P patches (g x g), M patches of all images, C features, K structures, J candidates, H, W pixels
of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.probes.overlap import EXAMPLES, MaskTask, Segmentation, batches, choose, counts, found_masks

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # penalties tried; the best on validation is kept
PCA_COMPONENTS = (16, 32, 64, 128)
THRESHOLDS = np.linspace(0.1, 0.9, 17)  # of the mean mask
COARSE = 56  # cells a side that are predicted from the whole image
PATCHES = 200_000  # of the training images; with 768 features of four layers 2.5 GB
Tokens = Callable[[np.ndarray], Tensor]  # rows -> (n, P, C), as encoder.features.Features.patches


def dice(predicted_NHW: np.ndarray, truth_NHW: np.ndarray) -> np.ndarray:
    """Return the Dice of each image, (N,): 2 |A and B| / (|A| + |B|); NaN where both are empty."""
    A, B = (np.asarray(x, bool).reshape(len(x), -1) for x in (predicted_NHW, truth_NHW))
    total = A.sum(1) + B.sum(1)
    return np.divide(2 * (A & B).sum(1), total, out=np.full(len(A), np.nan), where=total > 0)


def statistics(tokens: Tokens, rows: np.ndarray) -> tuple[Tensor, Tensor, int]:
    """Return the mean and standard deviation (C,) over the patches of those images, and how many an image has."""
    count, total, squares, P = 0, 0.0, 0.0, 0
    for part in batches(rows):
        x_MC = tokens(part).flatten(0, 1).double().cpu()
        P = len(x_MC) // len(part)
        count, total, squares = count + len(x_MC), total + x_MC.sum(0), squares + x_MC.square().sum(0)
    mean_C = total / count
    std_C = (squares / count - mean_C.square()).clamp(min=0).sqrt()
    return mean_C.float(), std_C.float().clamp(min=1e-6), P


@dataclass
class Patches:
    """Patches to learn from, standardised, and what they were standardised by: `y_MK` the shares that structures
    cover, `place_M` which of the P of its image each is."""

    x_MC: Tensor
    y_MK: Tensor
    mean_C: Tensor
    std_C: Tensor
    place_M: Tensor
    P: int

    def __post_init__(self) -> None:
        M = len(self.place_M)
        self.share_P = torch.bincount(self.place_M, minlength=self.P) / M
        spread_P = self.share_P * (1 - self.share_P) * M / max(1, M - 1)
        self.spread_P = spread_P.sqrt().clamp(min=1e-6)

    def places(self, w_PK: Tensor) -> Tensor:
        """Return what the weights of standardised places add to the logits of patches there, (P, K)."""
        scaled_PK = w_PK / self.spread_P[:, None]
        return scaled_PK - self.share_P @ scaled_PK

    def curvature(self, position: bool, most: int = 20_000) -> Tensor:
        """Approximate the second derivatives of the loss at its minimum, (C, C), or with places (C + P, C +
        P), float64: the covariance of the features, of `most` patches, times the variance of the shares."""
        M = len(self.place_M)
        which = torch.randperm(M, generator=torch.Generator().manual_seed(0))[:most].to(self.x_MC.device)
        # in float32 its smallest eigenvalues would be negative
        x_MC, place_M = self.x_MC[which].double(), self.place_M[which]
        found_DD = x_MC.T @ x_MC / len(which)
        if position:
            sums_PC = x_MC.new_zeros(self.P, x_MC.shape[1]).index_add_(0, place_M, x_MC)
            share_P, spread_P = self.share_P.double(), self.spread_P.double()
            here_P = torch.bincount(place_M, minlength=self.P).double() / len(which)
            cross_PC = sums_PC / len(which) - share_P.outer(x_MC.mean(0))
            cross_PC = cross_PC / spread_P[:, None]
            own_PP = here_P.diag() - here_P.outer(share_P) - share_P.outer(here_P) + share_P.outer(share_P)
            own_PP = own_PP / spread_P.outer(spread_P)
            found_DD = torch.cat([torch.cat([found_DD, cross_PC.T], 1), torch.cat([cross_PC, own_PP], 1)])
        mean_K = self.y_MK.mean(0).double()
        return found_DD * (mean_K * (1 - mean_K)).mean().clamp(min=1e-3)


class LinearHead:
    """One logistic regression a structure for all patches: token (C,) -> share of the patch that it covers.

    Logits are enlarged bilinearly to the masks' size; positive ones are the structure. Convex, so that the outcome is
    the features' and no schedule's, once it has converged. Tokens are so correlated that L-BFGS by itself is far from
    that after 100 steps (lungs: Dice 0.79, at the minimum 0.82). So it runs where the curvature is about one in all
    directions, and takes twenty or so. After `fit`, `slope` is the largest derivative left, `taken` the steps.

    `position`: also a weight of its own for each place in the image, as if the place were P more features, 1 or 0,
    standardised as the others are.
    """

    def __init__(self, ridge: float = 1e-4, steps: int = 100, position: bool = False) -> None:
        self.ridge, self.steps, self.position = ridge, steps, position

    def fit(self, tokens_NPC: Tensor, masks: Tensor, start: int | None = None) -> LinearHead:
        """Fit heads; `masks` are (N, H, W), or (N, K, H, W); they may be shares of cells, at least g x g.
        From weights of zero, or from random ones with the seed `start`."""
        N, P, _ = tokens_NPC.shape
        side = round(P**0.5)
        shares = F.adaptive_avg_pool2d(masks.float(), side).flatten(-2)
        self.several = masks.dim() == 4
        y_MK = shares.transpose(1, 2).flatten(0, 1) if self.several else shares.flatten()[:, None]
        x_MC = tokens_NPC.flatten(0, 1).float()
        mean_C, std_C = x_MC.mean(0), x_MC.std(0).clamp(min=1e-6)
        place_M = torch.arange(P, device=x_MC.device).repeat(N)
        return self.solve(Patches((x_MC - mean_C) / std_C, y_MK, mean_C, std_C, place_M, P), start)

    def solve(
        self, patches: Patches, start: int | None = None, curvature_DD: Tensor | None = None
    ) -> LinearHead:
        """Solve for the weights; `curvature_DD` is that of `patches`, if it is known already."""
        p, C = patches, patches.x_MC.shape[1]
        self.mean, self.std = p.mean_C, p.std_C
        D, K = C + p.P * self.position, p.y_MK.shape[1]
        y_MK = p.y_MK.double()
        if curvature_DD is None:
            curvature_DD = p.curvature(self.position)
        ridge_DD = self.ridge * torch.eye(D, dtype=torch.float64, device=curvature_DD.device)
        root_DD = torch.linalg.cholesky(curvature_DD + ridge_DD)
        generator = torch.Generator().manual_seed(start or 0)
        u_DK, b_1K = (
            torch.zeros(n, K) if start is None else torch.randn(n, K, generator=generator) / 10
            for n in (D, 1)
        )
        parameters = [x.to(p.x_MC.device, torch.float64).requires_grad_() for x in (u_DK, b_1K)]
        solver = torch.optim.LBFGS(
            parameters, max_iter=self.steps, history_size=20, line_search_fn="strong_wolfe"
        )

        def weights(u_DK: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(root_DD.T, u_DK, upper=True)

        def objective(w_DK: Tensor, b_1K: Tensor) -> Tensor:
            logits_MK = torch.addmm(b_1K.float(), p.x_MC, w_DK[:C].float())
            if self.position:
                logits_MK = logits_MK + p.places(w_DK[C:].float())[p.place_M]
            # summed over structures: each has the problem that it would have alone
            loss_MK = F.binary_cross_entropy_with_logits(logits_MK.double(), y_MK, reduction="none")
            return loss_MK.mean(0).sum() + self.ridge / 2 * w_DK.square().sum()

        def closure() -> Tensor:
            solver.zero_grad()
            loss = objective(weights(parameters[0]), parameters[1])
            loss.backward()
            return loss

        solver.step(closure)
        self.taken = solver.state[parameters[0]]["n_iter"]
        found = [x.detach().requires_grad_() for x in (weights(parameters[0]), parameters[1])]
        slopes = torch.autograd.grad(objective(*found), found)
        self.slope = max(float(x.abs().max()) for x in slopes)
        w_DK, b_1K = (x.detach().float() for x in found)
        self.w, self.b = w_DK[:C], b_1K[0]
        self.places_PK = p.places(w_DK[C:]) if self.position else 0.0
        return self

    @torch.no_grad()
    def logits(self, tokens_NPC: Tensor) -> Tensor:
        """Return logits (N, K, g, g)."""
        side = round(tokens_NPC.shape[1] ** 0.5)
        x_NPC = (tokens_NPC.to(self.w.device).float() - self.mean) / self.std
        logits_NPK = x_NPC @ self.w + self.b + self.places_PK
        return logits_NPK.transpose(1, 2).unflatten(2, (side, side))

    @torch.no_grad()
    def predict(self, tokens_NPC: Tensor, size: int) -> np.ndarray:
        """Predict bool (N, size, size), or (N, K, size, size) if it was fitted to several structures."""
        maps = F.interpolate(self.logits(tokens_NPC), size=(size, size), mode="bilinear")
        return ((maps if self.several else maps[:, 0]) > 0).cpu().numpy()


def linear(
    task: MaskTask,
    tokens: Tokens,
    *,
    ridges: Sequence[float] = RIDGES,
    steps: int = 100,
    position: bool = False,
    patches: int | None = PATCHES,
    seed: int = 0,
    head: str = "linear",
    device: str | torch.device = "cpu",
    **choices: object,
) -> Segmentation:
    """Fit a LinearHead on `tokens`, for each structure with the ridge of the best Dice on validation.

    Learnt from at most `patches` patches, as many of each training image, drawn with `seed`. `head` (its name) and
    further `choices` are of the signature.
    """
    learnt = _patches(task, tokens, patches, seed, device)
    curvature_DD = learnt.curvature(position)
    heads = [LinearHead(ridge, steps, position).solve(learnt, curvature_DD=curvature_DD) for ridge in ridges]
    del learnt, curvature_DD

    def candidates(rows: np.ndarray) -> Tensor:
        tokens_NPC = tokens(rows).to(device)
        return torch.stack([h.logits(tokens_NPC).cpu() for h in heads], 1)

    return _chosen(
        task,
        candidates,
        list(ridges),
        head=head,
        position="yes" if position else "no",
        ridge=",".join(map(str, ridges)),
        steps=steps,
        patches=patches or "all",
        **choices,
    )


def _patches(
    task: MaskTask, tokens: Tokens, most: int | None, seed: int, device: str | torch.device
) -> Patches:
    """Patches of the training images, at most `most`."""
    rng, place = np.random.default_rng(seed), 0
    x_MC = y_MK = place_M = torch.empty(0)
    for part in batches(task.train):
        tokens_NPC = tokens(part).float().cpu()
        _, P, C = tokens_NPC.shape
        side = round(P**0.5)
        if side * side != P:
            raise ValueError(f"{P} patches of an image make no square")
        shares_NPK = task.shares(part, side).flatten(2).transpose(1, 2)
        each = P if most is None else min(P, max(1, most // len(task.train)))
        if not len(x_MC):  # all at once: put together later they would be there twice
            M = each * len(task.train)
            x_MC, y_MK = torch.empty(M, C), torch.empty(M, shares_NPK.shape[2])
            place_M = torch.empty(M, dtype=torch.long)
        for tokens_PC, shares_PK in zip(tokens_NPC, shares_NPK, strict=True):
            which = torch.from_numpy(np.sort(rng.choice(P, each, replace=False)))
            here, place = slice(place, place + each), place + each
            x_MC[here], y_MK[here], place_M[here] = tokens_PC[which], shares_PK[which], which
    x_MC, y_MK, place_M = x_MC.to(device), y_MK.to(device), place_M.to(device)
    mean_C, std_C = x_MC.mean(0), x_MC.std(0).clamp(min=1e-6)
    return Patches(x_MC.sub_(mean_C).div_(std_C), y_MK, mean_C, std_C, place_M, P)


def _chosen(task: MaskTask, candidates: Tokens, names: Sequence[object], **choices: object) -> Segmentation:
    predict, chosen, validation = choose(task, candidates, names)
    return judged(task, predict, chosen, validation, choice=f"validation@{task.cells}", **choices)


def judged(task: MaskTask, predict, chosen=None, validation=None, **choices: object) -> Segmentation:
    """Judge what a predictor finds in the test images. `choices` are of the signature."""
    return Segmentation(
        list(task.structures),
        task.test,
        [task.patients[i] for i in task.test],
        counts(task, task.test, predict),
        task.choices(**choices),
        chosen or {},
        validation or {},
        predict,
        found_masks(task, task.test[:EXAMPLES], predict),
    )


# Floors.


def mean_mask(task: MaskTask) -> Segmentation:
    """Predict the same mask for every image: where more than some share of the training images have the
    structure."""
    sum_Khw = sum(task.shares(part, task.cells).sum(0) for part in batches(task.train))
    mean_Khw = sum_Khw / len(task.train)
    maps_JKhw = mean_Khw - torch.from_numpy(THRESHOLDS).float()[:, None, None, None]
    return _chosen(
        task,
        lambda rows: maps_JKhw.expand(len(rows), -1, -1, -1, -1),
        [round(float(t), 2) for t in THRESHOLDS],
        head="mean-mask",
    )


def raw_patches(task: MaskTask, pixels: Tokens, **options) -> Segmentation:
    """Fit a linear head on the grey levels of a patch and its place. `options` as of `linear`."""
    return linear(task, pixels, position=True, head="raw-patches", **options)


def whole_image(task: MaskTask, images_NC: np.ndarray) -> Segmentation:
    """Fit a ridge regression of the mask on principal components of the whole image, shrunk: what its outline
    tells. Rows of `images_NC` are all the task's images (such as CLS of the encoder `pixels`)."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge

    x_NC = images_NC[task.train]
    most = min(len(x_NC), x_NC.shape[1], max(PCA_COMPONENTS))
    pca = PCA(most, random_state=0).fit(x_NC)
    y_NS = task.shares(task.train, COARSE).flatten(1).numpy()
    components = [k for k in PCA_COMPONENTS if k <= most] or [most]
    models = [Ridge(alpha=1.0).fit(pca.transform(x_NC)[:, :k], y_NS) for k in components]

    def candidates(rows: np.ndarray) -> Tensor:
        x = pca.transform(images_NC[rows])
        maps = [model.predict(x[:, :k]) for k, model in zip(components, models, strict=True)]
        shape = (len(task.structures), COARSE, COARSE)
        return torch.stack([torch.from_numpy(m).float().unflatten(1, shape) for m in maps], 1) - 0.5

    return _chosen(task, candidates, components, head="pca-of-the-image")


def floors(task: MaskTask, pixels: Tokens, images_NC: np.ndarray, **options) -> dict[str, Segmentation]:
    """Return what a segmentation reaches without an encoder: baselines that an encoder must beat. `pixels`:
    grey levels of the patches."""
    return {
        "mean mask": mean_mask(task),
        "raw patches + position": raw_patches(task, pixels, **options),
        "PCA of the whole image": whole_image(task, images_NC),
    }
