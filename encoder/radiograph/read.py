"""DICOM, PNG and JPEG -> `Radiograph`: float32 pixels in [0, 1] with dark = air, what the header said, and warnings.

What cannot be read is refused with an InputError, decided in the order container, truncation, modality, frames,
colour, size, pixels (PNG and JPEG show a truncation only when their pixels are decoded). `Limits` are checked before
memory is taken. Nothing that pydicom has to say about a file reaches the screen or a log, because it may quote the
patient's data. `encoder/radiograph/dicom.py` is the DICOM half.
"""

from __future__ import annotations

import logging
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

CODES = (
    "not_an_image", "no_pixel_data", "truncated", "unsupported_transfer_syntax", "unsupported_modality", "multi_frame",
    "colour_image", "too_large", "decompression_bomb", "constant_image", "unreadable",
)  # fmt: skip

VIEWS = (  # decubitus first: "left lateral decubitus" is a frontal film
    ("frontal", re.compile(r"decub|\b[LR]LD\b", re.I)),
    ("lateral", re.compile(r"\b[LR]?LAT|^ ?[LR]L ?$", re.I)),
    ("PA", re.compile(r"\bPA\b|postero ?anterior", re.I)),
    ("AP", re.compile(r"\bAP\b|antero ?posterior", re.I)),
    ("frontal", re.compile(r"\bfrontal", re.I)),
)
AGE_UNITS = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1, "": 1}  # in a year; some leave the Y out
# Pixels of the shorter side; on fewer, small findings are gone (films have 2,000 to 4,000).
LOW_RESOLUTION = 256
LONGEST = 10  # times the other side; films of the whole spine are 3, and thin strips unfold to anything when resized


class InputError(Exception):
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


def read(path: str | Path, limits: Limits | None = None) -> Radiograph:
    """Read one radiograph. Raises InputError, and nothing else, for whatever the path may hold."""
    path, limits = Path(path), limits or Limits()
    try:
        with quiet():
            data = _read_file(path, limits)
            if data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff":
                return _read_picture(data, limits)
            from encoder.radiograph.dicom import read_dicom  # here, because pictures need no pydicom (0.2 s)

            return read_dicom(data, limits)
    except InputError as error:
        raise InputError(error.code, error.message, path) from None
    except MemoryError:
        raise InputError("too_large", "the memory does not suffice to decode it", path) from None
    except Exception as error:  # the libraries raise anything on hostile input
        message = f"it cannot be decoded ({type(error).__name__})"  # its text may quote the patient's data
        raise InputError("unreadable", message, path) from None


def codecs() -> dict[str, str | bool]:
    """For each DICOM transfer syntax, by name: the library that decodes it here, or False."""
    from encoder.radiograph.dicom import SYNTAXES, can_decode

    return {
        name: (plugin or "pydicom") if can_decode(uid, plugin) else False
        for uid, (name, plugin) in SYNTAXES.items()
    }


def _read_file(path: Path, limits: Limits) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError("unreadable", "it is not a file")
        if status.st_size > limits.max_bytes:
            raise InputError("too_large", f"{status.st_size} bytes, and at most {limits.max_bytes} are read")
        data = path.read_bytes()
    except OSError as error:
        raise InputError("unreadable", error.strerror or type(error).__name__) from None
    if not data:
        raise InputError("not_an_image", "the file is empty")
    return data


# PNG and JPEG


def _read_picture(data: bytes, limits: Limits) -> Radiograph:
    try:
        image = Image.open(BytesIO(data), formats=("PNG", "JPEG"))
        if getattr(image, "n_frames", 1) > 1:
            raise InputError("multi_frame", f"{image.n_frames} frames; give the one that is meant")
        W, H = image.size
        check_pixels(H, W, limits)
        depth, kind = data[24:26] if image.format == "PNG" else (8, 0)
        if depth == 16 and kind != 0:
            message = "a 16-bit picture with colour or transparency channels; save it as plain 16-bit grey"
            raise InputError("colour_image", message)  # Pillow would silently keep 8 bits
        if image.mode in {"CMYK", "YCbCr", "LAB", "HSV"}:
            raise InputError("colour_image", f"a {image.mode} picture, no grey one")
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError("decompression_bomb", "it unfolds to more pixels than any radiograph has") from None
    except InputError:
        raise
    except Exception as error:
        text = str(error)
        if "runcated" in text or "EOF" in text or isinstance(error, EOFError):
            raise InputError("truncated", "the file ends before the image does") from None
        if "too large" in text:
            raise InputError("decompression_bomb", "a text inside it unfolds to too much") from None
        raise InputError("unreadable", f"it cannot be decoded ({text or type(error).__name__})") from None
    stored_HW = _grey(ImageOps.exif_transpose(image))
    low, occurs = levels(stored_HW)
    pixels_HW = look_up(stored_HW, low, np.arange(len(occurs), dtype=np.float64), occurs)
    H, W = pixels_HW.shape
    bits = 8 * stored_HW.itemsize
    return Radiograph(pixels_HW, Header(rows=H, columns=W, bits=bits), tuple(size_warning(H, W)))


def _grey(image: Image.Image) -> np.ndarray:
    """The grey levels (H, W), integers as stored. Pillow's convert("L") would clip 16 bits to 255."""
    if image.mode in {"1", "L"}:
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I"):
        stored_HW = np.asarray(image)
        return stored_HW.astype(np.uint16)  # a PNG has at most 16 bits, in whatever mode Pillow puts them
    channels_HWC = np.asarray(image.convert("RGBA"))
    if channels_HWC[..., 3].min() < 255:
        raise InputError("colour_image", "the picture has transparent parts")
    r_HW, g_HW, b_HW = (channels_HWC[..., c] for c in range(3))
    spread_HW = np.maximum(np.maximum(r_HW, g_HW), b_HW) - np.minimum(np.minimum(r_HW, g_HW), b_HW)
    # YCbCr and back moves a grey by at most 2; the chroma noise of a grey scan stays small, too
    if spread_HW.max() > 16 or spread_HW.mean() > 2:
        raise InputError("colour_image", "the colour channels differ, so it is no plain radiograph")
    return g_HW


def check_pixels(H: int, W: int, limits: Limits) -> None:
    if limits.max_pixels < H * W:
        raise InputError("too_large", f"{H} x {W} pixels, and at most {limits.max_pixels} are read")
    if max(H, W) > LONGEST * min(H, W):
        raise InputError(
            "too_large", f"{H} x {W} pixels: one side is over {LONGEST} times as long as the other"
        )


def levels(stored_HW: np.ndarray) -> tuple[int, np.ndarray]:
    """-> (lowest stored value, for it and each higher one up to the highest whether it occurs)."""
    low, high = int(stored_HW.min()), int(stored_HW.max())
    if low == high:
        raise InputError("constant_image", f"every pixel is {low}")
    occurs = np.zeros(high - low + 1, bool)
    for rows in range(0, len(stored_HW), 128):  # in strips: numpy turns every index into 8 bytes
        occurs[stored_HW[rows : rows + 128].astype(np.intp) - low] = True
    return low, occurs


def look_up(
    stored_HW: np.ndarray, low: int, grey: np.ndarray, occurs: np.ndarray, invert: bool = False
) -> np.ndarray:
    """grey[v - low] for every stored value v, scaled so that what occurs spans [0, 1]: float32 (H, W)."""
    least, most = grey[occurs].min(), grey[occurs].max()
    if not least < most:
        raise InputError("constant_image", "every pixel has the same grey value")
    table = ((grey - least) / (most - least)).clip(0, 1)
    table = (1 - table if invert else table).astype(np.float32)
    pixels_HW = np.empty(stored_HW.shape, np.float32)
    for rows in range(0, len(stored_HW), 128):
        index_HW = stored_HW[rows : rows + 128].astype(np.intp) - low
        np.take(table, index_HW, out=pixels_HW[rows : rows + 128], mode="clip")
    return pixels_HW


def size_warning(H: int, W: int) -> list[Warn]:
    if min(H, W) >= LOW_RESOLUTION:
        return []
    return [Warn("low_resolution", f"only {H} x {W} pixels; small findings cannot be seen")]


def parse_view(text: str) -> str:
    """A view as people write it ("Chest PA", "LATERAL", "CHEST_AP_PORT") -> PA, AP, frontal, lateral or unknown.
    A text that names several, such as "PA and lateral", names none."""
    text = re.sub(r"[\W_]+", " ", text)
    if VIEWS[0][1].search(text):
        return "frontal"
    found = {name for name, pattern in VIEWS if pattern.search(text)}
    if found & {"PA", "AP"}:
        found.discard("frontal")
    return found.pop() if len(found) == 1 else "unknown"


def parse_age(text: str) -> float | None:
    """Years from DICOM's "045Y", "006M", "003W", "010D", or from a plain number; None for anything else."""
    found = re.fullmatch(r"\s*(\d{1,3}(?:\.\d*)?)\s*([DWMY]?)\s*", text.upper())
    years = float(found[1]) / AGE_UNITS[found[2]] if found else None
    return years if years is not None and years <= 120 else None


_quiet_lock, _quiet_depth, _quiet_undo = threading.Lock(), 0, lambda: None


@contextmanager
def quiet() -> Iterator[None]:
    """No word of pydicom's, in warnings or logs, while any thread reads; Pillow's bomb warning becomes an error."""
    global _quiet_depth, _quiet_undo
    with _quiet_lock:
        if _quiet_depth == 0:
            logger, catcher = logging.getLogger("pydicom"), warnings.catch_warnings()
            level = logger.level
            catcher.__enter__()
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            logger.setLevel(logging.CRITICAL + 1)
            _quiet_undo = lambda: (logger.setLevel(level), catcher.__exit__(None, None, None))  # noqa: E731
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_undo()
