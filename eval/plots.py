"""The plots of the HTML page, written as SVG so that they follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from eval.scores.keys import short_name
from eval.scores.result import Scores
from eval.signature import Score


def _scale(x: float, left: float, right: float) -> float:
    return left + (right - left) * min(max(x, 0.0), 1.0)


def _grid(left: float, right: float, top: float, bottom: float) -> str:
    """Vertical lines at 0, 0.25 .. 1 with their values below."""
    marks = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = _scale(tick, left, right)
        marks.append(f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{bottom}'/>")
        marks.append(f"<text class='tick' x='{x:.1f}' y='{bottom + 16}' text-anchor='middle'>{tick:g}</text>")
    return "".join(marks)


def bars(key: str, rows: Sequence[tuple[str, str, Mapping[str, Score]]]) -> str:
    """The first headline score of the predictions above that of every floor."""
    rows = [
        (name, found[key]) for name, _, found in rows if key in found and not math.isnan(found[key].value)
    ]
    left, right, step = 235, 700, 30
    bottom = 8 + step * len(rows)
    marks = [_grid(left, right, 4, bottom)]
    for i, (name, s) in enumerate(rows):
        y = 8 + step * i
        x, low, high = (_scale(v, left, right) for v in (s.value, s.low, s.high))
        marks.append(f"<text x='{left - 10}' y='{y + 15}' text-anchor='end'>{escape(_cut(name))}</text>")
        marks.append(
            f"<rect class='{'floor' if i else 'main'}' x='{left}' y='{y + 2}' width='{x - left:.1f}' height='17'/>"
        )
        marks.append(
            f"<line class='whisker' x1='{low:.1f}' x2='{high:.1f}' y1='{y + 10.5}' y2='{y + 10.5}'/>"
        )
    return _svg(
        720, bottom + 24, f"{short_name(key)}, predictions and floors", "".join(marks), short_name(key)
    )


def _cut(name: str, most: int = 30) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def dots(scores: Scores, name: str) -> str:
    """F1 and interval of every condition, the frequent ones first. `name` is label-f1 or chexbert-f1."""
    rows = sorted(scores.conditions[name]["neg"], key=lambda row: -row["support"])
    left, right, step = 235, 640, 24
    bottom = 8 + step * len(rows)
    marks = [_grid(left, right, 4, bottom)]
    for i, row in enumerate(rows):
        y = 8 + step * i + 12
        s = scores.scores[f"{name}/{row['condition']}/neg"]
        quiet = "" if row["support"] else " class='tick'"
        marks.append(
            f"<text{quiet} x='{left - 10}' y='{y + 4}' text-anchor='end'>{escape(row['condition'])}</text>"
        )
        marks.append(f"<text class='tick' x='712' y='{y + 4}' text-anchor='end'>n = {row['support']}</text>")
        if row["support"]:
            x, low, high = (_scale(v, left, right) for v in (s.value, s.low, s.high))
            marks.append(f"<line class='whisker' x1='{low:.1f}' x2='{high:.1f}' y1='{y}' y2='{y}'/>")
            marks.append(f"<circle class='main' cx='{x:.1f}' cy='{y}' r='4.5'/>")
    return _svg(720, bottom + 24, "F1 by condition with 95 % intervals", "".join(marks))


def whiskers(rows: Sequence[tuple[str, float, float, float]], label: str) -> str:
    """(name, value, low, high) of each row, below one another on an axis from 0 to 1; a value below 0 (R2 of what is
    worse than the mean) is written there."""
    left, right, step = 300, 690, 24
    bottom = 8 + step * len(rows)
    marks = [_grid(left, right, 4, bottom)]
    for i, (name, *values) in enumerate(rows):
        y = 8 + step * i + 12
        marks.append(f"<text x='{left - 10}' y='{y + 4}' text-anchor='end'>{escape(_cut(name, 40))}</text>")
        if all(math.isfinite(v) for v in values):
            x, low, high = (_scale(v, left, right) for v in values)
            marks.append(f"<line class='whisker' x1='{low:.1f}' x2='{high:.1f}' y1='{y}' y2='{y}'/>")
            if values[0] < 0:
                marks.append(f"<text class='tick' x='{left + 6}' y='{y + 4}'>{values[0]:.2f}, below 0</text>")
            else:
                marks.append(f"<circle class='main' cx='{x:.1f}' cy='{y}' r='4.5'/>")
    return _svg(720, bottom + 24, label, "".join(marks), label)


LINES = ("var(--main)", "var(--miss)", "var(--ok)", "var(--new)", "var(--quiet)")  # of the page's style


def growth(curves: Mapping[str, Sequence[tuple[float, float, float, float]]], label: str) -> str:
    """name -> (x, value, low, high), several points an x allowed: points with intervals over a logarithmic x, a line
    through the means of each name."""
    every = np.array([point for points in curves.values() for point in points], float)
    left, right, top, bottom = 60, 690, 20 + 18 * len(curves), 300 + 18 * len(curves)
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
                    f"style='stroke:{colour};opacity:.5'/>"
                )
            marks.append(f"<circle cx='{a + shift:.1f}' cy='{b:.1f}' r='3.5' style='fill:{colour}'/>")
    return _svg(720, bottom + 24, label, "".join(marks), label)


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One named curve in a panel of its own: the values, and a running mean where there are many."""
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
