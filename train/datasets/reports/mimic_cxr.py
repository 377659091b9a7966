"""MIMIC-CXR (DICOM) and MIMIC-CXR-JPG as they are downloaded -> studies. Versions 2.0 and 2.1.

What is read, from the folder of the images (`root`) unless said otherwise, each .csv.gz or unpacked:

- `files/p10/p10000032/s50414267/<dicom_id>.jpg` or `.dcm`: the images; only their names are looked at
- `mimic-cxr-2.0.0-split.csv.gz` (of MIMIC-CXR-JPG): all images with the official split
- `mimic-cxr-2.0.0-metadata.csv.gz` (of MIMIC-CXR-JPG): view, date and time of the images
- `mimic-cxr-2.0.0-chexpert.csv.gz`, or else `-negbio` (of MIMIC-CXR-JPG): labels; may be absent
- `mimic-cxr-reports.zip`, unpacked or not, or `files/p10/p10000032/s50414267.txt` (of MIMIC-CXR): the reports
- `mimic_cxr_sectioned.csv`, made by the data set's `create_section_files.py`; may be absent
- `patients.csv.gz` (of MIMIC-IV): sex and age, which MIMIC-CXR leaves out; may be absent

Reports are split by mimic_sections.py. Study and patient ids are the numbers of the tables, without the letters of the
folders.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from train.datasets.release import as_number, check_columns, find_table, missing_file, read_table, rows_of
from train.datasets.reports.mimic_sections import MISLEADING, report_fields, sections
from train.datasets.reports.priors import link_priors
from train.datasets.table import SEXES
from vlm.study import VIEWS, Image, Study, StudyError, normalise_split

JPG = "MIMIC-CXR-JPG (https://physionet.org/content/mimic-cxr-jpg/)"
DICOM = "MIMIC-CXR (https://physionet.org/content/mimic-cxr/)"
# All other view positions are oblique, decubitus or not of the chest; the data set's authors count neither these nor
# empty ones as frontal or lateral.
VIEW_POSITIONS = {"PA": "PA", "AP": "AP", "LATERAL": "lateral", "LL": "lateral"}
LABELS = {"1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}
SUFFIXES = (".jpg", ".dcm", ".jpeg", ".png")  # of images; png for copies made smaller
FOLDERS_LOOKED_AT = 2000  # for the first image, before giving up: enough for parts of the data set


def studies(
    root: str | Path, reports: str | Path | None = None, frontal_only: bool = True, priors: bool = True
) -> list[Study]:
    """Read the data set below `root`, in the order of its table of splits. Image paths are relative to `root`.

    `reports`: where the reports are, if not below `root`: a folder, `mimic-cxr-reports.zip`, or
    `mimic_cxr_sectioned.csv`. Findings and impressions are those of the sectioned table where there is one, even if
    it lacks a study. The few reports whose headings mislead (`mimic_sections.MISLEADING`) and those that are not
    there leave their studies without text. `frontal_only` keeps the studies with an AP or PA image, with all their
    images. `priors` links each kept study to the patient's latest one before it. Images are in the order PA, AP,
    lateral, unknown; none is opened, and none need exist. Age (in years; over 89, MIMIC-IV counts from 91) and sex
    are known only with `patients.csv.gz`, and only for its patients.

    Raises StudyError where a file or a column is missing or cannot be read, with the file's name and its source.
    """
    root = Path(root)
    places = [root] if reports is None else [Path(reports), root]
    for place in places:
        if not place.exists():
            raise StudyError(f"{place} does not exist")
    split_table = find_table(root, "mimic-cxr-*-split.csv")
    if split_table is None:
        raise missing_file(root, "mimic-cxr-2.0.0-split.csv.gz", JPG)
    metadata = find_table(root, "mimic-cxr-*-metadata.csv")
    if metadata is None and (frontal_only or priors):
        raise missing_file(
            root,
            "mimic-cxr-2.0.0-metadata.csv.gz",
            JPG,
            "Only it tells frontal images from others, and the dates.",
        )

    views, when, years = _metadata(metadata) if metadata else ({}, {}, {})
    found = _images(root, split_table, views)
    if frontal_only:
        found = [study for study in found if any(image.view in ("PA", "AP") for image in study.images)]
    for study in found:
        study.images.sort(key=lambda image: VIEWS.index(image.view))
    _add_labels(root, found)
    _add_patients(root, found, years)
    _add_texts(places, found)
    if priors:
        link_priors(found, when)
    return found


def _metadata(path: Path) -> tuple[dict[str, str], dict[str, tuple[float, float]], dict[str, int]]:
    """Return (image -> view, study -> (date, time) of its first image, study -> year).

    Dates are numbers like 21800506, times like 213014.531; the table drops leading zeros of times. A study without
    either is left out: of two studies of a day, it could not be said which is the prior.
    """
    views: dict[str, str] = {}
    when: dict[str, tuple[float, float]] = {}
    years: dict[str, int] = {}
    columns = ("dicom_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    for dicom, study, view, date_text, time_text in read_table(path, columns):
        views[dicom] = VIEW_POSITIONS.get(view.strip().upper(), "unknown")
        date, time = as_number(date_text), as_number(time_text)
        if date is not None:
            years.setdefault(study, int(date) // 10000)
            if time is not None:
                when[study] = min((date, time), when.get(study, (date, time)))
    return views, when, years


def _images(root: Path, table: Path, views: dict[str, str]) -> list[Study]:
    found: dict[str, Study] = {}
    splits: dict[str, str] = {}  # as written -> as we call it
    suffix = _suffix(root)
    for dicom, number, patient, split in read_table(table, ("dicom_id", "study_id", "subject_id", "split")):
        study = found.get(number)
        if study is None:
            if split not in splits:
                try:
                    splits[split] = normalise_split(split)
                except StudyError as error:
                    raise StudyError(f"{table}: {error}") from None
            study = found[number] = Study(number, patient, splits[split])
        elif study.patient_id != patient or study.split != splits.get(split):
            raise StudyError(f"{table}: the rows of study {number} have different patients or splits")
        path = f"files/p{patient[:2]}/p{patient}/s{number}/{dicom}{suffix}"
        study.images.append(Image(path, views.get(dicom, "unknown")))
    return list(found.values())


def _suffix(root: Path) -> str:
    """What the images' names end in: as the first one found, for both releases have the same tree; else .dcm beside
    the list of records that only MIMIC-CXR has, else .jpg."""
    for looked_at, (folder, folders, names) in enumerate(os.walk(root / "files")):
        folders.sort()
        if len(Path(folder).relative_to(root).parts) == 4:
            for name in sorted(names):
                if (suffix := Path(name).suffix).lower() in SUFFIXES:
                    return suffix
        if looked_at >= FOLDERS_LOOKED_AT:
            break
    return ".dcm" if find_table(root, "cxr-record-list.csv") else ".jpg"


def _add_labels(root: Path, found: Iterable[Study]) -> None:
    """CheXpert's labels or, without its table, NegBio's, which has the same columns."""
    path = find_table(root, "mimic-cxr-*-chexpert.csv") or find_table(root, "mimic-cxr-*-negbio.csv")
    if path is None:
        return
    rows = rows_of(path)
    header = next(rows)
    check_columns(path, header, ["study_id"])
    at = header.index("study_id")
    names = [(i, name) for i, name in enumerate(header) if name not in ("", "study_id", "subject_id")]
    of_study = {study.study_id: study for study in found}
    for row in rows:
        study = of_study.get(row[at])
        if study is None:
            continue
        try:
            labels = {name: LABELS[row[i]] for i, name in names if row[i]}
        except KeyError as error:
            raise StudyError(f"{path}: study {row[at]} has the label {error}, not 1.0, 0.0 or -1.0") from None
        study.labels = labels or None


def _add_patients(root: Path, found: Iterable[Study], years: dict[str, int]) -> None:
    """MIMIC-IV gives the age in one year and shifts all dates of a patient alike, also those of MIMIC-CXR."""
    path = find_table(root, "patients.csv")
    if path is None:
        return
    columns = ("subject_id", "gender", "anchor_age", "anchor_year")
    patients = {patient: rest for patient, *rest in read_table(path, columns)}
    for study in found:
        sex, age_text, year_text = patients.get(study.patient_id or "", ("", "", ""))
        study.sex = SEXES.get(sex.strip().lower())
        age, year = as_number(age_text), as_number(year_text)
        if age is not None and year is not None and study.study_id in years:
            age = int(age + years[study.study_id] - year)
            study.age = age if 0 <= age <= 120 else None


# Reports


def _add_texts(places: Sequence[Path], found: Sequence[Study]) -> None:
    sectioned = _sectioned(places)
    read = 0
    if sectioned is not None:
        for study in found:
            _set_texts(study, sectioned.get(study.study_id, {}))
    for place in places:
        for study, report in _reports(place, found):
            read += 1
            texts = sections(report)
            if sectioned is not None:
                texts |= {"findings": "", "impression": ""}
                texts |= {name: text for name, text in sectioned.get(study.study_id, {}).items() if text}
            _set_texts(study, texts)
        if read:
            break
    if found and not read and sectioned is None:
        where = " and ".join(map(str, places))
        raise StudyError(f"no reports below {where}: mimic-cxr-reports.zip is missing. It is part of {DICOM}")


def _set_texts(study: Study, texts: dict[str, str]) -> None:
    if study.study_id not in MISLEADING:
        for name, text in report_fields(texts).items():
            setattr(study, name, text)


def _sectioned(places: Iterable[Path]) -> dict[str, dict[str, str]] | None:
    """Study -> section -> text, of the first sectioned table there is. Copies of the script in use add columns."""
    name = "mimic_cxr_sectioned.csv"
    for place in places:
        path = place if ".csv" in place.suffixes and place.is_file() else find_table(place, name)
        if path is not None:
            columns = ("findings", "impression", "comparison", "indication", "history", "technique")
            return {
                study.strip().removeprefix("s"): {
                    column: " ".join(text.split()) for column, text in zip(columns, texts, strict=True)
                }
                for study, *texts in read_table(path, ("study", *columns[:2]), columns[2:])
            }
    return None


def _reports(place: Path, found: Iterable[Study]) -> Iterator[tuple[Study, str]]:
    """Return the reports of those studies that have one at `place`, each read when it is asked for."""
    archives = [place] if place.suffix == ".zip" else sorted(place.glob("mimic-cxr-reports*.zip"))
    if archives:
        yield from _from_archive(archives[0], found)
        return
    for folder in (place / "mimic-cxr-reports" / "files", place / "files", place):
        if any(folder.glob("p1[0-9]")):
            yield from _from_folder(folder, found)
            return


def _from_archive(path: Path, found: Iterable[Study]) -> Iterator[tuple[Study, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.rpartition("/")[2]: name for name in archive.namelist() if "__MACOSX" not in name}
            for study in found:
                if name := members.get(f"s{study.study_id}.txt"):
                    yield study, archive.read(name).decode("utf-8", "replace")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}); is it complete?") from None


def _from_folder(folder: Path, found: Iterable[Study]) -> Iterator[tuple[Study, str]]:
    for study in found:
        patient = study.patient_id or ""
        path = f"{folder}/p{patient[:2]}/p{patient}/s{study.study_id}.txt"
        try:
            with open(path, "rb") as file:
                report = file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StudyError(f"{path} cannot be read ({error.strerror or type(error).__name__})") from None
        yield study, report.decode("utf-8", "replace")
