"""DICOM, PNG and JPEG -> `Radiograph`: float32 pixels in [0, 1] with dark = air, what the header said, and warnings.

What cannot be read is refused with an InputError, decided in the order container, truncation, modality, frames,
colour, size, pixels (PNG and JPEG show a truncation only when their pixels are decoded). `Limits` are checked before
memory is taken. Nothing that pydicom has to say about a file reaches the screen or a log, because it may quote the
patient's data. `encoder/radiograph/dicom.py` is the DICOM half.
"""

from __future__ import annotations

import logging
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from encoder.radiograph.picture import read_picture
from encoder.radiograph.types import InputError, Limits, Radiograph


def read(path: str | Path, limits: Limits | None = None) -> Radiograph:
    """Read one radiograph. Raises InputError, and nothing else, for whatever the path may hold."""
    path, limits = Path(path), limits or Limits()
    try:
        with quiet():
            data = _read_file(path, limits)
            if data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff":
                return read_picture(data, limits)
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
