"""The scores on a page: beside baselines, by condition, against other predictions, and what was not computed."""

from __future__ import annotations

from html import escape

from eval.intervals import brief
from eval.page.parts import number_of, table_of, value_of
from eval.page.shell import Section
from eval.plots import bars, dots
from eval.scores.comparison import Comparison
from eval.scores.families import families
from eval.scores.family import Grid
from eval.scores.inputs import POLICIES
from eval.scores.result import Scores
from eval.scores.tables import beside_baselines, by_subgroup, intervals, lacking, scored, studies


def score_sections(scores: Scores) -> list[Section]:
    """Make the sections of numbers: beside baselines first, then in detail."""
    sections = [Section("scores", "Scores beside baselines", _beside_baselines(scores))]
    for number, compared in enumerate(scores.comparisons):
        name = f"comparison{f'-{number + 1}' if number else ''}"
        sections.append(Section(name, f"Against {compared.other}", _comparison(compared)))
    grids: dict[str, list[Grid]] = {}
    for family in families():
        for grid in family.grids(scores):
            grids.setdefault(grid.section, []).append(grid)
    for name, of_section in grids.items():
        html = "".join(_drawn(grid) for grid in of_section)
        sections.append(Section(name, of_section[0].title, html))
    if scores.subgroups:
        grid = by_subgroup(scores)
        sections.append(Section(grid.section, grid.title, _drawn(grid)))
    return sections


def _drawn(grid: Grid) -> str:
    """Draw a table, below its points if it has some."""
    rows = [[escape(cell) if isinstance(cell, str) else value_of(cell) for cell in row] for row in grid.rows]
    note = f"<p class='quiet'>{escape(grid.note)}</p>" if grid.note else ""
    points = dots(grid.points) if grid.points else ""
    return note + points + table_of(grid.head, rows, numeric_from=1)


def _beside_baselines(scores: Scores) -> str:
    systems = [("predictions", "", scores.scores), *((f.name, f.how, f.scores) for f in scores.floors)]
    patients = f"{scores.patients} patients" if scores.patients != scores.n else "one study a patient"
    about = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(how)}</dd></div>" for name, how, _ in systems if how
    )
    return (
        f"<p class='quiet'>{studies(scores.n)}, {patients}. Scored: {scored(scores)}. "
        f"{escape(intervals(scores)).capitalize()}. "
        "A baseline (or floor) is a report that did not look at the image.</p>"
        + "".join(f"<p>{escape(text)}.</p>" for text in (*scores.said, lacking(scores)) if text)
        + bars(scores.headline_keys()[0], systems)
        + _drawn(beside_baselines(scores))
        + (f"<dl class='facts'>{about}</dl>" if about else "")
    )


def _comparison(compared: Comparison) -> str:
    rows = []
    for d in compared.differences:
        plain = (f"{d.value:.3f}", f"{d.other:.3f}")
        tests = (f"{d.p:.4f}", f"{d.p_holm:.4f}")
        difference = number_of(d.difference, d.low, d.high, "+.3f")
        if d.no_interval and d.difference == d.difference:
            difference += f" <span class='quiet'>({escape(brief(d.no_interval))})</span>"
        cells = [*plain, difference, *tests]
        rows.append([escape(d.title), *("–" if cell == "nan" else cell for cell in cells)])
    head = ["score", "predictions", "other", "difference", "p", "p (Holm)"]
    return (
        f"<p class='quiet'>Differences in pairs, with their intervals; p from {compared.n_permutations} permutations "
        "of the two within patients.</p>" + table_of(head, rows, numeric_from=1)
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
    for compared in scores.comparisons:
        odd[f"Odd input of {compared.other}"] = compared.problems
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
