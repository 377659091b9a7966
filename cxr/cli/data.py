"""`cxr prepare` and `cxr studies`: archives of X-rays made small, data sets made studies files."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.cli.inputs import dicom_options
from cxr.cli.terminal import (
    NOTHING_DONE,
    Options,
    UsageError,
    check_target,
    echo,
    json_option,
    positive,
    print_json,
    processes,
    status_of,
    tell,
)

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
# Made of the user's own data.
OWN = ("dicom", "table")
# What --help says of each.
ABOUT = {
    "table": "Make a studies file of a table: a row a study, or a row an image. Columns are recognised by their names.",
    "dicom": "Make a studies file of DICOM files: they are grouped by their headers, with priors by date.",
}
OF_A_RELEASE = (
    "Make a studies file of the data set as it is downloaded; paths in it are relative to the file."
)
# problems of a kind that are told one by one
NAMED = 20


def prepare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr prepare` to `parser`."""
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
    add("--workers", type=processes, metavar="N", help="Processes (default: one a core).")


def studies_options(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `cxr studies`, check and make, to `parser`."""
    from train.common.options import Parser

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    p = actions.add_parser("check", help="tell what would spoil a training or a score, and count")
    add = p.add_argument
    add("studies", type=Path, metavar="FILE", help="Studies file (JSON Lines).")
    add("--all", action="store_true", help="Name every problem, not the first of each kind.")
    json_option(p, "counts and all problems as one JSON document")
    said = "make a studies file of a data set as it is downloaded"
    p = actions.add_parser("make", help=said, add_help=False)
    p.add_argument(
        "-h", "--help", nargs=0, action=HelpOfDataset,
        help="Show this help and exit; after DATASET, the help of that data set.",
    )  # fmt: skip
    make_options(p)


class HelpOfDataset(argparse.Action):
    """`cxr studies make table --help` explains what a table takes, and nothing else."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        from train.common.options import Parser

        dataset = getattr(namespace, "dataset", None)
        if dataset in (*DATASETS, *OWN):
            parser = Parser(prog=f"{parser.prog} {dataset}", description=ABOUT.get(dataset, OF_A_RELEASE))
            make_options(parser, dataset)
        parser.print_help()
        parser.exit()


def make_options(parser: argparse.ArgumentParser, dataset: str | None = None) -> None:
    """Add the options of `cxr studies make`, of all data sets or of one, whose name was read already."""
    add = parser.add_argument
    if dataset is None:
        add("dataset", metavar="DATASET", help=f"Data set: {', '.join((*DATASETS, *OWN))}.")
    if dataset == "table":
        add("root", type=Path, metavar="FILE", help="The table: CSV, TSV or JSON Lines.")
    else:
        add("root", type=Path, metavar="FOLDER", help="Where it lies (of `table`: the file).")
    add("--out", type=Path, required=True, metavar="FILE", help="Studies file to write (JSON Lines).")
    add("--overwrite", action="store_true", help="Replace the file of --out.")
    if dataset in (None, "mimic-cxr"):
        add("--reports", type=Path, metavar="DIR", help="Where the reports are, if elsewhere (mimic-cxr).")
    if dataset != "table":
        add("--laterals", action="store_true", help="Keep studies that have no frontal image, too.")
        add("--no-priors", action="store_true", help="Leave out each patient's study before.")
    if dataset in (None, "dicom"):
        group = parser.add_argument_group("dicom")
        dicom_options(group)
        group.add_argument("--dates", action="store_true", help="Write each study's date and time, too.")
    if dataset in (None, "table"):
        table_options(parser.add_argument_group("table"))


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
    """Run `cxr studies`."""
    return {"check": check_studies, "make": make_studies}[args.action](args)


def check_studies(args: argparse.Namespace) -> int:
    """Run `cxr studies check`: return 0 if nothing is wrong, 1 if something is."""
    from vlm.study import counts, load_studies, validate

    found = load_studies(args.studies)
    if args.json:
        problems = list(validate(found, args.studies.parent))
        print_json({"counts": counts(found), "problems": [asdict(problem) for problem in problems]})
        return 1 if problems else 0
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
    echo("no problems" if not problems else f"{len(problems)} problem{'s' * (len(problems) > 1)}: {said}")
    return 1 if problems else 0


def make_studies(args: argparse.Namespace) -> int:
    """Run `cxr studies make`: write a studies file of a downloaded data set or of your own files, with paths
    relative to it."""
    import os
    from dataclasses import replace

    from encoder.errors import did_you_mean
    from encoder.files import sole_writer
    from train.common.entry import next_command
    from vlm.study import Image, counts, is_studies, patients_across_splits, save_studies

    there = (*DATASETS, *OWN)
    if args.dataset not in there:
        near = did_you_mean(args.dataset, there)
        raise UsageError(f"no data set is called {args.dataset!r}{near}; there are {', '.join(there)}")
    _check_options(args)
    check_target(args.out, "studies", is_studies, reads=[args.root], overwrite=args.overwrite)
    read = {"table": _of_table, "dicom": _of_dicom}.get(args.dataset, _of_release)
    found, root, refused = read(args)
    if not found and refused:
        tell(f"{args.root}: no study was found, and nothing is written")
        return NOTHING_DONE
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
        # The run that held it until now may have finished it.
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
        tell(f"{name:22} {value}")
    if shared := patients_across_splits(found):
        tell(f"warning: {len(shared)} patients are in several splits")
    if not any(s.findings for s in found) and any(s.impression for s in found):
        tell("no study has findings, but impressions: --section impression learns those")
    tell(f"wrote {args.out}")
    next_command("cxr", "studies", "check", args.out)
    return status_of(refused, refused + len(found))


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


def _of_release(args: argparse.Namespace) -> tuple[list[Study], Path, int]:
    """Read a data set as it is downloaded; the paths of its studies are relative to the folder."""
    import inspect
    from importlib import import_module

    read = import_module(f"train.datasets.reports.{DATASETS[args.dataset]}").studies
    asked = {"reports": args.reports, "frontal_only": not args.laterals, "priors": not args.no_priors}
    known = inspect.signature(read).parameters
    if args.reports and "reports" not in known:
        raise UsageError(f"--reports means nothing for {args.dataset}")
    return read(args.root, **{k: v for k, v in asked.items() if k in known}), args.root, 0


def _of_dicom(args: argparse.Namespace) -> tuple[list[Study], Path, int]:
    """Group the DICOM files of a folder; the paths of its studies are absolute. Returns, third, how many files,
    archives and folders could not be read."""
    from dataclasses import replace

    from cxr.cli.inputs import grouped, rules_of
    from vlm.prompts import shown_image

    if not args.root.exists():
        raise UsageError(f"{args.root} does not exist; give a folder or a DICOMDIR")
    rules = replace(rules_of(args), only_readable=True)
    refused: list[str] = []
    studies = grouped({0: args.root}, rules, refused, archives=False)[0].studies
    if not args.laterals:
        frontal = [s for s in studies if (image := shown_image(s)) and image.view != "lateral"]
        if count := len(studies) - len(frontal):
            what = (
                "study has no frontal image and is" if count == 1 else "studies have no frontal image and are"
            )
            tell(f"{count} {what} left out (--laterals keeps them)")
        studies = frontal
    return studies, args.root, len(refused)


def _of_table(args: argparse.Namespace) -> tuple[list[Study], Path, int]:
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
        tell(f"column {column:15} {place}")
    for note in table.notes:
        tell(note)
    return table.studies, args.root.parent, 0


def prepare(args: argparse.Namespace) -> int:
    """Run `cxr prepare`: write an archive, or an index if --out ends in .csv."""
    from encoder.progress import bar
    from train.common.entry import next_command
    from train.datasets.archive import INDEX, PER_SHARD, index_lines
    from train.datasets.archive import prepare as shrink_into
    from train.datasets.folder import image_paths, named, read_names
    from train.datasets.index import index as write_index
    from train.datasets.index import index_rows

    try:
        excluded = read_names(args.exclude) if args.exclude else set()
        paths = [path for source in args.inputs for path in image_paths(source, args.split)]
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.out.suffix.lower() == ".csv":
        read_again = partial(_errors_of_index, args.out)
        there = {row["file"] for row in index_rows(args.out)}
        made = write_index(paths, args.out, exclude=excluded, workers=args.workers)
        listing = args.out
    else:
        read_again = partial(_errors_of_archive, args.out)
        there = {line["path"] for line in index_lines(args.out)}
        made = shrink_into(
            paths, args.out, short_side=args.short_side, bits=args.bits, exclude=excluded,
            workers=args.workers, per_shard=min(PER_SHARD, max(64, len(paths) // 20)),
        )  # fmt: skip
        listing = args.out / INDEX
    found = sum(str(path.absolute()) in there for path in paths)
    added = sum(not line.get("error") for line in bar(made, "images", len(paths), done=found))
    # Also those that an earlier run has found, and does not read again.
    known = read_again()
    errors = Counter(code for path in paths if (code := known.get(str(path.absolute()))))
    tell(f"{len(paths)} images found, {found} were there, {added} added to {args.out}")
    kept_out = errors["excluded"] + sum(named(path.absolute(), excluded) for path in paths)
    if excluded and kept_out:
        tell(f"{kept_out} kept out by {args.exclude}")
    elif excluded:
        tell(
            f"none of the {len(excluded)} names in {args.exclude} is that of a patient, a study or a file here"
        )
    for code, count in errors.most_common():
        if code == "excluded":
            continue
        tell(f"{count} left out: {code} (see {listing})")
    refused = errors.total() - errors["excluded"]
    if errors.total() < len(paths):
        next_command(
            "cxr", "pretrain", "--data", args.out, "--out", args.out.with_name(f"{args.out.stem}_encoder")
        )
    return status_of(refused, len(paths))


def _errors_of_index(out: Path) -> dict[str, str]:
    """Return path -> code of what an index calls unusable."""
    from train.datasets.index import index_rows

    return {row["file"]: row["error"] for row in index_rows(out) if row["error"]}


def _errors_of_archive(out: Path) -> dict[str, str]:
    """Return path -> code of what an archive has no image of."""
    from train.datasets.archive import index_lines

    return {line["path"]: line["error"]["code"] for line in index_lines(out) if "error" in line}
