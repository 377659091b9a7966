"""The DICOM half of `encoder/radiograph/reader.py`: what is refused, and the order of the steps.

The steps are DICOM's (PS3.3 C.11): modality LUT or rescale, VOI LUT or window, then inversion of MONOCHROME1, decided
by PhotometricInterpretation alone (PresentationLUTShape says the same once more, so using it too would invert twice),
then min-max. Every step maps one stored value to one grey value, so they run in float64 over the few thousand stored
values that occur, and the image is a single look-up. docs/concepts/dicom.md says what is done with each attribute.

parse.py finds header and pixel data, decode.py decodes, stored.py and scale.py make grey values, geometry.py turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BufferedIOBase
from types import NoneType
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from encoder.radiograph import decode, geometry, palette, stored
from encoder.radiograph.codestream import STARTS, another_follows, describe
from encoder.radiograph.decode import RLE, SYNTAXES, Job
from encoder.radiograph.elements import integer, items, text
from encoder.radiograph.grey import check_bytes, check_pixels, levels, look_up, size_warning
from encoder.radiograph.parse import (
    BIG_ENDIAN,
    EXPLICIT,
    FLOATING,
    FRAGMENT,
    PIXEL_DATA,
    PIXELS,
    Parsed,
    check_class,
    fragments_of,
    parse,
)
from encoder.radiograph.picture import grey_of_channels
from encoder.radiograph.scale import grey_levels, padding
from encoder.radiograph.types import Header, InputError, Limits, Radiograph, Warn
from encoder.radiograph.words import parse_age, parse_view

# Digital radiographs; OT is what secondary captures of them say, and some archives drop the tag.
RADIOGRAPHS = {"CR", "DX", "DR", "RG"}
UNKNOWN_MODALITY = {"", "OT", "SC", "HC"}
# SOP classes that a file without a telling modality may have: CR, DX for presentation and processing, secondary capture
RADIOGRAPH_CLASSES = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(1|1\.1|1\.1\.1|7|7\.\d)")
STORAGE_CLASSES = "1.2.840.10008.5.1.4."
MONOCHROME = {"MONOCHROME1", "MONOCHROME2"}
# Grey pictures are saved in these, too; whether they are grey, their channels show.
COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
PALETTE = "PALETTE COLOR"

CHEST = re.compile(r"chest|thora|tora[xc]|lung|pulm|\brib|stern|heart|card|cxr|clavic|mediast", re.I)
OTHER_PART = re.compile(
    r"teeth|tooth|dental|skull|\bhead|\bneck|abdom|pelvi|\bhip\b|knee|ankle|\bfoot|\bfeet|\bhand|wrist|elbow|shoulder"
    r"|extremit|\bleg|\barm|femur|tibia|fibula|humer|spine|mammo|breast|finger|\btoe|cervical|lumbar",
    re.I,
)
NO_PART = {"", "UNKNOWN", "OTHER", "UNDEFINED", "NONE", "NA", "N/A", "DEFAULT"}


class Pixels(NamedTuple):
    """Hold decoded pixels before any grey scale: integers (H, W) of stored values, and warnings."""

    stored_HW: np.ndarray
    bits: int
    notes: list[Warn]
    # a grey picture of three channels, whose values are greys already
    is_picture: bool = False


def read_dicom(data: bytes, limits: Limits) -> Radiograph:
    """Read the bytes of a DICOM file. Raises InputError, or what the libraries raise (see `radiograph.read`)."""
    return _radiograph(parse(data, limits), limits)


def read_dataset(dataset: Dataset, limits: Limits) -> Radiograph:
    """Read a pydicom Dataset in memory, which is left as it is. Raises as `read_dicom` does."""
    value = _value(dataset, limits)
    # copy(dataset) would share the elements
    header = Dataset({tag: element for tag, element in dataset.items() if tag not in PIXELS})
    header.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
    check_class(header.file_meta)
    if not value and any(tag in dataset for tag in PIXELS - {PIXEL_DATA}):
        raise InputError("unreadable", FLOATING)
    syntax = text(header.file_meta, "TransferSyntaxUID")
    fragmented = value[:4] == FRAGMENT and syntax in SYNTAXES and SYNTAXES[syntax][1] is not None
    if not syntax:
        little = getattr(dataset, "original_encoding", (None, None))[1] is not False
        syntax = EXPLICIT if little else BIG_ENDIAN
    # a data set in memory may have no VR yet, or two: "OB or OW"
    words = bool(value) and dataset["PixelData"].VR == "OW"
    return _radiograph(Parsed(header, syntax, value, 0, len(value), fragmented, words), limits)


def _value(dataset: Dataset, limits: Limits) -> bytes:
    """Return the pixel data of a Dataset in memory: bytes, or a buffer (pydicom 3), which is read from where
    it stands and put back. Raises InputError."""
    value = dataset.get("PixelData")
    if isinstance(value, BufferedIOBase):
        here = value.tell()
        try:
            value = value.read(limits.max_bytes + 1)
        finally:
            dataset["PixelData"].value.seek(here)
    if not isinstance(value, bytes | bytearray | NoneType):
        raise InputError("unreadable", f"PixelData holds {type(value).__name__}, not bytes")
    check_bytes(len(value or b""), limits)
    return bytes(value or b"")


def hanging(header: Dataset, limits: Limits | None = None) -> tuple[tuple[int, int], geometry.Turns]:
    """Return ((H, W) to which the stored pixels are resampled, how they are turned then): what `read` does
    with a DICOM file with this header, for masks that were drawn on its stored pixels. Decodes nothing."""
    H, W = integer(header, "Rows", 0), integer(header, "Columns", 0)
    if H < 1 or W < 1:
        return (0, 0), (False, False, False)
    shape, _ = geometry.squared_shape(header, H, W, (limits or Limits()).max_pixels)
    return shape, geometry.turns(header, _view(header))[0]


def _radiograph(parsed: Parsed, limits: Limits) -> Radiograph:
    """Check and decode what `parse` found."""
    header = parsed.header
    modality = text(header, "Modality").upper()
    sop_class = text(header, "SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID")
    notes = _check_modality(modality, sop_class)
    frames = text(header, "NumberOfFrames") or "1"
    if not frames.isdecimal():
        raise InputError("unreadable", "NumberOfFrames is not a number")
    if len(frames.lstrip("0")) > 1 or int(frames[-1]) > 1:
        raise InputError("multi_frame", f"{frames[:16]} frames; give the one that is meant")
    if parsed.end <= parsed.start:
        raise InputError("no_pixel_data", "the DICOM object has no pixel data")
    photometric = text(header, "PhotometricInterpretation").upper()
    samples = integer(header, "SamplesPerPixel", 1)
    if not _may_be_grey(header, photometric, samples):
        raise InputError("colour_image", f"a colour image ({photometric[:16]}, {samples} samples a pixel)")
    H, W = integer(header, "Rows", 0), integer(header, "Columns", 0)
    if H < 1 or W < 1:
        raise InputError("no_pixel_data", "the DICOM object describes no image (no Rows and Columns)")
    check_pixels(H, W, limits)
    if not photometric:
        raise InputError("unreadable", "no PhotometricInterpretation, so black cannot be told from white")

    # The film as it is stored.
    pixels = _pixels(parsed, photometric, samples, H, W, limits)
    notes += pixels.notes
    # How it hangs.
    view = _view(header)
    shape, said = geometry.squared_shape(header, H, W, limits.max_pixels)
    made, also_said = geometry.turns(header, view)
    stored_HW = geometry.turn(pixels.stored_HW, made)

    # Its greys.
    low, occurs = levels(stored_HW)
    values = np.arange(low, low + len(occurs), dtype=np.float64)
    if pixels.is_picture:
        pixels_HW = look_up(stored_HW, low, values, occurs)
    else:
        frame = padding(header, low, occurs)
        shown = grey_levels(header, values, occurs & ~frame)
        notes += shown.notes
        # a value that does not touch the border frames nothing; it may be the brightest bone
        dark = frame & levels_at_border(stored_HW, low, len(occurs))
        inverted = photometric == "MONOCHROME1"
        pixels_HW = look_up(stored_HW, low, shown.grey, occurs & ~frame, inverted, dark)
    pixels_HW = geometry.resample(pixels_HW, (shape[1], shape[0]) if made[0] else shape)
    spacing = geometry.spacing(header)
    # of the pixels as they are given
    if spacing is not None and shape != (H, W):
        spacing = (min(spacing), min(spacing))
    elif spacing is not None and made[0]:
        spacing = (spacing[1], spacing[0])

    rows, columns = pixels_HW.shape
    facts = Header(
        modality=modality or None,
        body_part=text(header, "BodyPartExamined") or None,
        view=view,
        photometric=photometric,
        age=parse_age(text(header, "PatientAge")),
        patient_id=text(header, "PatientID") or None,
        study_uid=text(header, "StudyInstanceUID") or None,
        sex={"F": "F", "M": "M"}.get(text(header, "PatientSex").upper()),
        rows=rows,
        columns=columns,
        bits=pixels.bits,
        transfer_syntax=parsed.syntax,
        pixel_spacing_mm=spacing,
    )
    notes += [*said, *also_said]
    return Radiograph(pixels_HW, facts, (*notes, *_subject_warnings(header, view), *size_warning(H, W)))


def _may_be_grey(header: Dataset, photometric: str, samples: int) -> bool:
    """Tell whether the header says a grey image, or one of 8-bit colours, which may be greys."""
    if samples == 1 and photometric == PALETTE:
        return palette.is_there(header)
    if samples == 3 and photometric in COLOUR:
        return integer(header, "BitsAllocated", 0) == 8
    return samples == 1 and photometric in {*MONOCHROME, ""}


def _pixels(parsed: Parsed, photometric: str, samples: int, H: int, W: int, limits: Limits) -> Pixels:
    """Decode the one frame."""
    header, syntax = parsed.header, parsed.syntax
    if syntax not in SYNTAXES:
        raise InputError("unsupported_transfer_syntax", f"{UID(syntax[:64]).name} cannot be decoded")
    name, plugin, _ = SYNTAXES[syntax]
    if parsed.fragmented != (plugin is not None):
        found = "compressed" if parsed.fragmented else "uncompressed"
        raise InputError("unreadable", f"the pixels are {found}, but the transfer syntax says {name}")
    value = parsed.data[parsed.start : parsed.end]
    frame = _one_frame(value, syntax) if parsed.fragmented else b""
    if parsed.fragmented and syntax != RLE:
        return _from_stream(header, frame, syntax, photometric, samples, H, W)
    allocated, bits = integer(header, "BitsAllocated", 0), integer(header, "BitsStored", 0)
    if allocated not in (8, 16) or not 1 < bits <= allocated:
        got = f"{bits} bits a pixel, in {allocated} allocated"
        raise InputError("unreadable", f"{got}; radiographs have 8 to 16, in 8 or 16 allocated")
    notes = []
    if parsed.fragmented:
        most = limits.max_inflated_bytes
        if len(frame) * 64 > most and _unpacked_length(frame) > most:
            raise InputError("decompression_bomb", f"{len(frame)} bytes of RLE unfold to more than {most}")
    else:
        wide = 2 if photometric == "YBR_FULL_422" else samples
        excess = len(value) - H * W * wide * (allocated // 8)
        if excess < 0:
            raise InputError("unreadable", f"{len(value)} bytes of pixel data, too few for {H} x {W} pixels")
        if excess > 1:
            notes.append(Warn("excess_pixel_data", f"{excess} bytes follow the last pixel and are ignored"))
    cells = decode.unpack(header, value, syntax, samples, parsed.words)
    if samples == 3:
        return Pixels(grey_of_channels(cells), 8, notes, is_picture=True)
    stored_HW, more = stored.of_cells(cells, header)
    return _through_palette(header, photometric, Pixels(stored_HW, bits, notes + more))


def _from_stream(
    header: Dataset, frame: bytes, syntax: str, photometric: str, samples: int, H: int, W: int
) -> Pixels:
    """Decode a compressed frame, and believe it where the header says something else."""
    name, plugin, kinds = SYNTAXES[syntax]
    stream = describe(frame)
    if stream is None:
        if plugin and not decode.can_decode(syntax, plugin):
            raise InputError("unsupported_transfer_syntax", f"{name}: to decode it, {decode.INSTALL[plugin]}")
        raise InputError("unreadable", f"the compressed image has no size, but the header says {H} x {W}")
    if (stream.rows, stream.columns) != (H, W):
        found = f"{stream.rows} x {stream.columns}"
        raise InputError("unreadable", f"the compressed image is {found}, but the header says {H} x {W}")
    if stream.components not in (1, 3):
        raise InputError("colour_image", f"a colour image ({stream.components} samples a pixel)")
    found_samples, notes = decode.decode(Job(frame, syntax, stream, rgb=photometric == "RGB"))
    said = list(notes)
    if stream.kind not in kinds:
        said.append(
            Warn(
                "header_conflict", f"the transfer syntax says {name}, which the stream is not; it is believed"
            )
        )
    if stream.components != samples:
        message = f"the header says {samples} samples a pixel, the compressed image has {stream.components}"
        said.append(Warn("header_conflict", f"{message}, which is believed"))
    if found_samples.ndim == 3:
        if stream.precision != 8:
            raise InputError("colour_image", f"a colour image of {stream.precision} bits")
        found_samples = grey_of_channels(found_samples)
        if samples == 3:
            return Pixels(found_samples, 8, said, is_picture=True)
        # the header speaks of one channel: what it says of greys is of the one that the three are
    stored_HW, more = stored.of_stream(found_samples, stream, header)
    bits = integer(header, "BitsStored", 0)
    bits = bits if 1 < bits <= 16 and not more else stream.precision
    return _through_palette(header, photometric, Pixels(stored_HW, bits, said + more, samples == 3))


def _through_palette(header: Dataset, photometric: str, pixels: Pixels) -> Pixels:
    """Look stored values up in a palette whose three tables agree (PS3.3 C.7.9), and leave others as they are."""
    if photometric != PALETTE:
        return pixels
    low, high = int(pixels.stored_HW.min()), int(pixels.stored_HW.max())
    values = np.arange(low, high + 1, dtype=np.float64)
    colours, bits = palette.channels(header, values)
    table = colours[pixels.stored_HW.astype(np.intp) - low]
    level = 257 if bits > 8 else 1
    return Pixels(grey_of_channels(table.astype(np.int32), level), pixels.bits, pixels.notes, is_picture=True)


def _one_frame(value: bytes, syntax: str) -> bytes:
    """Join the fragments of the one frame. A frame may lie in many (PS3.5 A.4), but only its first begins as a
    codestream does; a frame of RLE is one fragment (PS3.5 G). Raises InputError for several frames that the header
    calls one."""
    fragments = [fragment for fragment in fragments_of(value) if fragment]
    begun = len(fragments) if syntax == RLE else sum(fragment.startswith(STARTS) for fragment in fragments)
    frame = b"".join(fragments)
    # one fragment, in which a second image follows the first
    if syntax != RLE and begun == 1:
        begun += another_follows(frame)
    if begun > 1:
        raise InputError(
            "multi_frame", f"{begun} compressed frames, which the header calls one; give one alone"
        )
    return frame


def levels_at_border(stored_HW: np.ndarray, low: int, n: int) -> np.ndarray:
    """Tell which of the `n` stored values from `low` on occur in the outermost rows and columns: bool
    (n,)."""
    occurs = np.zeros(n, bool)
    for line in (stored_HW[0], stored_HW[-1], stored_HW[:, 0], stored_HW[:, -1]):
        occurs[line.astype(np.intp) - low] = True
    return occurs


def _check_modality(modality: str, sop_class: str) -> list[Warn]:
    if modality in RADIOGRAPHS:
        return []
    if modality not in UNKNOWN_MODALITY:
        raise InputError("unsupported_modality", f"modality {modality[:16]} is not a radiograph (CR or DX)")
    if sop_class.startswith(STORAGE_CLASSES) and not RADIOGRAPH_CLASSES.fullmatch(sop_class):
        raise InputError("unsupported_modality", f"{UID(sop_class).name} is not a radiograph (CR or DX)")
    what = f"the modality is {modality}" if modality else "no modality is given"
    return [Warn("unknown_modality", f"{what}; read as a radiograph")]


def _unpacked_length(frame: bytes) -> int:
    """Bytes that PackBits data (PS3.5 G.3) behind the 64-byte RLE header unfold to."""
    total, position = 0, 64
    while position < len(frame):
        count = frame[position]
        total += count + 1 if count < 128 else 257 - count if count > 128 else 0
        position += count + 2 if count < 128 else 2 if count > 128 else 1
    return total


# What the header says


def _view(header: Dataset) -> str:
    coded = items(header, "ViewCodeSequence")
    texts = [text(header, "ViewPosition"), *(text(item, "CodeMeaning") for item in coded)]
    texts += [text(header, "SeriesDescription"), text(header, "ProtocolName")]
    return next((view for view in map(parse_view, texts) if view != "unknown"), "unknown")


def _subject_warnings(header: Dataset, view: str) -> Iterator[Warn]:
    part = text(header, "BodyPartExamined")
    if part.upper() not in NO_PART:
        if not CHEST.search(part):
            yield Warn("not_chest", f"the header says body part {part[:16]}")
    else:
        keys = ("StudyDescription", "SeriesDescription", "ProtocolName")
        texts = " ".join(text(header, key) for key in keys)
        if OTHER_PART.search(texts) and not CHEST.search(texts):
            yield Warn("not_chest", "the header's description speaks of another body part")
    species, breed = text(header, "PatientSpeciesDescription"), text(header, "PatientBreedDescription")
    if breed or (species and not re.search(r"human|homo sapiens", species, re.I)):
        yield Warn("not_human", "the header names an animal species or breed")
    if view == "lateral":
        yield Warn("lateral", "a lateral view")
    if text(header, "PresentationIntentType").upper() == "FOR PROCESSING":
        yield Warn("for_processing", "raw detector data, with another contrast than a radiologist sees")
    if text(header, "BurnedInAnnotation").upper() == "YES":
        yield Warn("burned_in_annotation", "text is burned into the image, and may name the patient")
