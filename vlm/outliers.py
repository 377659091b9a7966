"""Is this image like the radiographs the model knows? Mahalanobis distance of its features to a reference set.

    cxr outliers MODEL FOLDER|FILE... --out MODEL/ood.safetensors

The features are the CLS token and the patch tokens averaged over a 4 x 4 grid, after the final LayerNorm: a small
encoder's CLS token tells bright from dark, but it is the layout that tells a chest from a hip. A reference of several
kinds (synthetic and real films, AP and PA) is no single Gaussian, so it is split by k-means. In each part the
distance is taken along the leading directions of its covariance, and what lies outside those counts with the variance
left there. A distance of 1 is the quantile of distances of reference images, each left out of the fit in its turn; an
image is as far as its nearest part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from encoder.towers import hidden_states, shape_of

GRID = 4  # cells a side; finer ones react to where exactly the patient stands
LEAST = 40  # images of a part; fewer say nothing of its covariance
FOLDS = 4
FIELDS = ("mean_C", "directions_CK", "std_K", "rest_std", "limit")


@dataclass
class Part:
    """One Gaussian of the reference. Tensors are kept as they are saved."""

    mean_C: Tensor
    directions_CK: Tensor  # float16, orthonormal up to rounding
    std_K: Tensor  # along the directions
    rest_std: Tensor  # () a dimension of all the others together
    limit: Tensor  # () the distance that counts as 1

    @classmethod
    def fit(cls, x_NC: Tensor, quantile: float, keep: float) -> Part:
        """Fit to images in random order. The limit is the `quantile` of the distances of all of them, each measured by
        the other three quarters: of one quarter alone, the few that set the limit are a matter of luck."""
        fold_N = torch.arange(len(x_NC)) % FOLDS
        left_out = [
            cls.gaussian(x_NC[fold_N != i], keep).distance(x_NC[fold_N == i].float()) for i in range(FOLDS)
        ]
        part = cls.gaussian(x_NC, keep)
        part.limit = torch.quantile(torch.cat(left_out), quantile)
        return part

    @classmethod
    def gaussian(cls, fit_NC: Tensor, keep: float) -> Part:
        """Keep the leading directions with the share `keep` of the variance. The limit is 1."""
        mean_C = fit_NC.mean(0)
        _, s_K, v_KC = torch.linalg.svd(fit_NC - mean_C, full_matrices=False)
        variance_K = s_K**2 / (len(fit_NC) - 1)
        share_K = variance_K.cumsum(0) / variance_K.sum()
        k = min(
            int((share_K < keep).sum()) + 1, max(2, len(fit_NC) // 5)
        )  # a direction needs images to be known
        rest = (
            variance_K[k:].sum() / (fit_NC.shape[1] - k) if k < len(variance_K) else torch.tensor(torch.inf)
        )
        return cls(
            mean_C.float(),
            v_KC[:k].T.half().contiguous(),
            variance_K[:k].sqrt().clamp_min(1e-6).float(),
            rest.sqrt().clamp_min(1e-6).float(),
            torch.ones(()),
        )

    def distance(self, x_NC: Tensor) -> Tensor:
        x_NC = x_NC - self.mean_C
        inside_NK = x_NC @ self.directions_CK.float()
        rest_N = (x_NC.square().sum(1) - inside_NK.square().sum(1)).clamp_min(0)
        d2_N = (inside_NK / self.std_K).square().sum(1) + rest_N / self.rest_std.square()
        return d2_N.sqrt() / self.limit


@dataclass
class Outliers:
    """Reference statistics."""

    parts: list[Part]
    reference: int  # how many images the fit saw
    encoder_sha256: str = ""
    threshold: float = 1.0  # distances are in units of the limit

    @classmethod
    def fit(
        cls,
        features_NC: Tensor,
        *,
        parts: int = 3,
        quantile: float = 0.98,
        keep: float = 0.9,
        seed: int = 0,
        encoder_sha256: str = "",
    ) -> Outliers:
        """Fit to reference features: in each part the limit is the `quantile` of the distances of images left out of
        the fit, each quarter in turn. `keep` is the share of variance in kept directions. A part of fewer than 40
        images joins the others.

        Raises ValueError for fewer than 40 images, or features that are not finite.
        """
        if len(features_NC) < LEAST or not torch.isfinite(features_NC).all():
            raise ValueError(
                f"the reference needs at least {LEAST} finite feature vectors, got {len(features_NC)}"
            )
        order = torch.randperm(len(features_NC), generator=torch.Generator().manual_seed(seed))
        x_NC = features_NC.double()[order]
        fitted = [Part.fit(x_NC[member_N], quantile, keep) for member_N in split(x_NC, parts)]
        return cls(fitted, len(x_NC), encoder_sha256)

    def check(self, features_NC: Tensor) -> Tensor:
        """Distances (N,): above 1 is unusual."""
        x_NC = features_NC.float().cpu()
        return torch.stack([part.distance(x_NC) for part in self.parts]).amin(0)

    def distances(self, tower: nn.Module, pixels_BCHW: Tensor) -> Tensor:
        return self.check(embedding(tower, pixels_BCHW))

    def message(self, distance: float) -> str:
        return (
            f"the image is unlike the radiographs the model knows ({distance:.1f} times the usual distance); check "
            "that it is a frontal chest X-ray, upright and not inverted, and do not rely on the findings"
        )

    def save(self, path: str | Path) -> None:
        tensors = {f"{i}.{name}": getattr(part, name) for i, part in enumerate(self.parts) for name in FIELDS}
        numbers = {
            "schema": "1",
            "parts": str(len(self.parts)),
            "threshold": repr(self.threshold),
            "reference": str(self.reference),
            "encoder_sha256": self.encoder_sha256,
        }
        save_file(tensors, path, metadata=numbers)

    @classmethod
    def load(cls, path: str | Path) -> Outliers:
        with safe_open(path, "pt") as file:
            numbers = file.metadata() or {}
            if numbers.get("schema") != "1":
                raise ValueError(f"{path} holds no reference statistics of schema 1")
            parts = [
                Part(**{name: file.get_tensor(f"{i}.{name}") for name in FIELDS})
                for i in range(int(numbers["parts"]))
            ]
        return cls(parts, int(numbers["reference"]), numbers["encoder_sha256"], float(numbers["threshold"]))


def split(x_NC: Tensor, parts: int, rounds: int = 50) -> list[Tensor]:
    """Membership masks (N,) of k-means clusters, on standardised principal directions; too small ones are dissolved."""
    for k in range(parts, 1, -1):
        centred_NC = x_NC - x_NC.mean(0)
        u_NK, s_K, _ = torch.linalg.svd(centred_NC, full_matrices=False)
        z_NK = u_NK[:, :20] * s_K[:20]
        centres_MK = z_NK[:1]  # farthest-point start: no luck involved
        while len(centres_MK) < k:
            far = torch.cdist(z_NK, centres_MK).amin(1).argmax()
            centres_MK = torch.cat([centres_MK, z_NK[far][None]])
        for _ in range(rounds):
            nearest_N = torch.cdist(z_NK, centres_MK).argmin(1)
            centres_MK = torch.stack(
                [z_NK[nearest_N == m].mean(0) if (nearest_N == m).any() else centres_MK[m] for m in range(k)]
            )
        masks = [nearest_N == m for m in range(k)]
        if all(int(mask.sum()) >= LEAST for mask in masks):
            return masks
    return [torch.ones(len(x_NC), dtype=torch.bool)]


@torch.inference_mode()
def embedding(tower: nn.Module, pixels_BCHW: Tensor) -> Tensor:
    """CLS (where there is none, the mean patch) and the 4 x 4 grid of mean patch tokens, after the final LayerNorm:
    (B, 17 C)."""
    (x_BNC,) = hidden_states(tower, pixels_BCHW, [-1], norm=True)
    return pooled(x_BNC, shape_of(tower.config).extra)


def pooled(x_BNC: Tensor, extra: int = 1) -> Tensor:
    """The same of normed tokens (B, extra + N, C), CLS and registers first."""
    side = int((x_BNC.shape[1] - extra) ** 0.5)
    patches_BCHW = x_BNC[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    cells_BC = nn.functional.adaptive_avg_pool2d(patches_BCHW.float(), GRID).flatten(1)
    first_BC = x_BNC[:, 0].float() if extra else patches_BCHW.float().mean((2, 3))
    return torch.cat([first_BC, cells_BC], dim=1).cpu()


def fit_outliers(
    model_dir: str | Path,
    image_paths: list[Path],
    out: str | Path,
    *,
    quantile: float = 0.98,
    batch: int = 32,
) -> Outliers:
    """Fit to the readable ones of `image_paths` with the encoder of a findings model and write `out`."""
    from encoder.radiograph import InputError, read
    from vlm.load import load_model

    model = load_model(model_dir)
    tower = model.parts.vision_tower
    rows, pixels, unreadable = [], [], 0
    for i, path in enumerate(image_paths):
        try:
            pixels.append(model.preprocessing(read(path)))
        except InputError:
            unreadable += 1
        if pixels and (len(pixels) == batch or i == len(image_paths) - 1):
            rows.append(embedding(tower, torch.stack(pixels)))
            pixels = []
            if i == len(image_paths) - 1 or len(rows) % 10 == 0:
                print(f"{i + 1}/{len(image_paths)} images", flush=True)
    if unreadable:
        print(f"{unreadable} images cannot be read and were left out")
    if not rows:
        raise ValueError("none of the reference images could be read")
    result = Outliers.fit(torch.cat(rows), quantile=quantile, encoder_sha256=model.meta.encoder_sha256)
    result.save(out)
    return result
