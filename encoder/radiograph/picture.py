"""PNG, JPEG and Pillow's images, and the one rule by which stored grey levels become a radiograph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from encoder.radiograph.grey import check_pixels, levels, look_up, size_warning, span
from encoder.radiograph.jpeg import open_jpeg
from encoder.radiograph.png import check_png, has_all_rows
from encoder.radiograph.types import Header, InputError, Limits, Radiograph, Warn

GREEN = 1


def read_picture(data: bytes, limits: Limits) -> Radiograph:
    """Read the bytes of a PNG or JPEG file. Raises InputError."""
    return _read_jpeg(data, limits) if data[:2] == b"\xff\xd8" else _read_png(data, limits)


def _read_jpeg(data: bytes, limits: Limits) -> Radiograph:
    with _refusals():
        image, feed = open_jpeg(data)
        # phones put a gain map, a thumbnail or the other eye's picture behind the first one (CIPA DC-007)
        pictures = getattr(image, "n_frames", 1)
    _load(image, limits)
    notes = feed.check(image)
    image, said = _upright(image)
    notes += said
    radiograph = of_levels(_grey(image))
    if pictures > 1:
        notes.append(Warn("more_pictures", f"the file holds {pictures} pictures; the first is read"))
    return _with(radiograph, notes)


def _read_png(data: bytes, limits: Limits) -> Radiograph:
    notes = check_png(data)
    with _refusals():
        image = Image.open(BytesIO(data), formats=("PNG",))
        depth, kind = data[24:26]
    radiograph = of_image(image, limits, keeps_levels=depth < 16 or kind == 0)
    # Pillow leaves rows black that the file does not have
    if not np.asarray(image)[-1].any() and not has_all_rows(data):
        raise InputError("truncated", "its last rows are missing")
    return _with(radiograph, notes)


def _with(radiograph: Radiograph, notes: list[Warn]) -> Radiograph:
    return replace(radiograph, warnings=(*notes, *radiograph.warnings)) if notes else radiograph


def of_image(image: Image.Image, limits: Limits, keeps_levels: bool = True) -> Radiograph:
    """Read a Pillow image, turned as its EXIF says. `keeps_levels` is false where Pillow would silently keep 8 of 16
    bits. Raises InputError."""
    with _refusals():
        # the pictures behind the first of an MPO are a phone's own
        if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
            raise InputError("multi_frame", f"{frames} frames; give the one that is meant")
    _load(image, limits, keeps_levels)
    image, notes = _upright(image)
    return _with(of_levels(_grey(image)), notes)


def _upright(image: Image.Image) -> tuple[Image.Image, list[Warn]]:
    """Turn an image as its EXIF says; one whose EXIF cannot be read is left as it is."""
    try:
        return ImageOps.exif_transpose(image), []
    # Pillow raises anything on damaged EXIF
    except Exception:
        message = "its EXIF data are damaged; if they ask for the picture to be turned, it is not"
        return image, [Warn("bad_exif", message)]


def _load(image: Image.Image, limits: Limits, keeps_levels: bool = True) -> None:
    """Decode an image if it is one that may be read. Raises InputError."""
    with _refusals():
        W, H = image.size
        check_pixels(H, W, limits)
        if not keeps_levels:
            message = "a 16-bit picture with colour or transparency channels; save it as plain 16-bit grey"
            raise InputError("colour_image", message)
        if image.mode in {"CMYK", "YCbCr", "LAB", "HSV"}:
            raise InputError("colour_image", f"a {image.mode} picture, not a grey one")
        image.load()


def of_levels(stored: np.ndarray) -> Radiograph:
    """Make a radiograph of the stored levels of a picture, dark = air: uint8 or uint16, (H, W), or (H, W, 3) as
    `grey_channels` gives them. Files, Pillow's images, arrays and tensors all come here, so that equal levels give
    equal pixels.

    8 bits are taken as they are, level / 255, because that is what transformers' processor takes them for. 16 bits,
    which no processor reads, are spread so that what occurs spans [0, 1], as a DICOM without a window is. Raises
    InputError.
    """
    stored_HW = stored if stored.ndim == 2 else stored[..., GREEN]
    H, W = stored_HW.shape
    header = Header(rows=H, columns=W, bits=8 * stored.itemsize)
    if stored.dtype == np.uint8:
        span(stored_HW)
        return Radiograph(
            np.divide(stored_HW, 255, dtype=np.float32), header, tuple(size_warning(H, W)), stored
        )
    low, occurs = levels(stored_HW)
    pixels_HW = look_up(stored_HW, low, np.arange(len(occurs), dtype=np.float64), occurs)
    return Radiograph(pixels_HW, header, tuple(size_warning(H, W)))


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what Pillow raises into InputError."""
    try:
        yield
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
        # what Pillow quotes here is the object it was given, with its address
        if "cannot identify" in text:
            raise InputError("unreadable", "its beginning is damaged, so it cannot be decoded") from None
        raise InputError("unreadable", f"it cannot be decoded ({text or type(error).__name__})") from None


def _grey(image: Image.Image) -> np.ndarray:
    """Take the levels as stored, uint8 (H, W) or (H, W, 3), or uint16 (H, W). Pillow's convert("L") would clip 16 bits
    to 255."""
    if image.mode in {"1", "L"}:
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I"):
        stored_HW = np.asarray(image)
        # a PNG has at most 16 bits, in whatever mode Pillow puts them; an image made in memory may have more
        if stored_HW.min() < 0 or stored_HW.max() > 65535:
            raise InputError("unsupported_array", "grey levels beyond 16 bits; scale them to 0 to 65535")
        return stored_HW.astype(np.uint16)
    channels_HWC = np.asarray(image.convert("RGBA"))
    if channels_HWC[..., 3].min() < 255:
        raise InputError("colour_image", "the picture has transparent parts")
    return grey_channels(channels_HWC[..., :3])


def grey_channels(channels_HW3: np.ndarray, level: float = 1) -> np.ndarray:
    """Check that three channels are those of a grey picture, as `grey_of_channels` does: (H, W) where they agree, else
    (H, W, 3), for plain transformers sees all three. Raises InputError for colour."""
    grey_HW = grey_of_channels(channels_HW3, level)
    return np.ascontiguousarray(grey_HW if (channels_HW3 == grey_HW[..., None]).all() else channels_HW3)


def grey_of_channels(channels_HW3: np.ndarray, level: float = 1) -> np.ndarray:
    """Take the green channel (H, W) of a grey picture in three channels; `level` is the 255th part of their range.
    YCbCr and back moves a grey by at most 2 levels, and the chroma noise of a grey scan stays small, too: channels may
    differ by 16 levels at most and by 2 on average. Raises InputError for colour."""
    r_HW, g_HW, b_HW = (channels_HW3[..., c] for c in range(3))
    spread_HW = np.maximum(np.maximum(r_HW, g_HW), b_HW) - np.minimum(np.minimum(r_HW, g_HW), b_HW)
    if spread_HW.max() > 16 * level or spread_HW.mean(dtype=np.float64) > 2 * level:
        raise InputError("colour_image", "the colour channels differ, so it is not a plain radiograph")
    return g_HW
