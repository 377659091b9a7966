"""`train.names`, by which our packages are told from a user's files of the same names.

It is read by its place, because `train` itself may be the user's. It lies there because trainings, which need it as
well, import nothing of `cxr`.
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from os.path import dirname, join


def refuse_strangers(*rooms: str) -> None:
    """Raise ImportError, naming the file, if one of `rooms` would not be this package's. Runs none of them."""
    _NAMES.refuse_strangers(*rooms)


_spec = spec_from_file_location("cxr._names", join(dirname(dirname(__file__)), "train", "names.py"))
if _spec is None or _spec.loader is None:
    raise ImportError("cxr is not installed whole: train/names.py is missing; install it again")
_NAMES = module_from_spec(_spec)
_spec.loader.exec_module(_NAMES)
