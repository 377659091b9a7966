"""What a disk, a terminal or a kill can do to a program, for tests: it runs in a process forked off this one, which has
all imports already."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.forked import context

Run = Callable[[], int]


def content(path: Path) -> object:
    """What a command wrote, without times and locks."""
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.endswith(".lock"))
        return {f.relative_to(path).as_posix(): content(f) for f in files}
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl", ".csv", ".html", ".md"):
        lines = data.decode().splitlines()
        return [line.partition('"seconds"')[0] for line in lines]
    return data


def meets(fault: Callable[[], object], run: Run) -> tuple[int, str]:
    """Run a program in a forked process that `fault` is called in; returns its exit status and what it complained."""
    reading, writing = os.pipe()
    child = forked(run, writing, fault)
    os.close(writing)
    with open(reading, errors="replace") as pipe:
        said = pipe.read()
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), said


def forked(run: Run, complaints: int, fault: Callable[[], object] = lambda: None) -> int:
    """Start a program in a process of its own that has all imports already; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(complaints, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        fault()
        status = run()
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        # never back into pytest
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


def training(
    name: str, words: list[str], size: int | None = None, closed: bool = False
) -> tuple[BaseProcess, Connection]:
    """Start a training off the server of `tests.forked`, for autograd's threads do not outlive a fork of this process.
    Its files may not grow beyond `size`, nor may it write where not everybody may. -> it and where it complains."""
    reading, writing = context().Pipe(duplex=False)
    process = context().Process(target=_training, args=(name, words, writing, size, closed))
    process.start()
    writing.close()
    return process, reading


def _training(name: str, words: list[str], writing: Connection, size: int | None, closed: bool) -> None:
    from train.common.entry import entry

    main = import_module(name if name == "train.probe.scaling" else f"{name}.__main__").main
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.dup2(writing.fileno(), sys.stderr.fileno())
    if size is not None:
        no_more_than(size)()
    if closed:
        nobody()
    raise SystemExit(entry(main, name, words))


def no_more_than(size: int) -> Callable[[], object]:
    """A disk that is full: no file can grow beyond `size` bytes. What the process meets is EFBIG, not ENOSPC."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def nobody() -> None:
    """Somebody to whom the folder is read-only; root is let in everywhere."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)


def remove(path: Path) -> None:
    """Remove what a command wrote, and the parts that several processes wrote of it."""
    for file in [path, *path.parent.glob(f"{path.name}.part*")]:
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
