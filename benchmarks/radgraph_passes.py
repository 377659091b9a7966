"""Does RadGraph take less time if reports of one shape share a forward pass? Are its answers those of one at a time?

On a CPU it does not, so that there each report is read alone; on a GPU they share passes, which is not measured yet.
Answers differ only where two labels are as good as equal and sums round otherwise; in float64 none does.

    CXR_DATA=FOLDER python benchmarks/radgraph_passes.py [--reports 300] [--save]

The reports are findings of Open-i (CXR_DATA/iu_text), each text once. The weights are random, in files of the
published form, with the encoder of BERT-base's depth, a third of its width, and a vocabulary learned from the reports:
what a pass costs does not depend on the numbers. Processor time on one core; on a GPU fewer passes save more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tokenizers import BertWordPieceTokenizer

from eval.scores import radgraph
from eval.scores.radgraph import RadGraph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reports", type=int, default=300)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/radgraph_passes.json")
    args = parser.parse_args()
    if "CXR_DATA" not in os.environ:
        parser.error("CXR_DATA is not set: there are no reports")
    from tests import clinical

    torch.set_num_threads(1)
    lines = (
        (Path(os.environ["CXR_DATA"]) / "iu_text" / "studies.jsonl").read_text(encoding="utf-8").splitlines()
    )
    texts = list(dict.fromkeys(s["findings"] for s in map(json.loads, lines) if s.get("findings")))[
        : args.reports
    ]
    size = {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1024}
    learned = BertWordPieceTokenizer()
    learned.train_from_iterator(texts, vocab_size=3000, show_progress=False)
    words = [w for w in learned.get_vocab() if not w.startswith("[")]
    with tempfile.TemporaryDirectory() as folder:
        radgraph._package()
        files = clinical.write_extracted(Path(folder) / "radgraph", "radgraph", words, 512, **size)
        model = RadGraph.load(files, device="cpu")
        found, seconds, passes = {}, {}, {}
        for name, together in (("one at a time", 1), ("together", 16)):
            model.together = together
            passes[name] = len(model._alike(texts))
            start = time.process_time()
            found[name] = model(texts)
            seconds[name] = time.process_time() - start
    same = sum(a == b for a, b in zip(found["one at a time"], found["together"], strict=True))
    about = {
        "machine": f"{platform.machine()}, one core", "date": date.today().isoformat(), "reports": len(texts),
        "passes": passes, "seconds": {k: round(v, 2) for k, v in seconds.items()}, "equal answers": same,
        "times_as_fast": round(seconds["one at a time"] / seconds["together"], 2),
    }  # fmt: skip
    print(json.dumps(about, indent=1))
    if args.save:
        file = Path(__file__).parent / "results" / "radgraph_passes.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
