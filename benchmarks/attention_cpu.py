"""Claim: on a CPU, training is not slower for going through our operator: it is at least as fast as with PyTorch's
scaled_dot_product_attention.

    python benchmarks/attention_cpu.py [--threads 2] [--save]

Three parts, forward and backward, each as milliseconds and as the ratio to SDPA in the same run: the operator alone;
the encoder of `mini` on a step's crops; the language model of `mini` on a batch of reports (there also transformers'
eager).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from encoder.attention import CHOICES
from encoder.attention.wiring import TRANSFORMERS
from encoder.vit import CropViT

SHAPES = {  # (B, N, H, D), causal
    "global crops of mini": ((64, 197, 3, 64), False),
    "local crops of mini": ((128, 50, 3, 64), False),
    "an X-ray at 518 px": ((1, 1370, 12, 64), False),
    "reports": ((8, 320, 2, 64), True),
}


def milliseconds(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The best of `repeats` of each, taking turns, so that other work on the machine hits all alike."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats + 1):  # the first warms up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return {name: round(value, 2) for name, value in best.items()}


def operator(shape: tuple[int, ...], causal: bool, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    B, N, H, D = shape
    fused = torch.randn(B, N, 3, H, D).to(dtype).requires_grad_()
    grad = torch.randn(B, N, H, D).to(dtype)

    def step(choice: str) -> None:
        torch.autograd.grad(CHOICES[choice](*fused.unbind(2), causal=causal), fused, grad)

    return {name: lambda name=name: step(name) for name in ("cxr", "sdpa")}


def encoder(choice: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = CropViT(196, 14, 192, 6, 3, layerscale=1.0, attention=choice)
    crops = [torch.randn(16, 3, 196, 196), torch.randn(32, 3, 98, 98)]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            features = model.forward_crops(crops)
        sum(x.cls_BC.float().sum() + x.patches_BPC.float().square().mean() for x in features).backward()

    return step


def language_model(implementation: str) -> Callable[[], None]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1200, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, attn_implementation=implementation,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, 1200, (8, 320))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            model(ids, labels=ids).loss.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/attention_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = {
        f"{name}, {str(dtype)[6:]}": operator(shape, causal, dtype)
        for name, (shape, causal) in SHAPES.items()
        for dtype in (torch.bfloat16, torch.float32)
    }
    rows["encoder of mini, 16 x 2 crops, bf16"] = {name: encoder(name) for name in ("cxr", "sdpa")}
    rows["language model of mini, 8 x 320 tokens, bf16"] = {
        name: language_model(TRANSFORMERS.get(name, name)) for name in ("cxr", "sdpa", "eager")
    }
    times = {}
    for name, steps in rows.items():
        times[name] = milliseconds(steps, args.repeats)
        times[name]["faster than sdpa, times"] = round(times[name]["sdpa"] / times[name]["cxr"], 2)
        print(f"{name:45} {times[name]}", flush=True)
    result = {
        "milliseconds": times,
        "threads": args.threads,
        "machine": _cpu(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    if args.save:
        target = Path(__file__).parent / "results" / "attention_cpu.json"
        target.write_text(json.dumps(result, indent=2) + "\n")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
