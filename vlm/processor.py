"""transformers' processor and generation settings of a findings model."""

from __future__ import annotations

from transformers import (
    BitImageProcessor,
    GenerationConfig,
    LlavaProcessor,
)

from encoder.transforms import Preprocessing
from vlm.errors import ModelError
from vlm.prompts import IMAGE_TOKEN


def greedy(tokenizer) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def processor_of(tokenizer, preprocessing: Preprocessing, side: int, select: str = "full") -> LlavaProcessor:
    """The processor of a model that sees `side` x `side` tokens of an image."""
    return LlavaProcessor(
        image_processor=image_processor(preprocessing),
        tokenizer=tokenizer,
        patch_size=_patch_size(preprocessing.size, side),
        vision_feature_select_strategy=select,
        num_additional_image_tokens=int(select == "default"),  # the CLS token, which "default" drops
        image_token=IMAGE_TOKEN,
    )


def _patch_size(size: int, side: int) -> int:
    """LlavaProcessor counts an image's tokens as (size // patch size) squared. Raises ModelError for a number of tokens
    that it has no patch size for."""
    patch = size // side
    while patch and size // patch < side:
        patch -= 1
    if not patch or size // patch != side:
        near = sorted({size // p for p in range(1, size + 1)}, key=lambda n: abs(n - side))[:4]
        raise ModelError(
            f"{side} tokens a side cannot be told to LlavaProcessor at {size} px; near are {sorted(near)}"
        )
    return patch


def image_processor(preprocessing: Preprocessing) -> BitImageProcessor:
    """Say the preprocessing in transformers' words; what cannot be said so is `preprocessing.unsaid`."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        preprocessing.save_pretrained(folder)
        return BitImageProcessor.from_pretrained(folder)
