"""Samples of a pre-training: images of all sources in an order, cut into crops, with masks and stochastic depth.

Shape letters: B images, G global and L local crops an image, P patches, M masked patches.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from encoder.errors import UserError
from encoder.radiograph import InputError
from encoder.selfdistill.masking import crop_masks
from encoder.transforms import MultiCrop
from train.common.config import ConfigError
from train.datasets.archive import Archive, is_archive
from train.datasets.folder import PICTURE_SUFFIXES, NoSplits, Radiographs, image_paths, named, read_names
from train.pretrain.config import GLOBAL_CROPS, PretrainConfig


class Batch(NamedTuple):
    """Hold the crops of several images, crop by crop and then image by image: index g * B + b."""

    # uint8
    global_GBHW: Tensor
    global_look: Tensor
    # uint8
    local_LBHW: Tensor
    local_look: Tensor
    # bool
    masks_GBP: Tensor
    # int64, indices into the flattened masks
    masked_M: Tensor
    # float32, 1 / masked patches of the same crop
    weights_M: Tensor
    # Stochastic depth, for global then local crops; it stays on the CPU.
    residual_LRS: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Move what the device computes with; looks (MultiCrop.on_device) and stochastic depth (CropViT) are read on
        the CPU and stay there."""
        moved = {k: x for k, x in self._asdict().items() if not k.endswith(("look", "LRS"))}
        return self._replace(**{k: x.to(device, non_blocking=True) for k, x in moved.items()})


class Samples(Dataset):
    """Give the i-th sample of a run as item i. Each epoch is a new order of the images; (seed, i) keys every draw."""

    def __init__(self, images, counts: list[int], config: PretrainConfig) -> None:
        self.images, self.counts, self.config = images, counts, config
        self.repeats = config.weights or [1.0] * len(counts)
        self.epoch_length = sum(max(1, round(w * n)) for w, n in zip(self.repeats, counts, strict=True))
        self.crop = multi_crop(config)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def image_index(self, position: int) -> int:
        """Return which image sample `position` shows."""
        epoch, offset = divmod(position, self.epoch_length)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.config.seed, 1, epoch])
            parts, first = [], 0
            for w, n in zip(self.repeats, self.counts, strict=True):
                length = max(1, round(w * n))
                rounds = [rng.permutation(n) for _ in range(-(-length // n))]
                parts.append(first + np.concatenate(rounds)[:length])
                first += n
            self._epoch, self._order = epoch, rng.permutation(np.concatenate(parts))
        return int(self._order[offset])

    def __getitem__(self, position: int):
        c = self.config
        rng = np.random.default_rng([c.seed, 2, position])
        try:
            image_HW = self.images[self.image_index(position)]
        except InputError as error:
            # With one argument, which the loader needs to hand an error on from a worker process.
            raise OSError(str(error)) from error
        crops = self.crop(image_HW, rng)
        side = c.size // c.patch_size
        masks = crop_masks(
            rng, GLOBAL_CROPS, side, side, c.mask_sample_probability, tuple(c.mask_ratio_min_max)
        )
        residual = None
        if c.drop_path_rate:
            kept = (
                rng.random((c.num_hidden_layers, 2, GLOBAL_CROPS + c.local_crops_number)) >= c.drop_path_rate
            )
            residual = (kept / (1 - c.drop_path_rate)).astype(np.float32)
        return crops, masks, residual


def collate(samples: list) -> Batch:
    """Stack samples crop by crop."""

    def crop_major(arrays) -> Tensor:
        return torch.from_numpy(np.stack(list(arrays), axis=1)).flatten(0, 1)

    masks_SP = crop_major(masks.reshape(len(masks), -1) for _, masks, _ in samples)
    masked_per_crop_S = masks_SP.sum(1)
    residual = None
    if samples[0][2] is not None:
        residual = torch.from_numpy(np.stack([r for _, _, r in samples], axis=-1)).flatten(-2)
    return Batch(
        crop_major(crops.global_GHW for crops, _, _ in samples),
        crop_major(crops.global_look for crops, _, _ in samples),
        crop_major(crops.local_LHW for crops, _, _ in samples),
        crop_major(crops.local_look for crops, _, _ in samples),
        masks_SP,
        masks_SP.flatten().nonzero()[:, 0],
        (1 / masked_per_crop_S.clamp(min=1)).repeat_interleave(masked_per_crop_S),
        residual,
    )


def multi_crop(c: PretrainConfig) -> MultiCrop:
    """Return what cuts the crops that the recipe asks for."""
    return MultiCrop(
        global_size=c.size,
        global_crops=GLOBAL_CROPS,
        global_scale=tuple(c.global_crops_scale),
        local_size=c.local_crops_size,
        local_crops=c.local_crops_number,
        local_scale=tuple(c.local_crops_scale),
        flip_probability=c.flip_probability,
        brightness=c.brightness,
        contrast=c.contrast,
        blur_probability=c.blur_probability,
        blur_sigma=tuple(c.blur_sigma),
    )


def positions(steps: range, batch: int, rank: int, world: int, parts: int = 1) -> Iterator[list[int]]:
    """Yield the numbers of the samples that this process sees, `parts` lists a step."""
    share = batch // (world * parts)
    for step in steps:
        for part in range(parts):
            first = step * batch + (part * world + rank) * share
            yield list(range(first, first + share))


def batches(samples: Samples, steps: range, rank: int, world: int, device: torch.device) -> Iterator[Batch]:
    """Cut the batches of these steps that this process sees, on the CPU, in pinned memory where they go to a GPU.

    The iterator raises ConfigError where an image cannot be read and no other can take its place.
    """
    c = samples.config
    loader = DataLoader(
        samples,
        batch_sampler=positions(steps, c.batch_size, rank, world, c.gradient_accumulation_steps),
        num_workers=c.dataloader_num_workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    return _readable(iter(loader))


def _readable(loader: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from loader
    except OSError as error:
        # A worker process sends its whole traceback as the message; the reason stands at its end.
        why = str(error).strip().splitlines()[-1].removeprefix("OSError: ")
        raise ConfigError(f"an image to learn from can no longer be read: {why}") from error


def load_data(c: PretrainConfig) -> tuple[Samples, str]:
    """Return the samples, and a digest of the list of images; where some are PNG or JPEG, with the rule by which these
    are read. Raises ConfigError for data that cannot be used."""
    if not c.data:
        raise ConfigError(
            "nothing to train on: give --data with a folder, a CSV, a studies file or a prepared archive"
        )
    excluded = _excluded(c.exclude)
    sources = [_source(source, c, excluded) for source in c.data]
    images = ConcatDataset(sources)
    images.paths = [path for source in sources for path in source.paths]
    listing = "\n".join(map(str, images.paths))
    digest = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    rules = {s.grey_rule for s in sources if any(p.suffix.lower() in PICTURE_SUFFIXES for p in s.paths)}
    # The first rule had no name in the digests of its time.
    digest += "".join(f", grey rule {rule}" for rule in sorted(rules) if rule > 1)
    # An archive keeps its DICOM files as they were read when it was made.
    rules = {
        s.dicom_rule
        for s in sources
        if isinstance(s, Radiographs) and any(p.suffix.lower() not in PICTURE_SUFFIXES for p in s.paths)
    }
    digest += "".join(f", dicom rule {rule}" for rule in sorted(rules) if rule > 1)
    return Samples(images, [len(s) for s in sources], c), digest


def _excluded(file: str | None) -> set[str]:
    try:
        return read_names(file) if file else set()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--exclude {file}: {error}") from error


def _source(source: str, c: PretrainConfig, excluded: set[str]) -> Archive | Radiographs:
    """Open one source of images. Raises ConfigError, also where none of its images can be read."""
    try:
        if is_archive(source):
            return Archive(source, excluded)
        try:
            paths = image_paths(source, c.split)
        except NoSplits:
            # A source that knows no splits is used whole.
            paths = image_paths(source)
        kept = [path for path in paths if not named(path, excluded)]
        if not kept:
            raise ValueError(f"{source}: every image is named in {c.exclude}")
        found = Radiographs(kept, c.short_side, cache=c.cache)
        # One image is read now, so that a source of broken ones is refused before anything is written.
        found[0]
        return found
    except (UserError, OSError, ValueError, csv.Error) as error:
        raise ConfigError(_reason(error, source, c.cache)) from error


def _reason(error: Exception, source: str, cache: str | None) -> str:
    """Say what is wrong, and with what."""
    why = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = str(error.filename or cache or source)
        why = f"{where}: {error.strerror}"
        # The path of the cache says enough.
        source = cache if cache and where.startswith(cache) else source
    return why if source in why else f"--data {source}: {why}"
