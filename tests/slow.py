"""Which tests `make test-fast` leaves out besides those that are marked by hand: the functions that took long, all of
their parameters together.

    python -m pytest -n 2 --junitxml=FILE; python -m tests.slow FILE     (make slow-list)
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

LIST = Path(__file__).with_name("slow.txt")
# Seconds of a function's tests on the machine that writes the list.
LONG = 0.5


def of_a_run(junit: Path) -> list[str]:
    """Return the slow functions of a run as `tests/room/test_file.py::test_name`, sorted."""
    seconds: Counter[str] = Counter()
    for case in ET.parse(junit).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        seconds[f"{file}::{case.attrib['name'].partition('[')[0]}"] += float(case.attrib["time"])
    return sorted(name for name, took in seconds.items() if took >= LONG)


def listed() -> set[str]:
    return set(LIST.read_text().splitlines())


if __name__ == "__main__":
    LIST.write_text("\n".join(of_a_run(Path(sys.argv[1]))) + "\n")
    print(f"{LIST}: {len(listed())} functions of {LONG:g} s and more")
