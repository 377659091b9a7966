"""What Pillow does not check in a PNG file (ISO 15948): the checksums of its pixels, and whether it has all rows."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from encoder.radiograph.types import InputError, Warn

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Of Adam7: (first column, first row, columns apart, rows apart)
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check_png(data: bytes) -> list[Warn]:
    """Compare the checksums of the chunks of pixels. Raises InputError where one is wrong."""
    for at, kind, length in _chunks(data):
        if kind == b"IEND":
            return []
        end = at + 8 + length
        if kind != b"IDAT" or end + 4 > len(data):
            continue
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">L", data, end)[0]:
            message = "the checksum of its pixels (IDAT) is wrong: the file is damaged"
            raise InputError("unreadable", message)
    return [Warn("damaged_pixels", "the file has no end (IEND), so it may be damaged")]


def has_all_rows(data: bytes) -> bool:
    """Tell whether the pixels unfold to as many bytes as the header says. `data` are of a file that was
    decoded."""
    columns, rows, depth, kind, _, _, interlaced = struct.unpack_from(">2L5B", data, 16)
    bits = depth * CHANNELS[kind]
    needed = 0
    for x, y, dx, dy in PASSES if interlaced else ((0, 0, 1, 1),):
        width, height = -(-(columns - x) // dx), -(-(rows - y) // dy)
        needed += height * (1 + (width * bits + 7) // 8) if width > 0 and height > 0 else 0
    inflater = zlib.decompressobj()
    for at, chunk, length in _chunks(data):
        if chunk == b"IDAT":
            rest = data[at + 8 : at + 8 + length]
            while rest and not inflater.eof and needed > 0:
                needed -= len(inflater.decompress(rest, 1 << 20))
                rest = inflater.unconsumed_tail
    return needed <= 0


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(where it begins, its type, the length of its data) of each."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        yield at, kind, length
        at += 12 + length
