"""The bytes of a DICOM file -> its header, and where its pixel data lie. Nothing is decoded here."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import IO, Any, BinaryIO, NamedTuple, cast

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset as parse_dataset
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from encoder.radiograph.elements import text
from encoder.radiograph.types import InputError, Limits

DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
PIXEL_DATA = 0x7FE00010
# FloatPixelData, DoubleFloatPixelData, PixelData
PIXELS = {0x7FE00008, 0x7FE00009, PIXEL_DATA}
FRAGMENT = b"\xfe\xff\x00\xe0"
DAMAGED = "the DICOM header is damaged"
FLOATING = "the pixels are floating-point numbers, which no radiograph has"
KNOWN_VRS = {str(vr).encode() for vr in VR if len(vr) == 2}
LONG_VRS = {str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32}
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# More than this no header has; without an end, 100 MB of nothing would be read for minutes. Elements whose tags do not
# ascend, as they must (PS3.5 7.1); pieces that pydicom takes, two or three to an element; fragments of a frame.
MOST_MISPLACED, MOST_PIECES, MOST_FRAGMENTS = 300, 40_000, 100_000


# Of elements without a known VR that follow one another, so many are looked at to tell which form they have.
AHEAD = 6


class _BadHeader(InputError):
    """The header cannot be read, or what was read cannot be one."""


class Counted:
    """Wrap a binary file so that only `most` pieces can be read; the next one raises InputError."""

    def __init__(self, file: IO[bytes], most: int = MOST_PIECES) -> None:
        self.file, self.left = file, most
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read from the file. Raises InputError unreadable after more reads than a radiograph's header
        needs."""
        self.left -= 1
        if self.left < 0:
            raise _BadHeader("unreadable", "its header has more elements than a radiograph's can have")
        return self.file.read(size)


class Parsed(NamedTuple):
    """Hold the header of a DICOM file and where its pixel data lie."""

    header: Dataset  # up to the pixels, with `file_meta`
    syntax: str  # transfer syntax UID
    data: bytes  # the data set's
    start: int  # of the pixel data in it; start = end where there are none
    end: int
    fragmented: bool  # the pixel data are encapsulated
    words: bool = False  # the pixel data have VR OW: 16-bit words, whose bytes big endian swaps (PS3.5 8.1.2)


def parse(data: bytes, limits: Limits) -> Parsed:
    """Find the header and the pixel data. Raises InputError for what is not a DICOM image file or is cut off."""
    if data[128:132] == b"DICM":
        offset = 132
    # no preamble: begins with a low tag of group 2 or 8
    elif re.match(rb"[\x02\x08]\0[\0-\x1f]\0", data, re.S):
        offset = 0
    else:
        raise InputError("not_an_image", "it is neither a DICOM nor a PNG nor a JPEG file")
    stream = BytesIO(data)
    stream.seek(offset)
    meta = FileMetaDataset(_dataset(stream, len(data), False, True, lambda tag, vr, length: tag >> 16 != 2))
    check_class(meta)
    syntax = text(meta, "TransferSyntaxUID")
    # the first element shows which, having a VR or not; big endian always comes with a meta header
    if not syntax:
        syntax = EXPLICIT if data[stream.tell() + 4 : stream.tell() + 6].isalpha() else IMPLICIT
    begin = stream.tell()
    if syntax == DEFLATED:
        data, begin = _inflate(data[begin:], limits), 0
    parsed: Parsed | None = None
    failed: Exception | None = None
    try:
        parsed = _find_pixels(data, begin, syntax)
    # pydicom raises anything on a damaged file
    except Exception as error:
        failed = error
    if parsed is None or parsed.start == parsed.end:
        try:
            mended = _with_known_vrs(data, begin, syntax)
        except _Stuck as stuck:
            # what pydicom made of the rest says nothing; but without a sound element before, the file is not
            # DICOM
            if stuck.at > begin and (isinstance(failed, _BadHeader) or not isinstance(failed, InputError)):
                raise InputError("unreadable", str(stuck)) from None
            mended = None
        if mended is not None:
            parsed = _find_pixels(mended, begin, syntax)
    if parsed is None:
        raise failed or _BadHeader("unreadable", DAMAGED)
    parsed.header.file_meta = meta
    return parsed


def check_class(meta: Dataset) -> None:
    """Refuse an index of files."""
    if text(meta, "MediaStorageSOPClassUID") == DICOMDIR_CLASS:
        raise InputError("not_an_image", "a DICOMDIR is an index; give the image files")


def _find_pixels(data: bytes, begin: int, syntax: str) -> Parsed:
    found: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if min(PIXELS) <= tag <= PIXEL_DATA:
            found.append((tag, vr, length))
        return tag >= min(PIXELS)

    stream = BytesIO(data)
    stream.seek(begin)
    header = _dataset(stream, len(data), syntax == IMPLICIT, syntax != BIG_ENDIAN, at_pixels)
    if not found or found[-1][0] > PIXEL_DATA:
        return Parsed(header, syntax, data, 0, 0, False)
    tag, vr, length = found[-1]
    if tag != PIXEL_DATA:
        raise InputError("unreadable", FLOATING)
    start = stream.tell() + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8)
    if length == UNDEFINED:
        return Parsed(header, syntax, data, start, _end_of_fragments(data, start), True)
    if start + length > len(data):
        missing = start + length - len(data)
        raise InputError("truncated", f"{missing} of {length} bytes of pixel data are missing")
    return Parsed(header, syntax, data, start, start + length, False, vr == VR.OW)


def _dataset(
    stream: BytesIO, end: int, implicit: bool, little: bool, stop: Callable[[Any, str | None, int], bool]
) -> Dataset:
    """`pydicom.filereader.read_dataset`, which by itself says nothing of a data set that is cut off."""
    begin, counted = stream.tell(), Counted(stream)
    last, misplaced = -1, 0

    def checked(tag: int, vr: str | None, length: int) -> bool:
        nonlocal last, misplaced
        misplaced += tag <= last
        if misplaced > MOST_MISPLACED:
            raise _BadHeader("unreadable", "its header is not a list of elements: their tags do not ascend")
        last = tag
        return stop(tag, vr, length)

    try:
        dataset = parse_dataset(cast(BinaryIO, counted), implicit, little, stop_when=checked)
        if stream.tell() >= end > begin:
            if not len(dataset):  # what pydicom makes of a data set that ends inside a sequence
                raise EOFError
            try:
                raw = dataset.get_item(max(dataset.keys()))
            except NotImplementedError:
                # pydicom knows no such VR
                raw = None
            value, length = getattr(raw, "value", None), getattr(raw, "length", 0)
            if isinstance(value, bytes) and length != UNDEFINED and len(value) < length:
                raise EOFError
    except (EOFError, OSError, struct.error):
        # pydicom makes its own error of what is raised at an item
        if counted.left < 0:
            counted.read()
        if stream.tell() >= end:
            raise _BadHeader("truncated", "the file ends inside its header") from None
        raise _BadHeader("unreadable", DAMAGED) from None
    return dataset


def _inflate(deflated: bytes, limits: Limits) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(deflated, limits.max_inflated_bytes + 1)
    except zlib.error:
        raise InputError("unreadable", "the deflated data set is damaged") from None
    if len(data) > limits.max_inflated_bytes:
        most = limits.max_inflated_bytes
        raise InputError("decompression_bomb", f"{len(deflated)} deflated bytes unfold to more than {most}")
    if not inflater.eof:
        raise InputError("truncated", "the deflated data set ends early")
    return data


def _end_of_fragments(data: bytes, position: int) -> int:
    """Walk the items of encapsulated pixel data (PS3.5 A.4) to behind their delimiter."""
    for _ in range(MOST_FRAGMENTS):
        if position + 8 > len(data):
            raise InputError("truncated", "the file ends inside the compressed pixel data")
        tag, length = struct.unpack_from("<4sL", data, position)
        if tag == b"\xfe\xff\xdd\xe0":
            return position + 8
        if tag != FRAGMENT or length == UNDEFINED:
            raise InputError("unreadable", "the compressed pixel data are not in proper fragments")
        position += 8 + length
    raise InputError("unreadable", f"the compressed pixel data are in more than {MOST_FRAGMENTS} fragments")


def fragments_of(value: bytes) -> list[bytes]:
    """Take the fragments out of encapsulated pixel data, without the basic offset table (PS3.5 A.4)."""
    found, position = [], 0
    while position + 8 <= len(value) and value[position : position + 4] == FRAGMENT:
        length = struct.unpack_from("<L", value, position + 4)[0]
        found.append(value[position + 8 : position + 8 + length])
        position += 8 + length
    return found[1:]


# Unknown VRs


def _with_known_vrs(data: bytes, begin: int, syntax: str) -> bytes | None:
    """Write a VR for every one that is unknown; None where there is none to write.

    VRs that are to come have a 32-bit length (PS3.5 6.2.2, 7.1.2). What is no VR at all ("??", zeros, lower case) may
    stand before a 16-bit length, too, and some elements have no VR: the form is taken by which an element follows the
    value. pydicom takes letters for a VR with a 16-bit length, and all else for an element without a VR. Raises _Stuck.
    """
    if syntax == IMPLICIT:
        return None
    walk = _Walk(bytearray(data), "<" if syntax != BIG_ENDIAN else ">")
    try:
        walk.elements(begin, len(data))
    except (struct.error, RecursionError):
        return None
    return bytes(walk.data) if walk.changed else None


class _Stuck(Exception):
    """No form of an element fits."""

    def __init__(self, at: int, tag: int) -> None:
        super().__init__(
            f"the header cannot be read at element ({tag >> 16:04X},{tag & 0xFFFF:04X}): it has no VR of the standard, "
            "and no element follows it"
        )
        self.at = at


class _Form(NamedTuple):
    """How an element whose VR is unknown may be read."""

    vr: bytes | None  # to be written for it; None: it has none, as in implicit VR
    value: int
    length: int


class _Walk:
    """A walk over explicit-VR elements. Positions are offsets into `data`."""

    def __init__(self, data: bytearray, order: str) -> None:
        self.data, self.order, self.changed = data, order, False
        self.left = MOST_PIECES
        # the element before had no VR
        self.implicit = False

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise struct.error

    def tag(self, at: int) -> int:
        group, element = struct.unpack_from(self.order + "2H", self.data, at)
        return int(group) << 16 | int(element)

    def length(self, at: int) -> int:
        return int(struct.unpack_from(self.order + "L", self.data, at)[0])

    def elements(self, at: int, end: int) -> int:
        """Walk to the pixel data, to the end of the item or to `end`; returns where that is."""
        while at + 8 <= end:
            self.count()
            tag = self.tag(at)
            if tag == ITEM_END:
                return at + 8
            if tag >= min(PIXELS):
                return at
            vr = bytes(self.data[at + 4 : at + 6])
            if vr not in KNOWN_VRS:
                at = self.unknown(at, tag, end)
                continue
            self.implicit = False
            if vr not in LONG_VRS:
                at += 8 + int(struct.unpack_from(self.order + "H", self.data, at + 6)[0])
            elif (length := self.length(at + 8)) != UNDEFINED:
                at += 12 + length
            else:
                at = self.items(at + 12, end)
        return at

    def items(self, at: int, end: int) -> int:
        """Walk the items of a sequence of undefined length, to behind its delimiter."""
        while at + 8 <= end:
            self.count()
            tag, length = self.tag(at), self.length(at + 4)
            at += 8
            if tag == SEQUENCE_END:
                return at
            if tag != ITEM:
                raise struct.error
            at = self.elements(at, end) if length == UNDEFINED else at + length
        return at

    def unknown(self, at: int, tag: int, end: int) -> int:
        """Write a VR for the unknown one of this element; returns where the next begins."""
        for form in self.forms(at, tag):
            if not self.fits(form, tag, AHEAD):
                continue
            self.implicit = form.vr is None
            if form.vr is not None:
                self.data[at + 4 : at + 6] = form.vr
                self.changed = True
            return self.items(form.value, end) if form.length == UNDEFINED else form.value + form.length
        # a data set in implicit VR that is cut off, whatever the transfer syntax says
        if self.implicit:
            raise struct.error
        raise _Stuck(at, tag)

    def forms(self, at: int, tag: int) -> Iterator[_Form]:
        if self.data[at + 6 : at + 8] == b"\0\0" and at + 12 <= len(self.data):
            yield _Form(b"UN", at + 12, self.length(at + 8))
        yield _Form(_short_vr(tag), at + 8, int(struct.unpack_from(self.order + "H", self.data, at + 6)[0]))
        yield _Form(None, at + 8, self.length(at + 4))

    def fits(self, form: _Form, tag: int, ahead: int) -> bool:
        """Tell whether the value is followed by an element with a greater tag, the end of an item, or the end
        of the file."""
        self.count()
        after = form.value + (0 if form.length == UNDEFINED else form.length)
        if after == len(self.data):
            return form.length != UNDEFINED
        if after + 8 > len(self.data):
            return False
        following = self.tag(after)
        if form.length == UNDEFINED:
            return following in (ITEM, SEQUENCE_END)
        if following == ITEM_END:
            return True
        if following <= tag:
            return False
        if following in PIXELS or bytes(self.data[after + 4 : after + 6]) in KNOWN_VRS or not ahead:
            return True
        return any(self.fits(one, following, ahead - 1) for one in self.forms(after, following))


def _short_vr(tag: int) -> bytes:
    """Return the VR of an attribute of the standard, of any other LO; if that VR has a 32-bit length, LO as
    well."""
    try:
        # the first of "US or SS"
        vr = dictionary_VR(tag)[:2].encode()
    except KeyError:
        return b"LO"
    return b"LO" if vr in LONG_VRS else vr
