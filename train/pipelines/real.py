"""Your own model on the real X-rays of CXR_DATA, judged by five-fold cross-validation over patients.

    python -m train.pipelines.real --out runs/real_small

Encoder: image-only, going on from mini's. In each fold, language model: on the Open-i report texts and the fold's own
descriptions; findings: projector and LoRA on the fold's image-description pairs. Each clean study is described by the
model of the fold that never saw its patient's pairs.
Every step is skipped once it is done. The weights stay in OUT: their data's terms do not allow shipping them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from train.common.launcher import launch, run_steps, small_model_processes
from train.pipelines import judge

FOLDS = 5
VALIDATE_SHARE = 8  # one in so many of a fold's training patients chooses the best step


def main(argv: list[str] | None = None) -> int:
    """Run as a command: train on real films. Returns the exit status, 2 if CXR_DATA lacks what is needed."""
    parser = argparse.ArgumentParser(
        prog="python -m train.pipelines.real", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real_small"))
    parser.add_argument("--recipe", default="real_small")
    args = parser.parse_args(argv)
    data = os.environ.get("CXR_DATA")
    if not data or not (Path(data) / "pairs" / "studies.jsonl").is_file():
        print("set CXR_DATA to the folder that holds pairs/, images_only/ and iu_text/", file=sys.stderr)
        return 2
    return run_steps(lambda: run(Path(data), args.out, args.recipe))


def run(data: Path, out: Path, recipe: str) -> None:
    """Pre-train an encoder, fine-tune a findings model for each fold, and judge the folds together, below
    `out`.

    Raises:
        StepFailed: a training failed.
    """
    from vlm import model as models
    from vlm.load import load_model

    out.mkdir(parents=True, exist_ok=True)
    start = out / "mini_encoder"
    if not (start / "config.json").exists():
        models.save_encoder(load_model("mini"), start)
    shape = json.loads((start / "config.json").read_text())
    launch(
        "train.pretrain",
        recipe=recipe,
        init=start,
        hidden_size=shape["hidden_size"],
        num_hidden_layers=shape["num_hidden_layers"],
        num_attention_heads=shape["num_attention_heads"],
        data=data / "images_only" / "images.csv",
        cache=out / "cache",
        out=out / "encoder",
    )
    processes = small_model_processes()
    folds(data / "pairs" / "studies.jsonl", out)
    for k in range(FOLDS):
        pairs = out / f"fold{k}.jsonl"
        launch(
            "train.finetune.language_model",
            processes=processes,
            recipe=recipe,
            studies=[data / "iu_text" / "studies.jsonl", pairs],
            out=out / f"llm{k}",
        )
        launch(
            "train.finetune",
            processes=processes,
            recipe=recipe,
            encoder=out / "encoder" / "encoder",
            llm=out / f"llm{k}",
            studies=pairs,
            out=out / f"fold{k}",
        )
    judged(out)


def folds(pairs: Path, out: Path) -> list[list]:
    """Write fold{k}.jsonl (all pairs, their splits set for fold k); returns the test studies of each fold.

    Only clean studies are tested; the other pairings of a test patient are left out of that fold altogether.
    """
    from vlm.study import Image, load_studies, save_studies

    root = pairs.parent.absolute()
    studies = [
        replace(s, images=[Image(str(root / i.path), i.view) for i in s.images]) for s in load_studies(pairs)
    ]
    clean = Counter(_patient(s) for s in studies if s.extra.get("pairing") == "clean")
    sizes, fold_of = [0] * FOLDS, {}
    largest_first = sorted(clean.items(), key=lambda item: (-item[1], item[0]))  # keeps folds even
    for patient, n in largest_first:
        fold_of[patient] = sizes.index(min(sizes))
        sizes[fold_of[patient]] += n
    tests = []
    for k in range(FOLDS):
        others = sorted({_patient(s) for s in studies if fold_of.get(_patient(s)) != k})
        validate = set(others[k::VALIDATE_SHARE])
        chosen, test = [], []
        for s in studies:
            patient = _patient(s)
            if fold_of.get(patient) == k:
                if s.extra.get("pairing") == "clean":
                    test.append(replace(s, split="test"))
            else:
                chosen.append(replace(s, split="validate" if patient in validate else "train"))
        tests.append(test)
        save_studies([*chosen, *test], out / f"fold{k}.jsonl", overwrite=True)
    return tests


def _patient(study) -> str:
    return study.patient_id or study.study_id


def judged(out: Path) -> None:
    """Score the findings of all folds' models for their test patients together, beside the baselines."""
    parts: dict[str, list[str]] = {"predictions": [], "shuffled": [], "blank": []}
    references: list[str] = []
    for k in range(FOLDS):
        folder = out / f"test{k}"
        floors = folder / "floors"
        files = {
            "predictions": folder / "predictions.jsonl", "shuffled": floors / "shuffled.jsonl",
            "blank": floors / "blank.jsonl",
        }  # fmt: skip
        if not files["blank"].exists():
            adapter = out / f"fold{k}" / "adapter"
            judge.generate(adapter, out / f"fold{k}.jsonl", files["predictions"], floors, split="test")
        for name, lines in parts.items():
            lines += files[name].read_text().strip().split("\n")
        rows = (out / f"fold{k}.jsonl").read_text().strip().split("\n")
        references += [line for line in rows if json.loads(line)["split"] == "test"]
    (out / "floors").mkdir(exist_ok=True)
    for name, lines in parts.items():
        file = out / "predictions.jsonl" if name == "predictions" else out / "floors" / f"{name}.jsonl"
        file.write_text("\n".join(lines) + "\n")
    (out / "references.jsonl").write_text("\n".join(references) + "\n")
    for name in ("scores.json", "scores.html"):
        (out / name).unlink(missing_ok=True)  # made from the files above, which were just made anew
    judge.score(
        out / "predictions.jsonl", out / "references.jsonl", out / "floors", out / "scores.json",
        out / "scores.html",
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
