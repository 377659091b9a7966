"""Signals during a training."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from train.common.interrupts import Interrupts


def ours(number):
    os.kill(os.getpid(), number)


def test_a_signal_is_remembered_and_the_handlers_of_before_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    said = []
    with Interrupts(said.append) as interrupts:
        assert interrupts.signal == 0
        ours(signal.SIGTERM)
        assert interrupts.signal == signal.SIGTERM
        ours(signal.SIGTERM)
    assert len(said) == 1 and "stopping after this step" in said[0]
    assert {number: signal.getsignal(number) for number in before} == before
    # Again after its end, as a training of two stages does.
    with interrupts:
        assert signal.getsignal(signal.SIGINT) != before[signal.SIGINT]
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once(first):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        ours(first)
        ours(signal.SIGINT)
    assert interrupts.signal == first and signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("others", [[0, 15], [0, 0], [2, 0]])
def test_all_processes_hear_of_a_signal_to_one(others):
    """`gather` puts together what each process has; it is of accelerate, and played here."""
    accelerator = SimpleNamespace(
        num_processes=2, device="cpu", gather=lambda x: torch.cat([x, torch.tensor(others[1:])])
    )
    interrupts = Interrupts()
    interrupts.signal = others[0]
    assert interrupts.asked(accelerator) == max(others)
    assert interrupts.exit_status == {15: 143, 2: 130, 0: 130}[max(others)]
    assert interrupts.asked(SimpleNamespace(num_processes=1)) == others[0]
