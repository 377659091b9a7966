"""How the attention kernels are to cut their work (encoder/attention/tiles.py).

    python benchmarks/attention_tiles.py table          what each entry of the table compiles to: no GPU needed
    python benchmarks/attention_tiles.py candidates     the same for all candidates: which of them spill registers
    python benchmarks/attention_tiles.py time           on a GPU: milliseconds of the candidates that do not spill

Compiled for sm_80 and sm_90 by Triton, on any machine; one JSON object a line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from encoder.attention import kernel
from encoder.attention.tiles import Tiles, tiles

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSORS = {"q": "m", "k": "n", "v": "n", "grad": "m"}  # what is read, and along which side of a tile
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LOOPED = {"forward": ("k", "v"), "backward_kv": ("q", "grad"), "backward_q": ("k", "v")}
KERNELS = ("forward", "backward_kv", "backward_q")
SHARED = {80: 99, 90: 227}  # KiB a block may have; 99 is sm_89's, which runs the code for sm_80


def compile_for(
    arch: int,
    name: str,
    dtype: str,
    D: int,
    causal: bool,
    packed: bool,
    tile: Tiles | None = None,
    tma: bool | None = None,
) -> dict:
    """What the machine code of a kernel does: registers, local memory (spills), matrix products, TMA loads, shared
    memory in bytes."""
    function = getattr(kernel, f"_{name}")
    tile = tile or tiles(name, D, DTYPES[dtype], causal, arch)
    tma = arch >= 90 if tma is None else tma
    constants = {
        "GROUP": 1, "D": D, "WIDTH": kernel._width(D), "M": tile.m, "N": tile.n, "CAUSAL": causal, "PACKED": packed,
        "TMA": tma, "EXACT": False,
    } | ({} if packed else {"cu_q": None, "cu_k": None, "tasks": None})  # fmt: skip
    signature = {}
    for argument in function.arg_names:
        kind = "*fp32" if argument in ("lse", "delta") else "fp32" if argument == "scale" else "i32"
        if argument in LOOPED[name] and tma:
            kind = f"tensordesc<{dtype}[1,{getattr(tile, TENSORS[argument])},1,{kernel._width(D)}]>"
        elif argument in TENSORS or argument in ("out", "dq", "dk", "dv"):
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
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
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
    which = {"arch": arch, "kernel": name, "dtype": dtype, "D": D, "causal": causal, "packed": packed}
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    return {**which, "tiles": list(tile), "registers": registers, **count, "shared": compiled.metadata.shared}


def in_table() -> list[tuple]:
    """Every entry of the table for every dtype, with the head widths that tell its code apart; dense or packed."""
    return [
        (arch, name, dtype, D, causal, packed)
        for arch in (80, 90)
        for name in KERNELS
        for causal in (False, True)
        for dtype, D, packed in (
            ("fp16", 64, False),
            ("bf16", 64, True),
            ("bf16", 80, False),  # a width that is no power of two
            ("fp16", 128, True),
            ("bf16", 128, False),
        )
    ]


def candidates(name: str) -> list[Tiles]:
    sides = itertools.product((64, 128) if name == "forward" else (32, 64, 128), (32, 64, 128))
    if name == "backward_kv":
        sides = itertools.product((32, 64, 128), (64, 128))
    return [Tiles(m, n, w, s) for (m, n), w, s in itertools.product(sides, (4, 8), (2, 3))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "candidates", "time"))
    parser.add_argument("--arch", type=int, default=90, help="of candidates: 80 or 90")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.what == "table":
        jobs = [(entry, None) for entry in in_table()]
    else:
        jobs = [
            ((args.arch, name, "bf16", D, causal, False), tile)
            for name in KERNELS
            for D, causal in ((64, False), (64, True), (128, False), (128, True))
            for tile in candidates(name)
        ]
    with ProcessPoolExecutor(args.workers) as pool:
        for found in pool.map(_compile, jobs):
            print(json.dumps(found), flush=True)


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
