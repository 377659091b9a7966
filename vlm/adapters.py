"""LoRA in the language model, and nowhere else."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vlm.errors import ModelError
from vlm.parts import parts

# Linears of Llama, Vicuna, Mistral and Qwen; of Phi-3 (fused), of Phi-2
LORA_TARGETS = (
    r".*language_model.*\."
    r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv_proj|gate_up_proj|dense|fc1|fc2)"
)
# peft imports it, and it tells of kernels we do not use
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
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


def quantise(llava: nn.Module) -> None:
    """QLoRA: the language model's linears in 4 bits (nf4, double quantisation), as they come to their device; products
    in bfloat16. Before `add_lora`; `lm_head` stays as it is. Raises ModelError where bitsandbytes is missing."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise ModelError("4-bit weights need bitsandbytes: pip install 'cxr-vlm[qlora]'") from None
    language = parts(llava).language_model
    for name, linear in [(n, m) for n, m in language.named_modules() if type(m) is nn.Linear]:
        small = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, torch.bfloat16,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        small.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=small)
        small.bias = linear.bias
        small.support_avx512bf16_for_cpu = False  # packed so in an evaluation, it has no gradient ever after
        language.set_submodule(name, small)
    llava.is_loaded_in_4bit = True  # which peft asks for


def sliding_window(text_config) -> int | None:
    """Tokens that a layer of the language model looks back at most, if there is such a layer (Mistral 0.1, Phi-3)."""
    kinds = getattr(text_config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(text_config, "sliding_window", None)


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
