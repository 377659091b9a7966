"""Shared by all tests."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # plain `pytest` does not put the root there
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the sizes here are tiny
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that wants the network is wrong
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

# Tests in a run that is likely to want everything.
MANY = 1000


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests, as the one that only hands them out to others (-n 2) is not."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    # Test modules import three hundred thousand objects, none of which is garbage: looking for some takes seconds.
    gc.disable()
    import torch

    if not torch.cuda.is_available():
        # before triton is imported: its own functions are decorated, too
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what took long when the list of slow tests was written (`make slow-list`)."""
    from tests.slow import listed

    slow = listed()
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Let garbage alone that collection has left, and begin the server of `tests.forked` before any test has run."""
    items = getattr(session, "items", None) if not session.config.option.collectonly else None
    if items:
        from tests.forked import PRELOAD, begin_server
        from train.common import processes

        # Whoever has all cores has one: of tiny sizes, threads that wait for each other take several times the work,
        # and the other cores have tests of their own.
        processes.cores = one_core
        if len(items) > MANY:
            # some test will want each: once here is cheaper than here and in the server, and is no garbage either
            for name in PRELOAD:
                importlib.import_module(name)
    gc.freeze()
    gc.enable()
    if items:
        begin_server()


def one_core() -> int:
    """Stand in for `train.common.processes.cores`, also in the processes of `tests.forked`."""
    return 1


def pytest_sessionfinish() -> None:
    # libraries complain of what is left at the end
    gc.unfreeze()


@pytest.fixture(autouse=True)
def as_it_was():
    """Give the next test the process as this one found it: one core, of which a training takes all, and signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    import torch

    torch.set_num_threads(1)
    left = {
        number: handler for number in before if (handler := signal.getsignal(number)) is not before[number]
    }
    for number in left:
        signal.signal(number, before[number])
    assert not left, "what was tested keeps signals for itself"


class Logged(logging.Handler):
    """Messages that the root logger was handed, from its level on."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))

    @property
    def text(self) -> str:
        return "\n".join(self.messages)


@pytest.fixture
def logged() -> Iterator[Logged]:
    """What a test has logged. The `caplog` of pytest's plugin is left out (-p no:logging): it sets the root's level six
    times a test, each of which goes through the thousands of loggers of our libraries."""
    root, handler = logging.getLogger(), Logged()
    level = root.level
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def cxr_data() -> Path:
    """The folder of real radiographs."""
    value = os.environ.get("CXR_DATA")
    if not value:
        pytest.skip("CXR_DATA is not set, so there are no real radiographs to test on")
    if not Path(value).is_dir():
        pytest.skip(f"CXR_DATA={value} is not a folder")
    return Path(value)
