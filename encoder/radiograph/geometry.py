"""How the stored pixels lie: made square by their spacing, and turned so that a film hangs as it is read."""

from __future__ import annotations

import re
import sys

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from encoder.radiograph.elements import decimals, text
from encoder.radiograph.grey import LONGEST
from encoder.radiograph.types import Warn

# Height through width of a pixel. Less than this from 1 is not seen; beyond CREDIBLE it is a typing error.
SQUARE, CREDIBLE = 0.01, 4.0
OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
# Words for what `turns` gives: (transpose first, then mirror from left to right, then from top to bottom).
WORDS = {
    (False, True, False): "mirrored from left to right",
    (False, False, True): "mirrored from top to bottom",
    (False, True, True): "turned by 180 degrees",
    (True, True, False): "turned by 90 degrees clockwise",
    (True, False, True): "turned by 90 degrees anticlockwise",
    (True, False, False): "transposed",
    (True, True, True): "transposed and turned by 180 degrees",
}
Turns = tuple[bool, bool, bool]


def spacing(header: Dataset) -> tuple[float, float] | None:
    """Return (mm between rows, mm between columns); at the detector if the header knows nothing nearer."""
    for key in ("PixelSpacing", "ImagerPixelSpacing"):
        values = decimals(header, key) or []
        # some anonymisers write zeros
        if len(values) == 2 and values[0] and values[1] and min(values[0], values[1]) > 0:
            return values[0], values[1]
    return None


def aspect(header: Dataset) -> float | None:
    """Return a pixel's height divided by its width, by PixelSpacing, else ImagerPixelSpacing, else
    PixelAspectRatio (PS3.3 C.7.6.3.1.7, vertical size first); None where the header says nothing."""
    values = spacing(header)
    if values is None:
        ratio = decimals(header, "PixelAspectRatio") or []
        if len(ratio) != 2 or not ratio[0] or not ratio[1] or min(ratio[0], ratio[1]) <= 0:
            return None
        values = ratio[0], ratio[1]
    # 1e308 by 1e-308 is a typing error like any other large number
    return min(values[0] / values[1], sys.float_info.max)


def squared_shape(header: Dataset, H: int, W: int, most: int) -> tuple[tuple[int, int], list[Warn]]:
    """Return ((H, W) with square pixels, warnings about it). The side along which pixels are longer grows, so
    that nothing is lost. An image that would have more than `most` pixels, or would be a strip, stays as it
    is."""
    ratio = aspect(header)
    if ratio is None or 1 / (1 + SQUARE) <= ratio <= 1 + SQUARE:
        return (H, W), []
    said = f"the header says that pixels are {ratio:.3g} times as high as wide"
    if not 1 / CREDIBLE <= ratio <= CREDIBLE:
        return (H, W), [Warn("not_square", f"{said}, which is not credible; they are taken for square")]
    h, w = (round(H * ratio), W) if ratio > 1 else (H, round(W / ratio))
    if h * w > most or max(h, w) > LONGEST * min(h, w):
        return (H, W), [
            Warn("not_square", f"{said}; made square it would be too large, so it is left distorted")
        ]
    return (h, w), [Warn("not_square", f"{said}; resampled from {H} x {W} to {h} x {w} square ones")]


def resample(pixels_HW: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize float32 pixels in [0, 1] by bicubic interpolation, which is kept from overshooting."""
    if pixels_HW.shape == shape:
        return pixels_HW
    h, w = shape
    return np.asarray(Image.fromarray(pixels_HW).resize((w, h), Image.Resampling.BICUBIC)).clip(0, 1)


def turns(header: Dataset, view: str) -> tuple[Turns, list[Warn]]:
    """Return (how to turn the stored pixels, warnings about it), by PatientOrientation (PS3.3 C.7.6.1.1.1):
    the direction in the patient to which the rows run, and that of the columns.

    A frontal film hangs with the patient's left on the right (rows to L) and the feet below (columns to F). A lateral
    film is turned upright, but is never mirrored: rows to A and rows to P are both usual.
    """
    stay: Turns = (False, False, False)
    if text(header, "AnatomicalOrientationType").upper() == "QUADRUPED":
        return stay, []
    directions = _directions(header)
    if directions is None:
        return stay, []
    row, column = directions
    transpose = row in "HF"
    if transpose:
        row, column = column, row
    if column not in "HF" or row in "HF":
        # neither a frontal nor a lateral film
        return stay, []
    if view != "unknown" and (view == "lateral") != (row in "AP"):
        said = "PatientOrientation is of another view than the header says, so the film is left as it is"
        return stay, [Warn("header_conflict", said)]
    up = column == "H"
    # A transposition mirrors, and so does turning one axis; a lateral film must be mirrored an even number of times.
    across = row == "R" if row in "LR" else transpose ^ up
    made: Turns = (transpose, across, up)
    if made == stay:
        return stay, []
    return made, [Warn("turned", f"{WORDS[made]}, because PatientOrientation is {'/'.join(directions)}")]


def turn(pixels_HW: np.ndarray, made: Turns) -> np.ndarray:
    """Turn an image, or a mask of its shape, as `turns` says: a view of it."""
    transpose, across, up = made
    x = pixels_HW.T if transpose else pixels_HW
    x = x[:, ::-1] if across else x
    return x[::-1] if up else x


def _directions(header: Dataset) -> tuple[str, str] | None:
    """Return the main directions of rows and columns ("LP" runs to the left more than to the back)."""
    try:
        value = header.get("PatientOrientation")
    except Exception:
        return None
    if isinstance(value, str):
        value = value.split("\\")
    try:
        found = [str(one).strip("\0 ").upper() for one in value or []]
    except TypeError:
        return None
    if len(found) != 2 or not all(re.fullmatch(r"[LRAPHF]{1,3}", one) for one in found):
        return None
    row, column = found[0][0], found[1][0]
    return None if column in (row, OPPOSITE[row]) else (row, column)
