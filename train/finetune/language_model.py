"""A small language model that can already write reports, trained from nothing on their texts.

    accelerate launch -m train.finetune.language_model --recipe mini --studies data/studies.jsonl --out runs/mini_llm

LoRA needs a language model that writes; for small work this makes one: a byte-level BPE tokenizer and a small Llama,
trained on prompts and findings as `vlm.prompts` words them, without images. Stop it with SIGINT; the same command
goes on.
OUT is a plain transformers directory (AutoTokenizer, AutoModelForCausalLM).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train.common.config import Also, ConfigError, load_config


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
MAY_DIFFER = {"out", "studies", "logging_steps", "save_steps", "attention"}
# Names that recipes and runs before 0.2 have.
RENAMED = {
    "vocabulary": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "intermediate": "intermediate_size", "context": "max_position_embeddings", "clip": "max_grad_norm",
    "gradient_accumulation": "gradient_accumulation_steps", "log_steps": "logging_steps",
}  # fmt: skip


def configured(argv: list[str] | None = None, also: Also | None = None) -> LanguageModel:
    """Read a command line. Raises ConfigError, or SystemExit as argparse does."""
    return load_config(LanguageModel, "language_model", argv, renamed=RENAMED, also=also)


def main(argv: list[str] | None = None) -> int:
    """Run or resume; returns the exit status. Raises UserError."""
    config = configured(argv)
    from train.common.checkpoints import alone

    with alone(Path(config.out)):
        return run(config)


def train_tokenizer(texts: list[str], vocabulary: int):
    """Byte-level BPE with digits apart: any text can be written, and a size in mm is read digit by digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from vlm.prompts import IMAGE_TOKEN

    special = ["<pad>", "<s>", "</s>", IMAGE_TOKEN]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE_TOKEN],
        clean_up_tokenization_spaces=False,
    )


class Texts:
    """Token ids of "prompt + findings"; the loss is on every token but the first."""

    def __init__(self, studies: list, style, tokenizer, max_length: int):
        from vlm.prompts import answer_for, prompt_for

        texts = [prompt_for(s, style, image=False) + answer_for(s, style) for s in studies]
        eos = tokenizer.eos_token_id
        self.ids = [[*tokenizer(text)["input_ids"][: max_length - 1], eos] for text in texts]
        self.lengths = [len(ids) for ids in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: int) -> dict:
        return {"input_ids": self.ids[item % len(self)], "answer_from": 1}


def run(config: LanguageModel) -> int:
    from functools import partial

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from train.common.batches import collate
    from train.common.checkpoints import recorded
    from train.common.entry import INTERRUPTED
    from train.common.processes import process_state, settled_precision, use_cores
    from train.common.trainer import Loop, arguments, file_sha256, load_listing, open_run, quiet
    from vlm.model import attention_name
    from vlm.prompts import answer_for, prompt_for, style_of

    quiet()
    state = process_state()
    use_cores(config.threads, state.num_processes)
    out = Path(config.out)
    config.precision = settled_precision(config.precision, (recorded(out) or {}).get("precision"))
    try:
        style = style_of(wording=config.wording, demographics=config.demographics)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    digests = {"sha256 of studies": [file_sha256(Path(p)) for p in config.studies]}
    studies = [s for path in config.studies for s in load_listing(path, state) if answer_for(s)]
    studies = {
        split: [s for s in studies if (s.split or "train") == split] for split in ("train", "validate")
    }
    if not studies["train"]:
        raise ConfigError(f"{', '.join(config.studies)}: no study of split 'train' has findings")
    evaluate = bool(studies["validate"] and config.eval_steps)
    with state.main_process_first():
        checkpoint = open_run(out, config, MAY_DIFFER, digests, RENAMED)
        if not (out / "tokenizer.json").exists():
            texts = [prompt_for(s, style, image=False) + answer_for(s, style) for s in studies["train"]]
            train_tokenizer(texts, config.vocab_size).save_pretrained(out)
    if (out / "model.safetensors").exists():
        state.print(f"{out} is finished; choose another --out to train anew")
        return 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM._from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        attn_implementation=attention_name(config.attention),
    )
    data = {split: Texts(part, style, tokenizer, config.max_length) for split, part in studies.items()}
    state.print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, "
        f"{len(data['train'])} texts of {sum(data['train'].lengths) / len(data['train']):.0f} tokens on average"
    )

    class Writer(Loop):
        def evaluate(self, *args, **kwargs):
            self.flush_losses()
            metrics = super().evaluate(*args, **kwargs)
            self.record({"step": self.state.global_step, "eval_loss": metrics["eval_loss"]})
            self.say(f"step {self.state.global_step}  validation loss {metrics['eval_loss']:.4f}")
            return metrics

    loop = Writer(
        model=model,
        precision=config.precision,
        args=arguments(
            out,
            config,
            state.num_processes,
            eval_strategy="steps" if evaluate else "no",
            eval_steps=config.eval_steps if evaluate else None,
            prediction_loss_only=True,
        ),
        train_dataset=data["train"],
        eval_dataset=data["validate"] if evaluate else None,
        data_collator=partial(collate, pad=tokenizer.pad_token_id),
    )
    if not loop.run(checkpoint):
        state.print(f"stopped at step {loop.state.global_step}; the same command goes on from there")
        return INTERRUPTED
    if state.is_main_process:
        model.save_pretrained(out)
        print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    from train.common.entry import entry

    sys.exit(entry(main, "train.finetune.language_model"))
