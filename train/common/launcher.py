"""Run the steps of a pipeline the way a user would: trainings through `accelerate launch -m MODULE ...`, the rest by
the `main` of its module."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import psutil

from encoder.errors import UserError
from train.common.processes import cores, cpu_wanted

INTERRUPTED = 130  # exit status of what was stopped by SIGINT or SIGTERM and can go on
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StepFailed(UserError, RuntimeError):
    """A training or a step of a pipeline ended with an error, which it has told itself.

    `exit_status` is its own, so that a command ends as what it launched did.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


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
    """The command line of `accelerate launch` for this machine: on CPU where there is no GPU, or none is wanted."""
    import torch

    # Everything accelerate would otherwise guess is said, so that it has nothing to warn about.
    options = ["--num_processes", str(processes), "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--quiet"]
    if cpu_wanted() or not torch.cuda.is_available():
        threads = max(1, cores() // processes)
        options += ["--cpu", "--num_cpu_threads_per_process", str(threads)]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", module, *arguments]


def small_model_processes() -> int:
    """How many processes train a small language model fastest: on a CPU two of one thread beat one of two by half."""
    import torch

    return 1 if torch.cuda.is_available() else min(2, cores())


def launch(module: str, *words: str, processes: int = 1, **options) -> None:
    """Run a training module to its end, its output on the screen; `words` and `options` are its command line.

    Raises StepFailed, or KeyboardInterrupt after the training has saved what it needs to go on.
    """
    words = (*words, *as_words(options))
    command = accelerate_command(module, *words, processes=processes)
    print(f"\n$ accelerate launch -m {module} {shlex.join(words)}", flush=True)
    # accelerate leaves at a signal while what it launched still saves. So it hears of none (a session of its own),
    # and what it launched is told from here; a second Ctrl-C ends that at once.
    process = subprocess.Popen(command, start_new_session=True)
    interrupted = False

    def tell(number, frame):
        nonlocal interrupted
        interrupted = True
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(process.pid)
            for child in launcher.children(recursive=True) or [launcher]:
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    before = {number: signal.signal(number, tell) for number in STOPPING}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted:
        raise KeyboardInterrupt
    if status:
        raise StepFailed(f"this step ended with status {status}; to see it again:\n  {shlex.join(command)}")
