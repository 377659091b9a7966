"""Make the shipped demonstration model again, from nothing: phantoms, encoder, language model, findings, checks, card.

    python -m train.pipelines.mini --out runs/mini --install

Each step is skipped once it is done, and resumes where it was interrupted. `--install` puts the result into
the package. Beside phantoms, the encoder sees (without labels) the NIH ChestX-ray14 images of CXR_DATA, whose
terms allow it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
from datetime import date
from pathlib import Path

from encoder.files import replace_folder
from train.common.launcher import StepFailed, launch, run_steps, small_model_processes
from train.pipelines import judge
from vlm.study import save_studies

SEED, STUDIES = 100, 14_000  # the population that mini learns from; its test split is what mini is judged on
RICH_SEED, RICH_STUDIES = 101, 30_000  # for fine-tuning alone: of 11,000, a reader learned many by heart
RICH = 3.0  # times as many findings in these: more to learn from every study
TEST_STUDIES = 700
NIH_WEIGHT = 2  # each of the few real images is seen twice as often as a phantom
LIMIT_MB = 12  # all weights together


# Phantoms by which mini knows its own, and the share of such that it may be warned of.
KNOWN_SEED, KNOWN_STUDIES, FALSE_ALARMS = 102, 1900, 0.03


def main(argv: list[str] | None = None) -> int:
    """Run as a command: make the model that ships. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m train.pipelines.mini", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="folder of all steps")
    parser.add_argument("--install", action="store_true", help="replace vlm/mini by the result")
    args = parser.parse_args(argv)
    return run_steps(lambda: make(args.out, args.install))


def make(out: Path, install_it: bool) -> None:
    """Draw phantoms, train encoder, language model and findings model, and judge the result, all below `out`.

    Raises:
        StepFailed: a training failed, or the weights exceed LIMIT_MB.
    """
    out.mkdir(parents=True, exist_ok=True)
    studies = phantoms(out / "phantoms", studies=STUDIES, seed=SEED)
    rich = phantoms(
        out / "rich_phantoms", studies=RICH_STUDIES, seed=RICH_SEED, prevalence=RICH, split="train", size=256
    )
    images, weights = [studies], [1]
    nih = nih_images(out)
    if nih:
        images, weights = [*images, nih], [*weights, NIH_WEIGHT]
    launch(
        "train.pretrain",
        recipe="mini",
        data=images,
        weights=weights,
        cache=out / "cache",
        out=out / "encoder",
    )
    processes = small_model_processes()
    launch(
        "train.finetune.language_model",
        processes=processes,
        recipe="mini",
        studies=[studies, rich],
        out=out / "llm",
    )
    launch(
        "train.finetune",
        processes=processes,
        recipe="mini",
        encoder=out / "encoder" / "encoder",
        llm=out / "llm",
        studies=[studies, rich],
        features_dir=out / "features",
        out=out / "findings",
        merge=True,
    )
    merged = out / "findings" / "merged"
    known = phantoms(out / "known_phantoms", studies=KNOWN_STUDIES, seed=KNOWN_SEED)
    reference_statistics(merged, known, nih, out / "ood.safetensors")
    scores = judged(merged, studies, out / "test")
    weight_mb = sum(f.stat().st_size for f in merged.glob("*.safetensors")) / 1e6
    shape = json.loads((merged / "config.json").read_text())
    (merged / "README.md").write_text(card(scores, shape, weight_mb, nih is not None))
    print(f"{merged}: {weight_mb:.1f} MB of weights")
    if weight_mb > LIMIT_MB:
        raise StepFailed(f"that is more than the {LIMIT_MB} MB a shipped model may have")
    if install_it:
        install(merged)


def phantoms(folder: Path, **options) -> Path:
    """Return the studies file of the phantoms in `folder`, which are drawn unless it is there."""
    from train.phantom.population import write_population

    studies = folder / "studies.jsonl"
    return studies if studies.exists() else write_population(folder, masks=False, **options)


def nih_images(out: Path) -> Path | None:
    """Write a list of the NIH images of CXR_DATA: other sources there must not enter shipped weights."""
    data = os.environ.get("CXR_DATA")
    table = Path(data) / "images_only" / "images.csv" if data else None
    if table is None or not table.is_file():
        print("CXR_DATA has no images_only/images.csv: the encoder will see phantoms alone")
        return None
    listing = out / "nih.csv"
    with table.open(newline="") as file, listing.open("w", newline="") as kept:
        writer = csv.writer(kept)
        writer.writerow(["file", "split"])
        for row in csv.DictReader(file):
            if row["licence"].startswith("NIH CC"):
                writer.writerow([table.parent / row["file"], row["split"]])
    return listing


def reference_statistics(merged: Path, studies: Path, nih: Path | None, file: Path) -> None:
    """Fit what mini knows (phantoms) and what a chest film is (phantoms and NIH films of the training
    split)."""
    from vlm.findings import OUTLIERS
    from vlm.reference import fit_outliers
    from vlm.study import absolute, load_studies

    if not file.exists():
        known = [absolute(s, studies.parent) for s in load_studies(studies) if s.split == "train"]
        chest = []
        if nih:
            with nih.open(newline="") as table:
                chest = [Path(row["file"]) for row in csv.DictReader(table) if row["split"] == "train"]
        fit_outliers(merged, [], file, quantile=1 - FALSE_ALARMS, studies=known, chest=chest)
    shutil.copy(file, merged / OUTLIERS)


def judged(merged: Path, studies: Path, folder: Path) -> dict:
    """Score on phantoms that no step has seen, with their own, shuffled and blank images."""
    folder.mkdir(exist_ok=True)
    predictions, scores, floors = folder / "predictions.jsonl", folder / "scores.json", folder / "floors"
    if not scores.exists():
        chosen = judge.generate(
            merged, studies, predictions, floors, split="test", limit=TEST_STUDIES, batch_size=64
        )
        reference = folder / "references.jsonl"  # of the studies asked for
        save_studies(chosen, reference, overwrite=True)
        judge.score(predictions, reference, floors, scores, folder / "scores.html")
    return json.loads(scores.read_text())


def card(scores: dict, shape: dict, weight_mb: float, with_nih: bool) -> str:
    """Return the model card; `shape` is the model's config.json."""
    import torch

    see, write = shape["vision_config"], shape["text_config"]
    vit = "{image_size} px, patch {patch_size}, width {hidden_size}, {num_hidden_layers} blocks".format(**see)
    llama = "width {hidden_size}, {num_hidden_layers} layers".format(**write)
    rows = "\n".join(f"| {name} | {text} |" for name, text in headline(scores))
    real = (
        "and, without labels or reports, on the 787 training images of NIH ChestX-ray14 named in its data listing"
        if with_nih
        else "alone"
    )
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
tags: [radiology, chest-x-ray, demonstration]
---

# mini: a demonstration, not for diagnosis

A chest X-ray findings model small enough to ship in a Python package ({weight_mb:.1f} MB). **It learned from synthetic
X-rays and writes about synthetic X-rays.** On a patient's film its text means nothing. It is there to show the whole
system at work on an ordinary computer, and to be the fixture of tests that need a model which looks at its image.

- **Encoder**: ViT, {vit}; DINO + iBOT + KoLeo self-distillation from random weights on phantoms
  {real}.
- **Language model**: Llama, {llama}; tokenizer and weights trained on phantom reports.
- **Findings**: stock `LlavaForConditionalGeneration`; projector and LoRA (merged here) trained on the frozen encoder.
- **Data**: {STUDIES:,} phantom studies (`cxr phantom`, seed {SEED}), split by patient 80/10/10, and
  {RICH_STUDIES:,} with more findings (seed {RICH_SEED}, prevalence {RICH:g}) for fine-tuning alone.
  NIH ChestX-ray14 images: National Institutes of Health Clinical Center (Wang et al., CVPR 2017).
- **Made by**: `make mini`, torch {torch.__version__.split("+")[0]}, {date.today():%B %Y}.

Scores on {scores.get("n", TEST_STUDIES)} phantom studies of patients no step has seen, 95 % intervals by patient:

| score | value |
|---|---|
{rows}

Licence: Apache-2.0. Intended use: demonstration and software tests. Out of scope: everything else.
"""


HEADLINE = {
    "label-f1/14/macro-30/neg": "label F1, macro over labels with 30 positives, uncertain as negative",
    "label-f1/14/micro/neg": "label F1, micro over 14 labels",
    "bleu-4/coco": "BLEU-4 (coco)",
    "rouge-l/coco": "ROUGE-L (coco)",
    "meteor/coco": "METEOR (nltk, no WordNet)",
}


def headline(scores: dict) -> list[tuple[str, str]]:
    """Return the rows of the card, from the JSON of `cxr score`: each score, and the first one on the
    floors."""

    def value(rows: list[dict], name: str) -> str:
        row = next(row for row in rows if row["name"] == name)
        low, high = row["interval"]
        return f"{row['value']:.3f} [{low:.3f}, {high:.3f}]"

    first = next(iter(HEADLINE))
    return [
        *((text, value(scores["scores"], name)) for name, text in HEADLINE.items()),
        *((f"the same F1, {floor['name']}", value(floor["scores"], first)) for floor in scores["floors"]),
    ]


def install(merged: Path) -> None:
    """Replace the package's mini, at once or not at all."""
    import vlm

    target = Path(vlm.__file__).parent / "mini"
    fresh = target.with_name("mini.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(merged, fresh)
    for file in fresh.iterdir():
        file.chmod(0o644)  # safetensors files are written for their owner alone
    replace_folder(fresh, target)
    print(f"installed {target}")


if __name__ == "__main__":
    raise SystemExit(main())
