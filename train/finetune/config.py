"""Every field of a fine-tuning, with its default and why it has it."""

from __future__ import annotations

from dataclasses import dataclass, field

from train.common.config import ConfigError


@dataclass
class Finetune:
    """Train a findings model on a frozen encoder."""

    out: str = field(metadata={"help": "folder of the run and of the finished model"})
    studies: list[str] = field(
        metadata={"help": "studies files (JSON Lines); splits train and validate are used"}
    )
    encoder: str | None = None  # a DINOv2 checkpoint directory; with llm, unless init is given
    llm: str | None = None  # a causal language model directory with its tokenizer
    init: str | None = None  # a merged findings model (or "mini") to start from instead
    merge: bool = False  # also write OUT/merged: what serves, at the price of a copy of the base
    merged_dtype: str = "fp32"  # fp16 halves a shipped model
    name: str = "findings"  # what predictions call the model
    notice: str = "For research, not for diagnosis."  # shown to users with every run
    lora: bool = (
        True  # false trains the whole language model: better for small ones, and needs memory for large
    )
    llm_dtype: str = (
        "fp32"  # of the frozen language model under LoRA; bf16: half the memory; nf4: QLoRA, an eighth
    )
    lora_rank: int = 16  # enough on small runs; LLaVA-Rad has 64
    lora_alpha: int = 32  # twice the rank, the usual scale
    lora_dropout: float = 0.0  # our attention has none, and resumes stay simple
    wording: str = "short"  # instruct: for ready-made language models; maira2: MAIRA-2's, all of it
    section: str = "findings"  # what is learned to be written: findings, impression, both
    indication: bool = True  # in the prompt; known before the image is read
    prior: bool = True  # the prior's findings: without them "unchanged" can only be made up
    demographics: bool = False  # view, sex and age in the prompt: small models take them for a shortcut
    technique: bool = False  # in the prompt, where a study has it
    comparison: bool = False  # likewise
    lateral: bool = False  # show a lateral image as well, where there is one
    prior_image: bool = False  # and the prior's frontal one
    context_dropout: float = (
        0.0  # share of the above left out, each by itself, so that each may be missing later
    )
    layers: list[int] = field(
        default_factory=lambda: [-1]
    )  # of the encoder, side by side; early ones show small things
    feature_norm: bool = False  # after the encoder's final LayerNorm, as MAIRA-2; stock Llava reads before it
    projector_depth: int = 2  # linear layers with GELU between, 1 to 4; LLaVA-1.5 has 2, MAIRA-2 4
    token_reduction: str = "none"  # pixel_shuffle, pool, resampler: fewer tokens an image, and less detail
    reduction: int = 2  # patches a side that become one token; of a resampler, tokens a side
    align_steps: int = (
        0  # of 64 studies: the projector first learns what reports name (train/finetune/align.py)
    )
    projector_steps: int = (
        0  # first the projector alone, through the frozen language model: LLaVA's first stage
    )
    projector_batch: int = 256  # studies a step of that stage; LLaVA's
    projector_stage_rate: float = 1e-3  # its learning rate; LLaVA's
    projector_rate: float = 1.0  # times learning_rate; an aligned projector wants little, or noise undoes it
    projector_gain: float = 3.0  # projector output, in standard deviations of the token embedding
    max_steps: int = 3000  # of batch_size studies
    batch_size: int = 32  # studies a step, over all processes
    gradient_accumulation: int = 1  # raise it where a batch does not fit
    packing: bool = True  # the studies of a step in one row, nothing padded; with attention cxr
    gradient_checkpointing: bool = (
        False  # compute the blocks anew for the backward pass: a twelfth of the memory
    )
    max_length: int = (
        512  # tokens of prompt and findings beside the images'; longer studies are left out, and counted
    )
    learning_rate: float = 1e-3  # three times as much made small models ignore the image
    warmup_steps: int = 100  # a fresh projector starts far off
    weight_decay: float = 0.0  # LoRA and short runs want none
    adam_beta2: float = 0.99  # short runs: a second moment that follows
    clip: float = 1.0  # without it a run lost the image and never found it again
    precision: str = "auto"  # bf16 where the hardware multiplies it, which halves the time; else fp32
    eval_steps: int = 300  # validation loss and generated label F1; 0: never
    eval_studies: int = 256  # of the validation split; more makes the F1 steadier and the pauses longer
    eval_batch: int = 64  # studies generated together
    max_new_tokens: int = 256  # no findings are longer, but for a handful
    save_steps: int = 300  # checkpoints to go on from; the last two are kept
    log_steps: int = 25  # a line on the screen
    features: str = (
        "cached"  # computed once, on disk; online: in every step, where the disk is too small for all
    )
    augment: bool = False  # turn, shift, scale and brighten training images a little; needs features online
    train_encoder: bool = (
        False  # frozen in all papers we follow; needs features online, and writes OUT/merged alone
    )
    encoder_rate: float = 0.1  # times learning_rate, of a trained encoder: it has learned more than the rest
    workers: int = 2  # processes that read images
    feature_batch: int = 32  # images a forward pass of the encoder while features are cached
    features_dir: str | None = None  # where features lie (OUT/features); runs on the same images can share it
    attention: str = "cxr"  # our kernel; sdpa: PyTorch's; reference: the explicit formula
    threads: int = 0  # of each process on a CPU; 0: all cores, divided among the processes
    seed: int = 0  # projector, LoRA and order


LLM_DTYPES = ("fp32", "bf16", "nf4")
FEATURES = ("cached", "online")

MAY_DIFFER = {  # places, since what lies there is compared by digest, and how it is done
    "out", "encoder", "llm", "init", "studies", "merge", "merged_dtype", "eval_batch", "save_steps", "log_steps",
    "workers", "feature_batch", "features_dir", "attention", "name", "notice", "threads", "gradient_checkpointing",
    "packing",
}  # fmt: skip


def check(config: Finetune) -> Finetune:
    """Settle what follows from what. Raises ConfigError for fields that do not go together."""
    if (config.init is None) == (config.encoder is None or config.llm is None):
        raise ConfigError("give either --encoder and --llm, or --init")
    for name, known in (("llm_dtype", LLM_DTYPES), ("features", FEATURES)):
        if getattr(config, name) not in known:
            raise ConfigError(f"{name} {getattr(config, name)!r} is unknown; there are {', '.join(known)}")
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
