"""What the language model is shown of an image, in training: features of a frozen encoder, or the image itself.

`Cached` are features computed once and kept on disk as a memory-mapped float16 array: a step then costs the language
model alone. `Films` are pixels, read anew in every step for a tower that works in every step: for archives whose
features no disk holds (2.1 MB an image for RAD-DINO), for augmentation, for an encoder that is trained.

Both are keyed by encoder, preprocessing and images (path, size, time), so a change of any of them makes new ones. Every
process reads its share; images that cannot be read are left out and listed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torchvision.transforms import v2

from encoder.files import one_at_a_time
from encoder.radiograph import InputError, read
from encoder.towers import shape_of
from train.common.config import ConfigError
from vlm.model import FindingsModel
from vlm.projector import layers_of, tower_features

TURN, SHIFT, SCALE = (
    5.0,
    (0.03, 0.03),
    (0.92, 1.08),
)  # degrees, share of the side, factor: how films really differ
BRIGHTEN, STRETCH = (
    0.1,
    0.1,
)  # of the standardised grey levels: added, and times. No flip: sides matter in findings


class Cached:
    """Features (images, tokens, C) at the row of an image's path."""

    def __init__(self, features: np.ndarray, row_of: dict[Path, int]):
        self.array, self.row_of = features, row_of

    def __contains__(self, path: Path) -> bool:
        return path in self.row_of

    def __call__(self, paths: Sequence[Path], draw: np.random.Generator | None = None) -> Tensor:
        """What a step takes: (images, tokens, C) float32."""
        return torch.from_numpy(self.array[[self.row_of[p] for p in paths]].astype("float32"))

    def features(self, paths: Sequence[Path]) -> Tensor:
        """Features (images, tokens, C)."""
        return self(paths)

    @property
    def floats(self) -> int:
        """Numbers an image."""
        return self.array[0].size


class Films:
    """Pixels (images, 3, H, W), where `readable` has them; turned, shifted and brightened if `augment`."""

    def __init__(self, model: FindingsModel, readable: set[Path], batch: int = 32, augment: bool = False):
        self.preprocessing, self.readable, self.batch, self.augment = (
            model.preprocessing,
            readable,
            batch,
            augment,
        )
        self.tower, self.layers = model.llava.model.vision_tower, layers_of(model.llava)
        self.norm = getattr(model.llava.config, "feature_norm", False)

    def __getstate__(self) -> dict:
        """For processes that read images, which have no use for the tower."""
        return {**self.__dict__, "tower": None}

    def with_augmentation(self, augment: bool) -> Films:
        """The same images, turned, shifted and brightened a little every time, if `augment`."""
        films = copy.copy(self)
        films.tower, films.augment = self.tower, augment
        return films

    def __contains__(self, path: Path) -> bool:
        return path in self.readable

    def __call__(self, paths: Sequence[Path], draw: np.random.Generator | None = None) -> Tensor:
        """What a step takes: (images, 3, H, W), augmented with what is drawn from `draw`, if it is given."""
        films = [self.preprocessing(read(path).pixels) for path in paths]
        if self.augment and draw is not None:
            films = [augmented(x_CHW, draw) for x_CHW in films]
        return torch.stack(films)

    def features(self, paths: Sequence[Path]) -> Tensor:
        """Features (images, tokens, C), by the tower as it is now."""
        device = next(self.tower.parameters()).device
        parts = [self(paths[i : i + self.batch]).to(device) for i in range(0, len(paths), self.batch)]
        return torch.cat([tower_features(self.tower, x, self.layers, self.norm).cpu() for x in parts])

    @property
    def floats(self) -> int:
        return 3 * self.preprocessing.size**2


def augmented(x_CHW: Tensor, draw: np.random.Generator) -> Tensor:
    """A film as it might have been taken: what is shifted in from outside has the film's darkest grey level."""
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


class Radiographs(torch.utils.data.Dataset):
    """Paths -> (row, pixels (3, H, W)) or (row, reason why there are none); without `preprocessing` (row, None)."""

    def __init__(self, items: list[tuple[int, Path]], preprocessing: Callable | None):
        self.items, self.preprocessing = items, preprocessing

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        row, path = self.items[i]
        try:
            pixels = read(path).pixels
        except InputError as error:
            return row, f"{error.code}: {path}"
        return row, self.preprocessing(pixels) if self.preprocessing else None


def image_features(
    model: FindingsModel,
    paths: list[Path],
    folder: Path,
    state: PartialState,
    batch: int = 32,
    workers: int = 0,
) -> Cached:
    """The features of all images that can be read, on disk in `folder`. Computed where the model is: on the device of
    `state`. Raises ConfigError if no image could be read, a feature does not fit float16, or the disk is too small."""
    described = [model.meta.encoder_sha256, model.meta.preprocess_sha256, model.meta.features]

    def compute(key: str) -> None:
        _compute(model, paths, folder, key, state, batch, workers)

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
    """The images themselves, each read once to know which can be; `folder` keeps the list of those that cannot. Raises
    ConfigError if none can."""

    def compute(key: str) -> None:
        unreadable = _visit(paths, None, state, batch, workers, "images read")
        _gather(folder, key, unreadable, state)

    _, rows = _once(["films"], paths, folder, state, compute)
    return Films(model, set(rows), batch)


def _once(
    described: list, paths: list[Path], folder: Path, state: PartialState, compute: Callable[[str], None]
) -> tuple[str, dict[Path, int]]:
    """(key, row of each path that could be read), after `compute` has been called, now or in an earlier run."""
    stamps = [
        [str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] if p.is_file() else [str(p)]
        for p in paths
    ]
    key = hashlib.sha256(json.dumps([*described, stamps]).encode()).hexdigest()[:16]
    done = folder / f"{key}.json"
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{key}.lock"
    alone = one_at_a_time(lock, f"another run computes these features; waiting ({lock})")
    with alone if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        if not done.exists():
            compute(key)
    unreadable = set(json.loads(done.read_text())["unreadable"])
    for line in sorted(unreadable)[:5]:
        state.print(f"left out, {line}")
    if len(unreadable) > 5:
        state.print(f"... and {len(unreadable) - 5} more images that cannot be read")
    bad = {line.partition(": ")[2] for line in unreadable}
    rows = {path: i for i, path in enumerate(paths) if str(path) not in bad}
    if not rows:
        raise ConfigError(f"none of {len(paths)} images could be read; the first: {min(unreadable)}")
    return key, rows


def _compute(model, paths, folder: Path, key: str, state: PartialState, batch: int, workers: int) -> None:
    tower = model.llava.model.vision_tower.to(state.device)
    layers, norm = layers_of(model.llava), getattr(model.llava.config, "feature_norm", False)
    sizes = shape_of(tower.config)
    tokens = sizes.extra + (model.preprocessing.size // sizes.patch) ** 2
    shape = (len(paths), tokens, sizes.width * len(layers))
    data, part = folder / f"{key}.npy", folder / f"{key}.npy.part"
    size, free = np.prod(shape, dtype=float) * 2, shutil.disk_usage(folder).free
    if size > free:
        raise ConfigError(
            f"features of {len(paths)} images take {size / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB free: "
            "give another --features_dir, or --features online"
        )
    if state.is_main_process:
        print(f"features of {len(paths)} images: {size / 2**20:,.0f} MB in {data}", flush=True)
        np.lib.format.open_memmap(part, "w+", np.float16, shape)
    state.wait_for_everyone()
    array = np.lib.format.open_memmap(part, "r+")

    def take(rows: list[int], pixels: list[Tensor]) -> None:
        x_BNC = tower_features(tower, torch.stack(pixels).to(state.device), layers, norm).cpu()
        if x_BNC.abs().max() > 65000:
            raise ConfigError("a feature is too large for float16; is the encoder in order?")
        array[rows] = x_BNC.numpy().astype(np.float16)

    unreadable = _visit(paths, model.preprocessing, state, batch, workers, "features", take)
    array.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        part.rename(data)
    _gather(folder, key, unreadable, state)


def _visit(
    paths: list[Path],
    preprocessing: Callable | None,
    state: PartialState,
    batch: int,
    workers: int,
    what: str,
    take: Callable[[list[int], list[Tensor]], None] | None = None,
) -> list[str]:
    """Read this process's share of the images and `take` them; returns what cannot be read."""
    mine = list(enumerate(paths))[state.process_index :: state.num_processes]
    loader = torch.utils.data.DataLoader(
        Radiographs(mine, preprocessing), batch, num_workers=workers, collate_fn=list
    )
    unreadable, started, said, seen = [], time.perf_counter(), 0.0, 0
    for items in loader:
        good = [(row, x) for row, x in items if not isinstance(x, str)]
        unreadable += [x for _, x in items if isinstance(x, str)]
        if good and take:
            take([row for row, _ in good], [x for _, x in good])
        seen += len(items)
        passed = time.perf_counter() - started
        if state.is_main_process and (passed - said > 10 or seen == len(mine)):
            said = passed
            print(f"{what} {seen}/{len(mine)}  {seen / passed:.0f} images/s", flush=True)
    return unreadable


def _gather(folder: Path, key: str, unreadable: list[str], state: PartialState) -> None:
    """What no process could read, in one file, which says that all is done."""
    from accelerate.utils import gather_object

    found = gather_object(unreadable)
    if state.is_main_process:
        part = folder / f"{key}.json.part"
        part.write_text(json.dumps({"unreadable": found}))
        part.rename(folder / f"{key}.json")
    state.wait_for_everyone()
