"""Floors: what a report scores that did not look at the image. A model must stand well above them.

They take texts, features and files of predictions; images are shuffled and blanked by `cxr generate --floors DIR`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from eval.scores.lexical import plain_tokens
from eval.scores.readers import ScoreError
from eval.scores.registry import NotComputed

Report = TypeVar("Report")  # a text, or whatever stands for one

_ROWS = 256  # queries at a time, so that a bank of 200,000 fits in memory

COMMAND = "cxr generate STUDIES --floors DIR, then cxr score --floors DIR"


class FloorFile(NamedTuple):
    """A file NAME.jsonl of a directory that `cxr generate --floors` wrote."""

    title: str
    how: str
    command: str = COMMAND


FLOORS = {
    "shuffled": FloorFile("shuffled images", "every study got another study's image"),
    "blank": FloorFile("blank images", "every image was blank"),
    "nearest": FloorFile(
        "nearest neighbour (image)",
        "the training report whose X-ray the encoder finds most similar",
        "cxr generate STUDIES --floors OTHER_DIR --training STUDIES, then cxr score --floors OTHER_DIR",
    ),
}


def typical_report(reports: Sequence[str]) -> str:
    """Return the medoid: the report whose words are most like those of all the others (cosine of word
    counts).

    A text that occurs often pulls the medoid towards itself; ties go to the first. Raises ValueError without reports.
    """
    if not reports:
        raise ValueError("a typical report needs at least one report")
    texts = Counter(reports)
    bags = {text: _unit(Counter(plain_tokens(text))) for text in texts}
    centre: dict[str, float] = {}
    for text, bag in bags.items():
        for word, weight in bag.items():
            centre[word] = centre.get(word, 0.0) + texts[text] * weight
    return max(bags, key=lambda text: sum(weight * centre[word] for word, weight in bags[text].items()))


def _unit(counts: Mapping[str, int]) -> dict[str, float]:
    norm = sum(c * c for c in counts.values()) ** 0.5
    return {word: c / norm for word, c in counts.items()}


def nearest_by_features(
    features_ND: np.ndarray,
    bank_MD: np.ndarray,
    bank_reports: Sequence[Report],
    *,
    groups: Sequence[Hashable] | None = None,
    bank_groups: Sequence[Hashable] | None = None,
) -> list[Report]:
    """Return, for each row of features (N, D), the report of the most similar row of a bank, (M, D), by
    cosine.

    With `groups` and `bank_groups` (patients) nobody is answered with a report of the same patient. Raises ValueError
    for unequal sizes, features that are not finite, or a study that has no other patient in the bank.
    """
    features_ND, bank_MD = np.asarray(features_ND, np.float64), np.asarray(bank_MD, np.float64)
    if features_ND.ndim != 2 or bank_MD.ndim != 2 or features_ND.shape[1] != bank_MD.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), found {features_ND.shape} and {bank_MD.shape}")
    if len(bank_reports) != len(bank_MD):
        raise ValueError(f"{len(bank_MD)} rows in the bank but {len(bank_reports)} reports")
    if not (np.isfinite(features_ND).all() and np.isfinite(bank_MD).all()):
        raise ValueError("features contain NaN or infinity")
    features_ND, bank_MD = _normed(features_ND), _normed(bank_MD)
    ids: dict[Hashable, int] = {}
    own_N = np.array([ids.setdefault(g, len(ids)) for g in groups or ()])
    bank_M = np.array([ids.setdefault(g, len(ids)) for g in bank_groups or ()])
    reports = []
    for start in range(0, len(features_ND), _ROWS):
        similarity_BM = features_ND[start : start + _ROWS] @ bank_MD.T
        if len(own_N) and len(bank_M):
            similarity_BM[own_N[start : start + _ROWS, None] == bank_M] = -np.inf
        if np.isneginf(similarity_BM.max(axis=1)).any():
            raise ValueError("a study has no other patient in the bank")
        reports += [bank_reports[i] for i in similarity_BM.argmax(axis=1)]
    return reports


def _normed(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def nearest_by_text(
    queries: Sequence[str], bank_texts: Sequence[str], bank_reports: Sequence[str]
) -> list[str]:
    """Return, for each query (an indication, say), the report whose own text of that kind is most similar by
    TF-IDF cosine.

    Raises ValueError if the bank is empty or its sizes differ.
    """
    if not bank_texts or len(bank_texts) != len(bank_reports):
        raise ValueError(
            f"the bank needs as many texts as reports; found {len(bank_texts)} and {len(bank_reports)}"
        )
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(tokenizer=plain_tokens, token_pattern=None, lowercase=False)
    bank_MV = vectorizer.fit_transform(bank_texts)
    reports = []
    for start in range(0, len(queries), _ROWS):
        similarity_BM = vectorizer.transform(queries[start : start + _ROWS]) @ bank_MV.T
        reports += [bank_reports[i] for i in np.asarray(similarity_BM.argmax(axis=1)).ravel()]
    return reports


def as_predictions(
    study_ids: Sequence[str], reports: Sequence[str], section: str = "findings"
) -> list[dict[str, Any]]:
    """Return reports as prediction records, of findings or of "impression"."""
    return [{"study_id": key, section: text} for key, text in zip(study_ids, reports, strict=True)]


def read_floors(directory: str | Path | None) -> tuple[dict[str, Path], list[NotComputed]]:
    """Return the prediction files of a --floors directory by name, and the missing baselines with the command
    to make them.

    Raises ScoreError if the directory was given but does not exist.
    """
    if directory is None:
        return {}, [NotComputed(f.title, f"not made ({f.how})", f.command) for f in FLOORS.values()]
    directory = Path(directory)
    if not directory.is_dir():
        raise ScoreError(f"{directory}: no such directory of baselines (--floors); make it with: {COMMAND}")
    found = {path.stem: path for path in sorted(directory.glob("*.jsonl"))}
    missing = [
        NotComputed(f.title, f"{directory} has no {name}.jsonl", f.command)
        for name, f in FLOORS.items()
        if name not in found
    ]
    return found, missing
