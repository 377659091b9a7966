"""The operator in PyTorch's company: its checks, compilation, checkpointing, autocast, FLOP counting; its CPU paths."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from encoder.attention import attention, cpu
from encoder.attention.reference import attention_math, attention_sdpa
from tests.calls import Calls

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
    ),
]
OP = torch.ops.cxr.attention.default


def draw(*shapes, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g).to(device, dtype).requires_grad_() for s in shapes]


def pack_of(*lengths, device="cpu"):
    cu = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    return {"cu_seqlens_q": cu, "max_seqlen_q": max(lengths)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("q_shape", "k_shape", "lengths", "causal"),
    [
        ((2, 5, 4, 16), (2, 7, 2, 16), None, True),  # kept: probabilities
        ((2, 9, 1, 16), (2, 140, 1, 16), None, False),  # kept: sums
        ((1, 11, 2, 16), (1, 11, 2, 16), (4, 7), False),
        ((1, 21, 2, 16), (1, 21, 1, 16), (1, 2, 3, 4, 5, 6), True),  # one call a length
    ],
)
def test_opcheck(device, q_shape, k_shape, lengths, causal):
    q, k, v = draw(q_shape, k_shape, k_shape, device=device)
    cu = pack_of(*lengths, device=device)["cu_seqlens_q"] if lengths else None
    torch.library.opcheck(OP, (q, k, v, cu, cu, causal, 0.3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_whole(device, pack, autocast):
    def step(q, k, v, **lengths):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return (attention(q * 2, k, v, **lengths) * v.detach()).sum()

    shape = (13, 2, 16) if pack else (2, 13, 2, 16)
    lengths = pack_of(6, 7, device=device) if pack else {}
    inputs = draw(shape, shape, shape, device=device)
    eager = step(*inputs, **lengths)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs, **lengths)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(torch.autograd.grad(compiled, inputs), torch.autograd.grad(eager, inputs))


@pytest.mark.parametrize("saved", [True, False])
def test_selective_checkpointing_can_name_it(saved):
    """Saved, the operator runs once; recomputed, twice."""
    policy = lambda ctx, op, *_, **__: (  # noqa: E731
        CheckpointPolicy.MUST_SAVE if saved and op == OP else CheckpointPolicy.PREFER_RECOMPUTE
    )
    inputs = draw(*[(2, 9, 2, 16)] * 3)
    contexts = partial(create_selective_checkpoint_contexts, policy)
    with Calls() as calls:
        out = checkpoint(lambda *x: attention(*x).sin(), *inputs, use_reentrant=False, context_fn=contexts)
        gradients = torch.autograd.grad(out.sum(), inputs)
    assert [name for name, _ in calls.made] == [
        "attention",
        *["attention"] * (not saved),
        "attention_backward",
    ]
    torch.testing.assert_close(gradients, torch.autograd.grad(attention(*inputs).sin().sum(), inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_pytorchs(dtype):
    inputs = draw(*[(2, 9, 2, 16)] * 3)
    with torch.autocast("cpu", dtype):
        out = attention(*inputs)
        theirs = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs))
        exact = attention(*(x.double() for x in inputs))
    assert out.dtype == theirs.dtype == dtype and exact.dtype == torch.float64
    cast = [x.detach().to(dtype).requires_grad_() for x in inputs]
    assert torch.equal(out, attention(*cast))
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert all(x.dtype == torch.float32 for x in gradients)
    for x, y in zip(gradients, torch.autograd.grad(attention(*cast).sum(), cast), strict=True):
        assert torch.equal(x, y.float())


def test_flops():
    """Forward as PyTorch counts the two products; backward five, with the scores over again, as it counts its own."""
    inputs = draw((2, 9, 4, 16), (2, 13, 2, 16), (2, 13, 2, 16))
    with FlopCounterMode(display=False) as ours:
        out = attention(*inputs)
    with FlopCounterMode(display=False) as theirs, sdpa_kernel(SDPBackend.MATH):
        q, k, v = (x.detach().transpose(1, 2) for x in inputs)
        F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    assert ours.get_total_flops() == theirs.get_total_flops() == 4 * 2 * 4 * 9 * 13 * 16
    with FlopCounterMode(display=False) as ours:
        out.sum().backward()
    assert ours.get_total_flops() == 10 * 2 * 4 * 9 * 13 * 16
    packed = draw(*[(11, 2, 16)] * 3)
    with FlopCounterMode(display=False) as ours:
        attention(*packed, **pack_of(4, 7)).sum().backward()
    assert ours.get_total_flops() == 14 * 2 * 16 * (4 * 4 + 7 * 7)


def test_a_gpu_is_asked_for_no_lengths():
    """With shapes alone, where asking for a value is an error; what the kernels do is in test_kernel.py."""
    with FakeTensorMode():
        q, k, v = (torch.empty(11, 2, 16, device="cuda") for _ in range(3))
        out = attention(
            q, k, v, cu_seqlens_q=torch.empty(3, dtype=torch.int32, device="cuda"), max_seqlen_q=7
        )
        assert out.shape == (11, 2, 16) and out.device.type == "cuda"


# ---------------------------------------------------------------------------------------------------- the CPU's paths

SHAPES = [  # Nq, Nk, H, Hk
    (7, 7, 2, 2),
    (7, 7, 4, 2),
    (1, 7, 4, 1),
    (3, 150, 2, 1),
    (150, 3, 2, 2),  # causal: 147 rows see nothing
    (130, 130, 2, 2),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("Nq", "Nk", "H", "Hk"), SHAPES)
@pytest.mark.parametrize("by_products", [False, True])
def test_both_cpu_paths(by_products, Nq, Nk, H, Hk, dtype, causal, monkeypatch):
    monkeypatch.setattr(cpu, "PRODUCTS_UP_TO", dict.fromkeys([dtype], 10**6) if by_products else {})
    fused = torch.transpose(torch.randn(2, H, max(Nq, Nk), 48, dtype=torch.float64), 1, 2).to(dtype)
    q, k, v = fused[:, :Nq, :, :16], fused[:, :Nk, :Hk, 16:32], fused[:, :Nk, :Hk, 32:]
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]  # strided views
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, truth = attention(*inputs, causal=causal), attention_math(*exact, causal=causal)
    weights = torch.randn(truth.shape, dtype=torch.float64)
    found = torch.autograd.grad(out, inputs, weights.to(dtype))
    wanted = torch.autograd.grad(truth, exact, weights)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.06}[dtype]
    assert out.is_contiguous() and out.dtype == dtype
    for x, y in zip((out, *found), (truth, *wanted), strict=True):
        assert x.dtype == dtype and x.isfinite().all()
        assert (x.double() - y).abs().max() <= tolerance * max(1.0, y.abs().max().item())


@pytest.mark.parametrize("gain", [1, 10])
@pytest.mark.parametrize("causal", [False, True])
def test_matrix_products_are_as_exact_as_the_fused_kernel(gain, causal):
    """Also where scores are large, as a trained model's are: in bfloat16 they would be off by tenths."""
    q, k, v = draw(*[(2, 197, 3, 64)] * 3, dtype=torch.bfloat16)
    q = (gain * q).detach().requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    truth = attention_math(*exact, causal=causal)
    weights = torch.randn(truth.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    wanted = [truth, *torch.autograd.grad(truth, exact, weights.double())]
    errors = []
    for function in (attention, attention_sdpa):
        out = function(q, k, v, causal=causal)
        found = [out, *torch.autograd.grad(out, (q, k, v), weights)]
        errors.append([(x.double() - y).abs().max().item() for x, y in zip(found, wanted, strict=True)])
    for ours, theirs, y in zip(*errors, wanted, strict=True):
        assert ours <= 2 * theirs + y.abs().max().item() * 2**-9
