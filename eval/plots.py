"""The plots of the HTML page, as text with points and lines and as SVG, so that they follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from eval.page.parts import number_of, tooltip
from eval.scores.sheet import SheetScore


class Row(NamedTuple):
    """A value with its interval on an axis from 0 to 1. `whole` is the tooltip of a shortened name."""

    name: str
    value: float
    low: float
    high: float
    main: bool = True
    note: str = ""
    whole: str = ""


def intervals(rows: Sequence[Row], caption: str, about: str = "") -> str:
    """Draw rows below one another, each a point on the line of its interval, with the numbers beside it.

    Names and numbers are text, so that they wrap on a phone and can be read aloud. A value outside 0 to 1 (R2 of what
    is worse than the mean) is drawn at that end as a triangle; its number is right.
    """
    head = escape(caption) + (f" <span class='quiet'>{escape(about)}</span>" if about else "")
    lines = []
    for row in rows:
        name = tooltip(row.name, row.whole or row.name)
        said = number_of(row.value, row.low, row.high)
        said += f" <span class='note'>{escape(row.note)}</span>" if row.note else ""
        lines.append(
            f"<li><span class='name'>{name}</span><span class='track'>{_marks(row)}</span><span class='said'>{said}"
            "</span></li>"
        )
    axis = "<span>0</span><span>0.5</span><span>1</span>"
    lines.append(
        f"<li class='axis' aria-hidden='true'><span class='name'></span><span class='track'>{axis}</span>"
        "<span class='said'></span></li>"
    )
    return f"<figure><figcaption>{head}</figcaption><ul class='dots'>{''.join(lines)}</ul></figure>"


def _marks(row: Row) -> str:
    if not math.isfinite(row.value):
        return ""
    x, low, high = (100 * min(max(v, 0.0), 1.0) for v in (row.value, row.low, row.high))
    line = ""
    if math.isfinite(row.low) and math.isfinite(row.high):
        line = f"<i class='range' style='left:{low:.2f}%;width:{high - low:.2f}%'></i>"
    kind = f"point{' main' if row.main else ''}{'' if 0 <= row.value <= 1 else ' out'}"
    return f"{line}<i class='{kind}' style='left:{x:.2f}%'></i>"


def bars(key: str, rows: Sequence[tuple[str, str, Mapping[str, SheetScore]]]) -> str:
    """Draw the first headline score of the predictions above that of every baseline."""
    found = [(name, scores[key]) for name, _, scores in rows if key in scores]
    shown = [
        Row(name, s.value, s.low, s.high, main=not i)
        for i, (name, s) in enumerate(found)
        if not math.isnan(s.value)
    ]
    return intervals(shown, found[0][1].title, "with 95 % intervals") if shown else ""


def dots(points: Sequence[tuple[str, SheetScore, str]]) -> str:
    """Draw points (name, score, note) below one another; a score without a value keeps its row."""
    rows = [Row(name, s.value, s.low, s.high, note=note) for name, s, note in points]
    return intervals(rows, "F1 by condition", "with 95 % intervals")


LINES = ("var(--main)", "var(--miss)", "var(--ok)", "var(--new)", "var(--quiet)")  # of the page's style


def growth(curves: Mapping[str, Sequence[tuple[float, float, float, float]]], label: str) -> str:
    """Draw points with intervals over a logarithmic x, and a line through the means of each name.

    `curves` is name -> (x, value, low, high); an x may have several points.
    """
    every = np.array([point for points in curves.values() for point in points], float)
    left, right, top, bottom = 52, 350, 20 + 18 * len(curves), 200 + 18 * len(curves)
    x0, x1 = np.log(every[:, 0].min()), np.log(every[:, 0].max())
    low, high = np.nanmin(every[:, 1:]), np.nanmax(every[:, 1:])
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (np.log(x) - x0) / (x1 - x0) if x1 > x0 else 0.5
        return left + 20 + (right - left - 40) * across, bottom - (bottom - top) * (y - low) / (high - low)

    marks = []
    for tick in np.linspace(low, high, 5):
        y = at(every[0, 0], tick)[1]
        marks.append(f"<line class='grid' x1='{left}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}'/>")
        marks.append(f"<text class='tick' x='{left - 6}' y='{y + 4:.1f}' text-anchor='end'>{tick:.3f}</text>")
    for x in sorted(set(every[:, 0])):
        marks.append(
            f"<text class='tick' x='{at(x, low)[0]:.1f}' y='{bottom + 16}' text-anchor='middle'>{x:g}</text>"
        )
    for i, (name, points) in enumerate(curves.items()):
        colour, shift = LINES[i % len(LINES)], 4 * (i - (len(curves) - 1) / 2)
        marks.append(f"<text x='{left}' y='{14 + 18 * i}' style='fill:{colour}'>{escape(name)}</text>")
        means = {
            x: float(np.mean([p[1] for p in points if p[0] == x])) for x in sorted({p[0] for p in points})
        }
        line = " ".join(f"{a + shift:.1f},{b:.1f}" for a, b in (at(x, y) for x, y in means.items()))
        marks.append(f"<polyline points='{line}' style='stroke:{colour}'/>")
        for x, value, lower, upper in points:
            a, b = at(x, value)
            if lower is not None and upper is not None:
                ends = at(x, lower)[1], at(x, upper)[1]
                marks.append(
                    f"<line x1='{a + shift:.1f}' x2='{a + shift:.1f}' y1='{ends[0]:.1f}' y2='{ends[1]:.1f}' "
                    f"style='stroke:{colour}'/>"
                )
            marks.append(f"<circle cx='{a + shift:.1f}' cy='{b:.1f}' r='3.5' style='fill:{colour}'/>")
    return _svg(360, bottom + 24, label, "".join(marks), label)


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Plot one named curve in a panel of its own: the values, and a running mean where there are many."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(float(x)) and math.isfinite(float(y))]
    if len(finite) < 2:
        text = f"<text class='tick' x='180' y='90' text-anchor='middle'>{len(finite)} point, no curve</text>"
        return _svg(360, 180, name, text, name)
    x_N, y_N = np.array(finite).T
    x_low, x_high = x_N.min(), x_N.max()
    y_low, y_high = y_N.min(), y_N.max()
    y_high = y_high if y_high > y_low else y_low + 1.0

    def line(values_N: np.ndarray, kind: str) -> str:
        px = 48 + 300 * (x_N - x_low) / max(x_high - x_low, 1e-12)
        py = 150 - 136 * (values_N - y_low) / (y_high - y_low)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
        return f"<polyline class='{kind}' points='{points}'/>"

    smooth = len(y_N) >= 40
    marks = [
        f"<line class='grid' x1='48' x2='348' y1='{y}' y2='{y}'/><text class='tick' x='42' y='{y + 4}' "
        f"text-anchor='end'>{value:.3g}</text>"
        for y, value in ((14, y_high), (82, (y_low + y_high) / 2), (150, y_low))
    ]
    marks.append(f"<text class='tick' x='48' y='168'>step {x_low:g}</text>")
    marks.append(f"<text class='tick' x='348' y='168' text-anchor='end'>{x_high:g}</text>")
    marks.append(line(y_N, "faint" if smooth else "line"))
    if smooth:
        marks.append(line(_running_mean(y_N, max(len(y_N) // 20, 3)), "line"))
    return _svg(360, 180, f"{name}: from {y_N[0]:.3g} to {y_N[-1]:.3g}", "".join(marks), name)


def _running_mean(y_N: np.ndarray, width: int) -> np.ndarray:
    """Mean over a centred window of `width` values, of fewer at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(y_N)])
    at = np.arange(len(y_N))
    begin, end = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, len(y_N))
    return (sums[end] - sums[begin]) / (end - begin)


def _svg(width: int, height: int, label: str, marks: str, caption: str = "") -> str:
    head = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    label = escape(label, quote=True)
    return f"<figure>{head}<svg viewBox='0 0 {width} {height}' role='img' aria-label='{label}'>{marks}</svg></figure>"
