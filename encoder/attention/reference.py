"""What our attention is measured against, on any device: the explicit formula, and PyTorch's own.

Shape letters: B batch, N tokens, H heads, D head width, T tokens of all packed sequences.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_math(
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
    """Compute softmax(scale * q k^T) v written out, in float32 or better: the oracle of the tests,
    `--attention reference`.

    Arguments as in `encoder.attention.attention`. float64 stays float64. The output has the dtype of q.
    """
    if cu_seqlens_q is not None:
        cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        out_THD = torch.empty(*q_BNHD.shape[:2], v_BNHD.shape[-1], dtype=q_BNHD.dtype, device=q_BNHD.device)
        q_bounds, k_bounds = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
            q_1NHD, k_1NHD, v_1NHD = q_BNHD[None, q0:q1], k_BNHD[None, k0:k1], v_BNHD[None, k0:k1]
            out_THD[q0:q1] = attention_math(q_1NHD, k_1NHD, v_1NHD, causal=causal, scale=scale)[0]
        return out_THD
    work = torch.promote_types(q_BNHD.dtype, torch.float32)
    groups = q_BNHD.shape[2] // k_BNHD.shape[2]
    scale = q_BNHD.shape[-1] ** -0.5 if scale is None else scale
    q_BHND = q_BNHD.to(work).transpose(1, 2)
    k_BHND = k_BNHD.to(work).repeat_interleave(groups, dim=2).transpose(1, 2)
    v_BHND = v_BNHD.to(work).repeat_interleave(groups, dim=2).transpose(1, 2)
    scores_BHNM = q_BHND @ k_BHND.transpose(-1, -2) * scale
    if causal:
        seen_NM = causal_mask(q_BNHD.shape[1], k_BNHD.shape[1], q_BNHD.device)
        scores_BHNM = scores_BHNM.masked_fill(~seen_NM, -torch.inf)
    # A query that sees no key (causal, more queries than keys) gets zeros, as in FlashAttention.
    probs_BHNM = torch.softmax(scores_BHNM, -1).nan_to_num(0.0) if causal else torch.softmax(scores_BHNM, -1)
    return (probs_BHNM @ v_BHND).transpose(1, 2).to(q_BNHD.dtype)


def attention_sdpa(
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
    """Compute the same through PyTorch's scaled_dot_product_attention, for a pack one call a run of equal
    lengths (the lengths are read from the device): `--attention sdpa`, and the path of devices that our
    kernel does not know."""
    if cu_seqlens_q is None:
        return _sdpa(q_BNHD, k_BNHD, v_BNHD, causal, scale)
    q_bounds = cu_seqlens_q.tolist()
    k_bounds = q_bounds if cu_seqlens_k is None or cu_seqlens_k is cu_seqlens_q else cu_seqlens_k.tolist()
    out = []
    for count, q0, n_q, k0, n_k in runs(q_bounds, k_bounds):  # a dense batch, without a copy
        q = q_BNHD[q0 : q0 + count * n_q].unflatten(0, (count, n_q))
        k = k_BNHD[k0 : k0 + count * n_k].unflatten(0, (count, n_k))
        v = v_BNHD[k0 : k0 + count * n_k].unflatten(0, (count, n_k))
        out.append(_sdpa(q, k, v, causal, scale).flatten(0, 1))
    return out[0] if len(out) == 1 else torch.cat(out)


def causal_mask(n_q: int, n_k: int, device: torch.device | None = None) -> Tensor:
    """Return bool (n_q, n_k), True where query i sees key j: j <= i + n_k - n_q (aligned bottom-right)."""
    return torch.ones(n_q, n_k, dtype=torch.bool, device=device).tril(n_k - n_q)


def runs(q_bounds: list[int], k_bounds: list[int]) -> list[tuple[int, int, int, int, int]]:
    """Group neighbouring sequences of the same lengths: (count, first q token, q length, first k token, k
    length)."""
    runs: list[tuple[int, int, int, int, int]] = []
    for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
        if runs and (runs[-1][2], runs[-1][4]) == (q1 - q0, k1 - k0):
            count, first_q, n_q, first_k, n_k = runs[-1]
            runs[-1] = (count + 1, first_q, n_q, first_k, n_k)
        else:
            runs.append((1, q0, q1 - q0, k0, k1 - k0))
    return runs


def _sdpa(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, causal: bool, scale: float | None) -> Tensor:
    n_q, n_k = q_BNHD.shape[1], k_BNHD.shape[1]
    mask_NM, blind = None, 0
    if causal and n_q > n_k:  # the first rows see nothing
        blind = n_q - n_k
        q_BNHD, n_q = q_BNHD[:, blind:], n_k
    if causal and 1 < n_q < n_k:  # SDPA's own is_causal is aligned top-left
        mask_NM = causal_mask(n_q, n_k, q_BNHD.device)
    out_BHND = F.scaled_dot_product_attention(
        q_BNHD.transpose(1, 2),
        k_BNHD.transpose(1, 2),
        v_BNHD.transpose(1, 2),
        attn_mask=mask_NM,
        is_causal=causal and n_q == n_k and n_q > 1,
        scale=scale,
        enable_gqa=q_BNHD.shape[2] != k_BNHD.shape[2],
    )
    out_BNHD = out_BHND.transpose(1, 2)
    return F.pad(out_BNHD, (0, 0, 0, 0, blind, 0)) if blind else out_BNHD
