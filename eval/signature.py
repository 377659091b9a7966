"""What exactly a number means: one line that names the tool, its version and every choice.

Two numbers with equal signatures may be compared, two with different ones may not.

    label-f1|labeller:rules-2|n:14|avg:macro|unc:neg|zero:0|ref:text
    label-f1|labeller:rules-2|n:14|avg:macro|unc:neg|zero:0|ref:text|section:impression

One without a section is of findings.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

_UNSAFE = re.compile(r"[|\s]")


def signature(name: str, **choices: object) -> str:
    """Join a signature `name|key:value|...` in the order given. Raises ValueError for a part with a bar or a
    space in it."""
    parts = [
        name,
        *(f"{key.replace('_', '-')}:{value}" for key, value in choices.items() if value is not None),
    ]
    for part in parts:
        if _UNSAFE.search(part):
            raise ValueError(f"{part!r} cannot be part of a signature: it contains a bar or white space")
    return "|".join(parts)


def parse_signature(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the choices of a signature."""
    name, *parts = text.split("|")
    return name, dict(part.split(":", 1) for part in parts)


@cache
def version(distribution: str) -> str:
    """Return the installed version of a package, `none` if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


@dataclass(frozen=True)
class Score:
    """One number: its point value, 95 % interval over patients, number of studies and signature."""

    name: str
    value: float
    low: float
    high: float
    n: int
    signature: str

    @property
    def interval(self) -> tuple[float, float]:
        """Return the bounds (low, high)."""
        return self.low, self.high

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; a value that is not defined is null."""
        return {
            "name": self.name,
            "value": number(self.value),
            "interval": [number(self.low), number(self.high)],
            "n": self.n,
            "signature": self.signature,
        }


def number(x: float) -> float | None:
    """Return a float that JSON can hold: NaN and infinity become None."""
    return float(x) if math.isfinite(x) else None
