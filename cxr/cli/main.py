"""The `cxr` command. Sub-commands import what they need when called, so that `cxr --help` answers at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TRAININGS = {
    "pretrain": ("train.pretrain", "the encoder learns from images alone"),
    "language-model": ("train.finetune.language_model", "a small language model learns to write reports"),
    "finetune": ("train.finetune", "projector and LoRA learn to say what the encoder sees"),
    "grpo": ("train.grpo", "a findings model learns from scores as rewards"),
    "probe": ("train.probe", "what frozen encoders know of labelled images, side by side"),
}
OURS = {
    "ArchiveError",
    "CheckpointError",
    "ConfigError",
    "ConversionError",
    "EmbedError",
    "ModelError",
    "ScoreError",
    "StepFailed",
    "StudyError",
    "UsageError",
}


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in TRAININGS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        return args.run(args)
    except OSError as error:
        from cxr.cli.terminal import printable

        print(f"cxr {args.command}: {printable(str(error))}", file=sys.stderr)
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

    p = commands.add_parser(
        "prepare", help="shrink an archive of X-rays once, for pre-training; goes on where it stopped"
    )
    p.add_argument("inputs", nargs="+", metavar="INPUT", help="folder, CSV or studies file")
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write; FILE.csv: only list the images and what is wrong",
    )
    p.add_argument("--short-side", type=_positive, default=518, help="pixels (default 518, RAD-DINO's)")
    p.add_argument("--bits", type=int, default=8, choices=(8, 16), help="grey levels kept (default 8)")
    p.add_argument("--split", help="only this split of each input")
    p.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="patients, studies or files to keep out, a name a line (also PatientID, StudyInstanceUID)",
    )
    p.add_argument("--workers", type=_positive, help="processes (default: one a core)")
    p.set_defaults(run=prepare)

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
    p.add_argument(
        "--training",
        type=Path,
        metavar="STUDIES",
        help="with --floors: also the report of the training study with the most similar X-ray",
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
    p.add_argument("--seed", type=int, default=0, help="of the shuffling, and of sampling")
    p.add_argument(
        "--decoding", choices=("greedy", "beam", "sample"), help="how words are chosen (default greedy)"
    )
    p.add_argument("--beams", type=_positive, help="of beam search, which it asks for")
    p.add_argument("--length-penalty", type=float, default=1.0, help="of beam search (default 1)")
    p.add_argument("--temperature", type=float, default=1.0, help="of sampling (default 1)")
    p.add_argument("--top-p", type=float, default=1.0, help="of sampling (default 1: all tokens)")
    p.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of the weights: half the memory and more speed on a GPU, where a few words may change (default fp32)",
    )
    p.add_argument(
        "--static-cache",
        action="store_true",
        help="on a GPU: keys and values in memory of one size, the step compiled; pays off for many studies",
    )
    p.add_argument(
        "--sentences",
        default="none",
        choices=("none", "confidence", "image_dependence"),
        help="say of each sentence how sure the model was, or also how much the image did for it",
    )
    p.add_argument("--processes", type=_positive, default=1, help="with --out: several, one a GPU or core")
    p.add_argument("--share", help=argparse.SUPPRESS)  # what --processes gives each of them
    p.set_defaults(run=generate)

    p = commands.add_parser("score", help="score predictions against references, with intervals and floors")
    p.add_argument(
        "predictions",
        type=Path,
        help="of cxr generate, or study_id and findings or impression (JSON Lines or CSV)",
    )
    p.add_argument(
        "studies",
        type=Path,
        nargs="?",
        help="studies file with the reference texts (default: each prediction's own `reference`)",
    )
    p.add_argument(
        "--section",
        choices=("findings", "impression", "both"),
        default="findings",
        help="what is scored (default findings); both: joined by an empty line, of references that have both",
    )
    p.add_argument("--compare", type=Path, metavar="OTHER", help="other predictions, compared in pairs")
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
    p.add_argument("--html", type=Path, help="write a page to this file (it holds reports, and X-rays)")
    p.add_argument(
        "--clinical",
        default="auto",
        metavar="MODELS",
        help="auto: what `cxr weights` finds (default); none; or models, with commas between them",
    )
    p.add_argument("--weights", type=Path, metavar="DIR", help="where they lie (default: see cxr weights)")
    p.add_argument("--device", help="where they run (default: a GPU if there is one)")
    p.add_argument(
        "--bootstrap", type=_positive, default=1000, help="replicates, drawn by patient (default 1000)"
    )
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=score)

    p = commands.add_parser(
        "convert", help="encoder weights (RAD-DINO, DINOv2, timm) from one dialect to another"
    )
    p.add_argument(
        "weights", type=Path, metavar="IN", help="transformers directory, .safetensors or .pth file"
    )
    p.add_argument(
        "out", type=Path, metavar="OUT", help="directory (transformers) or .safetensors file to write"
    )
    p.add_argument("--to", required=True, choices=("transformers", "timm", "dinov2"))
    p.add_argument("--size", type=_positive, help="pixels; resamples the position embeddings")
    p.add_argument("--heads", type=_positive, help="of attention (default: of 64 each)")
    p.add_argument("--overwrite", action="store_true")
    p.set_defaults(run=convert)

    p = commands.add_parser(
        "embed", help="features of X-rays, in safetensors files; goes on where it stopped"
    )
    p.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="DICOM, PNG or JPEG file, or folder")
    p.add_argument(
        "--model", default="mini", help="encoder directory or file, findings model, hub id (default: mini)"
    )
    p.add_argument("--out", type=Path, required=True, help="folder to write")
    p.add_argument("--patches", action="store_true", help="patch tokens, too")
    p.add_argument("--dtype", default="fp32", choices=("fp32", "fp16"), help="of the features")
    p.add_argument("--size", type=_positive, help="pixels (default: the encoder's)")
    p.add_argument("--batch-size", type=_positive, default=16)
    p.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    p.set_defaults(run=embed)

    p = commands.add_parser("weights", help="what the clinical scores need, and whether it is there")
    p.add_argument(
        "--fetch", nargs="*", metavar="MODEL", help="bring these, or all, from the Hugging Face hub"
    )
    p.add_argument("--folder", type=Path, help="where (default: $CXR_WEIGHTS, or the user's cache)")
    p.set_defaults(run=weights)

    p = commands.add_parser(
        "export", help="a model, its adapter merged, as one directory for plain transformers"
    )
    p.add_argument("model", help="model or adapter directory, hub id, or mini")
    p.add_argument("out", type=Path, help="directory to write")
    p.add_argument("--base", help="base model of an adapter, where it is not where the adapter remembers it")
    p.add_argument("--dtype", default="fp32", choices=("fp32", "fp16", "bf16"), help="of the saved weights")
    p.add_argument(
        "--run", type=Path, dest="run_folder", metavar="DIR", help="of the fine-tuning, for the model card"
    )
    p.add_argument("--scores", type=Path, help="of cxr score --out, for the model card")
    p.add_argument(
        "--licence", action="append", metavar="TEXT", help='"encoder: MIT", ... for the model card'
    )
    p.set_defaults(run=export)

    p = commands.add_parser("studies", help="make a studies file of a data set, or check one")
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    p = actions.add_parser("check", help="what would spoil a training or a score, and a table of counts")
    p.add_argument("studies", type=Path, metavar="FILE")
    p.add_argument("--all", action="store_true", help="name every problem, not the first of each kind")
    p.set_defaults(run=studies)
    p = actions.add_parser("make", help="a studies file of a data set as it is downloaded")
    p.add_argument("dataset", help="mimic-cxr, ...; another word lists them")
    p.add_argument("root", type=Path, metavar="FOLDER", help="where it lies (of `table`: the file)")
    p.add_argument("--out", type=Path, required=True, help="studies file to write (JSON Lines)")
    p.add_argument("--reports", type=Path, help="where the reports are, if elsewhere (mimic-cxr)")
    p.add_argument("--laterals", action="store_true", help="also studies that have no frontal image")
    p.add_argument("--no-priors", action="store_true", help="without each patient's study before")
    p.add_argument("--overwrite", action="store_true")
    p.set_defaults(run=make_studies)

    p = commands.add_parser("doctor", help="versions, devices, weights and codecs, and what is missing")
    p.set_defaults(run=doctor)
    return parser


def demo(args) -> int:
    from cxr.cli.demo import run

    return run(args.out, args.studies, training=not args.no_training)


def training(args) -> int:
    from train.common.launcher import launch

    launch(TRAININGS[args.command][0], *args.rest, processes=args.processes)
    return 0


def prepare(args) -> int:
    from cxr.cli.data import prepare

    return prepare(args)


def generate(args) -> int:
    from cxr.cli.generate import generate
    from eval.baselines import nearest_by_features

    return generate(args, nearest_by_features)


def score(args) -> int:
    from cxr.cli.models import images_of
    from cxr.cli.score import score
    from cxr.cli.terminal import UsageError
    from vlm.study import load_studies, normalise_split, study_to_json

    references = args.studies
    if args.split:
        if args.studies is None:
            raise UsageError("--split chooses among the studies of a studies file: give one")
        if args.studies.suffix.lower() == ".csv":
            raise UsageError(f"--split needs a studies file (.jsonl), and {args.studies} is a table")
        split = normalise_split(args.split)
        references = [study_to_json(s) for s in load_studies(args.studies) if s.split == split]
        if not references:
            raise UsageError(f"{args.studies} has no study of split {split}")
    return score(args, references, images_of)


def weights(args) -> int:
    from cxr.cli.score import weights

    return weights(args)


def export(args) -> int:
    from cxr.cli.models import export

    return export(args)


def convert(args) -> int:
    from cxr.cli.models import convert

    return convert(args)


def embed(args) -> int:
    from cxr.cli.models import embed

    return embed(args)


def studies(args) -> int:
    from cxr.cli.models import studies

    return studies(args)


def make_studies(args) -> int:
    from cxr.cli.data import make_studies

    return make_studies(args)


def doctor(args) -> int:
    from cxr.cli.doctor import report

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
