"""Damage, chosen by a random generator: the same generator gives the same damage.

Each function takes a generator and bytes, and returns other bytes. `damage` applies a few.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from numpy.random import Generator

Mutator = Callable[[Generator, bytes], bytes]

# Numbers at which programs go wrong.
EDGES = (
    0,
    1,
    2,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65534,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
# Texts at which programs go wrong.
WORDS = (
    b"", b"0", b"-1", b"NaN", b"inf", b"1e309", b"1024,5", b"9" * 40, b"1\\2", b"\\", b"\0", b" ", b"\xff\xfe", b"%s%n",
    b"../../etc/passwd", b"{{7*7}}", b"<image>", b"\xed\xa0\x80", b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"A" * 3000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**70, 1e308, float("nan"), float("inf"), "", "0", "\ud800", "\0", "<image>",
    "x" * 5000, [], [[]], {}, {"a": {}}, [None], ["x"], [1, "2"],
)  # fmt: skip


def damage(rng: Generator, data: bytes, mutators: Sequence[Mutator]) -> bytes:
    """Apply one of `mutators`, now and then two or three: what is damaged too much is refused too early."""
    for _ in range(min(3, int(rng.geometric(0.7)))):
        data = mutators[int(rng.integers(len(mutators)))](rng, data)
    return data


def place(rng: Generator, data: bytes) -> int:
    """A place in the file; every other time in its first bytes, where headers are."""
    end = len(data) if rng.integers(2) else min(len(data), 600)
    return int(rng.integers(max(1, end)))


def choice(rng: Generator, of: Sequence[Any]) -> Any:
    return of[int(rng.integers(len(of)))]


def put(data: bytes, at: int, value: bytes, length: int | None = None) -> bytes:
    """Replace `length` bytes (as many as are put)."""
    return data[:at] + value + data[at + (len(value) if length is None else length) :]


# Any file


def flip_bits(rng: Generator, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if found:
            found[place(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(found)


def set_byte(rng: Generator, data: bytes) -> bytes:
    return put(
        data, place(rng, data), bytes([choice(rng, (0, 1, 127, 128, 254, 255, int(rng.integers(256))))])
    )


def set_number(rng: Generator, data: bytes) -> bytes:
    """Write an edge as 16 or 32 bits of either byte order: a length field, if it hits one."""
    n = choice(rng, EDGES)
    return put(
        data,
        place(rng, data),
        struct.pack(choice(rng, "<>") + ("H" if n < 65536 and rng.integers(2) else "I"), n),
    )


def cut_end(rng: Generator, data: bytes) -> bytes:
    return data[: place(rng, data)]


def remove(rng: Generator, data: bytes) -> bytes:
    return put(data, place(rng, data), b"", int(rng.integers(1, 64)))


def repeat(rng: Generator, data: bytes) -> bytes:
    at, length = place(rng, data), int(rng.integers(1, 200))
    return data[:at] + data[at : at + length] * int(rng.integers(2, 5)) + data[at + length :]


def noise(rng: Generator, data: bytes) -> bytes:
    return put(data, place(rng, data), rng.bytes(int(rng.integers(1, 64))))


ANY: tuple[Mutator, ...] = (
    flip_bits,
    flip_bits,
    set_byte,
    set_byte,
    set_number,
    cut_end,
    remove,
    repeat,
    noise,
)

# DICOM, explicit little endian

ELEMENT = re.compile(
    rb"[\x02\x08\x10\x18\x20\x28\xe0]\0..(?:AS|CS|DA|DS|IS|LO|PN|SH|UI|US|SS|OW|OB|SQ|UN)", re.S
)
LONG = (b"OB", b"OW", b"SQ", b"UN")


def _elements(data: bytes) -> list[tuple[int, int, int]]:
    """(tag, value, end) of what looks like an element."""
    found = []
    for match in ELEMENT.finditer(data, 0, 4096):
        at = match.start()
        long = data[at + 4 : at + 6] in LONG
        value = at + (12 if long else 8)
        if value <= len(data):
            length = struct.unpack_from("<I" if long else "<H", data, at + (8 if long else 6))[0]
            found.append((at, value, min(value + length, len(data))))
    return found


def element_value(rng: Generator, data: bytes) -> bytes:
    """Another value, the length right."""
    if not (found := _elements(data)):
        return flip_bits(rng, data)
    at, value, end = choice(rng, found)
    if data[at + 4 : at + 6] in (b"US", b"SS"):
        return put(data, value, struct.pack("<H", choice(rng, EDGES) & 0xFFFF))
    if data[at + 4 : at + 6] in LONG:
        return set_byte(rng, data)
    new = choice(rng, WORDS)
    new += b" " * (len(new) % 2)
    return put(data[: at + 6] + struct.pack("<H", len(new)) + data[value:], value, new, end - value)


def element_length(rng: Generator, data: bytes) -> bytes:
    if not (found := _elements(data)):
        return flip_bits(rng, data)
    at, value, _ = choice(rng, found)
    n = choice(rng, EDGES)
    return (
        put(data, value - 4, struct.pack("<I", n))
        if value - at == 12
        else put(data, value - 2, struct.pack("<H", n & 0xFFFF))
    )


def element_kind(rng: Generator, data: bytes) -> bytes:
    if not (found := _elements(data)):
        return flip_bits(rng, data)
    return put(
        data,
        choice(rng, found)[0] + 4,
        choice(rng, (b"UN", b"XX", b"SQ", b"OB", b"DS", b"US", b"FD", b"UT", b"\0\0")),
    )


def element_gone(rng: Generator, data: bytes) -> bytes:
    if not (found := _elements(data)):
        return flip_bits(rng, data)
    at, _, end = choice(rng, found)
    return put(data, at, b"", end - at)


# JPEG and JPEG-LS, also inside DICOM; JPEG 2000

MARKER = re.compile(rb"\xff[\xc0-\xdf\xe0-\xef\xf7\xf8\xfe\x4f-\x64\x90-\x93]")


def marker_kind(rng: Generator, data: bytes) -> bytes:
    if not (found := [m.start() for m in MARKER.finditer(data)]):
        return flip_bits(rng, data)
    kinds = (
        0xC0,
        0xC1,
        0xC2,
        0xC3,
        0xC4,
        0xD0,
        0xD8,
        0xD9,
        0xDA,
        0xDB,
        0xDD,
        0xE0,
        0xF7,
        0xF8,
        0x52,
        0x93,
        0,
    )
    return put(data, choice(rng, found) + 1, bytes([choice(rng, kinds)]))


def marker_segment(rng: Generator, data: bytes) -> bytes:
    """Change a byte of a segment's length or of the first that follow: precision, size, components, tables."""
    if not (found := [m.start() for m in MARKER.finditer(data)]):
        return flip_bits(rng, data)
    value = choice(rng, (0, 1, 2, 7, 12, 16, 17, 31, 64, 127, 128, 255))
    return put(data, choice(rng, found) + 2 + int(rng.integers(20)), bytes([value]))


def marker_gone(rng: Generator, data: bytes) -> bytes:
    found = [m.start() for m in MARKER.finditer(data)]
    if len(found) < 2:
        return flip_bits(rng, data)
    i = int(rng.integers(len(found) - 1))
    return put(data, found[i], b"", found[i + 1] - found[i])


STREAM: tuple[Mutator, ...] = (marker_kind, marker_segment, marker_segment, marker_gone)
DICOM: tuple[Mutator, ...] = (
    *ANY,
    element_value,
    element_value,
    element_value,
    element_length,
    element_kind,
    element_gone,
)

# PNG, with right checksums


def chunk(rng: Generator, data: bytes) -> bytes:
    """Damage, drop, repeat or rename a chunk, and write its checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return flip_bits(rng, data)
    i = int(rng.integers(len(chunks)))
    kind, body = chunks[i]
    how = int(rng.integers(5))
    if how == 0:
        body = choice(rng, (flip_bits, set_byte, set_number, cut_end, remove))(rng, body)
    elif how == 1:
        kind = choice(
            rng, (b"IDAT", b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"eXIf", b"acTL", b"fdAT", b"tEXt", b"zzzz")
        )
    chunks[i : i + 1] = [(kind, body)] * (0 if how == 2 else 2 if how == 3 else 1)
    if how == 4:
        inflated = b"".join(body for kind, body in chunks if kind == b"IDAT")
        try:
            spoilt = choice(rng, (flip_bits, cut_end, repeat))(rng, zlib.decompress(inflated))
            chunks = [(k, zlib.compress(spoilt) if k == b"IDAT" else b) for k, b in chunks]
        except zlib.error:
            pass
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return data[:8] + b"".join(parts)


# JSON Lines, JSON, YAML, safetensors


def json_value(rng: Generator, data: bytes) -> bytes:
    """Replace, drop or rename something in a line of JSON, at any depth."""
    lines = data.split(b"\n")
    i = int(rng.integers(len(lines)))
    try:
        row = json.loads(lines[i])
    except (ValueError, RecursionError):
        return flip_bits(rng, data)
    holders = [({"": row}, "")]
    for holder, key in holders:
        value = holder[key]
        inside = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        holders += [(value, k) for k, _ in inside]
    holder, key = choice(rng, holders[1:] or holders)
    how = int(rng.integers(4))
    if how == 3 and isinstance(holder, dict):
        holder[choice(rng, ("schema", "images", "findings", "\ud800", ""))] = holder.pop(key)
    elif how == 2 and key in holder:
        del holder[key]
    else:
        holder[key] = choice(rng, VALUES)
    lines[i] = json.dumps(row).encode()
    return b"\n".join(lines)


def text_token(rng: Generator, data: bytes) -> bytes:
    """Put a piece of syntax anywhere, or in the place of a word."""
    tokens = (
        b"{", b"}", b"[", b"]", b":", b",", b'"', b"\n", b"\t", b"- ", b"&a ", b"*a", b"!!python/object:os.system ",
        b"|\n", b"1e400", b"9" * 5000, b"NaN", b"null", b"~", b"'", b"[" * 3000, b"\xef\xbb\xbf", b"\xff", b"\0",
        b"<<: *a\n", b"%", b"\\ud800",
    )  # fmt: skip
    words = [m.span() for m in re.finditer(rb"[\w.]+", data)]
    if words and rng.integers(2):
        start, end = choice(rng, words)
        return put(data, start, choice(rng, tokens), end - start)
    return put(data, place(rng, data), choice(rng, tokens), 0)


def number(rng: Generator, data: bytes) -> bytes:
    """Another number in the place of one, or a field more or less."""
    if not (found := [m.span() for m in re.finditer(rb"\d[\d.e-]*", data)]):
        return flip_bits(rng, data)
    start, end = choice(rng, found)
    n = choice(rng, (*EDGES, -1, 3, 4, 0.5, 1e-30, 1e30, 2**70, "1_000", "0x10", "1:30", "no", "[1, 2]"))
    return put(data, start, str(n).encode(), end - start)


def swap_lines(rng: Generator, data: bytes) -> bytes:
    lines = data.split(b"\n")
    i, j = (int(rng.integers(len(lines))) for _ in range(2))
    lines[i] = lines[j]
    return b"\n".join(lines)


def tensor_header(rng: Generator, data: bytes) -> bytes:
    """Damage the JSON header of a safetensors file, mostly with the length right."""
    if len(data) < 8:
        return flip_bits(rng, data)
    length = struct.unpack_from("<Q", data)[0]
    header = choice(rng, (json_value, text_token))(rng, data[8 : 8 + length])
    stated = len(header) if rng.integers(4) else choice(rng, EDGES)
    return struct.pack("<Q", stated) + header + data[8 + length :]


JSON: tuple[Mutator, ...] = (
    *ANY,
    json_value,
    json_value,
    json_value,
    json_value,
    text_token,
    number,
    number,
    swap_lines,
)
YAML: tuple[Mutator, ...] = (*ANY, text_token, text_token, text_token, *[number] * 6, swap_lines)
TENSORS: tuple[Mutator, ...] = (*ANY, tensor_header, tensor_header, tensor_header)
PNG: tuple[Mutator, ...] = (*ANY, chunk, chunk, chunk, chunk)
JPEG: tuple[Mutator, ...] = (*ANY, *STREAM)
