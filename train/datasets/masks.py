"""Masks of structures as data sets ship them, decoded when they are asked for: pictures, and runs of pixels as text."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from encoder.errors import UserError
from encoder.radiograph import InputError, Limits
from encoder.radiograph.geometry import turn
from encoder.radiograph.grey import check_pixels
from train.datasets.headers import dicom_header

FORMATS = ("PNG", "GIF", "TIFF", "BMP", "JPEG")
ASPECT = 0.02  # by so much of itself may a mask's ratio of sides differ from its image's


class MaskError(UserError, ValueError):
    """A mask that cannot be used; the message names the file."""


@dataclass(frozen=True)
class Runs:
    """Pairs "gap length" as one text, column by column: `gap` pixels are left out after the last run, `length` belong
    to the mask (the coding of the SIIM-ACR pneumothorax challenge, which CANDID-PTX shares). "-1" is an empty mask.
    `size` (H, W) is that of the picture they were drawn on; `source` is named in errors."""

    text: str
    size: tuple[int, int]
    source: str = ""


Part = Path | Runs
Parts = tuple[Part, ...]  # whose union is a structure; none: the structure is known not to be there


def mask_of(parts: Parts, size: tuple[int, int]) -> np.ndarray:
    """Return bool `size` (H, W). Masks of another size with the same ratio of sides are enlarged or shrunk to
    the nearest pixel. Raises MaskError."""
    found_HW = np.zeros(size, bool)
    for part in parts:
        mask_hw = decode_runs(part) if isinstance(part, Runs) else read_mask(part)
        found_HW |= _fitted(mask_hw, size, part)
    return found_HW


def read_mask(path: Path) -> np.ndarray:
    """Read a mask, bool (H, W): the pixels of a picture that are brighter than half of its brightest (so 0
    and 1, 0 and 255, and edges smoothed by JPEG are all understood). Raises MaskError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=FORMATS)
            W, H = picture.size
            check_pixels(H, W, Limits())
            if picture.mode.startswith(("I", "F")):
                grey_HW = np.asarray(picture)
            elif picture.mode in ("LA", "PA", "RGBA"):
                grey_HW = np.asarray(picture.convert("RGBA").convert("RGB").convert("L"))
            else:
                grey_HW = np.asarray(picture.convert("L"))
    except InputError as error:
        raise MaskError(f"{path}: {error.message}") from None
    except FileNotFoundError:
        raise MaskError(f"the mask {path} does not exist") from None
    except Exception as error:  # Pillow raises anything on broken files
        raise MaskError(f"the mask {path} cannot be read ({type(error).__name__})") from None
    return grey_HW > grey_HW.max() / 2 if grey_HW.max() > 0 else np.zeros(grey_HW.shape, bool)


def decode_runs(runs: Runs) -> np.ndarray:
    """Decode a run-length text to bool `runs.size`. Raises MaskError if it is not such a text, or leaves the
    picture."""
    H, W = runs.size
    flat = np.zeros(H * W, bool)
    try:
        numbers = [int(word) for word in runs.text.split()]
    except ValueError:
        raise MaskError(f"{runs.source}: runs of pixels are whole numbers, not {runs.text[:40]!r}") from None
    if numbers == [-1] or not numbers:
        return flat.reshape(H, W)
    if len(numbers) % 2 or min(numbers) < 0:
        raise MaskError(f"{runs.source}: runs of pixels come in pairs and are not negative")
    position = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        position += gap + length
        if position > H * W:
            raise MaskError(f"{runs.source}: the runs of pixels go beyond {H} x {W}")
        flat[position - length : position] = True
    return flat.reshape(W, H).T


def as_read(path: Path, mask_HW: np.ndarray) -> np.ndarray:
    """Turn a mask of the size of a file's stored pixels as `encoder.radiograph.read` turns its pixels, and make it
    square likewise: only DICOM files need it."""
    header = dicom_header(path)
    if header.squared == (0, 0):
        return mask_HW
    h, w = header.squared
    if mask_HW.shape != (h, w):
        mask_HW = np.asarray(Image.fromarray(mask_HW).resize((w, h), Image.Resampling.NEAREST))
    return turn(mask_HW, header.turns)


def image_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of an image file: of a picture as `encoder.radiograph.read` gives it, of a DICOM file as
    it is stored. Decodes nothing. Raises MaskError."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start == b"\x89PNG\r\n\x1a\n" or start[:3] == b"\xff\xd8\xff":
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                W, H = picture.size
                return (W, H) if picture.getexif().get(0x0112, 1) >= 5 else (H, W)  # lies on its side
        header = dicom_header(path)
    except Exception as error:
        raise MaskError(f"the size of {path} cannot be told ({type(error).__name__})") from None
    if not header.rows or not header.columns:
        raise MaskError(f"the size of {path} cannot be told: it is neither PNG nor JPEG nor a DICOM image")
    return header.rows, header.columns


def _fitted(mask_hw: np.ndarray, size: tuple[int, int], part: Part) -> np.ndarray:
    if mask_hw.shape == size:
        return mask_hw
    (h, w), (H, W) = mask_hw.shape, size
    if abs(h * W / (w * H) - 1) > ASPECT:
        name = part.source if isinstance(part, Runs) else part
        raise MaskError(f"{name}: the mask has {h} x {w} pixels and the image {H} x {W}, of another shape")
    return np.asarray(Image.fromarray(mask_hw).resize((W, H), Image.Resampling.NEAREST))
