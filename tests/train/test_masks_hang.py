"""Masks are drawn on the stored pixels of a DICOM file; the reader turns them, and masks must lie where they lay."""

from __future__ import annotations

import numpy as np
import pytest

from encoder.radiograph import read
from tests.encoder.test_radiograph import dataset, save
from train.datasets.masks import as_read, image_size


@pytest.mark.parametrize("spacing", [[0.2, 0.2], [0.4, 0.2], [0.1, 0.3]])
@pytest.mark.parametrize(
    "orientation", [["L", "F"], ["R", "F"], ["L", "H"], ["F", "R"], ["H", "L"], ["F", "L"]]
)
def test_a_mask_lies_on_the_film_as_it_is_read(orientation, spacing, tmp_path):
    film = np.zeros((40, 60), np.uint16)
    film[5:25, 8:20] = 4095
    ds = dataset(film, 12, PatientOrientation=orientation, PixelSpacing=spacing)
    path = save(ds, tmp_path / "x.dcm")
    pixels = read(path).pixels
    mask_HW = film > 0
    assert image_size(path) == mask_HW.shape
    turned = as_read(path, mask_HW)
    assert turned.shape == pixels.shape and turned.dtype == bool
    # the border of a resampled film is between the two greys
    sure = np.abs(pixels - 0.5) > 0.3
    assert sure.mean() > 0.85 and np.array_equal(turned[sure], pixels[sure] > 0.5)
    assert np.array_equal(as_read(path, mask_HW), mask_HW) == (
        orientation == ["L", "F"] and spacing[0] == spacing[1]
    )
