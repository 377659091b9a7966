"""What every training on transformers' Trainer, and on trl's, has in common: exact resume.

A run folder holds `run.json` (what was asked for), `metrics.jsonl` (a line a step, a line an evaluation) and
`checkpoint-N/`. A checkpoint counts once its file `complete` is there, so one cut off in the middle is passed over.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PrinterCallback, Trainer, TrainerCallback

from encoder.files import write_json
from train.common import deepspeed
from train.common.checkpoints import (
    COMPLETE,
    load_optimizer_tensors,
    optimizer_tensors,
    truncate_metrics,
    writing,
)
from train.common.config import ConfigError
from train.common.interrupts import Interrupts
from train.common.processes import whole

# The parts of a checkpoint, besides what Trainer writes and COMPLETE.
WEIGHTS, OPTIMIZER, SCHEDULE = "trained.safetensors", "optimizer.safetensors", "schedule.json"

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ExactResume(_Base):
    """Mixin for a Trainer: exact resume, checkpoints of the trained weights alone (frozen ones are never written), a
    stop at SIGINT or SIGTERM, and metrics.jsonl.

    Under FSDP2 and DeepSpeed the weights are split among the processes; what is saved is whole, and the same as of one
    process.
    """

    # Steps between which a run can be left: where answers serve several steps, they are not saved.
    round_of_steps = 1

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.interrupts = Interrupts(self.say)
        self.add_callback(_Stop(self))

    def run(self, checkpoint: Path | None, stage: str = "") -> bool:
        """Train to the end or to a stop signal, from `checkpoint` if there is one. Collective.

        Returns:
            True if it came to the end; False if it was stopped, which is said, with the words of `stage`.
        """
        out = Path(self.args.output_dir)
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if self.args.should_save:
            for part in out.glob("checkpoint-*"):
                if not (part / COMPLETE).exists():
                    shutil.rmtree(part)
            truncate_metrics(out / "metrics.jsonl", step)
        self.accelerator.wait_for_everyone()
        # Killed before the model was written: Trainer would do one step more.
        if checkpoint and step >= self.args.max_steps:
            self.say(f"all {step} steps are done ({checkpoint})")
            load_trained(self.model, checkpoint / WEIGHTS)
            self.state.global_step = step
            return True
        # DeepSpeed takes the weights as they are before it splits them.
        if checkpoint and self.is_deepspeed_enabled:
            load_trained(self.model, checkpoint / WEIGHTS)
        if checkpoint:
            self.say(f"resuming {stage}at step {step} of {self.args.max_steps} ({checkpoint})")
        with self.interrupts:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.state.global_step >= self.state.max_steps:
            return True
        at = f"step {self.state.global_step} of {self.state.max_steps}"
        self.say(f"stopped {stage}at {at}; run the same command to resume")
        return False

    def trained(self) -> dict[str, Tensor]:
        """Return the trained weights by name, each process its part of them."""
        return trained_weights(self.accelerator.unwrap_model(self.model))

    def whole(self) -> dict[str, Tensor]:
        """Return the trained weights, put together where processes have parts of them. Collective."""
        return deepspeed.whole(self.trained()) if self.is_deepspeed_enabled else whole(self.trained())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights. Collective: all processes put their parts together, the first writes."""
        self._write(self.whole(), Path(output_dir or self.args.output_dir) / WEIGHTS)

    def record(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; the first process does."""
        if self.args.should_save:
            out = Path(self.args.output_dir)
            with writing(out), (out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def say(self, line: str) -> None:
        """Print a line; the first process does."""
        if self.accelerator.is_main_process:
            print(line, flush=True)

    def _write(self, tensors: dict[str, Tensor], file: Path) -> None:
        if self.args.should_save:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)

    def _save_checkpoint(self, model, trial) -> None:
        out = Path(self.args.output_dir)
        with writing(out):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (out / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint) / WEIGHTS)

    def _names(self) -> dict[nn.Parameter, str]:
        return {p: name for name, p in self.trained().items()}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            tensors = deepspeed.optimizer_tensors(self.model_wrapped, self._names())
        else:
            tensors = whole(optimizer_tensors(self.optimizer.optimizer, self._names()))
        self._write(tensors, Path(output_dir) / OPTIMIZER)
        if self.args.should_save:
            write_json(Path(output_dir) / SCHEDULE, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        # Of a training on rewards before 0.2, whose optimiser Trainer wrote (and reads with weights_only).
        if not (Path(checkpoint) / OPTIMIZER).exists():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        inner, tensors = self.optimizer.optimizer, load_file(Path(checkpoint) / OPTIMIZER)
        if self.is_deepspeed_enabled:
            deepspeed.load_optimizer_tensors(self.model_wrapped, self._names(), tensors)
        else:
            load_optimizer_tensors(inner, self._names(), tensors)
        self.lr_scheduler.load_state_dict(json.loads((Path(checkpoint) / SCHEDULE).read_text()))
        # The scheduler sets the rates after a step only.
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate


class _Stop(TrainerCallback):
    """SIGINT or SIGTERM: finish the step, or the round of steps, save, and stop."""

    def __init__(self, trainer: ExactResume) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        asked = self.trainer.interrupts.asked(self.trainer.accelerator)
        whole_round = state.global_step % self.trainer.round_of_steps == 0
        if asked and whole_round and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class Pace:
    """Seconds a step, since it was last marked; what lies between a step and a mark (an evaluation) does not count."""

    def __init__(self) -> None:
        self.step, self.time = 0, 0.0

    def mark(self, step: int) -> None:
        """Count seconds a step from this step and this moment on."""
        self.step, self.time = step, time.perf_counter()

    def words(self, step: int, steps: int) -> str:
        """Say the pace up to `step`, and how long the rest of `steps` takes at it."""
        pace = (time.perf_counter() - self.time) / max(step - self.step, 1)
        return f"{pace:.2f} s/step  {clock(pace * (steps - step))} left"


def clock(seconds: float) -> str:
    """Return a duration in words."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_trained(model: nn.Module, path: Path) -> None:
    """Put saved trainable parameters back, each process its part where they are split.

    Raises:
        ConfigError: the file's parameters are not exactly the model's.
    """
    weights, saved = trained_weights(model), load_file(path)
    if weights.keys() != saved.keys():
        odd = sorted(weights.keys() ^ saved.keys())
        raise ConfigError(
            f"{path} does not fit this model: {len(odd)} tensors without a partner, first {odd[0]}; choose another "
            "--out to train anew"
        )
    with torch.no_grad():
        for name, p in weights.items():
            x = saved[name].to(p.device, p.dtype)
            p.copy_(distribute_tensor(x, p.device_mesh, p.placements) if isinstance(p, DTensor) else x)
