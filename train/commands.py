"""What the sub-commands of `cxr` do that belong to this room: prepare."""

from __future__ import annotations

import sys
from collections import Counter

from train.config import ConfigError
from train.datasets.archive import PER_SHARD, index_lines
from train.datasets.archive import prepare as shrink_into
from train.datasets.folder import NoSplits, image_paths


def prepare(args) -> int:
    """`cxr prepare`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    excluded = []
    if args.exclude:
        try:
            excluded = [line.strip() for line in args.exclude.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError:
            raise ConfigError(f"{args.exclude} is not UTF-8 text: it should hold a name a line") from None
    try:
        paths = [path for source in args.inputs for path in image_paths(source, args.split)]
    except NoSplits as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    made = shrink_into(
        paths, args.out, short_side=args.short_side, bits=args.bits, exclude=filter(None, excluded),
        workers=args.workers, per_shard=min(PER_SHARD, max(64, len(paths) // 20)),
    )  # fmt: skip
    there = {line["path"] for line in index_lines(args.out)}
    there = sum(str(path.absolute()) in there for path in paths)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors: Counter[str] = Counter()
    added = 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(paths), completed=there)
        for line in made:
            bar.advance(task)
            if "error" in line:
                errors[line["error"]["code"]] += 1
            else:
                added += 1
    print(f"{len(paths)} images found, {there} were there, {added} added to {args.out}")
    for code, count in errors.most_common():
        print(f"{count} left out: {code} (see {args.out / 'index.jsonl'})", file=sys.stderr)
    return 0
