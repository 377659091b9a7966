"""What reading a radiograph gives: pixels, header and warnings, or a typed refusal."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias, Union

import numpy as np

from encoder.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from pydicom.dataset import Dataset
    from torch import Tensor

# What `read` reads.
Source: TypeAlias = Union[
    str, os.PathLike[str], bytes, bytearray, memoryview, BinaryIO, "Picture", np.ndarray, "Tensor", "Dataset",
    "Radiograph",
]  # fmt: skip

CODES = (
    "not_an_image", "no_pixel_data", "truncated", "unsupported_transfer_syntax", "unsupported_modality", "multi_frame",
    "colour_image", "too_large", "decompression_bomb", "constant_image", "unsupported_array", "unreadable",
    "decoder_crashed", "decoder_timeout",
)  # fmt: skip


class InputError(UserError):
    """A refused image. `code` is one of CODES; `message` says what is wrong and, where there is one, what helps; `path`
    is the file, or says in words which input in memory it was."""

    def __init__(self, code: str, message: str, path: str | Path = "") -> None:
        super().__init__(code, message, path)
        self.code, self.message, self.path = code, message, Path(path)

    @property
    def sentence(self) -> str:
        """Return the place and the message, for output that shows the code elsewhere."""
        return self.message if self.path == Path() else f"{self.path}: {self.message}"

    def __str__(self) -> str:
        return f"{self.sentence} [{self.code}]"


class Warn(NamedTuple):
    """Warn of a film that was read all the same. `code`: not_chest, lateral, low_resolution,
    unknown_modality, for_processing, burned_in_annotation, not_human, excess_pixel_data; bad_window,
    bad_rescale, header_conflict, damaged_pixels, bad_exif, turned, not_square, more_pictures
    (docs/concepts/dicom.md says when)."""

    code: str
    message: str


@dataclass(frozen=True)
class Limits:
    """Limit what `read` takes in: a larger file is refused with InputError before its pixels are decoded."""

    max_bytes: int = 128 << 20  # of the file; a 40-megapixel 16-bit image has 80 MB
    max_pixels: int = 40_000_000  # rows x columns; the largest flat panels have 19 million, digitised film 30
    max_inflated_bytes: int = 128 << 20  # of a deflated or run-length coded file once expanded; as max_bytes


@dataclass(frozen=True)
class Header:
    """Hold what the file said; None where it said nothing. PNG and JPEG say little more than their size."""

    modality: str | None = None  # DICOM's code: CR, DX, ...
    body_part: str | None = None
    view: str = "unknown"  # PA, AP, frontal, lateral or unknown
    photometric: str | None = None  # MONOCHROME1 or MONOCHROME2, as stored
    age: float | None = None  # years, from PatientAge
    sex: str | None = None  # F or M
    # To keep patients apart; never written to a log, nor shown.
    patient_id: str | None = field(default=None, repr=False)
    # StudyInstanceUID, likewise.
    study_uid: str | None = field(default=None, repr=False)
    rows: int = 0  # pixels, as given: made square and turned
    columns: int = 0
    bits: int = 8  # stored per pixel
    transfer_syntax: str | None = None  # UID
    pixel_spacing_mm: tuple[float, float] | None = None  # of rows, of columns; at the detector if need be


@dataclass(frozen=True)
class Radiograph:
    """Hold one film as `read` returns it: upright greys, what the header says, and warnings."""

    pixels: np.ndarray  # float32 (H, W) in [0, 1], dark = air
    header: Header
    warnings: tuple[Warn, ...] = ()
    # The levels of an 8-bit picture as it is, uint8 (H, W), or (H, W, 3) where its channels differ a little. None for
    # DICOM and 16 bits. `Preprocessing` resizes these, as transformers' processor does, and not `pixels`.
    stored: np.ndarray | None = None

    def __repr__(self) -> str:
        """Say what it is, without its pixels and without a patient's id."""
        codes = ", ".join(w.code for w in self.warnings)
        return f"Radiograph({self._facts()}{f'; warnings: {codes}' if codes else ''})"

    def _repr_html_(self) -> str:
        """Show the film in a notebook, with what is known about it."""
        from encoder.radiograph.html import figure

        warnings = [f"{w.code}: {w.message}" for w in self.warnings]
        return figure(self.pixels, [self._facts()], warnings)

    def _facts(self) -> str:
        h, (H, W) = self.header, self.pixels.shape
        known = (h.modality, h.view if h.view != "unknown" else None, h.body_part)
        return ", ".join([*filter(None, known), f"{H} x {W} pixels", f"{h.bits} bits"])
