"""CheXpert v1.0 (or the small version) as it is downloaded -> labelled images.

What is read, from the folder `root`, or `CheXpert-v1.0` or `CheXpert-v1.0-small` in it:

- `train.csv`, `valid.csv`: Path (CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg), Sex, Age, Frontal/Lateral,
  AP/PA, and 14 columns of 1, 0, -1 (uncertain) or nothing (not mentioned)
- `test_labels.csv`, published later with CheXlocalize, here or in `CheXpert`: Path
  (test/patient64741/study1/view1_frontal.jpg) and the 14 columns, which eight readers agreed upon
- the images, in train/, valid/ and test/

Labels of the training set were read out of the reports by a program. From memory: ages stop at 90, and 0 stands for
not known, as Unknown does for sex. The release with the reports is CheXpert Plus, of the same images.
"""

from __future__ import annotations

import re
from pathlib import Path

from encoder.radiograph import parse_age
from train.datasets.labelled import Labelled, Row, gather
from train.datasets.release import hashed_split, missing_file, read_table
from train.datasets.table import SEXES
from vlm.study import StudyError

SOURCE = "CheXpert (https://aimi.stanford.edu/datasets/chexpert-chest-x-rays)"
FOLDERS = ("", "CheXpert-v1.0", "CheXpert-v1.0-small")
TESTS = (
    "test_labels.csv",
    "CheXpert/test_labels.csv",
    "../test_labels.csv",
    "../CheXpert/test_labels.csv",
)
NAMES = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
PATH = re.compile(r"(?:train|valid|test)/(patient\d+)/study\d+/view\d+_(frontal|lateral)\.\w+$")
VALUES = {"1": 1.0, "0": 0.0, "-1": float("nan")}
HELD_OUT = 0.05  # of the training patients, to validate where valid.csv is the test


def labelled(root: str | Path, frontal_only: bool = True) -> Labelled:
    """Read CheXpert: 14 labels; -1 is not known, and a finding that is not mentioned counts as absent.

    valid.csv validates and the test labels are the test. Without these, valid.csv (200 patients, read by
    three readers) is the test, as in much that was published. A twentieth of the training patients, chosen by
    a hash, then validates.

    The images are where the tables say; only the first few are looked for. Raises StudyError if a table, a
    column or the images are missing.
    """
    root = Path(root)
    root = next((root / f for f in FOLDERS if (root / f / "train.csv").is_file()), root)
    tables = {"train": root / "train.csv", "valid": root / "valid.csv"}
    for table in tables.values():
        if not table.is_file():
            raise missing_file(root, table.name, SOURCE)
    test = next((root / name for name in TESTS if (root / name).is_file()), None)
    rows = _rows(tables["train"], root, frontal_only)
    valid = _rows(tables["valid"], root, frontal_only)
    for row in valid:
        row.split = "validate" if test else "test"
    if test is None:
        for row in rows:
            row.split = hashed_split(row.patient, {"train": 1 - HELD_OUT, "validate": HELD_OUT})
        return gather(rows + valid, "chexpert", NAMES)
    tested = _rows(test, test.parent, frontal_only)
    for row in tested:
        row.split = "test"
    return gather(rows + valid + tested, "chexpert", NAMES)


def _rows(table: Path, folder: Path, frontal_only: bool) -> list[Row]:
    rows = []
    for name, *cells, sex, age in read_table(table, ("Path", *NAMES), ("Sex", "Age")):
        match = PATH.search(name)
        if match is None:
            raise StudyError(
                f"{table}: Path {name[:80]!r} is not like train/patient00001/study1/view1_frontal.jpg"
            )
        if frontal_only and match[2] == "lateral":
            continue
        labels = {}
        for label, cell in zip(NAMES, cells, strict=True):
            value = VALUES.get(cell.strip().removesuffix(".0")) if cell.strip() else 0.0
            if value is None:
                raise StudyError(f"{table}: {label} is {cell[:20]!r}, and not 1, 0, -1 or nothing")
            labels[label] = value
        numbers = {"age": parse_age(age) or None}
        rows.append(
            Row(folder / match[0], "train", match[1], labels, numbers, SEXES.get(sex.strip().lower()))
        )
    if rows and not any(row.path.is_file() for row in rows[:20]):
        raise StudyError(f"{table}: none of its first images is there, such as {rows[0].path}")
    return rows
