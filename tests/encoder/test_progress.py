"""Progress: a line every ten seconds in logs, bars on terminals, and standard output is left alone."""

from __future__ import annotations

import io

import pytest

from encoder import progress
from encoder.progress import Bars, Every, bar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as a test says."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def work(clock, seconds):
    for i, passed in enumerate(seconds):
        clock[0] += passed
        yield i


def test_every(clock):
    due = Every(10)
    found = []
    for passed in (1, 9, 0.5, 9, 1, 30):
        clock[0] += passed
        found.append(due())
    assert found == [False, False, True, False, False, True] and due.passed == 50.5


def test_short_work_is_quiet_and_long_work_tells(clock, capsys):
    assert list(bar(work(clock, [1] * 5), "images", 5)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")
    list(bar(work(clock, [4] * 6), "reading", 6, unit="reports"))
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "reading: 3/6 reports, 0.25 reports/s, 12 s left",
        "reading: 6/6 reports, 0.25 reports/s",
    ]


def test_a_log_gets_the_last_line_too(clock, capsys):
    said = []
    items = [[1, 2], [3], [4, 5]]
    assert list(bar(items, "films", 7, done=2, size=len, say=said.append)) == items
    clock[0] += 1
    assert [line.partition(",")[0] for line in said] == [
        "films: 7/7 images"
    ] and capsys.readouterr().err == ""
    list(bar([], "nothing", say=said.append))
    assert len(said) == 1


def test_what_was_there_before_is_not_this_runs_pace(clock):
    said = []
    list(bar(work(clock, [5] * 4), "x", 104, done=100, say=said.append))
    assert said == ["x: 103/104 images, 0.2 images/s, 5 s left", "x: 104/104 images, 0.2 images/s"]


def test_the_first_item_may_be_slow_and_does_not_set_the_pace(clock):
    """A model is loaded and its kernels are compiled for it: 40 s, and then 2 s each."""
    said = []
    list(bar(work(clock, [40, 6, 2, 2, 2, 2]), "x", 6, say=said.append, unit="studies"))
    assert said[0] == "x: 1/6 studies, 0.025 studies/s"
    assert said[1] == "x: 5/6 studies, 0.33 studies/s, 3 s left"


def test_the_total_is_never_passed(clock):
    """As of phantoms, of which at least so many are drawn: the last patient may have two studies."""
    said = []
    list(bar([[1], [2], [3, 4]], "phantoms", 3, size=len, say=said.append, unit="studies"))
    assert said[-1].startswith("phantoms: 4/4 studies")


def test_work_that_fails_does_not_say_that_it_is_done(clock):
    said = []
    with pytest.raises(KeyboardInterrupt):
        for i in bar(work(clock, [1] * 4), "x", 4, say=said.append):
            if i == 2:
                raise KeyboardInterrupt
    assert said == []


def test_several_counts_and_one_that_begins_again(clock, capsys):
    with Bars(unit="reports") as tell:
        for model in ("first", "second", "first"):
            for done in (1, 2, 3):
                clock[0] += 6
                tell(model, done, 3)
    err = capsys.readouterr().err.splitlines()
    assert [line.partition(" reports")[0] for line in err] == ["first: 3/3", "second: 3/3", "first: 3/3"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_a_bar(monkeypatch, capsys):
    stderr, said = Terminal(), []
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    for i in bar(range(3), "films", say=said.append):
        print("out", i)
    assert capsys.readouterr().out == "out 0\nout 1\nout 2\n"
    assert "films" in stderr.getvalue() and "3/3" in stderr.getvalue() and "out" not in stderr.getvalue()
    assert len(said) == 1 and said[0].startswith("films: 3/3 images")
