"""DICOM, PNG, JPEG, or an image in memory -> `Radiograph`: float32 pixels in [0, 1] with dark = air, what the header
said, and warnings.

Pictures of 8 bits are taken as they are, value / 255, as transformers' image processors take them; `Radiograph.stored`
keeps their levels. DICOM and pictures of 16 bits are read by their header and spread over their range.

What cannot be read is refused with an InputError, decided in the order container, truncation, modality, frames,
colour, size, pixels (PNG and JPEG show a truncation only when their pixels are decoded). `Limits` are checked before
memory is taken. Nothing that pydicom has to say about a file reaches the screen or a log, because it may quote the
patient's data. `encoder/radiograph/dicom.py` is the DICOM half.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import DecompressionBombWarning
from PIL.Image import Image as Picture

from encoder.radiograph.arrays import check, is_tensor, of_array, of_tensor
from encoder.radiograph.grey import check_bytes
from encoder.radiograph.picture import of_image, read_picture
from encoder.radiograph.types import InputError, Limits, Radiograph, Source


def read(source: Source, limits: Limits | None = None) -> Radiograph:
    """Read one radiograph.

    Args:
        source: the path of a DICOM, PNG or JPEG file; the bytes of one; a binary file opened for reading, which is read
            from where it stands; a Pillow image; a NumPy array or torch tensor (arrays.py has the rule of shape and
            range); a pydicom Dataset; or a Radiograph, which is checked and returned.
        limits: what is too large.

    Raises:
        InputError: the source holds no radiograph that can be used. Nothing else is raised, whatever it holds.
        TypeError: the source is none of the above.
    """
    limits, name = limits or Limits(), name_of(source)
    try:
        with quiet(pydicom=False):
            return _read(source, limits)
    except InputError as error:
        raise InputError(error.code, error.message, name) from None
    except MemoryError:
        raise InputError("too_large", "the memory does not suffice to decode it", name) from None
    except Exception as error:  # the libraries raise anything on hostile input
        message = f"it cannot be decoded ({type(error).__name__})"  # its text may quote the patient's data
        raise InputError("unreadable", message, name) from None


def name_of(source: Source) -> str | Path:
    """Name a source for people: its path, or words. Raises TypeError for what `read` does not read."""
    if isinstance(source, str | os.PathLike):
        return Path(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "the bytes given"
    if isinstance(source, Picture):
        return "the picture given"
    if isinstance(source, np.ndarray):
        return "the array given"
    if is_tensor(source):
        return "the tensor given"
    if isinstance(source, Radiograph):
        return "the radiograph given"
    if is_dataset(source):
        return "the data set given"
    if isinstance(source, io.TextIOBase):
        raise TypeError("the file was opened as text; open it for reading bytes: open(path, 'rb')")
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return Path(name) if isinstance(name, str) and name else "the open file given"
    raise TypeError(
        f"an X-ray cannot be read from {type(source).__name__}; accepted are a path, bytes, an open binary file, a "
        "Pillow image, a NumPy array, a torch tensor, a pydicom Dataset and a Radiograph"
    )


def is_dataset(source: object) -> bool:
    """Tell whether `source` is a pydicom Dataset. Does not import pydicom."""
    dataset = sys.modules.get("pydicom.dataset")
    return dataset is not None and isinstance(source, dataset.Dataset)


def _read(source: Any, limits: Limits) -> Radiograph:
    if isinstance(source, Radiograph):
        check(source)
        return source
    if isinstance(source, Picture):
        # mode F holds floating-point numbers, which no format that is read here has
        return of_array(np.asarray(source), limits) if source.mode == "F" else of_image(source, limits)
    if isinstance(source, np.ndarray):
        return of_array(source, limits)
    if is_tensor(source):
        return of_tensor(source, limits)
    # pydicom is imported only where it is needed, because pictures do without it (0.2 s)
    if is_dataset(source):
        _silence_pydicom()
        from encoder.radiograph.dicom import read_dataset

        return read_dataset(source, limits)
    data = _bytes(source, limits)
    if data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff":
        return read_picture(data, limits)
    _silence_pydicom()
    from encoder.radiograph.dicom import read_dicom

    return read_dicom(data, limits)


def codecs() -> dict[str, str | bool]:
    """Return, for each DICOM transfer syntax by name, the library that decodes it here, or False."""
    from encoder.radiograph.decode import SYNTAXES, can_decode

    return {
        name: (plugin or "pydicom") if can_decode(uid, plugin) else False
        for uid, (name, plugin, _) in SYNTAXES.items()
    }


def _bytes(source: Any, limits: Limits) -> bytes:
    """Take all of a file, or what is given of one. Raises InputError."""
    opened = hasattr(source, "read")
    try:
        if opened:
            data = source.read(limits.max_bytes + 1)
            if not isinstance(data, bytes):
                raise InputError("unreadable", f"reading it gave {type(data).__name__}, not bytes")
            check_bytes(len(data), limits)
        elif isinstance(source, str | os.PathLike):
            status = Path(source).stat()
            if not stat.S_ISREG(status.st_mode):
                raise InputError("unreadable", "it is not a file")
            check_bytes(status.st_size, limits)
            data = Path(source).read_bytes()
        else:
            check_bytes(memoryview(source).nbytes, limits)
            data = bytes(source)
    except OSError as error:
        raise InputError("unreadable", error.strerror or type(error).__name__) from None
    except UnicodeEncodeError:
        raise InputError(
            "unreadable", "its path holds a half of a character, which no file name has"
        ) from None
    except ValueError:
        # of an open file, its own errors
        if not isinstance(source, str | os.PathLike) or "\0" not in os.fspath(source):
            raise
        raise InputError("unreadable", "its path holds a null character, which no file name has") from None
    if not data:
        hint = ", or was read to its end; go back to its start by seek(0)" if opened else ""
        raise InputError("not_an_image", f"the file is empty{hint}")
    return data


_quiet_lock, _quiet_depth, _quiet_undo = threading.Lock(), 0, ExitStack()


@contextmanager
def quiet(pydicom: bool = True) -> Iterator[None]:
    """Silence warnings, and with `pydicom` its logs, while any thread reads; Pillow's bomb warning becomes an error."""
    global _quiet_depth
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", DecompressionBombWarning)
        _quiet_depth += 1
    try:
        if pydicom:
            _silence_pydicom()
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_undo.close()


def _silence_pydicom() -> None:
    """Silence pydicom's logs until `quiet`, within which this is called, has ended in all threads.

    Pictures do without: at a change of level, logging goes through all loggers there are.
    """
    logger = logging.getLogger("pydicom")
    with _quiet_lock:
        if logger.level <= logging.CRITICAL:
            _quiet_undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
