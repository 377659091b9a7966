"""8-bit JPEG by Pillow, which says nothing of a stream that is cut off and closed with an end marker: libjpeg then
makes up the rest in one grey.

The stream is fed in three pieces: all but its last bytes; those, and a few fill bits that no symbol begins with; what
follows. A sound stream is complete after the second piece and not before. One that is complete after the first holds
more than its pixels need, so some were lost on the way; one that asks for the third ends early.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from encoder.radiograph.codestream import Scans, restarts_are_whole, scans
from encoder.radiograph.types import InputError, Warn

# Bytes of the scan in the second piece: more than libjpeg reads ahead (8), less than it takes for a restart.
LAST = 16
# Ones are no Huffman code and end every scan (ISO 10918-1 F.1.2.3); stuffed, as FF must be.
FILL = b"\xff\x00" * 8
# A step between rows of blocks is not part of a film if it is this many times its own scatter, and so many
# levels high. Of 2,817 sound pictures none has one; of damaged streams that have the right length, one in
# five.
STEP_CLEAR, STEP_HIGH = 3.0, 4.0
# What is taken for lost MCUs where a file has several scans; any bytes that decode to something.
NOISE = bytes(np.random.default_rng(0).integers(0, 255, 256, dtype=np.uint8))


def open_jpeg(data: bytes) -> tuple[Image.Image, Feed]:
    """Open the first picture of a file. Call `Feed.check` when it has been loaded. Raises what Pillow does."""
    of = scans(data)
    feed = Feed(data, of)
    return Image.open(feed, formats=("JPEG",)), feed


class Feed(io.BytesIO):
    """A file in memory that knows how much of it was asked for."""

    def __init__(self, data: bytes, of: Scans | None) -> None:
        self.of, self.asked, self.stops = of, 0, (0, 0)
        # a second picture, such as a gain map, lies behind the end of the first
        self.whole = data if of is None or of.end is None else data[: of.end]
        if self._in_pieces():
            assert of is not None
            start, end = of.found[0]
            self.stops = (max(start, end - LAST), end + len(FILL))
            data = self.whole[:end] + FILL + self.whole[end:]
        else:
            data = self.whole
        super().__init__(data)

    def _in_pieces(self) -> bool:
        return self.of is not None and self.of.end is not None and len(self.of.found) == 1

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, but not beyond the next stop."""
        at = self.tell()
        stop = next((stop for stop in self.stops if at < stop), None)
        if stop is not None and (size is None or size < 0 or at + size > stop):
            size = stop - at
        found = super().read(size)
        self.asked = max(self.asked, self.tell())
        return found

    def check(self, image: Image.Image) -> list[Warn]:
        """Judge the stream of an image that was loaded from it. Raises InputError if a part of it is missing."""
        if self.of is None or self.of.end is None or not self.of.found:
            return []
        if not self._in_pieces():
            if not self.of.covered or self._goes_on(image):
                raise InputError("truncated", "its last scan is missing, or a part of it")
            return _steps(image)
        if self.asked > self.stops[1]:
            raise InputError("truncated", missing_part(np.asarray(image)))
        if self.asked <= self.stops[0]:
            return [
                Warn(
                    "damaged_pixels", "bytes are left over behind the last pixel, so some were lost before it"
                )
            ]
        if not restarts_are_whole(self.whole, self.of):
            message = "restart markers are missing, so strips may be displaced or made up"
            return [Warn("damaged_pixels", message)]
        return _steps(image)

    def _goes_on(self, image: Image.Image) -> bool:
        """Tell whether the last scan takes more data than it has: then they change the image."""
        assert self.of is not None
        end = self.of.found[-1][1]
        longer = io.BytesIO(self.whole[:end] + NOISE + self.whole[end:])
        with Image.open(longer, formats=("JPEG",)) as other:
            return not np.array_equal(np.asarray(other), np.asarray(image))


def missing_part(pixels: np.ndarray) -> str:
    """Say how much of an image (H, W, ...) a decoder made up: the rows at its end that have one grey."""
    rows = pixels.reshape(len(pixels), -1)
    made_up = (rows == rows[-1, -1]).all(1)
    missing = len(rows) if made_up.all() else int(made_up[::-1].argmin())
    share = f"about {max(1, round(100 * missing / len(rows)))} %" if missing else "the end"
    return f"{share} of the image is missing: its compressed stream ends early, though an end marker follows"


def _steps(image: Image.Image) -> list[Warn]:
    """Look for what a lost bit does to the level of blocks, which are stored as differences (ISO 10918-1 F.1.1.5): all
    blocks from there on are too bright or too dark. That makes one step: from there to the end of the row of blocks,
    and from the beginning of the next row to below the place where it began."""
    if image.mode != "L":
        return []
    x_HW = np.asarray(image)
    h, w = (n // 8 for n in x_HW.shape)
    if h < 4 or w < 16:
        return []
    a, b, c, d = (x_HW[row : row + 8 * (h - 1) : 8, : 8 * w].astype(np.int32) for row in (6, 7, 8, 9))
    # how far each block lies above the one over it, less what the slope on both sides would make; in reading order
    jumps = np.median(((c - b) - ((b - a) + (d - c)) / 2).reshape(h - 1, w, 8), 2).ravel()
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (jumps, jumps * jumps))
    mean = (sums[w:] - sums[:-w]) / w
    scatter = np.sqrt(((squares[w:] - squares[:-w]) / w - mean * mean).clip(0) + 1)
    # one that begins near the edge may be a straight line across the film, such as that of a shutter
    begins = np.arange(len(mean)) % w
    inside = (begins >= 0.12 * w + 2) & (begins <= 0.88 * w - 2)
    if (inside & (np.abs(mean) > STEP_HIGH) & (np.abs(mean) > STEP_CLEAR * scatter)).any():
        return [Warn("damaged_pixels", "from one block on, the image is brighter or darker than before")]
    return []
