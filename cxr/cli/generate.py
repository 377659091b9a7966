"""`cxr generate`: studies or files in, a predictions file out, in one process or several."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.cli.inputs import INPUT, dicom_options, studies_of
from cxr.cli.terminal import (
    BASE,
    DEVICE,
    MODEL,
    NOTHING_DONE,
    UsageError,
    check_target,
    console,
    json_option,
    positive,
    print_json,
    processes,
    seed,
    status_of,
    tell,
)
from encoder.errors import printable
from encoder.workers import end_with
from vlm.hub import check_here

if TYPE_CHECKING:
    from rich.console import Console

    from vlm.decoding import Decoding
    from vlm.prediction import Prediction
    from vlm.study import Study


# What the name of a predictions file may end in.
JSON_LINES = (".jsonl", ".ndjson", "")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr generate` to `parser`."""
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help=INPUT,
    )
    add("--model", default="mini", help=MODEL)
    add("--base", help=BASE)

    group = parser.add_argument_group("what is written")
    add = group.add_argument
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="Write predictions (JSON Lines) to this file; without it they are shown.",
    )
    add("--overwrite", action="store_true", help="Replace the files of --out and --floors.")
    json_option(group, "predictions, a line of JSON each as --out writes them,")
    add(
        "--sentences",
        default="none",
        choices=("none", "confidence", "image_dependence"),
        help="Say of each sentence how sure the model was, or also how much the image did for it.",
    )
    add(
        "--floors",
        type=Path,
        metavar="DIR",
        help="Write findings for shuffled and blank images to DIR as well.",
    )
    add(
        "--training",
        type=Path,
        metavar="STUDIES",
        help="With --floors: also the report of the training study with the most similar X-ray.",
    )

    group = parser.add_argument_group("which studies")
    add = group.add_argument
    add("--split", help="Only this split of a studies file.")
    add("--limit", type=positive, metavar="N", help="Only the first N studies.")
    add("--indication", metavar="TEXT", help="Why the X-rays were taken; for files and folders.")
    dicom_options(group)

    group = parser.add_argument_group("decoding")
    add = group.add_argument
    add("--decoding", choices=("greedy", "beam", "sample"), help="How words are chosen (default: greedy).")
    add(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help="Longest findings in tokens (default: the model's).",
    )
    add("--beams", type=positive, metavar="N", help="Beams of beam search, which this asks for.")
    add(
        "--length-penalty",
        type=float,
        metavar="X",
        default=1.0,
        help="Exponent of the length in beam search.",
    )
    add("--temperature", type=float, metavar="X", default=1.0, help="Temperature of sampling.")
    add(
        "--top-p",
        type=float,
        metavar="X",
        default=1.0,
        help="Sample from the likeliest tokens of this total probability.",
    )
    add(
        "--seed",
        type=seed,
        metavar="N",
        default=0,
        help="Seed of sampling, and of the shuffling of --floors.",
    )

    add("--allow-repeats", action="store_true", help="Do not end an answer that begins to repeat itself.")
    add(
        "--insist",
        action="store_true",
        help="Write findings even of images that the model takes for no chest film.",
    )

    group = parser.add_argument_group("the machine")
    add = group.add_argument
    add("--device", help=DEVICE)
    add("--batch-size", type=positive, metavar="N", default=16, help="Studies generated together.")
    add(
        "--processes",
        type=processes,
        metavar="N",
        default=1,
        help="With --out: processes, one a GPU or share of the cores.",
    )
    add(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="Type of the weights; 16 bits take half the memory and time on a GPU, where a few words may change.",
    )
    add(
        "--attention",
        default="cxr",
        choices=("cxr", "sdpa", "reference"),
        help="Attention: cxr is our kernel, sdpa PyTorch's, reference the explicit formula.",
    )
    add(
        "--static-cache",
        action="store_true",
        help="On a GPU: keep keys and values in memory of one size and compile the step; pays off for many studies.",
    )
    # what --processes gives each of them
    add("--share", type=_share, help=argparse.SUPPRESS)


def _share(text: str) -> tuple[int, int]:
    """ "1/4" -> (1, 4)."""
    number, _, of = text.partition("/")
    if not (
        number.isascii() and of.isascii() and number.isdigit() and of.isdigit() and int(number) < int(of)
    ):
        raise argparse.ArgumentTypeError(
            f"must be the number of a process and how many there are (0/2), not {text!r}"
        )
    return int(number), int(of)


def command(argv: list[str]) -> int:
    """Run `cxr generate` with the words of its command line; returns its exit status."""
    from train.common.options import Parser

    parser = Parser(prog="cxr generate")
    options(parser)
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Generate findings for what `args` name; print them, or write them to --out and --floors.

    Returns:
        The exit status: 1 if nothing could be read, and the other statuses as `cxr --help` lists them.

    Raises:
        UsageError: --json with --out, no study in the inputs, or a study id that occurs twice.
    """
    if args.share is not None and args.out is None:
        raise UsageError("--share needs --out, where the parts come together")
    if args.json and args.out:
        raise UsageError("--json prints what --out writes; give one of them")
    check_here(args.model, args.base)
    left_out: list[str] = []
    studies = list(studies_of(args, left_out))
    if not studies and left_out:
        tell("nothing could be read")
        return NOTHING_DONE
    if not studies:
        raise UsageError(f"no study found in {', '.join(map(str, args.inputs))}")
    twice = [name for name, times in Counter(s.study_id for s in studies).items() if times > 1]
    if twice:
        raise UsageError(
            f"{len(twice)} study ids occur more than once, first {twice[0]!r}; each study needs its own"
        )
    targets = targets_of(args, studies)
    written = [path for path in targets.values() if path]
    with ExitStack() as held:
        if args.share is None:
            _begin(args, written, studies, held)
        else:
            # One of several: the parent holds the locks, and ends all of them with itself.
            end_with(os.getppid())
        bank = []
        if args.training:
            from cxr.cli.nearest import training_bank

            bank = training_bank(args.training, args.model, studies)
        decoding = _decoding(args)
        if args.processes > 1 and args.share is None:
            if args.out is None:
                raise UsageError("--processes needs --out, where the parts come together")
            _spread(args)
        refused = _generate(args, studies, targets, bank, decoding)
    if args.share is not None:
        return 0
    if args.out and refused < len(studies):
        _say_next(args)
    return status_of(refused + len(left_out), len(studies) + len(left_out))


def targets_of(args: argparse.Namespace, studies: list[Study]) -> dict[str, Path | None]:
    """Map each kind of shown images to the file of its predictions. Raises UsageError."""
    targets: dict[str, Path | None] = {"own": args.out}
    if args.floors:
        targets |= {name: args.floors / f"{name}.jsonl" for name in ("shuffled", "blank")}
        if args.training:
            targets["nearest"] = args.floors / "nearest.jsonl"
        if len(studies) < 2:
            raise UsageError(
                "--floors needs at least two studies; one image has no other to be exchanged with"
            )
    elif args.training:
        raise UsageError("--training serves a baseline of --floors; give --floors DIR, too")
    paths = [path.absolute() for path in targets.values() if path]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UsageError(
            f"{twice[0]} would be written by --out and by --floors; choose another file for --out"
        )
    return targets


def _begin(args: argparse.Namespace, written: list[Path], studies: list[Study], held: ExitStack) -> None:
    """Take the files that are to be written, for as long as `held` is. Raises UsageError for one in the way."""
    from encoder.files import sole_writer
    from vlm.predictions import check_beside, read_by, remove_parts
    from vlm.study import is_predictions

    reads = [*args.inputs, *filter(None, [args.training]), *read_by(studies)]

    def check(path: Path) -> None:
        check_target(path, "predictions", is_predictions, reads=reads, overwrite=args.overwrite)
        check_beside(path, reads)

    for path in sorted(written):
        check(path)
    if args.out and args.out.suffix.lower() not in JSON_LINES:
        raise UsageError(
            f"--out {args.out}: what is written is JSON Lines; give a name that says so, such as "
            f"{args.out.with_suffix('.jsonl')}"
        )
    for path in sorted(written):
        held.enter_context(sole_writer(path))
        # The run that held it until now may have finished it.
        check(path)
        if args.overwrite:
            remove_parts(path)


def _decoding(args: argparse.Namespace) -> Decoding:
    """What of the decoding was asked for."""
    from vlm.decoding import Decoding

    asked = {
        "method": args.decoding or ("beam" if args.beams else "greedy"), "beams": args.beams or 1,
        "length_penalty": args.length_penalty, "temperature": args.temperature, "top_p": args.top_p,
        "stop_repeats": not args.allow_repeats,
    }  # fmt: skip
    if args.static_cache and asked["method"] == "beam":
        raise UsageError("--static-cache is for greedy decoding and sampling, not for --beams")
    try:
        return Decoding(max_new_tokens=args.max_new_tokens or 1, seed=args.seed, **asked)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _generate(
    args: argparse.Namespace,
    studies: list[Study],
    targets: dict[str, Path | None],
    bank: list[Study],
    decoding: Decoding,
) -> int:
    """Generate what is shown or written; returns how many studies were refused, 0 for a share of several."""
    from dataclasses import replace

    from rich.markup import escape

    from encoder.errors import naming
    from encoder.startup import importing

    with importing():
        from transformers.utils.logging import disable_progress_bar

        from vlm.findings import Findings
        from vlm.model import DTYPES
        from vlm.predictions import Share, write_predictions

    # bars of loading weights are over before they are read
    disable_progress_bar()  # type: ignore[no-untyped-call]
    terminal, errors = console(), console(stderr=True)
    model = Findings.from_pretrained(
        args.model, base=args.base, device=args.device, attention=args.attention, dtype=DTYPES[args.dtype],
        warn=False, insist=args.insist,
    )  # fmt: skip
    if args.max_new_tokens is None:
        decoding = replace(decoding, max_new_tokens=model.model.max_new_tokens)
    alone = args.share is None
    if alone:
        errors.print(f"[dim]{escape(printable(f'{model.model.meta.name}: {model.notice}'))}[/dim]")
    share = None if alone else Share(*args.share)
    refused = 0
    # of the studies' own images
    counted = Counted()
    for images, path in targets.items():
        if images == "nearest" and path:
            if not alone:
                continue
            from cxr.cli.nearest import write_nearest

            count = write_nearest(path, model, studies, bank, args.batch_size)
        else:
            settings: dict[str, Any] = {
                "batch_size": args.batch_size, "images": images, "seed": args.seed, "decoding": decoding,
                "sentences": args.sentences, "static_cache": args.static_cache,
            }  # fmt: skip
            if path is None:
                count = 0
                for prediction in model.generate(studies, **settings):
                    count += prediction.error is not None
                    counted.add({"error": prediction.error, "warnings": prediction.warnings})
                    if args.json:
                        print_json(prediction.to_json(), indent=None)
                    else:
                        _show(terminal, errors, prediction)
                if args.sentences == "image_dependence" and not args.json:
                    errors.print(f"[dim]{SCALE}[/dim]")
            else:
                with naming(path):
                    count = write_predictions(path, model, studies, settings, share=share)
        if path and alone:
            tell(f"wrote {path}")
        if images == "own":
            refused = count
            if path and alone:
                for row in rows_of(path):
                    counted.add(row)
    if not alone:
        return refused
    if counted.warned and args.out:
        tell(f"warned: {in_order(counted.warned)}; see `warnings` in {args.out}")
    if refused:
        where = "" if args.out is None else f"; see `error` in {args.out}"
        tell(f"{refused} of {len(studies)} studies were refused: {in_order(counted.refused)}{where}")
    return refused


class Counted:
    """How many studies were refused, and how many warned of, by code."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.warned: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a prediction. A code that its warnings have twice, as for two of its films, counts once."""
        if row.get("error"):
            self.refused[row["error"]["code"]] += 1
        self.warned.update({warning["code"] for warning in row.get("warnings") or ()})


def in_order(count: Counter[str]) -> str:
    """Return "6 lateral, 2 truncated": the most frequent first, of equally frequent ones by name."""
    return ", ".join(f"{n} {code}" for code, n in sorted(count.items(), key=lambda item: (-item[1], item[0])))


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a predictions file that this command has written."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _say_next(args: argparse.Namespace) -> None:
    """Say how what was written is scored, where the studies may have reports."""
    from train.common.entry import next_command

    # of a part of the studies, the others would count as empty reports
    if len(args.inputs) == 1 and args.inputs[0].suffix == ".jsonl" and args.limit is None:
        split = ["--split", args.split] if args.split else []
        floors = ["--floors", args.floors] if args.floors else []
        next_command("cxr", "score", args.out, args.inputs[0], *split, *floors)


def _spread(args: argparse.Namespace) -> None:
    """The same command in several processes, each with its share of the studies: on a GPU of its own, or on the cores
    divided. Raises UsageError where one of them failed."""
    import torch

    gpus = torch.cuda.device_count() if args.device in (None, "cuda") else 0
    command = [sys.executable, *sys.orig_argv[1:]]
    children = []
    for number in range(args.processes):
        env = dict(os.environ)
        more = ["--share", f"{number}/{args.processes}"]
        if gpus:
            more += ["--device", f"cuda:{number % gpus}"]
        else:
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.processes)))
        children.append(subprocess.Popen([*command, *more], env=env))
    try:
        failed = [child.wait() for child in children]
    except KeyboardInterrupt:  # which they got, too
        for child in children:
            child.wait()
        raise
    if bad := [status for status in failed if status]:
        why = f"was killed by signal {-bad[0]}" if bad[0] < 0 else "failed, as it says above"
        raise UsageError(f"a process {why}; run the same command to resume")


def _show(terminal: Console, errors: Console, prediction: Prediction) -> None:
    """Show the findings on `terminal`, and what was refused or warned of on `errors`, which may not be one screen."""
    from rich.markup import escape as escape_markup

    # Findings may have several.
    lines = "\n"

    def escape(text: str, keep: str = "") -> str:
        return escape_markup(printable(text, keep))

    name = escape(prediction.study_id)
    if prediction.error:
        code, message = prediction.error["code"], escape(prediction.error["message"])
        errors.print(f"\n{name}: [red]refused ({code})[/red] {message}")
        return
    terminal.print(f"\n[bold]{name}[/bold]\n  {escape(prediction.text, keep=lines)}")
    for row in prediction.sentences or ():
        terminal.print(f"    {escape(row['text'], keep=lines)}\n      [dim]{', '.join(in_words(row))}[/dim]")
    for warning in prediction.warnings:
        errors.print(f"{name}: [yellow]warning ({warning['code']})[/yellow] {escape(warning['message'])}")


# Nats of difference below which the odds of a sentence are said to be what they were: 5 %.
EQUAL = math.log(1.05)
# Beyond it nobody reads the number.
MOST_TIMES = 1000
SCALE = "odds: how many times likelier the words are with this image than with a blank one (1: no difference)"


def in_words(row: Mapping[str, Any]) -> list[str]:
    """Say the numbers of a sentence as a reader takes them.

    The first is the probability of its tokens, from 0 to 1 (the geometric mean). The second says how many
    times likelier the image made it than a blank image does, exp(image_dependence).
    """
    said = []
    if (confidence := row.get("confidence")) is not None:
        said.append(f"probability {math.exp(confidence):.2f}")
    if (nats := row.get("image_dependence")) is not None:
        if abs(nats) < EQUAL:
            said.append("the image left this sentence's odds as they were")
        else:
            times = math.exp(min(abs(nats), 2 * math.log(MOST_TIMES)))
            many = (
                f"more than {MOST_TIMES:,}"
                if times > MOST_TIMES
                else f"{times:.2g}"
                if times < 9.5
                else f"{times:.0f}"
            )
            if nats > 0:
                said.append(f"the image raised this sentence's odds {many} times")
            else:
                said.append(f"the image divided this sentence's odds by {many}")
    return said
