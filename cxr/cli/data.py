"""`cxr prepare` and `cxr studies`: archives of X-rays made small, data sets made studies files."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.cli.inputs import dicom_options
from cxr.cli.terminal import Options, UsageError, check_regular, check_target, echo, positive

if TYPE_CHECKING:
    from vlm.study import Study

# The data sets that `cxr studies make` knows: a module each, with `studies(root, ...)`, paths relative to root.
DATASETS = {
    "mimic-cxr": "mimic_cxr",
    "iu-xray": "iu_xray",
    "chexpert-plus": "chexpert_plus",
    "rexgradient": "rexgradient",
    "padchest": "padchest",
}
# What is made of one's own data.
OWN = ("dicom", "table")
# problems of a kind that are told one by one
NAMED = 20


def prepare_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="Folder, CSV or studies file.")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="Folder to write; a name that ends in .csv only lists the images and what is wrong with them.",
    )
    add(
        "--short-side",
        type=positive,
        metavar="N",
        default=518,
        help="Shorter side in pixels - 518 is RAD-DINO's.",
    )
    add("--bits", type=int, default=8, choices=(8, 16), help="Bits of a grey level.")
    add("--split", help="Only this split of each input.")
    add(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="Patients, studies or files to keep out, a name a line (also PatientID, StudyInstanceUID).",
    )
    add("--workers", type=positive, metavar="N", help="Processes (default: one a core).")


def studies_options(parser: argparse.ArgumentParser) -> None:
    from train.common.options import Parser

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    p = actions.add_parser("check", help="tell what would spoil a training or a score, and count")
    add = p.add_argument
    add("studies", type=Path, metavar="FILE", help="Studies file (JSON Lines).")
    add("--all", action="store_true", help="Name every problem, not the first of each kind.")
    p = actions.add_parser("make", help="make a studies file of a data set as it is downloaded")
    add = p.add_argument
    add("dataset", metavar="DATASET", help=f"Data set: {', '.join((*DATASETS, *OWN))}.")
    add("root", type=Path, metavar="FOLDER", help="Where it lies (of `table`: the file).")
    add("--out", type=Path, required=True, metavar="FILE", help="Studies file to write (JSON Lines).")
    add("--reports", type=Path, metavar="DIR", help="Where the reports are, if elsewhere (mimic-cxr).")
    add("--laterals", action="store_true", help="Keep studies that have no frontal image, too.")
    add("--no-priors", action="store_true", help="Leave out each patient's study before.")
    add("--overwrite", action="store_true", help="Replace the file of --out.")
    group = p.add_argument_group("dicom")
    dicom_options(group)
    group.add_argument("--dates", action="store_true", help="Write each study's date and time, too.")
    table_options(p.add_argument_group("table"))


def table_options(group: Options) -> None:
    """Add the options of where the columns of a table go."""
    add = group.add_argument
    add(
        "--column", action="append", default=[], metavar="FIELD=COLUMN",
        help="Which column holds a field (indication=Reason); as often as needed.",
    )  # fmt: skip
    add(
        "--label",
        action="append",
        default=[],
        metavar="COLUMN",
        help="A column of 1, 0, -1 to keep as a label.",
    )
    add("--drop", action="append", default=[], metavar="COLUMN", help="A column to leave out.")


def studies(args: argparse.Namespace) -> int:
    """`cxr studies`."""
    return {"check": check_studies, "make": make_studies}[args.action](args)


def check_studies(args: argparse.Namespace) -> int:
    """`cxr studies check`: 0 where nothing is wrong, 1 where something is."""
    from vlm.study import counts, load_studies, validate

    found = load_studies(args.studies)
    for name, value in counts(found).items():
        echo(f"{name:22} {value}")
    problems = validate(found, args.studies.parent)
    times: Counter[str] = Counter()
    for problem in problems:
        times[problem.code] += 1
        if args.all or times[problem.code] <= NAMED:
            echo(f"{problem.code:22} {problem.study_id}: {problem.message}")
    for code, count in times.items():
        if count > NAMED and not args.all:
            echo(f"{code:22} ... and {count - NAMED} more (--all names them)")
    said = ", ".join(f"{count} {code}" for code, count in times.most_common())
    echo("no problems" if not problems else f"{len(problems)} problems: {said}")
    return 1 if problems else 0


def make_studies(args: argparse.Namespace) -> int:
    """`cxr studies make`: a data set as it is downloaded, or one's own files, become a studies file, its paths relative
    to that file."""
    import os
    from dataclasses import replace

    from encoder.errors import did_you_mean
    from encoder.files import sole_writer
    from vlm.study import Image, counts, is_studies, patients_across_splits, save_studies

    there = (*DATASETS, *OWN)
    if args.dataset not in there:
        near = did_you_mean(args.dataset, there)
        raise UsageError(f"no data set is called {args.dataset!r}{near}; there are {', '.join(there)}")
    _check_options(args)
    check_target(args.out, "studies", is_studies, reads=[args.root], overwrite=args.overwrite)
    read = {"table": _of_table, "dicom": _of_dicom}.get(args.dataset, _of_release)
    found, root = read(args)
    if not found:
        raise UsageError(f"{args.root}: no study was found")
    folder = args.out.parent.absolute()

    def placed(images: list[Image]) -> list[Image]:
        base = os.path.relpath(root.absolute(), folder)
        return [
            replace(
                i,
                path=Path(
                    os.path.relpath(i.path, folder) if Path(i.path).is_absolute() else Path(base, i.path)
                ).as_posix(),
            )
            for i in images
        ]

    with sole_writer(args.out):
        # Whoever held it until now may have finished it.
        check_target(args.out, "studies", is_studies, reads=[args.root], overwrite=args.overwrite)
        save_studies(
            (
                replace(
                    s,
                    images=placed(s.images),
                    prior=s.prior and replace(s.prior, images=placed(s.prior.images)),
                )
                for s in found
            ),
            args.out,
            overwrite=args.overwrite,
        )
    for name, value in counts(found).items():
        echo(f"{name:22} {value}")
    if shared := patients_across_splits(found):
        echo(f"warning: {len(shared)} patients are in several splits", file=sys.stderr)
    if not any(s.findings for s in found) and any(s.impression for s in found):
        print("no study has findings, but impressions: --section impression learns those", file=sys.stderr)
    echo(f"wrote {args.out}; cxr studies check {args.out} looks for missing files and more")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Raise UsageError for an option of another data set: it would be ignored."""
    told = {
        "table": {"--column": args.column, "--label": args.label, "--drop": args.drop},
        "dicom": {
            "--per-file": args.per_file,
            "--dates": args.dates,
            "--patient-key": args.patient_key,
            "--patient-ids plain": args.patient_ids == "plain",
        },
    }
    for dataset, options in told.items():
        for option, given in options.items():
            if given and args.dataset != dataset:
                raise UsageError(f"{option} means nothing for {args.dataset}; it is for {dataset}")


def _of_release(args: argparse.Namespace) -> tuple[list[Study], Path]:
    """Read a data set as it is downloaded; the paths of its studies are relative to the folder."""
    import inspect
    from importlib import import_module

    read = import_module(f"train.datasets.reports.{DATASETS[args.dataset]}").studies
    asked = {"reports": args.reports, "frontal_only": not args.laterals, "priors": not args.no_priors}
    known = inspect.signature(read).parameters
    if args.reports and "reports" not in known:
        raise UsageError(f"--reports means nothing for {args.dataset}")
    return read(args.root, **{k: v for k, v in asked.items() if k in known}), args.root


def _of_dicom(args: argparse.Namespace) -> tuple[list[Study], Path]:
    """Group the DICOM files of a folder; the paths of its studies are absolute."""
    from dataclasses import replace

    from cxr.cli.inputs import grouped, rules_of
    from vlm.prompts import shown_image

    if not args.root.exists():
        raise UsageError(f"{args.root} does not exist; give a folder or a DICOMDIR")
    rules = replace(rules_of(args), only_readable=True)
    studies = grouped({0: args.root}, rules, archives=False)[0].studies
    if not args.laterals:
        frontal = [s for s in studies if (image := shown_image(s)) and image.view != "lateral"]
        if count := len(studies) - len(frontal):
            what = (
                "study has no frontal image and is" if count == 1 else "studies have no frontal image and are"
            )
            echo(f"{count} {what} left out (--laterals keeps them)", file=sys.stderr)
        studies = frontal
    return studies, args.root


def _of_table(args: argparse.Namespace) -> tuple[list[Study], Path]:
    """Read a table, and say of each column where it went; the paths of its studies are relative to it."""
    from train.datasets.table import read_table

    columns: dict[str, str] = {}
    for given in args.column:
        name, equals, column = given.partition("=")
        if not (equals and name.strip() and column.strip()):
            raise UsageError(f"--column is FIELD=COLUMN, such as indication=Reason, not {given[:60]!r}")
        if name.strip() in columns:
            raise UsageError(f"--column gives {name.strip()} twice; it has one column")
        columns[name.strip()] = column.strip()
    table = read_table(args.root, columns, args.label, drop=args.drop)
    for column, place in table.columns.items():
        echo(f"column {column:15} {place}")
    for note in table.notes:
        echo(note, file=sys.stderr)
    return table.studies, args.root.parent


def prepare(args: argparse.Namespace) -> int:
    """`cxr prepare`: an archive, or, where --out ends in .csv, an index."""
    from encoder.progress import bar
    from train.datasets.archive import INDEX, PER_SHARD, index_lines
    from train.datasets.archive import prepare as shrink_into
    from train.datasets.folder import image_paths, read_names
    from train.datasets.index import index as write_index
    from train.datasets.index import index_rows

    check_regular(args.out)
    try:
        excluded = read_names(args.exclude) if args.exclude else set()
        paths = [path for source in args.inputs for path in image_paths(source, args.split)]
    except ValueError as error:
        raise UsageError(str(error)) from error
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
    errors: Counter[str] = Counter()
    added = 0
    for line in bar(made, "images", len(paths), done=found):
        if wrong := line.get("error"):
            errors[wrong if isinstance(wrong, str) else wrong["code"]] += 1
        else:
            added += 1
    echo(f"{len(paths)} images found, {found} were there, {added} added to {args.out}")
    for code, count in errors.most_common():
        echo(f"{count} left out: {code} (see {listing})", file=sys.stderr)
    return 0
