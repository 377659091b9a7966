"""LoRA in the language model, and nowhere else."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from encoder.errors import first_line
from encoder.fields import check_fields, number, read_object, whole
from encoder.weights import Stored, check_types, first_odd, none_of_them, read_header
from vlm.errors import ModelError
from vlm.parts import parts

# Linears of Llama, Vicuna, Mistral and Qwen; of Phi-3 (fused), of Phi-2
LORA_TARGETS = (
    r".*language_model.*\."
    r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv_proj|gate_up_proj|dense|fc1|fc2)"
)
# peft imports it, and it tells of kernels we do not use
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What peft can do and `lora_config` never asks for: layers copied, other kinds of training, files of others.
UNUSED = ("layer_replication", "megatron_config", "loftq_config", "eva_config", "corda_config", "use_dora")
PREFIX = "base_model.model."
TOWERS = ("vision_tower", "multi_modal_projector", "language_model")


def lora_config(rank: int = 16, alpha: int = 32, dropout: float = 0.0, projector: bool = True):
    """Return peft's LoraConfig: the linears of the language model, and with `projector` that one, trained
    whole."""
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
    """Add LoRA to the linears of the language model; the projector is trained whole, or frozen. Raises
    ModelError if an adapter lands elsewhere or nowhere."""
    from peft import get_peft_model

    with quiet_peft():
        model = get_peft_model(llava, lora_config(rank, alpha, dropout, projector))
    check_adapters(model)
    return model


def quantise(llava: nn.Module) -> None:
    """Quantise the language model's linears to 4 bits as they move to their device (QLoRA: nf4, double
    quantisation); products are in bfloat16. Call it before `add_lora`; `lm_head` stays as it is. Raises
    ModelError if bitsandbytes is missing."""
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
    """Return how many tokens the language model's layers look back at most; None without such a limit
    (Mistral 0.1 and Phi-3 have one)."""
    kinds = getattr(text_config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(text_config, "sliding_window", None)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence peft's warnings of a deprecated property and of missing keys; missing keys are refused
    elsewhere."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        yield


def count_adapters(model: nn.Module) -> dict[str, int]:
    """Count the LoRA pairs in each tower."""
    names = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    counts = Counter(dict.fromkeys(TOWERS, 0))
    counts.update(next((tower for tower in counts if tower in name), "elsewhere") for name in names)
    return dict(counts)


def check_adapters(model: nn.Module) -> None:
    """Raise ModelError if there is no adapter in the language model, or one anywhere else."""
    counts = count_adapters(model)
    if not counts["language_model"] or sum(counts.values()) != counts["language_model"]:
        raise ModelError(f"LoRA belongs in the language model alone, but the adapters lie in: {counts}")


def read_adapter(folder: Path) -> dict[str, Stored]:
    """Check an adapter's two files before its base is loaded; returns its tensors, from the header alone. Raises
    ModelError."""
    file, path = folder / ADAPTER, folder / CONFIG
    row = read_object(path)
    if not file.exists():
        pickled = (folder / "adapter_model.bin").exists()
        hint = "; adapter_model.bin is a pickle, which is not read: save it as safetensors" if pickled else ""
        raise ModelError(f"{file} does not exist{hint}")
    if row.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type must be LORA, not {str(row.get('peft_type'))[:60]!r}")
    if used := [name for name in UNUSED if row.get(name)]:
        raise ModelError(f"{path}: {used[0]} is not supported; leave it out")
    targets = row.get("target_modules")
    if not isinstance(targets, str) and not (
        isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets)
    ):
        raise ModelError(f"{path}: target_modules must be a pattern or a list of names")
    try:
        re.compile(targets if isinstance(targets, str) else "")
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelError(f"{path}: target_modules is not a pattern: {first_line(error)}") from None
    fields = {"r": whole(1), "lora_alpha": number(), "lora_dropout": number()}
    for name in fields:
        if row.get(name) is None:
            raise ModelError(f"{path}: {name} is missing")
    check_fields(path, row, fields)
    saved = read_header(file)
    check_types(saved)
    ranks = {x.shape[0] for name, x in saved.items() if ".lora_A." in name and x.shape}
    if ranks != {row["r"]}:
        found = ", ".join(map(str, sorted(ranks))) or "none"
        raise ModelError(f"{path}: r is {row['r']}, but the rank in {ADAPTER} is {found}")
    with safe_open(file, "pt") as tensors:
        if odd := first_odd((name, tensors.get_tensor(name)) for name in saved):
            raise none_of_them(file, odd)
    return saved


def check_saved(llava: nn.Module, folder: Path, saved: Mapping[str, Stored]) -> None:
    """Compare the tensors of an adapter with the modules of the model that it is put on. Raises ModelError, which names
    file, tensor and shapes."""
    state, file = llava.state_dict(), folder / ADAPTER
    for name, tensor in saved.items():
        module, _, kind = name.removeprefix(PREFIX).partition(".lora_")
        own = state.get(f"{module}.weight" if kind else module)
        if own is None or kind not in ("", "A.weight", "B.weight"):
            raise ModelError(
                f"{file}: tensor {name} is without a partner in its base; is it another model's adapter?"
            )
        # peft's A is (rank, inputs) and B (outputs, rank), where the weight is (outputs, inputs)
        rank = tensor.shape[0 if kind == "A.weight" else -1] if tensor.shape else 0
        wanted = {"A.weight": (rank, own.shape[-1]), "B.weight": (own.shape[0], rank), "": tuple(own.shape)}[
            kind
        ]
        if tensor.shape != wanted:
            raise ModelError(
                f"{file}: tensor {name} has shape {list(tensor.shape)}, but on its base it has {list(wanted)}"
            )
