"""From a study to films: the frontal and lateral anatomy, and what each finding does to it.

Everything is built in attenuation (bright = dense) on a grid in millimetres, then exposed (`film.py`); masks come out
beside the film.
"""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from train.phantom.canvas import Canvas, curve, soft
from train.phantom.film import Film, expose
from train.phantom.patient import Anatomy, Examination, Finding

BODY, LUNG = 0.95, 0.72  # attenuation of the trunk; what a lung takes away from it


# ------------------------------------------------------------------------------------------ frontal anatomy


class Chest:
    """Frontal geometry: one-dimensional profiles of an anatomy, in mm."""

    def __init__(self, a: Anatomy, heart_ratio: float, raised: dict[str, float]):
        self.a = a
        self.heart_width = heart_ratio * 2 * a.half_width
        self.raised = raised  # mm by which a hemidiaphragm stands higher

    def lateral(self, y: np.ndarray) -> np.ndarray:
        """Return the distance in mm of the inner chest wall from the midline at height y."""
        s = np.clip(y / (0.62 * self.a.height), 0, 1)
        low = np.clip((y / self.a.height - 0.85) / 0.3, 0, 1)
        return self.a.half_width * (1 - 0.52 * (1 - s) ** 2.2 - 0.05 * low)

    def medial(self, y: np.ndarray) -> np.ndarray:
        """Return the distance in mm of the lung's inner border from the midline at height y."""
        return 17 + 13 * np.clip(y / self.a.height, 0, 1)

    def diaphragm(self, x: np.ndarray) -> np.ndarray:
        """Return the height y in mm of the diaphragm below position x; the patient's right (x < 0) stands
        higher."""
        a = self.a
        arch = np.exp(-(((np.abs(x) - 0.42 * a.half_width) / (0.43 * a.half_width)) ** 2))
        rise = np.where(x < 0, a.right_rise + self.raised.get("right", 0), self.raised.get("left", 0))
        return a.height - arch * (a.dome + rise)

    def apex(self, x: np.ndarray) -> np.ndarray:
        """Return the height in mm of the lung's upper border at position x."""
        centre = 0.36 * self.a.half_width
        return 34 * ((np.abs(x) - centre) / centre) ** 2

    def centre_of(self, side: str, zone: str) -> tuple[float, float]:
        """Return the middle (x, y) of a lung zone in mm."""
        y = {"upper": 0.24, "mid": 0.47, "lower": 0.70}[zone] * self.a.height
        inner = float(self.medial(np.array(y))) + (24 if side == "left" and zone == "lower" else 8)
        outer = float(self.lateral(np.array(y)))
        return SIGN[side] * (inner + outer) / 2, y


SIGN = {"left": 1.0, "right": -1.0}


def sides_of(f: Finding) -> tuple[str, ...]:
    """Return the sides that a finding is on; a bilateral one is on both."""
    return ("left", "right") if f.side == "bilateral" else (f.side,)


def render_frontal(study: Examination, sex: str, size: int = 512) -> Film:
    """Render the PA or AP film of a study; `size` is the shorter side in pixels."""
    a, style = study.anatomy, study.style
    c = Canvas(size, style)
    by_kind: dict[str, list[Finding]] = {}
    for f in study.findings:
        if not f.hidden:
            by_kind.setdefault(f.kind, []).append(f)

    ratio = a.ctr
    for f in by_kind.get("cardiomegaly", []):
        ratio = max(a.ctr, 0.50) + (0.015 if not f.certain else 0.06 + 0.13 * f.severity)
    raised = {}
    for f in by_kind.get("atelectasis", []):
        for side in sides_of(f):
            raised[side] = 8 + 10 * f.severity
    chest = Chest(a, ratio, raised)
    shape = np.random.default_rng([a.shape_seed, 1])
    film_rng = np.random.default_rng([style.film_seed, 2])

    x, y, ax = c.x, c.y, np.abs(c.x)
    # Trunk: shoulders above, chest wall below, air outside.
    wall = chest.lateral(y) + a.wall + 62 * np.clip((55 - y) / 90, 0, 1) ** 0.7
    trunk = soft(np.minimum(wall - ax, y + 62 - 0.42 * np.clip(ax - 58, 0, 95)), 5)
    film = BODY * trunk * (1.0 - 0.22 * (ax / (chest.a.half_width + a.wall)) ** 2)

    # Heart, great vessels, spine.
    hw = chest.heart_width
    cx, cy, theta = 0.165 * hw, 0.735 * a.height, 0.55
    u = ((x - cx) * np.cos(theta) + (y - cy) * np.sin(theta)) / (0.56 * hw)
    v = (-(x - cx) * np.sin(theta) + (y - cy) * np.cos(theta)) / (0.42 * hw)
    heart = soft((1 - np.sqrt(u * u + v * v)) * 0.5 * hw, 3.5)
    width = 22 + 7 * np.clip(y / a.height, 0, 1) + 5 * np.exp(-(((y - 0.1 * a.height) / 20) ** 2))
    for f in by_kind.get("wide_mediastinum", []):
        extra = 5 if not f.certain else 13 + 20 * f.severity
        width = width + extra * np.exp(-(((y - 0.24 * a.height) / (0.17 * a.height)) ** 2))
    mediastinum = soft(width - ax, 3)
    knob = soft(a.knob - np.hypot(x - 23, y - 0.30 * a.height), 2.5)
    centre = np.maximum(np.maximum(heart, mediastinum), knob)

    # Lungs.
    diaphragm = chest.diaphragm(x)
    edge = np.minimum(chest.lateral(y) - ax, diaphragm - y)
    edge = np.minimum(edge, y - chest.apex(x))
    edge = np.minimum(edge, ax - chest.medial(y))
    cavity = soft(edge, 2.2)
    lung = cavity * (1 - centre)
    masks = {"lungs": lung > 0.5}
    left, right = (x > 0), (x < 0)
    on = {"left": left, "right": right}

    aerated = lung.copy()
    extra = np.zeros(c.shape, np.float32)
    vessel_gain = 1.0 + sum(0.6 * f.severity for f in by_kind.get("edema", []))
    vessels = _vessels(c, chest, shape)

    for f in by_kind.get("pneumothorax", []):
        depth = 8 if not f.certain else 20 + 42 * f.severity
        d = depth * (0.35 + 0.65 * np.exp(-((np.clip(y, 0, None) / (0.45 * a.height)) ** 2)))
        into = np.minimum(chest.lateral(y) - ax, (y - chest.apex(x)) * 0.9)
        gap = soft(d - into, 0.9) * cavity * on[f.side]
        vessels *= 1 - gap
        extra += 0.26 * np.exp(-(((d - into) / 1.7) ** 2)) * cavity * on[f.side]  # the visceral pleura
        extra -= 0.20 * gap
        extra += (0.07 * f.severity) * lung * on[f.side] * (1 - gap)
        masks["pneumothorax"] = gap > 0.5
    for f in by_kind.get("consolidation", []) + by_kind.get("opacity", []):
        dense = f.kind == "consolidation"
        for side in sides_of(f):
            blob, bronchi = _patch(c, chest, f, side, dense)
            blob = blob * lung * on[side]
            if dense:
                aerated *= 1 - blob * (0.30 if not f.certain else 0.72)
                extra -= 0.16 * bronchi * blob
            else:
                extra += blob * (0.09 if not f.certain else 0.21 + 0.12 * f.severity)
            _add_mask(masks, f.kind, blob > 0.4)
    for f in by_kind.get("edema", []):
        rng = np.random.default_rng([f.seed, 3])
        hilar = np.exp(-(((ax - 48) / 44) ** 2) - (((y - 0.5 * a.height) / (0.26 * a.height)) ** 2))
        strength = 0.07 if not f.certain else 0.15 + 0.17 * f.severity
        haze = hilar * (1 + 0.22 * c.texture(rng, 14) + 0.15 * c.texture(rng, 6))
        extra += strength * haze * lung
        if f.certain:
            extra += 0.14 * (0.4 + f.severity) * _septal_lines(c, chest, rng) * lung
        masks["edema"] = (hilar * lung) > 0.4
    for f in by_kind.get("atelectasis", []):
        for side in sides_of(f):
            bands = _bands(c, chest, f, side)
            extra += (0.15 if not f.certain else 0.36 + 0.2 * f.severity) * bands * cavity * on[side]
            _add_mask(masks, "atelectasis", (bands * on[side]) > 0.4)
    for f in by_kind.get("nodule", []):
        spot = _nodule(c, chest, f)
        extra += spot * (0.16 if not f.certain else 0.42 + 0.26 * f.severity)
        _add_mask(masks, "nodule", spot > 0.5)

    attenuation = film - LUNG * aerated * (0.86 + 0.14 * np.sqrt(np.clip(edge, 0, 60) / 60))
    attenuation += extra + 0.15 * vessel_gain * vessels * lung
    attenuation += 0.17 * heart + 0.06 * mediastinum * trunk + 0.10 * knob
    below = soft(y - diaphragm, 3) * trunk
    attenuation += 0.16 * below
    stomach = soft(1 - np.sqrt(((x - 62) / 34) ** 2 + ((y - a.height - 4) / 20) ** 2), 0.25)
    attenuation -= 0.26 * stomach * below * (shape.random() < 0.7)
    if a.breast > 0:
        by = 0.74 * a.height
        for sign in (-1, 1):
            q = ((x - sign * 78) / 62) ** 2 + ((y - by) / 58) ** 2
            attenuation += (0.05 + 0.13 * a.breast) * soft((1 - q) * 30, 9) * trunk
    attenuation += _spine(c, a, shape) * trunk
    attenuation += a.bone * _bones(c, chest, shape, by_kind.get("fracture", []), masks) * trunk
    trachea = soft(8.5 - np.abs(x - 2), 2) * soft(0.30 * a.height - y, 6) * soft(y + 55, 6)
    attenuation -= 0.16 * trachea

    for f in by_kind.get("effusion", []):
        for side in sides_of(f):
            fluid = _fluid(c, chest, f, side) * on[side]
            # Fluid replaces air, wherever the arch of the diaphragm would otherwise show through.
            attenuation += LUNG * 0.94 * fluid * aerated
            _add_mask(masks, "effusion", (fluid * lung) > 0.5)
    for f in by_kind.get("pleural_thickening", []):
        rim = _rim(c, chest, f) * cavity * on[f.side]
        attenuation += (0.14 if not f.certain else 0.42 + 0.15 * f.severity) * rim
        _add_mask(masks, "pleural_thickening", rim > 0.5)
    for f in by_kind.get("device", []):
        layer = _device(c, chest, f)
        attenuation += layer
        _add_mask(masks, "device", layer > 0.2)
    return expose(c, attenuation, study, masks, film_rng)


def _add_mask(masks: dict[str, np.ndarray], name: str, mask: np.ndarray) -> None:
    masks[name] = masks[name] | mask if name in masks else mask


def _vessels(c: Canvas, chest: Chest, rng: np.random.Generator) -> np.ndarray:
    image, draw = c.layer()
    height = chest.a.height
    for sign in (-1, 1):
        hilum = np.array([sign * 30.0, (0.44 if sign > 0 else 0.47) * height])
        c.line(draw, curve((sign * 20, hilum[1] - 12), tuple(hilum), (sign * 38, hilum[1] + 26)), 12, 215)
        for angle in np.linspace(-1.35, 1.45, 9) + rng.normal(0, 0.12, 9):
            reach = rng.uniform(0.55, 0.95) * (
                0.42 * height if abs(angle) > 0.8 else 0.75 * chest.a.half_width
            )
            stem = _branch(hilum, sign, angle, reach, rng)
            c.line(draw, stem, 3.6, 190)
            c.line(draw, stem[: len(stem) // 2], 5.2, 200)
            for start in (7, 11, 15, 18):
                fork = _branch(
                    stem[start], sign, angle + rng.normal(0, 0.65), reach * rng.uniform(0.25, 0.5), rng
                )
                c.line(draw, fork, 1.8, 140)
    return c.array(image, 1.1)


def _branch(
    start: np.ndarray, sign: float, angle: float, reach: float, rng: np.random.Generator
) -> np.ndarray:
    step = np.array([sign * np.cos(angle), np.sin(angle)]) * reach
    bend = rng.normal(0, 0.12 * reach, 2)
    return curve(tuple(start), tuple(start + step / 2 + bend), tuple(start + step))


def _spine(c: Canvas, a: Anatomy, rng: np.random.Generator) -> np.ndarray:
    column = soft(19 - np.abs(c.x), 3)
    pitch = a.height / rng.uniform(10.5, 12)
    discs = np.cos((c.y + rng.uniform(0, pitch)) * (2 * np.pi / pitch))
    return column * (0.13 * a.bone + 0.05 * a.bone * np.tanh(3 * discs))


def _rib_path(chest: Chest, sign: int, i: int, jitter: np.ndarray) -> np.ndarray:
    """Posterior rib i (0..9): from the spine up and out, then steeply down along the wall."""
    height = chest.a.height
    y0 = (i - 0.3 + jitter[0]) * height / 10.2 - 6
    reach = float(chest.lateral(np.array(y0 + 22))) + 2
    drop = height * (0.10 + 0.022 * i)
    return curve(
        (sign * 16, y0),
        (sign * reach * 0.55, y0 - 8 + jitter[1] * 3),
        (sign * reach * 1.16, y0 + 0.1 * drop),
        (sign * reach, y0 + drop),
        n=36,
    )


def _bones(
    c: Canvas, chest: Chest, rng: np.random.Generator, fractures: list[Finding], masks: dict[str, np.ndarray]
) -> np.ndarray:
    back, draw_back = c.layer()
    front, draw_front = c.layer()
    jitter = rng.normal(0, 0.06, (2, 10, 2))
    broken: dict[tuple[int, int], Finding] = {}
    for f in fractures:
        sign, pick = int(SIGN[f.side]), np.random.default_rng([f.seed, 4])
        low = {"upper": 2, "mid": 3, "lower": 4}[f.zone]
        ribs = range(low, low + 3 + int(pick.integers(0, 3))) if f.detail == "rib" else (-1,)
        broken |= {(sign, i): f for i in ribs}

    def bone(path: np.ndarray, width: float) -> None:
        c.line(draw_back, path, width, 175)
        c.line(draw_back, path, width - 3.2, 120)  # cortex brighter than marrow

    for side, sign in enumerate((-1, 1)):
        for i in range(10):
            path = _rib_path(chest, sign, i, jitter[side, i])
            f = broken.get((sign, i))
            for piece in (path,) if f is None else _broken(c, draw_back, path, 8.5, f, masks):
                bone(piece, 8.5)
            if i < 7:  # anterior part: fainter, rising towards the sternum's side
                end = path[-1]
                tip = (sign * (36 + 5 * i), end[1] + 34 + 3 * i)
                c.line(draw_front, curve(tuple(end), (end[0] * 0.98, end[1] + 26), tip), 8.0, 110)
        shoulder = (sign * (chest.a.half_width + 8), -26 + 5 * jitter[side, 0, 0])
        clavicle = curve((sign * 14, 30), (sign * 62, -2), (sign * 84, 6), shoulder, n=36)
        f = broken.get((sign, -1))
        for piece in (clavicle,) if f is None else _broken(c, draw_back, clavicle, 11, f, masks):
            bone(piece, 11)
        blade = curve((sign * (chest.a.half_width - 2), 10), (sign * (chest.a.half_width - 22), 60),
                       (sign * (chest.a.half_width + 14), 120))  # fmt: skip
        c.line(draw_front, blade, 3, 120)
    return 0.26 * c.array(back, 0.7) + 0.16 * c.array(front, 1.2)


def _broken(
    c: Canvas,
    draw: ImageDraw.ImageDraw,
    path: np.ndarray,
    width: float,
    f: Finding,
    masks: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return a bone's two pieces, the outer one shifted across its axis, and the callus at their ends (drawn
    here)."""
    rng = np.random.default_rng([f.seed, 5])
    cut = int(rng.integers(13, 22)) + int(np.abs(path[0, 1])) % 3
    along = path[cut + 1] - path[cut - 1]
    across = np.array([-along[1], along[0]]) / (np.hypot(*along) + 1e-6)
    shift = (8 + 5 * f.severity) * (1 if rng.random() < 0.5 else -1)
    taper = np.linspace(1, 0.3, len(path) - cut)[:, None]
    outer = path[cut:] + across * shift * taper
    _add_mask(masks, "fracture", np.hypot(c.x - path[cut, 0], c.y - path[cut, 1]) < 12)
    for end in (path[cut - 2], outer[0]):
        r = (0.55 * width + 2.5 + 1.5 * f.severity) / c.mm
        (px, py) = c.pixel(end[None])[0]
        draw.ellipse((px - r, py - r, px + r, py + r), fill=255)
    return path[: cut - 1], outer


def _patch(c: Canvas, chest: Chest, f: Finding, side: str, dense: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return an airspace patch with a ragged edge, and the air-filled bronchi that show through a dense
    one."""
    rng = np.random.default_rng([f.seed, 6, side == "left"])
    cx, cy = chest.centre_of(side, f.zone)
    cx, cy = cx + rng.normal(0, 9), cy + rng.normal(0, 9)
    radius = (20 + 22 * f.severity) if dense else (26 + 22 * f.severity)
    q = np.sqrt(((c.x - cx) / rng.uniform(0.85, 1.25)) ** 2 + ((c.y - cy) / rng.uniform(0.85, 1.35)) ** 2)
    ragged = c.texture(rng, 16) * (0.20 if dense else 0.34) * radius
    blob = soft(radius - q + ragged, 4.5 if dense else 12)
    if not dense:
        return blob * (0.8 + 0.25 * c.texture(rng, 9)).clip(0, 1.5), blob
    image, draw = c.layer()
    root = np.array([SIGN[side] * 32.0, 0.47 * chest.a.height])
    for _ in range(4):
        end = np.array([cx, cy]) + rng.normal(0, radius * 0.6, 2)
        c.line(draw, curve(tuple(root), tuple((root + end) / 2 + rng.normal(0, 8, 2)), tuple(end)), 2.6, 220)
    return blob, c.array(image, 0.9)


def _septal_lines(c: Canvas, chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Kerley B lines: short, thin, horizontal, at the lateral bases."""
    image, draw = c.layer()
    for sign in (-1, 1):
        for _ in range(16):
            y = rng.uniform(0.52, 0.88) * chest.a.height
            outer = float(chest.lateral(np.array(y))) - rng.uniform(1, 7)
            length = rng.uniform(9, 20)
            c.line(
                draw,
                np.array([[sign * outer, y], [sign * (outer - length), y + rng.normal(0, 1.5)]]),
                1.4,
                230,
            )
    return c.array(image, 0.6)


def _bands(c: Canvas, chest: Chest, f: Finding, side: str) -> np.ndarray:
    """Plate-like atelectasis: one to three straight bands."""
    rng = np.random.default_rng([f.seed, 7, side == "left"])
    image, draw = c.layer()
    cx, cy = chest.centre_of(side, f.zone)
    for k in range(1 + int(rng.integers(0, 3))):
        length, slope = rng.uniform(38, 78), rng.normal(0, 0.25)
        mid = np.array([cx + rng.normal(0, 8) + SIGN[side] * 8, cy + 4 + 13 * k + rng.normal(0, 4)])
        step = np.array([length / 2, slope * length / 2])
        c.line(draw, np.stack([mid - step, mid + step]), rng.uniform(4.0, 7.5), 235)
    return c.array(image, 0.9)


def _nodule(c: Canvas, chest: Chest, f: Finding) -> np.ndarray:
    rng = np.random.default_rng([f.seed, 8])
    cx, cy = chest.centre_of(f.side, f.zone)
    cx += rng.uniform(-22, 22)
    cy += rng.uniform(-18, 18)
    r = f.size_mm / 2
    q = np.hypot((c.x - cx) * rng.uniform(0.9, 1.1), (c.y - cy) * rng.uniform(0.9, 1.1))
    # A sphere's chord: dense in the middle, thinning towards the edge.
    return np.sqrt(np.clip(1 - (q / (r + 0.6)) ** 2, 0, 1)).astype(np.float32)


def _fluid(c: Canvas, chest: Chest, f: Finding, side: str) -> np.ndarray:
    """Free fluid: a level that climbs the lateral wall (the meniscus)."""
    a = chest.a
    # An equivocal one only blunts the angle; a large one reaches the hilum.
    depth = 12 if not f.certain else 20 + 112 * f.severity**1.4
    lateral = np.clip(np.abs(c.x) / chest.lateral(c.y), 0, 1.2)
    floor = a.height - 6 - (a.dome + a.right_rise) * (0.15 if depth < 30 else 0.45)
    level = floor - depth * (0.45 + 0.75 * lateral**5)
    if depth < 30:  # small effusions show in the angle alone
        level = a.height - depth * 2.4 * np.clip((lateral - 0.55) / 0.45, 0, 1) ** 1.5
    return soft(c.y - level, 4.0)


def _rim(c: Canvas, chest: Chest, f: Finding) -> np.ndarray:
    """Pleural thickening: an apical cap or a rind along the lower lateral wall."""
    rng = np.random.default_rng([f.seed, 9])
    thick = 5 if not f.certain else 11 + 9 * f.severity
    if f.zone == "upper":
        into = c.y - chest.apex(c.x)
        along = soft(0.16 * chest.a.height - c.y, 8)
        thick *= 1.5
    else:
        into = chest.lateral(c.y) - np.abs(c.x)
        along = soft(0.22 * chest.a.height - np.abs(c.y - 0.62 * chest.a.height), 10)
    return soft(thick * (1 + 0.25 * c.texture(rng, 18)) - into, 1.5) * along


def _device(c: Canvas, chest: Chest, f: Finding) -> np.ndarray:
    """Tubes and lines, in attenuation."""
    rng = np.random.default_rng([f.seed, 10])
    image, draw = c.layer()
    h, w, s = chest.a.height, chest.a.half_width, SIGN.get(f.side, 1.0)
    strength, blur = 0.55, 0.6
    carina = 0.31 * h
    atrium = (-17.0, 0.60 * h)
    if f.detail == "endotracheal_tube":
        tip = carina - rng.uniform(22, 55)
        for dx, value in ((-4, 190), (4, 190), (0, 90)):
            c.line(draw, np.array([[2 + dx, -62.0], [2 + dx, tip]]), 2.6 if dx else 7.0, value)
        strength = 0.50
    elif f.detail == "central_line":
        cava = (-16.0, 0.30 * h)
        start = (s * 46.0, -50.0) if rng.random() < 0.5 else (s * 105.0, -8.0)
        c.line(
            draw,
            curve(start, (s * 40, 0.02 * h), (-6.0, 0.08 * h), cava, (-17, rng.uniform(0.38, 0.52) * h)),
            3.4,
            235,
        )
    elif f.detail == "picc":
        start = (s * (w + 40), 30.0)
        c.line(
            draw,
            curve(
                start, (s * (w + 14), -26), (s * 60, 8), (-8.0, 0.06 * h), (-17, rng.uniform(0.38, 0.55) * h)
            ),
            2.8,
            235,
        )
    elif f.detail == "pacemaker":
        x, y = s * rng.uniform(78, 100), rng.uniform(18, 45)
        box = np.array([[x - 23, y - 19], [x + 23, y + 19]])
        (x0, y0), (x1, y1) = c.pixel(box)
        draw.rounded_rectangle((min(x0, x1), y0, max(x0, x1), y1), radius=9 / c.mm, fill=235)
        for end in (atrium, (30.0, 0.80 * h))[: 1 + int(rng.random() < 0.7)]:
            lead = curve((x - s * 20, y - 12), (s * 30, -18), (-12, 0.10 * h), (-24, 0.5 * h), end)
            c.line(draw, lead, 2.0, 210)
        strength = 0.75
    elif f.detail == "chest_tube":
        entry = (s * (w + 30), rng.uniform(0.62, 0.75) * h)
        tip = (s * rng.uniform(0.45, 0.62) * w, rng.uniform(0.12, 0.34) * h)
        path = curve(entry, (s * w * 0.92, 0.55 * h), (s * w * 0.85, 0.3 * h), tip)
        c.line(draw, path, 8.0, 110)
        c.line(draw, path, 3.0, 235)
    elif f.detail == "enteric_tube":
        c.line(draw, curve((4, -62), (6, 0.35 * h), (8, 0.8 * h), (20, h), (62, h + 26)), 4.4, 150)
        c.line(draw, curve((4, -62), (6, 0.35 * h), (8, 0.8 * h), (20, h), (62, h + 26)), 1.6, 225)
    return strength * c.array(image, blur)


# ------------------------------------------------------------------------------------------ lateral anatomy


def render_lateral(study: Examination, sex: str, size: int = 512) -> Film:
    """Render the lateral film: sternum on the left, spine on the right. A simpler body than the frontal one;
    of the findings it shows what a lateral adds: heart size, fluid behind, patches and nodules by depth; and
    those that the frontal film hides, which alone have masks here."""
    a, style = study.anatomy, study.style
    c = Canvas(size, style)
    rng = np.random.default_rng([a.shape_seed, 11])
    x, y = c.x, c.y
    depth = 0.80 * a.half_width + 12
    s = np.clip(y / (0.6 * a.height), 0, 1)
    front = -depth * (0.45 + 0.55 * np.sqrt(np.clip(1 - (1 - s) ** 2, 0, 1)))
    back = depth * (0.72 + 0.28 * np.sin(np.pi * np.clip(y / a.height, 0, 1)))
    trunk = soft(np.minimum(np.minimum(x - front + a.wall, back + 45 - x), y + 70), 5)
    domes = a.height - 14 - 52 * np.exp(-(((x + 0.25 * depth) / (0.75 * depth)) ** 2))
    lung = soft(np.minimum(np.minimum(x - front, back - x), np.minimum(domes - y, y + 4)), 3)
    heart_ratio = a.ctr + sum(0.05 + 0.12 * f.severity for f in study.findings if f.kind == "cardiomegaly")
    r = heart_ratio * a.half_width
    heart = soft(r - np.hypot((x + 0.30 * depth) * 0.95, (y - 0.70 * a.height) * 1.05), 5)
    film = (BODY + 0.1) * trunk - 0.78 * lung * (1 - 0.75 * heart)
    film += (
        0.14 * soft(20 - np.abs(x - back + 18), 4) * trunk * (1 + 0.3 * np.cos(y * 2 * np.pi * 11 / a.height))
    )
    for i in range(9):
        y0 = i * a.height / 9
        rib = np.abs(y - y0 - 0.32 * (back - x)) - 3
        film += 0.07 * a.bone * soft(-rib, 1.4) * trunk
    film += 0.16 * soft(y - domes, 3) * trunk
    masks = {"lungs": lung > 0.5}
    for f in study.findings:
        if f.hidden:
            shape = _behind(c, a, depth, f) * lung
            film += {"effusion": 0.7, "consolidation": 0.5, "nodule": 0.45}[f.kind] * shape
            masks[f.kind] = shape > 0.4
        elif f.kind == "effusion" and f.certain:
            level = a.height - 16 - (18 + 80 * f.severity) * np.clip((x / depth + 0.3) / 1.0, 0, 1) ** 1.5
            film += 0.7 * lung * soft(y - level, 4)
        elif f.kind in ("consolidation", "opacity", "nodule"):
            fr = np.random.default_rng([f.seed, 12])
            cy = {"upper": 0.25, "mid": 0.48, "lower": 0.68}[f.zone] * a.height
            cx = fr.uniform(-0.2, 0.6) * depth
            radius = f.size_mm / 2 if f.kind == "nodule" else 18 + 20 * f.severity
            gain = {"consolidation": 0.5, "opacity": 0.2, "nodule": 0.3}[f.kind]
            film += gain * soft(radius - np.hypot(x - cx, y - cy), 2 if f.kind == "nodule" else 8) * lung
    return expose(c, film, study, masks, rng)


def _behind(c: Canvas, a: Anatomy, depth: float, f: Finding) -> np.ndarray:
    """Return a hidden finding on the lateral film: fluid in the posterior angle, a patch over the lower
    spine, a nodule in the retrosternal space; `depth` is half that of the chest, mm."""
    x, y = c.x, c.y
    rng = np.random.default_rng([f.seed, 13])
    if f.kind == "effusion":
        rise = np.clip((x / depth + 0.1) / 0.9, 0, 1) ** 1.5
        return soft(y - (a.height - 14 - (18 + 80 * f.severity) * rise), 4)
    if f.kind == "consolidation":
        cx, cy = rng.uniform(0.40, 0.62) * depth, rng.uniform(0.60, 0.72) * a.height
        radius = 20 + 16 * f.severity
        ragged = 0.12 * radius * c.texture(rng, 24)
        return soft(radius - np.hypot(x - cx, y - cy) + ragged, 4.5)
    cx, cy = rng.uniform(-0.74, -0.60) * depth, rng.uniform(0.24, 0.38) * a.height
    return soft(f.size_mm / 2 - np.hypot(x - cx, y - cy), 2)
