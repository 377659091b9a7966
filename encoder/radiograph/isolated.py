"""Decoders in C and C++ run in processes of their own, so that one that breaks down costs one film.

gdcm ends its process on some damaged streams. `ask` sends a frame to a worker (worker.py) over a socket and takes the
samples back. A worker is started when it is first needed, and kept; after a breakdown the next film gets a new one. A
process that was forked starts its own.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from encoder.radiograph.codestream import Stream
from encoder.radiograph.types import InputError
from encoder.wire import receive_into, receive_json, send

# What a decoder may take: seconds of computing, ten times what the slowest takes for a sound film; and bytes.
SECONDS, SECONDS_A_MEGAPIXEL = 10.0, 1.0
MEMORY, MEMORY_A_SAMPLE = 512 << 20, 48
# A busy machine may give a worker a quarter of a core. Longer than that, it is asleep.
PATIENCE = 4.0
# Seconds until a new worker must have imported its libraries.
START = 120.0
WORKER = Path(__file__).with_name("worker.py")
# Whether this system has what this needs. Windows does not, and decodes in the process.
POSSIBLE = os.name == "posix"
# Signals by which decoders do not end themselves.
FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
REMEDY = "get the file anew from its source, or have it exported uncompressed"


# glibc keeps what a film took for the next one: to be given fresh pages for each costs a fifth of its time.
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "67108864",
}


class Allowed(NamedTuple):
    """Limit what a decoder may take for one film."""

    # of computing, not by the clock
    seconds: float
    # bytes, beyond what the worker holds already
    memory: int


def allowed(samples: int) -> Allowed:
    """Return what decoding so many samples may take."""
    return Allowed(SECONDS + SECONDS_A_MEGAPIXEL * samples / 1e6, MEMORY + MEMORY_A_SAMPLE * samples)


class Answer(NamedTuple):
    """Hold what a decoder in its own process returned."""

    samples: np.ndarray  # integers (H, W), or (H, W, 3)
    # to standard error, by the library
    said: str


def ask(frame: bytes, syntax: str, plugin: str, stream: Stream, name: str) -> Answer:
    """Have a worker decode a frame.

    Args:
        syntax: by which the library is asked to decode.
        plugin: the library, by pydicom's name.
        name: of the coding, for messages.

    Raises:
        InputError: `decoder_crashed`, `decoder_timeout`.
        ValueError: the decoder refused it; the message is the codec's.
    """
    limit = allowed(stream.rows * stream.columns * stream.components)
    question = {"syntax": syntax, "plugin": plugin, "stream": stream, **limit._asdict()}
    with _mine.slots:
        worker = _mine.take()
        try:
            answer, samples = worker.ask(question, frame, stream, limit.seconds * PATIENCE)
        except TimeoutError:
            worker.end(0)
            _late(name, limit.seconds)
        except (OSError, EOFError):
            _dead(name, limit.seconds, worker.end())
        except ValueError as error:
            worker.end(0)
            message = f"the decoder gave {error} ({name}); the compressed image is damaged: {REMEDY}"
            raise InputError("decoder_crashed", message) from None
        # an interrupt leaves half an answer in the socket
        except BaseException:
            worker.end(0)
            raise
        _mine.give_back(worker)
    if answer.get("error") == "MemoryError":
        message = f"the decoder asks for more than {limit.memory >> 20} MB ({name}); the compressed image is damaged"
        raise InputError("decoder_crashed", f"{message}: {REMEDY}")
    if samples is None:
        raise ValueError(str(answer.get("message") or answer.get("error")))
    return Answer(samples, str(answer.get("said")))


def _late(name: str, seconds: float) -> NoReturn:
    message = f"the decoder had not finished after {seconds:.0f} s ({name}); the compressed image is damaged: {REMEDY}"
    raise InputError("decoder_timeout", message)


def _dead(name: str, seconds: float, status: int) -> NoReturn:
    """Say how a worker ended. Raises InputError."""
    how = signal.Signals(-status).name if -status in set(signal.Signals) else f"exit status {status}"
    if how == "SIGPROF":
        _late(name, seconds)
    if how in FROM_OUTSIDE:
        # such as the kernel's, where memory is short
        message = f"the decoder's process was ended from outside ({name}; {how}), perhaps for want of memory; try again"
    else:
        message = f"the decoder broke down ({name}; {how}); the compressed image is damaged: {REMEDY}"
    raise InputError("decoder_crashed", message)


class Worker:
    """A decoding process and the socket to it."""

    def __init__(self) -> None:
        """Start it, and wait until it is ready. Raises InputError if it cannot be started."""
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        paths = [path for path in sys.path if os.path.isabs(path)]
        paths = paths if root in paths else [root, *paths]
        command = [sys.executable, "-I", "-S", *["-B"] * sys.dont_write_bytecode, str(WORKER), *paths]
        # numpy's threads take address space, which is limited
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            **KEPT,
        }
        null = subprocess.DEVNULL
        try:
            # Of a session of its own: Ctrl-C is for the parent, which may want to finish its batch.
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=null, stderr=null, env=env, start_new_session=True
            )
        except OSError as error:
            ours.close()
            raise InputError("decoder_crashed", _no_start(error.strerror or type(error).__name__)) from None
        finally:
            theirs.close()
        self.socket = ours
        try:
            send(ours, {"parent": os.getpid()})
            ours.settimeout(START)
            receive_json(ours)
        except (OSError, EOFError, ValueError):
            raise InputError("decoder_crashed", _no_start(f"exit status {self.end()}")) from None
        except BaseException:
            self.end()
            raise

    def ask(
        self, question: dict[str, Any], frame: bytes, stream: Stream, seconds: float
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """Return the answer and its samples, None where it has none. Raises TimeoutError after `seconds` by the clock,
        OSError or EOFError if the worker ended, ValueError for an answer that cannot be read."""
        deadline = time.monotonic() + seconds
        self.socket.settimeout(seconds)
        send(self.socket, question, frame)
        self.socket.settimeout(max(0.001, deadline - time.monotonic()))
        answer, length = receive_json(self.socket)
        if "shape" not in answer:
            return answer, None
        size = (stream.rows, stream.columns)
        shape, kind = tuple(answer["shape"]), str(answer["dtype"])
        if shape not in (size, (*size, 3)) or kind not in ("uint8", "uint16"):
            raise ValueError("samples of another size or type")
        samples = np.empty(shape, kind)
        if samples.nbytes != length:
            raise ValueError("too few samples or too many")
        receive_into(self.socket, samples.data.cast("B"))
        return answer, samples

    def end(self, seconds: float = 1.0) -> int:
        """End it and return its exit status; the negative number of the signal that ended it, if one did. It is given
        some seconds: one that broke down ends by itself, one that is idle at the end of its socket."""
        self.socket.close()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def disown(self) -> None:
        """Leave it to the parent process, which forked this one."""
        self.socket.close()
        self.process.returncode = 0


def _no_start(reason: str) -> str:
    return f"the decoder's process cannot be started ({reason}); see `cxr doctor`, or whether memory is short"


class _Workers:
    """The workers of this process: as many as there are threads that decode, at most one a core."""

    def __init__(self) -> None:
        self.idle: list[Worker] = []
        self.known: set[Worker] = set()
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))

    def take(self) -> Worker:
        while True:
            with self.lock:
                worker = self.idle.pop() if self.idle else None
            if worker is None:
                break
            if worker.process.poll() is None:
                return worker
            worker.end()
        worker = Worker()
        with self.lock:
            self.known = {other for other in self.known if other.process.returncode is None} | {worker}
        return worker

    def give_back(self, worker: Worker) -> None:
        with self.lock:
            self.idle.append(worker)

    def end(self) -> None:
        with self.lock:
            idle, self.idle = self.idle, []
        for worker in idle:
            worker.socket.close()
        for worker in idle:
            worker.end()


_mine = _Workers()


def _forked() -> None:
    """Begin without workers: those of the parent answer the parent, and a thread that is not here may hold a lock."""
    global _mine
    theirs, _mine = _mine, _Workers()
    for worker in theirs.known:
        worker.disown()


if POSSIBLE:
    os.register_at_fork(after_in_child=_forked)
# by way of a function: the workers that are there then
atexit.register(lambda: _mine.end())
