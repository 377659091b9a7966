"""What the header of a DICOM file says of a film's place among studies; its pixels stay unread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from encoder.media import Member, opened
from encoder.radiograph import InputError, Limits, parse_age, parse_view, quiet
from encoder.radiograph.dicom import (
    CHEST,
    NO_PART,
    OTHER_PART,
    RADIOGRAPH_CLASSES,
    RADIOGRAPHS,
    STORAGE_CLASSES,
    UNKNOWN_MODALITY,
)
from encoder.radiograph.elements import items, text
from encoder.radiograph.parse import DEFLATED, Counted, parse
from vlm.study import NOT_TEXT

# Where the words on the view are, the most binding first. StudyDescription speaks of all films of the study.
VIEW_WORDS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
# Why the film was asked for, the order's own words first.
REASONS = ("ReasonForTheRequestedProcedure", "ReasonForStudy")
# Of a header, one or two to an element. Where there are more, `parse` decides whether it is one.
PIECES = 3000
RAW_CLASS = "1.2.840.10008.5.1.4.1.1.1.1.1"  # Digital X-Ray Image Storage - For Processing
# What the names of SOP classes call what `Modality` has a code for.
KINDS = {
    kind: re.compile(words)
    for kind, words in {
        "SR": r"\bSR\b", "PR": "Presentation State", "KO": "Key Object", "CT": r"\bCT\b", "MR": r"\bMR\b",
        "US": r"Ultrasound|\bUS\b", "MG": "Mammography|Breast", "NM": "Nuclear Medicine",
        "PT": r"Positron|\bPET\b", "XA": r"Angiographic|\bXA\b", "RF": "Radiofluoroscopic",
        "SEG": "^Segmentation", "RTIMAGE": "^RT Image", "RTDOSE": "^RT Dose", "RTPLAN": "^RT Plan",
        "RTSTRUCT": "^RT Structure Set",
    }.items()
}  # fmt: skip
# What anonymisation writes instead of every patient's ID.
NO_PATIENT = re.compile(
    r"[0x*?_.\- ]*|anon(ym(ous|i[sz]ed)?)?|de-?identified|unknown|none|null|n/?a|nan|removed|patient ?id",
    re.I,
)
# pydicom takes keywords that a version does not know for an error, so all of these are in its dictionary since 2.0.
TAGS = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "StudyDate", "StudyTime", "AcquisitionDate", "AcquisitionTime", "SeriesNumber", "InstanceNumber",
    "Modality", "BodyPartExamined", "ViewPosition", "ViewCodeSequence", "ImageType", "PresentationIntentType",
    "StudyDescription", "AdmittingDiagnosesDescription", "RequestedProcedureDescription", "RequestAttributesSequence",
    "AccessionNumber", "Manufacturer", "ManufacturerModelName", "Rows", "Columns", *VIEW_WORDS, *REASONS,
]  # fmt: skip


@dataclass(frozen=True)
class FilmHeader:
    """Hold what was read; "" or None where the file says nothing."""

    study_uid: str = ""
    sop_uid: str = ""
    sop_class: str = ""
    patient_id: str = ""  # "" also for an ID that anonymisation gives to everybody
    issuer: str = ""  # of the patient ID
    birth_date: str = ""  # YYYYMMDD, as the other dates
    sex: str | None = None  # F or M
    age: float | None = None  # years
    study_date: str = ""
    study_time: str = ""  # HHMMSS and a fraction, as the other times
    acquired: tuple[str, str] = ("", "")  # date and time
    series_number: int | None = None
    instance_number: int | None = None
    modality: str = ""
    body_part: str = ""
    view: str = "unknown"
    image_type: tuple[str, ...] = ()
    intent: str = ""  # FOR PRESENTATION, FOR PROCESSING
    words: str = ""  # of study, series and protocol
    study_description: str = ""
    series: str = ""
    procedure: str = ""
    accession: str = ""
    manufacturer: str = ""
    manufacturer_model: str = ""
    rows: int | None = None
    columns: int | None = None
    indication: str | None = None

    @property
    def is_raw(self) -> bool:
        """Tell whether it holds detector data, not yet processed for a reader."""
        return self.intent == "FOR PROCESSING" or self.sop_class == RAW_CLASS

    def not_a_chest_film(self) -> str:
        """Say what it is instead, in a word or two; "" for a chest film, and for what may be one."""
        if self.modality and self.modality not in RADIOGRAPHS | UNKNOWN_MODALITY:
            return self.modality[:16]
        other_class = self.sop_class.startswith(STORAGE_CLASSES) and not RADIOGRAPH_CLASSES.fullmatch(
            self.sop_class
        )
        if other_class and self.modality not in RADIOGRAPHS:
            name = UID(self.sop_class).name
            return next(
                (kind for kind, words in KINDS.items() if words.search(name)), name.removesuffix(" Storage")
            )
        # Only another part by name: a code that is not known here may mean the chest in any language.
        told = self.words if self.body_part.upper() in NO_PART else self.body_part
        other = OTHER_PART.search(told)
        if not other or CHEST.search(told):
            return ""
        return (other[0] if told is self.words else self.body_part[:16]).lower()


def film_header(source: Path | Member, limits: Limits | None = None) -> FilmHeader | None:
    """Read the header of a DICOM file; None for any other file, and for one whose header cannot be read.

    Nothing is raised, and nothing that pydicom has to say is heard: it may quote the patient's data.
    """
    with quiet():
        try:
            with opened(source) as file:
                dataset = _dataset(file, limits or Limits())
            return None if dataset is None else _facts(dataset)
        # pydicom raises anything on a damaged file
        except Exception:
            return None


def _dataset(file: IO[bytes], limits: Limits) -> Dataset | None:
    """Return the header alone; all of the file is taken where it is deflated, lacks the preamble, or has
    elements that pydicom does not know. Raises anything."""
    head = file.read(132)
    if head[128:] == b"DICM":
        # Inflating would take place before a tag is read, whatever size that may come to.
        meta = read_dataset(
            cast(BinaryIO, Counted(file, PIECES)),
            False,
            True,
            stop_when=lambda tag, vr, length: tag >> 16 != 2,
        )
        if text(meta, "TransferSyntaxUID") != DEFLATED:
            file.seek(0)
            with suppress(Exception):
                counted = cast(BinaryIO, Counted(file, PIECES))
                return dcmread(counted, stop_before_pixels=True, specific_tags=TAGS)
    # No preamble: it begins with an element of group 2 or 8.
    elif head[:1] not in (b"\x02", b"\x08") or head[1:2] != b"\0":
        return None
    file.seek(0)
    try:
        data = file.read(limits.max_bytes + 1)
        return None if len(data) > limits.max_bytes else parse(data, limits).header
    except InputError:
        return None


def _facts(header: Dataset) -> FilmHeader:
    study_date = _date(header, "StudyDate") or _date(header, "AcquisitionDate")
    birth_date = _date(header, "PatientBirthDate")
    sex = text(header, "PatientSex").upper()
    patient = text(header, "PatientID")
    meta = getattr(header, "file_meta", Dataset())
    described = ("StudyDescription", "SeriesDescription", "ProtocolName")
    return FilmHeader(
        study_uid=text(header, "StudyInstanceUID"),
        sop_uid=text(header, "SOPInstanceUID"),
        sop_class=text(header, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID"),
        patient_id="" if NO_PATIENT.fullmatch(patient) else patient,
        issuer=text(header, "IssuerOfPatientID"),
        birth_date=birth_date,
        sex=sex if sex in ("F", "M") else None,
        age=_age(text(header, "PatientAge"), birth_date, study_date),
        study_date=study_date,
        study_time=_time(header, "StudyTime"),
        acquired=(_date(header, "AcquisitionDate"), _time(header, "AcquisitionTime")),
        series_number=_number(header, "SeriesNumber"),
        instance_number=_number(header, "InstanceNumber"),
        modality=text(header, "Modality").upper(),
        body_part=text(header, "BodyPartExamined"),
        view=view_of(header),
        image_type=tuple(value.upper() for value in _values(header, "ImageType")),
        intent=text(header, "PresentationIntentType").upper(),
        words=" ".join(text(header, key) for key in described),
        study_description=_line(text(header, "StudyDescription")),
        series=_line(text(header, "SeriesDescription")),
        procedure=_line(text(header, "RequestedProcedureDescription")),
        accession=text(header, "AccessionNumber"),
        manufacturer=_line(text(header, "Manufacturer")),
        manufacturer_model=_line(text(header, "ManufacturerModelName")),
        rows=_number(header, "Rows"),
        columns=_number(header, "Columns"),
        indication=_indication(header),
    )  # fmt: skip


def view_of(header: Dataset) -> str:
    """Return PA, AP, frontal, lateral or unknown, by the first of the header's words that name one."""
    texts = [text(header, "ViewPosition")]
    texts += [text(item, "CodeMeaning") for item in items(header, "ViewCodeSequence")]
    texts += [text(header, key) for key in VIEW_WORDS]
    return next((view for view in map(parse_view, texts) if view != "unknown"), "unknown")


def _indication(header: Dataset) -> str | None:
    """Why the film was taken, by the first of the attributes that says so."""

    def told() -> Iterator[str]:
        for key in REASONS:
            for place in (header, *items(header, "RequestAttributesSequence")):
                yield text(place, key)
        yield "; ".join(_values(header, "AdmittingDiagnosesDescription"))

    lines = (_line(words) for words in told())
    return next((line for line in lines if re.search(r"\w", line) and line.lower() not in NOT_TEXT), None)


def _age(words: str, birth_date: str, study_date: str) -> float | None:
    age = parse_age(words)
    if age is None and birth_date and study_date:
        # Whole years, as PatientAge has them.
        age = int(study_date[:4]) - int(birth_date[:4]) - (study_date[4:] < birth_date[4:])
    if age is None or not 0 <= age <= 120:
        return None
    return int(age) if age == int(age) else round(age, 3)


def _date(header: Dataset, key: str) -> str:
    """YYYYMMDD, also of the older YYYY.MM.DD; "" if it is not a date, and for the year 0000 of a blanked
    one."""
    digits = text(header, key).replace(".", "").replace("-", "")
    is_date = re.fullmatch(r"(?!0000)\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", digits, re.A)
    return digits if is_date else ""


def _time(header: Dataset, key: str) -> str:
    """HHMMSS with its fraction, padded, so that texts stand in the order of times; "" if it is not a time."""
    found = re.fullmatch(r"(\d{2,6})(\.\d{1,6})?", text(header, key).replace(":", ""), re.A)
    return found[1].ljust(6, "0") + (found[2] or "") if found else ""


def _number(header: Dataset, key: str) -> int | None:
    value = text(header, key)
    return int(value) if re.fullmatch(r"[+-]?\d{1,12}", value, re.A) else None


def _values(header: Dataset, key: str) -> list[str]:
    """All values of an attribute, as texts."""
    value: Any = header.get(key)
    several = [value] if isinstance(value, str) else list(value or [])
    return [str(one).strip("\0 ") for one in several if str(one).strip("\0 ")]


def _line(words: str) -> str:
    return " ".join(words.split())
