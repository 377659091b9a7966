"""The page of `cxr verify`: each film beside its report, with verdicts in the margin and what the report leaves out.

A sentence that is contradicted shows on the film where the model sees it otherwise, when the pointer or the keyboard is
on it. Without the script the page has everything but the filter and these maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eval.page.cases import filter_of
from eval.page.parts import anchors, data_uri, facts_of
from eval.page.shell import Banner, Section, write_body

KINDS = {
    "contradicted": "with a sentence that the film contradicts",
    "omitted": "that leave a finding out",
    "undecidable": "with a sentence that stays open",
    "supported": "borne out in every sentence",
    "error": "without verdicts",
}
MARKS = {"supported": "✓", "contradicted": "✗", "undecidable": "?"}
SAID = {"supported": "borne out", "contradicted": "contradicted", "undecidable": "cannot be decided"}
# Of a map's cells, those that do less than this share of the most for the other sentence are not shown.
FAINTEST = 0.15


def write_verdicts(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    *,
    facts: Mapping[str, str] | None = None,
    banner: Banner = "research",
) -> None:
    """Write the page of verifications (`Verification.to_json`). `known` has by study id what is shown beside: `films`
    (image, view, and `box`: what of it the model saw, as left, top, width, height in shares), indication, age, sex."""
    ids = anchors((str(row["study_id"]) for row in rows), "study")
    cards = [
        _card(row, known.get(str(row["study_id"]), {}), anchor) for row, anchor in zip(rows, ids, strict=True)
    ]
    top = f"<p class='verdict'>{escape(_verdict(rows))}</p><p class='quiet'>{escape(LEGEND)}</p>"
    cases = filter_of(KINDS, "all reports") + "".join(cards) if len(cards) > 1 else "".join(cards)
    write_body(
        path, "Verified reports", [Section("studies", "Reports", cases)], top=top, facts=facts, banner=banner
    )


LEGEND = (
    "✓ borne out by the film, ✗ contradicted, ? cannot be decided. A verdict is the opinion of a model, which finds "
    "what it can see. The probability is that of an error if as many sentences are wrong as right."
)


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    judged = [row for row in rows if "error" not in row]
    wrong = sum("contradicted" in _kinds(row) for row in judged)
    lacking = sum("omitted" in _kinds(row) for row in judged)
    said = f"{wrong} of {len(judged)} reports have a sentence that their film contradicts"
    said += f"; {lacking} leave a finding out." if lacking else "."
    return said


def _kinds(row: Mapping[str, Any]) -> set[str]:
    if "error" in row:
        return {"error"}
    kinds = {str(s["verdict"]) for s in row.get("sentences", ())}
    kinds |= {"omitted"} if row.get("omissions") else set()
    return kinds if kinds - {"supported"} else {"supported"}


def _card(row: Mapping[str, Any], about: Mapping[str, Any], anchor: str) -> str:
    name = str(row["study_id"])
    kinds = _kinds(row) - ({"supported"} if len(_kinds(row)) > 1 else set())
    facts = {k: str(about.get(k.lower()) or "") for k in ("Indication", "Age", "Sex")}
    warned = "".join(
        f"<p class='warning'>⚠ {escape(str(w.get('code')))}: {escape(str(w.get('message')))}</p>"
        for w in row.get("warnings", ())
    )
    films = _films(row, about, anchor)
    return (
        f"<article id='{anchor}' data-kinds='{' '.join(sorted(kinds))}'>"
        f"<h3><a href='#{anchor}'>{escape(name)}</a></h3>{facts_of(facts, 'about')}{warned}"
        f"<div class='case judged{'' if films else ' text'}'>{films}<div>{_report(row, anchor)}</div></div></article>"
    )


def _report(row: Mapping[str, Any], anchor: str) -> str:
    if "error" in row:
        error = row["error"]
        return f"<p><em>{escape(str(error.get('code')))}: {escape(str(error.get('message')))}</em></p>"
    items = "".join(_sentence(s, f"{anchor}-map-{i}") for i, s in enumerate(row.get("sentences", ())))
    left_out = "".join(
        f"<li class='omitted'><span class='mark' aria-label='left out'>+</span><span>{escape(str(o['text']))} "
        f"<span class='quiet'>({escape(str(o['condition']))}, {o['probability']:.2f}"
        f"{', and the report denies it' if o.get('denied') else ''})</span></span></li>"
        for o in row.get("omissions", ())
    )
    found = f"<h4>Report</h4><ol class='sentences'>{items}</ol>"
    return found + (f"<h4>Left out</h4><ul class='sentences'>{left_out}</ul>" if left_out else "")


def _sentence(s: Mapping[str, Any], identity: str) -> str:
    verdict = str(s["verdict"])
    note = ""
    if s.get("better"):
        note = (
            f"<span class='better'>rather: {escape(str(s['better']))} <span class='quiet'>({escape(str(s['kind']))}, "
            f"{s['probability']:.2f})</span></span>"
        )
    shown = f" tabindex='0' data-map='{identity}'" if s.get("map") else ""
    return (
        f"<li class='{verdict}'{shown}>"
        f"<span class='mark' role='img' aria-label='{SAID[verdict]}'>{MARKS[verdict]}</span>"
        f"<span>{escape(str(s['text']))}{note}</span></li>"
    )


def _films(row: Mapping[str, Any], about: Mapping[str, Any], anchor: str) -> str:
    parts = []
    for number, film in enumerate(about.get("films", ())):
        image = film["image"]
        height, width = image.shape[:2]
        maps = "".join(
            _map(s["map"], film.get("box") or (0, 0, 1, 1), width, height, f"{anchor}-map-{i}")
            for i, s in enumerate(row.get("sentences", ()))
            if s.get("map") and number == 0
        )
        view = str(film.get("view") or "")
        view = "" if view == "unknown" else view
        alt = f"X-ray of study {row['study_id']}{f', {view} view' if view else ''}"
        parts.append(
            f"<figure><svg viewBox='0 0 {width} {height}' role='img' aria-label='{escape(alt)}'>"
            f"<image href='{data_uri(image)}' width='{width}' height='{height}' preserveAspectRatio='none'/>"
            f"{maps}</svg>" + (f"<figcaption>{escape(view)}</figcaption>" if view else "") + "</figure>"
        )
    return f"<div class='films'>{''.join(parts)}</div>" if parts else ""


def _map(
    cells: Sequence[Sequence[float]], box: Sequence[float], width: int, height: int, identity: str
) -> str:
    """Draw where the film speaks for the other sentence, over the part of it that the model saw."""
    left, top, wide, high = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    most = max((value for line in cells for value in line), default=0.0)
    if most <= 0:
        return ""
    dx, dy = wide / len(cells[0]), high / len(cells)
    squares = "".join(
        f"<rect x='{left + j * dx:.1f}' y='{top + i * dy:.1f}' width='{dx:.1f}' height='{dy:.1f}' "
        f"opacity='{0.7 * value / most:.2f}'/>"
        for i, line in enumerate(cells)
        for j, value in enumerate(line)
        if value > FAINTEST * most
    )
    return f"<g class='map' id='{identity}' visibility='hidden'>{squares}</g>"
