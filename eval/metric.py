"""One score as a function: of two lists of texts, as a metric of the `evaluate` kind, or as a reward for training.

metric = eval.metric("rouge-l/coco")
metric.compute(predictions=[...], references=[...])    # {"rouge-l/coco": 0.41}
metric.per_sample([...], [...])                        # array (N,)
GRPOTrainer(..., reward_funcs=eval.metric("label-f1/14/micro/neg"))   # references: the column `findings`
eval.metric("label-f1/14/micro/neg", column="impression")             # those of a model that writes impressions
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.scores import clinical
from eval.scores.families import families, family_of
from eval.scores.family import Reports
from eval.scores.inputs import report_text
from eval.scores.lexical import closest
from eval.scores.readers import ScoreError
from eval.scores.settings import checked, texts
from eval.scores.sheet import Measure, Sheet


class metric:
    """`key` is a key of `eval.score`'s scores. A score of one study is what the score of a set of it alone would be.

    As a reward it is called with `completions` (texts, or chats whose last message counts) and the data set's columns,
    whose column `column` holds the references; scores that are better when lower (RadCliQ, wrong sides, ...)
    come out negative there.

    Raises ScoreError for a key that does not exist, and where the weights it needs are missing.
    """

    def __init__(
        self,
        key: str,
        *,
        column: str = "findings",
        weights: str | Path | None = None,
        device: str | None = None,
    ) -> None:
        if not isinstance(key, str):
            raise ScoreError(f"a score is asked for by its key, as 'rouge-l/coco', not {type(key).__name__}")
        if not isinstance(column, str):
            raise ScoreError(f"column is the name of the references' column, not {type(column).__name__}")
        settings = checked(weights=weights, device=device)
        self.key, self.column = key, column
        self.__name__ = key  # what trl calls it in its logs
        self.family = family_of(key)
        needed = self.family.needs(key)
        self._models = clinical.load(needed, settings.weights, settings.device)[0] if needed else None
        # An unknown key is refused now, not in the first batch.
        sheet, measure = self._score(["Clear.", "Clear."], ["Clear.", "Clear."])
        self.better = measure.better
        # Some are not defined of a single report, such as means over frequent conditions.
        self._of_one = not np.isnan((measure.each or measure.of)(sheet.stats_NK)).any()

    def __repr__(self) -> str:
        return f"metric({self.key!r})"

    def per_sample(self, references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
        """Return the score of every pair, float64 (N,). Raises ScoreError if there are not as many
        predictions as references."""
        sheet, measure = self._score(references, predictions)
        return np.asarray((measure.each or measure.of)(sheet.stats_NK), np.float64)

    def compute(self, *, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Return the score of all pairs together, by its key."""
        sheet, measure = self._score(references, predictions)
        total_K = sheet.stats_NK.sum(axis=0)
        return {self.key: float(measure.at(total_K)(total_K))}

    def __call__(self, prompts: Any = None, completions: Sequence[Any] = (), **columns: Any) -> list[float]:
        """The reward of every completion."""
        if self.column not in columns:
            raise ScoreError(f"the references belong in a column {self.column!r}, which is missing")
        written = [_last(c) for c in texts("completions", completions)]
        values = self.per_sample(columns[self.column], written)
        values = -values if self.better == "lower" else values
        # One that is not defined of this report neither rewards nor punishes it.
        return [float(v) for v in (np.nan_to_num(values) if self._of_one else values)]

    def _score(self, references: Sequence[Any], predictions: Sequence[str]) -> tuple[Sheet, Measure]:
        several = [_references(given) for given in texts("references", references)]
        written = [_text("prediction", i, text) for i, text in enumerate(texts("predictions", predictions))]
        if len(several) != len(written):
            raise ScoreError(f"{len(several)} references but {len(written)} predictions")
        reports = Reports(
            closest(several, written), written, [{} for _ in several], key=self.key, models=self._models,
            several=several if any(len(refs) > 1 for refs in several) else None,
        )  # fmt: skip
        sheet = Sheet(len(reports))
        for family in families():
            if family.name in (*self.family.after, self.family.name):
                family.put(sheet, reports)
        if self.key not in sheet.measures:
            known = [*sheet.measures, *self.family.known]
            near = difflib.get_close_matches(self.key, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ScoreError(f"no score {self.key!r}{meant}; of its kind there are {', '.join(known)}")
        return sheet, sheet.measures[self.key]


def _references(given: Any) -> list[str]:
    """Return the references of one prediction: a text, or a list of them. Raises ScoreError."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        given = [given]
    if not given:
        raise ScoreError("a prediction has an empty list of references")
    return [_text("reference", i, text) for i, text in enumerate(given)]


def _text(what: str, number: int, given: Any) -> str:
    """Return a report as `score` reads it. Raises ScoreError for what is no text; "" stays, as an empty report."""
    text, wrong = report_text(given)
    # What a model did not write is an empty report; a reference that is missing is a mistake.
    if wrong == "no text" or (what == "reference" and wrong == "empty" and given != ""):
        raise ScoreError(
            f"{what} {number} is no text but {'missing' if given is None or given != given else type(given).__name__}"
        )
    return text


def _last(completion: Any) -> str:
    """Return the text of a completion, or of the last message of a chat. Raises ScoreError for anything
    else."""
    try:
        return completion if isinstance(completion, str) else completion[-1]["content"]
    except (TypeError, KeyError, IndexError):
        raise ScoreError(
            f"completions are texts, or chats of {{'role', 'content'}}, not {type(completion).__name__}"
        ) from None
