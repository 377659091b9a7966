"""Films as hospitals write them, with the right pixels by the standard's formula and never by our reader.

Each case: how the file is made, what its pixels must be (or the code of the refusal), and what must be said of it.
"""

from __future__ import annotations

import base64
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from encoder.radiograph import CODES, InputError, read
from tests.encoder.test_radiograph import GAMMA, compressed, dataset, frame_of, lut, save, scaled, stored

RNG = np.random.default_rng(7)
H, W = 40, 48
# A film: smooth, with a little noise, of 12 bits.
FILM = (
    (np.add.outer(np.arange(H) * 60.0, np.arange(W) * 30.0) + RNG.normal(0, 20, (H, W)))
    .clip(0, 4095)
    .astype(np.uint16)
)
OVERLAY = np.zeros((H, W), np.uint16)
OVERLAY[10:20, 10:30] = 1
GARBAGE = RNG.integers(0, 16, (H, W)).astype(np.uint16)
# The film as signed numbers, and those as two's complement of 12 bits.
SIGNED = FILM.astype(np.int16) - 2048
TWOS = (SIGNED.astype(np.int32) & 0xFFF).astype(np.uint16)
EIGHT = (FILM >> 4).astype(np.uint8)


# Encoders


def by_gdcm(pixels: np.ndarray, bits: int, process: str, folder: Path) -> bytes:
    """The frame that gdcm makes of unsigned pixels."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(save(dataset(pixels, bits), folder / "plain.dcm")))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, process)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(folder / "coded.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return get_frame(dcmread(folder / "coded.dcm").PixelData, 0, number_of_frames=1)


def lossless_jpeg(pixels: np.ndarray, precision: int) -> bytes:
    """ISO 10918-1 H: the difference from the left neighbour (of the first column, from above; of the first pixel, from
    half the range), its length in bits as a code of 5 bits, then the bits."""
    x = pixels.astype(np.int64)
    predicted = np.empty_like(x)
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = x[:, :-1], x[:-1, 0], 1 << (precision - 1)
    bits = []
    for d in (((x - predicted + 32768) & 0xFFFF) - 32768).ravel().tolist():
        n = abs(d).bit_length()
        bits.append(f"{n:05b}" + (f"{d if d > 0 else d + (1 << n) - 1:0{n}b}" if 0 < n < 16 else ""))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    rows, columns = pixels.shape
    frame = b"\xff\xc3" + struct.pack(">HBHHB3B", 11, precision, rows, columns, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB16B", 19 + 17, 0, 0, 0, 0, 0, 17, *[0] * 11) + bytes(range(17))
    return (
        b"\xff\xd8"
        + frame
        + table
        + b"\xff\xda"
        + struct.pack(">HB5B", 8, 1, 1, 0, 1, 0, 0)
        + scan
        + b"\xff\xd9"
    )


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    return frame_of(pixels, "JPEG", quality=92, **options)


def j2k(pixels: np.ndarray) -> bytes:
    return frame_of(pixels, "JPEG2000", no_jp2=True, irreversible=False)


def stream(syntax: str, frame: bytes, allocated: int, bits: int, **tags: Any) -> Dataset:
    """A file of H x W pixels with this frame, and a header that says these bits."""
    like = np.zeros((H, W), np.uint8 if allocated == 8 else np.uint16)
    return compressed(like, bits, syntax, frame, **tags)


def written(ds: Dataset, key: str, value: bytes) -> Dataset:
    """A decimal string as it stands in the file, right or wrong."""
    ds.add_new(key, "LO", value.decode())
    return ds


# gdcm writes all of a cell's bits. These are of CharLS by way of pyjpegls: 12 bits a sample, of
# 200 * row + 110 * column, and of the same less 2,048 as two's complement.
SMALL = np.add.outer(np.arange(12) * 200, np.arange(16) * 110)
JLS_12 = base64.b64decode(
    b"/9j/9wALDAAMABABAREA/9oACAEBAAAAAIWxbbIttlrtVptFns1lsljsUCgLjabDWajSaDOZjKZDGYjCFw9F8vF0uFstFksFcrFU"
    b"qFMpG0aygTycTSYSyUSSQRyMRSIQzYLhBID+/Pr49vTy8O7s6uhrE1ycXBvbm1sa2ppaGdmZTUfmNiYWBgX15eXV1cXFtbNIaLLh"
    b"w3bt2zZq0aM2bI0BYxYMF69euXLly1atWGcJlapUqVKlKlSpUqFCgzBEnTJkyZMmVVVVVVVMoH1E000000000000zID/2Q=="
)
JLS_12_SIGNED = base64.b64decode(
    b"/9j/9wALDAAMABABAREA/9oACAEBAAAAAAAAAAAf/RbbLXarTaLPZrLZLHYrDYK/AoC42mw1mo0mgzmYymQxmIwhcPRfLxdLhbLR"
    b"ZLBXKxVKhTKRtGsoE8nE0mEslEkkEcjEUiBbAnl0hEEgP78+vj29PLwSUACg2Cg6ujm5OLg4N7c6oGO2NZrERpaGdmZWRjYkDGYm"
    b"FgYDUeV5dXFxbW0GKtLS05cuDSGTds1amyxGjNmyZMmLE0BUvXDNBhrVixYsVq1aszhIfoMJQoTp06dOnTJkxmCLYKZMmSpUqVKq"
    b"qqqoZQD/2Q=="
)


assert JLS_12[2:7] == JLS_12_SIGNED[2:7] == b"\xff\xf7\0\x0b\x0c"


def small(frame: bytes, allocated: int, bits: int, **tags: Any) -> Dataset:
    like = np.zeros(SMALL.shape, np.uint8 if allocated == 8 else np.uint16)
    return compressed(like, bits, JPEGLSLossless, frame, **tags)


# Window: PS3.3 C.11.2.1.2


def windowed(x: np.ndarray, c: float, w: float) -> np.ndarray:
    return ((x - (c - 0.5)) / (w - 1) + 0.5).clip(0, 1)


PLAIN = scaled(FILM)
BAD_WINDOWS = {
    "decimal commas": (b"1024,5", b"1500,0"),
    "NaN": (b"nan", b"1500"),
    "infinity": (b"1024", b"inf"),
    "empty": (b"", b""),
    "a width alone": (b"", b"1500"),
    "zero width": (b"1024", b"0"),
    "negative width": (b"1024", b"-1500"),
    "words": (b"normal", b"wide"),
    "underscores": (b"1_024", b"1_500"),
    "too large": (b"1e400", b"1500"),
    "beyond the film": (b"1e300", b"10"),
    "swallows the film": (b"0", b"1e308"),
}


@pytest.mark.parametrize("case", BAD_WINDOWS)
def test_a_bad_window_is_said_and_the_full_range_shown(case, tmp_path):
    ds = dataset(FILM, 12)
    for key, value in zip(("WindowCenter", "WindowWidth"), BAD_WINDOWS[case], strict=True):
        written(ds, key, value)
    path = save(ds, tmp_path / "x.dcm")
    # the same letters, but said to be numbers
    data = path.read_bytes()
    for tag in (b"\x28\0\x50\x10", b"\x28\0\x51\x10"):
        data = data.replace(tag + b"LO", tag + b"DS")
    radiograph = read(data)
    assert [w.code for w in radiograph.warnings] == ["bad_window", "low_resolution"], case
    assert "indow" in radiograph.warnings[0].message
    assert np.abs(radiograph.pixels - PLAIN).max() < 1e-6


def test_a_bad_window_beside_a_good_one_gives_the_good_one(tmp_path):
    ds = dataset(FILM, 12, WindowCenter=[1024, 900], WindowWidth=[0, 1500])
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert radiograph.warnings[0].code == "bad_window"
    assert np.abs(radiograph.pixels - scaled(windowed(FILM, 900, 1500))).max() < 1e-6
    ds = dataset(FILM, 12, WindowCenter=900, WindowWidth=1500, VOILUTSequence=[Dataset()])
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert "VOILUTSequence" in radiograph.warnings[0].message
    assert np.abs(radiograph.pixels - scaled(windowed(FILM, 900, 1500))).max() < 1e-6


# Which bits are the pixel: PS3.5 8.1.1, 8.2. Files are made of numbers; expected are those numbers.

BITS: dict[str, tuple[Callable[[Path], Dataset], np.ndarray, set[str]]] = {
    "HighBit 15 of 12 bits: the value lies in the upper bits": (
        lambda _: dataset(FILM << 4 | GARBAGE, 12, HighBit=15), FILM, set(),
    ),
    "HighBit 13 of 12 bits, garbage on both sides": (
        lambda _: dataset(FILM << 2 | GARBAGE & 3 | (GARBAGE & 12) << 12, 12, HighBit=13), FILM, set(),
    ),
    "HighBit 15 of 12 bits, signed": (
        lambda _: dataset(TWOS << 4 | GARBAGE, 12, HighBit=15, PixelRepresentation=1), SIGNED, set(),
    ),
    "HighBit that cannot be": (lambda _: dataset(FILM, 12, HighBit=3), FILM, {"header_conflict"}),
    "garbage above, unsigned": (lambda _: dataset(FILM | GARBAGE << 12, 12), FILM, set()),
    "garbage above, signed": (
        lambda _: dataset(TWOS | GARBAGE << 12, 12, PixelRepresentation=1), SIGNED, set(),
    ),
    "RLE, garbage above": (lambda _: rle(dataset(FILM | GARBAGE << 12, 12)), FILM, set()),
    "RLE, HighBit 15": (lambda _: rle(dataset(FILM << 4 | GARBAGE, 12, HighBit=15)), FILM, set()),
    "JPEG 2000, an overlay above": (
        lambda _: stream(JPEG2000Lossless, j2k(FILM | OVERLAY << 12), 16, 12), FILM, set(),
    ),
    "JPEG 2000, garbage above": (
        lambda _: stream(JPEG2000Lossless, j2k(FILM | GARBAGE << 12), 16, 12), FILM, set(),
    ),
    "JPEG 2000, one bit above everywhere": (
        lambda _: stream(JPEG2000Lossless, j2k(FILM | 1 << 15), 16, 12), FILM, set(),
    ),
    "JPEG 2000, signed, garbage above": (
        lambda _: stream(JPEG2000Lossless, j2k(TWOS | GARBAGE << 12), 16, 12, PixelRepresentation=1), SIGNED, set(),
    ),
    "JPEG 2000, signed numbers in an unsigned stream": (
        lambda _: stream(JPEG2000Lossless, j2k(SIGNED.view(np.uint16)), 16, 16, PixelRepresentation=1), SIGNED, set(),
    ),
    "JPEG 2000, HighBit 15": (
        lambda _: stream(JPEG2000Lossless, j2k(FILM << 4 | GARBAGE), 16, 12, HighBit=15), FILM, set(),
    ),
    "JPEG-LS, an overlay above": (
        lambda p: stream(JPEGLSLossless, by_gdcm(FILM | OVERLAY << 12, 16, "JPEGLSLossless", p), 16, 12), FILM, set(),
    ),
    "JPEG-LS, garbage above": (
        lambda p: stream(JPEGLSLossless, by_gdcm(FILM | GARBAGE << 12, 16, "JPEGLSLossless", p), 16, 12), FILM, set(),
    ),
    "JPEG-LS of 12 bits, signed": (
        lambda _: small(JLS_12_SIGNED, 16, 12, PixelRepresentation=1), SMALL - 2048, set(),
    ),
    "JPEG-LS of 16 bits, 12 signed": (
        lambda p: stream(
            JPEGLSLossless, by_gdcm(TWOS, 12, "JPEGLSLossless", p), 16, 12, PixelRepresentation=1
        ), SIGNED, set(),
    ),
    "JPEG-LS of 12 bits, signed, said to be 16 stored": (
        lambda _: small(JLS_12_SIGNED, 16, 16, PixelRepresentation=1), SMALL - 2048, {"header_conflict"},
    ),
    "JPEG lossless, garbage above": (
        lambda _: stream(JPEGLosslessSV1, lossless_jpeg(FILM | GARBAGE << 12, 16), 16, 12), FILM, set(),
    ),
    "JPEG lossless of 16 bits, 12 signed": (
        lambda _: stream(JPEGLosslessSV1, lossless_jpeg(TWOS, 16), 16, 12, PixelRepresentation=1), SIGNED, set(),
    ),
    "JPEG lossless of 12 bits, 12 signed": (
        lambda _: stream(JPEGLosslessSV1, lossless_jpeg(TWOS, 12), 16, 12, PixelRepresentation=1), SIGNED, set(),
    ),
    # The header cannot be true: the stream has more bits than are allocated.
    "7 of 8 bits beside a JPEG lossless stream of 12": (
        lambda _: stream(JPEGLosslessSV1, lossless_jpeg(FILM, 12), 8, 7), FILM, {"header_conflict"},
    ),
    "7 of 8 bits beside a JPEG lossless stream of 16": (
        lambda _: stream(JPEGLosslessSV1, lossless_jpeg(FILM * 16, 16), 8, 7), FILM, {"header_conflict"},
    ),
    "8 of 8 bits beside a JPEG-LS stream of 12": (lambda _: small(JLS_12, 8, 8), SMALL, {"header_conflict"}),
    "7 of 8 bits beside a JPEG-LS stream of 12": (lambda _: small(JLS_12, 8, 7), SMALL, {"header_conflict"}),
    "8 of 8 signed bits beside a JPEG-LS stream of 12": (
        lambda _: small(JLS_12_SIGNED, 8, 8, PixelRepresentation=1), SMALL - 2048, {"header_conflict"},
    ),
    "8 of 8 bits beside a JPEG 2000 stream of 16": (
        lambda _: stream(JPEG2000Lossless, j2k(FILM * 16), 8, 8), FILM, {"header_conflict"},
    ),
    # It may be true, but cutting off the upper bits would tear the film.
    "12 of 16 bits beside a JPEG 2000 stream that uses 16": (
        lambda _: stream(JPEG2000Lossless, j2k(FILM * 16), 16, 12), FILM, {"header_conflict"},
    ),
    # The stream has fewer: it has the pixels all the same.
    "16 of 16 bits beside a JPEG-LS stream of 12": (lambda _: small(JLS_12, 16, 16), SMALL, set()),
    "12 of 16 bits beside a JPEG-LS stream of 12": (lambda _: small(JLS_12, 16, 12), SMALL, set()),
    "12 of 16 bits beside a JPEG 2000 stream of 8": (
        lambda _: stream(JPEG2000Lossless, j2k(EIGHT), 16, 12), EIGHT, set(),
    ),
    "a transfer syntax that is not the stream's": (
        lambda _: stream(JPEGBaseline8Bit, lossless_jpeg(FILM, 12), 16, 12), FILM, {"header_conflict"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("precision", [*range(8), *range(17, 34), 255])
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEGBaseline8Bit])
def test_a_precision_that_ends_the_process_inside_gdcm_is_refused(syntax, precision, tmp_path):
    frame = {
        JPEGLosslessSV1: lossless_jpeg(FILM, 12), JPEGLSLossless: JLS_12, JPEGBaseline8Bit: jpeg(EIGHT),
    }[syntax]  # fmt: skip
    at = max(frame.find(b"\xff" + marker) for marker in (b"\xc0", b"\xc3", b"\xf7")) + 4
    spoilt = frame[:at] + bytes([precision]) + frame[at + 1 :]
    ds = small(spoilt, 16, 12) if syntax == JPEGLSLossless else stream(syntax, spoilt, 16, 12)
    with pytest.raises(InputError) as caught:
        read(save(ds, tmp_path / "x.dcm"))
    assert caught.value.code == "unreadable" and str(precision) in caught.value.message


def rle(ds: Dataset) -> Dataset:
    """Run-length coded with all bits of the cells; pydicom would look at BitsStored."""
    bits, high, sign = ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 0
    ds.compress(RLELossless)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, high, sign
    return ds


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("case", BITS)
def test_the_bits_of_a_pixel(case, photometric, tmp_path):
    build, expected, warned = BITS[case]
    ds = build(tmp_path)
    ds.PhotometricInterpretation = photometric
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    wanted = scaled(expected.astype(np.int64), invert=photometric == "MONOCHROME1")
    assert np.abs(radiograph.pixels - wanted).max() < 1e-6
    assert {w.code for w in radiograph.warnings} - {"low_resolution"} == warned


def test_a_window_is_of_the_pixels_without_the_overlay(tmp_path):
    ds = stream(JPEG2000Lossless, j2k(FILM | OVERLAY << 12), 16, 12, WindowCenter=900, WindowWidth=1500)
    pixels = read(save(ds, tmp_path / "x.dcm")).pixels
    assert np.abs(pixels - scaled(windowed(FILM, 900, 1500))).max() < 1e-6


def test_what_a_lossy_codec_overshoots_does_not_wrap_to_black(tmp_path):
    """White beside black, at the top of the stored range: the stream says 4,096 and more where the film had 4,095."""
    film = np.full((H, W), 4095, np.int64)
    film[:, ::8] = 3000
    overshot = film + np.where(np.arange(W) % 8 == 1, 6, 0)
    ds = stream("1.2.840.10008.1.2.4.91", j2k(overshot.astype(np.uint16)), 16, 12)
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - scaled(overshot)).max() < 1e-6
    assert [w.code for w in radiograph.warnings] == ["low_resolution"]


# Padding: PS3.3 C.7.5.1.1.2. It is not part of the image, and black.

INNER = np.s_[4:-4, 4:-4]


def framed(film: np.ndarray, value: int) -> np.ndarray:
    frame = np.full_like(film, value)
    frame[INNER] = film[INNER]
    return frame


PADDINGS: dict[str, tuple[np.ndarray, int, str, list[tuple[str, str, int]]]] = {
    # pixels, bits, photometric, padding as (keyword, VR, value)
    "signed, written unsigned": (framed(SIGNED, -2000), 16, "MONOCHROME2", [("Value", "US", 63536)]),
    "signed 12 bits, written unsigned": (framed(SIGNED, -2048), 12, "MONOCHROME2", [("Value", "US", 0xF800)]),
    "signed 12 bits, written as 12 bits": (framed(SIGNED, -2048), 12, "MONOCHROME2", [("Value", "US", 0x800)]),
    "unsigned, written signed": (framed(FILM, 63536), 16, "MONOCHROME2", [("Value", "SS", -2000)]),
    "range, written signed": (
        framed(FILM, 63000), 16, "MONOCHROME2", [("Value", "SS", -2600), ("RangeLimit", "SS", -2000)],
    ),
    "white frame of MONOCHROME1": (framed(FILM, 4095), 12, "MONOCHROME1", [("Value", "US", 4095)]),
    "black frame of MONOCHROME1": (framed(FILM + 10, 0), 12, "MONOCHROME1", [("Value", "US", 0)]),
    "range in MONOCHROME1, from the greater": (
        framed(FILM, 4090), 12, "MONOCHROME1", [("Value", "US", 4095), ("RangeLimit", "US", 4080)],
    ),
    "white frame of MONOCHROME2": (framed(FILM, 4095), 12, "MONOCHROME2", [("Value", "US", 4095)]),
}  # fmt: skip


@pytest.mark.parametrize("windowed_too", [False, True])
@pytest.mark.parametrize("case", PADDINGS)
def test_padding_is_black_and_sets_no_range(case, windowed_too, tmp_path):
    pixels, bits, photometric, tags = PADDINGS[case]
    ds = dataset(pixels, bits, PhotometricInterpretation=photometric)
    for key, vr, value in tags:
        ds.add_new(f"PixelPadding{key}", vr, value)
    image = pixels[INNER].astype(np.float64)
    if windowed_too:
        ds.WindowCenter, ds.WindowWidth = round(float(image.mean())), 1500
        image = windowed(image, round(float(image.mean())), 1500)
    shown = read(save(ds, tmp_path / "x.dcm")).pixels
    assert np.abs(shown[INNER] - scaled(image, invert=photometric == "MONOCHROME1")).max() < 1e-6
    outside = shown.copy()
    outside[INNER] = 0
    assert not outside.any()


def test_a_padding_value_that_frames_nothing_does_not_blacken_bone(tmp_path):
    film = np.clip(FILM, 10, 4000)
    film[20:22, 20:22] = 4095
    ds = dataset(film, 12, PixelPaddingValue=4095)
    shown = read(save(ds, tmp_path / "x.dcm")).pixels
    assert (shown[20:22, 20:22] == 1).all()


# Modality LUT and rescale: PS3.3 C.11.1


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        ("1e308", "0", PLAIN),
        ("-1e308", "0", 1 - PLAIN),
        ("1", "1e308", PLAIN),
        ("nan", "0", PLAIN),
        ("inf", "0", PLAIN),
        ("0", "0", PLAIN),
        ("1,5", "0", PLAIN),
        ("2", "nan", PLAIN),
        ("1e-320", "0", PLAIN),
        ("", "5", PLAIN),
    ],
)
def test_a_bad_rescale_is_said_and_makes_no_nan(slope, intercept, expected, tmp_path):
    ds = dataset(FILM, 12)
    written(ds, "RescaleSlope", slope.encode())
    written(ds, "RescaleIntercept", intercept.encode())
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert np.isfinite(radiograph.pixels).all()
    if slope == "1e-320":
        # too small to be exact, but neither zero nor lost
        assert np.abs(radiograph.pixels - expected).max() < 1e-3
        return
    assert radiograph.warnings[0].code == "bad_rescale" and "Rescale" in radiograph.warnings[0].message
    assert np.abs(radiograph.pixels - expected).max() < 1e-6


def broken_lut(**changes: Any) -> Dataset:
    item = lut(GAMMA, 0, 16)
    for key, value in changes.items():
        if value is None:
            delattr(item, key)
        else:
            item[key].value = value
    return item


BROKEN_LUTS = {
    "no data": broken_lut(LUTData=None),
    "no descriptor": broken_lut(LUTDescriptor=None),
    "descriptor of one number": broken_lut(LUTDescriptor=[4096]),
    "cut off": broken_lut(LUTData=GAMMA.tobytes()[:1000]),
    "one grey": broken_lut(LUTData=bytes(2 * 4096)),
    "65,536 entries, of which 4,096 are there": broken_lut(LUTDescriptor=[0, 0, 16]),
    "empty": Dataset(),
}


@pytest.mark.parametrize("case", BROKEN_LUTS)
def test_a_broken_modality_lut_is_refused_by_its_name(case, tmp_path):
    with pytest.raises(InputError, match="ModalityLUTSequence") as caught:
        read(save(dataset(FILM, 12, ModalityLUTSequence=[BROKEN_LUTS[case]]), tmp_path / "x.dcm"))
    assert caught.value.code == "unreadable" and "Error" not in caught.value.message


@pytest.mark.parametrize("case", BROKEN_LUTS)
def test_a_broken_voi_lut_is_warned_of_by_its_name(case, tmp_path):
    radiograph = read(save(dataset(FILM, 12, VOILUTSequence=[BROKEN_LUTS[case]]), tmp_path / "x.dcm"))
    assert radiograph.warnings[0].code == "bad_window"
    assert "VOILUTSequence" in radiograph.warnings[0].message
    assert np.abs(radiograph.pixels - PLAIN).max() < 1e-6


def test_luts_that_are_no_sequences(tmp_path):
    for key, code in (("ModalityLUTSequence", "unreadable"), ("VOILUTSequence", "")):
        path = save(dataset(FILM, 12, **{key: [lut(GAMMA, 0, 16)]}), tmp_path / "x.dcm")
        tag = {"ModalityLUTSequence": b"\x28\0\0\x30", "VOILUTSequence": b"\x28\0\x10\x30"}[key]
        data = path.read_bytes().replace(tag + b"SQ", tag + b"UT")
        if code:
            with pytest.raises(InputError, match=key):
                read(data)
        else:
            assert key in read(data).warnings[0].message


def test_an_empty_sequence_is_as_none(tmp_path):
    ds = dataset(FILM, 12, ModalityLUTSequence=Sequence([]), RescaleSlope=-1, RescaleIntercept=0)
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - (1 - PLAIN)).max() < 1e-6
    assert radiograph.warnings[0].code == "bad_rescale"


def test_no_nan_or_infinity_leaves_the_reader(tmp_path):
    """Whatever the header says."""
    rng = np.random.default_rng(3)
    numbers = [
        "",
        "0",
        "-0",
        "1",
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e308",
        "-1e308",
        "1e-308",
        "1e400",
        "5e-324",
        "4095",
        "1,5",
    ]
    keys = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")
    functions = ["LINEAR", "LINEAR_EXACT", "SIGMOID", "x", ""]
    seen = 0
    for _ in range(400):
        signed = bool(rng.integers(2))
        ds = dataset(SIGNED if signed else FILM, int(rng.integers(2, 17)), HighBit=int(rng.integers(0, 20)))
        for key in keys:
            if rng.integers(4):
                written(ds, key, str(rng.choice(numbers)).encode())
        ds.VOILUTFunction = str(rng.choice(functions))
        if rng.integers(2):
            ds.add_new("PixelPaddingValue", "US", int(rng.integers(65536)))
            ds.add_new("PixelPaddingRangeLimit", "SS", int(rng.integers(-32768, 32768)))
        ds.PhotometricInterpretation = str(rng.choice(["MONOCHROME1", "MONOCHROME2"]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = read(ds).pixels
        except InputError as error:
            assert error.code in CODES
            continue
        seen += 1
        assert np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1
    assert seen > 300


# Streams that are cut off, but closed by an end marker

LARGE = np.tile(FILM, (4, 4))
LARGE_EIGHT = np.tile(EIGHT, (4, 4))


def cut(frame: bytes, share: float = 0.5) -> bytes:
    start = frame.index(b"\xff\xda") if b"\xff\xda" in frame else 200
    return frame[: start + int((len(frame) - start) * share)].rstrip(b"\xff") + b"\xff\xd9"


CODED: dict[str, tuple[str, Callable[[Path], bytes], int]] = {
    "JPEG baseline": (JPEGBaseline8Bit, lambda _: jpeg(LARGE_EIGHT), 8),
    "JPEG baseline, restarts": (JPEGBaseline8Bit, lambda _: jpeg(LARGE_EIGHT, restart_marker_rows=1), 8),
    "JPEG progressive": (JPEGBaseline8Bit, lambda _: jpeg(LARGE_EIGHT, progressive=True), 8),
    "JPEG lossless": (JPEGLosslessSV1, lambda _: lossless_jpeg(LARGE, 12), 16),
    "JPEG-LS": (JPEGLSLossless, lambda p: by_gdcm(LARGE, 12, "JPEGLSLossless", p), 16),
    "JPEG 2000": (JPEG2000Lossless, lambda _: j2k(LARGE), 16),
}


def film_of(syntax: str, frame: bytes, allocated: int) -> Dataset:
    return compressed(LARGE if allocated == 16 else LARGE_EIGHT, 12 if allocated == 16 else 8, syntax, frame)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("coding", CODED)
def test_half_a_film_is_refused(coding, share, tmp_path, capfd):
    syntax, encode, allocated = CODED[coding]
    frame = encode(tmp_path)
    whole = read(save(film_of(syntax, frame, allocated), tmp_path / "x.dcm"))
    assert {w.code for w in whole.warnings} <= {"low_resolution"}
    with pytest.raises(InputError) as caught:
        read(save(film_of(syntax, cut(frame, share), allocated), tmp_path / "x.dcm"))
    # CharLS and OpenJPEG do not tell a damaged stream from a short one
    assert caught.value.code in ("truncated", "unreadable")
    if coding in ("JPEG baseline", "JPEG lossless"):
        missing = int(caught.value.message.split("about ")[1].split(" %")[0])
        assert abs(missing - 100 * (1 - share)) < 12
    printed = capfd.readouterr()
    assert not printed.out and not printed.err


def test_a_run_length_coded_film_that_is_cut_off(tmp_path):
    ds = dataset(LARGE, 12)
    ds.compress(RLELossless)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(InputError):
        read(save(ds, tmp_path / "x.dcm"))


@pytest.mark.parametrize("coding", ["JPEG baseline", "JPEG baseline, restarts", "JPEG lossless"])
def test_what_is_left_over_in_a_stream_is_said(coding, tmp_path, capfd):
    """More data than the pixels need: some pixels were lost on the way."""
    syntax, encode, allocated = CODED[coding]
    frame = encode(tmp_path)
    longer = frame[:-2] + frame[-62:-2].replace(b"\xff", b"\x11") + b"\xff\xd9"
    radiograph = read(save(film_of(syntax, longer, allocated), tmp_path / "x.dcm"))
    assert radiograph.warnings[0].code == "damaged_pixels"
    assert not capfd.readouterr().err


@pytest.mark.parametrize("step", [-14, 9])
def test_a_lost_bit_that_shifts_all_that_follows_is_said(step):
    """The level of each block of 8 x 8 is stored as the difference from the one before: a wrong one shifts the rest."""
    rng = np.random.default_rng(2)
    film = (np.add.outer(np.arange(256) * 0.4, np.arange(320) * 0.3) + rng.normal(0, 2, (256, 320))).clip(
        40, 200
    )
    blocks = film.shape[1] // 8
    # block 10 in row 12, one near the end of a row; a line across the film, which is no damage; none
    for first, said in (
        (12 * blocks + 10, True),
        (6 * blocks + 30, True),
        (12 * blocks, False),
        (10**6, False),
    ):
        shifted = film.copy()
        for n in range(first, film.size // 64):
            row, column = divmod(n, blocks)
            shifted[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += step
        for options in ({}, {"progressive": True}):
            found = read(jpeg(shifted.astype(np.uint8), **options)).warnings
            assert ("damaged_pixels" in {w.code for w in found}) == said


def test_a_lost_restart_interval_is_said(tmp_path):
    frame = jpeg(LARGE_EIGHT, restart_marker_rows=1)
    third, fourth = frame.index(b"\xff\xd2"), frame.index(b"\xff\xd3")
    shorter = frame[:third] + frame[fourth:]
    radiograph = read(save(film_of(JPEGBaseline8Bit, shorter, 8), tmp_path / "x.dcm"))
    assert radiograph.warnings[0].code == "damaged_pixels"


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 3}]
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_pictures_cut_off_and_closed_are_refused_and_sound_ones_are_not(mode, options):
    buffer = BytesIO()
    Image.fromarray(LARGE_EIGHT).convert(mode).save(buffer, "JPEG", **options)
    sound = buffer.getvalue()
    expected = np.asarray(Image.open(BytesIO(sound)).convert("RGB"))[..., 1]
    # fill bytes before a marker, and anything behind the end, are allowed
    for data in (sound, sound[:-2] + b"\xff" * 5 + b"\xff\xd9", sound + b"\0\0\xff\xd8\xff"):
        radiograph = read(data)
        assert np.array_equal(radiograph.pixels, (expected / 255).astype(np.float32))
        assert {w.code for w in radiograph.warnings} <= {"low_resolution"}
    for share in (0.2, 0.6, 0.95):
        with pytest.raises(InputError) as caught:
            read(cut(sound, share))
        assert caught.value.code == "truncated"


def test_sound_jpegs_of_all_sizes_are_sound():
    rng = np.random.default_rng(5)
    for turn in range(150):
        h, w = (int(n) for n in rng.integers(9, 70, 2))
        film = rng.integers(0, 256, (h, w)).astype(np.uint8) if turn % 2 else np.zeros((h, w), np.uint8)
        film[0, 0] = 255
        data = jpeg(film, progressive=turn % 5 == 0, optimize=turn % 3 == 0)
        assert {w.code for w in read(data).warnings} <= {"low_resolution"}


# PNG


def png(rows: bytes, *, spoilt: int = 0, end: bool = True) -> bytes:
    def chunk(kind: bytes, data: bytes, change: int = 0) -> bytes:
        return (
            struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data) ^ change)
        )

    head = chunk(b"IHDR", struct.pack(">2L5B", W, H, 8, 0, 0, 0, 0))
    tail = chunk(b"IEND", b"") if end else b""
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows), spoilt) + tail


def test_png_checksums_and_missing_rows():
    rows = b"".join(b"\0" + row.tobytes() for row in EIGHT)
    assert np.array_equal(read(png(rows)).stored, EIGHT)
    with pytest.raises(InputError, match="checksum"):
        read(png(rows, spoilt=1))
    with pytest.raises(InputError) as caught:
        read(png(rows[: 20 * (W + 1)]))
    assert caught.value.code == "truncated"
    black = rows[: -2 * (W + 1)] + bytes(2 * (W + 1))
    assert [w.code for w in read(png(black)).warnings] == ["low_resolution"]
    endless = read(png(rows, end=False))
    assert np.array_equal(endless.stored, EIGHT) and endless.warnings[0].code == "damaged_pixels"


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "1", "P"])
def test_sound_pngs_with_a_black_last_row(mode):
    film = LARGE_EIGHT.copy()
    film[-1] = 0
    image = (
        Image.fromarray(film.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(film).convert(mode)
    )
    buffer = BytesIO()
    image.save(buffer, "PNG")
    assert {w.code for w in read(buffer.getvalue()).warnings} <= {"low_resolution"}


# Phones


def test_the_first_of_a_phones_pictures_is_read():
    """CIPA DC-007, as the gain map of Ultra HDR is stored: a second JPEG behind the first."""
    buffer = BytesIO()
    first, second = Image.fromarray(LARGE_EIGHT), Image.fromarray(LARGE_EIGHT[:40, :40])
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=92)
    data = buffer.getvalue()
    opened = Image.open(BytesIO(data))
    assert opened.n_frames == 2
    radiograph = read(data)
    assert np.array_equal(radiograph.stored, np.asarray(opened))
    assert "more_pictures" in {w.code for w in radiograph.warnings}
    assert np.array_equal(read(Image.open(BytesIO(data))).stored, radiograph.stored)


# Frames


def test_two_frames_that_the_header_calls_one(tmp_path):
    frame = jpeg(EIGHT)
    one_fragment = encapsulate([frame + frame])
    for value in (encapsulate([frame, frame]), encapsulate([frame, frame], has_bot=False), one_fragment):
        ds = stream(JPEGBaseline8Bit, frame, 8, 8)
        ds.PixelData = value
        ds["PixelData"].is_undefined_length = True
        with pytest.raises(InputError) as caught:
            read(save(ds, tmp_path / "x.dcm"))
        assert caught.value.code == "multi_frame"
    ds = dataset(FILM, 12)
    ds.compress(RLELossless)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([frame, frame])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(InputError) as caught:
        read(save(ds, tmp_path / "x.dcm"))
    assert caught.value.code == "multi_frame"


def test_one_frame_in_several_fragments(tmp_path):
    frame = jpeg(EIGHT)
    whole = read(save(stream(JPEGBaseline8Bit, frame, 8, 8), tmp_path / "x.dcm")).pixels
    ds = stream(JPEGBaseline8Bit, frame, 8, 8)
    ds.PixelData = encapsulate([frame], fragments_per_frame=3)
    ds["PixelData"].is_undefined_length = True
    assert np.array_equal(read(save(ds, tmp_path / "x.dcm")).pixels, whole)


# Square pixels


@pytest.mark.parametrize(
    ("tags", "factors"),
    [
        ({"PixelSpacing": [0.4, 0.2]}, (2, 1)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (1, 2)),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.1, 0.2]}, (1, 1)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.1, 0.2]}, (1, 2)),
        ({"PixelAspectRatio": [3, 1]}, (3, 1)),
        ({"PixelSpacing": [0.2, 0.2005]}, (1, 1)),
    ],
)
def test_pixels_are_made_square(tags, factors, tmp_path):
    """A plane of grey stays one under any interpolation that keeps straight lines, away from the edges."""
    film = np.add.outer(np.arange(H) * 50, np.arange(W) * 30).astype(np.uint16)
    radiograph = read(save(dataset(film, 12, **tags), tmp_path / "x.dcm"))
    y, x = factors
    assert radiograph.pixels.shape == (H * y, W * x) == (radiograph.header.rows, radiograph.header.columns)
    rows = (np.arange(H * y) + 0.5) / y - 0.5
    columns = (np.arange(W * x) + 0.5) / x - 0.5
    plane = np.add.outer(rows * 50, columns * 30) / film.max()
    assert np.abs(radiograph.pixels - plane)[12:-12, 12:-12].max() < 1e-3
    assert ("not_square" in {w.code for w in radiograph.warnings}) == (factors != (1, 1))


def test_spacing_that_nobody_can_mean_is_left_alone(tmp_path):
    radiograph = read(save(dataset(FILM, 12, PixelSpacing=[0.1, 50]), tmp_path / "x.dcm"))
    assert radiograph.pixels.shape == (H, W) and radiograph.warnings[0].code == "not_square"


# PatientOrientation: PS3.3 C.7.6.1.1.1

# Where a pixel lies in the patient: to the right or left, or front or back; and towards the head or the feet.
AXES = {"L": (0, 1), "R": (0, -1), "P": (0, 1), "A": (0, -1), "F": (1, 1), "H": (1, -1)}


def as_stored(film: np.ndarray, row: str, column: str) -> np.ndarray:
    """What a detector stores of `film` [down, to the patient's left or back] when its rows run to `row` and its columns
    to `column`: pixel (i, j) is moved by the directions' own meaning."""
    (axis, sign), (other, down) = AXES[row], AXES[column]
    assert axis != other
    n = [film.shape[1], film.shape[0]]
    stored_HW = np.empty((n[other], n[axis]), film.dtype)
    for i in range(n[other]):
        for j in range(n[axis]):
            at = [0, 0]
            at[axis] = j if sign > 0 else n[axis] - 1 - j
            at[other] = i if down > 0 else n[other] - 1 - i
            stored_HW[i, j] = film[at[1], at[0]]
    return stored_HW


FRONTAL = [(r, c) for r in "LR" for c in "HF"] + [(r, c) for r in "HF" for c in "LR"]
LATERAL = [(r, c) for r in "AP" for c in "HF"] + [(r, c) for r in "HF" for c in "AP"]


@pytest.mark.parametrize(("row", "column"), FRONTAL)
@pytest.mark.parametrize("view", ["PA", ""])
def test_a_frontal_film_hangs_with_the_left_on_the_right(row, column, view, tmp_path):
    ds = dataset(as_stored(FILM, row, column), 12, PatientOrientation=[row, column], ViewPosition=view)
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - PLAIN).max() < 1e-6
    assert ("turned" in {w.code for w in radiograph.warnings}) == ((row, column) != ("L", "F"))
    assert (radiograph.header.rows, radiograph.header.columns) == (H, W)


@pytest.mark.parametrize(("row", "column"), LATERAL)
def test_a_lateral_film_stands_upright_and_is_not_mirrored(row, column, tmp_path):
    """Turned about the viewer's axis it is the same film: of the two upright ones, the one of the same handedness."""
    stored_HW = as_stored(FILM, row, column)
    ds = dataset(stored_HW, 12, PatientOrientation=[row, column], ViewPosition="LL")
    shown = read(save(ds, tmp_path / "x.dcm")).pixels
    rotations = [np.rot90(scaled(stored_HW), k) for k in range(4)]
    upright = [PLAIN, PLAIN[:, ::-1]]
    wanted = [x for x in rotations if any(x.shape == u.shape and np.abs(x - u).max() < 1e-6 for u in upright)]
    assert len(wanted) == 1 and np.abs(shown - wanted[0]).max() < 1e-6


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientOrientation": ["A", "L"]},
        {"PatientOrientation": ["R", "R"]},
        {"PatientOrientation": ["R"]},
        {"PatientOrientation": ["x", "F"]},
        {"PatientOrientation": ["RT", "CD"], "AnatomicalOrientationType": "QUADRUPED"},
        # These say what was done to the stored pixels already: PS3.3 C.8.11.4.
        {"FieldOfViewHorizontalFlip": "YES"},
        {"FieldOfViewRotation": 180},
        {"FieldOfViewHorizontalFlip": "YES", "FieldOfViewRotation": 90, "PatientOrientation": ["L", "F"]},
    ],
)
def test_other_orientations_leave_the_film_as_it_is(tags, tmp_path):
    radiograph = read(save(dataset(FILM, 12, **tags), tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - PLAIN).max() < 1e-6
    assert "turned" not in {w.code for w in radiograph.warnings}


def test_an_orientation_of_another_view_is_not_believed(tmp_path):
    radiograph = read(save(dataset(FILM, 12, PatientOrientation=["A", "H"]), tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - PLAIN).max() < 1e-6
    assert radiograph.warnings[0].code == "header_conflict"


def test_spacing_and_turning_together(tmp_path):
    """Rows lie 0.4 mm apart; turned by 90 degrees, they are columns."""
    film = np.add.outer(np.arange(H) * 50, np.arange(W) * 30).astype(np.uint16)
    ds = dataset(as_stored(film, "F", "L"), 12, PatientOrientation=["F", "L"], PixelSpacing=[0.4, 0.2])
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert radiograph.pixels.shape == (H, 2 * W) and radiograph.header.pixel_spacing_mm == (0.2, 0.2)
    plane = np.add.outer(np.arange(H) * 50, ((np.arange(2 * W) + 0.5) / 2 - 0.5) * 30) / film.max()
    assert np.abs(radiograph.pixels - plane)[12:-12, 12:-12].max() < 1e-3


# Grey pictures in colour


def grey_rgb(planar: int = 0) -> Dataset:
    ds = dataset(np.stack([EIGHT] * 3, -1), 8, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
    if planar:
        ds.PixelData = np.stack([EIGHT] * 3).tobytes()
    return ds


def coloured(syntax: str, frame: bytes, photometric: str) -> Dataset:
    ds = stream(syntax, frame, 8, 8, PhotometricInterpretation=photometric)
    ds.SamplesPerPixel, ds.PlanarConfiguration = 3, 0
    return ds


def palette(table: np.ndarray, pixels: np.ndarray = EIGHT) -> Dataset:
    ds = dataset(pixels, 8, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", table.astype("<u2").tobytes())
    return ds


SEPIA = np.stack([EIGHT, EIGHT // 2, EIGHT // 4], -1)
INVERSE = np.arange(255, -1, -1) * 257
GREYS: dict[str, tuple[Callable[[], Dataset], np.ndarray | str, float]] = {
    "RGB": (grey_rgb, EIGHT, 1e-6),
    "RGB by planes": (lambda: grey_rgb(1), EIGHT, 1e-6),
    "RGB in JPEG 2000": (
        lambda: coloured(JPEG2000Lossless, j2k(np.stack([EIGHT] * 3, -1)), "YBR_RCT"), EIGHT, 1e-6,
    ),
    "YBR_FULL_422 in JPEG": (
        lambda: coloured(JPEGBaseline8Bit, jpeg(np.stack([EIGHT] * 3, -1)), "YBR_FULL_422"), EIGHT, 0.03,
    ),
    "three channels that the header calls one": (
        lambda: stream(JPEGBaseline8Bit, jpeg(np.stack([EIGHT] * 3, -1)), 8, 8), EIGHT, 0.03,
    ),
    "a grey palette": (lambda: palette(INVERSE), 255 - EIGHT, 1e-6),
    "sepia": (
        lambda: dataset(SEPIA, 8, PhotometricInterpretation="RGB", PlanarConfiguration=0), "colour_image", 0,
    ),
    "sepia in JPEG": (lambda: coloured(JPEGBaseline8Bit, jpeg(SEPIA), "YBR_FULL_422"), "colour_image", 0),
    "a palette of colours": (lambda: tinted(palette(INVERSE)), "colour_image", 0),
    "a palette that is cut off": (lambda: cut_palette(palette(INVERSE)), "unreadable", 0),
    "a palette without tables": (
        lambda: dataset(EIGHT, 8, PhotometricInterpretation="PALETTE COLOR"), "colour_image", 0,
    ),
}  # fmt: skip


def cut_palette(ds: Dataset) -> Dataset:
    ds["GreenPaletteColorLookupTableData"].value = bytes(20)
    return ds


def tinted(ds: Dataset) -> Dataset:
    ds["BluePaletteColorLookupTableData"].value = bytes(512)
    return ds


@pytest.mark.parametrize("case", GREYS)
def test_grey_pictures_that_are_saved_in_colour(case, tmp_path):
    build, expected, tolerance = GREYS[case]
    path = save(build(), tmp_path / "x.dcm")
    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            read(path)
        assert caught.value.code == expected
        return
    radiograph = read(path)
    assert np.abs(radiograph.pixels - scaled(expected.astype(int))).max() < tolerance


# Private elements of a VR that nobody knows


@pytest.mark.parametrize("vr", [b"ZZ", b"XY", b"QQ"])
@pytest.mark.parametrize("length", [0, 6, 70_000])
def test_an_unknown_vr_does_not_hide_the_pixels(vr, length, tmp_path):
    """VRs to come have 32-bit lengths: PS3.5 7.1.2."""
    ds = dataset(FILM, 12)
    block = ds.private_block(0x0009, "VENDOR", create=True)
    block.add_new(1, "UN", bytes(range(256)) * 274 if length > 6 else b"\x10\0\x20\0ab"[:length])
    ds[block.get_tag(1)].value = ds[block.get_tag(1)].value[:length]
    data = save(ds, tmp_path / "x.dcm").read_bytes()
    at = data.index(b"\x09\0\x01\x10UN")
    spoilt = data[: at + 4] + vr + data[at + 6 :]
    assert np.abs(read(spoilt).pixels - PLAIN).max() < 1e-6


def test_an_unknown_vr_inside_a_sequence(tmp_path):
    ds = dataset(FILM, 12)
    item = Dataset()
    item.add_new(0x00091001, "UN", b"\x10\0\x20\0abcd\x30\0")
    ds.add_new(0x00091002, "SQ", [item])
    ds[0x00091002].is_undefined_length = True
    ds[0x00091002].value[0].is_undefined_length_sequence_item = True
    data = save(ds, tmp_path / "x.dcm").read_bytes().replace(b"\x09\0\x01\x10UN", b"\x09\0\x01\x10ZZ")
    assert np.abs(read(data).pixels - PLAIN).max() < 1e-6


def test_the_syntax_of_a_plain_film_is_what_these_tests_say():
    assert dataset(FILM, 12).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(stored(12).shape, (H, W))
