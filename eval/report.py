"""One self-contained HTML page: scores with intervals and floors, loss curves, X-rays with their findings side by side.

Everything is inline (style, SVG, images as data); a content security policy forbids the page any network access. All
text from outside is escaped.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from eval.plots import bars, curve, dots
from eval.scores.differences import mark_differences
from eval.scores.inputs import POLICIES, report_text
from eval.scores.keys import (
    AVERAGE_NAMES,
    LEXICAL,
    SAFETY,
    clinical_keys,
    headline_keys,
    short_name,
    subgroup_keys,
)
from eval.scores.labels import label_report
from eval.scores.result import Scores, write_whole
from eval.scores.tables import lexical_profiles, scored, studies
from eval.signature import Score

Curves = Mapping[str, Sequence[tuple[float, float]]]
GENERATOR = "cxr eval.report"
DISCLAIMER = "Demonstration, for research use only. Not a medical device, not for diagnosis."
IMAGE_SIDE = 512  # pixels; larger arrays are reduced so that a page of a dozen films stays at a few MB


def write_page(
    path: str | Path,
    *,
    title: str,
    scores: Scores | None = None,
    curves: Curves | None = None,
    cases: Iterable[Mapping[str, Any]] | None = None,
    notes: str | Iterable[str] | None = None,
    worst: int = 0,
    images: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the page and return its path.

    scores: from `eval.score`. curves: name -> [(step, value), ...]. notes: paragraphs for the top.
    cases: one mapping per study with `reference` and `generated` findings (or `error`), `image` (PNG or JPEG
        bytes, or a grey array (H, W), float in [0, 1] or uint8), and optionally `study_id`, `indication`, `warnings`.
    worst: so many studies with most errors are shown, with the `images` (by study id) that are given.

    A page written here before is replaced, any other file only with `overwrite`; otherwise raises FileExistsError.
    """
    path = Path(path)
    if path.exists() and not overwrite and not is_page(path):
        raise FileExistsError(
            f"{path} exists and is not a page of ours; choose another name or pass overwrite=True"
        )
    paragraphs = [notes] if isinstance(notes, str) else list(notes or ())
    body = [f"<header><h1>{escape(title)}</h1><p class='banner' role='note'>{DISCLAIMER}</p></header>"]
    body += [f"<p>{escape(text)}</p>" for text in paragraphs]
    if scores is not None:
        body += _score_sections(scores)
    if curves:
        panels = "".join(curve(name, points) for name, points in curves.items())
        body.append(f"<section><h2>Training</h2><div class='panels'>{panels}</div></section>")
    cards = [_case(case) for case in cases or ()]
    if cards:
        body.append(f"<section><h2>Studies</h2>{_LEGEND}{''.join(cards)}</section>")
    if scores is not None:
        body += [_worst(scores, images or {}, worst), *_small_print(scores)]
    write_body(path, title, body)
    return path


def write_body(path: Path, title: str, body: Sequence[str]) -> None:
    """A page of ours around parts of its body, which are HTML."""
    page = _PAGE.format(generator=GENERATOR, title=escape(title), style=_STYLE, body="\n".join(body))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def is_page(path: Path) -> bool:
    """Whether a file is a page written here."""
    # A pipe would be waited for.
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="ignore") as file:
        return GENERATOR in file.read(2000)


# --- scores -------------------------------------------------------------------------------------------------------


def _score_sections(scores: Scores) -> list[str]:
    least = scores.settings["min_support"]
    keys, clinical = headline_keys(scores.scores, least), clinical_keys(scores.scores, least)
    rows = [("predictions", "", scores.scores), *((f.name, f.how, f.scores) for f in scores.floors)]
    patients = f"{scores.patients} patients" if scores.patients != scores.n else "one study a patient"
    sections = [
        "<section><h2>Scores and floors</h2>"
        f"<p class='quiet'>{studies(scores.n)}, {patients}. Scored: {scored(scores)}. "
        f"Brackets: {escape(scores.settings['interval'])}, "
        f"{scores.settings['n_boot']} replicates. A floor is a report that did not look at the image.</p>"
        + bars(keys[0], rows)
        + table_of(
            ["", *map(short_name, keys)],
            [[_named(name, how), *(_value(found.get(k)) for k in keys)] for name, how, found in rows],
            numeric_from=1,
        )
        + (
            table_of(
                ["clinical scores", *(name for name, _, _ in rows)],
                [[escape(short_name(k)), *(_value(found.get(k)) for _, _, found in rows)] for k in clinical],
                numeric_from=1,
            )
            if clinical
            else ""
        )
        + "</section>"
    ]
    if scores.comparison:
        sections.append(_comparison(scores))
    readers = {
        "label-f1": "Labels are read by the rule-based labeller, which is not CheXbert.",
        "chexbert-f1": "Labels are read by CheXbert.",
    }
    for name in scores.conditions:
        sections.append(
            f"<section><h2>By condition{', CheXbert' if name == 'chexbert-f1' else ''}</h2>"
            "<p class='quiet'>F1 with interval, uncertain counted as absent; n is the number of positive references. "
            f"{readers[name]}</p>" + dots(scores, name) + _averages(scores, name) + "</section>"
        )
    profiles = lexical_profiles(scores)
    overlap = [
        [escape(m.upper()), *(_value(scores.scores.get(f"{m}/{p}")) for p in profiles)] for m in LEXICAL
    ]
    sections.append(
        "<section><h2>Text overlap by profile</h2>"
        + table_of(["", *profiles], overlap, numeric_from=1)
        + "</section>"
    )
    shown = [
        [escape(name), _value(scores[key]), _value(scores.scores.get(reference))]
        for key, (name, reference) in SAFETY.items()
    ]
    table = table_of(["", "predictions", "references"], shown, numeric_from=1)
    sections.append(f"<section><h2>Change, sides, length, repetition</h2>{table}</section>")
    if scores.subgroups:
        keys = subgroup_keys(scores.scores, least)
        found = [
            [escape(f"{g.attribute} {g.value}"), str(g.n), *(_value(g.scores.get(k)) for k in keys)]
            for g in scores.subgroups
        ]
        table = table_of(["", "studies", *map(short_name, keys)], found, numeric_from=1)
        sections.append(f"<section><h2>By sex, age and view</h2>{table}</section>")
    return sections


def _averages(scores: Scores, name: str) -> str:
    least = scores.settings["min_support"]
    averages = {**AVERAGE_NAMES, f"macro-{least}": f"macro, n ≥ {least}"}
    rows = [
        [
            escape(shown),
            *(_value(scores.scores.get(f"{name}/{n}/{a}/{u}")) for n in (14, 5) for u in ("neg", "pos")),
        ]
        for a, shown in averages.items()
        if f"{name}/14/{a}/neg" in scores.scores
    ]
    head = ("14, uncertain absent", "14, uncertain present", "5, uncertain absent", "5, uncertain present")
    return table_of(["average", *head], rows, numeric_from=1)


def _comparison(scores: Scores) -> str:
    compared = scores.comparison
    rows = [
        [
            escape(short_name(d.name)),
            f"{d.value:.3f}",
            f"{d.other:.3f}",
            f"{d.difference:+.3f} <span class='quiet'>[{d.low:+.3f}, {d.high:+.3f}]</span>",
            f"{d.p:.4f}",
            f"{d.p_holm:.4f}",
        ]
        for d in compared.differences
    ]
    head = ["", "predictions", "other", "difference", "p", "p (Holm)"]
    return (
        f"<section><h2>Against {escape(compared.other)}</h2><p class='quiet'>Paired bootstrap, and "
        f"{compared.n_permutations} permutations of the two within patients.</p>"
        + table_of(
            head, [[c.replace("+nan", "–").replace("nan", "–") for c in row] for row in rows], numeric_from=1
        )
        + "</section>"
    )


def _worst(scores: Scores, images: Mapping[str, Any], count: int) -> str:
    """The studies with most errors, side by side."""
    cards = []
    for study in scores.worst(count):
        reference, generated = scores.texts[study["study_id"]]
        about = [f"{key}: {', '.join(map(str, study[key]))}" for key in ("swapped",) if study.get(key)]
        case = {
            "study_id": study["study_id"],
            "reference": reference,
            "generated": generated,
            "warnings": about,
        }
        cards.append(_case({**case, "image": images.get(study["study_id"])}))
    if not cards:
        return ""
    return (
        f"<section><h2>The {len(cards)} studies with most errors</h2><p class='quiet'>By conditions missed, "
        f"invented and on the wrong side, then by ROUGE-L.</p>{_LEGEND}{''.join(cards)}</section>"
    )


def _small_print(scores: Scores) -> list[str]:
    missing = [
        [escape(m.name), escape(m.reason), f"<code>{escape(m.command)}</code>"] for m in scores.not_computed
    ]
    parts = ["<section><h2>Not computed</h2>" + table_of(["score", "why", "command"], missing) + "</section>"]
    odd = {"Odd input": scores.problems}
    if scores.comparison:
        odd[f"Odd input of {scores.comparison.other}"] = scores.comparison.problems
    for title, problems in odd.items():
        if not problems:
            continue
        rows = [
            [
                escape(kind),
                str(len(ids)),
                escape(POLICIES[kind]),
                escape(", ".join(ids[:5]) + (", …" if ids[5:] else "")),
            ]
            for kind, ids in problems.items()
        ]
        parts.append(
            f"<section><h2>{escape(title)}</h2>"
            + table_of(["kind", "count", "treatment", "studies"], rows)
            + "</section>"
        )
    signatures = "\n".join(escape(s.signature) for s in scores.scores.values())
    parts.append(f"<details><summary>Signatures</summary><pre>{signatures}</pre></details>")
    return parts


def _named(name: str, how: str) -> str:
    return escape(name) + (f"<br><span class='quiet'>{escape(how)}</span>" if how else "")


def _value(s: Score | None) -> str:
    if s is None or math.isnan(s.value):
        return "–"
    return f"{s.value:.3f} <span class='quiet'>[{s.low:.3f}, {s.high:.3f}]</span>"


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], numeric_from: int = 99) -> str:
    """Cells are HTML already; headings are text."""
    kind = ["" if i < numeric_from else " class='num'" for i in range(len(head))]
    first = "".join(f"<th scope='col'{k}>{escape(h)}</th>" for k, h in zip(kind, head, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{k}>{c}</td>" for k, c in zip(kind, row, strict=True)) + "</tr>" for row in rows
    )
    body = "".join(lines)
    return f"<div class='scroll'><table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>"


# --- studies ------------------------------------------------------------------------------------------------------


def _case(case: Mapping[str, Any]) -> str:
    reference, generated = report_text(case.get("reference"))[0], report_text(case.get("generated"))[0]
    head = escape(str(case.get("study_id") or ""))
    extra = [f"Indication: {case['indication']}"] if case.get("indication") else []
    warned = case.get("warnings") or ()
    extra += [warned] if isinstance(warned, str) else [str(w) for w in warned]
    about = "".join(f"<p class='quiet'>{escape(text)}</p>" for text in extra)
    image = case.get("image")
    picture = f"<img alt='X-ray of study {head}' src='{data_uri(image)}'>" if image is not None else ""
    left, right = mark_differences(reference, generated)
    if case.get("error") and not generated:
        error = case["error"]
        text = f"{error.get('code')}: {error.get('message')}" if isinstance(error, Mapping) else str(error)
        right = f"<em>{escape(text)}</em>"
    return (
        f"<article><h3>{head}</h3><div class='case{'' if picture else ' text'}'>{picture}"
        f"<div>{about}<h4>Reference</h4><p>{left or '–'}</p></div>"
        f"<div><h4>Generated</h4><p>{right or '–'}</p>{_chips(reference, generated)}</div></div></article>"
    )


def _chips(reference: str, generated: str) -> str:
    """Conditions present by the rule-based labeller: in both, only in the reference, only in the generated text."""
    ref, hyp = ({c for c, v in label_report(t).items() if v == 1} for t in (reference, generated))
    kinds = (("both", "✓", ref & hyp), ("missed", "missed:", ref - hyp), ("invented", "invented:", hyp - ref))
    chips = [f"<li class='{k}'>{mark} {escape(c)}</li>" for k, mark, found in kinds for c in sorted(found)]
    return f"<ul class='chips'>{''.join(chips)}</ul>" if chips else ""


def data_uri(image: bytes | np.ndarray) -> str:
    """An image as a data URI. Raises ValueError for bytes that are neither PNG nor JPEG, arrays that are not grey."""
    if isinstance(image, bytes | bytearray):
        kind = "png" if image[:4] == b"\x89PNG" else "jpeg" if image[:3] == b"\xff\xd8\xff" else None
        if kind is None:
            raise ValueError("image bytes are neither PNG nor JPEG")
        data = bytes(image)
    else:
        data, kind = _png(np.asarray(image)), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _png(image_HW: np.ndarray) -> bytes:
    from PIL import Image

    if image_HW.ndim != 2 or not image_HW.size:
        raise ValueError(f"an image array must be grey, (H, W); found shape {image_HW.shape}")
    if image_HW.dtype != np.uint8:
        image_HW = (np.clip(np.nan_to_num(image_HW.astype(np.float64)), 0, 1) * 255 + 0.5).astype(np.uint8)
    picture = Image.fromarray(image_HW)
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


_LEGEND = (
    "<p class='quiet legend'><del>only in the reference</del> <ins>only in the generated text</ins>. "
    "Another wording of the same labels is not marked; labels are read from both by the rule-based labeller.</p>"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{generator}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2630; --quiet: #5d6b78; --paper: #fbfbf9; --card: #fff; --rule: #dde2e6;
  --main: #2b6c8f; --floor: #b4bec6; --ok: #2f7a4d;
  --miss: #9a5b00; --miss-bg: #fdf1dc; --new: #1f5fa8; --new-bg: #e4eefb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ec; --quiet: #98a5b1; --paper: #14181c; --card: #1b2127;
  --rule: #323b44; --main: #6fb4d6; --floor: #55616c; --ok: #7cc99a;
  --miss: #f0b55f; --miss-bg: #3a2c12; --new: #8cbcf5; --new-bg: #17304d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: .9rem; margin: 0 0 .6rem; color: var(--quiet); font-weight: 600; }
h4 { font-size: .8rem; margin: 0 0 .2rem; color: var(--quiet); font-weight: 600; }
.banner { border-left: 4px solid var(--miss); background: var(--miss-bg); padding: .5rem .8rem; margin: 0 0 1rem; }
.quiet, figcaption { color: var(--quiet); font-size: .85rem; }
p.quiet { margin: .2rem 0 .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; }
td:first-child { min-width: 8.5rem; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
td.num { white-space: nowrap; }
figure { margin: 0 0 1rem; }
svg { width: 100%; height: auto; display: block; font-size: 13px; }
svg text { fill: var(--ink); }
svg .tick { fill: var(--quiet); font-size: 12px; }
.grid { stroke: var(--rule); }
rect.main, circle.main { fill: var(--main); }
.floor { fill: var(--floor); }
.whisker { stroke: var(--ink); stroke-width: 1.5; }
polyline { fill: none; stroke: var(--main); stroke-width: 1.8; }
polyline.faint { opacity: .35; stroke-width: 1; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
article { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: 1rem; margin: 0 0 1rem; }
.case { display: grid; grid-template-columns: 15rem 1fr 1fr; gap: 1.2rem; }
.case.text { grid-template-columns: 1fr 1fr; }
.case img { width: 100%; background: #000; border-radius: 4px; display: block; }
.case p { margin: 0 0 .6rem; }
del { text-decoration: underline dotted 2px; color: var(--miss); background: var(--miss-bg); }
ins { text-decoration: underline solid 2px; color: var(--new); background: var(--new-bg); }
.chips { list-style: none; margin: .4rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .35rem;
  font-size: .78rem; }
.chips li { border: 1px solid currentColor; border-radius: 1rem; padding: 0 .55rem; }
.both { color: var(--ok); }
.missed { color: var(--miss); }
.invented { color: var(--new); }
pre { font-size: .75rem; overflow-x: auto; }
code { font-size: .85em; }
summary { cursor: pointer; margin-top: 2rem; }
@media (max-width: 46rem) { .case, .case.text { grid-template-columns: 1fr; } .case img { max-width: 22rem; } }
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  article, figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .case { grid-template-columns: 10rem 1fr 1fr; }
}
"""
