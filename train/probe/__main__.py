"""`accelerate launch -m train.probe ...`: the command line is read before anything slow is imported."""

from __future__ import annotations

import sys
from pathlib import Path

from encoder.startup import importing
from train.probe.config import configured


def main(argv: list[str] | None = None) -> int:
    """Run or resume; returns the exit status. Raises UserError."""
    config = configured(argv)
    with importing():
        from train.common.checkpoints import alone
        from train.probe.run import run

    with alone(Path(config.out)):
        return run(config)


if __name__ == "__main__":
    from train.common.entry import entry

    sys.exit(entry(main, "train.probe"))
