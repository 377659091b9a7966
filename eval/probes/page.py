"""The report of a probe as one HTML page that needs nothing else: encoders side by side, differences, films with masks,
patches coloured by their principal components."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.plots import whiskers
from eval.probes.summary import what
from eval.report import data_uri, is_page, table_of, write_body

SHOWN = {  # metrics that are drawn: those between 0 and 1
    "auprc": "AUPRC", "auroc": "AUROC", "r2": "R2", "dice": "Dice", "precision": "precision",
}  # fmt: skip
NAMES = {
    **SHOWN,
    "mae": "mean absolute error",
    "iou": "IoU",
    "dice_pooled": "Dice, pooled",
    "iou_pooled": "IoU, pooled",
}


def write_page(path: Path, report: Mapping[str, Any], pictures: Mapping[str, Sequence] | None = None) -> None:
    """`report` is what train/probe/run.py makes; `pictures`: encoder -> of some images, what is shown -> the picture.

    Raises FileExistsError for a file that is no page of ours.
    """
    if path.exists() and not is_page(path):
        raise FileExistsError(f"{path} exists and is not a page of ours; choose another folder")
    counts = ", ".join(f"{n} {split}" for split, n in report["images"].items())
    body = [
        f"<header><h1>Encoders on {escape(report['data'])}</h1></header>",
        f"<p>{counts} images. Brackets are 95 % intervals over patients. Chosen on validation, judged on test.</p>",
        *(f"<p class='banner'>{escape(line)}</p>" for line in report["notes"]),
    ]
    for task, found in report["tasks"].items():
        body.append(f"<section><h2>{escape(task)}</h2>{_drawn(found['scores'])}{_scores(found['scores'])}")
        gaps = next((rows for key, rows in found.items() if key != "scores"), [])
        if gaps:
            body.append(_gaps(report["encoders"][0], gaps))
        body.append("</section>")
    if pictures:
        body.append(_pictures(pictures))
    body.append(f"<details><summary>Versions</summary><pre>{escape(str(report['versions']))}</pre></details>")
    write_body(path, f"Encoders on {report['data']}", body)


def _means(rows: Sequence[Mapping[str, Any]]) -> list:
    """The rows that stand for a task: the mean where there is one, else all."""
    of = [r for r in rows if what(r) in ("macro", "mean")]
    return of or list(rows)


def _drawn(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for metric, name in SHOWN.items():
        mine = [r for r in _means([r for r in rows if r["metric"] == metric]) if r["value"] is not None]
        if mine:
            lines = [
                (_line(r), r["value"], *(float("nan") if x is None else x for x in r["interval"]))
                for r in mine
            ]
            parts.append(whiskers(lines, name))
    return "".join(parts)


def _line(row: Mapping[str, Any]) -> str:
    of = "" if what(row) in ("macro", "mean") else f", {what(row)}"
    return f"{row['encoder']}, {row['head']}{of}"


def _value(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "–"
    low, high = ("–" if x is None else f"{x:.3f}" for x in row["interval"])
    return f"{row['value']:.3f} <span class='quiet'>[{low}, {high}]</span>"


def _scores(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a finding or structure and metric, a column an encoder and head."""
    columns = list(dict.fromkeys((r["encoder"], r["head"]) for r in rows))
    by_place = {(r["metric"], what(r), r["encoder"], r["head"]): r for r in rows}
    places = list(dict.fromkeys((r["metric"], what(r)) for r in rows))
    lines = []
    for metric, about in places:
        cells = [by_place.get((metric, about, *column)) for column in columns]
        known = next(c for c in cells if c)
        n = f"{known['n']}" + (f", {known['positives']} with" if known.get("positives") is not None else "")
        lines.append(
            [
                escape(f"{NAMES.get(metric, metric)}, {about}"),
                n,
                *("" if c is None else _value(c) for c in cells),
            ]
        )
    heads = ["", "n", *(f"{encoder}: {head}" for encoder, head in columns)]
    return table_of(heads, lines, numeric_from=1)


def _gaps(first: str, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for r in rows:
        if r["metric"] not in ("auprc", "auroc", "dice", "r2", "mae", "precision"):
            continue
        value = r.get("difference", r["value"])
        low, high = r["interval"]
        p = r.get("p_holm") if r.get("p_holm") is not None else r.get("p")
        shown = (
            "–"
            if value is None or low is None
            else f"{value:+.3f} <span class='quiet'>[{low:+.3f}, {high:+.3f}]</span>"
        )
        lines.append([
            escape(f"{NAMES.get(r['metric'], r['metric'])}, {what(r)}"), escape(f"{r['encoder']}: {r['head']}"), shown,
            "–" if p is None else f"{p:.4f}",
        ])  # fmt: skip
    table = table_of(["", f"{first} less", "difference", "p"], lines, numeric_from=2)
    return f"<details><summary>{escape(first)} less each of the others</summary>{table}</details>"


def _png(picture_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _pictures(pictures: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> str:
    """A table an encoder: an image a row, a picture of it a column."""
    tables = []
    for name, images in pictures.items():
        lines = [
            [
                f"<img alt='test image {i}, {escape(what)}' src='{data_uri(_png(picture))}' style='width:100%'>"
                for what, picture in image.items()
            ]
            for i, image in enumerate(images)
        ]
        tables.append(
            f"<h3>{escape(name)}</h3>{table_of(list(images[0]), lines, numeric_from=99)}" if images else ""
        )
    return f"<section><h2>Test images</h2>{''.join(tables)}</section>"
