"""Features of frozen encoders on disk, each computed once: kept by encoder, preprocessing and what an image contains.

    FOLDER/contents.jsonl           path, size and time of a file, and the digest of what it contains
    FOLDER/KEY/about.json           which encoder, which preprocessing, which layers
    FOLDER/KEY/index-0.jsonl        an image a line, by digest: in which file and row it is, or why it cannot be read
    FOLDER/KEY/0-00000.safetensors  cls (N, C) float32, patches (N, P, C) float16

A file that is moved, copied or renamed is the same image. Each process of accelerate computes its share and writes
files of its own, under another name until they are whole, so an interrupted extraction goes on where it stopped.

Shape letters: N images, P patches, C channels.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder.errors import ModelError
from encoder.frozen import Encoder
from encoder.radiograph import InputError, read

CONTENTS, ABOUT = "contents.jsonl", "about.json"
PER_FILE = 256  # MB of a file of features, about


@dataclass
class Features:
    """Of the images that could be read, in the order they were asked for: `rows` are their places in that order."""

    rows: np.ndarray  # (N,)
    cls_NC: np.ndarray  # float32
    errors: dict[int, str]  # place of an image that cannot be read -> code of the reason
    _where: list[tuple[Path, int]]  # file and row of each
    grid: int

    def __len__(self) -> int:
        return len(self.rows)

    def patches(self, which: Sequence[int]) -> Tensor:
        """Patch tokens (len(which), P, C) float32 of some of the N. Raises ModelError if they were not kept."""
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


def extract(
    encoder: Encoder,
    paths: Sequence[Path],
    folder: Path,
    *,
    patches: bool = False,
    layers: int = 1,
    batch: int = 16,
    workers: int = 0,
    state: PartialState | None = None,
    look: Callable[[np.ndarray], np.ndarray] | None = None,
    looked: str = "",
    say: Callable[[str], None] = print,
) -> Features:
    """Features of the images, from `folder` where it has them. With `patches` also the patch tokens of the last
    `layers` layers.

    `look` changes the grey levels (H, W) before the preprocessing; `looked` is its name, for the key. `state` spreads
    the work over the processes of accelerate; all of them get all features. Unreadable images are among `errors`.
    """
    state, layers = state or PartialState(), layers if patches else 1
    about = {
        "encoder": encoder.name, "encoder_sha256": encoder.sha256, "look": looked,
        "preprocess_sha256": encoder.preprocessing.sha256, "patches": patches, "layers": layers,
    }  # fmt: skip
    key = hashlib.sha256(json.dumps({**about, "encoder": ""}).encode()).hexdigest()[:16]
    store = folder / key
    if state.is_main_process:
        store.mkdir(parents=True, exist_ok=True)
        (store / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        contents = digests(paths, folder)
    state.wait_for_everyone()
    if not state.is_main_process:
        contents = digests(paths, folder)
    known = _index(store)
    missing = [(d, p) for d, p in {contents[p]: p for p in paths if p in contents}.items() if d not in known]
    mine = missing[state.process_index :: state.num_processes]
    if mine:
        _extract(encoder, mine, store, patches, layers, batch, workers, state, look, say)
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
    return Features(np.array(rows, dtype=np.int64), _cls(where, encoder.width), errors, where, encoder.grid)


def digests(paths: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Digest of what each file contains; files that are as they were (size, time) are not read again. Those that
    cannot be opened are left out."""
    file = folder / CONTENTS
    known = {}
    if file.is_file():
        for line in _lines(file):
            known[line["path"], line["size"], line["mtime_ns"]] = line["sha256"]
    found, new = {}, []
    for path in dict.fromkeys(paths):
        try:
            about = path.stat()
            stamp = (str(path.absolute()), about.st_size, about.st_mtime_ns)
            if stamp not in known:
                with path.open("rb") as content:
                    known[stamp] = hashlib.file_digest(content, "sha256").hexdigest()
                new.append(
                    dict(zip(("path", "size", "mtime_ns", "sha256"), (*stamp, known[stamp]), strict=True))
                )
            found[path] = known[stamp]
        except OSError:
            continue
    if new:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write("".join(json.dumps(line) + "\n" for line in new))
    return found


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


def _extract(
    encoder, mine, store: Path, patches: bool, layers: int, batch, workers, state, look, say
) -> None:
    encoder = encoder.to(state.device)
    loader = torch.utils.data.DataLoader(
        _Films(mine, encoder.preprocessing, look), batch, num_workers=workers, collate_fn=list
    )
    size = 2 * encoder.grid**2 * encoder.width * layers if patches else 4 * encoder.width
    full = max(batch, (PER_FILE << 20) // size)
    rank = state.process_index
    number = 1 + max((int(p.stem.split("-")[1]) for p in store.glob(f"{rank}-*.safetensors")), default=-1)
    started, said, seen = time.perf_counter(), 0.0, 0
    waiting: list[dict] = []
    parts: dict[str, list[Tensor]] = {"cls": [], "patches": []}

    def write() -> None:
        nonlocal number
        lines, count = [], 0
        for line in waiting:
            if "error" not in line:
                line = {**line, "file": f"{rank}-{number:05d}.safetensors", "row": count}
                count += 1
            lines.append(line)
        if count:
            file = store / f"{rank}-{number:05d}.safetensors"
            tensors = {name: torch.cat(found) for name, found in parts.items() if found}
            save_file(tensors, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
            number += 1
        with (store / f"index-{rank}.jsonl").open("a", encoding="utf-8") as index:
            index.write("".join(json.dumps(line) + "\n" for line in lines))
        waiting.clear()
        for found in parts.values():
            found.clear()

    for items in loader:
        good = [(digest, x) for digest, x in items if not isinstance(x, str)]
        waiting += [{"sha256": digest, "error": x} for digest, x in items if isinstance(x, str)]
        if good:
            tokens = encoder(torch.stack([x for _, x in good]).to(state.device), layers)
            waiting += [{"sha256": digest} for digest, _ in good]
            parts["cls"].append(tokens.cls_BC.float().cpu())
            if patches:
                parts["patches"].append(tokens.patches_BPC.to("cpu", torch.float16))
        if len(waiting) >= full:
            write()
        seen += len(items)
        passed = time.perf_counter() - started
        if state.is_main_process and (passed - said > 10 or seen == len(mine)):
            said = passed
            say(f"{encoder.name}: features of {seen}/{len(mine)} images, {seen / passed:.0f} images/s")
    if waiting:
        write()


def _index(store: Path) -> dict[str, dict]:
    """Lines by digest; one that was cut off is forgotten, and its image computed again."""
    return {line["sha256"]: line for file in sorted(store.glob("index-*.jsonl")) for line in _lines(file)}


def _lines(file: Path) -> list[dict]:
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _cls(where: list[tuple[Path, int]], width: int) -> np.ndarray:
    files: dict[Path, np.ndarray] = {}
    out = np.empty((len(where), width), np.float32)
    for i, (file, row) in enumerate(where):
        if file not in files:
            with safe_open(file, "np") as tensors:
                files[file] = tensors.get_tensor("cls")
        out[i] = files[file][row]
    return out
