"""What changes over a run, as plain functions of the step."""

from __future__ import annotations

import math


def linear(step: int, start: float, end: float, steps: int) -> float:
    """From `start` at step 0 to `end` at `steps` and ever after."""
    return end if step >= steps else start + (end - start) * step / steps


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `steps` and ever after."""
    return end if step >= steps else end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def warmup_cosine(step: int, peak: float, end: float, warmup: int, steps: int) -> float:
    """Linear to `peak` over `warmup` steps (from above 0), then half a cosine to `end` at `steps`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return cosine(step - warmup, peak, end, steps - warmup)
