"""What people give a model, an image of any kind and what is known beside it -> studies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast

from encoder.radiograph import Radiograph, Source, parse_view
from encoder.radiograph.reader import name_of
from vlm.errors import AskedError
from vlm.prompts import PromptStyle, prompt_for, shown_image, shown_images
from vlm.study import OLDEST, Image, Prior, Study, StudyError, is_age, misfit

Given: TypeAlias = Source | Image | Study
GivenPrior: TypeAlias = Source | Image | Study | Prior | tuple[Source | Image | None, str | None]

SEXES = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
PICTURES = {".dcm", ".dicom", ".png", ".jpg", ".jpeg"}


class Beside(TypedDict, total=False):
    """Hold what may be told beside an image."""

    indication: str | None
    prior: GivenPrior | None
    age: float | None
    sex: str | None
    view: str | None
    lateral: Source | Image | None


class Told(TypedDict, total=False):
    """The same of all images, or by a list of each."""

    indication: str | list[str | None] | None
    prior: GivenPrior | list[GivenPrior | None] | None
    age: float | list[float | None] | None
    sex: str | list[str | None] | None
    view: str | list[str | None] | None
    lateral: Source | Image | list[Source | Image | None] | None


@dataclass(slots=True)
class Held(Image):
    """An image that is not (only) a file: `path` says in words what it is, `source` is what `read` reads."""

    source: Any = field(default=None, repr=False, compare=False)


@dataclass(slots=True)
class Misfit(Study):
    """Stand in for a study that has a field of the wrong kind: no images, no words, and `why`. It costs that
    study alone."""

    why: str = ""


def as_study(given: Given, name: str = "image") -> Study:
    """Make a study of one image, called by its file's name or, where it has none, by `name`; a study stays as it is.
    A study with a field of the wrong kind becomes a Misfit. Raises TypeError for what no image can be read from,
    StudyError for a study whose images are not `Image`s."""
    if isinstance(given, Study):
        if why := misfit(given):
            return Misfit(given.study_id, why=f"study {given.study_id!r}: {why}")
        for image in [*given.images, *(given.prior.images if given.prior else ())]:
            if not isinstance(image, Image) or not isinstance(image.path, str | os.PathLike):
                raise StudyError(
                    f"study {given.study_id!r}: an image of a study is cxr.Image(path, view), not {repr(image)[:60]}"
                )
        return given
    image = _image(given)
    file = image.path if not isinstance(image, Held) else _file_name(given)
    return Study(study_id=Path(file).name or name, images=[image])


def fill(study: Study, beside: Beside) -> Study:
    """Add to a study what is told beside it.

    Raises StudyError for a value of another kind, and where the study says something else already: which of the two is
    meant, only the caller knows.
    """
    told: dict[str, Any] = {key: value for key, value in beside.items() if value is not None}
    new: dict[str, Any] = {}
    if (indication := _text(told.get("indication"), "indication")) is not None:
        new["indication"] = indication
    if "age" in told:
        new["age"] = _age(told["age"])
    if "sex" in told:
        new["sex"] = _sex(told["sex"])
    for key, value in new.items():
        _differ(study, key, getattr(study, key) not in (None, value))
    if "prior" in told:
        _differ(study, "prior", bool(study.prior and (study.prior.images or study.prior.findings)))
        new["prior"] = _prior(told["prior"])
    images = list(study.images)
    if "view" in told and (main := shown_image(study)):
        view = _view(told["view"])
        _differ(study, "view", main.view not in ("unknown", view))
        images = [replace(image, view=view) if image is main else image for image in images]
    if "lateral" in told:
        _differ(study, "lateral", any(image.view == "lateral" for image in study.images))
        images.append(_image(told["lateral"], "lateral", "lateral"))
    return replace(study, images=images, **new)


def unused(study: Study, beside: Beside, style: PromptStyle) -> list[str]:
    """Name what was told and changes neither the words of the prompt nor the images shown."""

    def shown(other: Study) -> tuple[str, list[tuple[str, str]]]:
        return prompt_for(other, style), [(role, image.path) for role, image in shown_images(other, style)]

    told = {key for key, value in beside.items() if value is not None}
    without = {
        "indication": replace(study, indication=None),
        "age": replace(study, age=None),
        "sex": replace(study, sex=None),
    }
    main, prior = shown_image(study), study.prior
    unknown = [replace(i, view="unknown") if i is main else i for i in study.images]
    without["view"] = replace(study, images=unknown)
    without["lateral"] = replace(study, images=[i for i in study.images if i is main or i.view != "lateral"])
    names = [key for key in without if key in told and shown(without[key]) == shown(study)]
    if main and main.view == "lateral" and "view" in names:
        # it was used: the prediction warns of a lateral film
        names.remove("view")
    if prior and "prior" in told:
        if prior.images and shown(replace(study, prior=replace(prior, images=[]))) == shown(study):
            names.append("the prior's image")
        if prior.findings and shown(replace(study, prior=replace(prior, findings=None))) == shown(study):
            names.append("the prior's findings")
    return names


def one_each(told: Told, count: int) -> list[Beside]:
    """Deal what is told to several images: a list, or a column of a table, has one entry for each, anything else is
    told of all. Raises StudyError for a list of another length."""
    dealt: dict[str, Any] = {}
    for key, value in told.items():
        # of a prior, a tuple is (image, findings)
        several = list(value) if isinstance(value, tuple) and key != "prior" else column_of(value)
        dealt[key] = value = value if several is None else several
        if isinstance(value, list) and len(value) != count:
            entries = "1 entry" if len(value) == 1 else f"{len(value)} entries"
            raise StudyError(f"{key} has {entries} for {count} images; give one each, or None")
    return [
        cast(Beside, {key: value[i] if isinstance(value, list) else value for key, value in dealt.items()})
        for i in range(count)
    ]


def column_of(value: Any) -> list[Any] | None:
    """Return the entries of a column (of pandas, polars or NumPy), missing ones as None; None if it is not a
    column."""
    if len(getattr(value, "shape", ())) != 1:
        return None
    entries = value.tolist() if hasattr(value, "tolist") else value.to_list()
    return [None if _missing(entry) else entry for entry in entries]


def images_of(given: Any) -> list[Any] | None:
    """Return several images from a list, a tuple or a column of names; None if it is one image, or not an
    image."""
    if isinstance(given, list | tuple):
        return list(given)
    entries = column_of(given)
    # a row of numbers is an image that is spoilt
    return None if entries is None or any(isinstance(entry, Real) for entry in entries) else entries


def several(given: Any, ask: str) -> Iterable[Any]:
    """Return what is several studies or images. Raises AskedError for one alone, or none; `ask` says how one is asked
    for."""
    if (column := images_of(given)) is not None:
        return column
    if isinstance(given, str | os.PathLike) and Path(given).suffix.lower() == ".jsonl":
        raise AskedError(f"{given} is a studies file; pass its studies: cxr.load_studies({str(given)!r})")
    if isinstance(given, Study | Image | Mapping) or hasattr(given, "read") or _is_source(given):
        raise AskedError(f"one {type(given).__name__} was given, where several are meant; {ask}")
    if not isinstance(given, Iterable):
        raise AskedError(f"several studies or images are meant, not {type(given).__name__}; {ask}")
    return given


def whole_number(name: str, value: Any, least: int) -> int:
    """Return a setting. Raises AskedError unless it is a whole number from `least` to 2**63 - 1."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value < 2**63:
        raise AskedError(f"{name} must be a whole number of at least {least}, not {repr(value)[:40]}")
    return int(value)


def _is_source(given: Any) -> bool:
    """Tell whether a radiograph can be read from it."""
    try:
        name_of(given)
    except TypeError:
        return False
    return True


def _missing(entry: Any) -> bool:
    try:
        return entry is None or bool(entry != entry)
    except TypeError:
        # pandas.NA has no truth
        return True
    except ValueError:
        # an array
        return False


def _image(given: Source | Image, view: str = "unknown", what: str = "") -> Image:
    """Return an image by its absolute path, or one that is held; one of a study as it is. `what` tells it
    from others of the study that have no path."""
    if isinstance(given, Image):
        return given if view == "unknown" else replace(given, view=view)
    name = name_of(given)
    if isinstance(given, str | os.PathLike):
        return Image(str(Path(given).absolute()), view)
    return Held(f"{what}: {name}" if what else str(name), view, source=given)


def _file_name(given: Any) -> str:
    """Return the name of the file behind an open file or a Pillow image; "" if there is none."""
    if isinstance(given, Radiograph):
        return ""
    name = getattr(given, "name", None) or getattr(given, "filename", None)
    return name if isinstance(name, str) else ""


def _prior(given: GivenPrior) -> Prior:
    if isinstance(given, Prior):
        return given
    if isinstance(given, Study):
        if not given.images and not given.findings:
            raise StudyError(f"the prior study {given.study_id!r} has neither images nor findings")
        return Prior(list(given.images), given.findings)
    if isinstance(given, tuple):
        if len(given) != 2:
            raise StudyError(f"prior is a tuple of {len(given)}; as a tuple it is (image, findings)")
        image, text = given
        if image is None and text is None:
            raise StudyError("prior is (None, None); leave it out where nothing is known")
        return Prior([] if image is None else [_image(image, what="prior")], _text(text, "prior's findings"))
    if isinstance(given, str) and not _names_a_file(given):
        return Prior(findings=_text(given, "prior"))
    return Prior([_image(given, what="prior")])


def _names_a_file(text: str) -> bool:
    """Tell whether a text is a path: it ends as a picture's does, or such a file exists."""
    if Path(text).suffix.lower() in PICTURES and "\n" not in text:
        return True
    try:
        return os.path.isfile(text)
    except ValueError:  # a null character
        return False


def _text(value: Any, key: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise StudyError(f"{key} must be a text, not {type(value).__name__}")
    return value if value and value.strip() else None


def _age(value: Any) -> float:
    if not is_age(value) or value != value:
        number = isinstance(value, Real) and not isinstance(value, bool)
        # a whole number of hundreds of digits is not a float
        found = (
            type(value).__name__
            if not number
            else f"{value:g}"
            if not abs(value) >= 1e300
            else "so large a number"
        )
        raise StudyError(f"age must be a number of years from 0 to {OLDEST}, not {found}")
    return float(value)


def _sex(value: Any) -> str:
    sex = SEXES.get(value.strip().lower()) if isinstance(value, str) else None
    if sex is None:
        raise StudyError(
            f"sex must be 'F' or 'M' (also female, woman, male, man), not {value!r}; leave out others"
        )
    return sex


def _view(value: Any) -> str:
    view = parse_view(value) if isinstance(value, str) else "unknown"
    if view == "unknown" and not (isinstance(value, str) and value.strip().lower() == "unknown"):
        raise StudyError(f"view must be PA, AP, frontal, lateral or unknown, not {value!r}")
    return view


def _differ(study: Study, key: str, differ: bool) -> None:
    if differ:
        raise StudyError(
            f"study {study.study_id!r} has another {key} already: leave the keyword out, or change the study by "
            f"dataclasses.replace"
        )
