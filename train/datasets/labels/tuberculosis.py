"""The two tuberculosis sets of the NLM, Montgomery County and Shenzhen, as they are downloaded -> labelled images.

What is read, from the folder `root`, or `MontgomerySet` or `ChinaSet_AllFiles` in it:

- `CXR_png/MCUCXR_0001_0.png`, `CXR_png/CHNCXR_0001_0.png`: the last digit is 1 for signs of tuberculosis, 0 for none
- `ClinicalReadings/MCUCXR_0001_0.txt`: "Patient's Sex: F", "Patient's Age: 027Y" and the reading; in Shenzhen one line
  such as "male 45yrs", "Female, 28yrs", "femal 32yrs" or "female 64days" before it; may be absent
- `ManualMask/leftMask` and `rightMask` (Montgomery), one mask a lung; may be absent
- `mask/CHNCXR_0001_0_mask.png` (Shenzhen), here, in the folder above or in `shcxr-lung-mask`: masks of both lungs that
  others published later (Kaggle, yoctoman/shcxr-lung-mask), for 566 of the 662 images; may be absent

How the readings look is taken from code and notes of others. There are neither official splits nor patient ids: each
image counts as a patient of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

from encoder.radiograph import AGE_UNITS
from train.datasets.labelled import SHARES, Labelled, Row, gather
from train.datasets.masks import Parts
from train.datasets.release import hashed_split, images_below
from vlm.study import StudyError

SETS = {  # kind -> folder of the release, names of its images
    "montgomery": ("MontgomerySet", re.compile(r"MCUCXR_\d+_([01])")),
    "shenzhen": ("ChinaSet_AllFiles", re.compile(r"CHNCXR_\d+_([01])")),
}
SHENZHEN_MASKS = ("mask", "mask/mask", "masks")
AGE = re.compile(r"(\d+)\s*(y|m|w|d)?", re.I)
SEX = re.compile(r"\b(?:(f|femal|female)|(m|male))\b", re.I)


def labelled(root: str | Path, kind: str) -> Labelled:
    """Read the tuberculosis sets. The label is Tuberculosis; structures are left lung and right lung, or
    lungs. Splits (70, 10 and 20 %) come from a hash of the image's name. `kind` is montgomery or shenzhen.
    Raises StudyError if no image is there."""
    folder, pattern = SETS[kind]
    root = Path(root)
    if not (root / "CXR_png").is_dir() and (root / folder).is_dir():
        root /= folder
    images = {stem: path for stem, path in images_below(root / "CXR_png").items() if pattern.fullmatch(stem)}
    if not images:
        raise StudyError(
            f"{root}: no image is in {folder}/CXR_png, of https://data.lhncbc.nlm.nih.gov/public"
        )
    masks = _montgomery_masks(root) if kind == "montgomery" else _shenzhen_masks(root)
    rows = []
    for name, path in sorted(images.items()):
        age, sex = _person(root / "ClinicalReadings" / f"{name}.txt")
        match = pattern.fullmatch(name)
        assert match is not None
        labels = {"Tuberculosis": float(match[1])}
        drawn: dict[str, Parts] = {structure: (of[name],) for structure, of in masks.items() if name in of}
        rows.append(Row(path, hashed_split(name, SHARES), name, labels, {"age": age}, sex, drawn))
    return gather(rows, kind, structures=list(masks) if any(row.masks for row in rows) else ())


def _montgomery_masks(root: Path) -> dict[str, dict[str, Path]]:
    return {f"{side} lung": images_below(root / "ManualMask" / f"{side}Mask") for side in ("left", "right")}


def _shenzhen_masks(root: Path) -> dict[str, dict[str, Path]]:
    bases = [root, root.parent] if root.name == SETS["shenzhen"][0] else [root]
    bases += [base / "shcxr-lung-mask" for base in bases]
    found = images_below(*(base / name for base in bases for name in SHENZHEN_MASKS))
    return {"lungs": {name.removesuffix("_mask"): path for name, path in found.items()}}


def _person(reading: Path) -> tuple[float | None, str]:
    """(years, sex) of a reading; the words that follow may name other ages."""
    if not reading.is_file():
        return None, ""
    lines = [line for line in reading.read_text("utf-8", "replace").splitlines() if line.strip()]
    named = {key.strip().lower(): value for key, _, value in (line.partition(":") for line in lines)}
    first = lines[0] if lines else ""
    sex = SEX.search(named.get("patient's sex", first))
    age = AGE.search(named.get("patient's age", first))
    years = int(age[1]) / AGE_UNITS[(age[2] or "").upper()] if age else None
    return years if years is not None and years <= 120 else None, "" if sex is None else "F" if sex[
        1
    ] else "M"
