"""The parts of a Llava model by name and type, whether or not an adapter is around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedModel


@dataclass(frozen=True)
class Parts:
    """Name the parts of a Llava model as it is now: ask again after a part was replaced."""

    # The Llava itself, which may lie inside an adapter.
    base: LlavaForConditionalGeneration
    # A vision model of transformers, or what stands in for it during a training.
    vision_tower: nn.Module
    # The one that computes: of an adapter that trained a copy, the copy.
    projector: nn.Module
    # Without its head.
    language_model: PreTrainedModel
    lm_head: nn.Linear


def parts(llava: nn.Module) -> Parts:
    """Return the parts of a Llava model, or of the PeftModel around one."""
    base: Any = llava
    if hasattr(llava, "get_base_model"):
        base = llava.get_base_model()  # type: ignore[operator]
    projector = base.model.multi_modal_projector
    copies = getattr(projector, "modules_to_save", None)
    return Parts(
        base=cast("LlavaForConditionalGeneration", base),
        vision_tower=base.model.vision_tower,
        projector=projector if copies is None else copies["default"],
        language_model=base.model.language_model,
        lm_head=base.lm_head,
    )


def put_tower(llava: nn.Module, tower: nn.Module) -> None:
    """Replace the vision tower by `tower`."""
    cast(Any, parts(llava).base.model).vision_tower = tower
