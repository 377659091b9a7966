"""X-rays on their way into an encoder: a dataset for DataLoaders in which a file that cannot be read is an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from encoder.radiograph import InputError, Limits, Radiograph, read


class Input(NamedTuple):
    """One of the items: what was made of it (None without `make`), or why nothing could be."""

    key: Any
    x: Any
    error: InputError | None


class Inputs(Dataset[Input]):
    """(key, path) -> Input: the key, and `make(radiograph)`, or None without `make`; or the reason why not."""

    def __init__(
        self,
        items: Sequence[tuple[Any, str | Path]],
        make: Callable[[Radiograph], Tensor] | None,
        limits: Limits | None = None,
    ) -> None:
        self.items, self.make, self.limits = items, make, limits

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Input:
        key, path = self.items[i]
        try:
            image = read(path, self.limits)
        except InputError as error:
            return Input(key, None, error)
        return Input(key, self.make(image) if self.make else None, None)

    def batches(self, size: int, workers: int = 0) -> Iterable[list[Input]]:
        """Return an iterable of lists of `size` items, in their order, read by `workers` processes beside this one."""
        loader = DataLoader(self, size, num_workers=workers, collate_fn=list)
        return cast(Iterable[list[Input]], loader)
