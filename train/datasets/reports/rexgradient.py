"""ReXGradient-160K as it is downloaded -> studies.

What is read, from the folder `root`:

- `metadata/train_metadata_view_position.json`, `valid_...` and `test_...`: an object of studies by id, each with its
  report, its image paths and their views; without them `train_metadata.json` and so on, whose views are poorer
- `metadata/train_metadata.csv` and so on: the reports, where the JSON lacks them; these tables name no images
- `deid_png/<patient>/<accession>/studies/<uid>/series/<uid>/instances/<uid>.png`, unpacked from `deid_png.part00` and
  so on; only whether the folder is there is looked at
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoder.radiograph import parse_age, parse_view
from train.datasets.release import as_number, find_table, missing_file, read_table
from train.datasets.reports.priors import link_priors
from train.datasets.table import SEXES, known
from vlm.study import VIEWS, Image, Study, StudyError, normalise_split

SOURCE = "ReXGradient-160K (https://huggingface.co/datasets/rajpurkarlab/ReXGradient-160K)"
SPLITS = ("train", "valid", "test")
METADATA = ("metadata", "download/metadata", "")  # folders it may be in
IMAGES = ("", "images", "download")  # folders that deid_png may be in
SECTIONS = ("Indication", "Comparison", "Findings", "Impression")
NO_VIEW = re.compile(
    r"KUB|DECUB|\b[LR]LD\b", re.I
)  # of the abdomen, or lying on a side: not the usual frontal film


def studies(root: str | Path, frontal_only: bool = True, priors: bool = True) -> list[Study]:
    """Read the splits that are there, train first. Image paths are relative to `root`; ids are those of the metadata.

    The technique is the name of the examination (`StudyDescription`). Images are in the order PA, AP, frontal,
    lateral, unknown; none is opened, and none need exist. `frontal_only` keeps the studies with a frontal image, with
    all their images; one image in eight is of unknown view, and a study of such images only is left out. `priors` links
    each kept study to the patient's latest one of an earlier day.

    Raises StudyError where a file or a key is missing or cannot be read.
    """
    root = Path(root)
    if not root.exists():
        raise StudyError(f"{root} does not exist")
    prefix = next((place for place in IMAGES if (root / place / "deid_png").is_dir()), "")
    found: list[Study] = []
    when: dict[str, float] = {}
    files = _files(root)
    for split, path in files:
        found += _studies(path, split, prefix, when)
    if frontal_only:
        found = [s for s in found if any(image.view in ("PA", "AP", "frontal") for image in s.images)]
    if priors:
        link_priors(found, when)
    return found


def _files(root: Path) -> list[tuple[str, Path]]:
    for ending in ("_metadata_view_position.json", "_metadata.json"):
        for place in METADATA:
            files = [(split, root / place / f"{split}{ending}") for split in SPLITS]
            if files := [(split, path) for split, path in files if path.is_file()]:
                return files
    raise missing_file(
        root, "metadata/train_metadata_view_position.json", SOURCE, "The .csv files name no images."
    )


def _studies(path: Path, split: str, prefix: str, when: dict[str, float]) -> Iterator[Study]:
    reports: dict[str, dict[str, str]] | None = None
    for study_id, entry in _entries(path):
        if "ImagePath" not in entry:
            raise StudyError(
                f"{path}: the key ImagePath is missing in study {study_id}; it has {', '.join(entry)}"
            )
        if "Findings" not in entry and "Impression" not in entry:
            if reports is None:
                reports = _reports(path.parent, split)
            entry = entry | reports.get(study_id, {})
        date = as_number(str(entry.get("StudyDate")))
        if date is not None:
            when[study_id] = date
        patient = known(entry.get("PatientID")) or study_id.partition("_")[0].removeprefix("p")
        years = parse_age(str(entry.get("PatientAge")))
        texts: dict[str, Any] = {name.lower(): _text(entry.get(name)) for name in SECTIONS}
        yield Study(
            study_id,
            str(patient),
            normalise_split(split),
            images=_images(entry, prefix),
            technique=_text(entry.get("StudyDescription")),
            age=None if years is None else int(years) if years == int(years) else round(years, 3),
            sex=SEXES.get(str(entry.get("PatientSex")).strip().lower()),
            **texts,
        )


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            entries = json.load(file, parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}); is it complete?") from None
    if isinstance(entries, list):
        entries = {str(e["id"]): e for e in entries if isinstance(e, dict) and "id" in e}
    if not isinstance(entries, dict) or not entries:
        raise StudyError(f"{path} must be an object with the studies by their ids")
    for study_id, entry in entries.items():
        if not isinstance(entry, dict):
            raise StudyError(f"{path}: study {study_id[:80]} is not an object")
        yield study_id, entry


def _reports(folder: Path, split: str) -> dict[str, dict[str, str]]:
    path = find_table(folder, f"{split}_metadata.csv")
    if path is None:
        raise missing_file(folder, f"{split}_metadata.csv", SOURCE, "The JSON beside it has no reports.")
    columns = ("id", "Findings", "Impression")
    optional = ("Indication", "Comparison", "StudyDate", "PatientSex", "PatientAge", "StudyDescription")
    names = (*columns, *optional)
    rows = (dict(zip(names, cells, strict=True)) for cells in read_table(path, columns, optional))
    return {row.pop("id"): {name: cell for name, cell in row.items() if cell} for row in rows}


def _text(value: Any) -> str | None:
    return " ".join(value.split()) if isinstance(value, str) and known(value) is not None else None


def _images(entry: dict[str, Any], prefix: str) -> list[Image]:
    """Read the paths, relative to the folder of the metadata, "../deid_png/..."."""
    paths, views = _list(entry["ImagePath"]), _list(entry.get("ImageViewPosition"))
    if len(views) != len(paths):
        views = [None] * len(paths)  # which is whose cannot be said
    images = []
    for path, view in zip(paths, views, strict=True):
        if isinstance(path, str) and path:
            place = posixpath.normpath(path[max(path.find("deid_png/"), 0) :])
            images.append(Image(posixpath.join(prefix, place), _view(view)))
    return sorted(images, key=lambda image: VIEWS.index(image.view))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _view(value: Any) -> str:
    text = str(value)
    return "unknown" if NO_VIEW.search(text) else parse_view(text)
