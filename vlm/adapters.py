"""LoRA in the language model, and nowhere else."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vlm.errors import ModelError

# Linears of Llama, Vicuna, Mistral and Qwen; of Phi-3 (fused), of Phi-2
LORA_TARGETS = (
    r".*language_model.*\."
    r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv_proj|gate_up_proj|dense|fc1|fc2)"
)
TOWERS = ("vision_tower", "multi_modal_projector", "language_model")


def lora_config(rank: int = 16, alpha: int = 32, dropout: float = 0.0, projector: bool = True):
    """peft's LoraConfig: the linears of the language model, and with `projector` that one, trained whole."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        modules_to_save=["multi_modal_projector"] if projector else None,
        task_type="CAUSAL_LM",
    )


def add_lora(
    llava: nn.Module, rank: int = 16, alpha: int = 32, dropout: float = 0.0, projector: bool = True
) -> nn.Module:
    """LoRA on the linears of the language model; the projector is trained whole, or frozen. Raises ModelError if an
    adapter lands elsewhere or nowhere."""
    from peft import get_peft_model

    with quiet_peft():
        model = get_peft_model(llava, lora_config(rank, alpha, dropout, projector))
    check_adapters(model)
    return model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """peft asks transformers for a property of a deprecated name, and merely warns of missing keys, which we refuse."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        yield


def count_adapters(model: nn.Module) -> dict[str, int]:
    """LoRA pairs in each tower."""
    names = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    counts = Counter(dict.fromkeys(TOWERS, 0))
    counts.update(next((tower for tower in counts if tower in name), "elsewhere") for name in names)
    return dict(counts)


def check_adapters(model: nn.Module) -> None:
    counts = count_adapters(model)
    if not counts["language_model"] or sum(counts.values()) != counts["language_model"]:
        raise ModelError(f"LoRA belongs in the language model alone, but the adapters lie in: {counts}")
