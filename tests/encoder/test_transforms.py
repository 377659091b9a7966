"""Evaluation preprocessing against transformers' own, multi-crop against its promises."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from transformers import AutoImageProcessor

from encoder.transforms import MultiCrop, Preprocessing, gaussian_blur, random_box


def smooth(h, w, seed=0):
    noise = np.random.default_rng(seed).random((8, 8))
    x = zoom(noise, (h / 8, w / 8), order=3)
    return ((x - x.min()) / (x.max() - x.min()) * 255).round().astype(np.uint8)


@pytest.mark.parametrize("shape", [(77, 101), (101, 77), (300, 211), (56, 56), (57, 56), (40, 90)])
@pytest.mark.parametrize("texture", ["smooth", "noise"])
@pytest.mark.parametrize(
    "prep",
    [
        Preprocessing(size=56),
        Preprocessing(56, mean=(0.481, 0.458, 0.408), std=(0.269, 0.261, 0.276)),  # as CLIP's
        Preprocessing(56, "stretch", 0.5, 0.5),  # as SigLIP's
        Preprocessing(56, "stretch", 0.5, 0.5, "bilinear"),
    ],
    ids=["rad-dino", "clip", "siglip", "medsiglip"],
)
def test_equals_transformers_to_one_grey_level(tmp_path, shape, texture, prep):
    prep.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = (
        smooth(*shape)
        if texture == "smooth"
        else np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    )
    theirs = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    ours = prep(pixels.astype(np.float32) / 255)
    assert ours.shape == (3, 56, 56) and ours.dtype == torch.float32 and ours.is_contiguous()
    # 8-bit resizing rounds after each of its two passes
    assert (ours - theirs).abs().max() <= 1.1 / 255 / np.min(prep.std)
    assert (ours - theirs).abs().mean() <= 0.5 / 255 / np.min(prep.std)


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


def test_digests_of_models_trained_before_are_the_same():
    """As computed when there was one way to resize and one mean."""
    assert Preprocessing().sha256.startswith("947689539f3adc0e")


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_saved_and_read_again(tmp_path, mode):
    prep = Preprocessing(size=196, mode=mode, mean=0.4, std=(0.3, 0.2, 0.3))
    prep.save_pretrained(tmp_path / "new")
    assert Preprocessing.from_pretrained(tmp_path / "new") == prep


def test_sha256_is_of_the_content():
    assert Preprocessing().sha256 == Preprocessing(size=518, mode="crop").sha256
    assert (
        len({Preprocessing().sha256, Preprocessing(size=196).sha256, Preprocessing(mode="pad").sha256}) == 3
    )


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((3, 8, 8), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8), np.float32)],
    ids=["channels", "integers", "empty"],
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match="float pixels"):
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
