"""The reader against pydicom's own look-up tables, other encoders, hostile files, and real ones."""

from __future__ import annotations

import logging
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from encoder.radiograph import CODES, InputError, Limits, codecs, decode, parse_age, parse_view, read

RNG = np.random.default_rng(0)
H, W = 40, 48


def stored(bits: int, signed: bool = False) -> np.ndarray:
    """All of the range, with its ends; (40, 48)."""
    top = 2**bits
    values = np.linspace(0, top - 1, H * W).round().astype(np.int64)
    values = RNG.permutation(values).reshape(H, W) - (top // 2 if signed else 0)
    return values.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")


def dataset(pixels: np.ndarray, bits: int = 0, syntax=ExplicitVRLittleEndian, **tags) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3.4"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    if ds.SamplesPerPixel > 1:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * pixels.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("><"[syntax != ExplicitVRBigEndian])).tobytes()
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for key, value in tags.items():
        if value is None:
            delattr(ds, key)
        else:
            setattr(ds, key, value)
    return ds


def save(ds: Dataset, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom objects to the files that are meant to be wrong
        ds.save_as(path, enforce_file_format=True)
    return path


def lut(entries: np.ndarray, first: int, bits: int, vr: str = "OW") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", vr, entries.astype("<u2").tobytes() if vr == "OW" else entries.tolist())
    return item


def scaled(values: np.ndarray, invert: bool = False) -> np.ndarray:
    values = values.astype(np.float64)
    values = (values - values.min()) / (values.max() - values.min())
    return 1 - values if invert else values


def code_of(path: Path, **limits: int) -> str:
    with pytest.raises(InputError) as caught:
        read(path, Limits(**limits))
    error = caught.value
    assert error.code in CODES and error.path == path and len(error.message) > 8 and str(path) in str(error)
    return error.code


def codes(path: Path) -> list[str]:
    return [warning.code for warning in read(path).warnings]


# Grey scale

GAMMA = (np.linspace(0, 1, 4096) ** 0.5 * 65535).round().astype(np.uint16)
SHAPES = {
    "plain": {},
    "window": {"WindowCenter": 100, "WindowWidth": 90},
    "two windows": {"WindowCenter": [90, 5], "WindowWidth": [120, 7]},
    "exact window": {"WindowCenter": 100.5, "WindowWidth": 77.5, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 100, "WindowWidth": 90, "VOILUTFunction": "SIGMOID"},
    "rescale": {"RescaleSlope": 2.5, "RescaleIntercept": -100, "WindowCenter": 50, "WindowWidth": 300},
    "modality LUT": {"ModalityLUTSequence": [lut(GAMMA, 0, 16)]},
    "VOI LUT": {"VOILUTSequence": [lut(GAMMA[::2], 30, 16)]},
    "VOI LUT as US": {"VOILUTSequence": [lut(GAMMA[::2], 30, 16, "US")]},
    "both LUTs": {
        "ModalityLUTSequence": [lut(GAMMA // 16, 0, 16)],
        "VOILUTSequence": [lut(GAMMA[::-1], 0, 16)],
    },
    "rescale and VOI LUT": {
        "RescaleSlope": 1,
        "RescaleIntercept": 40,
        "VOILUTSequence": [lut(GAMMA, 60, 16)],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True), (16, True)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_scale_is_pydicoms_then_inversion_then_min_max(tmp_path, shape, bits, signed, photometric):
    pixels = stored(bits, signed)
    ds = dataset(pixels, bits, PhotometricInterpretation=photometric, **SHAPES[shape])
    expected = apply_modality_lut(pixels.astype(np.int64), ds)
    if "VOI" in shape or "both" in shape:
        expected = expected.astype(np.int64)
    with np.errstate(over="ignore"):
        expected = scaled(apply_voi_lut(expected, ds), invert=photometric == "MONOCHROME1")
    radiograph = read(save(ds, tmp_path / "x.dcm"))
    assert radiograph.pixels.dtype == np.float32 and radiograph.pixels.shape == (H, W)
    assert np.abs(radiograph.pixels - expected).max() < 1e-6
    assert radiograph.warnings[0].code == "low_resolution" and len(radiograph.warnings) == 1
    header = radiograph.header
    assert (header.modality, header.photometric, header.bits) == ("DX", photometric, bits)
    assert (header.rows, header.columns, header.view, header.body_part) == (H, W, "PA", "CHEST")


@pytest.mark.parametrize("presentation", [None, "INVERSE", "IDENTITY"])
def test_inversion_follows_photometric_interpretation_alone(tmp_path, presentation):
    tags = {"PresentationLUTShape": presentation} if presentation else {}
    pixels = stored(12)
    black = read(save(dataset(pixels, 12, **tags), tmp_path / "2.dcm")).pixels
    white = read(
        save(dataset(pixels, 12, PhotometricInterpretation="MONOCHROME1", **tags), tmp_path / "1.dcm")
    )
    assert np.abs(black - scaled(pixels)).max() < 1e-6
    assert np.abs(white.pixels - (1 - black)).max() < 1e-6


def test_a_negative_slope_turns_grey_round_with_and_without_a_window(tmp_path):
    pixels = stored(12)
    tags = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    plain = read(save(dataset(pixels, 12, **tags), tmp_path / "a.dcm")).pixels
    tags |= {"WindowCenter": 2048, "WindowWidth": 4096}
    windowed = read(save(dataset(pixels, 12, **tags), tmp_path / "b.dcm")).pixels
    assert np.abs(plain - scaled(-pixels.astype(int))).max() < 1e-6
    assert np.abs(windowed - plain).max() < 1e-3


def test_eight_bit_lut_with_more_entries_than_256(tmp_path):
    table = (np.arange(4096) // 16).astype(np.uint16)
    ds = dataset(stored(12), 12, VOILUTSequence=[lut(table, 0, 8)])
    assert np.abs(read(save(ds, tmp_path / "x.dcm")).pixels - scaled(table[stored_values(ds)])).max() < 1e-6


def stored_values(ds: Dataset) -> np.ndarray:
    return np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)


def test_lut_of_signed_values_begins_below_zero(tmp_path):
    pixels = stored(12, signed=True)
    ds = dataset(pixels, 12, ModalityLUTSequence=[lut(GAMMA, -2048, 16)])
    expected = scaled(GAMMA[pixels.astype(int) + 2048])
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        ds.file_meta.TransferSyntaxUID = syntax
        assert np.abs(read(save(ds, tmp_path / "x.dcm")).pixels - expected).max() < 1e-6


def test_bits_above_bits_stored_are_ignored(tmp_path):
    pixels = stored(12)
    overlay = pixels | (RNG.integers(0, 16, pixels.shape) << 12).astype(np.uint16)
    assert np.abs(read(save(dataset(overlay, 12), tmp_path / "x.dcm")).pixels - scaled(pixels)).max() < 1e-6


def test_padding_does_not_set_the_range(tmp_path):
    pixels = stored(12)
    framed = pixels.astype(np.int16) + 100
    framed[:3] = -2000
    tags = {"PixelPaddingValue": -2000}
    shown = read(save(dataset(framed, 16, **tags), tmp_path / "x.dcm")).pixels
    assert np.abs(shown[3:] - scaled(framed[3:])).max() < 1e-6 and (shown[:3] == 0).all()


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 5000, "WindowWidth": 10},  # all of the image lies below it
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": 10, "VOILUTFunction": "CUBIC"},
        {"VOILUTSequence": [Dataset()]},
    ],
)
def test_an_unusable_window_is_left_out_with_a_warning(tmp_path, tags):
    pixels = stored(12)
    radiograph = read(save(dataset(pixels, 12, **tags), tmp_path / "x.dcm"))
    assert [w.code for w in radiograph.warnings] == ["bad_window", "low_resolution"]
    assert np.abs(radiograph.pixels - scaled(pixels)).max() < 1e-6


# Encodings


def compressed(pixels: np.ndarray, bits: int, syntax: str, frame: bytes, **tags) -> Dataset:
    ds = dataset(pixels, bits, syntax, **tags)
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def frame_of(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True)])
def test_uncompressed_encodings(tmp_path, syntax, bits, signed):
    pixels = stored(bits, signed)
    table = {"VOILUTSequence": [lut(GAMMA, 0, 16)]} if syntax != ExplicitVRBigEndian else {}
    radiograph = read(save(dataset(pixels, bits, syntax, **table), tmp_path / "x.dcm"))
    expected = GAMMA[pixels.clip(0).astype(int)] if table else pixels
    assert np.abs(radiograph.pixels - scaled(expected)).max() < 1e-6
    assert radiograph.header.transfer_syntax == syntax


def test_rle(tmp_path):
    pixels = np.repeat(stored(12)[:, ::4], 4, axis=1)
    ds = dataset(pixels, 12)
    ds.compress(RLELossless)
    assert np.abs(read(save(ds, tmp_path / "x.dcm")).pixels - scaled(pixels)).max() < 1e-6


def test_jpeg_2000_lossless(tmp_path):
    pixels = stored(16)
    ds = compressed(
        pixels, 16, JPEG2000Lossless, frame_of(pixels, "JPEG2000", no_jp2=True, irreversible=False)
    )
    assert np.abs(read(save(ds, tmp_path / "x.dcm")).pixels - scaled(pixels)).max() < 1e-6


def test_jpeg_baseline(tmp_path):
    smooth = np.add.outer(np.arange(H) * 3, np.arange(W) * 2).astype(np.uint8)
    ds = compressed(smooth, 8, JPEGBaseline8Bit, frame_of(smooth, "JPEG", quality=95))
    assert np.abs(read(save(ds, tmp_path / "x.dcm")).pixels - scaled(smooth)).max() < 0.03


@pytest.mark.parametrize(
    "process", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEGLSNearLossless"]
)
def test_jpeg_lossless_and_jpeg_ls_as_gdcm_writes_them(tmp_path, process):
    import gdcm

    pixels = stored(12)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(save(dataset(pixels, 12), tmp_path / "plain.dcm")))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, process)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "x.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    radiograph = read(tmp_path / "x.dcm")
    assert radiograph.header.transfer_syntax.startswith("1.2.840.10008.1.2.4.")
    assert np.abs(radiograph.pixels - scaled(pixels)).max() < 1e-3


def test_without_a_preamble(tmp_path):
    pixels = stored(12)
    data = save(dataset(pixels, 12), tmp_path / "x.dcm").read_bytes()
    (tmp_path / "x.dcm").write_bytes(data[132:])
    assert np.abs(read(tmp_path / "x.dcm").pixels - scaled(pixels)).max() < 1e-6


def test_a_missing_codec_is_named_with_what_brings_it(tmp_path, monkeypatch):
    assert set(codecs().values()) <= {"pydicom", "pillow", "gdcm", "pylibjpeg", False} and codecs()["RLE"]
    monkeypatch.setattr(decode, "can_decode", lambda syntax, plugin: False)
    ds = compressed(stored(12), 12, JPEGExtended12Bit, b"\xff\xd8\xff\xd9")
    with pytest.raises(InputError, match=r"pip install cxr-vlm\[jpeg12\]") as caught:
        read(save(ds, tmp_path / "x.dcm"))
    assert caught.value.code == "unsupported_transfer_syntax"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.100", "1.2.3.4.5"])
def test_transfer_syntaxes_nobody_decodes(tmp_path, syntax):
    ds = compressed(stored(12), 12, JPEG2000Lossless, b"\xff\x4f")
    ds.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "x.dcm"
    ds.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)
    assert code_of(path) == "unsupported_transfer_syntax"


# Refusals

COLOUR = RNG.integers(0, 255, (H, W, 3)).astype(np.uint8)
REFUSED = {
    "CT": ("unsupported_modality", {"Modality": "CT"}),
    "mammogram": ("unsupported_modality", {"Modality": "MG"}),
    "CT by its class alone": ("unsupported_modality", {"Modality": "", "SOPClassUID": CTImageStorage}),
    "two frames": ("multi_frame", {"NumberOfFrames": 2}),
    "colour": ("colour_image", {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}),
    "palette": ("colour_image", {"PhotometricInterpretation": "PALETTE COLOR"}),
    "no rows": ("no_pixel_data", {"Rows": None}),
    "no pixels": ("no_pixel_data", {"PixelData": None}),
    "empty pixels": ("no_pixel_data", {"PixelData": b""}),
    "gigapixels": ("too_large", {"Rows": 65535, "Columns": 65535}),
    "more rows than pixels": ("unreadable", {"Rows": H + 1}),
    "black or white?": ("unreadable", {"PhotometricInterpretation": None}),
    "32 bit": ("unreadable", {"BitsAllocated": 32}),
    "17 of 16 bit": ("unreadable", {"BitsStored": 17}),
    "constant": ("constant_image", {"PixelData": bytes(2 * H * W)}),
    # The order: modality, frames, colour, size, pixels
    "CT of two frames": ("unsupported_modality", {"Modality": "CT", "NumberOfFrames": 2}),
    "two frames in colour": ("multi_frame", {"NumberOfFrames": 2, "PhotometricInterpretation": "RGB"}),
    "gigapixels in colour": (
        "colour_image",
        {"PhotometricInterpretation": "RGB", "Rows": 65535, "Columns": 65535},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path, case):
    code, tags = REFUSED[case]
    assert code_of(save(dataset(stored(12), 12, **tags), tmp_path / "x.dcm")) == code


def test_truncation_comes_before_modality(tmp_path):
    path = save(dataset(stored(12), 12, Modality="CT"), tmp_path / "x.dcm")
    path.write_bytes(path.read_bytes()[:-100])
    assert code_of(path) == "truncated"


def test_what_is_no_file(tmp_path):
    assert code_of(tmp_path) == code_of(tmp_path / "absent.dcm") == code_of(Path("/dev/null")) == "unreadable"
    (tmp_path / "empty.png").touch()
    assert code_of(tmp_path / "empty.png") == "not_an_image"
    (tmp_path / "text.dcm").write_text("<xml/>" * 100)
    assert code_of(tmp_path / "text.dcm") == "not_an_image"
    Image.fromarray(stored(8)).save(tmp_path / "x.tiff")
    assert code_of(tmp_path / "x.tiff") == "not_an_image"


@pytest.mark.parametrize(
    ("name", "words"), [("a\0b.png", "null character"), ("a\ud800.png", "half of a character")]
)
def test_a_path_that_no_file_can_have(name, words):
    with pytest.raises(InputError, match=words) as caught:
        read(name)
    assert caught.value.code == "unreadable" and "path" in caught.value.message


def test_the_compressed_image_must_have_the_size_the_header_says(tmp_path):
    large = np.zeros((400, 400), np.uint8)
    for syntax, kind, options in (
        (JPEGBaseline8Bit, "JPEG", {}),
        (JPEG2000Lossless, "JPEG2000", {"no_jp2": True}),
    ):
        ds = compressed(stored(8), 8, syntax, frame_of(large, kind, **options))
        assert code_of(save(ds, tmp_path / "x.dcm")) == "unreadable"


def test_other_animals_and_other_warnings(tmp_path):
    def warned(**tags) -> set[str]:
        return set(codes(save(dataset(stored(12), 12, **tags), tmp_path / "x.dcm"))) - {"low_resolution"}

    assert warned() == set()
    assert warned(BodyPartExamined="HIP") == {"not_chest"}
    assert warned(BodyPartExamined="", StudyDescription="XR KNEE LT") == {"not_chest"}
    assert warned(BodyPartExamined="", StudyDescription="CHEST AND ABDOMEN") == set()
    assert warned(ViewPosition="LL") == {"lateral"}
    assert warned(PatientSpeciesDescription="Canine") == {"not_human"}
    assert warned(PatientSpeciesDescription="Homo sapiens") == set()
    assert warned(BurnedInAnnotation="YES") == {"burned_in_annotation"}
    assert warned(PresentationIntentType="FOR PROCESSING") == {"for_processing"}
    assert warned(Modality="OT") == warned(Modality=None) == {"unknown_modality"}
    pixels = stored(12).tobytes()
    assert warned(PixelData=pixels + bytes(512)) == {"excess_pixel_data"}
    large = dataset(np.tile(stored(12), (8, 8)), 12)
    assert codes(save(large, tmp_path / "x.dcm")) == []


def test_header(tmp_path):
    tags = {"PatientAge": "006M", "PatientSex": "F", "ImagerPixelSpacing": [0.2, 0.3], "PixelSpacing": [0, 0]}
    header = read(save(dataset(stored(12), 12, **tags), tmp_path / "x.dcm")).header
    # made square, which takes the finer spacing
    assert (header.age, header.sex, header.pixel_spacing_mm) == (0.5, "F", (0.2, 0.2))
    assert (header.rows, header.columns) == (H, 1.5 * W)
    header = read(save(dataset(stored(12), 12, PatientSex="O"), tmp_path / "x.dcm")).header
    assert (header.age, header.sex, header.pixel_spacing_mm) == (None, None, None)


def test_parse_age():
    assert [parse_age(a) for a in ("045Y", "062", "63.5", "006M", "010D")] == [45, 62, 63.5, 0.5, 10 / 365.25]
    assert [parse_age(a) for a in ("", "old", "999Y", "-4", "045X", "1e9")] == [None] * 6


def test_parse_view():
    views = {
        "PA": ("PA", "Chest PA", "chest_pa_erect", "view: PA", "POSTERO-ANTERIOR", "Frontal PA", "p.a."),
        "AP": ("ap", "CHEST AP PORT", "antero-posterior", "Thorax a.p."),
        "lateral": ("LL", "RL", "LATERAL", "chest lat", "LLAT"),
        "frontal": ("frontal", "LLD", "left lateral decubitus"),
        "unknown": ("", "CHEST", "PA and lateral", "capability", "MAP", "oblique"),
    }
    for view, texts in views.items():
        assert [parse_view(text) for text in texts] == [view] * len(texts)


# Bombs: refused before memory is taken


def peak_bytes(path: Path, **limits: int) -> tuple[str, int]:
    tracemalloc.start()
    code = code_of(path, **limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return code, peak


def test_deflate_bomb(tmp_path):
    ds = dataset(stored(12), 12, DeflatedExplicitVRLittleEndian)
    data = save(ds, tmp_path / "x.dcm").read_bytes()
    begin = 132 + 12 + struct.unpack_from("<L", data, 140)[0]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 20)
    bomb = b"".join(deflater.compress(zeros) for _ in range(64)) + deflater.flush()
    (tmp_path / "bomb.dcm").write_bytes(data[:begin] + bomb)
    code, peak = peak_bytes(tmp_path / "bomb.dcm", max_inflated_bytes=1 << 20)
    assert code == "decompression_bomb" and peak < 8 << 20


def test_a_deflated_file_cut_off(tmp_path):
    path = save(dataset(stored(12), 12, DeflatedExplicitVRLittleEndian), tmp_path / "x.dcm")
    path.write_bytes(path.read_bytes()[:-200])
    assert code_of(path) == "truncated"


def test_run_length_bomb(tmp_path):
    segment = b"\x81\x00" * 40_000  # 128 zeros each
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + segment
    ds = compressed(stored(8), 8, RLELossless, frame)
    code, peak = peak_bytes(save(ds, tmp_path / "x.dcm"), max_inflated_bytes=1 << 20)
    assert code == "decompression_bomb" and peak < 4 << 20


def test_header_that_promises_gigapixels_takes_no_memory(tmp_path):
    path = save(dataset(stored(12), 12, Rows=60000, Columns=60000), tmp_path / "x.dcm")
    code, peak = peak_bytes(path)
    assert code == "too_large" and peak < 4 << 20


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def test_png_bombs(tmp_path):
    def png(W: int, H: int, *chunks: bytes) -> Path:
        header = png_chunk(b"IHDR", struct.pack(">2L5B", W, H, 16, 0, 0, 0, 0))
        path = tmp_path / "x.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b""))
        return path

    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    assert peak_bytes(png(12000, 12000, pixels))[0] == "decompression_bomb"  # Pillow only warns of this one
    assert peak_bytes(png(60000, 60000, pixels))[0] == "decompression_bomb"
    code, peak = peak_bytes(png(8000, 8000, pixels))
    assert code == "too_large" and peak < 4 << 20
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 << 20)))
    assert peak_bytes(png(40, 40, text, pixels))[0] == "decompression_bomb"


def test_a_large_file_is_not_opened(tmp_path):
    path = save(dataset(stored(12), 12), tmp_path / "x.dcm")
    assert code_of(path, max_bytes=1000) == "too_large"
    with open(tmp_path / "sparse.dcm", "wb") as file:
        file.truncate(1 << 34)
    code, peak = peak_bytes(tmp_path / "sparse.dcm")
    assert code == "too_large" and peak < 1 << 20


# PNG and JPEG


def test_16_bit_png_keeps_its_levels(tmp_path):
    ramp = np.linspace(0, 65535, H * W).round().astype(np.uint16).reshape(H, W)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    radiograph = read(tmp_path / "x.png")
    assert len(np.unique(radiograph.pixels)) == H * W and radiograph.header.bits == 16
    assert np.abs(radiograph.pixels - ramp / 65535).max() < 1e-6


@pytest.mark.parametrize("kind", [2, 4, 6])  # colour, grey and alpha, colour and alpha
def test_16_bit_png_with_channels_is_refused_rather_than_cut_to_8(kind, tmp_path):
    channels = {2: 3, 4: 2, 6: 4}[kind]
    pixels = np.repeat(np.arange(H * W, dtype=">u2").reshape(H, W, 1), channels, axis=2)
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path = tmp_path / "x.png"
    head = struct.pack(">IIBBBBB", W, H, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert Image.open(path).size == (W, H)  # it is a sound file
    assert code_of(path) == "colour_image"


def test_a_strip_is_refused(tmp_path):
    """Resized by its shorter side it would take any amount of memory."""
    Image.fromarray(np.arange(4 * 6000, dtype=np.uint16).reshape(4, 6000)).save(tmp_path / "x.png")
    assert code_of(tmp_path / "x.png") == "too_large"
    assert (
        code_of(save(dataset(np.arange(3000, dtype=np.uint16).reshape(1000, 3), 12), tmp_path / "x.dcm"))
        == "too_large"
    )


def test_grey_pictures_in_every_dress(tmp_path):
    grey = np.add.outer(np.arange(H) * 3, np.arange(W) * 2).astype(np.uint8)
    assert 0 < np.ptp(grey) < 255
    for mode in ("L", "RGB", "RGBA", "LA", "P"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "x.png")
        radiograph = read(tmp_path / "x.png")
        assert np.array_equal(radiograph.pixels, (grey / 255).astype(np.float32)), mode
        assert radiograph.pixels.dtype == np.float32 and np.array_equal(radiograph.stored, grey), mode
    for mode in ("L", "RGB"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "x.jpg", quality=90)
        radiograph = read(tmp_path / "x.jpg")
        assert np.abs(radiograph.pixels - grey / 255).max() < 0.03 and radiograph.header.view == "unknown", (
            mode
        )


@pytest.mark.parametrize("low, high", [(90, 140), (0, 40), (200, 255), (17, 18)])
def test_8_bit_pictures_are_taken_as_they_are(low, high, tmp_path):
    """As RAD-DINO's processor takes them: no level is moved, however few there are."""
    grey = RNG.integers(low, high + 1, (H, W)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "x.png")
    Image.fromarray(grey).save(tmp_path / "x.jpg")
    for name in ("x.png", "x.jpg"):
        decoded = np.asarray(Image.open(tmp_path / name))
        radiograph = read(tmp_path / name)
        assert np.array_equal(radiograph.pixels, (decoded / 255).astype(np.float32))
        assert np.array_equal(radiograph.stored, decoded) and radiograph.stored.dtype == np.uint8


def test_16_bits_and_dicom_are_spread_over_their_range(tmp_path):
    values = RNG.integers(1000, 3000, (H, W)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    save(dataset(values, 12), tmp_path / "x.dcm")
    save(dataset((values // 16).astype(np.uint8), 8), tmp_path / "8.dcm")
    for name, stored_HW in (("x.png", values), ("x.dcm", values), ("8.dcm", values // 16)):
        radiograph = read(tmp_path / name)
        assert np.abs(radiograph.pixels - scaled(stored_HW)).max() < 1e-6 and radiograph.stored is None, name


def test_channels_that_differ_a_little_are_kept(tmp_path):
    """Plain transformers sees all three, so they must reach the model; the pixels are the green one."""
    grey = np.add.outer(np.arange(H) * 3, np.arange(W) * 2).astype(np.uint8)
    tinted = np.stack([grey, grey, grey + np.uint8(2)], -1)
    Image.fromarray(tinted).save(tmp_path / "x.png")
    radiograph = read(tmp_path / "x.png")
    assert np.array_equal(radiograph.stored, tinted)
    assert np.array_equal(radiograph.pixels, (grey / 255).astype(np.float32))


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(stored(8)).save(tmp_path / "x.jpg", exif=exif)
    assert read(tmp_path / "x.jpg").pixels.shape == (W, H)


@pytest.mark.parametrize("exif", [b"garbage", b"II*\0"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_png_with_damaged_exif_is_read_as_it_lies(exif, opened, tmp_path):
    """The pixels are sound: their checksums are."""
    pixels = stored(8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:33] + png_chunk(b"eXIf", exif) + data[33:])
    radiograph = read(Image.open(path) if opened else path)
    assert np.array_equal(radiograph.stored, pixels)
    assert [w.code for w in radiograph.warnings if w.code != "low_resolution"] == ["bad_exif"]


def test_refused_pictures(tmp_path):
    def png(image: Image.Image, suffix: str = "png", **options) -> Path:
        path = tmp_path / f"x.{suffix}"
        image.save(path, **options)
        return path

    grey = Image.fromarray(stored(8))
    assert code_of(png(Image.fromarray(COLOUR))) == "colour_image"
    assert code_of(png(Image.fromarray(COLOUR), "jpg")) == "colour_image"
    assert code_of(png(Image.new("CMYK", (W, H)), "jpg")) == "colour_image"
    assert code_of(png(Image.new("LA", (W, H), (9, 128)))) == "colour_image"
    assert code_of(png(Image.new("L", (W, H), 7))) == "constant_image"
    assert code_of(png(grey, save_all=True, append_images=[Image.new("L", (W, H))])) == "multi_frame"
    for suffix in ("png", "jpg"):
        path = png(grey, suffix)
        path.write_bytes(path.read_bytes()[:-300])
        assert code_of(path) == "truncated"


# Nothing but InputError, and not a word of the patient's


def test_garbage_raises_input_error_only(tmp_path):
    random.seed(0)
    sources = [
        save(dataset(stored(12), 12), tmp_path / "a.dcm").read_bytes(),
        save(dataset(stored(12), 12, DeflatedExplicitVRLittleEndian), tmp_path / "b.dcm").read_bytes(),
        save(dataset(stored(12), 12, VOILUTSequence=[lut(GAMMA, 0, 16)]), tmp_path / "c.dcm").read_bytes(),
        save(
            compressed(stored(8), 8, JPEGBaseline8Bit, frame_of(stored(8), "JPEG")), tmp_path / "d.dcm"
        ).read_bytes(),
        frame_of(stored(8), "JPEG"),
        frame_of(stored(16), "PNG"),
    ]
    path = tmp_path / "x"
    outcomes: dict[str, int] = {}
    for turn in range(40):
        for data in sources:
            if turn % 2:
                data = data[: random.randrange(len(data))]
            else:
                data = bytearray(data)
                for _ in range(random.randrange(1, 30)):
                    data[random.randrange(min(len(data), 1500))] = random.randrange(256)
            path.write_bytes(data)
            try:
                read(path)
            except InputError as error:
                assert error.code in CODES
                outcomes[error.code] = outcomes.get(error.code, 0) + 1
    assert outcomes["truncated"] > 40 and outcomes["unreadable"] > 5
    for size in (1, 130, 131, 132, 136, 200, 5000):
        path.write_bytes(random.randbytes(size))
        assert code_of(path) == "not_an_image"
        path.write_bytes(bytes(128) + b"DICM" + random.randbytes(size))
        assert code_of(path) in CODES


def test_nothing_of_the_patients_reaches_warnings_logs_or_messages(tmp_path, logged, capfd, recwarn):
    logging.getLogger().setLevel(logging.DEBUG)
    ds = dataset(stored(12), 12, PatientName="SECRET^JANE", PatientID="SECRET")
    data = save(ds, tmp_path / "x.dcm").read_bytes()
    for key, replacement in ((b"LO", b"IS"), (b"PN", b"FD"), (b"PN", b"US"), (b"PN", b"ZZ"), (b"UI", b"DA")):
        (tmp_path / "x.dcm").write_bytes(data.replace(key, replacement))
        try:
            read(tmp_path / "x.dcm")
        except InputError as error:
            assert "SECRET" not in str(error)
    bad = dataset(stored(12), 12)
    bad.add_new("NumberOfFrames", "LO", "SECRET")
    assert code_of(save(bad, tmp_path / "x.dcm")) == "unreadable"
    printed = capfd.readouterr()
    assert not logged.messages and not recwarn.list and not printed.out and not printed.err


def test_threads_read_alike_and_leave_the_loggers_as_they_were(tmp_path):
    level, filters = logging.getLogger("pydicom").level, list(warnings.filters)
    path = save(dataset(stored(12), 12), tmp_path / "x.dcm")
    expected, results = read(path).pixels, []
    threads = [threading.Thread(target=lambda: results.append(read(path).pixels)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(np.array_equal(r, expected) for r in results)
    assert logging.getLogger("pydicom").level == level and warnings.filters == filters


def test_reading_a_picture_imports_neither_torch_nor_pydicom(tmp_path):
    Image.fromarray(stored(8)).save(tmp_path / "x.png")
    script = f"""
import sys
from encoder.radiograph import read
read({str(tmp_path / "x.png")!r})
sys.exit(bool({{"torch", "pydicom"}} & set(sys.modules)))
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == 0


# Real files. A text is the code of the refusal, a set the codes of the warnings.

NO_12_BIT = codecs()["JPEG extended, 12 bit"] is False
REAL = {
    # Human chests
    "radiograph/RG1_chestPA_J2K_lossy.dcm": set(),
    "radiograph/RG1_chestPA_JPEGLS_nearlossless.dcm": set(),
    "radiograph/RSNA_chestPA_JPEGbaseline.dcm": set(),
    "radiograph/RSNA_chestPA_fakeMONOCHROME1.dcm": set(),
    # A dog; the header says no more than "thorax", so only its 169 x 211 pixels are remarked on
    "radiograph/DX_thorax_Fuji_DOG_small.dcm": {"low_resolution"},
    # Teeth (by the study description), hip and leg (by the body part). The leg is stored as its mirror image, as its
    # PatientOrientation says: the R of the marker can be read only when it has been turned.
    "radiograph/CR_ModalityLUTSequence_JPEGlossless.dcm": {"not_chest"},
    "radiograph/RG2_hip_MONO2_J2K_lossless.dcm": {"not_chest"},
    "radiograph/RG3_extremity_J2K_lossless.dcm": {"not_chest", "turned"},
    "radiograph/RG3_extremity_JPEGLS_lossless.dcm": {"not_chest", "turned"},
    "radiograph/RG3_extremity_JPEG_lossless_sv1.dcm": {"not_chest", "turned"},
    "radiograph/RG3_extremity_RLE.dcm": {"not_chest", "turned"},
    "radiograph/RG3_extremity_uncompressed.dcm": {"not_chest", "turned"},
    "radiograph/RG3_extremity_JPEG_extended12bit.dcm": "unsupported_transfer_syntax"
    if NO_12_BIT
    else {"not_chest", "turned"},
    # No image container at all; a DICOMDIR is an index
    "odd/empty_file.dcm": "not_an_image",
    "odd/not_dicom_xml.dcm": "not_an_image",
    "odd/DICOMDIR": "not_an_image",
    # Cut off; found before the modality is looked at
    "odd/truncated_RG1_J2K.dcm": "truncated",
    "odd/truncated_RSNA_JPEG.dcm": "truncated",
    "odd/MR_truncated.dcm": "truncated",
    # Other modalities, whatever else is odd about them (endianness, colour, frames, a value that is no number)
    "odd/MR_small.dcm": "unsupported_modality",
    "odd/MR_small_bigendian.dcm": "unsupported_modality",
    "odd/emri_small.dcm": "unsupported_modality",
    "odd/CT-MONO2-16-ankle.dcm": "unsupported_modality",
    "odd/CT_abdomen_bigendian.dcm": "unsupported_modality",
    "odd/eCT_Supplemental.dcm": "unsupported_modality",
    "odd/ExplVR_BigEnd.dcm": "unsupported_modality",
    "odd/US_colour_J2K.dcm": "unsupported_modality",
    "odd/color-pl.dcm": "unsupported_modality",
    "odd/mammogram_MLO_JPEGlossless.dcm": "unsupported_modality",
    "odd/MG_out_of_bounds_overlay.dcm": "unsupported_modality",
    "odd/SEG_ct_binary.dcm": "unsupported_modality",
    "odd/liver_1frame.dcm": "unsupported_modality",
    "odd/rtdose.dcm": "unsupported_modality",
    "odd/badVR.dcm": "unsupported_modality",
    # Not images; the modality says so first
    "odd/rtplan.dcm": "unsupported_modality",
    "odd/rtstruct.dcm": "unsupported_modality",  # without preamble and meta header
    "odd/test-SR.dcm": "unsupported_modality",
    "odd/reportsi.dcm": "unsupported_modality",
    "odd/fo_SR.dcm": "unsupported_modality",
    # No modality: the storage class in the meta header tells (RT image, MR), or nothing does and there is no image
    "odd/no_meta_group_length.dcm": "unsupported_modality",
    "odd/priv_SQ.dcm": "unsupported_modality",
    "odd/nested_priv_SQ.dcm": "no_pixel_data",
    # A chest by its header, but only the header was kept
    "odd/CR_chest_header_japanese_multibyte_32px.dcm": "no_pixel_data",
    # Secondary captures (OT): colour and several frames are refused, grey ones are read as what they may be
    "odd/SC_rgb.dcm": "colour_image",
    "odd/SC_ybr_full_422_uncompressed.dcm": "colour_image",
    "odd/SC_rgb_rle_2frame.dcm": "multi_frame",
    "odd/image_dfl.dcm": {"unknown_modality"},
    "odd/mlut_18.dcm": {"unknown_modality"},
    "odd/vlut_04.dcm": {"unknown_modality"},
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(cxr_data, name):
    path, expected = cxr_data / "dicom" / name, REAL[name]
    if isinstance(expected, str):
        assert code_of(path) == expected
        return
    radiograph = read(path)
    assert {w.code for w in radiograph.warnings} == expected
    assert radiograph.pixels.min() == 0 and radiograph.pixels.max() == 1


def test_no_real_file_is_left_out_of_the_table(cxr_data):
    found = {str(p.relative_to(cxr_data / "dicom")) for p in (cxr_data / "dicom").glob("*/*")}
    assert found == set(REAL)


def test_the_false_monochrome1_is_the_negative_of_its_twin(cxr_data):
    folder = cxr_data / "dicom/radiograph"
    twin = read(folder / "RSNA_chestPA_JPEGbaseline.dcm")
    false = read(folder / "RSNA_chestPA_fakeMONOCHROME1.dcm")
    assert np.abs(false.pixels - (1 - twin.pixels)).max() < 1e-6
    assert (
        twin.pixels[400:700, 250:350].mean() < twin.pixels[100:900, 480:540].mean()
    )  # lung darker than spine
    assert (twin.header.age, twin.header.sex, twin.header.view) == (62, "M", "PA")


def test_one_leg_in_seven_encodings(cxr_data):
    folder = cxr_data / "dicom/radiograph"
    plain = read(folder / "RG3_extremity_uncompressed.dcm").pixels
    for path in sorted(folder.glob("RG3_*")):
        if "12bit" in path.name:
            if not NO_12_BIT:
                difference = np.abs(read(path).pixels - plain)  # lossy
                assert difference.mean() < 0.003 and difference.max() < 0.06
        else:
            assert np.array_equal(read(path).pixels, plain), path.name
    lossy = [read(p).pixels for p in sorted(folder.glob("RG1_*"))]
    assert np.abs(lossy[0] - lossy[1]).mean() < 0.005
    # MONOCHROME1: bone brighter than the air beside the leg, which was turned
    assert plain[:, 1759 - 880].mean() > plain[:, 1759 - 500].mean()
