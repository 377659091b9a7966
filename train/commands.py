"""What the sub-commands of `cxr` do that belong to this room: prepare."""

from __future__ import annotations

import sys
from collections import Counter

from train.config import ConfigError
from train.datasets.archive import INDEX, PER_SHARD, index_lines
from train.datasets.archive import prepare as shrink_into
from train.datasets.folder import image_paths, read_names
from train.datasets.index import index as write_index
from train.datasets.index import index_rows


def prepare(args) -> int:
    """`cxr prepare`: an archive, or, where --out ends in .csv, an index."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    try:
        excluded = read_names(args.exclude) if args.exclude else set()
        paths = [path for source in args.inputs for path in image_paths(source, args.split)]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if args.out.suffix.lower() == ".csv":
        there = {row["file"] for row in index_rows(args.out)}
        made = write_index(paths, args.out, exclude=excluded, workers=args.workers)
        listing = args.out
    else:
        there = {line["path"] for line in index_lines(args.out)}
        made = shrink_into(
            paths, args.out, short_side=args.short_side, bits=args.bits, exclude=excluded,
            workers=args.workers, per_shard=min(PER_SHARD, max(64, len(paths) // 20)),
        )  # fmt: skip
        listing = args.out / INDEX
    found = sum(str(path.absolute()) in there for path in paths)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors: Counter[str] = Counter()
    added = 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(paths), completed=found)
        for line in made:
            bar.advance(task)
            error = line.get("error")
            if error:
                errors[error if isinstance(error, str) else error["code"]] += 1
            else:
                added += 1
    print(f"{len(paths)} images found, {found} were there, {added} added to {args.out}")
    for code, count in errors.most_common():
        print(f"{count} left out: {code} (see {listing})", file=sys.stderr)
    return 0
