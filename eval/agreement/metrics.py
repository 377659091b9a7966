"""The metrics that are compared with ratings: ours, and values of others from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.agreement.files import Need, blank, pick, read_table, text_of
from eval.agreement.ratings import Rated
from eval.scores.readers import ScoreError
from eval.scores.registry import NotComputed
from eval.scores.sheet import Better
from eval.scores.values import values_of_rows
from eval.signature import signature

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Metric:
    """The values of one metric of N reports, (N,); NaN where it is not defined."""

    key: str
    title: str
    better: Better
    values_N: np.ndarray
    signature: str = ""


def metrics_of(
    rated: Rated,
    keys: Sequence[str] = (),
    *,
    clinical_models: str | Sequence[str] = "auto",
    weights: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> tuple[list[Metric], list[NotComputed]]:
    """Return the values of metrics, and what could not be computed.

    Without `keys` these are the headlines of all families, the lexical scores under every profile, and the clinical
    scores whose weights are there. Keys are computed whatever `clinical_models` says.

    Raises ScoreError for a key that does not exist, or whose weights are missing.
    """
    from eval.metric import metric
    from eval.scores import clinical
    from eval.scores.families import families, family_of, sheet_of, unusable
    from eval.scores.family import Reports
    from eval.scores.lexical import PROFILES

    keys = list(dict.fromkeys(keys))
    needed = tuple(dict.fromkeys(name for key in keys for name in family_of(key).needs(key)))
    models, missing = clinical.load((needed or "none") if keys else clinical_models, weights, device)
    reports = Reports(
        rated.references, rated.predictions, [{} for _ in rated.ids], profiles=tuple(PROFILES), models=models,
        progress=progress,
    )  # fmt: skip
    sheet, failed = sheet_of(reports)
    stats_NK = sheet.stats_NK
    found = {
        key: Metric(key, m.title, m.better, np.asarray((m.each or m.of)(stats_NK), np.float64), m.signature)
        for key, m in sheet.measures.items()
    }
    if keys:
        for key in keys:
            if key not in found:
                one = metric(key, weights=weights, device=device)
                found[key] = Metric(key, key, one.better, one.per_sample(rated.references, rated.predictions))
        return [found[key] for key in keys], []
    chosen = [
        found[key]
        for key, m in sheet.measures.items()
        if m.headline or m.family == "lexical" or (_by_models(key, families()) and not _details(key))
    ]
    return chosen, [*missing, *unusable(), *failed]


def _by_models(key: str, families: Sequence[Any]) -> bool:
    return any(key.partition("/")[0] in family.first_parts and family.needs(key) for family in families)


def _details(key: str) -> bool:
    """Tell whether a clinical score is a condition's, another average of the same, or one side of an F1."""
    return key.startswith(("chexbert-f1/", "radgraph-precision/", "radgraph-recall/"))


VALUES = Need(("study_id", "id", "pair_id"), ("name",), ("value",), ("better",))


def values_of(path: Path, rated: Rated) -> tuple[list[Metric], list[str]]:
    """Read metrics of others: a table with a row for each pair id and name. Returns them, and what there is to say.

    Raises ScoreError for a file that cannot be used, and if none of its ids is of this set.
    """
    table = pick(VALUES, [read_table(path)], path, "--values")
    rows = [
        (row.place, {**row.cells, "study_id": text_of(row, "study_id")})
        for row in table.rows
        if not blank(row.get("value"))
    ]
    if not rows:
        raise ScoreError(f"{path}: there is not a single value")
    values = values_of_rows(rows)
    given = {row["study_id"] for _, row in rows}
    unknown = given - set(rated.ids)
    if unknown == given:
        raise ScoreError(
            f"{path}: no id is one of this set's, which are like {rated.ids[0]!r}, {rated.ids[-1]!r}"
        )
    notes = [f"{path.name}: {len(unknown)} ids are not of a rated report"] if unknown else []
    found = values.of_system("", rated.ids)
    signed = {
        name: signature("value", of=name.replace(" ", "-"), file=f"sha256:{values.digest}") for name in found
    }
    # As in the scores: no name of theirs is one of ours.
    metrics = [
        Metric(f"value/{name}", name, values.names[name].better, found[name], signed[name]) for name in found
    ]
    return metrics, notes
