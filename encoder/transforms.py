"""From grey levels to the encoder's input: the evaluation preprocessing, and the random crops of pre-training.

Shape letters: B images or crops, H, W pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from encoder.errors import naming
from encoder.radiograph import DICOM_RULE, GREY_RULE, Radiograph

FILE = "preprocessor_config.json"
RESAMPLE: dict[int, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
RESCALE = 1 / 255


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation preprocessing: a radiograph -> float32 (3, size, size).

    `crop`: shortest edge to `size`, antialiased, centre crop (RAD-DINO's). `pad`: longest edge to `size`, black (air)
    around it, for films whose anatomy the crop would cut. `stretch`: both edges to `size`, as SigLIP does.

    A picture of 8 bits is resized and rounded as uint8, by the operations of transformers' processor and in their
    order, so that plain transformers with the exported processor sees equal numbers. DICOM and 16 bits, which that
    processor does not read, are resized in float32.
    """

    size: int = 518  # pixels; RAD-DINO's resolution
    # crop is what RAD-DINO was trained with
    mode: Literal["crop", "pad", "stretch"] = "crop"
    mean: float | tuple[float, float, float] = 0.5307  # RAD-DINO's grey-level statistics, of MIMIC-CXR
    std: float | tuple[float, float, float] = 0.2583  # or one a channel, as CLIP has
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    # Spread each 8-bit picture over the whole range first, as MAIRA-2's processor does. DICOM and 16 bits are spread by
    # the reader.
    full_range: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("crop", "pad", "stretch"):
            raise ValueError(f"preprocessing mode must be 'crop', 'pad' or 'stretch', not {self.mode!r}")
        if self.resample not in RESAMPLE.values():
            raise ValueError(f"resample must be {' or '.join(RESAMPLE.values())}, not {self.resample!r}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, int | float):
                if len(value) != 3:
                    raise ValueError(f"{name} must be one number or three, not {value}")
                # one number where the channels agree, so that equal preprocessings have equal digests
                object.__setattr__(self, name, value[0] if len(set(value)) == 1 else tuple(value))
        if self.size < 1 or min(_channels(self.std)) <= 0:
            raise ValueError(
                f"preprocessing needs size >= 1 and std > 0, got size {self.size}, std {self.std}"
            )

    def __call__(self, image: Radiograph | np.ndarray | Tensor) -> Tensor:
        """Make the encoder's input, float32 (3, size, size).

        Args:
            image: a radiograph; or the levels of an 8-bit picture, uint8 (H, W) or (H, W, 3); or grey levels in [0, 1],
                floating (H, W).

        Raises:
            ValueError: the image is an array of another type or shape.
        """
        if isinstance(image, Radiograph):
            image = image.pixels if image.stored is None else image.stored
        if isinstance(image, np.ndarray) and not image.flags.writeable:
            # Pillow's arrays; torch warns about them
            image = image.copy()
        x_HW = torch.as_tensor(image)
        if x_HW.dtype == torch.uint8:
            return self._of_levels(x_HW)
        if x_HW.dim() != 2 or not x_HW.is_floating_point() or 0 in x_HW.shape:
            raise ValueError(
                "expected a Radiograph, uint8 levels (H, W) or (H, W, 3), or float pixels (H, W) in [0, 1], got "
                f"{x_HW.dtype} {tuple(x_HW.shape)}"
            )
        x_HW = x_HW.to(torch.float32)
        h, w, top, left = self.place(*x_HW.shape)
        x_HW = self._cut(_resize(x_HW, h, w, self.resample), top, left)
        mean_C11, std_C11 = (torch.tensor(_channels(x))[:, None, None] for x in (self.mean, self.std))
        return (x_HW - mean_C11) / std_C11

    def _of_levels(self, x: Tensor) -> Tensor:
        """Preprocess an 8-bit picture as transformers' BitImageProcessor does, every rounding included."""
        # loaded where it is needed, because it takes as long as torch does
        from torchvision.transforms.v2 import functional as tvF

        if x.dim() not in (2, 3) or x.shape[2:] not in ((), (3,)) or 0 in x.shape:
            raise ValueError(f"expected uint8 levels (H, W) or (H, W, 3), got {x.dtype} {tuple(x.shape)}")
        x_CHW = x[None] if x.dim() == 2 else x.permute(2, 0, 1).contiguous()
        if self.full_range:
            x_CHW = _spread(x_CHW)
        h, w, top, left = self.place(*x_CHW.shape[1:])
        how = tvF.InterpolationMode(self.resample)
        x_CHW = self._cut(tvF.resize(x_CHW, [h, w], how, antialias=True), top, left)
        mean_C11, std_C11 = (
            torch.tensor(_channels(x))[:, None, None] * (1 / RESCALE) for x in (self.mean, self.std)
        )
        return (x_CHW.float() - mean_C11) / std_C11

    def _cut(self, x: Tensor, top: int, left: int) -> Tensor:
        """Take the square at `top` and `left` out of a resized image (..., h, w), black where it reaches beyond."""
        h, w = x.shape[-2:]
        # negative padding cuts
        return F.pad(x, (-left, left + self.size - w, -top, top + self.size - h))

    def place(self, H: int, W: int) -> tuple[int, int, int, int]:
        """Return (h, w, top, left) of an image of H x W pixels.

        The image is resized to h x w. The square's corner lies at row `top` and column `left` of that;
        negative values lie outside, in the padding. Sizes are rounded as transformers does.
        """
        S = self.size
        if self.mode == "stretch":
            return S, S, 0, 0
        if self.mode == "crop":
            h, w = (int(S * edge / min(H, W)) for edge in (H, W))
        else:
            # transformers rounds the shorter edge, leaves an image alone whose shorter edge has that length, and cuts
            # off the fraction of the longer one, which may be a pixel less than `size` then
            short = S * min(H, W) / max(H, W)
            near, far = max(1, round(short)), max(1, int(short * max(H, W) / min(H, W)))
            h, w = (H, W) if near == min(H, W) else (near, far) if H < W else (far, near)
        # rounded towards zero, be it cut or padded
        top, left = (int((edge - S) / 2) for edge in (h, w))
        return h, w, top, left

    @property
    def sha256(self) -> str:
        """Return a hex digest of the canonical JSON of the fields and of the rules by which stored values
        become grey levels."""
        return _sha256({**asdict(self), "grey_rule": GREY_RULE, "dicom_rule": DICOM_RULE})

    @property
    def sha256_of_pictures(self) -> str:
        """Return the digest that models had before DICOM got a rule of its own. Pictures give the same
        numbers."""
        return _sha256({**asdict(self), "grey_rule": GREY_RULE})

    @property
    def sha256_before(self) -> str:
        """Return the digest of models that stretched every 8-bit picture (the first GREY_RULE)."""
        unknown = [("full_range", self.full_range), ("resample", "bicubic")]
        return _sha256({k: v for k, v in asdict(self).items() if (k, v) not in unknown})

    @property
    def unsaid(self) -> str:
        """Say what transformers' processor cannot express; empty if it turns a picture into the same
        numbers."""
        return "8-bit pictures are spread over the whole range first" if self.full_range else ""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`, which transformers' AutoImageProcessor opens as a BitImageProcessor that
        makes equal numbers of a picture of 8 bits, but for what is `unsaid`. Extra keys are ours: `cxr_mode`,
        `cxr_full_range`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        square = {"height": self.size, "width": self.size}
        size = {
            "crop": {"shortest_edge": self.size},
            # no edge longer than `size`; the crop, which is larger then, adds the black
            "pad": {"shortest_edge": self.size, "longest_edge": self.size},
            "stretch": square,
        }
        config: dict[str, Any] = {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": size[self.mode],
            "resample": next(number for number, name in RESAMPLE.items() if name == self.resample),
            "do_center_crop": self.mode != "stretch",
            "crop_size": square,
            "do_rescale": True,
            "rescale_factor": RESCALE,
            "do_normalize": True,
            "image_mean": list(_channels(self.mean)),
            "image_std": list(_channels(self.std)),
            "cxr_mode": self.mode,
        }
        if self.full_range:
            config["cxr_full_range"] = True
        with naming(folder / FILE):
            (folder / FILE).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Preprocessing:
        """Read `preprocessor_config.json`, or what timm keeps in `config.json`. Raises FileNotFoundError if there is
        neither, ValueError if it asks for something else than a square, and bicubic or bilinear interpolation."""
        path, timm = Path(folder) / FILE, Path(folder) / "config.json"
        if not path.is_file():
            about = json.loads(timm.read_text()).get("pretrained_cfg") if timm.is_file() else None
            if about is None:
                raise FileNotFoundError(
                    f"{path} does not exist; is {folder} an encoder checkpoint directory?"
                )
            # timm's crop_pct cuts a rim away, which of a radiograph is wanted
            return cls(about["input_size"][-1], "crop", about["mean"], about["std"], about["interpolation"])
        config = json.loads(path.read_text())
        size, crop = config.get("size", {}), config.get("crop_size", {})
        if isinstance(crop, int):
            crop = {"height": crop, "width": crop}
        square = not isinstance(size, int) and size.get("height") is not None
        edge = size if isinstance(size, int) else size.get("height" if square else "shortest_edge")
        padded = not isinstance(size, int) and size.get("longest_edge") == edge
        mode = config.get("cxr_mode", "stretch" if square else "pad" if padded else "crop")
        cut = config.get("do_center_crop", mode != "stretch")
        if (
            edge is None
            or (square and size["width"] != edge)
            or (cut and crop != {"height": edge, "width": edge})
        ):
            raise ValueError(
                f"{path}: expected a square, or a shortest edge and a square crop of the same size, got {size}, {crop}"
            )
        resample = RESAMPLE.get(config.get("resample", 3))
        if resample is None:
            raise ValueError(f"{path}: resample {config['resample']} is neither bicubic (3) nor bilinear (2)")
        mean, std = (config.get(key, ()) for key in ("image_mean", "image_std"))
        return cls(edge, mode, mean, std, resample, config.get("cxr_full_range", False))


def _sha256(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _channels(value: float | tuple[float, float, float]) -> tuple[float, float, float]:
    return (value,) * 3 if isinstance(value, int | float) else value


def _spread(x_CHW: Tensor) -> Tensor:
    """Spread uint8 levels over 0 to 255, cutting off fractions, as MAIRA-2's processor does. Raises ValueError for an
    image of one level."""
    low, high = int(x_CHW.min()), int(x_CHW.max())
    if low == high:
        raise ValueError(f"every pixel is {low}, which cannot be spread over the whole range")
    table = (np.arange(256) - low).clip(0) / (high - low) * 255
    return torch.from_numpy(table.clip(0, 255).astype(np.uint8))[x_CHW.int()]


def _resize(x_HW: Tensor, h: int, w: int, how: str = "bicubic") -> Tensor:
    """Antialiased, first along rows, then along columns. Bicubic interpolation overshoots at edges: as in
    8-bit resizing, what leaves [0, 1] is cut off after each of the two passes."""
    for size in ((x_HW.shape[0], w), (h, w)):
        if x_HW.shape != size:
            x = F.interpolate(x_HW[None, None], size=size, mode=how, antialias=True, align_corners=False)
            x_HW = x[0, 0].clamp(0, 1)
    return x_HW


class Crops(NamedTuple):
    """The crops of one image; the last axis of `*_look` is brightness, contrast, blur sigma (0: none)."""

    global_GHW: np.ndarray  # uint8
    global_look: np.ndarray  # float32 (G, 3)
    local_LHW: np.ndarray  # uint8
    local_look: np.ndarray  # float32 (L, 3)


@dataclass(frozen=True)
class MultiCrop:
    """Random crops for self-distillation: cut on the CPU as 8-bit grey, changed in look on the device.

    What differs from natural images: larger crops and milder blur, for findings are small; no solarisation and no hue,
    which have no meaning in a radiograph; no flip, for the side of the heart is information.
    """

    global_size: int = 518  # pixels; the size that the encoder is used at
    local_size: int = 98  # pixels; seven patches a side, as in DINOv2
    global_crops: int = 2  # the teacher sees these
    local_crops: int = 8  # only the student sees these
    global_scale: tuple[float, float] = (
        0.4,
        1.0,
    )  # share of the area; DINOv2 has 0.32, which may cut the lungs away
    local_scale: tuple[float, float] = (0.05, 0.4)  # share of the area
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a crop before it is resized
    flip_probability: float = 0.0  # left and right matter in findings
    jitter_probability: float = 0.8  # of brightness and contrast, each crop by itself
    brightness: float = 0.1  # greatest shift of the grey levels (0 to 1); at 0.2 small runs learned nothing
    contrast: float = 0.2  # greatest relative change of the spread around the crop's mean
    blur_probability: float = 0.2  # DINOv2 blurs every first global crop; nodules would be lost
    blur_sigma: tuple[float, float] = (0.1, 1.0)  # pixels; DINOv2 goes to 2
    mean: float = 0.5307  # as in Preprocessing
    std: float = 0.2583

    def __call__(self, pixels_HW: np.ndarray, rng: np.random.Generator) -> Crops:
        """Cut the crops of one uint8 image (H, W); everything random comes from `rng`."""
        if pixels_HW.dtype != np.uint8 or pixels_HW.ndim != 2:
            raise ValueError(f"expected uint8 pixels (H, W), got {pixels_HW.dtype} {pixels_HW.shape}")
        image = Image.fromarray(pixels_HW)
        big = [self._crop(image, rng, self.global_scale, self.global_size) for _ in range(self.global_crops)]
        small = [self._crop(image, rng, self.local_scale, self.local_size) for _ in range(self.local_crops)]
        return Crops(
            np.stack(big),
            self._looks(rng, self.global_crops),
            np.stack(small) if small else np.zeros((0, self.local_size, self.local_size), np.uint8),
            self._looks(rng, self.local_crops),
        )

    def on_device(self, crops_BHW: Tensor, look_B3: Tensor) -> Tensor:
        """Turn uint8 crops on the device, and their looks on the CPU, into normalised float32 (B, 3, H,
        W)."""
        device = crops_BHW.device
        x_BHW = crops_BHW.float() / 255
        brightness_B, contrast_B, sigma_B = look_B3.float().unbind(-1)
        mean_B11 = x_BHW.mean((1, 2), keepdim=True)
        contrast_B11 = contrast_B.to(device, non_blocking=True)[:, None, None]
        x_BHW = (
            (x_BHW - mean_B11) * contrast_B11
            + mean_B11
            + brightness_B.to(device, non_blocking=True)[:, None, None]
        )
        x_BHW = x_BHW.clamp(0, 1)
        rows = sigma_B.nonzero()[:, 0]
        if len(rows):
            blurred = x_BHW.index_select(0, there := rows.to(device, non_blocking=True))
            blurred = gaussian_blur(blurred, sigma_B[rows], self.blur_sigma[1])
            x_BHW = x_BHW.index_copy(0, there, blurred)
        return ((x_BHW - self.mean) / self.std)[:, None].expand(-1, 3, -1, -1)

    def _looks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        jitter = rng.random(n) < self.jitter_probability
        brightness = rng.uniform(-self.brightness, self.brightness, n) * jitter
        contrast = 1 + rng.uniform(-self.contrast, self.contrast, n) * jitter
        sigma = rng.uniform(*self.blur_sigma, n) * (rng.random(n) < self.blur_probability)
        return np.stack([brightness, contrast, sigma], axis=-1).astype(np.float32)

    def _crop(
        self, image: Image.Image, rng: np.random.Generator, scale: tuple[float, float], size: int
    ) -> np.ndarray:
        left, top, w, h = random_box(rng, image.width, image.height, scale, self.aspect)
        crop = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        pixels = np.asarray(crop)
        return pixels[:, ::-1] if rng.random() < self.flip_probability else pixels


def random_box(
    rng: np.random.Generator, W: int, H: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw (left, top, width, height) of a box with an area in `scale` of the image's and an aspect ratio in
    `aspect`; if ten draws do not fit, the largest central box within `aspect`."""
    for _ in range(10):
        area = rng.uniform(*scale) * W * H
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= w <= W and 1 <= h <= H:
            return int(rng.integers(W - w + 1)), int(rng.integers(H - h + 1)), w, h
    w, h = min(W, max(1, int(H * aspect[1]))), min(H, max(1, int(W / aspect[0])))
    return (W - w) // 2, (H - h) // 2, w, h


def gaussian_blur(x_BHW: Tensor, sigma_B: Tensor, greatest_sigma: float) -> Tensor:
    """Blur each image with a separable Gaussian of its own sigma; edges are reflected."""
    radius = max(1, min(math.ceil(3 * greatest_sigma), min(x_BHW.shape[-2:]) - 1))
    t_K = torch.arange(-radius, radius + 1)
    weight_BK = (-(t_K**2) / (2 * sigma_B.float()[:, None] ** 2)).exp()
    weight_BK = (weight_BK / weight_BK.sum(1, keepdim=True)).to(x_BHW.device, non_blocking=True)
    x_1BHW = F.pad(x_BHW[None], (radius, radius, radius, radius), mode="reflect")
    x_1BHW = F.conv2d(x_1BHW, weight_BK[:, None, None, :], groups=len(x_BHW))
    return F.conv2d(x_1BHW, weight_BK[:, None, :, None], groups=len(x_BHW))[0]
