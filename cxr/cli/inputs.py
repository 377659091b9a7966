"""What `cxr generate` and `cxr studies make dicom` are given: files, folders, archives, DICOMDIRs and studies files."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cxr.cli.terminal import NOT_IMAGES, Options, UsageError, files_below, tell

if TYPE_CHECKING:
    from encoder.media import Member
    from train.datasets.reports.dicom import File, Found, Rules
    from vlm.study import Study

INPUT = "DICOM, PNG or JPEG file, folder or zip archive of them, DICOMDIR, or studies file (.jsonl)."

UNPACK = "a studies file can name no files in an archive; unpack it"


def dicom_options(group: Options) -> None:
    """Add the options of how DICOM files become studies."""
    add = group.add_argument
    add("--per-file", action="store_true", help="A study a file: no grouping by the DICOM header, no priors.")
    patient_options(group)


def patient_options(group: Options) -> None:
    """Add the options of how patients are called in what is written."""
    add = group.add_argument
    add(
        "--patient-ids",
        choices=("hashed", "plain"),
        default="hashed",
        help="How PatientID is written: hashed (HMAC-SHA-256, the same in every run), or as it is.",
    )
    add(
        "--patient-key",
        type=Path,
        metavar="FILE",
        help="Secret of that hash; without one, anybody who can list the IDs can undo it.",
    )


def rules_of(args: argparse.Namespace) -> Rules:
    """Return how the user wants DICOM files grouped, and patients called. Raises UsageError."""
    from train.datasets.reports.dicom import Rules

    key = b""
    if args.patient_key:
        if args.patient_ids == "plain":
            raise UsageError("--patient-key serves hashed IDs; leave out --patient-ids plain, or the key")
        key = args.patient_key.read_bytes().strip()
        if not key:
            raise UsageError(f"{args.patient_key} is empty; it should hold the secret of the hash")
    return Rules(
        per_file=getattr(args, "per_file", False),
        patient_ids=args.patient_ids,
        key=key,
        dates=getattr(args, "dates", False),
        priors=not getattr(args, "no_priors", False),
    )


def studies_of(args: argparse.Namespace, refused: list[str]) -> Iterator[Study]:
    """Yield the studies of all inputs with absolute image paths, in the order given. The names of folders and archives
    that cannot be read are appended to `refused`.

    Those of DICOM files stand where their main image is. They are called by its name in its folder, or, where two
    inputs have the same, by its path as given.
    """
    from vlm.study import absolute, load_studies, normalise_split

    split = normalise_split(args.split) if args.split else None
    left = args.limit if args.limit is not None else sys.maxsize
    for given in args.inputs:
        if not given.exists():
            raise UsageError(f"{given} does not exist")
    found, input_of = grouped(
        {at: given for at, given in enumerate(args.inputs) if given.suffix != ".jsonl"},
        rules_of(args),
        refused,
        # One of several processes leaves that to its parent.
        told=args.share is None,
    )
    for at, given in enumerate(args.inputs):
        if given.suffix == ".jsonl":
            several = [absolute(s, given.parent) for s in load_studies(given) if split in (None, s.split)]
        else:
            several = [s for s in found.studies if input_of[s.study_id] == at]
            if args.indication:
                several = [replace(s, indication=args.indication) for s in several]
        yield from several[:left]
        left -= len(several[:left])


def grouped(
    inputs: dict[int, Path], rules: Rules, refused: list[str], *, told: bool = True, archives: bool = True
) -> tuple[Found, dict[str, int]]:
    """Group what lies in files, folders, archives and DICOMDIRs into studies; also which input each study is of.

    Without `archives` none is read: a studies file can name only files. What is left out is told on stderr, unless
    `told` is false; what of it cannot be read is appended to `refused`.

    Raises UsageError where two files have one name, and MediaError for an archive or a DICOMDIR that was named and
    cannot be used.
    """
    from train.datasets.reports.dicom import studies

    notes: list[str] = []
    pairs = [
        (at, file) for at, given in inputs.items() for file in _files(at, given, notes, refused, archives)
    ]
    files = _with_own_names([file for _, file in pairs])
    found = studies(files, rules)
    refused += found.unreadable
    if told:
        for line in (*notes, *found.notes()):
            tell(line)
    return found, {file.name: at for file, (at, _) in zip(files, pairs, strict=True)}


def _with_own_names(files: Sequence[File]) -> list[File]:
    """Call files of one name by their path as given, which `path` is until now; their paths become absolute."""
    times = Counter(file.name for file in files)
    named = [replace(file, name=file.name if times[file.name] == 1 else file.path) for file in files]
    twice = [name for name, count in Counter(file.name for file in named).items() if count > 1]
    if twice:
        raise UsageError(
            f"{len(twice)} study ids occur more than once, first {twice[0]!r}; each study needs its own"
        )
    return [replace(file, path=str(Path(file.path).absolute())) for file in named]


def _files(at: int, given: Path, notes: list[str], refused: list[str], archives: bool) -> Iterator[File]:
    """Yield the files of one input, with their paths as given. Files that are named are all of one place."""
    from encoder.media import MediaError, dicomdir_files, is_dicomdir, is_zip, members
    from train.datasets.reports.dicom import File

    if given.is_dir():
        for number, path in enumerate(sorted(files_below(given, refused))):
            name = str(path.relative_to(given))
            # Other formats are zip archives, too: .docx, .jar and many more.
            if path.suffix.lower() not in ("", ".zip") or not is_zip(path):
                yield File(name, str(path), path, place=(at, 0))
                continue
            if not archives:
                notes.append(f"{path}: {UNPACK}; it is left out")
                refused.append(name)
                continue
            try:
                inside = members(path)
            except MediaError as error:
                notes.append(f"{error}; it is left out")
                refused.append(name)
                continue
            yield from _members(inside, name, (at, 1 + number), notes)
    elif is_zip(given):
        if not archives:
            raise UsageError(f"{given}: {UNPACK}")
        yield from _members(members(given), given.name, (at, 0), notes)
    elif is_dicomdir(given):
        listed, missing = dicomdir_files(given)
        if missing:
            refused.append(str(given))
            notes.append(f"{given}: {missing} of the {missing + len(listed)} files that it names are missing")
        for path in listed:
            yield File(str(path.relative_to(given.parent)), str(path), path, place=(at, 0))
    else:
        yield File(given.name, str(given), given, is_named=True)


def _members(inside: Iterable[Member], name: str, place: tuple[int, int], notes: list[str]) -> Iterator[File]:
    """Yield the members of an archive that may be radiographs, as `files_below` does of a folder."""
    from encoder.media import ZIP, head_of
    from train.datasets.reports.dicom import File

    nested = 0
    for member in inside:
        inner = PurePosixPath(member.inner)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in inner.parts)
        if hidden or inner.suffix.lower() in NOT_IMAGES:
            continue
        if head_of(member, 4) in ZIP:
            nested += 1
        else:
            yield File(f"{name}/{member.inner}", member.name, member, place=place)
    if nested:
        what = "an archive in it is" if nested == 1 else f"{nested} archives in it are"
        notes.append(f"{name}: {what} not opened; unpack it, if X-rays are there")
