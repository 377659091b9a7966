"""Whose `train` is it? `encoder`, `vlm`, `train` and `eval` are short names, and a file of the user's that has one of
them comes first where Python looks in the current folder. It must not be run in the place of ours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).parents[1]
ROOMS = ("encoder", "vlm", "train", "eval")


class ForeignName(ImportError):
    """A name of ours is taken by a file of somebody else's."""

    # encoder.errors.UserError's protocol, by attribute: `encoder` may be the name that is taken
    exit_status = 2


def refuse_strangers(*rooms: str) -> None:
    """Raise ForeignName, naming the file, if one of `rooms` would not be this package's. Runs none of them."""
    for room in rooms:
        spec = find_spec(room)
        origin = spec.origin if spec else None
        if origin is not None and Path(origin).resolve().parents[1] == HOME.resolve():
            continue
        place = origin or (str(next(iter(spec.submodule_search_locations), "")) if spec else "nowhere")
        raise ForeignName(
            f"`{room}` is {place}, and not cxr's: Python looks in the current folder first. Rename that file, use "
            "another folder, or start Python with -P"
        )
