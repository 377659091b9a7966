"""Features of frozen encoders on disk, each computed once: kept by encoder, preprocessing and what an image contains.

    FOLDER/contents-0.jsonl         path, size and time of a file, and the digest of what it contains
    FOLDER/KEY/about.json           which encoder, which preprocessing, which layers
    FOLDER/KEY/index-0.jsonl        an image a line, by digest: in which file and row it is, or why it cannot be read
    FOLDER/KEY/0-00000.safetensors  cls, mean (N, C) float32; cells (N, cells², C), patches (N, P, C layers) float16

A file that is moved, copied or renamed is the same image. Each process of accelerate computes its share and writes
files of its own. An interrupted extraction resumes, and two runs that need features of the same encoder wait for each
other (encoder/store.py).

Shape letters: N images, P patches, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors import safe_open
from torch import Tensor

from encoder.errors import ModelError
from encoder.files import key_of, sha256_of, write_json
from encoder.frozen import Encoder, Tokens
from encoder.inputs import Input, Inputs
from encoder.progress import bar
from encoder.radiograph import Radiograph
from encoder.store import ROW, Store, TensorShards
from encoder.transforms import Preprocessing

CONTENTS, ABOUT = "contents", "about.json"
# A file is written at so many bytes or images, or after encoder.store.PATIENCE seconds.
PER_FILE, MOST = 256 << 20, 4096
# Bytes of features that are announced before.
TOLD = 1 << 30


@dataclass
class FeatureSet:
    """Features of the N images that could be read, in the order in which they were asked for.

    Attributes:
        rows: (N,), the images' places in that order.
        cls_NC: CLS, float32.
        mean_NC: mean of the patch tokens of the last layer, float32.
        cells_NC: if asked for, the means in each cell, row by row (N, cells² C).
        digests: of what each image contains.
        errors: place of an image that cannot be read -> code of the reason.
        layers: how many lie side by side in `patches`.
    """

    rows: np.ndarray
    cls_NC: np.ndarray
    mean_NC: np.ndarray
    cells_NC: np.ndarray | None
    digests: list[str]
    errors: dict[int, str]
    layers: int
    # File and row of each.
    _where: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.rows)

    def patches(self, which: Sequence[int]) -> Tensor:
        """Return patch tokens (len(which), P, C layers) float32 of some of the N. Raises ModelError if they were not
        kept."""
        found = [torch.empty(0)] * len(which)
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for place, i in enumerate(which):
            file, row = self._where[i]
            by_file.setdefault(file, []).append((place, row))
        for file, wanted in by_file.items():
            with safe_open(file, "pt") as tensors:
                if "patches" not in tensors.keys():  # noqa: SIM118
                    raise ModelError(f"{file} has no patches: they were not asked for when it was made")
                patches = tensors.get_slice("patches")
                for place, row in wanted:
                    found[place] = patches[row].float()
        return torch.stack(found) if found else torch.empty(0)

    def last(self, which: Sequence[int]) -> Tensor:
        """Return the same of the last layer alone, (len(which), P, C)."""
        return self.patches(which).chunk(self.layers, -1)[-1]


def extract(
    encoder: Encoder,
    paths: Sequence[Path],
    folder: Path,
    *,
    patches: bool = False,
    layers: int = 1,
    cells: int = 0,
    batch: int = 16,
    workers: int = 0,
    state: PartialState | None = None,
    half: bool = False,
    look: Callable[[np.ndarray], np.ndarray] | None = None,
    looked: str = "",
    say: Callable[[str], None] = print,
) -> FeatureSet:
    """Return features of the images, and compute only what `folder` lacks.

    Args:
        patches: keep the patch tokens, too.
        layers: of so many last layers.
        cells: keep the means of the patch tokens in `cells` x `cells` parts of the image, too.
        batch: images a step.
        workers: processes that read images, beside this one.
        state: the processes of accelerate, which share the work; all of them get all features. Collective.
        half: multiply in bfloat16, by autocast. Such features are kept apart.
        look: changes the grey levels (H, W) before the preprocessing.
        looked: its name, for the key.
        say: what tells of progress.

    Returns:
        The features; images that cannot be read are among its `errors`, and are tried again each time.

    Raises:
        ModelError: the disk is too small for what is missing.
    """
    state, layers = state or PartialState(), layers if patches else 1
    about = {
        "encoder": encoder.name, "encoder_sha256": encoder.sha256, "look": looked, "layout": 2,
        "preprocess_sha256": encoder.preprocessing.sha256, "patches": patches, "layers": layers,
        **({"precision": "bf16"} if half else {}), **({"cells": cells} if cells else {}),
    }  # fmt: skip
    store = Store(
        folder / key_of({**about, "encoder": ""}), "sha256", index="index-*.jsonl", shard="{file}",
        process=state.process_index, places=ROW,
    )  # fmt: skip
    with store.writing(state, say):
        if state.is_main_process:
            write_json(store.folder / ABOUT, about)
        contents = digests(paths, folder, state)
        known = store.rows(state)
        wanted = {contents[p]: p for p in paths if p in contents}
        missing = [(d, p) for d, p in wanted.items() if "file" not in known.get(d, {})]
        kept = _Parts(patches, layers, cells)
        if state.is_main_process:
            _announce(store, kept.size(encoder) * len(missing), encoder.name, len(missing), say)
        mine = missing[state.process_index :: state.num_processes]
        if mine:
            make = partial(_seen, look, encoder.preprocessing) if look else encoder.preprocessing
            batches = Inputs(mine, make).batches(batch, workers)
            if state.is_main_process:
                batches = bar(batches, f"{encoder.name}: features", len(mine), size=len, say=say)
            full = max(batch, min(MOST, PER_FILE // kept.size(encoder)))
            shards = TensorShards(store, f"{state.process_index}-{{:05d}}.safetensors", known, full)
            _extract(encoder.to(state.device), batches, shards, kept, half, state.device)
        known = store.rows(state)
    rows, where, errors = [], [], {}
    for place, path in enumerate(paths):
        line = known.get(contents.get(path, ""), {"error": "unreadable"})
        if "error" in line:
            errors[place] = line["error"]
        else:
            rows.append(place)
            where.append((store.folder / line["file"], line["row"]))
    vectors = _vectors(where)
    return FeatureSet(
        np.array(rows, dtype=np.int64), vectors["cls"], vectors["mean"], vectors.get("cells"),
        [contents[paths[i]] for i in rows], errors, layers, where,
    )  # fmt: skip


def digests(paths: Sequence[Path], folder: Path, state: PartialState | None = None) -> dict[Path, str]:
    """Return the digest of what each file contains, without those that cannot be opened. Files that are as they were
    (size, time) are not read again. Collective: each process reads its share."""
    state = state or PartialState()
    fields = ("path", "size", "mtime_ns")
    stamps: dict[Path, tuple] = {}
    for path in dict.fromkeys(paths):
        try:
            about = path.stat()
        except OSError:
            continue
        stamps[path] = (str(path.absolute()), about.st_size, about.st_mtime_ns)
    store = Store(folder, fields, index=f"{CONTENTS}-*.jsonl", own=CONTENTS, process=state.process_index)
    with store.writing(state):
        known = store.rows(state)
        missing = [path for path, stamp in stamps.items() if stamp not in known]
        mine, lines = missing[state.process_index :: state.num_processes], []
        for path in bar(mine, "digests", unit="files") if state.is_main_process else mine:
            try:
                lines.append({**dict(zip(fields, stamps[path], strict=True)), "sha256": sha256_of(path)})
            except OSError:
                continue
            if len(lines) == 500:
                store.append(lines)
                lines = []
        store.append(lines)
        known = store.rows(state)
    return {path: known[stamp]["sha256"] for path, stamp in stamps.items() if stamp in known}


def _announce(store: Store, size: int, name: str, images: int, say: Callable[[str], None]) -> None:
    """Say how much the features will take. Raises ModelError where the disk is too small for them."""
    if no_room := store.no_room(size):
        raise ModelError(
            f"{name}: features of {images} images {no_room}; choose another features folder, a smaller size, fewer "
            "layers, or tasks that need no patch tokens"
        )
    if size > TOLD:
        say(f"{name}: features of {images} images will take {size / 1e9:.1f} GB of {store.folder.parent}")


def _seen(
    look: Callable[[np.ndarray], np.ndarray], preprocessing: Preprocessing, image: Radiograph
) -> Tensor:
    return preprocessing(look(image.pixels))


@dataclass(frozen=True)
class _Parts:
    """What is kept of each image, beside CLS and mean."""

    patches: bool
    layers: int
    cells: int

    def size(self, encoder: Encoder) -> int:
        """Return the bytes that an image takes."""
        halves = self.cells**2 + (encoder.grid**2 * self.layers if self.patches else 0)
        return 4 * encoder.width + (4 + 2 * halves) * encoder.patch_width

    def of(self, tokens: Tokens, grid: int) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors (B, ...), on the CPU."""
        last_BPC = tokens.patches_BPC.chunk(self.layers, -1)[-1].float()
        yield "cls", tokens.cls_BC.float().cpu()
        yield "mean", last_BPC.mean(1).cpu()
        if self.cells:
            cells_BCHW = F.adaptive_avg_pool2d(last_BPC.mT.unflatten(2, (grid, grid)), self.cells)
            yield "cells", cells_BCHW.flatten(2).mT.to("cpu", torch.float16)
        if self.patches:
            yield "patches", tokens.patches_BPC.to("cpu", torch.float16)


def _extract(
    encoder: Encoder, batches: Iterable[list[Input]], shards: TensorShards, kept: _Parts, half: bool, device
) -> None:
    """Encode what could be read of each batch, and put all into the shards."""
    for items in batches:
        lines = [{"sha256": i.key, "error": i.error.code} if i.error else {"sha256": i.key} for i in items]
        good = [i.x for i in items if i.x is not None]
        tensors: dict[str, Tensor] = {}
        if good:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                tokens = encoder(torch.stack(good).to(device), kept.layers)
            tensors = dict(kept.of(tokens, encoder.grid))
        shards.add(lines, tensors)
    shards.write()


def _vectors(where: list[tuple[Path, int]]) -> dict[str, np.ndarray]:
    """Return CLS, mean and, where there are such, cells of each image, (N, C) each."""
    found: dict[str, np.ndarray] = {}
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for i, (file, row) in enumerate(where):
        by_file.setdefault(file, []).append((i, row))
    for file, places in by_file.items():
        at, rows = np.array(places).T
        with safe_open(file, "np") as tensors:
            for name in set(tensors.keys()) - {"patches"}:
                x_NC = tensors.get_tensor(name)
                x_NC = x_NC.reshape(len(x_NC), -1)
                if name not in found:
                    found[name] = np.empty((len(where), x_NC.shape[1]), np.float32)
                found[name][at] = x_NC[rows]
    return found or dict.fromkeys(("cls", "mean"), np.empty((0, 0), np.float32))
