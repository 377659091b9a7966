"""Images that are no files: every kind of input gives the radiograph that the same picture gives as a file."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from encoder.radiograph import CODES, Header, InputError, Limits, Radiograph, read
from tests.encoder.test_radiograph import dataset, save

H, W = 300, 280
GREY = np.add.outer(np.arange(H) % 120, np.arange(W) % 90).astype(np.uint8) + 20


def png(pixels: np.ndarray | Image.Image, path: Path) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path)
    return path


def same(a: Radiograph, b: Radiograph) -> bool:
    stored = (a.stored is None and b.stored is None) or np.array_equal(a.stored, b.stored)
    return (
        stored and bool(np.array_equal(a.pixels, b.pixels)) and a.pixels.dtype == b.pixels.dtype == np.float32
    )


def code_of(source, **limits) -> str:
    with pytest.raises(InputError) as caught:
        read(source, Limits(**limits) if limits else None)
    assert caught.value.code in CODES
    return caught.value.code


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_equal_levels_give_equal_pixels_whatever_holds_them(dtype, tmp_path):
    levels = GREY if dtype == np.uint8 else GREY.astype(np.uint16) * 211 + 7
    path = png(levels, tmp_path / "x.png")
    file = read(path)
    data = path.read_bytes()
    with path.open("rb") as opened:
        from_file = read(opened)
    tensor = torch.from_numpy(levels)
    sources = {
        "text path": str(path), "bytes": data, "bytearray": bytearray(data), "view": memoryview(data),
        "buffer": BytesIO(data), "opened picture": Image.open(path), "picture": Image.fromarray(levels),
        "array": levels, "Fortran order": np.asfortranarray(levels),
        "other byte order": levels.astype(levels.dtype.newbyteorder()),
        "channel last": levels[..., None], "channel first": levels[None],
        "three last": np.repeat(levels[..., None], 3, -1), "three first": np.repeat(levels[None], 3, 0),
        "tensor": tensor, "tensor of one channel": tensor[None], "radiograph": file,
    }  # fmt: skip
    assert same(from_file, file)
    for name, source in sources.items():
        found = read(source)
        assert same(found, file) and found.header == file.header, name


def test_what_was_read_may_be_given_again(tmp_path):
    """Its pixels alone, too: as array, of either precision, and as tensor."""
    file = read(png(GREY, tmp_path / "x.png"))
    for source in (
        file.pixels, file.pixels.astype(np.float64), torch.from_numpy(file.pixels), Image.fromarray(file.pixels, "F"),
        np.repeat(file.pixels[..., None], 3, -1),
    ):  # fmt: skip
        assert same(read(source), file) and np.array_equal(read(source).stored, GREY)
    deep = read(save(dataset(GREY.astype(np.uint16) * 11, 12), tmp_path / "x.dcm"))
    assert same(read(deep.pixels), deep) and read(deep) is deep


def test_floats_are_taken_as_they_are():
    x = np.linspace(0.2, 0.7, H * W).reshape(H, W)
    found = read(x)
    assert np.array_equal(found.pixels, x.astype(np.float32)) and found.header.bits == 64
    half = torch.from_numpy(x).to(torch.bfloat16)
    assert np.array_equal(read(half).pixels, half.float().numpy())


def test_channels_that_nearly_agree_are_grey_as_in_a_picture(tmp_path):
    noise = np.random.default_rng(0).integers(-1, 2, (H, W, 3))
    rgb = (GREY[..., None].astype(int) + noise).astype(np.uint8)
    file = read(png(rgb, tmp_path / "x.png"))
    assert same(read(rgb), file) and same(read(np.moveaxis(rgb, -1, 0)), file)
    assert same(read(Image.fromarray(rgb)), file)
    wide = rgb.astype(np.uint16) * 257
    assert np.array_equal(read(wide).pixels, read(wide[..., 1].copy()).pixels)
    colour = rgb.copy()
    colour[..., 0] //= 2
    for source in (colour, Image.fromarray(colour), colour.astype(np.uint16) * 257, colour / 255):
        assert code_of(source) == "colour_image"


@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless, RLELossless])
def test_a_data_set_in_memory_is_read_as_its_file(syntax, tmp_path):
    given = dataset(GREY.astype(np.uint16) * 11, 12, PhotometricInterpretation="MONOCHROME1")
    given.WindowCenter, given.WindowWidth, given.PatientID = 1500, 2000, "Secret^Name"
    if syntax == RLELossless:
        given.compress(RLELossless)
    elif syntax:
        buffer = BytesIO()
        Image.fromarray(GREY.astype(np.uint16) * 11).save(buffer, "JPEG2000", irreversible=False)
        given.PixelData, given.file_meta.TransferSyntaxUID = encapsulate([buffer.getvalue()]), syntax
        given["PixelData"].is_undefined_length = True
    path = save(given, tmp_path / "x.dcm")
    file = read(path)
    before = copy.deepcopy(given)
    for source in (given, dcmread(path), path.read_bytes()):
        found = read(source)
        assert same(found, file) and found.header == file.header and found.warnings == file.warnings
    assert given == before and given.PixelData == before.PixelData
    del given.PixelData
    assert code_of(given) == "no_pixel_data"
    assert code_of(dcmread(path, stop_before_pixels=True)) == "no_pixel_data"


@pytest.mark.parametrize("begin", [0, 100])
def test_pixel_data_in_a_buffer_are_read_from_where_it_stands(begin):
    """pydicom 3 takes a file for PixelData, and writes what follows its position."""
    given = dataset(GREY.astype(np.uint16) * 11, 12)
    expected, data = read(given), given.PixelData
    buffer = BytesIO(bytes(begin) + data)
    buffer.seek(begin)
    given.PixelData = buffer
    assert same(read(given), expected) and same(read(given), expected)
    assert buffer.tell() == begin
    assert code_of(given, max_bytes=len(data) - 1) == "too_large"


def test_pixel_data_that_are_nothing_or_no_bytes():
    given = dataset(GREY.astype(np.uint16) * 11, 12)
    given["PixelData"].value = None
    assert code_of(given) == "no_pixel_data"
    given["PixelData"]._value = "abc"
    with pytest.raises(InputError, match="PixelData holds str, not bytes"):
        read(given)
    del given.PixelData
    given.FloatPixelData = GREY.astype("<f4").tobytes()
    with pytest.raises(InputError, match="floating-point"):
        read(given)


def test_data_sets_that_are_no_radiographs_get_the_refusal_of_their_file(cxr_data):
    compared = 0
    for path in sorted((cxr_data / "dicom").glob("*/*")):
        try:
            given = dcmread(path)
        except Exception:
            continue
        try:
            expected = read(path)
        except InputError as error:
            # what is cut off is not seen in a data set that was parsed nevertheless
            if error.code != "truncated":
                assert code_of(given) == error.code, path.name
                compared += 1
        else:
            found = read(given)
            assert same(found, expected) and found.header == expected.header, path.name
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    ("pixels", "code", "words"),
    [
        (GREY / 255 * 2 - 1, "unsupported_array", "from -.* to .*lie in .0, 1.: give"),
        (GREY.astype(np.float32), "unsupported_array", "uint8 or uint16"),
        (np.where(GREY > 50, np.nan, GREY / 255), "unsupported_array", "NaN"),
        (np.where(GREY > 50, -np.inf, GREY / 255), "unsupported_array", "infinite"),
        (GREY > 50, "unsupported_array", "bool; accepted are uint8"),
        (GREY.astype(np.int64), "unsupported_array", "int64"),
        (GREY.astype(np.int16), "unsupported_array", "int16"),
        (GREY.astype(np.complex64), "unsupported_array", "complex64"),
        (GREY.astype(str), "unsupported_array", "accepted are"),
        (np.ma.masked_greater(GREY, 50), "unsupported_array", "masked"),
        (GREY[None, None], "unsupported_array", r"shape \(1, 1, 300, 280\).*as a list"),
        (np.stack([GREY] * 5), "unsupported_array", "shape"),
        (GREY[0], "unsupported_array", "shape"),
        (GREY[:0], "unsupported_array", "no pixel"),
        (np.full((H, W), 7, np.uint8), "constant_image", "same grey|every pixel"),
        (np.full((H, W), 0.3), "constant_image", "same grey|every pixel"),
        (GREY[:4], "too_large", "as long as the other"),
    ],
)  # fmt: skip
def test_arrays_that_break_the_rule_are_refused(pixels, code, words):
    with pytest.raises(InputError, match=words) as caught:
        read(pixels)
    assert caught.value.code == code and str(caught.value).startswith("the array given: ")
    if pixels.dtype.kind in "biufc" and pixels.dtype.kind != "c" and not np.ma.isMaskedArray(pixels):
        with pytest.raises(InputError, match="the tensor given: ") as caught:
            read(torch.from_numpy(np.ascontiguousarray(pixels)))
        assert caught.value.code == code


def test_pictures_that_are_refused():
    assert code_of(Image.fromarray(GREY).convert("CMYK")) == "colour_image"
    assert code_of(Image.fromarray(np.full((H, W), 70000, np.int32))) == "unsupported_array"
    assert code_of(Image.fromarray(GREY.astype(np.float32))) == "unsupported_array"
    frames = BytesIO()
    Image.fromarray(GREY).save(frames, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)])
    assert code_of(Image.open(frames)) == "multi_frame"
    assert code_of(Image.fromarray(GREY), max_pixels=100) == "too_large"


def test_files_and_bytes_that_are_refused(tmp_path):
    path = png(GREY, tmp_path / "x.png")
    data = path.read_bytes()
    for refused in (b"", BytesIO(), b"hello", BytesIO(b"hello")):
        assert code_of(refused) == "not_an_image"
    for cut in (data[: len(data) // 2], BytesIO(data[: len(data) // 2])):
        assert code_of(cut) == "truncated"
    for large in (data, BytesIO(data), memoryview(data), path):
        assert code_of(large, max_bytes=100) == "too_large"
    with path.open("rb") as opened:
        read(opened)
        with pytest.raises(InputError, match=r"x.png: .*seek\(0\)"):
            read(opened)
    with pytest.raises(TypeError, match="for reading bytes"):
        read(StringIO("x"))
    for nothing in (None, 7, [GREY], {"path": path}):
        with pytest.raises(TypeError, match="cannot be read from"):
            read(nothing)


def test_a_radiograph_made_by_hand_is_checked(tmp_path):
    for pixels in (GREY, GREY.astype(np.float32), np.full((H, W), np.nan, np.float32), GREY[0] / 255):
        assert code_of(Radiograph(pixels, Header())) == "unsupported_array"
    assert code_of(Radiograph(np.zeros((H, W), np.float32), Header())) == "constant_image"
    file = read(png(GREY, tmp_path / "x.png"))
    negative = replace(file, pixels=1 - file.pixels)
    with pytest.raises(InputError, match="stored=None"):
        read(negative)
    assert np.array_equal(read(replace(negative, stored=None)).pixels, negative.pixels)


def test_words_never_quote_the_patient(tmp_path):
    given = dataset(GREY.astype(np.uint16) * 11, 12, PatientID="Secret^Name", StudyInstanceUID="1.2.777")
    read_ = read(given)
    assert read_.header.patient_id == "Secret^Name"
    shown = repr(read_) + repr(read_.header) + read_._repr_html_()
    assert "Secret" not in shown and "777" not in shown and "array(" not in shown
    assert repr(read_).startswith("Radiograph(DX, PA, CHEST, 300 x 280 pixels, 12 bits")
    given.BodyPartExamined = "<b>HIP"
    html = read(given)._repr_html_()
    assert "&lt;b&gt;HIP" in html and "<b>" not in html and "not_chest" in html
    assert html.count("data:image/png;base64,") == 1 and len(html) < 300_000


def test_paths_need_neither_torch_nor_pydicom(tmp_path):
    path = png(GREY, tmp_path / "x.png")
    script = (
        "import sys, numpy; from encoder.radiograph import read; read(sys.argv[1]); read(numpy.eye(40)); "
        "print(*({'torch', 'pydicom'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
