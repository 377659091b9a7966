"""Scores as plain-text tables."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import TYPE_CHECKING

from eval.scores.inputs import POLICIES
from eval.signature import Score

if TYPE_CHECKING:
    from rich.table import Table

    from eval.scores.suite import Scores

AVERAGE_NAMES = {
    "micro": "micro",
    "macro": "macro, all",
    "macro-supported": "macro, supported",
    "weighted": "weighted",
    "example": "example-based",
}
LEXICAL = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "meteor")
SHORT = {"bleu-4/coco": "BLEU-4 coco", "rouge-l/coco": "ROUGE-L coco"}


def short_name(key: str) -> str:
    """A heading for a score's key: `label-f1/14/macro/neg` -> "F1-14 macro"."""
    if key in SHORT:
        return SHORT[key]
    name, *rest = key.split("/")
    if name == "label-f1" and len(rest) == 3:
        average = rest[1].replace("macro-", "macro n ≥ ") if rest[1][-1:].isdigit() else rest[1]
        return f"F1-{rest[0]} {average}"
    return f"{name.upper()} {' '.join(rest)}"


def with_interval(s: Score | None) -> str:
    """`0.412 [.401 .423]`; a dash where there is no score."""
    if s is None or s.value != s.value:
        return "-"
    low, high = (f"{x:.3f}".replace("0.", ".", 1) for x in (s.low, s.high))
    return f"{s.value:.3f} [{low} {high}]"


def render(scores: Scores, width: int = 110) -> str:
    """Everything in `scores` as plain text, `width` columns wide."""
    from rich.console import Console

    console = Console(file=StringIO(), width=width, color_system=None, highlight=False)
    patients = f"{scores.patients} patients" if scores.patients != scores.n else "one study a patient"
    interval = f"{scores.settings['interval']}, {scores.settings['n_boot']} replicates"
    console.print(f"{scores.n} studies, {patients}; [{interval}]", markup=False)
    for table in (_floors(scores), _label_f1(scores), _lexical(scores), _conditions(scores)):
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
        console.print(_problems(scores))
    console.print("Signatures")
    overlap = [f"{m}/{p}" for p in lexical_profiles(scores) for m in ("bleu-4", "rouge-l", "meteor")]
    for key in dict.fromkeys([*headline_keys(scores), *overlap]):
        if key in scores.scores:
            console.print(f"  {scores.scores[key].signature}", markup=False, overflow="fold")
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", overflow="fold")
    return table


def headline_keys(scores: Scores) -> list[str]:
    """What the floors are compared in: macro over the well-supported conditions where there are any."""
    supported = f"label-f1/14/macro-{scores.settings['min_support']}/neg"
    macro = supported if supported in scores.scores else "label-f1/14/macro/neg"
    return [macro, "label-f1/14/micro/neg", "bleu-4/coco", "rouge-l/coco"]


def _floors(scores: Scores) -> Table:
    keys = headline_keys(scores)
    table = _table("Predictions and floors (uncertain as absent)", "", *map(short_name, keys))
    table.add_row("predictions", *(with_interval(scores.scores.get(k)) for k in keys))
    for floor in scores.floors:
        table.add_row(floor.name, *(with_interval(floor.scores.get(k)) for k in keys))
    return table


def _label_f1(scores: Scores) -> Table:
    table = _table(
        "Label F1, labeller `rules` (not CheXbert)", "average", "14, unc. absent", "14, unc. present",
        "5, unc. absent", "5, unc. present",
    )  # fmt: skip
    least = scores.settings["min_support"]
    for average, name in {**AVERAGE_NAMES, f"macro-{least}": f"macro, n ≥ {least}"}.items():
        row = [scores.scores.get(f"label-f1/{n}/{average}/{u}") for n in (14, 5) for u in ("neg", "pos")]
        if any(row):
            table.add_row(name, *map(with_interval, row))
    return table


def lexical_profiles(scores: Scores) -> list[str]:
    return [key.split("/")[1] for key in scores.scores if key.startswith("bleu-4/")]


def _lexical(scores: Scores) -> Table:
    profiles = lexical_profiles(scores)
    table = _table("Text overlap by profile", "", *profiles)
    for name in LEXICAL:
        table.add_row(name.upper(), *(with_interval(scores.scores.get(f"{name}/{p}")) for p in profiles))
    return table


def _conditions(scores: Scores) -> Table:
    table = _table(
        "By condition (uncertain as absent)", "condition", "support", "predicted", "precision", "recall", "F1"
    )
    for row in scores.conditions["neg"]:
        f1 = with_interval(scores.scores.get(f"label-f1/{row['condition']}/neg"))
        counts = (str(row["support"]), str(row["predicted"]))
        table.add_row(row["condition"], *counts, f"{row['precision']:.3f}", f"{row['recall']:.3f}", f1)
    return table


def _not_computed(scores: Scores) -> Table:
    return _rows(
        "Not computed",
        ("score", "why", "command"),
        ((m.name, m.reason, m.command) for m in scores.not_computed),
    )


def _problems(scores: Scores) -> Table:
    rows = (
        (kind, str(len(ids)), POLICIES[kind], ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else ""))
        for kind, ids in scores.problems.items()
    )
    return _rows("Odd input", ("kind", "count", "treatment", "studies"), rows)


def _rows(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.text import Text

    table = _table(title, *columns)
    for column in table.columns:
        column.justify = "left"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # ids are the user's: no markup
    return table
