"""Palettes (PS3.3 C.7.9): three tables, written out or in segments, from stored values to colours."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from encoder.radiograph.elements import integer
from encoder.radiograph.scale import Broken, apply_lut, entries_of
from encoder.radiograph.types import InputError

NAMES = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
DISCRETE, LINEAR, INDIRECT = range(3)
# Bytes of a table in segments: of 65,536 entries, each may be an indirect segment of its own.
LONGEST = 8 << 16


def is_there(header: Dataset) -> bool:
    """Say whether the header has all three tables."""
    return all(name + "Data" in header or f"Segmented{name}Data" in header for name in NAMES)


def channels(header: Dataset, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Look stored values (n,) up: float64 (n, 3), and the bits of an entry. Raises InputError for a broken table."""
    found, deepest = [], 8
    for name in NAMES:
        plain = f"{name}Data" in header
        attribute = f"{'' if plain else 'Segmented'}{name}Data"
        try:
            item = Dataset()
            item.set_original_encoding(*getattr(header, "original_encoding", (False, True)))
            item.LUTDescriptor, item.LUTData = header[name + "Descriptor"].value, header[attribute].value
            bits = int(item.LUTDescriptor[2])
            if not plain:
                item.LUTData = expand(
                    item.LUTData, bits, entries_of(item), item.original_encoding[1] is not False
                )
            deepest = max(deepest, bits)
            found.append(apply_lut(item, values, integer(header, "PixelRepresentation", 0) == 1))
        except Exception as error:
            reason = str(error) if isinstance(error, Broken) else "it is damaged"
            raise InputError("unreadable", f"{attribute} is unusable: {reason}") from None
    return np.stack(found, -1), deepest


def expand(data: bytes, bits: int, entries: int, little: bool = True) -> list[int]:
    """Write out a table that is stored in segments (PS3.3 C.7.9.2).

    A segment is an opcode, a length, and its data. A discrete segment holds that many entries. A linear one
    holds its last entry, to which the entries rise evenly from the one before. An indirect one repeats that
    many segments; it holds the byte at which the first of them begins, low half first.

    Raises Broken, also for a table of more entries than `entries`: few bytes may unfold to any number.
    """
    if len(data) > LONGEST:
        raise Broken(f"it has {len(data)} bytes, and no table needs more than {LONGEST}")
    width = 1 if bits == 8 else 2
    order = "<" if little else ">"
    cells = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")
    if width == 1:
        # of two entries in a word, the first is the low one
        cells = cells.astype("<u2").view(np.uint8)
    codes: list[int] = cells.tolist()
    table: list[int] = []

    def take(position: int, count: int) -> list[int]:
        if position + count > len(codes):
            raise Broken("its last segment is cut off")
        return codes[position : position + count]

    def segment(position: int, repeated: bool) -> int:
        """Add what the segment at `position` stands for; returns where the next one begins."""
        opcode, length = take(position, 2)
        position += 2
        # else a few bytes could ask for any number of steps
        if not length:
            raise Broken("it has an empty segment")
        if opcode == DISCRETE:
            table.extend(take(position, length))
            position += length
        elif opcode == LINEAR:
            (end,) = take(position, 1)
            if not table:
                raise Broken("it begins with a linear segment, which has no entry to rise from")
            table.extend(np.rint(np.linspace(table[-1], end, length + 1)[1:]).astype(int).tolist())
            position += 1
        elif opcode == INDIRECT and not repeated:
            halves = np.array(take(position, 4 // width), "<u1" if width == 1 else "<u2")
            start = int(halves.view("<u4")[0]) // width
            for _ in range(length):
                start = segment(start, repeated=True)
            position += 4 // width
        else:
            kind = (
                "an indirect segment repeats another" if opcode == INDIRECT else f"segments of type {opcode}"
            )
            raise Broken(f"{kind}, which the standard does not have")
        if len(table) > entries:
            raise Broken(f"its segments make more than the {entries} entries that the descriptor says")
        return position

    position = 0
    # a byte may be left over, which makes the length even
    while position + 1 < len(codes) and len(table) < entries:
        position = segment(position, repeated=False)
    return table
