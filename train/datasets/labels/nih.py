"""NIH ChestX-ray14 as it is downloaded, from the NIH or from Kaggle -> labelled images.

What is read, from the folder `root`:

- `Data_Entry_2017_v2020.csv`, or the older `Data_Entry_2017.csv`: Image Index, Finding Labels ("Mass|Nodule"), Patient
  ID, Patient Age, Patient Gender (in some copies Patient Sex), View Position
- `train_val_list.txt` and `test_list.txt`: the official split, by patient
- `images_001/images/00000001_000.png` and so on, or all images in `images`

The older table has impossible ages (411Y; later versions 411); over 120 they count as not known. Labels were read out
of the reports by a program.
"""

from __future__ import annotations

from pathlib import Path

from encoder.radiograph import parse_age
from train.datasets.folder import read_names
from train.datasets.labelled import Labelled, Row, found_images, gather, validation_of
from train.datasets.release import find_table, images_below, missing_file, read_table
from train.datasets.table import SEXES
from vlm.study import StudyError

SOURCE = "NIH ChestX-ray14 (https://nihcc.app.box.com/v/ChestXray-NIHCC)"
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "Data_Entry_2017_v2.csv")
NAMES = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "No Finding",
)  # fmt: skip
COLUMNS = ("Image Index", "Finding Labels", "Patient Age")


def labelled(root: str | Path, view: str | None = None) -> Labelled:
    """Read NIH ChestX-ray14: the 14 findings and No Finding. The official test list is the test; an eighth of
    the other patients, chosen by a hash, validates. `view` (PA or AP) keeps the films of one view. Images
    that are not there are left out. Raises StudyError where a table, a list, a column or all images are
    missing, or an image is in neither list or in both."""
    root = Path(root)
    if view not in (None, "PA", "AP"):
        raise StudyError(f"view {view!r} is unknown; there are PA and AP")
    table = next(filter(None, (find_table(root, name) for name in TABLES)), None)
    if table is None:
        raise missing_file(root, TABLES[0], SOURCE)
    lists = {}
    for name in ("train_val_list.txt", "test_list.txt"):
        if not (root / name).is_file():
            raise missing_file(root, name, SOURCE, "It is the official split.")
        lists[name] = read_names(root / name)
    rows = {}
    for image, findings, age, sex, gender, position in read_table(
        table, COLUMNS, ("Patient Sex", "Patient Gender", "View Position")
    ):
        if view and position != view:
            continue
        places = [name for name, images in lists.items() if image in images]
        if len(places) != 1:
            raise StudyError(f"{table}: {image} is in {len(places)} of train_val_list.txt and test_list.txt")
        named = set(findings.split("|"))
        if unknown := named - set(NAMES):
            raise StudyError(
                f"{table}: {image} has {', '.join(unknown)[:60]!r}, which is not a label of this data set"
            )
        patient = image.split("_")[0]  # the table drops its leading zeros
        rows[image] = Row(
            Path(image),
            "test" if places == ["test_list.txt"] else validation_of(patient),
            patient,
            {name: float(name in named) for name in NAMES},
            {"age": parse_age(age)},
            SEXES.get((sex or gender).strip().lower()),
        )
    folders = [folder for folder in root.glob("images*") if folder.is_dir()]
    images = {f"{stem}.png": path for stem, path in images_below(*folders or [root]).items()}
    kept = found_images(root, rows, images)
    for image in kept:
        rows[image].path = images[image]
    return gather([rows[image] for image in kept], "nih", NAMES)
