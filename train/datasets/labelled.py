"""Images with labels, for probes: a CSV, a studies file, or a folder with one sub-folder a class."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.datasets.folder import PATH_COLUMNS, image_paths
from vlm.study import load_studies, normalise_split

SPLITS = ("train", "validate", "test")
SEPARATOR = "|"  # between the labels of an image


@dataclass
class Labelled:
    """`labels_NL` is 1, 0, or NaN where it is not known; `splits` and `patients` have one entry an image."""

    paths: list[Path]
    names: list[str]
    labels_NL: np.ndarray
    splits: np.ndarray
    patients: np.ndarray

    def part(self, split: str) -> np.ndarray:
        """Rows of a split."""
        return np.flatnonzero(self.splits == split)


def labelled_images(source: str | Path) -> Labelled:
    """Read `source`:

    - a CSV with a column `file`, `path` or `image`, a column `labels` ("Edema|Effusion"; what is not named is
      absent), `split`, and optionally `patient_id`; rows with an empty cell among the first three are left out;
    - a studies file, whose `labels` are 1, 0 or -1 (not known, as what is absent); frontal images only;
    - a folder train/CLASS/..., validate/CLASS/..., test/CLASS/...

    Raises FileNotFoundError, or ValueError where labels or splits are missing.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a CSV, a studies file or a folder")
    if source.is_dir():
        rows = _from_folder(source)
    elif source.suffix.lower() == ".csv":
        rows = _from_csv(source)
    else:
        rows = _from_studies(source)
    if not rows:
        raise ValueError(f"{source} has no labelled image with a split")
    names = sorted({name for _, labels, _, _ in rows for name in labels} - {""})
    if not names:
        raise ValueError(f"{source} has no label")
    values = np.array(
        [[labels.get(name, labels.get("", np.nan)) for name in names] for _, labels, _, _ in rows]
    )
    paths, _, splits, patients = zip(*rows, strict=True)
    return Labelled(list(paths), names, values.astype(np.float64), np.array(splits), np.array(patients))


Row = tuple[Path, dict[str, float], str, str]  # the key "" of the labels stands for those that are not named


def _from_csv(source: Path) -> list[Row]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        column = next((c for c in PATH_COLUMNS if c in columns), None)
        missing = [c for c in ("labels", "split") if c not in columns]
        if column is None or missing:
            lacks = ", ".join(missing) or f"one of {', '.join(PATH_COLUMNS)}"
            raise ValueError(f"{source} lacks the column(s) {lacks}; it has {', '.join(columns) or 'none'}")
        rows = []
        for row in reader:
            if row[column] and row["labels"] and row["split"]:
                labels = {name.strip(): 1.0 for name in row["labels"].split(SEPARATOR) if name.strip()}
                patient = row.get("patient_id") or row[column]
                split = normalise_split(row["split"])
                rows.append((source.parent / row[column], {"": 0.0, **labels}, split, patient))
    return rows


def _from_studies(source: Path) -> list[Row]:
    rows = []
    for study in load_studies(source):
        if not study.labels or not study.split:
            continue
        labels = {name: float(value) for name, value in study.labels.items() if value in (0, 1)}
        for path, image in zip(study.image_paths(source.parent), study.images, strict=True):
            if image.view != "lateral":
                rows.append((path, labels, study.split, study.patient_id or study.study_id))
    return rows


def _from_folder(source: Path) -> list[Row]:
    rows = []
    for split in SPLITS:
        for path in image_paths(source, split):
            inside = path.relative_to(source).parts  # split, class, ..., file
            if len(inside) < 3:
                raise ValueError(f"{path} lies in no class: expected {source}/{split}/CLASS/...")
            rows.append((path, {"": 0.0, inside[1]: 1.0}, split, str(path)))
    return rows
