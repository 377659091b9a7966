"""From contrasts to verdicts: which sentences the film bears out, which it contradicts, and which it cannot decide.

A counter that the film makes likelier than the sentence is no verdict yet: "No left nodule." is a wording that hardly
any report has, whatever the film shows. A calibration therefore says, for each kind of counter and each condition, how
probable an error is at a margin: a logistic regression, fitted on reports in which errors were planted
(`train/verify.py`). Its thresholds are chosen there, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from encoder.errors import ModelError
from encoder.fields import read_object
from encoder.files import write_atomically
from eval.scores.counters import COUNTER_KINDS, Counter
from vlm.contrasts import Contrast, Contrasted

KIND = "calibration of verify"
Verdict = Literal["supported", "contradicted", "undecidable"]

# What a sentence says above all; how large a finding is may stay open where that it is there does not.
PRINCIPAL = ("side", "zone", "denial", "invented")


@dataclass(frozen=True)
class Curve:
    """How probable an error of one kind is at a margin m, in nats.

    Its log-odds are a + b m, plus a_c + b_c m of the condition, plus a_h + b_h m of a sentence that leaves a finding
    open. From the probability `contradicted` on a sentence is contradicted, up to `supported` it is supported.
    """

    every: tuple[float, float]
    hedged: tuple[float, float]
    conditions: dict[str, tuple[float, float]]
    contradicted: float = 1.0
    supported: float = 0.0

    def probability(self, margin: float, condition: str, hedged: bool) -> float:
        """Return the probability that the sentence is wrong in this, if as many are wrong as right."""
        a, b = self.every
        for more in (self.conditions.get(condition), self.hedged if hedged else None):
            if more:
                a, b = a + more[0], b + more[1]
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, a + b * margin))))


@dataclass(frozen=True)
class Doubt:
    """How probable one kind of error is in a sentence, what the verdict on it is, and the sentence in its place."""

    kind: str
    condition: str
    probability: float
    verdict: Verdict
    counter: Counter


@dataclass(frozen=True)
class Calibration:
    """The curves of a model by kind of counter, and what they were fitted on. `omitted`: the probability from which on
    a finding of the model's own report counts as left out."""

    revision: str
    curves: dict[str, Curve]
    omitted: float = 1.0
    about: dict[str, Any] = field(default_factory=dict)

    def doubts(self, sentence: Contrasted) -> list[Doubt]:
        """Return what may be wrong with a sentence, the likeliest first."""
        found = [
            self._doubt(contrast, curve, sentence.hedged)
            for contrast in sentence.contrasts
            if (curve := self.curves.get(contrast.kind))
        ]
        return sorted(found, key=lambda doubt: -doubt.probability)

    def _doubt(self, contrast: Contrast, curve: Curve, hedged: bool) -> Doubt:
        p = curve.probability(contrast.margin, contrast.condition, hedged)
        verdict: Verdict = (
            "contradicted"
            if p >= curve.contradicted
            else "supported"
            if p <= curve.supported
            else "undecidable"
        )
        return Doubt(contrast.kind, contrast.condition, p, verdict, contrast.counter)

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        text = json.dumps({"schema": 1, "kind": KIND, **asdict(self)}, indent=1, allow_nan=False) + "\n"
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a file of `save`. Raises ModelError if it is another one, or damaged."""
        row = read_object(path)
        if row.get("kind") != KIND or row.get("schema") != 1:
            raise ModelError(
                f"{path} is no calibration of cxr verify (schema 1); make one with cxr calibrate"
            )
        try:
            curves = {kind: _curve(row["curves"][kind]) for kind in row["curves"]}
            if unknown := curves.keys() - set(COUNTER_KINDS):
                raise ValueError(f"unknown kind {sorted(unknown)[0]!r}")
            return cls(str(row["revision"]), curves, float(row["omitted"]), dict(row["about"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{path} is damaged ({error}); make it again with cxr calibrate") from error


def _curve(row: Mapping[str, Any]) -> Curve:
    def pair(numbers: Any) -> tuple[float, float]:
        a, b = map(float, numbers)
        if not (math.isfinite(a) and math.isfinite(b)):
            raise ValueError("numbers must be finite")
        return a, b

    return Curve(
        pair(row["every"]),
        pair(row["hedged"]),
        {str(condition): pair(numbers) for condition, numbers in row["conditions"].items()},
        float(row["contradicted"]),
        float(row["supported"]),
    )


def verdict_of(doubts: Sequence[Doubt]) -> Verdict:
    """Return the verdict on a sentence: contradicted if it is in anything, supported if it is in all that it says above
    all, undecidable otherwise, and where it says nothing that a film can show."""
    if any(doubt.verdict == "contradicted" for doubt in doubts):
        return "contradicted"
    principal = [doubt for doubt in doubts if doubt.kind in PRINCIPAL]
    return "supported" if principal and all(d.verdict == "supported" for d in principal) else "undecidable"
