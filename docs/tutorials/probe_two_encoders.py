"""Two frozen encoders on the same films: which features tell findings better, and by how much.

    python probe_two_encoders.py WORK [STUDIES_FILE]

Without STUDIES_FILE, which needs `labels`, the script draws 140 synthetic studies below WORK.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from cxr.cli.main import main as command
from encoder.features import FeatureSet, extract
from encoder.frozen import encoder_of
from eval.probes.findings import linear_probe
from eval.probes.judged import Part
from eval.probes.results import compared, measured, table
from train.datasets.labelled import Labelled, labelled_images

ENCODERS = ("mini", "random:mini")
FINDINGS = ("Cardiomegaly", "Pleural Effusion")
SIZE = 98  # pixels a side; mini's own 196 takes four times as long


def draw(work: Path) -> Path:
    words = ["--studies", "140", "--size", "112", "--prevalence", "4", "--format", "png", "--workers", "1"]
    if status := command(["phantom", str(work / "phantoms"), "--laterals", "0", "--no-masks", *words]):
        sys.exit(status)
    return work / "phantoms" / "studies.jsonl"


def parts_of(films: Labelled, features: FeatureSet) -> dict[str, Part]:
    """Split by patient, never by film: half of the patients train, a quarter validates, a quarter tests."""
    names = films.patients[features.rows]
    place = np.unique(names, return_inverse=True)[1] % 4
    columns = [films.names.index(finding) for finding in FINDINGS]
    x_NC = np.concatenate([features.cls_NC, features.mean_NC], axis=1)
    y_NL = films.labels_NL[features.rows][:, columns]
    which = {"train": place < 2, "validate": place == 2, "test": place == 3}
    return {split: Part(x_NC[rows], y_NL[rows], names[rows]) for split, rows in which.items()}


def main(work: Path, studies: Path | None = None) -> None:
    torch.set_num_threads(1)
    films = labelled_images(str(studies or draw(work)))
    judged = {}
    for name in ENCODERS:
        # Features are kept below `work`: a second run, or another probe, computes none of them again.
        features = extract(encoder_of(name, size=SIZE), films.paths, work / "features")
        parts = parts_of(films, features)
        # Validation chooses the penalty; the test films are looked at once.
        judged[name] = linear_probe(**parts, names=FINDINGS, features="cls+mean")
        print(f"\n{name}: {len(features)} films, {parts['train'].x_NC.shape[1]} numbers a film")
        print(table(measured(judged[name], "auroc", n_boot=300)))

    better, worse = ENCODERS
    gaps = compared(judged[better], judged[worse], "auroc", n_boot=300)
    print(f"\n{better} minus {worse}, on the same {len(judged[better].truth_ML)} test films")
    print(table(gaps))
    mean = gaps[-1]
    told = (
        "excludes 0: the difference is real" if mean.low > 0 or mean.high < 0 else "holds 0: draw more films"
    )
    print(
        f"\nmean difference {mean.value - mean.other:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}], which {told}"
    )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
