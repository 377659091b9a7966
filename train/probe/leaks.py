"""Which images of a probe did an encoder see in its pre-training?

    cxr leaks vindr-cxr:/data/vindr --encoder rad-dino
    cxr leaks labels.csv --list training_images.csv --list prepared/index.csv
    cxr leaks labels.csv --pixels /data/pretraining --out shared.csv

Names find a file that kept its name, or one that data sets are known to share (RSNA's through its NIH mapping). Pixels
find it under any name, and after it was shrunk or stored as JPEG, but not after it was cropped or turned.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from encoder.errors import UserError
from encoder.radiograph import InputError, read
from encoder.workers import pool
from train.datasets.archive import Archive, index_lines, is_archive
from train.datasets.folder import IMAGE_SUFFIXES, image_paths
from train.datasets.labelled import KINDS, Labelled

# Known facts: encoder -> data set -> what of it was in the pre-training. A data set that is missing was not in it;
# SAME_IMAGES are part of another. Source for RAD-DINO: its model card on Hugging Face (882,775 images of five sets).
SEEN = {
    "rad-dino": {
        "mimic-cxr": "the images of its training split, and not those of validate and test",
        "chexpert": "the training and the validation images",
        "nih": "all images, those of its test list too",
        "padchest": "most images",
        "brax": "all images",
    },
}
SAME_IMAGES = {"chexpert-plus": "chexpert", "rsna": "nih"}
UNSEEN = {  # what the lists above were looked through for; of other data sets nothing is claimed
    "rad-dino": ("vindr-cxr", "candid-ptx", "iu-xray", "jsrt", "montgomery", "shenzhen", "phantom"),
}

# Names that one data set gives, and no other: anything longer around them is taken away.
NAMES = (
    (re.compile(r"patient\d{5,}/study\d+/view\d+_[a-z]+"), ("chexpert", "chexpert-plus")),
    (re.compile(r"(?<![\da-f])[\da-f]{8}(?:-[\da-f]{8}){4}(?![\da-f-])"), ("mimic-cxr",)),
    (
        re.compile(r"(?<![\da-f])[\da-f]{8}-[\da-f]{4}-[\da-f]{4}-[\da-f]{4}-[\da-f]{12}(?![\da-f-])"),
        ("rsna",),
    ),
    (re.compile(r"(?<!\d)\d{8}_\d{3}(?!\d)"), ("nih",)),
    (re.compile(r"jpc[ln]n\d{3}"), ("jsrt",)),
    (re.compile(r"mcucxr_\d+_[01]"), ("montgomery",)),
    (re.compile(r"chncxr_\d+_[01]"), ("shenzhen",)),
)
DISTINCTIVE, DIGITS = 8, 4  # letters and digits of a name that no two images share by chance
# Control characters but tabs and line ends, and bytes that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1f\ud800-\udfff]")
DATASET_COLUMNS = ("dataset", "dataset_name", "data_set", "source_dataset")
ALIASES = {
    "mimic": "mimic-cxr", "mimiccxr": "mimic-cxr", "mimiccxrjpg": "mimic-cxr", "nih": "nih", "nihcxr": "nih",
    "chestxray14": "nih", "chestxray8": "nih", "nihchestxray14": "nih", "cxr8": "nih", "vindr": "vindr-cxr",
    "rsnapneumonia": "rsna", "candid": "candid-ptx", "brax": "brax", "padchest": "padchest",
} | {re.sub(r"\W", "", kind): kind for kind in KINDS}  # fmt: skip

SIDE = 64  # pixels that an image is shrunk to
SPREAD = 48  # grey levels of one standard deviation in what it is shrunk to; the mean is 128
TOLERANCE = 4.0  # grey levels by which two pictures of one film may differ, on the mean; see `same_pixels`


class LeakError(UserError, ValueError):
    """A list that cannot be used; the message says why."""


@dataclass(frozen=True)
class Shared:
    """An image that was seen. `row` is its row in the Labelled; `how` is name, path or pixels; `seen` is what the list
    calls it; `difference` the mean difference in grey levels, for pixels."""

    row: int
    split: str
    path: Path
    how: str
    listed_in: str
    seen: str
    difference: float | None = None


def is_recorded(encoder: str) -> bool:
    """Tell whether SEEN has what an encoder was pre-trained on."""
    return encoder.lower() in SEEN


def known_leaks(encoder: str, kind: str) -> str:
    """Return a sentence to print beside a probe's numbers: what is known of an encoder (a key of SEEN) and a
    data set."""
    seen = SEEN.get(encoder.lower())
    if seen is None:
        return f"What {encoder} was pre-trained on is not recorded here (only of {', '.join(SEEN)})."
    of = SAME_IMAGES.get(kind, kind)
    if of in seen:
        part = f", whose images are part of {of}," if of != kind else ""
        return (
            f"{encoder} saw images of {kind}{part} in its pre-training, without labels: {seen[of]}. A probe on "
            "those is not a test on unseen images."
        )
    if kind in UNSEEN[encoder.lower()]:
        return f"{kind} is not among the data sets that {encoder} was pre-trained on ({', '.join(seen)})."
    return f"Whether {encoder} saw images of {kind or 'this source'} is not known; it was trained on {', '.join(seen)}."


def image_name(text: str) -> tuple[str | None, tuple[str, ...]]:
    """Return (what identifies an image in a path, a file name or an id, or None if its name could be
    anyone's; the data sets that give such names, if known).
    "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg" -> "patient00001/study1/view1_frontal"."""
    text = text.strip().replace("\\", "/").lower()
    for pattern, kinds in NAMES:
        if found := pattern.findall(text):
            return found[-1], kinds
    name = text.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    name = stem if suffix in IMAGE_SUFFIXES else name
    if sum(c.isalnum() for c in name) < DISTINCTIVE or sum(c.isdigit() for c in name) < DIGITS:
        return None, ()
    return name, ()


def shared_by_name(found: Labelled, lists: Sequence[str | Path]) -> list[Shared]:
    """Return the images that one of the lists names: a CSV (any column that holds paths, file names or ids; a
    column `dataset`, if there, keeps data sets apart), a text with a name a line, or what `--data` takes,
    such as an index or an archive of `cxr prepare`. Names like 1.png, which could be anyone's, count only
    where the whole path is the same. Raises LeakError for a list that cannot be read or names nothing."""
    names: dict[str, list[int]] = {}
    paths: dict[str, int] = {}
    for i, path in enumerate(found.paths):
        key, _ = image_name(path.as_posix())
        if key is None:
            paths[os.path.abspath(path)] = i
        aliases = [image_name(of[i])[0] for of in found.also.values() if of[i]]
        for name in {key, *aliases} - {None}:
            names.setdefault(name, []).append(i)
    kinds = {found.kind, *found.also} & set(ALIASES.values())

    shared: dict[int, Shared] = {}
    for file in map(Path, lists):
        empty = True
        for text, dataset in _entries(file):
            empty = False
            key, owners = image_name(text)
            owners = {dataset} if dataset else set(owners)
            if kinds and owners and not owners & kinds:
                continue
            rows, how = (names.get(key, ()), "name") if key else ((), "path")
            if key is None and (row := paths.get(os.path.abspath(file.parent / text))) is not None:
                rows = (row,)
            for row in rows:
                split, path = str(found.splits[row]), found.paths[row]
                shared.setdefault(row, Shared(row, split, path, how, str(file), text))
        if empty:
            raise LeakError(f"{file} names no image")
    return [shared[row] for row in sorted(shared)]


def _entries(file: Path) -> Iterator[tuple[str, str | None]]:
    """(path, name or id; its data set if the list says it) of all that a list names."""
    try:
        if is_archive(file):
            yield from ((line["path"], None) for line in index_lines(file))
        elif file.is_file() and file.suffix.lower() == ".csv":
            with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
                rows = csv.reader(opened)
                header = next(rows, [])
                of = next(
                    (i for i, name in enumerate(header) if name.strip().lower() in DATASET_COLUMNS), None
                )
                for row in rows:
                    dataset = None
                    if of is not None and of < len(row):
                        dataset = ALIASES.get(re.sub(r"[\W_]", "", row[of].lower()))
                    yield from ((cell, dataset) for cell in row if _names_image(cell))
        elif file.is_file() and file.suffix.lower() not in (".jsonl", ".json"):
            text = file.read_text("utf-8-sig", "surrogateescape")
            # a picture or weights, say, of which no line is a name, and nothing would be found
            if UNPRINTABLE.search(text):
                raise LeakError(f"{file} is not a text; give a CSV, a text with a name a line, or a folder")
            yield from ((line.strip(), None) for line in text.splitlines() if line.strip())
        else:
            yield from ((str(path.absolute()), None) for path in image_paths(file))
    except (OSError, csv.Error, ValueError, KeyError) as error:
        raise LeakError(f"{file} cannot be read as a list of images: {error}") from None


def _names_image(cell: str) -> bool:
    return os.path.splitext(cell)[1].lower() in IMAGE_SUFFIXES or image_name(cell)[0] is not None


# Pixels


def thumbnail(pixels_HW: np.ndarray) -> np.ndarray:
    """Make uint8 (SIDE, SIDE) of an image of any size and range: shrunk, its mean made 128 and its standard
    deviation SPREAD, so that another range of grey levels does not matter. An image of one grey level gives
    128 everywhere."""
    small = Image.fromarray(np.asarray(pixels_HW, np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
    x_hw = np.asarray(small, np.float64)
    spread = x_hw.std()
    x_hw = (x_hw - x_hw.mean()) * (SPREAD / spread if spread > 1e-6 else 0) + 128
    return (x_hw.clip(0, 255) + 0.5).astype(np.uint8)


def same_pixels(
    a_Nhw: np.ndarray, b_Mhw: np.ndarray, tolerance: float = TOLERANCE
) -> list[tuple[int, int, float]]:
    """Return (n, m, difference) of the thumbnails of `a` and `b` whose mean absolute difference is at most
    `tolerance` grey levels; for each n the nearest m.

    On 945 films of NIH ChestX-ray14 (shorter side 256), the same film stored again as JPEG of quality 20 differed by
    at most 2.5, shrunk to 128 pixels besides by at most 3.7; the two most alike of different films, both of one
    patient, by 8.7.

    Exact for all its speed: the difference of the means of blocks is never more than the mean of the differences, so
    that a coarse look leaves few candidates for a close one.
    """
    found = []
    coarse_M = _blocks(b_Mhw).reshape(len(b_Mhw), -1)
    for n, a_hw in enumerate(a_Nhw):
        bound_M = np.abs(coarse_M - _blocks(a_hw[None]).reshape(-1)).mean(1)
        rows = np.flatnonzero(bound_M <= tolerance + 1e-3)
        if len(rows):
            difference = np.abs(b_Mhw[rows].astype(np.int16) - a_hw).mean((1, 2))
            nearest = int(difference.argmin())
            if difference[nearest] <= tolerance:
                found.append((n, int(rows[nearest]), float(difference[nearest])))
    return found


def _blocks(x_Nhw: np.ndarray) -> np.ndarray:
    """Means of 8 x 8 pixels."""
    b = SIDE // 8
    return x_Nhw.reshape(len(x_Nhw), b, 8, b, 8).mean((2, 4), dtype=np.float32)


def shared_by_pixels(
    found: Labelled, sources: Sequence[str | Path], tolerance: float = TOLERANCE, workers: int = 1
) -> list[Shared]:
    """Return images that look like one of the sources' (whatever `--data` takes), which are all decoded.
    Images that cannot be read are left out, on both sides. Raises LeakError for a source that cannot be
    read."""
    rows, a_Nhw = _thumbnails(found.paths, workers)
    shared: dict[int, Shared] = {}
    for source in map(Path, sources):
        try:
            if is_archive(source):
                archive = Archive(source)
                paths = archive.paths
                kept, b_Mhw = (
                    range(len(archive)),
                    np.stack([thumbnail(archive[i]) for i in range(len(archive))]),
                )
            else:
                paths = image_paths(source)
                kept, b_Mhw = _thumbnails(paths, workers)
        except (OSError, ValueError) as error:
            raise LeakError(f"{source} cannot be read as a source of images: {error}") from None
        for n, m, difference in same_pixels(a_Nhw, b_Mhw, tolerance):
            row = rows[n]
            if row not in shared or difference < shared[row].difference:
                split, seen = str(found.splits[row]), str(paths[kept[m]])
                shared[row] = Shared(row, split, found.paths[row], "pixels", str(source), seen, difference)
    return [shared[row] for row in sorted(shared)]


def _thumbnails(paths: Sequence[Path], workers: int) -> tuple[list[int], np.ndarray]:
    if workers > 1:
        with pool(workers) as processes:
            made = list(processes.map(_thumbnail_of, paths, chunksize=16))
    else:
        made = list(map(_thumbnail_of, paths))
    rows = [i for i, x in enumerate(made) if x is not None]
    if not rows:
        raise LeakError(f"none of the {len(paths)} images can be read, such as {paths[0]}")
    return rows, np.stack([made[i] for i in rows])


def _thumbnail_of(path: Path) -> np.ndarray | None:
    try:
        return thumbnail(read(path).pixels)
    except InputError:
        return None


def summary(found: Labelled, shared: Iterable[Shared]) -> str:
    """Return a line for each split: how many of its images were seen."""
    of = Counter(leak.split for leak in {leak.row: leak for leak in shared}.values())
    every = Counter(found.splits.tolist())
    return "\n".join(f"{split:9} {of[split]} of {every[split]} images were seen" for split in sorted(every))


def write_shared(shared: Iterable[Shared], path: Path) -> None:
    """Write the shared images as a CSV, a line each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "split", "how", "listed_in", "seen", "difference"])
        for leak in shared:
            level = "" if leak.difference is None else f"{leak.difference:.2f}"
            writer.writerow([leak.path, leak.split, leak.how, leak.listed_in, leak.seen, level])
