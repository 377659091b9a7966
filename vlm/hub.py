"""Findings models by name: a directory, the shipped mini, a hub id."""

from __future__ import annotations

from pathlib import Path

from encoder.errors import ModelError
from encoder.fields import read_object
from encoder.hub import SHIPPED, here, of_a_run, resolve

__all__ = [
    "ADAPTER_CONFIG",
    "META",
    "MINI",
    "check_here",
    "is_maira2",
    "no_adapter",
    "resolve",
    "without_meta",
]

MINI = SHIPPED["mini"]
META = "cxr.json"
# Only an adapter's folder has it.
ADAPTER_CONFIG = "adapter_config.json"


def check_here(name: str | Path, base: str | Path | None = None) -> None:
    """Raise ModelError where it is plain, before torch is imported, that `name` is not a findings model: nothing is
    there, or the folder of something else; so of the `base` of an adapter."""
    folder = here(name)
    if base is not None:
        if folder and not (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(no_adapter(name, base))
        here(base, "base model")
    if folder and not (folder / META).is_file() and not is_maira2(folder):
        raise ModelError(without_meta(folder))


def no_adapter(name: str | Path, base: str | Path) -> str:
    """Say that a base was given for a model that has none."""
    return f"{name} is not an adapter: it has no base, so leave {base} out"


def without_meta(folder: Path) -> str:
    """Say that a folder is not that of a findings model, and where in it there is one."""
    return f"{folder} has no {META}, so it is not a findings model that cxr wrote{of_a_run(folder)}"


def is_maira2(folder: Path) -> bool:
    """Tell whether config.json says that a directory is in MAIRA-2's format."""
    path = folder / "config.json"
    return path.exists() and read_object(path).get("model_type") == "maira2"
