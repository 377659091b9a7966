"""Studies on a page: films that enlarge, reference and generated text side by side, findings they agree on or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from eval.page.parts import anchors, data_uri, facts_of
from eval.scores.differences import mark_differences
from eval.scores.inputs import report_text
from eval.scores.labels import NO_FINDING, label_report

LEGEND = (
    "<p class='quiet'><del>Only in the reference</del> and <ins>only in the generated text</ins>: a finding, side, "
    "degree, change or device that the other text denies or lacks. <span class='wording'>Dotted</span>: other wording, "
    "or what no label covers. Findings are read from both texts by the rule-based labeller.</p>"
)
# What the filter offers: value -> words.
KINDS = {
    "missed": "a finding is missed",
    "extra": "a finding is not in the reference",
    "doubt": "certainty differs",
    "side": "on the wrong side",
    "error": "no text",
    "agree": "the findings agree",
}


def cases_of(cases: Iterable[Mapping[str, Any]], heading: str = "") -> str:
    """Make the cards of some studies, with a filter and a link for each. Mappings are those of `eval.report`."""
    cases = list(cases)
    ids = anchors((str(case.get("study_id") or "") for case in cases), "study")
    cards = [case_of(case, anchor) for case, anchor in zip(cases, ids, strict=True)]
    links = "".join(
        f"<li><a href='#{anchor}'>{escape(str(case.get('study_id') or 'unnamed'))}</a></li>"
        for case, anchor in zip(cases, ids, strict=True)
    )
    index = f"<details class='links'><summary>A link for each of the {len(cases)} studies</summary>"
    index += f"<ul class='index'>{links}</ul></details>"
    tools = filter_of(KINDS, "all studies") + index if len(cases) > 1 else ""
    return f"{heading}{tools}{LEGEND}{''.join(cards)}"


def filter_of(kinds: Mapping[str, str], every: str) -> str:
    """Make the filter of cards by words and by their `data-kinds`, named in words; `every` is the choice of all. Hidden
    until the script, without which it could do nothing, shows it."""
    options = "".join(f"<option value='{kind}'>{words}</option>" for kind, words in kinds.items())
    return (
        "<form class='filter' hidden><label>Words <input name='words' type='search' autocomplete='off'></label>"
        f"<label>Show <select name='kind'><option value=''>{every}</option>{options}</select></label>"
        "<output aria-live='polite'></output></form>"
    )


def case_of(case: Mapping[str, Any], anchor: str) -> str:
    """Make the card of one study. Raises ValueError for an image that cannot be shown."""
    reference, generated = report_text(case.get("reference"))[0], report_text(case.get("generated"))[0]
    name = str(case.get("study_id") or "unnamed")
    left, right = mark_differences(reference, generated)
    failed = bool(case.get("error")) and not generated
    if failed:
        error = case["error"]
        text = f"{error.get('code')}: {error.get('message')}" if isinstance(error, Mapping) else str(error)
        right = f"<em>{escape(text)}</em>"
    found = compared(reference, generated)
    kinds = {kind for kind, _ in found if kind in KINDS} | ({"error"} if not generated else set())
    swapped = [str(c) for c in case.get("swapped") or ()]
    kinds |= {"side"} if swapped else set()
    kinds = kinds or {"agree"}
    pictures = _films(case, name, reference, generated)
    chips = [*found, *(("extra", f"on the other side: {c}") for c in swapped)]
    return (
        f"<article id='{anchor}' data-kinds='{' '.join(sorted(kinds))}'>"
        f"<h3><a href='#{anchor}'>{escape(name)}</a></h3>{_known(case)}"
        f"<div class='case{'' if pictures else ' text'}'>{pictures}"
        f"<div><h4>Reference</h4><p>{left or '–'}</p></div>"
        f"<div><h4>Generated</h4><p>{right or '–'}</p>{_chips(chips)}</div></div></article>"
    )


def compared(reference: str, generated: str) -> list[tuple[str, str]]:
    """Return (kind, words) of each finding that either text has, by the rule-based labeller; uncertain is a
    value of its own.

    Kinds: both, missed, extra (not in the reference), doubt (uncertain on one side, or on both).
    """
    ref, hyp = label_report(reference), label_report(generated)
    found: list[tuple[str, str]] = []
    for condition in dict.fromkeys([*ref, *hyp]):
        r, h = ref.get(condition, 0), hyp.get(condition, 0)
        if condition == NO_FINDING:
            # Where one text alone is normal, the other's findings say so.
            if r == h == 1:
                found.append(("both", f"✓ {condition}"))
        elif r or h:
            kind, words = _WORDS[r, h]
            found.append((kind, f"{words} {condition}"))
    return sorted(found, key=lambda chip: _ORDER.index(chip[0]))


_ORDER = ("missed", "extra", "doubt", "unsure", "both")
_WORDS = {
    (1, 1): ("both", "✓"),
    (1, 0): ("missed", "missed:"),
    (0, 1): ("extra", "not in the reference:"),
    (-1, -1): ("unsure", "✓ uncertain in both:"),
    (1, -1): ("doubt", "uncertain, present in the reference:"),
    (-1, 1): ("doubt", "present, uncertain in the reference:"),
    (-1, 0): ("doubt", "uncertain in the reference alone:"),
    (0, -1): ("doubt", "uncertain, not in the reference:"),
}


def findings_in_words(text: str) -> str:
    """List the findings of a report for those who cannot see the film: "Cardiomegaly, uncertain Edema"."""
    labels = label_report(text)
    shown = [("" if v == 1 else "uncertain ") + c for c, v in labels.items() if v and c != NO_FINDING]
    return ", ".join(shown) or ("no finding" if NO_FINDING in labels else "none read")


def _known(case: Mapping[str, Any]) -> str:
    """Indication, age, sex and view as a line, then the warnings."""
    age = case.get("age")
    facts = {
        "Indication": str(case.get("indication") or ""),
        "Age": "" if age is None or age != age else f"{age:g}" if isinstance(age, float) else str(age),
        "Sex": str(case.get("sex") or ""),
        "View": ", ".join(view for _, view in _given(case) if view),
    }
    warned = case.get("warnings") or ()
    lines = [warned] if isinstance(warned, str) else [str(w) for w in warned]
    return facts_of(facts, "about") + "".join(f"<p class='warning'>⚠ {escape(text)}</p>" for text in lines)


def _given(case: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """(image, view) of each film of a case: of its `films`, else of its `image`."""
    films: Sequence[Any] = case.get("films") or ()
    if not films and case.get("image") is not None:
        films = [case["image"]]
    given = []
    for film in films:
        if isinstance(film, Mapping):
            view = str(film.get("view") or "")
            given.append((film["image"], "" if view == "unknown" else view))
        else:
            given.append((film, ""))
    return given


def _films(case: Mapping[str, Any], name: str, reference: str, generated: str) -> str:
    parts = []
    about = f"Findings in the reference: {findings_in_words(reference)}. In the generated text: "
    about += f"{findings_in_words(generated)}."
    for image, view in _given(case):
        shown = f", {view} view" if view else ""
        alt = escape(f"X-ray of study {name}{shown}. {about}")
        said = f"{escape(view)} · " if view else ""
        said += "<span class='closed'>enlarge</span><span class='opened'>close</span>"
        picture: bytes | np.ndarray = image
        parts.append(
            f"<details class='film'><summary><img alt='{alt}' src='{data_uri(picture)}'>"
            f"<span class='view'>{said}</span></summary></details>"
        )
    return f"<div class='films'>{''.join(parts)}</div>" if parts else ""


def _chips(found: Sequence[tuple[str, str]]) -> str:
    chips = "".join(f"<li class='{kind}'>{escape(words)}</li>" for kind, words in found)
    return f"<ul class='chips'>{chips}</ul>" if chips else ""
