"""What `cxr demo` measures: mini on X-rays that it never saw, beside what it writes without looking.

cxr demo --no-training --out demo_out
python benchmarks/demo.py demo_out [--save]
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path

SCORES = {"label F1, macro": "label-f1/14/macro/neg", "BLEU-4": "bleu-4/coco", "ROUGE-L": "rouge-l/coco"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Folder of a demo.")
    parser.add_argument("--save", action="store_true", help="Write benchmarks/results/demo.json.")
    args = parser.parse_args()
    found = json.loads((args.folder / "scores.json").read_text())
    kinds = {"`mini`": found["scores"]}
    for floor in found["floors"]:
        for name in ("shuffled", "blank"):
            if name in floor["name"]:
                kinds[f"`mini`, {floor['name']}"] = floor["scores"]
    rows = {}
    for kind, scores in kinds.items():
        of = {score["name"]: score for score in scores}
        rows[kind] = {said: [of[name]["value"], *of[name]["interval"]] for said, name in SCORES.items()}
    content = {
        "machine": platform.machine(), "date": str(date.today()), "studies": found["n"],
        "rows": rows,
    }  # fmt: skip
    print(json.dumps(content, indent=1))
    if args.save:
        file = Path(__file__).parent / "results" / "demo.json"
        file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
