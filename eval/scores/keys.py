"""Keys of scores: their short names, and which are headlines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from eval.signature import Score

if TYPE_CHECKING:
    pass


AVERAGE_NAMES = {
    "micro": "micro",
    "macro": "macro, all",
    "macro-supported": "macro, supported",
    "weighted": "weighted",
    "example": "example-based",
}


LEXICAL = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "meteor")


SAFETY = {  # where it says nothing else, a share of reports; and the key of the same for the references
    "temporal-f1": ("words of change: F1", ""),
    "hallucinated-prior": ("compares with a prior that was not given", "hallucinated-prior/reference"),
    "side-swap": ("wrong side, of findings with a side in both", ""),
    "words/generated": ("words", "words/reference"),
    "empty": ("empty", ""),
    "truncated": ("no end of a sentence", "truncated/reference"),
    "repeated-4-grams": ("repeated 4-grams, share of all", "repeated-4-grams/reference"),
    "repeated-sentence": ("says a sentence twice", "repeated-sentence/reference"),
    "unique": ("distinct texts", "unique/reference"),
}


SHORT = {
    "bleu-4/coco": "BLEU-4 coco",
    "rouge-l/coco": "ROUGE-L coco",
    "bertscore": "BERTScore",
    "radcliq/v0": "RadCliQ v0",
    "radcliq/v1": "RadCliQ v1",
}


def short_name(key: str) -> str:
    """Return a heading for a score's key: `label-f1/14/macro/neg` -> "F1-14 macro"."""
    if key in SHORT:
        return SHORT[key]
    name, *rest = key.split("/")
    if name in ("label-f1", "chexbert-f1") and len(rest) == 3:
        average = rest[1].replace("macro-", "macro n ≥ ") if rest[1][-1:].isdigit() else rest[1]
        return ("CheXbert " if name == "chexbert-f1" else "") + f"F1-{rest[0]} {average}"
    if name == "radgraph-f1":
        return f"RadGraph{'-XL' if rest[0].endswith('-xl') else ''} F1 {' '.join(rest[1:])}"
    return f"{name.upper()} {' '.join(rest)}"


def headline_keys(scores: Mapping[str, Score], min_support: int) -> list[str]:
    """Return the keys that predictions are compared by: macro over the well-supported conditions, if there
    are any."""
    return [*_label_keys(scores, "label-f1", min_support), "bleu-4/coco", "rouge-l/coco"]


def subgroup_keys(scores: Mapping[str, Score], min_support: int) -> list[str]:
    """Return headline keys for few studies: macro over the conditions that occur among them."""
    return [k.replace("/macro/", "/macro-supported/") for k in headline_keys(scores, min_support)]


def clinical_keys(scores: Mapping[str, Score], min_support: int) -> list[str]:
    """Return the headline keys of the scores that need models, as far as they were computed."""
    keys = _label_keys(scores, "chexbert-f1", min_support)
    keys += [f"radgraph-f1/{model}/partial" for model in ("radgraph", "radgraph-xl")]
    return [key for key in [*keys, "bertscore", "radcliq/v0", "radcliq/v1"] if key in scores]


def _label_keys(scores: Mapping[str, Score], name: str, min_support: int) -> list[str]:
    supported = f"{name}/14/macro-{min_support}/neg"
    return [supported if supported in scores else f"{name}/14/macro/neg", f"{name}/14/micro/neg"]
