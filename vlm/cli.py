"""The `cxr` command. Sub-commands import what they need when called, so that `cxr --help` answers at once."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

# Beside radiographs, folders hold these; whatever else lies there is tried, for DICOM files may have any name.
NOT_IMAGES = {".md", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".html", ".pdf", ".py"}


TRAININGS = {
    "pretrain": ("train.pretrain", "the encoder learns from images alone"),
    "language-model": ("train.language_model", "a small language model learns to write reports"),
    "finetune": ("train.finetune", "projector and LoRA learn to say what the encoder sees"),
}
OURS = {
    "CheckpointError",
    "ConfigError",
    "ConversionError",
    "ModelError",
    "ScoreError",
    "StepFailed",
    "StudyError",
}


class UsageError(Exception):
    """Something about the command line; printed without a traceback, exit status 2."""


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in TRAININGS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        return args.run(args)
    except (UsageError, OSError) as error:
        print(f"cxr {args.command}: {_printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ncxr {args.command}: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        # Errors our own modules raise on purpose say what is wrong and what to do; anything else is a defect.
        if type(error).__name__ in OURS:
            print(f"cxr {args.command}: {error}", file=sys.stderr)
            return 2
        raise


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cxr", description="Chest X-rays in, findings out. Research use only; not for diagnosis."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = commands.add_parser(
        "demo", help="the whole system at work in a few minutes, ending with an HTML page"
    )
    p.add_argument("--out", type=Path, default=Path("demo_out"), help="folder to write (default demo_out)")
    p.add_argument("--studies", type=int, default=96, help="how many unseen X-rays (default 96)")
    p.add_argument("--no-training", action="store_true", help="leave out the taste of the two trainings")
    p.set_defaults(run=demo)

    for name, (_, what) in TRAININGS.items():  # their other options, and --help, are those of the training
        p = commands.add_parser(name, help=what, add_help=False, allow_abbrev=False)
        p.add_argument("--processes", type=_positive, default=1)
        p.set_defaults(run=training)

    p = commands.add_parser("generate", help="findings for X-ray files, folders of them, or a studies file")
    p.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="DICOM, PNG or JPEG file, folder, or .jsonl"
    )
    p.add_argument("--model", default="mini", help="model directory (default: the shipped mini)")
    p.add_argument("--base", help="base model of an adapter, where it is not where the adapter remembers it")
    p.add_argument("--out", type=Path, help="write predictions (JSON Lines) to this file")
    p.add_argument(
        "--floors", type=Path, metavar="DIR", help="also write findings for shuffled and blank images to DIR"
    )
    p.add_argument("--overwrite", action="store_true", help="replace the files of --out and --floors")
    p.add_argument("--split", help="only this split of a studies file")
    p.add_argument("--limit", type=_positive, help="only the first N studies")
    p.add_argument("--indication", help="why the X-rays were taken; for files and folders")
    p.add_argument("--batch-size", type=_positive, default=16, help="studies generated together (default 16)")
    p.add_argument(
        "--max-new-tokens", type=_positive, help="longest findings, in tokens (default: the model's)"
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    p.add_argument(
        "--attention",
        default="cxr",
        choices=("cxr", "sdpa", "reference"),
        help="cxr: our kernel (default); sdpa: PyTorch's; reference: explicit",
    )
    p.add_argument("--seed", type=int, default=0, help="of the shuffling (decoding is greedy)")
    p.set_defaults(run=generate)

    p = commands.add_parser("score", help="score predictions against references, with intervals and floors")
    p.add_argument("predictions", type=Path, help="predictions of cxr generate (JSON Lines)")
    p.add_argument("studies", type=Path, help="studies file with the reference findings")
    p.add_argument("--split", help="only this split of the studies file; the rest does not count as missing")
    p.add_argument("--floors", type=Path, metavar="DIR", help="the folder cxr generate --floors wrote")
    p.add_argument(
        "--training", type=Path, metavar="STUDIES", help="studies whose nearest report is a floor, too"
    )
    p.add_argument(
        "--reference-labels",
        choices=("text", "study"),
        default="text",
        help="default text: labelled as predictions are",
    )
    p.add_argument("--out", type=Path, help="write the scores as JSON to this file")
    p.add_argument("--html", type=Path, help="write a page to this file")
    p.add_argument(
        "--bootstrap", type=_positive, default=1000, help="replicates, drawn by patient (default 1000)"
    )
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=score)

    p = commands.add_parser(
        "export", help="a model, its adapter merged, as one directory for plain transformers"
    )
    p.add_argument("model", help="model or adapter directory, hub id, or mini")
    p.add_argument("out", type=Path, help="directory to write")
    p.add_argument("--base", help="base model of an adapter, where it is not where the adapter remembers it")
    p.add_argument("--dtype", default="fp32", choices=("fp32", "fp16", "bf16"), help="of the saved weights")
    p.set_defaults(run=export)

    p = commands.add_parser("studies", help="check a studies file")
    p.add_argument("action", choices=("check",))
    p.add_argument("studies", type=Path)
    p.set_defaults(run=studies)

    p = commands.add_parser("doctor", help="versions, devices, weights and codecs, and what is missing")
    p.set_defaults(run=doctor)
    return parser


def demo(args) -> int:
    from train.demo import run

    return run(args.out, args.studies, training=not args.no_training)


def training(args) -> int:
    from train.launcher import launch

    launch(TRAININGS[args.command][0], *args.rest, processes=args.processes)
    return 0


def generate(args) -> int:
    studies = list(_studies(args))
    if not studies:
        raise UsageError(f"no study found in {', '.join(map(str, args.inputs))}")
    targets = {"true": args.out}
    if args.floors:
        targets |= {name: args.floors / f"{name}.jsonl" for name in ("shuffled", "blank")}
    for path in filter(None, targets.values()):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give a file to write")
        if path.exists() and not args.overwrite:
            raise UsageError(f"{path} exists; choose another file or give --overwrite")
        if _part(path).exists() and not args.overwrite:
            raise UsageError(f"{_part(path)} is of an interrupted run; remove it or give --overwrite")
    if args.floors and len(studies) < 2:
        raise UsageError(
            "--floors needs at least two studies, for one image has no other to be exchanged with"
        )

    from rich.console import Console
    from rich.markup import escape
    from transformers.utils.logging import disable_progress_bar

    from vlm.generate import Findings

    disable_progress_bar()  # of loading weights: it is over before it is read
    console = Console(soft_wrap=True)
    model = Findings.from_pretrained(args.model, base=args.base, device=args.device, attention=args.attention)
    console.print(f"[dim]{escape(f'{model.model.meta.name}: {model.notice}')}[/dim]")
    refused = 0
    for images, path in targets.items():
        predictions = model.generate(
            studies,
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            images=images,
            seed=args.seed,
        )
        count = _write(path, _progress(predictions, len(studies), images, show=path is not None or images != "true"),
                       None if path else console)  # fmt: skip
        if path:
            console.print(f"wrote {path}")
        if images == "true":
            refused = count
    if refused:
        where = "" if args.out is None else f", see the errors in {args.out}"
        print(f"{refused} of {len(studies)} studies were refused{where}", file=sys.stderr)
    return 1 if refused == len(studies) else 0


def _studies(args):
    """Studies of all inputs with absolute image paths, in the order given. Files are called by their name in their
    folder, or, where two inputs have the same, by their path as given."""
    from collections import Counter
    from dataclasses import replace

    from vlm.study import Image, Study, load_studies, normalise_split

    split = normalise_split(args.split) if args.split else None
    left = args.limit if args.limit is not None else sys.maxsize
    files = {
        given: sorted(_files(given)) if given.is_dir() else [given]
        for given in args.inputs
        if given.suffix != ".jsonl"
    }
    times = Counter(_name(given, f) for given, several in files.items() for f in several)
    for given in args.inputs:
        if not given.exists():
            raise UsageError(f"{given} does not exist")
        if given.suffix == ".jsonl":
            found = load_studies(given)
            if split:
                found = [s for s in found if s.split == split]
            root = given.parent.absolute()
            found = [
                replace(s, images=[replace(i, path=str(root / i.path)) for i in s.images]) for s in found
            ]
        else:
            found = [
                Study(
                    study_id=_name(given, f) if times[_name(given, f)] == 1 else str(f),
                    images=[Image(str(f.absolute()))],
                    indication=args.indication,
                )
                for f in files[given]
            ]
        yield from found[:left]
        left -= len(found[:left])


def _name(given: Path, file: Path) -> str:
    return str(file.relative_to(given)) if given.is_dir() else file.name


def _files(folder: Path):
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix.lower() not in NOT_IMAGES:
            yield path


def _progress(predictions, total: int, images: str, show: bool):
    if not show:
        yield from predictions
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    what = "findings" if images == "true" else f"{images} images"
    with Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=total)
        for prediction in predictions:
            bar.advance(task)
            yield prediction


def _write(path: Path | None, predictions, console) -> int:
    """To a file (first under another name, so that an interrupted run leaves nothing half-made) or to the screen.
    Returns how many studies were refused."""
    refused, file, part = 0, None, None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        # a file name that is not UTF-8 comes out as JSON's \udcXX
        file = part.open("w", encoding="utf-8", errors="backslashreplace")
    try:
        for prediction in predictions:
            refused += prediction.error is not None
            if file:
                file.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
            else:
                _show(console, prediction)
    except KeyboardInterrupt:
        if part:
            print(f"\nwhat is finished lies in {part}", file=sys.stderr)
        raise
    finally:
        if file:
            file.close()
    if part:
        part.replace(path)
    return refused


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _printable(text: str) -> str:
    """Without what no terminal can show: the bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _show(console, prediction) -> None:
    from rich.markup import escape as escape_markup

    def escape(text: str) -> str:
        return escape_markup(_printable(text))

    console.print(f"\n[bold]{escape(prediction.study_id)}[/bold]")
    if prediction.error:
        console.print(
            f"  [red]refused ({prediction.error['code']})[/red] {escape(prediction.error['message'])}"
        )
        return
    console.print(f"  {escape(prediction.findings)}")
    for warning in prediction.warnings:
        console.print(f"  [yellow]warning ({warning['code']})[/yellow] {escape(warning['message'])}")


def score(args) -> int:
    import eval as scoring

    references = args.studies
    if args.split:
        from vlm.study import load_studies, normalise_split, study_to_json

        split = normalise_split(args.split)
        references = [study_to_json(s) for s in load_studies(args.studies) if s.split == split]
        if not references:
            raise UsageError(f"{args.studies} has no study of split {split}")
    scores = scoring.score(
        args.predictions,
        references,
        floors=args.floors,
        training=args.training,
        reference_labels=args.reference_labels,
        n_boot=args.bootstrap,
        seed=args.seed,
    )
    print(scores.table())
    if args.out:
        scores.save(args.out)
        print(f"wrote {args.out}")
    if args.html:
        from eval.report import write_page

        write_page(args.html, title="Scores", scores=scores)
        print(f"wrote {args.html}")
    return 0


def export(args) -> int:
    from transformers.utils.logging import disable_progress_bar

    from vlm import model as models
    from vlm.generate import OUTLIERS

    disable_progress_bar()
    model = models.merge(models.load(args.model, base=args.base))
    models.save(model, args.out, models.DTYPES[args.dtype])
    known = models.resolve(args.model) / OUTLIERS  # what the model takes for an ordinary chest
    if known.is_file():
        shutil.copy(known, args.out)
    print(f"wrote {args.out}: AutoModelForImageTextToText and AutoProcessor of transformers open it")
    return 0


def studies(args) -> int:
    from vlm.study import counts, load_studies, validate

    found = load_studies(args.studies)
    for name, value in counts(found).items():
        print(f"{name:22} {value}")
    problems = validate(found, args.studies.parent)
    for problem in problems:
        print(f"{problem.code:22} {problem.study_id}: {problem.message}")
    print("no problems" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def doctor(args) -> int:
    from vlm.doctor import report

    text, well = report()
    print(text)
    return 0 if well else 1


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"cxr {version('cxr-vlm')}"
    except PackageNotFoundError:
        return "cxr (not installed)"


if __name__ == "__main__":
    sys.exit(main())
