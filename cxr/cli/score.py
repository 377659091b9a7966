"""What the sub-commands of `cxr` do that belong to this room: score, weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import eval
from eval.report import is_page, write_page
from eval.scores import weights as known
from eval.scores.inputs import ScoreError
from eval.scores.result import is_scores

WORST = 20  # studies on the page


def score(args, references, images_of) -> int:
    """`cxr score`. `images_of(study ids, studies file)` gives the X-rays for the page."""
    if args.out:
        _check_target(args.out, is_scores)
    if args.html:
        _check_target(args.html, is_page)
    with _reading() as progress:
        scores = eval.score(
            args.predictions,
            references,
            section=args.section,
            compare=args.compare,
            floors=args.floors,
            training=args.training,
            reference_labels=args.reference_labels,
            n_boot=args.bootstrap,
            seed=args.seed,
            clinical_models=args.clinical if args.clinical in ("auto", "none") else args.clinical.split(","),
            weights=args.weights,
            device=args.device,
            progress=progress,
        )
    if args.out:  # first of all: whatever a terminal makes of the table, the numbers are safe
        scores.save(args.out)
    _show(scores.table())
    if args.out:
        print(f"wrote {args.out}")
    if args.html:
        images = {}
        if args.studies and args.studies.suffix.lower() != ".csv":
            try:
                images = images_of([row["study_id"] for row in scores.worst(WORST)], args.studies)
            except ValueError as error:  # scoring is content with less than a studies file has to hold
                print(f"the page has no X-rays: {error}", file=sys.stderr)
        write_page(args.html, title="Scores", scores=scores, worst=WORST, images=images)
        print(f"wrote {args.html}")
    return 0


def _check_target(path: Path, ours: Callable[[Path], bool]) -> None:
    """Before hours of reading, not after."""
    if path.is_dir():
        raise ScoreError(f"{path} is a folder; give a file to write")
    if path.exists() and not ours(path):
        raise ScoreError(f"{path} exists and was not written by cxr score; choose another name")


def _show(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def weights(args) -> int:
    """`cxr weights`."""
    from rich.console import Console
    from rich.table import Table

    for name in args.fetch if args.fetch else known.MODELS if args.fetch is not None else ():
        known.fetch(name, args.folder, lambda file: print(f"fetching {file}", flush=True))
    print(f"looked for in {known.folder(args.folder)}\n")
    table = Table(box=None, pad_edge=False)
    for column in ("model", "serves", "there", "SHA-256 of the weights"):
        table.add_column(column, overflow="fold")
    missing = False
    for name in known.MODELS:
        found = known.find(name, args.folder)
        missing |= not found.complete
        there = "yes" if found.complete else "\n".join(f"no {name}/{file}" for file in found.missing)
        table.add_row(name, ", ".join(found.model.serves), there, found.sha256() or "")
    Console().print(table)
    if missing:
        print(f"\nwhat is missing comes with `{known.FETCH} MODEL ...`, or is copied there by hand")
    return 0


@contextmanager
def _reading():
    """A bar for each model that reads reports; nothing where none does."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, int] = {}

        def progress(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done, total=of)

        yield progress
