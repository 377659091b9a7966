"""The page of signatures explains every part that a signature of a score can have."""

from __future__ import annotations

import ast
import re

import pytest

import eval
from eval.signature import parse_signature
from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "concepts" / "signatures.md"
SOURCES = sorted([*(ROOT / "eval" / "scores").glob("*.py"), *(ROOT / "eval" / "judges").glob("*.py")])
TEXTS = ["The lungs are clear. No effusion.", "Small left effusion.", "Stable right effusion.", "Edema."]
PROFILES = ("coco", "sacrebleu-13a", "plain", "r2gen-iu", "r2gen-mimic")


@pytest.fixture(scope="module")
def explained() -> set[str]:
    """The parts in the first cells of the page's tables."""
    cells = re.findall(r"^\| (`[^|]+) \|", PAGE.read_text(), re.MULTILINE)
    return {part for cell in cells for part in re.findall(r"`([\w-]+)`", cell)}


def signatures(found: object) -> set[str]:
    """All signatures in a JSON object, however deep."""
    if isinstance(found, list):
        return set().union(*map(signatures, found))
    if not isinstance(found, dict):
        return set()
    own = {found["signature"]} if "signature" in found else set()
    return own.union(*map(signatures, found.values()))


@pytest.mark.parametrize("section", ["findings", "both"])
def test_parts_of_scores_are_explained(section, explained):
    references = [
        {
            "study_id": str(i), "patient_id": str(i), "impression": text, "labels": {"Edema": 1},
            # several references of the first, where a section may have them
            "findings": [text, "Clear."] if section == "findings" and not i else text,
        }
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    predictions = [
        {"study_id": str(i), "findings": text, "impression": text} for i, text in enumerate(TEXTS[::-1])
    ]
    values = [
        {"study_id": str(i), "name": "green", "value": i, "better": "higher"} for i in range(len(TEXTS))
    ]
    scores = eval.score(
        predictions, references, section=section, reference_labels="study", values=values, profiles=PROFILES,
        clinical_models="none", intervals=False,
    )  # fmt: skip
    parts = {part for text in signatures(scores.to_json()) for part in parse_signature(text)[1]}
    assert {"wordnet", "clean", "beta", "words", "support", "of"} <= parts
    assert parts - explained == set()


def test_parts_that_need_weights_are_explained(explained):
    """Those of clinical scores too, which no run without weights has: arguments of `signature` in the code."""
    calls = [
        node for file in SOURCES for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "signature"
    ]  # fmt: skip
    parts = {word.arg.replace("_", "-") for call in calls for word in call.keywords if word.arg}
    assert {"sim", "level", "rescaled"} <= parts
    assert parts - explained == set()
