"""Attention on the CPU: the explicit oracle and the path that training and inference take there.

Shape letters: B batch, N tokens, H heads, D head width, T tokens of all packed sequences, S packed sequences.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

PAD_FROM_RUNS = 4  # with more distinct lengths than this in a pack, one padded call beats a call a length


def attention_math(
    q_BNHD: Tensor,
    k_BNHD: Tensor,
    v_BNHD: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v written out, in float32 or better: the oracle of the tests.

    Shapes as in `encoder.attention.attention`. float64 stays float64. The output has the dtype of q.
    """
    if cu_seqlens_q is not None:
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


def attention_cpu(
    q_BNHD: Tensor,
    k_BNHD: Tensor,
    v_BNHD: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Tensor:
    """The same through PyTorch's scaled_dot_product_attention, or plain matrix products where those are faster.

    Shapes as in `encoder.attention.attention`.
    """
    if cu_seqlens_q is None:
        return _sdpa(q_BNHD, k_BNHD, v_BNHD, causal, scale)
    same = cu_seqlens_k is cu_seqlens_q
    q_bounds = cu_seqlens_q.tolist()
    k_bounds = q_bounds if same else cu_seqlens_k.tolist()
    runs = _runs(q_bounds, k_bounds)
    if len(runs) > PAD_FROM_RUNS:
        return _padded(q_BNHD, k_BNHD, v_BNHD, q_bounds, k_bounds, causal, scale)
    out = []
    for count, q0, n_q, k0, n_k in runs:  # a run of equal lengths is a dense batch, without a copy
        q = q_BNHD[q0 : q0 + count * n_q].unflatten(0, (count, n_q))
        k = k_BNHD[k0 : k0 + count * n_k].unflatten(0, (count, n_k))
        v = v_BNHD[k0 : k0 + count * n_k].unflatten(0, (count, n_k))
        out.append(_sdpa(q, k, v, causal, scale).flatten(0, 1))
    return out[0] if len(out) == 1 else torch.cat(out)


def causal_mask(n_q: int, n_k: int, device: torch.device | None = None) -> Tensor:
    """Bool (n_q, n_k), True where query i sees key j: j <= i + n_k - n_q (aligned bottom-right)."""
    return torch.ones(n_q, n_k, dtype=torch.bool, device=device).tril(n_k - n_q)


def _sdpa(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, causal: bool, scale: float | None) -> Tensor:
    n_q, n_k = q_BNHD.shape[1], k_BNHD.shape[1]
    if _products_are_faster(q_BNHD, k_BNHD, causal):
        return _products(q_BNHD, k_BNHD, v_BNHD, scale)
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


def _products_are_faster(q_BNHD: Tensor, k_BNHD: Tensor, causal: bool) -> bool:
    """bfloat16 on a CPU: SDPA's fused backward there takes about three times as long as plain matrix products (50 and
    197 tokens, head widths 32 and 64, AMD EPYC with avx512_bf16). Up to 1,024 keys, where the scores stay small."""
    n_q, n_k = q_BNHD.shape[1], k_BNHD.shape[1]
    ungrouped = q_BNHD.shape[2] == k_BNHD.shape[2]
    bf16 = q_BNHD.device.type == "cpu" and q_BNHD.dtype == torch.bfloat16
    return bf16 and ungrouped and not causal and n_q > 1 and n_k <= 1024


def _products(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, scale: float | None) -> Tensor:
    B, _, H, D = q_BNHD.shape
    q_bND, k_bMD, v_bMD = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNHD, k_BNHD, v_BNHD))
    scale = D**-0.5 if scale is None else scale
    scores_bNM = torch.baddbmm(q_bND.new_empty(()), q_bND, k_bMD.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(scores_bNM.softmax(-1), v_bMD).unflatten(0, (B, H)).transpose(1, 2)


def _padded(q_THD, k_THD, v_THD, q_bounds, k_bounds, causal, scale) -> Tensor:
    """Many different lengths: scatter into a padded batch, one masked SDPA call, gather."""
    device = q_THD.device
    q_lens = torch.tensor(q_bounds, device=device).diff()
    k_lens = torch.tensor(k_bounds, device=device).diff()
    n_q, n_k = int(q_lens.max()), int(k_lens.max())
    i_N, j_M = torch.arange(n_q, device=device), torch.arange(n_k, device=device)
    q_real_SN, k_real_SM = i_N < q_lens[:, None], j_M < k_lens[:, None]
    seen_SNM = k_real_SM[:, None, :].expand(-1, n_q, -1)
    if causal:
        seen_SNM = seen_SNM & (j_M <= i_N[:, None] + (k_lens - q_lens)[:, None, None])
    blind_SN = ~seen_SNM.any(-1)
    # a row that sees nothing looks at key 0, so that no softmax is over an empty set, and is set to zero below
    seen_SNM = torch.cat([seen_SNM[..., :1] | blind_SN[..., None], seen_SNM[..., 1:]], dim=-1)

    def pad(x_THD: Tensor, real: Tensor) -> Tensor:
        where = torch.where(real, real.flatten().cumsum(0).view_as(real) - 1, 0)
        return x_THD[where] * real[..., None, None]

    groups = q_THD.shape[1] // k_THD.shape[1]
    k_SMHD, v_SMHD = pad(k_THD, k_real_SM), pad(v_THD, k_real_SM)
    if groups > 1:  # SDPA with a mask and grouped heads falls back to a slower path than repeated heads
        k_SMHD, v_SMHD = k_SMHD.repeat_interleave(groups, 2), v_SMHD.repeat_interleave(groups, 2)
    out_SHND = F.scaled_dot_product_attention(
        pad(q_THD, q_real_SN).transpose(1, 2),
        k_SMHD.transpose(1, 2),
        v_SMHD.transpose(1, 2),
        attn_mask=seen_SNM[:, None],
        scale=scale,
    )
    out_SNHD = out_SHND.transpose(1, 2)
    if causal:
        out_SNHD = out_SNHD.masked_fill(blind_SN[..., None, None], 0.0)
    return out_SNHD[q_real_SN]


def _runs(q_bounds: list[int], k_bounds: list[int]) -> list[tuple[int, int, int, int, int]]:
    """Neighbouring sequences of the same lengths: (count, first q token, q length, first k token, k length)."""
    runs: list[tuple[int, int, int, int, int]] = []
    for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
        if runs and (runs[-1][2], runs[-1][4]) == (q1 - q0, k1 - k0):
            count, first_q, n_q, first_k, n_k = runs[-1]
            runs[-1] = (count + 1, first_q, n_q, first_k, n_k)
        else:
            runs.append((1, q0, q1 - q0, k0, k1 - k0))
    return runs
