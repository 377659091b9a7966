"""The row of the ReXrank leaderboard: means of its five scores, and the reciprocal of RadCliQ-v1.

ReXrank scores with CXR-Report-Metric: sentence BLEU-2, BERTScore without idf, the cosine of CheXbert's vectors
(SembScore), RadGraph's entity and relation F1 (RadGraph Combined), and RadCliQ. Its references join both sections.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.scores.result import Scores, is_kind
from eval.signature import number

KIND = "cxr-rexrank-row"
ROW = {
    "BLEU": "bleu-2/rexrank",
    "BertScore": "bertscore",
    "SembScore": "chexbert-vector",
    "RadGraph": "radgraph-f1/radgraph/entity-relation",
    "RadCliQ-v1": "radcliq/v1",
}


def row_of(scores: Scores) -> dict[str, Any]:
    """Return the row: each score's mean or None, what is missing and why, and the signatures."""
    found = {name: scores.scores.get(key) for name, key in ROW.items()}
    values = {name: None if s is None else number(s.value) for name, s in found.items()}
    radcliq = values["RadCliQ-v1"]
    why = {m.name: f"{m.reason}: {m.command}" for m in scores.not_computed}
    return {
        "kind": KIND,
        "studies": scores.n,
        **values,
        "1/RadCliQ-v1": None if not radcliq else 1 / radcliq,
        "not_computed": [name for name, s in found.items() if s is None],
        "why": why if any(s is None for s in found.values()) else {},
        "signatures": {name: s.signature for name, s in found.items() if s is not None},
    }


def is_row(path: Path) -> bool:
    """Tell whether the file is a row that was written before. Never raises; a pipe is not opened."""
    return is_kind(path, KIND)
