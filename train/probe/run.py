"""What encoders know of X-rays: frozen features, judged on labelled images, several encoders side by side.

    cxr probe --data nih:/data/nih --encoders runs/encoder/encoder microsoft/rad-dino random:microsoft/rad-dino pixels \
        --out probe/
    accelerate launch -m train.probe ...                     the same in several processes

The first encoder is compared with each of the others on the same images. Features are computed once and kept
(encoder/features.py), results too, so that the same command resumes where it stopped, and another encoder
costs its own time alone. OUT holds probe.json, probe.html and parts/ (answers of every image, for your own
comparisons).
"""

from __future__ import annotations

import shlex
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from encoder.files import write_json
from train.common.config import ConfigError
from train.probe.config import ON_LABELS, SEGMENTED, TASKS, Probe
from train.probe.judge import Judge, told

PATIENCE = timedelta(days=7)  # heads are learnt by the first process alone


def run(config: Probe) -> int:
    """Judge every encoder, or resume, and write probe.json and probe.html; returns the exit status.

    Collective: every process must call this. Raises ConfigError for data, encoders or tasks that cannot be used.
    """
    from encoder.frozen import encoder_of
    from eval.probes.summary import scores_and_gaps, tables
    from train.common.entry import results as shown_on
    from train.common.processes import process_state, use_cores
    from train.datasets.labelled import load, without_shared_patients

    state = process_state(PATIENCE)
    use_cores(config.threads, state.num_processes)
    out = Path(config.out)
    try:
        found = load(config.data)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--data {config.data}: {error}") from None
    notes, missed = leaks(config, found), []
    found, left_out = without_shared_patients(found)
    if left_out:
        missed.append(f"{left_out} images (their patients are also in validate or test)")
        state.print(f"{left_out} images are left out, for their patients are also in validate or test")
    tasks, impossible = tasks_of(config, found)
    for task, why in impossible.items():
        missed.append(f"{task} ({why})")
        state.print(f"{task} is left out: {why}", flush=True)
    for line in notes:
        state.print(line, flush=True)
    # all of them before the first is put to work: a name that is wrong is not found out after hours
    encoders = {name: encoder_of(name, config.size or None, config.attention) for name in config.encoders}
    first, less = config.encoders[0], f"{config.encoders[0]} less"
    rows: dict[str, dict[str, list]] = {task: {"scores": [], less: []} for task in tasks}
    results_of_first: dict[str, Any] = {}
    pictures: dict[str, list[dict]] = {}
    for name in config.encoders:
        judge, results = Judge(config, found, encoders.pop(name), tasks, out, state), {}
        for task in tasks:
            try:
                results[task] = judge(task)
            except ValueError as error:
                missed.append(f"{task} of {name} ({error})")
                state.print(f"{name}: no {task}: {error}", flush=True)
        results_of_first = results if name == first else results_of_first
        if state.is_main_process:
            for task, heads in results.items():
                scores, gaps, without = scores_and_gaps(
                    task, name, heads, first, results_of_first.get(task, {}),
                    replicates=config.bootstrap, seed=config.seed,
                )  # fmt: skip
                rows[task]["scores"] += scores
                rows[task][less] += gaps
                missed += without
            if set(tasks) & set(SEGMENTED):
                pictures[name] = judge.pictures(results)
            write(config, found, rows, notes, missed, pictures, out)  # after each, for it may be the last
        state.wait_for_everyone()
    if state.is_main_process:
        print(tables(rows, first), file=shown_on())
        print(f"wrote {out / 'probe.json'} and {out / 'probe.html'}")
    return 0


def write(
    config: Probe, found, rows: dict, notes: list[str], missed: list[str], pictures: dict, out: Path
) -> None:
    """Write probe.json and probe.html of what is known so far; `missed` says what was left out, and why."""
    from eval.probes.page import write_page

    report = {
        "schema": 1, "data": config.data, "kind": found.kind, "notes": [*notes, *missed], "left_out": missed,
        "encoders": config.encoders,
        "images": {split: len(found.part(split)) for split in ("train", "validate", "test")},
        "date": time.strftime("%Y-%m-%d"), "versions": versions(), "tasks": rows,
    }  # fmt: skip
    write_json(out / "probe.json", report)
    words = (
        f"--{name} {' '.join(map(shlex.quote, [str(v) for v in value]))}"
        for name, value in (("data", [config.data]), ("encoders", config.encoders), ("out", [config.out]))
    )
    write_page(out / "probe.html", report, pictures, f"cxr probe {' '.join(words)}")


def tasks_of(config: Probe, found) -> tuple[list[str], dict[str, str]]:
    """Return the tasks that are judged, and those of all that the data lacks something for, with what it lacks. Raises
    ConfigError for labels that the data has not, for a task that was asked for in vain, and where none is left."""
    if config.labels and (missing := sorted(set(config.labels) - set(found.names))):
        raise ConfigError(f"no label is called {', '.join(missing)}; there are {', '.join(found.names)}")
    tasks, impossible = [], {}
    for task in dict.fromkeys([*(config.tasks or TASKS), *config.also]):
        if why := lacking(task, found):
            if config.tasks:
                raise ConfigError(f"task {task}: {why}")
            impossible[task] = why
        else:
            tasks.append(task)
    if not tasks:
        why = "; ".join(f"{task}: {lack}" for task, lack in impossible.items())
        raise ConfigError(f"there is nothing that could be learnt of these images ({why})")
    return tasks, impossible


def lacking(task: str, found) -> str:
    """Say what the data lacks for the task; "" if nothing."""
    splits = {split: found.part(split) for split in ("train", "validate", "test")}
    if empty := [split for split, rows in splits.items() if not len(rows)]:
        raise ConfigError(f"no image is of split {' or '.join(empty)}: a probe learns, chooses and is judged")
    if task in ON_LABELS:
        known = ~np.isnan(found.labels_NL).all(1) if found.names else np.zeros(len(found.paths), bool)
        without = [split for split, rows in splits.items() if not known[rows].any()]
        return f"no image of {' or '.join(without)} has a label" if without else ""
    if task == "metadata":
        return "" if any(told(found)) else "neither age, weight, BMI nor sex is known in every split"
    masked = found.masked()
    without = [split for split, rows in splits.items() if not len(np.intersect1d(masked, rows))]
    every = f" of all of {', '.join(found.structures)}" if len(found.structures) > 1 else ""
    return f"no image of {' or '.join(without)} has a mask{every}" if without else ""


def leaks(config: Probe, found) -> list[str]:
    """Say what is known of images that an encoder has seen before."""
    from train.probe.leaks import LeakError, known_leaks, shared_by_name, summary

    lines = []
    for name in config.encoders:
        known = name.rstrip("/").rpartition("/")[2].lower()
        if known.startswith("rad-dino") and not name.startswith("random:"):
            lines.append(known_leaks("rad-dino", found.kind))
    if config.pretrained_on:
        try:
            lines.append(summary(found, shared_by_name(found, config.pretrained_on)))
        except LeakError as error:
            raise ConfigError(f"--pretrained_on: {error}") from None
    return list(dict.fromkeys(lines))


def versions() -> dict[str, str]:
    """Return the versions of the libraries that can change a result."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")}
