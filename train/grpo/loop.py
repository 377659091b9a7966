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

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.common.config import ConfigError, load_config


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


def main(argv: list[str] | None = None) -> int:
    config = load_config(Grpo, "grpo", argv)
    check(config)
    from train.common.checkpoints import alone

    with alone(Path(config.out)):
        return run(config)


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


def run(config: Grpo, functions: Sequence[Callable] = ()) -> int:
    """`functions` are rewards of one's own (see train.grpo.rollouts.Reward), beside those that the config names; they weigh
    1 each."""
    import warnings

    import torch
    from huggingface_hub import constants
    from transformers.utils import logging

    from train.common.checkpoints import recorded
    from train.common.launcher import INTERRUPTED
    from train.common.processes import process_state, settled_precision, use_cores
    from train.grpo.rollouts import Reward, StudyProcessor, exchanged
    from vlm import model as models
    from vlm.findings import derangement

    constants.HF_HUB_DISABLE_TELEMETRY = True  # trl tells its makers of every run
    logging.disable_progress_bar()
    # names that trl, not we, will have to change
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")
    state = process_state()
    use_cores(config.threads, state.num_processes)
    out = Path(config.out)
    config.precision = settled_precision(config.precision, recorded(out, "precision"), "fp32")
    start = models.resolve(config.init)
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

    model = models.load(config.init, attention=config.attention, dtype=models.DTYPES[config.dtype])
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
            f"reward {named}: {config.group} answers to each of {config.batch_size} studies a step; "
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
    return trainer.open_run(out, config, MAY_DIFFER, digests)


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
        "train": config.max_steps // config.iterations * config.batch_size,
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


if __name__ == "__main__":
    from train.common.trainer import entry

    sys.exit(entry(main))
