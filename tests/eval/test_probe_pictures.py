"""Pictures of features and masks."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from sklearn.decomposition import PCA

from eval.probes.pictures import PatchColours, outlines


def test_colours_are_principal_components_whose_sign_is_fixed():
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.normal(size=(6, 9, 5)) * [9, 5, 3, 1, 0.5] @ rng.normal(size=(5, 5)))
    rows = np.arange(6)
    colours = PatchColours.of(lambda r: tokens[r], rows)
    axes = PCA(3).fit(tokens.flatten(0, 1).numpy()).components_
    assert np.abs((colours.axes_3C * axes).sum(1)) == pytest.approx(np.ones(3), abs=1e-9)
    assert (colours.axes_3C[range(3), np.abs(colours.axes_3C).argmax(1)] > 0).all()
    picture = colours.paint(tokens[2])
    assert picture.dtype == np.uint8 and picture.shape == (3, 3, 3)
    for order, batch in ((rows[::-1].copy(), 4), (np.r_[3:6, 0:3], 1)):
        again = PatchColours.of(lambda r: tokens[r], order, batch)
        assert np.abs(again.paint(tokens[2]).astype(int) - picture).max() <= 1
    # the other way round, the picture is its negative in no channel: the largest loading decides
    mirrored = PatchColours.of(lambda r: -tokens[r], rows)
    assert mirrored.axes_3C == pytest.approx(colours.axes_3C, abs=1e-9)
    big = colours.paint(tokens[2], side=12)
    assert big.shape == (12, 12, 3) and (big[::4, ::4] == picture).all()
    # the sign and the stretch of the first component, by hand
    at = (tokens.numpy() - tokens.flatten(0, 1).mean(0).numpy()) @ colours.axes_3C[0]
    low, high = np.percentile(at, [1, 99])
    wanted = ((at[2] - low) / (high - low)).clip(0, 1) * 255
    assert picture[..., 0].ravel() == pytest.approx(wanted, abs=0.51)


def test_few_channels_and_no_images():
    tokens = torch.randn(2, 4, 2)
    assert PatchColours.of(lambda r: tokens[r], [0, 1]).paint(tokens[0]).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="there are no images"):
        PatchColours.of(lambda r: tokens[r], [])


@pytest.mark.parametrize("width", [1, 2])
def test_an_outline_is_the_mask_without_what_is_eroded(width):
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 4:15, 0:12] = True  # up to the rim of the image
    image = np.full((20, 30), 0.5)
    picture = outlines(image, mask, width=width, colours=[(255, 0, 0)])
    rim = mask[0] & ~binary_erosion(mask[0], iterations=width)
    assert picture.shape == (20, 30, 3) and picture.dtype == np.uint8
    assert (picture[rim] == (255, 0, 0)).all() and (picture[~rim] == 128).all()
    again = outlines((image * 255).round().astype(np.uint8), mask, width=width, colours=[(255, 0, 0)])
    assert (again == picture).all()


def test_large_pictures_are_reduced_before_the_outline_is_drawn():
    masks = np.zeros((2, 400, 300), bool)
    masks[0, 100:300, 50:250] = masks[1, 350:, :50] = True
    picture = outlines(np.zeros((400, 300), np.float32), masks, width=1, side=40)
    assert picture.shape == (40, 30, 3)
    assert (picture[10, 5:25] == (230, 159, 0)).all() and (picture[11, 6:24] == 0).all()
    assert (picture[35, 0:5] == (86, 180, 233)).all()
    assert outlines(np.zeros((400, 300)), masks[:0], side=40).max() == 0
    with pytest.raises(ValueError, match="are wanted"):
        outlines(np.zeros((4, 5)), np.zeros((1, 5, 4), bool))
