"""Tokens become findings. `from vlm import Findings`; see `vlm.generate`."""

__all__ = ["Findings"]


def __getattr__(name: str):
    if name == "Findings":  # imported when asked for, so that `import vlm` does not import torch
        from vlm.generate import Findings

        return Findings
    raise AttributeError(f"module 'vlm' has no attribute {name!r}")
