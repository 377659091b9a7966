"""CheXpert Plus as it is downloaded -> studies.

What is read, from the folder `root`:

- `df_chexpert_plus_240401.csv`, packed or not: a row for each image, with the sections of its report
- `chexbert_labels/findings_fixed.json`, `impression_fixed.json` or `report_fixed.json`: CheXbert's labels of that
  text, a JSON object a line, in whatever folder directly below `root` they lie; may be absent
- `PNG/train/patient00001/study1/view1_frontal.png`, or the DICOM files, or the JPEGs of the first CheXpert, whose
  tree is the same; only the names of the first few folders are looked at

The order of a patient's reports is the table's `patient_report_date_order`; there is no column of dates. (Others found
the dates inside reports to disagree with it; those are shifted, and partly made up.) The release has the splits train
and valid only. Others found one PNG that does not decode, of patient32368, study1.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from encoder.files import text_lines
from encoder.radiograph import parse_age
from train.datasets.release import as_number, find_table, missing_file, read_table
from train.datasets.reports.priors import link_priors
from train.datasets.table import SEXES, known
from vlm.study import VIEWS, Image, Study, StudyError, normalise_split

SOURCE = "CheXpert Plus (https://aimi.stanford.edu/datasets/chexpert-plus)"
LABELLED = ("findings", "impression", "report")  # texts that CheXbert's labels exist of
# Where the archives and people put the folders train/ and valid/.
TREES = (
    "PNG", "PNG/PNG", "PNGs", "DICOM", "DICOM/DICOM", "DICOM/Uncompressed", "CheXpert-v1.0", "CheXpert-v1.0-small", "",
)  # fmt: skip
SUFFIXES = (".png", ".dcm", ".jpg", ".jpeg")
STUDY = re.compile(r"(patient\d+)/(study\d+)/")
SECTIONS = {
    "indication": ("section_clinical_history", "section_history"),  # few reports have both
    "technique": ("section_technique",),
    "comparison": ("section_comparison",),
    "findings": ("section_findings",),
    "impression": ("section_impression",),
}
COLUMNS = ("path_to_image", "split", "frontal_lateral", "section_findings", "section_impression")
OPTIONAL = (
    "ap_pa", "path_to_dcm", "deid_patient_id", "patient_report_date_order", "age", "sex",
    "section_clinical_history", "section_history", "section_technique", "section_comparison",
)  # fmt: skip


def studies(
    root: str | Path,
    frontal_only: bool = True,
    priors: bool = True,
    labels: str = "findings",
    images: str | None = None,
) -> list[Study]:
    """Read the data set below `root`, in the order of its table. Image paths are relative to `root`.

    Study ids are like patient00001_study1. Texts are those of the study's first row; between the rows of a study, what
    replaces names and dates may differ. A quarter of the reports have findings; most others have an impression only.
    `labels` says which text's labels to take (one of LABELLED); a study without that text has none. `images` is the
    folder below `root` that holds train/ and valid/, if it is none of TREES, or where there are several. Images are in
    the order PA, AP, frontal, lateral; none is opened, and none need exist. `frontal_only` keeps the studies with a
    frontal image, with all their images. `priors` links each kept study to the patient's latest one before it.

    Raises StudyError where a file or a column is missing or cannot be read.
    """
    root = Path(root)
    if not root.exists():
        raise StudyError(f"{root} does not exist")
    if labels not in LABELLED:
        raise StudyError(f"there are no labels of {labels!r}; there are those of {', '.join(LABELLED)}")
    table = find_table(root, "df_chexpert_plus*.csv")
    if table is None:
        raise missing_file(root, "df_chexpert_plus_240401.csv", SOURCE)
    tree, suffix = _tree(root, images)
    found, when = _studies(table, tree, suffix, priors)
    _add_labels(root, labels, found.values())
    kept = list(found.values())
    for study in kept:
        del study.extra["path_to_image"]
        study.images.sort(key=lambda image: VIEWS.index(image.view))
    if frontal_only:
        kept = [s for s in kept if any(image.view in ("PA", "AP", "frontal") for image in s.images)]
    if priors:
        link_priors(kept, when)
    return kept


def _studies(table: Path, tree: str, suffix: str, priors: bool) -> tuple[dict[str, Study], dict[str, float]]:
    """Return (study id -> study, study id -> its place among the patient's)."""
    found: dict[str, Study] = {}
    when: dict[str, float] = {}
    required = (*COLUMNS, "patient_report_date_order") if priors else COLUMNS
    optional = tuple(column for column in OPTIONAL if column not in required)
    for cells in read_table(table, required, optional):
        row = dict(zip((*required, *optional), cells, strict=True))
        path = row["path_to_image"].strip()
        match = STUDY.search(path)
        if match is None:
            raise StudyError(
                f"{table}: path_to_image {path[:80]!r} is not like train/patient00001/study1/..."
            )
        study_id = f"{match[1]}_{match[2]}"
        study = found.get(study_id)
        if study is None:
            try:
                study = found[study_id] = _study(row, study_id, match[1])
            except StudyError as error:
                raise StudyError(f"{table}, {study_id}: {error}") from None
            order = as_number(row["patient_report_date_order"])
            if order is not None:
                when[study_id] = order
        if suffix == ".dcm" and known(row["path_to_dcm"]):
            path = row["path_to_dcm"].strip()
        image = Image(posixpath.join(tree, path.rpartition(".")[0] + suffix), _view(row))
        if image not in study.images:
            study.images.append(image)
    return found, when


def _study(row: dict[str, str], study_id: str, patient: str) -> Study:
    years = parse_age(row["age"])
    texts: dict[str, Any] = {
        name: " ".join(filter(None, (_text(row[c]) for c in columns))) or None
        for name, columns in SECTIONS.items()
    }
    split = known(row["split"])
    return Study(
        study_id,
        known(row["deid_patient_id"]) or patient,
        None if split is None else normalise_split(split),
        age=int(years) if years is not None and years == int(years) else years,
        sex=SEXES.get(row["sex"].strip().lower()),
        **texts,
        extra={"path_to_image": row["path_to_image"].strip()},  # what the labels are found by
    )


def _text(cell: str) -> str | None:
    return " ".join(cell.split()) if known(cell) is not None else None


def _view(row: dict[str, str]) -> str:
    side = row["frontal_lateral"].strip().lower()
    if side == "lateral":
        return "lateral"
    view = row["ap_pa"].strip()  # a few frontal images say LL or RL
    return view if view in ("PA", "AP") else "frontal" if side == "frontal" else "unknown"


def _tree(root: Path, images: str | None) -> tuple[str, str]:
    """Return (the folder of train/ and valid/, relative to `root`; what the names of the images in it end
    in)."""
    if images is not None and not (root / images).is_dir():
        raise StudyError(
            f"{root / images} is not a folder; `images` names the one that holds train/ and valid/"
        )
    for tree in TREES if images is None else (images,):
        for split in ("train", "valid"):
            if suffix := _suffix(root / tree / split):
                return tree, suffix
    return (images or "PNG"), ".png"


def _suffix(folder: Path) -> str | None:
    """Of the first image found in one of the first few patients' folders."""
    try:
        with os.scandir(folder) as patients:
            for _, patient in zip(range(20), patients, strict=False):
                for path in Path(patient.path).glob("study*/*"):
                    if path.suffix.lower() in SUFFIXES:
                        return path.suffix
    except OSError:
        return None
    return None


# Labels


def _add_labels(root: Path, kind: str, found: Iterable[Study]) -> None:
    name = f"{kind}_fixed.json"
    places = [root / name, *sorted(root.glob(f"*/{name}"))]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return
    of_image = {study.extra["path_to_image"]: study for study in found}
    for row in _lines(path):
        study = of_image.get(row.get("path_to_image"))
        if study is None or (kind != "report" and getattr(study, kind) is None):
            continue
        labels = {}
        for condition, value in row.items():
            if condition == "path_to_image" or value is None:
                continue
            if isinstance(value, bool) or value not in (1, 0, -1):
                raise StudyError(f"{path}: {study.study_id} has a {condition!r} other than 1, 0, -1 and null")
            labels[condition] = int(value)
        study.labels = labels or None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        for number, line in enumerate(text_lines(path), 1):
            if not line.strip():
                continue
            row = json.loads(line, parse_constant=lambda _: None)
            if not isinstance(row, dict) or "path_to_image" not in row:
                raise StudyError(f"{path}, line {number}: not an object with a path_to_image")
            yield row
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StudyError(f"{path}, after line {number}: it cannot be read ({type(error).__name__})") from None
