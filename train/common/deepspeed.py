"""DeepSpeed (ZeRO-2 and ZeRO-3) under a fine-tuning: what of it train.common.resume has to know, so that checkpoints
are those of any other run, weights and optimiser whole and by name.

DeepSpeed keeps the trained weights and the optimiser's state in flat parts of its own; `safe_get_full_...` put them
together, which is collective: every process must call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


def begin(accelerator, bf16: bool) -> None:
    """Configure DeepSpeed before it takes the model: weights keep their type, autocast does the rest as in
    other runs, and Trainer does not look for DeepSpeed's own checkpoints."""
    import transformers.trainer

    if bf16:
        accelerator.state.deepspeed_plugin.deepspeed_config["torch_autocast"] = {
            "enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": [],
        }  # fmt: skip
    transformers.trainer.deepspeed_load_checkpoint = lambda *args, **kwargs: None


def end() -> None:
    """Call this before a model is read; otherwise from_pretrained would split it among all processes."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def whole(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained weights in float32: the optimiser's copy, once there is one."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {name: safe_get_full_fp32_param(p) for name, p in weights.items()}
    return {name: weights[name] if x is None else x for name, x in found.items()}


def optimizer_tensors(engine: Any, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """Return the state as train.common.checkpoints.optimizer_tensors does."""
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(engine.optimizer)
    (step,) = {float(state["step"]) for state in engine.optimizer.optimizer.state.values()}
    found = {}
    for p, name in names.items():
        found[f"{name}|step"] = torch.tensor(step)
        found |= {f"{name}|{key}": safe_get_full_optimizer_state(p, key) for key in MOMENTS}
    return found


def load_optimizer_tensors(
    engine: Any, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Load the state that `optimizer_tensors` returned."""
    from deepspeed.utils import safe_set_full_optimizer_state

    zero = engine.optimizer
    step = next(x for key, x in tensors.items() if key.endswith("|step"))
    flat = (
        getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    )  # ZeRO-3, 2
    for part in flat:
        zero.optimizer.state[part] = {
            "step": step.clone(),
            **{key: torch.zeros_like(part) for key in MOMENTS},
        }
    _link(zero)
    for p, name in names.items():
        for key in MOMENTS:
            safe_set_full_optimizer_state(p, tensors[f"{name}|{key}"].to(engine.device), key)


def _link(zero: Any) -> None:
    """ZeRO-2 of DeepSpeed 0.19 links parameters with their state after the step of the first of several groups only."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
