"""The Triton kernels against explicit softmax in float64: on a GPU where there is one, else in Triton's interpreter
(tests/conftest.py), which knows no bfloat16. What they compile to is looked at in test_compiled.py."""

from __future__ import annotations

import inspect
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from encoder.attention import ops
from encoder.attention.reference import attention_math

triton = pytest.importorskip("triton", reason="Triton is not installed, so there is no kernel to test")

from encoder.attention import kernel  # noqa: E402  (needs Triton)
from encoder.attention.kernel import Pack  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# A tile has 32 tokens in float32, 64 or 128 in half precision: less than one, one, one and a bit, two, two and a bit.
LENGTHS = [1, 2, 50, 64, 65, 128, 129]
# The interpreter takes a second or more for each.
MORE = [49, 63, 127, 197, 257, 1369, 1370] if GPU else []
WIDTHS = [16, 32, 64, 80, 96, 128]
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")]
if not GPU:
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    new_numpy = tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4)
    reason = "Triton's interpreter before 3.7 cannot loop to a loaded length with numpy 2.4 or later"
    pytestmark.append(pytest.mark.skipif(old and new_numpy, reason=reason))


@pytest.fixture(autouse=True, scope="module")
def quick_interpreter():
    """Triton's interpreter without half of its work: at every call of a function it looks through all of its language
    for built-in functions, and at every sum of integers whether a wider type had another result."""
    if GPU:
        yield
        return
    from triton.runtime import interpreter

    is_builtin, names = interpreter.tl.core.is_builtin, {}

    def patch_builtin(place, *rest):
        if place not in names:
            names[place] = [name for name, member in inspect.getmembers(place) if is_builtin(member)]
        for name in names[place]:
            if is_builtin(member := getattr(place, name)):
                interpreter._patch_attr(place, name, member, *rest)

    builder = interpreter.interpreter_builder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        yield


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """Whatever a kernel leaves unwritten, or reads before it is written, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pack_of(q_lengths, k_lengths):
    cu = [torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int() for lengths in (q_lengths, k_lengths)]
    return Pack(*cu)


def draw(q_lengths, k_lengths, H, Hk, D, dtype, seed=0):
    """q, k, v and the gradient of the output."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((sum(q_lengths), H, D), *[(sum(k_lengths), Hk, D)] * 2, (sum(q_lengths), H, D))
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).to(DEVICE) for shape in shapes]


def ours(q, k, v, grad, pack, causal=False, scale=None, count=1):
    """(T, H, D) of a pack, or without one of `count` sequences of equal lengths; (B, N, H, D) as they are."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    *inputs, grad = (x.unflatten(0, (count, -1)) if x.dim() == 3 else x for x in (q, k, v, grad))
    out, lse = kernel.forward(*inputs, pack, causal, scale)
    found = [out, *kernel.backward(grad, *inputs, out, lse, pack, causal, scale)]
    return found if q.dim() == 4 else [x.flatten(0, 1) for x in found]


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


def float32_step(name, q, k, v, grad, scale, truth, keys):
    """What is left of float32 sums where the explicit formula happens to be exact, or adds in a better order."""
    scale = q.shape[-1] ** -0.5 if scale is None else abs(scale)
    heads = [(h, h * k.shape[1] // q.shape[1]) for h in range(q.shape[1])]
    score = scale * max((q[:, h].double() @ k[:, j].double().mT).abs().max() for h, j in heads)
    q, k, v, grad = (x.double().abs() for x in (q, k, v, grad))
    step = 0.0
    if name in ("dq", "dk"):  # differences of sums over D, which with one key cancel altogether
        step += 2 * (v.amax((0, 1)) * grad.amax((0, 1))).sum() * (k if name == "dq" else q).max() * scale
    elif GPU:
        # Sums of n numbers one after another are off by about sqrt(n) roundings (Higham and Mary, SISC 41, 2019):
        # scores over D, out and dv over the keys or queries. cuBLAS, in the formula, cuts them into shorter ones.
        step += 0.5 * (q.shape[-1] ** 0.5 * score + keys**0.5) * truth.abs().max()
    if (
        name != "out" and not GPU
    ):  # the interpreter's products of q and k depend on their shapes, forward and backward
        step += 2 * (q.amax((0, 1)) * k.amax((0, 1))).sum() * scale * truth.abs().max()
    return 2**-23 * step


def compare(q_lengths, k_lengths, H, Hk, D, dtype, causal, packed=True, scale=None, change=None):
    """FlashAttention's rule: at most twice the error of the same-dtype formula, plus one rounding step."""
    inputs = draw(q_lengths, k_lengths, H, Hk, D, dtype)
    if change:
        inputs = change(*inputs)
    pack = pack_of(q_lengths, k_lengths) if packed else None
    found = ours(*inputs, pack, causal, scale, 1 if packed else len(q_lengths))
    exact = explicit(*inputs, q_lengths, k_lengths, causal, scale)
    rough = explicit(*inputs, q_lengths, k_lengths, causal, scale, dtype)
    for name, x, theirs, truth in zip(("out", "dq", "dk", "dv"), found, rough, exact, strict=True):
        assert x.dtype == dtype and x.shape == truth.shape and x.isfinite().all(), name
        rounding = 2 * ((truth + 0.3).to(dtype).double() - 0.3 - truth).abs().max()
        if dtype == torch.float32:
            rounding = rounding + float32_step(name, *inputs, scale, truth, max(k_lengths))
        allowed = 2 * (theirs.double() - truth).abs().max() + rounding
        assert (x.double() - truth).abs().max() <= allowed, name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("N", LENGTHS + MORE)
def test_every_length(N, causal):
    # the rule compares greatest errors: of a few numbers they are a matter of luck
    count = 1 if N > 8 else 32 if GPU else 8
    for dtype, D in product(DTYPES, WIDTHS if GPU else [64]):
        compare([N] * count, [N] * count, 1, 1, D, dtype, causal, packed=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", WIDTHS)
def test_every_head_width(D, dtype):
    compare([40], [40], 2, 1, D, dtype, True, packed=False)
    compare([3, 33], [65, 40], 2, 2, D, dtype, False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("q_lengths", "k_lengths", "H", "Hk"),
    [
        # crops of two sizes
        ([10, 10, 130], [10, 10, 130], 1, 1),
        # heads that share keys, not all of them
        ([1, 40, 2], [1, 40, 2], 4, 2),
        # cached decoding
        ([1, 1, 1], [70, 9, 1], 2, 1),
        # some queries see nothing if causal
        ([5, 70, 3], [40, 20, 3], 1, 1),
    ],
)
def test_packs(q_lengths, k_lengths, H, Hk, causal, monkeypatch):
    compare(q_lengths, k_lengths, H, Hk, 32, torch.float32, causal, scale=0.3)
    for arch in (80, 90):  # pointers and descriptors
        if arch <= kernel.capability(torch.device(DEVICE)):
            monkeypatch.setattr(kernel, "capability", lambda _, arch=arch: arch)
            compare(q_lengths, k_lengths, H, Hk, 32, torch.float16, causal, scale=0.3)


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
        # two tiles
        N = 40 if dtype == torch.float32 and not GPU else 65
        compare([N], [N], 1, 1, 64, dtype, causal, packed=False, change=change)


def test_queries_that_see_nothing_give_zeros_and_no_gradient():
    q, k, v, grad = draw([9], [4], 1, 1, 16, torch.float32)
    out, dq, _, _ = ours(q, k, v, grad, pack_of([9], [4]), causal=True)
    assert (out[:5] == 0).all() and (dq[:5] == 0).all() and (out[5:] != 0).any()


def test_three_times_the_same_bits():
    inputs, pack = draw([65, 9], [65, 9], 2, 1, 64, torch.float16), pack_of([65, 9], [65, 9])
    first, *others = (ours(*inputs, pack, causal=True) for _ in range(3))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_views_are_read_where_they_lie(monkeypatch):
    """timm's fused qkv, heads before tokens as in a cache, offsets; only a row in pieces is copied. float16 goes
    through descriptors where the addresses are multiples of 16 bytes, and through pointers where they are not."""
    copies, described = [], []
    contiguous, describe = torch.Tensor.contiguous, kernel.TensorDescriptor.from_tensor
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x: copies.append(x.shape) or contiguous(x))
    monkeypatch.setattr(
        kernel.TensorDescriptor, "from_tensor", lambda *a: described.append(a) or describe(*a)
    )
    memory = torch.randn(4 * 40 * 3 * 2 * 33, device=DEVICE).half()
    fused = memory[: 3 * 40 * 3 * 2 * 32].view(3, 40, 3, 2, 32)[1:].unbind(2)
    cache = [memory[i * 64 :][: 2 * 2 * 40 * 32].view(2, 2, 40, 32).transpose(1, 2) for i in range(3)]
    odd = [memory[i + 1 :][: 2 * 40 * 2 * 33].view(2, 40, 2, 33)[..., :32] for i in range(3)]
    in_pieces = [memory[i * 64 :][: 2 * 40 * 2 * 32].view(2, 40, 32, 2).transpose(2, 3) for i in range(3)]
    for views, copied, by_tma in ((fused, 0, 6), (cache, 0, 6), (odd, 0, 0), (in_pieces, 3 + 4, 6)):
        grad = views[0] * 0.5
        wanted = ours(*(contiguous(x) for x in views), grad, None)
        copies.clear(), described.clear()
        found = ours(*views, grad, None)
        assert len(copies) == copied and len(described) == by_tma
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales_that_are_not_positive(scale):
    for dtype in DTYPES[:2]:
        compare([5, 40, 3], [40, 20, 3], 1, 1, 32, dtype, True, scale=scale)


def test_the_operator_hands_on_a_pack():
    """What it is on a GPU; where there is none, the operator on a CPU goes another way."""
    q, k, v, grad = draw([33, 4], [33, 4], 2, 1, 16, torch.float32)
    pack = pack_of([33, 4], [33, 4])
    found = ours(q, k, v, grad, ops._pack(*pack))
    assert all(torch.equal(a, b) for a, b in zip(found, ours(q, k, v, grad, pack), strict=True))


def test_an_expanded_gradient():
    """What out.sum().backward() sends."""
    q, k, v, grad = draw([50], [50], 2, 2, 16, torch.float32)
    wanted = ours(q, k, v, torch.ones_like(grad), pack_of([50], [50]))
    found = ours(q, k, v, torch.ones((), device=DEVICE).expand(grad.shape), pack_of([50], [50]))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_sequences_of_a_pack_do_not_see_each_other():
    """Not even NaN and inf of the neighbours, whose rows a tile reaches into."""
    inputs = draw([33, 40, 20], [33, 40, 20], 1, 1, 32, torch.float16)
    wanted = [x[33:73] for x in ours(*inputs, pack_of([33, 40, 20], [33, 40, 20]))]
    for x in inputs:
        x[:33], x[73:] = float("inf"), float("nan")
    found = [x[33:73] for x in ours(*inputs, pack_of([33, 40, 20], [33, 40, 20]))]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_tasks_of_a_pack():
    """Every tile of every sequence once, in order, then nothing; more sequences than one program reads at once."""
    g = torch.Generator().manual_seed(0)
    at_once = kernel.TASKS if GPU else 16
    lengths = torch.randint(0, 40, (at_once * 2 + 3,), generator=g)
    cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().to(DEVICE)
    total = int(cu[-1]) // 16 + len(lengths)
    tasks = torch.full((total, 2), -7, dtype=torch.int32, device=DEVICE)
    kernel._list_tasks[(len(lengths),)](cu, tasks, len(lengths), total, SIZE=16, BLOCK=at_once)
    wanted = [[s, t] for s, n in enumerate(lengths.tolist()) for t in range(-(-n // 16))]
    assert tasks[: len(wanted)].tolist() == wanted
    assert (tasks[len(wanted) :, 0] == -1).all()


READING = {"tolist", "item", "numpy", "cpu", "__int__", "__bool__", "__float__", "__index__", "__array__"}


class NothingIsRead(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert getattr(func, "__name__", "") not in READING, f"{func.__name__} waits for the device"
        return func(*args, **(kwargs or {}))


def test_lengths_stay_on_the_device(monkeypatch):
    """What the host does for a pack never reads a tensor's values."""
    inputs, pack = draw([33, 40], [33, 40], 2, 1, 16, torch.float32), pack_of([33, 40], [33, 40])
    if GPU:
        ours(*inputs, pack)  # compiled before
        torch.cuda.set_sync_debug_mode("error")
    else:  # without the launches, in which the interpreter reads
        from triton.runtime.interpreter import InterpretedFunction

        monkeypatch.setattr(InterpretedFunction, "run", lambda *args, **kwargs: None)
    try:
        with NothingIsRead():
            ours(*inputs, pack)
    finally:
        if GPU:
            torch.cuda.set_sync_debug_mode("default")
    with NothingIsRead(), pytest.raises(AssertionError, match="tolist"):  # the guard itself
        pack.cu_q.tolist()


def test_rows_far_apart_are_copied():
    """An offset within a tile has 32 bits: in a view whose tokens lie further apart, it would run over."""
    wide = torch.empty(2**23 + 16, dtype=torch.int8)
    near, far = (wide.as_strided((1, 2, 1, 16), (8, step, 16, 1)) for step in (32, 2**23))
    assert kernel._rowwise(near) is near
    assert kernel._rowwise(far).stride(1) == 16
