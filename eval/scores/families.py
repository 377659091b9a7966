"""The list of all families of scores: ours, and those that other packages bring by entry points."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from importlib import metadata

import numpy as np

from eval.judges.listing import FAMILIES as JUDGES
from eval.scores import clinical, label_f1, lexical, r2gen, safety, values
from eval.scores.family import Family, Reports
from eval.scores.readers import ScoreError
from eval.scores.registry import NotComputed
from eval.scores.sheet import FamilyFailed, Sheet, guard

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
    sheet = Sheet(len(reports), **choices)
    for family in families():
        if family in OURS:
            family.put(sheet, reports)
            continue
        sheet.foreign.add(family.name)
        before = dict(sheet.measures), list(sheet._blocks), sheet._width
        try:
            with guard(family.name):
                own = copy_of(reports)
                family.put(sheet, own)
                if any(sheet.measures.get(key) is not measure for key, measure in before[0].items()):
                    raise ValueError("it changed the scores of others")
                sheet.check(family.name)
        except FamilyFailed as error:
            sheet.measures, sheet._blocks, sheet._width = before
            sheet.fail(error)
            continue
        # Another family may use what it found.
        reports.features = {**own.features, **reports.features}
        reports.labels = {**own.labels, **reports.labels}
    return sheet, failed(sheet)


def failed(sheet: Sheet) -> list[NotComputed]:
    """Return the families of a sheet that failed, and why."""
    return [
        NotComputed(name, f"it failed on these reports ({why})", "tell those who wrote it")
        for name, why in sheet.failed.items()
    ]


def copy_of(reports: Reports) -> Reports:
    """Return reports whose lists a family may change without changing what others see."""
    several = None if reports.several is None else [list(texts) for texts in reports.several]
    labels_N14, judged_N = reports.reference_labels_N14, reports.judged_N
    return replace(
        reports, references=list(reports.references), predictions=list(reports.predictions), several=several,
        studies=deepcopy(list(reports.studies)), study_ids=list(reports.study_ids), profiles=tuple(reports.profiles),
        features={name: np.array(values_N) for name, values_N in reports.features.items()},
        labels={name: (np.array(a), np.array(b)) for name, (a, b) in reports.labels.items()},
        reference_labels_N14=None if labels_N14 is None else labels_N14.copy(),
        judged_N=None if judged_N is None else judged_N.copy(),
    )  # fmt: skip
