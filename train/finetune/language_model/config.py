"""Every field of the training of a small language model, with its default and why it has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from train.common.config import Also, load_config


@dataclass(kw_only=True)
class LanguageModel:
    """Train a tokenizer and a small Llama on report texts, from nothing."""

    # ---- what it reads and writes
    # Folder of the run and of the finished model.
    out: str
    # Studies files (JSON Lines); the splits train and validate are used.
    studies: list[str]

    # ---- the texts
    # Wording of the prompt, as in the fine-tuning to come.
    wording: Literal["short", "instruct", "maira2"] = "short"
    # Put view, sex and age into the prompt, as in the fine-tuning to come.
    demographics: bool = False
    # Most tokens of a text; longer ones are cut.
    max_length: int = 512

    # ---- the model
    # Entries of the tokenizer - report language is narrow, and every entry costs hidden_size parameters.
    vocab_size: int = 1200
    # Width of a token - with 4 layers 2.0 M parameters, which phantoms' findings need, in 4 MB.
    hidden_size: int = 192
    # Number of blocks - with fewer the image is read less well, more cost time.
    num_hidden_layers: int = 4
    # Attention heads of a block - of 64 channels.
    num_attention_heads: int = 3
    # Width of the MLP - 8/3 of hidden_size, as Llama has it for SwiGLU.
    intermediate_size: int = 512
    # Positions: image tokens, prompt and findings together.
    max_position_embeddings: int = 2048

    # ---- optimisation
    # Steps of batch_size texts - ten passes over 5,000 reports; with more, small collections are learned by heart.
    max_steps: int = 800
    # Texts a step over all processes.
    batch_size: int = 64
    # Parts in which a step is computed.
    gradient_accumulation_steps: int = 1
    # Peak learning rate - small models take large steps.
    learning_rate: float = 3e-3
    # Steps of linear warm-up of the learning rate.
    warmup_steps: int = 50
    # Weight decay - mild, for the model is small.
    weight_decay: float = 0.01
    # AdamW's beta2 - in short runs the second moment has to follow.
    adam_beta2: float = 0.98
    # Greatest norm of the gradient - guards against rare batches.
    max_grad_norm: float = 1.0
    # Arithmetic of matrix products: auto is bf16 where the hardware multiplies it, else fp32.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Attention: cxr is our kernel, sdpa PyTorch's, reference the explicit formula.
    attention: Literal["cxr", "sdpa", "reference"] = "cxr"
    # Seed of initial weights and order.
    seed: int = 0

    # ---- the run
    # Steps between validation losses; 0: never.
    eval_steps: int = 200
    # Steps between checkpoints; the last two are kept.
    save_steps: int = 200
    # Steps between lines on the screen.
    logging_steps: int = 50
    # Threads of each process on a CPU; 0: all cores, divided among the processes.
    threads: int = 0


# May differ when a run is resumed.
MAY_DIFFER = {"out", "studies", "logging_steps", "save_steps", "attention", "threads"}
# Names that recipes and runs before 0.2 have.
RENAMED = {
    "vocabulary": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "intermediate": "intermediate_size", "context": "max_position_embeddings", "clip": "max_grad_norm",
    "gradient_accumulation": "gradient_accumulation_steps", "log_steps": "logging_steps",
}  # fmt: skip


def configured(argv: list[str] | None = None, also: Also | None = None) -> LanguageModel:
    """Read a command line. Raises ConfigError, or SystemExit as argparse does."""
    return load_config(LanguageModel, "language_model", argv, renamed=RENAMED, also=also)
