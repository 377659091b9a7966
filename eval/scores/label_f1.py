"""Multi-label F1 over the CheXpert conditions: micro, macro, weighted, example-based, both uncertainty policies.

Everything follows from true positives, false positives and false negatives per study and condition, so the
bootstrap sums counts instead of scoring again. Values equal scikit-learn's with `zero_division=0`. An uncertain
label counts as absent (`neg`, as in LLaVA-Rad and MAIRA-2) or as present (`pos`, as in f1chexbert and RadEval), on
both sides alike; the choice moves published numbers by several points, so both are always computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.scores.phrases import CONDITIONS
from eval.scores.sheet import Sheet
from eval.signature import signature

POLICIES = ("neg", "pos")
AVERAGES = ("micro", "macro", "macro-supported", "weighted", "example")
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five conditions of CheXpert's competition, "F1-5"."""


def binarize(labels: np.ndarray, uncertain: str) -> np.ndarray:
    """Turn labels (N, C) of 1, 0, -1, NaN into bool (N, C), True where the condition counts as present.

    `uncertain` is "neg" or "pos". Raises ValueError for another policy or another label.
    """
    if uncertain not in POLICIES:
        raise ValueError(f"uncertainty policy {uncertain!r} is neither 'neg' nor 'pos'")
    labels = np.asarray(labels, dtype=np.float64)
    known = np.isnan(labels) | np.isin(labels, (1, 0, -1))
    if not known.all():
        raise ValueError(f"labels are 1, 0, -1 or NaN, found {labels[~known][0]}")
    return (labels == 1) | ((labels == -1) & (uncertain == "pos"))


def confusion(reference_NC: np.ndarray, predicted_NC: np.ndarray) -> np.ndarray:
    """Count, per sample and condition, true positive, false positive, false negative, as float64 (N, 3, C).

    Raises ValueError if the shapes differ.
    """
    ref, hyp = np.asarray(reference_NC, dtype=bool), np.asarray(predicted_NC, dtype=bool)
    if ref.shape != hyp.shape or ref.ndim != 2:
        raise ValueError(f"label matrices must have one shape (N, C); found {ref.shape} and {hyp.shape}")
    return np.stack([ref & hyp, ~ref & hyp, ref & ~hyp], axis=1).astype(np.float64)


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1, each (..., C), from summed counts (..., 3, C); 0 where nothing is to
    be divided."""
    tp, fp, fn = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    return _ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn)


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """Return F1 over all decisions, (...), from summed counts (..., 3, C)."""
    return precision_recall_f1(counts.sum(axis=-1, keepdims=True))[2][..., 0]


def macro_f1(counts: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Return the mean F1 over conditions, (...), from summed counts (..., 3, C).

    Without `among`, all conditions count: one that never occurs counts 0, as in scikit-learn. With a bool
    mask `among` (C,), only those that also occur in the sums at hand count. So a bootstrap replicate without
    a positive of a condition leaves it out instead of scoring it 0. NaN if none is left.
    """
    f1 = precision_recall_f1(counts)[2]
    if among is None:
        return f1.mean(axis=-1)
    used = np.asarray(among, dtype=bool) & (support(counts) > 0)
    with np.errstate(invalid="ignore"):
        return np.where(used, f1, 0.0).sum(axis=-1) / np.where(used.any(axis=-1), used.sum(axis=-1), np.nan)


def weighted_f1(counts: np.ndarray) -> np.ndarray:
    """Return the mean F1 over conditions weighted by support, (...), from summed counts (..., 3, C)."""
    f1, n = precision_recall_f1(counts)[2], support(counts)
    return _ratio((f1 * n).sum(axis=-1), n.sum(axis=-1))


def example_f1(counts_N3C: np.ndarray) -> np.ndarray:
    """Return F1 of every sample over its conditions, (N,), from counts (N, 3, C); 0 where neither side has a
    positive."""
    tp, fp, fn = np.moveaxis(counts_N3C.sum(axis=-1), -1, 0)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def support(counts: np.ndarray) -> np.ndarray:
    """Count the positives in the reference, (..., C), from summed counts (..., 3, C)."""
    return counts[..., 0, :] + counts[..., 2, :]


def columns(conditions: Sequence[str]) -> list[int]:
    """Return where the named conditions stand in CONDITIONS."""
    return [CONDITIONS.index(c) for c in conditions]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, 0.0)


def add_label_f1(
    sheet: Sheet,
    reference_N14: np.ndarray,
    predicted_N14: np.ndarray,
    *,
    name: str = "label-f1",
    labeller: str | None = None,
    reference: str | None = None,
    ckpt: str | None = None,
    min_support: int = 30,
) -> None:
    """Put all label F1 of two label matrices (N, 14; 1, 0, -1, NaN) on a sheet.

    Keys, for the name `label-f1`: `label-f1/14/macro/neg` (14 or 5 conditions; each of AVERAGES; neg or pos),
    `label-f1/14/macro-30/neg` for the macro mean over conditions with at least `min_support` positives where there is
    one, and `label-f1/Edema/neg` for a condition. `labeller` and `ckpt` say who read the labels, `reference` where
    those of the references come from.
    """
    for policy in POLICIES:
        counts_N3C = confusion(binarize(reference_N14, policy), binarize(predicted_N14, policy))
        choices = {"unc": policy, "zero": 0, "ref": reference, "ckpt": ckpt}
        for number, conditions in (("14", CONDITIONS), ("5", FIVE)):
            chosen_N3C = counts_N3C[:, :, columns(conditions)]
            _add_averages(sheet, chosen_N3C, name, number, labeller, choices, min_support)
        for i, condition in enumerate(CONDITIONS):
            where = sheet.columns(counts_N3C[:, :, i])
            details = signature(name, labeller=labeller, condition=condition.replace(" ", "-"), **choices)
            sheet.add(f"{name}/{condition}/{policy}", details, lambda sums: micro_f1(sums[..., None]), where)


def _add_averages(
    sheet: Sheet,
    counts_N3C: np.ndarray,
    name: str,
    number: str,
    labeller: str | None,
    choices: dict,
    min_support: int,
) -> None:
    n, _, c = counts_N3C.shape
    where = sheet.columns(counts_N3C.reshape(n, 3 * c))
    positives_C = support(counts_N3C.sum(axis=0))

    def details(average: str, **more: object) -> str:
        return signature(name, labeller=labeller, n=c, avg=average, **more, **choices)

    def add(average: str, described: str, of) -> None:
        key = f"{name}/{number}/{average}/{choices['unc']}"
        sheet.add(key, described, lambda s: of(s.reshape(*s.shape[:-1], 3, c)), where)

    def macro_over(minimum: int):
        among = positives_C >= minimum
        return lambda counts: macro_f1(counts, among)

    add("micro", details("micro"), micro_f1)
    add("macro", details("macro"), macro_f1)
    add("macro-supported", details("macro", min_support=1), macro_over(1))
    well_supported = int((positives_C >= min_support).sum())
    if well_supported:
        described = details("macro", min_support=min_support, used=well_supported)
        add(f"macro-{min_support}", described, macro_over(min_support))
    add("weighted", details("weighted"), weighted_f1)
    key = f"{name}/{number}/example/{choices['unc']}"
    sheet.add_mean(key, details("example"), example_f1(counts_N3C))


def condition_table(reference_N14: np.ndarray, predicted_N14: np.ndarray, policy: str) -> list[dict]:
    """Return, per condition, positives in reference and prediction, precision, recall, F1 under one
    uncertainty policy."""
    counts = confusion(binarize(reference_N14, policy), binarize(predicted_N14, policy)).sum(axis=0)
    precision, recall, f1 = precision_recall_f1(counts)
    return [
        {
            "condition": condition,
            "support": int(counts[0, i] + counts[2, i]),
            "predicted": int(counts[0, i] + counts[1, i]),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
        }
        for i, condition in enumerate(CONDITIONS)
    ]
