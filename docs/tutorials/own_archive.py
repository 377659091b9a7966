"""From a folder of DICOM files to a studies file, a prepared archive, a few steps of pre-training, and features.

    python own_archive.py WORK [DICOM_FOLDER]

Without DICOM_FOLDER the script draws 16 synthetic studies. Everything that it writes is below WORK.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cxr.cli.main import main as command
from encoder.embed import read_features
from train.pretrain.__main__ import main as pretrain
from vlm.study import load_studies

# An encoder so small that three steps take seconds. For a real one: --recipe rad_dino_1gpu.
TINY = {
    "size": 56, "short_side": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "local_crops_size": 28, "local_crops_number": 2, "layerscale": 1.0,
    "head_n_prototypes": 64, "head_hidden_dim": 64, "head_bottleneck_dim": 32,
    "batch_size": 4, "max_steps": 3, "warmup_steps": 1, "freeze_last_layer_steps": 1,
    "logging_steps": 1, "dataloader_num_workers": 0, "report_to": "none", "threads": 1,
}  # fmt: skip


def cxr(*words: object) -> None:
    """Run a `cxr` command in this process, and stop where it fails."""
    line = [str(word) for word in words]
    print("\n$ cxr", *line, flush=True)
    if status := command(line):
        sys.exit(status)


def main(work: Path, films: Path | None = None) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if films is None:
        drawn = work / "phantoms"
        cxr("phantom", drawn, "--studies", 16, "--size", 96, "--laterals", 0, "--no-masks", "--workers", 1)
        films = drawn / "images"

    # 1. Headers become a studies file: films of one StudyInstanceUID are a study, patients get hashed names.
    studies = work / "studies.jsonl"
    cxr("studies", "make", "dicom", films, "--out", studies)
    found = load_studies(studies)
    patients = {study.patient_id for study in found}
    print(f"{len(found)} studies of {len(patients)} patients, {sum(len(s.images) for s in found)} films")

    # 2. Films are read once, with every rule for grey levels, and kept small. A second run adds what is new.
    prepared = work / "prepared"
    cxr("prepare", films, "--out", prepared, "--short-side", 64, "--workers", 1)

    # 3. The encoder learns from the films alone: no labels, no reports.
    run = work / "encoder_run"
    options = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    print("\n$ cxr pretrain --data", prepared, "--out", run, *options, flush=True)
    if status := pretrain(["--data", str(prepared), "--out", str(run), *options]):
        sys.exit(status)

    # 4. CLS and patch features of every film, from the encoder that the run left.
    features = work / "features"
    cxr("embed", films, "--model", run / "encoder", "--out", features, "--patches", "--device", "cpu")
    shapes = {(tuple(row["cls"].shape), tuple(row["patches"].shape)) for _, row in read_features(features)}
    print(f"features of {sum(1 for _ in read_features(features))} films, CLS and patches: {shapes}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
