"""`cxr demo`: the whole system at work in a few minutes on an ordinary computer, ending with one HTML page.

Findings by the shipped mini for X-rays it never saw, scored beside their floors; then a taste of both trainings
through `accelerate launch`, going on from mini: the encoder on unlabelled films, the findings model on another
hospital's wording.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.cli import generate
from cxr.cli.terminal import NOTHING_DONE, UsageError, console, positive, tell
from encoder.files import sole_writer, write_json

if TYPE_CHECKING:
    from eval import Scores

# a population that mini's training (train/pipelines/mini.py) has nothing to do with
SEED = 2024
# studies of the other hospital
TASTE_STUDIES = 160
# cases on the page
SHOWN = 12
# What is written last, and what says how far a demo has come.
PAGE, MARK = "index.html", "demo.json"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr demo` to `parser`."""
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("demo_out"), help="Folder to write.")
    add("--studies", type=positive, metavar="N", default=96, help="Unseen X-rays, at least 2.")
    add("--no-training", action="store_true", help="Leave out the taste of the two trainings.")


def run(args: argparse.Namespace) -> int:
    """Run `cxr demo`: write everything under OUT. An interrupted demo resumes, a finished one is left
    alone."""
    from train.common.launcher import run_steps
    from vlm.hub import MINI

    out = args.out
    if args.studies < 2:
        raise UsageError("--studies must be at least 2, because images are exchanged between studies")
    if not (MINI / "model.safetensors").is_file():
        raise UsageError(f"{MINI} holds no model; make mini trains it")
    asked = {"studies": args.studies, "training": not args.no_training}
    Progress.of(out, asked)
    with sole_writer(out / MARK):
        # Another demo may have finished it meanwhile.
        progress = Progress.of(out, asked)
        if "page" in progress.done:
            tell(f"the demo in {out} is done; its page: {(out / PAGE).absolute()}")
            tell(f"to start anew, give another folder with --out, or remove {out}")
            return 0
        if progress.done:
            tell(f"resuming the demo in {out}")
        progress.save()
        return run_steps(lambda: show(progress, getattr(args, "command_line", "")))


@dataclass
class Progress:
    """Keep how far a demo has come, in OUT/demo.json."""

    out: Path
    studies: int
    training: bool
    done: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, out: Path, asked: dict[str, Any]) -> Progress:
        """Find the demo of a folder, or begin one. Raises UsageError for a folder that holds something else."""
        if not out.exists() or (
            out.is_dir() and not any(p for p in out.iterdir() if p.name != f".{MARK}.lock")
        ):
            return cls(out, **asked)
        try:
            row = json.loads((out / MARK).read_text(encoding="utf-8"))
            found = cls(out, row["studies"], row["training"], list(row["done"]))
        except (OSError, ValueError, KeyError, TypeError):
            what = "is not empty, and holds no demo" if out.is_dir() else "is a file"
            raise UsageError(f"{out} {what}; give another folder with --out, or remove it") from None
        if {"studies": found.studies, "training": found.training} != asked:
            training = "" if found.training else " --no-training"
            raise UsageError(
                f"{out} holds a demo of --studies {found.studies}{training}; give these to resume it, another folder "
                "with --out, or remove it"
            )
        return found

    def finish(self, step: str) -> None:
        """Remember that a step is done."""
        self.done.append(step)
        self.save()

    def save(self) -> None:
        """Write the steps that are done to the folder, so that an interrupted demo resumes. Raises
        OSError."""
        row = {"schema": 1, "studies": self.studies, "training": self.training, "done": self.done}
        write_json(self.out / MARK, row)


def show(progress: Progress, command: str = "") -> None:
    """Do what is left of a demo, and write its page."""
    started, out = time.perf_counter(), progress.out

    say("1/4  Chest X-rays that mini never saw: phantoms, as DICOM files")
    listing = drawn(out / "phantoms", studies=progress.studies, seed=SEED, split="test")

    say("2/4  Findings by mini; with shuffled and blank images for comparison")
    predictions, floors = out / "predictions.jsonl", out / "floors"
    if "generate" not in progress.done:
        answer(listing, predictions, floors)
        progress.finish("generate")
    references = {row["study_id"]: row for row in _rows(listing)}
    found = _rows(predictions)
    for row in found[:2]:
        print(
            f"\n  {row['study_id']}\n    reference  {references[row['study_id']]['findings']}"
            f"\n    mini       {row.get('findings', row.get('error'))}"
        )

    say("3/4  Scores, with 95 % intervals, beside what a model that does not look would get")
    import eval as scoring

    scores = scoring.score(predictions, listing, floors=floors)
    print(scores.table())
    scores.save(out / "scores.json")

    curves = {}
    if progress.training:
        say("4/4  A taste of both trainings, going on from mini")
        curves = taste(progress)
    page = out / PAGE
    write(page, scores, curves, references, found, listing, command)
    progress.finish("page")
    tell(f"{time.perf_counter() - started:.0f} s. The page: {page.absolute()}")


def drawn(folder: Path, **options: Any) -> Path:
    """Return the studies file of a population, which is drawn unless it is there: the file comes last."""
    from train.phantom.population import write_population

    listing = folder / "studies.jsonl"
    return listing if listing.is_file() else write_population(folder, masks=False, **options)


def answer(listing: Path, predictions: Path, floors: Path) -> None:
    """Write mini's findings, and those for shuffled and blank images. Raises StepFailed."""
    from train.common.launcher import StepFailed
    from vlm.predictions import part_of

    # What an interrupted demo has finished is, to the command, begun.
    for path in (predictions, floors / "shuffled.jsonl", floors / "blank.jsonl"):
        if path.is_file():
            path.replace(part_of(path))
    words = [str(listing), "--out", str(predictions), "--floors", str(floors), "--batch-size", "32"]
    if generate.command(words) == NOTHING_DONE:
        raise StepFailed("mini refused every film")


def say(line: str) -> None:
    """Print a heading in bold on standard error, after an empty line."""
    console(stderr=True).print(f"\n[bold]{line}[/bold]")


def taste(progress: Progress) -> dict[str, list[tuple[float, float]]]:
    """Run two short trainings; return their loss curves by name."""
    from train.common.launcher import launch
    from vlm import model as models
    from vlm.load import load_model
    from vlm.study import load_studies

    out = progress.out
    mini = load_model("mini")
    encoder = out / "mini_encoder"
    if encoder.exists():
        # Of a demo that was cut off.
        shutil.rmtree(encoder)
    models.save_encoder(mini, encoder)
    shape: Any = mini.parts.vision_tower.config
    if "pretrain" not in progress.done:
        tell("The encoder continues to learn from images alone (fresh heads first, then the backbone):")
        launch(
            "train.pretrain",
            recipe="demo",
            init=encoder,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            data=out / "phantoms" / "images",
            cache=out / "cache",
            out=out / "pretrain",
        )
        progress.finish("pretrain")
    tell("The findings model learns another hospital's wording (LoRA and projector on the frozen encoder):")
    other = out / "other_hospital"
    listing = drawn(
        other, studies=TASTE_STUDIES, seed=SEED + 1, size=256, format="png", wording="telegraphic"
    )
    if "finetune" not in progress.done:
        launch("train.finetune", recipe="demo", init="mini", studies=listing, out=out / "finetune")
        progress.finish("finetune")
    from vlm import Findings

    study = next(s for s in load_studies(listing) if s.split == "validate")
    print(f"\n  {study.study_id}, which the training has not seen\n    reference  {study.findings}")
    for name, model in (("before", "mini"), ("after", out / "finetune" / "adapter")):
        (found,) = Findings.from_pretrained(model, warn=False).generate([study], root=other)
        print(f"    {name:9}  {found.text}")
    return {
        "Pre-training on images alone": _curve(out / "pretrain" / "metrics.jsonl"),
        "Fine-tuning on another hospital's wording": _curve(out / "finetune" / "metrics.jsonl"),
    }


def write(
    page: Path,
    scores: Scores,
    curves: dict[str, list[tuple[float, float]]],
    references: dict[str, dict[str, Any]],
    found: list[dict[str, Any]],
    listing: Path,
    command: str = "",
) -> None:
    """Write the demo's page: cases of `found` (rows of predictions) with the films of `listing`."""
    from cxr.cli.score import films_of
    from eval.page.shell import about
    from eval.report import write_page

    shown = [row for row in found if "findings" in row][:SHOWN]
    known = films_of([row["study_id"] for row in shown], listing)
    cases = [
        {
            **known[row["study_id"]],
            "study_id": row["study_id"],
            "reference": references[row["study_id"]]["findings"],
            "generated": row["findings"],
            "warnings": [f"{w['code']}: {w['message']}" for w in row.get("warnings") or ()],
        }
        for row in shown
    ]
    files = [page.parent / "predictions.jsonl", listing]
    write_page(
        page,
        title="cxr demo: findings by mini",
        scores=scores,
        curves=curves,
        cases=cases,
        facts=about("mini, a demonstration trained on phantoms", files, command),
        banner="phantoms",
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


def _curve(metrics: Path) -> list[tuple[float, float]]:
    return [(row["step"], row["loss"]) for row in _rows(metrics) if "loss" in row]
