"""Claim: a findings model that is given the indication, the prior's findings, the prior's image or the lateral image
writes better what each of them decides than the same model trained without it.

    python benchmarks/context.py [--out runs/context] [--save]

Phantoms decide the truth: reports call a consolidation pneumonia where the indication has a fever, compare with the
prior where there is one, and tell of what the lateral film alone shows. Five models are fine-tuned from mini on the
same patients, with the same steps and seed; each of four differs from the fifth in one thing. All write findings for
other patients, and once more with another patient's indication, prior or lateral, which shows how much of a gain was
for what it says. The same command goes on where it was interrupted; `--only NAME` makes one model, beside another
process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from eval.intervals import ALIKE
from eval.scores.comparison import differences
from eval.scores.inputs import align, patients
from eval.scores.label_f1 import binarize, columns, confusion, micro_f1
from eval.scores.labels import LABELLER, label_matrix
from eval.scores.safety import add_safety, prior_given
from eval.scores.sheet import Sheet
from eval.signature import signature
from train.common.launcher import call, launch, run_steps
from train.phantom.patient import HIDDEN
from train.phantom.report import LABEL_OF

TRAIN_SEED, TRAIN_STUDIES = 401, 4000
TEST_SEED, TEST_STUDIES = 402, 800
POPULATION = {
    "prevalence": 2.0,
    "followups": 1.0,
    "laterals": 1.0,
    "hidden": 0.4,
    "size": 256,
    "format": "png",
}
NOTHING = {"indication": False, "prior": False, "lateral": False, "prior_image": False}
MODELS = {  # what each is given beside the frontal image
    "frontal": {},
    "indication": {"indication": True},
    "prior": {"prior": True},
    "prior_image": {"prior_image": True},
    "lateral": {"lateral": True},
}
TRAINING = {
    "lora": False,  # a million parameters: the whole language model learns a new field faster than LoRA does
    "batch_size": 16,
    "learning_rate": 1e-3,
    "projector_lr_mult": 0.3,
    "warmup_steps": 50,
    "max_new_tokens": 160,
    "eval_steps": 0,
    "save_steps": 100,
    "logging_steps": 50,
    "dataloader_num_workers": 0,
}


@dataclass(frozen=True)
class Claim:
    """A score that changes in a known direction when a model is given something."""

    given: str  # of MODELS
    key: str
    title: str
    among: str  # which studies: all, with prior, without prior, with lateral
    rises: bool = True


CLAIMS = (
    Claim("indication", "pneumonia-f1", "F1 of Pneumonia", "all"),
    Claim("prior", "temporal-f1", "words of change: F1", "with prior"),
    Claim("prior", "hallucinated-prior", "compares with no prior", "without prior", rises=False),
    Claim("prior_image", "temporal-f1", "words of change: F1", "with prior"),
    Claim("prior_image", "hallucinated-prior", "compares with no prior", "without prior", rises=False),
    Claim("lateral", "hidden-f1", "F1 of findings that only the lateral film shows", "with lateral"),
)
GIVEN = {"indication": "indication", "prior": "prior's findings", "prior_image": "prior's image",
         "lateral": "lateral image"}  # fmt: skip
HIDDEN_LABELS = tuple(LABEL_OF[kind] for kind in HIDDEN)  # F1 over their decisions together


def chosen(studies: Sequence[Mapping], among: str) -> list[bool]:
    """Which studies a claim is about."""
    if among == "with lateral":
        return [any(image.get("view") == "lateral" for image in s["images"]) for s in studies]
    if among == "all":
        return [True] * len(studies)
    return [prior_given(s) == (among == "with prior") for s in studies]


def exchanged(studies: Sequence[Mapping], given: str) -> list[dict]:
    """The studies that have what is given, with that of another patient: the next one but one, since a patient has two
    studies at most, one after the other."""
    key = "prior" if given.startswith("prior") else given
    if given == "lateral":
        films = [next((i for i in s["images"] if i["view"] == "lateral"), None) for s in studies]
    else:
        films = [s.get(key) for s in studies]
    having = [n for n, film in enumerate(films) if film]
    rows = []
    for n, other in zip(having, having[2:] + having[:2], strict=True):
        if given == "lateral":
            images = [i for i in studies[n]["images"] if i["view"] != "lateral"]
            rows.append({**studies[n], "images": [*images, films[other]]})
        else:
            rows.append({**studies[n], key: films[other]})
    return rows


def sheet_of(references: Sequence[str], predictions: Sequence[str], studies: Sequence[Mapping]) -> Sheet:
    """The scores of CLAIMS."""
    sheet = Sheet(len(references))
    add_safety(sheet, references, predictions, studies)
    counts_N3C = confusion(
        binarize(label_matrix(references), "neg"), binarize(label_matrix(predictions), "neg")
    )
    for key, conditions in (("pneumonia-f1", ["Pneumonia"]), ("hidden-f1", HIDDEN_LABELS)):
        c = len(conditions)
        where = sheet.columns(counts_N3C[:, :, columns(conditions)].reshape(len(references), 3 * c))
        described = signature("label-f1", labeller=LABELLER, n=c, avg="micro", unc="neg", zero=0, ref="text")
        sheet.add(key, described, lambda s, c=c: micro_f1(s.reshape(*s.shape[:-1], 3, c)), where)
    return sheet


def compare(studies: Sequence[Mapping], predictions: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """A row for each claim, from studies and the predictions of every model of MODELS: the score with and without,
    their difference with its 95 % interval, both systems on the same drawn patients, and whether the claim holds: the
    interval lies on its side of 0. Predictions under "<model>/exchanged", for the studies of `exchanged`, add what
    becomes of the score."""

    def difference(name: str, other: str, claim: Claim, about: list[Mapping]):
        both = [align(predictions[n], about) for n in (name, other)]
        sheets = [sheet_of(pairs.references, pairs.predictions, pairs.studies) for pairs in both]
        people = patients(both[0], None)
        (found,) = differences(*sheets, [claim.key], people, n_permutations=1000)
        return found, len(set(people)), sheets[0].measures[claim.key].signature

    def ends(found) -> tuple[float, float]:
        """The interval; where all patients differ alike, no width."""
        return (found.difference,) * 2 if found.no_interval == ALIKE else (found.low, found.high)

    rows = []
    for claim in CLAIMS:
        about = [s for s, yes in zip(studies, chosen(studies, claim.among), strict=True) if yes]
        found, people, described = difference(claim.given, "frontal", claim, about)
        rows.append({
            "given": claim.given, "score": claim.key, "title": claim.title, "should": "rise" if claim.rises else "fall",
            "among": claim.among, "studies": len(about), "patients": people,
            "with": round(found.value, 4), "without": round(found.other, 4),
            "difference": round(found.difference, 4), "interval": [round(x, 4) for x in ends(found)],
            "holds": ends(found)[0] > 0 if claim.rises else ends(found)[1] < 0,
            "signature": described,
        })  # fmt: skip
        other = f"{claim.given}/exchanged"
        if other in predictions and claim.among != "without prior":
            made = {p["study_id"] for p in predictions[other]}
            same, people, _ = difference(
                claim.given, other, claim, [s for s in about if s["study_id"] in made]
            )
            rows[-1]["exchanged"] = {
                "patients": people,
                "with": round(same.value, 4),
                "exchanged": round(same.other, 4),
                "difference": round(same.difference, 4),
                "interval": [round(x, 4) for x in ends(same)],
            }
    return rows


def table(rows: Sequence[Mapping]) -> str:
    """The rows of `compare` as Markdown."""
    lines = [
        "| given beside the frontal image | score | studies | without | with | difference | holds | another's |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["interval"]
        difference = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        holds = "yes" if row["holds"] else "no"
        others = f"{row['exchanged']['exchanged']:.3f}" if "exchanged" in row else ""
        lines.append(
            f"| {GIVEN[row['given']]} | {row['title']}, should {row['should']} | {row['studies']} {row['among']} "
            f"| {row['without']:.3f} | {row['with']:.3f} | {difference} | {holds} | {others} |"
        )
    return "\n".join(lines)


def phantoms(folder: Path, split: str, seed: int, studies: int, workers: int) -> Path:
    from train.phantom.population import write_population

    listing = folder / "studies.jsonl"
    if not listing.exists():
        options = {**POPULATION, "seed": seed, "studies": studies, "split": split, "workers": workers}
        write_population(folder, masks=False, **options)
    return listing


def findings_of(name: str, out: Path, train: Path, test: Path, steps: int, threads: int) -> dict[str, Path]:
    """Train a model and let it write; returns its predictions, by their names in `compare`."""
    folder = out / name
    if not (folder / "finished").exists():
        given = {k: str(v).lower() for k, v in {**NOTHING, **MODELS[name], **TRAINING}.items()}
        launch(
            "train.finetune", init="mini", studies=train, out=folder, features_dir=out / "features",
            name=f"context-{name}", max_steps=steps, threads=threads, **given,
        )  # fmt: skip
    made = {name: write(folder, test, "predictions.jsonl")}
    if name != "frontal":
        listing = test.with_name(f"exchanged-{name}.jsonl")
        listing.write_text("".join(f"{json.dumps(row)}\n" for row in exchanged(rows_of(test), name)))
        made[f"{name}/exchanged"] = write(folder, listing, "exchanged.jsonl")
    return made


def write(folder: Path, listing: Path, name: str) -> Path:
    from cxr.cli.main import main as cxr

    if not (folder / name).exists():
        call(cxr, "generate", listing, model=folder / "merged", out=folder / name, batch_size=32)
    return folder / name


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/context"), help="folder of all steps")
    parser.add_argument(
        "--only", choices=tuple(MODELS), help="only train and run this model, without a table"
    )
    parser.add_argument("--steps", type=int, default=800, help="of each model (default 800)")
    parser.add_argument("--train-studies", type=int, default=TRAIN_STUDIES)
    parser.add_argument("--test-studies", type=int, default=TEST_STUDIES)
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores by default"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/context.json")
    args = parser.parse_args()
    result: dict = {}

    def work() -> None:
        import torch

        torch.set_num_threads(args.threads)
        train = phantoms(args.out / "train", "train", TRAIN_SEED, args.train_studies, args.threads)
        test = phantoms(args.out / "test", "test", TEST_SEED, args.test_studies, args.threads)
        made = {}
        for name in [args.only] if args.only else MODELS:
            started = time.perf_counter()
            made |= findings_of(name, args.out, train, test, args.steps, args.threads)
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        if args.only:
            return
        result["rows"] = compare(rows_of(test), {name: rows_of(path) for name, path in made.items()})
        print(f"\n{table(result['rows'])}")

    status = run_steps(work)
    if status or args.only:
        return status
    result |= {
        "models": {name: {**NOTHING, **given} for name, given in MODELS.items()},
        "training": {**TRAINING, "init": "mini", "max_steps": args.steps, "seed": 0},
        "population": {
            **POPULATION, "train": [TRAIN_SEED, args.train_studies], "test": [TEST_SEED, args.test_studies],
        },
        "interval": "95 % percentile bootstrap over patients, paired; one training of each model",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }  # fmt: skip
    if args.save:
        target = Path(__file__).parent / "results" / "context.json"
        target.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {target}")
    return 0 if all(row["holds"] for row in result["rows"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
