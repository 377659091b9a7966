"""One score as a function: of two lists of texts, as a metric of the `evaluate` kind, or as a reward for training.

metric = eval.metric("rouge-l/coco")
metric.compute(predictions=[...], references=[...])    # {"rouge-l/coco": 0.41}
metric.per_sample([...], [...])                        # array (N,)
GRPOTrainer(..., reward_funcs=eval.metric("label-f1/14/micro/neg"))   # references: the column `findings`
eval.metric("label-f1/14/micro/neg", column="impression")             # those of a model that writes impressions
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.scores import clinical, safety
from eval.scores.inputs import ScoreError, report_text
from eval.scores.keys import LEXICAL
from eval.scores.label_f1 import add_label_f1
from eval.scores.labels import LABELLER, label_matrix
from eval.scores.lexical import PROFILES, add_lexical, lexical_samples
from eval.scores.settings import checked, texts
from eval.scores.sheet import Sheet

NEEDS = {
    "chexbert-f1": ("chexbert",),
    "chexbert-vector": ("chexbert",),
    "bertscore": ("distilroberta-base",),
    "radcliq": ("chexbert", "radgraph", "distilroberta-base"),
}  # models; of radgraph-* the second part of the key
LOWER = ("radcliq", "hallucinated-prior", "side-swap", "empty", "truncated", "repeated-")  # is better


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
        self._macro = re.fullmatch(r"[\w-]+/(?:14|5)/macro-(\d+)/(?:neg|pos)", key)
        self.min_support = int(self._macro[1]) if self._macro else 30
        self.__name__ = key  # what trl calls it in its logs
        name, *rest = key.split("/")
        self._lexical = rest[0] if rest and rest[0] in PROFILES else None
        needed = tuple(rest[:1]) if name.startswith("radgraph-") else NEEDS.get(name, ())
        self._models = clinical.load(needed or "none", settings.weights, settings.device)[0]
        self._clinical, self._labels = bool(needed), name == "label-f1"
        self._score(["Clear."], ["Clear."])  # an unknown key is refused now, not in the first batch

    def __repr__(self) -> str:
        return f"metric({self.key!r})"

    def per_sample(self, references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
        """Return the score of every pair, float64 (N,). Raises ScoreError if there are not as many
        predictions as references."""
        sheet, measure = self._score(references, predictions)
        return np.asarray(measure.of(sheet.stats_NK), np.float64)

    def compute(self, *, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Return the score of all pairs together, by its key."""
        sheet, measure = self._score(references, predictions)
        return {self.key: float(measure.of(sheet.stats_NK.sum(axis=0)))}

    def __call__(self, prompts: Any = None, completions: Sequence[Any] = (), **columns: Any) -> list[float]:
        """The reward of every completion."""
        if self.column not in columns:
            raise ScoreError(f"the references belong in a column {self.column!r}, which is missing")
        written = [_last(c) for c in texts("completions", completions)]
        values = self.per_sample(columns[self.column], written)
        return [float(v) for v in (-values if self.key.startswith(LOWER) else values)]

    def _score(self, references: Sequence[str], predictions: Sequence[str]):
        references, predictions = texts("references", references), texts("predictions", predictions)
        if len(references) != len(predictions):
            raise ScoreError(f"{len(references)} references but {len(predictions)} predictions")
        references, predictions = ([report_text(t)[0] for t in side] for side in (references, predictions))
        sheet = Sheet(len(references))
        if self._labels:
            labels = label_matrix(references), label_matrix(predictions)
            add_label_f1(sheet, *labels, labeller=LABELLER, reference="text", min_support=self.min_support)
        elif self._lexical:
            add_lexical(sheet, lexical_samples(references, predictions, self._lexical))
        elif self._clinical:
            read = self._models.read(references), self._models.read(predictions)
            self._models.add(sheet, *read, None, self.min_support)
        else:
            studies: list[Mapping[str, Any]] = [{} for _ in references]
            safety.add_safety(sheet, references, predictions, studies)
        if self._labels and self.key not in sheet.measures and self._macro:  # too few positives of everything
            where = sheet.columns(np.zeros((len(references), 1)))
            sheet.add(self.key, self.key, lambda sums: sums[..., 0] * np.nan, where)
        if self.key not in sheet.measures:
            known = [*sheet.measures, *(f"{name}/{profile}" for name in LEXICAL for profile in PROFILES)]
            near = difflib.get_close_matches(self.key, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ScoreError(
                f"no score {self.key!r}{meant}; of its kind there are {', '.join(sheet.measures)}"
            )
        return sheet, sheet.measures[self.key]


def _last(completion: Any) -> str:
    """Return the text of a completion, or of the last message of a chat. Raises ScoreError for anything
    else."""
    try:
        return completion if isinstance(completion, str) else completion[-1]["content"]
    except (TypeError, KeyError, IndexError):
        raise ScoreError(
            f"completions are texts, or chats of {{'role', 'content'}}, not {type(completion).__name__}"
        ) from None
