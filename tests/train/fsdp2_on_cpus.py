"""FSDP2 on CPUs, for the tests: accelerate itself gives FSDP to accelerators alone."""

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin


class Split(Accelerator):
    """Take what is asked for, and split the models of a pre-training block by block."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["CropBlock"],
            reshard_after_forward=True,
        )  # fmt: skip
        AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


def split_pretraining() -> None:
    """Let train.pretrain run under FSDP2 in this process."""
    from train.pretrain import session

    session.Accelerator = Split
