"""Evaluation preprocessing against transformers' own, multi-crop against its promises."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from transformers import AutoImageProcessor

from encoder.radiograph import read
from encoder.transforms import MultiCrop, Preprocessing, gaussian_blur, random_box


def smooth(h, w, seed=0):
    noise = np.random.default_rng(seed).random((8, 8))
    x = zoom(noise, (h / 8, w / 8), order=3)
    return ((x - x.min()) / (x.max() - x.min()) * 255).round().astype(np.uint8)


# Of one size, smaller, larger, odd; (10, 57) and (55, 6) are those that transformers leaves a pixel too long or short.
SHAPES = [(77, 101), (101, 77), (300, 211), (56, 56), (57, 56), (40, 90), (10, 57), (55, 6), (19, 33)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", ["smooth", "noise", "flat", "three channels"])
@pytest.mark.parametrize(
    "prep",
    [
        Preprocessing(size=56),
        Preprocessing(56, mean=(0.481, 0.458, 0.408), std=(0.269, 0.261, 0.276)),  # as CLIP's
        Preprocessing(56, "stretch", 0.5, 0.5),  # as SigLIP's
        Preprocessing(56, "stretch", 0.5, 0.5, "bilinear"),
        Preprocessing(56, "pad"),
        Preprocessing(55, "pad", resample="bilinear"),
    ],
    ids=["rad-dino", "clip", "siglip", "medsiglip", "pad", "odd pad"],
)
def test_an_8_bit_picture_gives_the_numbers_of_transformers(tmp_path, shape, texture, prep):
    prep.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    levels = {
        "smooth": lambda: smooth(*shape),
        "noise": lambda: rng.integers(0, 256, shape),
        "flat": lambda: rng.integers(90, 141, shape),
        "three channels": lambda: smooth(*shape)[..., None] // 2 + rng.integers(0, 9, (*shape, 3)),
    }[texture]().astype(np.uint8)
    theirs = processor(Image.fromarray(levels), return_tensors="pt").pixel_values[0]
    ours = prep(levels)
    assert ours.shape == (3, prep.size, prep.size) and ours.dtype == torch.float32 and ours.is_contiguous()
    assert torch.equal(ours, theirs)
    if levels.ndim == 2:
        # DICOM and 16 bits are resized in float32, without the rounding of 8 bits after each of two passes
        in_float = prep(levels.astype(np.float32) / 255)
        assert (in_float - theirs).abs().max() <= 1.1 / 255 / np.min(prep.std)
        assert (in_float - theirs).abs().mean() <= 0.5 / 255 / np.min(prep.std)


def test_a_radiograph_is_prepared_by_what_it_is(tmp_path):
    """The levels of an 8-bit picture, the grey levels of one of 16 bits."""
    levels, prep = smooth(70, 61), Preprocessing(size=56)
    Image.fromarray(levels).save(tmp_path / "8.png")
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert torch.equal(prep(read(tmp_path / "8.png")), prep(levels))
    in_float = prep(levels.astype(np.float32) / 255)
    assert not torch.equal(in_float, prep(levels))
    torch.testing.assert_close(prep(read(tmp_path / "16.png")), in_float, rtol=0, atol=1e-5)


def test_pixels_that_cannot_be_written_to_are_left_alone():
    levels = smooth(60, 60)
    levels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, of undefined behaviour
        Preprocessing(size=56)(levels)


@pytest.mark.parametrize("low, high", [(90, 140), (0, 255), (3, 4), (0, 17)])
def test_full_range_is_that_of_maira2(low, high):
    levels = np.random.default_rng(0).integers(low, high + 1, (66, 70)).astype(np.uint8)
    levels[0, :2] = low, high
    shown = levels.astype(np.float64) - low
    shown = (shown / shown.max() * 255).astype(np.uint8)
    assert shown.min() == 0 and shown.max() == 255
    prep = Preprocessing(size=56, full_range=True)
    assert torch.equal(prep(levels), Preprocessing(size=56)(shown))
    assert prep.unsaid and not Preprocessing().unsaid
    with pytest.raises(ValueError, match="every pixel is 7"):
        prep(np.full((60, 60), 7, np.uint8))


def test_pad_keeps_the_whole_film():
    prep = Preprocessing(size=56, mode="pad", mean=0.5, std=0.25)
    out = prep(np.ones((100, 50), np.float32))
    assert out.shape == (3, 56, 56)
    torch.testing.assert_close(out[0, :, 14:42], torch.full((56, 28), 2.0))
    torch.testing.assert_close(out[0, :, :14], torch.full((56, 14), -2.0))
    torch.testing.assert_close(out[0, :, 42:], torch.full((56, 14), -2.0))


def test_crop_keeps_the_centre():
    pixels = np.zeros((60, 20), np.float32)
    pixels[20:40] = 1
    out = Preprocessing(size=20, mean=0.0, std=1.0)(torch.from_numpy(pixels))
    assert out.min() == 1


def test_sixteen_bit_levels_survive():
    levels = np.linspace(0.5, 0.5 + 15 / 65535, 16, dtype=np.float32).reshape(4, 4)
    assert len(Preprocessing(size=4)(levels)[0].unique()) == 16


def test_siglip_and_timm_directories(tmp_path):
    siglip = {
        "size": {"height": 56, "width": 56},
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(siglip))
    assert Preprocessing.from_pretrained(tmp_path) == Preprocessing(56, "stretch", 0.5, 0.5, "bilinear")
    (tmp_path / "preprocessor_config.json").unlink()
    timm = {"input_size": [3, 56, 56], "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": timm}))
    assert Preprocessing.from_pretrained(tmp_path) == Preprocessing(56, "crop", (0.1, 0.2, 0.3), 0.5)


def test_digests_are_those_of_their_version():
    """As computed when there was one way to resize and one mean; since 8-bit pictures are taken as they are; and since
    there is a rule for DICOM."""
    assert Preprocessing().sha256_before.startswith("947689539f3adc0e")
    assert Preprocessing(full_range=True).sha256_before.startswith("947689539f3adc0e")
    assert Preprocessing().sha256_of_pictures.startswith("a272db734b5f6b54")
    assert Preprocessing().sha256.startswith("cde0ef84326d3ca3")


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_saved_and_read_again(tmp_path, mode):
    for full_range in (False, True):
        prep = Preprocessing(size=196, mode=mode, mean=0.4, std=(0.3, 0.2, 0.3), full_range=full_range)
        prep.save_pretrained(tmp_path / "new")
        assert Preprocessing.from_pretrained(tmp_path / "new") == prep


def test_what_was_saved_as_pad_before_still_is(tmp_path):
    """Then transformers was told of a crop."""
    Preprocessing(size=56, mode="pad").save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"size": {"shortest_edge": 56}}))
    assert Preprocessing.from_pretrained(tmp_path) == Preprocessing(size=56, mode="pad")
    del config["cxr_mode"]
    path.write_text(json.dumps(config))
    assert Preprocessing.from_pretrained(tmp_path) == Preprocessing(size=56, mode="pad")


def test_sha256_is_of_the_content():
    assert Preprocessing().sha256 == Preprocessing(size=518, mode="crop").sha256
    others = (Preprocessing(size=196), Preprocessing(mode="pad"), Preprocessing(full_range=True))
    assert len({Preprocessing().sha256, Preprocessing().sha256_before, *(p.sha256 for p in others)}) == 5


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((3, 8, 8), np.float32),
        np.zeros((8, 8), np.uint16),
        np.zeros((0, 8), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 0), np.uint8),
        np.zeros(8, np.uint8),
    ],
    ids=["channels", "integers", "empty", "8-bit channels first", "8-bit empty", "8-bit row"],
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match=r"expected .*\(H, W\)"):
        Preprocessing(size=8)(pixels)


def test_odd_configs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mode"):
        Preprocessing(mode="squash")
    with pytest.raises(ValueError, match="one number or three"):
        Preprocessing(mean=(0.5, 0.5))
    with pytest.raises(FileNotFoundError, match="encoder checkpoint"):
        Preprocessing.from_pretrained(tmp_path)
    Preprocessing(size=56).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    for change, message in (
        ({"image_mean": [0.1, 0.2]}, "one number or three"),
        ({"resample": 1}, "bicubic"),
        ({"size": {"height": 56, "width": 40}}, "square"),
        ({"crop_size": {"height": 40, "width": 56}}, "square"),
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            Preprocessing.from_pretrained(tmp_path)


CROP = MultiCrop(global_size=28, local_size=14, local_crops=3)


def test_crops_depend_on_the_generator_alone():
    pixels = smooth(40, 50)
    first, again, other = (CROP(pixels, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.global_GHW.shape == (2, 28, 28) and first.local_LHW.shape == (3, 14, 14)
    assert first.global_GHW.dtype == np.uint8
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_no_crop_is_mirrored_unless_asked():
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    rng = np.random.default_rng(0)
    for _ in range(10):
        crops = CROP(ramp, rng)
        assert all(
            (np.diff(x.astype(int).mean(0)) >= -1).all() for x in (*crops.global_GHW, *crops.local_LHW)
        )
    mirrored = MultiCrop(global_size=28, local_size=14, local_crops=3, flip_probability=1.0)(ramp, rng)
    assert all((np.diff(x.astype(int).mean(0)) <= 1).all() for x in mirrored.global_GHW)


def test_boxes_keep_their_bounds():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        left, top, w, h = random_box(rng, 100, 80, (0.4, 1.0), (3 / 4, 4 / 3))
        assert left >= 0 and left + w <= 100
        assert top >= 0 and top + h <= 80
        assert 0.73 <= w / h <= 1.37
        shares.append(w * h / 8000)
    assert 0.38 < min(shares) < 0.5 < max(shares) <= 1.0
    assert random_box(rng, 1000, 10, (1.0, 1.0), (3 / 4, 4 / 3)) == (
        493,
        0,
        13,
        10,
    )  # nothing fits: the centre
    assert random_box(rng, 1, 1, (0.4, 1.0), (3 / 4, 4 / 3)) == (0, 0, 1, 1)


def test_plain_look_is_the_evaluation_preprocessing():
    pixels = torch.from_numpy(np.stack([smooth(28, 28, seed) for seed in range(2)]))
    out = CROP.on_device(pixels, torch.tensor([[0.0, 1.0, 0.0]] * 2))
    wanted = torch.stack([Preprocessing(size=28)(x.float() / 255) for x in pixels])
    torch.testing.assert_close(out, wanted)


def test_looks_are_applied_to_each_crop_by_itself():
    pixels = torch.from_numpy(np.stack([smooth(28, 28)] * 4))
    looks = torch.tensor([[0.0, 1.0, 0.0], [0.1, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 1.0, 0.9]])
    out = CROP.on_device(pixels, looks)[:, 0] * CROP.std + CROP.mean
    plain = out[0]
    torch.testing.assert_close(out[1], (plain + 0.1).clamp(0, 1))
    torch.testing.assert_close(out[2], (plain - plain.mean()) * 0.5 + plain.mean())
    torch.testing.assert_close(
        out[3], torch.from_numpy(gaussian_filter(plain.numpy(), 0.9, mode="mirror")), atol=2e-3, rtol=0
    )


def test_looks_stay_in_their_ranges():
    looks = np.concatenate([CROP(smooth(40, 40), np.random.default_rng(i)).local_look for i in range(200)])
    assert np.abs(looks[:, 0]).max() <= CROP.brightness and np.abs(looks[:, 1] - 1).max() <= CROP.contrast
    assert 0.14 < (looks[:, 2] > 0).mean() < 0.26
    assert looks[:, 2].max() <= CROP.blur_sigma[1]


def test_blur_preserves_flat_images_and_takes_tiny_ones():
    torch.testing.assert_close(
        gaussian_blur(torch.ones(3, 9, 9), torch.tensor([0.1, 0.5, 1.0]), 1.0), torch.ones(3, 9, 9)
    )
    assert gaussian_blur(torch.rand(1, 2, 2), torch.tensor([1.0]), 1.0).shape == (1, 2, 2)


def test_wrong_input_to_crops_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        CROP(np.zeros((40, 40), np.float32), np.random.default_rng(0))
