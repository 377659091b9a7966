"""Fine-tuning: projector and LoRA, or the whole language model, learn to say what an encoder sees.

    accelerate launch -m train.finetune --recipe mini --encoder runs/encoder --llm runs/mini_llm \
        --studies data/studies.jsonl --out runs/mini_findings --merge

The encoder is frozen, so its features are computed once and kept on disk; the steps then cost the language model
alone (`--features online` lets it work in every step instead). Watch the label F1 of generated findings with true and
with shuffled images, not the loss: a model may write well and look at nothing. Stop with SIGINT; the same command goes
on, with the losses of an uninterrupted run.

OUT holds `base/` (what the adapter belongs to), `adapter/` and with --merge `merged/`, which plain transformers opens.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from train.common.config import ConfigError
from train.finetune.config import MAY_DIFFER, RENAMED, Finetune


def run(config: Finetune) -> int:
    import torch

    from train.common import deepspeed
    from train.common.checkpoints import recorded
    from train.common.entry import INTERRUPTED
    from train.common.processes import process_state, settled_precision, use_cores
    from train.common.trainer import file_sha256, open_run, quiet
    from train.finetune.finish import finish
    from train.finetune.plan import print_plan
    from vlm import adapters
    from vlm import model as models
    from vlm import projector as projectors
    from vlm.hub import resolve

    quiet()
    state = process_state()
    use_cores(config.threads, state.num_processes)
    out = Path(config.out)
    config.precision = settled_precision(config.precision, (recorded(out) or {}).get("precision"))
    if config.init and (resolve(config.init) / "adapter_config.json").exists():
        raise ConfigError(f"{config.init} is an adapter: merge it first (cxr export {config.init} OUT)")
    parts = ("init",) if config.init else ("encoder", "llm")
    digests = {f"sha256 of {p}": models.weights_sha256(resolve(getattr(config, p))) for p in parts}
    digests["sha256 of studies"] = [file_sha256(Path(p)) for p in config.studies]
    with state.main_process_first():
        checkpoint = open_run(out, config, MAY_DIFFER, digests, RENAMED)
    if (out / "finished").exists():
        state.print(f"{out} is finished; choose another --out to train anew")
        return 0

    # the parts
    model = parts_of(config, state)
    if config.packing and (window := adapters.sliding_window(model.llava.config.text_config)):
        config.packing = False
        state.print(f"not packed: the language model has a sliding window of {window} tokens")

    # the studies, and what is shown of their images
    data = load_data(model, config, state)

    # calibrate; put what gives standardised features in the place of the tower; remember the base
    llava = model.llava
    sample = torch.linspace(0, len(data["train"]) - 1, min(256, len(data["train"]))).long().tolist()
    sample_BNC = data["train"].first(sample)
    statistics = projectors.statistics(llava, sample_BNC)
    if not config.init:
        projectors.calibrate(llava, sample_BNC, config.projector_gain)
        if config.align_steps:
            from train.finetune.align import align_projector

            align_projector(llava, data, statistics, config, state)
    if config.projector_steps and not first_stage(model, statistics, data, config, state):
        return INTERRUPTED
    base = Path(config.init) if config.init and not config.projector_steps else out / "base"
    if config.lora and base == out / "base" and state.is_main_process:
        if base.exists():  # of a start that was cut off
            shutil.rmtree(base)
        models.save(model, base)
    state.wait_for_everyone()
    tower = prepare(model, statistics, config)
    if state.is_main_process:
        print_plan(model.llava, tower, data["train"], config)

    loop = make_loop(model, data, config, out, state)
    if not loop.run(checkpoint):
        state.print(f"stopped at step {loop.state.global_step}; the same command goes on from there")
        return INTERRUPTED
    if loop.split and state.is_main_process:  # the one that was trained is in parts
        if loop.is_deepspeed_enabled:
            deepspeed.end()
        model = replace(model, llava=parts_of(config, state).llava)
        tower = prepare(model, statistics, config)
    loop.load_best(model.llava)
    if state.is_main_process:
        finish(model, tower, statistics, data["train"], config, base)
        (out / "finished").touch()
    state.wait_for_everyone()
    return 0


def parts_of(config: Finetune, state):
    """The findings model to begin with: `init`, or encoder and language model with a fresh projector."""
    import torch

    from vlm.build import build
    from vlm.load import load_model
    from vlm.prompts import PromptStyle, style_of

    try:
        style = style_of(**{f.name: getattr(config, f.name) for f in fields(PromptStyle)})
    except ValueError as error:
        raise ConfigError(str(error)) from None
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
    return model


def standardised(llava, statistics, config: Finetune):
    """Put what gives standardised features in the place of the tower, and out of the projector. -> the tower."""
    from vlm import projector as projectors

    tower, layers = llava.model.vision_tower, projectors.layers_of(llava)
    norm = getattr(llava.config, "feature_norm", False)
    if config.features == "cached":
        llava.model.vision_tower = projectors.FeatureTower(*statistics, layers)
    else:
        llava.model.vision_tower = projectors.StandardTower(
            tower, *statistics, layers, norm, config.train_encoder
        )
    projectors.unfold(llava.model.multi_modal_projector, *statistics)
    return tower


def prepare(model, statistics, config: Finetune):
    """The model as it is trained: LoRA or the whole language model, projector, encoder. -> its tower."""
    import torch

    from vlm import adapters
    from vlm.adapters import base_of

    tower = standardised(model.llava, statistics, config)
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
        base_of(model.llava).model.vision_tower.freeze_unused(torch.zeros(1, 3, size, size))
    return tower


def load_data(model, config: Finetune, state) -> dict:
    """The Examples of splits `train` and `validate`. Raises ConfigError if there are none to train on."""
    from train.common.trainer import load_listing
    from train.finetune.examples import Examples
    from train.finetune.images import image_features, image_films
    from vlm.prompts import answer_for, shown_images
    from vlm.study import absolute

    style, names = model.meta.prompt, ", ".join(config.studies)
    studies = [
        absolute(study, Path(listing).parent)
        for listing in config.studies
        for study in load_listing(listing, state)
        if answer_for(study, style) and (study.split or "train") in ("train", "validate")
    ]
    paths = list(dict.fromkeys(Path(image.path) for s in studies for _, image in shown_images(s, style)))
    place = Path(config.features_dir) if config.features_dir else Path(config.out) / "features"
    settings = (model, paths, place, state, config.feature_batch_size, config.dataloader_num_workers)
    if config.features == "cached":
        images = dict.fromkeys(("train", "validate"), image_features(*settings))
    else:
        films = image_films(*settings)
        images = {"train": films.with_augmentation(config.augment), "validate": films}
    data = {}
    for split in ("train", "validate"):
        chosen = [s for s in studies if (s.split or "train") == split]
        dropout = config.context_dropout if split == "train" else 0.0
        data[split] = Examples(chosen, images[split], model, dropout, config.seed)
        before = len(data[split])
        data[split].keep([i for i in range(before) if data[split].words(i) <= config.max_length])
        if len(data[split]) < before:
            state.print(
                f"{split}: {before - len(data[split])} studies of more than {config.max_length} tokens left out"
            )
        state.print(f"{split}: {len(data[split])} studies")
    if not len(data["train"]):
        raise ConfigError(f"{names}: no study of split 'train' has an image and {config.section}")
    data["validate"].keep(list(range(len(data["validate"])))[: config.eval_studies])
    return data


def first_stage(model, statistics, data: dict, config: Finetune, state) -> bool:
    """LLaVA's first stage: the projector alone learns through the frozen language model. Its checkpoints and outcome
    lie in OUT/projector. False if it was stopped."""
    from safetensors.torch import load_file, save_file

    from train.common.trainer import last_checkpoint
    from vlm import projector as projectors

    llava, out = model.llava, Path(config.out) / "projector"
    projector, file = llava.model.multi_modal_projector, out / "projector.safetensors"
    if not file.exists():
        out.mkdir(exist_ok=True)
        state.print(f"first stage: the projector alone, {config.projector_steps} steps")
        tower = standardised(llava, statistics, replace(config, train_encoder=False))
        llava.requires_grad_(False)
        projector.requires_grad_(True)
        stage = replace(
            config, max_steps=config.projector_steps, batch_size=config.projector_batch_size, projector_rate=1.0,
            learning_rate=config.projector_learning_rate, warmup_steps=max(1, round(0.03 * config.projector_steps)),
            eval_steps=0, train_encoder=False,
        )  # fmt: skip
        loop = make_loop(model, data, stage, out, state)
        if loop.split:
            raise ConfigError(
                "projector_steps runs on DistributedDataParallel alone: give train/launch/ddp.yaml"
            )
        if not loop.run(last_checkpoint(out)):
            state.print(
                f"stopped in the first stage, at step {loop.state.global_step}; the same command goes on"
            )
            return False
        loop.accelerator.unwrap_model(loop.model_wrapped, keep_fp32_wrapper=False)  # its forward as it was
        del loop
        gc.collect()  # and with it DistributedDataParallel's hooks on the projector
        llava.cpu().model.vision_tower = tower
        projectors.fold(projector, *statistics)
        if state.is_main_process:
            part = file.with_suffix(".part")
            save_file(projector.state_dict(), part)
            part.rename(file)
        state.wait_for_everyone()
    projector.load_state_dict(load_file(file))
    return True


def make_loop(model, data: dict, config: Finetune, out: Path, state):
    """The Trainer."""
    from train.common.batches import collate
    from train.common.trainer import arguments, checkpointing
    from train.finetune.watch import WatchedLoop

    evaluate = bool(config.eval_steps and len(data["validate"]))
    args = arguments(
        out, config, state.num_processes,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=config.eval_steps if evaluate else None,
        **(checkpointing() if config.gradient_checkpointing else {}),
        dataloader_num_workers=config.dataloader_num_workers if config.features == "online" else 0,
    )  # fmt: skip
    loop = WatchedLoop(
        model,
        config,
        precision=config.precision,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validate"] if len(data["validate"]) else None,
        data_collator=partial(collate, pad=model.tokenizer.pad_token_id, pack=config.packing),
    )
    if loop.split and config.llm_dtype == "nf4":
        raise ConfigError("weights in 4 bits are not split among processes: give train/launch/ddp.yaml")
    return loop
