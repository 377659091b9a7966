"""What the answers of a probe are worth: numbers with intervals over patients, and differences between two encoders in
pairs.

Findings are measured by auprc and auroc, age, weight and the like by r2 and mae, retrieval by precision.

Shape letters: M test images, L answers an image, D draws of training images, B replicates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.probes import measures
from eval.probes.judged import Judged
from eval.resampling import bootstrap_p, holm, percentile_interval
from eval.signature import Score, number, signature

METRICS = {
    "auprc": measures.weighted_auprc,
    "auroc": measures.weighted_auroc,
    "r2": measures.weighted_r2,
    "mae": measures.weighted_mae,
    "precision": measures.weighted_mean,
}
OF_LABELS = ("auprc", "auroc")
REPLICATES = 1000
COMPARED = 2000  # the least p is 0.001, which Holm over 28 findings leaves below 0.05
LEAST = 10  # patients with a finding, and without, for it to count in means over findings and in tests


@dataclass(frozen=True)
class FoundScore(Score):
    """Hold a number and its baseline, `floor`, of answers that did not look.

    That is the prevalence for AUPRC and a half for AUROC.
    """

    patients: int
    positives: int | None  # images with the finding; None if it is not about a finding
    floor: float
    more: dict[str, Any] = field(default_factory=dict)  # draws and their spread, findings of a mean, reasons

    @property
    def prevalence(self) -> float | None:
        """Return the share of the images that have the finding; None if this is not about a finding."""
        return None if self.positives is None else self.positives / max(self.n, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the score as a dict for JSON; NaN becomes None."""
        return {
            **super().to_json(),
            "patients": self.patients,
            "positives": self.positives,
            "prevalence": self.prevalence,
            "floor": number(self.floor),
            **self.more,
        }

    def cells(self) -> list[str]:
        """Return the cells of a table's row: name, value [interval], prevalence, floor, images, patients,
        positives."""
        prevalence = "" if self.positives is None else f"{self.prevalence:.3f}"
        positives = "" if self.positives is None else str(self.positives)
        value = _shown(self.value) + f" [{_shown(self.low)}, {_shown(self.high)}]"
        return [self.name, value, prevalence, _shown(self.floor), str(self.n), str(self.patients), positives]


@dataclass(frozen=True)
class Gap(Score):
    """Hold the difference of two encoders: `value` of one minus `other` of another, with its interval.

    `p` and `p_holm` are before and after Holm over the findings; both are NaN if there are too few to test.
    The mean over findings is one test and has no Holm.
    """

    other: float
    difference: float
    p: float
    p_holm: float
    patients: int

    def to_json(self) -> dict[str, Any]:
        """Return the gap as a dict for JSON; NaN becomes None."""
        return {
            **super().to_json(),
            "patients": self.patients,
            "other": number(self.other),
            "difference": number(self.difference),
            "p": number(self.p),
            "p_holm": number(self.p_holm),
        }

    def cells(self) -> list[str]:
        """Return the cells of a table's row: name, value, other, difference [interval], p, Holm's p,
        images."""
        difference = f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]".replace("+nan", "–")
        tests = ["–" if p != p else f"{p:.4f}" for p in (self.p, self.p_holm)]
        return [self.name, _shown(self.value), _shown(self.other), difference, *tests, str(self.n)]


def measured(
    judged: Judged, metric: str, *, n_boot: int = REPLICATES, seed: int = 0, least: int = LEAST
) -> list[FoundScore]:
    """Measure `metric` (of METRICS) for every answer, with its 95 % percentile bootstrap interval over
    patients.

    For auprc and auroc the mean over findings comes last. It takes the findings that at least `least`
    patients have and as many do not.

    Of several draws the value is their mean, and `more` has each, and their standard deviation. The interval
    is of that mean over the patients of the test; it does not hold the spread of the draws.
    """
    weights_BM = measures.replicate_weights(judged.patients, n_boot, seed)
    found, counted = [], []
    for label, name in enumerate(judged.names):
        known = ~np.isnan(judged.truth_ML[:, label])
        values_DB = _values(judged, metric, label, weights_BM)
        mean_B = _mean(values_DB)
        more = _more(judged, label, values_DB[:, 0])
        if enough(judged, label, least) and not np.isnan(mean_B[0]):
            counted.append((name, values_DB, floor_of(judged, metric, label)))
        found.append(
            FoundScore(
                f"{metric}/{name}", float(mean_B[0]), *percentile_interval(mean_B[1:]), int(known.sum()),
                signed(judged, metric, n_boot), len(np.unique(judged.patients[known])),
                int(np.nansum(judged.truth_ML[:, label])) if metric in OF_LABELS else None,
                floor_of(judged, metric, label), more,
            )
        )  # fmt: skip
    if metric in OF_LABELS and len(judged.names) > 1:
        found.append(_macro(judged, metric, counted, n_boot, least))
    return found


def compared(
    a: Judged, b: Judged, metric: str, *, n_boot: int = COMPARED, seed: int = 0, least: int = LEAST
) -> list[Gap]:
    """Compare `metric` of `a` minus that of `b` on the same images: both see the same drawn patients. p is
    the bootstrap's (`eval.resampling.bootstrap_p`), adjusted by Holm over the answers; of findings, over
    those that `measured` has in its mean, whose difference comes last.

    Raises ValueError where the two have not judged the same.
    """
    _check_same(a, b)
    weights_BM = measures.replicate_weights(a.patients, n_boot, seed)
    rows, tested, means = [], {}, []
    for label, name in enumerate(a.names):
        both = [_mean(_values(x, metric, label, weights_BM)) for x in (a, b)]
        gap_B = both[0] - both[1]
        known = ~np.isnan(a.truth_ML[:, label])
        rows.append((name, both, gap_B, known))
        counts = metric not in OF_LABELS or enough(a, label, least)
        if counts and not np.isnan(gap_B[0]):
            tested[name] = bootstrap_p(gap_B[1:])
            means.append(both)
    adjusted = holm(tested)
    if metric in OF_LABELS and len(a.names) > 1 and means:
        both = list(np.mean(means, axis=0))
        rows.append(("macro", both, both[0] - both[1], np.ones(len(a.truth_ML), bool)))
        tested["macro"] = bootstrap_p(rows[-1][2][1:])
    nan = float("nan")
    choices = {}
    for key in a.choices | b.choices:
        x, y = (judged.choices.get(key, "none") for judged in (a, b))
        choices[key] = x if x == y else f"{x}-less-{y}"
    sign = signature(metric, **choices, paired="bootstrap", boot=f"{n_boot}-patients", holm=len(adjusted))
    return [
        Gap(
            f"{metric}/{name}", float(both[0][0]), *percentile_interval(gap_B[1:]), int(known.sum()), sign,
            float(both[1][0]), float(gap_B[0]), tested.get(name, nan), adjusted.get(name, nan),
            len(np.unique(a.patients[known])),
        )
        for name, both, gap_B, known in rows
    ]  # fmt: skip


def table(rows: Iterable[FoundScore] | Iterable[Gap]) -> str:
    """Return numbers with intervals, prevalence and floor, or differences with p, as plain text."""
    rows = list(rows)
    head = ["", "value", "other", "difference", "p", "p (Holm)", "images"]
    if not rows or isinstance(rows[0], FoundScore):
        head = ["", "value", "prevalence", "floor", "images", "patients", "positives"]
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def enough(judged: Judged, label: int, least: int) -> bool:
    """Tell whether at least `least` patients have the finding and as many do not."""
    return all(len(np.unique(judged.patients[judged.truth_ML[:, label] == kind])) >= least for kind in (0, 1))


def signed(judged: Judged, metric: str, n_boot: int, **more: object) -> str:
    """Return the signature of `metric` with the choices of the head and the bootstrap over patients."""
    return signature(metric, **judged.choices, **more, boot=f"{n_boot}-patients")


def floor_of(judged: Judged, metric: str, label: int) -> float:
    """Return the metric of answers that did not look at the images, over the images whose label is known."""
    known = ~np.isnan(judged.truth_ML[:, label])
    floor_M = np.broadcast_to(judged.floor_ML[:, label], len(known))[known]
    return float(METRICS[metric](judged.truth_ML[known, label], floor_M, np.ones((1, known.sum())))[0])


def _values(judged: Judged, metric: str, label: int, weights_BM: np.ndarray) -> np.ndarray:
    """(D, 1 + B): of every draw, of all images and then of every replicate."""
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is unknown; there are {', '.join(METRICS)}")
    known = ~np.isnan(judged.truth_ML[:, label])
    weights = np.concatenate([np.ones((1, known.sum()), weights_BM.dtype), weights_BM[:, known]])
    truth_M = judged.truth_ML[known, label]
    values = []
    for scores_ML in judged.scores_DML:
        scores_M = scores_ML[known, label]
        if np.isnan(scores_M).any():
            values.append(np.full(len(weights), np.nan))
        else:
            values.append(METRICS[metric](truth_M, scores_M, weights))
    return np.stack(values)


def _mean(values_DB: np.ndarray) -> np.ndarray:
    """Over the draws that gave a head."""
    defined = values_DB[~np.isnan(values_DB[:, 0])]
    return defined.mean(0) if len(defined) else np.full(values_DB.shape[1], np.nan)


def _more(judged: Judged, label: int, values_D: np.ndarray) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if len(values_D) > 1:
        defined = values_D[~np.isnan(values_D)]
        more["draws"] = [number(v) for v in values_D]
        more["spread"] = float(defined.std(ddof=1)) if len(defined) > 1 else None
    reasons = [draw[label]["reason"] for draw in judged.chosen if draw[label].get("reason")]
    if not reasons and np.isnan(values_D).all():
        reasons = ["the test images have no known label" if np.isnan(judged.truth_ML[:, label]).all()
                   else "the test images are all of one kind"]  # fmt: skip
    if reasons:
        more["reasons"] = list(dict.fromkeys(reasons))
    return more


def _macro(judged: Judged, metric: str, counted: list, n_boot: int, least: int) -> FoundScore:
    """Return the mean over findings, draw by draw."""
    images, patients = len(judged.truth_ML), len(np.unique(judged.patients))
    sign = signed(judged, metric, n_boot, avg="macro", least=f"{least}-patients", findings=len(counted))
    nan = float("nan")
    if not counted:
        reason = f"no finding that {least} patients have and {least} have not"
        return FoundScore(
            f"{metric}/macro", nan, nan, nan, images, sign, patients, None, nan, {"reasons": [reason]}
        )
    mean_B = np.mean([_mean(values_DB) for _, values_DB, _ in counted], axis=0)
    more: dict[str, Any] = {"findings": [name for name, _, _ in counted]}
    if len(judged.scores_DML) > 1:
        draws = np.mean([values_DB[:, 0] for _, values_DB, _ in counted], axis=0)
        more["draws"] = [number(v) for v in draws]  # null where a draw has not all of the findings
        defined = draws[~np.isnan(draws)]
        more["spread"] = float(defined.std(ddof=1)) if len(defined) > 1 else None
    return FoundScore(
        f"{metric}/macro", float(mean_B[0]), *percentile_interval(mean_B[1:]), images, sign, patients, None,
        float(np.mean([floor for _, _, floor in counted])), more,
    )  # fmt: skip


def _check_same(a: Judged, b: Judged) -> None:
    for what, x, y in (
        ("names", a.names, b.names),
        ("images", a.images, b.images),
        ("patients", a.patients.tolist(), b.patients.tolist()),
    ):
        if x != y:
            raise ValueError(
                f"the two have judged other {what}: compare encoders on the same test images, in order"
            )
    if not np.array_equal(a.truth_ML, b.truth_ML, equal_nan=True):
        raise ValueError("the two have judged by other labels: compare encoders on the same labels")
    undefined = [np.isnan(x.scores_DML).all(1) for x in (a, b)]
    if undefined[0].shape != undefined[1].shape or (undefined[0] != undefined[1]).any():
        raise ValueError("the two have learnt from other draws: compare encoders on the same training images")


def _shown(x: float) -> str:
    return "–" if x != x else f"{x:.3f}"
