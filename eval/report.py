"""One self-contained HTML page: a verdict, X-rays with their findings side by side, scores beside baselines, curves.

Everything is inline (style, script, images as data); a content security policy forbids the page any network access.
All text from outside is escaped. The parts are in eval/page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eval.page.cases import cases_of
from eval.page.scores import score_sections, small_print
from eval.page.shell import Banner, Section, is_page, write_body
from eval.page.verdict import verdict_html
from eval.plots import curve
from eval.scores.result import Scores

Curves = Mapping[str, Sequence[tuple[float, float]]]


def write_page(
    path: str | Path,
    *,
    title: str,
    scores: Scores | None = None,
    curves: Curves | None = None,
    cases: Iterable[Mapping[str, Any]] | None = None,
    notes: str | Iterable[str] | None = None,
    facts: Mapping[str, str] | None = None,
    banner: Banner = "research",
    worst: int = 0,
    images: Mapping[str, Any] | None = None,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the page and return its path.

    Args:
        scores: from `eval.score`; the verdict on top is theirs.
        curves: name -> [(step, value), ...].
        cases: one mapping per study with `reference` and `generated` findings (or `error`); optionally `study_id`,
            `indication`, `age`, `sex`, `warnings`, and an `image` or `films`. An image is PNG or JPEG bytes, or a grey
            array (H, W), float in [0, 1] or uint8; `films` are several, each with its `view` as {"image", "view"}.
        notes: paragraphs for the top.
        facts: name -> text for the header; `eval.page.shell.about` makes the usual ones.
        banner: "phantoms" where no patient is on the page.
        worst: so many studies with most errors are shown, if there are any.
        images: study id -> an image, for these.
        known: study id -> what else a case may have, for these.

    Raises:
        FileExistsError: the file is there and is not a page of ours; such a file is replaced only with
            `overwrite`.
        ValueError: an image is of another kind.
    """
    path = Path(path)
    if path.exists() and not overwrite and not is_page(path):
        raise FileExistsError(
            f"{path} exists and is not a page of ours; choose another name or pass overwrite=True"
        )
    paragraphs = [notes] if isinstance(notes, str) else list(notes or ())
    top = verdict_html(scores) if scores is not None else ""
    top += "".join(f"<p>{escape(text)}</p>" for text in paragraphs)
    sections = []
    # The studies come before the numbers: a reader judges a report by reading some.
    if cases := list(cases or ()):
        sections.append(Section("studies", "Studies", cases_of(cases)))
    if scores is not None:
        sections += _worst(scores, images or {}, known or {}, worst)
        sections += score_sections(scores)
    if curves:
        panels = "".join(curve(name, points) for name, points in curves.items())
        sections.append(Section("training", "Training", f"<div class='panels'>{panels}</div>"))
    if scores is not None:
        sections += small_print(scores)
    write_body(path, title, sections, top=top, facts=facts, banner=banner)
    return path


def _worst(
    scores: Scores, images: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], count: int
) -> list[Section]:
    """Return the studies with most errors, side by side."""
    cases = []
    for study in scores.worst(count):
        name = study["study_id"]
        reference, generated = scores.texts[name]
        case = {**known.get(name, {}), "study_id": name, "reference": reference, "generated": generated}
        if "films" not in case:
            case["image"] = images.get(name)
        cases.append({**case, "swapped": study.get("swapped")})
    if not cases:
        return []
    order = "<p class='quiet'>By findings missed, not in the reference, and on the wrong side, then by ROUGE-L.</p>"
    title = f"The {len(cases)} studies with most errors" if len(cases) > 1 else "The study with most errors"
    return [Section("studies", title, cases_of(cases, order))]
