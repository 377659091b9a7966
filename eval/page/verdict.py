"""The verdict on top of the page: how the predictions stand beside baselines that look at nothing, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

from eval.scores.floors import Floor
from eval.scores.result import Scores
from eval.scores.sheet import SheetScore

Outcome = Literal["better", "worse", "open"]

# p after Holm's correction, of differences in pairs.
ALPHA = 0.05

# With fewer, intervals are so wide that hardly anything can be told.
LEAST_PATIENTS = 10

_SPOKEN = {"shuffled images": "the model with shuffled images", "blank images": "the model with blank images"}


def verdict(scores: Scores) -> list[str]:
    """Say in plain sentences how the predictions stand; the first is the verdict, the others are of other baselines.

    Two scores differ where their 95 % intervals do not overlap, which is stricter than a paired test. Differences from
    other predictions were tested in pairs and are taken from there.
    """
    compared = _compared(scores)
    if scores.patients < LEAST_PATIENTS:
        few = f"{scores.patients} patient{'s' if scores.patients != 1 else ''}"
        return [
            f"Too few patients for a verdict: {few}, and at least {LEAST_PATIENTS} are needed.",
            *compared,
        ]
    # The constant report first: it needs no model, so whatever is not better than it has learned nothing.
    floors = sorted(scores.floors, key=lambda f: not f.name.startswith("constant report"))
    said = []
    for floor in floors:
        found = outcomes(scores.scores, floor.scores, _keys(scores))
        if found:
            said.append(sentence(found, spoken(floor)))
    if not said:
        said = ["No verdict: no baseline was scored beside these predictions."]
    if not any(floor.name in _SPOKEN for floor in floors):
        said.append(
            "Whether the images were used is not known: no baseline with other images was scored (--floors)."
        )
    return [*said, *compared]


def outcomes(
    ours: Mapping[str, SheetScore], theirs: Mapping[str, SheetScore], keys: Sequence[str]
) -> dict[str, Outcome]:
    """Compare the intervals of each score that both have, as key -> outcome; undefined ones are left out."""
    found: dict[str, Outcome] = {}
    for key in keys:
        a, b = ours.get(key), theirs.get(key)
        if a is None or b is None or any(x != x for s in (a, b) for x in (s.value, s.low, s.high)):
            continue
        higher, lower = a.low > b.high, a.high < b.low
        if a.better == "lower":
            higher, lower = lower, higher
        found[key] = "better" if higher else "worse" if lower else "open"
    return found


def sentence(found: Mapping[str, Outcome], other: str, how: str = "the intervals overlap") -> str:
    """Count the outcomes in a sentence: "Worse than one report for all on 3 of 5 scores."."""
    counts = {kind: sum(o == kind for o in found.values()) for kind in ("better", "worse", "open")}
    total = f"{len(found)} score{'s' if len(found) != 1 else ''}"
    if counts["open"] == len(found):
        return f"Not better than {other} on any of {total}, nor worse: {how}."
    first, second = ("worse", "better") if counts["worse"] >= counts["better"] else ("better", "worse")
    text = f"{first.capitalize()} than {other} on {counts[first]} of {total}"
    if counts[second]:
        text += f", {second} on {counts[second]}"
    if counts["open"]:
        text += f", undecided on {counts['open']}"
    return f"{text}."


def spoken(floor: Floor) -> str:
    """Name a baseline as a sentence does."""
    return (
        "one report for all"
        if floor.name.startswith("constant report")
        else _SPOKEN.get(floor.name, floor.name)
    )


def verdict_html(scores: Scores) -> str:
    """Return the sentences as HTML: the first large, the others and what they count below."""
    first, *others = verdict(scores)
    items = "".join(f"<li>{escape(text)}</li>" for text in others)
    counted = f"{_counted(scores)}Better or worse: the 95 % intervals do not overlap."
    return (
        f"<p class='verdict'>{escape(first)}</p>"
        + (f"<ul class='quiet'>{items}</ul>" if items else "")
        + f"<p class='quiet'>{escape(counted)}</p>"
    )


def _counted(scores: Scores) -> str:
    """Name the scores that were counted, and those that could not be, as sentences."""
    keys = _keys(scores)
    counted = {key for floor in scores.floors for key in outcomes(scores.scores, floor.scores, keys)}
    names = [[scores.scores[k].title for k in keys if (k in counted) is wanted] for wanted in (True, False)]
    said = [f"Counted: {', '.join(names[0])}. "] if names[0] else []
    if names[0] and names[1]:
        said.append(f"Not counted, without an interval on both sides: {', '.join(names[1])}. ")
    return "".join(said)


def _keys(scores: Scores) -> list[str]:
    return [key for key, s in scores.scores.items() if s.headline and s.better != "neither"]


def _compared(scores: Scores) -> list[str]:
    said = []
    for compared in scores.comparisons:
        found: dict[str, Outcome] = {}
        for d in compared.differences:
            if d.p_holm == d.p_holm:
                up = (d.difference > 0) != (d.better == "lower")
                found[d.name] = (
                    "open" if d.p_holm > ALPHA or not d.difference else "better" if up else "worse"
                )
        if found:
            text = sentence(found, compared.other, f"no difference has p ≤ {ALPHA} after Holm")
            said.append(f"{text[:-1]} (tested in pairs).")
    return said
