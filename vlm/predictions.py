"""Predictions files: made of studies by a model, resumed where an earlier run stopped.

What is being written is called FILE.part until it is whole (FILE.part.2 by the third of several processes). Each row
says which study it belongs to: a digest of its words and of its images' contents, `study_sha256`. A resumed
run takes only rows of the very same studies; what it finds of others is put aside, in FILE.other.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.errors import UserError, printable
from encoder.files import append_json, sha256_of, write_atomically
from encoder.media import Member
from encoder.progress import bar
from vlm.given import Held
from vlm.prediction import is_prediction
from vlm.prompts import shown_with
from vlm.study import Image, Study, is_predictions, study_to_json

if TYPE_CHECKING:
    from vlm.findings import Findings

# In all predictions of a file alike.
SAME = ("revision", "adapter_sha256", "preprocess_sha256", "setup_sha256", "decoding")
# A file name that is not UTF-8 comes out as JSON's \\udcXX.
TEXT: dict[str, str] = {"encoding": "utf-8", "errors": "backslashreplace"}
Row = dict[str, Any]


class PredictionsError(UserError, ValueError):
    """A predictions file that cannot be written or resumed as asked."""


@dataclass(frozen=True)
class Share:
    """Select the studies that one of several processes answers: each `of`-th, from `number` on."""

    number: int
    of: int


def write_predictions(
    path: Path,
    model: Findings,
    studies: Sequence[Study],
    settings: Mapping[str, Any],
    *,
    share: Share | None = None,
    write: Callable[[Path, list[Row]], None] | None = None,
) -> int:
    """Make the predictions that no part of `path` has yet, and put all of them together.

    Only one process may do so at a time, but for those of one `share`: hold `encoder.files.sole_writer(path)`.

    Args:
        settings: `Findings.generate`'s, `decoding` among them.
        share: make only these, and leave the parts for the process that puts them together.
        write: how all of them become `path`; without it as JSON Lines.

    Returns:
        How many studies were refused; 0 with `share`.

    Raises:
        PredictionsError: what is there was made by another model, decoding or preprocessing, or a file beside `path`
            is in the way.
        OSError: the disk is full, or cannot be written for another reason; what was made is kept.
    """
    images, sentences = settings.get("images", "own"), settings.get("sentences", "none")
    said = model.about(settings["decoding"], images, settings.get("seed", 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    check_beside(path, read_by(studies, settings.get("root", ".")))
    named = fingerprints(studies, settings)
    rows, others = _taken(path, said, sentences, named)
    part = part_of(path)
    mine = studies
    if share is not None:
        mine = studies[share.number :: share.of]
        part = part.with_name(f"{part.name}.{share.number}")
    elif others:
        aside = other_of(path)
        append_json(aside, others)
        print(
            f"{len(others)} predictions in {_shown(part)} are of other studies; they are kept in {_shown(aside)}",
            file=sys.stderr,
        )
    left = {s.study_id for s in mine} - rows.keys()
    if rows and share is None and left:
        print(f"{len(rows)} of {len(studies)} studies are in {_shown(part)} already", file=sys.stderr)
    what = "findings" if images == "own" else f"{images} images"
    with part.open("a", **TEXT) as file:
        try:
            made = model.generate(studies, only=left, **settings)
            for prediction in bar(made, what, len(left), unit="studies") if share is None else made:
                name = prediction.study_id
                rows[name] = {**prediction.to_json(), "study_sha256": named[name]()}
                file.write(json.dumps(rows[name], ensure_ascii=False) + "\n")
                file.flush()
        except KeyboardInterrupt:
            print(
                f"\nwhat is finished lies in {_shown(part)}; run the same command to resume", file=sys.stderr
            )
            raise
    if share is not None:
        return 0
    ordered = [rows[s.study_id] for s in studies]
    (write or write_rows)(path, ordered)
    remove_parts(path)
    return sum("error" in row for row in ordered)


def read_by(studies: Iterable[Study], root: str | Path = ".") -> list[Path]:
    """Return the paths of the images of `studies` and of their priors."""
    return [
        Path(root, image.path)
        for study in studies
        for image in (*study.images, *(study.prior.images if study.prior else ()))
    ]


def fingerprints(studies: Sequence[Study], settings: Mapping[str, Any]) -> dict[str, Callable[[], str]]:
    """Return, by study id, a function that reads the study's images and returns the `study_sha256` of what
    the model sees."""
    root, images = settings.get("root", "."), settings.get("images", "own")
    shown = shown_with(studies, images, settings.get("seed", 0))
    return {study.study_id: cache(lambda study=study: study_sha256(study, root)) for study in shown}


def study_sha256(study: Study, root: str | Path = ".") -> str:
    """Return the hex digest of what a model may be shown of a study: its words, and its images and the prior's, by what
    the files contain. An image counts as missing where its file cannot be read, and by its path if it is not
    a file."""

    def contents(images: list[Image]) -> list[Image]:
        return [replace(image, path=_contents(image, root)) for image in images]

    prior = study.prior and replace(study.prior, images=contents(study.prior.images))
    answers: dict[str, Any] = dict.fromkeys(("split", "findings", "impression", "labels", "diagnoses"))
    seen = replace(study, images=contents(study.images), prior=prior, extra={}, **answers)
    words = json.dumps(study_to_json(seen), sort_keys=True, default=str)
    return hashlib.sha256(words.encode("utf-8", "backslashreplace")).hexdigest()


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write JSON Lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary, temporary.open("w", **TEXT) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def part_of(path: Path) -> Path:
    """Return the name of `path` while it is being written."""
    return path.with_name(path.name + ".part")


def parts_of(path: Path) -> Iterator[Path]:
    """Yield the parts of `path` that are there."""
    # Not a pattern for `glob`: names may hold brackets, and FILE.part.notes may be the user's own.
    own = re.compile(re.escape(path.name) + r"\.part(\.\d+)?")
    if path.parent.is_dir():
        yield from sorted(file for file in path.parent.iterdir() if own.fullmatch(file.name))


def other_of(path: Path) -> Path:
    """Return the name of the file that keeps rows of other studies, which an earlier run of `path` left."""
    return path.with_name(path.name + ".other")


def check_beside(path: Path, reads: Iterable[Path]) -> None:
    """Raise PredictionsError unless the files beside `path` that a run resumes, adds to or removes are its own: no
    links, none of those that it `reads`, and predictions."""
    read = set()
    for file in reads:
        try:
            about = file.stat()
        except (OSError, ValueError):
            continue
        read.add((about.st_dev, about.st_ino))
    for file in {part_of(path), *parts_of(path), other_of(path)}:
        if file.is_symlink():
            why = "is a link, through which this command would write"
        elif not file.exists():
            continue
        elif (file.stat().st_dev, file.stat().st_ino) in read:
            why = "is what this command reads"
        elif not (file.is_file() and (is_predictions(file) or _cut_off_at_once(file))):
            why = "does not hold predictions"
        else:
            continue
        raise PredictionsError(f"{file} {why}; move it away, or choose another name than {path.name}")


def remove_parts(path: Path) -> None:
    """Remove what an interrupted run left of `path`. `check_beside` has looked at it."""
    for part in parts_of(path):
        part.unlink()


def _cut_off_at_once(file: Path) -> bool:
    """Tell whether a run was killed while it wrote its first prediction."""
    with file.open("rb") as opened:
        start = opened.read(1 << 20)
    return b"\n" not in start and start.startswith(b'{"'[: len(start)])


def _shown(path: Path) -> str:
    return printable(str(path))


def _contents(image: Image, root: str | Path) -> str:
    path = Path(root, image.path)
    try:
        if isinstance(image, Held) and isinstance(image.source, Member):
            return image.source.sha256()
        # not of a pipe or a device, which may have no end
        if path.is_file():
            return sha256_of(path)
        return str(path) if path.exists() else "missing"
    # one that may not be read, a name that is too long or has a null character, a damaged archive
    except (OSError, ValueError):
        return "missing"


def _taken(
    path: Path, said: Row, sentences: str, named: Mapping[str, Callable[[], str]]
) -> tuple[dict[str, Row], list[Row]]:
    """Return the rows of the parts that are of these studies, by study, and the rows that are not."""
    rows: dict[str, Row] = {}
    others: list[Row] = []
    for part in parts_of(path):
        for row in _finished(part):
            other = [k for k in SAME if row.get(k) != said.get(k)]
            if not other and "error" not in row and not _scored(row.get("sentences"), sentences):
                other = ["sentences"]
            if other:
                raise PredictionsError(
                    f"{part} was begun with another {', '.join(other)}; finish it so, remove it, or give --overwrite"
                )
            name = row.get("study_id")
            if name in named and row.get("study_sha256") == named[name]():
                rows[name] = row
            else:
                others.append(row)
    return rows, others


def _scored(found: list[Row] | None, asked: str) -> bool:
    """Tell whether the sentences of a row have the scores that are asked for."""
    if found is None or asked == "none":
        return found is None and asked == "none"
    scored = [row for row in found if "confidence" in row]
    return all(("image_dependence" in row) == (asked == "image_dependence") for row in scored)


def _finished(part: Path) -> list[Row]:
    """Return the predictions of a part. Lines that are not predictions are ignored; the last line, if it was
    cut off, is dropped from the file, too."""
    rows: list[Row] = []
    whole = 0
    with part.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                row = json.loads(line)
                sound = is_prediction(row)
            except (ValueError, RecursionError):
                continue
            if sound:
                rows.append(row)
    if whole != part.stat().st_size:
        with part.open("rb+") as file:
            file.truncate(whole)
    return rows
