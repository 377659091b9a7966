"""Findings models by name: a directory, the shipped mini, a hub id."""

from __future__ import annotations

from pathlib import Path

from encoder.hub import fetched
from vlm.errors import ModelError

MINI = Path(__file__).parent / "mini"


def resolve(name: str | Path, what: str = "model") -> Path:
    """A directory, the shipped "mini", or a hub id -> a local directory. Raises ModelError if there is none."""
    if Path(name).is_dir():
        return Path(name)
    if str(name) == "mini":
        if not MINI.is_dir():
            raise ModelError(
                f"the shipped model is missing: {MINI} does not exist; reinstall, or run `make mini`"
            )
        return MINI
    return fetched(name, what, "nor 'mini', ")
