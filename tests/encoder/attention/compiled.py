"""python -m tests.encoder.attention.compiled: compile every entry of the kernels' table for sm_80 and sm_90, which
needs no GPU, and print what the machine code does, a JSON object a line."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from encoder.attention import kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSORS = {"q", "k", "v", "out", "grad", "dq", "dk", "dv"}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def compile_for(arch: int, name: str, dtype: str, D: int, causal: bool, packed: bool) -> dict:
    function, tile = getattr(kernel, f"_{name}"), kernel.tiles(name, D, DTYPES[dtype], arch)
    constants = {
        "GROUP": 1, "D": D, "WIDTH": kernel._width(D), "M": tile.m, "N": tile.n, "CAUSAL": causal, "PACKED": packed,
        "EXACT": False,
    } | ({} if packed else {"cu_q": None, "cu_k": None})  # fmt: skip
    signature = {}
    for argument in function.arg_names:
        kind = f"*{dtype}" if argument in TENSORS else "*fp32" if argument in ("lse", "delta") else "i32"
        kind = "*i32" if argument.startswith("cu_") else "fp32" if argument.startswith("scale") else kind
        signature[argument] = "constexpr" if argument in constants else kind
    place = {argument: i for i, argument in enumerate(function.arg_names)}
    whole = [a for a, kind in signature.items() if kind[0] == "*" or (len(a) in (2, 3) and a[-1] in "th")]
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
        code = subprocess.run(
            [TOOLS / "cuobjdump", "-sass", file.name], capture_output=True, text=True, check=True
        )
    count = {word: code.stdout.count(word) for word in ("HGMMA", "HMMA", "LDL", "STL")}
    which = {"arch": arch, "kernel": name, "dtype": dtype, "D": D, "causal": causal, "packed": packed}
    return {**which, **count, "shared": compiled.metadata.shared}


if __name__ == "__main__":
    for arch in (80, 90):
        for name in ("forward", "backward_kv", "backward_q"):
            for D, dtype, causal, packed in (
                (64, "bf16", False, False),
                (64, "fp16", True, True),
                (80, "bf16", False, True),
                (128, "bf16", True, True),
                (128, "fp16", False, False),
            ):
                print(json.dumps(compile_for(arch, name, dtype, D, causal, packed)), flush=True)
