"""Our flash attention in Triton: forward and backward, dense and packed, without a mask in memory.

Forward: online softmax over tiles of keys (Dao et al., arXiv 2205.14135 and 2307.08691). Backward: one kernel for
dK and dV, one for dQ, so that nothing is added up in an order that chance decides: the same inputs give the same bits.

Scores are kept in log2 units (exp2 is what the hardware has), scaled in float32 after the product, never in the inputs'
precision, and in the instruction that subtracts the greatest. `lse` (parts, H, all queries) holds log2 of the sum of a
row's exponentials; for float32 in two parts, the greatest score and what is to be added: in one number the second would
lose its digits where scores are large. A row that sees no key has +inf, which makes its probabilities in the backward 0
instead of NaN.

Tiles that every row sees whole go through a loop without masks, the others through one with them. On Hopper and later
the loops read half precision through tensor descriptors (TMA), where the tensors are aligned for it. All else is read
through pointers, also what stays for the whole loop: that way it waits in shared memory; in registers it was no faster
(H200, November 2026).
A pack is cut into tasks, (sequence, tile) pairs listed on the device: short sequences start no idle programs, and
nothing asks the device for lengths.

Shape letters: M queries and N keys of a tile, D head width; B batch, T all query tokens, H query heads.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .tiles import like_hopper, tiles

LOG2E = tl.constexpr(math.log2(math.e))
OPTIONS = {
    "enable_fp_fusion": True
}  # said, because Triton's default changes in 3.10, and the last bits with it
LENGTHS = (
    "n_q",
    "n_k",
    "total_q",
    "count",
    "total",
)  # else Triton compiles for each kind: a length of 1 would be a constant, and those of a pack cannot be
TASKS = 256  # sequences that a program of _list_tasks reads at once


@triton.jit(do_not_specialize=LENGTHS)
def _list_tasks(cu_seqlens, tasks, count, total, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """tasks (total, 2): (sequence, its tile) for every tile of SIZE tokens, then (-1, ...) to the end."""
    sequence = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, sequence, BLOCK):
        j, earlier = start + i, start + i < sequence
        length = tl.load(cu_seqlens + j + 1, mask=earlier, other=0) - tl.load(
            cu_seqlens + j, mask=earlier, other=0
        )
        before += (length + SIZE - 1) // SIZE
    first = tl.sum(before)
    length = tl.load(cu_seqlens + sequence + 1) - tl.load(cu_seqlens + sequence)
    end = first + (length + SIZE - 1) // SIZE
    for start in range(first, tl.where(sequence == count - 1, total, end), BLOCK):
        task = start + i
        inside = task < tl.where(sequence == count - 1, total, end)
        tl.store(tasks + 2 * task, tl.where(task < end, sequence, -1), mask=inside)
        tl.store(tasks + 2 * task + 1, task - first, mask=inside)


@triton.jit
def _task(tasks, length, SIZE: tl.constexpr, PACKED: tl.constexpr):
    """Return (sequence, or -1 where there is nothing to do, and its tile) of this program."""
    program = tl.program_id(0)
    if PACKED:
        return tl.load(tasks + 2 * program), tl.load(tasks + 2 * program + 1)
    else:
        tiles = (length + SIZE - 1) // SIZE
        return program // tiles, program % tiles


@triton.jit
def _span(cu_seqlens, sequence, length, PACKED: tl.constexpr):
    """Return (batch, first token within it, first row of all, length) of a sequence."""
    if PACKED:
        first = tl.load(cu_seqlens + sequence)
        return sequence * 0, first, first.to(tl.int64), tl.load(cu_seqlens + sequence + 1) - first
    else:
        return sequence, sequence * 0, sequence.to(tl.int64) * length, length


@triton.jit
def _rows(
    x, batch, first, head, row, length, sb, st, sh,
    ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr, TMA: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """The tile (ROWS, WIDTH) of one head at `row`; MASKED where it may reach past `length`, and there zeros. Through a
    descriptor they are zeros past the end of the tensor; of a pack's next sequence they are made so with ZEROS."""
    m = tl.arange(0, ROWS)
    if TMA:
        tile = x.load([batch, first + row, head, 0]).reshape(ROWS, WIDTH)
        if MASKED and ZEROS:
            tile = tl.where((row + m)[:, None] < length, tile, 0.0)
        return tile
    else:
        d = tl.arange(0, WIDTH)
        start = x + batch.to(tl.int64) * sb + (first + row).to(tl.int64) * st + head.to(tl.int64) * sh
        where = start + m[:, None] * st + d[None, :]
        if MASKED:
            return tl.load(where, mask=((row + m)[:, None] < length) & (d[None, :] < D), other=0.0)
        elif D == WIDTH:
            return tl.load(where)
        else:
            return tl.load(where, mask=d[None, :] < D, other=0.0)


@triton.jit
def _put(
    x, tile, batch, first, head, row, length, sb, st, sh,
    ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    m, d = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    start = x + batch.to(tl.int64) * sb + (first + row).to(tl.int64) * st + head.to(tl.int64) * sh
    inside = ((row + m)[:, None] < length) & (d[None, :] < D)
    tl.store(start + m[:, None] * st + d[None, :], tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _keys_seen(m0, n_q, n_k, M: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr):
    """Return (where whole tiles end that all queries of the tile at m0 see, where the keys end that any of
    them sees)."""
    whole, end = n_k // N * N, n_k
    if CAUSAL:
        whole = tl.minimum(whole, tl.maximum(m0 + 1 + n_k - n_q, 0) // N * N)
        end = tl.minimum(n_k, tl.maximum(m0 + M + n_k - n_q, 0))
    return whole, end


@triton.jit
def _seen(m0, n0, n_q, n_k, M: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr):
    """Which (query, key) pairs of a tile there are."""
    m, n = m0 + tl.arange(0, M)[:, None], n0 + tl.arange(0, N)[None, :]
    seen = (m < n_q) & (n < n_k)
    if CAUSAL:
        seen = seen & (n <= m + n_k - n_q)
    return seen


@triton.jit
def _attend(
    acc_MD, sum_M, top_M, q_MD, k, v, batch, first, head, m0, start, end, n_q, n_k, scale_log2, kb, kt, kh, vb, vt, vh,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax over key tiles [start, end)."""
    for n0 in range(start, end, N):
        k_ND = _rows(k, batch, first, head, n0, n_k, kb, kt, kh, N, D, WIDTH, MASKED, TMA, False)
        s_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
        if MASKED:
            s_MN = tl.where(_seen(m0, n0, n_q, n_k, M, N, CAUSAL), s_MN, -float("inf"))
        new_M = tl.maximum(top_M, tl.max(s_MN, 1) * scale_log2)
        # A row that has seen nothing yet: subtracting -inf from itself would give NaN.
        base_M = tl.where(new_M == -float("inf"), 0.0, new_M) if MASKED else new_M
        p_MN = tl.exp2(s_MN * scale_log2 - base_M[:, None])
        shrink_M = tl.exp2(top_M - base_M)
        sum_M = sum_M * shrink_M + tl.sum(p_MN, 1)
        v_ND = _rows(v, batch, first, head, n0, n_k, vb, vt, vh, N, D, WIDTH, MASKED, TMA, PACKED)
        acc_MD = acc_MD * shrink_M[:, None] + tl.dot(p_MN.to(v_ND.dtype), v_ND, input_precision="ieee")
        top_M = new_M
    return acc_MD, sum_M, top_M


@triton.jit(do_not_specialize=LENGTHS)
def _forward(
    q, k, v, lse, out, cu_q, cu_k, tasks, n_q, n_k, total_q, scale,
    qb, qt, qh, kb, kt, kh, vb, vt, vh, ob, ot, oh,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, TMA: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    head, scale_log2 = tl.program_id(1), scale * LOG2E
    sequence, tile = _task(tasks, n_q, M, PACKED)
    if sequence >= 0:
        batch, first_q, row_q, n_q = _span(cu_q, sequence, n_q, PACKED)
        batch, first_k, _row_k, n_k = _span(cu_k, sequence, n_k, PACKED)
        m0 = tile * M
        q_MD = _rows(q, batch, first_q, head, m0, n_q, qb, qt, qh, M, D, WIDTH, True, False, False)
        acc_MD = tl.zeros((M, WIDTH), tl.float32)
        sum_M, top_M = tl.zeros((M,), tl.float32), tl.full((M,), -float("inf"), tl.float32)
        whole, end = _keys_seen(m0, n_q, n_k, M, N, CAUSAL)
        acc_MD, sum_M, top_M = _attend(
            acc_MD, sum_M, top_M, q_MD, k, v, batch, first_k, head // GROUP, m0, 0, whole, n_q, n_k, scale_log2,
            kb, kt, kh, vb, vt, vh, D, WIDTH, M, N, CAUSAL, PACKED, TMA, False,
        )  # fmt: skip
        acc_MD, sum_M, top_M = _attend(
            acc_MD, sum_M, top_M, q_MD, k, v, batch, first_k, head // GROUP, m0, whole, end, n_q, n_k, scale_log2,
            kb, kt, kh, vb, vt, vh, D, WIDTH, M, N, CAUSAL, PACKED, TMA, True,
        )  # fmt: skip
        blind_M = sum_M == 0.0
        acc_MD = acc_MD / tl.where(blind_M, 1.0, sum_M)[:, None]
        _put(out, acc_MD, batch, first_q, head, m0, n_q, ob, ot, oh, M, D, WIDTH)
        m_M = m0 + tl.arange(0, M)
        rows = lse + head.to(tl.int64) * total_q + row_q + m_M
        top_M, rest_M = tl.where(blind_M, float("inf"), top_M), tl.log2(tl.where(blind_M, 1.0, sum_M))
        if EXACT:
            tl.store(rows, top_M, mask=m_M < n_q)
            tl.store(rows + tl.num_programs(1).to(tl.int64) * total_q, rest_M, mask=m_M < n_q)
        else:
            tl.store(rows, top_M + rest_M, mask=m_M < n_q)


@triton.jit
def _lse(
    lse, head, heads, row, m0, length, total, M: tl.constexpr, EXACT: tl.constexpr, MASKED: tl.constexpr
):
    """Return lse and its second part (if EXACT; else it is not looked at) of some rows of one head."""
    m_M = m0 + tl.arange(0, M)
    rows = lse + head.to(tl.int64) * total + row + m_M
    second = rows + heads.to(tl.int64) * total
    if MASKED:
        top_M = tl.load(rows, mask=m_M < length, other=float("inf"))
        return top_M, tl.load(second, mask=m_M < length, other=0.0) if EXACT else top_M
    else:
        top_M = tl.load(rows)
        return top_M, tl.load(second) if EXACT else top_M


@triton.jit
def _probabilities(s, scale_log2, top, rest, EXACT: tl.constexpr):
    """exp2(scaled s - lse)."""
    s = s * scale_log2 - top  # one instruction
    return tl.exp2(s - rest if EXACT else s)


@triton.jit
def _gather_kv(
    dk_ND, dv_ND, k_ND, v_ND, q, grad, lse, delta, batch, first, row, head, heads, n0, start, end, n_q, n_k, total_q,
    scale_log2, qb, qt, qh, gb, gt, gh,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, TMA: tl.constexpr, EXACT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What the queries of tiles [start, end) of one head add to dK and dV."""
    for m0 in range(start, end, M):
        q_MD = _rows(q, batch, first, head, m0, n_q, qb, qt, qh, M, D, WIDTH, MASKED, TMA, PACKED)
        grad_MD = _rows(grad, batch, first, head, m0, n_q, gb, gt, gh, M, D, WIDTH, MASKED, TMA, PACKED)
        top_M, rest_M = _lse(lse, head, heads, row, m0, n_q, total_q, M, EXACT, MASKED)
        m_M = m0 + tl.arange(0, M)
        deltas = delta + head.to(tl.int64) * total_q + row + m_M
        delta_M = tl.load(deltas, mask=m_M < n_q, other=0.0) if MASKED else tl.load(deltas)
        s_NM = tl.dot(k_ND, tl.trans(q_MD), input_precision="ieee")
        if MASKED:
            s_NM = tl.where(tl.trans(_seen(m0, n0, n_q, n_k, M, N, CAUSAL)), s_NM, -float("inf"))
        p_NM = _probabilities(s_NM, scale_log2, top_M[None, :], rest_M[None, :], EXACT)
        dv_ND += tl.dot(p_NM.to(grad_MD.dtype), grad_MD, input_precision="ieee")
        dp_NM = tl.dot(v_ND, tl.trans(grad_MD), input_precision="ieee")
        ds_NM = p_NM * (dp_NM - delta_M[None, :])
        dk_ND += tl.dot(ds_NM.to(q_MD.dtype), q_MD, input_precision="ieee")
    return dk_ND, dv_ND


@triton.jit(do_not_specialize=LENGTHS)
def _backward_kv(
    q, k, v, grad, lse, delta, dk, dv, cu_q, cu_k, tasks, n_q, n_k, total_q, scale,
    qb, qt, qh, kb, kt, kh, vb, vt, vh, gb, gt, gh, dkb, dkt, dkh, dvb, dvt, dvh,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, TMA: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """What one query head adds to dK and dV of one tile of keys."""
    head, scale_log2 = tl.program_id(1), scale * LOG2E
    sequence, tile = _task(tasks, n_k, N, PACKED)
    if sequence >= 0:
        batch, first_q, row_q, n_q = _span(cu_q, sequence, n_q, PACKED)
        batch, first_k, _row_k, n_k = _span(cu_k, sequence, n_k, PACKED)
        n0 = tile * N
        k_ND = _rows(k, batch, first_k, head // GROUP, n0, n_k, kb, kt, kh, N, D, WIDTH, True, False, False)
        v_ND = _rows(v, batch, first_k, head // GROUP, n0, n_k, vb, vt, vh, N, D, WIDTH, True, False, False)
        dk_ND, dv_ND = tl.zeros((N, WIDTH), tl.float32), tl.zeros((N, WIDTH), tl.float32)
        heads = tl.num_programs(1)
        last = n_q // M * M  # the tile in which the queries end, if one does
        whole = 0
        if CAUSAL:  # from the first query that sees key n0 to the first that sees them all
            start = tl.maximum(n0 + n_q - n_k, 0) // M * M
            whole = tl.minimum((tl.maximum(n0 + N - 1 + n_q - n_k, 0) + M - 1) // M * M, last)
            dk_ND, dv_ND = _gather_kv(
                dk_ND, dv_ND, k_ND, v_ND, q, grad, lse, delta, batch, first_q, row_q, head, heads, n0, start, whole,
                n_q, n_k, total_q, scale_log2, qb, qt, qh, gb, gt, gh,
                D, WIDTH, M, N, CAUSAL, PACKED, TMA, EXACT, True,
            )  # fmt: skip
        dk_ND, dv_ND = _gather_kv(
            dk_ND, dv_ND, k_ND, v_ND, q, grad, lse, delta, batch, first_q, row_q, head, heads, n0, whole, last,
            n_q, n_k, total_q, scale_log2, qb, qt, qh, gb, gt, gh,
            D, WIDTH, M, N, CAUSAL, PACKED, TMA, EXACT, False,
        )  # fmt: skip
        dk_ND, dv_ND = _gather_kv(
            dk_ND, dv_ND, k_ND, v_ND, q, grad, lse, delta, batch, first_q, row_q, head, heads, n0, last, n_q,
            n_q, n_k, total_q, scale_log2, qb, qt, qh, gb, gt, gh,
            D, WIDTH, M, N, CAUSAL, PACKED, TMA, EXACT, True,
        )  # fmt: skip
        _put(dk, dk_ND * scale, batch, first_k, head, n0, n_k, dkb, dkt, dkh, N, D, WIDTH)
        _put(dv, dv_ND, batch, first_k, head, n0, n_k, dvb, dvt, dvh, N, D, WIDTH)


@triton.jit
def _gather_q(
    dq_MD, q_MD, grad_MD, top_M, rest_M, delta_M, k, v, batch, first, head, m0, start, end, n_q, n_k, scale_log2,
    kb, kt, kh, vb, vt, vh,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, TMA: tl.constexpr, EXACT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What the keys of tiles [start, end) add to dQ."""
    for n0 in range(start, end, N):
        k_ND = _rows(k, batch, first, head, n0, n_k, kb, kt, kh, N, D, WIDTH, MASKED, TMA, PACKED)
        v_ND = _rows(v, batch, first, head, n0, n_k, vb, vt, vh, N, D, WIDTH, MASKED, TMA, PACKED)
        s_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
        if MASKED:
            s_MN = tl.where(_seen(m0, n0, n_q, n_k, M, N, CAUSAL), s_MN, -float("inf"))
        p_MN = _probabilities(s_MN, scale_log2, top_M[:, None], rest_M[:, None], EXACT)
        dp_MN = tl.dot(grad_MD, tl.trans(v_ND), input_precision="ieee")
        ds_MN = p_MN * (dp_MN - delta_M[:, None])
        dq_MD += tl.dot(ds_MN.to(k_ND.dtype), k_ND, input_precision="ieee")
    return dq_MD


@triton.jit(do_not_specialize=LENGTHS)
def _backward_q(
    q, k, v, grad, out, lse, delta, dq, cu_q, cu_k, tasks, n_q, n_k, total_q, scale,
    qb, qt, qh, kb, kt, kh, vb, vt, vh, gb, gt, gh, ob, ot, oh, dqb, dqt, dqh,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, TMA: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries; and, for `_backward_kv`, delta (H, T): the sum over D of out x grad, in float32."""
    head, scale_log2 = tl.program_id(1), scale * LOG2E
    sequence, tile = _task(tasks, n_q, M, PACKED)
    if sequence >= 0:
        batch, first_q, row_q, n_q = _span(cu_q, sequence, n_q, PACKED)
        batch, first_k, _row_k, n_k = _span(cu_k, sequence, n_k, PACKED)
        m0 = tile * M
        q_MD = _rows(q, batch, first_q, head, m0, n_q, qb, qt, qh, M, D, WIDTH, True, False, False)
        grad_MD = _rows(grad, batch, first_q, head, m0, n_q, gb, gt, gh, M, D, WIDTH, True, False, False)
        out_MD = _rows(out, batch, first_q, head, m0, n_q, ob, ot, oh, M, D, WIDTH, True, False, False)
        delta_M = tl.sum(out_MD.to(tl.float32) * grad_MD.to(tl.float32), 1)
        m_M = m0 + tl.arange(0, M)
        tl.store(delta + head.to(tl.int64) * total_q + row_q + m_M, delta_M, mask=m_M < n_q)
        top_M, rest_M = _lse(lse, head, tl.num_programs(1), row_q, m0, n_q, total_q, M, EXACT, True)
        dq_MD = tl.zeros((M, WIDTH), tl.float32)
        whole, end = _keys_seen(m0, n_q, n_k, M, N, CAUSAL)
        dq_MD = _gather_q(
            dq_MD, q_MD, grad_MD, top_M, rest_M, delta_M, k, v, batch, first_k, head // GROUP, m0, 0, whole,
            n_q, n_k, scale_log2, kb, kt, kh, vb, vt, vh, D, WIDTH, M, N, CAUSAL, PACKED, TMA, EXACT, False,
        )  # fmt: skip
        dq_MD = _gather_q(
            dq_MD, q_MD, grad_MD, top_M, rest_M, delta_M, k, v, batch, first_k, head // GROUP, m0, whole, end,
            n_q, n_k, scale_log2, kb, kt, kh, vb, vt, vh, D, WIDTH, M, N, CAUSAL, PACKED, TMA, EXACT, True,
        )  # fmt: skip
        _put(dq, dq_MD * scale, batch, first_q, head, m0, n_q, dqb, dqt, dqh, M, D, WIDTH)


class Pack(NamedTuple):
    """Say where the sequences lie in (1, T, H, D) tensors, int32 (sequences + 1,) on their device."""

    cu_q: Tensor
    cu_k: Tensor


def forward(
    q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, pack: Pack | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (out (B, N, H, D) contiguous, in the dtype of q; lse (1, or 2 for float32, H, B N) float32,
    log2).

    With a `pack`, B is 1 and N all tokens; it must cover them. Strides are free, but a head's row must lie in one
    piece: else it is copied.
    """
    if scale <= 0:
        q, positive = _turned(q_BNHD, scale)
        return forward(q, k_BNHD, v_BNHD, pack, causal, positive)
    read = [_rowwise(x) for x in (q_BNHD, k_BNHD, v_BNHD)]
    B, N, H, D = q_BNHD.shape
    out_BNHD = torch.empty((B, N, H, D), dtype=q_BNHD.dtype, device=q_BNHD.device)
    lse_PHT = torch.empty((parts(q_BNHD.dtype), H, B * N), dtype=torch.float32, device=q_BNHD.device)
    _run(_forward, read, [lse_PHT], [out_BNHD], pack, causal, scale)
    return out_BNHD, lse_PHT


def backward(
    grad_BNHD: Tensor,
    q_BNHD: Tensor,
    k_BNHD: Tensor,
    v_BNHD: Tensor,
    out_BNHD: Tensor,
    lse_PHT: Tensor,
    pack: Pack | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv, contiguous, in the dtypes of q, k and v."""
    if scale <= 0:
        q, positive = _turned(q_BNHD, scale)
        dq, dk, dv = backward(grad_BNHD, q, k_BNHD, v_BNHD, out_BNHD, lse_PHT, pack, causal, positive)
        return dq * _sign(scale), dk, dv
    read = [_rowwise(x) for x in (q_BNHD, k_BNHD, v_BNHD, grad_BNHD)]
    (H, D), heads_k = q_BNHD.shape[2:], k_BNHD.shape[2]
    dq = torch.empty(q_BNHD.shape, dtype=q_BNHD.dtype, device=q_BNHD.device)
    # Of every query head apart: a loop over those of a key head spills registers (sm_90, packs).
    dk, dv = (torch.empty((*x.shape[:2], H, D), dtype=x.dtype, device=x.device) for x in read[1:3])
    delta_HT = torch.empty_like(lse_PHT[0])
    _run(_backward_q, [*read, out_BNHD], [lse_PHT, delta_HT], [dq], pack, causal, scale)  # also fills delta
    _run(_backward_kv, read, [lse_PHT, delta_HT], [dk, dv], pack, causal, scale)
    if heads_k != H:
        dk, dv = (x.unflatten(2, (heads_k, H // heads_k)).sum(3) for x in (dk, dv))
    return dq, dk, dv


def _turned(q_BNHD: Tensor, scale: float) -> tuple[Tensor, float]:
    """q and a positive scale that give the same scores: the kernels take the greatest before they scale it."""
    return q_BNHD * _sign(scale), abs(scale) or 1.0


def _sign(scale: float) -> int:
    return (scale > 0) - (scale < 0)


def _run(kernel, read, rows, written, pack: Pack | None, causal: bool, scale: float):
    """`read` is q, k, v, in the backward the gradient, for dQ also the output; `rows` have one number a query;
    `written` is what comes out. -> what Triton compiled."""
    (B, n_q, H, D), (n_k, heads_k), dtype = read[0].shape, read[1].shape[1:3], read[0].dtype
    arch = capability(read[0].device)
    t = tiles(kernel.__name__.lstrip("_"), D, dtype, causal, arch)
    over_keys = kernel is _backward_kv
    size, length = (t.n, n_k) if over_keys else (t.m, n_q)
    if pack is None:
        tasks, programs = None, triton.cdiv(length, size) * B
    else:
        cu_seqlens = pack.cu_k if over_keys else pack.cu_q
        sequences = cu_seqlens.numel() - 1
        programs = triton.cdiv(length, size) + sequences  # at least; how many it takes only the device knows
        tasks = torch.empty((programs, 2), dtype=torch.int32, device=cu_seqlens.device)
        _list_tasks[(sequences,)](cu_seqlens, tasks, sequences, programs, SIZE=size, BLOCK=TASKS)
    looped = (0, 3) if over_keys else (1, 2)  # q and grad, or k and v: what the inner loops go through
    tma = like_hopper(arch) and dtype != torch.float32 and all(_describable(read[i]) for i in looped)
    if tma:
        block = [1, t.m if over_keys else t.n, 1, _width(D)]
        given = [TensorDescriptor.from_tensor(x, block) if i in looped else x for i, x in enumerate(read)]
    return kernel[(programs, H)](
        *(given if tma else read),
        *rows, *written, *(pack or (None, None)), tasks, n_q, n_k, B * n_q, scale, *_strides(*read, *written),
        GROUP=H // heads_k, D=D, WIDTH=_width(D), M=t.m, N=t.n, CAUSAL=causal, PACKED=pack is not None, TMA=tma,
        EXACT=parts(dtype) == 2, num_warps=t.warps, num_stages=t.stages, **OPTIONS,
    )  # fmt: skip


def parts(dtype: torch.dtype) -> int:
    """Return in how many numbers lse is kept."""
    return 2 if dtype == torch.float32 else 1


@lru_cache
def capability(device: torch.device) -> int:
    """Return 80 for sm_80, and so on; under Triton's interpreter, on a CPU, the number of Hopper."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    if major < 8:
        raise RuntimeError(
            f"attention: {torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and the kernel "
            "needs 8.0 (Ampere) or later; choose PyTorch's own with --attention sdpa"
        )
    return 10 * major + minor


def _describable(x_BNHD: Tensor) -> bool:
    """Tell whether a tensor descriptor can say where it lies: 16-byte steps from a 16-byte address."""
    step = 16 // x_BNHD.element_size()
    return x_BNHD.data_ptr() % 16 == 0 and all(s > 0 and s % step == 0 for s in x_BNHD.stride()[:3])


def _rowwise(x_BNHD: Tensor) -> Tensor:
    """As it is where a head's row lies in one piece, whatever the other strides; else a copy. (Also of a view so wide
    that a tile's last row lies beyond what the 32-bit offsets within a tile can say.)"""
    reach = x_BNHD.stride(1) * 256
    return x_BNHD if x_BNHD.stride(-1) == 1 and reach < 2**31 else x_BNHD.contiguous()


def _strides(*tensors_BNHD: Tensor) -> list[int]:
    """Of batch, tokens and heads, of each tensor."""
    return [stride for x in tensors_BNHD for stride in x.stride()[:3]]


def _width(head_dim: int) -> int:
    """Tiles have powers of two; 16 is the least a matrix product takes."""
    return max(16, triton.next_power_of_2(head_dim))
