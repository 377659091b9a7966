"""Claim: image-only pre-training on a few thousand real X-rays, an hour on a CPU, teaches an encoder something. What
its frozen features know is set beside the same encoder before training, and beside floors that need no encoder.

    CXR_DATA=FOLDER python benchmarks/real_encoder.py runs/real_encoder [--save]

FOLDER holds masks/masks.csv (lung masks) and images_only/images.csv (labels); the run is one of `cxr pretrain`. All
that is chosen (penalty, components, threshold) is chosen on `validate`, all that is printed is of `test`.

Lungs: Dice of one linear head on the patch tokens (of the last four layers, as DINOv2's linear evaluation takes them),
at 224 pixels, with a 95 % interval over patients. Labels: No Finding against the rest, from CLS and mean patch, by
logistic regression and by k-NN, on the images of NIH ChestX-ray14. There raw pixels do well through a shortcut: the
films with pneumonia are more often portable ones, exposed and processed otherwise, with other things at the rim. So
the labels are judged a second time on the middle of the image, its grey levels equalised by rank.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from torch import Tensor

from encoder.convert import load_backbone
from encoder.radiograph import read
from encoder.transforms import Preprocessing
from encoder.vit import CropViT
from eval.probes.linear import knn_scores, logistic_scores
from eval.probes.measures import auroc, replicate_weights, weighted_auroc
from eval.probes.overlap import Frame, MaskTask, Segmentation
from eval.probes.segmentation import floors, linear
from eval.resampling import percentile_interval
from train.datasets.labelled import labelled_images
from train.pretrain.config import PretrainConfig
from train.pretrain.model import Distilled

SIZE = 224  # pixels at which all are judged
LAYERS = 4  # the last so many, concatenated
RIM = 1 / 8  # of the side, cut away against the shortcut
REPLICATES = 2000
CURVE = Path(__file__).parents[1] / "docs" / "pictures" / "pretraining.svg"
PARTS = ("train", "validate", "test")
HEAD = {"patches": None}  # learnt from all
Parts = dict[str, np.ndarray]  # rows of each split


def encoders(run: Path) -> dict[str, CropViT]:
    """The run's encoder, and as it was before the first step, and with DINOv2's initial weights."""
    fields = json.loads((run / "run.json").read_text())
    c = PretrainConfig(**{k: v for k, v in fields.items() if k in PretrainConfig.__dataclass_fields__})
    before = {}
    for name, changes in (
        ("random weights, DINOv2's", {"weight_init": "dinov2", "position_embedding": "random"}),
        ("random weights, this run's", {}),
    ):
        torch.manual_seed(c.seed)
        before[name] = Distilled(PretrainConfig(**{**c.__dict__, **changes})).backbone.eval()
    return before | {"after pre-training": load_backbone(run / "encoder").backbone.eval()}


@torch.inference_mode()
def layers_of(backbone: CropViT, images_NHW: Tensor) -> Tensor:
    """Normed tokens of the last layers (N, LAYERS, 1 + P, C), CLS first."""
    found = []
    for x in images_NHW.split(16):
        x = x[:, None].expand(-1, 3, -1, -1)
        _, layers = backbone.forward_intermediates(
            x, indices=LAYERS, return_prefix_tokens=True, norm=True, output_fmt="NLC"
        )
        found.append(torch.stack([torch.cat([prefix, patches], 1) for patches, prefix in layers], 1))
    return torch.cat(found)


# Lungs.


def masks(folder: Path) -> tuple[Tensor, Tensor, Parts, list[str]]:
    """Images and masks (N, SIZE, SIZE), the rows of each split, patients. Images without any lung are left out."""
    with open(folder / "masks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images, truths, kept = [], [], []
    whole = Preprocessing(size=SIZE, mean=0.0, std=1.0)
    for row in rows:
        mask = np.asarray(Image.open(folder / row["mask"]).convert("L"), np.float32) / 255
        truth = whole(mask)[0] > 0.5
        if truth.any():
            images.append(Preprocessing(size=SIZE)(read(folder / row["image"]))[0])
            truths.append(truth)
            kept.append(row)
    splits = np.array([row["split"] for row in kept])
    # films of one case are numbered: fig2-a and fig2-c
    patients = [re.sub(r"[-_]?[a-z0-9]\.\w+$", "", row["source_file"]) for row in kept]
    return torch.stack(images), torch.stack(truths), {p: np.flatnonzero(splits == p) for p in PARTS}, patients


def lungs(folder: Path, models: dict[str, CropViT]) -> Iterator[tuple[str, float, np.ndarray, list[str]]]:
    """Name, Dice on validation, Dice of each test image, patients."""
    images, truth, parts, patients = masks(folder)
    task = MaskTask(
        lambda rows: truth[rows, None].numpy(),
        ["lungs"],
        *(parts[p] for p in PARTS),
        patients,
        Frame(Preprocessing(size=SIZE)),
        cells=SIZE,
    )
    judges = [patients[i] for i in parts["test"]]

    def row(name: str, found: Segmentation) -> tuple[str, float, np.ndarray, list[str]]:
        return name, found.validation["lungs"], found.dice_NK[:, 0], judges

    patch = next(iter(models.values())).patch
    raw_NPC = F.unfold(images[:, None], patch, stride=patch).transpose(1, 2)
    small = F.adaptive_avg_pool2d(images, 64).flatten(1).numpy()
    for name, found in floors(task, lambda rows: raw_NPC[rows], small, **HEAD).items():
        yield row(name, found)
    for name, backbone in models.items():
        tokens_NPC = layers_of(backbone, images)[:, :, 1:].transpose(1, 2).flatten(2)
        for position, suffix in ((False, ""), (True, " + position")):
            found = linear(task, lambda rows, x=tokens_NPC: x[rows], position=position, **HEAD)
            yield row(name + suffix, found)


# Labels.


def middle(image_HW: np.ndarray) -> np.ndarray:
    """What the shortcut leaves: the middle three quarters, grey levels replaced by their ranks (0 to 1)."""
    h, w = image_HW.shape
    cut = image_HW[round(h * RIM) : h - round(h * RIM), round(w * RIM) : w - round(w * RIM)]
    return (rankdata(cut, method="average").reshape(cut.shape) / cut.size).astype(np.float32)


def labels(file: Path, models: dict[str, CropViT]) -> Iterator[tuple[str, str, dict]]:
    """Features, view of the images, {"k-NN": (labels, scores), ...}, patients among them."""
    with open(file, newline="") as rows:
        origin = {row["file"]: (row["source_repo"], row["source_file"]) for row in csv.DictReader(rows)}
    found = labelled_images(file)
    names = [str(path.relative_to(file.parent)) for path in found.paths]
    nih = np.array([origin[name][0].startswith("NIH") for name in names])
    target_N1 = 1 - found.labels_NL[:, [found.names.index("No Finding")]]
    patients = np.array([origin[name][1].split("_")[0] for name in names])
    parts = {p: np.flatnonzero(nih & (found.splits == p)) for p in PARTS}
    pixels = {i: read(found.paths[i]).pixels for i in np.concatenate(list(parts.values()))}
    order = np.array(sorted(pixels))
    place = {p: np.searchsorted(order, rows) for p, rows in parts.items()}
    train, validate, test = (place[p] for p in PARTS)
    y_N1 = target_N1[order]

    def judge(x_NC: np.ndarray) -> dict:
        scores = {
            "logistic": logistic_scores(
                (x_NC[train], y_N1[train]), (x_NC[validate], y_N1[validate]), x_NC[test]
            ),
            "k-NN": knn_scores(x_NC[train], y_N1[train], x_NC[test]),
        }
        return {
            "y": y_N1[test, 0],
            "patients": patients[order][test],
            **{k: s[:, 0] for k, s in scores.items()},
        }

    for view, look in (("whole image", lambda x: x), ("middle, equalised", middle)):
        images = torch.stack([Preprocessing(size=SIZE)(look(pixels[i]))[0] for i in order])
        grey = F.adaptive_avg_pool2d(images, 64).flatten(1).numpy()
        yield "PCA of raw pixels", view, judge(PCA(128, random_state=0).fit(grey[train]).transform(grey))
        histogram = np.stack([np.histogram(look(pixels[i]), 32, (0, 1))[0] for i in order]) / 1e4
        if view == "whole image":
            yield "histogram of grey levels", view, judge(histogram)
            rim = torch.ones(64, 64, dtype=torch.bool)
            rim[8:-8, 8:-8] = False
            outside = grey[:, rim.flatten().numpy()]
            reduced = PCA(64, random_state=0).fit(outside[train]).transform(outside)
            yield "PCA of the outer eighth", view, judge(reduced)
        for name, backbone in models.items():
            last = layers_of(backbone, images)[:, -1]
            yield name, view, judge(torch.cat([last[:, 0], last[:, 1:].mean(1)], 1).numpy())


# What a healthy run looks like.

PANELS = {  # title: {field of metrics.jsonl: what it is called}
    "CLS loss (DINO)": {"dino_global": "global crops", "dino_local": "local crops"},
    "patch loss (iBOT)": {"ibot": ""},
    "entropy, of at most {most:.1f}": {
        "teacher_entropy": "of an image's target",
        "usage_entropy": "of all targets' mean",
    },
    "effective rank of CLS": {"feature_rank": ""},
    "k-NN AUROC, validation": {"knn_auroc": ""},
}
COLOURS = ("#2b6cb0", "#c05621")


def curve(run: Path, file: Path) -> None:
    """An SVG of the run's metrics, one panel a quantity."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    most = np.log(json.loads((run / "run.json").read_text())["head_n_prototypes"])
    w, h, gap = 190, 110, 24
    marks = []
    for n, (title, fields) in enumerate(PANELS.items()):
        x0 = gap + n * (w + gap)
        series = {k: np.array([(x["step"], x[k]) for x in lines if k in x]) for k in fields}
        every = np.concatenate(list(series.values()))
        low, high = every.min(0), every.max(0)
        marks.append(f"<rect x='{x0}' y='40' width='{w}' height='{h}' fill='none' stroke='#bbb'/>")
        marks.append(f"<text x='{x0}' y='16' font-weight='bold'>{title.format(most=most)}</text>")
        left = x0
        for colour, (field, name) in zip(COLOURS, fields.items(), strict=False):
            x, y = ((series[field] - low) / np.maximum(high - low, 1e-9)).T
            points = " ".join(f"{x0 + w * a:.1f},{40 + h * (1 - b):.1f}" for a, b in zip(x, y, strict=True))
            marks.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.3'/>")
            marks.append(f"<text x='{left}' y='32' fill='{colour}'>{name}</text>")
            left += 6 * len(name) + 8
        halo = "stroke='white' stroke-width='3' paint-order='stroke'"
        marks.append(f"<text x='{x0 + 3}' y='52' {halo} fill='#777'>{high[1]:.2f}</text>")
        marks.append(f"<text x='{x0}' y='{h + 54}' fill='#777'>{low[1]:.2f}</text>")
        marks.append(
            f"<text x='{x0 + w}' y='{h + 54}' text-anchor='end' fill='#777'>step {high[0]:,.0f}</text>"
        )
    size = f"width='{len(PANELS) * (w + gap) + gap}' height='{h + 64}'"
    style = "font-family='sans-serif' font-size='11' style='background:#fff'"
    file.write_text(f"<svg xmlns='http://www.w3.org/2000/svg' {size} {style}>{chr(10).join(marks)}</svg>\n")


def interval(value: float, replicates: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in (value, *percentile_interval(replicates))]


def show(x: list[float], signed: bool = False) -> str:
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if signed else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(*x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a pre-training, or --out of cxr pretrain")
    parser.add_argument(
        "--save",
        action="store_true",
        help="write benchmarks/results/real_encoder.json and the curve in docs/",
    )
    args = parser.parse_args()
    root = Path(os.environ.get("CXR_DATA", ""))
    if not (root / "masks" / "masks.csv").is_file() or not (root / "images_only" / "images.csv").is_file():
        sys.exit("set CXR_DATA to the folder that holds masks/masks.csv and images_only/images.csv")
    models = encoders(args.run)
    result: dict = {"lungs": {}, "labels": {}, "machine": platform.machine(), "date": str(date.today())}

    rows, patients = {}, []
    for row in lungs(root / "masks", models):
        name, *scores, patients = row
        print(f"  {name}: Dice {scores[0]:.3f} on validation", flush=True)
        rows[name] = scores
    weights_BM = replicate_weights(patients, REPLICATES)
    weights_BM = weights_BM / weights_BM.sum(1, keepdims=True)
    print(f"\nlungs: Dice on {len(patients)} test images of {len(set(patients))} patients")
    print("| features | Dice (validation) | Dice (test) | after pre-training, more by |\n|---|---|---|---|")
    for name, (on_validation, on_test) in rows.items():
        difference = rows["after pre-training"][1] - on_test
        found = {
            "validation": round(on_validation, 4),
            "test": interval(on_test.mean(), weights_BM @ on_test),
            "difference": interval(difference.mean(), weights_BM @ difference),
        }
        result["lungs"][name] = found
        print(
            f"| {name} | {found['validation']:.3f} | {show(found['test'])} | {show(found['difference'], True)} |"
        )

    found = list(labels(root / "images_only" / "images.csv", models))
    first = found[0][2]
    weights_BM = replicate_weights(list(first["patients"]), REPLICATES)
    print(f"\nlabels: AUROC on {len(first['y'])} test images of {len(set(first['patients']))} patients")
    print("| features | images | logistic | k-NN |\n|---|---|---|---|")
    for name, view, judged in found:
        row = {
            k: interval(auroc(judged["y"], judged[k]), weighted_auroc(judged["y"], judged[k], weights_BM))
            for k in ("logistic", "k-NN")
        }
        result["labels"].setdefault(name, {})[view] = row
        print(f"| {name} | {view} | {show(row['logistic'])} | {show(row['k-NN'])} |")
    if args.save:
        out = Path(__file__).parent / "results" / "real_encoder.json"
        out.write_text(json.dumps(result, indent=1) + "\n")
        curve(args.run, CURVE)
        print(f"written to {out} and {CURVE}")


if __name__ == "__main__":
    main()
