"""Features of a frozen encoder, computed once and kept on disk as a memory-mapped float16 array.

The file is keyed by encoder, preprocessing and images (path, size, time), so a change of any of them makes a new one.
Every process computes its share; images that cannot be read are left out and listed.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from encoder.radiograph import InputError, read
from train.config import ConfigError
from train.processes import one_at_a_time
from vlm.model import FindingsModel
from vlm.projector import layers_of, tower_features
from vlm.towers import shape_of


class Radiographs(torch.utils.data.Dataset):
    """Paths -> (row, pixels (3, H, W)) or (row, reason why there are none)."""

    def __init__(self, items: list[tuple[int, Path]], preprocessing):
        self.items, self.preprocessing = items, preprocessing

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        row, path = self.items[i]
        try:
            return row, self.preprocessing(read(path).pixels)
        except InputError as error:
            return row, f"{error.code}: {path}"


def image_features(
    model: FindingsModel,
    paths: list[Path],
    folder: Path,
    state: PartialState,
    batch: int = 32,
    workers: int = 0,
) -> tuple[np.ndarray, dict[Path, int]]:
    """(features float16 (images, extra + N, C), row of each path that could be read). Computed where the model is: on
    the device of `state`. Raises ConfigError if no image could be read, or a feature does not fit float16."""
    stamps = [
        [str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] if p.is_file() else [str(p)]
        for p in paths
    ]
    described = [model.meta.encoder_sha256, model.meta.preprocess_sha256, model.meta.features, stamps]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    data, done = folder / f"{key}.npy", folder / f"{key}.json"
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{key}.lock"
    alone = one_at_a_time(lock, f"another run computes these features; waiting ({lock})")
    with alone if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        if not done.exists():
            _compute(model, paths, folder, key, state, batch, workers)
    unreadable = set(json.loads(done.read_text())["unreadable"])
    for line in sorted(unreadable)[:5]:
        state.print(f"left out, {line}")
    if len(unreadable) > 5:
        state.print(f"... and {len(unreadable) - 5} more images that cannot be read")
    bad = {line.partition(": ")[2] for line in unreadable}
    rows = {path: i for i, path in enumerate(paths) if str(path) not in bad}
    if not rows:
        raise ConfigError(f"none of {len(paths)} images could be read; the first: {min(unreadable)}")
    return np.load(data, mmap_mode="r"), rows


def _compute(model, paths, folder: Path, key: str, state: PartialState, batch: int, workers: int) -> None:
    tower = model.llava.model.vision_tower.to(state.device)
    layers, norm = layers_of(model.llava), getattr(model.llava.config, "feature_norm", False)
    sizes = shape_of(tower.config)
    tokens = sizes.extra + (model.preprocessing.size // sizes.patch) ** 2
    shape = (len(paths), tokens, sizes.width * len(layers))
    data, done, part = folder / f"{key}.npy", folder / f"{key}.json", folder / f"{key}.npy.part"
    if state.is_main_process:
        for left in folder.glob(f"{key}.*.left_out"):  # of a run that was cut off
            left.unlink()
        print(
            f"features of {len(paths)} images: {np.prod(shape, dtype=float) * 2 / 2**20:,.0f} MB in {data}",
            flush=True,
        )
        np.lib.format.open_memmap(part, "w+", np.float16, shape)
    state.wait_for_everyone()
    array = np.lib.format.open_memmap(part, "r+")
    mine = list(enumerate(paths))[state.process_index :: state.num_processes]
    loader = torch.utils.data.DataLoader(
        Radiographs(mine, model.preprocessing), batch, num_workers=workers, collate_fn=list
    )
    unreadable, started, said, seen = [], time.perf_counter(), 0.0, 0
    for items in loader:
        good = [(row, x) for row, x in items if not isinstance(x, str)]
        unreadable += [x for _, x in items if isinstance(x, str)]
        if good:
            features_BNC = tower_features(
                tower, torch.stack([x for _, x in good]).to(state.device), layers, norm
            ).cpu()
            if features_BNC.abs().max() > 65000:
                raise ConfigError("a feature is too large for float16; is the encoder in order?")
            array[[row for row, _ in good]] = features_BNC.numpy().astype(np.float16)
        seen += len(items)
        passed = time.perf_counter() - started
        if state.is_main_process and (passed - said > 10 or seen == len(mine)):
            said = passed
            print(f"features {seen}/{len(mine)}  {seen / passed:.0f} images/s", flush=True)
    array.flush()
    (folder / f"{key}.{state.process_index}.left_out").write_text(json.dumps(unreadable))
    state.wait_for_everyone()
    if state.is_main_process:
        lists = sorted(folder.glob(f"{key}.*.left_out"))
        part.rename(data)
        done.write_text(json.dumps({"unreadable": [x for p in lists for x in json.loads(p.read_text())]}))
        for p in lists:
            p.unlink()
    state.wait_for_everyone()
