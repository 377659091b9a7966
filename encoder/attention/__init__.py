"""One attention function for the whole system: pre-training crops, the vision tower, the language model.

This file holds the contract and its checks. `ops.py` makes it an operator of PyTorch, `kernel.py` is that operator on a
GPU, `cpu.py` on a CPU; `reference.py` is what both are measured against.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from . import ops
from .reference import attention_math, attention_sdpa

__all__ = ["CHOICES", "attention"]

MAX_HEAD_WIDTH, KERNEL_DTYPES = 128, (torch.float16, torch.bfloat16, torch.float32)


def attention(
    q_BNHD: Tensor,
    k_BNHD: Tensor,
    v_BNHD: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
) -> Tensor:
    """Compute softmax(scale * q k^T) v for every head, exact.

    Dense: q (B, Nq, H, D), k and v (B, Nk, Hk, D). Packed: q (Tq, H, D), k and v (Tk, Hk, D), the sequences one
    after another, with `cu_seqlens_*` int32 (S + 1,) = 0, n1, n1 + n2, ... on the tensors' device and `max_seqlen_*`
    the greatest length as a host int (so that no kernel needs to ask the device). Without `cu_seqlens_k` the keys
    have the lengths of the queries.

    `causal` is aligned bottom-right: query i sees keys j <= i + Nk - Nq; a query that sees none gets zeros.
    `scale` defaults to D ** -0.5. H must be a multiple of Hk (grouped-query heads). Padded batches have no mask
    argument: unpad them (`wiring.py`).

    Returns the shape and dtype of q. Raises ValueError for shapes, dtypes or lengths that do not fit together, and
    for empty packs.
    """
    packed = cu_seqlens_q is not None or cu_seqlens_k is not None
    _check(q_BNHD, k_BNHD, v_BNHD, packed)
    if packed:
        if cu_seqlens_q is None:
            raise ValueError("attention: cu_seqlens_k was given without cu_seqlens_q")
        if cu_seqlens_k is None:
            cu_seqlens_k, max_seqlen_k = cu_seqlens_q, max_seqlen_q
        _check_pack("q", cu_seqlens_q, max_seqlen_q, q_BNHD)
        if cu_seqlens_k is not cu_seqlens_q or k_BNHD.shape[0] != q_BNHD.shape[0]:
            _check_pack("k", cu_seqlens_k, max_seqlen_k, k_BNHD)
        if cu_seqlens_q.shape != cu_seqlens_k.shape:
            raise ValueError(
                f"attention: cu_seqlens_q describes {cu_seqlens_q.numel() - 1} sequences, cu_seqlens_k "
                f"{cu_seqlens_k.numel() - 1}"
            )
    if q_BNHD.device.type not in ("cpu", "cuda", "meta"):
        return attention_sdpa(
            q_BNHD,
            k_BNHD,
            v_BNHD,
            causal=causal,
            scale=scale,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
        )
    scale = q_BNHD.shape[-1] ** -0.5 if scale is None else scale
    if not packed:
        return ops.attention(q_BNHD, k_BNHD, v_BNHD, None, None, causal, scale)[0]
    q, k, v = q_BNHD[None], k_BNHD[None], v_BNHD[None]
    return ops.attention(q, k, v, cu_seqlens_q.int(), cu_seqlens_k.int(), causal, scale)[0][0]


CHOICES = {"cxr": attention, "sdpa": attention_sdpa, "reference": attention_math}  # --attention


def _check(q: Tensor, k: Tensor, v: Tensor, packed: bool) -> None:
    rank, layout = (3, "(T, H, D) with cu_seqlens") if packed else (4, "(B, N, H, D)")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.dim() == k.dim() == v.dim() == rank:
        raise ValueError(f"attention: expected {layout}, got {shapes}")
    if k.shape != v.shape or q.shape[-1] != k.shape[-1] or (not packed and q.shape[0] != k.shape[0]):
        raise ValueError(f"attention: shapes do not fit together: {shapes}")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"attention: nothing to attend to: {shapes}")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"attention: {q.shape[-2]} query heads are not a multiple of {k.shape[-2]} key heads"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(
            f"attention: q, k, v must share a floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if not q.device == k.device == v.device:
        raise ValueError(f"attention: q, k, v lie on {q.device}, {k.device}, {v.device}")
    if q.device.type == "cuda" and (q.shape[-1] > MAX_HEAD_WIDTH or q.dtype not in KERNEL_DTYPES):
        raise ValueError(
            f"attention: the kernel takes float16, bfloat16 and float32 and heads of 1 to {MAX_HEAD_WIDTH}, got "
            f"{q.dtype} and {q.shape[-1]}; choose PyTorch's own with --attention sdpa"
        )


def _check_pack(name: str, cu_seqlens: Tensor, max_seqlen: int | None, x_THD: Tensor) -> None:
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2 or cu_seqlens.is_floating_point():
        raise ValueError(
            f"attention: cu_seqlens_{name} must be int32 of shape (sequences + 1,) with at least one sequence, got "
            f"{cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    if max_seqlen is None or max_seqlen < 1:
        raise ValueError(f"attention: a pack needs max_seqlen_{name} as a host int >= 1, got {max_seqlen}")
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return  # the values are looked at only where they are at hand
    bounds = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != x_THD.shape[0]:
        raise ValueError(
            f"attention: cu_seqlens_{name} runs from {bounds[0]} to {bounds[-1]}, not from 0 to the {x_THD.shape[0]} "
            f"tokens of {name}"
        )
    if min(lengths) < 1:
        raise ValueError(f"attention: sequence {lengths.index(min(lengths))} of cu_seqlens_{name} is empty")
    if max(lengths) > max_seqlen:
        raise ValueError(
            f"attention: max_seqlen_{name} is {max_seqlen}, but a sequence has {max(lengths)} tokens"
        )
