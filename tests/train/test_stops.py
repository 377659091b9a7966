"""What stops a training: its exit status says which signal, and the same command says where it resumes."""

from __future__ import annotations

import os
import signal

import pytest
from safetensors.torch import load_file

from tests.train import test_language_model as language_model
from tests.train.pretraining import fresh_accelerate, images, options, pretraining  # noqa: F401
from train.common.entry import INTERRUPTED, TERMINATED
from train.common.trainer import AnswerTrainer
from train.finetune import align
from train.pretrain import loop as pretrain_loop

SIGNALS = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)]
)


def stopped_in(monkeypatch, step: int, number: int) -> None:
    """Let this process get a signal in a step of the next training on transformers' Trainer."""
    before = AnswerTrainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), number)
        return before(self, *args, **kwargs)

    monkeypatch.setattr(AnswerTrainer, "training_step", stops)


@SIGNALS
def test_a_language_model(studies_file, tmp_path, monkeypatch, capsys, number, status):
    with monkeypatch.context() as patched:
        stopped_in(patched, 1, number)
        assert language_model.train(studies_file, tmp_path / "llm", "--max_steps", "3") == status
    assert "resuming" not in capsys.readouterr().out
    assert language_model.train(studies_file, tmp_path / "llm", "--max_steps", "3") == 0
    assert "resuming at step 2 of 3" in capsys.readouterr().out


def test_a_fine_tuning_in_both_stages(train, tmp_path, monkeypatch, capsys):
    more = ("--projector_steps", "3", "--projector_batch_size", "8", "--max_steps", "3", "--eval_steps", "0")
    with monkeypatch.context() as patched:
        stopped_in(patched, 1, signal.SIGTERM)
        assert train("run", *more) == TERMINATED
    assert "stopped in the first stage, at step 2 of 3" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        # The first stage has one step left, its last: it ends, and only the second is stopped.
        stopped_in(patched, 0, signal.SIGTERM)
        assert train("run", *more) == TERMINATED
    said = capsys.readouterr().out
    assert "resuming in the first stage, at step 2 of 3" in said and "stopped at step 1 of 3" in said
    assert train("run", *more) == 0
    assert "resuming at step 1 of 3" in capsys.readouterr().out


@SIGNALS
def test_a_pretraining(images, tmp_path, monkeypatch, capsys, number, status):  # noqa: F811
    update = pretrain_loop.update_teacher

    told = []

    def stops(*args):
        # once: a second Ctrl-C stops without saving
        if not told:
            told.append(os.kill(os.getpid(), number))
        return update(*args)

    words = options(images, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(pretrain_loop, "update_teacher", stops)
        assert pretraining(*words) == status
    fresh()
    assert pretraining(*words) == 0
    assert "of 6 (" in (said := capsys.readouterr().out) and "resuming at step " in said


def fresh() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


def test_an_alignment_that_is_stopped_begins_again(train, tmp_path, monkeypatch, capsys):
    """It has no checkpoints. What came before it, the features, is kept; and its outcome is that of a whole one."""
    more = ("--align_steps", "6", "--max_steps", "1", "--eval_steps", "0")
    assert train("whole", *more) == 0
    steps: list[int] = []
    rate_of = align.warmup_cosine

    def counted(step, *rest):
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return rate_of(step, *rest)

    monkeypatch.setattr(align, "warmup_cosine", counted)
    with pytest.raises(KeyboardInterrupt):
        train("parts", *more)
    assert not (tmp_path / "parts" / "aligned.safetensors").exists()
    capsys.readouterr()
    assert train("parts", *more) == 0
    assert steps == [0, 1, 2, 3, *range(6)] and "features of" not in capsys.readouterr().out
    whole, parts = (load_file(tmp_path / out / "aligned.safetensors") for out in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all((whole[name] == parts[name]).all() for name in whole)


def test_a_long_alignment_tells_how_far_it_is(train, monkeypatch, capsys):
    """As other long work: a line every ten seconds where there is no terminal."""
    monkeypatch.setattr("encoder.progress.EVERY", 0.0)
    assert train("run", "--align_steps", "6", "--max_steps", "1", "--eval_steps", "0") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alignment: ")]
    assert any(line.startswith("alignment: 3/6 steps") for line in lines) and lines[-1].startswith(
        "alignment: 6/6 steps"
    )
