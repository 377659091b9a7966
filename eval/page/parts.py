"""Pieces of a page: tables that stack on a phone, images as data, numbers with their intervals."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from eval.intervals import brief
from eval.signature import Score

# Pixels of the longer side of a film, which the reader can enlarge to the whole window.
IMAGE_SIDE = 1024
# From so many columns on, intervals stand below the numbers; from so many, rows become cards in print, too.
WIDE, WIDEST = 7, 13

Heading = str | tuple[str, str]
"""A column's heading as text, or a short one and the long one that its tooltip shows."""


def table_of(head: Sequence[Heading], rows: Sequence[Sequence[str]], numeric_from: int = 99) -> str:
    """Make a table that becomes a list of cards on a phone. Cells are HTML already; headings are text.

    The first cell of a row names it, except in a table without numbers (`numeric_from` beyond the columns).
    """
    short = [h if isinstance(h, str) else h[0] for h in head]
    kind = ["" if i < numeric_from else " class='num'" for i in range(len(head))]
    shown = [escape(h) if isinstance(h, str) else tooltip(*h) for h in head]
    first = "".join(f"<th scope='col'{k}>{h}</th>" for k, h in zip(kind, shown, strict=True))
    lines = []
    for row in rows:
        cells = [
            f"<th scope='row'>{cell}</th>"
            if i == 0 and numeric_from < len(head)
            else f"<td{kind[i]} data-label='{escape(short[i])}'><div>{cell}</div></td>"
            for i, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    wide = " class='widest wide'" if len(head) >= WIDEST else " class='wide'" if len(head) >= WIDE else ""
    about = f"Table: {', '.join(filter(None, short))[:80]}"
    return (
        f"<div class='scroll' tabindex='0' role='group' aria-label='{escape(about)}'>"
        f"<table{wide}><thead><tr>{first}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def tooltip(short: str, whole: str) -> str:
    """Show a short name that has the whole one as its tooltip."""
    return escape(short) if short == whole else f"<abbr title='{escape(whole)}'>{escape(short)}</abbr>"


def value_of(s: Score | None) -> str:
    """Show a score with its interval as HTML, over how many conditions it is a mean, or why it has no interval; a dash
    where there is no score."""
    if s is None:
        return "–"
    said = number_of(s.value, s.low, s.high)
    notes = [note for note in (getattr(s, "over", ""), brief(getattr(s, "no_interval", ""))) if note]
    if not math.isfinite(s.value):
        return said
    return said + (f" <span class='quiet'>({escape(', '.join(notes))})</span>" if notes else "")


def number_of(value: float | None, low: float | None, high: float | None, form: str = ".3f") -> str:
    """Show a number with its interval as HTML; a dash in the place of what is None or not
    finite, and no interval where neither end is."""
    if value is None or not math.isfinite(value):
        return "–"
    ends = ["–" if x is None or not math.isfinite(x) else format(x, form) for x in (low, high)]
    # nothing was resampled
    if ends == ["–", "–"]:
        return f"{value:{form}}"
    return f"{value:{form}} <span class='quiet'>[{', '.join(ends)}]</span>"


def facts_of(facts: Mapping[str, str], kind: str = "facts") -> str:
    """Show a list of names with their values, which are text; entries without a value are left out."""
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return f"<dl class='{kind}'>{rows}</dl>" if rows else ""


def anchors(names: Iterable[str], kind: str) -> list[str]:
    """Make an id of the page for each name, all different: `study-s1`."""
    found: list[str] = []
    for name in names:
        slug = f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-')[:60] or 'unnamed'}"
        number, unique = 1, slug
        while unique in found:
            number += 1
            unique = f"{slug}-{number}"
        found.append(unique)
    return found


def data_uri(image: bytes | np.ndarray) -> str:
    """Make a data URI of an image: bytes of a PNG or JPEG, or a grey array (H, W), uint8 or float in [0, 1].

    Raises ValueError for bytes of another kind and for arrays that are not grey.
    """
    if isinstance(image, bytes | bytearray):
        kind = "png" if image[:4] == b"\x89PNG" else "jpeg" if image[:3] == b"\xff\xd8\xff" else None
        if kind is None:
            raise ValueError("image bytes are neither PNG nor JPEG")
        data = bytes(image)
    else:
        data, kind = _jpeg(np.asarray(image)), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _jpeg(image_HW: np.ndarray) -> bytes:
    from PIL import Image

    if image_HW.ndim != 2 or not image_HW.size:
        raise ValueError(f"an image array must be grey, (H, W); found shape {image_HW.shape}")
    if image_HW.dtype != np.uint8:
        image_HW = (np.clip(np.nan_to_num(image_HW.astype(np.float64)), 0, 1) * 255 + 0.5).astype(np.uint8)
    picture = Image.fromarray(image_HW)
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
