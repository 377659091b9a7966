"""Read damaged files of every kind, and count what becomes of them.

    python -m tests.fuzz [--n 10000] [--seed 1] [--kind DICOM] [--keep FOLDER]

The same seed gives the same files. The exit status is 1 if one ended in an error that is not the user's (UNTYPED), in
pixels that are no numbers in [0, 1] (NAN), took longer than 30 s (TIMEOUT), or ended the process (DEATH).
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.kinds import FAULTS
from tests.fuzz.run import run, table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=10_000, help="mutants (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the damage (1)")
    parser.add_argument("--kind", help="of this kind alone")
    parser.add_argument("--keep", help="write the mutants that must not be to this folder")
    args = parser.parse_args()
    begin = time.monotonic()
    counts = run(args.n, args.seed, args.kind, args.keep)
    print(table(counts))
    bad = sum(n for of in counts.values() for name, n in of.items() if name.startswith(FAULTS))
    total = sum(map(sum, (of.values() for of in counts.values())))
    print(f"{total} mutants of seed {args.seed} in {time.monotonic() - begin:.0f} s: {bad} faults")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
