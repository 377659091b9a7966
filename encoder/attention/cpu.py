"""Attention on a CPU, forward and backward: PyTorch's fused kernel, or plain matrix products where those are faster.

Shape letters: B batch, N tokens, H heads, D head width, T tokens of all packed sequences; after
`_grouped`: b a batch and a key head, n a query token and a head of its group, m key tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import causal_mask, runs

PRODUCTS_UP_TO = {torch.bfloat16: 1024, torch.float32: 128}  # keys
SCORES_AT_ONCE = 1 << 19  # 2 MiB of float32

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def kept(q_BNHD: Tensor, k_BNHD: Tensor, causal: bool, packed: bool) -> Tensor:
    """Allocate what `forward` keeps for `backward`, uninitialised: a row's probabilities, or the log of their
    sum."""
    B, n_q, H, _ = q_BNHD.shape
    n_k, Hk = k_BNHD.shape[1:3]
    if packed:
        return q_BNHD.new_empty((n_q, H), dtype=_sums(q_BNHD.dtype))
    seeing = min(n_q, n_k) if causal else n_q
    if _by_products(q_BNHD, k_BNHD):
        return q_BNHD.new_empty((B * Hk, seeing * (H // Hk), n_k))
    return q_BNHD.new_empty((B, H, seeing), dtype=_sums(q_BNHD.dtype))


def forward(
    q_BNHD: Tensor,
    k_BNHD: Tensor,
    v_BNHD: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return (out (B, N, H, D) contiguous, what `kept` says). A pack has B = 1."""
    if cu_seqlens_q is None:
        return _dense(q_BNHD, k_BNHD, v_BNHD, causal, scale, _by_products(q_BNHD, k_BNHD))
    q_THD, k_THD, v_THD = q_BNHD[0], k_BNHD[0], v_BNHD[0]
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype)
    sums_TH = kept(q_BNHD, k_BNHD, causal, True)
    for rows, keys, batch in _parts(cu_seqlens_q, cu_seqlens_k):
        q, k, v = (x[i].unflatten(0, (batch, -1)) for x, i in ((q_THD, rows), (k_THD, keys), (v_THD, keys)))
        out, sums_BHN = _dense(q, k, v, causal, scale, False)
        out_THD[rows] = out.flatten(0, 1)
        sums_BNH = F.pad(sums_BHN, (out.shape[1] - sums_BHN.shape[2], 0)).transpose(1, 2)
        sums_TH[rows] = sums_BNH.flatten(0, 1)
    return out_THD[None], sums_TH


def backward(
    grad_BNHD: Tensor,
    q_BNHD: Tensor,
    k_BNHD: Tensor,
    v_BNHD: Tensor,
    out_BNHD: Tensor,
    kept_: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv, contiguous."""
    if cu_seqlens_q is None:
        by_products = _by_products(q_BNHD, k_BNHD)
        return _dense_backward(grad_BNHD, q_BNHD, k_BNHD, v_BNHD, out_BNHD, kept_, causal, scale, by_products)
    grad_THD, q_THD, k_THD, v_THD, out_THD = (x[0] for x in (grad_BNHD, q_BNHD, k_BNHD, v_BNHD, out_BNHD))
    found = [torch.empty(x.shape, dtype=x.dtype) for x in (q_BNHD, k_BNHD, v_BNHD)]
    for rows, keys, batch in _parts(cu_seqlens_q, cu_seqlens_k):
        grad, q, out, sums_BNH = (
            x[rows].unflatten(0, (batch, -1)) for x in (grad_THD, q_THD, out_THD, kept_)
        )
        k, v = (x[keys].unflatten(0, (batch, -1)) for x in (k_THD, v_THD))
        sums_BHN = sums_BNH.transpose(1, 2)
        if causal:
            sums_BHN = sums_BHN[..., max(0, q.shape[1] - k.shape[1]) :]
        for x, part, where in zip(
            found,
            _dense_backward(grad, q, k, v, out, sums_BHN.contiguous(), causal, scale, False),
            (rows, keys, keys),
            strict=True,
        ):
            x[0, where] = part.flatten(0, 1)
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------ dense


def _by_products(q_BNHD: Tensor, k_BNHD: Tensor) -> bool:
    """Where plain matrix products beat PyTorch's fused kernel, both ways, and the probabilities stay small enough to be
    kept (benchmarks/attention_cpu.py)."""
    return q_BNHD.shape[1] > 1 and k_BNHD.shape[1] <= PRODUCTS_UP_TO.get(q_BNHD.dtype, 0)


def _dense(q_BNHD, k_BNHD, v_BNHD, causal: bool, scale: float, by_products: bool) -> tuple[Tensor, Tensor]:
    n_q, H = q_BNHD.shape[1:3]
    blind = max(0, n_q - k_BNHD.shape[1]) if causal else 0  # rows that see nothing give zeros
    q_BNHD = q_BNHD[:, blind:]
    if by_products:
        q_bnD, k_bmD, v_bmD = _grouped(q_BNHD, H // k_BNHD.shape[2]), _grouped(k_BNHD), _grouped(v_BNHD)
        keep = _probabilities(q_bnD, k_bmD, _bias(q_BNHD, k_BNHD) if causal else None, scale)
        out_BNHD = _ungrouped(torch.bmm(keep, v_bmD), q_BNHD)
    else:
        is_causal, mask = _causality(q_BNHD, k_BNHD, causal)
        q, k, v = (_heads_first(x) for x in (q_BNHD, k_BNHD, v_BNHD))
        out_BHND, keep = _fused(q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale)
        out_BNHD, keep = out_BHND.transpose(1, 2).contiguous(), keep.contiguous()
    return F.pad(out_BNHD, (0, 0, 0, 0, blind, 0)) if blind else out_BNHD, keep


def _dense_backward(grad, q_BNHD, k_BNHD, v_BNHD, out, keep, causal, scale, by_products):
    blind = max(0, q_BNHD.shape[1] - k_BNHD.shape[1]) if causal else 0
    grad, q_BNHD, out = grad[:, blind:], q_BNHD[:, blind:], out[:, blind:]
    if by_products:
        group = q_BNHD.shape[2] // k_BNHD.shape[2]
        g_bnD, q_bnD, k_bmD, v_bmD = (
            _grouped(grad, group),
            _grouped(q_BNHD, group),
            _grouped(k_BNHD),
            _grouped(v_BNHD),
        )
        dp_bnm = torch.bmm(g_bnD, v_bmD.mT)
        ds_bnm = torch.ops.aten._softmax_backward_data(dp_bnm, keep, -1, keep.dtype)
        none = ds_bnm.new_empty(())
        dq = _ungrouped(torch.baddbmm(none, ds_bnm, k_bmD, beta=0, alpha=scale), q_BNHD)
        dk = _ungrouped(torch.baddbmm(none, ds_bnm.mT, q_bnD, beta=0, alpha=scale), k_BNHD)
        dv = _ungrouped(torch.bmm(keep.mT, g_bnD), v_BNHD)
    else:
        is_causal, mask = _causality(q_BNHD, k_BNHD, causal)
        heads_first = (_heads_first(x) for x in (grad, q_BNHD, k_BNHD, v_BNHD, out))
        found = _fused_backward(*heads_first, keep, 0.0, is_causal, attn_mask=mask, scale=scale)
        dq, dk, dv = (x.transpose(1, 2).contiguous() for x in found)
    return F.pad(dq, (0, 0, 0, 0, blind, 0)) if blind else dq, dk, dv


def _probabilities(q_bnD: Tensor, k_bmD: Tensor, bias_nm: Tensor | None, scale: float) -> Tensor:
    """(b, n, m), in the dtype of q. The scores are float32, as in the fused kernel (in bfloat16 a trained model's, of
    ten and more, would be off by a few per cent after exp), and few at a time, so that they stay in the cache."""
    p_bnm = q_bnD.new_empty((q_bnD.shape[0], q_bnD.shape[1], k_bmD.shape[1]))
    at_once = max(1, SCORES_AT_ONCE // p_bnm[0].numel())
    exact = _sums(q_bnD.dtype)
    bias_nm = torch.empty((), dtype=exact) if bias_nm is None else bias_nm.to(exact)
    for p, q, k in zip(*(x.split(at_once) for x in (p_bnm, q_bnD, k_bmD)), strict=True):
        scores = p if p.dtype == exact else torch.empty(p.shape, dtype=exact)
        beta = int(bias_nm.dim() > 0)
        torch.baddbmm(bias_nm, q.to(exact), k.to(exact).mT, beta=beta, alpha=scale, out=scores)
        torch.softmax(scores, -1, out=scores)
        if scores is not p:
            p.copy_(scores)
    return p_bnm


def _heads_first(x_BNHD: Tensor) -> Tensor:
    return (x_BNHD if x_BNHD.stride(-1) == 1 else x_BNHD.contiguous()).transpose(1, 2)


def _grouped(x_BNHD: Tensor, group: int = 1) -> Tensor:
    """(B, N, H, D) -> (B * H / group, N * group, D): the query heads of a key head one after another."""
    N, H, D = x_BNHD.shape[1:]
    return x_BNHD.unflatten(2, (H // group, group)).transpose(1, 2).reshape(-1, N * group, D)


def _ungrouped(x_bnD: Tensor, like_BNHD: Tensor) -> Tensor:
    B, N, H, D = like_BNHD.shape
    group = x_bnD.shape[1] // N
    return x_bnD.view(B, H // group, N, group, D).transpose(1, 2).reshape(B, N, H, D).contiguous()


def _bias(q_BNHD: Tensor, k_BNHD: Tensor) -> Tensor:
    """(n, m) float32: 0 where a query sees a key, else -inf."""
    seen_NM = causal_mask(q_BNHD.shape[1], k_BNHD.shape[1])
    bias_NM = torch.zeros(seen_NM.shape).masked_fill_(~seen_NM, -torch.inf)
    return bias_NM.repeat_interleave(q_BNHD.shape[2] // k_BNHD.shape[2], 0)


def _causality(q_BNHD: Tensor, k_BNHD: Tensor, causal: bool) -> tuple[bool, Tensor | None]:
    """Return (is_causal, mask) of PyTorch's kernel, whose own causality is aligned top-left."""
    n_q, n_k = q_BNHD.shape[1], k_BNHD.shape[1]
    if not causal or n_q == 1:  # one query, the last, sees all
        return False, None
    if n_q == n_k:
        return True, None
    seen_NM = causal_mask(n_q, n_k)
    return False, torch.zeros(seen_NM.shape, dtype=q_BNHD.dtype).masked_fill_(~seen_NM, -torch.inf)[
        None, None
    ]


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# --------------------------------------------------------------------------------------------------------------- packs


def _parts(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> list[tuple[slice, slice, int]]:
    """(tokens of q, tokens of k, sequences) of runs of equal lengths. A call a run, even with a sequence each, takes
    half the time of one call on padded sequences (2 and 32 heads, 8 and 16 sequences, prefill and decoding)."""
    q_bounds = cu_seqlens_q.tolist()
    k_bounds = q_bounds if cu_seqlens_k is cu_seqlens_q else cu_seqlens_k.tolist()
    return [
        (slice(q0, q0 + count * n_q), slice(k0, k0 + count * n_k), count)
        for count, q0, n_q, k0, n_k in runs(q_bounds, k_bounds)
    ]
