"""A family of scores: what is computed of reports, and how it is shown. One file holds one family.

A family of one number a study is a function and a few words:

    def marks(reports: Reports) -> np.ndarray:
        return np.array([text.count("!") for text in reports.predictions])

    FAMILY = Family.of_values("exclamations", "Exclamation marks", marks, better="lower", headline=True)

`eval.scores.families` lists them; a package adds its own by an entry point of the group `cxr.metrics`. Whatever reads
scores (JSON, tables, page, baselines, comparison, rewards) asks the families, and knows none by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.scores.sheet import Better, Of, Sheet
from eval.signature import Score, signature

Study = Mapping[str, Any]


@dataclass
class Reports:
    """What a family sees of N studies: texts, what is known of the studies, and the settings.

    `several` holds all references of each study where some have more than one; `references` then holds the closest.
    `key` is the one score that is wanted, None for all. `headline_only` spares what baselines are not compared by.
    """

    references: Sequence[str]
    predictions: Sequence[str]
    studies: Sequence[Study]
    several: Sequence[Sequence[str]] | None = None
    # Labels of the references (1, 0, -1, NaN), and whose are judged, bool; read from the texts where they are None.
    reference_labels_N14: np.ndarray | None = None
    judged_N: np.ndarray | None = None
    label_source: str = "text"
    profiles: Sequence[str] = ()
    min_support: int = 30
    study_ids: Sequence[str] = ()
    # eval.scores.values.Values, and whose of them these reports are: "" for the predictions
    values: Any = None
    system: str = ""
    # eval.judges.panel.Panel
    judges: Any = None
    key: str | None = None
    headline_only: bool = False
    # eval.scores.clinical.Clinical, and its Readings of both sides
    models: Any = None
    read_references: Any = None
    read_predictions: Any = None
    progress: Callable[[str, int, int], None] | None = None
    # Values per study (N,) that one family makes and another one needs.
    features: dict[str, np.ndarray] = field(default_factory=dict)
    # Label matrices (N, 14) of references and predictions, by the score that was made of them.
    labels: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.references)


Cell = str | Score | None


@dataclass(frozen=True)
class Grid:
    """A table for terminal and page alike. `points` are drawn on the page: name, score, note.

    Grids of one `section` stand under one heading of the page, that of the first.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    section: str
    note: str = ""
    points: Sequence[tuple[str, Score, str]] = ()


@dataclass(frozen=True)
class Family:
    """Scores that are computed together and shown in tables of their own.

    `add` puts columns and measures on a sheet. `keys` are the first parts of the keys, by default the name.
    `tables` makes the tables of what was scored; without it there is one row a score. `needs` gives the models (of
    `eval.scores.weights`) that a key needs.
    """

    name: str
    title: str
    add: Callable[[Sheet, Reports], None]
    keys: tuple[str, ...] = ()
    tables: Callable[[Any], list[Grid]] | None = None
    needs: Callable[[str], tuple[str, ...]] = lambda key: ()
    # Families whose features it uses.
    after: tuple[str, ...] = ()
    # Keys to name where one is misspelt and the family makes only what it is asked for.
    known: tuple[str, ...] = ()
    # Whether it takes all references of a study; else the closest is its reference.
    several: bool = False
    ours: bool = False

    @property
    def first_parts(self) -> tuple[str, ...]:
        """Return what its keys begin with, up to the first slash."""
        return self.keys or (self.name,)

    def put(self, sheet: Sheet, reports: Reports) -> None:
        """Put its scores on a sheet. Raises ValueError for a key that is not its own."""
        before = set(sheet.measures)
        sheet.family = self.name
        if reports.several is not None:
            sheet.more = signature("", refs="all" if self.several else "closest")
        self.add(sheet, reports)
        sheet.family = sheet.more = ""
        for key in sheet.measures.keys() - before:
            if key.partition("/")[0] not in self.first_parts:
                raise ValueError(
                    f"the family {self.name!r} made the score {key!r}, which does not begin as its keys do"
                )

    def grids(self, scores: Any) -> list[Grid]:
        """Return its tables of `scores` (eval.scores.result.Scores); none where it has no score."""
        own = [s for s in scores.scores.values() if getattr(s, "family", "") == self.name]
        if not own:
            return []
        try:
            if self.tables:
                return self.tables(scores)
        # That of another package costs its own table; the numbers are shown all the same.
        except (Exception, SystemExit):
            if self.ours:
                raise
        return [Grid(self.title, ("", "predictions"), [(s.title, s) for s in own], section=self.name)]

    @classmethod
    def of_values(
        cls,
        name: str,
        title: str,
        values: Callable[[Reports], np.ndarray],
        *,
        better: Better = "higher",
        headline: bool = False,
        needs: Callable[[str], tuple[str, ...]] = lambda key: (),
        **choices: object,
    ) -> Family:
        """Make the family of one score, the mean of a value per study, (N,); NaN leaves a study out.

        `choices` go into the signature: versions, models, options.
        """

        def add(sheet: Sheet, reports: Reports) -> None:
            sheet.add_mean(
                name,
                signature(name, **choices),
                values(reports),
                title=title,
                better=better,
                headline=headline,
            )

        return cls(name, title, add, needs=needs)

    @classmethod
    def of_sums(
        cls,
        name: str,
        title: str,
        columns: Callable[[Reports], np.ndarray],
        of: Of,
        *,
        better: Better = "higher",
        headline: bool = False,
        needs: Callable[[str], tuple[str, ...]] = lambda key: (),
        **choices: object,
    ) -> Family:
        """Make the family of one score that is a function of sums: `columns` gives (N, K), `of` takes (..., K)."""

        def add(sheet: Sheet, reports: Reports) -> None:
            where = sheet.columns(columns(reports))
            sheet.add(
                name, signature(name, **choices), of, where, title=title, better=better, headline=headline
            )

        return cls(name, title, add, needs=needs)
