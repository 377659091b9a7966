"""The steps of a pipeline: options become command lines, failures and interrupts become exit statuses."""

import pytest

from train.launcher import StepFailed, as_words, call, run_steps


def test_options_become_a_command_line():
    assert as_words({"data": ["a", 1], "merge": True, "lr": 0.5}) == [
        "--data",
        "a",
        "1",
        "--merge",
        "--lr",
        "0.5",
    ]


def test_a_command_is_called_with_its_words():
    seen = []
    call(lambda words: seen.extend(words), "generate", 7, batch_size=8)
    assert seen == ["generate", "7", "--batch-size", "8"]


def test_failures_and_interrupts_become_exit_statuses(capsys):
    assert run_steps(lambda: call(lambda words: 0)) == 0
    assert run_steps(lambda: call(lambda words: 2, "score", "x.jsonl")) == 1
    assert "score x.jsonl ended with status 2" in capsys.readouterr().err
    assert run_steps(lambda: call(lambda words: 130), "remove it") == 130
    assert "stopped; remove it" in capsys.readouterr().err
    with pytest.raises(StepFailed):
        call(lambda words: 1)
