"""The list of all families of scores: ours, and those that other packages bring by entry points."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import metadata

from eval.judges.listing import FAMILIES as JUDGES
from eval.scores import clinical, label_f1, lexical, r2gen, safety, values
from eval.scores.family import Family, Reports
from eval.scores.readers import ScoreError
from eval.scores.registry import NotComputed
from eval.scores.sheet import Sheet

GROUP = "cxr.metrics"
"""Entry points of this group name a Family: `exclamations = "my_package.marks:FAMILY"`."""
OURS = tuple(
    replace(family, ours=True)
    for family in (
        label_f1.FAMILY,
        *clinical.FAMILIES,
        lexical.FAMILY,
        r2gen.FAMILY,
        values.FAMILY,
        *JUDGES,
        safety.FAMILY,
    )
)


def families() -> tuple[Family, ...]:
    """Return all families, ours first."""
    return _found()[0]


def unusable() -> tuple[NotComputed, ...]:
    """Return the families of other packages that cannot be used, and why."""
    return _found()[1]


@cache
def _found() -> tuple[tuple[Family, ...], tuple[NotComputed, ...]]:
    found, missing = list(OURS), []
    taken = {part: "cxr" for family in OURS for part in family.first_parts}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda p: p.name):
        package = point.dist.name if point.dist else point.value
        family, why = _family(point)
        if family and (twice := [part for part in family.first_parts if part in taken]):
            why = f"its keys begin with {twice[0]!r}, as those of {taken[twice[0]]} do"
        if family is None or why:
            missing.append(NotComputed(point.name, f"{package}: {why}", f"pip install --upgrade {package}"))
            continue
        found.append(family)
        taken |= dict.fromkeys(family.first_parts, package)
    return tuple(found), tuple(missing)


def _family(point: metadata.EntryPoint) -> tuple[Family | None, str]:
    try:
        family = point.load()
    # A package of others may break in any way; it costs its own scores and no others.
    except (Exception, SystemExit) as error:
        return None, f"{point.value} cannot be imported ({type(error).__name__}: {error})"
    if not isinstance(family, Family):
        return None, f"{point.value} is {type(family).__name__}, not an eval.scores.family.Family"
    if not isinstance(family.name, str) or not all(isinstance(part, str) for part in family.first_parts):
        return None, f"{point.value} has a name that is no text"
    return family, ""


def family_of(key: str) -> Family:
    """Return the family of a score's key. Raises ScoreError if there is none."""
    first = key.partition("/")[0]
    for family in families():
        if first in family.first_parts:
            return family
    known = ", ".join(part for family in families() for part in family.first_parts)
    raise ScoreError(f"no score {key!r}; keys begin with {known}")


def sheet_of(reports: Reports, **choices: object) -> tuple[Sheet, list[NotComputed]]:
    """Return a sheet with the scores of every family, and the families that failed. `choices` are added to each
    signature."""
    sheet, failed = Sheet(len(reports), **choices), []
    for family in families():
        try:
            family.put(sheet, reports)
            if family not in OURS:
                sheet.check(family.name)
        # One of another package may even end the program.
        except (Exception, SystemExit) as error:
            if family in OURS:
                raise
            why = f"it failed on these reports ({type(error).__name__}: {error})"
            failed.append(NotComputed(family.name, why, "tell those who wrote it"))
            sheet.drop(family.name)
    return sheet, failed
