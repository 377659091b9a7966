"""`cxr demo`: the whole system at work in a few minutes on an ordinary computer, ending with one HTML page.

Findings by the shipped mini for X-rays it never saw, scored beside their floors; then a taste of both trainings
through `accelerate launch`, going on from mini: the encoder on unlabelled films, the findings model on another
hospital's wording.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.cli import generate
from cxr.cli.terminal import UsageError, positive
from encoder.errors import printable

if TYPE_CHECKING:
    from eval import Scores

# a population that mini's training (train/pipelines/mini.py) has nothing to do with
SEED = 2024
# studies of the other hospital
TASTE_STUDIES = 160
# cases on the page
SHOWN = 12


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("demo_out"), help="Folder to write.")
    add("--studies", type=positive, metavar="N", default=96, help="Unseen X-rays, at least 2.")
    add("--no-training", action="store_true", help="Leave out the taste of the two trainings.")


def run(args: argparse.Namespace) -> int:
    """`cxr demo`: writes everything under OUT; an existing one is left alone."""
    out, studies = args.out, args.studies
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} exists and is not empty; give another folder with --out, or remove it")
    if studies < 2:
        raise UsageError("--studies must be at least 2, because images are exchanged between studies")
    from train.common.launcher import run_steps
    from vlm.hub import MINI

    if not (MINI / "model.safetensors").is_file():
        raise UsageError(f"{MINI} holds no model; make mini trains it")
    again = f"remove {out} before the next try"
    return run_steps(
        lambda: show(out, studies, not args.no_training, getattr(args, "command_line", "")), again
    )


def show(out: Path, studies: int, training: bool, command: str = "") -> None:
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)

    say("1/4  Chest X-rays that mini never saw: phantoms, as DICOM files")
    from train.common.launcher import call
    from train.phantom.population import write_population

    listing = write_population(out / "phantoms", studies=studies, seed=SEED, split="test", masks=False)

    say("2/4  Findings by mini; with shuffled and blank images for comparison")
    predictions, floors = out / "predictions.jsonl", out / "floors"
    call(generate.command, listing, out=predictions, floors=floors, batch_size=32)
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
    if training:
        say("4/4  A taste of both trainings, going on from mini")
        curves = taste(out)
    page = out / "index.html"
    write(page, scores, curves, references, found, listing, command)
    print(f"\n{time.perf_counter() - started:.0f} s. The page: {printable(str(page.absolute()))}")


def say(line: str) -> None:
    from rich.console import Console

    Console().print(f"\n[bold]{line}[/bold]")


def taste(out: Path) -> dict[str, list[tuple[float, float]]]:
    """Two short trainings; returns their loss curves by name."""
    from train.common.launcher import launch
    from train.phantom.population import write_population
    from vlm import model as models
    from vlm.load import load_model
    from vlm.study import load_studies

    mini = load_model("mini")
    encoder = out / "mini_encoder"
    models.save_encoder(mini, encoder)
    shape: Any = mini.parts.vision_tower.config
    print("The encoder goes on learning from images alone (fresh heads first, then the backbone):")
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
    print(
        "\nThe findings model learns another hospital's wording (LoRA and projector on the frozen encoder):"
    )
    other = out / "other_hospital"
    write_population(
        other,
        studies=TASTE_STUDIES,
        seed=SEED + 1,
        size=256,
        format="png",
        wording="telegraphic",
        masks=False,
    )
    launch(
        "train.finetune", recipe="demo", init="mini", studies=other / "studies.jsonl", out=out / "finetune"
    )
    from vlm import Findings

    study = next(s for s in load_studies(other / "studies.jsonl") if s.split == "validate")
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
