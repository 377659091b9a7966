"""Rated reports in the forms of the public sets, with texts of our own. Each function writes one set into a folder."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

CANDIDATES = ("radgraph", "bertscore", "s_emb", "bleu")
SENTENCES = (
    "The lungs are clear.",
    "The heart is of normal size.",
    "There is a small left pleural effusion.",
    "No pneumothorax is seen.",
    "There is consolidation in the right lower lobe.",
    "Mild cardiomegaly.",
    "The vessels suggest pulmonary edema.",
    "The endotracheal tube ends above the carina.",
    "There is atelectasis at both bases.",
    "The bones are unremarkable.",
)
Rows = list[dict[str, Any]]


def reports(studies: int, candidates: int, seed: int = 0) -> list[tuple[str, list[tuple[str, int]]]]:
    """A reference for each study, and candidates, each with how many of its five sentences are others."""
    rng = random.Random(seed)
    made = []
    for _ in range(studies):
        said = rng.sample(SENTENCES, 5)
        others = [s for s in SENTENCES if s not in said]
        several = []
        for _ in range(candidates):
            wrong = rng.randrange(5)
            several.append((" ".join(said[: 5 - wrong] + rng.sample(others, wrong)), wrong))
        made.append((" ".join(said), several))
    return made


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def rexval(folder: Path, *, studies: int = 12, first: int = 0, by_id: bool = False) -> tuple[Rows, Rows]:
    """Two raters, six categories. `first`: the number of the first row; `by_id`: study ids in its place."""
    rng = random.Random(1)
    texts, counts = [], []
    for at, (reference, candidates) in enumerate(reports(studies, 4)):
        # pandas' index has no name
        texts.append({"": at, "study_id": 50_000 + at, "gt_report": reference})
        for name, (text, wrong) in zip(CANDIDATES, candidates, strict=True):
            texts[-1][name] = text
            counts += [
                {
                    "study_number": 50_000 + at if by_id else at + first,
                    "candidate_type": name,
                    "rater_index": rater,
                    "error_category": category,
                    "clinically_significant": significant,
                    "num_errors": rng.randrange(wrong + 1) if category < 3 else 0,
                }
                for rater in range(2)
                for category in range(1, 7)
                for significant in (True, False)
            ]
    write_rexval(folder, texts, counts)
    return texts, counts


def write_rexval(folder: Path, texts: Rows, counts: Rows) -> None:
    folder.mkdir(exist_ok=True)
    write_csv(folder / "50_samples_gt_and_candidates.csv", texts)
    write_csv(folder / "6_valid_raters_per_rater_error_categories.csv", counts)


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def radevalx(folder: Path, *, studies: int = 14) -> tuple[Rows, Rows]:
    rng = random.Random(2)
    texts, counts = [], []
    for at, (reference, [(text, wrong)]) in enumerate(reports(studies, 1)):
        texts.append({"study_id": at, "ground_truth": reference, "candidate_report": text})
        for kind in ("significant", "insignificant"):
            row = {name: rng.randrange(wrong + 1) if i < 2 else 0 for i, name in enumerate(NUMBERS)}
            counts.append({"report_id": at, "error_type": kind, **row})
    folder.mkdir(exist_ok=True)
    write_csv(folder / "any_name.csv", texts)
    write_csv(folder / "another.csv", counts)
    return texts, counts


CATEGORIES = ("False finding", "Omission", "Location", "Severity", "Comparison", "Change", "Grammar")


def annotation(significant: list[int], insignificant: list[int], colon: str = ". {}:") -> str:
    lines = []
    for head, counts in (("significant", significant), ("insignificant", insignificant)):
        lines.append(f"Clinically {head} errors:")
        lines += [
            f"{i}{colon.format(name)} {n}"
            for i, (name, n) in enumerate(zip(CATEGORIES, counts, strict=True), 1)
        ]
        lines.append("")
    return "\n".join(lines)


def expert(path: Path, *, rows: int = 12) -> Rows:
    rng = random.Random(3)
    made = []
    for at, (reference, candidates) in enumerate(reports(rows, 3)):
        row: dict[str, Any] = {
            "annotator": at % 2,
            "type": ("findings", "impression")[at % 2],
            "ground_truth": reference,
            # the last two rows are of one study
            "images_path": f"files/p{min(at, rows - 2)}/a.jpg",
        }
        for slot, (text, wrong) in enumerate(candidates, 1):
            row[f"prediction{slot}"] = text
            counts = [[rng.randrange(wrong + 1), wrong // 2, 0, 0, 0, 0, 0] for _ in range(2)]
            row[f"annotation{slot}"] = annotation(*counts)
        made.append(row)
    if path.suffix == ".csv":
        write_csv(path, made)
    else:
        write_json(path, made)
    return made


def rate_eval(path: Path, names: tuple[str, str, str] = ("gt", "pred", "score"), *, rows: int = 15) -> Rows:
    made = [
        {names[0]: reference, names[1]: text, names[2]: 5 - wrong}
        for reference, candidates in reports(rows, 2)
        for text, wrong in candidates
    ]
    if path.suffix == ".csv":
        write_csv(path, made)
    else:
        write_json(path, made)
    return made


def own(path: Path, *, rows: int = 12) -> Rows:
    made = [
        {
            "study_id": f"s{at}", "reference": reference, "prediction": text, "slips": wrong,
            "Overall quality": 4 - wrong,
        }
        for at, (reference, candidates) in enumerate(reports(rows, 2))
        for text, wrong in candidates
    ]  # fmt: skip
    if path.suffix == ".csv":
        write_csv(path, made)
    else:
        write_json(path, made)
    return made


def write_json(path: Path, rows: Rows) -> Path:
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(lines + "\n" if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return path
