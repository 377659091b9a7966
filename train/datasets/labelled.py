"""Images with labels, masks, ages and so on, for probes: `load` knows the releases of some data sets and reads one's
own CSV, studies file or folder with one sub-folder a class."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from encoder.radiograph import parse_age
from train.datasets.folder import PATH_COLUMNS, image_paths
from train.datasets.headers import plausible
from train.datasets.masks import Parts, as_read, image_size, mask_of
from train.datasets.release import as_number, hashed_split
from train.datasets.rows import cells, one_line
from train.datasets.table import SEXES, known
from vlm.study import Study, StudyError, load_studies, normalise_split

log = logging.getLogger(__name__)

SPLITS = ("train", "validate", "test")
SEPARATOR = "|"  # between the labels of an image
NUMBERS = ("age", "weight", "height", "bmi")  # years, kg, m, kg/m2
SHARES = {"train": 0.7, "validate": 0.1, "test": 0.2}  # of the patients, where a release has no split
VALIDATE = 0.125  # of the patients of an official training set that has no validation set

# kind -> the module with `labelled(root, ...)`, or with `studies(root, ...)` that have labels and splits
KINDS = {
    "vindr-cxr": "labels.vindr_cxr",
    "rsna": "labels.rsna",
    "candid-ptx": "labels.candid_ptx",
    "nih": "labels.nih",
    "chexpert": "labels.chexpert",
    "jsrt": "labels.jsrt",
    "montgomery": "labels.tuberculosis",
    "shenzhen": "labels.tuberculosis",
    "mimic-cxr": "reports.mimic_cxr",
    "chexpert-plus": "reports.chexpert_plus",
    "phantom": "labelled",
}
OFFICIAL = {
    "vindr-cxr",
    "nih",
    "chexpert",
    "mimic-cxr",
    "chexpert-plus",
}  # their splits are not ours to correct


@dataclass
class Labelled:
    """N images. `labels_NL` is 1, 0, or NaN where it is not known; `splits` and `patients` have one entry an image.

    `numbers`: some of NUMBERS -> (N,), NaN where it is not known; `sex`: "F", "M" or "". `structures` have masks in
    some images: `masks[i]` names the files of those that are known, also as not there; `mask` decodes them.
    `also`: another data set, or a column -> the name it has for the same image, or "". `kind` is a key of KINDS, or "".
    """

    paths: list[Path]
    names: list[str]
    labels_NL: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    sex: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    structures: list[str] = field(default_factory=list)
    masks: list[Mapping[str, Parts]] = field(default_factory=list)
    also: dict[str, np.ndarray] = field(default_factory=dict)
    kind: str = ""

    def __post_init__(self) -> None:
        N = len(self.paths)
        if not len(self.sex):
            self.sex = np.full(N, "")
        self.masks = self.masks or [{}] * N

    def part(self, split: str) -> np.ndarray:
        """Return the rows of a split."""
        return np.flatnonzero(self.splits == split)

    def masked(self, structure: str | None = None) -> np.ndarray:
        """Return the rows whose `mask` is not None."""
        wanted = self._wanted(structure)
        return np.array([i for i, m in enumerate(self.masks) if wanted and m.keys() >= wanted], int)

    def mask(self, i: int, structure: str | None = None) -> np.ndarray | None:
        """Return bool (K, H, W) of all K structures in the image's own pixels, or (H, W) of one; None where
        one of them is not known in this image. Raises MaskError for a file that is missing, broken, or of
        another shape."""
        wanted = self._wanted(structure)
        if not wanted or not self.masks[i].keys() >= wanted:
            return None
        path, masks = self.paths[i], self.masks[i]
        size = image_size(path)
        if structure is not None:
            return as_read(path, mask_of(masks[structure], size))
        return np.stack([as_read(path, mask_of(masks[name], size)) for name in self.structures])

    def _wanted(self, structure: str | None) -> set[str]:
        if structure is not None and structure not in self.structures:
            raise ValueError(f"no structure is called {structure!r}; there are {', '.join(self.structures)}")
        return {structure} if structure is not None else set(self.structures)


@dataclass
class Row:
    """One image, as the adapters see it; `gather` makes a Labelled of many."""

    path: Path
    split: str
    patient: str
    labels: dict[str, float] = field(default_factory=dict)  # "" stands for those that are not named
    numbers: dict[str, float | None] = field(default_factory=dict)
    sex: str | None = ""
    masks: dict[str, Parts] = field(default_factory=dict)
    also: dict[str, str] = field(default_factory=dict)


def load(source: str | Path, folder: str | Path | None = None, **options: Any) -> Labelled:
    """Load a labelled data set: load("vindr-cxr", "/data/vindr"), load("vindr-cxr:/data/vindr") or
    load("labels.csv").

    The kinds are the keys of KINDS; anything else is a path, read like `labelled_images` does, except that labels may
    be missing where there is something else to learn: masks, numbers or sex. `options` are those of the adapter
    (`frontal_only`, `headers`, ...; for a CSV `columns`). Splits are train, validate and test.

    Raises ValueError for a kind that is not known, an option that does not exist, a release that cannot be read
    (StudyError) or patients in several splits; of an official split that has these, a warning says how many.
    """
    kind, path = str(source), folder
    if folder is None:
        kind, _, rest = str(source).partition(":")
        path = Path(rest) if rest and kind in KINDS else None
    if kind in KINDS:
        if path is None:
            raise ValueError(f"{kind} is a data set; say where it lies, as in {kind}:/data/{kind}")
        found = _release(kind, Path(path), options)
    else:
        path = Path(str(source) if folder is None else folder)
        if folder is not None or not path.exists():
            raise ValueError(
                f"{source} is neither a data set that is known ({', '.join(KINDS)}; written as KIND:FOLDER) nor an "
                "existing CSV, studies file or folder of classes"
            )
        found = _own(path, strict=False, **_checked(_own, options, "a table", without=("source", "strict")))
    if several := patients_across_splits(found):
        message = f"{path}: {several} patient(s) have images in several splits"
        if kind not in OFFICIAL:
            raise ValueError(
                f"{message}; scores on them would be on data seen in training. Correct the splits"
            )
        log.warning("%s of the data set", message)
    return found


def labelled_images(source: str | Path, columns: Mapping[str, str] | None = None) -> Labelled:
    """Read `source`:

    - a CSV with a column `file`, `path` or `image`, a column `labels` ("Edema|Effusion"; what is not named is absent),
      `split`, and optionally `patient_id`, `age` (years), `sex`, `weight` (kg), `height` (m), `bmi`, `mask` and
      `mask_NAME` (the path of a mask; an empty cell means that none was drawn) and `source_file` (its name in another
      data set); rows with an empty cell among the first three are left out. `columns` says which column holds one of
      these, where it has another name: {"patient_id": "source_file", "mask_lungs": "mask"};
    - a studies file, or a folder with a studies.jsonl: `labels` are 1, 0 or -1 (not known, as what is absent), and
      `weight`, `height`, `bmi` and `masks` (name -> path, of the first image) may be extra keys; frontal images only;
    - a folder train/CLASS/..., validate/CLASS/..., test/CLASS/...

    Raises FileNotFoundError, or ValueError where labels or splits are missing.
    """
    return _own(Path(source), columns, strict=True)


def patients_across_splits(found: Labelled) -> int:
    """Count how many patients have images in more than one split."""
    pairs = set(zip(found.patients.tolist(), found.splits.tolist(), strict=True))
    return sum(times > 1 for times in Counter(patient for patient, _ in pairs).values())


def without_shared_patients(found: Labelled) -> tuple[Labelled, int]:
    """Keep a patient who is in several splits in the last of them only (train, validate, test). Returns the
    data and how many images were dropped."""
    place = {split: i for i, split in enumerate(SPLITS)}
    last: dict[str, int] = {}
    for patient, split in zip(found.patients.tolist(), found.splits.tolist(), strict=True):
        last[patient] = max(last.get(patient, -1), place.get(split, -1))
    earlier = [
        split in place and place[split] < last[patient]
        for patient, split in zip(found.patients.tolist(), found.splits.tolist(), strict=True)
    ]
    return replace(found, splits=np.where(earlier, "", found.splits)), sum(earlier)


def gather(rows: Iterable[Row], kind: str = "", names: Sequence[str] | None = None,
           structures: Sequence[str] | None = None) -> Labelled:  # fmt: skip
    """Gather rows into arrays. Names and structures are in the order given, or else sorted."""
    rows = list(rows)
    if names is None:
        names = sorted({name for row in rows for name in row.labels} - {""})
    if structures is None:
        structures = sorted({name for row in rows for name in row.masks})
    labels = [[row.labels.get(n, row.labels.get("", np.nan)) for n in names] for row in rows]
    numbers = {}
    for name in NUMBERS:
        values = np.array([np.nan if (v := row.numbers.get(name)) is None else v for row in rows], float)
        if not np.isnan(values).all():
            numbers[name] = values
    if {"weight", "height"} <= numbers.keys():
        bmi = numbers["weight"] / numbers["height"] ** 2
        given = numbers.get("bmi", np.full(len(rows), np.nan))
        if not np.isnan(bmi).all():
            numbers["bmi"] = np.where(np.isnan(given), bmi, given)
    also = sorted({name for row in rows for name in row.also})
    return Labelled(
        [row.path for row in rows],
        list(names),
        np.array(labels, np.float64).reshape(len(rows), len(names)),
        np.array([row.split for row in rows]),
        np.array([row.patient for row in rows]),
        numbers,
        np.array([row.sex or "" for row in rows]),
        list(structures),
        [row.masks for row in rows],
        {name: np.array([row.also.get(name, "") for row in rows]) for name in also},
        kind,
    )


def found_images(root: Path, wanted: Iterable[str], images: Mapping[str, Path]) -> list[str]:
    """Return the wanted names that have an image; a warning says how many do not. Raises StudyError if there
    is none."""
    wanted = list(wanted)
    there = [name for name in wanted if name in images]
    if not there:
        raise StudyError(f"{root}: none of the {len(wanted)} images of the tables is there")
    if len(there) < len(wanted):
        missing = len(wanted) - len(there)
        log.warning("%s: %d of %d images are not there and left out", root, missing, len(wanted))
    return there


def validation_of(patient: str) -> str:
    """Return train or validate, for a patient of an official training set."""
    return hashed_split(patient, {"train": 1 - VALIDATE, "validate": VALIDATE})


def _checked(
    function: Callable[..., Any],
    options: dict[str, Any],
    what: str,
    without: Sequence[str] = ("root", "kind"),
) -> dict[str, Any]:
    there = [name for name in inspect.signature(function).parameters if name not in without]
    if unknown := [name for name in options if name not in there]:
        raise ValueError(
            f"{', '.join(unknown)} mean(s) nothing for {what}; there are {', '.join(there) or 'none'}"
        )
    return options


def _release(kind: str, root: Path, options: dict[str, Any]) -> Labelled:
    if not root.exists():
        raise StudyError(f"{root} does not exist")
    if kind == "phantom":
        _checked(_phantoms, options, kind)
        return _phantoms(root)
    module = import_module(f"train.datasets.{KINDS[kind]}")
    if hasattr(module, "labelled"):
        read: Callable[..., Labelled] = module.labelled
        more = {"kind": kind} if "kind" in inspect.signature(read).parameters else {}
        return read(root, **more, **_checked(read, options, kind))
    options = {"priors": False} | _checked(module.studies, options, kind)
    rows = list(_study_rows(module.studies(root, **options), root, strict=False))
    if not rows:
        raise StudyError(f"{root}: no study has a frontal image and a split")
    return gather(rows, kind)


def _phantoms(root: Path) -> Labelled:
    """What `cxr phantom` writes, where all is known: a finding that the report does not name is not there,
    nor is one without a mask; one that it calls possible is not known."""
    file = root / "studies.jsonl"
    if not file.is_file():
        raise StudyError(f"{file} is missing; cxr phantom {root} writes one")
    found = _own(file, strict=False, unsaid=0.0)
    found.kind = "phantom"
    found.masks = [{**dict.fromkeys(found.structures, ()), **masks} if masks else {} for masks in found.masks]
    return found


def _own(
    source: Path, columns: Mapping[str, str] | None = None, strict: bool = True, unsaid: float | None = None
) -> Labelled:
    """`unsaid`: what a label is that a study's `labels` do not name; None: not known."""
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a CSV, a studies file or a folder")
    if source.is_dir() and (source / "studies.jsonl").is_file():
        source = source / "studies.jsonl"
    is_table = not source.is_dir() and source.suffix.lower() == ".csv"
    if columns and not is_table:
        raise ValueError(f"{source} has no columns to be named; only a CSV has")
    if source.is_dir():
        rows = _from_folder(source)
    elif is_table:
        rows = _from_csv(source, columns or {}, strict)
    else:
        rows = list(_study_rows(load_studies(source), source.parent, strict, unsaid))
    what = "labelled image" if strict else "image"
    if not rows:
        raise ValueError(f"{source} has no {what} with a split")
    found = gather(rows)
    if not found.names and (strict or not (found.structures or found.numbers or found.sex.any())):
        more = "" if strict else ", no mask, no age, sex, weight, height or bmi"
        raise ValueError(f"{source} has no label{more}")
    return found


PICTURES = (".png", ".gif", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
CELLS = ("labels", "split", "patient_id", "sex", "source_file", *NUMBERS)


def _from_csv(source: Path, columns: Mapping[str, str], strict: bool) -> list[Row]:
    lines = cells(source)
    _, header = next(lines, (1, []))
    table = [(line, dict(zip(header, values, strict=True))) for line, values in lines]
    where = _where(source, header, [row for _, row in table], columns, strict)
    rows = []
    for line, values in table:
        row = {key: values[column].strip() for key, column in where.items()}
        if not row["file"] or not row["split"] or (strict and not row["labels"]):
            continue
        labels = {}
        if text := row.get("labels"):
            labels = {"": 0.0} | {name.strip(): 1.0 for name in text.split(SEPARATOR) if name.strip()}
        try:
            file = one_line(row["file"], where["file"])
            split, numbers = normalise_split(row["split"]), {n: _number(n, row.get(n)) for n in NUMBERS}
        except StudyError as error:
            raise StudyError(f"{source}, line {line}: {error}") from None
        masks: dict[str, Parts] = {
            key.partition("_")[2] or "mask": (source.parent / path,)
            for key, path in row.items()
            if key.startswith("mask") and path
        }
        also = {"source_file": row["source_file"]} if row.get("source_file") else {}
        patient = row.get("patient_id") or file
        rows.append(
            Row(source.parent / file, split, patient, labels, numbers, _sex(row.get("sex")), masks, also)
        )
    return rows


def _where(source: Path, header: Sequence[str], table: Sequence[Mapping[str, str]],
           columns: Mapping[str, str], strict: bool) -> dict[str, str]:  # fmt: skip
    """What a cell says -> its column."""
    if unknown := [k for k in columns if k not in (*CELLS, "file", "mask") and not k.startswith("mask_")]:
        there = ", ".join(("file", "mask", "mask_NAME", *CELLS))
        raise ValueError(f"nothing is called {', '.join(unknown)}; there are {there}")
    has = ", ".join(header) or "none"
    if missing := [column for column in columns.values() if column not in header]:
        raise ValueError(f"{source} lacks the column(s) {', '.join(missing)}; it has {has}")
    where = {name: name for name in CELLS if name in header}
    if file := next((c for c in PATH_COLUMNS if c in header), None):
        where["file"] = file
    for name in header:  # others, such as mask_kind, say something about the mask
        if (name == "mask" or name.startswith("mask_")) and name not in columns.values():
            cells = [row[name] for row in table if row.get(name)]
            if cells and all(Path(cell).suffix.lower() in PICTURES for cell in cells):
                where[name] = name
    where |= columns
    missing = [c for c in (("labels", "split") if strict else ("split",)) if c not in where]
    if "file" not in where or missing:
        lacks = ", ".join(missing) or f"one of {', '.join(PATH_COLUMNS)}"
        raise ValueError(f"{source} lacks the column(s) {lacks}; it has {has}")
    return where


def _number(name: str, text: str | None) -> float | None:
    if text is None or known(text) is None:
        return None
    value = parse_age(text) if name == "age" else as_number(text)
    if name in ("weight", "height") and value is not None:
        value = plausible(name, value)
    if value is None:
        units = {"age": "years up to 120, or like 045Y", "weight": "kg", "height": "m", "bmi": "kg/m2"}
        raise StudyError(f"{name} {text[:20]!r} is not a number ({units[name]})")
    return value


def _sex(text: str | None) -> str:
    return SEXES.get(text.strip().lower(), "") if text else ""


def _study_rows(
    studies: Iterable[Study], root: Path, strict: bool, unsaid: float | None = None
) -> Iterator[Row]:
    """Return the frontal images of studies."""
    for study in studies:
        if not study.split or (strict and not study.labels):
            continue
        labels = {name: float(value) for name, value in (study.labels or {}).items() if value in (0, 1)}
        if unsaid is not None:
            labels = {"": unsaid, **dict.fromkeys(study.labels or {}, float("nan")), **labels}
        numbers = {name: study.extra.get(name) for name in NUMBERS} | {"age": study.age}
        numbers = {name: float(n) for name, n in numbers.items() if isinstance(n, int | float)}
        for number, image in enumerate(study.images):
            if image.view == "lateral":
                continue
            masks = image.extra.get("masks") or (study.extra.get("masks") if number == 0 else None) or {}
            yield Row(
                root / image.path,
                study.split,
                study.patient_id or study.study_id,
                labels,
                numbers,
                _sex(study.sex),
                {name: (root / path,) for name, path in masks.items()},
            )


def _from_folder(source: Path) -> list[Row]:
    rows = []
    for split in SPLITS:
        for path in image_paths(source, split):
            inside = path.relative_to(source).parts  # split, class, ..., file
            if len(inside) < 3:
                raise ValueError(f"{path} lies in no class: expected {source}/{split}/CLASS/...")
            rows.append(Row(path, split, str(path), {"": 0.0, inside[1]: 1.0}))
    return rows
