"""The judges that were asked for: metrics of others, by a language model on a local server or by models with weights.

A judge costs a call of a language model or a GPU for every report. So it judges the predictions and what they are
compared with, and baselines only where that is asked for. A study that a judge gives no readable answer on is left out
of its scores and counted; where systems are compared, it is left out of all of them, for tests are made in pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eval.judges.answers import Asker, folder
from eval.judges.server import Server, Unreadable
from eval.scores.family import Family, Reports
from eval.scores.readers import ScoreError
from eval.scores.registry import NotComputed
from eval.scores.sheet import Sheet
from eval.signature import signature

Tell = Callable[[int, int], None]
Answer = TypeVar("Answer")
PARALLEL = 4
# Studies without a readable answer, and none with one, after which a judge is given up.
HOPELESS = 5


class Missing(Exception):
    """What a judge lacks, and the command that helps."""

    def __init__(self, reason: str, command: str) -> None:
        super().__init__(reason)
        self.reason, self.command = reason, command


@dataclass
class Verdicts:
    """What a judge says of N reports: columns (N, K), NaN where not defined, and which studies it judged, (N,).

    `choices` go into the signature: package and version, model, prompts.
    """

    values_NK: np.ndarray
    judged_N: np.ndarray
    choices: dict[str, str]


Opened = Callable[[Reports, Tell], Verdicts]


@dataclass(frozen=True)
class Judge:
    """A metric of others. `open` loads what it needs and returns what judges; it raises Missing."""

    name: str
    title: str
    open: Callable[[Panel], Opened]
    # by questions to a language model on a server
    asks: bool = False


@dataclass
class Panel:
    """The judges of one scoring, and what they said, by judge and by system ("" are the predictions)."""

    judges: tuple[Judge, ...]
    server: Server | None = None
    model: str = ""
    weights: Path | None = None
    device: str | None = None
    baselines: bool = False
    parallel: int = PARALLEL
    kept_in: Path = field(default_factory=folder)
    verdicts: dict[str, dict[str, Verdicts]] = field(default_factory=dict)
    not_computed: list[NotComputed] = field(default_factory=list)

    def judge(
        self,
        systems: Mapping[str, Reports],
        baselines: Mapping[str, Reports],
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Let every judge read every system. Raises ScoreError if the server goes away; answers so far are kept."""
        self.verdicts, self.not_computed = {}, []
        for judge in self.judges:
            try:
                opened = judge.open(self)
                found = {}
                for name, reports in {**systems, **(baselines if self.baselines else {})}.items():
                    found[name] = opened(
                        reports, _named(progress, f"{judge.title}, {name}" if name else judge.title)
                    )
                    if name in systems and not found[name].judged_N.any():
                        raise Missing(
                            "it gives no study a readable answer", "try another model, or another version"
                        )
            except Missing as lack:
                self.not_computed.append(NotComputed(judge.title, lack.reason, lack.command))
                continue
            judged_N = np.all([found[name].judged_N for name in systems], axis=0)
            for name in systems:
                found[name].judged_N = judged_N
                found[name].values_NK = np.where(judged_N[:, None], found[name].values_NK, np.nan)
            self.verdicts[judge.name] = found

    def unjudged(self) -> dict[str, np.ndarray]:
        """Return by judge which studies it gave no readable answer on, (N,) bool; only judges with such studies."""
        masks = {name: ~found[""].judged_N for name, found in self.verdicts.items()}
        return {name: mask_N for name, mask_N in masks.items() if mask_N.any()}

    def asker(self, judge: str, version: str) -> Asker:
        """Return what asks the model `judge`'s questions."""
        if self.server is None:
            raise Missing(
                f"{judge} asks a language model on this machine", "cxr score --server URL --judge-model NAME"
            )
        return Asker(self.server, self.model, judge, version, self.kept_in)

    def each_study(self, count: int, one: Callable[[int], Answer], tell: Tell) -> list[Answer | None]:
        """Return `one(i)` of each study, several at a time; None where there is no readable answer.

        Raises Missing where none of the first HOPELESS studies has one.
        """
        found: list[Answer | None] = [None] * count
        why, done, left = Counter[str](), 0, iter(range(count))
        pool = ThreadPoolExecutor(self.parallel, thread_name_prefix="judge")
        running = {pool.submit(one, i): i for i in islice(left, self.parallel)}
        tell(0, count)
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    i = running.pop(future)
                    try:
                        found[i] = future.result()
                    except Unreadable as error:
                        why[str(error)] += 1
                    done += 1
                    tell(done, count)
                    if why.total() == done and done in (HOPELESS, count):
                        kinds = ", ".join(why)
                        raise Missing(
                            f"no usable answer of {self.model!r} on the first {done} studies ({kinds})",
                            "cxr score --judge-model ANOTHER, or a longer --judge-timeout",
                        )
                    if (following := next(left, None)) is not None:
                        running[pool.submit(one, following)] = following
        finally:
            # After an error or an interruption: what runs is ended, not waited for.
            if running and self.server:
                self.server.stop()
            pool.shutdown(cancel_futures=True)
            if self.server:
                self.server.go_on()
        return found


def _named(progress: Callable[[str, int, int], None] | None, what: str) -> Tell:
    return (lambda done, of: None) if progress is None else lambda done, of: progress(what, done, of)


def verdicts_of(reports: Reports, judge: str) -> Verdicts | None:
    """Return what a judge said of these reports; None where it did not judge them.

    Raises ScoreError where its score alone is asked for, as a metric or a reward.
    """
    if reports.judges is None:
        if reports.key is not None:
            raise ScoreError(
                f"{reports.key!r} is a judge's, which `cxr score --judges {judge}` asks; it is no metric or reward"
            )
        return None
    found: Verdicts | None = reports.judges.verdicts.get(judge, {}).get(reports.system)
    return found


def add_mean(sheet: Sheet, key: str, values_N: np.ndarray, found: Verdicts, **shown: Any) -> None:
    """Put the mean of a judge's values (N,) on a sheet, with how many studies have one where some have none."""
    lack = np.isnan(values_N).any()
    over: dict[str, Any] = {"whole": len(values_N), "over": lambda sums: sums[..., 1]} if lack else {}
    sheet.add_mean(key, signature(key.replace("/", "-"), **found.choices), values_N, **over, **shown)


def family_of(judge: Judge, **shown: Any) -> Family:
    """Return the family of a judge that says one number a study, higher is better; `shown` is as in `Sheet.add`."""

    def add(sheet: Sheet, reports: Reports) -> None:
        if found := verdicts_of(reports, judge.name):
            add_mean(
                sheet, judge.name, found.values_NK[:, 0], found, title=judge.title, headline=True, **shown
            )

    return Family(judge.name, judge.title, add, known=(judge.name,))


def safe(text: str) -> str:
    """Return a name as a part of a signature: without bars and white space."""
    return "_".join(text.replace("|", "_").split())
