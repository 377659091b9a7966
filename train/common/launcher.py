"""Run the steps of a pipeline the way a user would: trainings through `accelerate launch -m MODULE ...`, the rest by
the `main` of its module."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from encoder.errors import UserError, did_you_mean, first_line
from train.common.config import ConfigError, read_yaml
from train.common.entry import INTERRUPTED, LAUNCHED_BY, STATUS_FILE, TERMINATED, Stopped, status_of_stop
from train.common.processes import cores, cpu_wanted, gpu_at_hand

LAUNCH_FILES = Path(__file__).parents[1] / "launch"
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StepFailed(UserError, RuntimeError):
    """A training or a step of a pipeline ended with an error, which it has told itself.

    `exit_status` is its own, so that a command ends as what it launched did.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def as_words(options: dict) -> list[str]:
    """Turn options into the words of a command line: a list becomes several words, True a flag."""
    words: list[str] = []
    for name, value in options.items():
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value) if isinstance(value, (list, tuple)) else [str(value)]
    return words


def call(main: Callable[[list[str]], int | None], *arguments, **options) -> None:
    """Run the `main` of a command in this process; `batch_size=8` becomes `--batch-size 8`. Raises StepFailed or
    Stopped."""
    words = [*map(str, arguments), *as_words({k.replace("_", "-"): v for k, v in options.items()})]
    status = main(words)
    if status in (INTERRUPTED, TERMINATED):
        raise Stopped(status)
    if status:
        raise StepFailed(f"{main.__module__} {shlex.join(words)} ended with status {status}")


def run_steps(work: Callable[[], None], again: str = "run the same command to resume") -> int:
    """Do `work`; returns the exit status, after saying what went wrong, or after an interrupt what to do `again`."""
    try:
        work()
    except StepFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"stopped; {again}", file=sys.stderr)
        return status_of_stop(stop)
    return 0


def launch_file(name: str | Path) -> Path:
    """Return the path of accelerate's config file, given the name of a shipped one (ddp, fsdp2, ...) or a
    path. Raises ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    known = sorted(p.stem for p in LAUNCH_FILES.glob("*.yaml"))
    if path.suffix not in {".yaml", ".yml", ".json"} and str(name) in known:
        return LAUNCH_FILES / f"{name}.yaml"
    raise ConfigError(
        f"no launch file {str(name)!r}{did_you_mean(str(name), known)}; shipped are {', '.join(known)}; or give the "
        "path of a file that `accelerate config` wrote"
    )


def check_launch_file(path: Path) -> None:
    """Raise ConfigError where accelerate cannot read a launch file; by itself it ends with a traceback."""
    from accelerate.commands.config.config_args import load_config_from_file

    todo = "`accelerate config` writes such a file, and `ddp` is a shipped one"
    # JSON is YAML, too
    if not isinstance(read_yaml(path), dict):
        raise ConfigError(f"{path} is not a launch file of accelerate: it holds no settings; {todo}")
    try:
        load_config_from_file(str(path))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a launch file of accelerate: {first_line(error)}; {todo}"
        ) from error


def accelerate_command(
    module: str, *arguments: str, processes: int | None = None, config_file: str | Path | None = None
) -> list[str]:
    """Return the command line of `accelerate launch` for this machine: on CPU if there is no GPU or none is
    wanted."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    if config_file is not None:
        found = launch_file(config_file)
        check_launch_file(found)
        command += ["--config_file", str(found)]
        command += [] if processes is None else ["--num_processes", str(processes)]
        return [*command, "-m", module, *arguments]
    # Everything accelerate would otherwise guess is said, so that it has nothing to warn about.
    processes = processes or 1
    command += ["--num_processes", str(processes), "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if cpu_wanted() or not gpu_at_hand():
        threads = max(1, cores() // processes)
        command += ["--cpu", "--num_cpu_threads_per_process", str(threads)]
    return [*command, "-m", module, *arguments]


def small_model_processes() -> int:
    """Return how many processes train a small language model fastest: on a CPU two of one thread beat one of
    two by half."""
    return 1 if gpu_at_hand() else min(2, cores())


def launch(
    module: str,
    *words: str,
    processes: int | None = None,
    config_file: str | Path | None = None,
    **options,
) -> None:
    """Run a training module to its end, its output on the screen; `words` and `options` are its command line.

    Raises StepFailed with the training's own exit status, or Stopped, a KeyboardInterrupt, after the training has saved
    what it needs to be resumed.
    """
    words = (*words, *as_words(options))
    command = accelerate_command(module, *words, processes=processes, config_file=config_file)
    print(f"\nruns: accelerate launch -m {module} {shlex.join(words)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="cxr-") as folder:
        status_file = Path(folder) / "status"
        # A file of the user's called train.py, in the current folder, is not what is meant by train.
        env = {
            **os.environ, STATUS_FILE: str(status_file), "PYTHONSAFEPATH": "1", LAUNCHED_BY: str(os.getpid()),
        }  # fmt: skip
        status, stopped_by = _wait_for(command, env)
        if status_file.is_file() and status_file.read_text():
            status = int(status_file.read_text())
    if stopped_by:
        raise Stopped(INTERRUPTED if stopped_by == signal.SIGINT else TERMINATED)
    if status:
        raise StepFailed(f"{module} ended with status {status}, as it says above", status)


def _wait_for(command: list[str], env: dict[str, str]) -> tuple[int, int]:
    """Run a command to its end. -> (its exit status, the first signal that was to stop it, 0 if none)."""
    # accelerate leaves at a signal while what it launched still saves. So it hears of none (a session of its own),
    # and what it launched is told from here; a second Ctrl-C ends that at once.
    process = subprocess.Popen(command, start_new_session=True, env=env)
    stopped_by = 0

    def tell(number, frame):
        nonlocal stopped_by
        stopped_by = stopped_by or number
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(process.pid)
            for child in launcher.children(recursive=True) or [launcher]:
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    before = {number: signal.signal(number, tell) for number in STOPPING}
    try:
        return process.wait(), stopped_by
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
