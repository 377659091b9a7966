"""`cxr phantom`, `cxr plan`, `cxr leaks`, `cxr outliers`: what comes before and after a training."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from cxr.cli.terminal import (
    Options,
    UsageError,
    echo,
    files_below,
    json_option,
    number,
    positive,
    print_json,
    processes,
    seed,
    share,
    status_of,
    tell,
)
from encoder.errors import printable

PLAN = "Say what a fine-tuning would cost, without its weights. Its options are those of cxr finetune."


def phantom_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr phantom` to `parser`."""
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="Folder to write; it must not hold phantoms already.")
    add("--studies", type=positive, metavar="N", default=1000, help="Studies, at least so many.")
    add("--seed", type=seed, metavar="N", default=0, help="Seed of the population.")
    add("--size", type=positive, metavar="N", default=512, help="Shorter side in pixels.")
    add("--format", choices=("dicom", "png"), default="dicom", help="Format of the films.")
    add("--no-masks", action="store_false", dest="masks", help="Leave out the masks.")
    add("--split", choices=("train", "validate", "test"), help="Put every patient into this split.")
    add("--workers", type=processes, metavar="N", help="Processes (default: one a core).")

    add = parser.add_argument_group("who is drawn").add_argument
    add(
        "--prevalence",
        type=number,
        metavar="X",
        default=1.0,
        help="Times as many findings, none above 30 %%.",
    )
    add(
        "--followups",
        type=share,
        metavar="X",
        help="Share of patients with a second study, its prior the first (default: 0.15).",
    )
    add(
        "--laterals",
        type=share,
        metavar="X",
        help="Share of PA films with a lateral film beside them (default: 0.33).",
    )
    add(
        "--hidden",
        type=share,
        metavar="X",
        default=0.0,
        help="Share of patients with each finding that a lateral film alone shows.",
    )
    add("--wording", choices=("prose", "telegraphic"), default="prose", help="How reports are written.")


def phantom(args: argparse.Namespace) -> int:
    """Run `cxr phantom`."""
    from train.common.entry import next_command
    from train.phantom.population import write_population

    asked = ("studies", "seed", "size", "format", "masks", "split", "workers", "prevalence", "followups", "laterals",
             "hidden", "wording")  # fmt: skip
    given = {name: getattr(args, name) for name in asked if getattr(args, name) is not None}
    listing = write_population(args.out, **given)
    tell(f"wrote {listing}")
    few = ["--limit", 16] if args.studies > 16 else []
    next_command("cxr", "generate", listing, *few, "--out", args.out / "predictions.jsonl")
    return 0


def plan_options(parser: Options) -> None:
    """Add what is not a fine-tuning's own option; `--out` and `--studies` are not needed here."""
    add = parser.add_argument
    add("--text", type=positive, metavar="N", default=256, help="Tokens of a study beside its images'.")
    add("--answer", type=positive, metavar="N", default=128, help="Tokens of these that are learned.")
    add("--images", type=positive, metavar="N", default=1, help="Images of a study.")
    add("--processes", type=positive, metavar="N", default=1, help="Processes that share a step.")
    json_option(parser, "parameters and bytes as one JSON document")


def plan(args: argparse.Namespace) -> int:
    """Run `cxr plan`: print a fine-tuning's parameters and memory without loading weights."""
    from train.finetune.config import configured

    config = configured([*args.rest, "--out", "-", "--studies", "-"], plan_options, "cxr plan", PLAN)
    if config.encoder is None or config.llm is None:
        raise UsageError("give --encoder and --llm, directories with their config.json")
    from train.finetune.plan import dry_model, plan

    llava = dry_model(config.encoder, config.llm, config)
    batch = config.batch_size // config.gradient_accumulation_steps // args.processes
    made = plan(
        llava, batch=batch, text=args.text, answer=args.answer, images=args.images, bf16=config.precision != "fp32",
        checkpointing=config.gradient_checkpointing, nf4=config.llm_dtype == "nf4",
    )  # fmt: skip
    config_of: Any = llava.config
    tokens = config_of.image_seq_length * args.images + args.text
    if args.json:
        memory = ("weights", "gradients", "optimizer", "activations", "total")
        print_json({
            "parameters": [dict(zip(("part", "count", "trained"), row, strict=True)) for row in made.parameters],
            "bytes_of_a_process": {name: getattr(made, name) for name in memory},
            "step_of_a_process": {"studies": batch, "images_of_a_study": args.images, "tokens_of_a_study": tokens},
        })  # fmt: skip
        return 0
    print("\n".join(made.lines()))
    echo(f"a step of a process: {batch} studies of {args.images} images, {tokens:,} tokens each")
    return 0


def leaks_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr leaks` to `parser`."""
    add = parser.add_argument
    add(
        "source",
        metavar="IMAGES",
        help="Images of a probe: KIND:FOLDER of a release, a CSV, a studies file, a folder of classes.",
    )
    add(
        "--list",
        action="append",
        default=[],
        dest="lists",
        metavar="FILE",
        help="What the encoder saw: a CSV, a text, an index or archive of cxr prepare, a folder; may be repeated.",
    )
    add(
        "--pixels",
        action="append",
        default=[],
        metavar="SOURCE",
        help="Images it saw, to be compared by their pixels: a folder, a CSV, an archive; may be repeated.",
    )
    add("--encoder", help="Encoder whose training data are looked up, as rad-dino.")
    add(
        "--tolerance",
        type=number,
        metavar="LEVELS",
        help="Mean difference of pixels in grey levels of 255 (default: 4).",
    )
    add("--workers", type=processes, metavar="N", help="Processes (default: one a core).")
    add("--out", type=Path, metavar="FILE", help="Write the shared images to this CSV, which must not exist.")
    json_option(parser, "all shared images as one JSON document")


def leaks(args: argparse.Namespace) -> int:
    """Run `cxr leaks`: return 0 if no shared image was found, 1 if one was or nothing could be compared."""
    if not (args.lists or args.pixels or args.encoder):
        raise UsageError("nothing to compare with: give --list, --pixels or --encoder")
    if args.out and args.out.exists():
        raise UsageError(f"{args.out} exists; choose another name")
    from dataclasses import asdict

    from train.datasets.labelled import load
    from train.probe.leaks import (
        TOLERANCE,
        is_recorded,
        known_leaks,
        shared_by_name,
        shared_by_pixels,
        summary,
        write_shared,
    )

    try:
        found = load(args.source)
        shared = shared_by_name(found, args.lists) if args.lists else []
        if args.pixels:
            tolerance = TOLERANCE if args.tolerance is None else args.tolerance
            shared += shared_by_pixels(found, args.pixels, tolerance, args.workers or os.cpu_count() or 1)
    except ValueError as error:
        raise UsageError(str(error)) from error
    # a script must not take "not recorded" for "clean"
    unknown = bool(args.encoder) and not is_recorded(args.encoder) and not (args.lists or args.pixels)
    if args.out:
        write_shared(shared, args.out)
        tell(f"wrote {len(shared)} images to {args.out}")
    if args.json:
        print_json({
            "encoder": known_leaks(args.encoder, found.kind) if args.encoder else None,
            "images": {split: int((found.splits == split).sum()) for split in sorted({*found.splits.tolist()})},
            "shared": [{**asdict(leak), "path": str(leak.path), "row": int(leak.row)} for leak in shared],
        })  # fmt: skip
        return 1 if shared or unknown else 0
    if args.encoder:
        echo(known_leaks(args.encoder, found.kind))
    if args.lists or args.pixels:
        print(printable(summary(found, shared), keep="\n"))
    for leak in shared[:10] if args.out is None else []:
        echo(f"  {leak.split}: {leak.path} ({leak.how}: {leak.seen})")
    if args.out is None and len(shared) > 10:
        echo(f"  and {len(shared) - 10} more; --out FILE writes them all")
    return 1 if shared or unknown else 0


def outliers_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr outliers` to `parser`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="Findings model: mini, a directory or a hub id.")
    add(
        "images",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="Films of its own domain: files, folders of them, or studies files (.jsonl), whose words count, too.",
    )
    add(
        "--chest",
        nargs="+",
        type=Path,
        default=[],
        metavar="INPUT",
        help="Other chest films; an image unlike both kinds gets no findings (abstained).",
    )
    add("--split", help="Only this split of studies files.")
    add("--out", type=Path, required=True, metavar="FILE", help="File to write, as MODEL/ood.safetensors.")
    add(
        "--quantile",
        type=share,
        metavar="X",
        default=0.98,
        help="Share of the domain's films, and of their words, that get no warning.",
    )


def outliers(args: argparse.Namespace) -> int:
    """Run `cxr outliers`: fit what a model takes for an ordinary chest film."""
    if args.out.exists():
        raise UsageError(f"{args.out} exists; remove it first or choose another name")
    from vlm.hub import check_here

    check_here(args.model)
    from vlm.reference import fit_outliers
    from vlm.study import Study, absolute, load_studies, normalise_split

    split = normalise_split(args.split) if args.split else None

    refused: list[str] = []

    def films(given: list[Path]) -> tuple[list[Path], list[Study]]:
        paths: list[Path] = []
        studies: list[Study] = []
        for path in given:
            if not path.exists():
                raise UsageError(f"{path} does not exist")
            if path.suffix == ".jsonl":
                found = (s for s in load_studies(path) if split is None or s.split == split)
                studies += [absolute(s, path.parent) for s in found]
            else:
                paths += sorted(files_below(path, refused)) if path.is_dir() else [path]
        return paths, studies

    paths, studies = films(args.images)
    chest, others = films(args.chest)
    chest += [Path(image.path) for s in others for image in s.images]
    result = fit_outliers(
        args.model, paths, args.out, quantile=args.quantile, studies=studies, chest=chest, refused=refused
    )
    tell(f"wrote {args.out}: {result.reference} images in {len(result.parts)} parts")
    return status_of(len(refused), len(refused) + result.reference)
