"""Every field of a training on rewards, with its default and why it has it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field

from train.common.config import ConfigError


@dataclass
class Grpo:
    """Train a findings model on rewards."""

    out: str = field(metadata={"help": "folder of the run and of the finished model"})
    studies: list[str] = field(
        metadata={"help": "studies files (JSON Lines); splits train and validate are used"}
    )
    init: str = field(metadata={"help": 'a merged findings model (or "mini") to start from'})
    reward: list[str] = field(metadata={"help": "keys of eval.metric, as label-f1/14/micro/neg"})
    reward_weights: list[float] = field(
        default_factory=list
    )  # one a reward, below 0 where less is better; none: 1 each
    score_weights: str | None = None  # where the models of clinical rewards lie (see cxr weights)
    score_device: str | None = None  # and what they run on
    merge: bool = False  # also write OUT/merged: what serves, at the price of a copy of the base
    merged_dtype: str = "fp32"  # fp16 halves a shipped model
    name: str = "findings-grpo"  # what predictions call the model
    lora_rank: int = 16  # as in fine-tuning
    lora_alpha: int = 32  # twice the rank, the usual scale
    projector: bool = False  # also train the projector; frozen, the model sees what it saw
    dtype: str = (
        "fp32"  # of the frozen weights; bf16 halves their memory and quickens drawing, for large ones
    )
    group: int = 8  # answers a study that are compared with one another
    batch_size: int = 8  # studies a step, over all processes
    gradient_accumulation: int = 1  # raise it where a batch does not fit
    gradient_checkpointing: bool = False  # compute the blocks anew for the backward pass
    iterations: int = 1  # steps on the same answers; above 1, epsilon matters
    epsilon: float = 0.2  # the ratio of probabilities is clipped this far from 1
    beta: float = (
        0.0  # weight of the KL divergence from the start; above 0 it is measured, too, for a pass more
    )
    loss: str = "dapo"  # mean over tokens of: dapo the batch, grpo each answer; dr_grpo: sum over a constant
    scale: str = (
        "group"  # what advantages are divided by: standard deviation of the group, of the batch, none
    )
    temperature: float = 1.0  # of the answers drawn
    max_new_tokens: int = 0  # of an answer; 0: as the model was saved
    max_length: int = 512  # tokens of a prompt beside the images'; longer studies are left out, and counted
    max_steps: int = 200  # of batch_size studies
    learning_rate: float = 1e-4  # a tenth of fine-tuning's
    warmup_steps: int = 5  # Adam's second moments need some
    weight_decay: float = 0.0  # LoRA and short runs want none
    adam_beta2: float = 0.99  # short runs: a second moment that follows
    clip: float = 1.0  # norm of the gradient
    precision: str = "auto"  # bf16 where the hardware multiplies it, which halves the time; else fp32
    eval_steps: int = 50  # rewards of held-out studies; 0: never
    eval_studies: int = 128  # of the validation split
    eval_batch: int = 64  # studies generated together
    save_steps: int = 50  # checkpoints to go on from; the last two are kept
    log_steps: int = 5  # a line on the screen
    attention: str = "cxr"  # our kernel; sdpa: PyTorch's; reference: the explicit formula
    threads: int = 0  # of each process on a CPU; 0: all cores, divided among the processes
    seed: int = 0  # LoRA, order, and what is drawn


KNOWN = {"loss": ("dapo", "grpo", "dr_grpo"), "scale": ("group", "batch", "none"), "dtype": ("fp32", "bf16")}


MAY_DIFFER = {  # places, since what lies there is compared by digest, and how it is done
    "out", "init", "studies", "score_weights", "score_device", "merge", "merged_dtype", "name", "eval_batch",
    "save_steps", "log_steps", "attention", "threads", "gradient_checkpointing",
}  # fmt: skip


SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def check(config: Grpo) -> None:
    """Raises ConfigError for what cannot be, before anything is loaded."""
    if importlib.util.find_spec("trl") is None:
        raise ConfigError('train.grpo needs trl, which is not installed: pip install "cxr-vlm[rl]"')
    for name, known in KNOWN.items():
        if getattr(config, name) not in known:
            raise ConfigError(f"{name} {getattr(config, name)!r} is unknown; there are {', '.join(known)}")
    if config.reward_weights and len(config.reward_weights) != len(config.reward):
        raise ConfigError(f"{len(config.reward)} rewards but {len(config.reward_weights)} reward_weights")
    if config.group < 2:
        raise ConfigError("group must be 2 or more: an answer is judged by the others to the same study")
    for name in ("save_steps", "max_steps"):
        if getattr(config, name) % config.iterations:
            raise ConfigError(
                f"{name} {getattr(config, name)} is not a multiple of iterations {config.iterations}: answers are not "
                "saved, so a run can only go on where new ones are drawn"
            )
    if config.dtype == "bf16":
        if config.projector or config.precision == "fp32":
            raise ConfigError("dtype bf16 goes with --precision bf16 and a frozen projector")
        config.precision = "bf16"
    if any(os.environ.get(name, "").lower() == "true" for name in SHARDED):
        raise ConfigError("answers are drawn with whole weights: launch it without FSDP and DeepSpeed")
