"""A film's grid in millimetres, and drawing on it."""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from train.phantom.patient import Style


class Canvas:
    """A film's grid in mm: `x` (H, W) from the midline, `y` (H, 1) from the lung apices; and drawing on it."""

    def __init__(self, size: int, style: Style):
        rows, cols = round(size * max(style.aspect, 1.0)), round(size * max(1 / style.aspect, 1.0))
        self.shape = (rows, cols)
        self.mm = style.fov * max(style.aspect, 1.0) / rows
        self.style = style
        self.x_centre = cols * self.mm / 2 + style.shift_x
        y = (np.arange(rows, dtype=np.float32) + 0.5) * self.mm - style.shift_y
        x = (np.arange(cols, dtype=np.float32) + 0.5) * self.mm - self.x_centre
        self.y = y[:, None]
        self.x = x[None, :] - np.float32(style.tilt) * (self.y - 130)

    def pixel(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Convert points (N, 2) of x and y in mm to (column, row) in pixels."""
        x, y = points[:, 0], points[:, 1]
        col = (x + self.style.tilt * (y - 130) + self.x_centre) / self.mm
        row = (y + self.style.shift_y) / self.mm
        return list(zip(col.tolist(), row.tolist(), strict=True))

    def layer(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """Return an empty 8-bit layer of the film's size, and what draws on it."""
        image = Image.new("L", (self.shape[1], self.shape[0]), 0)
        return image, ImageDraw.Draw(image)

    def line(self, draw: ImageDraw.ImageDraw, points: np.ndarray, width_mm: float, value: int) -> None:
        """Draw a line through points (N, 2) in mm, at least one pixel wide."""
        draw.line(self.pixel(points), fill=value, width=max(1, round(width_mm / self.mm)))

    def array(self, image: Image.Image, blur_mm: float = 0.8) -> np.ndarray:
        """Return a drawn layer as float32 (H, W) in [0, 1], its edges softened by `blur_mm`."""
        if blur_mm > 0:
            image = image.filter(ImageFilter.GaussianBlur(blur_mm / self.mm))
        return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)

    def texture(self, rng: np.random.Generator, grain_mm: float) -> np.ndarray:
        """Draw a smooth random field (H, W), zero mean, unit variance, with features of about `grain_mm`."""
        rows, cols = (max(4, round(n * self.mm / grain_mm)) for n in self.shape)
        coarse = Image.fromarray(rng.standard_normal((rows, cols), dtype=np.float32))
        field = np.asarray(coarse.resize((self.shape[1], self.shape[0]), Image.Resampling.BICUBIC))
        return field / (field.std() + 1e-6)

    def widely_blurred(self, image: np.ndarray, fraction: int = 16) -> np.ndarray:
        """Blur (H, W) by shrinking it `fraction` times and enlarging it again: cheap, where no detail
        counts."""
        rows, cols = self.shape
        small = Image.fromarray(image).resize((cols // fraction, rows // fraction), Image.Resampling.BOX)
        return np.asarray(small.resize((cols, rows), Image.Resampling.BICUBIC))


def soft(signed_mm: np.ndarray, edge_mm: float) -> np.ndarray:
    """Return 1 inside (positive) and 0 outside, with an edge of about `edge_mm`."""
    return 0.5 + 0.5 * np.tanh(signed_mm * np.float32(1 / edge_mm))


def curve(*points: tuple[float, float], n: int = 24) -> np.ndarray:
    """Return a Bézier curve (n, 2): through the first and last point, drawn towards the others."""
    return _bernstein(len(points), n) @ np.asarray(points, dtype=np.float64)


@lru_cache
def _bernstein(degree_plus_1: int, n: int) -> np.ndarray:
    d, t = degree_plus_1 - 1, np.linspace(0, 1, n)
    return np.stack([comb(d, k) * t**k * (1 - t) ** (d - k) for k in range(d + 1)], axis=1)
