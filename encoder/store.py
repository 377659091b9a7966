"""Folders of rows by key, each row made once: under `cxr embed`, the features of probes and fine-tuning, `cxr prepare`.

    FOLDER/ABOUT        what the rows were made with (JSON)
    FOLDER/INDEX        a row a line (JSON): its key and where it lies, or why there is none
    FOLDER/SHARDS       files of rows, in whatever form: safetensors and .npy here, tar in train/datasets/archive.py
    FOLDER/LOCK         held by the run that writes

A shard is whole on the disk before its lines enter the index, so the index never promises what is not there: whenever
a run is killed, the same command resumes with the rows that have no line. One run writes at a time, others wait. The
processes of one run (of accelerate) write shards and an index each.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoder.errors import ModelError, UserError, printable
from encoder.files import (
    append_json,
    one_at_a_time,
    read_json,
    read_json_lines,
    sweep,
    write_atomically,
    write_json,
)
from encoder.progress import Every
from encoder.weights import read_header

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

# Rows are written at the latest after so many seconds: a killed run loses no more.
PATIENCE = 60.0

Line = dict[str, Any]
ROW, BYTES = ("row",), ("offset", "size")


class StoreError(UserError, ValueError):
    """A folder that cannot take the rows; the message says why."""


class Store:
    """A folder of rows, by the fields `by` of their lines.

    Args:
        folder: where they lie; made when rows are written.
        by: name of the field that is a row's key, or several.
        index: name of the index; an asterisk stands for the number of the process that writes it.
        shard: name of a row's shard, with its line's fields in braces. Lines of shards that are not there are
            forgotten. Empty: the lines are all there is, or their shard is not named in them.
        own: what the lock and leftovers begin with, where several stores share the folder.
        process: the number of this process among those of its run.
        stamp: names of the fields that change when a row's source does.
        places: names of the fields that say where in its shard a row lies: ROW of safetensors files, BYTES
            of others. Shards that are too short for their lines count as not there.
    """

    def __init__(
        self,
        folder: Path,
        by: str | tuple[str, ...],
        *,
        index: str = "index.jsonl",
        shard: str = "",
        own: str = "",
        process: int = 0,
        stamp: tuple[str, ...] = (),
        places: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.by, self.index, self.shard, self.own = folder, by, index, shard, own
        self.process, self.stamp, self.places = process, stamp, places

    @property
    def lock(self) -> Path:
        """Return the path of the file that a run locks while it writes."""
        return self.folder / f"{self.own}.lock"

    @contextmanager
    def writing(
        self, state: PartialState | None = None, say: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Keep other runs out while the block lasts; where one is at work, `say` so and wait for it.

        With `state` this is collective: every process must call it, and all of them enter and leave together. Raises
        StoreError if the folder is a file.
        """
        if state is not None and not state.is_main_process:
            state.wait_for_everyone()
            yield
            state.wait_for_everyone()
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StoreError(f"{self.folder} is a file, or in one; choose a folder") from None
        with one_at_a_time(
            self.lock, f"another run is writing to {self.folder}; waiting ({self.lock})", say=say
        ):
            sweep(self.folder, self.own)
            if state is not None:
                state.wait_for_everyone()
            yield
            if state is not None:
                state.wait_for_everyone()

    def refuse_other(self, name: str, what: str) -> None:
        """Raise StoreError if the folder holds files but not `name`, so that it is not a `what`. To be called before
        `writing`, which leaves a lock. Hidden files do not count: the lock, and what a killed run left."""
        others = self.folder.is_dir() and any(not f.name.startswith(".") for f in self.folder.iterdir())
        if others and not (self.folder / name).is_file():
            raise StoreError(f"{self.folder} is not empty and no {what}; choose another folder")

    def agree(self, name: str, about: Mapping[str, Any]) -> None:
        """Keep in the file `name` what the rows are made with, or compare with what is kept there. Raises StoreError
        if they were made with something else, and InputFileError if the file is damaged."""
        file = self.folder / name
        if not file.is_file():
            write_json(file, about)
            return
        earlier = read_json(file)
        other = [key for key in {**earlier, **about} if earlier.get(key) != about.get(key)]
        if other:
            said = ", ".join(f"{key} {earlier.get(key)} (now {about.get(key)})" for key in other)
            raise StoreError(f"{self.folder} was made with {said}; choose another folder")

    def key(self, line: Line) -> Any:
        """Return the key of a line."""
        return line[self.by] if isinstance(self.by, str) else tuple(line[name] for name in self.by)

    def rows(self, state: PartialState | None = None) -> dict[Any, Line]:
        """Return the lines by key, in the order they were written.

        Of several lines of one key the last counts, but one that says why there is no row replaces a row only where its
        `stamp` is another. Lines that are damaged count as not there, and so do those of a shard that is shorter than
        it should be, which is told. With `state` this is collective: no process writes while another still reads.
        """
        if state is not None:
            state.wait_for_everyone()
        found: dict[Any, Line] = {}
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        for file in sorted(self.folder.glob(self.index)):
            for line in read_json_lines(file):
                if not self._sound(line):
                    continue
                key = self.key(line)
                if "error" in line:
                    before = found.get(key, line)
                    if "error" in before or any(before.get(name) != line.get(name) for name in self.stamp):
                        found[key] = line
                elif not self.shard or self._shard_of(line) in there:
                    found[key] = line
        found = self._of_whole_shards(found, state is None or state.is_main_process)
        if state is not None:
            state.wait_for_everyone()
        return found

    def _sound(self, line: Line) -> bool:
        """Tell whether a line has what `append` was given: its key, and why there is no row or where it
        lies."""

        def whole(name: str) -> bool:
            return type(line.get(name)) is int and line[name] >= 0

        by = (self.by,) if isinstance(self.by, str) else self.by
        if not all(type(line.get(name)) in (str, int) for name in by):
            return False
        if "error" in line:
            error = line["error"]
            texts = isinstance(error, dict) and all(
                type(error.get(name)) is str for name in ("code", "message")
            )
            return texts or type(error) is str
        named = all(type(line.get(name)) in (str, int) for name in re.findall(r"{(\w+)", self.shard))
        return named and all(map(whole, self.places))

    def _shard_of(self, line: Line) -> str:
        """Return the name of a line's shard; one that no shard has where a field is of another kind than the
        name's."""
        try:
            return self.shard.format(**line)
        except (KeyError, ValueError):
            return ""

    def _of_whole_shards(self, found: dict[Any, Line], tell: bool) -> dict[Any, Line]:
        """Leave out the lines of shards that were cut off after they had been written."""
        if not self.places:
            return found
        shards: defaultdict[str, list[Any]] = defaultdict(list)
        for key, line in found.items():
            if "error" not in line:
                shards[self._shard_of(line)].append(key)
        for name, keys in shards.items():
            if self._holds(self.folder / name, [found[key] for key in keys]):
                continue
            if tell:
                print(
                    f"{printable(str(self.folder / name))} is damaged; its {len(keys)} rows count as not there",
                    file=sys.stderr,
                )
            for key in keys:
                del found[key]
        return found

    def _holds(self, file: Path, lines: Sequence[Line]) -> bool:
        """Tell whether a shard is as long as its lines say, or as its own header does."""
        if self.places != ROW:
            size = file.stat().st_size
            return all(line["offset"] + line["size"] <= size for line in lines)
        try:
            tensors = read_header(file)
        except ModelError:
            return False
        most = max(line["row"] for line in lines)
        return bool(tensors) and all(tensor.shape[0] > most for tensor in tensors.values() if tensor.shape)

    def append(self, lines: Sequence[Line]) -> None:
        """Add lines to this process's index. What they promise must be on the disk already."""
        append_json(self.folder / self.index.replace("*", str(self.process)), lines)

    def clear(self) -> None:
        """Forget all rows."""
        for file in self.folder.glob(self.index):
            file.unlink()

    def array(self, name: str, shape: tuple[int, ...], dtype: Any, state: PartialState) -> np.memmap:
        """Return the .npy file `name` of rows (N, ...), to be written to; the index says which rows are in it.

        Collective. Where there is no such file, or it has another shape, it is made and all lines are forgotten.
        """
        file = self.folder / name
        if state.is_main_process:
            try:
                there = np.load(file, mmap_mode="r")
                sound = there.shape == shape and there.dtype == dtype
            except (OSError, ValueError):
                sound = False
            if not sound:
                self.clear()
                np.lib.format.open_memmap(file, "w+", dtype, shape)
        state.wait_for_everyone()
        return np.lib.format.open_memmap(file, "r+")

    def no_room(self, size: float) -> str:
        """Say that `size` more bytes do not fit on the disk; "" if they do."""
        free = shutil.disk_usage(self.folder).free
        return (
            f"take {size / 1e9:,.1f} GB, and {self.folder} has {free / 1e9:,.1f} GB left"
            if size > free
            else ""
        )


class TensorShards:
    """Rows on their way into safetensors files: collected until a file is full, then written with their lines.

    `name` is that of the files, with braces for a number; `known` the rows that are there. A file holds `full` lines,
    and fewer where that many take longer than `PATIENCE`. Its tensors are (N, ...), and a line's fields "file" and
    "row" say where its row lies.
    """

    def __init__(self, store: Store, name: str, known: Mapping[Any, Line], full: int) -> None:
        self.store, self.name, self.known, self.full = store, name, known, full
        pattern = re.compile(r"(\d+)".join(map(re.escape, re.split(r"\{.*?\}", name))))
        numbers = [int(m[1]) for line in known.values() if (m := pattern.fullmatch(line.get("file", "")))]
        self.number = 1 + max(numbers, default=-1)
        self.due = Every(PATIENCE)
        self.lines: list[Line] = []
        self.parts: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, lines: Sequence[Line], tensors: Mapping[str, Tensor]) -> list[Line]:
        """Take lines, and of those without "error" the rows in their order: (B, ...). Returns the lines that this has
        brought to the disk."""
        self.lines += lines
        for name, x in tensors.items():
            self.parts[name].append(x)
        return self.write() if len(self.lines) >= self.full or self.due() else []

    def write(self) -> list[Line]:
        """Write what was collected; returns its lines. Lines that the index has already are not added to it."""
        import torch
        from safetensors.torch import save_file

        file, count, lines = self.name.format(self.number), 0, []
        for line in self.lines:
            if "error" not in line:
                line = {**line, "file": file, "row": count}
                count += 1
            lines.append(line)
        if count:
            tensors = {name: torch.cat(parts) for name, parts in self.parts.items()}
            with write_atomically(self.store.folder / file) as part:
                save_file(tensors, part)
            self.number += 1
        self.store.append([line for line in lines if self.known.get(self.store.key(line)) != line])
        self.lines, self.parts = [], defaultdict(list)
        self.due = Every(PATIENCE)
        return lines
