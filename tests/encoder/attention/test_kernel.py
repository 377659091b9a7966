"""The Triton kernels against explicit softmax in float64: on a GPU where there is one, else in Triton's interpreter
(tests/conftest.py), which knows no bfloat16. What they compile to is looked at in test_compiled.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder.attention.reference import attention_math

triton = pytest.importorskip("triton", reason="Triton is not installed, so there is no kernel to test")

from encoder.attention import kernel  # noqa: E402  (needs Triton)
from encoder.attention.kernel import Pack  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
LENGTHS = [1, 2, 49, 50, 63, 64, 65, 127, 128, 129, 197]
LONG = [257, 1369, 1370] if GPU else []  # the interpreter takes seconds for each
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]

if not GPU:
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    pytestmark = pytest.mark.skipif(
        old and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4),
        reason="Triton's interpreter before 3.7 cannot loop to a loaded length with numpy 2.4 or later",
    )


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """Whatever a kernel leaves unwritten, or reads before it is written, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pack_of(q_lengths, k_lengths, packed=True):
    cu = [torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int() for lengths in (q_lengths, k_lengths)]
    return Pack(len(q_lengths), max(q_lengths), max(k_lengths), *(cu if packed else (None, None)))


def draw(q_lengths, k_lengths, H, Hk, D, dtype, seed=0):
    """q, k, v and the gradient of the output."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((sum(q_lengths), H, D), *[(sum(k_lengths), Hk, D)] * 2, (sum(q_lengths), H, D))
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).to(DEVICE) for shape in shapes]


def ours(q, k, v, grad, pack, causal=False, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = kernel.forward(q, k, v, pack, causal, scale)
    return [out, *kernel.backward(grad, q, k, v, out, lse, pack, causal, scale)]


def explicit(q, k, v, grad, q_lengths, k_lengths, causal=False, scale=None, dtype=torch.float64):
    """The same by explicit softmax; in another dtype all of its steps round to it."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    outs = []
    for a, b, c in zip(
        leaves[0].split(q_lengths), leaves[1].split(k_lengths), leaves[2].split(k_lengths), strict=True
    ):
        if dtype == torch.float64:
            outs.append(attention_math(a[None], b[None], c[None], causal=causal, scale=scale)[0])
            continue
        b, c = (x.repeat_interleave(a.shape[1] // x.shape[1], 1).transpose(0, 1) for x in (b, c))
        s = (a.transpose(0, 1) * (a.shape[-1] ** -0.5 if scale is None else scale)) @ b.mT
        if causal:
            n, m = s.shape[-2:]
            seen = torch.ones(n, m, dtype=torch.bool, device=s.device).tril(m - n)
            s = s.masked_fill(~seen, -torch.inf)
        p = torch.softmax(s, -1).nan_to_num(0.0) if causal else torch.softmax(s, -1)
        outs.append((p @ c).transpose(0, 1))
    out = torch.cat(outs)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]


def float32_step(name, q, k, v, grad, scale, truth):
    """What is left of float32 sums where the explicit formula happens to be exact."""
    q, k, v, grad = (x.double().abs() for x in (q, k, v, grad))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    step = 0.0
    if name in ("dq", "dk"):  # differences of sums over D, which with one key cancel altogether
        step += (v.amax((0, 1)) * grad.amax((0, 1))).sum() * (k if name == "dq" else q).max() * scale
    if (
        name != "out" and not GPU
    ):  # the interpreter's products of q and k depend on their shapes, forward and backward
        step += (q.amax((0, 1)) * k.amax((0, 1))).sum() * scale * truth.abs().max()
    return 2 * 2**-23 * step


def compare(q_lengths, k_lengths, H, Hk, D, dtype, causal, packed=True, scale=None, change=None):
    """FlashAttention's rule: at most twice the error of the same-dtype formula, plus one rounding step."""
    inputs = draw(q_lengths, k_lengths, H, Hk, D, dtype)
    if change:
        inputs = change(*inputs)
    found = ours(*inputs, pack_of(q_lengths, k_lengths, packed), causal, scale)
    exact = explicit(*inputs, q_lengths, k_lengths, causal, scale)
    rough = explicit(*inputs, q_lengths, k_lengths, causal, scale, dtype)
    for name, x, theirs, truth in zip(("out", "dq", "dk", "dv"), found, rough, exact, strict=True):
        assert x.dtype == dtype and x.shape == truth.shape and x.isfinite().all(), name
        rounding = 2 * ((truth + 0.3).to(dtype).double() - 0.3 - truth).abs().max()
        rounding = rounding + float32_step(name, *inputs, scale, truth)
        allowed = 2 * (theirs.double() - truth).abs().max() + rounding
        assert (x.double() - truth).abs().max() <= allowed, name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("N", LENGTHS + LONG)
def test_every_length(N, causal):
    count = (
        1 if N > 8 else 32
    )  # the rule compares greatest errors: of a few numbers they are a matter of luck
    for dtype in DTYPES:
        compare([N] * count, [N] * count, 1, 1, 64, dtype, causal, packed=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [16, 32, 64, 80, 96, 128])
def test_every_head_width(D, dtype):
    compare([50, 50], [50, 50], 2, 1, D, dtype, True, packed=False)
    compare([3, 33], [65, 40], 2, 2, D, dtype, False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("q_lengths", "k_lengths", "H", "Hk"),
    [
        ([50, 50, 137], [50, 50, 137], 2, 2),  # crops of two sizes
        ([1, 65, 33, 2], [1, 65, 33, 2], 4, 2),
        ([1, 1, 1], [70, 9, 1], 4, 1),  # cached decoding
        ([5, 70, 3], [40, 20, 3], 2, 1),  # some queries see nothing if causal
    ],
)
def test_packs(q_lengths, k_lengths, H, Hk, causal):
    compare(q_lengths, k_lengths, H, Hk, 32, torch.float32, causal, scale=0.3)


def near_minus_120(q, k, v, grad):
    """Every score about -120: exp of it is 0 in half precision, and its log-sum-exp far below zero."""
    q, k = torch.ones_like(q) + 0.01 * q, -torch.ones_like(k) + 0.01 * k
    return q * (120 / q.shape[-1] ** 0.5), k, v, grad


def one_huge_key(q, k, v, grad):
    k = k.clone()
    k[7] *= 300
    return q, k, v, grad


def constant_rows(q, k, v, grad):
    return torch.full_like(q, 0.7), torch.full_like(k, -1.3), v, grad


def sharp(q, k, v, grad):
    return q * 100, k, v, grad


@pytest.mark.parametrize("change", [near_minus_120, one_huge_key, constant_rows, sharp])
@pytest.mark.parametrize("causal", [False, True])
def test_hostile_values(change, causal):
    for dtype in DTYPES:
        compare([65], [65], 1, 1, 64, dtype, causal, packed=False, change=change)


def test_queries_that_see_nothing_give_zeros_and_no_gradient():
    q, k, v, grad = draw([9], [4], 1, 1, 16, torch.float32)
    out, dq, _, _ = ours(q, k, v, grad, pack_of([9], [4]), causal=True)
    assert (out[:5] == 0).all() and (dq[:5] == 0).all() and (out[5:] != 0).any()


def test_three_times_the_same_bits():
    inputs, pack = draw([65, 50], [65, 50], 2, 1, 64, torch.float16), pack_of([65, 50], [65, 50])
    first, *others = (ours(*inputs, pack, causal=True) for _ in range(3))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_views_are_read_where_they_lie(monkeypatch):
    """timm's fused qkv, heads between tokens, and a view that starts in the middle; only a row in pieces is copied."""
    fused = torch.randn(3, 40, 3, 2, 32, device=DEVICE)[1:]
    q, k, v = (x.flatten(0, 1) for x in fused.unbind(2))
    assert all(x.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr() for x in (q, k, v))
    grad, pack = (
        torch.randn(40, 2, 2, 32, device=DEVICE).transpose(0, 1).flatten(0, 1),
        pack_of([40] * 2, [40] * 2, False),
    )
    wanted = ours(*(x.contiguous() for x in (q, k, v, grad)), pack)
    heads_first = torch.randn(2, 80, 32, device=DEVICE).transpose(0, 1)
    in_pieces = torch.randn(80, 32, 2, device=DEVICE).transpose(1, 2)
    pieces_wanted = ours(
        heads_first.contiguous(), in_pieces.contiguous(), v.contiguous(), grad.contiguous(), pack
    )
    copies = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x: copies.append(x.shape) or contiguous(x))
    found = ours(q, k, v, grad, pack)
    assert not copies and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    found = ours(heads_first, in_pieces, v, grad, pack)
    assert len(copies) == 2  # forward and backward
    assert all(torch.equal(a, b) for a, b in zip(found, pieces_wanted, strict=True))
