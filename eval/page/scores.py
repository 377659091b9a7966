"""The scores on a page: beside baselines, by condition, against other predictions, and what was not computed."""

from __future__ import annotations

from html import escape

from eval.page.parts import named, number_of, table_of, value_of
from eval.page.shell import Section
from eval.plots import bars, dots
from eval.scores.inputs import POLICIES
from eval.scores.keys import (
    AVERAGE_NAMES,
    LEXICAL,
    SAFETY,
    clinical_keys,
    headline_keys,
    short_name,
    subgroup_keys,
)
from eval.scores.result import Scores
from eval.scores.tables import intervals, lexical_profiles, scored, studies

_READERS = {
    "label-f1": "Labels are read by the rule-based labeller, which is not CheXbert.",
    "chexbert-f1": "Labels are read by CheXbert.",
}


def score_sections(scores: Scores) -> list[Section]:
    """Make the sections of numbers: beside baselines first, then in detail."""
    sections = [Section("scores", "Scores beside baselines", _beside_baselines(scores))]
    if scores.comparison:
        sections.append(Section("comparison", f"Against {scores.comparison.other}", _comparison(scores)))
    for name in scores.conditions:
        by_chexbert = name == "chexbert-f1"
        html = (
            "<p class='quiet'>F1 with interval, uncertain counted as absent; n is the number of positive references. "
            f"{_READERS[name]}</p>{dots(scores, name)}{_averages(scores, name)}"
        )
        title = f"By condition{', CheXbert' if by_chexbert else ''}"
        sections.append(Section(f"conditions{'-chexbert' if by_chexbert else ''}", title, html))
    profiles = lexical_profiles(scores)
    overlap = [
        [escape(m.upper()), *(value_of(scores.scores.get(f"{m}/{p}")) for p in profiles)] for m in LEXICAL
    ]
    table = table_of(["score", *profiles], overlap, numeric_from=1)
    sections.append(Section("overlap", "Text overlap by profile", table))
    shown = [
        [escape(name), value_of(scores[key]), value_of(scores.scores.get(reference))]
        for key, (name, reference) in SAFETY.items()
    ]
    table = table_of(["what", "predictions", "references"], shown, numeric_from=1)
    sections.append(Section("safety", "Change, sides, length, repetition", table))
    if scores.subgroups:
        keys = subgroup_keys(scores.scores, scores.settings["min_support"])
        found = [
            [escape(f"{g.attribute} {g.value}"), str(g.n), *(value_of(g.scores.get(k)) for k in keys)]
            for g in scores.subgroups
        ]
        table = table_of(["group", "studies", *map(short_name, keys)], found, numeric_from=1)
        sections.append(Section("groups", "By sex, age and view", table))
    return sections


def _beside_baselines(scores: Scores) -> str:
    least = scores.settings["min_support"]
    keys, clinical = headline_keys(scores.scores, least), clinical_keys(scores.scores, least)
    rows = [("predictions", "", scores.scores), *((f.name, f.how, f.scores) for f in scores.floors)]
    patients = f"{scores.patients} patients" if scores.patients != scores.n else "one study a patient"
    parts = [
        f"<p class='quiet'>{studies(scores.n)}, {patients}. Scored: {scored(scores)}. "
        f"{escape(intervals(scores)).capitalize()}. "
        "A baseline (or floor) is a report that did not look at the image.</p>",
        bars(keys[0], rows),
        table_of(
            ["report", *map(short_name, keys)],
            [[named(name, how), *(value_of(found.get(k)) for k in keys)] for name, how, found in rows],
            numeric_from=1,
        ),
    ]
    if clinical:
        head = ["clinical score", *(name for name, _, _ in rows)]
        lines = [[escape(short_name(k)), *(value_of(found.get(k)) for _, _, found in rows)] for k in clinical]
        parts.append(table_of(head, lines, numeric_from=1))
    return "".join(parts)


def _averages(scores: Scores, name: str) -> str:
    least = scores.settings["min_support"]
    averages = {**AVERAGE_NAMES, f"macro-{least}": f"macro, n ≥ {least}"}
    rows = [
        [
            escape(shown),
            *(value_of(scores.scores.get(f"{name}/{n}/{a}/{u}")) for n in (14, 5) for u in ("neg", "pos")),
        ]
        for a, shown in averages.items()
        if f"{name}/14/{a}/neg" in scores.scores
    ]
    head = ("14, uncertain absent", "14, uncertain present", "5, uncertain absent", "5, uncertain present")
    return table_of(["average", *head], rows, numeric_from=1)


def _comparison(scores: Scores) -> str:
    compared = scores.comparison
    assert compared is not None
    rows = []
    for d in compared.differences:
        plain = (f"{d.value:.3f}", f"{d.other:.3f}")
        tests = (f"{d.p:.4f}", f"{d.p_holm:.4f}")
        cells = [*plain, number_of(d.difference, d.low, d.high, "+.3f"), *tests]
        rows.append([escape(short_name(d.name)), *("–" if cell == "nan" else cell for cell in cells)])
    head = ["score", "predictions", "other", "difference", "p", "p (Holm)"]
    return (
        f"<p class='quiet'>Paired bootstrap, and {compared.n_permutations} permutations of the two within patients.</p>"
        + table_of(head, rows, numeric_from=1)
    )


def small_print(scores: Scores) -> list[Section]:
    """Make the sections of what was not computed and of odd input, and the signatures."""
    missing = [
        [escape(m.name), escape(m.reason), f"<code>{escape(m.command)}</code>"] for m in scores.not_computed
    ]
    sections = []
    if missing:
        sections.append(Section("missing", "Not computed", table_of(["score", "why", "command"], missing)))
    odd = {"Odd input": scores.problems}
    if scores.comparison:
        odd[f"Odd input of {scores.comparison.other}"] = scores.comparison.problems
    for number, (title, problems) in enumerate(odd.items(), 1):
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
        table = table_of(["kind", "count", "treatment", "studies"], rows)
        sections.append(Section(f"odd-{number}", title, table))
    signatures = "\n".join(escape(s.signature) for s in scores.scores.values())
    folded = f"<details><summary>What exactly each number means</summary><pre>{signatures}</pre></details>"
    sections.append(Section("signatures", "Signatures", folded))
    return sections
