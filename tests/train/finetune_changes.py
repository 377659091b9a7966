"""What befalls a fine-tuning in a process of its own, for the tests: a power cut, weights that are split."""

from __future__ import annotations

import os
import signal
from functools import partial


def killed_at(step: int):
    """Return a change after which the process is killed in the middle of a step, as by a power cut."""
    return partial(_kill_at, step)


def _kill_at(step: int) -> None:
    from train.common.trainer import AnswerTrainer

    before = AnswerTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(self, *args, **kwargs)

    AnswerTrainer.training_step = training_step


def split_finetuning() -> None:
    """Let train.finetune run under FSDP2 in this process; which blocks are split, the training says itself."""
    import transformers.trainer

    from tests.train.fsdp2_on_cpus import Split

    transformers.trainer.Accelerator = Split
