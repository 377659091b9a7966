"""DICOM files as a hospital exports them -> studies. docs/guides/studies.md says what is read from where, and why.

Files are grouped by StudyInstanceUID, patient and place; priors are by date. Pictures and DICOM files that say nothing
of a study stay a study each.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from encoder.media import Member, head_of
from encoder.radiograph import quiet
from encoder.radiograph.parse import DICOMDIR_CLASS
from train.datasets.films import FilmHeader, film_header
from train.datasets.reports.priors import link_priors
from vlm.given import Held
from vlm.prompts import shown_image
from vlm.study import Image, Study

# How patients are called in what is written.
PatientIds = Literal["plain", "hashed"]
# Keyed when the user gives no key: a constant, so that equal patients have equal names in all runs.
NO_KEY = b"cxr patient"
# How PNG and JPEG files begin.
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
# unreadable files that are told by name
NAMED = 20


@dataclass(frozen=True)
class File:
    """Hold one file that may become a film of a study, and where it was found."""

    name: str  # what a study with this main image is called
    path: str  # of the image, as the study is to have it
    source: Path | Member
    # Files of different places never become one study.
    place: tuple[int, int] = (-1, 0)
    # Given itself and not found in a folder: tried whatever its header says.
    is_named: bool = False


@dataclass(frozen=True)
class Rules:
    """Set how files become studies."""

    per_file: bool = False
    patient_ids: PatientIds = "hashed"
    # The secret of the HMAC of IDs.
    key: bytes = b""
    # Whether dates are written.
    dates: bool = False
    # Whether each study is given the patient's study before.
    priors: bool = True
    # Whether what is no DICOM file and no picture is left out, and not a study that reading refuses.
    only_readable: bool = False


@dataclass
class Found:
    """Studies in the order of their main images among the files, and what was not made one."""

    studies: list[Study] = field(default_factory=list)
    # What it is instead of a chest film -> how many files.
    left_out: Counter[str] = field(default_factory=Counter)
    # Names of what can be read neither as DICOM nor as a picture.
    unreadable: list[str] = field(default_factory=list)
    # Images of raw detector data that stand behind a processed one.
    raw: int = 0
    # Patient IDs that several people have, by birth date or sex.
    shared_ids: int = 0

    def notes(self) -> list[str]:
        """Return notes for the user, one a line."""
        lines = []
        if self.left_out:
            count = self.left_out.total()
            kinds = ", ".join(f"{n} {what}" for what, n in sorted(self.left_out.items()))
            what = (
                "file that is not a chest X-ray is" if count == 1 else "files that are not chest X-rays are"
            )
            lines.append(f"{count} {what} left out: {kinds}")
        if self.unreadable:
            count = len(self.unreadable)
            what = "file is" if count == 1 else "files are"
            named = ", ".join(self.unreadable[:NAMED]) + (", ..." if count > NAMED else "")
            lines.append(f"{count} {what} neither DICOM nor PNG nor JPEG, or damaged, and left out: {named}")
        if self.raw:
            what = "file of raw detector data is" if self.raw == 1 else "files of raw detector data are"
            lines.append(f"{self.raw} {what} left out: the study has the same view processed")
        if self.shared_ids:
            what = "patient ID belongs" if self.shared_ids == 1 else "patient IDs belong"
            lines.append(f"{self.shared_ids} {what} to several people, who are kept apart as to priors")
        return lines


@dataclass(frozen=True)
class _Film:
    """A DICOM file with its header, and its place among the files."""

    at: int
    file: File
    header: FilmHeader


def studies(
    files: Sequence[File],
    rules: Rules | None = None,
    header_of: Callable[[Path | Member], FilmHeader | None] = film_header,
) -> Found:
    """Group files into studies. No file raises anything here; what cannot be read is a study, which reading refuses, or
    is left out by the rules."""
    rules = rules or Rules()
    found = Found()
    alone: list[tuple[int, Study]] = []
    groups: dict[tuple[Any, ...], list[_Film]] = defaultdict(list)
    # Once for all: entering it for every file costs more than reading a header.
    with quiet():
        headers = [header_of(file.source) for file in files]
    for at, (file, header) in enumerate(zip(files, headers, strict=True)):
        if rules.only_readable and not _is_picture(file) and not _says_anything(header):
            found.unreadable.append(file.name)
            continue
        if header is None:
            alone.append((at, Study(file.name, images=[_image(file)])))
            continue
        if header.sop_class == DICOMDIR_CLASS:
            continue
        what = "" if file.is_named or rules.per_file else header.not_a_chest_film()
        if what:
            found.left_out[what] += 1
        elif header.study_uid and not rules.per_file:
            key = (file.place, header.study_uid, header.patient_id, header.issuer)
            groups[key].append(_Film(at, file, header))
        else:
            groups[(at,)].append(_Film(at, file, header))
    made = [_study(films, rules, found) for films in groups.values()]
    if rules.priors and not rules.per_file:
        _link(made, found)
    for one in made:
        # Priors are linked by the ID alone, which is not to be written as it is.
        one.study.patient_id = patient_name(one.header, rules)
    found.studies = [
        s for _, s in sorted([*alone, *((m.at, m.study) for m in made)], key=lambda pair: pair[0])
    ]
    return found


def patient_name(header: FilmHeader, rules: Rules) -> str | None:
    """Return what the patient is called: the ID (and its issuer, as HL7 writes it), or `hashed` of it."""
    if not header.patient_id:
        return None
    name = f"{header.patient_id}^^^{header.issuer}" if header.issuer else header.patient_id
    return name if rules.patient_ids == "plain" else "p" + hashed(name, rules.key)


def hashed(identifier: str, key: bytes = b"") -> str:
    """Return 16 hex digits of HMAC-SHA-256 (RFC 2104). Without a secret key it is a pseudonym and does not
    protect: IDs are short enough that all can be tried. It does not change from run to run, so that a run can
    be resumed."""
    return hmac.new(
        key or NO_KEY, identifier.encode("utf-8", "backslashreplace"), hashlib.sha256
    ).hexdigest()[:16]


@dataclass
class _Made:
    at: int  # of the main image among the files
    study: Study
    header: FilmHeader  # of the main image
    when: tuple[str, str]  # date and time; "" where unknown


def _study(films: list[_Film], rules: Rules, found: Found) -> _Made:
    """Make the study of the films of one group."""
    processed = {film.header.view for film in films if film.header.intent == "FOR PRESENTATION"}
    kept = [film for film in films if not (film.header.is_raw and film.header.view in processed)]
    found.raw += len(films) - len(kept)
    kept.sort(key=_precedence)
    images = [_image(film.file, film.header, rules) for film in kept]
    study = Study("", images=images)
    main = kept[next(i for i, image in enumerate(images) if image is shown_image(study))]
    # What the main film does not say, another film of the study may.
    headers = [main.header, *(film.header for film in kept)]
    study.study_id = main.file.name
    study.patient_id = main.header.patient_id or None
    study.age = next((h.age for h in headers if h.age is not None), None)
    study.sex = next((h.sex for h in headers if h.sex), None)
    study.indication = next((h.indication for h in headers if h.indication), None)
    date = min(filter(None, (h.study_date for h in headers)), default="")
    time = min((h.study_time for h in headers if h.study_time and h.study_date == date), default="")
    plain = rules.patient_ids == "plain"
    uid = main.header.study_uid
    extra = {
        "study_uid": uid if plain or not uid else hashed(uid, rules.key),
        "study_description": main.header.study_description,
        "procedure": next((h.procedure for h in headers if h.procedure), ""),
        "accession": main.header.accession if plain else "",
        "study_date": date if rules.dates else "",
        "study_time": time if rules.dates else "",
    }
    study.extra = {key: value for key, value in extra.items() if value}
    return _Made(main.at, study, main.header, (date, time if date else ""))


def _precedence(film: _Film) -> tuple[Any, ...]:
    """Sort key of the images of a study: the first of a view is the one that is shown."""
    h = film.header
    intent = {"FOR PRESENTATION": 0, "FOR PROCESSING": 2}.get(h.intent, 2 if h.is_raw else 1)
    secondary = len(h.image_type) > 1 and h.image_type[1] == "SECONDARY"
    derived = h.image_type[:1] == ("DERIVED",)
    # What says no time or number stands behind what does.
    order = (h.acquired if all(h.acquired) else ("9", ""), _last(h.series_number), _last(h.instance_number))
    return (intent, secondary, derived, *order, film.file.name, film.at)


def _last(number: int | None) -> tuple[bool, int]:
    return number is None, number or 0


def _link(made: Sequence[_Made], found: Found) -> None:
    """Give each study the same person's study before, and its place among that person's studies."""
    of_patient: dict[tuple[str, str], list[_Made]] = defaultdict(list)
    for one in made:
        if one.header.patient_id:
            of_patient[one.header.patient_id, one.header.issuer].append(one)
    for series in of_patient.values():
        births = {one.header.birth_date for one in series} - {""}
        sexes = {one.header.sex for one in series} - {None}
        if len(births) < 2 and len(sexes) < 2:
            _link_person(series)
            continue
        found.shared_ids += 1
        people: dict[tuple[str, str | None], list[_Made]] = defaultdict(list)
        for one in series:
            people[one.header.birth_date, one.header.sex].append(one)
        for own in people.values():
            _link_person(own)


def _link_person(series: Sequence[_Made]) -> None:
    dated = [one for one in series if one.when[0]]
    # If one study of a day has no time, none is known to be earlier than another.
    timeless = {one.when[0] for one in dated if not one.when[1]}
    when = {
        one.study.study_id: (one.when[0], "" if one.when[0] in timeless else one.when[1]) for one in dated
    }
    moments = sorted(set(when.values()))
    for one in dated:
        one.study.extra["order"] = 1 + moments.index(when[one.study.study_id])
    link_priors([one.study for one in dated], when, usable=_has_frontal)


def _says_anything(header: FilmHeader | None) -> bool:
    """Tell whether it says what the object is, which study it belongs to, or how large the image is."""
    return header is not None and bool(header.sop_class or header.study_uid or header.modality or header.rows)


def _is_picture(file: File) -> bool:
    return head_of(file.source, 8).startswith(PICTURES)


def _has_frontal(study: Study) -> bool:
    """Tell whether the image that a prior of it would show is frontal, or may be."""
    image = shown_image(study)
    return image is not None and image.view != "lateral"


def _image(file: File, header: FilmHeader | None = None, rules: Rules | None = None) -> Image:
    extra: dict[str, Any] = {}
    if header is not None and rules is not None:
        told = {
            "modality": header.modality,
            "body_part": header.body_part,
            "series": header.series,
            "intent": header.intent,
            "manufacturer": header.manufacturer,
            "manufacturer_model": header.manufacturer_model,
            "rows": header.rows,
            "columns": header.columns,
            "sop_uid": header.sop_uid if rules.patient_ids == "plain" else "",
        }
        extra = {key: value for key, value in told.items() if value}
    view = "unknown" if header is None else header.view
    if isinstance(file.source, Member):
        return Held(file.path, view, extra, source=file.source)
    return Image(file.path, view, extra)
