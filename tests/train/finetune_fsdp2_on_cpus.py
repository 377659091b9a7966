"""train.finetune with FSDP2 on CPUs, for the tests; which blocks are split, the training says itself."""

import sys

import transformers.trainer

from tests.train.fsdp2_on_cpus import Split
from train.common.entry import entry
from train.finetune.__main__ import main

if __name__ == "__main__":
    transformers.trainer.Accelerator = Split
    sys.exit(entry(main, "train.finetune"))
