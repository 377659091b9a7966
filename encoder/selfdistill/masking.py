"""Which patches the student does not see: rectangular blocks, as in BEiT (arXiv 2106.08254) and iBOT."""

from __future__ import annotations

import math

import numpy as np


def block_mask(
    rng: np.random.Generator, height: int, width: int, target: int, min_block: int = 4, aspect: float = 0.3
) -> np.ndarray:
    """Return bool (height, width) with exactly `target` patches True, made of overlapping rectangles.

    Rectangles have at least `min_block` patches (where that many are still wanted) and aspect ratios between `aspect`
    and 1 / `aspect`, log-uniform. What rectangles cannot fill exactly is filled with single patches.
    """
    if not 0 <= target <= height * width:
        raise ValueError(f"cannot mask {target} of {height * width} patches")
    mask = np.zeros((height, width), bool)
    missing = target
    for _ in range(10 * height):  # enough attempts; the remainder is filled below
        if missing <= min_block:
            break
        area = rng.uniform(min_block, missing)
        ratio = math.exp(rng.uniform(math.log(aspect), -math.log(aspect)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not (1 <= h <= height and 1 <= w <= width):
            continue
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        block = mask[top : top + h, left : left + w]
        new = h * w - int(block.sum())
        if 0 < new <= missing:
            block[:] = True
            missing -= new
    if missing:
        free = np.flatnonzero(~mask)
        mask.flat[rng.choice(free, size=missing, replace=False)] = True
    return mask


def crop_masks(
    rng: np.random.Generator,
    crops: int,
    height: int,
    width: int,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
) -> np.ndarray:
    """Return masks of the global crops of one image, bool (crops, height, width).

    A crop is masked with `probability`, stratified over the crops of the image (of two crops at 0.5 exactly one is), by
    a share of patches uniform in `ratio`.
    """
    masks = np.zeros((crops, height, width), bool)
    start = rng.random()
    for i in range(crops):
        share = rng.uniform(*ratio)
        if (start + i / crops) % 1 < probability:
            masks[i] = block_mask(rng, height, width, max(1, round(share * height * width)))
    return masks
