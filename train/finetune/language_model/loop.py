"""A small language model that can already write reports, trained from nothing on their texts.

    accelerate launch -m train.finetune.language_model --recipe mini --studies data/studies.jsonl --out runs/mini_llm

LoRA needs a language model that writes; for small work this makes one: a byte-level BPE tokenizer and a small Llama,
trained on prompts and findings as `vlm.prompts` words them, without images. Stop it with SIGINT; run the same command
to resume. OUT is a plain transformers directory (AutoTokenizer, AutoModelForCausalLM).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from encoder.files import open_to_readers
from train.common.batches import collate
from train.common.config import ConfigError, recipe_for
from train.common.entry import free_beside, made_beside, next_command
from train.common.runs import begin, check_batch, start
from train.common.studies import SPLITS, split_of, studies_of, with_answer
from train.common.trainer import AnswerTrainer, arguments
from train.finetune.language_model.config import MAY_DIFFER, RENAMED, LanguageModel
from vlm.model import attention_name
from vlm.prompts import IMAGE_TOKEN, PromptStyle, answer_for, prompt_for, style_of
from vlm.study import Study

# What says that the run, or its tokenizer, has come to its end.
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"


def run(config: LanguageModel) -> int:
    """Train, or resume, and write the model; returns the exit status. Raises UserError."""
    # ------------------------------------------------------------------------------------------------------------------
    # Find the run again, or a free folder, and read the reports. A resumed run must read those that it read before.
    state = start(config)
    check(config, state)
    begun = begin(config, state, {}, MAY_DIFFER, RENAMED, mark=WEIGHTS)
    if begun.finished:
        return 0
    style = style_of(wording=config.wording, demographics=config.demographics)
    studies = with_answer(studies_of(config.studies, state), PromptStyle(), config.studies, images=False)
    begun.claim()

    # ------------------------------------------------------------------------------------------------------------------
    # Learn a tokenizer from the reports for training, and put all of them into its tokens.
    reports = {split: [s for s in studies if split_of(s) == split] for split in SPLITS}
    with state.main_process_first():
        if not (begun.out / TOKENIZER).exists():
            learned = train_tokenizer(texts_of(reports["train"], style), config.vocab_size)
            write(learned.save_pretrained, begun.out, TOKENIZER)
    tokenizer = AutoTokenizer.from_pretrained(begun.out)
    data = {
        split: Texts(texts_of(part, style), tokenizer, config.max_length) for split, part in reports.items()
    }

    # ------------------------------------------------------------------------------------------------------------------
    # Train a small Llama on them from nothing.
    torch.manual_seed(config.seed)
    model = llama(config, tokenizer)
    state.print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, "
        f"{len(data['train'])} texts of {sum(data['train'].lengths) / len(data['train']):.0f} tokens on average"
    )
    trainer = trainer_of(model, data, config, begun.out, state)
    if not trainer.run(begun.checkpoint):
        return trainer.interrupts.exit_status

    # ------------------------------------------------------------------------------------------------------------------
    # Write the model beside its tokenizer.
    if state.is_main_process:
        write(model.save_pretrained, begun.out, WEIGHTS)
        print(f"wrote {begun.out}")
        encoder = made_beside(begun.out, "encoder")
        next_command(
            "cxr", "finetune", *recipe_for(config, "finetune"), "--encoder", encoder or "mini", "--llm", begun.out,
            "--studies", *config.studies, "--out", free_beside(begun.out, "findings"),
            where="" if encoder else "or another --encoder: what cxr pretrain wrote, or a hub id",
        )  # fmt: skip
    return 0


def check(config: LanguageModel, state: PartialState) -> None:
    """Raise ConfigError for sizes that do not go together."""
    check_batch(config.batch_size, config.gradient_accumulation_steps, state.num_processes)
    width, heads = config.hidden_size, config.num_attention_heads
    if width % (2 * heads):
        near = max(1, round(width / (2 * heads))) * 2 * heads
        raise ConfigError(
            f"hidden_size {width} does not divide into {heads} heads of an even width (num_attention_heads); use {near}"
        )
    if config.max_length < 3:
        raise ConfigError(f"max_length must be at least 3, not {config.max_length}: begin, a word, end")
    if config.max_length > config.max_position_embeddings:
        raise ConfigError(
            f"max_length {config.max_length} is more than max_position_embeddings {config.max_position_embeddings}"
        )


def llama(config: LanguageModel, tokenizer) -> LlamaForCausalLM:
    """Return a fresh model."""
    return LlamaForCausalLM._from_config(
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


def trainer_of(
    model: LlamaForCausalLM, data: dict[str, Texts], config: LanguageModel, out: Path, state: PartialState
) -> TextTrainer:
    """Return the Trainer of a language model."""
    evaluated = data["validate"] if config.eval_steps and len(data["validate"]) else None
    more = {"eval_strategy": "steps", "eval_steps": config.eval_steps} if evaluated else {}
    return TextTrainer(
        model=model,
        precision=config.precision,
        args=arguments(out, config, state.num_processes, prediction_loss_only=True, **more),
        train_dataset=data["train"],
        eval_dataset=evaluated,
        data_collator=partial(collate, pad=model.config.pad_token_id),
    )


class TextTrainer(AnswerTrainer):
    """Train on every token of a text."""

    def evaluate(self, *args, **kwargs):
        """Return transformers' metrics; record `eval_loss`, in nats a token, and print it."""
        self.flush_losses()
        metrics = super().evaluate(*args, **kwargs)
        self.record({"step": self.state.global_step, "eval_loss": metrics["eval_loss"]})
        self.say(f"step {self.state.global_step}  validation loss {metrics['eval_loss']:.4f}")
        return metrics


def write(save: Callable[[Path], object], out: Path, last: str) -> None:
    """Let `save` write files for a folder that holds others; the one that says that all are there comes last."""
    part = out / ".new"
    shutil.rmtree(part, ignore_errors=True)
    save(part)
    open_to_readers(part)
    for file in sorted(part.iterdir(), key=lambda path: path.name == last):
        file.replace(out / file.name)
    part.rmdir()


def train_tokenizer(texts: list[str], vocabulary: int):
    """Train a byte-level BPE tokenizer with digits apart: any text can be written, and a size in mm is read
    digit by digit."""
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


def texts_of(studies: Sequence[Study], style: PromptStyle) -> list[str]:
    """Return prompt and findings of each study, without image tokens."""
    return [prompt_for(s, style, image=False) + answer_for(s, style) for s in studies]


class Texts:
    """Token ids of texts, at most `max_length` of each with the one that ends it; the loss is on every token but the
    first."""

    def __init__(self, texts: Sequence[str], tokenizer, max_length: int):
        eos = tokenizer.eos_token_id
        self.ids = [[*tokenizer(text)["input_ids"][: max_length - 1], eos] for text in texts]
        self.lengths = [len(ids) for ids in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: int) -> dict:
        return {"input_ids": self.ids[item % len(self)], "answer_from": 1}
