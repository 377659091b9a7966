"""Compressed bytes -> samples.

What decodes in C or C++ runs in a process of its own (isolated.py). Baseline JPEG does not: libjpeg-turbo, which also
reads JPEG pictures, is not known to end a process.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from encoder.radiograph import isolated
from encoder.radiograph.codestream import Kind, Stream, tiles_are_whole
from encoder.radiograph.elements import integer, text
from encoder.radiograph.jpeg import missing_part, open_jpeg
from encoder.radiograph.parse import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT
from encoder.radiograph.types import InputError, Warn

RLE = "1.2.840.10008.1.2.5"
JPEG_12BIT = "1.2.840.10008.1.2.4.51"
LOSSLESS = "1.2.840.10008.1.2.4.70"
# How far from 128 the chrominance of a grey picture may be, after a lossy codec.
GREY_CHROMA = 8
# Transfer syntax -> (name, pydicom decoding plugin, codings of the stream; None where pydicom needs no plugin)
SYNTAXES: dict[str, tuple[str, str | None, tuple[Kind, ...]]] = {
    IMPLICIT: ("implicit little endian", None, ()),
    EXPLICIT: ("explicit little endian", None, ()),
    BIG_ENDIAN: ("explicit big endian", None, ()),
    DEFLATED: ("deflated", None, ()),
    RLE: ("RLE", "pydicom", ()),
    "1.2.840.10008.1.2.4.50": ("JPEG baseline", "pillow", ("dct", "progressive")),
    JPEG_12BIT: ("JPEG extended, 12 bit", "pylibjpeg", ("dct", "progressive")),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless", "gdcm", ("lossless",)),
    LOSSLESS: ("JPEG lossless SV1", "gdcm", ("lossless",)),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS lossless", "gdcm", ("jpeg_ls",)),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS near-lossless", "gdcm", ("jpeg_ls",)),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 lossless", "pillow", ("jpeg_2000",)),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", "pillow", ("jpeg_2000",)),
}
# Coding -> the transfer syntax by which pydicom is asked to decode it, where the file's is of another coding
SYNTAX_OF: dict[Kind, str] = {
    "dct": JPEG_12BIT,
    "lossless": LOSSLESS,
    "jpeg_ls": "1.2.840.10008.1.2.4.80",
    "jpeg_2000": "1.2.840.10008.1.2.4.90",
}
INSTALL = {
    "pillow": "pip install pillow",
    "gdcm": "pip install python-gdcm",
    "pylibjpeg": "pip install cxr-vlm[jpeg12] (the decoder is GPL-3.0, hence not a default)",
}


class Decoded(NamedTuple):
    """Hold the samples of one frame, and the warnings that decoding it gave."""

    samples: np.ndarray  # integers (H, W), or (H, W, 3); as the stream has them, of the stream's signedness
    notes: tuple[Warn, ...] = ()


@dataclass(frozen=True)
class Job:
    """One compressed frame and what is known of it."""

    frame: bytes
    syntax: str
    stream: Stream
    # The three channels are red, green and blue, and not luminance and chrominance.
    rgb: bool = False


def can_decode(syntax: str, plugin: str | None) -> bool:
    """Tell whether `plugin` (None: none is needed) is installed and decodes this transfer syntax UID."""
    return plugin is None or plugin in get_decoder(syntax).available_plugins


def plugin_of(stream: Stream) -> tuple[str, str]:
    """Return (transfer syntax, pydicom plugin) of a library that decodes the stream. Raises InputError."""
    kind, precision = stream.kind, stream.precision
    if kind is None:
        raise InputError(
            "unsupported_transfer_syntax", "the stream has a rare JPEG coding, which nothing decodes"
        )
    # gdcm ends the process on fewer than 8 bits, or on more than 16
    possible = (8, 12) if kind in ("dct", "progressive") else range(2 if kind == "jpeg_2000" else 8, 17)
    if precision not in possible:
        raise InputError(
            "unreadable", f"the compressed image says {precision} bits a pixel, which cannot be decoded"
        )
    if kind in ("dct", "progressive"):
        return JPEG_12BIT, "pillow" if precision == 8 else "pylibjpeg"
    return SYNTAX_OF[kind], "pillow" if kind == "jpeg_2000" else "gdcm"


def decode(job: Job, here: bool = False) -> Decoded:
    """Decode a frame by a library in C, in a process of its own if that may break down.

    Args:
        here: in this process in any case, which a damaged frame may end.

    Raises:
        InputError: it cannot be decoded.
    """
    plain, plugin = plugin_of(job.stream)
    name, _, kinds = SYNTAXES[job.syntax]
    syntax = job.syntax if job.stream.kind in kinds and plain != JPEG_12BIT else plain
    if not can_decode(syntax, plugin):
        raise InputError("unsupported_transfer_syntax", f"{name}: to decode it, {INSTALL[plugin]}")
    frame = job.frame
    # some writers end the scan at coefficient 0; in a sequential one it can only be 63
    if job.syntax == JPEG_12BIT and job.stream.kind == "dct":
        frame = re.sub(rb"(\xff\xda\0\x08\x01..\0)\0", rb"\1" b"\x3f", frame, count=1, flags=re.S)
    if plugin == "pillow" and plain == JPEG_12BIT:
        return _jpeg(frame, name, job.rgb)
    if job.stream.kind == "jpeg_2000" and not tiles_are_whole(frame):
        raise InputError("truncated", f"a part of the compressed image is missing ({name})")
    try:
        if here or not isolated.POSSIBLE:
            with heard() as words:
                samples = by_pydicom(frame, syntax, plugin, job.stream)
            said = "".join(words)
        else:
            samples, said = isolated.ask(frame, syntax, plugin, job.stream, name)
    except InputError:
        raise
    # its message speaks of the codec and of numbers only
    except Exception as error:
        raise InputError("unreadable", _sentence(name, error)) from None
    if job.stream.signed:
        # Pillow lifts signed samples above zero
        samples = samples.astype(np.int32) - (1 << (job.stream.precision - 1))
    return Decoded(samples, tuple(_judge(said, samples)))


def unpack(header: Dataset, value: bytes, syntax: str, samples: int, words: bool = False) -> np.ndarray:
    """Take pixels that are not compressed, or run-length coded, out of their cells: unsigned (H, W), or (H, W, 3).
    `words`: they have VR OW, so that big endian swaps the bytes of 8-bit pixels, too. Raises InputError."""
    name, plugin, _ = SYNTAXES[syntax]
    rows, columns, allocated = (integer(header, key, 0) for key in ("Rows", "Columns", "BitsAllocated"))
    facts = _facts(rows, columns, allocated, allocated, syntax, samples)
    if samples == 3:
        facts.PlanarConfiguration = 1 if integer(header, "PlanarConfiguration", 0) == 1 else 0
        facts.PhotometricInterpretation = text(header, "PhotometricInterpretation").upper()
    facts.add_new(0x7FE00010, "OB" if plugin or (allocated == 8 and not words) else "OW", value)
    facts["PixelData"].is_undefined_length = plugin is not None
    try:
        return _as_array(facts, syntax, plugin or "")
    except Exception as error:
        raise InputError("unreadable", _sentence(name, error)) from None


def _jpeg(frame: bytes, name: str, rgb: bool) -> Decoded:
    try:
        image, feed = open_jpeg(frame)
        # Pillow takes channels for luminance and chrominance where no Adobe marker says what they are
        if rgb and image.mode == "RGB" and "adobe_transform" not in image.info:
            image.draft("YCbCr", image.size)
        image.load()
        samples = np.asarray(image)
        # some writers say red, green and blue of luminance and chrominance
        if image.mode == "YCbCr" and np.abs(samples[..., 1:].astype(np.int16) - 128).max() <= GREY_CHROMA:
            samples = np.repeat(samples[..., :1], 3, axis=2)
    except Exception as error:
        if "runcated" in str(error):
            raise InputError("truncated", f"the compressed image ends early ({name})") from None
        raise InputError("unreadable", _sentence(name, error)) from None
    return Decoded(samples, tuple(feed.check(image)))


def by_pydicom(frame: bytes, syntax: str, plugin: str, stream: Stream) -> np.ndarray:
    """Decode a frame in this process: integers (H, W), or (H, W, 3). Raises what pydicom raises."""
    # the container in which the libraries give samples follows from their precision
    allocated = 8 if stream.precision <= 8 else 16
    facts = _facts(stream.rows, stream.columns, allocated, stream.precision, syntax, stream.components)
    if stream.components == 3:
        facts.PlanarConfiguration, facts.PhotometricInterpretation = 0, "RGB"
    facts.add_new(0x7FE00010, "OB", encapsulate([frame]))
    facts["PixelData"].is_undefined_length = True
    return _as_array(facts, syntax, plugin)


def _as_array(facts: Dataset, syntax: str, plugin: str) -> np.ndarray:
    options: dict[str, Any] = {"decoding_plugin": plugin, "allow_excess_frames": False, "raw": True}
    # what the bits mean is settled in stored.py
    options |= {"correct_unused_bits": False, "apply_j2k_sign_correction": False}
    # channels are asked for as red, green and blue
    if facts.SamplesPerPixel == 3 and facts.PhotometricInterpretation != "RGB":
        options["raw"] = False
    samples, _ = get_decoder(syntax).as_array(facts, index=0, **options)
    # in this machine's byte order
    return samples.astype(samples.dtype.newbyteorder("="), copy=False)


def _facts(rows: int, columns: int, allocated: int, stored: int, syntax: str, samples: int) -> Dataset:
    """What pydicom's decoders ask of a header. The samples are unsigned, whatever they mean."""
    facts = Dataset()
    facts.file_meta = FileMetaDataset()
    facts.file_meta.TransferSyntaxUID = UID(syntax)
    facts.set_original_encoding(False, syntax != BIG_ENDIAN)
    facts.Rows, facts.Columns, facts.SamplesPerPixel = rows, columns, samples
    facts.BitsAllocated, facts.BitsStored, facts.HighBit = allocated, stored, stored - 1
    facts.PixelRepresentation, facts.PhotometricInterpretation = 0, "MONOCHROME2"
    return facts


def _sentence(name: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[-1].strip() or type(error).__name__
    # what is left of a decoder that gave up; Pillow also quotes the object it was given, with its address
    if any(words in reason for words in ("NoneType", "broken data stream", "cannot identify")):
        reason = "the stream is damaged or ends early"
    return f"the pixels cannot be decoded ({name}; {reason})"


def _judge(said: str, samples: np.ndarray) -> Iterator[Warn]:
    """What libjpeg's words mean for the image. Raises InputError where its pixels are made up."""
    if "premature end" in said:
        raise InputError("truncated", missing_part(samples))
    if "bad Huffman code" in said:
        raise InputError("unreadable", "the compressed image is damaged: it holds codes that mean nothing")
    if "Corrupt JPEG" in said:
        yield Warn(
            "damaged_pixels", "the decoder found the compressed image damaged; a part may be displaced"
        )


_hearing = threading.Lock()


@contextmanager
def heard() -> Iterator[list[str]]:
    """Catch what a library in C writes to the process's standard error, which is how gdcm and its libjpeg speak.

    gdcm holds the interpreter's lock while it decodes, so that hardly anything else can speak meanwhile.
    """
    said: list[str] = []
    with _hearing, tempfile.TemporaryFile() as file:
        try:
            before = os.dup(2)
        except OSError:
            # there is no standard error to keep clean
            yield said
            return
        try:
            os.dup2(file.fileno(), 2)
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            said.append(file.read(10_000).decode("latin-1"))
