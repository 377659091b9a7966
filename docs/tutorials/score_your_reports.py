"""Score your own reports against references: intervals, baselines, and two systems compared.

    python score_your_reports.py WORK [STUDIES_FILE]

Without STUDIES_FILE the script draws 80 synthetic studies below WORK and takes their reports for references.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cxr
from cxr.cli.main import main as command
from eval.scores.labels import sentences

KEYS = ("label-f1/14/micro/neg", "label-f1/14/macro/neg", "rouge-l/coco")


def draw(work: Path) -> Path:
    words = ["--studies", "80", "--size", "64", "--prevalence", "3", "--laterals", "0", "--workers", "1"]
    if status := command(["phantom", str(work / "phantoms"), "--no-masks", "--format", "png", *words]):
        sys.exit(status)
    return work / "phantoms" / "studies.jsonl"


def careful(report: str) -> str:
    """Leave out the last sentence, as a system does that stops too early."""
    return " ".join(sentences(report)[:-1]) or report


def main(work: Path, file: Path | None = None) -> None:
    # References: studies, with a patient each. `cxr.score` also takes lists of texts, data frames and files.
    references = cxr.load_studies(file or draw(work))
    reports = [study.findings for study in references]
    print(f"{len(references)} references of {len({s.patient_id for s in references})} patients\n")

    # Two systems. Yours are files of `study_id` and `findings`, or {study_id: text} as here.
    ids = [study.study_id for study in references]
    ours = {name: careful(report) for name, report in zip(ids, reports, strict=True)}
    # The other system copies every third report from another study.
    copied = [reports[i - 7] if i % 3 == 0 else report for i, report in enumerate(reports)]
    theirs = dict(zip(ids, copied, strict=True))

    # A baseline of your own, beside the built-in one: the same report for every film.
    blind = {"always normal": dict.fromkeys(ids, "The lungs are clear. The heart is normal in size.")}
    scores = cxr.score(references, ours, compare=theirs, floors=blind, clinical_models="none")

    print("1. Values, with 95 % intervals over patients")
    for key in KEYS:
        found = scores[key]
        print(f"   {key:24} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]   {found.signature}")

    print("\n2. Baselines: what reports score that look at no film")
    for floor in scores.floors:
        line = ", ".join(f"{key} {floor.scores[key].value:.3f}" for key in KEYS)
        print(f"   {floor.name}: {line}")

    print("\n3. Ours minus theirs, on the same studies; p by permutation within patients, adjusted by Holm")
    for gap in scores.comparisons[0].differences:
        # Where the score itself has no interval, its difference has none.
        ends = f"[{gap.low:+.3f}, {gap.high:+.3f}]" if gap.low == gap.low else f"({gap.no_interval})"
        print(f"   {gap.name:40} {gap.difference:+.3f} {ends}   p {gap.p_holm:.4f}")

    print("\n4. Where ours is worst")
    for study in scores.worst(2):
        print(f"   {study['study_id']}: missed {', '.join(study['missed']) or 'nothing'}")
    print(f"\nwrote {scores.save(work / 'scores.json', overwrite=True)}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
