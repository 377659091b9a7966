"""Image-to-image retrieval: of the k most similar images of other patients, how many show the same?

Nothing is learnt. Images of the query's own patient are never returned: they would be found by who it is.

Shape letters: M queries, G images to be found, C features, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.probes.judged import Judged, Part
from eval.probes.linear import unit

KS = (1, 5, 10)
UNKNOWN = ("left-out", "absent")
KINDS = ("shared", "exact")
_BLOCK = 256  # queries at a time


def retrieval_probe(
    queries: Part,
    *,
    gallery: Part | None = None,
    ks: Sequence[int] = KS,
    unknown: str = "left-out",
    features: str = "cls",
) -> Judged:
    """Measure precision at k of every query, for `measured(..., "precision")`: of the k images with the
    highest cosine,

    - `shared@k`: the share with a label in common; queries without any label are not counted,
    - `exact@k`: the share with exactly the query's labels.

    Its baseline is k images at random, exactly: the share of those that count among all images of other
    patients. Images equally similar share the remaining places, so that features which tell nothing reach the
    baseline and no more.

    gallery: where to look, by default among the queries. unknown: images with a label that is not known are left out,
    of queries and gallery, or what is not known is taken as absent. Queries with fewer than k images of other
    patients are not counted at k. Raises ValueError where nothing is left to ask or to find.
    """
    if unknown not in UNKNOWN:
        raise ValueError(f"unknown labels are {' or '.join(UNKNOWN)}, not {unknown!r}")
    if not ks or min(ks) < 1:
        raise ValueError(f"k is at least 1; found {list(ks)}")
    asked, found = (_known(part, unknown) for part in (queries, gallery or queries))
    if not len(asked) or not len(found):
        raise ValueError(f"no image without an unknown label: {len(asked)} queries, {len(found)} to be found")
    if asked.x_NC.shape[1] != found.x_NC.shape[1] or asked.y_NL.shape[1] != found.y_NL.shape[1]:
        raise ValueError("queries and gallery have other features or other labels")
    names = [f"{kind}@{k}" for kind in KINDS for k in ks]
    truth_ML = np.full((len(asked), len(names)), np.nan)  # 1 where a query counts
    scores_ML, floor_ML = np.zeros(truth_ML.shape), np.zeros(truth_ML.shape)
    q_MC, g_GC = unit(asked.x_NC), unit(found.x_NC)
    for start in range(0, len(asked), _BLOCK):
        rows = slice(start, start + _BLOCK)
        own = asked.patients[rows, None] == found.patients[None]
        similar = np.where(own, -np.inf, np.round(q_MC[rows] @ g_GC.T, 6))  # float32 knows no more of equals
        there = (~own).sum(1)
        y_ML = asked.y_NL[rows]
        common = y_ML @ found.y_NL.T
        either = y_ML.sum(1)[:, None] + found.y_NL.sum(1) - common
        relevance = {"shared": common > 0, "exact": common == either}
        for place, k in enumerate(ks):
            if k > len(found):
                continue
            hits = _hits(similar, k, list(relevance.values()))
            for i, kind in enumerate(KINDS):
                column = i * len(ks) + place
                counts = (there >= k) & ((y_ML.sum(1) > 0) | (kind == "exact"))
                truth_ML[rows, column] = np.where(counts, 1.0, np.nan)
                scores_ML[rows, column] = np.where(counts, hits[i] / k, 0)
                relevant = (relevance[kind] & ~own).sum(1)
                floor_ML[rows, column] = np.where(counts, relevant / there.clip(min=1), 0)
    choices = {"features": features, "similarity": "cosine", "gallery": "other" if gallery else "queries"}
    choices["unknown"] = unknown
    images = None if asked.images is None else list(asked.images)
    return Judged(names, truth_ML, scores_ML[None], floor_ML, asked.patients, images, choices)


def _hits(similar: np.ndarray, k: int, relevance: list[np.ndarray]) -> list[np.ndarray]:
    """How many of the k nearest count, expected where several are equally far in the last place."""
    last = -np.partition(-similar, k - 1, axis=1)[:, k - 1 : k]
    nearer, level = similar > last, similar == last
    places = (k - nearer.sum(1)) / level.sum(1)
    return [(nearer & counts).sum(1) + places * (level & counts).sum(1) for counts in relevance]


def _known(part: Part, unknown: str) -> Part:
    if unknown == "absent":
        return Part(part.x_NC, np.nan_to_num(part.y_NL), part.patients, part.images)
    return part.rows(~np.isnan(part.y_NL).any(1))
