"""PNG and JPEG."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from encoder.radiograph.grey import check_pixels, levels, look_up, size_warning
from encoder.radiograph.types import Header, InputError, Limits, Radiograph


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
