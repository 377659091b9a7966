"""Claim: every command explains itself in under 1.5 seconds of processor time, without torch or accelerate.

    python benchmarks/help.py [--save]

Each `cxr COMMAND --help` runs in a process of its own, as a user's does; the processor time, user and system, is the
operating system's account of that process. Beside it, what importing torch alone takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cxr.cli.main import COMMANDS

LIMIT = 1.5  # seconds
RUNS = 3
CODE = "import sys; from cxr.cli.main import main; sys.exit(main(sys.argv[1:]))"


def seconds(command: list[str]) -> float:
    """Processor time of a command, median of RUNS."""
    found = []
    for _ in range(RUNS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command} ended with status {process.returncode}")
        found.append(used.ru_utime + used.ru_stime)
    return statistics.median(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/help.json")
    args = parser.parse_args()
    torch = seconds([sys.executable, "-c", "import torch"])
    rows = {name: seconds([sys.executable, "-c", CODE, name, "--help"]) for name in COMMANDS}
    for name, value in rows.items():
        print(f"cxr {name + ' --help':24} {value:.2f} s")
    print(f"{'import torch':28} {torch:.2f} s")
    slow = [name for name, value in rows.items() if value > LIMIT]
    print(f"the longest: {max(rows.values()):.2f} s; over {LIMIT} s: {', '.join(slow) or 'none'}")
    if args.save:
        about = {
            "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "date": date.today().isoformat(), "python": platform.python_version(), "runs": RUNS,
            "seconds": {name: round(value, 3) for name, value in rows.items()}, "import_torch": round(torch, 3),
        }  # fmt: skip
        file = Path(__file__).parent / "results" / "help.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"wrote {file}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
