"""Claim: decoding in a process of its own costs at most a tenth more computing per film than decoding in this process.

    python benchmarks/isolated_decoding.py [--films 15] [--save]

A film of 2,500 x 2,048 pixels and 12 bits, made by formula (lungs, ribs, noise), in each coding that is isolated.
Printed: seconds of computing per film (of this process and its workers, which the clock of a busy machine does not
change), the median of runs that alternate between the two ways, and their ratio; and what the first film pays once for
the start of the worker.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from encoder.radiograph import isolated
from encoder.radiograph.codestream import describe
from encoder.radiograph.decode import Job, decode
from tests.encoder.test_grey_levels import by_gdcm, j2k

H, W = 2500, 2048


def film() -> np.ndarray:
    """Unsigned 12 bits, (H, W)."""
    y, x = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j]
    lungs = sum(np.exp(-(((x - side) / 0.3) ** 2) - (y / 0.6) ** 2) for side in (-0.45, 0.45))
    ribs = 0.08 * np.sin(40 * y + 6 * x * x)
    grey = 2400 - 1500 * lungs + 600 * ribs + np.random.default_rng(0).normal(0, 25, (H, W))
    return grey.clip(0, 4095).astype(np.uint16)


def worker_seconds() -> float:
    """Of computing, by the workers of this process so far."""
    total = 0.0
    for worker in isolated._mine.known:
        fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += sum(int(n) for n in fields[11:13]) / os.sysconf("SC_CLK_TCK")
    return total


def seconds(job: Job, here: bool, films: int) -> float:
    """Of computing, per film; ticks of 10 ms are spread over `films`."""
    before = worker_seconds() + time.process_time()
    for _ in range(films):
        decode(job, here=here)
    return (worker_seconds() + time.process_time() - before) / films


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--films", type=int, default=15, help="runs of each way, of three films each")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/isolated_decoding.json")
    args = parser.parse_args()
    pixels = film()
    with tempfile.TemporaryDirectory() as folder:
        frames = {
            "JPEG lossless": (JPEGLosslessSV1, by_gdcm(pixels, 12, "JPEGLosslessProcess14_1", Path(folder))),
            "JPEG-LS": (JPEGLSLossless, by_gdcm(pixels, 12, "JPEGLSLossless", Path(folder))),
            "JPEG 2000": (JPEG2000Lossless, j2k(pixels)),
        }
    begin = time.perf_counter()
    isolated._mine.give_back(isolated._mine.take())
    start = {"seconds": round(time.perf_counter() - begin, 3), "computing": round(worker_seconds(), 3)}
    result: dict = {"film": f"{H} x {W}, 12 bits", "start of a worker, without libraries": start}
    load = f"load {os.getloadavg()[0]:.1f}"
    print(
        f"start of a worker: {start['seconds']} s by the clock, {start['computing']} s of computing; {load}"
    )
    print(f"{'':15}{'MB':>6}{'here, ms':>10}{'isolated, ms':>14}{'ratio':>7}{'ratios of pairs':>22}")
    for name, (syntax, frame) in frames.items():
        job = Job(frame, syntax, describe(frame))
        assert np.array_equal(decode(job).samples, pixels) and np.array_equal(
            decode(job, here=True).samples, pixels
        )
        pairs = [(seconds(job, True, 3), seconds(job, False, 3)) for _ in range(args.films)]
        here, there = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(b / a for a, b in pairs)
        low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        result[name] = {
            "megabytes": round(len(frame) / 1e6, 1), "here_ms": round(1e3 * here, 1),
            "isolated_ms": round(1e3 * there, 1), "ratio": round(there / here, 3),
            "quartiles of ratios": [round(low, 3), round(high, 3)],
        }  # fmt: skip
        times = f"{1e3 * here:10.1f}{1e3 * there:14.1f}{there / here:7.3f}{low:13.3f} to {high:.3f}"
        print(f"{name:15}{len(frame) / 1e6:6.1f}{times}", flush=True)
    if args.save:
        result |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": os.getloadavg()[0]}
        result["date"] = date.today().isoformat()
        target = Path(__file__).parent / "results" / "isolated_decoding.json"
        target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
