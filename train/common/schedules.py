"""What changes over a run, as plain functions of the step."""

from __future__ import annotations

import math


def linear(step: int, start: float, end: float, steps: int) -> float:
    """Return a line's value: `start` at step 0, `end` at `steps` and ever after."""
    return end if step >= steps else start + (end - start) * step / steps


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """Return half a cosine's value: `start` at step 0, `end` at `steps` and ever after."""
    return end if step >= steps else end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def warmup_cosine(step: int, peak: float, end: float, warmup: int, steps: int) -> float:
    """Rise in a line to `peak` over `warmup` steps, from above 0, then fall by half a cosine to `end`
    at `steps`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return cosine(step - warmup, peak, end, steps - warmup)
