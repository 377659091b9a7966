"""Phantom studies written as DICOM or PNG, with masks and studies.jsonl: what `cxr phantom` does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from encoder.files import write_atomically
from encoder.progress import bar
from encoder.workers import pool
from train.common.config import ConfigError
from train.phantom.film import Film
from train.phantom.patient import LATERAL_OF_PA, SECOND_STUDY, Examination, Patient, draw_patient
from train.phantom.render import render_frontal, render_lateral
from train.phantom.report import write_report

SHARES = ("followups", "laterals", "hidden")
SPLITS = (("train", 0.8), ("validate", 0.1), ("test", 0.1))


def split_of(seed: int, number: int, forced: str | None) -> str:
    """Return the split of a patient, which does not depend on how many patients there are."""
    if forced:
        return forced
    u = np.random.default_rng([seed, number, 0x5B]).random()
    for name, share in SPLITS:
        if u < share:
            return name
        u -= share
    return SPLITS[-1][0]


def write_patient(
    number: int,
    *,
    out: Path,
    seed: int,
    prevalence: float,
    size: int,
    kind: str,
    masks: bool,
    wording: str,
    split: str | None,
    **shares: float,
) -> list[dict]:
    """Render one patient's studies; returns their lines of studies.jsonl. `shares` are draw_patient's."""
    patient = draw_patient(seed, number, prevalence, **shares)
    lines: list[dict] = []
    suffix = {"dicom": "dcm", "png": "png"}[kind]
    for study in patient.studies:
        prior = patient.studies[study.index - 1] if study.index else None
        report = write_report(study, prior, wording)
        name = f"phantom-{seed}-{number:06d}-{study.index}"
        line = {
            "schema": 1,
            "study_id": name,
            "patient_id": f"phantom-{seed}-{number:06d}",
            "split": split_of(seed, number, split),
            "images": [],
            "indication": report.indication,
            "age": patient.age,
            "sex": patient.sex,
            "findings": report.findings,
            "labels": report.labels,
        }
        if lines:
            line["prior"] = {"images": lines[-1]["images"], "findings": lines[-1]["findings"]}
        frontal = render_frontal(study, patient.sex, size)
        line["images"].append({"path": f"images/{name}.{suffix}", "view": study.view})
        write_film(out / line["images"][0]["path"], frontal, patient, study, study.view, kind)
        found = dict(frontal.masks)
        if study.lateral:
            line["images"].append({"path": f"images/{name}-lateral.{suffix}", "view": "lateral"})
            film = render_lateral(study, patient.sex, size)
            write_film(out / line["images"][1]["path"], film, patient, study, "lateral", kind)
            found |= {f"lateral-{mask}": pixels for mask, pixels in film.masks.items() if mask != "lungs"}
        if masks:
            line["masks"] = {}
            for mask, pixels in found.items():
                path = f"masks/{name}-{mask}.png"
                Image.fromarray(pixels).save(out / path, compress_level=1)
                line["masks"][mask] = path
        lines.append({key: value for key, value in line.items() if value is not None})
    return lines


def write_film(path: Path, film: Film, patient: Patient, study: Examination, view: str, kind: str) -> None:
    """Write a film as a PNG of 8 bits (`kind` png) or as DICOM. Raises OSError."""
    if kind == "png":
        Image.fromarray((film.display() * 255 + 0.5).astype(np.uint8)).save(path, compress_level=1)
        return
    save_dicom(path, film, patient, study, view)


def save_dicom(path: Path, film: Film, patient: Patient, study: Examination, view: str) -> None:
    """Write a CR or DX file as an archive would hold it: 12 or 16 bits stored, MONOCHROME1 or 2, and a window
    that says what of the stored range is shown. Which of these a film gets is drawn from its own seed."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage as CR
    from pydicom.uid import DigitalXRayImageStorageForPresentation as DX
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    rng = np.random.default_rng([study.style.film_seed, 31, view == "lateral"])
    bits, inverted = (12, 16)[int(rng.integers(2))], bool(rng.integers(2))
    top = 2**bits - 1
    low, high = film.shown
    # The stored range is wider than the shown one, so that a reader which ignores the window gets a flatter film.
    floor, ceiling = low - 0.25 * (high - low), high + 0.25 * (high - low)
    stored = np.clip((film.attenuation - floor) / (ceiling - floor), 0, 1) * top
    shown = [(v - floor) / (ceiling - floor) * top for v in (low, high)]
    if inverted:
        stored, shown = top - stored, [top - v for v in shown[::-1]]

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DX if rng.integers(2) else CR
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name, "instance"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[path.name.split("-lateral")[0], "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[path.name, "series"])
    ds.Modality = "DX" if ds.SOPClassUID == DX else "CR"
    ds.PatientName = "PHANTOM^SYNTHETIC"
    # as in studies.jsonl: phantom-SEED-NUMBER
    ds.PatientID = "-".join(path.name.split("-")[:3])
    ds.PatientSex, ds.PatientAge = patient.sex, f"{patient.age:03d}Y"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = {"lateral": "LL"}.get(view, view)
    ds.ImageComments = "Synthetic phantom, not a patient"
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, 0
    ds.PixelSpacing = [f"{film.spacing_mm:.4f}"] * 2
    ds.WindowCenter = f"{(shown[0] + shown[1]) / 2 + 0.5:.1f}"
    ds.WindowWidth = f"{max(shown[1] - shown[0] + 1, 2):.1f}"
    ds.RescaleIntercept, ds.RescaleSlope = "0", "1"
    ds.PixelData = (stored + 0.5).astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)


def generate(out: Path, studies: int, workers: int, **options) -> Iterator[list[dict]]:
    """Write the first patients who have at least `studies` together; yields each patient's lines. `options` are
    write_patient's."""
    job = partial(write_patient, out=out, **options)
    numbers = needed(studies, **{name: options[name] for name in ("seed", "prevalence", *SHARES)})
    if workers <= 1:
        yield from map(job, numbers)
        return
    with pool(workers, _one_thread) as processes:
        # in slices, for a pool takes all that it is given at once
        while some := list(islice(numbers, 256)):
            yield from processes.map(job, some, chunksize=4)


def needed(studies: int, seed: int, prevalence: float, **shares: float) -> Iterator[int]:
    """Yield the numbers of the first patients who have at least `studies` studies together. They are drawn and not
    rendered, so that no film is written that the studies file does not name."""
    drawn = 0
    for number in range(studies):
        if drawn >= studies:
            return
        yield number
        drawn += len(draw_patient(seed, number, prevalence, **shares).studies)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


@dataclass(frozen=True, kw_only=True)
class Population:
    """Set who is drawn, and how it is written. Raises ConfigError for impossible values."""

    # how many studies, at least
    studies: int = 1000
    # which population
    seed: int = 0
    # times as many findings, none above 30 %
    prevalence: float = 1.0
    # share of patients with a second study, its prior the first
    followups: float = SECOND_STUDY
    # share of PA films with a lateral film beside them
    laterals: float = LATERAL_OF_PA
    # share of patients with each finding that a lateral film alone shows
    hidden: float = 0.0
    # shorter side in pixels
    size: int = 512
    format: Literal["dicom", "png"] = "dicom"
    masks: bool = True
    # how reports are written
    wording: Literal["prose", "telegraphic"] = "prose"
    # put every patient into this split
    split: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("studies", 1), ("prevalence", 1), ("size", 64)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name):g}")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share, from 0 to 1, not {getattr(self, name):g}")

    @property
    def shares(self) -> dict[str, float]:
        """Return the fields that are shares of patients or studies, from 0 to 1, by name."""
        return {name: getattr(self, name) for name in SHARES}


def write_population(out: str | Path, workers: int | None = None, **options) -> Path:
    """Write phantom studies to the folder `out`; returns its studies.jsonl.

    `options` are Population's. The studies file is complete or not there. Raises ConfigError for a folder that holds
    phantoms already.
    """
    out, asked = Path(out), Population(**options)
    listing = out / "studies.jsonl"
    if listing.exists():
        raise ConfigError(f"{listing} exists; choose another folder or remove it first")
    (out / "images").mkdir(parents=True, exist_ok=True)
    if asked.masks:
        (out / "masks").mkdir(exist_ok=True)
    patients = generate(
        out, asked.studies, workers or os.cpu_count() or 1, seed=asked.seed, prevalence=asked.prevalence,
        size=asked.size, kind=asked.format, masks=asked.masks, wording=asked.wording, split=asked.split,
        **asked.shares,
    )  # fmt: skip
    with write_atomically(listing) as part, part.open("w") as file:
        for lines in bar(patients, "phantoms", asked.studies, size=len, unit="studies"):
            for line in lines:
                file.write(json.dumps(line) + "\n")
    return listing
