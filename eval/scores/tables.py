"""Scores as plain-text tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, Any, Protocol

from eval.intervals import RARE, brief, too_few_patients
from eval.scores.families import families
from eval.scores.family import Grid
from eval.scores.inputs import EMPTY, POLICIES, SECTIONS
from eval.scores.sheet import SheetScore
from eval.signature import Score

if TYPE_CHECKING:
    from rich.table import Table


class Tabled(Protocol):
    """Name the fields of eval.scores.result.Scores, which prints itself by these tables, that they use."""

    n: int
    patients: int
    scores: dict[str, SheetScore]
    conditions: dict[str, dict[str, list[dict]]]
    floors: list[Any]
    subgroups: list[Any]
    comparisons: list[Any]
    said: list[str]
    not_computed: list[Any]
    problems: dict[str, list[str]]
    settings: dict[str, Any]
    labeller_check: dict[str, float]


def studies(n: int) -> str:
    """Return the count in words: "1 study", "2 studies"."""
    return f"{n} stud{'y' if n == 1 else 'ies'}"


def scored(scores: Tabled) -> str:
    """Say which text was scored."""
    return SECTIONS[scores.settings["section"]].said


NOTHING = ("no prediction", "failed prediction", "empty prediction", "placeholder prediction")


def lacking(scores: Tabled) -> str:
    """Say how many studies got no report, which every score counts as an empty one; "" if all got one."""
    lacks = {kind: len(scores.problems[kind]) for kind in NOTHING if kind in scores.problems}
    if not lacks:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in lacks.items())
    return f"{sum(lacks.values())} of {scores.n} studies got no report, and are scored as empty: {kinds}"


def with_interval(s: Score | None) -> str:
    """Format a score as `0.412 [.401 .423]`: a dash without a score, no brackets without an interval, and in round ones
    over how many conditions it is a mean, or why it has no interval."""
    if s is None or s.value != s.value:
        return "-"
    said = f"{s.value:.3f}" + brackets(*(re.sub(r"^(-?)0\.", r"\1.", f"{x:.3f}") for x in (s.low, s.high)))
    notes = [note for note in (getattr(s, "over", ""), brief(getattr(s, "no_interval", ""))) if note]
    return said + (f" ({', '.join(notes)})" if notes else "")


def brackets(low: str, high: str) -> str:
    """Format an interval as ` [.401 .423]`; "" if it is not defined."""
    return "" if "nan" in low + high else f" [{low} {high}]"


def intervals(scores: Tabled) -> str:
    """Say what the brackets behind a number are."""
    made = scores.settings["interval"]
    return (
        f"no intervals{made.removeprefix('none')}" if made.startswith("none") else f"brackets: {made}; {RARE}"
    )


def headline_keys(scores: Tabled) -> list[str]:
    """Return the keys of the scores that predictions are compared by: the same whatever the data."""
    return [key for key, s in scores.scores.items() if s.headline]


def headlines(scores: Tabled) -> list[tuple[str, str]]:
    """Return (name, value with its interval) of the headline scores."""
    found = [scores.scores[key] for key in headline_keys(scores)]
    return [(s.title, with_interval(s)) for s in found]


def headline_html(scores: Tabled) -> str:
    """Return the headline scores, beside those of the baselines, as an HTML table."""
    grid = beside_baselines(scores)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in grid.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in row) + "</tr>"
        for row in grid.rows
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{studies(scores.n)}; scored: {html.escape(scored(scores))}; {html.escape(intervals(scores))}. "
        + (f"{html.escape(lacking(scores))}. " if lacking(scores) else "")
        + "print() shows all scores.</p>"
    )


def beside_baselines(scores: Tabled) -> Grid:
    """Return the headline scores, one a row, beside those of every baseline."""
    systems = [("predictions", scores.scores), *((floor.name, floor.scores) for floor in scores.floors)]
    rows = []
    for key in headline_keys(scores):
        title = scores.scores[key].title
        lower = " (lower is better)" if scores.scores[key].better == "lower" else ""
        rows.append((title + lower, *(found.get(key) for _, found in systems)))
    head = ("", *(name for name, _ in systems))
    return Grid("Predictions and baselines (uncertain as absent)", head, rows, "scores")


def _cell(cell: str | Score | None) -> str:
    return cell if isinstance(cell, str) else with_interval(cell)


def render(scores: Tabled, width: int = 110) -> str:
    """Render everything in `scores` as plain text, `width` columns wide."""
    from rich.console import Console

    console = Console(file=StringIO(), width=width, color_system=None, highlight=False)
    patients = f"{scores.patients} patients" if scores.patients != scores.n else "one study a patient"
    shown = f"[{intervals(scores).removeprefix('brackets: ')}]"
    console.print(f"{studies(scores.n)}, {patients}; {shown}", markup=False)
    if without := scores.settings["without_patient"]:
        names = "names" if without == 1 else "name"
        console.print(f"{without} of them {names} no patient: each counts as a patient of its own")
    console.print(f"scored: {scored(scores)}")
    for said in (*scores.said, lacking(scores)):
        if said:
            console.print(said, markup=False)
    grids = [beside_baselines(scores), *(g for family in families() for g in family.grids(scores))]
    tables = [_of_grid(grid) for grid in grids]
    if scores.subgroups:
        tables.append(_of_grid(by_subgroup(scores)))
    tables += [_comparison(compared, scores.n) for compared in scores.comparisons]
    for table in tables:
        console.print(table)
    if scores.labeller_check:
        c = scores.labeller_check
        console.print(
            f"The labeller `rules` against the labels of {c['n']} reference studies: micro F1 {c['micro_f1']:.3f}, "
            f"macro F1 {c['macro_f1_supported']:.3f}.\n",
            markup=False,
        )
    console.print(_not_computed(scores))
    if scores.problems:
        console.print(_problems("Odd input", scores.problems))
    for compared in scores.comparisons:
        if compared.problems:
            console.print(_problems(f"Odd input of {compared.other}", compared.problems))
    console.print("Signatures")
    for key, s in scores.scores.items():
        if s.headline or s.family in ("lexical", "r2gen"):
            console.print(f"  {scores.scores[key].signature}", markup=False, overflow="fold")
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    """Make a table of text. Names of files, baselines and views are the user's: titles, columns and cells are
    never markup."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    class Plain(Table):
        def add_row(self, *cells, **options) -> None:
            super().add_row(*(escape(c) if isinstance(c, str) else c for c in cells), **options)

    table = Plain(
        title=escape(title),
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column(escape(columns[0]), overflow="fold")
    for column in columns[1:]:
        table.add_column(escape(column), justify="right", overflow="fold")
    return table


def _of_grid(grid: Grid) -> Table:
    table = _table(grid.title, *grid.head)
    for row in grid.rows:
        table.add_row(*map(_cell, row))
    return table


def _comparison(compared: Any, n: int) -> Table:
    lacks = {key for kind in EMPTY for key in compared.problems.get(kind, ())}
    without = f" ({len(lacks)} of {studies(n)} have no report there)" if lacks else ""
    table = _table(
        f"Against {compared.other}, in pairs{without}", "", "predictions", "other", "difference", "p", "p (Holm)",
        caption=f"p: {compared.n_permutations} permutations, by patient",
    )  # fmt: skip
    for d in compared.differences:
        difference = f"{d.difference:+.3f}{brackets(f'{d.low:+.3f}', f'{d.high:+.3f}')}"
        difference += f" ({brief(d.no_interval)})" if d.no_interval and d.difference == d.difference else ""
        numbers = (f"{d.value:.3f}", f"{d.other:.3f}", difference, f"{d.p:.4f}", f"{d.p_holm:.4f}")
        table.add_row(d.title, *("-" if "nan" in x else x for x in numbers))
    return table


def by_subgroup(scores: Tabled) -> Grid:
    """Return the headline scores of every subgroup, one a row. Where a group has too few patients for an interval, its
    name says so."""
    keys = headline_keys(scores)
    rows = []
    for group in scores.subgroups:
        name = f"{group.attribute} {group.value}"
        few = too_few_patients(group.patients)
        if few:
            name += f" ({few}: no intervals)"
        cells = [group.scores.get(key) for key in keys]
        cells = [replace(s, no_interval="") if s and few and s.no_interval == few else s for s in cells]
        rows.append((name, str(group.n), *cells))
    return Grid(
        "By sex, age and view", ("", "studies", *(scores.scores[k].title for k in keys)), rows, "groups"
    )


def _not_computed(scores: Tabled) -> Table:
    return _rows(
        "Not computed",
        ("score", "why", "command"),
        ((m.name, m.reason, m.command) for m in scores.not_computed),
    )


def _problems(title: str, problems: Mapping[str, list[str]]) -> Table:
    rows = (
        (
            kind,
            str(len(ids)),
            POLICIES[kind],
            ", ".join(map(_shown, ids[:3])) + (", ..." if len(ids) > 3 else ""),
        )
        for kind, ids in problems.items()
    )
    return _rows(title, ("kind", "count", "treatment", "studies"), rows)


def _shown(name: str) -> str:
    """Return a user's name for a study, with what a terminal would obey (escape sequences, ends of lines)
    escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


def _rows(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.text import Text

    table = _table(title, *columns)
    for column in table.columns:
        column.justify = "left"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # ids are the user's: no markup
    return table
