"""Agreement with radiologists as plain-text tables."""

from __future__ import annotations

import re
from io import StringIO
from typing import TYPE_CHECKING

from eval.agreement.coefficients import COVERED, LEAST_STUDIES
from eval.scores.tables import brackets

if TYPE_CHECKING:
    from rich.table import Table

    from eval.agreement.result import Agreed, Agreement, OfRating


def render(found: Agreement, width: int = 110) -> str:
    """Return a table for each rating, what was assumed in reading, and what could not be computed."""
    from rich.console import Console

    rated = found.rated
    console = Console(file=StringIO(), width=width, color_system=None, highlight=False, emoji=False)

    def say(text: str) -> None:
        console.print(text, markup=False)

    say(f"{rated.title}: {len(rated)} reports of {len(set(rated.studies))} studies")
    for note in found.notes:
        say(f"  {note}")
    settings = found.settings
    say(f"{settings['convention']}; brackets: {settings['interval']}, {settings['n_boot']} replicates")
    marks = {a.metric.better for of in found.ratings for a in of.metrics}
    if "lower" in marks:
        say("v: less is better, so the metric is turned round")
    if "neither" in marks:
        say("=: neither more nor less is better; taken as if more were")
    console.print()
    for of in found.ratings:
        console.print(_table(found, of))
        console.print()
    if found.not_computed:
        say("Not computed")
        for missing in found.not_computed:
            say(f"  {missing.name}: {missing.reason}; {missing.command}")
    # rich's file is the StringIO above
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def _table(found: Agreement, of: OfRating) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    said = [f"{c.mark} {c.text}" for c in found.rated.cautions]
    if of.best:
        said.append(f"difference: tau-b less that of {of.best}; p: adjusted by Holm for all pairs of metrics")
    if of.best and any(a.undefined for a in of.metrics):
        said.append(
            "differences use the reports that both metrics have, tau-b all that a metric has; one that is defined for "
            f"fewer than {COVERED:.0%} of the reports cannot be best".replace("%", " %")
        )
    if of.studies < LEAST_STUDIES:
        said.append(f"no intervals and no tests: {of.studies} studies, at least {LEAST_STUDIES} are needed")
    if any(a.tau != a.tau for a in of.metrics):
        said.append("-: not defined, as the metric or the rating is the same for all reports")
    way = "fewer is better" if of.rating.better == "lower" else "more is better"
    table = Table(
        title=escape(f"Agreement with {of.rating.name} ({way}), {of.reports} reports of {of.studies} studies"),
        caption=escape("\n".join(said)), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left",
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("metric", overflow="fold")
    for column in ("tau-b", "Spearman", "difference", "p", "reports/studies"):
        table.add_column(column, justify="right", overflow="fold")
    for a in of.metrics:
        marks = [{"lower": "v", "neither": "="}.get(a.metric.better, "")]
        marks += [
            c.mark
            for c in found.rated.cautions
            if a.metric.key.lower().removeprefix("value/").startswith(c.keys)
        ]
        best = a.metric.key == of.best
        table.add_row(
            escape(" ".join([a.metric.key, *filter(None, marks)])),
            _number(a.tau, a.tau_interval),
            _number(a.rho, a.rho_interval),
            "best" if best else _number(a.difference, a.difference_interval, "+.3f"),
            "" if best else _p(a),
            f"{a.reports}/{a.studies}",
        )
    return table


def _number(value: float, interval: tuple[float, float], form: str = ".3f") -> str:
    """Return a number with its interval; a dash if it is not defined."""
    if value != value:
        return "-"
    return f"{value:{form}}" + brackets(*(re.sub(r"^(-?)0\.", r"\1.", f"{bound:.2f}") for bound in interval))


def _p(a: Agreed) -> str:
    if a.p_holm != a.p_holm:
        return "-"
    return "<.001" if a.p_holm < 0.001 else f"{a.p_holm:.3f}"
