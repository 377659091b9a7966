"""Programs of ours start without looking for garbage among what they import.

torch and transformers make half a million objects that stay. Python's collector goes through all of them several times
while they are made: a fifth of what `cxr generate` takes before its first film.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_program = False


def begin_program() -> None:
    """Say that this process is a program of ours, and no notebook or test that calls one."""
    global _program
    if not _program:
        _program = True
        # The end collects all: libraries in C++ (Triton by nanobind) complain on the terminal of what is left.
        atexit.register(gc.unfreeze)


@contextmanager
def importing() -> Iterator[None]:
    """Stop garbage collection during slow imports, and exempt what they made from later collections."""
    if not _program:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
