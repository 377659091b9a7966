"""SIGINT and SIGTERM during a training."""

from __future__ import annotations

import signal


class Interrupts:
    """SIGINT and SIGTERM ask for a stop at the end of the step; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.signal = 0
        self.before = {n: signal.signal(n, self._remember) for n in (signal.SIGINT, signal.SIGTERM)}

    def _remember(self, number: int, frame) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
