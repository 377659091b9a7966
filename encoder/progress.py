"""How far long work has come: bars on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

# Seconds between two lines.
EVERY = 10.0

Item = TypeVar("Item")


class Every:
    """A clock whose call returns True at most once in so many seconds, and not before they have passed once."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = EVERY if seconds is None else seconds
        self.started = self.last = time.perf_counter()

    def __call__(self) -> bool:
        now = time.perf_counter()
        if now - self.last <= self.seconds:
            return False
        self.last = now
        return True

    @property
    def passed(self) -> float:
        """Return the seconds since this was made."""
        return time.perf_counter() - self.started


class Bars:
    """Counts that grow: inside `with Bars() as tell`, `tell(what, done, total)` for each of them as often as one likes.

    On a terminal, stderr shows a bar for each. Elsewhere a line comes every ten seconds, from `say` or on stderr.
    Where `say` is given it also gets a last line, on a terminal too and however short the work was: a training's log
    should have its pace. `unit` says in the plural what is counted.
    """

    def __init__(self, say: Callable[[str], None] | None = None, unit: str = "images") -> None:
        self.say, self.unit = say, unit
        self._counts: dict[str, _Count] = {}
        self._bars: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            # What is printed meanwhile stands above the bars, unless it goes to a file.
            stdout = sys.stdout.isatty()
            self._bars = Progress(*columns, console=Console(stderr=True), redirect_stdout=stdout)
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars:
            self._bars.stop()
        if error == (None, None, None):
            for what, count in self._counts.items():
                if count.done not in (count.begun, count.told) and (self.say or count.told):
                    self._tell(what, count)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take that `done` of `total` are done. The first call for each `what` says where this run began; so does one
        that is behind the last, for work that begins again."""
        count = self._counts.get(what)
        if count is None or done < count.done:
            count = self._counts[what] = _Count(done, count and count.task)
        # the last item of "at least so many" may be more than was missing
        count.done, count.total = done, max(done, total)
        if count.first is None and done > count.begun:
            count.first = done, count.due.passed
        if self._bars:
            if count.task is None:
                count.task = self._bars.add_task(what, total=total, completed=done)
            self._bars.update(count.task, completed=done, total=count.total)
        elif count.due():
            self._tell(what, count)

    def _tell(self, what: str, count: _Count) -> None:
        count.told = count.done
        # The first items also took what had to be loaded and compiled; the others come at the pace of the rest.
        done, passed = count.first or (count.begun, 0.0)
        known = count.done > done
        if not known:
            done, passed = count.begun, 0.0
        rate = (count.done - done) / max(count.due.passed - passed, 1e-9)
        line = f"{what}: {count.done}/{count.total} {self.unit}, {_short(rate)} {self.unit}/s"
        if known and rate and count.done < count.total:
            line += f", {_short((count.total - count.done) / rate)} s left"
        if self.say:
            self.say(line)
        else:
            print(line, file=sys.stderr, flush=True)


class _Count:
    def __init__(self, begun: int, task: Any) -> None:
        self.begun = self.done = self.total = begun
        self.due, self.task, self.told = Every(), task, 0
        # How many were done at the first call after that, and the seconds until then.
        self.first: tuple[int, float] | None = None


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def bar(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    *,
    done: int = 0,
    size: Callable[[Item], int] = lambda item: 1,
    say: Callable[[str], None] | None = None,
    unit: str = "images",
) -> Iterator[Item]:
    """Yield `items`, and show how many of `total` are done (by default as many as there are items), as `Bars` does.

    `done`: of an earlier run. `size`: how many an item counts for, such as `len` for batches.
    """
    total = len(items) if total is None else total  # type: ignore[arg-type]
    with Bars(say, unit) as tell:
        tell(what, done, total)
        for item in items:
            # Counted first: the caller may change the item.
            count = size(item)
            yield item
            done += count
            tell(what, done, total)
