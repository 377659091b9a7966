"""RaTEScore (Zhao et al. 2024, EMNLP): entities of both reports, matched by the similarity of their embeddings.

The package `RaTEScore` of its authors runs, with their affinity matrix for long reports. A report in which it finds no
sentence has no value: of several reports at once it would then pair the wrong ones, so that it gets one pair at a time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from eval.judges.local import Folder, Package, Run, judge_of
from eval.judges.panel import Tell, family_of

NER, EMBEDDING = Folder("Angelakeke/RaTE-NER-Deberta"), Folder("FremyCompany/BioLORD-2023-C")


def make(module: ModuleType, places: dict[str, Path], device: str) -> Run:
    """Return what runs the package."""
    # Its splitter of sentences logs each of them, by a library that writes to stderr unless told otherwise.
    if "loguru" in sys.modules:
        sys.modules["loguru"].logger.disable("PyRuSH")
    scorer = module.RaTEScore(
        bert_model=str(places[NER.name]),
        eval_model=str(places[EMBEDDING.name]),
        use_gpu=device.startswith("cuda"),
    )

    def run(references: list[str], predictions: list[str], tell: Tell) -> list[float | None]:
        found = []
        for done, (reference, prediction) in enumerate(zip(references, predictions, strict=True), 1):
            both = len(reference.strip()) >= SHORTEST and len(prediction.strip()) >= SHORTEST
            values = scorer.compute_score([prediction], [reference]) if both else []
            found.append(float(values[0]) if len(values) == 1 else None)
            tell(done, len(references))
        return found

    return run


# The package drops sentences of fewer characters.
SHORTEST = 3
JUDGE = judge_of(
    "ratescore", "RaTEScore", Package("RaTEScore", "RaTEScore", (NER, EMBEDDING), make), affinity="long"
)
FAMILY = family_of(JUDGE)
