"""What both trainings on transformers.Trainer share: run folders that resume exactly, and a line an interval.

A run folder holds `run.json` (what was asked for), `metrics.jsonl` (a line a step, a line an evaluation) and
`checkpoint-N/`. A checkpoint counts once its file `complete` is there, so one cut off in the middle is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from train.common import deepspeed
from train.common.batches import GroupedSampler, answer_loss
from train.common.checkpoints import (
    Names,
    claim,
    load_optimizer_tensors,
    optimizer_tensors,
    truncate_metrics,
    write_json,
)
from train.common.config import ConfigError
from train.common.processes import whole

_ARGUMENTS = {f.name for f in fields(TrainingArguments)}
COMPLETE = "complete"  # these four are the parts of a checkpoint, besides what Trainer writes
WEIGHTS, OPTIMIZER, SCHEDULE = "trained.safetensors", "optimizer.safetensors", "schedule.json"


def quiet() -> None:
    """We print lines of our own; a bar for every file that is read is noise."""
    logging.disable_progress_bar()
    logging.get_logger("transformers.trainer_utils").setLevel("ERROR")  # file times are not what we go by


def open_run(
    out: Path, config: Any, may_differ: Iterable[str], files: dict[str, Any], renamed: Mapping[str, str]
) -> Path | None:
    """Make the run folder or find it again; returns the last complete checkpoint, if there is one.

    `files` are digests of what the run reads; the fields `may_differ` (how, not what) may change; `renamed` are fields'
    old names. Raises CheckpointError for a folder of another run.
    """
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    defaults |= {f.name: f.default_factory() for f in fields(config) if f.default_factory is not MISSING}
    claim(out, asdict(config) | files, may_differ, defaults, Names(renamed))
    return last_checkpoint(out)


def last_checkpoint(out: Path) -> Path | None:
    """The last complete checkpoint of a run."""
    checkpoints = [p.parent for p in out.glob(f"checkpoint-*/{COMPLETE}")]
    return max(checkpoints, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def file_sha256(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_listing(path: str | Path, state: PartialState) -> list:
    """The studies of a file, with a word of warning where splits share patients."""
    from vlm.study import load_studies, patients_across_splits

    studies = load_studies(path)
    if shared := patients_across_splits(studies):
        state.print(
            f"warning: {len(shared)} patients of {path} are in several splits, so validation and test scores will be "
            f"too good; cxr studies check {path} names them"
        )
    return studies


class Loop(Trainer):
    """transformers.Trainer with loss on answer tokens, exact resume, checkpoints of the trained weights alone (frozen
    ones are never written), and metrics.jsonl.

    The data set has `lengths`; its batches are `collate`'s. Under FSDP2 the weights are split among the processes block
    by block; what is saved is whole, and the same as of one process.
    """

    def __init__(self, *args, precision: str = "fp32", **kwargs):
        self.half = precision == "bf16"
        super().__init__(*args, compute_loss_func=answer_loss, **kwargs)
        if self.is_fsdp_enabled:
            check_fsdp2(self.accelerator)
            plugin = self.accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = None  # autocast sees to it, as in every other run
            plugin.transformer_cls_names_to_wrap = [block_class(self.model)]
        self.split = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.is_deepspeed_enabled:
            deepspeed.begin(self.accelerator, self.half)
        self.remove_callback(PrinterCallback)
        self.stop = StopSignal(self)
        self.add_callback(self.stop)
        self.add_callback(Lines(self))
        self.step_losses: dict[int, Tensor] = {}  # not yet written
        self.interval: list[float] = []  # written, not yet on the screen

    def _get_train_sampler(self, train_dataset=None):
        world = self.accelerator.num_processes * self.args.gradient_accumulation_steps
        return GroupedSampler(self.train_dataset.lengths, self.args.train_batch_size * world, self.args.seed)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        step = self.state.global_step + 1
        self.step_losses[step] = self.step_losses.get(step, 0) + loss
        return loss

    def trained(self) -> dict[str, Tensor]:
        return trained_weights(self.accelerator.unwrap_model(self.model))

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """accelerate does this to the forward pass, but not under FSDP2 and DeepSpeed."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.half)

    def whole(self) -> dict[str, Tensor]:
        """The trained weights, put together where processes have parts of them; all must ask."""
        return deepspeed.whole(self.trained()) if self.is_deepspeed_enabled else whole(self.trained())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """All processes put their parts together, the first writes."""
        self._write(self.whole(), Path(output_dir or self.args.output_dir) / WEIGHTS)

    def _write(self, tensors: dict[str, Tensor], file: Path) -> None:
        if self.args.should_save:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)

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
        inner, tensors = self.optimizer.optimizer, load_file(Path(checkpoint) / OPTIMIZER)
        if self.is_deepspeed_enabled:
            deepspeed.load_optimizer_tensors(self.model_wrapped, self._names(), tensors)
        else:
            load_optimizer_tensors(inner, self._names(), tensors)
        self.lr_scheduler.load_state_dict(json.loads((Path(checkpoint) / SCHEDULE).read_text()))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate  # which the scheduler sets after a step only

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()

    def run(self, checkpoint: Path | None) -> bool:
        """Train to the end or to a stop signal; True if it came to the end."""
        out = Path(self.args.output_dir)
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if self.args.should_save:
            for part in out.glob("checkpoint-*"):
                if not (part / COMPLETE).exists():
                    shutil.rmtree(part)
            truncate_metrics(out / "metrics.jsonl", step)
        self.accelerator.wait_for_everyone()
        if step >= self.args.max_steps:  # killed before the model was written; Trainer would do one step more
            load_trained(self.model, checkpoint / WEIGHTS)
            self.state.global_step = step
            return True
        if checkpoint and self.is_deepspeed_enabled:  # before they are split
            load_trained(self.model, checkpoint / WEIGHTS)
        with self.stop:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return self.state.global_step >= self.state.max_steps

    def record(self, line: dict) -> None:
        if self.args.should_save:
            with (Path(self.args.output_dir) / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            print(line, flush=True)

    def flush_losses(self) -> None:
        """Write the losses of the steps since the last flush (mean over processes)."""
        if not self.step_losses:
            return
        steps = sorted(self.step_losses)
        losses = self.accelerator.reduce(torch.stack([self.step_losses[s] for s in steps]), "mean").tolist()
        self.step_losses.clear()
        for step, loss in zip(steps, losses, strict=True):
            self.record({"step": step, "loss": loss})
        self.interval += losses


class StopSignal(TrainerCallback):
    """SIGINT or SIGTERM: finish the step, save, stop. A second SIGINT interrupts at once."""

    def __init__(self, trainer: Loop):
        self.trainer, self.asked, self.before = trainer, False, {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._ask)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        self.trainer.say("stopping after this step; press again to stop at once, without saving")

    def on_step_end(self, args, state, control, **kwargs):
        asked = self.asked
        if (
            self.trainer.accelerator.num_processes > 1
        ):  # the signal may reach the processes at different steps
            flag = torch.tensor(int(asked), device=self.trainer.accelerator.device)
            asked = bool(self.trainer.accelerator.reduce(flag, "sum"))
        if asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class Lines(TrainerCallback):
    """One line an interval."""

    def __init__(self, trainer: Loop):
        self.trainer, self.mark = trainer, None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.mark is None:
            self.mark = (state.global_step, time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        if (
            state.global_step % args.logging_steps
            and not control.should_save
            and not control.should_training_stop
        ):
            return
        self.trainer.flush_losses()
        losses, self.trainer.interval = self.trainer.interval, []
        steps, seconds = state.global_step - self.mark[0], time.perf_counter() - self.mark[1]
        pace = seconds / max(steps, 1)
        rate = self.trainer.lr_scheduler.get_last_lr()[0]
        left = (state.max_steps - state.global_step) * pace
        self.trainer.say(
            f"step {state.global_step}/{state.max_steps}  loss {sum(losses) / len(losses):.4f}  lr {rate:.2e}  "
            f"{pace:.2f} s/step  {_clock(left)} left"
        )
        self.mark = (state.global_step, time.perf_counter())

    def on_evaluate(self, args, state, control, **kwargs):
        self.mark = (state.global_step, time.perf_counter())  # the pace is that of training


def arguments(out: Path, config: Any, processes: int, **more) -> TrainingArguments:
    """TrainingArguments from the fields that both trainings have. `batch_size` is over all processes."""
    if config.batch_size % (processes * config.gradient_accumulation_steps):
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared by {processes} processes x "
            f"{config.gradient_accumulation_steps} accumulated batches"
        )
    made = TrainingArguments(
        output_dir=str(out),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size // processes // config.gradient_accumulation_steps,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16" and not deepspeed_asked(),  # which would make the weights bf16
        use_cpu=PartialState().device.type == "cpu",
        logging_steps=config.logging_steps,
        save_steps=config.save_steps,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
        **more,
    )
    made._n_gpu = min(made.n_gpu, 1)  # one process takes one GPU: DataParallel cannot divide a batch of ours
    return made


def deepspeed_asked() -> bool:
    """Whether accelerate was launched with it."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def checkpointing() -> dict[str, Any]:
    """Trainer's arguments for it, which transformers renamed in 5.23."""
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in _ARGUMENTS)
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_fsdp2(accelerator) -> None:
    """Raises ConfigError for FSDP of version 1."""
    if not accelerator.is_fsdp2:
        raise ConfigError(
            "FSDP of version 1 is not supported: give train/launch/fsdp2.yaml (fsdp_version: 2)"
        )


def block_class(model: nn.Module) -> str:
    """Name of the class of a language model's blocks, which FSDP2 gathers one at a time."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    layers = [m for n, m in model.named_modules() if n.endswith(("language_model.layers", "model.layers"))]
    return type((layers or lists)[0][0]).__name__


def load_trained(model: nn.Module, path: Path) -> None:
    """Put saved trainable parameters back, each process its part where they are split. Raises ConfigError if the
    file's are not exactly the model's."""
    weights, saved = trained_weights(model), load_file(path)
    if weights.keys() != saved.keys():
        odd = sorted(weights.keys() ^ saved.keys())
        raise ConfigError(
            f"{path} does not fit this model: {len(odd)} tensors without a partner, first {odd[0]}"
        )
    with torch.no_grad():
        for name, p in weights.items():
            x = saved[name].to(p.device, p.dtype)
            p.copy_(distribute_tensor(x, p.device_mesh, p.placements) if isinstance(p, DTensor) else x)


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
