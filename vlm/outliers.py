"""Is this image like the radiographs the model knows? Mahalanobis distance of its features to a reference set.

    cxr outliers MODEL FOLDER|FILE|STUDIES... --out MODEL/ood.safetensors          (vlm/reference.py)

The features are the CLS token and the patch tokens averaged over a 4 x 4 grid, after the final LayerNorm: a small
encoder's CLS token tells bright from dark, but it is the layout that tells a chest from a hip. A reference of several
kinds (synthetic and real films, AP and PA) is not a single Gaussian, so it is split by k-means. In each part
the distance is taken along the leading directions of its covariance, and what lies outside those counts with
the variance left there. A distance of 1 is the quantile of distances of reference images, each left out of
the fit in its turn; an image is as far as its nearest part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from encoder.errors import ModelError, reading
from encoder.files import write_atomically
from encoder.towers import hidden_states, shape_of

GRID = 4  # cells a side; finer ones react to where exactly the patient stands
LEAST = 40  # images of a part; fewer say nothing of its covariance
FOLDS = 4
FIT = "fit them again (cxr outliers)"
# Distances are divided by these.
ABOVE_ZERO = ("std_K", "rest_std", "limit")
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
    def fit(cls, x_NC: Tensor, quantile: float, keep: float, patients_N: Tensor) -> Part:
        """Fit to images in random order. The limit is the `quantile` of the distances of all of them, each measured by
        the other three quarters: of one quarter alone, the few that set the limit are a matter of luck.

        A quarter has all images of its patients, numbered in `patients_N`: who is known by another of his films is
        nearer than a stranger. Of fewer than four patients, it is a quarter of the images."""
        fold_N = order_of_appearance(patients_N.tolist()) % FOLDS
        if int(fold_N.max()) + 1 < FOLDS:
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
        """Return Mahalanobis distances (N,) as a share of the limit: above 1 is unusual.

        Directions beyond the K that are kept share one standard deviation (probabilistic PCA, Tipping and
        Bishop 1999).
        """
        x_NC = x_NC - self.mean_C
        inside_NK = x_NC @ self.directions_CK.float()
        rest_N = (x_NC.square().sum(1) - inside_NK.square().sum(1)).clamp_min(0)
        d2_N = (inside_NK / self.std_K).square().sum(1) + rest_N / self.rest_std.square()
        return d2_N.sqrt() / self.limit

    def check(self, start: str, width: int) -> None:
        """Raise ValueError, which names the tensor after `start`, unless all fit each other and features of `width`."""
        wanted = {
            "mean_C": (width,),
            "directions_CK": (width, *self.std_K.shape[:1]),
            "std_K": (*self.std_K.shape[:1],),
            "rest_std": (),
            "limit": (),
        }
        for name, shape in wanted.items():
            x = getattr(self, name)
            if x.shape != shape or (name == "std_K" and x.ndim != 1) or not x.is_floating_point():
                got = f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
                raise ValueError(f"tensor {start}{name} is {got}, not float of shape {shape}; {FIT}")
            if name in ABOVE_ZERO and not (x > 0).all():
                raise ValueError(f"tensor {start}{name} must be above 0, not {float(x.min()):g}; {FIT}")


@dataclass
class Outliers:
    """Reference statistics."""

    parts: list[Part]
    reference: int  # how many images the fit saw
    encoder_sha256: str = ""
    threshold: float = 1.0  # distances are in units of the limit
    # Of chest films in general, where the model itself knows only some; beyond its threshold an image is not
    # a chest film.
    chest: Outliers | None = None
    # Nats a token of the words of a study, above which they are unlike those the model learned with.
    words: float | None = None
    # Share of the model's own films that the threshold is meant to warn of.
    false_alarms: float | None = None

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
        patients: Sequence[str] | None = None,
    ) -> Outliers:
        """Fit to reference features: in each part the limit is the `quantile` of the distances of images left out of
        the fit, each quarter of the patients in turn. `keep` is the share of variance in kept directions. A part of
        fewer than 40 images joins the others. Without `patients`, each image counts as a patient's only one.

        Raises ValueError for fewer than 40 images, or features that are not finite.
        """
        if len(features_NC) < LEAST or not torch.isfinite(features_NC).all():
            raise ValueError(
                f"the reference needs at least {LEAST} finite feature vectors, got {len(features_NC)}"
            )
        order = torch.randperm(len(features_NC), generator=torch.Generator().manual_seed(seed))
        x_NC = features_NC.double()[order]
        who_N = order_of_appearance(patients)[order] if patients else order
        fitted = [
            Part.fit(x_NC[member_N], quantile, keep, who_N[member_N]) for member_N in split(x_NC, parts)
        ]
        return cls(fitted, len(x_NC), encoder_sha256, false_alarms=round(1 - quantile, 6))

    @property
    def width(self) -> int:
        """Return the width C of the features."""
        return len(self.parts[0].mean_C)

    def check_tower(self, tower: nn.Module, path: str | Path) -> None:
        """Raise ModelError unless the statistics, read from `path`, are of features as wide as this tower's."""
        config: Any = tower.config
        if self.width != (wanted := (1 + GRID**2) * shape_of(config).width):
            raise ModelError(
                f"{path} was fitted to features of {self.width} numbers, but the model's encoder gives {wanted}; {FIT}"
            )

    def check(self, features_NC: Tensor) -> Tensor:
        """Return the distances (N,) of features (N, C): above 1 is unusual."""
        x_NC = features_NC.float().cpu()
        return torch.stack([part.distance(x_NC) for part in self.parts]).amin(0)

    def distances(self, tower: nn.Module, pixels_BCHW: Tensor) -> Tensor:
        """Return the distances (B,) of preprocessed films (B, 3, H, W), as `check` does of their features."""
        return self.check(embedding(tower, pixels_BCHW))

    def judged(self, tower: nn.Module, pixels_BCHW: Tensor) -> list[tuple[float, float]]:
        """Return for each image its distance, and how far it is from any chest film: 0 for what may be one."""
        x_NC = embedding(tower, pixels_BCHW)
        distance_N = self.check(x_NC)
        if self.chest is None:
            return [(distance, 0.0) for distance in distance_N.tolist()]
        foreign_N = self.chest.check(x_NC)
        foreign_N = torch.where(foreign_N > self.chest.threshold, foreign_N, 0)
        return list(zip(distance_N.tolist(), foreign_N.tolist(), strict=True))

    def message(self, distance: float) -> str:
        """Say of an image that it is unlike what the model knows, and what to do."""
        return (
            f"the image is unlike the radiographs the model knows ({_times(distance)} times the distance up to which a "
            "film is ordinary); check that it is a frontal chest X-ray, upright and not inverted, and do not rely on "
            "the findings"
        )

    def abstains(self, distance: float) -> str:
        """Say why nothing is written about an image."""
        return (
            f"nothing was written: the image is unlike any frontal chest X-ray ({_times(distance)} times the "
            "distance up to which a film is ordinary); give an upright, frontal chest film, or insist (--insist)"
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors, numbers = self._whole()
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, metadata={"schema": "2", **numbers})

    @property
    def sha256(self) -> str:
        """Return a hex digest of all that the warnings depend on."""
        tensors, numbers = self._whole()
        digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _whole(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Make what is saved, of the chest films too."""
        tensors, numbers = self._saved("")
        if self.chest:
            more = self.chest._saved("chest.")
            tensors, numbers = tensors | more[0], numbers | more[1]
        return tensors, numbers

    def _saved(self, start: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = {
            f"{start}{i}.{name}": getattr(part, name) for i, part in enumerate(self.parts) for name in FIELDS
        }
        numbers = {
            "parts": str(len(self.parts)),
            "threshold": repr(self.threshold),
            "reference": str(self.reference),
            "encoder_sha256": self.encoder_sha256,
        }
        numbers |= {k: repr(v) for k in ("words", "false_alarms") if (v := getattr(self, k)) is not None}
        return tensors, {start + name: value for name, value in numbers.items()}

    @classmethod
    def load(cls, path: str | Path) -> Outliers:
        """Read what `save` wrote, also in earlier versions. Raises ModelError for another or a damaged file."""
        with reading(path, "reference statistics"), safe_open(path, "pt") as file:
            numbers = file.metadata() or {}
            if numbers.get("schema") not in ("1", "2"):
                raise ModelError(f"{path} holds no reference statistics of schema 1 or 2; fit them again")
            found = cls._loaded(file, numbers, "")
            if "chest.parts" in numbers:
                found.chest = cls._loaded(file, numbers, "chest.", found.width)
        return found

    @classmethod
    def _loaded(cls, file: Any, numbers: dict[str, str], start: str, width: int | None = None) -> Outliers:
        parts = [
            Part(**{name: file.get_tensor(f"{start}{i}.{name}") for name in FIELDS})
            for i in range(int(numbers[f"{start}parts"]))
        ]
        for i, part in enumerate(parts):
            # The mean says how wide the others are, the first part's that of all.
            width = part.mean_C.numel() if width is None else width
            part.check(f"{start}{i}.", width)
        words, alarms = (
            float(numbers[start + k]) if start + k in numbers else None for k in ("words", "false_alarms")
        )
        threshold = float(numbers[f"{start}threshold"])
        sound = all(torch.isfinite(getattr(part, name)).all() for part in parts for name in FIELDS)
        # A threshold of NaN would never be passed.
        if not (parts and sound and 0 < threshold < math.inf and (words is None or 0 < words < math.inf)):
            raise ValueError(f"there are numbers that are NaN or infinite; {FIT}")
        return cls(
            parts,
            int(numbers[f"{start}reference"]),
            numbers[f"{start}encoder_sha256"],
            threshold,
            None,
            words,
            alarms,
        )


def _times(distance: float) -> str:
    """Return a distance above 1 with digits enough to tell it from 1."""
    return f"{distance:.1f}" if distance >= 1.05 else f"{math.ceil(100 * distance) / 100:.2f}"


def order_of_appearance(names: Sequence[str] | Sequence[int]) -> Tensor:
    """Number the distinct names from 0, in the order in which they come first: (N,)."""
    seen: dict[str | int, int] = {}
    return torch.tensor([seen.setdefault(name, len(seen)) for name in names])


def split(x_NC: Tensor, parts: int, rounds: int = 50) -> list[Tensor]:
    """Return the membership masks (N,) of k-means clusters, on standardised principal directions; too small
    ones are dissolved."""
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
    """Return CLS (or the mean patch, if there is no CLS) and the 4 x 4 grid of mean patch tokens, after the
    final LayerNorm: (B, 17 C)."""
    (x_BNC,) = hidden_states(tower, pixels_BCHW, [-1], norm=True)
    return pooled(x_BNC, shape_of(tower.config).extra)


def pooled(x_BNC: Tensor, extra: int = 1) -> Tensor:
    """Return the same features of normed tokens (B, extra + N, C), CLS and registers first."""
    side = int((x_BNC.shape[1] - extra) ** 0.5)
    patches_BCHW = x_BNC[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    cells_BC = nn.functional.adaptive_avg_pool2d(patches_BCHW.float(), GRID).flatten(1)
    first_BC = x_BNC[:, 0].float() if extra else patches_BCHW.float().mean((2, 3))
    return torch.cat([first_BC, cells_BC], dim=1).cpu()
