"""An archive of X-rays that were shrunk once and are read from ever after: what `cxr prepare` makes.

    OUT/prepared.json        how it was made
    OUT/index.jsonl          a line an image: where it came from, and where it lies or why it could not be used
    OUT/images-00000.tar     grey PNG files of 8 or 16 bits, in the order of the index (also a WebDataset shard)

An interrupted run resumes with the first image that has no line, and of two runs on one archive the second waits for
the first (encoder/store.py). Images are read by seeking: the index knows where in its shard each one lies.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encoder.files import read_json, write_atomically
from encoder.radiograph import GREY_RULE, InputError, Limits, read
from encoder.store import BYTES, Line, Store, StoreError
from encoder.workers import pool
from train.datasets.folder import named, shrink

ABOUT, INDEX = "prepared.json", "index.jsonl"
SHARD = "images-{shard:05d}.tar"
# Images; some 800 MB at 518 pixels.
PER_SHARD = 4096
BITS = (8, 16)


class ArchiveError(StoreError):
    """An archive that cannot be used; the message says why."""


def prepare(
    paths: Sequence[Path],
    out: str | Path,
    *,
    short_side: int = 518,
    bits: int = 8,
    exclude: Iterable[str] = (),
    workers: int | None = None,
    per_shard: int = PER_SHARD,
    limits: Limits | None = None,
) -> Iterator[Line]:
    """Shrink images into `out`, in the order of `paths`; yields the line of each as its shard is completed.

    exclude: names of patients, studies or files that are kept out: whatever has one of them as a part of its path, with
    or without its ending, or as its PatientID or StudyInstanceUID. Images that are in the archive already are not read
    again; those that `paths` no longer has stay. Raises StoreError if `out` was made with other choices or is no
    archive, ValueError for other `bits`.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be {' or '.join(map(str, BITS))}, not {bits}")
    store, excluded = _store(Path(out)), set(exclude)
    store.refuse_other(ABOUT, "archive")
    with store.writing(), pool(workers) as processes:
        store.agree(ABOUT, {"schema": 1, "short_side": short_side, "bits": bits, "grey_rule": GREY_RULE})
        known = store.rows()
        shard = 1 + max((line["shard"] for line in known.values() if "shard" in line), default=-1)
        remaining = (str(p.absolute()) for p in paths)
        remaining = (p for p in remaining if p not in known and not named(Path(p), excluded))
        jobs = ((path, short_side, bits, limits or Limits(), excluded) for path in remaining)
        while several := list(islice(jobs, per_shard)):
            made: list[Line] = []
            with write_atomically(store.folder / SHARD.format(shard=shard)) as part:
                with tarfile.open(part, "w") as tar:
                    shrunk = processes.map(_shrunk, several, chunksize=8)
                    for (path, *_), found in zip(several, shrunk, strict=True):
                        made.append(_added(tar, path, shard, len(made), found))
                if all("error" in line for line in made):
                    part.unlink()
            shard += any("shard" in line for line in made)
            store.append(made)
            yield from made


def _store(out: Path) -> Store:
    return Store(out, "path", index=INDEX, shard=SHARD, places=BYTES)


def _added(tar: tarfile.TarFile, path: str, shard: int, number: int, found: bytes | tuple[str, str]) -> Line:
    """Put an image into the shard if it could be read; returns its line."""
    if isinstance(found, tuple):
        return {"path": path, "error": {"code": found[0], "message": found[1]}}
    member = tarfile.TarInfo(f"{shard:05d}-{number:04d}.png")
    member.size = len(found)
    tar.addfile(member, io.BytesIO(found))
    # After the padding to blocks of 512.
    end = tar.offset
    start = end - -(-len(found) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return {"path": path, "shard": shard, "offset": start, "size": len(found)}


def _shrunk(job: tuple[str, int, int, Limits, set[str]]) -> bytes | tuple[str, str]:
    """Return a PNG file, or (code, message)."""
    path, short_side, bits, limits, excluded = job
    try:
        image = read(path, limits)
    except InputError as error:
        return error.code, error.message
    if not excluded.isdisjoint({image.header.patient_id, image.header.study_uid}):
        return "excluded", "this patient or study is kept out"
    pixels_HW = shrink(image.pixels, short_side, bits)
    buffer = io.BytesIO()
    # Higher levels save a few per cent.
    Image.fromarray(pixels_HW).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def index_lines(out: Path) -> list[Line]:
    """Return the lines of the index."""
    return list(_store(out).rows().values())


def is_archive(folder: str | Path) -> bool:
    """Tell whether `folder` is an archive that `cxr prepare` wrote: it holds the file ABOUT."""
    return (Path(folder) / ABOUT).is_file()


class Archive:
    """Map-style dataset of an archive's images: item i is a uint8 array (H, W), dark = air. `paths` are where they came
    from, `grey_rule` the version of the rule by which they were read; `skipped` lists (path, code, message) of those
    that could not be used.

    `exclude` keeps out what has one of these names in the path it came from. Raises ArchiveError if there is no archive
    or nothing in it.
    """

    def __init__(self, folder: str | Path, exclude: Set[str] = frozenset()) -> None:
        self.folder = Path(folder)
        if not is_archive(folder):
            raise ArchiveError(f"{folder} has no {ABOUT}: it was not made by cxr prepare")
        # By which its images were read; archives before the second did not say.
        self.grey_rule = read_json(self.folder / ABOUT).get("grey_rule", 1)
        lines = index_lines(self.folder)
        found = [line for line in lines if "shard" in line and not named(Path(line["path"]), exclude)]
        if not found:
            raise ArchiveError(f"{folder} holds no image that could be read")
        self.paths = [Path(line["path"]) for line in found]
        self._places = np.array([[line["shard"], line["offset"], line["size"]] for line in found], np.int64)
        self.skipped = [
            (Path(line["path"]), line["error"]["code"], line["error"]["message"])
            for line in lines
            if "error" in line
        ]
        self._files: dict[int, io.BufferedReader] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        shard, offset, size = (int(x) for x in self._places[index])
        # Opened in each process: workers must not share a position.
        if shard not in self._files:
            self._files[shard] = (self.folder / SHARD.format(shard=shard)).open("rb")
        file = self._files[shard]
        file.seek(offset)
        pixels_HW = np.asarray(Image.open(io.BytesIO(file.read(size))))
        if pixels_HW.dtype == np.uint8:
            return pixels_HW
        return (pixels_HW.astype(np.float32) / 257 + 0.5).astype(np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}
