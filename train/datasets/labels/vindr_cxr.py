"""VinDr-CXR 1.0.0 as it is downloaded from PhysioNet -> labelled images.

What is read, from the folder `root` (or `root/1.0.0`):

- `annotations/image_labels_train.csv`: image_id, rad_id (R1 to R17) and a column of 1 and 0 for each finding; three
  rows an image, one a reader
- `annotations/image_labels_test.csv`: the same without rad_id, one row an image, the consensus of five readers. It
  calls "Other disease" what the other calls "Other diseases" (so say others who read both)
- `train/<image_id>.dicom`, `test/<image_id>.dicom`, or PNG or JPEG copies of the same name

All films are PA. There are no patient ids, so each image counts as a patient of its own. The headers of the DICOM files
hold the sex and the age of some patients; from memory: many ages are 000Y, which is read as not known.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from train.datasets.headers import dicom_header
from train.datasets.labelled import Labelled, Row, found_images, gather, validation_of
from train.datasets.release import as_number, images_below, missing_file, read_table, rows_of

SOURCE = "VinDr-CXR (https://physionet.org/content/vindr-cxr/)"
RENAMED = {"Other diseases": "Other disease"}


def labelled(root: str | Path, headers: bool = True) -> Labelled:
    """Read VinDr-CXR. Labels of the training images are those of the majority of their readers; a draw is not
    known. The official test set is the test; an eighth of the training images, chosen by a hash of their ids,
    validates. Images that are not there are left out. `headers`: take age and sex (and weight and height, if
    ever) from the DICOM files, which reads the beginning of each. Raises StudyError where a table or a column
    is missing, or no image is there."""
    root = Path(root)
    if not (root / "annotations").is_dir() and (root / "1.0.0").is_dir():
        root /= "1.0.0"
    names, labels, splits = [], {}, {}
    for split in ("train", "test"):
        table = root / "annotations" / f"image_labels_{split}.csv"
        if not table.is_file():
            raise missing_file(table.parent, table.name, SOURCE)
        columns = [name for name in next(rows_of(table)) if name not in ("image_id", "rad_id")]
        votes = defaultdict(list)
        required = ("image_id", "rad_id") if split == "train" else ("image_id",)
        for cells in read_table(table, (*required, *columns)):
            votes[cells[0]].append([as_number(cell) for cell in cells[len(required) :]])
        columns = [RENAMED.get(name, name) for name in columns]
        names += [name for name in columns if name not in names]
        for image, votes_RL in votes.items():
            labels[image] = dict(zip(columns, _majority(np.array(votes_RL, float)), strict=True))
            splits[image] = split if split == "test" else validation_of(image)
    images = images_below(root / "train", root / "test")
    rows = []
    for image in found_images(root, splits, images):
        row = Row(images[image], splits[image], image, labels[image])
        if headers and row.path.suffix.lower() in (".dicom", ".dcm"):
            header = dicom_header(row.path)
            row.sex = header.sex
            row.numbers = {"age": header.age or None, "weight": header.weight, "height": header.height}
        rows.append(row)
    return gather(rows, "vindr-cxr", names)


def _majority(votes_RL: np.ndarray) -> list[float]:
    """Of R readers; NaN where as many say yes as no."""
    yes, no = (votes_RL == 1).sum(0), (votes_RL == 0).sum(0)
    return [float(x) for x in np.where(yes > no, 1.0, np.where(no > yes, 0.0, np.nan))]
