"""Sentences that the `rules` labeller is tuned on and measured on, by kind of error.

`labeller_sentences.jsonl` has a line a text: `kind`, `half`, `text`, `labels` and, where one could argue, `reason`.
All were written for this file before a rule was changed, and lines of a kind take turns: `tuning`, `held_back`. A rule
may be written for what the tuning half shows; of the other half only the counts are looked at. But the author of the
sentences wrote the rules as well, so the held-back half flatters them. `labels` follows the CheXpert labeller's
published conventions: 1 present, 0 denied, -1 uncertain, null must not be mentioned. Conditions in `any` are free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATH = Path(__file__).with_suffix(".jsonl")
HALVES = ("tuning", "held_back")


@dataclass(frozen=True)
class Sentence:
    kind: str
    half: str
    text: str
    labels: dict[str, int | None]
    reason: str = ""
    any: list[str] = field(default_factory=list)

    def labels_right(self, found: Mapping[str, int]) -> int:
        """Count the stated labels that `found` has."""
        return sum(found.get(condition) == label for condition, label in self.labels.items())

    def right(self, found: Mapping[str, int]) -> bool:
        """Tell whether `found` has every stated label and no other."""
        stated = {c: label for c, label in self.labels.items() if label is not None}
        return stated == {c: label for c, label in found.items() if c not in self.any}


def read_sentences() -> list[Sentence]:
    """Return all sentences in the order of the file."""
    return [Sentence(**json.loads(line)) for line in PATH.read_text(encoding="utf-8").splitlines()]
