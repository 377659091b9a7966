"""The attention operators, `torch.ops.cxr.attention` and `torch.ops.cxr.attention_backward`: one name for our kernel on
a GPU and for its counterpart on a CPU, which autograd, torch.compile, autocast, FLOP counters and selective activation
checkpointing know.

They take what `encoder.attention.attention` has checked: (B, N, H, D), for packs with B = 1 and `cu_seqlens`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from . import cpu


@torch.library.custom_op("cxr::attention", mutates_args=(), device_types="cpu")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return (out, like q and contiguous; what the backward needs besides)."""
    return cpu.forward(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, scale)


@torch.library.custom_op("cxr::attention_backward", mutates_args=(), device_types="cpu")
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    kept: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv, contiguous."""
    return cpu.backward(grad, q, k, v, out, kept, cu_seqlens_q, cu_seqlens_k, causal, scale)


@attention.register_kernel("cuda")
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, scale):
    with torch.cuda.device(q.device):  # Triton launches on the current one
        return _kernel().forward(q, k, v, _pack(cu_seqlens_q, cu_seqlens_k), causal, scale)


@attention_backward.register_kernel("cuda")
def _(grad, q, k, v, out, kept, cu_seqlens_q, cu_seqlens_k, causal, scale):
    with torch.cuda.device(q.device):
        return _kernel().backward(grad, q, k, v, out, kept, _pack(cu_seqlens_q, cu_seqlens_k), causal, scale)


def _kernel():
    """Imported when a GPU is used: CPU machines need no Triton."""
    try:
        from . import kernel
    except ImportError as e:
        raise RuntimeError(
            "attention on a GPU needs Triton, which is not installed here: pip install 'triton>=3.6', or choose "
            "PyTorch's own with --attention sdpa"
        ) from e
    return kernel


def _pack(cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None):
    return None if cu_seqlens_q is None else _kernel().Pack(cu_seqlens_q, cu_seqlens_k)


# -------------------------------------------------------------------------------------------- shapes without numbers


@attention.register_fake
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, scale):
    out = q.new_empty(q.shape)
    if q.device.type == "cpu":
        return out, cpu.kept(q, k, causal, cu_seqlens_q is not None)
    parts = 2 if q.dtype == torch.float32 else 1
    return out, q.new_empty((parts, q.shape[2], q.shape[0] * q.shape[1]), dtype=torch.float32)


@attention_backward.register_fake
def _(grad, q, k, v, out, kept, cu_seqlens_q, cu_seqlens_k, causal, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


# ------------------------------------------------------------------------------------------------------- gradients


def _keep(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, ctx.causal, ctx.scale = inputs
    out, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, kept, cu_seqlens_q, cu_seqlens_k)


def _gradients(ctx, grad: Tensor | None, _kept):
    if grad is None:
        return (None,) * 7
    q, k, v, out, kept, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
    found = torch.ops.cxr.attention_backward(
        grad, q, k, v, out, kept, cu_seqlens_q, cu_seqlens_k, ctx.causal, ctx.scale
    )
    return *found, None, None, None, None


attention.register_autograd(_gradients, setup_context=_keep)


# --------------------------------------------------------------------------------------------------------- autocast


def _autocast(device: str):
    def cast(q, k, v, *others):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return torch.ops.cxr.attention(
                *(x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v)), *others
            )

    return cast


_library = torch.library.Library("cxr", "FRAGMENT")
_library.impl("attention", _autocast("cpu"), "AutocastCPU")
_library.impl("attention", _autocast("cuda"), "AutocastCUDA")


# ------------------------------------------------------------------------------------------------------------ FLOPs


@register_flop_formula(torch.ops.cxr.attention, get_raw=True)
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, *others, out_val=None, **kwargs) -> int:
    """Two products, 4 D operations a pair of a query and a key; causal or not, as PyTorch counts its own."""
    return 4 * q.shape[2] * q.shape[3] * _pairs(q, k, cu_seqlens_q, cu_seqlens_k)


@register_flop_formula(torch.ops.cxr.attention_backward, get_raw=True)
def _(grad, q, k, v, out, kept, cu_seqlens_q, cu_seqlens_k, *others, out_val=None, **kwargs) -> int:
    """Five products, one of them the scores over again."""
    return 10 * q.shape[2] * q.shape[3] * _pairs(q, k, cu_seqlens_q, cu_seqlens_k)


def _pairs(q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None) -> int:
    """Pairs of queries and keys. A pack whose lengths cannot be read (no real tensor) counts as one sequence."""
    if cu_seqlens_q is None or cu_seqlens_q.is_meta or isinstance(cu_seqlens_q, FakeTensor):
        return q.shape[0] * q.shape[1] * k.shape[1]
    q_lengths, k_lengths = ([b - a for a, b in pairwise(cu.tolist())] for cu in (cu_seqlens_q, cu_seqlens_k))
    return sum(n * m for n, m in zip(q_lengths, k_lengths, strict=True))
