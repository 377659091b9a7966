"""SIGINT and SIGTERM during a training."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Let SIGINT and SIGTERM ask for a stop at the end of the step; a second SIGINT raises KeyboardInterrupt at once.

        with Interrupts() as interrupts:
            for step in range(steps):
                ...
                if interrupts.asked(accelerator):
                    save()
                    break

    `signal` is the number of the first signal this process got, 0 before. `exit_status` is that of a run which ends for
    one. `say` is called once, at the first signal, with a line for the screen. The handlers of before are back when the
    block ends.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.signal = 0
        # Of any process.
        self._heard = 0
        self._say = say
        self._before: dict[int, signal.Handlers | Callable | int | None] = {}

    def __enter__(self) -> Interrupts:
        return self.install()

    def __exit__(self, *_: object) -> None:
        self.restore()

    def install(self) -> Interrupts:
        """Take the signals over, where a `with` block does not fit."""
        for number in STOPPING:
            self._before.setdefault(number, signal.signal(number, self._remember))
        return self

    def restore(self) -> None:
        """Restore the handlers that the signals had. A second call does nothing."""
        while self._before:
            signal.signal(*self._before.popitem())

    def asked(self, accelerator: Accelerator) -> int:
        """Return the signal that any process got, 0 if none did. Collective: every process must call this.

        A signal may reach the processes at different steps; with one answer for all they stop after the same one.
        """
        if accelerator.num_processes == 1:
            return self.signal
        import torch

        mine = torch.tensor([self.signal], device=accelerator.device)
        self._heard = int(accelerator.gather(mine).max())
        return self._heard

    @property
    def exit_status(self) -> int:
        """Return the exit status of a run that was stopped: 130 by SIGINT, 143 by SIGTERM, whichever process got it."""
        return 128 + (self.signal or self._heard or signal.SIGINT)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.signal and self._say is not None:
            self._say("stopping after this step; press again to stop at once, without saving")
        self.signal = self.signal or number
