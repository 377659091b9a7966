"""Claim: lexical scores, label F1 and intervals over patients of 2,461 pairs of reports (the size of MIMIC-CXR's test
set) take less than 60 s on one core, the intervals less than 1 s of it; a bootstrap of label F1 with scikit-learn in
every replicate, as RadEval and LLaVA-Rad do it, takes at least 20 times as long.

    python benchmarks/scoring.py [--pairs 2461] [--save]

The reports are synthetic: those of phantoms against reports of the same or another phantom. scikit-learn is timed on 20
replicates. Everything runs on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from sklearn.metrics import f1_score
from threadpoolctl import threadpool_limits

import eval
from eval.scores.inputs import align, patients
from eval.scores.label_f1 import FIVE, add_label_f1, binarize, columns
from eval.scores.labels import label_matrix
from eval.scores.lexical import PROFILES, add_lexical, lexical_samples
from eval.scores.sheet import Sheet
from train.phantom.patient import draw_patient
from train.phantom.report import write_report

REPLICATES, TIMED = 1000, 20


def synthetic(pairs: int) -> tuple[list[dict], list[dict]]:
    """Predictions and studies: every other prediction describes the right phantom in other words."""
    rng, studies, predictions = np.random.default_rng(0), [], []
    number = 0
    while len(studies) < pairs:
        patient = draw_patient(7, number)
        for study in patient.studies:
            key = f"{number}-{study.index}"
            report = write_report(study, None, "prose")
            person = {"patient_id": str(number), "sex": patient.sex, "age": patient.age}
            studies.append({"study_id": key, **person, "findings": report.findings})
            other = study if rng.random() < 0.5 else draw_patient(8, number).studies[0]
            predictions.append(
                {"study_id": key, "findings": write_report(other, None, "telegraphic").findings}
            )
        number += 1
    return predictions[:pairs], studies[:pairs]


class Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        print(f"{name:34} {self.seconds[name]:8.2f} s", flush=True)
        self._last = now


def with_scikit_learn(reference_N14, predicted_N14, groups: list) -> float:
    """Seconds for REPLICATES replicates of micro, macro, weighted and example-based F1-14 and F1-5, both policies."""
    rng, names = np.random.default_rng(0), sorted(set(groups))
    rows = {name: [] for name in names}
    for i, name in enumerate(groups):
        rows[name].append(i)
    start = time.perf_counter()
    for _ in range(TIMED):
        drawn = np.concatenate([rows[names[i]] for i in rng.integers(0, len(names), len(names))])
        for policy in ("neg", "pos"):
            ref, hyp = binarize(reference_N14[drawn], policy), binarize(predicted_N14[drawn], policy)
            for chosen in (slice(None), columns(FIVE)):
                for average in ("micro", "macro", "weighted", "samples"):
                    f1_score(ref[:, chosen], hyp[:, chosen], average=average, zero_division=0)
    return (time.perf_counter() - start) * REPLICATES / TIMED


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=2461)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/scoring.json")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    threadpool_limits(1)
    predictions, studies = synthetic(args.pairs)

    clock = Clock()
    pairs = align(predictions, studies)
    groups = patients(pairs, None)
    reference_N14, predicted_N14 = label_matrix(pairs.references), label_matrix(pairs.predictions)
    clock.lap("labels of both sides")
    sheet = Sheet(len(pairs))
    add_label_f1(sheet, reference_N14, predicted_N14, labeller="rules", reference="text")
    clock.lap("label F1")
    for name in PROFILES:
        add_lexical(sheet, lexical_samples(pairs.references, pairs.predictions, name))
        clock.lap(f"lexical, {name}")
    sheet.scores(groups, intervals=False)
    clock.lap("point values")
    scores = sheet.scores(groups)
    clock.lap(f"intervals of {len(scores)} scores")
    intervals = clock.seconds[f"intervals of {len(scores)} scores"]
    total = sum(clock.seconds.values())
    start = time.perf_counter()
    eval.score(predictions, studies, clinical_models="none")
    whole = time.perf_counter() - start
    print(f"{'eval.score':34} {whole:8.2f} s, with floors, subgroups and safety checks", flush=True)

    labels_only = Sheet(len(pairs))
    add_label_f1(labels_only, reference_N14, predicted_N14, labeller="rules", reference="text")
    start = time.perf_counter()
    labels_only.scores(groups)
    ours = time.perf_counter() - start
    theirs = with_scikit_learn(reference_N14, predicted_N14, groups)
    result = {
        "pairs": len(pairs),
        "patients": len(set(groups)),
        "seconds": clock.seconds,
        "total_seconds": round(total, 2),
        "interval_seconds": round(intervals, 3),
        "eval_score_seconds": round(whole, 2),
        "label_f1_intervals": {
            "ours_seconds": round(ours, 3),
            "scikit_learn_seconds": round(theirs, 1),
            "times_as_fast": round(theirs / ours, 1),
        },
        "holds": max(total, whole) < 60 and intervals < 1 and theirs / ours >= 20,
        "machine": f"{platform.machine()}, one core",
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=1))
    if args.save:
        target = Path(__file__).parent / "results" / "scoring.json"
        target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
