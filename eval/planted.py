"""Reports with one error in each, of which everything is known: where it is, of what kind, and what stood there.

A report that nobody doubts is the truth. One sentence of it is turned into one of its counters
(`eval/scores/counters.py`), a finding is added that the report does not have, or one is left out. What oversight finds
of these errors, and what it flags in reports without one, is its measure (`cxr verify`).

Texts alone: real reports serve as well as those of phantoms.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from eval.scores.counters import COMPARED, assertions, counters
from eval.scores.labels import NO_FINDING, SUPPORT_DEVICES, label_report
from eval.scores.spans import Span, spans

ErrorKind = Literal["side", "zone", "extent", "denial", "invented", "change", "omission"]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


@dataclass(frozen=True)
class Planted:
    """A report with one error.

    `now` is the wrong sentence, at text[start:end]; empty where one was left out. `was` is what stood there; empty
    where a finding was added and the report had said nothing of it. `condition` is one of the 14 for a denial, an
    invention or an omission.
    """

    kind: ErrorKind
    text: str
    original: str
    start: int
    end: int
    now: str
    was: str
    condition: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return asdict(self)


class Planter:
    """Plant errors in reports, with wordings of these reports where a finding is invented or denied: a wording that no
    report has would give the error away.

    Args:
        reports: whose sentences that assert one condition, or deny it, and say nothing else are lent to others.
    """

    def __init__(self, reports: Iterable[str] = ()) -> None:
        lent: dict[tuple[str, int], dict[str, None]] = {}
        for report in reports:
            for span in spans(report):
                conditions = [c for c, v in label_report(span.text).items() if c != NO_FINDING]
                if COMPARED.search(span.text):
                    continue
                if len(conditions) == 1:
                    key = (conditions[0], label_report(span.text)[conditions[0]])
                    lent.setdefault(key, {})[span.text] = None
        self._lent = {key: list(texts) for key, texts in sorted(lent.items())}

    def possible(self, report: str) -> dict[ErrorKind, list[Planted]]:
        """Return every error of every kind that can be planted in `report`; an invention only of conditions, not yet
        in words."""
        found: dict[ErrorKind, list[Planted]] = {kind: [] for kind in ERROR_KINDS}
        sentences = spans(report)
        labels = label_report(report)
        for span in sentences:
            for counter in counters(span.text):
                # An assertion in place of a denial is an invention, which may also stand where nothing was said.
                if counter.kind == "invented" and not counter.condition:
                    continue
                if not _consistent(counter.kind, counter.condition, span, sentences):
                    continue
                # Where no report says that there is no device, such a sentence would be wrong wherever it stands.
                if counter.condition == SUPPORT_DEVICES and (SUPPORT_DEVICES, 0) not in self._lent:
                    continue
                found[counter.kind].append(
                    _replaced(report, span, counter.kind, counter.text, counter.condition)
                )
        for span in sentences:
            asserted = [c for c, v in label_report(span.text).items() if v == 1 and c != NO_FINDING]
            others = " ".join(other.text for other in sentences if other is not span)
            elsewhere = label_report(others)
            if asserted and not any(elsewhere.get(c, 0) for c in asserted):
                found["omission"].append(_left_out(report, span, asserted[0]))
        for (condition, label), texts in self._lent.items():
            if label == 1 and condition not in labels and condition != SUPPORT_DEVICES and sentences:
                found["invented"] += [_added(report, text, condition) for text in texts[:1]]
        return found

    def plant(
        self, report: str, rng: random.Random, kinds: Sequence[ErrorKind] = ERROR_KINDS
    ) -> Planted | None:
        """Return `report` with one error of one of `kinds`, each that is possible as likely as the others, in a place
        drawn at random; None where none can be planted."""
        possible = {kind: some for kind, some in self.possible(report).items() if some and kind in kinds}
        if not possible:
            return None
        found = rng.choice(possible[rng.choice(sorted(possible))])
        if found.kind not in ("invented", "denial") or found.condition is None:
            return found
        label = int(found.kind == "invented")
        words = self._lent.get((found.condition, label)) or (
            assertions(found.condition) if label else [found.now]
        )
        text = rng.choice(words)
        if found.was:
            span = Span(found.was, found.start, found.start + len(found.was))
            return _replaced(report, span, found.kind, text, found.condition)
        return _added(report, text, found.condition)


def plant_all(
    reports: Sequence[str], seed: int = 0, kinds: Sequence[ErrorKind] = ERROR_KINDS
) -> list[Planted | None]:
    """Return each report with one error, None where none fits; the same for the same seed, whatever the reports around
    it, but for the words that inventions are lent."""
    planter = Planter(reports)
    return [
        planter.plant(report, random.Random(f"{seed}\0{i}\0{report}"), kinds)
        for i, report in enumerate(reports)
    ]


def _consistent(kind: str, condition: str | None, span: Span, sentences: list[Span]) -> bool:
    """Tell whether the rest of the report leaves room for the error, so that the film alone can tell it: what is denied
    is not asserted elsewhere, what is invented not there already."""
    if condition is None:
        return True
    rest = label_report(" ".join(other.text for other in sentences if other is not span)).get(condition)
    return rest in (None, 0) if kind == "denial" else rest is None


def _replaced(report: str, span: Span, kind: ErrorKind, text: str, condition: str | None) -> Planted:
    return Planted(
        kind,
        report[: span.start] + text + report[span.end :],
        report,
        span.start,
        span.start + len(text),
        text,
        span.text,
        condition,
    )


def _left_out(report: str, span: Span, condition: str) -> Planted:
    before, after = report[: span.start], report[span.end :].lstrip()
    text = before + after if after else before.rstrip()
    start = min(span.start, len(text))
    return Planted("omission", text, report, start, start, "", span.text, condition)


def _added(report: str, text: str, condition: str) -> Planted:
    """The finding at the end of the report."""
    kept = report.rstrip()
    return Planted(
        "invented", f"{kept} {text}", report, len(kept) + 1, len(kept) + 1 + len(text), text, "", condition
    )
