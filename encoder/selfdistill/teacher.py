"""The teacher: a copy of the student that follows it as an exponential moving average and gets no gradient."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def make_teacher(student: nn.Module) -> nn.Module:
    """Return a frozen copy in evaluation mode."""
    return copy.deepcopy(student).eval().requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set teacher <- momentum * teacher + (1 - momentum) * student, for all parameters in one fused call.

    `student` is the bare module, not a DistributedDataParallel wrapper; FSDP2 must have split both alike. Raises
    ValueError if the two differ in their parameters.
    """
    targets, sources = dict(teacher.named_parameters()), dict(student.named_parameters())
    if targets.keys() != sources.keys():
        raise ValueError(f"teacher and student differ in {sorted(targets.keys() ^ sources.keys())[:5]}")
    mine, other = [_part(x) for x in targets.values()], [_part(sources[name]) for name in targets]
    torch._foreach_lerp_(mine, other, 1 - momentum)


def _part(parameter: Tensor) -> Tensor:
    """Of a parameter that FSDP2 has split, what this process holds."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
