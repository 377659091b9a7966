"""The steps of a pipeline: options become command lines, failures and interrupts become exit statuses."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from tests.forked import ForkedModule, context
from train.common import launcher as launcher_of
from train.common.checkpoints import CheckpointError, alone
from train.common.entry import LAUNCHED_BY, Stopped
from train.common.launcher import StepFailed, as_words, call, launch, run_steps
from train.common.processes import gpu_at_hand, settled_precision


@pytest.mark.parametrize("has", [True, False])
def test_precision_is_what_pays_here_or_what_the_run_began_with(monkeypatch, capsys, has):
    monkeypatch.setattr("train.common.processes.multiplies_bf16", lambda: has)
    assert settled_precision("auto", None) == ("bf16" if has else "fp32")
    assert settled_precision("auto", "fp32") == "fp32"
    assert capsys.readouterr().out == ""
    assert settled_precision("auto", "bf16") == settled_precision("bf16", None) == "bf16"
    assert capsys.readouterr().out.count("fp32 is many times as fast here") == (0 if has else 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says without torch whether there is a GPU")
def test_who_waits_for_a_training_has_not_imported_torch():
    if gpu_at_hand():
        pytest.skip("there is a GPU, of which torch knows more")
    code = "import sys; from train.common.launcher import accelerate_command as c; print(*c('m')); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--cpu" in done.stdout


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
    assert run_steps(lambda: call(lambda words: 143)) == 143
    with pytest.raises(StepFailed):
        call(lambda words: 1)


SLOW_TO_SAVE = """
import pathlib, signal, sys, time
out = pathlib.Path(sys.argv[1])
def stop(*_):
    time.sleep(1)
    (out / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
(out / "ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_waits_until_the_training_has_saved(tmp_path, monkeypatch, number, status):
    """accelerate itself leaves at a SIGINT at once, and what it launched is left saving alone."""
    (tmp_path / "slow_to_save.py").write_text(SLOW_TO_SAVE)
    # the current folder is not where a launched training looks for modules
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launcher_of, "subprocess", SimpleNamespace(Popen=ForkedModule))

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Stopped) as stopped:
        launch("slow_to_save", str(tmp_path))
    assert stopped.value.exit_status == status
    assert (tmp_path / "saved").exists() and signal.getsignal(signal.SIGINT) is before


def test_a_run_folder_has_one_process_at_a_time(tmp_path, capsys):
    run = tmp_path / "run"
    with alone(run):
        (run / "run.json").touch()
        with pytest.raises(CheckpointError, match="still at work"), alone(run, patience=0.2):
            pass
    assert "waiting" in capsys.readouterr().err
    with alone(run):
        pass
    with alone(tmp_path / "refused"):
        pass
    assert not (tmp_path / "refused").exists()  # no run, no folder
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"), alone(tmp_path / "file"):
        pass


def _waits(other: int) -> None:
    from encoder.workers import end_with

    end_with(other)
    time.sleep(60)


def test_a_training_ends_with_who_launched_it_also_if_nobody_has_waited_for_that():
    """accelerate stands between the two, so that the training is not a child of who launched it."""
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    training = context().Process(target=_waits, args=(launcher.pid,))
    training.start()
    time.sleep(0.3)
    assert training.is_alive()
    launcher.kill()
    training.join(20)
    assert training.exitcode == 1
    launcher.wait()


def test_the_training_is_told_who_launched_it(monkeypatch):
    seen = {}
    monkeypatch.setattr(launcher_of, "_wait_for", lambda command, env: seen.update(env) or (0, 0))
    launcher_of.launch("train.pretrain", "--out", "x")
    assert seen[LAUNCHED_BY] == str(os.getpid())
