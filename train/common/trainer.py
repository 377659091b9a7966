"""transformers.Trainer as fine-tuning and language model use it: a loss on answers, a line an interval, and weights
that processes may share."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from train.common import deepspeed
from train.common.batches import GroupedSampler, answer_loss
from train.common.resume import ExactResume, Pace
from train.common.runs import asked_for, check_batch

_ARGUMENTS = {f.name for f in fields(TrainingArguments)}


class AnswerTrainer(ExactResume, Trainer):
    """transformers.Trainer with a loss on answer tokens.

    The data set has `lengths`; its batches are `collate`'s. Under FSDP2 the weights are split among the processes block
    by block.
    """

    def __init__(self, *args, precision: str = "fp32", **kwargs):
        self.half = precision == "bf16"
        super().__init__(*args, compute_loss_func=answer_loss, **kwargs)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            # Autocast sees to it, as in every other run.
            plugin.mixed_precision_policy = None
            plugin.transformer_cls_names_to_wrap = [block_class(self.model)]
        self.split = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.is_deepspeed_enabled:
            deepspeed.begin(self.accelerator, self.half)
        self.add_callback(_Lines(self))
        # Not yet written.
        self.step_losses: dict[int, Tensor] = {}
        # Written, not yet on the screen.
        self.interval: list[float] = []

    def training_step(self, *args, **kwargs):
        """Take transformers' step and keep its loss, a scalar on the device, summed over accumulation."""
        loss = super().training_step(*args, **kwargs)
        step = self.state.global_step + 1
        self.step_losses[step] = self.step_losses.get(step, 0) + loss
        return loss

    def flush_losses(self) -> None:
        """Write the losses of the steps since the last flush (mean over processes). Collective."""
        if not self.step_losses:
            return
        steps = sorted(self.step_losses)
        losses = self.accelerator.reduce(torch.stack([self.step_losses[s] for s in steps]), "mean").tolist()
        self.step_losses.clear()
        for step, loss in zip(steps, losses, strict=True):
            self.record({"step": step, "loss": loss})
        self.interval += losses

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """Autocast the forward pass, as accelerate does except under FSDP2 and DeepSpeed."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.half)

    def _get_train_sampler(self, train_dataset=None):
        world = self.accelerator.num_processes * self.args.gradient_accumulation_steps
        return GroupedSampler(self.train_dataset.lengths, self.args.train_batch_size * world, self.args.seed)


class _Lines(TrainerCallback):
    """One line an interval."""

    def __init__(self, trainer: AnswerTrainer):
        self.trainer, self.pace = trainer, Pace()

    def on_train_begin(self, args, state, control, **kwargs):
        self.pace.mark(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        due = state.global_step % args.logging_steps == 0
        if not (due or control.should_save or control.should_training_stop):
            return
        self.trainer.flush_losses()
        losses, self.trainer.interval = self.trainer.interval, []
        rate = self.trainer.lr_scheduler.get_last_lr()[0]
        self.trainer.say(
            f"step {state.global_step}/{state.max_steps}  loss {sum(losses) / len(losses):.4f}  lr {rate:.2e}  "
            f"{self.pace.words(state.global_step, state.max_steps)}"
        )
        self.pace.mark(state.global_step)

    def on_evaluate(self, args, state, control, **kwargs):
        self.pace.mark(state.global_step)


def arguments(out: Path, config: Any, processes: int, **more) -> TrainingArguments:
    """Return TrainingArguments from the fields that both trainings have. `batch_size` is over all processes. Raises
    ConfigError where they cannot share it."""
    check_batch(config.batch_size, config.gradient_accumulation_steps, processes)
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
        # DeepSpeed would make the weights bf16.
        bf16=config.precision == "bf16" and not asked_for("DEEPSPEED"),
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
    # One process takes one GPU: DataParallel cannot divide a batch of ours.
    made._n_gpu = min(made.n_gpu, 1)
    return made


def checkpointing() -> dict[str, Any]:
    """Return Trainer's arguments for it, which transformers renamed in 5.23."""
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in _ARGUMENTS)
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def block_class(model: nn.Module) -> str:
    """Return the name of the class of a language model's blocks, which FSDP2 gathers one at a time."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    layers = [m for n, m in model.named_modules() if n.endswith(("language_model.layers", "model.layers"))]
    return type((layers or lists)[0][0]).__name__
