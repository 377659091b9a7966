"""Our flash attention in Triton: forward and backward, dense and packed, without a mask in memory.

Forward: online softmax over tiles of keys (Dao et al., arXiv 2205.14135 and 2307.08691). Backward: one kernel for
dK and dV, one for dQ, so that nothing is added up in an order that chance decides: the same inputs give the same bits.

Scores are kept in log2 units (exp2 is what the hardware has), scaled in float32 after the product, never in the inputs'
precision. `lse` (2, H, all query tokens) holds log2 of the sum of a row's exponentials in two parts, the greatest score
and what is to be added: in one number the second would lose its digits where scores are large. A row that sees no key
has +inf, which makes its probabilities in the backward 0 instead of NaN. Dense batches are packs of equal lengths.

Shape letters: M queries and N keys of a tile, D head width; T all query tokens, H query heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = math.log2(math.e)
ROWS = 64  # of a program of _row_products


class Tiles(NamedTuple):
    m: int  # queries
    n: int  # keys
    warps: int
    stages: int


@triton.jit
def _span(cu_seqlens, sequence, length, PACKED: tl.constexpr):
    """-> (first token of a sequence, its length)."""
    if PACKED:
        first = tl.load(cu_seqlens + sequence)
        return first.to(tl.int64), tl.load(cu_seqlens + sequence + 1) - first
    else:
        return sequence.to(tl.int64) * length, length


@triton.jit
def _rows(x, first, head, rows, columns, length, token_stride, head_stride, D: tl.constexpr):
    """A tile of rows of one head, zeros outside."""
    where = (first + rows)[:, None] * token_stride + head * head_stride + columns[None, :]
    return tl.load(x + where, mask=(rows[:, None] < length) & (columns[None, :] < D), other=0.0)


@triton.jit
def _put(x, tile, first, head, rows, columns, length, token_stride, head_stride, D: tl.constexpr):
    where = (first + rows)[:, None] * token_stride + head * head_stride + columns[None, :]
    inside = (rows[:, None] < length) & (columns[None, :] < D)
    tl.store(x + where, tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _keys_end(m0, n_q, n_k, M: tl.constexpr, CAUSAL: tl.constexpr):
    """The first key that no query of the tile at m0 sees."""
    return tl.minimum(n_k, tl.maximum(m0 + M + n_k - n_q, 0)) if CAUSAL else n_k


@triton.jit
def _attend(
    acc_MD, sum_M, top_M, q_MD, k, v, first_k, head_k, m_M, d_D, start, end, n_q, n_k, scale_log2, kt, kh, vt, vh,
    D: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax over key tiles [start, end); only MASKED ones look at where the keys end."""
    for n0 in range(start, end, N):
        n_N = n0 + tl.arange(0, N)
        k_ND = _rows(k, first_k, head_k, n_N, d_D, n_k, kt, kh, D)
        s_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * scale_log2
        if MASKED:
            seen_MN = n_N[None, :] < n_k
            if CAUSAL:
                seen_MN = seen_MN & (n_N[None, :] <= m_M[:, None] + n_k - n_q)
            s_MN = tl.where(seen_MN, s_MN, -float("inf"))
        new_M = tl.maximum(top_M, tl.max(s_MN, 1))
        # A row that has seen nothing yet: subtracting -inf from itself would give NaN.
        base_M = tl.where(new_M == -float("inf"), 0.0, new_M)
        p_MN = tl.exp2(s_MN - base_M[:, None])
        shrink_M = tl.exp2(top_M - base_M)
        sum_M = sum_M * shrink_M + tl.sum(p_MN, 1)
        v_ND = _rows(v, first_k, head_k, n_N, d_D, n_k, vt, vh, D)
        acc_MD = acc_MD * shrink_M[:, None] + tl.dot(p_MN.to(v_ND.dtype), v_ND, input_precision="ieee")
        top_M = new_M
    return acc_MD, sum_M, top_M


@triton.jit
def _forward(
    q, k, v, out, lse, cu_q, cu_k, n_q, n_k, total_q, scale_log2,
    qt, qh, kt, kh, vt, vh, ot, oh,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    head, sequence = tl.program_id(1), tl.program_id(2)
    first_q, n_q = _span(cu_q, sequence, n_q, PACKED)
    first_k, n_k = _span(cu_k, sequence, n_k, PACKED)
    m0 = tl.program_id(0) * M
    if m0 < n_q:
        m_M, d_D = m0 + tl.arange(0, M), tl.arange(0, WIDTH)
        q_MD = _rows(q, first_q, head, m_M, d_D, n_q, qt, qh, D)
        acc_MD = tl.zeros((M, WIDTH), tl.float32)
        sum_M, top_M = tl.zeros((M,), tl.float32), tl.full((M,), -float("inf"), tl.float32)
        end, whole = _keys_end(m0, n_q, n_k, M, CAUSAL), n_k // N * N
        if CAUSAL:  # tiles of keys that all rows see
            whole = tl.minimum(whole, tl.maximum(m0 + 1 + n_k - n_q, 0) // N * N)
        acc_MD, sum_M, top_M = _attend(
            acc_MD, sum_M, top_M, q_MD, k, v, first_k, head // GROUP, m_M, d_D, 0, whole, n_q, n_k, scale_log2,
            kt, kh, vt, vh, D, N, CAUSAL, False,
        )  # fmt: skip
        acc_MD, sum_M, top_M = _attend(
            acc_MD, sum_M, top_M, q_MD, k, v, first_k, head // GROUP, m_M, d_D, whole, end, n_q, n_k, scale_log2,
            kt, kh, vt, vh, D, N, CAUSAL, True,
        )  # fmt: skip
        blind_M = sum_M == 0.0
        acc_MD = acc_MD / tl.where(blind_M, 1.0, sum_M)[:, None]
        _put(out, acc_MD, first_q, head, m_M, d_D, n_q, ot, oh, D)
        rows = lse + head.to(tl.int64) * total_q + first_q + m_M
        tl.store(rows, tl.where(blind_M, float("inf"), top_M), mask=m_M < n_q)
        rest = rows + tl.num_programs(1).to(tl.int64) * total_q
        tl.store(rest, tl.log2(tl.where(blind_M, 1.0, sum_M)), mask=m_M < n_q)


@triton.jit
def _of_rows(lse, delta, head, heads, first, m_M, length, total):
    """-> the two parts of lse, and delta, of some rows of one head."""
    rows, inside_M = head.to(tl.int64) * total + first + m_M, m_M < length
    top_M = tl.load(lse + rows, mask=inside_M, other=float("inf"))
    rest_M = tl.load(lse + heads.to(tl.int64) * total + rows, mask=inside_M, other=0.0)
    return top_M, rest_M, tl.load(delta + rows, mask=inside_M, other=0.0)


@triton.jit
def _probabilities(s, top, rest, seen, EXACT: tl.constexpr):
    """exp2(s - lse), 0 where not seen. Only float32 needs the two parts of lse one after the other."""
    s = (s - top) - rest if EXACT else s - (top + rest)
    return tl.exp2(tl.where(seen, s, -float("inf")))


@triton.jit
def _row_products(
    out, grad, delta, total_q, ot, oh, gt, gh, D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr
):
    """delta (H, T): the sum over D of out x grad, in float32."""
    head = tl.program_id(1)
    m_M, d_D = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, WIDTH)
    m_M = m_M.to(tl.int64)
    out_MD = _rows(out, 0, head, m_M, d_D, total_q, ot, oh, D).to(tl.float32)
    grad_MD = _rows(grad, 0, head, m_M, d_D, total_q, gt, gh, D).to(tl.float32)
    tl.store(delta + head.to(tl.int64) * total_q + m_M, tl.sum(out_MD * grad_MD, 1), mask=m_M < total_q)


@triton.jit
def _backward_kv(
    q, k, v, grad, lse, delta, dk, dv, cu_q, cu_k, n_q, n_k, total_q, scale, scale_log2,
    qt, qh, kt, kh, vt, vh, gt, gh, dkt, dkh, dvt, dvh,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys, over all query heads of its group."""
    head_k, sequence = tl.program_id(1), tl.program_id(2)
    first_q, n_q = _span(cu_q, sequence, n_q, PACKED)
    first_k, n_k = _span(cu_k, sequence, n_k, PACKED)
    n0 = tl.program_id(0) * N
    if n0 < n_k:
        n_N, d_D = n0 + tl.arange(0, N), tl.arange(0, WIDTH)
        k_ND = _rows(k, first_k, head_k, n_N, d_D, n_k, kt, kh, D)
        v_ND = _rows(v, first_k, head_k, n_N, d_D, n_k, vt, vh, D)
        dk_ND, dv_ND = tl.zeros((N, WIDTH), tl.float32), tl.zeros((N, WIDTH), tl.float32)
        start = 0
        if CAUSAL:  # the first query that sees key n0
            start = tl.maximum(n0 + n_q - n_k, 0) // M * M
        heads = tl.num_programs(1) * GROUP
        for member in range(GROUP):
            head = head_k * GROUP + member
            for m0 in range(start, n_q, M):
                m_M = m0 + tl.arange(0, M)
                q_MD = _rows(q, first_q, head, m_M, d_D, n_q, qt, qh, D)
                grad_MD = _rows(grad, first_q, head, m_M, d_D, n_q, gt, gh, D)
                top_M, rest_M, delta_M = _of_rows(lse, delta, head, heads, first_q, m_M, n_q, total_q)
                s_NM = tl.dot(k_ND, tl.trans(q_MD), input_precision="ieee") * scale_log2
                seen_NM = (n_N[:, None] < n_k) & (m_M[None, :] < n_q)
                if CAUSAL:
                    seen_NM = seen_NM & (n_N[:, None] <= m_M[None, :] + n_k - n_q)
                p_NM = _probabilities(s_NM, top_M[None, :], rest_M[None, :], seen_NM, EXACT)
                dv_ND += tl.dot(p_NM.to(grad_MD.dtype), grad_MD, input_precision="ieee")
                dp_NM = tl.dot(v_ND, tl.trans(grad_MD), input_precision="ieee")
                ds_NM = p_NM * (dp_NM - delta_M[None, :])
                dk_ND += tl.dot(ds_NM.to(q_MD.dtype), q_MD, input_precision="ieee")
        _put(dk, dk_ND * scale, first_k, head_k, n_N, d_D, n_k, dkt, dkh, D)
        _put(dv, dv_ND, first_k, head_k, n_N, d_D, n_k, dvt, dvh, D)


@triton.jit
def _backward_q(
    q, k, v, grad, lse, delta, dq, cu_q, cu_k, n_q, n_k, total_q, scale, scale_log2,
    qt, qh, kt, kh, vt, vh, gt, gh, dqt, dqh,
    GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    first_q, n_q = _span(cu_q, sequence, n_q, PACKED)
    first_k, n_k = _span(cu_k, sequence, n_k, PACKED)
    m0 = tl.program_id(0) * M
    if m0 < n_q:
        m_M, d_D = m0 + tl.arange(0, M), tl.arange(0, WIDTH)
        q_MD = _rows(q, first_q, head, m_M, d_D, n_q, qt, qh, D)
        grad_MD = _rows(grad, first_q, head, m_M, d_D, n_q, gt, gh, D)
        heads = tl.num_programs(1)
        top_M, rest_M, delta_M = _of_rows(lse, delta, head, heads, first_q, m_M, n_q, total_q)
        dq_MD = tl.zeros((M, WIDTH), tl.float32)
        for n0 in range(0, _keys_end(m0, n_q, n_k, M, CAUSAL), N):
            n_N = n0 + tl.arange(0, N)
            k_ND = _rows(k, first_k, head // GROUP, n_N, d_D, n_k, kt, kh, D)
            v_ND = _rows(v, first_k, head // GROUP, n_N, d_D, n_k, vt, vh, D)
            s_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * scale_log2
            seen_MN = n_N[None, :] < n_k
            if CAUSAL:
                seen_MN = seen_MN & (n_N[None, :] <= m_M[:, None] + n_k - n_q)
            p_MN = _probabilities(s_MN, top_M[:, None], rest_M[:, None], seen_MN, EXACT)
            dp_MN = tl.dot(grad_MD, tl.trans(v_ND), input_precision="ieee")
            ds_MN = p_MN * (dp_MN - delta_M[:, None])
            dq_MD += tl.dot(ds_MN.to(k_ND.dtype), k_ND, input_precision="ieee")
        _put(dq, dq_MD * scale, first_q, head, m_M, d_D, n_q, dqt, dqh, D)


# For half precision, by (least capability, kernel, greatest head width): no registers spill and tensor cores do the
# products (tests/encoder/attention/test_compiled.py, Triton 3.6 and 3.9). Not yet chosen by time on a GPU.
TILES = {
    (80, "forward", 64): Tiles(128, 64, 8, 2),
    (80, "forward", 128): Tiles(64, 64, 8, 2),
    (80, "backward_kv", 64): Tiles(32, 128, 8, 2),
    (80, "backward_kv", 128): Tiles(64, 64, 8, 2),
    (80, "backward_q", 64): Tiles(128, 64, 8, 2),
    (80, "backward_q", 128): Tiles(128, 32, 8, 2),
    (90, "forward", 64): Tiles(128, 64, 8, 2),
    (90, "forward", 128): Tiles(64, 64, 8, 2),
    (90, "backward_kv", 64): Tiles(64, 128, 8, 2),
    (90, "backward_kv", 128): Tiles(64, 64, 8, 2),
    (90, "backward_q", 64): Tiles(128, 64, 8, 2),
    (90, "backward_q", 128): Tiles(128, 32, 8, 2),
}
FLOAT32 = Tiles(32, 32, 4, 2)  # for exactness, not for speed: IEEE products use no tensor cores


def tiles(kernel: str, head_dim: int, dtype: torch.dtype, capability: int) -> Tiles:
    """`capability` is 80 for sm_80, and so on."""
    if dtype == torch.float32:
        return FLOAT32
    return TILES[90 if capability >= 90 else 80, kernel, 64 if head_dim <= 64 else 128]


def _tiles_for(kernel: str, q_THD: Tensor) -> Tiles:
    major, minor = torch.cuda.get_device_capability(q_THD.device) if q_THD.is_cuda else (9, 0)
    return tiles(kernel, q_THD.shape[-1], q_THD.dtype, 10 * major + minor)


class Pack(NamedTuple):
    """Where the sequences lie: dense batches have no `cu_seqlens`."""

    count: int
    max_q: int
    max_k: int
    cu_q: Tensor | None = None
    cu_k: Tensor | None = None


def forward(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, pack: Pack, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """-> (out (T, H, D) in the dtype of q, lse (2, H, T) float32 in log2 units). Tokens of all sequences one after
    another; a dense batch is `flatten(0, 1)` of (B, N, H, D), which is a view for the strides that occur."""
    q_THD, k_THD, v_THD = (_rowwise(x) for x in (q_THD, k_THD, v_THD))
    T, H, D = q_THD.shape
    out_THD = torch.empty((T, H, D), dtype=q_THD.dtype, device=q_THD.device)
    lse_2HT = torch.empty((2, H, T), dtype=torch.float32, device=q_THD.device)
    t = _tiles_for("forward", q_THD)
    _forward[(triton.cdiv(pack.max_q, t.m), H, pack.count)](
        q_THD, k_THD, v_THD, out_THD, lse_2HT, pack.cu_q, pack.cu_k, pack.max_q, pack.max_k, T, scale * LOG2E,
        *_strides(q_THD, k_THD, v_THD, out_THD),
        GROUP=H // k_THD.shape[1], D=D, WIDTH=_width(D), CAUSAL=causal, PACKED=pack.cu_q is not None, **_launch(t),
    )  # fmt: skip
    return out_THD, lse_2HT


def backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    out_THD: Tensor,
    lse_2HT: Tensor,
    pack: Pack,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dq, dk, dv, contiguous, in the dtypes of q, k and v."""
    grad_THD, q_THD, k_THD, v_THD = (_rowwise(x) for x in (grad_THD, q_THD, k_THD, v_THD))
    T, H, D = q_THD.shape
    Hk = k_THD.shape[1]
    dq_THD, dk_THD, dv_THD = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_THD, k_THD, v_THD)
    )
    delta_HT = torch.empty_like(lse_2HT[0])
    shape = {"D": D, "WIDTH": _width(D)}
    _row_products[(triton.cdiv(T, ROWS), H)](
        out_THD, grad_THD, delta_HT, T, *_strides(out_THD, grad_THD), **shape, M=ROWS
    )
    common = (q_THD, k_THD, v_THD, grad_THD, lse_2HT, delta_HT)
    where = (pack.cu_q, pack.cu_k, pack.max_q, pack.max_k, T, scale, scale * LOG2E)
    read = _strides(q_THD, k_THD, v_THD, grad_THD)
    how = {
        "GROUP": H // Hk, **shape, "CAUSAL": causal, "PACKED": pack.cu_q is not None,
        "EXACT": q_THD.dtype == torch.float32,
    }  # fmt: skip
    t = _tiles_for("backward_kv", q_THD)
    _backward_kv[(triton.cdiv(pack.max_k, t.n), Hk, pack.count)](
        *common, dk_THD, dv_THD, *where, *read, *_strides(dk_THD, dv_THD), **how, **_launch(t)
    )
    t = _tiles_for("backward_q", q_THD)
    _backward_q[(triton.cdiv(pack.max_q, t.m), H, pack.count)](
        *common, dq_THD, *where, *read, *_strides(dq_THD), **how, **_launch(t)
    )
    return dq_THD, dk_THD, dv_THD


def _launch(t: Tiles) -> dict[str, int]:
    return {"M": t.m, "N": t.n, "num_warps": t.warps, "num_stages": t.stages}


def _rowwise(x_THD: Tensor) -> Tensor:
    """As it is where a head's row lies in one piece, whatever the strides of tokens and heads; else a copy."""
    return x_THD if x_THD.stride(-1) == 1 else x_THD.contiguous()


def _strides(*tensors_THD: Tensor) -> list[int]:
    """Of tokens and of heads, of each tensor."""
    return [stride for x in tensors_THD for stride in x.stride()[:2]]


def _width(head_dim: int) -> int:
    """Tiles have powers of two; 16 is the least a matrix product takes."""
    return max(16, triton.next_power_of_2(head_dim))
