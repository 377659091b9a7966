"""Prompts that fit: a model has places for so many tokens, and a study may have more words than that."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlm.decoding import Decoding
from vlm.errors import AskedError, ModelError
from vlm.model import FindingsModel
from vlm.prompts import clean, prompt_for
from vlm.study import Image, Study

# Characters of a token that a text is cut to before it is counted: no text has so many on average, and to count all of
# a text of megabytes takes minutes.
LONGEST = 16
# A batch above this is counted as it was asked for, and one below only as far as there are studies for it.
ASKED = 4096
# The words of a study that may be shortened, as messages call them.
TEXTS = {
    "indication": "the indication",
    "technique": "the technique",
    "comparison": "the comparison",
    "prior": "the prior's findings",
}


class Fitted(NamedTuple):
    """A study with words that fit."""

    study: Study
    # token ids of its prompt
    ids: list[int]
    # which of TEXTS were shortened
    cut: list[str]
    # tokens that the prompt may have; None where the model has no limit
    room: int | None


def check_room(model: FindingsModel, most: int) -> None:
    """Raise ModelError where an answer of `most` tokens leaves no place for the shortest prompt."""
    positions = model.positions
    if positions is None:
        return
    shortest = _shortest(model)
    if shortest + most > positions:
        raise ModelError(
            f"max_new_tokens={most} leaves no room for the prompt: the model has {positions} positions, and an image "
            f"with its question takes {shortest}; use at most {max(0, positions - shortest)}"
        )


def _shortest(model: FindingsModel) -> int:
    """Tokens of an image with its question and no words."""
    return len(model.prompt_ids(prompt_for(Study("", images=[Image("")]), model.meta.prompt)))


def check_memory(
    model: FindingsModel, decoding: Decoding, batch_size: int, studies: int | None = None
) -> None:
    """Raise AskedError if a batch takes more memory than there is; the message says how large a batch fits.

    Three things grow with the batch. The keys and values of all layers and positions take 2 x layers x key
    heads x head width x positions numbers a row. The probabilities of the vocabulary, in float32, count
    twice. The images come last. The model itself is in memory already.

    Args:
        studies: how many there are, if that is known: a batch is never larger.
    """
    device = next(model.llava.parameters()).device
    free = free_memory(device)
    rows = batch_size if studies is None or batch_size > ASKED else min(batch_size, max(1, studies))
    each = _bytes_a_study(model, decoding)
    if free is None or rows * each <= free:
        return
    where = "GPU" if device.type == "cuda" else "machine"
    has = f"and the {where} has {_size(free)} free"
    if decoding.beams > 1 and each > free:
        most = int(free // (each / decoding.beams))
        raise AskedError(
            f"beams={decoding.beams} takes about {_size(each)} for one study, {has}; use at most {most} beams"
        )
    most = int(free // each)
    todo = f"use a batch_size of at most {most}" if most else "use fewer max_new_tokens"
    with_beams = f" with {decoding.beams} beams" if decoding.beams > 1 else ""
    raise AskedError(
        f"batch_size={batch_size}{with_beams} takes about {_size(batch_size * each)}, {has}; {todo}"
    )


def _bytes_a_study(model: FindingsModel, decoding: Decoding) -> int:
    text = model.config.get_text_config()
    weight = next(model.llava.parameters())
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    positions = _shortest(model) + decoding.max_new_tokens
    cache = 2 * text.num_hidden_layers * heads * width * positions * weight.element_size()
    return decoding.beams * (cache + 2 * 4 * text.vocab_size) + 3 * 4 * model.preprocessing.size**2


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be had on a device: of a GPU's memory, or of the machine's, and of the container
    that this process may be confined to; None where nobody says."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return None
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current")
        )
        found.append(limit - used)
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(found)) if found else None


def _size(count: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB" if count < 1e6 else "more than any machine"


def fit(study: Study, model: FindingsModel, most: int) -> Fitted:
    """Shorten the longest of a study's words until its prompt leaves room for an answer of `most` tokens.

    Words are cut at their end. Where the images alone take more, the ids are longer than the room.
    """
    style, positions = model.meta.prompt, model.positions
    if positions is None:
        return Fitted(study, model.prompt_ids(prompt_for(study, style)), [], None)
    room = positions - most
    cut: dict[str, None] = {}
    for name, text in _texts(study, style.to_json()).items():
        if len(text) > room * LONGEST:
            study = _with(study, name, _shortened(text, room * LONGEST))
            cut[name] = None
    while True:
        ids = model.prompt_ids(prompt_for(study, style))
        texts = _texts(study, style.to_json())
        excess = len(ids) - room
        if excess <= 0 or not texts:
            return Fitted(study, ids, [TEXTS[name] for name in cut], room)
        name = max(texts, key=lambda name: len(texts[name]))
        tokens = len(model.tokenizer(texts[name], add_special_tokens=False)["input_ids"])
        # A little less than the share of its tokens: they are not all of one length.
        left = len(texts[name]) * max(0, tokens - excess - 1) // max(1, tokens)
        study = _with(study, name, _shortened(texts[name], left))
        cut[name] = None


def _texts(study: Study, shown: dict[str, bool]) -> dict[str, str]:
    """Return the words that enter the prompt, cleaned."""
    words = {name: getattr(study, name) for name in ("indication", "technique", "comparison")}
    words["prior"] = study.prior.findings if study.prior else None
    return {name: text for name in TEXTS if shown[name] and (text := clean(words[name]))}


def _with(study: Study, name: str, text: str) -> Study:
    if name == "prior":
        return replace(study, prior=study.prior and replace(study.prior, findings=text or None))
    words: dict[str, Any] = {name: text or None}
    return replace(study, **words)


def _shortened(text: str, length: int) -> str:
    """Return at most `length` characters, whole words if there are several."""
    if len(text) <= length:
        return text
    return text[:length].rpartition(" ")[0] or text[:length]
