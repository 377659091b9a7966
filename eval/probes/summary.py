"""The answers of several encoders side by side: numbers with intervals, and the first encoder less each of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eval.probes.judged import Judged
from eval.probes.overlap import Segmentation, compare
from eval.probes.results import compared, measured
from eval.resampling import holm

Heads = Mapping[str, Judged | Segmentation]  # name of a head -> what it answered

METRICS = {  # task -> what is measured of its answers; of numbers r2 and mae, of the sex as of a finding
    **dict.fromkeys(("classification", "attentive", "knn", "few-shot"), ("auprc", "auroc")),
    "permuted": ("auroc",), "retrieval": ("precision",),
}  # fmt: skip
SHOWN = ("auprc", "auroc", "r2", "mae", "precision", "dice", "iou")  # in tables of text


def scores_and_gaps(
    task: str, encoder: str, heads: Heads, first: str, others: Heads, *, replicates: int = 1000, seed: int = 0
) -> tuple[list[dict], list[dict], list[str]]:
    """Return, for one encoder, rows of numbers, rows of differences between `first` (whose heads are
    `others`) and it, and notes on differences that cannot be computed."""
    rows, gaps, notes = [], [], []
    for head, judged in heads.items():
        about = {"encoder": encoder, "head": head}
        rows += [about | row for row in _scores(task, head, judged, replicates, seed)]
        ours = others.get(head)
        if ours is None and isinstance(judged, Segmentation):
            ours = next(iter(others.values()), None)  # a floor has heads of its own
        if encoder == first or ours is None:
            continue
        try:
            gaps += [about | row for row in _gaps(task, head, ours, judged, replicates, seed)]
        except ValueError as error:
            notes.append(f"{task}: {first} is not compared with {encoder}, {head}: {error}")
    return rows, gaps, notes


def metrics_of(task: str, head: str) -> tuple[str, ...]:
    """Return the metrics of a task, best known first; those of metadata depend on the head: sex, or a
    number."""
    return METRICS.get(task) or (("auroc", "auprc") if head == "sex" else ("r2", "mae"))


def _scores(task: str, head: str, judged, replicates: int, seed: int) -> Iterator[dict]:
    if isinstance(judged, Segmentation):
        for structure, scores in _structures(judged.scores(replicates, seed)):
            for metric, score in scores.items():
                yield {"structure": structure, "metric": metric, **score.to_json()}
        return
    for metric in metrics_of(task, head):
        for row in measured(judged, metric, n_boot=replicates, seed=seed):
            yield {"metric": metric, **row.to_json()}


def _gaps(task: str, head: str, ours, theirs, replicates: int, seed: int) -> Iterator[dict]:
    if isinstance(theirs, Segmentation):
        less = _structures(compare(ours, theirs, n_boot=replicates, seed=seed)["structures"])
        adjusted: dict[str, dict[str, float]] = {}
        for metric in less[0][1]:
            tested = {
                s: found[metric]["p"] for s, found in less if s != "mean" and found[metric]["p"] is not None
            }
            adjusted[metric] = holm(tested)
        for structure, found in less:
            for metric, gap in found.items():
                yield {
                    "structure": structure, "metric": metric, **gap,
                    "p_holm": adjusted[metric].get(structure, gap["p"]),
                }  # fmt: skip
        return
    for metric in metrics_of(task, head):
        for row in compared(ours, theirs, metric, seed=seed):
            yield {"metric": metric, **row.to_json()}


def _structures(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Without the mean of one."""
    return [(name, scores) for name, scores in found.items() if name != "mean" or len(found) > 2]


def tables(tasks: Mapping[str, Mapping[str, list[dict]]], first: str) -> str:
    """Return the numbers as text, then differences of the means, if there are any."""
    lines = []
    for task, found in tasks.items():
        lines.append(f"\n{task}")
        for row in found["scores"]:
            if row["metric"] in SHOWN:
                lines.append(f"  {_about(row)} {_shown(row['value'], row['interval'], '.3f')}  n {row['n']}")
        gaps = next((rows for key, rows in found.items() if key != "scores"), [])
        means = [r for r in gaps if what(r) in ("macro", "mean")] or gaps
        for row in means:
            if row["metric"] in SHOWN:
                difference = row.get("difference", row["value"])
                lines.append(f"  {first} less {_about(row)} {_shown(difference, row['interval'], '+.3f')}")
    return "\n".join(lines)


def what(row: Mapping[str, Any]) -> str:
    """Return the finding, number or structure that a row is about."""
    return row.get("structure") or row.get("name", "").partition("/")[2]


def _about(row: Mapping[str, Any]) -> str:
    return f"{row['encoder']:30} {row['head']:24} {row['metric']:9} {what(row):24}"


def _shown(value: float | None, interval: list, digits: str) -> str:
    if value is None:
        return "-"
    low, high = ("-" if x is None else format(x, digits) for x in interval)
    return f"{value:{digits}} [{low}, {high}]"
