"""A small language model that can already write reports, trained from nothing on their texts.

    accelerate launch -m train.finetune.language_model --recipe mini --studies data/studies.jsonl --out runs/mini_llm

LoRA needs a language model that writes; for small work this makes one: a byte-level BPE tokenizer and a small Llama,
trained on prompts and findings as `vlm.prompts` words them, without images. Stop it with SIGINT; the same command
goes on.
OUT is a plain transformers directory (AutoTokenizer, AutoModelForCausalLM).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from train.common.config import ConfigError, load_config


@dataclass
class LanguageModel:
    """Train a tokenizer and a small Llama on report texts."""

    out: str = field(metadata={"help": "folder of the run and of the finished model"})
    studies: list[str] = field(
        metadata={"help": "studies files (JSON Lines); splits train and validate are used"}
    )
    wording: str = "short"  # prompt wording, as in the fine-tuning to come
    demographics: bool = False  # as in the fine-tuning to come
    vocabulary: int = 1200  # report language is narrow, and every entry is `width` parameters
    width: int = (
        192  # with 4 layers 2.0 M parameters: findings of phantoms need no more, and it ships in 4 MB
    )
    layers: int = 4  # fewer read the image less well, more cost time
    heads: int = 3  # of 64 dimensions
    intermediate: int = 512  # 8/3 of the width, as Llama has it for SwiGLU
    context: int = 2048  # positions: image tokens, prompt and findings
    max_length: int = 512  # tokens of a text; longer ones are cut
    max_steps: int = (
        800  # some ten passes over 5,000 reports: with more, small collections are learned by heart
    )
    batch_size: int = 64  # texts a step, over all processes
    gradient_accumulation: int = 1  # texts are short
    learning_rate: float = 3e-3  # small models take large steps
    warmup_steps: int = 50  # Adam's second moments need some
    weight_decay: float = 0.01  # mild; the model is small
    adam_beta2: float = 0.98  # short runs: a second moment that follows
    clip: float = 1.0  # guards against rare batches
    precision: str = "auto"  # bf16 where the hardware multiplies it, which halves the time; else fp32
    eval_steps: int = 200  # validation loss; 0: never
    save_steps: int = 200  # checkpoints to go on from
    log_steps: int = 50  # a line on the screen
    attention: str = "cxr"  # our kernel; sdpa: PyTorch's; reference: the explicit formula
    threads: int = 0  # of each process on a CPU; 0: all cores, divided among the processes
    seed: int = 0  # initialisation and order


MAY_DIFFER = {"out", "studies", "log_steps", "save_steps", "attention"}


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


def main(argv: list[str] | None = None) -> int:
    config = load_config(LanguageModel, "language_model", argv)
    from train.common.checkpoints import alone

    with alone(Path(config.out)):
        return run(config)


def run(config: LanguageModel) -> int:
    from functools import partial

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from train.common.batches import collate
    from train.common.checkpoints import recorded
    from train.common.launcher import INTERRUPTED
    from train.common.processes import process_state, settled_precision, use_cores
    from train.common.trainer import Loop, arguments, file_sha256, load_listing, open_run, quiet
    from vlm.model import attention_name
    from vlm.prompts import answer_for, prompt_for, style_of

    quiet()
    state = process_state()
    use_cores(config.threads, state.num_processes)
    out = Path(config.out)
    config.precision = settled_precision(config.precision, recorded(out, "precision"), "fp32")
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
        checkpoint = open_run(out, config, MAY_DIFFER, digests)
        if not (out / "tokenizer.json").exists():
            texts = [prompt_for(s, style, image=False) + answer_for(s, style) for s in studies["train"]]
            train_tokenizer(texts, config.vocabulary).save_pretrained(out)
    if (out / "model.safetensors").exists():
        state.print(f"{out} is finished; choose another --out to train anew")
        return 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM._from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate,
            max_position_embeddings=config.context,
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
    from train.common.trainer import entry

    sys.exit(entry(main))
