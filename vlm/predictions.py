"""Predictions files: made of studies by a model, resumed where an earlier run stopped.

What is being written is called FILE.part until it is whole (FILE.part.2 by the third of several processes).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.errors import UserError
from encoder.files import write_atomically
from encoder.progress import bar
from vlm.study import Study

if TYPE_CHECKING:
    from vlm.findings import Findings

# In all predictions of a file alike.
SAME = ("revision", "adapter_sha256", "preprocess_sha256", "decoding")
# A file name that is not UTF-8 comes out as JSON's \\udcXX.
TEXT: dict[str, str] = {"encoding": "utf-8", "errors": "backslashreplace"}
Row = dict[str, Any]


class PredictionsError(UserError, ValueError):
    """A predictions file that cannot be written or resumed as asked."""


@dataclass(frozen=True)
class Share:
    """Which of the studies one of several processes answers: each `of`-th, from `number` on."""

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

    Args:
        settings: `Findings.generate`'s, `decoding` among them.
        share: make only these, and leave the parts for the process that puts them together.
        write: how all of them become `path`; without it as JSON Lines.

    Returns:
        How many studies were refused; 0 with `share`.

    Raises:
        PredictionsError: what is there was made by another model, decoding or preprocessing.
    """
    images, sentences = settings.get("images", "own"), settings.get("sentences", "none")
    said = model.about(settings["decoding"], images, settings.get("seed", 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = {}
    for part in [_part(path), *sorted(path.parent.glob(f"{path.name}.part.*"))]:
        rows |= _finished(part, said, sentences)
    mine, part = studies, _part(path)
    if share is not None:
        mine = studies[share.number :: share.of]
        part = part.with_name(f"{part.name}.{share.number}")
    left = {s.study_id for s in mine} - rows.keys()
    if rows and share is None and left:
        print(f"{len(rows)} of {len(studies)} studies are in {part} already")
    what = "findings" if images == "own" else f"{images} images"
    with part.open("a", **TEXT) as file:
        try:
            made = model.generate(studies, only=left, **settings)
            for prediction in bar(made, what, len(left), unit="studies") if share is None else made:
                rows[prediction.study_id] = prediction.to_json()
                file.write(json.dumps(rows[prediction.study_id], ensure_ascii=False) + "\n")
                file.flush()
        except KeyboardInterrupt:
            print(f"\nwhat is finished lies in {part}; run the same command to resume", file=sys.stderr)
            raise
    if share is not None:
        return 0
    ordered = [rows[s.study_id] for s in studies]
    (write or write_rows)(path, ordered)
    remove_parts(path)
    return sum("error" in row for row in ordered)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write JSON Lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary, temporary.open("w", **TEXT) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def remove_parts(path: Path) -> None:
    """Remove what an interrupted run left of `path`."""
    for part in path.parent.glob(f"{path.name}.part*"):
        part.unlink()


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _finished(part: Path, said: Row, sentences: str) -> dict[str, Row]:
    """The predictions of a part by study; a line that was cut off is dropped."""
    rows: dict[str, Row] = {}
    if not part.exists():
        return rows
    whole = 0
    with part.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None:
                break
            whole += len(line)
            other = [k for k in SAME if row.get(k) != said.get(k)]
            if not other and "error" not in row and ("sentences" in row) != (sentences != "none"):
                other = ["sentences"]
            if other:
                raise PredictionsError(
                    f"{part} was begun with another {', '.join(other)}; finish it so, remove it, or give --overwrite"
                )
            rows[row["study_id"]] = row
    with part.open("rb+") as file:
        file.truncate(whole)
    return rows
