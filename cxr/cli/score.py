"""`cxr score` and `cxr weights`: predictions against references, and the models that clinical scores need."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.cli.terminal import (
    UsageError,
    check_target,
    count,
    echo,
    json_option,
    positive,
    print_json,
    seed,
    tell,
)
from encoder.errors import printable

if TYPE_CHECKING:
    from eval.judges.panel import Panel

# studies on the page
WORST = 20


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr score` to `parser`."""
    add = parser.add_argument
    add(
        "predictions",
        type=Path,
        metavar="PREDICTIONS",
        help="What cxr generate wrote, or study_id and findings or impression (JSON Lines or CSV).",
    )
    add(
        "studies",
        type=Path,
        nargs="?",
        metavar="STUDIES",
        help="Studies file with the reference texts; without it each prediction's own `reference`.",
    )

    group = parser.add_argument_group("what is scored")
    add = group.add_argument
    add(
        "--section",
        choices=("findings", "impression", "both"),
        default="findings",
        help="Section that is scored; both are joined by an empty line, of references that have both.",
    )
    add("--split", help="Only this split of the studies file; the rest does not count as missing.")
    add(
        "--reference-labels",
        choices=("text", "study"),
        default="text",
        help="Labels of references: text labels them as predictions are, study takes those of the studies file.",
    )
    add(
        "--profiles", nargs="+", metavar="NAME", default=None,
        help="Overlap scores by these profiles: coco, sacrebleu-13a, plain (all by default), r2gen-iu, r2gen-mimic.",
    )  # fmt: skip
    add(
        "--clinical",
        default="auto",
        metavar="MODELS",
        help="Clinical scores: auto (those that `cxr weights` finds), none, or models with commas between them.",
    )
    add("--weights", type=Path, metavar="DIR", help="Folder of their weights (default: see cxr weights).")
    add("--device", help="Device of clinical models (default: a GPU if there is one).")

    judges_options(parser)

    group = parser.add_argument_group("what it is compared with")
    add = group.add_argument
    add(
        "--floors",
        type=Path,
        metavar="DIR",
        help="Baselines that look at nothing or at another film: the folder that cxr generate --floors wrote.",
    )
    add("--training", type=Path, metavar="STUDIES", help="Studies whose nearest report is a baseline, too.")
    add(
        "--compare", type=Path, nargs="+", metavar="OTHER", default=[],
        help="Other predictions, one file or several, each compared in pairs.",
    )  # fmt: skip
    add(
        "--values", type=Path, metavar="FILE",
        help="Values of other tools or people by study: study_id, name, value, better (higher, lower), system.",
    )  # fmt: skip
    add("--no-intervals", action="store_true", help="Leave 95 %% intervals out.")
    add("--seed", type=seed, metavar="N", default=0, help="Seed of the permutations of --compare.")

    group = parser.add_argument_group("what is written")
    add = group.add_argument
    add("--out", type=Path, metavar="FILE", help="Write the scores as JSON to this file.")
    add("--html", type=Path, metavar="FILE", help="Write a page to this file (it holds reports, and X-rays).")
    add(
        "--worst", type=count, metavar="N", default=WORST,
        help="Studies with most errors that the page shows (default: %(default)s).",
    )  # fmt: skip
    add(
        "--rexrank",
        type=Path,
        metavar="FILE",
        help="Write the row of the ReXrank leaderboard as JSON to this file.",
    )
    json_option(group, "the scores as one JSON document, as --out writes it,")


def judges_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `eval.judges` to `parser`."""
    add = parser.add_argument_group("metrics of others (docs/guides/judges.md)").add_argument
    add(
        "--judges", nargs="+", metavar="JUDGE", default=[],
        help="Judges: radfact, crimson (ask a language model), ratescore, green, cxrfescore, srrbert (local weights).",
    )  # fmt: skip
    add(
        "--server", metavar="URL",
        help="OpenAI-compatible server on this machine, such as http://127.0.0.1:8000/v1; CXR_JUDGE_KEY is its key.",
    )  # fmt: skip
    add(
        "--judge-model",
        metavar="NAME",
        help="Language model, by its name on the server (default: its only one).",
    )
    add(
        "--judge-baselines",
        action="store_true",
        help="Judge the baselines, too: each costs as much as predictions.",
    )
    add(
        "--judge-timeout", type=positive, metavar="SECONDS", default=300,
        help="How long to wait for an answer (default: %(default)s).",
    )  # fmt: skip
    add(
        "--judge-parallel", type=positive, metavar="N", default=4,
        help="Studies that are judged at a time (default: %(default)s).",
    )  # fmt: skip


def weights_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr weights` to `parser`."""
    add = parser.add_argument
    add("--fetch", nargs="*", metavar="MODEL", help="Fetch these, or all, from the Hugging Face hub.")
    add("--folder", type=Path, help="Folder of the weights (default: $CXR_WEIGHTS, or the user's cache).")
    json_option(parser, "the models as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run `cxr score`."""
    import eval
    from encoder.progress import Bars
    from eval.page.shell import about
    from eval.report import is_page, write_page
    from eval.scores.leaderboard import is_row, row_of
    from eval.scores.result import is_scores, write_whole

    references = references_of(args)
    reads = [p for p in (args.predictions, args.studies, *args.compare, args.training, args.values) if p]
    if args.floors and args.floors.is_dir():
        reads += args.floors.iterdir()
    if args.out:
        check_target(args.out, "scores", is_scores, reads=reads)
    if args.html:
        check_target(args.html, "a page of cxr", is_page, reads=reads)
    if args.rexrank:
        check_target(args.rexrank, "a row of ReXrank", is_row, reads=reads)
    targets = {
        option: path.absolute() for option in ("out", "html", "rexrank") if (path := getattr(args, option))
    }
    for option, path in targets.items():
        for other in targets:
            if option < other and path == targets[other]:
                raise UsageError(f"{path} would be written by --{option} and by --{other}; choose two files")
    with Bars(unit="reports") as progress:
        scores = eval.score(
            args.predictions,
            references,
            section=args.section,
            compare=named_files(args.compare),
            values=args.values,
            **({"profiles": args.profiles} if args.profiles else {}),
            floors=args.floors,
            training=args.training,
            reference_labels=args.reference_labels,
            intervals=not args.no_intervals,
            seed=args.seed,
            clinical_models=args.clinical if args.clinical in ("auto", "none") else args.clinical.split(","),
            weights=args.weights,
            device=args.device,
            judges=judges_of(args),
            progress=progress,
        )
    if args.out:  # first of all: whatever a terminal makes of the table, the numbers are safe
        scores.save(args.out)
    if args.json:
        print_json(scores.to_json())
    else:
        _show(scores.table())
    if args.out:
        tell(f"wrote {args.out}")
    if args.rexrank:
        write_whole(args.rexrank, json.dumps(row_of(scores), indent=1) + "\n")
        tell(f"wrote {args.rexrank}")
    if args.html:
        write_page(
            args.html,
            title="Scores",
            scores=scores,
            worst=args.worst,
            known=shown_of(args, [row["study_id"] for row in scores.worst(args.worst)]),
            facts=about(
                model=models_of(args.predictions, args.section),
                files=[p for p in (args.predictions, args.studies, args.floors, *args.compare) if p],
                command=getattr(args, "command_line", ""),
            ),
        )
        tell(f"wrote {args.html}")
    return 0


def judges_of(args: argparse.Namespace) -> Panel | None:
    """Return the judges that were asked for. Raises UsageError, and ScoreError for what `eval.judges.panel` refuses."""
    if not args.judges:
        if args.server or args.judge_model or args.judge_baselines:
            raise UsageError("--server and --judge-... are for judges; name them by --judges")
        return None
    from eval.judges import panel

    return panel(
        args.judges,
        server=args.server,
        model=args.judge_model,
        weights=args.weights,
        device=args.device,
        baselines=args.judge_baselines,
        timeout=args.judge_timeout,
        parallel=args.judge_parallel,
    )


def named_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Return files by their names, or by their paths where names are equal."""
    names = [path.name for path in paths]
    return {str(path) if names.count(path.name) > 1 else path.name: path for path in paths}


def references_of(args: argparse.Namespace) -> Any:
    """Return the studies file, or its studies of one split. Raises UsageError."""
    if not args.split:
        return args.studies
    from vlm.study import load_studies, normalise_split, study_to_json

    if args.studies is None:
        raise UsageError("--split chooses among the studies of a studies file; give one")
    if args.studies.suffix.lower() == ".csv":
        raise UsageError(f"--split needs a studies file (.jsonl), and {args.studies} is a table")
    split = normalise_split(args.split)
    references = [study_to_json(s) for s in load_studies(args.studies) if s.split == split]
    if not references:
        raise UsageError(f"{args.studies} has no study of split {split}")
    return references


def shown_of(args: argparse.Namespace, study_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Say what the page shows of each study beside its texts: films, indication, age, sex, and its warnings."""
    wanted = set(study_ids)
    known: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    if args.studies and args.studies.suffix.lower() == ".jsonl":
        try:
            known |= films_of(wanted, args.studies)
        # Scoring is content with less than a studies file has to hold.
        except (ValueError, ModuleNotFoundError) as error:
            tell(f"the page has no X-rays: {error}")
    for row in _predicted(args.predictions, args.section):
        if (name := str(row["study_id"])) in known:
            warned = [w for w in row.get("warnings") or () if isinstance(w, dict)]
            said = [f"{w.get('code')}: {w.get('message')}" for w in warned]
            known[name] = {**known[name], "warnings": said, "error": row.get("error")}
    return known


def models_of(predictions: Path, section: str = "findings") -> str:
    """Name the models of a predictions file."""
    return ", ".join(
        dict.fromkeys(str(row["model"]) for row in _predicted(predictions, section) if row.get("model"))
    )


def _predicted(predictions: Path, section: str = "findings") -> list[Any]:
    from eval.scores.readers import load

    return load(predictions, "prediction", section)


def films_of(study_ids: Iterable[str], listing: Path) -> dict[str, dict[str, Any]]:
    """Read every film of these studies that can be read, with its view, and what is known of the patient.

    A film that cannot be read is left out: a page without a picture is a page still. Raises ValueError (StudyError)
    for a studies file that cannot be used.
    """
    from encoder.radiograph import InputError, read
    from vlm.study import load_studies

    wanted = set(study_ids)
    known = {}
    for study in load_studies(listing):
        if study.study_id not in wanted:
            continue
        films = []
        for image, path in zip(study.images, study.image_paths(listing.parent), strict=True):
            try:
                found = read(path)
            except (InputError, OSError):
                continue
            view = image.view if image.view != "unknown" else found.header.view
            films.append({"image": found.pixels, "view": view})
        about = {"films": films, "indication": study.indication, "age": study.age, "sex": study.sex}
        known[study.study_id] = about
    return known


def _show(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(printable(text, keep="\n").encode(encoding, "replace").decode(encoding))


def weights(args: argparse.Namespace) -> int:
    """Run `cxr weights`."""
    from eval.scores import weights as known

    for name in args.fetch if args.fetch else known.MODELS if args.fetch is not None else ():
        known.fetch(name, args.folder, lambda file: tell(f"fetching {file}"))
    states = {name: known.state(name, args.folder) for name in known.MODELS}
    if args.json:
        print_json({"folder": str(known.folder(args.folder)), "models": list(states.values())})
        return 0
    echo(f"looked for in {known.folder(args.folder)}")
    for name, state in states.items():
        echo(f"{name}: {'there' if state['complete'] else 'not there'}; for {', '.join(state['serves'])}")
        # a name a line, whole, so that it can be copied
        for file in state["missing"]:
            echo(f"  no {name}/{file}")
        if state["sha256"]:
            echo(f"  SHA-256 {state['sha256']}")
    if commands := [state["command"] for state in states.values() if state["command"]]:
        tell("")
        tell("get the missing files with these commands, or copy them there by hand:")
        for command in commands:
            tell(f"  {command}")
    return 0
