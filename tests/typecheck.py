"""Types: none wrong in the strict rooms, and no more wrong elsewhere than tests/types_left.txt says.

    python tests/typecheck.py [--update]

Which rooms are strict says pyproject.toml. `--update` writes the number after it has fallen; it cannot raise it.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT = ROOT / "tests" / "types_left.txt"


def errors() -> list[dict[str, str]]:
    """What mypy finds."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--output", "json"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [row for row in found if row["severity"] == "error"]


def is_strict(file: str, rooms: list[str]) -> bool:
    """Whether a file is in one of the rooms that pyproject.toml names."""
    module = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return any(fnmatch.fnmatchcase(module, room) or module == room.removesuffix(".*") for room in rooms)


def main() -> int:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    rooms = [room for part in settings["overrides"] for room in part["module"]]
    found = errors()
    strict = [row for row in found if is_strict(row["file"], rooms)]
    others = [row for row in found if not is_strict(row["file"], rooms)]
    for row in strict:
        print(f"{row['file']}:{row['line']}: {row['message']} [{row['code']}]")
    before = int(LEFT.read_text())
    print(f"types: {len(strict)} errors in the strict rooms, {len(others)} elsewhere ({before} allowed)")
    if len(others) > before:
        for file, count in Counter(row["file"] for row in others).most_common(10):
            print(f"  {count:4} {file}")
        print("the number may only fall: mend what is new (python -m mypy lists all)")
    elif len(others) < before and "--update" in sys.argv[1:]:
        LEFT.write_text(f"{len(others)}\n")
        print(f"wrote {LEFT}")
    elif len(others) < before:
        print("fewer than allowed: python tests/typecheck.py --update")
    return int(bool(strict) or len(others) > before)


if __name__ == "__main__":
    sys.exit(main())
