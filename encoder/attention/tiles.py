"""How the kernels cut their work: a table, not a search at run time.

`benchmarks/attention_tiles.py` makes the candidates, drops what spills registers and, on a GPU, times the rest; its
results lie beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """Describe how a Triton kernel cuts its work: rows of a tile, warps a program, stages of the pipeline."""

    m: int  # queries
    n: int  # keys
    warps: int
    stages: int


# For half precision, by (least capability, kernel, greatest head width, causal). No entry spills registers, and tensor
# cores do the products (tests/encoder/attention/test_compiled.py, Triton 3.6 and 3.9). For 90 the fastest on an H200
# (benchmarks/results); for 80 chosen by registers, not yet by time on a GPU.
TILES = {
    (80, "forward", 64, False): Tiles(128, 64, 8, 3),
    (80, "forward", 64, True): Tiles(128, 64, 8, 3),
    (80, "forward", 128, False): Tiles(64, 64, 8, 3),
    (80, "forward", 128, True): Tiles(64, 64, 8, 3),
    (80, "backward_kv", 64, False): Tiles(32, 64, 8, 3),
    (80, "backward_kv", 64, True): Tiles(16, 128, 8, 2),
    (80, "backward_kv", 128, False): Tiles(32, 64, 8, 3),
    (80, "backward_kv", 128, True): Tiles(32, 64, 8, 3),
    (80, "backward_q", 64, False): Tiles(128, 64, 8, 3),
    (80, "backward_q", 64, True): Tiles(128, 64, 8, 3),
    (80, "backward_q", 128, False): Tiles(64, 64, 8, 2),
    (80, "backward_q", 128, True): Tiles(64, 64, 8, 2),
    (90, "forward", 64, False): Tiles(64, 128, 4, 2),
    (90, "forward", 64, True): Tiles(64, 128, 4, 2),
    (90, "forward", 128, False): Tiles(64, 64, 4, 3),
    (90, "forward", 128, True): Tiles(64, 64, 4, 3),
    (90, "backward_kv", 64, False): Tiles(32, 128, 4, 2),
    (90, "backward_kv", 64, True): Tiles(32, 64, 4, 2),
    (90, "backward_kv", 128, False): Tiles(32, 64, 4, 2),
    (90, "backward_kv", 128, True): Tiles(32, 64, 4, 2),
    (90, "backward_q", 64, False): Tiles(64, 64, 4, 3),
    (90, "backward_q", 64, True): Tiles(64, 64, 4, 3),
    (90, "backward_q", 128, False): Tiles(128, 64, 8, 3),
    (90, "backward_q", 128, True): Tiles(128, 64, 8, 3),
}
FLOAT32 = Tiles(32, 32, 4, 2)  # for exactness, not for speed: IEEE products use no tensor cores


def tiles(kernel: str, head_dim: int, dtype: torch.dtype, causal: bool, capability: int) -> Tiles:
    """Return the tiles of a kernel: `kernel` is forward, backward_kv or backward_q; `capability` is 80 for
    sm_80, and so on."""
    if dtype == torch.float32:
        return FLOAT32
    return TILES[90 if like_hopper(capability) else 80, kernel, 64 if head_dim <= 64 else 128, causal]


def like_hopper(capability: int) -> bool:
    """Tell whether it is sm_90 or sm_100. GeForce Blackwell, sm_120, has as little shared memory as sm_89."""
    return 90 <= capability < 120
