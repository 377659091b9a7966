"""The teacher: a copy of the student that follows it as an exponential moving average and gets no gradient."""

from __future__ import annotations

import copy

import torch
from torch import nn


def make_teacher(student: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode."""
    return copy.deepcopy(student).eval().requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for all parameters in one fused call.

    `student` is the bare module, not a DistributedDataParallel wrapper. Raises ValueError if the two differ in
    their parameters.
    """
    targets, sources = dict(teacher.named_parameters()), dict(student.named_parameters())
    if targets.keys() != sources.keys():
        raise ValueError(f"teacher and student differ in {sorted(targets.keys() ^ sources.keys())[:5]}")
    torch._foreach_lerp_(list(targets.values()), [sources[name] for name in targets], 1 - momentum)
