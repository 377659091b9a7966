"""Reinforcement: a findings model learns from rewards, any score of `eval`, on answers it draws itself (GRPO).

    pip install "cxr-vlm[rl]"
    accelerate launch -m train.grpo --recipe grpo_mini --init mini --studies data/studies.jsonl \
        --reward rouge-l/coco label-f1/14/micro/neg --reward_weights 1 0.5 --out runs/grpo

Of every study several answers are drawn; those that the rewards like better than their group become likelier (Shao et
al., DeepSeekMath, arXiv 2402.03300). The trainer is trl's GRPOTrainer as it is; what it needs of our model is in
train/grpo/rollouts.py. LoRA learns, and the projector if asked for; the encoder does not. Watch the rewards of held-out
studies, with true and with shuffled images (train/grpo/watch.py).

Stop with SIGINT; the same command goes on, with the numbers of an uninterrupted run. OUT holds `adapter/`, which `cxr
generate` takes, and with --merge `merged/`, which plain transformers opens.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from train.common.config import ConfigError
from train.grpo.config import MAY_DIFFER, RENAMED, Grpo


def run(config: Grpo, functions: Sequence[Callable] = ()) -> int:
    """`functions` are rewards of one's own (see train.grpo.rollouts.Reward), beside those that the config names; each
    weighs 1."""
    import warnings

    import torch
    from huggingface_hub import constants
    from transformers.utils import logging

    from train.common.checkpoints import recorded
    from train.common.entry import INTERRUPTED
    from train.common.processes import process_state, settled_precision, use_cores
    from train.grpo.rollouts import Reward, StudyProcessor, exchanged
    from vlm import model as models
    from vlm.findings import derangement
    from vlm.hub import resolve
    from vlm.load import load_model

    constants.HF_HUB_DISABLE_TELEMETRY = True  # trl tells its makers of every run
    logging.disable_progress_bar()
    # names that trl, not we, will have to change
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")
    state = process_state()
    use_cores(config.threads, state.num_processes)
    out = Path(config.out)
    config.precision = settled_precision(config.precision, (recorded(out) or {}).get("precision"))
    start = resolve(config.init)
    if (start / "adapter_config.json").exists():
        raise ConfigError(f"{config.init} is an adapter: merge it first (cxr export {config.init} OUT)")
    rewards = [Reward(key, config.score_weights, config.score_device) for key in config.reward]
    rewards += map(Reward, functions)
    weights = [*(config.reward_weights or [1.0] * len(config.reward)), *[1.0] * len(functions)]
    names = [reward.__name__ for reward in rewards]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"rewards must be there, and have names of their own, not {names}")
    with state.main_process_first():
        checkpoint = open_run(out, config, start)
    if (out / "finished").exists():
        state.print(f"{out} is finished; choose another --out to train anew")
        return 0

    model = load_model(config.init, attention=config.attention, dtype=models.DTYPES[config.dtype])
    model.llava.requires_grad_(False)
    model.meta.name = config.name
    model.meta.max_new_tokens = config.max_new_tokens or model.meta.max_new_tokens
    studies, rows = data_of(config, model, state)
    watched = {}
    if held_out := studies["validate"]:
        watched["true"] = rows["validate"]
        if len(held_out) > 1:
            order = derangement(len(held_out), config.seed)
            watched["shuffled"] = exchanged(held_out, order, model.meta.prompt)

    from train.grpo.trainer import Loop
    from train.grpo.watch import Watch

    processor = StudyProcessor.of(model)
    torch.manual_seed(config.seed)
    loop = Loop(config, model, processor, rewards, weights, rows["train"], state)
    watch = Watch(config, processor, rewards, weights, watched, loop.accelerator)
    loop.add_callback(watch)
    if state.is_main_process:
        print_plan(model, processor, config)
        named = " + ".join(f"{w:g} x {r.__name__}" for w, r in zip(weights, rewards, strict=True))
        print(
            f"reward {named}: {config.num_generations} answers to each of {config.batch_size} studies a step; "
            f"{len(rows['train'])} studies to learn from, {len(rows['validate'])} held out",
            flush=True,
        )
    try:
        finished = loop.run(checkpoint)
    finally:
        watch.close()
    if not finished:
        state.print(f"stopped at step {loop.state.global_step}; the same command goes on from there")
        return INTERRUPTED
    if state.is_main_process:
        processor.restore()
        write(config, model, start)
    state.wait_for_everyone()
    return 0


def open_run(out: Path, config: Grpo, start: Path) -> Path | None:
    """Make the run folder or find it again; returns the last complete checkpoint, if there is one."""
    from train.common import trainer
    from vlm import model as models

    studies = [trainer.file_sha256(Path(path)) for path in config.studies]
    digests = {"sha256 of init": models.weights_sha256(start), "sha256 of studies": studies}
    return trainer.open_run(out, config, MAY_DIFFER, digests, RENAMED)


def data_of(config: Grpo, model, state) -> tuple[dict[str, list], dict[str, list[dict]]]:
    """({split: studies}, {split: their rows}): as many as the run can come to, drawn by `seed`, every image readable,
    every prompt short enough. What is left out is counted on the screen."""
    import torch
    from accelerate.utils import gather_object

    from train.grpo.rollouts import rows_of, unreadable
    from vlm.study import absolute, load_studies, patients_across_splits

    style = model.meta.prompt
    usable: dict[str, list] = {"train": [], "validate": []}
    for listing in config.studies:
        found = load_studies(listing)
        if shared := patients_across_splits(found):
            state.print(
                f"warning: {len(shared)} patients of {listing} are in several splits, so held-out rewards will be too "
                f"good; cxr studies check {listing} names them"
            )
        for study in found:
            if (split := study.split or "train") in usable and rows_of([study], style):
                usable[split].append(absolute(study, Path(listing).parent))
    generator = torch.Generator().manual_seed(config.seed)
    wanted = {
        "train": config.max_steps // config.num_iterations * config.batch_size,
        "validate": config.eval_studies,
    }
    if not config.eval_steps:
        wanted["validate"] = 0
    studies, rows = {}, {}
    for split, found in usable.items():
        order = torch.randperm(len(found), generator=generator)[: wanted[split]].tolist()
        pairs = [(found[i], rows_of([found[i]], style)[0]) for i in order]
        paths = list(dict.fromkeys(path for _, row in pairs for path in row["images"]))
        bad = gather_object(unreadable(paths[state.process_index :: state.num_processes]))
        gone = {line.partition(": ")[2] for line in bad}
        for line in sorted(bad)[:5]:
            state.print(f"left out, {line}")
        if len(bad) > 5:
            state.print(f"... and {len(bad) - 5} more images that cannot be read")
        pairs = [(study, row) for study, row in pairs if not gone.intersection(row["images"])]
        kept = [(study, row) for study, row in pairs if words_of(model, row) <= config.max_length]
        if len(kept) < len(pairs):
            state.print(
                f"{split}: {len(pairs) - len(kept)} studies with prompts of more than {config.max_length} tokens left "
                "out"
            )
        studies[split], rows[split] = [s for s, _ in kept], [row for _, row in kept]
    if len(rows["train"]) < config.batch_size:
        raise ConfigError(
            f"{', '.join(config.studies)}: {len(rows['train'])} studies of split 'train' have an image that can be "
            f"read and {style.section}; a step takes {config.batch_size}"
        )
    return studies, rows


def words_of(model, row: dict) -> int:
    """Tokens of a row's prompt beside those of its images."""
    return len(model.prompt_ids(row["prompt"][0]["content"])) - model.image_tokens * len(row["images"])


def print_plan(model, processor, config: Grpo) -> None:
    """What is trained."""
    from vlm.model import parameter_table

    tower = sum(p.numel() for p in processor.tower.parameters())
    *parts, (name, total, trained) = parameter_table(model.llava)
    for part, count, trainable in [("vision_tower", tower, 0), *parts, (name, total + tower, trained)]:
        print(
            f"{part:22} {count:>14,} parameters  {trainable:>12,} trained  {100 * trainable / max(count, 1):5.1f} %"
        )


def write(config: Grpo, model, start: Path) -> None:
    """The adapter, and with `merge` the merged model."""
    from vlm import model as models
    from vlm.findings import OUTLIERS

    out = Path(config.out)
    model.llava.eval()
    written = [out / "adapter", *([out / "merged"] if config.merge else [])]
    for folder in written:
        if folder.exists():
            shutil.rmtree(folder)  # of an end that was cut off
    models.save_adapter(model, out / "adapter", config.init)
    if config.merge:
        models.save(models.merge(model), out / "merged", models.DTYPES[config.merged_dtype])
    for folder in written:
        if (start / OUTLIERS).is_file():  # the images it knows are those of the start
            shutil.copy(start / OUTLIERS, folder)
        print(f"wrote {folder}")
    (out / "finished").touch()
