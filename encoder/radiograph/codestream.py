"""What a compressed image says of itself: JPEG (ISO 10918-1 B), JPEG-LS (ISO 14495-1 C), JPEG 2000 (ISO 15444-1 A)."""

from __future__ import annotations

import re
import struct
from typing import Literal, NamedTuple

Kind = Literal["dct", "progressive", "lossless", "jpeg_ls", "jpeg_2000"]
# Start-of-frame markers of the codings that are decoded here.
KINDS: dict[int, Kind] = {
    0xC0: "dct",
    0xC1: "dct",
    0xC2: "progressive",
    0xC3: "lossless",
    0xF7: "jpeg_ls",
}
SOI, EOI, SOS, DRI = 0xD8, 0xD9, 0xDA, 0xDD
# Inside a scan: a marker that ends it. FF00 is a stuffed byte, FFD0 to FFD7 restart, FFFF fills.
SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.S)
RESTART = re.compile(rb"\xff([\xd0-\xd7])", re.S)
# Where a codestream begins: SOI of JPEG and JPEG-LS, SOC and SIZ of JPEG 2000, the box before it.
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
# One of them behind an end marker, which zeros may pad.
SECOND = re.compile(rb"\xff\xd9\0{0,8}(" + rb"|".join(map(re.escape, STARTS)) + rb")", re.S)


class Stream(NamedTuple):
    """Describe the coding of one frame. `kind` is None for a coding that no library here decodes."""

    kind: Kind | None
    rows: int
    columns: int
    precision: int  # bits a sample
    components: int
    signed: bool = False  # JPEG 2000 alone can say so


class Scans(NamedTuple):
    """The scans of a JPEG file."""

    found: list[tuple[int, int]]  # (first byte, byte behind the last) of the entropy-coded data
    end: int | None  # behind the EOI; None where the file has none
    restart_interval: int  # in MCUs; 0: no restarts
    mcus: int  # of an interleaved scan
    # Whether the scans bring every coefficient of the first component to its last bit; always so in a sequential file.
    covered: bool


def describe(frame: bytes) -> Stream | None:
    """Read the frame header; None where there is none."""
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if siz >= 0 and len(frame) >= siz + 43:
        x, y, x0, y0 = struct.unpack_from(">4L", frame, siz + 8)
        components, depth = struct.unpack_from(">HB", frame, siz + 40)
        return Stream("jpeg_2000", y - y0, x - x0, (depth & 0x7F) + 1, components, depth > 0x7F)
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if _is_frame(marker):
            precision, rows, columns, components = struct.unpack_from(">B2HB", frame, at + 4)
            return Stream(KINDS.get(marker), rows, columns, precision, components)
        at += 1 if marker == 0xFF else 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    return None


def scans(data: bytes) -> Scans | None:
    """Find the scans of a JPEG file; None where its markers cannot be followed."""
    found: list[tuple[int, int]] = []
    at, interval, mcus, first, sequential = 2, 0, 0, -1, True
    # of the first component: for each coefficient, the lowest bit that a scan has brought
    lowest = [16] * 64
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == EOI:
            return Scans(found, at + 2, interval, mcus, sequential or max(lowest) == 0)
        if marker == 0x01 or 0xD0 <= marker <= SOI:
            at += 2
            continue
        if at + 4 > len(data):
            break
        length = int(struct.unpack_from(">H", data, at + 2)[0])
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        try:
            if marker == DRI:
                interval = int(struct.unpack_from(">H", body)[0])
            elif _is_frame(marker):
                mcus, first, sequential = _mcus(body), body[6], marker != 0xC2
            elif marker == SOS:
                if first in body[1 : 1 + 2 * body[0] : 2]:
                    begin, stop, bits = body[-3:]
                    for k in range(begin, min(stop, 63) + 1):
                        lowest[k] = min(lowest[k], bits & 15)
                closing = SCAN_END.search(data, at)
                end = closing.start() if closing else len(data)
                last = end
                # fill bytes may stand before any marker
                while closing and last > at and data[last - 1] == 0xFF:
                    last -= 1
                found.append((at, last))
                at = end
        except (IndexError, ValueError, ZeroDivisionError, struct.error):
            return None
    return Scans(found, None, interval, mcus, sequential or max(lowest) == 0)


def another_follows(frame: bytes) -> bool:
    """Tell whether a second image follows the end of the first."""
    stream = describe(frame)
    if stream is not None and stream.kind in ("jpeg_ls", "jpeg_2000"):
        # Behind the header, FF is followed by less than 80 (JPEG-LS) or 90 (JPEG 2000) in what is coded, so that FFD9
        # is the end marker.
        begin = frame.find(b"\xff\xda" if stream.kind == "jpeg_ls" else b"\xff\x90")
        return begin >= 0 and SECOND.search(frame, begin) is not None
    of = scans(frame) if frame.startswith(STARTS[0]) else None
    return of is not None and of.end is not None and frame[of.end :].lstrip(b"\0").startswith(STARTS[0])


def restarts_are_whole(data: bytes, of: Scans) -> bool:
    """Tell whether the only scan has all its restart markers, in their order."""
    if not of.restart_interval:
        return True
    numbers = [m[1][0] & 7 for m in RESTART.finditer(data, *of.found[0])]
    return numbers == [i % 8 for i in range(-(-of.mcus // of.restart_interval) - 1)]


def tiles_are_whole(frame: bytes) -> bool:
    """Tell whether the tile-parts of a JPEG 2000 codestream have the lengths they declare (SOT, ISO 15444-1
    A.4.2)."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096) + 2
    while at + 4 <= len(frame) and frame[at : at + 2] != b"\xff\x90":
        at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    while at + 12 <= len(frame) and frame[at : at + 2] == b"\xff\x90":
        length = int(struct.unpack_from(">L", frame, at + 6)[0])
        # zero: it reaches to the end of the codestream
        if length == 0:
            return True
        if length < 14:
            return False
        at += length
    return at <= len(frame)


def _is_frame(marker: int) -> bool:
    return marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))


def _mcus(frame_header: bytes) -> int:
    """MCUs of a scan of all components (ISO 10918-1 A.2): of a single one, its blocks."""
    rows, columns, components = (int(n) for n in struct.unpack_from(">2HB", frame_header, 1))
    factors = [frame_header[7 + 3 * i] for i in range(components)]
    h, v = max(f >> 4 for f in factors), max(f & 15 for f in factors)
    if components == 1:
        h = v = 1
    return -(-columns // (8 * h)) * -(-rows // (8 * v))
