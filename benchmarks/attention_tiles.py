"""How the attention kernels are to cut their work (encoder/attention/tiles.py).

    python benchmarks/attention_tiles.py table                what each entry of the table compiles to
    python benchmarks/attention_tiles.py used                 a sixth of that: what our trainings use
    python benchmarks/attention_tiles.py candidates [--save]  the same for all candidates: which of them spill registers
    python benchmarks/attention_tiles.py time [--save]        on a GPU, about three minutes: milliseconds of each

The first three compile for sm_80 and sm_90 and need no GPU. One JSON object a line; --save writes them to
results/attention_tiles_<compiled, or the GPU>.json. The best in time goes into the table if it compiles without spills
on Triton 3.6 and the newest (`table` shows it); until there is a time, a large tile that does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from encoder.attention import kernel
from encoder.attention.tiles import Tiles, like_hopper, tiles

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSORS = {"q", "k", "v", "grad", "out", "dq", "dk", "dv"}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
KEYS, QUERIES = {"k": "n", "v": "n"}, {"q": "m", "grad": "m"}
LOOPED = {"forward": KEYS, "backward_kv": QUERIES, "backward_q": KEYS}  # read by TMA, and the side of a tile
KERNELS = ("forward", "backward_kv", "backward_q")


def compile_for(
    arch: int,
    name: str,
    dtype: str,
    D: int,
    causal: bool,
    packed: bool,
    group: int = 1,
    tile: Tiles | None = None,
    tma: bool | None = None,
) -> dict:
    """What the machine code of a kernel does: registers, local memory (spills), matrix products, TMA loads, shared
    memory in bytes. Lengths are 1, if that makes a difference to Triton."""
    function = getattr(kernel, f"_{name}")
    tile = tile or tiles(name, D, DTYPES[dtype], causal, arch)
    tma = like_hopper(arch) if tma is None else tma
    constants = {
        "GROUP": group, "D": D, "WIDTH": kernel._width(D), "M": tile.m, "N": tile.n, "CAUSAL": causal, "PACKED": packed,
        "TMA": tma, "EXACT": False,
    } | ({} if packed else {"cu_q": None, "cu_k": None, "tasks": None})  # fmt: skip
    lengths = {p.name for p in function.params if p.name in kernel.LENGTHS and not p.do_not_specialize}
    constants |= dict.fromkeys(lengths, 1)
    signature = {}
    for argument in function.arg_names:
        kind = "*fp32" if argument in ("lse", "delta") else "fp32" if argument == "scale" else "i32"
        if argument in LOOPED[name] and tma:
            kind = f"tensordesc<{dtype}[1,{getattr(tile, LOOPED[name][argument])},1,{kernel._width(D)}]>"
        elif argument in TENSORS:
            kind = f"*{dtype}"
        elif argument in ("cu_q", "cu_k", "tasks"):
            kind = "*i32"
        signature[argument] = "constexpr" if argument in constants else kind
    place = {argument: i for i, argument in enumerate(function.arg_names)}
    strides = re.compile(r"(q|k|v|o|g|dq|dk|dv)[bth]$")
    whole = [a for a, kind in signature.items() if kind[0] == "*" or (kind == "i32" and strides.match(a))]
    source = ASTSource(
        function,
        signature,
        {(place[a],): value for a, value in constants.items() if a in place},
        {(place[a],): [["tt.divisibility", 16]] for a in whole},
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages, **kernel.OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code, usage = (
            subprocess.run(
                [TOOLS / "cuobjdump", how, file.name], capture_output=True, text=True, check=True
            ).stdout
            for how in ("-sass", "-res-usage")
        )
    count = {word: code.count(word) for word in ("HGMMA", "HMMA", "UTMALDG", "LDL", "STL")}
    which = {
        "arch": arch, "kernel": name, "dtype": dtype, "D": D, "causal": causal, "packed": packed, "group": group,
    }  # fmt: skip
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    return {**which, "tiles": list(tile), "registers": registers, **count, "shared": compiled.metadata.shared}


def in_table() -> list[tuple]:
    """Every entry of the table for every dtype, with the head widths that tell its code apart; dense or packed."""
    return [
        (arch, name, dtype, D, causal, packed, group)
        for arch in (80, 90)
        for name in KERNELS
        for causal in (False, True)
        for dtype, D, packed, group in (
            ("fp16", 64, False, 1),
            ("bf16", 64, True, 1),
            ("bf16", 80, False, 1),  # a width that is no power of two
            ("fp16", 128, True, 1),
            ("bf16", 128, False, 1),
            ("bf16", 128, True, 4),  # grouped-query heads
        )
    ]


def in_use() -> list[tuple]:
    """The part of the table that the tests see to: packed, in bfloat16, crops of an encoder (64, not causal) and
    reports of a language model (128, causal, grouped-query heads)."""
    return [e for e in in_table() if e[2:] in (("bf16", 64, False, True, 1), ("bf16", 128, True, True, 4))]


def candidates(name: str) -> list[Tiles]:
    sides = itertools.product((64, 128) if name == "forward" else (32, 64, 128), (32, 64, 128))
    if name == "backward_kv":
        sides = itertools.product((16, 32, 64, 128), (64, 128))
    return [Tiles(m, n, w, s) for (m, n), w, s in itertools.product(sides, (4, 8), (2, 3))]


# (batch, tokens, heads) that candidates are timed on, by head width
SHAPES = {64: (64, 1370, 12), 128: (8, 2048, 32)}


def to_time() -> list[tuple[str, int, bool, Tiles]]:
    """Kernel, head width, causal, tiles."""
    return [
        (name, D, causal, tile)
        for D, causal, name in itertools.product(SHAPES, (False, True), KERNELS)
        for tile in candidates(name)
    ]


def kind(row: dict) -> tuple[str, int, bool]:
    return row["kernel"], row["D"], row["causal"]


def best(rows: list[dict]) -> dict[tuple[str, int, bool], dict]:
    """The fastest of each kind that spills no registers and gives the right numbers."""
    usable = [row for row in rows if "ms" in row and row["error"] < 0.1]
    groups = {k: [row for row in usable if kind(row) == k] for k in map(kind, usable)}
    return {k: min(group, key=lambda row: row["ms"]) for k, group in groups.items()}


class Problem:
    """Random inputs of one shape, what the table's own tiles make of them, and any kernel run with any tiles."""

    def __init__(self, D: int, causal: bool, shape: tuple[int, int, int], device: str = "cuda"):
        B, N, H = shape
        dtype = torch.bfloat16 if device == "cuda" else torch.float16
        q, k, v, grad = (torch.randn(B, N, H, D, device=device, dtype=dtype) for _ in range(4))
        self.causal, self.scale = causal, D**-0.5
        out, lse = kernel.forward(q, k, v, None, causal, self.scale)
        dq, *dkv = kernel.backward(grad, q, k, v, out, lse, None, causal, self.scale)
        delta_BHN = (out.float() * grad.float()).sum(-1).transpose(1, 2)
        self.read = {"forward": [q, k, v], "backward_kv": [q, k, v, grad], "backward_q": [q, k, v, grad, out]}
        self.rows = [lse, delta_BHN.transpose(0, 1).reshape(H, B * N).contiguous()]
        self.truth = {"forward": [out], "backward_kv": dkv, "backward_q": [dq]}

    def launcher(self, name: str, tile: Tiles):
        """-> (a function that runs it and returns what Triton compiled, what it writes)."""
        read, rows = self.read[name], self.rows
        if name == "forward":
            rows = [torch.empty_like(rows[0])]
        written = [torch.empty_like(x) for x in self.truth[name]]

        def launch():
            table, kernel.tiles = kernel.tiles, lambda *_: tile
            try:
                return kernel._run(
                    getattr(kernel, f"_{name}"), read, rows, written, None, self.causal, self.scale
                )
            finally:
                kernel.tiles = table

        return launch, written


def _fill_cache(job: tuple[str, int, bool, Tiles], device: str) -> None:
    """In a process of its own: compiles one candidate, into Triton's cache on disk, on a small problem."""
    name, D, causal, tile = job
    try:
        Problem(D, causal, (1, 144, 2), device).launcher(name, tile)[0]()
    except Exception:  # it is met again where it is timed, and reported there
        return


def time_candidates(
    jobs: list, device: str = "cuda", workers: int = 2, shapes: dict | None = None
) -> list[dict]:
    """Milliseconds of every candidate that does not spill, alone, on random bfloat16, and how far it is from the
    table's own result."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_fill_cache, device=device), jobs, chunksize=4))
    rows, problem, last = [], None, None
    for name, D, causal, tile in jobs:
        if last != (D, causal):
            problem, last = None, (D, causal)
            problem = Problem(D, causal, (shapes or SHAPES)[D], device)
        row = {"kernel": name, "D": D, "causal": causal, "tiles": list(tile)}
        try:
            launch, written = problem.launcher(name, tile)
            spills = getattr(launch(), "n_spills", None)
            pairs = zip(written, problem.truth[name], strict=True)
            error = max((a.float() - b.float()).abs().max().item() for a, b in pairs)
            row |= {"spills": spills, "error": round(error, 4)}
            if not spills:
                row["ms"] = round(_milliseconds(launch, device), 4)
        except Exception as e:  # more shared memory than there is, or a compiler that gives up
            row["failed"] = f"{type(e).__name__}: {str(e)[:100]}"
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def _milliseconds(run, device: str) -> float:
    if device == "cpu":
        return 0.0
    from triton.testing import do_bench

    return do_bench(run, warmup=10, rep=50, return_mode="median")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "used", "candidates", "time"))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--save", action="store_true", help="write the results")
    args = parser.parse_args()
    if args.what == "time":
        if not torch.cuda.is_available():
            parser.error("there is no GPU here to take the time on")
        rows = time_candidates(to_time(), workers=args.workers)
        gpu, fastest = torch.cuda.get_device_name(), list(best(rows).values())
        for row in fastest:
            print("best", json.dumps(row))
        if args.save:
            head = {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}
            head["date"] = date.today().isoformat()
            parts = {"best": fastest, "all": rows}
            lines = [f'"{k}": [\n' + ",\n".join(map(json.dumps, part)) + "\n]" for k, part in parts.items()]
            name = "".join(c if c.isalnum() else "_" for c in gpu.lower()).strip("_")
            target = Path(__file__).parent / "results" / f"attention_tiles_{name}.json"
            target.write_text(json.dumps(head)[:-1] + ", " + ", ".join(lines) + "}\n")
        return
    if args.what in ("table", "used"):
        jobs = [(entry, None) for entry in (in_use() if args.what == "used" else in_table())]
    else:
        jobs = [
            ((arch, name, "bf16", D, causal, False), tile)
            for arch in (80, 90)
            for name in KERNELS
            for D, causal in ((64, False), (64, True), (128, False), (128, True))
            for tile in candidates(name)
        ]
    rows = []
    with ProcessPoolExecutor(args.workers) if args.workers > 1 else nullcontext() as pool:
        for found in (pool.map if pool else map)(_compile, jobs):
            rows.append(found)
            print(json.dumps(found), flush=True)
    if args.save:
        names = ("arch", "kernel", "D", "causal", "tiles", "registers", "LDL", "STL", "shared")
        lines = [json.dumps([row[name] for name in names]) for row in rows if "error" not in row]
        head = {"triton": triton.__version__, "dtype": "bf16", "rows": names}
        target = Path(__file__).parent / "results" / "attention_tiles_compiled.json"
        target.write_text(json.dumps(head)[:-1] + ', "candidates": [\n' + ",\n".join(lines) + "\n]}\n")


def _compile(job) -> dict:
    entry, tile = job
    try:
        return compile_for(*entry, tile=tile)
    except Exception as e:  # more shared memory than there is, or a compiler that gives up
        return {
            "entry": list(entry),
            "tiles": list(tile or ()),
            "error": f"{type(e).__name__}: {str(e)[:200]}",
        }


if __name__ == "__main__":
    main()
