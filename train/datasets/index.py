"""An index of images that lie in a tree too large to be listed at every start: a CSV that any tool can read, and that
`--data` takes as it is.

    file, view, width, height, error        a line an image; `error` says why one cannot be used

Every image is decoded once. An interrupted run resumes with the first image that has no line, and of two runs on one
index the second waits for the first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence, Set
from itertools import islice
from pathlib import Path

from encoder.files import TEXT, append, one_at_a_time, sweep, whole_lines, write_text
from encoder.radiograph import InputError, Limits, read
from encoder.workers import pool
from train.datasets.archive import ArchiveError
from train.datasets.folder import named

COLUMNS = ("file", "view", "width", "height", "error")
# Images between two times that rows are written.
PER_FLUSH = 1024


def index(
    paths: Sequence[Path], out: str | Path, *, exclude: Set[str] = frozenset(), workers: int | None = None
) -> Iterator[dict[str, str]]:
    """Add the images of `paths` that `out` does not have yet, in their order; yields their rows.

    Names in `exclude` are treated as by `train.datasets.archive.prepare`. Raises ArchiveError if `out` is another file.
    """
    out = Path(out)
    # Also before a lock is left beside a file that is not an index.
    index_rows(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.with_name(f".{out.name}.lock")
    with (
        one_at_a_time(lock, f"another run is writing to {out}; waiting ({lock})"),
        pool(workers) as processes,
    ):
        sweep(out.parent, out.name)
        if not out.is_file():
            write_text(out, _lines([COLUMNS]))
        known = {row["file"] for row in index_rows(out)}
        remaining = (str(path.absolute()) for path in paths)
        jobs = ((p, exclude) for p in remaining if p not in known and not named(Path(p), exclude))
        while several := list(islice(jobs, PER_FLUSH)):
            rows = list(processes.map(_row, several, chunksize=8))
            append(out, _lines([[row[name] for name in COLUMNS] for row in rows]).encode(**TEXT))
            yield from rows


def index_rows(out: Path) -> list[dict[str, str]]:
    """Return the rows of an index. Raises ArchiveError if `out` is something else."""
    if not out.is_file():
        return []
    with out.open("rb") as file:
        header = file.readline()
    if not (header.startswith(",".join(COLUMNS).encode()) and header.endswith(b"\n")):
        raise ArchiveError(f"{out} exists and is not an index of cxr prepare; choose another name")
    return list(csv.DictReader(io.StringIO(whole_lines(out).decode(**TEXT), newline="")))


def _row(job: tuple[str, Set[str]]) -> dict[str, str]:
    path, excluded = job
    try:
        header = read(path, Limits()).header
    except InputError as error:
        return dict.fromkeys(COLUMNS, "") | {"file": path, "error": error.code}
    kept_out = not excluded.isdisjoint({header.patient_id, header.study_uid})
    return {
        "file": path,
        "view": header.view,
        "width": str(header.columns),
        "height": str(header.rows),
        "error": "excluded" if kept_out else "",
    }


def _lines(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
