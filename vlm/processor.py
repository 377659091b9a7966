"""transformers' processor and generation settings of a findings model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import (
    BitImageProcessor,
    GenerationConfig,
    LlavaProcessor,
)

from encoder.errors import reading
from encoder.transforms import Preprocessing
from vlm.errors import ModelError
from vlm.prompts import IMAGE_TOKEN


def check_tokenizer(folder: Path, tokenizer) -> None:
    """Raise ModelError for a tokenizer that cannot be used, or puts other tokens around a text than it says.

    A damaged tokenizer.json may show only when a text goes through it, and then end the process.
    """
    file = folder / "tokenizer.json"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    # what the library in Rust says of its own defects
    with reading(file, "the tokenizer"), _silent():
        tokenizer("The heart is not enlarged.")
        after = json.loads(backend.to_str()).get("post_processor") or {}
    # several may stand after each other
    for part in after.get("processors") or [after]:
        for name, token in (part.get("special_tokens") or {}).items():
            if token["ids"] != tokenizer.convert_tokens_to_ids(token["tokens"]) or not token["ids"]:
                raise ModelError(
                    f"{file}: post_processor.special_tokens[{name!r}] has ids {token['ids']} for {token['tokens']}, "
                    f"which are {tokenizer.convert_tokens_to_ids(token['tokens'])}; restore the file"
                )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what native code writes to standard error from the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def greedy(tokenizer) -> GenerationConfig:
    """Return a config that decodes greedily, with the special tokens of this tokenizer."""
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def processor_of(tokenizer, preprocessing: Preprocessing, side: int, select: str = "full") -> LlavaProcessor:
    """Return the processor of a model that sees `side` x `side` tokens of an image."""
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
