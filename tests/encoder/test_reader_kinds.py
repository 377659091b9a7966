"""Kinds of DICOM files that were once read wrongly, without a word, or never to an end. The right pixels are by the
standard's formula or by pydicom's own decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from encoder.radiograph import read
from tests.encoder.test_grey_levels import EIGHT, FILM, PLAIN, j2k, jpeg, stream, windowed, written
from tests.encoder.test_radiograph import dataset, save, scaled

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
