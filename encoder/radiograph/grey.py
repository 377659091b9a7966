"""Stored values -> grey levels, and what a picture of grey levels must be."""

from __future__ import annotations

import numpy as np

from encoder.radiograph.types import InputError, Limits, Warn

# Version of the rule by which stored values become grey levels; a part of every key and digest of what is made of them.
# Since 2, pictures of 8 bits are taken as they are; before, each was stretched to its own minimum and maximum.
GREY_RULE = 2

# Version of what is done with a DICOM header (docs/concepts/dicom.md), likewise, but of no effect on pictures. Since 2,
# films are turned by PatientOrientation and pixels made square.
DICOM_RULE = 2

# Pixels of the shorter side; on fewer, small findings are gone (films have 2,000 to 4,000).
LOW_RESOLUTION = 256


LONGEST = 10  # times the other side; films of the whole spine are 3, and thin strips unfold to anything when resized


def check_bytes(n: int, limits: Limits) -> None:
    """Raise InputError too_large if `n` bytes are over the limit."""
    if n > limits.max_bytes:
        raise InputError("too_large", f"{n} bytes, and at most {limits.max_bytes} are read")


def check_pixels(H: int, W: int, limits: Limits) -> None:
    """Raise InputError too_large if H x W is over the limit, or one side over LONGEST times the other."""
    if limits.max_pixels < H * W:
        raise InputError("too_large", f"{H} x {W} pixels, and at most {limits.max_pixels} are read")
    if max(H, W) > LONGEST * min(H, W):
        raise InputError(
            "too_large", f"{H} x {W} pixels: one side is over {LONGEST} times as long as the other"
        )


def span(stored_HW: np.ndarray) -> tuple[int, int]:
    """Find the lowest and the highest stored value. Raises InputError if they are the same."""
    low, high = int(stored_HW.min()), int(stored_HW.max())
    if low == high:
        raise InputError("constant_image", f"every pixel is {low}")
    return low, high


def levels(stored_HW: np.ndarray) -> tuple[int, np.ndarray]:
    """Return (lowest stored value, for it and each higher one up to the highest whether it occurs)."""
    low, high = span(stored_HW)
    occurs = np.zeros(high - low + 1, bool)
    for rows in range(0, len(stored_HW), 128):  # in strips: numpy turns every index into 8 bytes
        occurs[stored_HW[rows : rows + 128].astype(np.intp) - low] = True
    return low, occurs


def look_up(
    stored_HW: np.ndarray,
    low: int,
    grey: np.ndarray,
    occurs: np.ndarray,
    invert: bool = False,
    dark: np.ndarray | None = None,
) -> np.ndarray:
    """Return grey[v - low] for every stored value v, scaled so that what occurs spans [0, 1], and 0 for the
    values that are `dark`: float32 (H, W)."""
    least, most = grey[occurs].min(), grey[occurs].max()
    if not least < most:
        raise InputError("constant_image", "every pixel has the same grey value")
    table = ((grey - least) / (most - least)).clip(0, 1)
    table = (1 - table if invert else table).astype(np.float32)
    if dark is not None:
        table[dark] = 0
    pixels_HW = np.empty(stored_HW.shape, np.float32)
    for rows in range(0, len(stored_HW), 128):
        index_HW = stored_HW[rows : rows + 128].astype(np.intp) - low
        np.take(table, index_HW, out=pixels_HW[rows : rows + 128], mode="clip")
    return pixels_HW


def size_warning(H: int, W: int) -> list[Warn]:
    """Return one low_resolution warning if the shorter side is under LOW_RESOLUTION pixels, else no
    warning."""
    if min(H, W) >= LOW_RESOLUTION:
        return []
    return [Warn("low_resolution", f"only {H} x {W} pixels; small findings cannot be seen")]
