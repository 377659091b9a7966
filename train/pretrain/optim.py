"""Parameter groups and schedules of a pre-training."""

from __future__ import annotations

import torch
from torch import nn

from train.common.schedules import cosine, warmup_cosine
from train.pretrain.config import PretrainConfig


def parameter_groups(model: nn.Module, c: PretrainConfig) -> list[dict]:
    """Group a student's parameters as DINOv2 does.

    The learning rate falls by `layerwise_decay` a block towards the input, and the patch embedding's is multiplied by
    `patch_embed_lr_mult`. Biases, norms and LayerScale have no weight decay.
    """
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr = 1.0
        if name.startswith("backbone."):
            inner = name.removeprefix("backbone.")
            # of the final norm, unless it turns out to lie below
            layer = c.num_hidden_layers + 1
            if inner.startswith("blocks."):
                layer = int(inner.split(".")[1]) + 1
            elif inner.startswith(("patch_embed.", "pos_embed", "cls_token", "mask_token")):
                layer = 0
            lr = c.layerwise_decay ** (c.num_hidden_layers + 1 - layer)
            lr *= c.patch_embed_lr_mult if inner.startswith("patch_embed.") else 1.0
        decays = not (name.endswith((".bias", ".gamma", "weight_g")) or ".norm" in name)
        kind = (lr, decays, name.startswith("backbone."), ".last_layer." in name)
        groups.setdefault(kind, []).append(parameter)
    keys = ("lr_scale", "decays", "backbone", "last_layer")
    return [{"params": members, **dict(zip(keys, kind, strict=True))} for kind, members in groups.items()]


def apply_schedules(optimizer: torch.optim.Optimizer, step: int, c: PretrainConfig) -> float:
    """Set the learning rates and weight decays of this step; returns the learning rate before any group's scale."""
    lr = warmup_cosine(step, c.learning_rate, c.learning_rate_end, c.warmup_steps, c.max_steps)
    decay = cosine(step, c.weight_decay, c.weight_decay_end, c.max_steps)
    # A backbone that was frozen while the heads warmed up gets a warm-up of its own.
    thaw = 1.0
    if c.head_warmup_steps:
        thaw = min(1.0, max(0.0, (step + 1 - c.head_warmup_steps) / (c.warmup_steps + 1)))
    for group in optimizer.param_groups:
        frozen = group["last_layer"] and step < c.freeze_last_layer_steps
        group["lr"] = 0.0 if frozen else lr * group["lr_scale"] * (thaw if group["backbone"] else 1.0)
        group["weight_decay"] = decay if group["decays"] else 0.0
    return lr
