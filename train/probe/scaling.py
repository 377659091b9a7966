"""How an encoder grows with its data: pre-trainings that differ in amount, source, resolution, losses or start, each
probed, drawn as curves.

    cxr scaling study.yaml --out runs/scaling

The study is one YAML file:

    recipe: mini                         # of pre-training; `fields` and those of a variant come on top
    data: [archive/, more/images.csv]    # where images are drawn from; a variant may have its own
    fields: {max_steps: 1000}
    amounts: [250, 500, 1000, 2000]      # images, at random; smaller sets lie within larger ones of the same seed
    seeds: [0, 1]                        # of the images drawn, the initial weights and the order
    variants:                            # ablations, by name; none: one, called "all"
      all: {}
      without iBOT: {ibot_loss_weight: 0.0}
      without KoLeo: {koleo_loss_weight: 0.0}
      half the resolution: {size: 112}
    probe: {data: labelled.csv, tasks: [classification, segmentation]}   # as of cxr probe

The whole study is checked before anything is trained: each variant's settings, the probe's, and that there are enough
images. Run the same command to resume: finished encoders and probes are kept, an unfinished one resumes. OUT
holds points/ (a pre-training each), probes/, scaling.json and scaling.html, in which every point has the interval over
test patients, and a curve is the mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from encoder.files import read_json, write_atomically, write_json
from train.common.config import Also, ConfigError
from train.common.options import Parser
from train.probe.config import configured as configured_probe
from train.probe.study import Point, points_of, read_study, words_of_pretraining, words_of_probe

# As of a pre-training and a probe.
MOST_THREADS = 16384
METRICS = {
    "classification": "auprc",
    "attentive": "auprc",
    "knn": "auroc",
    "segmentation": "dice",
    "upernet": "dice",
    "vitdet": "dice",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cxr scaling`, alone in its folder. Returns the exit status."""
    args = configured(sys.argv[1:] if argv is None else argv)
    study = read_study(args.study)
    from train.common.checkpoints import alone

    with alone(args.out):
        return run(study, args.out, args.threads, args.study)


def configured(argv: Sequence[str], also: Also | None = None) -> argparse.Namespace:
    """Read a command line. Raises SystemExit as argparse does."""
    parser = Parser(
        prog="cxr scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file that says what is trained and probed, as above.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of the study.")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="Threads of each process on a CPU, where the study's fields or probe give none; 0 (default): all cores, "
        "divided among the processes.",
    )
    if also:
        also(parser.add_argument_group("the launch"))
    args = parser.parse_args(argv)
    if not 0 <= args.threads <= MOST_THREADS:
        parser.error(f"--threads must be from 0 to {MOST_THREADS}, not {args.threads}")
    return args


def run(study: dict[str, Any], out: Path, threads: int, file: Path) -> int:
    """Pre-train and probe every point that is not done yet, and rewrite the report after each. `file` is what messages
    call the study.

    Returns:
        0, or the status of the step that failed or was stopped; the same call resumes.

    Raises:
        ConfigError: before anything is written: `out` holds points with other settings, there are too few images for a
            point, or the probe cannot judge its data.
        CheckpointError: `out` holds another study.
    """
    from train.common.checkpoints import claim
    from train.common.processes import process_state
    from train.pretrain.__main__ import main as pretrain
    from train.probe.__main__ import main as probe
    from train.probe.run import PATIENCE

    state = process_state(PATIENCE)
    points = points_of(study)
    try:
        judged = judged_by(study["probe"])
        check_images(points, study["recipe"], out, judged)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    with state.main_process_first():
        claim(out, study, may_differ={"amounts", "seeds", "variants", "probe"})
    for number, point in enumerate(points, 1):
        state.print(
            f"\n[{number}/{len(points)}] {point.variant}: {point.amount} images, seed {point.seed}",
            flush=True,
        )
        listing, folder = listing_of(point, out), out / "points" / point.name
        if state.is_main_process:
            point.claim(out, study["recipe"])
            if not listing.is_file():
                draw(point, listing, judged)
        state.wait_for_everyone()
        # one that was interrupted has an encoder, too
        finished = folder / "finished"
        if not finished.is_file():
            status = pretrain(words_of_pretraining(point, study["recipe"], listing, folder, threads))
            # 130 and 143: stopped
            if status:
                return status if status >= 128 else 2
            if state.is_main_process:
                finished.touch()
            state.wait_for_everyone()
        probed, features = out / "probes" / point.name, out / "features"
        words = words_of_probe(study["probe"], folder / "encoder", listing, features, probed, threads)
        if status := probe(words):
            return status
        if state.is_main_process:
            report(points[:number], study, out)
        state.wait_for_everyone()
    state.print(f"wrote {out / 'scaling.json'} and {out / 'scaling.html'}")
    return 0


def judged_by(probe: dict[str, Any]) -> set[str]:
    """Return the images that the probe validates or tests on; no pre-training of the study sees them. Raises
    ConfigError for data that cannot be read, or that lacks the labels or tasks that the probe asks for."""
    from train.datasets.labelled import load, without_shared_patients
    from train.probe.run import tasks_of

    try:
        found = load(probe["data"])
    except (OSError, ValueError) as error:
        raise ConfigError(f"probe: data {probe['data']}: {error}") from None
    nowhere = Path("out")
    config = configured_probe(words_of_probe(probe, nowhere, nowhere, nowhere, nowhere, 0))
    try:
        tasks_of(config, without_shared_patients(found)[0])
    except ConfigError as error:
        raise ConfigError(f"probe: {error}") from None
    return {str(p.resolve()) for p, split in zip(found.paths, found.splits, strict=True) if split != "train"}


def check_images(points: Sequence[Point], recipe: str | None, out: Path, judged: Set[str]) -> None:
    """Raise ConfigError for a point that OUT has with other settings, and for one whose images are still to be drawn
    where there are too few."""
    there: dict[tuple[str, ...], int] = {}
    for point in points:
        point.compare(out, recipe)
        if listing_of(point, out).is_file():
            continue
        sources = (str(point.changes.get("split", "train")), *point.data)
        if sources not in there:
            there[sources] = len(images_for(point, judged))
        enough(point, there[sources])


def listing_of(point: Point, out: Path) -> Path:
    """Return the path of the CSV that lists the point's images."""
    return out / "data" / f"{point.name}.csv"


def images_for(point: Point, judged: Set[str] = frozenset()) -> list[Path]:
    """Return the images that a point's are drawn from. Raises ConfigError for a source that cannot be read."""
    from train.datasets.folder import NoSplits, image_paths

    split, paths = point.changes.get("split", "train"), []
    for source in point.data:
        try:
            try:
                found = image_paths(source, split)
            except NoSplits:
                found = image_paths(source)
        except (OSError, ValueError) as error:
            raise ConfigError(f"variant {point.variant}: data {source}: {error}") from None
        paths += [p for p in found if str(p.resolve()) not in judged]
    return paths


def enough(point: Point, there: int) -> None:
    """Raise ConfigError where a point asks for more images than there are."""
    if there < point.amount:
        raise ConfigError(
            f"variant {point.variant}: {point.amount} images are asked for, and there are {there} in "
            f"{', '.join(point.data)} that the probe does not judge"
        )


def draw(point: Point, listing: Path, judged: Set[str] = frozenset()) -> None:
    """Write a CSV of the point's images, drawn from those that the probe does not judge. Raises ConfigError
    if there are too few."""
    paths = images_for(point, judged)
    enough(point, len(paths))
    order = np.random.default_rng(point.seed).permutation(len(paths))
    listing.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(listing) as part, part.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path"])
        rows.writerows([str(paths[i].absolute())] for i in sorted(order[: point.amount]))


def report(points: list[Point], study: dict[str, Any], out: Path) -> None:
    """Write scaling.json and scaling.html of the points that are finished."""
    from eval.page.shell import Section, about, write_body
    from eval.plots import growth

    rows = []
    for point in points:
        found = read_json(out / "probes" / point.name / "probe.json")
        for task, outcome in found["tasks"].items():
            for row in outcome["scores"]:
                what = row.get("structure") or row["name"].partition("/")[2]
                rows.append({
                    "variant": point.variant, "amount": point.amount, "seed": point.seed, "task": task,
                    "head": row["head"], "metric": row["metric"], "of": what, "value": row["value"],
                    "interval": row["interval"], "n": row["n"], "signature": row["signature"],
                })  # fmt: skip
    write_json(out / "scaling.json", {"schema": 1, "study": study, "points": rows})
    drawn = []
    for task, metric in METRICS.items():
        mine = [r for r in rows if r["task"] == task and r["metric"] == metric and r["value"] is not None]
        every = list(dict.fromkeys(r["of"] for r in mine))
        for what in [w for w in every if w in ("macro", "mean")] or every:
            curves = {
                variant: [(r["amount"], r["value"], *r["interval"]) for r in mine
                          if r["variant"] == variant and r["of"] == what]
                for variant in study["variants"]
            }  # fmt: skip
            drawn.append(growth({k: v for k, v in curves.items() if v}, f"{task}: {metric}, {what}"))
    top = "<p>Points: one pre-training each, with the 95 % interval over test patients. Lines: means over seeds.</p>"
    panels = f"<div class='panels'>{''.join(drawn)}</div>"
    write_body(
        out / "scaling.html",
        "What the encoder knows, by the images it learned from",
        [Section("curves", "By the number of images", panels)],
        top=top,
        facts=about(", ".join(study["variants"]), [study["probe"]["data"]]),
    )


if __name__ == "__main__":
    from train.common.entry import entry

    sys.exit(entry(main, "train.probe.scaling"))
