"""Your own table, CSV or JSON Lines with flat objects, -> studies. One row an image or one row a study.

No column is lost in silence: each is a field, a label, kept as an extra key, or named as left out.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoder.errors import did_you_mean
from encoder.radiograph import parse_age, parse_view
from eval.scores.phrases import CONDITIONS
from train.datasets.rows import one_line, rows
from vlm.study import NOT_TEXT, TEXTS, VIEWS, Image, Study, StudyError, normalise_split

# Field of a study -> the column names it is looked for under, the likeliest first, unless `columns` says where it is.
# Case, spaces and underscores play no part.
NAMES = {
    "study_id": (
        "study_id", "study", "id", "accession", "accession number", "study uid",
        "StudyInstanceUID", "exam id",
    ),
    "patient_id": ("patient_id", "patient", "pid", "subject_id", "subject", "mrn"),
    "split": ("split", "fold", "set", "subset", "partition"),
    "image": (
        "image", "images", "file", "path", "image path", "filename", "file name", "file path", "image file",
        "dicom path",
    ),
    "view": ("view", "view position", "projection"),
    "age": ("age", "patient age"),
    "sex": ("sex", "gender", "patient sex"),
    "diagnoses": ("diagnoses", "diagnosis"),
    "findings": ("findings", "finding text", "report", "report text", "text", "caption"),
    "impression": ("impression", "impressions", "conclusion"),
    "indication": (
        "indication", "reason for exam", "reason", "clinical history", "history", "clinical information",
    ),
    "technique": ("technique",),
    "comparison": ("comparison",),
}  # fmt: skip
SEVERAL = "|"  # between the paths, views or diagnoses in one cell
# What is said of cells that mean nothing, by field.
UNREAD = {
    "view": "names no view",
    "sex": "is neither F nor M",
    "age": "is neither a number of years up to 120 nor like 045Y",
}
SEXES = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
# Keys that a study or an image has itself; a column of that name that is not such a field is kept under
# another.
OWN_KEYS = {
    "schema", "study_id", "patient_id", "split", "images", "age", "sex", "prior", "labels", "diagnoses", "path", "view",
    *TEXTS,
}  # fmt: skip


@dataclass
class Table:
    """Hold what was read of a table."""

    studies: list[Study]
    # Column -> what became of it, in words.
    columns: dict[str, str]
    # What else was done that a user should know, a line each.
    notes: list[str]


@dataclass
class _Survey:
    """What a column holds."""

    known: int = 0  # cells that say something
    is_label: bool = True  # all of these are 1, 0 or -1


@dataclass
class _Plan:
    """Where each column goes."""

    where: dict[str, str] = field(default_factory=dict)  # field -> column
    labels: dict[str, str] = field(default_factory=dict)  # column -> name of the label
    extra: dict[str, str] = field(default_factory=dict)  # column -> key
    dropped: list[str] = field(default_factory=list)


def load_table(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    image_root: str | Path = "",
) -> list[Study]:
    """Return the studies of `read_table`."""
    return read_table(path, columns, labels, keep, image_root).studies


def read_table(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    image_root: str | Path = "",
    drop: Sequence[str] = (),
) -> Table:
    """Read a table into studies, in the order of their first rows.

    Rows with the same study_id become one study with several images; where there is no study_id, the image's path is
    it. Empty cells, "nan" and "None" are missing; ages may be numbers or DICOM's "045Y".

    Args:
        columns: field (a key of NAMES) -> the column that holds it; the others are found by their usual names.
        labels: columns of 1, 0, -1 or nothing to keep as labels, besides those that are called like one of CheXpert's
            conditions and hold nothing else.
        keep: columns to carry along as extra keys, of the study, or of its images where the rows of a study differ.
            Without it, all that are left.
        image_root: is put before the image paths, which are otherwise relative to the table.
        drop: columns to leave out.

    Raises:
        StudyError: with file and line, a column does not exist, a cell cannot be read, or rows of one study contradict
            each other.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    surveys: dict[str, _Survey] = {}
    for _, row in rows(path):
        for column, value in row.items():
            _look_at(surveys.setdefault(column, _Survey()), known(value))
    try:
        plan = _plan(surveys, columns or {}, labels, keep, drop) if surveys else _Plan()
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None
    studies: dict[str, Study] = {}
    kept: dict[str, list[tuple[dict[str, Any], list[Image]]]] = defaultdict(list)
    unread: dict[str, Counter[str]] = defaultdict(Counter)
    # Field -> line of the first cell that means nothing.
    first_unread: dict[str, int] = {}
    for line, row in rows(path):
        try:
            cells = {one: _cell(one, column, known(row.get(column))) for one, column in plan.where.items()}
            study = _study(cells, image_root, unread)
            for one in (one for one, odd in unread.items() if odd):
                first_unread.setdefault(one, line)
            study.labels = _labels(row, plan.labels)
            images = list(study.images)
            if (first := studies.setdefault(study.study_id, study)) is not study:
                images = _merge(first, study)
            extra = {key: row[c] for c, key in plan.extra.items() if known(row.get(c)) is not None}
            kept[study.study_id].append((extra, images))
        except StudyError as error:
            raise StudyError(f"{path}, line {line}: {error}") from None
    differ = _spread(studies, kept)
    return Table(
        list(studies.values()), _told(surveys, plan, differ), _notes(surveys, plan, unread, first_unread)
    )


def _look_at(survey: _Survey, value: Any) -> None:
    if value is not None:
        survey.known += 1
        survey.is_label = survey.is_label and _as_label(value) is not None


def _plan(
    surveys: Mapping[str, _Survey],
    columns: Mapping[str, str],
    labels: Sequence[str],
    keep: Sequence[str] | None,
    drop: Sequence[str],
) -> _Plan:
    """Decide of every column where it goes. Raises StudyError for names that are not there."""
    for name in columns:
        if name not in NAMES:
            near = did_you_mean(name, NAMES)
            raise StudyError(f"no field is called {name}{near}; there are {', '.join(NAMES)}")
    for column in (*columns.values(), *labels, *(keep or ()), *drop):
        if column not in surveys:
            near = did_you_mean(column, surveys)
            raise StudyError(f"there is no column {column!r}{near}; there are {', '.join(surveys)}")
    if both := set(drop) & {*columns.values(), *labels}:
        raise StudyError(f"column {min(both)!r} is both asked for and left out; choose one")
    plan = _Plan(dict(columns), dropped=list(drop))
    taken = {*columns.values(), *labels, *drop}
    by_name: dict[str, str] = {}
    for column in surveys:
        if column not in taken:
            by_name.setdefault(_plain(column), column)
    for one, names in NAMES.items():
        found = next((by_name[_plain(name)] for name in names if _plain(name) in by_name), None)
        if one not in plan.where and found:
            plan.where[one] = found
    if "image" not in plan.where and "study_id" not in plan.where:
        raise StudyError(
            f"no column holds images or study ids; name it by --column image=COLUMN or study_id=COLUMN. There are "
            f"{', '.join(surveys)}"
        )
    conditions = {_plain(name): name for name in CONDITIONS}
    mapped = {*plan.where.values(), *drop}
    for column, survey in surveys.items():
        condition = conditions.get(_plain(column))
        if column in labels or (condition and column not in mapped and survey.known and survey.is_label):
            plan.labels[column] = condition or column
        elif column not in mapped and (keep is None or column in keep):
            plan.extra[column] = f"table_{column}" if column in OWN_KEYS else column
        elif column not in mapped:
            plan.dropped.append(column)
    return plan


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _spread(
    studies: Mapping[str, Study], kept: Mapping[str, Sequence[tuple[dict[str, Any], list[Image]]]]
) -> set[str]:
    """Put the extra cells where they belong; returns the keys that differ between the rows of a study."""

    def values(rows: Sequence[tuple[dict[str, Any], list[Image]]], key: str) -> list[Any]:
        found: list[Any] = []
        for extra, _ in rows:
            if key in extra and extra[key] not in found:
                found.append(extra[key])
        return found

    keys = dict.fromkeys(key for rows in kept.values() for extra, _ in rows for key in extra)
    differ = {key for key in keys if any(len(values(rows, key)) > 1 for rows in kept.values())}
    for study_id, lines in kept.items():
        study = studies[study_id]
        for key in keys:
            found = values(lines, key)
            if not found:
                continue
            # A row without an image of its own has no other place for it.
            if key not in differ or any(key in extra and not images for extra, images in lines):
                study.extra[key] = found if len(found) > 1 else found[0]
                continue
            for extra, images in lines:
                for image in images:
                    image.extra |= {key: extra[key]} if key in extra else {}
    return differ


def _told(surveys: Mapping[str, _Survey], plan: _Plan, differ: set[str]) -> dict[str, str]:
    """Say of every column what became of it."""
    fields_of: dict[str, list[str]] = defaultdict(list)
    for one, column in plan.where.items():
        fields_of[column].append(one)
    told = {}
    for column, survey in surveys.items():
        if column in plan.labels:
            said = f"label {plan.labels[column]}"
        elif column in fields_of:
            said = " and ".join(fields_of[column])
        elif column in plan.extra:
            key = plan.extra[column]
            said = f"extra key {key!r} of {'the images' if key in differ else 'the study'}"
        else:
            said = "left out"
        told[column] = said if survey.known else f"{said} (all its cells are empty)"
    return told


def _notes(
    surveys: Mapping[str, _Survey],
    plan: _Plan,
    unread: Mapping[str, Counter[str]],
    first_unread: Mapping[str, int],
) -> list[str]:
    """Say what else was done that a user should know, a line each."""
    notes = []
    for one, cells in unread.items():
        if not cells.total():
            continue
        shown = ", ".join(repr(text[:20]) for text, _ in cells.most_common(3))
        notes.append(
            f"{one}: {cells.total()} cells say what {UNREAD[one]}, and count as missing: {shown}; the first is in line "
            f"{first_unread[one]}"
        )
    conditions = {_plain(name) for name in CONDITIONS}
    for column in plan.extra:
        if _plain(column) in conditions and surveys[column].known:
            notes.append(f"{column} is called like a label, but holds other things than 1, 0 and -1")
    return notes


def known(value: Any) -> Any:
    """Return None for a cell that means missing, else the cell."""
    if value is None or (isinstance(value, str) and value.strip().lower() in {"", *NOT_TEXT}):
        return None
    return value


def _cell(one: str, column: str, value: Any) -> Any:
    """Take the value of a field: images as a list of {"path", "view"?, more}, views and diagnoses as a list of texts,
    an age as it is, everything else as a text. Raises StudyError for another kind."""
    if one == "age" or value is None:
        return value
    if one == "image":
        images = (
            value
            if isinstance(value, list)
            else [value]
            if isinstance(value, dict)
            else _split(value, column)
        )
        return [_image(image, column) for image in images if known(image) is not None]
    if one in ("view", "diagnoses"):
        items = value if isinstance(value, list) else _split(value, column)
        return [text for item in items if known(item) is not None and (text := _text(item, column))]
    return _text(value, column, whole=one in ("study_id", "patient_id"))


def _split(value: Any, column: str) -> list[str]:
    return [item.strip() for item in _text(value, column).split(SEVERAL) if item.strip()]


def _image(value: Any, column: str) -> dict[str, Any]:
    if isinstance(value, dict):
        if known(value.get("path")) is None:
            raise StudyError(f"column {column!r}: an image has no 'path'")
        view = known(value.get("view"))
        told = {} if view is None else {"view": _text(view, column)}
        more = {key: item for key, item in value.items() if key != "view"}
        return more | told | {"path": _text(value["path"], column, whole=True)}
    return {"path": _text(value, column, whole=True)}


def _text(value: Any, column: str, whole: bool = False) -> str:
    """Take a text, or a number as it is written. `whole` is an id or the name of a file, which is one line."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = {bool: "true or false", list: "a list", dict: "an object"}.get(type(value), "nothing")
        raise StudyError(f"column {column!r} must hold a text, not {kind}")
    return one_line(str(value), column) if whole else str(value)


def _study(cells: Mapping[str, Any], image_root: str | Path, unread: Mapping[str, Counter[str]]) -> Study:
    """Make a study of the cells of its fields; counts in `unread` those that mean nothing here."""
    images: list[dict[str, Any]] = cells.get("image") or []
    texts_of_views: list[str] = cells.get("view") or []
    if texts_of_views and any("view" in image for image in images):
        raise StudyError("the images have views of their own, and there is a column of views; leave one out")
    if not texts_of_views:
        texts_of_views = [image.pop("view", "unknown") for image in images]
    views = [_view(text) for text in texts_of_views]
    unread["view"].update(
        text
        for text, view in zip(texts_of_views, views, strict=True)
        if view == "unknown" and text.lower() != view
    )
    if len(views) == 1:
        views *= len(images)
    if views and len(views) != len(images):
        raise StudyError(f"{len(images)} images, but {len(views)} views")
    paths = [image.pop("path") for image in images]
    study_id = cells.get("study_id")
    if study_id is None:
        if not paths:
            raise StudyError("neither a study id nor an image")
        study_id = paths[0]
    texts: dict[str, Any] = {key: cells.get(key) for key in TEXTS}
    split, sex = cells.get("split"), cells.get("sex")
    unread["sex"].update([] if sex is None or sex.strip().lower() in SEXES else [sex])
    age = _age(cells.get("age"))
    unread["age"].update([] if cells.get("age") is None or age is not None else [str(cells["age"])])
    return Study(
        study_id=study_id,
        patient_id=cells.get("patient_id"),
        split=None if split is None else normalise_split(split),
        images=[
            Image(str(Path(image_root, path)), view, more)
            for path, view, more in zip(paths, views, images, strict=True)
        ],
        age=age,
        sex=None if sex is None else SEXES.get(sex.strip().lower()),
        diagnoses=cells.get("diagnoses") or None,
        **texts,
    )


def _view(text: str) -> str:
    return text if text in VIEWS else parse_view(text)


def _age(value: Any) -> float | None:
    years = None if value is None else parse_age(str(value))
    if years is None:
        return None
    return int(years) if years == int(years) else round(years, 3)


def _labels(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int] | None:
    labels = {}
    for column, name in names.items():
        value = known(row.get(column))
        if value is None:
            continue
        label = _as_label(value)
        if label is None:
            raise StudyError(f"label {column!r} must be 1, 0, -1 or empty, not {str(value)[:20]!r}")
        labels[name] = label
    return labels or None


def _as_label(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number in (1, 0, -1) else None


def _merge(study: Study, more: Study) -> list[Image]:
    """Add a further row of the same study: its images, which are returned, and whatever the first row left out."""
    paths = {(image.path, image.view) for image in study.images}
    images = [image for image in more.images if (image.path, image.view) not in paths]
    study.images += images
    for key in ("patient_id", "split", "age", "sex", "labels", "diagnoses", *TEXTS):
        old, new = getattr(study, key), getattr(more, key)
        if old is None:
            setattr(study, key, new)
        elif new is not None and new != old:
            raise StudyError(f"study {study.study_id!r} has another {key} in an earlier row")
    return images
