"""What a findings model says of pictures that are not its own: warned of, or nothing written, by kind of picture.

    cxr phantom held_out --studies 500 --seed 103 --no-masks
    CXR_DATA=... python benchmarks/out_of_distribution.py held_out/studies.jsonl [--save]

A power without its false alarms says nothing, so the model's own kind, held out, stands first. Real films are those of
CXR_DATA: NIH's of the validation and test splits, case reports', and the DICOM files of the wrong subject. Made-up
pictures are drawn with seed 0. Last, a second reference is fitted with the same encoder to the real training films, and
says of the others, of other patients, what a model that knows such films would.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from encoder.radiograph import read
from vlm.findings import OUTLIERS
from vlm.hub import resolve
from vlm.load import load_model
from vlm.model import FindingsModel
from vlm.outliers import Outliers
from vlm.prompts import shown_image
from vlm.reference import batches, features_of, surprises
from vlm.study import Study, absolute, load_studies

SIDE = 256
# DICOM files of CXR_DATA that show no human chest: hip, lower leg, teeth, a dog.
WRONG = ("RG2", "RG3", "DX", "CR_Mod")
TRAINING, HELD_OUT = "real training films", "real films, held out"


def made_up() -> dict[str, list[np.ndarray]]:
    """Pictures that are no films at all: float32 in [0, 1]."""
    rng = np.random.default_rng(0)

    def noise() -> np.ndarray:
        return rng.normal(rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.3), (SIDE, SIDE))

    def blank() -> np.ndarray:
        return rng.uniform(0.1, 0.9) + rng.normal(0, 0.01, (SIDE, SIDE))

    def blobs() -> np.ndarray:
        x = gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(3, 40))
        return (x - x.min()) / (x.max() - x.min())

    def slope() -> np.ndarray:
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        turn = rng.uniform(0, np.pi / 2)
        return np.cos(turn) * x + np.sin(turn) * y

    from sklearn.datasets import load_sample_images

    photos = [image.mean(2) / 255 for image in load_sample_images().images]

    def photo() -> np.ndarray:
        whole, side = photos[rng.integers(len(photos))], rng.integers(120, 300)
        y, x = (rng.integers(0, n - side) for n in whole.shape)
        return whole[y : y + side, x : x + side]

    kinds: dict[str, Callable[[], np.ndarray]] = {
        "noise": noise, "nearly blank": blank, "soft blobs": blobs, "slope": slope, "crop of a photograph": photo,
    }  # fmt: skip
    return {
        name: [np.clip(draw(), 0, 1).astype(np.float32) for _ in range(40)] for name, draw in kinds.items()
    }


def listed(data: Path) -> list[dict[str, str]]:
    """Return the rows of the listing of single films."""
    with (data / "images_only" / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def is_nih(row: dict[str, str]) -> bool:
    return row["licence"].startswith("NIH CC")


def patient_of(row: dict[str, str]) -> str:
    """Return whose a film is: NIH's names begin with the patient's number, the others count as one each."""
    return row["source_file"].split("_")[0] if is_nih(row) else row["file"]


def real(data: Path) -> dict[str, list[Any]]:
    """Files of CXR_DATA by kind, and chests that are turned, inverted or cut."""
    rows = listed(data)
    nih = [r for r in rows if is_nih(r)]
    held_out = [data / "images_only" / r["file"] for r in nih if r["split"] != "train"]
    pairs = load_studies(data / "pairs" / "studies.jsonl")
    dicom = sorted((data / "dicom" / "radiograph").glob("*.dcm"))
    pixels = [read(path).pixels for path in held_out[:60]]
    return {
        TRAINING: [data / "images_only" / r["file"] for r in rows if r["split"] == "train"],
        HELD_OUT: [data / "images_only" / r["file"] for r in rows if r["split"] != "train"],
        "NIH": held_out,
        "COVID collections": [data / "images_only" / r["file"] for r in rows if r not in nih],
        "case reports": [data / "pairs" / s.images[0].path for s in pairs],
        "hip, leg, teeth, dog": [p for p in dicom if p.name.startswith(WRONG)],
        "DICOM chests": [p for p in dicom if not p.name.startswith(WRONG)],
        "NIH, inverted": [1 - x for x in pixels],
        "NIH, a quarter turned": [np.rot90(x).copy() for x in pixels],
        "NIH, upside down": [np.rot90(x, 2).copy() for x in pixels],
        "NIH, a ninth of the film": [x[: len(x) // 3, : x.shape[1] // 3].copy() for x in pixels],
    }


def told_of_words(model: FindingsModel, studies: Sequence[Study], limit: float) -> tuple[int, float]:
    nats = [x for part in batches(studies, 32) for x in surprises(model, part)]
    return len(nats), float(np.mean(np.array(nats) > limit))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("held_out", type=Path, help="studies of the model's own domain that no fit has seen")
    parser.add_argument("--model", default="mini")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/out_of_distribution[_MODEL].json"
    )
    args = parser.parse_args()
    if "CXR_DATA" not in os.environ:
        parser.error("CXR_DATA is not set: there are no real films to count")
    torch.set_num_threads(1)
    data, model = Path(os.environ["CXR_DATA"]), load_model(args.model)
    known = Outliers.load(resolve(args.model) / OUTLIERS)
    own = [absolute(s, args.held_out.parent) for s in load_studies(args.held_out)]
    kinds = {
        "its own, held out": [Path(i.path) for s in own if (i := shown_image(s))],
        **real(data),
        **made_up(),
    }
    training, films = features_of(model, kinds.pop(TRAINING))
    x_NC = {name: features_of(model, pictures)[0] for name, pictures in kinds.items()}
    rows = {}
    print(f"{'kind of picture':28} {'n':>5}  warned  nothing written")
    for name, x in x_NC.items():
        foreign = (known.chest.check(x) > known.chest.threshold).float().mean().item() if known.chest else 0.0
        warned = (known.check(x) > known.threshold).float().mean().item()
        rows[name] = {"n": len(x), "warned": warned, "abstained": foreign}
        print(f"{name:28} {len(x):5}  {warned:6.1%}  {foreign:6.1%}", flush=True)
    words = {}
    if known.words is not None:
        pairs = [absolute(s, data / "pairs") for s in load_studies(data / "pairs" / "studies.jsonl")]
        for name, studies in (
            ("its own, held out", own),
            ("case reports", [s for s in pairs if s.indication]),
        ):
            n, share = told_of_words(model, studies, known.words)
            words[name] = {"n": n, "warned": share}
            print(f"words: {name:21} {n:5}  {share:6.1%}", flush=True)
    whose = {data / "images_only" / row["file"]: patient_of(row) for row in listed(data)}
    quantile = 1 - (known.false_alarms or 0.03)
    other = Outliers.fit(training, quantile=quantile, patients=[whose[film] for film in films])
    asked = (HELD_OUT, "NIH", "its own, held out")
    knows_real = {n: (other.check(x_NC[n]) > 1).float().mean().item() for n in asked}
    print("a reference of real training films warns of", {n: f"{v:.1%}" for n, v in knows_real.items()})
    if args.save:
        about = {
            "model": args.model,
            "machine": platform.processor() or platform.machine(),
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "false_alarms_meant": known.false_alarms,
            "images": rows,
            "words": words,
            "reference_of_real_films": {"n": len(training), "warned": knows_real},
        }
        of = "" if args.model == "mini" else "_" + "_".join(Path(args.model).parts[-3:])
        file = Path(__file__).parent / "results" / f"out_of_distribution{of}.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
