"""Pictures of what frozen features see: patches coloured by their principal components, outlines of masks on X-rays.
All are uint8 (H, W, 3).

Shape letters: N images, P patches (g x g), C features, K structures, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

# told apart by the colour-blind too (Okabe and Ito): orange, sky blue, green, yellow, vermilion, purple, blue
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178),
)  # fmt: skip
SIDE = 512  # pixels; larger pictures are reduced


class PatchColours:
    """The first three principal components of the patches of a set of images as red, green and blue, so that a colour
    means the same in all of them. Each is stretched between the 1st and the 99th percentile of the set."""

    def __init__(
        self, mean_C: np.ndarray, axes_3C: np.ndarray, low_3: np.ndarray, high_3: np.ndarray
    ) -> None:
        self.mean_C, self.axes_3C, self.low_3, self.high_3 = mean_C, axes_3C, low_3, high_3

    @classmethod
    def of(cls, tokens: Callable[[np.ndarray], Tensor], rows: Sequence[int], batch: int = 8) -> PatchColours:
        """Fit to the images `rows` (see segmentation.Tokens). The sign of a component is that of its largest loading,
        so that it does not depend on the order of the images, nor on the machine."""
        rows = np.asarray(rows, np.int64)
        if not len(rows):
            raise ValueError("there are no images, whose differences colour the patches")

        def parts() -> Iterable[np.ndarray]:
            for start in range(0, len(rows), batch):
                found = tokens(rows[start : start + batch])
                yield found.flatten(0, 1).double().cpu().numpy()

        count, mean_C, products_CC = 0, 0.0, 0.0
        for x_MC in parts():
            count, mean_C = count + len(x_MC), mean_C + x_MC.sum(0)
        mean_C = mean_C / count
        for x_MC in parts():
            products_CC = products_CC + (x_MC - mean_C).T @ (x_MC - mean_C)
        _, vectors_CC = np.linalg.eigh(products_CC)
        axes_3C = np.zeros((3, len(mean_C)))
        kept = min(3, len(mean_C))
        axes_3C[:kept] = vectors_CC.T[::-1][:kept]
        axes_3C *= np.where(axes_3C[np.arange(3), np.abs(axes_3C).argmax(1)] < 0, -1, 1)[:, None]
        at_M3 = np.concatenate([(x_MC - mean_C) @ axes_3C.T for x_MC in parts()])
        return cls(mean_C, axes_3C, *np.percentile(at_M3, [1, 99], axis=0))

    def paint(self, tokens_PC: Tensor | np.ndarray, side: int | None = None) -> np.ndarray:
        """Paint (g, g, 3), or (side, side, 3) with patches as squares."""
        x_PC = np.asarray(tokens_PC, np.float64)
        span_3 = np.maximum(self.high_3 - self.low_3, 1e-12)
        at_P3 = ((x_PC - self.mean_C) @ self.axes_3C.T - self.low_3) / span_3
        grid = round(len(x_PC) ** 0.5)
        picture = (at_P3.clip(0, 1) * 255).round().astype(np.uint8).reshape(grid, grid, 3)
        if side is None:
            return picture
        return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST))


def outlines(
    pixels_HW: np.ndarray,
    masks_KHW: np.ndarray,
    colours: Sequence[tuple[int, int, int]] = COLOURS,
    *,
    width: int = 2,
    side: int | None = SIDE,
) -> np.ndarray:
    """Draw on an X-ray (uint8, or float in [0, 1]) the inner rim of each mask, `width` pixels of the picture
    wide, later masks over earlier ones. The longer side is reduced to `side` first."""
    pixels_HW, masks_KHW = np.asarray(pixels_HW), np.asarray(masks_KHW)
    if pixels_HW.ndim != 2 or masks_KHW.ndim != 3 or masks_KHW.shape[1:] != pixels_HW.shape:
        raise ValueError(
            f"an image (H, W) and masks (K, H, W) are wanted, got {pixels_HW.shape}, {masks_KHW.shape}"
        )
    if pixels_HW.dtype != np.uint8:
        pixels_HW = (np.asarray(pixels_HW, np.float64).clip(0, 1) * 255).round().astype(np.uint8)
    masks_KHW = masks_KHW.astype(bool)
    H, W = pixels_HW.shape
    if side is not None and max(H, W) > side:
        size = (max(1, round(W * side / max(H, W))), max(1, round(H * side / max(H, W))))
        pixels_HW = np.asarray(Image.fromarray(pixels_HW).resize(size, Image.Resampling.LANCZOS))
        small = [
            Image.fromarray(m.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX) for m in masks_KHW
        ]
        masks_KHW = (
            np.stack([np.asarray(m) > 127 for m in small]) if small else masks_KHW[:, : size[1], : size[0]]
        )
    picture = np.repeat(pixels_HW[..., None], 3, axis=2)
    for k, mask_HW in enumerate(masks_KHW):
        picture[mask_HW & ~_eroded(mask_HW, width)] = colours[k % len(colours)]
    return picture


def _eroded(mask_HW: np.ndarray, times: int) -> np.ndarray:
    """Without its rim; what lies beyond the image is not in the mask."""
    for _ in range(times):
        x = np.pad(mask_HW, 1)
        mask_HW = x[1:-1, 1:-1] & x[:-2, 1:-1] & x[2:, 1:-1] & x[1:-1, :-2] & x[1:-1, 2:]
    return mask_HW
