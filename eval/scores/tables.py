"""Scores as plain-text tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from typing import TYPE_CHECKING, Any, Protocol

from eval.scores.inputs import POLICIES, SECTIONS
from eval.scores.keys import (
    AVERAGE_NAMES,
    LEXICAL,
    SAFETY,
    clinical_keys,
    headline_keys,
    short_name,
    subgroup_keys,
)
from eval.signature import Score

if TYPE_CHECKING:
    from rich.table import Table


class Tabled(Protocol):
    """Name the fields of eval.scores.result.Scores, which prints itself by these tables, that they use."""

    n: int
    patients: int
    scores: dict[str, Score]
    conditions: dict[str, dict[str, list[dict]]]
    floors: list[Any]
    subgroups: list[Any]
    comparison: Any
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


def with_interval(s: Score | None) -> str:
    """Format a score as `0.412 [.401 .423]`: a dash without a score, no brackets without an interval."""
    if s is None or s.value != s.value:
        return "-"
    return f"{s.value:.3f}" + brackets(*(re.sub(r"^(-?)0\.", r"\1.", f"{x:.3f}") for x in (s.low, s.high)))


def brackets(low: str, high: str) -> str:
    """Format an interval as ` [.401 .423]`; "" if it is not defined."""
    return "" if "nan" in low + high else f" [{low} {high}]"


def intervals(scores: Tabled) -> str:
    """Say what the brackets behind a number are."""
    replicates = scores.settings["n_boot"]
    return (
        f"brackets: {scores.settings['interval']}, {replicates} replicates" if replicates else "no intervals"
    )


def headlines(scores: Tabled) -> list[tuple[str, str]]:
    """Return (name, value with its interval) of the headline scores."""
    keys = _headline_keys(scores)
    return [(short_name(key), with_interval(scores.scores.get(key))) for key in keys]


def headline_html(scores: Tabled) -> str:
    """Return the headline scores, beside those of the baselines, as an HTML table."""
    keys = _headline_keys(scores)
    systems = [("predictions", scores.scores), *((floor.name, floor.scores) for floor in scores.floors)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *map(short_name, keys)])
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{with_interval(found.get(key))}</td>" for key in keys)
        + "</tr>"
        for name, found in systems
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{studies(scores.n)}; scored: {html.escape(scored(scores))}; {html.escape(intervals(scores))}. "
        "print() shows all scores.</p>"
    )


def _headline_keys(scores: Tabled) -> list[str]:
    least = scores.settings["min_support"]
    return [*headline_keys(scores.scores, least), *clinical_keys(scores.scores, least)]


def render(scores: Tabled, width: int = 110) -> str:
    """Render everything in `scores` as plain text, `width` columns wide."""
    from rich.console import Console

    console = Console(file=StringIO(), width=width, color_system=None, highlight=False)
    patients = f"{scores.patients} patients" if scores.patients != scores.n else "one study a patient"
    shown = f"[{intervals(scores).removeprefix('brackets: ')}]"
    console.print(f"{studies(scores.n)}, {patients}; {shown}", markup=False)
    if without := scores.settings["without_patient"]:
        console.print(f"{without} of them name no patient: each counts as a patient of its own")
    console.print(f"scored: {scored(scores)}")
    least = scores.settings["min_support"]
    tables = [*_floors(scores), _label_f1(scores, "label-f1", "Label F1, labeller `rules` (not CheXbert)")]
    if "chexbert-f1" in scores.conditions:
        tables.append(_label_f1(scores, "chexbert-f1", "CheXbert F1"))
    if any(key.startswith("radgraph-f1/") for key in scores.scores):
        tables.append(_radgraph(scores))
    tables += [_lexical(scores), _safety(scores)]
    tables += [_conditions(scores, name) for name in scores.conditions]
    if scores.subgroups:
        tables.append(_subgroups(scores))
    if scores.comparison:
        tables.append(_comparison(scores))
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
    if scores.comparison and scores.comparison.problems:
        title = f"Odd input of {scores.comparison.other}"
        console.print(_problems(title, scores.comparison.problems))
    console.print("Signatures")
    overlap = [f"{m}/{p}" for p in lexical_profiles(scores) for m in ("bleu-4", "rouge-l", "meteor")]
    headline = [*headline_keys(scores.scores, least), *clinical_keys(scores.scores, least)]
    for key in dict.fromkeys([*headline, *overlap]):
        if key in scores.scores:
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


def _floors(scores: Tabled) -> Iterator[Table]:
    least = scores.settings["min_support"]
    keys = headline_keys(scores.scores, least)
    systems = [("predictions", scores.scores), *((floor.name, floor.scores) for floor in scores.floors)]
    table = _table("Predictions and baselines (uncertain as absent)", "", *map(short_name, keys))
    for name, found in systems:
        table.add_row(name, *(with_interval(found.get(k)) for k in keys))
    yield table
    keys = clinical_keys(scores.scores, least)
    if keys:  # there are more of these than of systems
        title = "The same, clinical scores (RadCliQ: lower is better)"
        table = _table(title, "", *(name for name, _ in systems))
        for key in keys:
            table.add_row(short_name(key), *(with_interval(found.get(key)) for _, found in systems))
        yield table


def _comparison(scores: Tabled) -> Table:
    compared = scores.comparison
    shown = "intervals: paired bootstrap; " if compared.n_boot else ""
    table = _table(
        f"Against {compared.other}, in pairs", "", "predictions", "other", "difference", "p", "p (Holm)",
        caption=f"{shown}p: {compared.n_permutations} permutations, by patient",
    )  # fmt: skip
    for d in compared.differences:
        difference = f"{d.difference:+.3f}{brackets(f'{d.low:+.3f}', f'{d.high:+.3f}')}"
        numbers = (f"{d.value:.3f}", f"{d.other:.3f}", difference, f"{d.p:.4f}", f"{d.p_holm:.4f}")
        table.add_row(short_name(d.name), *("-" if "nan" in x else x for x in numbers))
    return table


def _subgroups(scores: Tabled) -> Table:
    keys = subgroup_keys(scores.scores, scores.settings["min_support"])
    table = _table("By sex, age and view", "", "studies", *map(short_name, keys))
    for group in scores.subgroups:
        found = (with_interval(group.scores.get(k)) for k in keys)
        table.add_row(f"{group.attribute} {group.value}", str(group.n), *found)
    return table


def _safety(scores: Tabled) -> Table:
    table = _table("Change, sides, length, repetition", "", "predictions", "references")
    for key, (name, reference) in SAFETY.items():
        table.add_row(name, with_interval(scores[key]), with_interval(scores.scores.get(reference)))
    return table


def _label_f1(scores: Tabled, name: str, title: str) -> Table:
    table = _table(
        title, "average", "14, unc. absent", "14, unc. present", "5, unc. absent", "5, unc. present",
    )  # fmt: skip
    least = scores.settings["min_support"]
    for average, shown in {**AVERAGE_NAMES, f"macro-{least}": f"macro, n ≥ {least}"}.items():
        row = [scores.scores.get(f"{name}/{n}/{average}/{u}") for n in (14, 5) for u in ("neg", "pos")]
        if any(row):
            table.add_row(shown, *map(with_interval, row))
    return table


def lexical_profiles(scores: Tabled) -> list[str]:
    """Return the names of the profiles (see `lexical`) that BLEU-4 was computed with, in the order of the scores."""
    return [key.split("/")[1] for key in scores.scores if key.startswith("bleu-4/")]


def _lexical(scores: Tabled) -> Table:
    profiles = lexical_profiles(scores)
    table = _table("Text overlap by profile", "", *profiles)
    for name in LEXICAL:
        table.add_row(name.upper(), *(with_interval(scores.scores.get(f"{name}/{p}")) for p in profiles))
    return table


def _radgraph(scores: Tabled) -> Table:
    kinds = ("precision", "recall", "f1")
    table = _table("RadGraph", "model", "level", *kinds)
    for key in scores.scores:
        name, *rest = key.split("/")
        if name == "radgraph-f1" and len(rest) == 2:
            row = (scores.scores.get("/".join([f"radgraph-{kind}", *rest])) for kind in kinds)
            table.add_row(*rest, *map(with_interval, row))
    return table


def _conditions(scores: Tabled, name: str) -> Table:
    reader = "CheXbert" if name == "chexbert-f1" else "labeller `rules`"
    table = _table(
        f"By condition, {reader} (uncertain as absent)", "condition", "support", "predicted", "precision", "recall",
        "F1",
    )  # fmt: skip
    for row in scores.conditions[name]["neg"]:
        f1 = with_interval(scores.scores.get(f"{name}/{row['condition']}/neg"))
        counts = (str(row["support"]), str(row["predicted"]))
        table.add_row(row["condition"], *counts, f"{row['precision']:.3f}", f"{row['recall']:.3f}", f1)
    return table


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
