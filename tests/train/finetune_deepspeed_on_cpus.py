"""train.finetune with DeepSpeed on CPUs, for the tests: accelerate itself gives it to accelerators alone. The plugin is
the one that the launch file asked for. Wants ACCELERATE_USE_CPU=true and DS_ACCELERATOR=cpu."""

import sys

import transformers.trainer
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from train.common.entry import entry
from train.finetune.__main__ import main


class Split(Accelerator):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        plugin = kwargs.get("deepspeed_plugin") or kwargs.get("deepspeed_plugins")
        self.deepspeed_engine_wrapped = None
        plugin.set_mixed_precision("no")
        AcceleratorState._shared_state.update(
            distributed_type=DistributedType.DEEPSPEED, deepspeed_plugins=plugin
        )
        PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
        plugin.select(_from_accelerator_state=True)


if __name__ == "__main__":
    transformers.trainer.Accelerator = Split
    sys.exit(entry(main, "train.finetune"))
