"""Fine-tuning: projector and LoRA, or the whole language model, learn to say what an encoder sees.

    accelerate launch -m train.finetune --recipe mini --encoder runs/encoder --llm runs/mini_llm \
        --studies data/studies.jsonl --out runs/mini_findings --merge

The encoder is frozen, so its features are computed once and kept on disk; the steps then cost the language model
alone (`--features online` lets it work in every step instead). Watch the label F1 of generated findings with true and
with shuffled images, not the loss: a model may write well and look at nothing. Stop with SIGINT; run the same command
to resume, with the losses of an uninterrupted run.

OUT holds `base/` (what the adapter belongs to), `adapter/` and with --merge `merged/`, which plain transformers opens.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoder.files import write_atomically
from train.common import deepspeed
from train.common.batches import collate
from train.common.config import ConfigError
from train.common.entry import next_is_to_judge
from train.common.resume import load_trained
from train.common.runs import asked_for, begin, check_batch, last_checkpoint, merged, start, weights_are_split
from train.common.studies import studies_of
from train.common.trainer import arguments, checkpointing
from train.finetune.align import align_projector
from train.finetune.config import MAY_DIFFER, RENAMED, Finetune
from train.finetune.data import load_data
from train.finetune.examples import Examples, spaced
from train.finetune.finish import finish
from train.finetune.plan import print_plan
from train.finetune.tower import standardised
from train.finetune.watch import FindingsTrainer
from vlm import adapters
from vlm import model as models
from vlm import projector as projectors
from vlm.build import build
from vlm.hub import resolve
from vlm.load import load_model
from vlm.model import FindingsModel
from vlm.prompts import PromptStyle, style_of


def run(config: Finetune) -> int:
    """Train, or resume, and write the model; returns the exit status. Raises UserError."""
    # ------------------------------------------------------------------------------------------------------------------
    # Find the run again, or a free folder. A resumed run must read what it read before, which digests tell.
    state = start(config)
    check_launch(config, state)
    begun = begin(config, state, digests_of(config), MAY_DIFFER, RENAMED)
    if begun.finished:
        return 0

    # ------------------------------------------------------------------------------------------------------------------
    # Put the model together, and read the studies with what is shown of their images: features, on disk, or films.
    studies = studies_of(config.studies, state)
    state.print(f"loading {config.init or f'{config.encoder} and {config.llm}'} for {len(studies)} studies")
    model = parts_of(config, state)
    data = load_data(model, studies, config, state)
    begun.claim()

    # ------------------------------------------------------------------------------------------------------------------
    # Give the projector a good start: scale it to the language model, then align it with what reports name, then let
    # it learn alone through the frozen language model. The adapter will belong to the model as it is then.
    sample_BNC = data["train"].first(spaced(len(data["train"]), 256))
    statistics = projectors.statistics(model.llava, sample_BNC)
    if not config.init:
        projectors.calibrate(model.llava, sample_BNC, config.projector_gain)
    if config.align_steps and not config.init:
        align_projector(model, data, statistics, config, state)
    if config.projector_steps and (stopped := first_stage(model, statistics, data, config, state)):
        return stopped
    base = remembered(model, config, state)

    # ------------------------------------------------------------------------------------------------------------------
    # Train. Meanwhile the projector reads standardised features, in which all channels learn equally fast.
    with standardised(model, statistics, config) as tower:
        adapt(model, tower, config)
        if state.is_main_process:
            print_plan(model.llava, tower, data["train"], config)
        trainer = trainer_of(model, data, config, begun.out, state)
        if not trainer.run(begun.checkpoint):
            return trainer.interrupts.exit_status
        weights = trainer.best_weights()
        if state.is_main_process and not trainer.split:
            load_trained(model.llava, weights)

    # ------------------------------------------------------------------------------------------------------------------
    # Write the adapter, or the whole model, with the best weights. Those that processes share are put into a new model.
    if state.is_main_process:
        if trainer.split:
            model = rebuilt(weights, statistics, config, state)
        folder = finish(model, data["train"], config, base)
        (begun.out / "finished").touch()
        next_is_to_judge(folder, config.studies[-1], "validate" if len(data["validate"]) else None)
    state.wait_for_everyone()
    return 0


def check_launch(config: Finetune, state: PartialState) -> None:
    """Raise ConfigError for what cannot be trained, or not by these processes, before anything is loaded."""
    prompt_of(config)
    stages = ("batch_size", *(["projector_batch_size"] if config.projector_steps else []))
    for name in stages:
        check_batch(getattr(config, name), config.gradient_accumulation_steps, state.num_processes, name)
    if weights_are_split():
        for asked, what in (
            (config.llm_dtype == "nf4", "weights in 4 bits are"),
            (config.projector_steps, "a first stage (projector_steps) is"),
        ):
            if asked:
                raise ConfigError(f"{what} not split among processes: launch it by train/launch/ddp.yaml")


def digests_of(config: Finetune) -> dict[str, str]:
    """Return the digests of the models that a run begins with. Raises ConfigError for an adapter, ModelError."""
    if config.init:
        return {"sha256 of init": models.weights_sha256(merged(config.init))}
    folders = {"encoder": resolve(config.encoder, "encoder"), "llm": resolve(config.llm, "language model")}
    return {f"sha256 of {part}": models.weights_sha256(folder) for part, folder in folders.items()}


def prompt_of(config: Finetune) -> PromptStyle:
    """Return the prompt's style as the config has it. Raises ConfigError for one that no model has."""
    try:
        return style_of(**{f.name: getattr(config, f.name) for f in fields(PromptStyle)})
    except ValueError as error:
        raise ConfigError(str(error)) from None


def parts_of(config: Finetune, state: PartialState) -> FindingsModel:
    """Return the findings model to begin with: `init`, or encoder and language model with a fresh projector between.
    Raises ConfigError, ModelError."""
    style = prompt_of(config)
    if config.init:
        model = load_model(config.init, attention=config.attention)
        if style not in (PromptStyle(), model.meta.prompt):
            state.print(f"the prompt of {config.init} changes to {style}")
            model.meta.prompt = style
    else:
        model = build(
            config.encoder, config.llm, layers=config.layers, depth=config.projector_depth, norm=config.feature_norm,
            reduction=config.token_reduction, factor=config.reduction_factor, prompt=style, attention=config.attention,
            seed=config.seed, dtype=torch.float32 if config.llm_dtype == "fp32" else torch.bfloat16,
        )  # fmt: skip
    model.meta.name = config.name
    model.meta.notice = " ".join(filter(None, (config.notice, model.meta.licence)))
    model.meta.max_new_tokens = config.max_new_tokens
    if config.packing and (window := adapters.sliding_window(model.llava.config.text_config)):
        config.packing = False
        state.print(f"not packed: the language model has a sliding window of {window} tokens")
    return model


def first_stage(
    model: FindingsModel,
    statistics: tuple[Tensor, Tensor],
    data: dict[str, Examples],
    config: Finetune,
    state: PartialState,
) -> int:
    """Run LLaVA's first stage: the projector alone learns through the frozen language model. Its checkpoints
    and outcome lie in OUT/projector.

    Returns:
        0, or the exit status if it was stopped.
    """
    projector, out = model.parts.projector, Path(config.out) / "projector"
    file = out / "projector.safetensors"
    if not file.exists():
        out.mkdir(exist_ok=True)
        state.print(f"first stage: the projector alone, {config.projector_steps} steps")
        stage = replace(
            config, max_steps=config.projector_steps, batch_size=config.projector_batch_size, projector_lr_mult=1.0,
            learning_rate=config.projector_learning_rate, warmup_steps=max(1, round(0.03 * config.projector_steps)),
            eval_steps=0, train_encoder=False,
        )  # fmt: skip
        with standardised(model, statistics, stage):
            model.llava.requires_grad_(False)
            projector.requires_grad_(True)
            trainer = trainer_of(model, data, stage, out, state)
            finished = trainer.run(last_checkpoint(out), "in the first stage, ")
            stopped = 0 if finished else trainer.interrupts.exit_status
            # DistributedDataParallel has put its hooks on the projector, and itself around the forward pass.
            trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
            del trainer
            gc.collect()
            model.llava.cpu()
        if stopped:
            return stopped
        if state.is_main_process:
            with write_atomically(file) as part:
                save_file(projector.state_dict(), part)
        state.wait_for_everyone()
    projector.load_state_dict(load_file(file))
    return 0


def remembered(model: FindingsModel, config: Finetune, state: PartialState) -> Path:
    """Return what an adapter will belong to: `init`, or the model as it is now, written to OUT/base. Collective."""
    if config.init and not config.projector_steps:
        return Path(config.init)
    base = Path(config.out) / "base"
    if config.lora and state.is_main_process:
        # Of a start that was cut off.
        if base.exists():
            shutil.rmtree(base)
        models.save(model, base)
    state.wait_for_everyone()
    return base


def adapt(model: FindingsModel, tower: nn.Module, config: Finetune) -> None:
    """Make trainable what is to be trained: LoRA or the whole language model, projector, `tower`."""
    torch.manual_seed(config.seed)
    if config.lora:
        if config.llm_dtype == "nf4":
            adapters.quantise(model.llava)
        model.llava = adapters.add_lora(model.llava, config.lora_rank, config.lora_alpha, config.lora_dropout)
    else:
        model.llava.requires_grad_(True)
    tower.requires_grad_(config.train_encoder)
    if config.train_encoder:
        size = model.preprocessing.size
        model.parts.vision_tower.freeze_unused(torch.zeros(1, 3, size, size))


def trainer_of(
    model: FindingsModel, data: dict[str, Examples], config: Finetune, out: Path, state: PartialState
) -> FindingsTrainer:
    """Return the Trainer of a model whose tower gives standardised features."""
    evaluated = data["validate"] if len(data["validate"]) else None
    more: dict[str, Any] = checkpointing() if config.gradient_checkpointing else {}
    if config.eval_steps and evaluated:
        more |= {"eval_strategy": "steps", "eval_steps": config.eval_steps}
    if config.features == "online":
        more["dataloader_num_workers"] = config.dataloader_num_workers
    return FindingsTrainer(
        model,
        config,
        precision=config.precision,
        args=arguments(out, config, state.num_processes, **more),
        train_dataset=data["train"],
        eval_dataset=evaluated,
        data_collator=partial(collate, pad=model.tokenizer.pad_token_id, pack=config.packing),
    )


def rebuilt(
    weights: Path, statistics: tuple[Tensor, Tensor], config: Finetune, state: PartialState
) -> FindingsModel:
    """Return the model once more, whole in this process, with the trained weights of a file."""
    if asked_for("DEEPSPEED"):
        deepspeed.end()
    model = parts_of(config, state)
    with standardised(model, statistics, config) as tower:
        adapt(model, tower, config)
        load_trained(model.llava, weights)
    return model
