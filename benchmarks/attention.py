"""Claim: on a Hopper GPU our attention, forward and backward, is at least 1.25 times as fast as PyTorch's own flash
attention (FlashAttention-2) at RAD-DINO's shape (1,370 tokens, 12 heads of 64, bfloat16) and at least 0.9 times as fast
as cuDNN's; a packed multi-crop step at least 1.3 times as fast as the former called for each resolution; and memory
grows with the number of tokens, not with its square.

    python benchmarks/attention.py [--save] [--only dense|packed|memory]     on a GPU, about four minutes
    python benchmarks/attention.py --smoke                                   tiny sizes on any machine: does it run?

Rivals, each pinned by name, in the same run: scaled_dot_product_attention by cuDNN, FlashAttention-2 and the efficient
kernel, torch.nn.attention.varlen, FlexAttention (compiled; of long sequences only, since each shape takes it long), and
flash-attn where it is installed. Random numbers; the median of CUDA-graph timings, taking turns over three rounds.
Backward is what forward and backward together take beyond the forward. TFLOP/s count 4 N^2 D H B forward and 2.5 times
that backward, half of it if causal.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from encoder.attention import attention

OURS = "ours"


class Case(NamedTuple):
    name: str
    batch: int
    tokens: int
    heads: int
    width: int
    causal: bool = False


CASES = [  # the ones that matter most first
    *(Case(f"B {b} N {n}", b, n, 12, 64) for b, n in ((64, 1370), (64, 50))),
    Case("causal B 8 N 2048 D 128", 8, 2048, 32, 128, True),
    *(Case(f"B {b} N {n}", b, n, 12, 64) for b, n in ((64, 197), (8, 1370), (32, 1370), (8, 197), (8, 50))),
]
FLEX_FROM = 1000  # tokens
SMOKE = [Case("B 2 N 37", 2, 37, 2, 64), Case("causal B 1 N 33 D 128", 1, 33, 2, 128, True)]


# ------------------------------------------------------------------------------------------------------------- rivals


def rivals(case: Case, device: torch.device) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """(B, N, H, D) -> (B, N, H, D), by name."""
    found: dict[str, Callable] = {OURS: partial(attention, causal=case.causal)}
    backends = {
        "sdpa cudnn": "CUDNN_ATTENTION",
        "sdpa flash": "FLASH_ATTENTION",
        "sdpa efficient": "EFFICIENT_ATTENTION",
    }
    if device.type == "cpu":
        backends = {"sdpa flash": "FLASH_ATTENTION"}
    for name, backend in backends.items():
        found[name] = partial(by_sdpa, getattr(SDPBackend, backend), case.causal)
    if device.type == "cuda":
        found["varlen_attn"] = by_varlen(case, device)
        if case.tokens >= FLEX_FROM:
            found["flex"] = by_flex(case, device)
        try:
            from flash_attn import flash_attn_func
        except ImportError:
            pass
        else:
            found["flash-attn"] = partial(flash_attn_func, causal=case.causal)
    return found


def by_sdpa(backend: SDPBackend, causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal)
    return out.transpose(1, 2)


def by_varlen(case: Case, device: torch.device) -> Callable:
    from torch.nn.attention.varlen import varlen_attn

    cu = torch.arange(case.batch + 1, dtype=torch.int32, device=device) * case.tokens
    options: dict = {}
    if case.causal:  # a flag before torch 2.12, a window since
        old = "is_causal" in inspect.signature(varlen_attn).parameters
        options = {"is_causal": True} if old else {"window_size": (-1, 0)}

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = (x.flatten(0, 1) for x in (q, k, v))
        return varlen_attn(*flat, cu, cu, case.tokens, case.tokens, **options).view_as(q)

    return run


def by_flex(case: Case, device: torch.device) -> Callable:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = None
    if case.causal:
        seen = lambda b, h, i, j: i >= j  # noqa: E731
        mask = create_block_mask(seen, None, None, case.tokens, case.tokens, device=device)
    torch.compiler.reset()  # or it gives up compiling after eight shapes, and runs unfused
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)


# ------------------------------------------------------------------------------------------------------------- timing


def milliseconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        step()
        start = time.perf_counter()
        step()
        return 1e3 * (time.perf_counter() - start)
    from triton.testing import do_bench, do_bench_cudagraph

    try:
        return do_bench_cudagraph(step, rep=20, return_mode="median")
    except RuntimeError as e:  # what cannot be captured is timed as it is
        print(f"not in a graph: {str(e).splitlines()[0]}", file=sys.stderr)
        torch.cuda.synchronize()
        return do_bench(step, warmup=10, rep=20, return_mode="median")


def compare(
    functions: dict[str, Callable], inputs: list[Tensor], grad: Tensor, device, rounds: int = 3
) -> dict:
    """Milliseconds of each, forward and both, or why not; the outputs have to agree."""
    steps, failed, wanted = {}, {}, None
    for name, function in functions.items():
        try:
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = function(*leaves)
            found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
            wanted = wanted or [x.float() for x in found]
            error = max((a.float() - b).abs().max().item() for a, b in zip(found, wanted, strict=True))
            if not error < 0.1:
                raise RuntimeError(f"differs from ours by {error}")
            forward = torch.no_grad()(partial(function, *inputs))
            steps[name] = (forward, partial(forward_and_backward, function, inputs, grad))
        except Exception as e:  # a backend that a shape or a GPU does not have
            failed[name] = f"{type(e).__name__}: {str(e).splitlines()[0][:150]}"
    times = {name: ([], []) for name in steps}
    for _ in range(rounds):
        for name, pair in steps.items():
            for step, record in zip(pair, times[name], strict=True):
                record.append(milliseconds(step, device))
    medians = {name: [statistics.median(record) for record in pair] for name, pair in times.items()}
    return {"ms": medians, "failed": failed}


def forward_and_backward(function: Callable, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Together and from new leaves: autograd runs each step on the stream where it began, and a graph takes in one."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, grad)


def summary(result: dict, flops: float) -> dict:
    """TFLOP/s of each, and how many times as fast ours is: forward, backward, both."""
    table = {}
    times = {name: (forward, both - forward, both) for name, (forward, both) in result["ms"].items()}
    for name, ms in times.items():
        row = {"ms": [round(x, 4) for x in ms]}
        row["tflops"] = [round(k * flops / x / 1e9, 1) for k, x in zip((1, 2.5, 3.5), ms, strict=True)]
        if OURS in times and name != OURS:
            row["ours_times_as_fast"] = [round(x / y, 3) for x, y in zip(ms, times[OURS], strict=True)]
        table[name] = row
    return {"fwd, bwd, both": table, **({"failed": result["failed"]} if result["failed"] else {})}


# -------------------------------------------------------------------------------------------------------------- parts


def normal(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """By a generator of its own: the default one takes part in the capture of graphs."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)


def dense(case: Case, device: torch.device, rounds: int) -> dict:
    shape = (case.batch, case.tokens, 3, case.heads, case.width)
    inputs = list(normal(shape, device).unbind(2))  # as timm's fused qkv lies
    grad = normal(inputs[0].shape, device)
    flops = 4 * case.batch * case.heads * case.width * case.tokens**2 * (0.5 if case.causal else 1)
    return summary(compare(rivals(case, device), inputs, grad, device, rounds), flops)


def packed(groups: list[tuple[int, int]], heads: int, device: torch.device, rounds: int) -> dict:
    """Crops of several sizes, (number, tokens) each, as one sequence of tokens: one call of ours, or a call a size with
    splitting and concatenating, or varlen_attn."""
    total = sum(count * n for count, n in groups)
    lengths = torch.tensor([0, *(n for count, n in groups for _ in range(count))])
    cu, longest = lengths.cumsum(0).int().to(device), max(n for _, n in groups)
    inputs = list(normal((total, 3, heads, 64), device).unbind(1))
    grad = normal(inputs[0].shape, device)

    def by_size(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split([count * n for count, n in groups]) for x in (q, k, v)), groups, strict=True)
        outs = [by_sdpa(backend, False, *(x.unflatten(0, g) for x in qkv)).flatten(0, 1) for *qkv, g in parts]
        return torch.cat(outs)

    functions: dict[str, Callable] = {OURS: partial(attention, cu_seqlens_q=cu, max_seqlen_q=longest)}
    functions["sdpa flash, a call a size"] = partial(by_size, SDPBackend.FLASH_ATTENTION)
    if device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        functions["sdpa cudnn, a call a size"] = partial(by_size, SDPBackend.CUDNN_ATTENTION)
        functions["varlen_attn"] = lambda q, k, v: varlen_attn(q, k, v, cu, cu, longest, longest)
    flops = 4 * heads * 64 * sum(count * n * n for count, n in groups)
    return summary(compare(functions, inputs, grad, device, rounds), flops)


def memory(device: torch.device) -> list[dict]:
    """Greatest memory of a forward and backward beyond its inputs, in bytes a token."""
    rows = []
    for n in (685, 1370, 2740, 5480, 10960):
        q = k = v = out = None  # of the length before
        q, k, v = (normal((4, n, 12, 64), device).requires_grad_() for _ in range(3))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = attention(q, k, v)
        out.backward(torch.ones_like(out))
        torch.cuda.synchronize()
        rows.append(
            {"tokens": n, "bytes_a_token": round((torch.cuda.max_memory_allocated() - before) / (4 * n))}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("dense", "packed", "memory"))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/attention_<gpu>.json")
    args = parser.parse_args()
    if not args.smoke and not torch.cuda.is_available():
        parser.error("there is no GPU here; --smoke runs tiny sizes on any machine")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "none"
    result: dict = {"gpu": gpu, "torch": torch.__version__, "date": date.today().isoformat()}
    if device.type == "cuda":
        import triton

        result |= {"triton": triton.__version__, "cudnn": torch.backends.cudnn.version()}
    print(json.dumps(result), flush=True)
    rounds = 1 if args.smoke else 3

    def keep(name: str, found) -> None:  # as soon as it is there: a machine may be lent for minutes
        result[name] = found
        print(name, json.dumps(found), flush=True)
        if args.save and not args.smoke:
            file = "".join(c if c.isalnum() else "_" for c in gpu.lower()).strip("_")
            target = Path(__file__).parent / "results" / f"attention_{file}.json"
            target.write_text(json.dumps(result, indent=1) + "\n")

    if args.only in (None, "packed"):
        groups = [(4, 37), (8, 5)] if args.smoke else [(128, 1370), (512, 50)]
        found = packed(groups, 2 if args.smoke else 12, device, rounds)
        keep("packed 64 x (2 x 1370 + 8 x 50)", found)
    if args.only in (None, "memory") and device.type == "cuda":
        keep("memory", memory(device))
    if args.only in (None, "dense"):
        for case in SMOKE if args.smoke else CASES:
            keep(case.name, dense(case, device, rounds))


if __name__ == "__main__":
    main()
