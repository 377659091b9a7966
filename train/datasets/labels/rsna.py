"""The RSNA Pneumonia Detection Challenge (2018, Kaggle) as it is downloaded -> labelled images.

What is read, from the folder `root`:

- `stage_2_train_labels.csv`: patientId, x, y, width, height, Target; a row a box, or one without a box
- `stage_2_detailed_class_info.csv`: patientId, class; may be absent
- `stage_2_train_images/<patientId>.dcm`, or PNG or JPEG copies; `stage_2_test_images` has no labels and is not read
- `pneumonia-challenge-dataset-mappings_2018.json`, which the RSNA publishes beside the challenge: a list of objects of
  which `subset_img_id` is the patientId and `img_id` the name of the image in NIH ChestX-ray14; may be absent

A patientId is the id of an image. The patient behind it is known only through the mapping, whose NIH names begin with
the number of the patient.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from train.datasets.headers import dicom_header
from train.datasets.labelled import SHARES, Labelled, Row, found_images, gather
from train.datasets.release import find_table, hashed_split, images_below, missing_file, read_table
from vlm.study import StudyError

log = logging.getLogger(__name__)

SOURCE = (
    "the RSNA Pneumonia Detection Challenge (https://www.kaggle.com/c/rsna-pneumonia-detection-challenge)"
)
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
OPACITY, NORMAL, OTHER = "Lung Opacity", "Normal", "No Lung Opacity / Not Normal"


def labelled(root: str | Path, headers: bool = True) -> Labelled:
    """Read RSNA Pneumonia. Labels are the three classes; without the table of classes, Lung Opacity only.
    Splits (70, 10 and 20 % of the patients) come from a hash of the patient. `also["nih"]` is the image's
    name in NIH ChestX-ray14. `headers`: take age and sex from the DICOM files, which reads the beginning of
    each. Raises StudyError where a table, a column or all images are missing, or the mapping cannot be
    read."""
    root = Path(root)
    table = find_table(root, "stage_2_train_labels.csv")
    if table is None:
        raise missing_file(root, "stage_2_train_labels.csv", SOURCE)
    labels = {}
    for image, target in read_table(table, ("patientId", "Target")):
        if target not in ("0", "1"):
            raise StudyError(f"{table}: Target of {image} is {target[:20]!r}, and not 0 or 1")
        labels[image] = {OPACITY: float(target)}
    classes = find_table(root, "stage_2_detailed_class_info.csv")
    if classes is not None:
        for image, name in read_table(classes, ("patientId", "class")):
            if name not in (OPACITY, NORMAL, OTHER):
                raise StudyError(f"{classes}: class {name[:40]!r}; there are {OPACITY}, {NORMAL} and {OTHER}")
            if image in labels:
                labels[image] |= {NORMAL: float(name == NORMAL), OTHER: float(name == OTHER)}
    nih = nih_names(root)
    images = images_below(root / "stage_2_train_images")
    rows = []
    for image in found_images(root, labels, images):
        name = nih.get(image, "")
        patient = name.split("_")[0] or image
        row = Row(images[image], hashed_split(patient, SHARES), patient, labels[image])
        if name:
            row.also = {"nih": name}
        if headers and row.path.suffix.lower() == ".dcm":
            header = dicom_header(row.path)
            row.numbers, row.sex = {"age": header.age}, header.sex
        rows.append(row)
    if unknown := sum(not row.also for row in rows):
        log.warning(
            "%s: the patients of %d of %d images are not known and may be in several splits; put %s there",
            root, unknown, len(rows), MAPPING,
        )  # fmt: skip
    return gather(rows, "rsna", [OPACITY, NORMAL, OTHER] if classes else [OPACITY])


def nih_names(root: Path) -> dict[str, str]:
    """Map patientId to the name of the image in NIH ChestX-ray14, such as 00000001_000.png; empty without a
    mapping."""
    file = root / MAPPING
    if not file.is_file():
        return {}
    try:
        return {entry["subset_img_id"]: entry["img_id"] for entry in json.loads(file.read_text("utf-8-sig"))}
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"{type(error).__name__}: {error}"[:80]
        raise StudyError(f"{file} is not a list of objects with subset_img_id and img_id ({what})") from None
