"""Trainings and commands in processes of their own, for tests: killed as a power cut would do it, or two that share a
run.

They are forked off one server that has imported everything, so that a test does not pay for the imports of each.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import multiprocessing.context
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

# Seconds after which a run counts as one that hangs.
PATIENCE = 240
# What the server imports before it forks, where the tests that were collected have not imported it.
PRELOAD = [
    "train.pretrain.loop",
    "train.finetune.loop",
    "train.probe.run",
    "encoder.embed",
    "train.datasets.archive",
]


class Ended(NamedTuple):
    """How processes ended: exit codes, and what they wrote, by rank."""

    codes: list[int]
    said: list[str]
    complained: list[str]


def killed_run(argv: list[str], where: str, after: int) -> int:
    """Run train.pretrain in a process of its own and kill -9 it at the `after`-th `update` of the teacher, or while it
    writes the `after`-th `file` of a checkpoint. -> its exit code: -9, or that of a run that ended before."""
    process = _fork(_dying, argv, where, after)
    _wait([process])
    return process.exitcode


def two_processes(argv: list[str], folder: Path, change: Callable[[], None] | None = None) -> Ended:
    """Run train.pretrain in two processes that share it; see `run_in_processes`."""
    return run_in_processes("train.pretrain", argv, 2, folder, change)


def run_in_processes(
    training: str, argv: list[str], count: int, folder: Path, change: Callable[[], None] | None = None
) -> Ended:
    """Run a training in processes that share it, as `accelerate launch --num_processes COUNT --cpu` starts them.

    What they write goes to files in `folder`. `change` is called in each before its run; a function of a module.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    environments = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    processes = [_fork(_sharing, training, argv, folder, env, change) for env in environments]
    _wait(processes)
    said, complained = (
        [(folder / f"{name}-{rank}").read_text() for rank in range(count)] for name in ("stdout", "stderr")
    )
    return Ended([process.exitcode for process in processes], said, complained)


class ForkedModule:
    """In the place of subprocess.Popen: `python -m MODULE WORDS` by a fork of this process, which may have imported
    what it wants. accelerate's launcher is started for real in tests/cxr/test_names.py."""

    def __init__(self, command: list[str], *, env: dict[str, str], start_new_session: bool) -> None:
        assert command[:2] == [sys.executable, "-m"] and start_new_session
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setsid()
            os.environ.clear()
            os.environ.update(env)
            sys.argv = command[2:]
            runpy.run_module(command[2], run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else stop.code is not None
        finally:
            # never back into pytest
            os._exit(status)

    def wait(self) -> int:
        """Wait for its end; returns its exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def context() -> multiprocessing.context.ForkServerContext:
    """Return the context of multiprocessing whose processes come from the server."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOAD)
    return found


def begin_server() -> None:
    """Fork the server off this process, which has imported what its tests need and has run none of them.

    A server that multiprocessing starts would import all that again, for a quarter of a minute. It is told of ours
    by private names, which other versions of Python may not have: there it starts its own.
    """
    if not hasattr(os, "fork") or sys.version_info >= (3, 14):
        return
    listener = socket.socket(socket.AF_UNIX)
    address = connection.arbitrary_address("AF_UNIX")
    listener.bind(address)
    listener.listen()
    # Closed when this process ends, which ends the server.
    alive_r, alive_w = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            os.close(alive_w)
            _serve(listener, alive_r)
        finally:
            os._exit(0)
    listener.close()
    os.close(alive_r)
    server = forkserver._forkserver
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = (
        address,
        alive_w,
        process,
    )


def _serve(listener: socket.socket, alive_r: int) -> None:
    # pytest's are files of its own
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    # no page is copied only because its objects were counted
    gc.freeze()
    # what has not been imported yet is imported when the first process is wanted
    ready, _, _ = select.select([listener, alive_r], [], [])
    if listener in ready:
        forkserver.main(listener.detach(), alive_r, PRELOAD)


def together(work: Callable[..., None], count: int, *arguments) -> None:
    """Run `work`, a function of a module, in processes that share something, with its number and `arguments`. Raises
    AssertionError if one fails."""
    processes = [_fork(work, number, *arguments) for number in range(count)]
    _wait(processes)
    assert [process.exitcode for process in processes] == [0] * count


def _fork(work: Callable[..., None], *args) -> BaseProcess:
    process = context().Process(target=work, args=args)
    process.start()
    return process


def _wait(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(PATIENCE)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    if hanging:
        raise TimeoutError("the run hangs")


def _sharing(
    training: str,
    argv: list[str],
    folder: Path,
    environment: dict[str, str],
    change: Callable[[], None] | None,
) -> None:
    from train.common.entry import entry

    os.environ.update(environment)
    for name in ("stdout", "stderr"):
        file = (folder / f"{name}-{environment['RANK']}").open("w")
        os.dup2(file.fileno(), getattr(sys, name).fileno())
    if change is not None:
        change()
    main = importlib.import_module(f"{training}.__main__").main
    raise SystemExit(entry(main, training, argv))


def _dying(argv: list[str], where: str, after: int) -> None:
    from train.common import checkpoints
    from train.pretrain import loop
    from train.pretrain.__main__ import main

    count = 0

    def dying(function, module, name):
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == after:
                # Half of the file is there.
                if where == "file":
                    args[1].write_bytes(b"\0" * 100)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(module, name, counted)

    if where == "file":
        dying(checkpoints.save_file, checkpoints, "save_file")
    else:
        dying(loop.update_teacher, loop, "update_teacher")
    raise SystemExit(main(argv))
