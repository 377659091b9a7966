"""Stored values -> grey values by the header: padding; modality LUT or rescale (PS3.3 C.11.1); VOI LUT or window
(C.11.2).

docs/concepts/dicom.md says what is done with each attribute, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from encoder.radiograph.elements import decimals, first, integer, is_empty, items, text
from encoder.radiograph.types import InputError, Warn

FUNCTIONS = {"LINEAR", "LINEAR_EXACT", "SIGMOID"}


class Broken(ValueError):
    """An attribute that cannot be used; the message says why."""


class Shown(NamedTuple):
    """Hold the greys that stored values are shown as, and the warnings about the way there."""

    grey: np.ndarray  # float64, of each stored value
    notes: list[Warn]


def padding(header: Dataset, low: int, occurs: np.ndarray) -> np.ndarray:
    """Tell which stored values, from `low` on, fill the frame around the image (PS3.3 C.7.5.1.1.2): bool, as
    `occurs`.

    They must not set the range of the image's greys, and are background: black, whatever is white in the image. Nothing
    is padding if the image would have no two greys without it.
    """
    none = np.zeros_like(occurs)
    value = _padding_value(header, "PixelPaddingValue")
    if value is None:
        return none
    limit = _padding_value(header, "PixelPaddingRangeLimit")
    begin, end = sorted(v - low for v in (value, value if limit is None else limit))
    found = none.copy()
    found[max(begin, 0) : max(end + 1, 0)] = True
    return found if (occurs & ~found).sum() > 1 else none


def grey_levels(header: Dataset, stored: np.ndarray, occurs: np.ndarray) -> Shown:
    """Apply modality LUT or rescale, then VOI LUT or window, to stored values. Every grey of a value that
    occurs is finite. Raises InputError if the modality LUT cannot be used: without it dark cannot be told
    from bright."""
    notes: list[Warn] = []
    unusable = ""
    with np.errstate(all="ignore"):
        grey, signed = _modality(header, stored, occurs, notes)
        shown, instead = grey, "the full range is shown"
        for name, function in _presentations(header):
            try:
                found, said = function(grey, signed, occurs)
                _check(found[occurs])
            except Exception as error:
                reason = str(error) if isinstance(error, Broken) else "it is damaged"
                unusable = unusable or f"{name} is unusable: {reason}"
            else:
                shown, instead = found, "another that the header gives is shown"
                notes += said
                break
    if unusable:
        notes.append(Warn("bad_window", f"{unusable}; {instead}"))
    return Shown(shown, notes)


def _modality(
    header: Dataset, stored: np.ndarray, occurs: np.ndarray, notes: list[Warn]
) -> tuple[np.ndarray, bool]:
    """Modality LUT or rescale; also whether what it can make may be negative, which says how the first value of a VOI
    LUT is to be read (C.11.2.1.1)."""
    least, most = _stored_range(header)
    signed = bool(least < 0 or stored[occurs].min() < 0)
    if "ModalityLUTSequence" in header:
        tables = items(header, "ModalityLUTSequence")
        try:
            if tables or not is_empty(header, "ModalityLUTSequence"):
                grey, said = _through(tables[0], stored, signed, occurs, "ModalityLUTSequence")
                _check(grey[occurs])
                notes += said
                return grey, False
            notes.append(Warn("bad_rescale", "ModalityLUTSequence holds no table"))
        except Exception as error:
            reason = str(error) if isinstance(error, Broken) else "it is damaged"
            raise InputError("unreadable", f"ModalityLUTSequence is unusable: {reason}") from None
    slopes, intercepts = decimals(header, "RescaleSlope"), decimals(header, "RescaleIntercept")
    if not slopes and not intercepts:
        return stored, signed
    # one of the two without the other is not allowed (C.11.1); what is missing then changes nothing
    slope = slopes[0] if slopes else 1.0 if slopes is None else None
    intercept = intercepts[0] if intercepts else 0.0 if intercepts is None else None
    try:
        if not slope:
            raise Broken("RescaleSlope is zero" if slope == 0 else "RescaleSlope is not a number")
        if intercept is None:
            raise Broken("RescaleIntercept is not a number")
        grey = stored * slope + intercept
        _check(grey[occurs])
        # the rescale is monotone, so that only neighbours can coincide
        if not np.diff(grey[occurs]).all():
            raise Broken("it makes different pixels the same grey, because its numbers are too large")
    except Broken as error:
        notes.append(Warn("bad_rescale", f"RescaleSlope and RescaleIntercept are left out: {error}"))
        # the sign of a slope says which end is dark
        return (-stored, True) if slope is not None and slope < 0 else (stored, signed)
    return grey, min(least * slope, most * slope) + intercept < 0 or bool(grey[occurs].min() < 0)


def _presentations(header: Dataset) -> Iterator[tuple[str, Any]]:
    """Return the VOI LUTs and windows that the header offers, in the order in which they are tried. An image
    is to be shown by any one of them (C.11.2.1); it is the first that can be used."""
    if "VOILUTSequence" in header:
        tables = items(header, "VOILUTSequence")
        offered: list[Dataset | None] = [*tables] or [None]
        for table in offered:
            yield (
                "VOILUTSequence",
                lambda grey, signed, occurs, table=table: _voi_lut(table, grey, signed, occurs),
            )
    centres, widths = decimals(header, "WindowCenter"), decimals(header, "WindowWidth")
    if centres is None and widths is None:
        return
    pairs = list(zip(centres or [], widths or [], strict=False))
    for centre, width in pairs or [(None, None)]:
        yield "the window", lambda grey, *_, pair=(centre, width): (_window(header, grey, *pair), [])


def _voi_lut(
    table: Dataset | None, grey: np.ndarray, signed: bool, occurs: np.ndarray
) -> tuple[np.ndarray, list[Warn]]:
    if table is None:
        raise Broken("it holds no table")
    return _through(table, np.rint(grey), signed, occurs, "VOILUTSequence")


def _through(
    table: Dataset, values: np.ndarray, signed: bool, occurs: np.ndarray, name: str
) -> tuple[np.ndarray, list[Warn]]:
    """Look values up in a table whose first input is `signed` or not. Where all of them lie beyond its ends, it is read
    with the other sign, if they lie inside then, and that is said."""
    grey = apply_lut(table, values, signed)
    if np.ptp(grey[occurs]) == 0:
        other = apply_lut(table, values, not signed)
        if np.ptp(other[occurs]) > 0:
            said = f"the first value of {name}'s LUTDescriptor is read as {'un' if signed else ''}signed"
            return other, [Warn("header_conflict", f"{said}; else every pixel would be the same grey")]
    return grey, []


def _window(header: Dataset, grey: np.ndarray, centre: float | None, width: float | None) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if centre is None or width is None:
        raise Broken(
            "WindowCenter and WindowWidth must be numbers, with a decimal point, and as many of each"
        )
    function = text(header, "VOILUTFunction").upper() or "LINEAR"
    if function not in FUNCTIONS:
        raise Broken("VOILUTFunction is unknown")
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
        # a window of width 1 is a threshold
        if width == 0:
            return (grey > centre).astype(np.float64)
    if width <= 0:
        raise Broken("WindowWidth is too small")
    if function == "SIGMOID":
        sigmoid: np.ndarray = 1 / (1 + np.exp((-4 * (grey - centre) / width).clip(-700, 700)))
        return sigmoid
    return ((grey - centre) / width + 0.5).clip(0, 1)


def entries_of(item: Dataset) -> int:
    """Return how many entries a LUT declares. Raises Broken."""
    return _descriptor(item)[0]


def _descriptor(item: Dataset) -> tuple[int, int]:
    """Return (entries, the first input as it is written). Raises Broken."""
    descriptor = item.get("LUTDescriptor")
    if isinstance(descriptor, bytes):
        descriptor = np.frombuffer(descriptor, "<u2").tolist()
    if descriptor is None or isinstance(descriptor, int | float | str) or len(descriptor) < 2:
        raise Broken("LUTDescriptor must have three numbers")
    return int(descriptor[0]) & 0xFFFF or 65536, int(descriptor[1])


def apply_lut(item: Dataset, values: np.ndarray, signed: bool) -> np.ndarray:
    """Apply a LUT of PS3.3 C.11.1.1: values below its first input get the first entry, those above its last
    the last. Raises Broken where it has fewer entries than it says.

    The first input has 16 bits, whatever VR they are written with. They are `signed` if the values may be negative: of
    a modality LUT or a palette PixelRepresentation says so, of a VOI LUT what is before it (C.11.2.1.1).
    """
    entries, begin = _descriptor(item)
    begin &= 0xFFFF
    begin -= 65536 if signed and begin > 32767 else 0
    data = item.get("LUTData")
    if data is None:
        raise Broken("LUTData is missing")
    # OW; two 8-bit entries may share a word
    if isinstance(data, bytes):
        little = item.original_encoding[1] is not False
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else "<u2" if little else ">u2")
    table = np.atleast_1d(np.asarray(data, np.float64))[:entries]
    if len(table) < entries:
        raise Broken(f"LUTData has {len(table)} of the {entries} entries that LUTDescriptor says")
    return table[(values - begin).clip(0, len(table) - 1).astype(np.intp)]


def _check(grey: np.ndarray) -> None:
    """Refuse greys that are not numbers, that are too large to be subtracted, or that are all the same."""
    least, most = float(grey.min()), float(grey.max())
    if not np.isfinite(most - least):
        raise Broken("it makes numbers that are too large")
    if least == most:
        raise Broken("it makes every pixel the same grey")


def _padding_value(header: Dataset, key: str) -> int | None:
    """US or SS, as PixelRepresentation says (PS3.3 C.7.5.1.1.2); written as the other one it is the same 16 bits."""
    value = first(header, key)
    if isinstance(value, bytes) and len(value) >= 2:
        value = int.from_bytes(value[:2], "little")
    try:
        value = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    least, most = _stored_range(header)
    if least <= value <= most:
        return value
    signed, stored = least < 0, (most - least).bit_length()
    # of the value's own 16 bits; a negative one may also have been cut to the stored ones
    for bits in (16, stored) if signed else (16,):
        same = value & ((1 << bits) - 1)
        same -= (1 << bits) if signed and same >> (bits - 1) else 0
        if least <= same <= most:
            return same
    return None


def _stored_range(header: Dataset) -> tuple[int, int]:
    """Return the lowest and the highest value that the header's bits can hold."""
    bits = min(max(integer(header, "BitsStored", 16), 2), 16)
    if integer(header, "PixelRepresentation", 0) == 1:
        return -(1 << bits - 1), (1 << bits - 1) - 1
    return 0, (1 << bits) - 1
