"""What scoring gives: numbers with intervals and signatures, subgroups, tables, JSON."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, KeysView
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.scores import tables
from eval.scores.comparison import Comparison
from eval.scores.floors import Floor
from eval.scores.inputs import POLICIES
from eval.scores.registry import NotComputed
from eval.scores.sheet import SheetScore
from eval.signature import number

KIND = "cxr-scores"


@dataclass
class Subgroup:
    """The scores of the studies of one sex, age band or view."""

    attribute: str
    value: str
    n: int
    patients: int
    scores: dict[str, SheetScore]


@dataclass
class Scores:
    """All scores of one set of predictions; `scores[key]` is one of them, `print(scores)` a table."""

    n: int
    patients: int
    scores: dict[str, SheetScore]
    conditions: dict[
        str, dict[str, list[dict]]
    ]  # labeller's score -> uncertainty policy -> one row a condition
    floors: list[Floor]
    not_computed: list[NotComputed]
    problems: dict[str, list[str]]  # kind of inputs.POLICIES -> study ids
    studies: list[dict]  # per study: study_id, rouge-l, label errors, what else is odd
    settings: dict[str, Any]
    labeller_check: dict[str, float] = field(default_factory=dict)
    subgroups: list[Subgroup] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # which columns were taken for others
    texts: dict[str, tuple[str, str]] = field(
        default_factory=dict, repr=False
    )  # reference and prediction; not saved

    def headline_keys(self) -> list[str]:
        """Return the keys of the scores that predictions are compared by: the same whatever the data."""
        return tables.headline_keys(self)

    def __getitem__(self, key: str) -> SheetScore:
        if key not in self.scores:
            near = [k for k in self.scores if str(key) and k.startswith(str(key))][:3]
            near = near or difflib.get_close_matches(str(key), self.scores, 3)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise KeyError(f"no score {key!r}; {meant}`list(scores)` names all {len(self.scores)}")
        return self.scores[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __contains__(self, key: object) -> bool:
        return key in self.scores

    def keys(self) -> KeysView[str]:
        """Return the keys of all scores."""
        return self.scores.keys()

    def worst(self, count: int = 20) -> list[dict]:
        """Return the studies with the most label errors, swapped sides included; ties are broken by the lower
        ROUGE-L, then by the study's id."""
        errors = lambda s: len(s["missed"]) + len(s["invented"]) + len(s["swapped"])  # noqa: E731
        return sorted(self.studies, key=lambda s: (-errors(s), s["rouge_l"], s["study_id"]))[:count]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object (schema 1); numbers that are not defined are null. It holds no report."""
        return {
            "schema": 1,
            "kind": KIND,
            "n": self.n,
            "patients": self.patients,
            "settings": self.settings,
            "scores": [s.to_json() for s in self.scores.values()],
            "conditions": self.conditions,
            "floors": [
                {"name": f.name, "how": f.how, "scores": [s.to_json() for s in f.scores.values()]}
                for f in self.floors
            ],
            "subgroups": [
                {
                    "attribute": g.attribute, "value": g.value, "n": g.n, "patients": g.patients,
                    "scores": [s.to_json() for s in g.scores.values()],
                }
                for g in self.subgroups
            ],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "not_computed": [m.to_json() for m in self.not_computed],
            "inputs": {
                kind: {"count": len(ids), "policy": POLICIES[kind], "study_ids": ids}
                for kind, ids in self.problems.items()
            },
            "columns": self.said,
            "labeller_check": {k: number(v) for k, v in self.labeller_check.items()},
            "studies": self.studies,
        }  # fmt: skip

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `to_json()`. Scores written earlier are replaced, another file only with `overwrite`.

        Raises FileExistsError otherwise.
        """
        path = Path(path)
        if path.exists() and not overwrite and not is_scores(path):
            raise FileExistsError(
                f"{path} exists and holds no scores; choose another name or pass overwrite=True"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return path

    def table(self, width: int = 110) -> str:
        """Return the scores as plain text: label F1, text overlap, baselines, conditions, what was not
        computed, odd input."""
        return tables.render(self, width)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        """The headline numbers in one line; print() shows the tables."""
        found = [f"{name} {value}" for name, value in tables.headlines(self)]
        return f"Scores({tables.studies(self.n)}: {', '.join(found)})"

    def _repr_html_(self) -> str:
        """Return the headline numbers with their intervals, beside the floors', for notebooks."""
        return tables.headline_html(self)


def write_whole(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all: what was there stays where the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        # A full disk says no name, and this one is gone.
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_scores(path: Path) -> bool:
    """Tell whether the file is what `cxr score --out` writes. Never raises; a pipe is not opened."""
    return is_kind(path, KIND)


def is_kind(path: Path, kind: str) -> bool:
    """Tell whether the file is a JSON object of this kind, as our commands write them. Never raises; a pipe is not
    opened."""
    # A pipe would be waited for.
    if not path.is_file():
        return False
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(written, dict) and written.get("kind") == kind
