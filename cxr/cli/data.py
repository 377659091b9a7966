"""What the sub-commands of `cxr` do that belong to this room: prepare, studies make."""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

from train.common.config import ConfigError
from train.datasets.archive import INDEX, PER_SHARD, index_lines
from train.datasets.archive import prepare as shrink_into
from train.datasets.folder import image_paths, read_names
from train.datasets.index import index as write_index
from train.datasets.index import index_rows

# The data sets that `cxr studies make` knows: a module each, with `studies(root, ...)`, paths relative to root
DATASETS = {
    "mimic-cxr": "mimic_cxr",
    "iu-xray": "iu_xray",
    "chexpert-plus": "chexpert_plus",
    "rexgradient": "rexgradient",
    "padchest": "padchest",
}


def make_studies(args) -> int:
    """`cxr studies make`: a data set as it is downloaded becomes a studies file, its paths relative to that file."""
    from dataclasses import replace

    from vlm.study import counts, patients_across_splits, save_studies

    if args.dataset not in (*DATASETS, "table"):
        raise ConfigError(
            f"no data set is called {args.dataset!r}; there are {', '.join((*DATASETS, 'table'))}"
        )
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists; choose another file or give --overwrite")
    if args.dataset == "table":
        from train.datasets.table import load_table

        found, root = load_table(args.root), args.root.parent
    else:
        read = import_module(f"train.datasets.reports.{DATASETS[args.dataset]}").studies
        asked = {"reports": args.reports, "frontal_only": not args.laterals, "priors": not args.no_priors}
        known = inspect.signature(read).parameters
        if args.reports and "reports" not in known:
            raise ConfigError(f"--reports means nothing for {args.dataset}")
        found, root = read(args.root, **{k: v for k, v in asked.items() if k in known}), args.root
    if not found:
        raise ConfigError(f"{args.root}: no study was found")
    folder = args.out.parent.absolute()
    base = os.path.relpath(root.absolute(), folder)

    def placed(images):
        return [replace(i, path=Path(base, i.path).as_posix()) for i in images]

    save_studies(
        (
            replace(
                s, images=placed(s.images), prior=s.prior and replace(s.prior, images=placed(s.prior.images))
            )
            for s in found
        ),
        args.out,
        overwrite=args.overwrite,
    )
    for name, value in counts(found).items():
        print(f"{name:22} {value}")
    if shared := patients_across_splits(found):
        print(f"warning: {len(shared)} patients are in several splits", file=sys.stderr)
    if not any(s.findings for s in found) and any(s.impression for s in found):
        print("no study has findings, but impressions: --section impression learns those", file=sys.stderr)
    print(f"wrote {args.out}; cxr studies check {args.out} looks for missing files and more")
    return 0


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
