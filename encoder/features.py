"""Features of frozen encoders on disk, each computed once: kept by encoder, preprocessing and what an image contains.

    FOLDER/contents-0.jsonl         path, size and time of a file, and the digest of what it contains
    FOLDER/KEY/about.json           which encoder, which preprocessing, which layers
    FOLDER/KEY/index-0.jsonl        an image a line, by digest: in which file and row it is, or why it cannot be read
    FOLDER/KEY/0-00000.safetensors  cls, mean (N, C) float32; cells (N, cells², C), patches (N, P, C layers) float16

A file that is moved, copied or renamed is the same image. Each process of accelerate computes its share and writes
files of its own, under another name until they are whole, so an interrupted extraction goes on where it stopped. Two
runs that need features of the same encoder wait for each other.

Shape letters: N images, P patches, C channels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder.errors import ModelError
from encoder.files import one_at_a_time
from encoder.frozen import Encoder, Tokens
from encoder.radiograph import InputError, read

CONTENTS, INDEX, ABOUT, LOCK = "contents", "index", "about.json", ".lock"
PER_FILE, MOST, PATIENCE = 256 << 20, 4096, 60.0  # a file is written at so many bytes, images or seconds
TOLD = 1 << 30  # bytes of features that are announced before


@dataclass
class Features:
    """Of the images that could be read, in the order they were asked for: `rows` are their places in that order."""

    rows: np.ndarray  # (N,)
    cls_NC: np.ndarray  # float32
    mean_NC: np.ndarray  # of the patch tokens of the last layer, float32
    cells_NC: np.ndarray | None  # (N, cells² C): of those in each cell, row by row, if asked for
    digests: list[str]  # of what each contains
    errors: dict[int, str]  # place of an image that cannot be read -> code of the reason
    layers: int  # side by side in `patches`
    _where: list[tuple[Path, int]]  # file and row of each

    def __len__(self) -> int:
        return len(self.rows)

    def patches(self, which: Sequence[int]) -> Tensor:
        """Patch tokens (len(which), P, C layers) float32 of some of the N. Raises ModelError if they were not kept."""
        found: list[Tensor | None] = [None] * len(which)
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
        """The same of the last layer alone, (len(which), P, C)."""
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
) -> Features:
    """Features of the images, from `folder` where it has them. With `patches` also the patch tokens of the last
    `layers` layers, with `cells` the means of those of the last one in `cells` x `cells` parts of the image.

    `half`: products in bfloat16, by autocast, and kept apart; half the time where the hardware multiplies it. `look`
    changes the grey levels (H, W) before the preprocessing; `looked` is its name, for the key. `state` spreads the work
    over the processes of accelerate; all of them get all features. Unreadable images are among `errors`, and
    are tried again each time. Raises ModelError where the disk is too small for what is missing.
    """
    state, layers = state or PartialState(), layers if patches else 1
    about = {
        "encoder": encoder.name, "encoder_sha256": encoder.sha256, "look": looked, "layout": 2,
        "preprocess_sha256": encoder.preprocessing.sha256, "patches": patches, "layers": layers,
        **({"precision": "bf16"} if half else {}), **({"cells": cells} if cells else {}),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps({**about, "encoder": ""}).encode()).hexdigest()[:16]
    store = folder / key
    if state.is_main_process:
        store.mkdir(parents=True, exist_ok=True)
    state.wait_for_everyone()
    with _locked(store, state, say):
        if state.is_main_process:
            (store / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        contents = digests(paths, folder, state)
        state.wait_for_everyone()
        known = _index(store)
        wanted = {contents[p]: p for p in paths if p in contents}
        missing = [(d, p) for d, p in wanted.items() if "file" not in known.get(d, {})]
        kept = _Kept(patches, layers, cells)
        if state.is_main_process:
            _room(folder, kept.size(encoder) * len(missing), encoder.name, len(missing), say)
        mine = missing[state.process_index :: state.num_processes]
        if mine:
            _extract(encoder, mine, known, store, kept, half, batch, workers, state, look, say)
        state.wait_for_everyone()
        known = _index(store)
    rows, where, errors = [], [], {}
    for place, path in enumerate(paths):
        line = known.get(contents.get(path, ""), {"error": "unreadable"})
        if "error" in line:
            errors[place] = line["error"]
        else:
            rows.append(place)
            where.append((store / line["file"], line["row"]))
    vectors = _vectors(where)
    return Features(
        np.array(rows, dtype=np.int64), vectors["cls"], vectors["mean"], vectors.get("cells"),
        [contents[paths[i]] for i in rows], errors, layers, where,
    )  # fmt: skip


def digests(paths: Sequence[Path], folder: Path, state: PartialState | None = None) -> dict[Path, str]:
    """Digest of what each file contains; files that are as they were (size, time) are not read again. Those that
    cannot be opened are left out. Each process reads its share."""
    state = state or PartialState()
    stamps: dict[Path, tuple] = {}
    for path in dict.fromkeys(paths):
        try:
            about = path.stat()
        except OSError:
            continue
        stamps[path] = (str(path.absolute()), about.st_size, about.st_mtime_ns)
    known = _contents(folder)
    state.wait_for_everyone()  # nobody writes while another still reads
    missing = [path for path, stamp in stamps.items() if stamp not in known]
    mine, lines = missing[state.process_index :: state.num_processes], []
    file = folder / f"{CONTENTS}-{state.process_index}.jsonl"
    for number, path in enumerate(mine, 1):
        try:
            with path.open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError:
            continue
        lines.append(dict(zip(("path", "size", "mtime_ns", "sha256"), (*stamps[path], sha256), strict=True)))
        if len(lines) == 500 or number == len(mine):
            _append(file, lines)
            lines = []
    _append(file, lines)
    state.wait_for_everyone()
    known = _contents(folder)
    return {path: known[stamp] for path, stamp in stamps.items() if stamp in known}


def _contents(folder: Path) -> dict[tuple, str]:
    files = sorted(folder.glob(f"{CONTENTS}-*.jsonl"))
    lines = [line for file in files for line in _lines(file)]
    return {(line["path"], line["size"], line["mtime_ns"]): line["sha256"] for line in lines}


@contextmanager
def _locked(store: Path, state: PartialState, say: Callable[[str], None]) -> Iterator[None]:
    """The first process keeps other runs out of the store; those of its own run wait for it."""
    if not state.is_main_process:
        state.wait_for_everyone()
        yield
        return
    with one_at_a_time(store / LOCK, f"another run computes features in {store}; waiting", say=say):
        state.wait_for_everyone()
        yield


def _room(folder: Path, size: int, name: str, images: int, say: Callable[[str], None]) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ModelError(
            f"{name}: features of {images} images take {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left; "
            "choose another features folder, a smaller size, fewer layers, or tasks that need no patch tokens"
        )
    if size > TOLD:
        say(f"{name}: features of {images} images will take {size / 1e9:.1f} GB of {folder}")


class _Films(torch.utils.data.Dataset):
    """(digest, path) -> (digest, pixels (3, H, W) or the code of the reason why there are none)."""

    def __init__(self, items: list[tuple[str, Path]], preprocessing, look) -> None:
        self.items, self.preprocessing, self.look = items, preprocessing, look

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[str, Tensor | str]:
        digest, path = self.items[i]
        try:
            pixels = read(path).pixels
        except InputError as error:
            return digest, error.code
        return digest, self.preprocessing(self.look(pixels) if self.look else pixels)


@dataclass(frozen=True)
class _Kept:
    """What is kept of each image, beside CLS and mean."""

    patches: bool
    layers: int
    cells: int

    def size(self, encoder: Encoder) -> int:
        """Bytes of an image."""
        halves = self.cells**2 + (encoder.grid**2 * self.layers if self.patches else 0)
        return 4 * encoder.width + (4 + 2 * halves) * encoder.patch_width

    def of(self, tokens: Tokens, grid: int) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors (B, ...), on the CPU."""
        last_BPC = tokens.patches_BPC.chunk(self.layers, -1)[-1].float()
        yield "cls", tokens.cls_BC.float().cpu()
        yield "mean", last_BPC.mean(1).cpu()
        if self.cells:
            cells_BCHW = F.adaptive_avg_pool2d(last_BPC.mT.unflatten(2, (grid, grid)), self.cells)
            yield "cells", cells_BCHW.flatten(2).mT.to("cpu", torch.float16)
        if self.patches:
            yield "patches", tokens.patches_BPC.to("cpu", torch.float16)


def _extract(
    encoder, mine, known, store: Path, kept: _Kept, half: bool, batch, workers, state, look, say
) -> None:
    encoder = encoder.to(state.device)
    loader = torch.utils.data.DataLoader(
        _Films(mine, encoder.preprocessing, look), batch, num_workers=workers, collate_fn=list
    )
    full = max(batch, min(MOST, PER_FILE // kept.size(encoder)))
    rank = state.process_index
    number = 1 + max((int(p.stem.split("-")[1]) for p in store.glob(f"{rank}-*.safetensors")), default=-1)
    started = written = time.perf_counter()
    said, seen = 0.0, 0
    waiting: list[dict] = []
    parts: defaultdict[str, list[Tensor]] = defaultdict(list)

    def write() -> None:
        nonlocal number, written
        lines, count = [], 0
        for line in waiting:
            if "error" not in line:
                line = {**line, "file": f"{rank}-{number:05d}.safetensors", "row": count}
                count += 1
            lines.append(line)
        if count:
            file = store / f"{rank}-{number:05d}.safetensors"
            tensors = {name: torch.cat(found) for name, found in parts.items()}
            save_file(tensors, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
            number += 1
        _append(
            store / f"{INDEX}-{rank}.jsonl", [line for line in lines if known.get(line["sha256"]) != line]
        )
        written = time.perf_counter()
        waiting.clear()
        parts.clear()

    for items in loader:
        good = [(digest, x) for digest, x in items if not isinstance(x, str)]
        waiting += [{"sha256": digest, "error": x} for digest, x in items if isinstance(x, str)]
        if good:
            with torch.autocast(state.device.type, torch.bfloat16, enabled=half):
                tokens = encoder(torch.stack([x for _, x in good]).to(state.device), kept.layers)
            waiting += [{"sha256": digest} for digest, _ in good]
            for name, x in kept.of(tokens, encoder.grid):
                parts[name].append(x)
        if len(waiting) >= full or time.perf_counter() - written > PATIENCE:
            write()
        seen += len(items)
        passed = time.perf_counter() - started
        if state.is_main_process and (passed - said > 10 or seen == len(mine)):
            said = passed
            say(f"{encoder.name}: features of {seen}/{len(mine)} images, {seen / passed:.0f} images/s")
    if waiting:
        write()


def _index(store: Path) -> dict[str, dict]:
    """Lines by digest, where there are several those of images that could be read."""
    found: dict[str, dict] = {}
    for file in sorted(store.glob(f"{INDEX}-*.jsonl")):
        for line in _lines(file):
            if "file" in line or "file" not in found.get(line["sha256"], {}):
                found[line["sha256"]] = line
    return found


def _append(file: Path, lines: Sequence[dict]) -> None:
    """After the last whole line: one that was cut off would take the next with it."""
    if not lines:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as out:
        if end := out.tell():
            out.seek(end - 1)
            if out.read(1) != b"\n":
                out.write(b"\n")
        out.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def _lines(file: Path) -> list[dict]:
    """Those that are whole."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _vectors(where: list[tuple[Path, int]]) -> dict[str, np.ndarray]:
    """CLS, mean and, where they are, cells of each, in that order."""
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
