"""Studies: the images of one examination with what is known about it. Stored as JSON Lines, one study a line:

    {"schema": 1, "study_id": "s1", "patient_id": "p1", "split": "train", "images": [{"path": "a.dcm", "view": "PA"}],
     "indication": "...", "age": 63, "sex": "F", "prior": {"images": [...], "findings": "..."}, "findings": "...",
     "labels": {"Edema": 1, "Pneumonia": -1}, "diagnoses": ["..."]}

Only `study_id` is required. Absent, null, NaN and "" all mean missing. Keys not listed here are kept in `extra` and
written back. Image paths are relative to the file. Split names such as `val` or `dev` are read as `validate`.
"""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

from encoder.errors import UserError
from encoder.files import check_input, text_lines, write_atomically

SCHEMA = 1
SPLITS = ("train", "validate", "test")
VIEWS = ("PA", "AP", "frontal", "lateral", "unknown")
SPLIT_ALIASES = {"training": "train", "val": "validate", "valid": "validate", "validation": "validate",
                 "dev": "validate", "testing": "test"}  # fmt: skip
NOT_TEXT = {"none", "nan", "null", "n/a", "<na>"}  # what a careless export leaves in an empty cell
TEXTS = ("indication", "technique", "comparison", "findings", "impression")
OLDEST = 130  # years


class StudyError(UserError, ValueError):
    """A studies file (or a value for one) that cannot be used; the message names the file and the line."""


@dataclass(slots=True)
class Image:
    """Hold one film of a study; `extra` keeps fields of the file that are not ours."""

    path: str  # relative to the studies file, or absolute
    view: str = "unknown"  # one of VIEWS
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Prior:
    """An earlier examination of the same patient."""

    images: list[Image] = field(default_factory=list)
    findings: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Study:
    """Hold one examination: its films, what was asked, and the report. None means that it is not known."""

    study_id: str
    patient_id: str | None = None
    split: str | None = None  # one of SPLITS
    images: list[Image] = field(default_factory=list)
    indication: str | None = None
    technique: str | None = None
    comparison: str | None = None
    age: float | None = None  # years
    sex: str | None = None  # "F" or "M"
    prior: Prior | None = None
    findings: str | None = None
    impression: str | None = None
    labels: dict[str, int] | None = (
        None  # CheXpert name -> 1 present, 0 absent, -1 uncertain; unmentioned left out
    )
    diagnoses: list[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Say what is there, with the findings shortened and without the patient's id."""
        return f"Study({', '.join([repr(self.study_id), *self._facts()])})"

    def _repr_html_(self) -> str:
        """Show it in a notebook, with its first image where that is found from here."""
        from encoder.radiograph import InputError, read
        from encoder.radiograph.html import figure

        film = None
        with suppress(InputError):
            film = read(self.images[0].path).pixels if self.images else None
        texts = [(name, getattr(self, name)) for name in TEXTS]
        prior = self.prior.findings if self.prior else None
        lines = [f"{name}: {text}" for name, text in [*texts, ("prior findings", prior)] if text]
        return figure(film, [", ".join([self.study_id, *self._facts()[:-1]]), *lines])

    def _facts(self) -> list[str]:
        views = ", ".join(image.view for image in self.images)
        count = f"{len(self.images)} image{'' if len(self.images) == 1 else 's'}"
        person = " ".join(
            filter(None, (self.sex, "" if self.age is None else str(self.age).removesuffix(".0")))
        )
        told = [name for name in TEXTS[:3] if getattr(self, name)] + (["prior"] if self.prior else [])
        found = self.findings or self.impression
        said = repr(textwrap.shorten(str(found), 80, placeholder=" ...")) if found else "no findings"
        return [*filter(None, (self.split, f"{count} ({views})" if views else count, person)), *told, said]

    def image_paths(self, root: str | Path) -> list[Path]:
        """Return where the images lie, `root` being the folder of the studies file."""
        return [Path(root, image.path) for image in self.images]


@dataclass(frozen=True, slots=True)
class Problem:
    """Say what is wrong with one study; `code` is for programs, `message` for people."""

    code: str  # see `validate`
    study_id: str
    message: str


def absolute(study: Study, root: str | Path) -> Study:
    """Return the study with its image paths, and its prior's, absolute."""

    def there(images: list[Image]) -> list[Image]:
        return [replace(image, path=str(Path(root, image.path).absolute())) for image in images]

    prior = study.prior and replace(study.prior, images=there(study.prior.images))
    return replace(study, images=there(study.images), prior=prior)


def normalise_split(name: str) -> str:
    """Return the split that a name means, one of SPLITS: `validate` for `val`, `Valid`, `dev` ... Raises
    StudyError for any other name."""
    split = name.strip().lower()
    split = SPLIT_ALIASES.get(split, split)
    if split not in SPLITS:
        raise StudyError(f"unknown split {name!r}; there are {', '.join(SPLITS)}")
    return split


def load_studies(path: str | Path) -> list[Study]:
    """Read a studies file.

    Raises StudyError, with the line number, for a line that is not a study, InputFileError for a pipe or a
    device, and FileNotFoundError.

    Values that are merely unusual (an unknown view or split, a missing file) are kept; `validate` reports them.
    """
    if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
        raise StudyError(f"a studies file is given by its path, not by {path!r:.40}")
    path = Path(path)
    studies, number = [], 0
    try:
        for line in text_lines(path):
            number += 1
            if line.strip():
                try:
                    studies.append(study_from_json(json.loads(line, parse_constant=lambda _: None)))
                except json.JSONDecodeError as error:
                    raise StudyError(f"not valid JSON ({error.msg}, column {error.colno})") from None
                except StudyError:
                    raise
                except ValueError:
                    raise StudyError("not valid JSON (a number of thousands of digits)") from None
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text") from None
    except (StudyError, RecursionError) as error:
        raise StudyError(f"{path}, line {number}: {str(error) or 'nested too deeply'}") from None
    return studies


def is_studies(path: Path) -> bool:
    """Say whether a file holds studies, as far as its first line tells; an empty one does."""
    return _holds(path, False, encoding="utf-8-sig")


def is_predictions(path: Path) -> bool:
    """Say whether a file holds predictions, as far as its first line tells; an empty one does."""
    return _holds(path, True, encoding="utf-8", errors="surrogateescape")


def _holds(path: Path, predictions: bool, encoding: str, errors: str = "strict") -> bool:
    try:
        check_input(path)
        with path.open(encoding=encoding, errors=errors) as file:
            line = file.readline(1 << 24)
        if not line.strip():
            return path.stat().st_size == 0
        row = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return False
    # A prediction says who wrote its findings, a study does not.
    return isinstance(row, dict) and "study_id" in row and ("model" in row) == predictions


def save_studies(studies: Iterable[Study], path: str | Path, overwrite: bool = False) -> None:
    """Write a studies file, whole or not at all.

    Raises StudyError if `path` exists and `overwrite` is not given, or if a value has no JSON form.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise StudyError(f"{path} exists; choose another name or allow overwriting")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is not UTF-8 comes out as JSON's \udcXX, and is read back as it was.
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for study in studies:
            try:
                file.write(json.dumps(study_to_json(study), ensure_ascii=False, allow_nan=False) + "\n")
            except (TypeError, ValueError) as error:
                raise StudyError(f"study {study.study_id!r} cannot be written as JSON: {error}") from None


def study_from_json(row: Any) -> Study:
    """Make a Study of a decoded line. Raises StudyError naming the key whose value is of the wrong kind."""
    row = dict(_kind(row, dict, "the line"))
    schema = row.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise StudyError(f"schema {schema!r} is not known (this version reads {SCHEMA})")
    study_id = _identifier(row.pop("study_id", None), "study_id")
    if study_id is None:
        raise StudyError("'study_id' is missing")
    split = _text(row.pop("split", None), "split")
    if split is not None:
        split = SPLIT_ALIASES.get(split.strip().lower(), split.strip())
    age = row.pop("age", None)
    if age == "":
        age = None
    if age is not None and not _is_number(age):
        raise StudyError(f"'age' must be a number of years, not {_shown(age)}")
    prior = _optional(row.pop("prior", None), dict, "prior")
    if prior is not None:
        prior = dict(prior)
        prior = Prior(
            _images(prior.pop("images", None)), _text(prior.pop("findings", None), "prior.findings"), prior
        )
    diagnoses = _optional(row.pop("diagnoses", None), list, "diagnoses")
    return Study(
        study_id=study_id,
        patient_id=_identifier(row.pop("patient_id", None), "patient_id"),
        split=split,
        images=_images(row.pop("images", None)),
        age=age,
        sex=_text(row.pop("sex", None), "sex"),
        prior=prior,
        labels=_labels(row.pop("labels", None)),
        diagnoses=None if diagnoses is None else [_kind(d, str, "diagnoses") for d in diagnoses],
        **{key: _text(row.pop(key, None), key) for key in TEXTS},
        extra=row,
    )


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def is_age(value: Any) -> bool:
    """Tell whether a value can be an age: missing (None, NaN), or a number of years from 0 to OLDEST."""
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    years: Any = value
    return bool(years != years or 0 <= years <= OLDEST)


def misfit(study: Study) -> str:
    """Say which field of a study made by hand is of the wrong kind, and what it may be; "" where all are right."""
    for key in ("split", "sex", *TEXTS):
        if not isinstance(value := getattr(study, key), str | None):
            return f"{key} must be a text, not {type(value).__name__}"
    if study.age is not None and (isinstance(study.age, bool) or not isinstance(study.age, Real)):
        return f"age must be a number of years from 0 to {OLDEST}, not {type(study.age).__name__}"
    if not isinstance(study.prior, Prior | None):
        return f"prior must be a cxr.Prior(images, findings), not {type(study.prior).__name__}"
    if study.prior and not isinstance(study.prior.findings, str | None):
        return f"the prior's findings must be a text, not {type(study.prior.findings).__name__}"
    for image in [*study.images, *(study.prior.images if study.prior else ())]:
        if isinstance(image, Image) and not isinstance(image.view, str):
            return f"the view of an image must be a text, not {type(image.view).__name__}"
    return ""


def study_to_json(study: Study) -> dict[str, Any]:
    """Return the line that `study_from_json` reads; missing values are left out."""
    prior = study.prior and {
        "images": _images_to_json(study.prior.images),
        "findings": study.prior.findings,
        **study.prior.extra,
    }
    row = {
        "schema": SCHEMA,
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "split": study.split,
        "images": _images_to_json(study.images),
        "indication": study.indication,
        "technique": study.technique,
        "comparison": study.comparison,
        "age": study.age,
        "sex": study.sex,
        "prior": prior and {key: value for key, value in prior.items() if value is not None},
        "findings": study.findings,
        "impression": study.impression,
        "labels": study.labels,
        "diagnoses": study.diagnoses,
    }
    return {key: value for key, value in row.items() if value is not None and value != ""} | study.extra


def _unreachable(path: Path) -> str:
    """Say why there is no file of that name; "" if there is one."""
    try:
        return "" if path.is_file() else "does not exist"
    # a name that is too long or has a null character, a folder that may not be searched
    except (OSError, ValueError) as error:
        return f"cannot be reached ({getattr(error, 'strerror', None) or error})"


def validate(studies: Sequence[Study], root: str | Path) -> list[Problem]:
    """Return what would spoil a training or a score. `root` is the folder of the studies file. Codes:

    duplicate_study, missing_file, no_images, unknown_view, unknown_split, no_findings, not_text (findings that say
    "None" or "nan"), bad_sex, bad_age, patient_across_splits, image_across_splits.
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    splits_of_image: dict[Path, dict[str, str]] = defaultdict(dict)

    for study in studies:

        def report(code: str, message: str, study_id: str = study.study_id) -> None:
            problems.append(Problem(code, study_id, message))

        if study.study_id in seen:
            report("duplicate_study", "the study_id occurs more than once")
        seen.add(study.study_id)
        if not study.images:
            report("no_images", "the study has no images")
        for image in study.images + (study.prior.images if study.prior else []):
            path = Path(root, image.path)
            if why := _unreachable(path):
                report("missing_file", f"{image.path[:200]} {why} below {root}")
            if image.view not in VIEWS:
                report("unknown_view", f"view {image.view!r} of {image.path}; there are {', '.join(VIEWS)}")
            if study.split:
                splits_of_image[path].setdefault(study.split, study.study_id)
        if study.split is not None and study.split not in SPLITS:
            report("unknown_split", f"split {study.split!r}; there are {', '.join(SPLITS)}")
        if study.sex not in (None, "F", "M"):
            report("bad_sex", f"sex {study.sex!r}; it is F, M or absent")
        if not is_age(study.age):
            report(
                "bad_age", f"age {_shown(study.age)}; it is a number of years from 0 to {OLDEST}, or absent"
            )
        if study.findings is None:
            report("no_findings", "the findings are missing or empty")
        elif study.findings.strip().strip(".").lower() in NOT_TEXT:
            report("not_text", f"the findings say {study.findings.strip()!r}: an empty cell written as text?")
    return problems + patients_across_splits(studies) + _across("image", splits_of_image)


def patients_across_splits(studies: Sequence[Study]) -> list[Problem]:
    """Return the patients whose studies lie in several splits; scores on them would be of patients seen in
    training."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for study in studies:
        if study.patient_id is not None and study.split:
            found[study.patient_id].setdefault(study.split, study.study_id)
    return _across("patient", found)


def _across(what: str, found: dict[Any, dict[str, str]]) -> list[Problem]:
    """`found`: patient or image -> {split: first study}."""
    return [
        Problem(
            f"{what}_across_splits",
            next(iter(splits.values())),
            f"{what} {key} occurs in {', '.join(f'{split} ({study})' for split, study in splits.items())}",
        )
        for key, splits in found.items()
        if len(splits) > 1
    ]


def counts(studies: Sequence[Study]) -> dict[str, Any]:
    """Return the numbers of a summary: studies, patients, images, priors, studies a split, images a view, and
    in how many studies each optional field is present."""
    return {
        "studies": len(studies),
        "patients": len({s.patient_id for s in studies if s.patient_id is not None}),
        "images": sum(len(s.images) for s in studies),
        "splits": dict(Counter(s.split or "none" for s in studies).most_common()),
        "views": dict(Counter(image.view for s in studies for image in s.images).most_common()),
        "with": {
            key: sum(getattr(s, key) is not None for s in studies)
            for key in (*TEXTS, "age", "sex", "prior", "labels", "diagnoses")
        },
    }


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any, kind: type, key: str) -> Any:
    if not isinstance(value, kind):
        names: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
        raise StudyError(f"{key!r} must be {names[kind]}, not {type(value).__name__}")
    return value


def _optional(value: Any, kind: type, key: str) -> Any:
    return None if value is None or value == "" else _kind(value, kind, key)


def _text(value: Any, key: str) -> str | None:
    return None if value is None or not _kind(value, str, key).strip() else value


def _identifier(value: Any, key: str) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, key)


def _images(value: Any) -> list[Image]:
    images = []
    for entry in _optional(value, list, "images") or []:
        entry = dict(_kind(entry, dict, "images"))
        path = _text(entry.pop("path", None), "images.path")
        if path is None:
            raise StudyError("an image has no 'path'")
        images.append(Image(path, _text(entry.pop("view", None), "images.view") or "unknown", entry))
    return images


def _images_to_json(images: Sequence[Image]) -> list[dict[str, Any]]:
    return [{"path": image.path, "view": image.view, **image.extra} for image in images]


def _labels(value: Any) -> dict[str, int] | None:
    value = _optional(value, dict, "labels")
    if value is None:
        return None
    labels = {}
    for name, label in value.items():
        if label is None or label == "":
            continue
        if isinstance(label, bool) or label not in (1, 0, -1):
            raise StudyError(f"label {name!r} must be 1, 0 or -1, not {_shown(label)}")
        labels[name] = int(label)
    return labels
