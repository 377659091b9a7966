"""What Python users are told: `warnings.warn`, once a kind a process."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

HERE = str(Path(__file__).parent)
_told: set[str] = set()


class FindingsWarning(UserWarning):
    """A warning that a prediction carries (`Prediction.warnings` has all of them), or the notice of a model."""


def tell(kind: str, message: str) -> None:
    """Warn of a kind of thing the first time it happens in this process."""
    if kind not in _told:
        _told.add(kind)
        warnings.warn(message, FindingsWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """Count the frames up to the first that is not of this room, for `warnings` to name the user's own line. It is seen
    from `tell`, one below."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HERE):
        level, frame = level + 1, frame.f_back
    return level
