"""Every field of a fine-tuning, with its default and why it has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from train.common.config import Also, ConfigError, load_config


@dataclass(kw_only=True)
class Finetune:
    """Train a findings model: projector and LoRA learn to say what an encoder sees."""

    # ---- what it reads and writes
    # Folder of the run and of the finished model.
    out: str
    # Studies files (JSON Lines); the splits train and validate are used.
    studies: list[str]
    # Encoder: mini, a hub id or a transformers directory; with llm, unless init is given.
    encoder: str | None = None
    # Language model: a hub id or directory of a causal language model with its tokenizer.
    llm: str | None = None
    # Findings model to start from instead of encoder and llm: mini, a hub id or a merged directory.
    init: str | None = None
    # Write OUT/merged as well, the model that serves, at the price of a copy of the base.
    merge: bool = False
    # Type of the merged weights - fp16 halves a shipped model.
    merged_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    # What predictions call the model.
    name: str = "findings"
    # Line that users are shown with every run.
    notice: str = "For research, not for diagnosis."

    # ---- what is trained
    # Train LoRA on the language model; false: the whole of it - better for small ones, costly for large.
    lora: bool = True
    # Rank of LoRA - enough on small runs; LLaVA-Rad has 64.
    lora_rank: int = 16
    # Scale of LoRA - twice the rank is usual.
    lora_alpha: int = 32
    # Dropout of LoRA's input - our attention has none, and resumes stay simple.
    lora_dropout: float = 0.0
    # Type of the frozen language model under LoRA: bf16 takes half of fp32's memory, nf4 (QLoRA) an eighth.
    llm_dtype: Literal["fp32", "bf16", "nf4"] = "fp32"
    # Train the encoder as well - all papers we follow freeze it; needs features=online and writes OUT/merged alone.
    train_encoder: bool = False
    # Learning rate of a trained encoder, times learning_rate - it has learned more than the rest.
    encoder_lr_mult: float = 0.1

    # ---- the prompt
    # Wording of the prompt: instruct is for ready-made language models, maira2 is MAIRA-2's, all of it.
    wording: Literal["short", "instruct", "maira2"] = "short"
    # Section of the report that the model learns to write.
    section: Literal["findings", "impression", "both"] = "findings"
    # Put the indication into the prompt - it is known before the image is read.
    indication: bool = True
    # Put the prior's findings into the prompt - without them "unchanged" can only be made up.
    prior: bool = True
    # Put view, sex and age into the prompt - small models take them for a shortcut.
    demographics: bool = False
    # Put the technique into the prompt, where a study has it.
    technique: bool = False
    # Put the comparison into the prompt, where a study has it.
    comparison: bool = False
    # Show a lateral image as well, where there is one.
    lateral: bool = False
    # Show the prior's frontal image as well, where there is one.
    prior_image: bool = False
    # Share of the above left out, each by itself, so that each may be missing later.
    context_dropout: float = 0.0

    # ---- from image to tokens
    # Blocks of the encoder whose patch tokens are read, side by side - early ones show small things.
    layers: list[int] = field(default_factory=lambda: [-1])
    # Read tokens after the encoder's final LayerNorm, as MAIRA-2; stock Llava reads them before it.
    feature_norm: bool = False
    # Linear layers of the projector with GELU between them, 1 to 4 - LLaVA-1.5 has 2, MAIRA-2 4.
    projector_depth: int = 2
    # How an image's tokens become fewer, with less detail.
    token_reduction: Literal["none", "pixel_shuffle", "pool", "resampler"] = "none"
    # Patches a side that become one token; of a resampler, tokens a side.
    reduction_factor: int = 2
    # Standard deviation of the projector's output at the start, in those of the token embedding.
    projector_gain: float = 3.0
    # Steps of 64 studies in which the projector first learns what reports name (train/finetune/align.py).
    align_steps: int = 0
    # Steps in which the projector first learns alone, through the frozen language model: LLaVA's first stage.
    projector_steps: int = 0
    # Studies a step of that stage - LLaVA's.
    projector_batch_size: int = 256
    # Learning rate of that stage - LLaVA's.
    projector_learning_rate: float = 1e-3
    # Learning rate of the projector, times learning_rate - an aligned projector wants little, or noise undoes it.
    projector_lr_mult: float = 1.0

    # ---- optimisation
    # Steps of batch_size studies.
    max_steps: int = 3000
    # Studies a step over all processes.
    batch_size: int = 32
    # Parts in which a step is computed; raise it where a batch does not fit.
    gradient_accumulation_steps: int = 1
    # Put the studies of a step into one row, so that nothing is padded; needs attention=cxr.
    packing: bool = True
    # Compute the blocks anew for the backward pass - a twelfth of the memory.
    gradient_checkpointing: bool = False
    # Most tokens of prompt and findings beside the images'; longer studies are left out and counted.
    max_length: int = 512
    # Peak learning rate - three times as much made small models ignore the image.
    learning_rate: float = 1e-3
    # Steps of linear warm-up of the learning rate - a fresh projector starts far off.
    warmup_steps: int = 100
    # Weight decay - LoRA and short runs want none.
    weight_decay: float = 0.0
    # AdamW's beta2 - in short runs the second moment has to follow.
    adam_beta2: float = 0.99
    # Greatest norm of the gradient - without it a run lost the image and never found it again.
    max_grad_norm: float = 1.0
    # Arithmetic of matrix products: auto is bf16 where the hardware multiplies it, else fp32.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Attention: cxr is our kernel, sdpa PyTorch's, reference the explicit formula.
    attention: Literal["cxr", "sdpa", "reference"] = "cxr"
    # Seed of projector, LoRA and order.
    seed: int = 0

    # ---- evaluation on the validation split
    # Steps between evaluations (loss, and label F1 of generated findings); 0: never.
    eval_steps: int = 300
    # Studies that are evaluated - more makes the F1 steadier and the pauses longer.
    eval_studies: int = 256
    # Studies generated together.
    eval_batch_size: int = 64
    # Most tokens of generated findings - hardly any are longer.
    max_new_tokens: int = 256

    # ---- the run
    # Steps between checkpoints; the last two are kept.
    save_steps: int = 300
    # Steps between lines on the screen.
    logging_steps: int = 25
    # Features of images: cached computes them once, on disk; online in every step, where no disk holds them all.
    features: Literal["cached", "online"] = "cached"
    # Turn, shift, scale and brighten training images a little; needs features=online.
    augment: bool = False
    # Processes that read images.
    dataloader_num_workers: int = 2
    # Images a forward pass of the encoder while features are cached.
    feature_batch_size: int = 32
    # Folder of cached features (without it OUT/features); runs on the same images can share it.
    features_dir: str | None = None
    # Threads of each process on a CPU; 0: all cores, divided among the processes.
    threads: int = 0


# May differ when a run is resumed: places, since what lies there is compared by digest, and how it is done.
MAY_DIFFER = {
    "out", "encoder", "llm", "init", "studies", "merge", "merged_dtype", "eval_batch_size", "save_steps",
    "logging_steps", "dataloader_num_workers", "feature_batch_size", "features_dir", "attention", "name", "notice",
    "threads", "gradient_checkpointing", "packing",
}  # fmt: skip
# Names that recipes and runs before 0.2 have.
RENAMED = {
    "gradient_accumulation": "gradient_accumulation_steps", "clip": "max_grad_norm", "log_steps": "logging_steps",
    "workers": "dataloader_num_workers", "eval_batch": "eval_batch_size", "feature_batch": "feature_batch_size",
    "projector_batch": "projector_batch_size", "projector_stage_rate": "projector_learning_rate",
    "projector_rate": "projector_lr_mult", "encoder_rate": "encoder_lr_mult", "reduction": "reduction_factor",
}  # fmt: skip


def configured(
    argv: list[str] | None = None,
    also: Also | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> Finetune:
    """Read a command line, also that of another command with these fields. Raises ConfigError, or SystemExit as
    argparse does."""
    return check(
        load_config(
            Finetune, "finetune", argv, renamed=RENAMED, also=also, prog=prog, description=description
        )
    )


def check(config: Finetune) -> Finetune:
    """Validate the config and fill derived fields. Raises ConfigError for fields that do not go together."""
    parts = (config.encoder is not None) + (config.llm is not None)
    if parts != (2 if config.init is None else 0):
        raise ConfigError("give either --encoder and --llm, or --init")
    if config.llm_dtype != "fp32":
        if not config.lora or config.init:
            raise ConfigError(
                f"llm_dtype {config.llm_dtype} is for a frozen language model: with lora, and --encoder and --llm"
            )
        if config.precision == "fp32":
            raise ConfigError(
                f"llm_dtype {config.llm_dtype} needs precision bf16: float32 adapters have no products with it"
            )
        config.precision = "bf16"
    for name in ("augment", "train_encoder"):
        if getattr(config, name) and config.features != "online":
            raise ConfigError(
                f"{name} changes what the encoder sees or does in every step: give --features online"
            )
    if config.align_steps and config.features != "cached":
        raise ConfigError("align_steps reads every image many times: give --features cached")
    if config.train_encoder and config.lora and not config.merge:
        raise ConfigError("an adapter has no place for a trained encoder: give --merge, too")
    if config.packing and config.attention != "cxr":
        config.packing = False  # the others would build a mask of the whole row
    return config
