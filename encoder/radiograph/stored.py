"""Samples -> stored values (PS3.5 8.1.1, 8.2): which bits of a sample are the pixel, and what sign they have."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from encoder.radiograph.codestream import Stream
from encoder.radiograph.elements import integer
from encoder.radiograph.types import Warn

# Every so many rows and columns are enough to see which of two readings of an image is the smooth one.
STEP = 4
# Of the largest stored value; a larger difference is not an error of a lossy codec.
OVERSHOOT = 1.25


def of_cells(cells: np.ndarray, header: Dataset) -> tuple[np.ndarray, list[Warn]]:
    """Take BitsStored bits out of cells of BitsAllocated bits, unsigned (H, W)."""
    stored, shift, notes = _placed(header, 8 * cells.itemsize)
    return _signed(cells >> shift if shift else cells, stored, _is_signed(header)), notes


def of_stream(samples: np.ndarray, stream: Stream, header: Dataset) -> tuple[np.ndarray, list[Warn]]:
    """Take the pixels out of the samples (H, W) of a stream. Where the header cannot be true of them, the stream is
    believed, with a warning."""
    allocated, stored = integer(header, "BitsAllocated", 0), integer(header, "BitsStored", 0)
    precision, signed = stream.precision, _is_signed(header)
    conflict = f"the header says {stored} bits stored of {allocated}, the compressed image has {precision}"
    notes = [Warn("header_conflict", f"{conflict}, which is believed")]
    fits = 1 < stored <= allocated and precision <= allocated
    if stream.signed:
        if signed and precision <= stored:
            return samples, [] if fits else notes
        if not signed:
            notes = [
                Warn(
                    "header_conflict", "the header says unsigned pixels; the compressed image has signed ones"
                )
            ]
            raw = samples & ((1 << precision) - 1)
            return _smoother([samples, raw]), notes
        samples = samples & ((1 << precision) - 1)
    if not fits:
        return _signed(samples, precision, signed), notes
    if precision <= stored:
        # a stream of fewer bits has its sign in its own highest one, or no negative pixels
        if signed and precision < stored:
            pixels, beyond = _signed(samples, precision, True), samples.astype(np.int32)
            return (pixels, []) if np.array_equal(pixels, beyond) else (_smoother([pixels, beyond]), notes)
        return _signed(samples, stored, signed), []
    stored, shift, notes = _placed(header, precision)
    samples = samples >> shift if shift else samples
    pixels = _signed(samples, stored, signed)
    beyond = _signed(samples, precision - shift, signed)
    if np.array_equal(pixels, beyond):
        return pixels, notes
    # The bits above may be an overlay or left-overs. But a lossy codec overshoots, which must not wrap to zero; and the
    # header may be wrong. Cutting off bits that belong to the pixels tears the image, cutting off others mends it.
    chosen = _smoother([pixels, beyond])
    if chosen is beyond and np.abs(beyond).max() >= OVERSHOOT * (1 << (stored - signed)):
        notes.append(Warn("header_conflict", f"{conflict}, and its pixels use them"))
    return chosen, notes


def _placed(header: Dataset, width: int) -> tuple[int, int, list[Warn]]:
    """Return (bits stored, how far they lie above bit 0 of a sample of `width` bits, warnings)."""
    stored = min(integer(header, "BitsStored", width), width)
    high = integer(header, "HighBit", stored - 1)
    if stored - 1 <= high < width:
        return stored, high - (stored - 1), []
    # of a stream that has the stored bits alone
    if high < integer(header, "BitsAllocated", 0) and high >= stored - 1:
        return stored, 0, []
    return (
        stored,
        0,
        [
            Warn(
                "header_conflict",
                f"HighBit {high} cannot be for {stored} bits stored; taken for {stored - 1}",
            )
        ],
    )


def _is_signed(header: Dataset) -> bool:
    return integer(header, "PixelRepresentation", 0) == 1


def _signed(samples: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Return the lowest `bits` of samples, as two's complement if `signed`. Unsigned samples that have no
    more bits are returned as they are."""
    width = 8 * samples.itemsize
    if not signed:
        return samples if bits >= width else samples & samples.dtype.type((1 << bits) - 1)
    pixels = samples.view(f"i{samples.itemsize}") << (width - bits)
    return pixels >> (width - bits)


def _smoother(readings: list[np.ndarray]) -> np.ndarray:
    """Return the reading whose neighbouring pixels differ least; the first of equals."""
    return min(readings, key=_roughness)


def _roughness(x: np.ndarray) -> float:
    rows, columns = x[::STEP].astype(np.int32), x[:, ::STEP].astype(np.int32)
    return float(np.abs(np.diff(rows, axis=1)).mean() + np.abs(np.diff(columns, axis=0)).mean())
