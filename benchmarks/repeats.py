"""How often a model repeats itself, and what it costs to end such answers.

    cxr phantom held_out --studies 500 --seed 103 --no-masks
    CXR_DATA=... python benchmarks/repeats.py held_out/studies.jsonl [--save]

Real studies (case reports of CXR_DATA) with the indications they have, which mini has never seen the like of, and
phantoms, whose findings it knows. Each is answered twice, with and without `--allow-repeats`; a sentence counts as
repeated if its words, three or more, stand in the text twice. Label F1 is that of `cxr score`, by patient.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import eval as scoring
from vlm.decoding import Decoding
from vlm.findings import Findings
from vlm.prediction import Prediction
from vlm.study import Study, absolute, load_studies, study_to_json


def repeated(text: str) -> bool:
    """Whether a sentence of three words or more stands in a text twice."""
    said = [" ".join(re.findall(r"\w+", s.lower())) for s in re.split(r"(?<=[.?!])\s+", text)]
    said = [s for s in said if s.count(" ") >= 2]
    return len(set(said)) < len(said)


def answers(model: Findings, studies: list[Study], stop: bool) -> list[Prediction]:
    decoding = replace(Decoding(model.model.max_new_tokens), stop_repeats=stop)
    return list(model.generate(studies, decoding=decoding, batch_size=32))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("held_out", type=Path, help="phantom studies that the model has not learned from")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/repeats.json")
    args = parser.parse_args()
    if "CXR_DATA" not in os.environ:
        parser.error("CXR_DATA is not set: there are no real studies")
    torch.set_num_threads(1)
    pairs = Path(os.environ["CXR_DATA"]) / "pairs"
    model = Findings.from_pretrained(args.model, warn=False, insist=True)
    sets = {
        "case reports": [absolute(s, pairs) for s in load_studies(pairs / "studies.jsonl")],
        "phantoms": [absolute(s, args.held_out.parent) for s in load_studies(args.held_out)],
    }
    found = {}
    for name, studies in sets.items():
        row = found[name] = {
            "studies": len(studies),
            "with an indication": sum(bool(s.indication) for s in studies),
        }
        for how, stop in (("allowed", False), ("ended", True)):
            made = answers(model, studies, stop)
            texts = [p.findings or "" for p in made]
            words = sum(len(t.split()) for t in texts) / len(texts)
            row[how] = {
                "repeated": sum(map(repeated, texts)) / len(texts),
                "warned": sum(any(w["code"] == "repeats" for w in p.warnings) for p in made) / len(made),
                "cut off": sum(any(w["code"] == "cut_off" for w in p.warnings) for p in made) / len(made),
                "words": round(words, 1),
            }
            if name == "phantoms":
                scores = scoring.score(
                    [p.to_json() for p in made], [study_to_json(s) for s in studies], clinical_models="none"
                )
                keys = [key for key in scores.scores if "label" in key and "macro" in key][:2]
                for key in keys:
                    value = scores.scores[key]
                    row[how][key] = [round(x, 4) for x in (value.value, value.low, value.high)]
            print(name, how, row[how], flush=True)
    if args.save:
        about = {
            "model": args.model,
            "machine": platform.processor() or platform.machine(),
            "date": date.today().isoformat(),
            **found,
        }
        file = Path(__file__).parent / "results" / "repeats.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
