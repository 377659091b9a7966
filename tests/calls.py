"""Which of our operators run: what a model that goes past them cannot fake."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """As a context: every call of an operator of ours, in `made`, as (name, arguments by name)."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, dict]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cxr":
            names = [argument.name for argument in func._schema.arguments]
            self.made.append((func._opname, dict(zip(names, args, strict=True))))
        return func(*args, **(kwargs or {}))

    def count(self, name: str) -> int:
        return sum(made == name for made, _ in self.made)
