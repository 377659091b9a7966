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

from eval.page.parts import data_uri, number_of, table_of, tooltip
from eval.page.shell import Section, about, is_page, write_body
from eval.page.verdict import Outcome, sentence
from eval.plots import Row, intervals
from eval.probes.summary import what

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


# Of sections, where the task's own name would not do.
TITLES = {"knn": "Nearest neighbours", "upernet": "UPerNet", "vitdet": "ViTDet"}
# Labels of a task that have a panel of their own; the others are in the table.
MOST_PANELS = 24


def write_page(
    path: Path,
    report: Mapping[str, Any],
    pictures: Mapping[str, Sequence] | None = None,
    command: str = "",
) -> None:
    """Write the page of a probe.

    Args:
        report: what train/probe/run.py makes.
        pictures: encoder -> of some images, what is shown -> the picture, uint8 (H, W, 3).
        command: what made it, for the header.

    Raises:
        FileExistsError: the file is there and is not a page of ours.
    """
    if path.exists() and not is_page(path):
        raise FileExistsError(f"{path} exists and is not a page of ours; choose another folder")
    short = short_names(report["encoders"])
    left_out = list(dict.fromkeys(report.get("left_out", ())))
    top = verdict_html(report, short)
    # What an encoder may have seen before is a warning; what could not be done is one line.
    top += "".join(f"<p class='warning'>{escape(n)}</p>" for n in report["notes"] if n not in left_out)
    if left_out:
        top += f"<p class='quiet'>Left out: {escape('; '.join(left_out))}.</p>"
    sections = []
    for task, found in report["tasks"].items():
        gaps = _gaps_of(found)
        html = _drawn(found["scores"], short) + _scores(found["scores"], short)
        if gaps:
            html += _gaps(report["encoders"][0], gaps, short)
        sections.append(Section(f"task-{task}", TITLES.get(task, task[:1].upper() + task[1:]), html))
    if pictures:
        sections.append(Section("images", "Test images", _pictures(pictures, short)))
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    named = ", ".join(s if s == whole else f"{s} = {whole}" for whole, s in short.items())
    facts = about(named, [report["data"]], command)
    facts = {"Encoders" if name == "Model" else name: text for name, text in facts.items()}
    counts = ", ".join(f"{n} {split}" for split, n in report["images"].items())
    facts |= {"Images": counts, "Date": report["date"], "Version": f"{facts['Version']}; {versions}"}
    write_body(path, f"Encoders on {Path(report['data']).name}", sections, top=top, facts=facts)


def _gaps_of(found: Mapping[str, list[dict]]) -> list[dict]:
    """Return the differences of the first encoder from the others, in what a task found."""
    return next((rows for key, rows in found.items() if key != "scores"), [])


def short_names(encoders: Sequence[str]) -> dict[str, str]:
    """Shorten paths and hub ids to their last parts, as many as tell them apart: whole name -> short one."""
    whole = list(dict.fromkeys(encoders))
    for parts in range(1, 20):
        short = [_tail(name, parts) for name in whole]
        if len(set(short)) == len(whole):
            return dict(zip(whole, short, strict=True))
    return {name: name for name in whole}


def _tail(name: str, parts: int) -> str:
    """Return the last parts of a path behind what stands before its colon: `random:a/b` -> `random:b`."""
    before, colon, path = name.rpartition(":")
    return before + colon + "/".join(path.rstrip("/").split("/")[-parts:])


def verdict_html(report: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Say in a sentence how the first encoder stands beside the others, by the differences that were tested in pairs.

    A task, head and metric counts once for each other encoder, by its mean where there is one.
    """
    first = report["encoders"][0]
    said = []
    for other in report["encoders"][1:]:
        found: dict[str, Outcome] = {}
        for task, rows in report["tasks"].items():
            gaps = _gaps_of(rows)
            for row in _means([r for r in gaps if r["encoder"] == other and r["metric"] in SHOWN]):
                low, high = row["interval"]
                if low is not None and high is not None:
                    key = "/".join((task, row["head"], row["metric"], what(row)))
                    found[key] = "better" if low > 0 else "worse" if high < 0 else "open"
        if found:
            said.append(sentence(found, short[other], "the intervals of the differences hold 0"))
    if not said:
        said = ["No verdict: no other encoder has been compared with the first."]
    else:
        said = [f"{short[first]}: {text[:1].lower()}{text[1:]}" for text in said]
    others = "".join(f"<li>{escape(text)}</li>" for text in said[1:])
    return f"<p class='verdict'>{escape(said[0])}</p>" + (
        f"<ul class='quiet'>{others}</ul>" if others else ""
    )


def _means(rows: Sequence[Mapping[str, Any]]) -> list:
    """Return the rows that stand for a task: the mean where there is one, else all."""
    of = [r for r in rows if what(r) in ("macro", "mean")]
    return of or list(rows)


def _drawn(rows: Sequence[Mapping[str, Any]], short: Mapping[str, str]) -> str:
    """Small multiples: a panel a metric and label, in which the encoders stand below one another."""
    panels = []
    for metric, name in SHOWN.items():
        mine = [r for r in rows if r["metric"] == metric and r["value"] is not None]
        labels = sorted(dict.fromkeys(map(what, mine)), key=lambda label: label not in ("macro", "mean"))
        for label in labels[:MOST_PANELS]:
            of = [r for r in mine if what(r) == label]
            heads = {r["head"] for r in of}
            lines = [_row(r, short, len(heads) > 1) for r in of]
            positives = of[0].get("positives")
            n = f"n = {of[0]['n']}" + (f", {positives} positive" if positives is not None else "")
            panels.append(intervals(lines, f"{label or 'all'}, {name}", n))
        if hidden := labels[MOST_PANELS:]:
            panels.append(f"<p class='quiet'>{name} of {len(hidden)} more labels: see all numbers.</p>")
    return f"<div class='panels'>{''.join(panels)}</div>" if panels else ""


def _row(row: Mapping[str, Any], short: Mapping[str, str], with_head: bool) -> Row:
    low, high = (float("nan") if x is None else x for x in row["interval"])
    head = f", {row['head']}" if with_head else ""
    shown, whole = (f"{name}{head}" for name in (short.get(row["encoder"], row["encoder"]), row["encoder"]))
    return Row(shown, row["value"], low, high, main=row["encoder"] == next(iter(short)), whole=whole)


def _scores(rows: Sequence[Mapping[str, Any]], short: Mapping[str, str]) -> str:
    """Return a line a finding or structure and metric, a column an encoder and head."""
    columns = list(dict.fromkeys((r["encoder"], r["head"]) for r in rows))
    by_place = {(r["metric"], what(r), r["encoder"], r["head"]): r for r in rows}
    places = list(dict.fromkeys((r["metric"], what(r)) for r in rows))
    lines = []
    for metric, label in places:
        cells = [by_place.get((metric, label, *column)) for column in columns]
        known = next(c for c in cells if c)
        n = f"{known['n']}" + (
            f", {known['positives']} positive" if known.get("positives") is not None else ""
        )
        name = escape(f"{NAMES.get(metric, metric)}, {label}")
        lines.append([name, n, *("" if c is None else number_of(c["value"], *c["interval"]) for c in cells)])
    heads = [(f"{short.get(encoder, encoder)}: {head}", f"{encoder}: {head}") for encoder, head in columns]
    table = table_of(["score", "n", *heads], lines, numeric_from=1)
    return f"<details class='numbers'><summary>All numbers</summary>{table}</details>"


def _gaps(first: str, rows: Sequence[Mapping[str, Any]], short: Mapping[str, str]) -> str:
    lines = []
    for r in rows:
        if r["metric"] not in ("auprc", "auroc", "dice", "r2", "mae", "precision"):
            continue
        low, high = r["interval"]
        p = r.get("p_holm") if r.get("p_holm") is not None else r.get("p")
        lines.append([
            escape(f"{NAMES.get(r['metric'], r['metric'])}, {what(r)}"),
            f"{tooltip(short.get(r['encoder'], r['encoder']), r['encoder'])}: {escape(r['head'])}",
            number_of(r.get("difference", r["value"]), low, high, "+.3f"),
            "–" if p is None else f"{p:.4f}",
        ])  # fmt: skip
    name = short.get(first, first)
    table = table_of(["score", "other encoder", f"{name} minus it", "p"], lines, numeric_from=2)
    summary = f"<summary>Difference of {escape(name)} from each of the others</summary>"
    return f"<details class='numbers'>{summary}{table}</details>"


def _png(picture_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _pictures(pictures: Mapping[str, Sequence[Mapping[str, np.ndarray]]], short: Mapping[str, str]) -> str:
    """Return a table an encoder: an image a row, a picture of it a column."""
    tables = []
    for name, images in pictures.items():
        shown = short.get(name, name)
        lines = [
            [
                f"<img alt='Test image {i} of {escape(shown)}: {escape(_seen(shows))}' "
                f"src='{data_uri(_png(picture))}'>"
                for shows, picture in image.items()
            ]
            for i, image in enumerate(images, 1)
        ]
        if images:
            tables.append(f"<h3>{tooltip(shown, name)}</h3>{table_of(list(images[0]), lines)}")
    return "".join(tables)


def _seen(shows: str) -> str:
    return {
        "annotated": "the outlines that were annotated",
        "patches": "patches coloured by their principal components",
    }.get(shows, f"the outlines that {shows} found")
