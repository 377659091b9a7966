"""Fine-tuning: projector and LoRA, or the whole language model, learn to say what a frozen encoder sees.

    accelerate launch -m train.finetune --recipe mini --encoder runs/encoder --llm runs/mini_llm \
        --studies data/studies.jsonl --out runs/mini_findings --merge

The encoder is frozen, so its features are computed once and kept on disk; the steps then cost the language model
alone. Watch the label F1 of generated findings with true and with shuffled images, not the loss: a model may write
well and look at nothing. Stop with SIGINT; the same command goes on, with the losses of an uninterrupted run.

OUT holds `base/` (what the adapter belongs to), `adapter/` and with --merge `merged/`, which plain transformers opens.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from train.config import ConfigError, load_config

if TYPE_CHECKING:
    from train.examples import Examples


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
    llm_dtype: str = "fp32"  # of the frozen language model under LoRA; bf16 halves its memory, for large ones
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
    align_steps: int = 0  # of 64 studies: the projector first learns what reports name (train/align.py)
    projector_rate: float = 1.0  # times learning_rate; an aligned projector wants little, or noise undoes it
    projector_gain: float = 3.0  # projector output, in standard deviations of the token embedding
    max_steps: int = 3000  # of batch_size studies
    batch_size: int = 32  # studies a step, over all processes
    gradient_accumulation: int = 1  # raise it where a batch does not fit
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
    workers: int = 2  # processes that read images while features are computed
    feature_batch: int = 32  # images a forward pass of the encoder
    features_dir: str | None = None  # where features lie (OUT/features); runs on the same images can share it
    attention: str = "cxr"  # our kernel; sdpa: PyTorch's; reference: the explicit formula
    threads: int = 0  # of each process on a CPU; 0: all cores, divided among the processes
    seed: int = 0  # projector, LoRA and order


LLM_DTYPES = ("fp32", "bf16")
LEAST_KNOWN, MOST_KNOWN = 200, 2000  # training images that say what an ordinary one is

MAY_DIFFER = {  # places, since what lies there is compared by digest, and how it is done
    "out", "encoder", "llm", "init", "studies", "merge", "merged_dtype", "eval_batch", "save_steps", "log_steps",
    "workers", "feature_batch", "features_dir", "attention", "name", "notice", "threads", "gradient_checkpointing",
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    config = load_config(Finetune, "finetune", argv)
    if (config.init is None) == (config.encoder is None or config.llm is None):
        raise ConfigError("give either --encoder and --llm, or --init")
    if config.llm_dtype not in LLM_DTYPES:
        raise ConfigError(f"llm_dtype {config.llm_dtype!r} is unknown; there are {', '.join(LLM_DTYPES)}")
    if config.llm_dtype != "fp32" and (not config.lora or config.init):
        raise ConfigError("llm_dtype bf16 is for a frozen language model: with lora, and --encoder and --llm")
    if config.llm_dtype == "bf16" and config.precision == "auto":
        config.precision = "bf16"
    if config.llm_dtype == "bf16" and config.precision == "fp32":
        raise ConfigError("llm_dtype bf16 needs precision bf16: float32 adapters have no products with it")
    from train.checkpoints import alone

    with alone(Path(config.out)):
        return run(config)


def run(config: Finetune) -> int:
    import torch

    from train.checkpoints import recorded
    from train.examples import Examples
    from train.features import image_features
    from train.launcher import INTERRUPTED
    from train.processes import process_state, settled_precision, use_cores
    from train.trainer import arguments, file_sha256, load_listing, open_run, quiet
    from vlm import adapters
    from vlm import model as models
    from vlm import projector as projectors
    from vlm.build import build
    from vlm.generate import OUTLIERS
    from vlm.prompts import PromptStyle, answer_for, shown_images, style_of
    from vlm.study import absolute

    quiet()
    state = process_state()
    use_cores(config.threads, state.num_processes)
    out = Path(config.out)
    config.precision = settled_precision(config.precision, recorded(out, "precision"), "fp32")
    if config.init and (models.resolve(config.init) / "adapter_config.json").exists():
        raise ConfigError(f"{config.init} is an adapter: merge it first (cxr export {config.init} OUT)")
    parts = ("init",) if config.init else ("encoder", "llm")
    digests = {f"sha256 of {p}": models.weights_sha256(models.resolve(getattr(config, p))) for p in parts}
    digests["sha256 of studies"] = [file_sha256(Path(p)) for p in config.studies]
    with state.main_process_first():
        checkpoint = open_run(out, config, MAY_DIFFER, digests)
    if (out / "finished").exists():
        state.print(f"{out} is finished; choose another --out to train anew")
        return 0

    # the parts
    try:
        style = style_of(**{f.name: getattr(config, f.name) for f in fields(PromptStyle)})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.init:
        model = models.load(config.init, attention=config.attention)
        if style not in (PromptStyle(), model.meta.prompt):
            state.print(f"the prompt of {config.init} changes to {style}")
            model.meta.prompt = style
    else:
        model = build(
            config.encoder, config.llm, layers=config.layers, depth=config.projector_depth, norm=config.feature_norm,
            reduction=config.token_reduction, factor=config.reduction, prompt=style, attention=config.attention,
            seed=config.seed, dtype=models.DTYPES[config.llm_dtype] or torch.float32,
        )  # fmt: skip
    model.meta.name = config.name
    model.meta.notice = " ".join(filter(None, (config.notice, model.meta.licence)))
    model.meta.max_new_tokens = config.max_new_tokens

    # the studies and their features
    studies = [
        absolute(study, Path(listing).parent)
        for listing in config.studies
        for study in load_listing(listing, state)
        if answer_for(study, model.meta.prompt) and (study.split or "train") in ("train", "validate")
    ]
    paths = [Path(image.path) for s in studies for _, image in shown_images(s, model.meta.prompt)]
    cache = Path(config.features_dir) if config.features_dir else out / "features"
    features, row_of = image_features(
        model, list(dict.fromkeys(paths)), cache, state, config.feature_batch, config.workers
    )
    data = {}
    for split in ("train", "validate"):
        chosen = [s for s in studies if (s.split or "train") == split]
        dropout = config.context_dropout if split == "train" else 0.0
        data[split] = Examples(chosen, features, row_of, model, dropout, config.seed)
        before = len(data[split])
        data[split].keep([i for i in range(before) if data[split].words(i) <= config.max_length])
        if len(data[split]) < before:
            state.print(
                f"{split}: {before - len(data[split])} studies of more than {config.max_length} tokens left out"
            )
        state.print(f"{split}: {len(data[split])} studies")
    if not len(data["train"]):
        raise ConfigError(
            f"{', '.join(config.studies)}: no study of split 'train' has an image and {config.section}"
        )
    data["validate"].keep(list(range(len(data["validate"])))[: config.eval_studies])
    evaluate = bool(config.eval_steps and len(data["validate"]))

    # calibrate, remember the base, put the features in the place of the tower
    sample = torch.linspace(0, len(data["train"]) - 1, min(256, len(data["train"]))).long().tolist()
    sample_BNC = data["train"].first(sample)
    mean_C, std_C = projectors.statistics(model.llava, sample_BNC)
    if not config.init:
        projectors.calibrate(model.llava, sample_BNC, config.projector_gain)
        if config.align_steps:
            align_projector(model.llava, data, mean_C, std_C, config, state)
    base = Path(config.init) if config.init else out / "base"
    if config.lora and not config.init and state.is_main_process:
        if base.exists():  # of a start that was cut off
            shutil.rmtree(base)
        models.save(model, base)
    state.wait_for_everyone()
    tower, model.llava.model.vision_tower = (
        model.llava.model.vision_tower,
        projectors.FeatureTower(mean_C, std_C, projectors.layers_of(model.llava)),
    )
    projectors.unfold(model.llava.model.multi_modal_projector, mean_C, std_C)
    torch.manual_seed(config.seed)
    if config.lora:
        model.llava = adapters.add_lora(model.llava, config.lora_rank, config.lora_alpha, config.lora_dropout)
    else:
        model.llava.requires_grad_(True)
    if state.is_main_process:
        print_plan(model.llava, sum(p.numel() for p in tower.parameters()), data["train"], config)

    loop = make_loop(model, data, config, arguments(
        out, config, state.num_processes,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=config.eval_steps if evaluate else None,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
    ))  # fmt: skip
    if not loop.run(checkpoint):
        state.print(f"stopped at step {loop.state.global_step}; the same command goes on from there")
        return INTERRUPTED

    # the best weights, folded back into a stock model with its tower
    if state.is_main_process:
        loop.load_best()
        projector = base_of(model.llava).model.multi_modal_projector
        projectors.fold(
            getattr(projector, "modules_to_save", {"default": projector})["default"], mean_C, std_C
        )
        base_of(model.llava).model.vision_tower = tower
        known = known_images(model, tower, data["train"], config.init)
        for folder in (out / "adapter", out / "merged"):
            if folder.exists():
                shutil.rmtree(folder)  # of an end that was cut off
        model.llava.eval()
        if config.lora:
            models.save_adapter(model, out / "adapter", base)
            if known:
                known.save(out / "adapter" / OUTLIERS)
            print(f"wrote {out / 'adapter'}")
        if config.merge or not config.lora:
            merged = models.merge(model)
            models.save(merged, out / "merged", models.DTYPES[config.merged_dtype])
            if known:
                known.save(out / "merged" / OUTLIERS)
            print(f"wrote {out / 'merged'}")
        (out / "finished").touch()
    state.wait_for_everyone()
    return 0


def known_images(model, tower, examples: Examples, init: str | None):
    """Statistics of the training images, by which generation warns about others; of `init`'s where those are few."""
    import torch

    from vlm.generate import OUTLIERS
    from vlm.model import resolve
    from vlm.outliers import Outliers, pooled
    from vlm.projector import layers_of

    inherited = resolve(init) / OUTLIERS if init else None
    if tower.config.model_type != "dinov2" or getattr(model.llava.config, "feature_norm", False):
        print(
            "no warnings about unusual images: they need a DINOv2 tower's features before the final LayerNorm"
        )
        return None
    layers, depth = layers_of(model.llava), tower.config.num_hidden_layers
    last = next((i for i, layer in enumerate(layers) if layer in (-1, depth)), None)
    few = len(examples) < LEAST_KNOWN
    if few and inherited is not None and inherited.is_file():
        return Outliers.load(inherited)
    if few or last is None:
        why = (
            f"{len(examples)} training images are too few" if few else "the last layer is not among --layers"
        )
        print(f"no warnings about unusual images: {why} (python -m vlm.outliers makes them from more)")
        return None
    rows = torch.linspace(0, len(examples) - 1, min(MOST_KNOWN, len(examples))).long()
    with torch.inference_mode():
        parts = []
        for part in rows.unique().split(64):
            x_BNC = examples.first(part.tolist()).chunk(len(layers), dim=-1)[last]
            parts.append(pooled(tower.layernorm(x_BNC.to(tower.device))))
    return Outliers.fit(torch.cat(parts), encoder_sha256=model.meta.encoder_sha256)


def align_projector(llava, data: dict[str, Examples], mean_C, std_C, config: Finetune, state) -> None:
    """By the first process; the others, and the same command after an interruption, read its outcome."""
    import torch
    from safetensors.torch import load_file, save_file

    from train.align import align
    from train.processes import use_cores
    from vlm import projector as projectors

    projector, file = llava.model.multi_modal_projector, Path(config.out) / "aligned.safetensors"
    if state.is_main_process and not file.exists():

        def tokens(examples: Examples, rows: list[int]):
            return (projectors.patches(llava, examples.first(rows)) - mean_C) / std_C

        threads = torch.get_num_threads()
        use_cores(0, 1)  # the other processes wait
        projectors.unfold(projector.to(state.device), mean_C, std_C)
        align(
            projector,
            lambda rows: tokens(data["train"], rows),
            [s.findings for s in data["train"].studies],
            (lambda rows: tokens(data["validate"], rows), [s.findings for s in data["validate"].studies]),
            steps=config.align_steps,
            precision=config.precision,
            seed=config.seed,
            device=state.device,
            say=lambda line: print(line, flush=True),
        )
        projectors.fold(projector.cpu(), mean_C, std_C)
        torch.set_num_threads(threads)
        part = file.with_suffix(".part")
        save_file(projector.state_dict(), part)
        part.rename(file)
    state.wait_for_everyone()
    projector.load_state_dict(load_file(file))


def base_of(llava):
    """The Llava model inside a PeftModel, or itself."""
    return llava.get_base_model() if hasattr(llava, "get_base_model") else llava


def print_plan(llava, tower_parameters: int, data: Examples, config: Finetune) -> None:
    """What is trained, and what memory weights, gradients and optimiser take, before anything starts."""
    from vlm.model import parameter_table

    table = parameter_table(llava)
    table.insert(0, ("vision_tower", tower_parameters, 0))
    name, total, trained = table.pop()
    table.append((name, total + tower_parameters, trained))
    for part, count, trainable in table:
        print(
            f"{part:22} {count:>14,} parameters  {trainable:>12,} trained  {100 * trainable / max(count, 1):5.1f} %"
        )
    mb = 2**20
    weights = sum(p.numel() * p.element_size() for p in llava.parameters())
    images = max(len(data.shown(i)) for i in range(len(data)))
    features = data.features[0].size * images * config.batch_size
    print(
        f"memory: weights {weights / mb:,.0f} MB (without the tower), gradients {trained * 4 / mb:,.0f} MB, AdamW "
        f"{trained * 8 / mb:,.0f} MB, features of a batch {features * 4 / mb:,.0f} MB, activations "
        f"{_activations(data, images, config)}",
        flush=True,
    )


def _activations(data: Examples, images: int, config: Finetune) -> str:
    """Of the longest batch of one process, as train/plan.py counts them."""
    if config.init:
        return f"on top: they grow with batch_size x {max(data.lengths)} tokens"
    from train.plan import activations, dry_model
    from train.processes import process_state

    batch = max(1, config.batch_size // config.gradient_accumulation // process_state().num_processes)
    held = activations(
        dry_model(config.encoder, config.llm, config), batch=batch, images=images, bf16=config.precision == "bf16",
        text=max(data.words(i) for i in range(len(data))), answer=max(map(len, data.answers)),
    )  # fmt: skip
    return f"at most {held / 2**20:,.0f} MB ({max(data.lengths)} tokens a study)"


def make_loop(model, data: dict[str, Examples], config: Finetune, args):
    """The Trainer, with a rate of its own for the projector."""
    from functools import partial

    import torch

    from train.trainer import collate, trained_weights
    from train.watch import WatchedLoop

    weights = trained_weights(model.llava)
    assert weights, "nothing to train"
    groups = [
        {"params": [p for name, p in weights.items() if ("projector" in name) == of_projector], "lr": rate}
        for of_projector, rate in (
            (False, config.learning_rate),
            (True, config.learning_rate * config.projector_rate),
        )
    ]
    optimizer = torch.optim.AdamW(
        groups, betas=(0.9, config.adam_beta2), eps=1e-8, weight_decay=config.weight_decay
    )
    return WatchedLoop(
        model,
        config,
        args=args,
        optimizers=(optimizer, None),
        train_dataset=data["train"],
        eval_dataset=data["validate"] if len(data["validate"]) else None,
        data_collator=partial(collate, pad=model.tokenizer.pad_token_id),
    )


if __name__ == "__main__":
    from train.trainer import entry

    sys.exit(entry(main))
