"""How a film is shown in a notebook: an inline PNG with words beside it. All text is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

# Pixels of the longer side of a film that is shown.
SIDE = 384


def thumbnail(pixels_HW: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Shrink pixels in [0, 1] to at most `side` on the longer side: uint8 (h, w)."""
    image = Image.fromarray((np.asarray(pixels_HW, np.float32) * 255).round().astype(np.uint8))
    image.thumbnail((side, side))
    return np.asarray(image)


def figure(film_HW: np.ndarray | None, lines: Sequence[str], warnings: Sequence[str] = ()) -> str:
    """Put paragraphs and warnings beside a film, which is pixels in [0, 1] or a `thumbnail`."""
    words = [f"<p style='margin:.3em 0'>{escape(line)}</p>" for line in lines]
    words += [f"<p style='margin:.3em 0;color:#9a5b00'>&#9888; {escape(warning)}</p>" for warning in warnings]
    picture = ""
    if film_HW is not None:
        levels_HW = film_HW if film_HW.dtype == np.uint8 else thumbnail(film_HW)
        picture = f"<img alt='X-ray' src='{_uri(levels_HW)}' style='max-width:{SIDE}px;background:#000'>"
    return (
        "<div style='display:flex;gap:1em;align-items:flex-start'>"
        f"{picture}<div style='max-width:45em'>{''.join(words)}</div></div>"
    )


def _uri(levels_HW: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(levels_HW).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
