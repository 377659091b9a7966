"""What stands in for the vision tower while a findings model learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.finetune.config import Finetune
from vlm.model import FindingsModel
from vlm.parts import put_tower
from vlm.projector import FeatureTower, StandardTower, fold, layers_of, normed, unfold


@contextmanager
def standardised(
    model: FindingsModel, statistics: tuple[Tensor, Tensor], config: Finetune
) -> Iterator[nn.Module]:
    """Let the projector of `model` learn from standardised features while the block lasts.

    The tower gives way to one that standardises: features computed before, or its own in every step. The statistics
    are unfolded from the projector, so that the model is the same function as before. Yields the tower itself.

    At the end of the block the tower is back, and the statistics are folded into the projector that the model then
    has: under LoRA the trained copy. Only weights that processes share stay unfolded; such a model is not used again,
    its weights are read into another (train.finetune.loop).
    """
    tower, layers = model.parts.vision_tower, layers_of(model.llava)
    if config.features == "cached":
        stand_in = FeatureTower(*statistics, layers)
    else:
        stand_in = StandardTower(tower, *statistics, layers, normed(model.llava), config.train_encoder)
    put_tower(model.llava, stand_in)
    unfold(model.parts.projector, *statistics)
    try:
        yield tower
    finally:
        put_tower(model.llava, tower)
        if not _shared(model.parts.projector):
            fold(model.parts.projector, *statistics)


def _shared(module: nn.Module) -> bool:
    """Tell whether this process holds a part of the weights alone: under FSDP2, or ZeRO-3, which leaves them
    empty."""
    return any(isinstance(p, DTensor) or not p.numel() for p in module.parameters())
