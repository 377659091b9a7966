"""Kinds of DICOM files that were once read wrongly, without a word, or never to an end. The right pixels are by the
standard's formula or by pydicom's own decoder."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from encoder.radiograph import InputError, read
from tests.encoder.test_grey_levels import (
    EIGHT,
    FILM,
    JLS_12,
    PLAIN,
    j2k,
    jpeg,
    small,
    stream,
    windowed,
    written,
)
from tests.encoder.test_radiograph import dataset, frame_of, save, scaled
from train.datasets.films import film_header

# 8-bit pixels as words: PS3.5 8.1.2. Big endian swaps the two bytes of a word.


@pytest.mark.parametrize("columns", [48, 47])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("vr", ["OW", "OB"])
@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ExplicitVRLittleEndian])
def test_eight_bits_as_words_are_swapped_as_pydicom_swaps_them(syntax, vr, colours, columns, tmp_path):
    pixels = EIGHT[:39, :columns]
    ds = dataset(pixels if colours == 1 else np.repeat(pixels[..., None], 3, axis=2), 8, syntax)
    if colours == 3:
        ds.PhotometricInterpretation = "RGB"
    raw = ds.PixelData + b"\0" * (len(ds.PixelData) % 2)
    if vr == "OW" and syntax == ExplicitVRBigEndian:
        raw = np.frombuffer(raw, "<u2").astype(">u2").tobytes()
    ds.PixelData = raw
    ds["PixelData"].VR = vr
    path = save(ds, tmp_path / "x.dcm")
    truth = dcmread(path).pixel_array
    assert np.array_equal(truth if colours == 1 else truth[..., 0], pixels)
    for source in (path, dcmread(path)):
        assert np.abs(read(source).pixels - scaled(pixels)).max() < 1e-6


# One sample a pixel by the header, three equal channels in the stream: what the header says of greys is of them.

E = EIGHT.astype(np.float64)
FRAMED = EIGHT.copy()
FRAMED[:4] = 255
JOINED: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "MONOCHROME2": (EIGHT, {}, scaled(E)),
    "MONOCHROME1": (EIGHT, {"PhotometricInterpretation": "MONOCHROME1"}, 1 - scaled(E)),
    "a negative slope": (EIGHT, {"RescaleSlope": -1, "RescaleIntercept": 255}, 1 - scaled(E)),
    "a window": (EIGHT, {"WindowCenter": 90, "WindowWidth": 80}, scaled(windowed(E, 90, 80))),
    "a window after a rescale": (
        EIGHT, {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 90, "WindowWidth": 80},
        scaled(windowed(2 * E - 100, 90, 80)),
    ),
    "padding": (
        FRAMED, {"PixelPaddingValue": 255, "PhotometricInterpretation": "MONOCHROME1"},
        np.concatenate([np.zeros_like(E[:4]), 1 - scaled(E[4:])]),
    ),
    "signed": (EIGHT ^ 128, {"PixelRepresentation": 1}, scaled(E)),
}  # fmt: skip


# JPEG moves levels, which then are no padding, or other numbers
@pytest.mark.parametrize(
    ("case", "coding"),
    [(case, "JPEG 2000") for case in JOINED]
    + [(case, "JPEG") for case in JOINED if case not in ("padding", "signed")],
)
def test_three_equal_channels_are_a_film_where_the_header_says_one(case, coding, tmp_path):
    pixels, tags, wanted = JOINED[case]
    channels = np.repeat(pixels[..., None], 3, axis=2)
    if coding == "JPEG 2000":
        ds, tolerance = stream(JPEG2000Lossless, j2k(channels), 8, 8, **tags), 1e-6
    else:
        ds, tolerance = stream(JPEGBaseline8Bit, jpeg(channels), 8, 8, **tags), 0.12
    ds.SamplesPerPixel = 1
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - wanted).max() < tolerance
    assert [w.code for w in radiograph.warnings] == ["header_conflict", "low_resolution"]


def test_three_equal_channels_are_looked_up_in_the_palette(tmp_path):
    ds = stream(JPEG2000Lossless, j2k(np.repeat(EIGHT[..., None], 3, axis=2)), 8, 8)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        table = ((255 - np.arange(256)) * 257).astype("<u2")
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", table.tobytes())
    assert np.abs(read(save(ds, tmp_path / "x.dcm")).pixels - (1 - scaled(E))).max() < 1e-6


# Rescale: float64 has 53 bits, so that beyond 2^53 neighbouring greys coincide.


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("slope", "intercept", "coincides"),
    [
        ("1", "1e15", False), ("1", "9e15", False), ("1", "1e16", True), ("1", "1e17", True), ("1", "-1e18", True),
        ("-1", "1e17", True), ("1e3", "1e17", False), ("1e-9", "1e9", True), ("0.1", "-1000", False),
    ],
)  # fmt: skip
def test_a_rescale_under_which_greys_coincide_is_left_out(slope, intercept, coincides, photometric, tmp_path):
    exact = np.unique(FILM).astype(np.longdouble) * np.longdouble(slope) + np.longdouble(intercept)
    assert coincides == (len(np.unique(exact.astype(np.float64))) < len(exact))
    ds = dataset(FILM, 12, PhotometricInterpretation=photometric)
    written(ds, "RescaleSlope", slope.encode())
    written(ds, "RescaleIntercept", intercept.encode())
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert ("bad_rescale" in [w.code for w in radiograph.warnings]) == coincides
    inverted = (photometric == "MONOCHROME1") != slope.startswith("-")
    assert np.abs(radiograph.pixels - (1 - PLAIN if inverted else PLAIN)).max() < 1e-3


# What begins as a DICOM file and is none. Each is 4 MB, which took 8 s or more.

START = b"\0" * 128 + b"DICM"
SIZE = 4 << 20


def meta(syntax: str) -> bytes:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    return START + b"\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid


def sequence(items: bytes) -> bytes:
    return b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + items


def pixels_of(fragments: bytes) -> bytes:
    return b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + fragments


def deflated(data: bytes) -> bytes:
    by = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return by.compress(data) + by.flush()


ITEM, OPEN_ITEM = b"\xfe\xff\0\xe0\0\0\0\0", b"\xfe\xff\0\xe0\xff\xff\xff\xff"
EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
ENDLESS: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: START + bytes(SIZE),
    "zeros, implicit": lambda: meta(IMPLICIT) + bytes(SIZE),
    "zeros, explicit": lambda: meta(EXPLICIT) + bytes(SIZE),
    "zeros, big endian": lambda: meta(BIG) + bytes(SIZE),
    "zeros, deflated": lambda: meta("1.2.840.10008.1.2.1.99") + deflated(bytes(SIZE)),
    "one element again and again": lambda: meta(EXPLICIT) + b"\x10\0\x10\0PN\0\0" * (SIZE // 8),
    "a meta header without end": lambda: START + b"\x02\0\x10\0UI\0\0" * (SIZE // 8),
    "ascending tags": lambda: (
        meta(EXPLICIT)
        + b"".join(
            struct.pack("<2H2sH", 0x11 + n // 65536 * 2, n % 65536, b"LO", 0) for n in range(SIZE // 8)
        )
    ),
    "a sequence of empty items": lambda: meta(EXPLICIT) + sequence(ITEM * (SIZE // 8)),
    "an item of zeros": lambda: meta(EXPLICIT) + sequence(OPEN_ITEM + bytes(SIZE)),
    "empty fragments": lambda: meta("1.2.840.10008.1.2.4.70") + pixels_of(ITEM * (SIZE // 8)),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_is_no_header_is_refused_at_once(case):
    data = ENDLESS[case]()
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        read(data)
    assert time.process_time() - began < 2
    assert caught.value.code == "unreadable"
    assert any(words in caught.value.message for words in ("element", "fragments"))


def test_a_hundred_megabytes_of_zeros_are_refused_at_once():
    began = time.process_time()
    with pytest.raises(InputError, match="do not ascend"):
        read(START + bytes(100 << 20))
    assert time.process_time() - began < 1


def test_a_header_of_thousands_of_elements_some_out_of_place_is_read(tmp_path):
    ds = dataset(FILM, 12)
    for n in range(5000):
        ds.add_new(0x00110000 + 0x1000 + n, "LO", str(n))
    data = save(ds, tmp_path / "x.dcm").read_bytes()
    at = data.index(b"\x28\0\x02\0")
    # a hundred elements of a lower group before the pixels' description
    late = b"".join(struct.pack("<2H2sH", 9, 0x1000 + n % 2, b"LO", 0) for n in range(100))
    assert np.abs(read(data[:at] + late + data[at:]).pixels - PLAIN).max() < 1e-6


def test_grouping_leaves_what_is_no_header_at_once(tmp_path):
    path = tmp_path / "zeros.dcm"
    path.write_bytes(START + bytes(SIZE))
    began = time.process_time()
    assert film_header(path) is None
    assert time.process_time() - began < 1


# Elements whose VR is none: PS3.5 7.1.2 has two forms of an element with a VR, and one without.


def with_private(values: list[bytes], form: str, vr: bytes, syntax: str, nested: bool, path: Path) -> bytes:
    """The film with private elements of this VR, beside or inside a sequence."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    ds = dataset(FILM, 12, syntax)
    body = b""
    for n, value in enumerate(values):
        head = struct.pack(order + "2H", 0x0009, 0x1001 + n)
        if form == "16 bits":
            body += head + vr + struct.pack(order + "H", len(value)) + value
        else:
            body += head + vr + b"\0\0" + struct.pack(order + "L", len(value)) + value
    if nested:
        item, end, close = (
            struct.pack(order + "2HL", 0xFFFE, element, length)
            for element, length in ((0xE000, 0xFFFFFFFF), (0xE00D, 0), (0xE0DD, 0))
        )
        body = struct.pack(order + "2H2sHL", 9, 0x0FFF, b"SQ", 0, 0xFFFFFFFF) + item + body + end + close
    data = save(ds, path).read_bytes()
    # before the body part, the first element of group 0018
    at = data.index(struct.pack(order + "2H", 0x0018, 0x0015))
    return data[:at] + body + data[at:]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("form", ["16 bits", "32 bits"])
@pytest.mark.parametrize("vr", [b"??", b"\0\0", b"lo", b"  ", b"ZZ", b"-1"])
@pytest.mark.parametrize("values", [[b"hello "], [b""], [b"one ", b"", b"\x30\0\x10\0\x40\0"]])
def test_what_has_no_vr_is_read_past(values, vr, form, syntax, nested, tmp_path):
    radiograph = read(with_private(values, form, vr, syntax, nested, tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - PLAIN).max() < 1e-6
    assert radiograph.header.body_part == "CHEST"


@pytest.mark.parametrize("vr", [b"??", b"\0\0", b"us"])
def test_a_known_element_without_a_vr_has_its_dictionarys(vr, tmp_path):
    """Rows, Columns and WindowCenter are needed, and their VRs are in PS3.6."""
    data = save(dataset(FILM, 12, WindowCenter=900, WindowWidth=1500), tmp_path / "x.dcm").read_bytes()
    for tag, known in ((b"\x28\0\x10\0", b"US"), (b"\x28\0\x11\0", b"US"), (b"\x28\0\x50\x10", b"DS")):
        assert data.count(tag + known) == 1
        data = data.replace(tag + known, tag + vr)
    assert np.abs(read(data).pixels - scaled(windowed(FILM, 900, 1500))).max() < 1e-6


def test_an_element_without_a_vr_before_a_film_that_is_mostly_black(tmp_path):
    """Read without a VR, its length is 409,407 bytes, which end among the zeros of the background."""
    film = np.zeros((700, 700), np.uint16)
    film[-40:, -48:] = FILM
    element = struct.pack("<2H2sH", 9, 0x1001, b"??", 6) + b"hello "
    data = save(dataset(film, 12), tmp_path / "x.dcm").read_bytes()
    at = data.index(b"\x18\0\x15\0CS")
    assert np.abs(read(data[:at] + element + data[at:]).pixels - scaled(film)).max() < 1e-6
    with pytest.raises(InputError, match=r"\(0009,1001\)"):
        read(data[:at] + element[:6] + b"\xff\x7f" + element[8:] + data[at:])


def test_an_element_that_no_form_fits_is_named(tmp_path):
    data = with_private([b"hello "], "16 bits", b"??", ExplicitVRLittleEndian, False, tmp_path / "x.dcm")
    at = data.index(b"??")
    for length in (7, 999, 40_000):
        with pytest.raises(InputError) as caught:
            read(data[: at + 2] + struct.pack("<H", length) + data[at + 4 :])
        assert caught.value.code == "unreadable" and "(0009,1001)" in caught.value.message


def test_an_implicit_sequence_in_an_explicit_film_is_read_past(tmp_path):
    """Some writers change to implicit VR inside a sequence, which pydicom reads; beside it, an element of VR ??."""
    item = struct.pack("<2HL", 8, 0x1150, 6) + b"1.2.3\0" + struct.pack("<2HL", 8, 0x1155, 4) + b"1.2\0"
    items = OPEN_ITEM + item + struct.pack("<2HL2HL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    data = with_private([b"hello "], "16 bits", b"??", ExplicitVRLittleEndian, False, tmp_path / "x.dcm")
    at = data.index(b"\x09\0\x01\x10??")
    spoilt = data[:at] + sequence(items) + data[at:]
    assert np.abs(read(spoilt).pixels - PLAIN).max() < 1e-6


@pytest.mark.parametrize(
    "spacing", [["1e308", "1e-308"], ["1e-308", "1e308"], ["1e200", "1e-200"], ["5", "0.5"]]
)
def test_a_ratio_that_is_not_credible_is_said_whatever_its_size(spacing, tmp_path):
    radiograph = read(save(dataset(FILM, 12, PixelSpacing=spacing), tmp_path / "x.dcm"))
    (told,) = [w for w in radiograph.warnings if w.code == "not_square"]
    assert "not credible" in told.message and "inf" not in told.message
    assert np.abs(radiograph.pixels - PLAIN).max() < 1e-6


@pytest.mark.parametrize(("allocated", "bits"), [(32, 12), (1, 1), (12, 12), (16, 17)])
def test_bits_that_cannot_be_are_said_as_they_were_got(allocated, bits, tmp_path):
    ds = dataset(FILM, 12)
    ds.BitsAllocated, ds.BitsStored = allocated, bits
    with pytest.raises(InputError) as caught:
        read(save(ds, tmp_path / "x.dcm"))
    assert caught.value.code == "unreadable"
    assert f"{bits} bits" in caught.value.message and f"{allocated} allocated" in caught.value.message


@pytest.mark.parametrize("between", [b"", b"\0", b"\0\0"])
@pytest.mark.parametrize("coding", ["JPEG", "JPEG-LS", "JPEG 2000", "JP2"])
def test_a_second_image_in_the_fragment_of_the_first_is_refused(coding, between, tmp_path):
    boxed = frame_of(FILM, "JPEG2000", irreversible=False)
    ds, frame = {
        "JPEG": (stream(JPEGBaseline8Bit, jpeg(EIGHT), 8, 8), jpeg(EIGHT)),
        "JPEG-LS": (small(JLS_12, 16, 12), JLS_12),
        "JPEG 2000": (stream(JPEG2000Lossless, j2k(FILM), 16, 12), j2k(FILM)),
        "JP2": (stream(JPEG2000Lossless, boxed, 16, 12), boxed),
    }[coding]
    assert read(save(ds, tmp_path / "x.dcm")).pixels.any()
    ds.PixelData = encapsulate([frame + between + frame])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(InputError) as caught:
        read(save(ds, tmp_path / "x.dcm"))
    assert caught.value.code == "multi_frame"
