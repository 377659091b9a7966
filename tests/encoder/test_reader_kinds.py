"""Kinds of DICOM files that were once read wrongly, without a word, or never to an end. The right pixels are by the
standard's formula or by pydicom's own decoder."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from encoder.radiograph import read
from tests.encoder.test_grey_levels import EIGHT
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
