"""PadChest as it is downloaded (BIMCV, Hospital San Juan, Spain) -> studies.

What is read, from the folder `root`:

- `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv`, packed or not, here or in a folder such as `labels_csv`: a row
  for each image, with report and labels
- `<ImageDir>/<ImageID>`, here or in one of the folders directly below, such as `images`; or all images in one such
  folder, as in smaller copies; only a few names are looked at

The reports are Spanish, in lower case, and without their commonest words: good for labels, poor for learning to write.
There is no official split. Only years of birth are known, so ages are right to within a year.
"""

from __future__ import annotations

import os
import posixpath
import re
from itertools import islice
from pathlib import Path

from encoder.radiograph import parse_view
from train.datasets.release import as_number, find_table, missing_file, read_table
from train.datasets.reports.priors import link_priors
from train.datasets.table import SEXES, known
from vlm.prompts import clean
from vlm.study import VIEWS, Image, Study, StudyError

SOURCE = "PadChest (https://bimcv.cipf.es/bimcv-projects/padchest/)"
TABLE = "PADCHEST_chest_x_ray_images_labels_160K*.csv"
TABLE_FOLDERS = ("", "labels_csv", "labels", "label", "metadata")
PROJECTIONS = {"PA": "PA", "AP": "AP", "AP_HORIZONTAL": "AP", "L": "lateral"}  # horizontal: the patient lies
LEFT_OUT = ("COSTAL", "EXCLUDE")  # films of the ribs, and films that are not of the chest
LABEL = re.compile(r"'([^']*)'|\"([^\"]*)\"")  # of a list as Python prints it
COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "StudyDate_DICOM")
OPTIONAL = ("PatientBirth", "PatientSex_DICOM", "ViewPosition_DICOM", "Labels", "MethodLabel")


def studies(root: str | Path, frontal_only: bool = True, priors: bool = True) -> list[Study]:
    """Read the data set below `root`, in the order of its table. Image paths are relative to `root`.

    Reports become findings, marked `"language": "es"`; labels become diagnoses, including `normal` and what says
    something about the report (`unchanged`, `exclude`, `suboptimal study`). `labels_by` tells whose labels they are:
    Physician or RNN_model. Images of the projections LEFT_OUT are left out, and with them studies that have no others.
    Images are in the order PA, AP, frontal, lateral, unknown; none is opened, and none need exist. `frontal_only` keeps
    the studies with a frontal image, with all their images. `priors` links each kept study to the patient's latest one
    of an earlier day.

    Raises StudyError where the table or a column is missing or cannot be read.
    """
    root = Path(root)
    if not root.exists():
        raise StudyError(f"{root} does not exist")
    table = next(filter(None, (find_table(root / folder, TABLE) for folder in TABLE_FOLDERS)), None)
    if table is None:
        raise missing_file(root, "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", SOURCE)

    found: dict[str, Study] = {}
    when: dict[str, float] = {}
    places: dict[str, str] = {}  # image -> its ImageDir
    for row in read_table(table, COLUMNS, OPTIONAL):
        name, folder, study_id, patient, projection, report, date_text, *rest = (cell.strip() for cell in row)
        if projection.upper() in LEFT_OUT:
            continue
        if not name or not study_id:
            raise StudyError(f"{table}: a row has no ImageID or no StudyID")
        birth_text, sex, position, labels, method = rest
        date = as_number(date_text)
        study = found.get(study_id)
        if study is None:
            study = found[study_id] = Study(
                study_id,
                known(patient),
                age=_age(birth_text, date),
                sex=SEXES.get(sex.lower()),
                findings=_text(report),
                diagnoses=_diagnoses(labels),
            )
            if study.findings is not None:
                study.extra["language"] = "es"
            if study.diagnoses and known(method) is not None:
                study.extra["labels_by"] = method
            if date is not None:
                when[study_id] = date
        elif study.patient_id != known(patient):
            raise StudyError(f"{table}: the rows of study {study_id} have different patients")
        if name not in places:
            places[name] = folder.removesuffix(".0")
            study.images.append(Image(name, PROJECTIONS.get(projection.upper()) or parse_view(position)))

    prefix, in_folders = _layout(root, places)
    for study in found.values():
        for image in study.images:
            folder = places[image.path] if in_folders else ""
            image.path = posixpath.join(prefix, folder, image.path)
        study.images.sort(key=lambda image: VIEWS.index(image.view))
    kept = list(found.values())
    if frontal_only:
        kept = [s for s in kept if any(image.view in ("PA", "AP", "frontal") for image in s.images)]
    if priors:
        link_priors(kept, when)
    return kept


def _text(report: str) -> str | None:
    text = clean(report) if known(report) is not None else ""
    return text if any(map(str.isalpha, text)) else None  # many are full stops only


def _diagnoses(cell: str) -> list[str] | None:
    labels = (single or double for single, double in LABEL.findall(cell))
    return list(dict.fromkeys(label.strip() for label in labels if label.strip())) or None


def _age(birth_text: str, date: float | None) -> int | None:
    birth = as_number(birth_text)
    if birth is None or date is None:
        return None
    years = int(date) // 10000 - int(birth)
    return years if 0 <= years <= 120 else None


def _layout(root: Path, places: dict[str, str]) -> tuple[str, bool]:
    """Return (folder of the images, relative to `root`; whether they lie in folders named by ImageDir
    there)."""
    folders = set(places.values()) - {""}
    with os.scandir(root) as entries:
        others = sorted(e.name for e in entries if e.name not in folders and e.is_dir() and e.name[0] != ".")
    others.sort(key=lambda name: name.lower() != "images")
    for base in ("", *others):
        if any((root / base / folder).is_dir() for folder in folders):
            return base, True
    for base in ("", *others):
        with os.scandir(root / base) as entries:
            if any(entry.name in places for entry in islice(entries, 1000)):
                return base, False
    return "", True
