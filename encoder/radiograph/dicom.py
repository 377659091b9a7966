"""The DICOM half of `encoder/radiograph/reader.py`: header, limits, decoding, and the grey-scale pipeline.

The pipeline is DICOM's (PS3.3 C.11): modality LUT or rescale, VOI LUT or window, then inversion of MONOCHROME1,
decided by PhotometricInterpretation alone (PresentationLUTShape says the same once more, so using it too would invert
twice), then min-max. Every step maps one stored value to one grey value, so the pipeline runs in float64 over the few
thousand stored values that occur, and the image is a single look-up.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset as parse_dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from encoder.radiograph.grey import check_bytes, check_pixels, levels, look_up, size_warning
from encoder.radiograph.types import Header, InputError, Limits, Radiograph, Warn
from encoder.radiograph.words import parse_age, parse_view

# Digital radiographs; OT is what secondary captures of them say, and some archives drop the tag.
RADIOGRAPHS = {"CR", "DX", "DR", "RG"}
UNKNOWN_MODALITY = {"", "OT", "SC", "HC"}
# SOP classes that a file without a telling modality may have: CR, DX for presentation and processing, secondary capture
RADIOGRAPH_CLASSES = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(1|1\.1|1\.1\.1|7|7\.\d)")
STORAGE_CLASSES = "1.2.840.10008.5.1.4."
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
RLE = "1.2.840.10008.1.2.5"
JPEG_12BIT = "1.2.840.10008.1.2.4.51"
# Transfer syntax -> (name, pydicom decoding plugin; None where pydicom needs none)
SYNTAXES = {
    IMPLICIT: ("implicit little endian", None),
    EXPLICIT: ("explicit little endian", None),
    BIG_ENDIAN: ("explicit big endian", None),
    DEFLATED: ("deflated", None),
    RLE: ("RLE", "pydicom"),
    "1.2.840.10008.1.2.4.50": ("JPEG baseline", "pillow"),
    JPEG_12BIT: ("JPEG extended, 12 bit", "pylibjpeg"),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless", "gdcm"),
    "1.2.840.10008.1.2.4.70": ("JPEG lossless SV1", "gdcm"),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS lossless", "gdcm"),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS near-lossless", "gdcm"),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 lossless", "pillow"),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", "pillow"),
}
INSTALL = {
    "pillow": "pip install pillow",
    "gdcm": "pip install python-gdcm",
    "pylibjpeg": "pip install cxr-vlm[jpeg12] (the decoder is GPL-3.0, hence not a default)",
}

CHEST = re.compile(r"chest|thora|tora[xc]|lung|pulm|\brib|stern|heart|card|cxr|clavic|mediast", re.I)
OTHER_PART = re.compile(
    r"teeth|tooth|dental|skull|\bhead|\bneck|abdom|pelvi|\bhip\b|knee|ankle|\bfoot|\bfeet|\bhand|wrist|elbow|shoulder"
    r"|extremit|\bleg|\barm|femur|tibia|fibula|humer|spine|mammo|breast|finger|\btoe|cervical|lumbar",
    re.I,
)
# FloatPixelData, DoubleFloatPixelData, PixelData
PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
FRAGMENT = b"\xfe\xff\x00\xe0"
FLOATING = "the pixels are floating-point numbers, which no radiograph has"
NO_PART = {"", "UNKNOWN", "OTHER", "UNDEFINED", "NONE", "NA", "N/A", "DEFAULT"}


def can_decode(syntax: str, plugin: str | None) -> bool:
    return plugin is None or plugin in get_decoder(syntax).available_plugins


def read_dicom(data: bytes, limits: Limits) -> Radiograph:
    """Read the bytes of a DICOM file. Raises InputError, or what the libraries raise (see `radiograph.read`)."""
    return _radiograph(*_parse(data, limits), limits)


def read_dataset(dataset: Dataset, limits: Limits) -> Radiograph:
    """Read a pydicom Dataset in memory, which is left as it is. Raises as `read_dicom` does."""
    value = dataset.get("PixelData") or b""
    check_bytes(len(value), limits)
    # copy(dataset) would share the elements
    header = Dataset({tag: element for tag, element in dataset.items() if tag not in PIXELS})
    header.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
    _check_class(header.file_meta)
    if not value and any(tag in dataset for tag in PIXELS):
        raise InputError("unreadable", FLOATING)
    syntax = _string(header.file_meta, "TransferSyntaxUID")
    fragmented = value[:4] == FRAGMENT and SYNTAXES.get(syntax, ("", ""))[1] is not None
    if not syntax:
        little = getattr(dataset, "original_encoding", (None, None))[1] is not False
        syntax = EXPLICIT if little else BIG_ENDIAN
    return _radiograph(header, syntax, value, 0, len(value), fragmented, limits)


def _radiograph(
    header: Dataset, syntax: str, data: bytes, start: int, end: int, fragmented: bool, limits: Limits
) -> Radiograph:
    """Check and decode what `_parse` found."""
    modality = _string(header, "Modality").upper()
    sop_class = _string(header, "SOPClassUID") or _string(header.file_meta, "MediaStorageSOPClassUID")
    notes = _check_modality(modality, sop_class)
    frames = _string(header, "NumberOfFrames") or "1"
    if not frames.isdecimal():
        raise InputError("unreadable", "NumberOfFrames is not a number")
    if int(frames) > 1:
        raise InputError("multi_frame", f"{frames} frames; give the one that is meant")
    if end <= start:
        raise InputError("no_pixel_data", "the DICOM object has no pixel data")
    photometric = _string(header, "PhotometricInterpretation").upper()
    samples = _integer(header, "SamplesPerPixel", 1)
    if samples != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2", ""}:
        raise InputError("colour_image", f"a colour image ({photometric[:16]}, {samples} samples a pixel)")
    H, W, bits = (_integer(header, key, 0) for key in ("Rows", "Columns", "BitsStored"))
    if H < 1 or W < 1:
        raise InputError("no_pixel_data", "the DICOM object describes no image (no Rows and Columns)")
    check_pixels(H, W, limits)
    if not photometric:
        raise InputError("unreadable", "no PhotometricInterpretation, so black cannot be told from white")
    if _integer(header, "BitsAllocated", 0) not in (8, 16) or not 1 < bits <= 16:
        raise InputError("unreadable", f"{bits} bits a pixel; radiographs have 8 to 16, in 8 or 16 allocated")

    stored_HW, excess = _stored_values(header, syntax, data[start:end], fragmented, H, W, limits)
    if excess > 1:
        notes.append(Warn("excess_pixel_data", f"{excess} bytes follow the last pixel and are ignored"))
    low, occurs = levels(stored_HW)
    occurs = _without_padding(header, low, occurs)
    grey, usable = _grey_levels(header, np.arange(low, low + len(occurs), dtype=np.float64), occurs)
    if not usable:
        notes.append(Warn("bad_window", "the window or VOI LUT is unusable; the full range is shown"))
    pixels_HW = look_up(stored_HW, low, grey, occurs, invert=photometric == "MONOCHROME1")
    facts = Header(
        modality=modality or None,
        body_part=_string(header, "BodyPartExamined") or None,
        view=_view(header),
        photometric=photometric,
        age=parse_age(_string(header, "PatientAge")),
        patient_id=_string(header, "PatientID") or None,
        study_uid=_string(header, "StudyInstanceUID") or None,
        sex={"F": "F", "M": "M"}.get(_string(header, "PatientSex").upper()),
        rows=H,
        columns=W,
        bits=bits,
        transfer_syntax=syntax,
        pixel_spacing_mm=_spacing(header),
    )
    return Radiograph(pixels_HW, facts, (*notes, *_subject_warnings(header, facts.view), *size_warning(H, W)))


def _parse(data: bytes, limits: Limits) -> tuple[Dataset, str, bytes, int, int, bool]:
    """-> (header up to the pixels, transfer syntax, the data set's bytes, where in them the pixel data start and end,
    whether these are in fragments). Refuses what is no DICOM image file or is cut off."""
    if data[128:132] == b"DICM":
        offset = 132
    elif re.match(
        rb"[\x02\x08]\0[\0-\x1f]\0", data, re.S
    ):  # no preamble: begins with a low tag of group 2 or 8
        offset = 0
    else:
        raise InputError("not_an_image", "it is neither a DICOM nor a PNG nor a JPEG file")
    stream = BytesIO(data)
    stream.seek(offset)
    meta = FileMetaDataset(_dataset(stream, len(data), False, True, lambda tag, vr, length: tag >> 16 != 2))
    _check_class(meta)
    syntax = _string(meta, "TransferSyntaxUID")
    if (
        not syntax
    ):  # the first element shows which, having a VR or not; big endian always comes with a meta header
        syntax = EXPLICIT if data[stream.tell() + 4 : stream.tell() + 6].isalpha() else IMPLICIT
    if syntax == DEFLATED:
        data, stream = _inflate(data[stream.tell() :], limits)

    found: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if 0x7FE00008 <= tag <= 0x7FE00010:
            found.append((tag, vr, length))
        return tag >= 0x7FE00008

    header = _dataset(stream, len(data), syntax == IMPLICIT, syntax != BIG_ENDIAN, at_pixels)
    header.file_meta = meta
    if not found or found[-1][0] > 0x7FE00010:
        return header, syntax, data, 0, 0, False
    tag, vr, length = found[-1]
    if tag != 0x7FE00010:
        raise InputError("unreadable", FLOATING)
    start = stream.tell() + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8)
    if length == 0xFFFFFFFF:
        return header, syntax, data, start, _end_of_fragments(data, start), True
    if start + length > len(data):
        missing = start + length - len(data)
        raise InputError("truncated", f"{missing} of {length} bytes of pixel data are missing")
    return header, syntax, data, start, start + length, False


def _dataset(
    stream: BytesIO, end: int, implicit: bool, little: bool, stop: Callable[[Any, str | None, int], bool]
) -> Dataset:
    """`pydicom.filereader.read_dataset`, which by itself says nothing of a data set that is cut off."""
    begin = stream.tell()
    try:
        dataset = parse_dataset(stream, implicit, little, stop_when=stop)
        if stream.tell() >= end > begin:
            if not len(dataset):  # what pydicom makes of a data set that ends inside a sequence
                raise EOFError
            raw = dataset.get_item(max(dataset.keys()))
            value, length = getattr(raw, "value", None), getattr(raw, "length", 0)
            if isinstance(value, bytes) and length != 0xFFFFFFFF and len(value) < length:
                raise EOFError
    except (EOFError, OSError, struct.error):
        if stream.tell() >= end:
            raise InputError("truncated", "the file ends inside its header") from None
        raise InputError("unreadable", "the DICOM header is damaged") from None
    return dataset


def _inflate(deflated: bytes, limits: Limits) -> tuple[bytes, BytesIO]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(deflated, limits.max_inflated_bytes + 1)
    except zlib.error:
        raise InputError("unreadable", "the deflated data set is damaged") from None
    if len(data) > limits.max_inflated_bytes:
        most = limits.max_inflated_bytes
        raise InputError("decompression_bomb", f"{len(deflated)} deflated bytes unfold to more than {most}")
    if not inflater.eof:
        raise InputError("truncated", "the deflated data set ends early")
    return data, BytesIO(data)


def _end_of_fragments(data: bytes, position: int) -> int:
    """Walk the items of encapsulated pixel data (PS3.5 A.4) to behind their delimiter."""
    while position + 8 <= len(data):
        tag, length = struct.unpack_from("<4sL", data, position)
        if tag == b"\xfe\xff\xdd\xe0":
            return position + 8
        if tag != FRAGMENT or length == 0xFFFFFFFF:
            raise InputError("unreadable", "the compressed pixel data are not in proper fragments")
        position += 8 + length
    raise InputError("truncated", "the file ends inside the compressed pixel data")


def _check_class(meta: Dataset) -> None:
    if _string(meta, "MediaStorageSOPClassUID") == DICOMDIR_CLASS:
        raise InputError("not_an_image", "a DICOMDIR is an index; give the image files")


def _check_modality(modality: str, sop_class: str) -> list[Warn]:
    if modality in RADIOGRAPHS:
        return []
    if modality not in UNKNOWN_MODALITY:
        raise InputError("unsupported_modality", f"modality {modality[:16]} is no radiograph (CR or DX)")
    if sop_class.startswith(STORAGE_CLASSES) and not RADIOGRAPH_CLASSES.fullmatch(sop_class):
        raise InputError("unsupported_modality", f"{UID(sop_class).name} is no radiograph (CR or DX)")
    what = f"the modality is {modality}" if modality else "no modality is given"
    return [Warn("unknown_modality", f"{what}; read as a radiograph")]


def _stored_values(
    header: Dataset, syntax: str, value: bytes, fragmented: bool, H: int, W: int, limits: Limits
) -> tuple[np.ndarray, int]:
    """Decode the one frame -> (integers (H, W), number of bytes that follow the last pixel)."""
    name, plugin = SYNTAXES.get(syntax, (None, None))
    allocated, excess = int(header.BitsAllocated), 0
    if name is None:
        raise InputError("unsupported_transfer_syntax", f"{UID(syntax[:64]).name} cannot be decoded")
    if fragmented != (plugin is not None):
        found = "compressed" if fragmented else "uncompressed"
        raise InputError("unreadable", f"the pixels are {found}, but the transfer syntax says {name}")
    if fragmented:
        if syntax == JPEG_12BIT and int(header.BitsStored) == 8:
            plugin = "pillow"
        if plugin and not can_decode(syntax, plugin):
            raise InputError("unsupported_transfer_syntax", f"{name}: to decode it, {INSTALL[plugin]}")
        if (
            syntax == JPEG_12BIT
        ):  # some writers end the scan at coefficient 0; in a sequential one it can only be 63
            value = re.sub(rb"(\xff\xda\0\x08\x01..\0)\0", rb"\1" b"\x3f", value, count=1, flags=re.S)
        _check_frame(get_frame(value, 0, number_of_frames=1), syntax, H, W, limits)
    else:
        excess = len(value) - H * W * (allocated // 8)
        if excess < 0:
            raise InputError("unreadable", f"{len(value)} bytes of pixel data, too few for {H} x {W} pixels")
    header.add_new(0x7FE00010, "OB" if fragmented or allocated == 8 else "OW", value)
    header["PixelData"].is_undefined_length = fragmented
    try:
        options: dict[str, Any] = {"raw": True, "decoding_plugin": plugin or "", "allow_excess_frames": False}
        if fragmented and syntax != RLE and not _integer(header, "PixelRepresentation", 0):
            options["correct_unused_bits"] = (
                False  # a lossy codec may overshoot BitsStored, and must not wrap to 0
            )
        stored_HW, _ = get_decoder(syntax).as_array(header, index=0, **options)
    except Exception as error:  # its message speaks of the codec and of numbers only
        reason = (str(error).splitlines() or [""])[-1].strip() or type(error).__name__
        raise InputError("unreadable", f"the pixels cannot be decoded ({name}; {reason})") from None
    return stored_HW, excess


def _check_frame(frame: bytes, syntax: str, H: int, W: int, limits: Limits) -> None:
    """What the codec is going to unfold must be what Rows and Columns promised."""
    if syntax == RLE:
        most = limits.max_inflated_bytes
        if len(frame) * 64 > most and _unpacked_length(frame) > most:
            raise InputError("decompression_bomb", f"{len(frame)} bytes of RLE unfold to more than {most}")
    elif (size := _codestream_size(frame)) != (H, W):
        found = f"{size[0]} x {size[1]}" if size else "without a size"
        raise InputError("unreadable", f"the compressed image is {found}, but the header says {H} x {W}")


def _unpacked_length(frame: bytes) -> int:
    """Bytes that PackBits data (PS3.5 G.3) behind the 64-byte RLE header unfold to."""
    total, position = 0, 64
    while position < len(frame):
        count = frame[position]
        total += count + 1 if count < 128 else 257 - count if count > 128 else 0
        position += count + 2 if count < 128 else 2 if count > 128 else 1
    return total


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) from the SIZ marker of JPEG 2000, or the start-of-frame marker of JPEG and JPEG-LS."""
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if siz >= 0 and len(frame) >= siz + 24:
        x, y, x0, y0 = struct.unpack_from(">4L", frame, siz + 8)
        return y - y0, x - x0
    position = 2
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return struct.unpack_from(">2H", frame, position + 5)
        position += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, position + 2)[0]
    return None


# Stored values -> grey values


def _without_padding(header: Dataset, low: int, occurs: np.ndarray) -> np.ndarray:
    """`occurs` less the fill around the image (PS3.3 C.7.5.1.1.2), which must not set the range of its greys."""
    value = _number(header, "PixelPaddingValue")
    if value is None:
        return occurs
    limit = _number(header, "PixelPaddingRangeLimit")
    first, last = sorted(int(v) - low for v in (value, value if limit is None else limit))
    image = occurs.copy()
    image[max(first, 0) : max(last + 1, 0)] = False
    return image if image.sum() > 1 else occurs


def _grey_levels(header: Dataset, stored: np.ndarray, occurs: np.ndarray) -> tuple[np.ndarray, bool]:
    """Modality LUT or rescale, then VOI LUT or window, of stored values -> (grey values, whether VOI was usable)."""
    grey = stored
    slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
    if table := header.get("ModalityLUTSequence"):
        grey = _apply_lut(table[0], grey)
    elif slope and intercept is not None:
        grey = grey * slope + intercept
    try:
        shown = _window(header, grey)
    except Exception:
        return grey, False
    if shown[occurs].min() == shown[occurs].max():
        return grey, False
    return shown, True


def _window(header: Dataset, grey: np.ndarray) -> np.ndarray:
    """VOI LUT, else window, else as it is (PS3.3 C.11.2). The first of several. Raises if it makes no sense."""
    if table := header.get("VOILUTSequence"):
        return _apply_lut(table[0], np.rint(grey))
    centre, width = _number(header, "WindowCenter"), _number(header, "WindowWidth")
    if centre is None or width is None:
        return grey
    function = _string(header, "VOILUTFunction").upper() or "LINEAR"
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
        if width == 0:  # a window of width 1 is a threshold
            return (grey > centre).astype(np.float64)
    if width <= 0 or function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        raise ValueError
    if function == "SIGMOID":
        sigmoid: np.ndarray = 1 / (1 + np.exp((-4 * (grey - centre) / width).clip(-700, 700)))
        return sigmoid
    return ((grey - centre) / width + 0.5).clip(0, 1)


def _apply_lut(item: Dataset, values: np.ndarray) -> np.ndarray:
    """A LUT of PS3.3 C.11.1.1: values below its first input get the first entry, those above its last the last."""
    entries, first = int(item.LUTDescriptor[0]) & 0xFFFF or 65536, int(item.LUTDescriptor[1])
    if first > 32767 and values.min() < 0:  # a signed number that was read as unsigned
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes):  # OW; two 8-bit entries may share a word
        little = item.original_encoding[1] is not False
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else "<u2" if little else ">u2")
    table = np.asarray(data, np.float64)[:entries]
    return table[(values - first).clip(0, len(table) - 1).astype(np.intp)]


# What the header says


def _view(header: Dataset) -> str:
    coded = _items(header, "ViewCodeSequence")
    texts = [_string(header, "ViewPosition"), *(_string(item, "CodeMeaning") for item in coded)]
    texts += [_string(header, "SeriesDescription"), _string(header, "ProtocolName")]
    return next((view for view in map(parse_view, texts) if view != "unknown"), "unknown")


def _spacing(header: Dataset) -> tuple[float, float] | None:
    for key in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            rows, columns = (float(mm) for mm in header.get(key) or ())
        except (TypeError, ValueError):
            continue
        if rows > 0 and columns > 0:  # some anonymisers write zeros
            return rows, columns
    return None


def _subject_warnings(header: Dataset, view: str) -> Iterator[Warn]:
    part = _string(header, "BodyPartExamined")
    if part.upper() not in NO_PART:
        if not CHEST.search(part):
            yield Warn("not_chest", f"the header says body part {part[:16]}")
    else:
        keys = ("StudyDescription", "SeriesDescription", "ProtocolName")
        texts = " ".join(_string(header, key) for key in keys)
        if OTHER_PART.search(texts) and not CHEST.search(texts):
            yield Warn("not_chest", "the header's description speaks of another body part")
    species, breed = _string(header, "PatientSpeciesDescription"), _string(header, "PatientBreedDescription")
    if breed or (species and not re.search(r"human|homo sapiens", species, re.I)):
        yield Warn("not_human", "the header names an animal species or breed")
    if view == "lateral":
        yield Warn("lateral", "a lateral view")
    if _string(header, "PresentationIntentType").upper() == "FOR PROCESSING":
        yield Warn("for_processing", "raw detector data, with another contrast than a radiologist sees")
    if _string(header, "BurnedInAnnotation").upper() == "YES":
        yield Warn("burned_in_annotation", "text is burned into the image, and may name the patient")


def _first(dataset: Dataset, key: str) -> Any:
    try:
        value = dataset.get(key)
    except Exception:  # pydicom converts on access and raises anything on a damaged value
        return None
    if isinstance(value, MultiValue | list | tuple):
        return value[0] if value else None
    return value


def _string(dataset: Dataset, key: str) -> str:
    value = _first(dataset, key)
    return "" if value is None else str(value).strip("\0 ")


def _number(dataset: Dataset, key: str) -> float | None:
    try:
        value = float(_first(dataset, key))
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _integer(dataset: Dataset, key: str, default: int) -> int:
    value = _number(dataset, key)
    return default if value is None else int(value)


def _items(dataset: Dataset, key: str) -> list[Dataset]:
    try:
        return list(dataset.get(key) or [])
    except Exception:
        return []
