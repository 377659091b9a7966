"""Claim: features of 1,000 X-rays and all probes of an encoder, beside random weights and grey levels, take minutes on
two cores; the features take no longer than plain transformers with `sdpa` needs for the same batch.

    python benchmarks/probe.py [--out runs/probe_benchmark] [--images 1000] [--save]

The X-rays are phantoms with masks. `cxr probe` runs as a user runs it, in a process of its own, and is watched from
without: time of every task, and the most memory that it and its workers held together (PSS). Then one batch goes
through the frozen encoder and through transformers' own Dinov2Model in turns, at mini's size and at RAD-DINO's (random
weights); the best of the turns counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import torch
from transformers import AutoModel, Dinov2Config, Dinov2Model

from encoder.frozen import encoder_of
from encoder.transforms import Preprocessing
from train.common.launcher import run_steps
from train.common.processes import use_cores
from train.probe.config import ALSO

ROOT = Path(__file__).parents[1]
MINI = ROOT / "vlm" / "mini"
EXAMPLES = {"mini": 16, "RAD-DINO's shape": 2}  # images of a batch


class Memory(threading.Thread):
    """The most that a process and its children hold together, in GB."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.process, self.most = process, 0.0

    def run(self) -> None:
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            total = 0
            try:
                for p in [self.process, *self.process.children(recursive=True)]:
                    total += p.memory_full_info().pss
            except psutil.Error:  # one that has just ended
                pass
            self.most = max(self.most, total / 1e9)
            time.sleep(0.5)


def probes(out: Path, images: int, threads: int) -> dict:
    from train.phantom.population import write_population

    population = out / f"phantoms{images}"
    if not (population / "studies.jsonl").exists():
        write_population(population, studies=images, size=256, seed=31, prevalence=2.0, laterals=0)
    result = out / "result"
    shutil.rmtree(result, ignore_errors=True)  # what is there already would cost no time
    command = [
        sys.executable, "-u", "-m", "train.probe", "--data", f"phantom:{population}", "--out", str(result),
        "--encoders", str(MINI), f"random:{MINI}", "pixels", "--threads", str(threads), "--also", *ALSO,
    ]  # fmt: skip
    started, seconds = time.perf_counter(), {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        memory = Memory(psutil.Process(process.pid))
        memory.start()
        for line in process.stdout:
            if found := re.match(r"(.+): ([\w-]+), (\d+) s$", line):
                name = found[1].replace(str(MINI), "mini")
                seconds.setdefault(found[2], {})[name] = int(found[3])
            if found or "images/s" in line:
                print(line.strip().replace(str(MINI), "mini"), flush=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    total = time.perf_counter() - started
    counted = json.loads((result / "probe.json").read_text())["images"]
    print(
        f"{sum(counted.values())} images, three encoders, all probes: {total:.0f} s, {memory.most:.1f} GB at most"
    )
    return {
        "images": counted,
        "seconds": round(total),
        "peak_gb": round(memory.most, 2),
        "task_seconds": seconds,
    }


def extraction(out: Path, threads: int, turns: int) -> dict:
    use_cores(threads, 1)
    large = out / "rad_dino_shape"
    if not (large / "model.safetensors").exists():
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(large)
        Preprocessing(size=518).save_pretrained(large)
    found = {}
    for name, folder in (("mini", MINI), ("RAD-DINO's shape", large)):
        ours = encoder_of(str(folder))
        size, batch = ours.preprocessing.size, EXAMPLES[name]
        if folder == MINI:
            plain = AutoModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="sdpa"
            ).vision_tower
        else:
            plain = Dinov2Model.from_pretrained(folder, attn_implementation="sdpa")
        plain.eval()
        x = torch.randn(batch, 3, size, size)
        best = {"ours": float("inf"), "transformers": float("inf")}
        with torch.inference_mode():
            for _ in range(turns + 1):  # the first warms up
                for who, run in (("ours", ours), ("transformers", plain)):
                    start = time.perf_counter()
                    run(x)
                    passed = time.perf_counter() - start
                    best[who] = min(best[who], passed)
            difference = (ours(x).patches_BPC - plain(x).last_hidden_state[:, 1:]).abs().max().item()
        ratio = best["transformers"] / best["ours"]
        print(
            f"{name}: {batch} images of {size} px, ours {batch / best['ours']:.2f} images/s, transformers "
            f"{batch / best['transformers']:.2f}: {ratio:.2f} times as many; tokens differ by {difference:.1e} at most"
        )
        found[name] = {
            "batch": batch, "size": size, "ours_seconds": round(best["ours"], 4),
            "transformers_seconds": round(best["transformers"], 4), "times_as_fast": round(ratio, 3),
            "greatest_difference": difference,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/probe_benchmark"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--only", choices=("probes", "extraction"))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/probe.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"machine": f"{platform.machine()}, {args.threads} of {os.cpu_count()} cores", "date": str(date.today()),
             "torch": torch.__version__}  # fmt: skip
    if args.only != "probes":
        about["extraction"] = extraction(args.out, args.threads, args.turns)
    if args.only != "extraction":
        about["probes"] = probes(args.out, args.images, args.threads)
    if args.save:
        file = Path(__file__).parent / "results" / "probe.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"written: {file}")


if __name__ == "__main__":
    sys.exit(run_steps(main))
