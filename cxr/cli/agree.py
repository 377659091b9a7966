"""`cxr agree`: how well metrics agree with radiologists' ratings of reports."""

from __future__ import annotations

import argparse
from pathlib import Path

from cxr.cli.terminal import check_target, echo, json_option, print_json, replicates, seed, tell

# eval.agreement.ratings.SETS, which help is not to import
SETS = ("rexval", "radevalx", "radeval-expert", "rate-eval", "own")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr agree` to `parser`."""
    parser.add_argument(
        "ratings",
        type=Path,
        metavar="RATINGS",
        help="Folder or file of a set of ratings: ReXVal, RadEvalX, RadEvalExpertDataset, RaTE-Eval, or your own.",
    )

    group = parser.add_argument_group("which ratings")
    add = group.add_argument
    add("--set", choices=SETS, help="Set that it is (default: the columns of its files tell).")
    add(
        "--rating",
        action="append",
        metavar="NAME",
        help="Column with ratings, in a table of your own; repeat it for several.",
    )
    add("--higher-is-better", action="store_true", help="These ratings are no error counts: more is better.")

    group = parser.add_argument_group("which metrics")
    add = group.add_argument
    add(
        "--metrics",
        nargs="+",
        metavar="KEY",
        help="Metrics by their keys (default: headlines, every BLEU, ROUGE-L and METEOR, clinical scores).",
    )
    add(
        "--clinical",
        default="auto",
        metavar="MODELS",
        help="Clinical metrics: auto (those that `cxr weights` finds), none, or models with commas between them.",
    )
    add("--weights", type=Path, metavar="DIR", help="Folder of their weights (default: see cxr weights).")
    add("--device", help="Device of clinical models (default: a GPU if there is one).")
    add(
        "--values",
        type=Path,
        metavar="FILE",
        help="Values of other metrics: CSV with id, name, value, better (higher or lower).",
    )

    group = parser.add_argument_group("intervals")
    add = group.add_argument
    add(
        "--bootstrap",
        type=replicates,
        metavar="N",
        default=1000,
        help="Replicates for intervals and tests, drawn by study.",
    )
    add("--seed", type=seed, metavar="N", default=0, help="Seed of the replicates.")

    group = parser.add_argument_group("what is written")
    group.add_argument("--out", type=Path, metavar="FILE", help="Write the agreement as JSON to this file.")
    json_option(group, "the agreement as one JSON document, as --out writes it,")


def run(args: argparse.Namespace) -> int:
    """Run `cxr agree`."""
    from encoder.progress import Bars
    from eval.agreement.metrics import metrics_of, values_of
    from eval.agreement.ratings import load_ratings
    from eval.agreement.result import agree, is_agreement
    from eval.agreement.tables import render

    rated = load_ratings(args.ratings, args.set, ratings=args.rating or (), higher=args.higher_is_better)
    if args.out:
        reads = [*rated.files, *([args.values] if args.values else [])]
        check_target(args.out, "an agreement", is_agreement, reads=reads)
    others, notes = values_of(args.values, rated) if args.values else ([], [])
    with Bars(unit="reports") as progress:
        metrics, missing = metrics_of(
            rated,
            args.metrics or (),
            clinical_models=args.clinical if args.clinical in ("auto", "none") else args.clinical.split(","),
            weights=args.weights,
            device=args.device,
            progress=progress,
        )
    found = agree(
        rated, [*metrics, *others], n_boot=args.bootstrap, seed=args.seed, notes=notes, not_computed=missing
    )
    # The numbers are safe before a terminal is shown anything.
    if args.out:
        found.save(args.out)
    if args.json:
        print_json(found.to_json())
    else:
        for line in render(found).splitlines():
            echo(line)
    if args.out:
        tell(f"wrote {args.out}")
    return 0
