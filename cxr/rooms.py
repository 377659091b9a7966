"""Whether Python finds our packages under their names, or somebody else's files."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


class RoomError(ImportError):
    """A file or folder of the user's stands where one of our packages is looked for."""

    # encoder.errors.UserError's protocol, by attribute: `encoder` may be the one that is not ours
    exit_status = 2


def check(*names: str) -> None:
    """Check that each of these packages is ours, without importing it. Raises RoomError, naming the file."""
    for name in names:
        found = _place(name)
        if found and os.path.realpath(found) != os.path.join(HOME, name, "__init__.py"):
            raise RoomError(
                f"cxr needs its own package {name!r}, but Python finds {found} first: rename that, or start Python in "
                "another folder"
            )


def _place(name: str) -> str | None:
    """The file or folder that `import name` gives, or gave. None where the path holds none: then the finder of an
    editable install is asked, which knows our packages alone."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
    spec: ModuleSpec | None = PathFinder.find_spec(name)
    if spec is None:
        return None
    # a folder without __init__.py has no origin, but keeps the name from the finders that come later
    return spec.origin or next(iter(spec.submodule_search_locations or []), None)
