"""Multi-label F1 over the CheXpert conditions: micro, macro, weighted, example-based, both uncertainty policies.

Everything follows from true positives, false positives and false negatives per study and condition, so the
bootstrap sums counts instead of scoring again. Values equal scikit-learn's; what is not defined is NaN. An uncertain
label counts as absent (`neg`, as in LLaVA-Rad and MAIRA-2) or as present (`pos`, as in f1chexbert and RadEval), on
both sides alike; the choice moves published numbers by several points, so both are always computed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from eval.scores.family import Family, Grid, Reports
from eval.scores.labels import LABELLER, judged, label_matrix
from eval.scores.phrases import CONDITIONS
from eval.scores.sheet import Of, Sheet, ratio
from eval.signature import signature

POLICIES = ("neg", "pos")
AVERAGES = {
    "micro": "micro",
    "macro": "macro",
    "macro-all": "macro, all",
    "macro-supported": "macro, in references",
    "weighted": "weighted",
    "example": "example-based",
}
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
    """Return F1 over all decisions, (...), from summed counts (..., 3, C); NaN where neither side has a positive."""
    tp, fp, fn = np.moveaxis(counts.sum(axis=-1), -1, 0)
    return ratio(np.stack([2 * tp, 2 * tp + fp + fn], axis=-1))


def macro_f1(counts: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Return the mean F1 over conditions, (...), from summed counts (..., 3, C).

    A condition counts if it is in the reference or in the prediction: one that is only predicted counts 0, one that
    neither side has is left out (scikit-learn's `zero_division=nan`). With a bool mask `among` (C,), only those
    count. NaN if none is left.
    """
    used = present(counts)
    if among is not None:
        used = used & np.asarray(among, dtype=bool)
    f1 = precision_recall_f1(counts)[2]
    with np.errstate(invalid="ignore"):
        return np.where(used, f1, 0.0).sum(axis=-1) / np.where(used.any(axis=-1), used.sum(axis=-1), np.nan)


def macro_f1_all(counts: np.ndarray) -> np.ndarray:
    """Return the mean F1 over all conditions, (...), from summed counts (..., 3, C); one that neither side has
    counts 0, as in scikit-learn with `zero_division=0`."""
    return precision_recall_f1(counts)[2].mean(axis=-1)


def macro_f1_reference(counts: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the mean F1 over the conditions of a bool mask `among` (C,) that the reference has, (...), from summed
    counts (..., 3, C). It does not see conditions that only the prediction has. NaN if none is left."""
    return macro_f1(counts, np.asarray(among, dtype=bool) & (support(counts) > 0))


def weighted_f1(counts: np.ndarray) -> np.ndarray:
    """Return the mean F1 over conditions weighted by support, (...), from summed counts (..., 3, C); NaN without
    support."""
    f1, n = precision_recall_f1(counts)[2], support(counts)
    return ratio(np.stack([(f1 * n).sum(axis=-1), n.sum(axis=-1)], axis=-1))


def example_f1(counts_N3C: np.ndarray) -> np.ndarray:
    """Return F1 of every sample over its conditions, (N,), from counts (N, 3, C); 0 where neither side has a
    positive."""
    tp, fp, fn = np.moveaxis(counts_N3C.sum(axis=-1), -1, 0)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def support(counts: np.ndarray) -> np.ndarray:
    """Count the positives in the reference, (..., C), from summed counts (..., 3, C)."""
    return counts[..., 0, :] + counts[..., 2, :]


def most(counts: np.ndarray) -> np.ndarray:
    """Count the positives of the side that has more, (..., C), from summed counts (..., 3, C)."""
    return np.maximum(support(counts), counts[..., 0, :] + counts[..., 1, :])


def present(counts: np.ndarray) -> np.ndarray:
    """Tell, from summed counts (..., 3, C), which conditions the reference or the prediction has, (..., C)."""
    return counts.sum(axis=-2) > 0


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
    judged_N: np.ndarray | None = None,
) -> None:
    """Put all label F1 of two label matrices (N, 14; 1, 0, -1, NaN) on a sheet.

    Keys, for the name `label-f1`: `label-f1/14/macro/neg` (14 or 5 conditions; each of AVERAGES; neg or pos),
    `label-f1/14/macro-30/neg` for the macro mean over conditions of which the reference or the prediction has at least
    `min_support` positives, and `label-f1/Edema/neg` for a condition. `labeller` and `ckpt` say who read the labels,
    `reference` where those of the references come from.

    | average | conditions that count | signature |
    |---|---|---|
    | macro | that the reference or the prediction has | support:either |
    | macro-all | all; one that neither side has counts 0 | zero:0 |
    | macro-supported | that the reference has: invented ones go unseen | support:reference |

    `judged_N` (bool) says whose reference the labeller judges: the others are left out. A reference that is judged and
    has no label at all ("COPD.": none of the 14, nor No Finding) counts: whatever is said there is not in it.
    """
    judged_N = np.ones(len(reference_N14), bool) if judged_N is None else judged_N
    for policy in POLICIES:
        counts_N3C = confusion(binarize(reference_N14, policy), binarize(predicted_N14, policy))
        counts_N3C[~judged_N] = 0
        choices = {"unc": policy, "zero": 0, "ref": reference, "ckpt": ckpt}
        for number, conditions in (("14", CONDITIONS), ("5", FIVE)):
            chosen_N3C = counts_N3C[:, :, columns(conditions)]
            _add_averages(sheet, chosen_N3C, judged_N, name, number, labeller, choices, min_support)
        for i, condition in enumerate(CONDITIONS):
            where = sheet.columns(counts_N3C[:, :, i])
            details = signature(name, labeller=labeller, condition=condition.replace(" ", "-"), **choices)
            sheet.add(
                f"{name}/{condition}/{policy}", details, lambda sums: micro_f1(sums[..., None]), where,
                title=f"{_reader(name)}{condition} F1", kind="f1", units=lambda sums: sums.sum(axis=-1),
                positives=lambda sums: sums[..., 0] + sums[..., 2],
            )  # fmt: skip


def _add_averages(
    sheet: Sheet,
    counts_N3C: np.ndarray,
    judged_N: np.ndarray,
    name: str,
    number: str,
    labeller: str | None,
    choices: dict,
    min_support: int,
) -> None:
    n, _, c = counts_N3C.shape
    where = sheet.columns(counts_N3C.reshape(n, 3 * c))

    def counted(of: Of) -> Of:
        return lambda sums: of(sums.reshape(*sums.shape[:-1], 3, c))

    every = counted(lambda counts: support(counts).sum(axis=-1))

    def of_each(used: Of) -> Of:
        """Positives of each condition in a mean, of the side that has more; NaN for one that is not in it."""
        return counted(lambda counts: np.where(used(counts), most(counts), np.nan))

    def add(average: str, of: Of, *, said: str = "", **more: Any) -> None:
        choice = {"support": more.pop("support", None), "min_support": more.pop("min_support", None)}
        # Only there an undefined F1 counts 0.
        zero = None if choice["support"] == "either" else choices["zero"]
        details = signature(
            name, labeller=labeller, n=c, avg=said or average, **choice, **{**choices, "zero": zero}
        )
        key = f"{name}/{number}/{average}/{choices['unc']}"
        headline = number == "14" and choices["unc"] == "neg" and average in ("macro", "micro")
        sheet.add(
            key, details, counted(of), where, title=f"{_reader(name)}F1-{number} {_average(average)}",
            headline=headline, whole=c, **{"positives": every, **more},
        )  # fmt: skip

    add(
        "macro", macro_f1, support="either", over=counted(lambda counts: present(counts).sum(axis=-1)),
        positives=of_each(present),
    )  # fmt: skip
    add("micro", micro_f1)
    add("macro-all", macro_f1_all, said="macro", positives=of_each(present))
    supported = counted(lambda counts: (support(counts) > 0).sum(axis=-1))
    add(
        "macro-supported", lambda counts: macro_f1_reference(counts, np.ones(c, bool)), said="macro",
        support="reference", min_support=1, over=supported, positives=of_each(lambda counts: support(counts) > 0),
    )  # fmt: skip

    # Which conditions have support is decided on the studies at hand, a subgroup say, and not anew in each replicate.
    def frequent(counts: np.ndarray) -> np.ndarray:
        return most(counts) >= min_support

    add(
        f"macro-{min_support}", lambda counts: macro_f1(counts, frequent(counts)), said="macro", support="either",
        min_support=min_support, over=counted(lambda counts: frequent(counts).sum(axis=-1)),
        positives=of_each(frequent),
        chosen=lambda total: counted(partial(macro_f1, among=frequent(total.reshape(3, c)))),
    )  # fmt: skip
    add("weighted", weighted_f1)
    key = f"{name}/{number}/example/{choices['unc']}"
    details = signature(name, labeller=labeller, n=c, avg="example", **choices)
    title = f"{_reader(name)}F1-{number} {_average('example')}"
    values_N = np.where(judged_N, example_f1(counts_N3C), 0.0)
    columns_N3 = np.stack([values_N, judged_N, support(counts_N3C).sum(axis=-1)], axis=1)
    sheet.add_ratio(key, details, sheet.columns(columns_N3), title=title, positives=lambda sums: sums[..., 2])


def _reader(name: str) -> str:
    return "CheXbert " if name == "chexbert-f1" else ""


def _average(average: str) -> str:
    if average[-1].isdigit():
        return f"macro, n ≥ {average.rpartition('-')[2]}"
    return AVERAGES[average]


def condition_table(reference_N14: np.ndarray, predicted_N14: np.ndarray, policy: str) -> list[dict]:
    """Return, per condition, positives in reference and prediction, precision, recall and F1 under one uncertainty
    policy; None where there is nothing to divide by."""
    counts = confusion(binarize(reference_N14, policy), binarize(predicted_N14, policy)).sum(axis=0)
    precision, recall, f1 = precision_recall_f1(counts)
    tp, fp, fn = counts
    return [
        {
            "condition": condition,
            "support": int(counts[0, i] + counts[2, i]),
            "predicted": int(counts[0, i] + counts[1, i]),
            "precision": float(precision[i]) if tp[i] + fp[i] else None,
            "recall": float(recall[i]) if tp[i] + fn[i] else None,
            "f1": float(f1[i]) if tp[i] + fp[i] + fn[i] else None,
        }
        for i, condition in enumerate(CONDITIONS)
    ]


# --- how it is shown --------------------------------------------------------------------------------------------------

READERS = {
    "label-f1": ("labeller `rules`", "Labels are read by the rule-based labeller, which is not CheXbert."),
    "chexbert-f1": ("CheXbert", "Labels are read by CheXbert."),
}


def label_tables(scores: Any, name: str) -> list[Grid]:
    """Return the tables of one labeller's F1: averages, and one row a condition."""
    reader, said = READERS[name]
    section = "conditions" if name == "label-f1" else f"conditions-{name.partition('-')[0]}"
    title = f"By condition{', CheXbert' if name == 'chexbert-f1' else ''}"
    least = scores.settings["min_support"]
    averages = []
    for average in (*AVERAGES, f"macro-{least}"):
        row = [scores.scores.get(f"{name}/{n}/{average}/{u}") for n in (14, 5) for u in POLICIES]
        if any(row):
            averages.append((_average(average), *row))
    of_conditions = []
    points = []
    for row in scores.conditions[name]["neg"]:
        s = scores.scores[f"{name}/{row['condition']}/neg"]
        shares = ["-" if row[k] is None else f"{row[k]:.3f}" for k in ("precision", "recall")]
        of_conditions.append((row["condition"], str(row["support"]), str(row["predicted"]), *shares, s))
        points.append((row["support"], (row["condition"], s, f"n = {row['support']}")))
    points.sort(key=lambda point: -point[0])
    return [
        Grid(
            f"{title}, {reader} (uncertain as absent)" if name == "label-f1" else f"{title} (uncertain as absent)",
            ("condition", "support", "predicted", "precision", "recall", "F1"), of_conditions, section,
            f"F1 with interval, uncertain counted as absent; n is the number of positive references. {said}",
            [point for _, point in points],
        ),
        Grid(
            "Label F1, labeller `rules` (not CheXbert)" if name == "label-f1" else "CheXbert F1",
            ("average", "14, unc. absent", "14, unc. present", "5, unc. absent", "5, unc. present"), averages, section,
        ),
    ]  # fmt: skip


def _add(sheet: Sheet, reports: Reports) -> None:
    matrix_N14, judged_N = reports.reference_labels_N14, reports.judged_N
    if matrix_N14 is None or judged_N is None:
        matrix_N14 = label_matrix(reports.references)
        judged_N = np.array([judged(text) for text in reports.references], bool)
    # What is said of a study whose reference is not judged is neither right nor wrong.
    predicted_N14 = np.where(judged_N[:, None], label_matrix(reports.predictions), np.nan)
    reports.labels["label-f1"] = (matrix_N14, predicted_N14)
    add_label_f1(
        sheet, *reports.labels["label-f1"], labeller=LABELLER, reference=reports.label_source,
        min_support=least_of(reports), judged_N=judged_N,
    )  # fmt: skip


def least_of(reports: Reports) -> int:
    """Return the support that a key such as `label-f1/14/macro-50/neg` asks for, else that of the settings."""
    asked = re.fullmatch(r"[\w-]+/(?:14|5)/macro-(\d+)/(?:neg|pos)", reports.key or "")
    return int(asked[1]) if asked else reports.min_support


FAMILY = Family(
    "label-f1",
    "Label F1, labeller `rules` (not CheXbert)",
    _add,
    tables=lambda scores: label_tables(scores, "label-f1"),
)
