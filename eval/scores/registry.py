"""Scores that this version knows of but cannot compute: what each needs, and the command that says or fetches it.

A score without its model is reported as "not computed", never as zero and never by a stand-in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NotComputed:
    """A score that is missing, why, and what to do."""

    name: str
    reason: str
    command: str

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "reason": self.reason, "command": self.command}


LATER = "none: not in this version"

CLINICAL = (
    NotComputed(
        "CheXbert F1",
        "needs the CheXbert weights (chexbert.pth), which this version does not read; the labeller `rules` is not it",
        LATER,
    ),
    NotComputed(
        "RadGraph F1",
        "needs the RadGraph or RadGraph-XL weights, which this version does not read",
        LATER,
    ),
    NotComputed(
        "RadCliQ v0, v1",
        "needs CheXbert, RadGraph and BERTScore (distilroberta-base)",
        LATER,
    ),
)
