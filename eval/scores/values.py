"""Values that another tool or a person gave each study (GREEN, CRIMSON, a judge, a rating), beside our scores.

A table of four columns, and a fifth for several systems; JSON Lines with the same names will do:

    study_id,name,value,better,system
    s1,GREEN,0.61,higher,
    s1,GREEN,0.22,higher,shuffled images

`better` is higher or lower. `system` is empty for the predictions, else the name of a baseline or of a file that is
compared. Each name becomes the score `value/NAME`: the mean over studies with its interval, subgroups and paired tests.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from eval.scores.family import Family, Reports
from eval.scores.readers import Record, ScoreError, Source, keys_of, missing, rows_of
from eval.scores.sheet import Better, Sheet
from eval.signature import signature

COLUMNS = ("study_id", "name", "value", "better")
OWN = ("", "predictions")
LARGEST = 1e12
"""A greater number is no value of a report, and its sums are not exact."""


@dataclass
class Named:
    """The values of one name: which way is better, and by system a value of each study."""

    better: Better
    of: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Values:
    """All values of a file, by name, and the first digits of its SHA-256."""

    names: dict[str, Named]
    digest: str

    def of_system(self, system: str, study_ids: list[str]) -> dict[str, np.ndarray]:
        """Return the values (N,) of a system by name; NaN where a study has none."""
        found = {}
        for name, values in self.names.items():
            given = values.of.get(system, {})
            found[name] = np.array([given.get(key, math.nan) for key in study_ids])
        return found

    def of_nothing(self, study_ids: list[str]) -> list[str]:
        """Return the studies that have values and are not scored."""
        known, found = set(study_ids), {}
        for values in self.names.values():
            for given in values.of.values():
                found.update(dict.fromkeys(key for key in given if key not in known))
        return list(found)

    def check_systems(self, known: list[str], compared: list[str], study_ids: list[str]) -> None:
        """Raise ScoreError for a system that nothing here is called, for one that is `compared` on other studies than
        the predictions have values for, and for values of which none is of a study that is scored."""
        for name, values in self.names.items():
            for system in values.of.keys() - {"", *known}:
                there = ", ".join(map(repr, known)) or "none"
                raise ScoreError(
                    f"values of {name}: no system is called {system!r}; leave it empty for the predictions; others are "
                    f"{there}"
                )
            for system, given in values.of.items():
                if not given.keys() & set(study_ids):
                    raise ScoreError(
                        f"values of {name}{f' for {system!r}' if system else ''}: none is of a study that is scored "
                        f"(they name {next(iter(given))!r}, ...; scored are {study_ids[0]!r}, ...)"
                    )
            for system in compared:
                if system in values.of and values.of[system].keys() != values.of.get("", {}).keys():
                    raise ScoreError(
                        f"values of {name}: {system!r} has them for other studies than the predictions; paired tests "
                        "need the same studies"
                    )


def read_values(source: Source) -> Values:
    """Read a table of values. Raises ScoreError, naming the line."""
    return values_of_rows(rows_of(source, "value"))


def values_of_rows(placed: Iterable[tuple[str, Record]]) -> Values:
    """Return the values of rows, each with its place. Raises ScoreError, naming the place."""
    names: dict[str, Named] = {}
    read: list[str] = []
    for place, row in placed:
        lack = [c for c in COLUMNS if missing(row.get(c))]
        if lack:
            there = keys_of({column: x for column, x in row.items() if not missing(x)})
            raise ScoreError(
                f"{place}: no {' and no '.join(map(repr, lack))}; there are {there}; needed are {', '.join(COLUMNS)} "
                "(and system, of what is compared): one line for each study and name"
            )
        name, value, better = (
            str(row["name"]).strip(),
            _number(place, row["value"]),
            str(row["better"]).strip().lower(),
        )
        if not re.fullmatch(r"[\w.+-][\w.+ -]{0,40}", name):
            raise ScoreError(
                f"{place}: a name has letters, digits, spaces, dots, + and -, at most 40; not {name[:40]!r}"
            )
        if better not in ("higher", "lower"):
            raise ScoreError(f"{place}: better is {better[:20]!r}; accepted are higher and lower")
        system = str(row.get("system") or "").strip()
        system = "" if system in OWN else system
        entry = names.setdefault(name, Named(cast(Better, better)))
        if entry.better != better:
            raise ScoreError(
                f"{place}: {name} is better when {better} here, and {entry.better} in an earlier line"
            )
        of, key = entry.of.setdefault(system, {}), str(row["study_id"]).strip()
        if key in of:
            raise ScoreError(f"{place}: study {key!r} has a second value of {name}")
        of[key] = value
        read.append(json.dumps([key, name, value, better, system]))
    # Sorted: the same values in another order are the same.
    return Values(names, hashlib.sha256("".join(sorted(read)).encode()).hexdigest()[:12])


def _number(place: str, value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not abs(found) <= LARGEST:
        raise ScoreError(
            f"{place}: a value is a number, not {str(value)[:20]!r}; leave a study out that has none"
        )
    return found


def _add(sheet: Sheet, reports: Reports) -> None:
    values: Values | None = reports.values
    if values is None:
        return
    found: Mapping[str, np.ndarray] = values.of_system(reports.system, list(reports.study_ids))
    for name, values_N in found.items():
        # A baseline without values has no such score.
        if np.isnan(values_N).all():
            continue
        whole = len(values_N) if np.isnan(values_N).any() else 0
        sheet.add_mean(
            f"value/{name}", signature("value", of=name.replace(" ", "~"), file=f"sha256:{values.digest}"), values_N,
            title=name, better=values.names[name].better, headline=True, whole=whole, kind="number",
            # Of a subgroup, its own studies.
            **({"over": lambda sums: sums[..., 1], "whole_of_rows": True} if whole else {}),
        )  # fmt: skip


FAMILY = Family("values", "Values of others", _add, ("value",))
