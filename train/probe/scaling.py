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

Run the same command to resume: finished encoders and probes are kept, an unfinished one resumes. OUT
holds points/ (a pre-training each), probes/, scaling.json and scaling.html, in which every point has the interval over
test patients, and a curve is the mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from encoder.files import read_json, write_atomically, write_json
from train.common.config import Also, ConfigError, read_yaml
from train.common.options import Parser, note, shown

KEYS = {"recipe", "data", "fields", "amounts", "seeds", "variants", "probe"}
METRICS = {
    "classification": "auprc",
    "attentive": "auprc",
    "knn": "auroc",
    "segmentation": "dice",
    "upernet": "dice",
    "vitdet": "dice",
}


@dataclass
class Point:
    """One pre-training of the study."""

    variant: str
    amount: int
    seed: int
    changes: dict[str, Any]  # fields of the pre-training
    data: list[str]

    @property
    def name(self) -> str:
        """Return the name of the point's folder: variant, images and seed, without spaces and strokes."""
        return f"{self.variant}-{self.amount}-{self.seed}".replace(" ", "_").replace("/", "_")

    def claim(self, out: Path, recipe: str | None) -> None:
        """Keep what this point is. Raises ConfigError where OUT has it with other settings."""

        file = out / "points" / f"{self.name}.json"
        about = json.loads(json.dumps({"recipe": recipe, "data": self.data, "changes": self.changes}))
        if file.is_file() and (before := read_json(file)) != about:
            raise ConfigError(
                f"{self.variant}: {file} says that it was made with {before}, and the study now says {about}; give the "
                f"variant another name, or remove {file}, {file.with_suffix('')} and {out / 'data' / self.name}.csv"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, about)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cxr scaling`, alone in its folder. Returns the exit status."""
    args = configured(sys.argv[1:] if argv is None else argv)
    study = read_study(args.study)
    from train.common.checkpoints import alone

    with alone(args.out):
        return run(study, args.out, args.threads)


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
        help="Threads of each process on a CPU; 0 (default): all cores, divided among the processes.",
    )
    if also:
        also(parser.add_argument_group("the launch"))
    return parser.parse_args(argv)


def read_study(path: Path) -> dict[str, Any]:
    """Read the file of a scaling study. Raises ConfigError for a file that cannot be read, for missing or
    unknown keys, and for fields that a pre-training does not have."""
    from train.pretrain.config import RENAMED, PretrainConfig

    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    study = read_yaml(path)
    if not isinstance(study, dict) or study.keys() - KEYS or {"data", "amounts", "probe"} - study.keys():
        odd = sorted(map(str, study.keys() - KEYS)) if isinstance(study, dict) else []
        raise ConfigError(
            f"{path}: a study has {', '.join(sorted(KEYS))}" + (f", not {', '.join(odd)}" if odd else "")
        )
    study = {"recipe": None, "fields": {}, "seeds": [0], "variants": {"all": {}}, **study}
    _check_kinds(path, study)
    known = {f.name for f in fields(PretrainConfig)} - {"out"}
    for name, changes in [("fields", study["fields"]), *study["variants"].items()]:
        for old in [key for key in changes or {} if key in RENAMED]:
            note(f"{path.name}: {old} is now {RENAMED[old]}; the old name goes with the next release")
            changes[RENAMED[old]] = changes.pop(old)
        if unknown := sorted(set(changes or {}) - known):
            raise ConfigError(f"{path}: {name}: a pre-training has no {', '.join(unknown)}")
    if not study["amounts"] or min(study["amounts"]) < 1:
        raise ConfigError(f"{path}: amounts are numbers of images, at least 1")
    if "data" not in study["probe"]:
        raise ConfigError(f"{path}: probe needs data, as cxr probe takes it")
    return study


def _check_kinds(path: Path, study: dict[str, Any]) -> None:
    """Raise ConfigError for a key whose value is of another kind."""
    whole = "a list of whole numbers"
    kinds = {"amounts": whole, "seeds": whole, "fields": "fields", "variants": "names", "probe": "fields"}
    for key, kind in kinds.items():
        value = study[key]
        if kind == whole:
            fits = isinstance(value, list) and all(type(n) is int for n in value)
        else:
            fits = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        if not fits:
            raise ConfigError(
                f"{path}: {key} must be {kind if kind == whole else f'{kind} with values'}, not {shown(value)}"
            )
    for name, changes in study["variants"].items():
        if not (changes is None or isinstance(changes, dict)):
            raise ConfigError(f"{path}: variant {name} must be fields with values, not {shown(changes)}")


def points_of(study: dict[str, Any]) -> list[Point]:
    """List the points of a study, small amounts first, so that a curve appears early."""
    made = []
    for amount in sorted(study["amounts"]):
        for seed in study["seeds"]:
            for variant, own in study["variants"].items():
                changes = {**study["fields"], **(own or {})}
                data = changes.pop("data", study["data"])
                made.append(
                    Point(variant, amount, seed, changes, [data] if isinstance(data, str) else list(data))
                )
    return made


def run(study: dict[str, Any], out: Path, threads: int) -> int:
    """Pre-train and probe every point that is not done yet, and rewrite the report after each.

    Returns:
        0, or the status of the step that failed or was stopped; the same call resumes.

    Raises:
        ConfigError: `out` holds another study, or two variants share a folder's name.
    """
    from train.common.checkpoints import claim
    from train.common.processes import process_state
    from train.pretrain.__main__ import main as pretrain
    from train.probe.__main__ import main as probe
    from train.probe.run import PATIENCE

    state = process_state(PATIENCE)
    with state.main_process_first():
        claim(out, study, may_differ={"amounts", "seeds", "variants", "probe"})
    points, judged = points_of(study), judged_by(study["probe"])
    if len({p.name for p in points}) < len({(p.variant, p.amount, p.seed) for p in points}):
        raise ConfigError("two variants have the same name but for spaces and strokes")
    for number, point in enumerate(points, 1):
        state.print(
            f"\n[{number}/{len(points)}] {point.variant}: {point.amount} images, seed {point.seed}",
            flush=True,
        )
        listing, folder = out / "data" / f"{point.name}.csv", out / "points" / point.name
        if state.is_main_process:
            point.claim(out, study["recipe"])
            if not listing.is_file():
                draw(point, listing, judged)
        state.wait_for_everyone()
        # one that was interrupted has an encoder, too
        finished = folder / "finished"
        if not finished.is_file():
            words = ["--recipe", study["recipe"]] if study["recipe"] else []
            words += options(
                {**point.changes, "seed": point.seed, "threads": threads, "data": [str(listing)]}
            )
            status = pretrain([*words, "--out", str(folder)])
            # 130 and 143: stopped
            if status:
                return status if status >= 128 else 2
            if state.is_main_process:
                finished.touch()
            state.wait_for_everyone()
        settings = {"threads": threads, "features_dir": str(out / "features"), **study["probe"]}
        settings |= {"pretrained_on": [str(listing)]}
        settings |= {"encoders": [str(folder / "encoder")], "out": str(out / "probes" / point.name)}
        if status := probe(options(settings)):
            return status
        if state.is_main_process:
            report(points[:number], study, out)
        state.wait_for_everyone()
    state.print(f"wrote {out / 'scaling.json'} and {out / 'scaling.html'}")
    return 0


def options(values: dict[str, Any]) -> list[str]:
    """Turn fields into the words of a command line."""
    words = []
    for name, value in values.items():
        words.append(f"--{name}")
        words += map(str, value) if isinstance(value, list | tuple) else [str(value)]
    return words


def judged_by(probe: dict[str, Any]) -> set[str]:
    """Return the images that the probe validates or tests on; no pre-training of the study sees them. Raises
    ConfigError."""
    from train.datasets.labelled import load

    try:
        found = load(probe["data"])
    except (OSError, ValueError) as error:
        raise ConfigError(f"probe: data {probe['data']}: {error}") from None
    return {str(p.resolve()) for p, split in zip(found.paths, found.splits, strict=True) if split != "train"}


def draw(point: Point, listing: Path, judged: Set[str] = frozenset()) -> None:
    """Write a CSV of the point's images, drawn from those that the probe does not judge. Raises ConfigError
    if there are too few."""
    from train.datasets.folder import NoSplits, image_paths

    split, paths = point.changes.get("split", "train"), []
    for source in point.data:
        try:
            found = image_paths(source, split)
        except NoSplits:
            found = image_paths(source)
        except (OSError, ValueError) as error:
            raise ConfigError(f"data {source}: {error}") from None
        paths += [p for p in found if str(p.resolve()) not in judged]
    if len(paths) < point.amount:
        raise ConfigError(f"{point.variant}: {point.amount} images are asked for, and there are {len(paths)}")
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
