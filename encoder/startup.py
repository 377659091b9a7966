"""Programs of ours start and end without looking for garbage among what they imported.

torch and transformers make half a million objects that stay. Python's collector goes through all of them several times
while they are made, and once more at the end: a third of what `cxr generate` takes before its first film.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_program = False


def begin_program() -> None:
    """Say that this process is a program of ours, and no notebook or test that calls one: it ends without a last
    collection, and the system takes its memory back."""
    global _program
    if not _program:
        _program = True
        atexit.register(gc.freeze)


@contextmanager
def importing() -> Iterator[None]:
    """Around slow imports of a program: no collection meanwhile, and later none that looks at what they made."""
    if not _program:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
