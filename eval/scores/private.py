"""Files that hold words of reports: for their user's eyes alone, below the user's cache."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def kept(name: str) -> Path:
    """Return the folder of this name in the user's cache of cxr; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr" / name


def store(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all: a file of mode 0600 in folders of 0700. Raises OSError."""
    for folder in (path.parent.parent, path.parent):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")  # 0600
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
