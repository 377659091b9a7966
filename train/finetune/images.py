"""What the language model is shown of an image, in training: features of a frozen encoder, or the image itself.

`Cached` are features computed once and kept on disk as a memory-mapped float16 array: a step then costs the language
model alone. `Films` are pixels, read anew in every step for a tower that works in every step: for archives whose
features no disk holds (2.1 MB an image for RAD-DINO), for augmentation, for an encoder that is trained.

Both are keyed by encoder, preprocessing and images (path, size, time), so a change of any of them makes new ones. Every
process reads its share; images that cannot be read are left out and listed; an interrupted run resumes.

    FOLDER/KEY.npy       features (images, tokens, C) float16, in the order of the paths
    FOLDER/KEY.json      that all are there, and which images could not be read
    FOLDER/KEY-0.jsonl   until then: the rows that are there
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torchvision.transforms import v2

from encoder.files import key_of, read_json, write_json
from encoder.inputs import Inputs
from encoder.progress import Every, bar
from encoder.radiograph import read
from encoder.store import PATIENCE, Line, Store
from encoder.towers import shape_of
from train.common.config import ConfigError
from vlm.model import FindingsModel
from vlm.projector import layers_of, normed, tower_features

# Degrees, share of the side, factor: how films really differ.
TURN, SHIFT, SCALE = 5.0, (0.03, 0.03), (0.92, 1.08)
# Of the standardised grey levels: added, and times. No flip: sides matter in findings.
BRIGHTEN, STRETCH = 0.1, 0.1


class Cached:
    """Features (images, tokens, C) at the row of an image's path."""

    def __init__(self, features: np.ndarray, row_of: dict[Path, int]):
        self.array, self.row_of = features, row_of

    def __contains__(self, path: Path) -> bool:
        return path in self.row_of

    def __call__(self, paths: Sequence[Path], draw: np.random.Generator | None = None) -> Tensor:
        """Return what a step takes: (images, tokens, C) float32."""
        return torch.from_numpy(self.array[[self.row_of[p] for p in paths]].astype("float32"))

    def features(self, paths: Sequence[Path]) -> Tensor:
        """Return features (images, tokens, C)."""
        return self(paths)

    @property
    def floats(self) -> int:
        """Return how many numbers an image has."""
        return self.array[0].size


class Films:
    """Pixels (images, 3, H, W), where `readable` has them; turned, shifted and brightened if `augment`."""

    def __init__(self, model: FindingsModel, readable: set[Path], batch: int = 32, augment: bool = False):
        self.preprocessing, self.readable = model.preprocessing, readable
        self.batch, self.augment = batch, augment
        self.tower, self.layers = model.parts.vision_tower, layers_of(model.llava)
        self.norm = normed(model.llava)

    def __getstate__(self) -> dict:
        """Return what goes to processes that read images: all but the tower."""
        return {**self.__dict__, "tower": None}

    def with_augmentation(self, augment: bool) -> Films:
        """Return the same images, turned, shifted and brightened a little every time, if `augment`."""
        films = copy.copy(self)
        films.tower, films.augment = self.tower, augment
        return films

    def __contains__(self, path: Path) -> bool:
        return path in self.readable

    def __call__(self, paths: Sequence[Path], draw: np.random.Generator | None = None) -> Tensor:
        """Return what a step takes: (images, 3, H, W), augmented with what is drawn from `draw`, if it is given."""
        films = [self.preprocessing(read(path)) for path in paths]
        if self.augment and draw is not None:
            films = [augmented(x_CHW, draw) for x_CHW in films]
        return torch.stack(films)

    def features(self, paths: Sequence[Path]) -> Tensor:
        """Return features (images, tokens, C), by the tower as it is now."""
        device = next(self.tower.parameters()).device
        parts = [self(paths[i : i + self.batch]).to(device) for i in range(0, len(paths), self.batch)]
        return torch.cat([tower_features(self.tower, x, self.layers, self.norm).cpu() for x in parts])

    @property
    def floats(self) -> int:
        """Return how many numbers one preprocessed film has: 3 x size x size."""
        return 3 * self.preprocessing.size**2


def augmented(x_CHW: Tensor, draw: np.random.Generator) -> Tensor:
    """Return a film as it might have been taken. What is shifted in from outside has the film's darkest grey level."""
    turn, *shift = draw.uniform(-1, 1, 3) * (TURN, *(s * x_CHW.shape[-1] for s in SHIFT))
    scale, level, stretch = draw.uniform(*SCALE), *(draw.uniform(-1, 1, 2) * (BRIGHTEN, STRETCH))
    dark = float(x_CHW.min())
    moved_CHW = v2.functional.affine(
        x_CHW,
        float(turn),
        [round(s) for s in shift],
        float(scale),
        [0.0],
        v2.InterpolationMode.BILINEAR,
        [dark],
    )
    return moved_CHW * (1 + stretch) + level


def image_features(
    model: FindingsModel,
    paths: list[Path],
    folder: Path,
    state: PartialState,
    batch: int = 32,
    workers: int = 0,
) -> Cached:
    """Return the features of all images that can be read, on disk in `folder`.

    Collective. They are computed where the model is: on the device of `state`. Raises ConfigError if no image could be
    read, a feature does not fit float16, or the disk is too small.
    """
    described = [model.meta.encoder_sha256, model.meta.preprocess_sha256, model.meta.features]
    tower = model.parts.vision_tower
    layers, norm = layers_of(model.llava), normed(model.llava)
    sizes = shape_of(tower.config)
    tokens = sizes.extra + (model.preprocessing.size // sizes.patch) ** 2
    shape = (len(paths), tokens, sizes.width * len(layers))

    def compute(store: Store) -> None:
        file = folder / f"{store.own}.npy"
        # Asked before the first process can have made it.
        begun = file.is_file()
        known = store.rows(state)
        count = len(paths) - (len(known) if begun else 0)
        size = np.prod(shape[1:], dtype=float) * 2 * count
        if no_room := store.no_room(size):
            raise ConfigError(
                f"features of {count} images {no_room}: give another --features_dir, or --features online"
            )
        if state.is_main_process:
            print(f"features of {count} images: {size / 2**20:,.0f} MB in {file}", flush=True)
            # Earlier versions left it behind where they were killed.
            file.with_name(f"{file.name}.part").unlink(missing_ok=True)
        array = store.array(file.name, shape, np.float16, state)
        tower.to(state.device)

        def take(rows: list[int], pixels: list[Tensor]) -> None:
            x_BNC = tower_features(tower, torch.stack(pixels).to(state.device), layers, norm).cpu()
            if x_BNC.abs().max() > 65000:
                raise ConfigError("a feature is too large for float16; is the encoder in order?")
            array[rows] = x_BNC.numpy().astype(np.float16)

        _visit(store, paths, model.preprocessing, state, batch, workers, "features", take, array.flush)

    key, rows = _once(described, paths, folder, state, compute)
    return Cached(np.load(folder / f"{key}.npy", mmap_mode="r"), rows)


def image_films(
    model: FindingsModel,
    paths: list[Path],
    folder: Path,
    state: PartialState,
    batch: int = 32,
    workers: int = 0,
) -> Films:
    """Return the images themselves, each read once to know which can be; `folder` keeps the list of those that cannot.

    Collective. Raises ConfigError if none can.
    """

    def compute(store: Store) -> None:
        _visit(store, paths, None, state, batch, workers, "images read")

    _, rows = _once(["films"], paths, folder, state, compute)
    return Films(model, set(rows), batch)


def _once(
    described: list, paths: list[Path], folder: Path, state: PartialState, compute: Callable[[Store], None]
) -> tuple[str, dict[Path, int]]:
    """Return (key, row of each path that could be read), after `compute` has been called, now or in an earlier run.

    Raises ConfigError where there are no images, or none can be read.
    """
    if not paths:
        raise ConfigError(
            "no study of split 'train' or 'validate' has both an image and the section to learn"
        )
    stamps = [
        [str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] if p.is_file() else [str(p)]
        for p in paths
    ]
    key = key_of([*described, stamps])
    done = folder / f"{key}.json"
    store = Store(folder, "row", index=f"{key}-*.jsonl", own=key, process=state.process_index)
    with store.writing(state):
        if not done.exists():
            compute(store)
            rows = store.rows(state)
            if state.is_main_process:
                write_json(done, {"unreadable": [line["error"] for line in rows.values() if "error" in line]})
                store.clear()
    unreadable = set(read_json(done).get("unreadable", ()))
    for line in sorted(unreadable)[:5]:
        state.print(f"left out, {line}")
    if len(unreadable) > 5:
        state.print(f"... and {len(unreadable) - 5} more images that cannot be read")
    bad = {line.partition(": ")[2] for line in unreadable}
    row_of = {path: i for i, path in enumerate(paths) if str(path) not in bad}
    if not row_of:
        raise ConfigError(f"none of {len(paths)} images could be read; the first: {min(unreadable)}")
    return key, row_of


def _visit(
    store: Store,
    paths: list[Path],
    make: Callable | None,
    state: PartialState,
    batch: int,
    workers: int,
    what: str,
    take: Callable[[list[int], list[Tensor]], None] | None = None,
    flush: Callable[[], None] | None = None,
) -> None:
    """Read this process's share of the images that have no line yet, and `take` what was made of them. Before their
    lines are written, `flush` brings to the disk what was taken."""
    known = store.rows(state)
    missing = [item for item in enumerate(paths) if item[0] not in known]
    mine = missing[state.process_index :: state.num_processes]
    batches = Inputs(mine, make).batches(batch, workers)
    if state.is_main_process:
        batches = bar(batches, what, len(mine), size=len, say=partial(print, flush=True))
    lines: list[Line] = []
    due = Every(PATIENCE)

    def write() -> None:
        if flush:
            flush()
        store.append(lines)
        lines.clear()

    for items in batches:
        good = [item for item in items if item.error is None]
        if good and take:
            take([item.key for item in good], [item.x for item in good])
        lines += [
            {"row": i.key} | ({"error": f"{i.error.code}: {paths[i.key]}"} if i.error else {}) for i in items
        ]
        if due():
            write()
    write()
