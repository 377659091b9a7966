"""Is this image like the radiographs the model knows? Mahalanobis distance of the encoder's features to a reference set.

    python -m vlm.outliers MODEL FOLDER|FILE... --out MODEL/ood.safetensors

The feature is the CLS token beside the mean patch token, both after the final LayerNorm. The reference images are reduced
to their mean and the leading directions of their covariance; what lies outside those counts with the smallest kept
variance. The threshold is a quantile of the distances of reference images that were held out from the fit.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass
class Outliers:
    """Reference statistics."""

    mean_C: Tensor
    whiten_CK: Tensor  # centred features @ whiten -> K directions of unit variance
    rest_scale: float  # 1 / standard deviation assumed for everything outside those directions
    directions_CK: Tensor  # orthonormal
    threshold: float
    reference: int  # how many images the fit saw
    encoder_sha256: str = ""

    @classmethod
    def fit(
        cls, features_NC: Tensor, *, quantile: float = 0.98, keep: float = 0.99, seed: int = 0, encoder_sha256: str = ""
    ) -> Outliers:
        """Fit to reference features: three quarters give the statistics, the rest the threshold at `quantile` of its
        distances; then the statistics are kept as they are. `keep` is the share of variance in kept directions.

        Raises ValueError for fewer than 40 images, or features that are not finite.
        """
        if len(features_NC) < 40 or not torch.isfinite(features_NC).all():
            raise ValueError(f"the reference needs at least 40 finite feature vectors, got {len(features_NC)}")
        order = torch.randperm(len(features_NC), generator=torch.Generator().manual_seed(seed))
        x_NC = features_NC.double()[order]
        cut = len(x_NC) * 3 // 4
        fit_NC, held_NC = x_NC[:cut], x_NC[cut:]
        mean_C = fit_NC.mean(0)
        _, s_K, v_KC = torch.linalg.svd(fit_NC - mean_C, full_matrices=False)
        variance_K = s_K**2 / (cut - 1)
        share_K = variance_K.cumsum(0) / variance_K.sum()
        k = min(int((share_K < keep).sum()) + 1, max(2, cut // 5))  # a direction needs some images to be known
        std_K = variance_K[:k].sqrt().clamp_min(1e-12)
        result = cls(
            mean_C.float(),
            (v_KC[:k].T / std_K).float(),
            float(1 / std_K[-1]),
            v_KC[:k].T.float().contiguous(),
            0.0,
            cut,
            encoder_sha256,
        )
        result.threshold = float(torch.quantile(result.check(held_NC.float()), quantile))
        return result

    def check(self, features_NC: Tensor) -> Tensor:
        """Distances (N,), scaled by the square root of the directions: about 1 inside the reference."""
        x_NC = features_NC.float().cpu() - self.mean_C
        rest_N = x_NC.square().sum(1) - (x_NC @ self.directions_CK).square().sum(1)
        inside_N = (x_NC @ self.whiten_CK).square().sum(1)
        k = self.whiten_CK.shape[1]
        return ((inside_N + rest_N.clamp_min(0) * self.rest_scale**2) / k).sqrt()

    def distances(self, tower: nn.Module, pixels_BCHW: Tensor) -> Tensor:
        return self.check(embedding(tower, pixels_BCHW))

    def message(self, distance: float) -> str:
        return (
            f"the image is unlike the radiographs the model knows (distance {distance:.1f}, usual up to "
            f"{self.threshold:.1f}); check that it is a frontal chest X-ray, and do not rely on the findings"
        )

    def save(self, path: str | Path) -> None:
        tensors = {"mean_C": self.mean_C, "whiten_CK": self.whiten_CK.contiguous(), "directions_CK": self.directions_CK}
        numbers = {
            "rest_scale": repr(self.rest_scale),
            "threshold": repr(self.threshold),
            "reference": str(self.reference),
            "encoder_sha256": self.encoder_sha256,
            "schema": "1",
        }
        save_file(tensors, path, metadata=numbers)

    @classmethod
    def load(cls, path: str | Path) -> Outliers:
        with safe_open(path, "pt") as file:
            numbers = file.metadata() or {}
            if numbers.get("schema") != "1":
                raise ValueError(f"{path} holds no reference statistics of schema 1")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return cls(
            **tensors,
            rest_scale=float(numbers["rest_scale"]),
            threshold=float(numbers["threshold"]),
            reference=int(numbers["reference"]),
            encoder_sha256=numbers["encoder_sha256"],
        )


@torch.inference_mode()
def embedding(tower: nn.Module, pixels_BCHW: Tensor) -> Tensor:
    """CLS and mean patch token after the final LayerNorm: (B, 2 C)."""
    x_BNC = tower(pixels_BCHW).last_hidden_state
    return torch.cat([x_BNC[:, 0], x_BNC[:, 1:].mean(1)], dim=1).float().cpu()


def fit_outliers(
    model_dir: str | Path, image_paths: list[Path], out: str | Path, *, quantile: float = 0.98, batch: int = 32
) -> Outliers:
    """Fit to the readable ones of `image_paths` with the encoder of a findings model and write `out`."""
    from encoder.radiograph import InputError, read
    from vlm import model as models

    model = models.load(model_dir)
    tower = models.vision_tower(model.llava)
    rows, pixels, unreadable = [], [], 0
    for i, path in enumerate(image_paths):
        try:
            pixels.append(model.preprocessing(read(path).pixels))
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm.outliers", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="findings model directory")
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of PNG, JPEG and DICOM files")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--quantile", type=float, default=0.98, help="of reference images below the threshold")
    args = parser.parse_args(argv)
    if args.out.exists():
        print(f"{args.out} exists; remove it first or choose another name", file=sys.stderr)
        return 2
    suffixes = {".png", ".jpg", ".jpeg", ".dcm"}
    paths = []
    for path in args.images:
        paths += sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes) if path.is_dir() else [path]
    result = fit_outliers(args.model, paths, args.out, quantile=args.quantile)
    print(f"wrote {args.out}: {result.reference} images, {result.whiten_CK.shape[1]} directions, "
          f"threshold {result.threshold:.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
