"""Several processes on a CPU.

`accelerate launch --cpu --num_processes N` hands N to mpirun, and without MPI starts one process and says nothing
(accelerate 1.15, `simple_launcher`). Here that one process starts the others itself and becomes rank 0.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from encoder.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# Devices of Linux's drivers: NVIDIA's on a server, on a board and under Windows, AMD's.
GPU_DEVICES = ("nvidiactl", "nvidia0", "nvhost-ctrl", "nvmap", "dxg", "kfd")

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@contextmanager
def all_processes():
    """Wrap the `main` of a training script that accelerate launched: inside it, all N processes are there.

    Where accelerate or torchrun has started them already, or one was asked for, nothing happens. The helpers get the
    same command; when rank 0 leaves they get ten seconds to do so too.
    """
    count = 1 if any(name in os.environ for name in LAUNCHED) else _asked_for()
    if count < 2:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    ours = {rank: {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)}
    before = dict(os.environ)
    command = [sys.executable, *sys.orig_argv[1:]]
    helpers = [subprocess.Popen(command, env={**before, **ours[rank]}) for rank in range(1, count)]
    os.environ.update(ours[0])
    try:
        yield
    finally:
        for helper in helpers:
            try:
                helper.wait(timeout=10)
            except subprocess.TimeoutExpired:
                helper.kill()
        os.environ.clear()
        os.environ.update(before)


say_at_once = partial(print, flush=True)


def cpu_wanted() -> bool:
    """Tell whether to use the CPU even if there is a GPU, as `accelerate launch --cpu` asks."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def gpu_at_hand() -> bool:
    """Tell whether torch can use a GPU here. Where the system has no device for one, torch, half a gigabyte,
    need not be imported to ask."""
    if sys.platform == "linux" and not any(Path("/dev", name).exists() for name in GPU_DEVICES):
        return False
    import torch

    return torch.cuda.is_available()


def process_state(patience: timedelta | None = None):
    """Return accelerate's PartialState, which by itself finds the other processes only on GPUs. `patience`:
    how long they wait for one another, where the first works alone for longer than torch's 10 or 30
    minutes."""
    import torch
    from accelerate import PartialState

    more = {"timeout": patience} if patience and "MASTER_PORT" in os.environ else {}
    return PartialState(cpu=cpu_wanted() or not torch.accelerator.is_available(), **more)


def cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cores(threads: int, processes: int) -> None:
    """Let torch use `threads` threads on a CPU; 0: all cores, divided among the processes. Without it there would be
    one, for `accelerate launch` sets OMP_NUM_THREADS=1.

    Also lets glibc keep freed activations instead of giving their pages back each time: a third of a training step.
    """
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(threads or max(1, cores() // processes))
        if platform.libc_ver()[0] == "glibc":
            libc = ctypes.CDLL(None)
            libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
            libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is given back


@contextmanager
def all_cores(threads: int, processes: int) -> Iterator[None]:
    """Give the first process, while the others wait, their cores too: for torch, BLAS and OpenMP, which
    `accelerate launch` limits to one thread."""
    from threadpoolctl import threadpool_limits

    wanted = threads * processes or cores()
    with threadpool_limits(wanted):
        use_cores(wanted, 1)
        try:
            yield
        finally:
            use_cores(threads, processes)


def multiplies_bf16() -> bool:
    """Tell whether this process's hardware multiplies bfloat16 natively. A CPU without them (AVX2 alone, say)
    takes ten to sixty times as long as in float32."""
    import torch

    if torch.cuda.is_available() and not cpu_wanted():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def settled_precision(wanted: str, before: str | None) -> str:
    """Turn `wanted` (auto, bf16 or fp32) into bf16 or fp32. In a resumed run, `auto` is what the run had
    `before`; in a new one, bf16 if the hardware multiplies it."""
    if wanted == "auto":
        wanted = before or ("bf16" if multiplies_bf16() else "fp32")
    if wanted == "bf16" and is_main() and not multiplies_bf16():
        say_at_once("note: this machine has no bfloat16 products of its own; fp32 is many times as fast here")
    return wanted


def is_main() -> bool:
    """Tell whether this process is rank 0, before anything is initialised."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def first_alone(work: Callable[[], T], device: torch.device) -> T | None:
    """Do `work` in the first process while the others wait. -> its result there, None elsewhere.

    A UserError of the first is raised there, and one of its own in each other process, so that all leave together.
    Collective: every process must call this.
    """
    import torch
    import torch.distributed as dist

    found, refused = None, None
    if is_main():
        try:
            found = work()
        except UserError as error:
            refused = error
    if dist.is_available() and dist.is_initialized():
        flag = torch.tensor(float(refused is not None), device=device)
        dist.all_reduce(flag)
        if flag > 0 and refused is None:
            refused = UserError("the first process refused")
    if refused is not None:
        raise refused
    return found


def _asked_for() -> int:
    """Return the number of processes on the command line of the `accelerate launch` that started this one; 1
    without."""
    if not cpu_wanted() or "MASTER_PORT" not in os.environ:
        return 1
    import psutil
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    # `accelerate launch ...` or `python -m accelerate.commands.launch ...`
    start = next(
        (i for i, w in enumerate(words) if w == "launch" or w.endswith(("launch.py", "commands.launch"))),
        None,
    )
    if start is None:
        return 1
    options = launch_command_parser().parse_args(words[start + 1 :])
    if options.num_processes is None and options.config_file:
        return load_config_from_file(options.config_file).num_processes or 1
    return options.num_processes or 1


def split_again(model: nn.Module) -> None:
    """Split the weights again: after a forward pass FSDP2 keeps them whole until a backward pass, which may
    not come."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def inside(model: nn.Module, work: Callable[[], Any]) -> Any:
    """Run `work()` as if it were the model's forward pass, for which FSDP2 gathers the weights outside of
    blocks."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if not isinstance(model, FSDPModule):
        return work()
    model.work_inside = work
    register_fsdp_forward_method(model, "work_inside")
    try:
        return model.work_inside()
    finally:
        del model.work_inside


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather on every process the tensors that FSDP2 has split; others stay as they are. Collective: every
    process must call this."""
    from torch.distributed.tensor import DTensor

    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors.items()}
