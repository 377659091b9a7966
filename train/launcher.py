"""Start a training the way a user would: `accelerate launch -m MODULE ...`, from Python."""

from __future__ import annotations

import shlex
import subprocess
import sys


class StepFailed(RuntimeError):
    """A training ended with an error; the message has the command that shows it again."""


def accelerate_command(module: str, *arguments: str, processes: int = 1) -> list[str]:
    """The command line of `accelerate launch` for this machine: on CPU where there is no GPU."""
    import torch

    # Everything accelerate would otherwise guess is said, so that it has nothing to warn about.
    options = ["--num_processes", str(processes), "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if not torch.cuda.is_available():
        options.append("--cpu")
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", module, *arguments]


def launch(module: str, *, processes: int = 1, **options) -> None:
    """Run a training module to its end, its output on the screen; `options` become its command line (a list several
    words, True a flag).

    Raises StepFailed, or KeyboardInterrupt after the training has saved what it needs to go on.
    """
    words: list[str] = []
    for name, value in options.items():
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value) if isinstance(value, (list, tuple)) else [str(value)]
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
