"""Radiographs without reports, for pre-training: a folder tree, a CSV, or a studies file becomes a list of image
paths; `Radiographs` decodes them, optionally once and for all into a memory-mapped cache."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from encoder.files import append_json, one_at_a_time, whole_lines, write_atomically, write_text
from encoder.progress import bar
from encoder.radiograph import DICOM_RULE, GREY_RULE, InputError, Limits, read
from train.datasets.rows import cells, one_line
from vlm.study import StudyError, load_studies, normalise_split

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg"}
IMAGE_SUFFIXES = {".dcm", ".dicom"} | PICTURE_SUFFIXES
PATH_COLUMNS = ("file", "path", "image")
# DICOM files often have no suffix, or are named by a UID.
UID_SUFFIX = re.compile(r"(\.\d+)?")
CACHE_VERSION = 1


class NoSplits(ValueError):
    """A split was asked for, but the source does not say which image belongs to which."""


def image_paths(source: str | Path, split: str | None = None) -> list[Path]:
    """Return the paths of the images in `source`, each once.

    `source` is one of three things:

    - a folder: every DICOM, PNG and JPEG below it, sorted. Hidden files, DICOMDIR and links to folders are
      skipped. If the folder holds a `studies.jsonl`, that file is read instead, since masks may lie beside
      the images.
    - a CSV with a column `file`, `path` or `image`, and optionally `split`. An index of `cxr prepare` is one;
      what it found unreadable is left out.
    - a studies file (JSON Lines): the images of the current studies, not of the priors.

    Paths inside a file are relative to it. `split` (train, validate, test) keeps only that part; in a plain
    folder a split is its sub-folder of that name.

    Raises FileNotFoundError for a missing source, NoSplits for one without splits, another ValueError (such
    as StudyError) for one that cannot be read or is empty.
    """
    source = Path(source)
    wanted = normalise_split(split) if split else None
    if source.is_dir() and (source / "studies.jsonl").is_file():
        source = source / "studies.jsonl"
    if source.is_dir():
        paths = _from_folder(source, wanted)
    elif not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; give a folder, a .csv or a studies .jsonl")
    elif source.suffix.lower() == ".csv":
        paths = _from_csv(source, wanted)
    elif source.suffix.lower() in {".jsonl", ".json"}:
        studies = [s for s in load_studies(source) if wanted in (None, s.split)]
        paths = [p for s in studies for p in s.image_paths(source.parent)]
    else:
        raise ValueError(f"{source} is neither a folder nor a .csv nor a .jsonl file")
    if not paths:
        raise ValueError(f"{source} holds no images" + (f" of split {wanted!r}" if wanted else ""))
    return list(dict.fromkeys(paths))


def _from_folder(folder: Path, split: str | None) -> list[Path]:
    if split:
        parts = [p for p in sorted(folder.iterdir()) if p.is_dir() and _is_split(p.name, split)]
        if not parts:
            raise NoSplits(
                f"{folder} has no sub-folder {split!r}; leave the split out, or give a CSV with one"
            )
    else:
        parts = [folder]
    return [path for part in parts for path in sorted(_walk(part))]


def _is_split(name: str, split: str) -> bool:
    try:
        return normalise_split(name) == split
    except StudyError:
        return False


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root, name)
            if name.startswith(".") or name == "DICOMDIR":
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES or (
                UID_SUFFIX.fullmatch(path.suffix) and _is_dicom(path)
            ):
                yield path


def _is_dicom(path: Path) -> bool:
    # A pipe or a device would block.
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _from_csv(path: Path, split: str | None) -> list[Path]:
    table = cells(path)
    _, columns = next(table, (1, []))
    column = next((c for c in PATH_COLUMNS if c in columns), None)
    if column is None:
        raise ValueError(
            f"{path}: no column {' or '.join(PATH_COLUMNS)}; it has {', '.join(columns) or 'none'}"
        )
    if split and "split" not in columns:
        raise NoSplits(f"{path}: split {split!r} was asked for, but there is no column 'split'")
    paths = []
    for line, values in table:
        row = dict(zip(columns, values, strict=True))
        if not row[column] or row.get("error"):
            continue
        try:
            image = one_line(row[column], column)
            if split is None or (row["split"] and normalise_split(row["split"]) == split):
                paths.append(path.parent / image)
        except StudyError as error:
            raise StudyError(f"{path}, line {line}: {error}") from None
    return paths


def read_names(file: str | Path) -> set[str]:
    """Return the names in a text file, a line each, such as the patients that are kept out of a training. Raises
    ValueError for a file that is not text or names nothing."""
    try:
        names = {line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()} - {""}
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text: it should hold a name a line") from None
    if not names:
        raise ValueError(f"{file} names nothing; it should hold a name a line")
    return names


def named(path: Path, names: Set[str]) -> bool:
    """Say whether one of the names is a part of this path, with or without its ending (p10/s5/x.dcm: p10, x.dcm, x)."""
    return bool(names) and not names.isdisjoint({*path.parts, *(p.partition(".")[0] for p in path.parts)})


def shrink(pixels_HW: np.ndarray, short_side: int, bits: int = 8) -> np.ndarray:
    """Shrink float32 (H, W) in [0, 1] to uint8 or, with 16 bits, uint16 (h, w) with min(h, w) = short_side.

    By antialiased bicubic interpolation, as the evaluation preprocessing does. A smaller image keeps its size.
    """
    H, W = pixels_HW.shape
    scale = short_side / min(H, W)
    if scale < 1:
        size = (max(short_side, round(W * scale)), max(short_side, round(H * scale)))
        pixels_HW = np.asarray(Image.fromarray(pixels_HW).resize(size, Image.Resampling.BICUBIC))
    levels_HW: np.ndarray = pixels_HW.clip(0, 1) * (2**bits - 1) + 0.5
    return levels_HW.astype(np.uint8 if bits == 8 else np.uint16)


class Radiographs:
    """Serve decoded images as a map-style dataset (for `torch.utils.data.DataLoader`).

    Item i is a uint8 array (H, W), dark = air, its shorter side at most `short_side`; sizes differ between
    items.

    With `cache`, a folder, all images are decoded once, in parallel, into one memory-mapped file. It lies in
    a sub-folder named by the content (paths, sizes, times of change, short_side). An interrupted build
    resumes; of several processes one builds while the others wait. Images that cannot be read are left out:
    `skipped` lists (path, code, message), and so does `unreadable.csv` beside the cached pixels.

    Without `cache` every access decodes. An unreadable image is then logged with its code, and the next
    readable one of the list takes its place, so that one bad file does not end a long training.

    `paths` are the images that item numbers refer to.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        short_side: int,
        cache: str | Path | None = None,
        limits: Limits | None = None,
        workers: int | None = None,
    ) -> None:
        if not paths:
            raise ValueError("no image paths were given")
        if short_side < 1:
            raise ValueError(f"short_side must be positive, not {short_side}")
        self.paths = [Path(p) for p in paths]
        self.short_side = short_side
        self.limits = limits or Limits()
        self.skipped: list[tuple[Path, str, str]] = []
        self._file: Path | None = None
        self._pixels: np.ndarray | None = None
        if cache is not None:
            self._open_cache(Path(cache), workers)

    grey_rule = GREY_RULE
    dicom_rule = DICOM_RULE

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._file is not None:
            # Opened anew in each process: a pickled memory map would be a full copy.
            if self._pixels is None:
                self._pixels = np.memmap(self._file, np.uint8, "r")
            start, H, W = self._extents[index]
            return np.array(self._pixels[start : start + H * W]).reshape(H, W)
        n = len(self)
        index = range(n)[index]
        for i in (*range(index, n), *range(index)):
            image = self._decode(i)
            if isinstance(image, np.ndarray):
                return image
            log.warning("%s left out: %s [%s]", self.paths[i], image[1], image[0])
        raise InputError("unreadable", f"none of the {n} images can be read", self.paths[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    def _decode(self, index: int) -> np.ndarray | tuple[str, str]:
        try:
            return shrink(read(self.paths[index], self.limits).pixels, self.short_side)
        except InputError as error:
            return error.code, error.message

    def _open_cache(self, cache: Path, workers: int | None) -> None:
        folder = cache / _content_key(self.paths, self.short_side, self.limits)
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is decoding into {folder}; waiting for it"
        with one_at_a_time(folder / "lock", waiting, say=log.warning):
            if not (folder / "complete").exists():
                self._build(folder, workers)
                (folder / "complete").touch()
        entries = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
        pairs = list(zip(self.paths, entries, strict=True))
        self.skipped = [(path, *entry) for path, entry in pairs if isinstance(entry[0], str)]
        self.paths = [path for path, entry in pairs if not isinstance(entry[0], str)]
        sizes = np.array([entry for entry in entries if not isinstance(entry[0], str)], np.int64).reshape(
            -1, 2
        )
        ends = np.cumsum(sizes.prod(1))
        self._extents = np.column_stack([ends - sizes.prod(1), sizes])
        self._file = folder / "pixels.u8"
        if self.skipped:
            log.warning(
                "%d of %d images cannot be read and are left out; see %s",
                len(self.skipped), len(pairs), _write_skipped(folder, self.skipped),
            )  # fmt: skip
        if not self.paths:
            raise InputError("unreadable", f"none of the {len(pairs)} images can be read", pairs[0][0])

    def _build(self, folder: Path, workers: int | None) -> None:
        """Decode what is missing. Line i of index.jsonl is [height, width] of image i, or [code, message]; pixels.u8
        holds the pixels in the same order. They reach the disk before the lines that promise them."""
        from torch.utils.data import DataLoader

        index, pixels = folder / "index.jsonl", folder / "pixels.u8"
        index.touch()
        pixels.touch()
        lines, promised = [], 0
        for line in whole_lines(index).decode().splitlines():
            entry = json.loads(line)
            size = 0 if isinstance(entry[0], str) else entry[0] * entry[1]
            if promised + size > pixels.stat().st_size:
                break
            promised += size
            lines.append(line + "\n")
        write_text(index, "".join(lines))
        os.truncate(pixels, promised)

        workers = min(16, os.cpu_count() or 1) if workers is None else workers
        remaining = range(len(lines), len(self.paths))
        decoded: DataLoader[Any] = DataLoader(
            cast(Any, _Decoder(self)),
            batch_size=None,
            sampler=remaining,
            num_workers=workers,
            collate_fn=_as_is,
        )
        with pixels.open("ab") as pixel_file:
            pending: list[Sequence[int | str]] = []

            def flush() -> None:
                pixel_file.flush()
                os.fsync(pixel_file.fileno())
                append_json(index, pending)
                pending.clear()

            try:
                for image in bar(decoded, "decoding", len(self.paths), done=len(lines)):
                    if isinstance(image, np.ndarray):
                        pixel_file.write(np.ascontiguousarray(image).data)
                        pending.append(image.shape)
                    else:
                        pending.append(image)
                    if len(pending) >= 256:
                        flush()
            finally:
                flush()


class _Decoder:
    """The decoding half of Radiographs, for the worker processes of the build."""

    def __init__(self, images: Radiographs) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.paths)

    def __getitem__(self, index: int) -> np.ndarray | tuple[str, str]:
        return self.images._decode(index)


def _as_is(item: Any) -> Any:
    return item


def _content_key(paths: Sequence[Path], short_side: int, limits: Limits) -> str:
    digest = hashlib.sha256(repr((CACHE_VERSION, GREY_RULE, short_side, limits)).encode())
    if any(path.suffix.lower() not in PICTURE_SUFFIXES for path in paths):
        digest.update(f"dicom rule {DICOM_RULE}".encode())
    for path in paths:
        try:
            status = path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
        except OSError:
            # A missing file is reported when it is read.
            stamp = None
        digest.update(repr((str(path.absolute()), stamp)).encode())
    return digest.hexdigest()[:16]


def _write_skipped(folder: Path, skipped: Sequence[tuple[Path, str, str]]) -> Path:
    path = folder / "unreadable.csv"
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "code", "message"])
        writer.writerows(skipped)
    return path
