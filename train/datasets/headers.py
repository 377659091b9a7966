"""What the header of a DICOM file says of the patient, without its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder.radiograph import parse_age, quiet

DEFLATED = "1.2.840.10008.1.2.1.99"
TAGS = ["PatientAge", "PatientSex", "PatientWeight", "PatientSize", "Rows", "Columns"]
# What the reader looks at when it turns a film and makes its pixels square.
HANGING = [
    "PatientOrientation", "AnatomicalOrientationType", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio",
    "ViewPosition", "ViewCodeSequence", "SeriesDescription", "ProtocolName",
]  # fmt: skip
PLAUSIBLE = {"weight": (0.3, 400), "height": (0.3, 2.5)}  # kg, m; typing errors and other units lie outside


@dataclass(frozen=True)
class PatientHeader:
    """Hold what is known of a patient; None where the file says nothing, or nothing plausible."""

    age: float | None = None  # years
    sex: str | None = None  # F or M
    weight: float | None = None  # kg
    height: float | None = None  # m
    # of the stored pixels; then (H, W) of square ones, and how they are turned (`encoder.radiograph.geometry`)
    rows: int = 0
    columns: int = 0
    squared: tuple[int, int] = (0, 0)
    turns: tuple[bool, bool, bool] = (False, False, False)


def dicom_header(path: Path) -> PatientHeader:
    """Return what a file's DICOM header says; nothing if it is not DICOM, is damaged, or is deflated as a
    whole."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    from encoder.radiograph.dicom import hanging

    with quiet():
        try:
            # inflating takes place before a tag is read, whatever size that may come to
            if read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
                return PatientHeader()
            found = dcmread(path, stop_before_pixels=True, specific_tags=TAGS + HANGING)
            sex = str(found.get("PatientSex") or "").strip().upper()
            return PatientHeader(
                parse_age(str(found.get("PatientAge") or "")),
                sex if sex in ("F", "M") else None,
                plausible("weight", found.get("PatientWeight")),
                plausible("height", found.get("PatientSize")),
                int(found.get("Rows") or 0),
                int(found.get("Columns") or 0),
                *hanging(found),
            )
        except Exception:  # pydicom raises anything on hostile input
            return PatientHeader()


def plausible(what: str, value: Any) -> float | None:
    """Return a weight in kg or a height in m; None for values that no patient has."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    low, high = PLAUSIBLE[what]
    return number if low <= number <= high else None
