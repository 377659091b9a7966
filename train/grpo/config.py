"""Every field of a training on rewards, with its default and why it has it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from typing import Literal

from train.common.config import Also, ConfigError, load_config


@dataclass(kw_only=True)
class Grpo:
    """Train a findings model on scores as rewards (GRPO)."""

    # ---- what it reads and writes
    # Folder of the run and of the finished model.
    out: str
    # Studies files (JSON Lines); the splits train and validate are used.
    studies: list[str]
    # Findings model to start from: mini, a hub id or a merged directory.
    init: str
    # Write OUT/merged as well, the model that serves, at the price of a copy of the base.
    merge: bool = False
    # Type of the merged weights - fp16 halves a shipped model.
    merged_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    # What predictions call the model.
    name: str = "findings-grpo"

    # ---- rewards
    # Scores that answers are rewarded with: keys of cxr.metric, as label-f1/14/micro/neg.
    reward: list[str]
    # Weight of each reward, below 0 where less is better; without it 1 each.
    reward_weights: list[float] = field(default_factory=list)
    # Folder with the models of clinical rewards (see cxr weights).
    score_weights: str | None = None
    # Device of those models.
    score_device: str | None = None
    # Answers to a study that are compared with one another.
    num_generations: int = 8
    # Temperature of the answers drawn.
    temperature: float = 1.0
    # Most tokens of an answer; 0: as the model was saved.
    max_new_tokens: int = 0

    # ---- what is trained
    # Rank of LoRA, as in fine-tuning.
    lora_rank: int = 16
    # Scale of LoRA - twice the rank is usual.
    lora_alpha: int = 32
    # Train the projector as well; frozen, the model sees what it saw.
    projector: bool = False
    # Type of the frozen weights - bf16 halves their memory and quickens drawing, for large models.
    dtype: Literal["fp32", "bf16"] = "fp32"

    # ---- optimisation
    # Steps of batch_size studies.
    max_steps: int = 200
    # Studies a step over all processes.
    batch_size: int = 8
    # Parts in which a step is computed; raise it where a batch does not fit.
    gradient_accumulation_steps: int = 1
    # Compute the blocks anew for the backward pass, to save memory.
    gradient_checkpointing: bool = False
    # Steps on the same answers; above 1 epsilon matters.
    num_iterations: int = 1
    # How far from 1 the ratio of probabilities is clipped.
    epsilon: float = 0.2
    # Weight of the KL divergence from the start; above 0 it costs a pass more.
    beta: float = 0.0
    # Mean over tokens: dapo of the batch, grpo of each answer; dr_grpo is a sum over a constant.
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    # What advantages are divided by: the standard deviation of the group or of the batch, or nothing.
    scale_rewards: Literal["group", "batch", "none"] = "group"
    # Most tokens of a prompt beside the images'; longer studies are left out and counted.
    max_length: int = 512
    # Peak learning rate - a tenth of fine-tuning's.
    learning_rate: float = 1e-4
    # Steps of linear warm-up of the learning rate.
    warmup_steps: int = 5
    # Weight decay - LoRA and short runs want none.
    weight_decay: float = 0.0
    # AdamW's beta2 - in short runs the second moment has to follow.
    adam_beta2: float = 0.99
    # Greatest norm of the gradient.
    max_grad_norm: float = 1.0
    # Arithmetic of matrix products: auto is bf16 where the hardware multiplies it, else fp32.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Attention: cxr is our kernel, sdpa PyTorch's, reference the explicit formula.
    attention: Literal["cxr", "sdpa", "reference"] = "cxr"
    # Seed of LoRA, order, and what is drawn.
    seed: int = 0

    # ---- the run
    # Steps between rewards of held-out studies; 0: never.
    eval_steps: int = 50
    # Held-out studies, of the validation split.
    eval_studies: int = 128
    # Studies generated together.
    eval_batch_size: int = 64
    # Steps between checkpoints; the last two are kept.
    save_steps: int = 50
    # Steps between lines on the screen.
    logging_steps: int = 5
    # Threads of each process on a CPU; 0: all cores, divided among the processes.
    threads: int = 0


# May differ when a run is resumed: places, since what lies there is compared by digest, and how it is done.
MAY_DIFFER = {
    "out", "init", "studies", "score_weights", "score_device", "merge", "merged_dtype", "name", "eval_batch_size",
    "save_steps", "logging_steps", "attention", "threads", "gradient_checkpointing",
}  # fmt: skip
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
# Names that recipes and runs before 0.2 have.
RENAMED = {
    "group": "num_generations", "iterations": "num_iterations", "loss": "loss_type", "scale": "scale_rewards",
    "gradient_accumulation": "gradient_accumulation_steps", "clip": "max_grad_norm", "log_steps": "logging_steps",
    "eval_batch": "eval_batch_size",
}  # fmt: skip


def configured(argv: list[str] | None = None, also: Also | None = None) -> Grpo:
    """Read a command line. Raises ConfigError, or SystemExit as argparse does."""
    return check(load_config(Grpo, "grpo", argv, renamed=RENAMED, also=also))


def check(config: Grpo) -> Grpo:
    """Validate the config and fill derived fields, before anything is loaded. Raises ConfigError."""
    if importlib.util.find_spec("trl") is None:
        raise ConfigError('GRPO needs trl, which is not installed: pip install "cxr-vlm[rl]"')
    if config.reward_weights and len(config.reward_weights) != len(config.reward):
        raise ConfigError(f"{len(config.reward)} rewards but {len(config.reward_weights)} reward_weights")
    if config.num_generations < 2:
        raise ConfigError(
            f"num_generations must be at least 2, not {config.num_generations}: "
            "an answer is judged by the others to the same study"
        )
    for name in ("save_steps", "max_steps"):
        if getattr(config, name) % config.num_iterations:
            raise ConfigError(
                f"{name} {getattr(config, name)} is not a multiple of num_iterations {config.num_iterations}: "
                "answers are not saved, so a run can only resume where new ones are drawn"
            )
    if config.dtype == "bf16":
        if config.projector or config.precision == "fp32":
            raise ConfigError("dtype bf16 goes with --precision bf16 and a frozen projector")
        config.precision = "bf16"
    if any(os.environ.get(name, "").lower() == "true" for name in SHARDED):
        raise ConfigError("answers are drawn with whole weights: launch it without FSDP and DeepSpeed")
    return config
