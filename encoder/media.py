"""Zip archives and DICOMDIRs, read in place: which files they hold, within limits.

Nothing is unpacked onto the disk. A `Member` is decompressed into memory each time it is read, so nothing of a
patient's is left behind however a process ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from encoder.errors import UserError
from encoder.radiograph import Limits, quiet

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# The first component of a drive's path ("C:"), as Windows writes it.
DRIVE = re.compile(r"[A-Za-z]:")


class MediaError(UserError, ValueError):
    """An archive or a DICOMDIR that cannot be used, or is not safe to use; the message names it and the reason."""


@dataclass(frozen=True)
class MediaLimits:
    """Limit what is unpacked. An archive beyond one of these is refused as a whole."""

    max_members: int = 50_000  # a disc of CT series has some thousands
    max_bytes: int = Limits().max_bytes  # of one member, unpacked: the reader takes no more
    max_total: int = 64 << 30  # of all of them, unpacked; they are never in memory together
    # Unpacked size over packed size. Films of noise and bone reach 5, those with broad black margins 50.
    max_ratio: int = 200
    # Members below this size may have any ratio: constant test pictures do, and cost nothing.
    ratio_from: int = 1 << 20
    max_directory: int = 64 << 20  # bytes of a DICOMDIR, or of an archive's central directory


@dataclass(frozen=True)
class Member:
    """A file in a zip archive."""

    archive: Path
    inner: str
    size: int

    @property
    def name(self) -> str:
        """Return where it is, as a path that goes through the archive."""
        return f"{self.archive}/{self.inner}"

    def read(self, most: int = -1) -> bytes:
        """Decompress its first `most` bytes, or all, each time from the beginning. Raises MediaError."""
        with self.open() as file:
            return file.read(self.size if most < 0 else most)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open it for reading, seekable. Raises MediaError."""
        with _reading(self.archive):
            status = self.archive.stat()
            archive = _archive(self.archive, (status.st_mtime_ns, status.st_size), os.getpid())
            with archive.open(self.inner) as file:
                yield file

    def sha256(self) -> str:
        """Return the hex digest of its content. Raises MediaError."""
        digest = hashlib.sha256()
        with self.open() as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()


def is_zip(path: Path) -> bool:
    """Say whether a file begins as a zip archive does."""
    return _starts_with(path, 0, ZIP)


def is_dicomdir(path: Path) -> bool:
    """Say whether a file is a DICOMDIR, whatever its name. Nothing but its first part is read."""
    if not _starts_with(path, 128, (b"DICM",)):
        return False
    # pydicom is imported only where it is needed, because pictures do without it.
    from pydicom.filereader import read_file_meta_info

    from encoder.radiograph.parse import DICOMDIR_CLASS

    with quiet():
        try:
            return str(read_file_meta_info(path).get("MediaStorageSOPClassUID")) == DICOMDIR_CLASS
        except Exception:  # pydicom raises anything on a damaged file
            return False


def members(path: Path, limits: MediaLimits | None = None) -> list[Member]:
    """List the files of a zip archive, sorted by name. Raises MediaError, if one member alone is not as it should be.

    Sizes are the archive's own words. They bind it: `zipfile` decompresses no more than a member's stated size.
    """
    limits = limits or MediaLimits()
    with _reading(path):
        _check_directory(path, limits)
        with zipfile.ZipFile(path) as archive:
            found = [info for info in archive.infolist() if not info.is_dir()]
    if len(found) > limits.max_members:
        raise MediaError(f"{path}: {len(found)} files, more than {limits.max_members}; unpack what is needed")
    if total := _too_much(sum(info.file_size for info in found), limits.max_total):
        raise MediaError(f"{path}: it unfolds to {total}; unpack what is needed")
    if twice := [name for name, times in Counter(info.filename for info in found).items() if times > 1]:
        raise MediaError(f"{path}: {twice[0]!r} occurs twice in it")
    for info in found:
        if wrong := _wrong(info, limits):
            raise MediaError(f"{path}: {info.filename!r} {wrong}")
    return [Member(path, info.filename, info.file_size) for info in sorted(found, key=lambda i: i.filename)]


def dicomdir_files(path: Path, limits: MediaLimits | None = None) -> tuple[list[Path], int]:
    """List the files of a DICOMDIR's IMAGE records (PS3.3 F.5) that are there, and count those that are not.

    File IDs are relative to its folder (PS3.10 8.6), and written in capitals; a disk may have them in small letters.
    Raises MediaError where it cannot be read, or names a file outside of its folder or behind a link.
    """
    from pydicom import dcmread

    limits = limits or MediaLimits()
    size = path.stat().st_size
    if size > limits.max_directory:
        raise MediaError(f"{path}: a DICOMDIR of {size} bytes, more than {limits.max_directory}")
    ids: list[tuple[str, ...]] = []
    with quiet():
        try:
            for record in dcmread(path).get("DirectoryRecordSequence") or []:
                parts = record.get("ReferencedFileID")
                # PS3.3 F.3.2.2: records that are not in use are marked by 0
                in_use = record.get("RecordInUseFlag", 0xFFFF) != 0
                if str(record.get("DirectoryRecordType")).strip() == "IMAGE" and parts and in_use:
                    ids.append((parts,) if isinstance(parts, str) else tuple(map(str, parts)))
        except Exception as error:  # pydicom raises anything on a damaged file
            # its text may quote the patient's data
            raise MediaError(f"{path}: this DICOMDIR is damaged ({type(error).__name__})") from None
    if len(ids) > limits.max_members:
        raise MediaError(f"{path}: it names {len(ids)} files, more than {limits.max_members}")
    found: list[Path] = []
    missing = 0
    for parts in dict.fromkeys(ids):
        if any(_outside(part) or "/" in part or "\\" in part for part in parts):
            raise MediaError(f"{path}: it names {'/'.join(parts)!r}, which is outside of its folder")
        file = _below(path.parent, parts)
        if file is None:
            missing += 1
            continue
        if any(p.is_symlink() for p in (file, *file.parents[: len(parts) - 1])):
            raise MediaError(f"{path}: it names {'/'.join(parts)!r}, which is a link")
        found.append(file)
    return sorted(found), missing


@lru_cache(maxsize=4)
def _archive(path: Path, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    """Open an archive once for many members: its directory may list thousands. A forked process opens it anew, for two
    that share a descriptor would share its position."""
    return zipfile.ZipFile(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what `zipfile` raises into a MediaError."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or 'it cannot be read'}") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, struct.error, ValueError, KeyError):
        raise MediaError(f"{path}: this zip archive is damaged; copy it again") from None
    except (NotImplementedError, RuntimeError) as error:
        raise MediaError(f"{path}: this zip archive cannot be read: {error}") from None
    except Exception as error:  # zlib, bz2 and lzma have errors of their own
        raise MediaError(f"{path}: this zip archive is damaged ({type(error).__name__})") from None


def _check_directory(path: Path, limits: MediaLimits) -> None:
    """Refuse a central directory that `zipfile` would need too much memory for (APPNOTE 4.3.14 to 4.3.16)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22 - 20 - 56))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise zipfile.BadZipFile
    count, length = struct.unpack_from("<HL", tail, at + 10)
    # Where the fields do not hold the numbers, a record before it does.
    long = tail.rfind(b"PK\x06\x06", 0, at)
    if long >= 0 and long + 56 <= len(tail):
        count, length = struct.unpack_from("<2Q", tail, long + 32)
    if count > 2 * limits.max_members or length > limits.max_directory:
        raise MediaError(f"{path}: it has too many files ({count}); unpack what is needed")


def _wrong(info: zipfile.ZipInfo, limits: MediaLimits) -> str:
    """Say what is wrong with a member, or nothing."""
    parts = re.split(r"[/\\]", info.filename)
    if parts[0] == "" or any(map(_outside, parts)):
        return "points outside of the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 0x1:
        return "is encrypted; unpack it with its password"
    if too_much := _too_much(info.file_size, limits.max_bytes):
        return f"unfolds to {too_much}"
    if info.file_size > limits.ratio_from and info.file_size > limits.max_ratio * info.compress_size:
        return f"unfolds to more than {limits.max_ratio} times its size, as no film does"
    return ""


def _outside(part: str) -> bool:
    return part == ".." or DRIVE.match(part) is not None or "\0" in part


def _too_much(size: int, most: int) -> str:
    return f"{size} bytes, more than {most}" if size > most else ""


def _below(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """Find a file by its ID, if need be whatever its case; None where it is missing."""
    path = folder
    for part in parts:
        exact = path / part
        if not exact.exists() and path.is_dir():
            others = sorted(p for p in path.iterdir() if p.name.lower() == part.lower())
            exact = others[0] if others else exact
        path = exact
    return path if path.is_file() else None


def _starts_with(path: Path, at: int, words: tuple[bytes, ...]) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(at + 4)[at:] in words
    except OSError:
        return False


def head_of(source: Path | Member, count: int) -> bytes:
    """Return the first `count` bytes; b"" where it cannot be read."""
    try:
        with opened(source) as file:
            return file.read(count)
    except (OSError, MediaError):
        return b""


@contextmanager
def opened(source: Path | Member) -> Iterator[IO[bytes]]:
    """Open a file, or a member of an archive, for reading. Raises OSError or MediaError."""
    if isinstance(source, Member):
        with source.open() as file:
            yield file
    else:
        with source.open("rb") as plain:
            yield plain
