"""A findings model from its parts: any vision tower, any causal language model, a fresh projector between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from encoder import towers
from encoder.errors import reading
from encoder.fields import check_companions, config_is_blamed, read_config
from encoder.hub import of_a_run
from encoder.towers import loading
from encoder.weights import check_config, check_fit, check_numbers, stored_in
from vlm import model as models
from vlm.errors import ModelError
from vlm.hub import resolve
from vlm.llava import REDUCTIONS, CxrLlavaConfig, CxrLlavaForConditionalGeneration, is_stock, token_grid
from vlm.parts import parts
from vlm.processor import check_tokenizer, greedy, processor_of
from vlm.projector import LAYERS, describe_features
from vlm.prompts import IMAGE_TOKEN, PromptStyle


def build(
    encoder: str | Path,
    llm: str | Path,
    *,
    layers: Sequence[int] = LAYERS,
    depth: int = 2,
    norm: bool = False,
    reduction: str = "none",
    factor: int = 2,
    prompt: PromptStyle | None = None,
    attention: str = "cxr",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> models.FindingsModel:
    """Join encoder and language model (directories or hub ids) by a fresh projector.

    The patch tokens of several `layers` (indices into the tower's hidden states, 0 being the embeddings) are
    put side by side. Early layers still show small things that the last one has absorbed. With `norm` they
    are taken after the tower's final LayerNorm. The projector has `depth` linear layers. `reduction` makes
    fewer tokens an image: `pixel_shuffle` and `pool` one of `factor` x `factor` patches, `resampler` `factor`
    x `factor` in all. The language model is kept in `dtype`, tower and projector in fp32. The tokenizer gets
    the image token if it lacks one. The projector is random until `calibrate` has seen features. If stock
    Llava can express the model, it is one; else it is a `cxr_llava` (vlm/llava.py).

    Raises ModelError for an encoder of an unknown family, without preprocessing or without those layers, a
    language model that does not fit Llava or has no end-of-sequence token, and an impossible depth or
    reduction.
    """
    encoder_dir, llm_dir = resolve(encoder, "encoder"), resolve(llm, "language model")
    implementation = models.attention_name(attention)
    if not 1 <= depth <= 4:
        raise ModelError(f"a projector has 1 to 4 layers, not {depth}")
    if reduction not in REDUCTIONS or factor < 1:
        raise ModelError(
            f"token reduction {reduction!r} by {factor}: there are {', '.join(REDUCTIONS)}, by 1 or more"
        )
    vision, preprocessing = towers.load_tower(encoder_dir, implementation)
    shape = towers.shape_of(vision.config)
    towers.check_layers(layers, shape, vision.config.model_type == "timm_wrapper")
    tokenizer, language = load_language_model(llm_dir, implementation, dtype)
    grid = preprocessing.size // shape.patch
    side = token_grid(grid, reduction, factor)
    stock = is_stock(depth, norm, reduction, shape)
    own = {} if stock else {
        "projector_depth": depth, "feature_norm": norm, "token_reduction": reduction, "reduction": factor, "grid": grid,
    }  # fmt: skip
    select = "default" if stock and shape.extra else "full"
    config = (LlavaConfig if stock else CxrLlavaConfig)(
        vision_config=vision.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=side**2,
        vision_feature_layer=layers[0] if len(layers) == 1 else list(layers),
        vision_feature_select_strategy=select,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **own,
    )
    llava = assemble(config, vision, language, implementation, seed)
    llava.generation_config = greedy(tokenizer)
    processor = processor_of(tokenizer, preprocessing, side, select)
    meta = models.Meta(
        prompt=prompt or PromptStyle(),
        features=describe_features(layers, norm, side**2 if reduction != "none" else None),
        encoder_sha256=models.weights_sha256(encoder_dir),
        preprocess_sha256=preprocessing.sha256,
    )
    return models.FindingsModel(llava.eval(), processor, preprocessing, meta)


def load_language_model(folder: Path, attention: str, dtype: torch.dtype):
    """Load (tokenizer with image and padding token, causal language model). Raises ModelError."""
    if not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
        raise ModelError(
            f"{folder}: its weights are pickled (.bin): save them as safetensors first (save_pretrained does)"
        )
    check_companions(folder)
    read_config(folder)
    with config_is_blamed(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{folder} holds no causal language model, but a {config.model_type}{of_a_run(folder)}"
        )
    check_config(folder, stored := stored_in(folder))
    check_fit(AutoModelForCausalLM, folder, config, stored, part=True)
    with reading(folder, "its tokenizer: tokenizer.json or tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_tokenizer(folder, tokenizer)
    with loading(folder, "its language model"):
        language, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, attn_implementation=attention, output_loading_info=True,
            trust_remote_code=False,
        )  # fmt: skip
    check_numbers(language, folder, stored)
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{folder}: {len(missing)} weights of its language model are missing, first {missing[0]}"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
        language.resize_token_embeddings(max(len(tokenizer), language.config.vocab_size), mean_resizing=False)
    head = getattr(language, "lm_head", None)
    if head is None or head.bias is not None or not hasattr(language, "model"):
        raise ModelError(
            f"{folder}: Llava takes no {type(language).__name__}, whose head or body is of another kind"
        )
    return tokenizer, language


def assemble(config, vision: nn.Module, language: nn.Module, attention: str, seed: int) -> nn.Module:
    """Put the modules in their places without a copy (a 7B model would not fit twice), and add a fresh
    projector."""
    cls = (
        CxrLlavaForConditionalGeneration
        if isinstance(config, CxrLlavaConfig)
        else LlavaForConditionalGeneration
    )
    with torch.device("meta"):
        llava = cls._from_config(config, attn_implementation=attention)
    llava.model.vision_tower, llava.model.language_model = vision, language.model
    llava.lm_head = language.lm_head
    llava.tie_weights()
    projector = parts(llava).projector.to_empty(device="cpu").float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in projector.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return llava
