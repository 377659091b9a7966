"""What a fine-tuning takes, before it starts: parameters, and the memory of weights, gradients, optimiser, activations.

    cxr plan --recipe findings_vicuna7b_lora --encoder rad-dino/ --llm vicuna/

Only the configurations are read; the model is built and run forward without data on PyTorch's meta device, and what
autograd would keep for the backward pass is counted, so the activations are those of this model, this projector and
these lengths, not a rule of thumb. On top come the temporary buffers of single operations and the allocator's slack.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from train.finetune.config import Finetune
from train.finetune.examples import Examples
from vlm.adapters import TOWERS, add_lora
from vlm.parts import parts

GB = 1e9
# Bytes of a gradient, and of each of AdamW's two moments: trained weights are float32.
MASTER = 4


@dataclass
class Plan:
    """Bytes of one process, and parameters by part: (part, all, trained)."""

    parameters: list[tuple[str, int, int]]
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Return the bytes of all parts together."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def lines(self) -> list[str]:
        """Return lines to print: parameters of each part, then the memory of a process in GB (10⁹ bytes)."""
        rows = [
            f"{part:22} {count:>14,} parameters  {trained:>12,} trained  {100 * trained / max(count, 1):6.2f} %"
            for part, count, trained in self.parameters
        ]
        parts = ("weights", "gradients", "optimizer", "activations", "total")
        return [
            *rows,
            "memory of a process: " + ", ".join(f"{p} {getattr(self, p) / GB:.2f} GB" for p in parts),
        ]


def weight_bytes(llava: nn.Module, nf4: bool = False) -> int:
    """Count the bytes of the weights; of a language model before it is quantised, if it will be: NF4 takes 4
    bits a weight and, with double quantisation, 0.127 for its scales (QLoRA, arXiv 2305.14314)."""
    quantised = set()
    if nf4:
        language = parts(llava).language_model
        linears = (m for n, m in language.named_modules() if isinstance(m, nn.Linear) and "lora_" not in n)
        quantised = {id(m.weight) for m in linears}
    return round(
        sum(p.numel() * (4.127 / 8 if id(p) in quantised else p.element_size()) for p in llava.parameters())
    )


def plan(
    llava: nn.Module,
    *,
    batch: int,
    text: int,
    images: int,
    answer: int,
    bf16: bool,
    checkpointing: bool,
    nf4: bool = False,
) -> Plan:
    """Plan the training of `llava` on the meta device, prepared as it is trained.

    Frozen parts are frozen, and features may stand in for the tower. A step takes `batch` studies of `images`
    images and `text` other tokens; `answer` of these are learned.
    """
    table: dict[str, list[int]] = {}
    for name, p in llava.named_parameters():
        part = "lora" if ".lora_" in name else next((t for t in TOWERS if t in name), "lm_head")
        row = table.setdefault(part, [0, 0])
        row[0] += p.numel()
        row[1] += p.numel() * p.requires_grad
    trained = sum(row[1] for row in table.values())
    sizes = {"batch": batch, "text": text, "images": images, "answer": answer, "bf16": False}
    computed = _in_bf16(llava) if bf16 else llava
    held = activations(computed, **sizes)
    # The inputs of the blocks, and one block at a time.
    if checkpointing:
        layers = llava.config.text_config.num_hidden_layers
        outside = activations(computed, **sizes, blocks=False)
        width = llava.config.text_config.hidden_size
        inputs = batch * (text + images * llava.config.image_seq_length) * width * (2 if bf16 else 4)
        held = outside + layers * inputs + (held - outside) // layers
    weights = weight_bytes(llava, nf4)
    total = ("total", sum(r[0] for r in table.values()), trained)
    rows = [(part, *row) for part, row in table.items()]
    return Plan([*rows, total], weights, trained * MASTER, 2 * trained * MASTER, held)


def activations(
    llava: nn.Module, *, batch: int, text: int, images: int, answer: int, bf16: bool, blocks: bool = True
) -> int:
    """Count the bytes that autograd keeps of a forward pass with loss, each storage once, parameters not
    counted. Without `blocks` those outside of the language model's blocks."""
    of = parts(llava)
    own = {p.untyped_storage()._cdata for p in [*llava.parameters(), *llava.buffers()]}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            # Held, so that its address is not used again.
            kept[storage._cdata] = (storage.nbytes(), x)
        return x

    if bf16:
        return activations(
            _in_bf16(llava), batch=batch, text=text, images=images, answer=answer, bf16=False, blocks=blocks
        )
    device, dtype = next(llava.parameters()).device, of.lm_head.weight.dtype
    width, config = of.language_model.config.hidden_size, of.base.config
    layers = config.vision_feature_layer
    count = 1 if isinstance(layers, int) else len(layers)
    patches = getattr(config, "grid", 0) ** 2 or config.image_seq_length
    from encoder.towers import shape_of

    channels = shape_of(config.vision_config).width * count
    features = torch.empty(batch * images, patches, channels, device=device, dtype=dtype)
    words = torch.empty(batch, text, width, device=device, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        seen = of.projector(features).reshape(batch, -1, width)
        x_BNH = torch.cat([seen, words], 1)
        if blocks:
            with _unmasked(of.language_model.config):
                x_BNH = of.language_model(inputs_embeds=x_BNH, use_cache=False).last_hidden_state
        logits = of.lm_head(x_BNH[:, -answer - 1 : -1])
        target = torch.zeros(batch * answer, dtype=torch.long, device=device)
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), target)
    return sum(size for size, _ in kept.values())


def _in_bf16(llava: nn.Module) -> nn.Module:
    """Return a copy: the meta device has no autocast. What autocast keeps in float32 (norms, LoRA) is
    small."""
    return copy.deepcopy(llava).to(torch.bfloat16)


@contextmanager
def _unmasked(config) -> Iterator[None]:
    """Our attention under a name that has no mask function: to make a mask, transformers looks at values, and on the
    meta device there are none."""
    from transformers import AttentionInterface

    from encoder.attention.wiring import transformers_attention

    AttentionInterface.register("cxr_unmasked", transformers_attention)
    before, config._attn_implementation = config._attn_implementation, "cxr_unmasked"
    try:
        yield
    finally:
        config._attn_implementation = before


def print_plan(llava: nn.Module, tower: nn.Module, data: Examples, config: Finetune) -> None:
    """Print what is trained, and what memory weights, gradients and optimiser take, before anything
    starts."""
    from vlm.model import parameter_table

    table = parameter_table(llava)
    # The tower is not there.
    if config.features == "cached":
        count = sum(p.numel() for p in tower.parameters())
        name, total, trained = table.pop()
        table = [("vision_tower", count, 0), *table, (name, total + count, trained)]
    for part, count, trained in table:
        print(
            f"{part:22} {count:>14,} parameters  {trained:>12,} trained  {100 * trained / max(count, 1):5.1f} %"
        )
    mb = 2**20
    weights = weight_bytes(llava, config.llm_dtype == "nf4")
    images = max(len(data.shown(i)) for i in range(len(data)))
    shown = data.images.floats * images * config.batch_size * 4
    without = " (without the tower)" if config.features == "cached" else ""
    print(
        f"memory: weights {weights / mb:,.0f} MB{without}, gradients {trained * 4 / mb:,.0f} MB, AdamW "
        f"{trained * 8 / mb:,.0f} MB, images of a batch {shown / mb:,.0f} MB, "
        f"activations {_activations(data, images, config)}",
        flush=True,
    )


def _activations(data: Examples, images: int, config: Finetune) -> str:
    """Of the longest batch of one process."""
    if config.init:
        return f"on top: they grow with batch_size x {max(data.lengths)} tokens"
    from train.common.processes import process_state

    batch = max(1, config.batch_size // config.gradient_accumulation_steps // process_state().num_processes)
    held = activations(
        dry_model(config.encoder, config.llm, config), batch=batch, images=images, bf16=config.precision == "bf16",
        text=max(data.words(i) for i in range(len(data))), answer=max(map(len, data.answers)),
    )  # fmt: skip
    tower = ", and what the trained encoder keeps" if config.train_encoder else ""
    return f"at most {held / 2**20:,.0f} MB ({max(data.lengths)} tokens a study){tower}"


def dry_model(encoder: str | Path, llm: str | Path, config) -> nn.Module:
    """Return the model of a Finetune config on the meta device, from the `config.json` of its parts; LoRA
    where it asks for it, the tower frozen."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from encoder import towers
    from encoder.errors import ModelError, reading
    from encoder.transforms import Preprocessing
    from vlm.hub import resolve
    from vlm.llava import CxrLlavaConfig, CxrLlavaForConditionalGeneration, is_stock, token_grid
    from vlm.model import attention_name

    encoder_dir, llm_dir = resolve(encoder, "encoder"), resolve(llm, "language model")
    with reading(encoder_dir, "its config.json"):
        vision = AutoConfig.from_pretrained(encoder_dir, trust_remote_code=False)
    with reading(llm_dir, "its config.json"):
        text = AutoConfig.from_pretrained(llm_dir, trust_remote_code=False)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{llm_dir} holds no causal language model, but a {text.model_type}")
    vision = getattr(vision, "vision_config", vision)
    shape, size = towers.shape_of(vision), Preprocessing.from_pretrained(encoder_dir).size
    grid, layers = size // shape.patch, list(config.layers)
    side = token_grid(grid, config.token_reduction, config.reduction_factor)
    stock = is_stock(config.projector_depth, config.feature_norm, config.token_reduction, shape)
    own = {} if stock else {
        "projector_depth": config.projector_depth, "feature_norm": config.feature_norm, "grid": grid,
        "token_reduction": config.token_reduction, "reduction": config.reduction_factor,
    }  # fmt: skip
    whole = (LlavaConfig if stock else CxrLlavaConfig)(
        vision_config=vision, text_config=text, image_seq_length=side**2, image_token_index=text.vocab_size - 1,
        vision_feature_layer=layers[0] if len(layers) == 1 else layers, **own,
    )  # fmt: skip
    cls = LlavaForConditionalGeneration if stock else CxrLlavaForConditionalGeneration
    with torch.device("meta"):
        llava = cls._from_config(whole, attn_implementation=attention_name(config.attention))
        llava.requires_grad_(False)
        if config.lora:
            if config.llm_dtype != "fp32":
                parts(llava).language_model.bfloat16()
                parts(llava).lm_head.bfloat16()
            return add_lora(llava, config.lora_rank, config.lora_alpha, config.lora_dropout)
    of = parts(llava)
    for part in (of.language_model, of.projector, of.lm_head):
        part.requires_grad_(True)
    return llava
