"""Decoders that break down: one film is refused, the next is read right, and nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless
from torch.utils.data import DataLoader, Dataset

from encoder.radiograph import InputError, isolated, read
from encoder.radiograph.codestream import describe
from encoder.radiograph.decode import Job, decode
from tests.encoder.test_grey_levels import (
    CODED,
    FILM,
    JLS_12,
    LARGE,
    SMALL,
    by_gdcm,
    film_of,
    lossless_jpeg,
    small,
    stream,
)
from tests.encoder.test_radiograph import frame_of, save, scaled

ROOT = Path(__file__).parents[2]
SOUND = lossless_jpeg(FILM, 12)
# The marker of the Huffman table lost a bit: gdcm's libjpeg ends the process.
TABLE = SOUND.index(b"\xff\xc4")
NO_TABLE = SOUND[:TABLE] + b"\xfd" + SOUND[TABLE + 1 :]
# A worker that has another decoder.
OTHER = """
import os, re, signal, sys, time
sys.path[:] = sys.argv[1:]
import importlib.util
spec = importlib.util.spec_from_file_location("worker", {path!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
def decode(question, frame):
    {body}
worker.decode = decode
worker.serve()
"""


@pytest.fixture(autouse=True)
def own_workers(monkeypatch):
    workers = isolated._Workers()
    monkeypatch.setattr(isolated, "_mine", workers)
    yield workers
    workers.end()


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """A film that ends gdcm's process, and a sound one."""
    bad, good = (
        save(stream(JPEGLosslessSV1, frame, 16, 12), tmp_path / f"{name}.dcm")
        for name, frame in (("bad", NO_TABLE), ("good", SOUND))
    )
    return bad, good


def outcome(path: Path) -> str:
    """`right`, `wrong` or a refusal's code."""
    try:
        pixels = read(path).pixels
    except InputError as error:
        return error.code
    return "right" if np.abs(pixels - scaled(FILM)).max() < 1e-6 else "wrong"


@pytest.fixture
def decoder(tmp_path):
    """Give workers another decoder."""

    def give(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
        path = tmp_path / "other.py"
        path.write_text(OTHER.format(path=str(ROOT / "encoder/radiograph/worker.py"), body=body))
        monkeypatch.setattr(isolated, "WORKER", path)

    return give


def refusal(frame: bytes = SOUND) -> InputError:
    with pytest.raises(InputError) as caught:
        decode(Job(frame, JPEGLosslessSV1, describe(frame)))
    return caught.value


def test_a_damaged_stream_that_ends_gdcm_costs_one_film(files, capfd):
    bad, good = files
    assert [outcome(path) for path in (good, bad, good, bad, bad, good)] == [
        "right", "decoder_crashed", "right", "decoder_crashed", "decoder_crashed", "right",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"JPEG lossless SV1; (SIG|exit).*get the file anew.*uncompressed"):
        read(bad)
    printed = capfd.readouterr()
    assert not printed.out and not printed.err


@pytest.mark.parametrize("precision", [7, 17])
@pytest.mark.parametrize("coding", [JPEGLosslessSV1, JPEGLSLossless])
def test_a_precision_that_ends_gdcm(coding, precision):
    """The reader refuses these by the frame header. Should one pass, it costs one film all the same."""
    frame = SOUND if coding == JPEGLosslessSV1 else JLS_12
    at = max(frame.find(b"\xff\xc3"), frame.find(b"\xff\xf7")) + 4
    job = Job(frame[:at] + bytes([precision]) + frame[at + 1 :], coding, describe(frame))
    try:
        decode(job)
    except InputError as error:
        assert error.code in ("decoder_crashed", "unreadable", "truncated")
    expected = FILM if coding == JPEGLosslessSV1 else SMALL
    assert np.array_equal(decode(Job(frame, coding, describe(frame))).samples, expected)


HANGS = {
    # the interpreter's lock is held, so that no thread of the worker can act
    "computing": "re.match('(a+)+$', 'a' * 60 + 'b')",
    "asleep": "time.sleep(1000)",
}


@pytest.mark.parametrize("how", HANGS)
def test_a_decoder_that_hangs(how, files, decoder, monkeypatch):
    with monkeypatch.context() as patch:
        decoder(patch, HANGS[how])
        patch.setattr(isolated, "SECONDS", 0.2)
        # one that computes is ended by the clock of its computing, long before that on the wall
        patch.setattr(isolated, "PATIENCE", 500.0 if how == "computing" else 1.0)
        begin = time.monotonic()
        error = refusal()
        assert error.code == "decoder_timeout" and "not finished after" in error.message
        assert time.monotonic() - begin < 30
    assert outcome(files[1]) == "right"


DEATHS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "decoder_crashed", "SIGKILL.*try again"),
    "segmentation fault": ("os.kill(os.getpid(), signal.SIGSEGV)", "decoder_crashed", "SIGSEGV.*damaged"),
    "exit": ("os._exit(0)", "decoder_crashed", "exit status 0"),
    # the limit is 512 MB for this film
    "memory": ("bytearray(700 << 20)", "decoder_crashed", "more than 512 MB"),
    "garbage": ("os.write(3, b'x' * 1000)\n    time.sleep(1000)", "decoder_crashed", "damaged"),
    "too few": ("return {'shape': (40, 48), 'dtype': 'uint8'}, b'x'", "decoder_crashed", "damaged"),
    "another shape": ("return {'shape': (9, 9), 'dtype': 'uint8'}, bytes(81)", "decoder_crashed", "damaged"),
    "objects": ("return {'shape': (40, 48), 'dtype': 'O'}, bytes(15360)", "decoder_crashed", "damaged"),
    "an error": ("raise KeyError('bits')", "unreadable", "bits"),
}  # fmt: skip


@pytest.mark.parametrize("how", DEATHS)
def test_a_decoder_that_goes_wrong(how, files, decoder, monkeypatch):
    body, code, words = DEATHS[how]
    with monkeypatch.context() as patch:
        decoder(patch, body)
        error = refusal()
        assert error.code == code and re.search(words, error.message), error.message
        isolated._mine.end()
    assert outcome(files[1]) == "right"


def test_a_process_that_cannot_be_started_is_said(tmp_path, monkeypatch):
    (tmp_path / "no.py").write_text("raise SystemExit(7)")
    monkeypatch.setattr(isolated, "WORKER", tmp_path / "no.py")
    assert "cannot be started (exit status 7)" in refusal().message
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "cannot be started (No such file" in refusal().message


def test_a_worker_that_was_killed_between_two_films_costs_none(files, own_workers):
    assert outcome(files[1]) == "right"
    (worker,) = own_workers.idle
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    assert outcome(files[1]) == "right" and worker not in own_workers.idle


def test_it_is_kept_and_has_no_torch(files, own_workers):
    assert outcome(files[1]) == outcome(files[1]) == "right"
    assert len(own_workers.known) == 1
    code = "import sys, encoder.radiograph.worker; print([m for m in ('torch', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def codings(folder: Path) -> dict[str, tuple[str, bytes]]:
    found = {name: (syntax, encode(folder)) for name, (syntax, encode, _) in CODED.items()}
    for process, syntax in {"JPEGLosslessProcess14": "57", "JPEGLSNearLossless": "81"}.items():
        found[process] = f"1.2.840.10008.1.2.4.{syntax}", by_gdcm(LARGE, 12, process, folder)
    colours = np.stack([(LARGE >> 4).astype(np.uint8)] * 3, -1)
    found["JPEG 2000, three channels"] = "1.2.840.10008.1.2.4.90", frame_of(colours, "JPEG2000", no_jp2=True)
    found["JPEG in three channels"] = JPEGBaseline8Bit, frame_of(colours, "JPEG", quality=95)
    found["JPEG-LS of 12 bits"] = JPEGLSLossless, JLS_12
    return found


def test_pixels_are_those_of_a_decoder_in_this_process(tmp_path):
    found = codings(tmp_path)
    assert len(found) == 11
    for name, (syntax, frame) in found.items():
        job = Job(frame, syntax, describe(frame))
        there, here = decode(job), decode(job, here=True)
        assert there.samples.dtype == here.samples.dtype, name
        assert np.array_equal(there.samples, here.samples) and there.notes == here.notes, name


class Films(Dataset):
    def __init__(self, files: tuple[Path, Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[str, int]:
        code = outcome(self.files[index % 2])
        return code, next(iter(isolated._mine.known)).process.pid


def test_in_the_workers_of_a_dataloader(files, own_workers):
    # forked while this process has a worker
    assert outcome(files[1]) == "right"
    mine = own_workers.idle[0].process.pid
    loader = DataLoader(Films(files), batch_size=None, num_workers=2, multiprocessing_context="fork")
    rows = list(loader)
    assert [code for code, _ in rows] == ["decoder_crashed", "right"] * 6
    assert mine not in {pid for _, pid in rows}
    # the parent's worker still answers the parent
    assert outcome(files[1]) == "right" and own_workers.idle[0].process.pid == mine


def put_outcomes(files: tuple[Path, Path], queue: multiprocessing.Queue) -> None:
    queue.put([outcome(path) for path in files])


def test_in_a_daemonic_process(files, own_workers):
    """Forked while other threads of this process decode, and hold its locks."""
    assert outcome(files[1]) == "right"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=put_outcomes, args=(files, queue), daemon=True)
    with own_workers.lock:
        process.start()
    assert queue.get(timeout=20) == ["decoder_crashed", "right"]
    process.join(60)
    assert process.exitcode == 0


def test_threads(files, own_workers):
    bad, good = files
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(outcome, [bad, good, good, good] * 4))
    assert found == ["decoder_crashed", "right", "right", "right"] * 4
    assert len(own_workers.idle) <= max(1, os.cpu_count() or 1)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(0)", "pass"])
def test_it_ends_with_its_parent(end, files):
    """Also while another child of the parent, forked meanwhile, lives on."""
    code = f"""
import os, sys, time
from encoder.radiograph import isolated, read
read(sys.argv[1])
print(isolated._mine.idle[0].process.pid, flush=True)
if os.fork() == 0:
    os.closerange(0, 3)
    time.sleep(5)
    os._exit(0)
{end}
"""
    found = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code, str(files[1])],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    pid = int(found.stdout)
    assert not found.stderr
    deadline = time.monotonic() + 4
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)


def test_ctrl_c_is_the_parents_affair(files, own_workers):
    assert outcome(files[1]) == "right"
    process = own_workers.idle[0].process
    assert os.getsid(process.pid) != os.getsid(0)
    # a shell has what it starts in the background ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome(files[1]) == "right" and own_workers.idle[0].process is process


def test_the_films_that_ended_processes(tmp_path):
    """Headers beside streams of other kinds; found by mutation."""
    at = JLS_12.index(b"\xff\xf7") + 4
    for bits in (7, 31):
        path = save(small(JLS_12[:at] + bytes([bits]) + JLS_12[at + 1 :], 16, 12), tmp_path / "x.dcm")
        with pytest.raises(InputError):
            read(path)
    half = CODED["JPEG-LS"][1](tmp_path)
    with pytest.raises(InputError):
        read(save(film_of(JPEGLSLossless, half[: len(half) // 2], 16), tmp_path / "y.dcm"))
