"""From attenuation to a film: scatter, noise, post-processing, and what gets onto a film beside the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.phantom.canvas import Canvas, curve
from train.phantom.patient import Examination


@dataclass
class Film:
    """`attenuation` float32 (H, W), the latent image of the detector; `shown` the pair of its values that the
    window maps to black and white; `masks` name -> bool (H, W)."""

    attenuation: np.ndarray
    shown: tuple[float, float]
    masks: dict[str, np.ndarray]
    spacing_mm: float

    def display(self) -> np.ndarray:
        """Return float32 (H, W) in [0, 1], as a workstation shows the film."""
        low, high = self.shown
        return np.clip((self.attenuation - low) / (high - low), 0, 1)


def expose(
    c: Canvas,
    attenuation: np.ndarray,
    study: Examination,
    masks: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> Film:
    """Turn attenuation (H, W) into the film that a detector and its operator make of it.

    Adds scatter, edge enhancement, noise that grows with density, gamma, side marker, ECG leads, collimation
    and a window. The order of the draws from `rng` is part of the phantoms: a change of it changes every film
    of a seed.
    """
    style = study.style
    film = attenuation.astype(np.float32)
    veil = c.widely_blurred(film)
    film = film * (1 - style.scatter) + veil * style.scatter  # scattered radiation flattens contrast
    detail = film - c.widely_blurred(film, 8)
    film = film + style.sharpen * detail
    # Dense parts let few quanta through, so they are noisier.
    grain = rng.standard_normal(c.shape, dtype=np.float32)
    film += style.noise * np.exp(0.8 * np.clip(film, -0.5, 1.6)) * grain
    if style.gamma != 1.0:
        film = np.sign(film) * np.abs(film) ** np.float32(style.gamma)
    image, draw = c.layer()
    if style.marker:  # the technologist's side letter, on the patient's left
        col, row = c.pixel(np.array([[0.40 * style.fov, 0.0]]))[0]
        row = max(row, 0.06 * c.shape[0])
        draw.text((min(col, c.shape[1] * 0.93), row), "L", fill=255, font_size=max(9, c.shape[0] // 20))
    for _ in range(style.leads):
        px, py = rng.uniform(-0.36, 0.36) * style.fov, rng.uniform(0, 0.75) * study.anatomy.height
        (cx, cy), r = c.pixel(np.array([[px, py]]))[0], 5 / c.mm
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), outline=150, width=max(1, round(2 / c.mm)))
        wire = curve((px, py), (px * 1.3, py + 60), (rng.uniform(-1, 1) * 120, study.anatomy.height + 70))
        c.line(draw, wire, 1.1, 80)
    film += 0.55 * c.array(image, 0.4)
    if style.collimation > 0:
        m = [max(1, round(n * style.collimation * rng.uniform(0.2, 1))) for n in (*c.shape, *c.shape)]
        border = np.ones(c.shape, bool)
        border[m[0] : -m[2], m[1] : -m[3]] = False
        film[border] = film.max() if rng.random() < 0.3 else film.min()
    small = film[::4, ::4]
    low, high = np.quantile(small, style.window)
    return Film(film, (float(low), float(high)), masks, c.mm)
