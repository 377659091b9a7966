"""A table of one's own, CSV or JSON Lines with flat objects, -> studies. One row an image or one row a study."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from encoder.radiograph import parse_age, parse_view
from vlm.study import NOT_TEXT, TEXTS, VIEWS, Image, Study, StudyError, normalise_split

# Field of a study -> the column names it is looked for under, unless `columns` says where it is.
NAMES = {
    "study_id": ("study_id", "study", "id", "accession"),
    "patient_id": ("patient_id", "patient", "subject_id"),
    "split": ("split", "fold", "set"),
    "image": ("image", "images", "file", "path", "image_path", "filename"),
    "view": ("view", "view_position", "ViewPosition"),
    "age": ("age", "PatientAge"),
    "sex": ("sex", "gender", "PatientSex"),
    "diagnoses": ("diagnoses", "diagnosis"),
    **{key: (key,) for key in TEXTS},
}
SEVERAL = "|"  # between the paths, views or diagnoses in one cell
SEXES = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}


def load_table(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    keep: Sequence[str] = (),
    image_root: str | Path = "",
) -> list[Study]:
    """Read a table into studies, in the order of their first rows.

    `columns` maps a field (a key of NAMES) to the column that holds it; the others are found by their usual names.
    `labels` are columns of 1, 0, -1 or nothing, named like the condition. `keep` are columns to carry along as extra
    keys; all others are dropped. `image_root` is put before the image paths, which are otherwise taken to be relative
    to the table. Rows with the same study_id become one study with several images; where there is no study_id, the
    image's path is it. Empty cells, "nan" and "None" are missing; ages may be numbers or DICOM's "045Y".

    Raises StudyError, with file and line, for a column that does not exist, a cell that cannot be read, and rows of
    one study that contradict each other; FileNotFoundError.
    """
    path = Path(path)
    studies: dict[str, Study] = {}
    where: dict[str, str] | None = None
    for line, row in _rows(path):
        try:
            if where is None or path.suffix.lower() == ".jsonl":  # lines of JSON may leave keys out
                required = path.suffix.lower() != ".jsonl"
                where = _find_columns(row, columns or {}, (*labels, *keep) if required else (), required)
            study = _study({field: known(row.get(column)) for field, column in where.items()}, image_root)
            study.labels = _labels(row, labels)
            study.extra = {key: row[key] for key in keep if known(row.get(key)) is not None}
            if study.study_id in studies:
                _merge(studies[study.study_id], study)
            else:
                studies[study.study_id] = study
        except StudyError as error:
            raise StudyError(f"{path}, line {line}: {error}") from None
    return list(studies.values())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line, parse_constant=lambda _: None)
                except json.JSONDecodeError as error:
                    raise StudyError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
                if not isinstance(row, dict):
                    raise StudyError(f"{path}, line {number}: not an object")
                yield number, row
        elif path.suffix.lower() in {".csv", ".tsv"}:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for row in reader:
                if None in row or None in row.values():
                    raise StudyError(
                        f"{path}, line {reader.line_num}: more or fewer cells than the header has columns"
                    )
                yield reader.line_num, row
        else:
            raise StudyError(f"{path}: a table is a .csv, .tsv or .jsonl file")


def _find_columns(
    row: Mapping[str, Any], columns: Mapping[str, str], others: Iterable[str], required: bool
) -> dict[str, str]:
    if unknown := set(columns) - set(NAMES):
        raise StudyError(f"no field is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if required:
        for column in (*columns.values(), *others):
            if column not in row:
                raise StudyError(f"there is no column {column!r}; there are {', '.join(row)}")
    where = {}
    for field, names in NAMES.items():
        found = columns.get(field) or next((name for name in names if name in row), None)
        if found:
            where[field] = found
    if "image" not in where and "study_id" not in where:
        raise StudyError(
            f"no column holds images or study ids; name it with columns. There are {', '.join(row)}"
        )
    return where


def known(value: Any) -> Any:
    """None for what means missing."""
    if value is None or (isinstance(value, str) and value.strip().lower() in {"", *NOT_TEXT}):
        return None
    return value


def _study(cells: Mapping[str, Any], image_root: str | Path) -> Study:
    paths = _list(cells.get("image"))
    views = [_view(text) for text in _list(cells.get("view"))]
    if len(views) == 1:
        views *= len(paths)
    if views and len(views) != len(paths):
        raise StudyError(f"{len(paths)} images, but {len(views)} views")
    study_id = cells.get("study_id")
    if study_id is None:
        if not paths:
            raise StudyError("neither a study id nor an image")
        study_id = paths[0]
    texts: dict[str, Any] = {key: None if cells.get(key) is None else str(cells[key]) for key in TEXTS}
    patient_id, split, sex = cells.get("patient_id"), cells.get("split"), cells.get("sex")
    return Study(
        study_id=str(study_id).strip(),
        patient_id=None if patient_id is None else str(patient_id).strip(),
        split=None if split is None else normalise_split(str(split)),
        images=[
            Image(str(Path(image_root, path)), view)
            for path, view in zip(paths, views or ["unknown"] * len(paths), strict=True)
        ],
        age=_age(cells.get("age")),
        sex=None if sex is None else SEXES.get(str(sex).strip().lower()),
        diagnoses=_list(cells.get("diagnoses")) or None,
        **texts,
    )


def _list(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [] if value is None else str(value).split(SEVERAL)
    return [str(item).strip() for item in items if str(item).strip()]


def _view(text: str) -> str:
    return text if text in VIEWS else parse_view(text)


def _age(value: Any) -> float | None:
    if value is None:
        return None
    years = parse_age(str(value))
    if years is None:
        raise StudyError(f"age {str(value)[:20]!r} is neither a number of years up to 120 nor like 045Y")
    return int(years) if years == int(years) else round(years, 3)


def _labels(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, int] | None:
    labels = {}
    for name in names:
        value = known(row.get(name))
        if value is None:
            continue
        try:
            label = float(value)
        except (TypeError, ValueError):
            label = None
        if label not in (1, 0, -1):
            raise StudyError(f"label {name!r} must be 1, 0, -1 or empty, not {str(value)[:20]!r}")
        labels[name] = int(label)
    return labels or None


def _merge(study: Study, more: Study) -> None:
    """Add a further row of the same study: its images, and whatever the first row left out."""
    study.images += [image for image in more.images if image not in study.images]
    for key in ("patient_id", "split", "age", "sex", "labels", "diagnoses", *TEXTS):
        old, new = getattr(study, key), getattr(more, key)
        if old is None:
            setattr(study, key, new)
        elif new is not None and new != old:
            raise StudyError(f"study {study.study_id!r} has another {key} in an earlier row")
    study.extra = more.extra | study.extra
