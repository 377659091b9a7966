"""What is seen of a pre-training while it runs: measurements, lines, trackers, speed, steps that are not finite.

Shape letters: B images, S crops, C width, K prototypes, R processes, V values.
"""

from __future__ import annotations

import json
import time
from collections import deque
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from safetensors.torch import save_file
from torch import Tensor, nn

from encoder.errors import did_you_mean
from encoder.files import write_json
from encoder.selfdistill.losses import all_reduce, entropy
from train.common import checkpoints
from train.common.config import ConfigError
from train.common.processes import first_alone
from train.pretrain.config import GLOBAL_CROPS, PretrainConfig
from train.pretrain.data import Samples, collate, positions

# Steps in a row that are not finite, after which a run ends.
MAX_BAD_STEPS = 3
# bf16 FLOP/s of the datasheets, dense.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def flops_per_image(c: PretrainConfig) -> float:
    """Count the floating-point operations of one image's step: student forward and backward, teacher forward.

    What stochastic depth leaves out is not counted.
    """

    def blocks(tokens: int, wanted: float) -> float:
        all_tokens = c.num_hidden_layers * (24 * tokens * c.hidden_size**2 + 4 * tokens**2 * c.hidden_size)
        # The last MLP sees only what the heads see.
        return all_tokens - 16 * (tokens - wanted) * c.hidden_size**2

    def embedding(tokens: int) -> float:
        return 6 * c.patch_size**2 * c.hidden_size * tokens

    big, small = (c.size // c.patch_size) ** 2 + 1, (c.local_crops_size // c.patch_size) ** 2 + 1
    widths = (c.hidden_size, c.head_hidden_dim, c.head_hidden_dim, c.head_bottleneck_dim, c.head_n_prototypes)
    head = 2 * sum(a * b for a, b in pairwise(widths))
    # Tokens of a global crop that the heads see: CLS and, in some crops, the masked patches.
    wanted = 1 + (big - 1) * c.mask_sample_probability * sum(c.mask_ratio_min_max) / 2
    teacher = GLOBAL_CROPS * (blocks(big, wanted) + embedding(big) + wanted * head)
    student = GLOBAL_CROPS * blocks(big, wanted) + c.local_crops_number * blocks(small, 1)
    student = (1 - c.drop_path_rate) * student + GLOBAL_CROPS * (embedding(big) + wanted * head)
    student += c.local_crops_number * (embedding(small) + head)
    return 3 * student + teacher


def peak_flops(device: torch.device) -> float | None:
    """Return the bf16 FLOP/s that the datasheet of this GPU promises; None where we know none."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for key, peak in PEAKS.items() if key in name), None)


class Flags:
    """Tell the host what it must know of a step, one step later: the device is done with it by then, and never waits.

    `bad_steps` counts steps in a row that were not finite, `culprits` names the losses and processes of the last one,
    as in "ibot, loss (process 1)"; `waiting` is how many steps are not read yet.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.bad_steps, self.culprits = 0, ""
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, list[str]]] = deque()

    @property
    def waiting(self) -> int:
        """Return how many steps are not read yet."""
        return len(self._pending)

    def put(self, values: dict[str, Tensor], asked: bool) -> Tensor:
        """Hand in a step's values and whether this process was asked to stop. -> 1.0 if any value of any process is
        not finite, else 0.0, on the device. Collective: every process must call this."""
        mine = (~torch.stack([x.detach().float() for x in values.values()]).isfinite()).float()
        flags_RV = mine.new_zeros(self.world, len(values) + 1)
        flags_RV[self.rank, :-1] = mine
        flags_RV[self.rank, -1] = float(asked)
        all_reduce(flags_RV)
        if flags_RV.is_cuda:
            copy = torch.empty(flags_RV.shape, pin_memory=True).copy_(flags_RV, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        else:
            copy, done = flags_RV, None
        self._pending.append((copy, done, list(values)))
        return flags_RV[:, :-1].amax()

    def take(self, wait: bool) -> bool:
        """Read the steps that were not read yet, but the last one; with `wait` that one too.

        -> whether a stop was asked for in one of them. Reads no further once too many steps in a row were bad.
        """
        stop = False
        while len(self._pending) > (0 if wait else 1) and self.bad_steps < MAX_BAD_STEPS:
            copy, done, names = self._pending.popleft()
            if done is not None:
                done.synchronize()
            *bad, asked = zip(*copy.tolist(), strict=True)
            self.bad_steps = self.bad_steps + 1 if any(map(any, bad)) else 0
            found = []
            for process, row in enumerate(zip(*bad, strict=True)):
                which = [name for name, flag in zip(names, row, strict=True) if flag]
                found += [f"{', '.join(which)} (process {process})"] if which else []
            self.culprits = "; ".join(found)
            stop = stop or any(asked)
        return stop


def give_up(accelerator: Accelerator, flags: Flags, samples: Samples, steps: int) -> int:
    """Write down the last bad batch of each process and say what can be done; returns the exit status of such a run.

    `steps` is how many are done. Collective: every process must call this.
    """
    out, bad = Path(samples.config.out), steps - 1 - flags.waiting
    with checkpoints.writing(out):
        file = dump(out, bad, accelerator.process_index, accelerator.num_processes, samples)
    accelerator.wait_for_everyone()
    say = accelerator.print
    say(f"stopped: {MAX_BAD_STEPS} steps in a row were not finite, up to {bad}: {flags.culprits}")
    say(f"the last batch of each process: {file.parent}; last good: {checkpoints.latest(out)}")
    say("try a lower --learning_rate, or --precision fp32")
    return 1


def dump(out: Path, step: int, rank: int, world: int, samples: Samples) -> Path:
    """Write the batch of a bad step, to be looked at: OUT/bad_step/00000007-process-0.safetensors, and beside it the
    paths of the images. It holds crops of the X-rays, as the cache does."""
    c = samples.config
    parts = positions(range(step, step + 1), c.batch_size, rank, world, c.gradient_accumulation_steps)
    which = [position for part in parts for position in part]
    batch = collate([samples[position] for position in which])
    folder = out / "bad_step"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{step:08d}-process-{rank}.safetensors"
    save_file({k: x.contiguous() for k, x in batch._asdict().items() if x is not None}, file)
    paths = [str(samples.images.paths[samples.image_index(position)]) for position in which]
    about = {"step": step, "process": rank, "samples": which, "images": paths}
    write_json(file.with_suffix(".json"), about)
    return file


class Report:
    """Tell a run's numbers: an entry an interval in OUT/metrics.jsonl and in the trackers, and a line on the screen.

    Its methods are collective: every process must call them, and the first one writes.
    """

    def __init__(self, c: PretrainConfig, accelerator: Accelerator, step: int) -> None:
        """Open metrics and trackers of a run that has done `step` steps. Raises CheckpointError where the
        disk refuses."""
        self.c, self.accelerator, self.out = c, accelerator, Path(c.out)
        self.say = accelerator.print
        self.flops, self.peak = flops_per_image(c), peak_flops(accelerator.device)
        self._since, self._started = step, time.perf_counter()
        first_alone(lambda: self._open(step), accelerator.device)

    def _open(self, step: int) -> None:
        with checkpoints.writing(self.out):
            self.accelerator.init_trackers("tensorboard" if self.c.report_to == "auto" else "cxr-pretrain")
            checkpoints.truncate_metrics(self.out / "metrics.jsonl", step)

    def headline(self, images: int, backbone: nn.Module) -> None:
        """Say what is trained on what."""
        c, parameters = self.c, sum(p.numel() for p in backbone.parameters())
        self.say(
            f"{images:,} images · encoder {parameters / 1e6:.1f} M parameters · {c.size} px -> "
            f"{(c.size // c.patch_size) ** 2} tokens · batch {c.batch_size} on {self.accelerator.num_processes} x "
            f"{self.accelerator.device.type} · {c.precision} · {self.flops / 1e9:.1f} GFLOP an image"
        )

    def start(self, step: int) -> None:
        """Start the clock of the next interval after `step`."""
        self._since, self._started = step, time.perf_counter()

    def speed(self, step: int) -> float:
        """Return the images a second since `start`."""
        return (step - self._since) * self.c.batch_size / (time.perf_counter() - self._started)

    def write(self, step: int, line: dict[str, float], speed: float) -> None:
        """Tell the numbers of a step and start the next interval. Raises CheckpointError where the disk refuses."""
        self.start(step)
        first_alone(lambda: self._write(step, line, speed), self.accelerator.device)

    def _write(self, step: int, line: dict[str, float], speed: float) -> None:
        with checkpoints.writing(self.out):
            with (self.out / "metrics.jsonl").open("a") as file:
                record = {"step": step, **line, "images_per_second": round(speed, 2)}
                file.write(json.dumps(record) + "\n")
            self.accelerator.log({**line, "images_per_second": speed}, step=step)
        peak = self.peak and self.peak * self.accelerator.num_processes
        self.say(log_line(step, self.c, line, speed, self.flops, peak))


def tracker(c: PretrainConfig) -> str | None:
    """Return where else than to metrics.jsonl numbers are written. Raises ConfigError for a tracker that is not
    installed."""
    there = [str(name) for name in get_available_trackers()]
    if c.report_to == "auto":
        return "tensorboard" if "tensorboard" in there else None
    known = [str(name) for name in LoggerType]
    if c.report_to not in ("none", *known):
        near = did_you_mean(c.report_to, known)
        raise ConfigError(f"report_to must be auto, none, {', '.join(known)}, not {c.report_to!r}{near}")
    if c.report_to not in ("none", *there):
        raise ConfigError(f"tracker {c.report_to} is not installed; there are {', '.join(['none', *there])}")
    return None if c.report_to == "none" else c.report_to


def measurements(
    parts: dict[str, Tensor], targets_BK: Tensor, cls_SC: Tensor, rank: int, world: int
) -> dict[str, float]:
    """Return the losses of this step, and numbers that say whether they still mean something.

    Collective: every process must call this.

    `teacher_entropy` is near log K if the teacher cannot tell images apart. `usage_entropy` is near 0 if it
    gives all of them the same target. `kl_uniform`, log K minus that, is near 0 if it uses all prototypes
    alike. `feature_rank` is the effective rank of the student's CLS features (Garrido et al. 2023, RankMe,
    arXiv 2210.02885): 1 if all are alike, at most the number of global crops or the width.
    """
    line = {name: x.detach() for name, x in parts.items()} | {"teacher_entropy": entropy(targets_BK)}
    line = dict(zip(line, all_reduce(torch.stack(list(line.values()))) / world, strict=True))
    every_RSC = torch.zeros(world, *cls_SC.shape, device=cls_SC.device)
    every_RSC[rank] = cls_SC.detach().float()
    line["feature_rank"] = effective_rank(all_reduce(every_RSC).flatten(0, 1))
    line["usage_entropy"] = entropy(all_reduce(targets_BK.float().mean(0, keepdim=True)) / world)
    line["kl_uniform"] = np.log(targets_BK.shape[1]) - line["usage_entropy"]
    return {name: float(x) for name, x in line.items()}


def effective_rank(x_BC: Tensor) -> Tensor:
    """Return exp of the entropy of the singular values of the rows less their mean; 1 if all rows are alike, NaN if one
    is not finite."""
    x_BC = x_BC - x_BC.mean(0)
    # Some of LAPACK's and MAGMA's routines raise an error where they meet NaN.
    values = torch.linalg.svdvals(x_BC.nan_to_num(0, 0, 0))
    shares = values / values.sum().clamp(min=1e-12)
    rank = torch.special.entr(shares).sum().exp()
    return torch.where(x_BC.isfinite().all(), rank, torch.nan)


def log_line(step: int, c: PretrainConfig, line: dict, speed: float, flops: float, peak: float | None) -> str:
    """Write the line of a step for the screen; `flops` an image, `peak` of all processes."""
    left = (c.max_steps - step) * c.batch_size / speed
    unit, divisor = ("h", 3600) if left >= 3600 else ("min", 60) if left >= 60 else ("s", 1)
    clock = f"{left / divisor:.1f} {unit}"
    rate = f"{speed * flops / 1e9:,.0f} GFLOP/s" + (f" (MFU {speed * flops / peak:.1%})" if peak else "")
    dino = f"{line['dino_global']:.3f}" + (f" / {line['dino_local']:.3f}" if "dino_local" in line else "")
    knn = f" · k-NN AUROC {line['knn_auroc']:.3f}" if "knn_auroc" in line else ""
    return (
        f"step {step}/{c.max_steps} · loss {line['loss']:.3f} · dino {dino} · ibot {line['ibot']:.3f} · "
        f"koleo {line['koleo']:.3f} · entropy {line['teacher_entropy']:.2f}, usage {line['usage_entropy']:.2f} of "
        f"{np.log(c.head_n_prototypes):.2f} · rank {line['feature_rank']:.1f} · grad {line['grad_norm']:.2f} · "
        f"lr {line['lr']:.1e}{knn} · {speed:.1f} images/s · {rate} · {clock} left"
    )
