"""What reading a radiograph gives: pixels, header and warnings, or a typed refusal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encoder.errors import UserError

CODES = (
    "not_an_image", "no_pixel_data", "truncated", "unsupported_transfer_syntax", "unsupported_modality", "multi_frame",
    "colour_image", "too_large", "decompression_bomb", "constant_image", "unsupported_array", "unreadable",
)  # fmt: skip


class InputError(UserError):
    """A refused file. `code` is one of CODES; `message` says what is wrong and, where there is one, what helps."""

    def __init__(self, code: str, message: str, path: str | Path = "") -> None:
        super().__init__(code, message, path)
        self.code, self.message, self.path = code, message, Path(path)

    def __str__(self) -> str:
        return f"{self.path}: {self.message} [{self.code}]"


class Warn(NamedTuple):
    """Read, but worth knowing. `code`: not_chest, lateral, low_resolution, unknown_modality, for_processing,
    burned_in_annotation, not_human, bad_window or excess_pixel_data."""

    code: str
    message: str


@dataclass(frozen=True)
class Limits:
    max_bytes: int = 128 << 20  # of the file; a 40-megapixel 16-bit image has 80 MB
    max_pixels: int = 40_000_000  # rows x columns; the largest flat panels have 19 million, digitised film 30
    max_inflated_bytes: int = 128 << 20  # of a deflated or run-length coded file once expanded; as max_bytes


@dataclass(frozen=True)
class Header:
    """What the file said; None where it said nothing. PNG and JPEG say little more than their size."""

    modality: str | None = None  # DICOM's code: CR, DX, ...
    body_part: str | None = None
    view: str = "unknown"  # PA, AP, frontal, lateral or unknown
    photometric: str | None = None  # MONOCHROME1 or MONOCHROME2, as stored
    age: float | None = None  # years, from PatientAge
    sex: str | None = None  # F or M
    patient_id: str | None = None  # to keep patients apart; never written to a log
    study_uid: str | None = None  # StudyInstanceUID, likewise
    rows: int = 0  # pixels
    columns: int = 0
    bits: int = 8  # stored per pixel
    transfer_syntax: str | None = None  # UID
    pixel_spacing_mm: tuple[float, float] | None = None  # of rows, of columns; at the detector if need be


@dataclass(frozen=True)
class Radiograph:
    pixels: np.ndarray  # float32 (H, W) in [0, 1], dark = air
    header: Header
    warnings: tuple[Warn, ...] = ()
