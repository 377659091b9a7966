"""Claim: the rule-based labeller gives the CheXpert labeller's own labels on its published sample, agrees with labels
that others derived from MeSH terms on what both mean alike, and reads a thousand reports in less than a second.

    CXR_DATA=FOLDER python benchmarks/labeller.py [--save]

FOLDER holds `text/chexpert_labeler_labeled_reports.csv` (the labeller's sample) and `iu_text/studies.jsonl` (Open-i
reports with `weak_labels`, positive ones only). Findings and impression are read together, as the MeSH terms describe
both. The weak labels have other meanings in places: they count granulomas as lesions, surgical clips as devices, an
enlarged cardiac shadow as mediastinal, and low lung volumes as a finding. Texts are never printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from sklearn.metrics import cohen_kappa_score

from eval.scores.labels import LABELLER, label_matrix, label_report
from eval.scores.phrases import CONDITIONS


def published_sample(path: Path) -> list[str]:
    """Where the labels differ: "report 2: Edema 0, given 1". One line a difference."""
    found = []
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            labels = label_report(row.pop("Reports"))
            given = {c: int(float(v)) for c, v in row.items() if v}
            found += [
                f"report {number}: {c} {labels.get(c)}, given {given.get(c)}"
                for c in CONDITIONS
                if labels.get(c) != given.get(c)
            ]
    return found


def weak_labels(path: Path) -> tuple[dict[str, dict], float]:
    """Agreement by condition, uncertain as present where the weak label is there and as absent elsewhere; and how many
    reports were read in a second."""
    studies = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [" ".join(filter(None, (s.get("findings"), s.get("impression")))) for s in studies]
    start = time.perf_counter()
    found_N14 = label_matrix(texts)
    rate = len(texts) / (time.perf_counter() - start)
    weak_N14 = np.array([[c in (s.get("weak_labels") or ()) for c in CONDITIONS] for s in studies])
    positive_N14 = (found_N14 == 1) | ((found_N14 == -1) & weak_N14)
    table = {}
    for i, condition in enumerate(CONDITIONS):
        weak, found = weak_N14[:, i], positive_N14[:, i]
        both = int((weak & found).sum())
        precision, recall = (both / max(int(side.sum()), 1) for side in (found, weak))
        table[condition] = {
            "weak": int(weak.sum()),
            "rules": int(found.sum()),
            "precision": round(precision, 3),
            "recall": round(recall, 3),
            "f1": round(2 * both / max(int(weak.sum() + found.sum()), 1), 3),
            "kappa": round(float(cohen_kappa_score(weak, found)), 3),
        }
    return table, rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/labeller.json")
    args = parser.parse_args()
    if not os.environ.get("CXR_DATA"):
        parser.error("CXR_DATA is not set: there are no reports to read")
    data = Path(os.environ["CXR_DATA"])
    result: dict = {"labeller": LABELLER}
    sample = data / "text" / "chexpert_labeler_labeled_reports.csv"
    if sample.is_file():
        result["differences on the published sample"] = published_sample(sample)
        print(f"published sample: {len(result['differences on the published sample'])} differences")
        print("\n".join(result["differences on the published sample"]))
    else:
        print(f"{sample} is not there")
    indiana = data / "iu_text" / "studies.jsonl"
    if indiana.is_file():
        result["MeSH-derived labels"], rate = weak_labels(indiana)
        result["reports_a_second"] = round(rate)
        print(
            f"\n{'MeSH-derived labels':28}{'weak':>6}{'rules':>7}{'precision':>11}{'recall':>8}{'F1':>7}{'kappa':>7}"
        )
        for condition, row in result["MeSH-derived labels"].items():
            print(
                f"{condition:28}{row['weak']:6}{row['rules']:7}{row['precision']:11.3f}{row['recall']:8.3f}"
                f"{row['f1']:7.3f}{row['kappa']:7.3f}"
            )
        print(f"\n{rate:.0f} reports a second")
    else:
        print(f"{indiana} is not there")
    if args.save:
        result |= {"machine": f"{platform.machine()}, one core", "date": date.today().isoformat()}
        target = Path(__file__).parent / "results" / "labeller.json"
        target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
