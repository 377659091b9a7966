"""What encoders know of X-rays: frozen features, judged on labelled images, several encoders side by side.

    cxr probe --data nih:/data/nih --encoders runs/encoder/encoder microsoft/rad-dino random:microsoft/rad-dino pixels \
        --out probe/
    accelerate launch -m train.probe ...                     the same in several processes

The first encoder is compared with each of the others on the same images. Features are computed once and kept
(encoder/features.py), results too, so that the same command goes on where it stopped, and another encoder costs its own
time alone. OUT holds probe.json, probe.html and parts/ (answers of every image, for comparisons of one's own).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from train.config import ConfigError, load_config
from train.judge import ASKED_FOR, SEGMENTED, TASKS, Judge, Probe


def main(argv: list[str] | None = None) -> int:
    config = load_config(Probe, "probe", argv)
    every = (*TASKS, *ASKED_FOR)
    unknown = sorted(set(config.tasks) - set(every))
    if unknown:
        raise ConfigError(f"no task is called {', '.join(unknown)}; there are {', '.join(every)}")
    if len(set(config.encoders)) < len(config.encoders):
        raise ConfigError("an encoder is named twice")
    from train.checkpoints import alone

    with alone(Path(config.out)):
        return run(config)


def run(config: Probe) -> int:
    from encoder.frozen import encoder_of
    from eval.probes.page import write_page
    from train.checkpoints import write_json
    from train.datasets.labelled import load
    from train.processes import process_state, use_cores

    state = process_state()
    use_cores(config.threads, state.num_processes)
    out = Path(config.out)
    try:
        found = load(config.data)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--data {config.data}: {error}") from None
    said = leaks(config, found)
    for line in said:
        state.print(line)
    tasks = [t for t in (config.tasks or TASKS) if possible(t, found, asked=bool(config.tasks))]
    results: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    pictures: dict[str, list[dict]] = {}
    for name in config.encoders:
        encoder = encoder_of(name, config.size or None, config.attention)
        judge = Judge(config, found, encoder, out, state)
        for task in tasks:
            if name == "pixels" and task in ("upernet", "vitdet"):
                continue
            results[task][name] = judge(task)
        if state.is_main_process and set(tasks) & set(SEGMENTED):
            pictures[name] = judge.pictures(
                {task: found[name] for task, found in results.items() if name in found}
            )
    if state.is_main_process:
        report = summary(config, found, results, said)
        write_json(out / "probe.json", report)
        write_page(out / "probe.html", report, pictures)
        print(tables(report))
        print(f"wrote {out / 'probe.json'} and {out / 'probe.html'}")
    state.wait_for_everyone()
    return 0


def possible(task: str, found, asked: bool) -> bool:
    """Whether the data has what the task needs. Raises ConfigError where it was asked for."""
    import numpy as np

    parts = [found.part(split) for split in ("train", "validate", "test")]
    lacks = [s for s, rows in zip(("train", "validate", "test"), parts, strict=True) if not len(rows)]
    masked = found.masked()
    if lacks:
        raise ConfigError(f"no image is of split {' or '.join(lacks)}: a probe learns, chooses and is judged")
    has = {
        "metadata": bool(found.numbers) or bool(np.isin(found.sex, ("F", "M")).any()),
        **dict.fromkeys(SEGMENTED, all(len(np.intersect1d(masked, rows)) for rows in parts)),
    }.get(task, bool(found.names))
    if asked and not has:
        raise ConfigError(f"task {task}: the data has nothing that it could be learnt from in every split")
    return has


def leaks(config: Probe, found) -> list[str]:
    """What is known of images that an encoder has seen before, in words."""
    from train.datasets.leaks import LeakError, known_leaks, shared_by_name, summary

    lines = []
    for name in config.encoders:
        known = name.rstrip("/").rpartition("/")[2].lower()
        if known.startswith("rad-dino"):
            lines.append(known_leaks("rad-dino", found.kind))
    if config.pretrained_on:
        try:
            lines.append(summary(found, shared_by_name(found, config.pretrained_on)))
        except LeakError as error:
            raise ConfigError(f"--pretrained_on: {error}") from None
    return lines


METRICS = {  # task -> what is measured of its answers
    **dict.fromkeys(("classification", "attentive", "knn", "few-shot"), ("auprc", "auroc")),
    "permuted": ("auroc",), "retrieval": ("precision",),
}  # fmt: skip


def summary(config: Probe, found, results: dict, said: list[str]) -> dict:
    """probe.json: every number with its interval, and the first encoder less each of the others."""
    from eval.probes.overlap import compare
    from eval.probes.results import compared, measured

    first = config.encoders[0]
    report: dict[str, Any] = {
        "schema": 1, "data": config.data, "kind": found.kind, "notes": said, "encoders": config.encoders,
        "images": {split: int((found.splits == split).sum()) for split in ("train", "validate", "test")},
        "date": time.strftime("%Y-%m-%d"), "versions": versions(), "tasks": {},
    }  # fmt: skip
    for task, by_encoder in results.items():
        rows, gaps = [], []
        for encoder, outcomes in by_encoder.items():
            for name, judged in outcomes.items():
                if task in SEGMENTED:
                    for structure, scores in structures(judged.scores(config.replicates, config.seed)):
                        rows += [
                            {
                                "encoder": encoder,
                                "head": name,
                                "structure": structure,
                                "metric": metric,
                                **s.to_json(),
                            }
                            for metric, s in scores.items()
                        ]
                    ours = by_encoder.get(first, {})
                    if encoder != first and ours:
                        mine = ours.get(name) or next(iter(ours.values()))
                        less = compare(mine, judged, seed=config.seed)["structures"]
                        for structure, found_ in structures(less):
                            gaps += [
                                {
                                    "encoder": encoder,
                                    "head": name,
                                    "structure": structure,
                                    "metric": metric,
                                    **gap,
                                }
                                for metric, gap in found_.items()
                            ]
                    continue
                metrics = METRICS.get(task) or (("auroc", "auprc") if name == "sex" else ("r2", "mae"))
                for metric in metrics:
                    rows += [
                        {"encoder": encoder, "head": name, "metric": metric, **row.to_json()}
                        for row in measured(judged, metric, n_boot=config.replicates, seed=config.seed)
                    ]
                    if encoder != first and name in by_encoder.get(first, {}):
                        gaps += [
                            {"encoder": encoder, "head": name, "metric": metric, **row.to_json()}
                            for row in compared(by_encoder[first][name], judged, metric, seed=config.seed)
                        ]
        report["tasks"][task] = {"scores": rows, f"{first} less": gaps}
    return report


def structures(found: dict) -> list[tuple[str, Any]]:
    """Without the mean of one."""
    return [(name, scores) for name, scores in found.items() if name != "mean" or len(found) > 2]


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")}


def tables(report: dict) -> str:
    """The report as text: of findings the means, of structures Dice."""
    lines = []
    for task, found in report["tasks"].items():
        lines.append(f"\n{task}")
        for row in found["scores"]:
            what = row.get("structure") or row.get("name", "").partition("/")[2]
            if task in SEGMENTED and row["metric"] not in ("dice", "iou"):
                continue
            low, high = row["interval"]
            value = " -" if row["value"] is None else f"{row['value']:.3f} [{_three(low)}, {_three(high)}]"
            lines.append(
                f"  {row['encoder']:40} {row['head']:24} {row['metric']:9} {what:24} {value}  n {row['n']}"
            )
    return "\n".join(lines)


def _three(x: float | None) -> str:
    return "-" if x is None else f"{x:.3f}"


if __name__ == "__main__":
    from train.trainer import entry

    sys.exit(entry(main))
