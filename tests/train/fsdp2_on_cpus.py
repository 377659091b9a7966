"""train.pretrain with FSDP2 on CPUs, for the tests: accelerate itself gives FSDP to accelerators alone."""

import sys

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from train.common.entry import entry
from train.pretrain import session
from train.pretrain.__main__ import main


class Split(Accelerator):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["CropBlock"],
            reshard_after_forward=True,
        )  # fmt: skip
        AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


if __name__ == "__main__":
    session.Accelerator = Split
    sys.exit(entry(main, "train.pretrain"))
