"""CANDID-PTX as its authors hand it out (Dunedin Hospital, New Zealand) -> labelled images.

Nothing of it is public without an agreement; the layout is taken from code of others who read it:

- `Pneumothorax_reports.csv`: SOPInstanceUID, EncodedPixels (runs of pixels of 1024 x 1024, or -1; of several
  pneumothoraces several rows), filename (P, the number of the patient, _ and more), Report, StudyInstanceUID
- `chest_tube.csv`: anon_SOPUID, mask_rle and a reference; a row a tube (some have the mask -1: not known)
- `Rib_fracture_mask_rle.csv`, in some copies `acute_rib_fracture.csv`: the same for acute rib fractures
- `dataset/<SOPInstanceUID>`, DICOM without an ending; or in `chest_radiographs` or another folder below, or PNG or JPEG
  copies

There is no official split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from train.datasets.headers import dicom_header
from train.datasets.labelled import SHARES, Labelled, Row, found_images, gather
from train.datasets.masks import Parts, Runs
from train.datasets.release import find_table, hashed_split, images_below, missing_file, read_table

SOURCE = "CANDID-PTX (https://doi.org/10.17608/k6.auckland.14173982)"
REPORTS = "Pneumothorax_reports.csv"
OTHERS = {  # structure -> the tables it may be in, the first that is there
    "chest tube": ("chest_tube.csv",),
    "rib fracture": ("Rib_fracture_mask_rle.csv", "acute_rib_fracture.csv"),
}
DRAWN_ON = (1024, 1024)  # the pixels the runs count
PATIENT = re.compile(r"P?0*(\d+)(?=_|$)", re.I)  # as filename begins


def labelled(root: str | Path, headers: bool = True) -> Labelled:
    """Read CANDID-PTX. Labels and structures are pneumothorax, and chest tube and rib fracture where their
    tables are there: those tables name positive images only, so all others count as without. A pneumothorax
    whose cell is empty is not known. Splits (70, 10 and 20 % of the patients) come from a hash of the
    patient, which is the image where the table has no filename. `headers`: take age and sex from the DICOM
    files. Raises StudyError where the table of reports, a column or all images are missing."""
    root = Path(root)
    table = find_table(root, REPORTS)
    if table is None:
        raise missing_file(root, REPORTS, SOURCE)
    patients: dict[str, str] = {}
    cells: dict[str, list[str]] = defaultdict(list)
    for image, code, filename in read_table(table, ("SOPInstanceUID", "EncodedPixels"), ("filename",)):
        image = image.strip()
        match = PATIENT.match(filename.strip())
        patients.setdefault(image, match[1] if match else image)
        cells[image].append(code)
    drawn = {"pneumothorax": {image: _parts(codes, table) for image, codes in cells.items()}}
    for structure, files in OTHERS.items():
        table = next(filter(None, (find_table(root, name) for name in files)), None)
        if table is not None:
            cells = defaultdict(list)
            for image, code in read_table(table, ("anon_SOPUID", "mask_rle")):
                cells[image.strip()].append(code)
            drawn[structure] = dict.fromkeys(patients, ()) | {
                i: _parts(c, table) or None for i, c in cells.items()
            }
    images = images_below(*(folder for folder in sorted(root.iterdir()) if folder.is_dir()))
    rows = []
    for image in found_images(root, patients, images):
        masks = {name: parts for name, of in drawn.items() if (parts := of[image]) is not None}
        row = Row(images[image], hashed_split(patients[image], SHARES), patients[image], masks=masks)
        row.labels = {name: float(parts != ()) for name, parts in masks.items()}
        if headers and row.path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            header = dicom_header(row.path)
            row.numbers, row.sex = {"age": header.age}, header.sex
        rows.append(row)
    return gather(rows, "candid-ptx", list(drawn), list(drawn))


def _parts(codes: list[str], table: Path) -> Parts | None:
    """None if no cell says anything, () if they say that there is nothing."""
    codes = [code.strip() for code in codes if code.strip()]
    return tuple(Runs(code, DRAWN_ON, str(table)) for code in codes if code != "-1") if codes else None
