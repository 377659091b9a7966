"""Look-up tables whose first input has the other sign, and palettes in segments; right pixels by the standard's words.

PS3.3 C.11.1.1 and C.11.2.1.1: PixelRepresentation or the rescale says whether the first input is signed, whatever
values occur. C.7.9.2: segments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from encoder.radiograph import InputError, read
from encoder.radiograph.palette import expand
from encoder.radiograph.scale import Broken
from tests.encoder.test_radiograph import dataset, save, scaled

H, W = 40, 48
# 0 to 3836: no value shows the sign of the film.
FILM = np.add.outer(np.arange(H) * 38.0, np.arange(W) * 50.0).astype(np.int16)
TABLE = (np.arange(8192) ** 1.5 / 16).astype(np.uint16)


def table(first: int, vr: str) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(TABLE), first, 16])
    item.add_new("LUTData", "OW", TABLE.astype("<u2").tobytes())
    return item


def said(warnings: Any) -> list[str]:
    return [w.code for w in warnings if w.code != "low_resolution"]


@pytest.mark.parametrize("key", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("first", "vr"), [(-100, "SS"), (65436, "US")])
def test_the_first_input_of_a_signed_film_is_signed_whatever_occurs(key, syntax, first, vr, tmp_path):
    ds = dataset(FILM, 13, syntax, **{key: [table(first, vr)]})
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - scaled(TABLE[FILM + 100])).max() < 1e-6
    assert said(radiograph.warnings) == []


@pytest.mark.parametrize(
    ("unsigned", "rescale", "inputs"),
    [
        # no value is negative, but 0, which the bits can hold, would be: signed
        (FILM + 60, {"RescaleSlope": 1, "RescaleIntercept": -50}, FILM + 10),
        # the highest that 13 bits can hold would be
        (FILM, {"RescaleSlope": -1, "RescaleIntercept": 4000}, 4000 - FILM),
    ],
)
def test_the_first_input_of_a_voi_lut_has_the_sign_that_the_rescale_may_give(
    unsigned, rescale, inputs, tmp_path
):
    ds = dataset(unsigned.astype(np.uint16), 13, VOILUTSequence=[table(65436, "US")], **rescale)
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - scaled(TABLE[inputs + 100])).max() < 1e-6
    assert said(radiograph.warnings) == []


def test_after_a_modality_lut_the_first_input_is_unsigned(tmp_path):
    """Also of a signed film: what a table gives has no sign."""
    lifting = Dataset()
    lifting.add_new("LUTDescriptor", "SS", [8192, 0, 16])
    lifting.add_new("LUTData", "OW", (np.arange(8192) + 50000).astype("<u2").tobytes())
    ds = dataset(FILM, 13, ModalityLUTSequence=[lifting], VOILUTSequence=[table(49000, "US")])
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert np.abs(radiograph.pixels - scaled(TABLE[FILM + 1000])).max() < 1e-6
    assert said(radiograph.warnings) == []


@pytest.mark.parametrize("key", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(
    ("film", "bits", "first", "begin"),
    [
        # an unsigned film, and a table from -1000 on
        (FILM.astype(np.uint16), 12, 64536, -1000),
        # a signed one with a table from 40000 on: no value of it is so high, but its 16 bits are -25536
        (FILM - 26000, 16, 40000, -25536),
    ],
)
def test_a_sign_that_would_make_every_pixel_the_same_is_not_believed(key, film, bits, first, begin, tmp_path):
    radiograph = read(save(dataset(film, bits, **{key: [table(first, "US")]}), tmp_path / "x.dcm"))
    index = (film.astype(int) - begin).clip(0, len(TABLE) - 1)
    assert np.abs(radiograph.pixels - scaled(TABLE[index])).max() < 1e-6
    assert said(radiograph.warnings) == (["header_conflict"] if begin == -1000 else [])


# Palettes in segments

EIGHT = (FILM >> 4).astype(np.uint8)
RISE = np.rint(np.linspace(1000, 60000, 201)[1:]).astype(int)
# Of 16 bits: two entries; a straight line of 200; 50 more that are listed; the four entries of the first segment again.
LISTED = list(range(100, 150))
SEGMENTS = [0, 4, 7, 9, 11, 1000, 1, 200, 60000, 0, 48, *LISTED[:48], 2, 1, 0, 0]
WRITTEN = [7, 9, 11, 1000, *RISE, *LISTED[:48], 7, 9, 11, 1000]
# Of 8 bits: 6 entries, a fall of 240, and both again but for the first, from byte 8 on.
SHORT = [0, 6, 1, 2, 3, 4, 5, 250, 1, 240, 10, 0, 2, 77, 78, 2, 1, 11, 0, 0, 0]
SHORT_WRITTEN = [1, 2, 3, 4, 5, 250, *np.rint(np.linspace(250, 10, 241)[1:]).astype(int), 77, 78, 77, 78]


def segmented(segments: list[int], entries: int, bits: int, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    ds = dataset(EIGHT, 8, syntax, PhotometricInterpretation="PALETTE COLOR")
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    data = (
        np.array(segments, "<u2")
        if bits == 16
        else np.array([*segments, 0][: len(segments) // 2 * 2 + 2], np.uint8)
    )
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [entries, 0, bits])
        words = data.view("<u2").astype(order).tobytes()
        ds.add_new(f"Segmented{colour}PaletteColorLookupTableData", "OW", words)
    return ds


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("segments", "written", "bits"), [(SEGMENTS, WRITTEN, 16), (SHORT, SHORT_WRITTEN, 8)]
)
def test_a_grey_palette_in_segments(segments, written, bits, syntax, tmp_path):
    ds = segmented(segments, len(written), bits, syntax)
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    expected = np.array(written)[EIGHT.clip(0, len(written) - 1)]
    assert np.abs(radiograph.pixels - scaled(expected)).max() < 1e-6
    assert said(radiograph.warnings) == []


def test_segments_are_written_out_as_pydicom_does():
    ds = segmented(SEGMENTS, len(WRITTEN), 16)
    ramp = np.arange(len(WRITTEN), dtype=np.uint8)[None] if len(WRITTEN) <= 256 else None
    assert ramp is not None
    assert (
        expand(np.array(SEGMENTS, "<u2").tobytes(), 16, len(WRITTEN))
        == apply_color_lut(ramp, ds)[0, :, 0].tolist()
    )


BROKEN = {
    "a line without a beginning": ([1, 256, 65535], "linear"),
    "cut off": ([0, 256, 1, 2], "cut off"),
    "too few": ([0, 2, 1, 2], "2 of the 256"),
    "too many": ([0, 1, 1, 1, 65535, 9], "more than the 256"),
    "an unknown kind": ([0, 1, 5, 3, 255, 9], "type 3"),
    "an indirect segment of itself": ([0, 1, 5, 2, 3, 6, 0], "repeats another"),
    "an empty segment": ([0, 1, 5, 1, 0, 9], "empty"),
    "megabytes": ([0] * 400_000, "no table needs"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_palette_in_segments_is_refused_by_its_name(case, tmp_path: Path):
    segments, words = BROKEN[case]
    with pytest.raises(InputError, match=f"SegmentedRedPalette.*{words}") as caught:
        read(save(segmented(segments, 256, 16), tmp_path / "x.dcm"))
    assert caught.value.code == "unreadable"


def test_a_few_bytes_cannot_ask_for_millions_of_steps():
    """Each of these 60,000 indirect segments repeats 65,535 others."""
    bomb = np.array([0, 1, 0, *([2, 65535, 0, 0] * 60_000)], "<u2").tobytes()
    with pytest.raises(Broken):
        expand(bomb, 16, 65536)
