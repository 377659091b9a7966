"""train.finetune that a power cut ends in the middle of a step: all its processes are killed at step CXR_KILLED_AT."""

import os
import signal
import sys

from train.common.entry import entry
from train.common.trainer import AnswerTrainer
from train.finetune.__main__ import main

step = AnswerTrainer.training_step


def training_step(self, *args, **kwargs):
    if self.state.global_step == int(os.environ["CXR_KILLED_AT"]):
        os.killpg(0, signal.SIGKILL)
    return step(self, *args, **kwargs)


if __name__ == "__main__":
    AnswerTrainer.training_step = training_step
    sys.exit(entry(main, "train.finetune"))
