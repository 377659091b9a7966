"""An archive of X-rays that were shrunk once and are read from ever after: what `cxr prepare` makes.

    OUT/prepared.json        how it was made
    OUT/index.jsonl          a line an image: where it came from, and where it lies or why it could not be used
    OUT/images-00000.tar     grey PNG files of 8 or 16 bits, in the order of the index (also a WebDataset shard)

A shard is written under another name and renamed before its lines enter the index; an interrupted run goes on with the
first image that has no line. Images are read by seeking: the index knows where in its shard each one lies.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encoder.errors import UserError
from encoder.files import whole_lines
from encoder.radiograph import InputError, Limits, read
from train.common.checkpoints import write_json
from train.datasets.folder import named, shrink

ABOUT, INDEX = "prepared.json", "index.jsonl"
PER_SHARD = 4096  # images; some 800 MB at 518 pixels
BITS = (8, 16)


class ArchiveError(UserError, ValueError):
    """An archive that cannot be used, or not gone on with; the message says why."""


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
) -> Iterator[dict[str, Any]]:
    """Shrink images into `out`, in the order of `paths`; yields the line of each as its shard is completed.

    exclude: names of patients, studies or files that are kept out: whatever has one of them as a part of its path, with
    or without its ending, or as its PatientID or StudyInstanceUID. Images that are in the archive already are not read
    again; those that `paths` no longer has stay. Raises ArchiveError if `out` was made with other choices, ValueError
    for other `bits`.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be {' or '.join(map(str, BITS))}, not {bits}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _agree(out, {"schema": 1, "short_side": short_side, "bits": bits})
    lines = index_lines(out)
    known = {line["path"] for line in lines}
    shard = 1 + max((line["shard"] for line in lines if "shard" in line), default=-1)
    excluded = set(exclude)
    remaining = (str(p.absolute()) for p in paths)
    remaining = (p for p in remaining if p not in known and not named(Path(p), excluded))
    workers = min(32, os.cpu_count() or 1) if workers is None else workers
    jobs = ((path, short_side, bits, limits or Limits(), excluded) for path in remaining)
    with ProcessPoolExecutor(workers) as pool:
        while several := list(islice(jobs, per_shard)):
            made = []
            target = out / f"images-{shard:05d}.tar"
            part = target.with_name(target.name + ".part")
            with tarfile.open(part, "w") as tar:
                for (path, *_), found in zip(several, pool.map(_shrunk, several, chunksize=8), strict=True):
                    made.append(_added(tar, path, shard, len(made), found))
            if any("shard" in line for line in made):
                _sync(part)
                part.replace(target)
                shard += 1
            else:
                part.unlink()
            with (out / INDEX).open("a", encoding="utf-8", errors="surrogateescape") as index:
                index.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in made))
                index.flush()
                os.fsync(index.fileno())
            yield from made


def _added(tar: tarfile.TarFile, path: str, shard: int, number: int, found: bytes | tuple[str, str]) -> dict:
    """The line of an image, which is put into the shard if it could be read."""
    if isinstance(found, tuple):
        return {"path": path, "error": {"code": found[0], "message": found[1]}}
    member = tarfile.TarInfo(f"{shard:05d}-{number:04d}.png")
    member.size = len(found)
    tar.addfile(member, io.BytesIO(found))
    end = tar.offset  # after the padding to blocks of 512
    start = end - -(-len(found) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return {"path": path, "shard": shard, "offset": start, "size": len(found)}


def _shrunk(job: tuple[str, int, int, Limits, set[str]]) -> bytes | tuple[str, str]:
    """A PNG file, or (code, message)."""
    path, short_side, bits, limits, excluded = job
    try:
        image = read(path, limits)
    except InputError as error:
        return error.code, error.message
    if not excluded.isdisjoint({image.header.patient_id, image.header.study_uid}):
        return "excluded", "this patient or study is kept out"
    pixels_HW = shrink(image.pixels, short_side, bits)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW).save(
        buffer, format="PNG", compress_level=1
    )  # higher levels save a few per cent
    return buffer.getvalue()


def _agree(out: Path, about: dict[str, Any]) -> None:
    if not (out / ABOUT).is_file():
        if any(out.iterdir()):
            raise ArchiveError(f"{out} is not empty and no archive; choose another folder")
        write_json(out / ABOUT, about)
        return
    earlier = json.loads((out / ABOUT).read_text(encoding="utf-8"))
    other = [f"{k} {earlier.get(k)} (now {v})" for k, v in about.items() if earlier.get(k) != v]
    if other:
        raise ArchiveError(f"{out} was made with {', '.join(other)}; choose another folder")


def index_lines(out: Path) -> list[dict[str, Any]]:
    """Of the index; a last one that was cut off is cut away."""
    index = out / INDEX
    if not index.is_file():
        return []
    return [json.loads(line) for line in whole_lines(index).decode("utf-8", "surrogateescape").splitlines()]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def is_archive(folder: str | Path) -> bool:
    return (Path(folder) / ABOUT).is_file()


class Archive:
    """Map-style dataset of an archive's images: item i is a uint8 array (H, W), dark = air. `paths` are where they came
    from; `skipped` lists (path, code, message) of those that could not be used.

    `exclude` keeps out what has one of these names in the path it came from. Raises ArchiveError if there is no archive
    or nothing in it.
    """

    def __init__(self, folder: str | Path, exclude: Set[str] = frozenset()) -> None:
        self.folder = Path(folder)
        if not is_archive(folder):
            raise ArchiveError(f"{folder} has no {ABOUT}: it was not made by cxr prepare")
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
        if shard not in self._files:  # opened in each process: workers must not share a position
            self._files[shard] = (self.folder / f"images-{shard:05d}.tar").open("rb")
        file = self._files[shard]
        file.seek(offset)
        pixels_HW = np.asarray(Image.open(io.BytesIO(file.read(size))))
        return (
            pixels_HW
            if pixels_HW.dtype == np.uint8
            else (pixels_HW.astype(np.float32) / 257 + 0.5).astype(np.uint8)
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}
