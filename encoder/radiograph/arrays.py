"""NumPy arrays and torch tensors -> `Radiograph`, by one rule for their shape and range.

Shape: (H, W); one channel, (H, W, 1) or (1, H, W); or grey in three, (H, W, 3) or (3, H, W), whose channels agree as
closely as those of a grey picture must (`picture.grey_of_channels`); the second gives `Radiograph.pixels`.

Range, with dark = air: uint8 and uint16 are the stored levels of a picture, and give what the same picture saved as PNG
gives. Floating-point numbers must lie in [0, 1] and are taken as they are, as in `Radiograph.pixels`; where all of them
are 255ths they are an 8-bit picture's levels. NaN, infinity, bool and every other type are refused.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from encoder.radiograph.grey import check_pixels, size_warning
from encoder.radiograph.picture import grey_channels, grey_of_channels, of_levels
from encoder.radiograph.types import Header, InputError, Limits, Radiograph

ACCEPTED = "uint8 or uint16 (the stored levels of a picture), or floating-point numbers in [0, 1], dark = air"


def is_tensor(x: object) -> bool:
    """Tell whether `x` is a torch tensor. Does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def of_tensor(x: Any, limits: Limits) -> Radiograph:
    """Read a torch tensor, wherever it lies. Raises InputError."""
    x = x.detach().cpu()
    # NumPy knows neither bfloat16 nor the 8-bit floats
    return of_array((x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy(), limits)


def of_array(x: np.ndarray, limits: Limits) -> Radiograph:
    """Read an array by the rule above. Raises InputError."""
    if np.ma.is_masked(x):
        raise InputError("unsupported_array", "some pixels are masked; fill them first: x.filled(0)")
    if not (x.dtype.kind == "f" or (x.dtype.kind == "u" and x.itemsize <= 2)):
        raise InputError("unsupported_array", f"pixels of type {x.dtype}; accepted are {ACCEPTED}")
    x = _channels_last(np.asarray(x))
    check_pixels(x.shape[0], x.shape[1], limits)
    bits = 8 * x.itemsize
    if x.dtype.kind == "f":
        _check_range(x)
        x = _levels_of(x.astype(np.float32, copy=False))
    else:
        # in this machine's byte order
        x = x.astype(f"u{x.itemsize}", copy=False)
    if x.dtype == np.uint8:
        return of_levels(x if x.ndim == 2 else grey_channels(x))
    if x.dtype == np.uint16:
        return of_levels(x if x.ndim == 2 else grey_of_channels(x, 257))
    pixels_HW = np.ascontiguousarray(x if x.ndim == 2 else grey_of_channels(x, 1 / 255))
    _check_varied(pixels_HW)
    H, W = pixels_HW.shape
    return Radiograph(pixels_HW, Header(rows=H, columns=W, bits=bits), tuple(size_warning(H, W)))


def check(radiograph: Radiograph) -> None:
    """Check what a radiograph's fields promise. Raises InputError."""
    pixels_HW, stored = radiograph.pixels, radiograph.stored
    if pixels_HW.ndim != 2 or not pixels_HW.size or pixels_HW.dtype != np.float32:
        raise InputError(
            "unsupported_array",
            f"pixels of type {pixels_HW.dtype} and shape {pixels_HW.shape}; a radiograph's are float32 (H, W)",
        )
    _check_range(pixels_HW)
    _check_varied(pixels_HW)
    if stored is not None and not np.array_equal(of_levels(stored).pixels, pixels_HW):
        raise InputError(
            "unsupported_array",
            "its `pixels` differ from its `stored` levels, which the model would use; if you changed pixels, give "
            "`stored=None`, or only the pixels",
        )


def _levels_of(x: np.ndarray) -> np.ndarray:
    """Take float32 pixels for an 8-bit picture's levels where every one is a 255th, and leave them as they are else."""
    levels = np.rint(x * 255).astype(np.uint8)
    return levels if np.array_equal(np.divide(levels, 255, dtype=np.float32), x) else x


def _check_varied(pixels_HW: np.ndarray) -> None:
    if pixels_HW.min() == pixels_HW.max():
        raise InputError("constant_image", "every pixel has the same grey value")


def _check_range(x: np.ndarray) -> None:
    least, most = float(x.min()), float(x.max())
    if not np.isfinite([least, most]).all():
        raise InputError(
            "unsupported_array", "some pixels are NaN or infinite; accepted are numbers in [0, 1]"
        )
    if least < 0 or most > 1:
        raise InputError(
            "unsupported_array",
            f"floating-point pixels from {least:g} to {most:g}, which must lie in [0, 1]: give a picture's levels as "
            "uint8 or uint16, scale other values by their known range, and give none that a mean was subtracted from",
        )


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Return the shape: (H, W) or (H, W, 3)."""
    shape = x.shape
    if x.ndim == 3 and shape[-1] in (1, 3):
        x = x[..., 0] if shape[-1] == 1 else x
    elif x.ndim == 3 and shape[0] in (1, 3):
        x = x[0] if shape[0] == 1 else np.moveaxis(x, 0, -1)
    elif x.ndim != 2:
        raise InputError(
            "unsupported_array",
            f"an array of shape {shape}; accepted are (H, W), and one or three channels of it; several images are "
            "given as a list",
        )
    if not x.size:
        raise InputError("unsupported_array", f"an array of shape {shape}, which holds no pixel")
    return x
