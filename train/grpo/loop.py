"""Reinforcement: a findings model learns from rewards, any score of `eval`, on answers it draws itself (GRPO).

    pip install "cxr-vlm[rl]"
    accelerate launch -m train.grpo --recipe grpo_mini --init mini --studies data/studies.jsonl \
        --reward rouge-l/coco label-f1/14/micro/neg --reward_weights 1 0.5 --out runs/grpo

Of every study several answers are drawn; those that the rewards like better than their group become likelier (Shao et
al., DeepSeekMath, arXiv 2402.03300). The trainer is trl's GRPOTrainer as it is; what it needs of our model is in
train/grpo/rollouts.py. LoRA learns, and the projector if asked for; the encoder does not. Watch the rewards of held-out
studies, with true and with shuffled images (train/grpo/watch.py).

Stop with SIGINT; run the same command to resume, with the numbers of an uninterrupted run. OUT holds `adapter/`, which
`cxr generate` takes, and with --merge `merged/`, which plain transformers opens.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import constants

from train.common.config import ConfigError
from train.common.entry import next_is_to_judge
from train.common.runs import begin, merged, start
from train.common.studies import SPLITS, split_of, studies_of, with_answer
from train.grpo.config import MAY_DIFFER, RENAMED, Grpo
from train.grpo.rollouts import Reward, StudyProcessor, exchanged, rows_of, unreadable
from vlm import model as models
from vlm.findings import OUTLIERS
from vlm.load import load_model
from vlm.model import FindingsModel
from vlm.prompts import derangement
from vlm.study import Study


def run(config: Grpo, functions: Sequence[Callable] = ()) -> int:
    """Train, or resume, and write the model; returns the exit status. Raises UserError.

    `functions` are your own rewards (see train.grpo.rollouts.Reward), beside those that the config names;
    each weighs 1.
    """
    # ------------------------------------------------------------------------------------------------------------------
    # Find the run again, or a free folder. A resumed run must read what it read before, which digests tell.
    state = start(config)
    check_shares(config, state)
    rewards, weights = rewards_of(config, functions)
    start_from = merged(config.init)
    digests = {"sha256 of init": models.weights_sha256(start_from)}
    begun = begin(config, state, digests, MAY_DIFFER, RENAMED)
    if begun.finished:
        return 0

    # ------------------------------------------------------------------------------------------------------------------
    # Load the model, all of it frozen, and draw the studies to learn from and those to watch.
    listed = studies_of(config.studies, state)
    model = load_model(config.init, attention=config.attention, dtype=models.DTYPES[config.dtype])
    model.llava.requires_grad_(False)
    model.meta.name = config.name
    model.meta.max_new_tokens = config.max_new_tokens or model.meta.max_new_tokens
    studies, rows = data_of(config, model, listed, state)
    begun.claim()
    watched = {}
    if held_out := studies["validate"]:
        watched["true"] = rows["validate"]
        if len(held_out) > 1:
            order = derangement(len(held_out), config.seed)
            watched["shuffled"] = exchanged(held_out, order, model.meta.prompt)

    # ------------------------------------------------------------------------------------------------------------------
    # Train. The tower looks at every image once, outside of the model, and its features go for the pixels.
    quiet_trl()
    from train.grpo.trainer import GrpoTrainer
    from train.grpo.watch import Watch

    processor = StudyProcessor.of(model)
    torch.manual_seed(config.seed)
    trainer = GrpoTrainer(config, model, processor, rewards, weights, rows["train"], state)
    trainer.add_callback(Watch(trainer, processor, rewards, weights, watched))
    if state.is_main_process:
        print_plan(model, processor)
        named = " + ".join(f"{w:g} x {r.__name__}" for w, r in zip(weights, rewards, strict=True))
        print(
            f"reward {named}: {config.num_generations} answers to each of {config.batch_size} studies a step; "
            f"{len(rows['train'])} studies to learn from, {len(rows['validate'])} held out",
            flush=True,
        )
    if not trainer.run(begun.checkpoint):
        return trainer.interrupts.exit_status

    # ------------------------------------------------------------------------------------------------------------------
    # Write the adapter, and the merged model.
    if state.is_main_process:
        processor.restore()
        write(config, model, start_from)
        next_is_to_judge(Path(config.out) / "adapter", config.studies[-1], "validate" if held_out else None)
    state.wait_for_everyone()
    return 0


def check_shares(config: Grpo, state: PartialState) -> None:
    """Raise ConfigError where the answers of a step cannot be shared by processes and accumulated batches."""
    # Where answers serve several steps, all of a step's are drawn at once, else each accumulated batch draws its own.
    draws = 1 if config.num_iterations > 1 else config.gradient_accumulation_steps
    share = state.num_processes * config.gradient_accumulation_steps
    if config.batch_size % draws or config.batch_size * config.num_generations % share:
        raise ConfigError(
            f"{config.batch_size} studies x {config.num_generations} answers cannot be shared by "
            f"{state.num_processes} processes x {config.gradient_accumulation_steps} accumulated batches"
        )


def rewards_of(config: Grpo, functions: Sequence[Callable]) -> tuple[list[Reward], list[float]]:
    """Return the rewards and their weights. Raises ConfigError for an unknown one, or if there are none or
    two of a name."""
    rewards = [Reward(key, config.score_weights, config.score_device) for key in config.reward]
    rewards += map(Reward, functions)
    weights = [*(config.reward_weights or [1.0] * len(config.reward)), *[1.0] * len(functions)]
    names = [reward.__name__ for reward in rewards]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"rewards must be there, and have names of their own, not {names}")
    return rewards, weights


def quiet_trl() -> None:
    """Keep trl from telling its makers of every run, and from warning of names that it, not we, will have to change."""
    constants.HF_HUB_DISABLE_TELEMETRY = True
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")


def data_of(
    config: Grpo, model: FindingsModel, listed: Sequence[Study], state: PartialState
) -> tuple[dict[str, list[Study]], dict[str, list[dict]]]:
    """Return ({split: studies}, {split: their rows}): as many as the run can come to, drawn by `seed`, every image
    readable, every prompt short enough. What is left out is counted on the screen. Collective. Raises ConfigError."""
    style = model.meta.prompt
    chosen = with_answer(listed, style, config.studies)
    usable = {split: [study for study in chosen if split_of(study) == split] for split in SPLITS}
    generator = torch.Generator().manual_seed(config.seed)
    wanted = {
        "train": config.max_steps // config.num_iterations * config.batch_size,
        "validate": config.eval_studies if config.eval_steps else 0,
    }
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
        if long := len(pairs) - len(kept):
            state.print(
                f"{split}: {long} studies with prompts of more than {config.max_length} tokens left out"
            )
        studies[split], rows[split] = [s for s, _ in kept], [row for _, row in kept]
    if len(rows["train"]) < config.batch_size:
        raise ConfigError(
            f"{', '.join(config.studies)}: {len(rows['train'])} studies of split 'train' have an image that can be "
            f"read, {style.section} and a prompt of at most {config.max_length} tokens; a step takes "
            f"{config.batch_size} (--batch_size)"
        )
    return studies, rows


def words_of(model: FindingsModel, row: dict) -> int:
    """Return the tokens of a row's prompt beside those of its images."""
    return len(model.prompt_ids(row["prompt"][0]["content"])) - model.image_tokens * len(row["images"])


def print_plan(model: FindingsModel, processor: StudyProcessor) -> None:
    """Print what is trained."""
    tower = sum(p.numel() for p in processor.tower.parameters())
    *parts, (name, total, trained) = models.parameter_table(model.llava)
    for part, count, trainable in [("vision_tower", tower, 0), *parts, (name, total + tower, trained)]:
        print(
            f"{part:22} {count:>14,} parameters  {trainable:>12,} trained  {100 * trainable / max(count, 1):5.1f} %"
        )


def write(config: Grpo, model: FindingsModel, start_from: Path) -> None:
    """Write the adapter, and with `merge` the merged model."""
    out = Path(config.out)
    model.llava.eval()
    written = [out / "adapter", *([out / "merged"] if config.merge else [])]
    for folder in written:
        # Of an end that was cut off.
        if folder.exists():
            shutil.rmtree(folder)
    models.save_adapter(model, out / "adapter", config.init)
    if config.merge:
        models.save(models.merge(model), out / "merged", models.DTYPES[config.merged_dtype])
    for folder in written:
        # The images it knows are those of the start.
        if (start_from / OUTLIERS).is_file():
            shutil.copy(start_from / OUTLIERS, folder)
        print(f"wrote {folder}")
    (out / "finished").touch()
