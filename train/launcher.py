"""Run the steps of a pipeline the way a user would: trainings through `accelerate launch -m MODULE ...`, the rest by
the `main` of its module."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable

INTERRUPTED = 130  # exit status of what was stopped by SIGINT or SIGTERM and can go on


class StepFailed(RuntimeError):
    """A training ended with an error; the message has the command that shows it again."""


def as_words(options: dict) -> list[str]:
    """Options -> command line: a list becomes several words, True a flag."""
    words: list[str] = []
    for name, value in options.items():
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value) if isinstance(value, (list, tuple)) else [str(value)]
    return words


def call(main: Callable[[list[str]], int | None], *arguments, **options) -> None:
    """Run the `main` of a command in this process; `batch_size=8` becomes `--batch-size 8`. Raises StepFailed or
    KeyboardInterrupt."""
    words = [*map(str, arguments), *as_words({k.replace("_", "-"): v for k, v in options.items()})]
    status = main(words)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise StepFailed(f"{main.__module__} {shlex.join(words)} ended with status {status}")


def run_steps(work: Callable[[], None], again: str = "the same command goes on from here") -> int:
    """Do `work`; returns the exit status, after saying what went wrong, or after an interrupt what to do `again`."""
    try:
        work()
    except StepFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; {again}", file=sys.stderr)
        return INTERRUPTED
    return 0


def accelerate_command(module: str, *arguments: str, processes: int = 1) -> list[str]:
    """The command line of `accelerate launch` for this machine: on CPU where there is no GPU."""
    import torch

    # Everything accelerate would otherwise guess is said, so that it has nothing to warn about.
    options = ["--num_processes", str(processes), "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if not torch.cuda.is_available():
        options.append("--cpu")
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", module, *arguments]


def launch(module: str, *words: str, processes: int = 1, **options) -> None:
    """Run a training module to its end, its output on the screen; `words` and `options` are its command line.

    Raises StepFailed, or KeyboardInterrupt after the training has saved what it needs to go on.
    """
    words = (*words, *as_words(options))
    command = accelerate_command(module, *words, processes=processes)
    print(f"\n$ accelerate launch -m {module} {shlex.join(words)}", flush=True)
    process = subprocess.Popen(command)
    interrupted = False
    while True:
        try:
            status = process.wait()
            break
        except (
            KeyboardInterrupt
        ):  # Ctrl-C reaches the training as well, which now saves; a second one ends it at once
            if interrupted:
                process.kill()
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    if status:
        raise StepFailed(f"this step ended with status {status}; to see it again:\n  {shlex.join(command)}")
