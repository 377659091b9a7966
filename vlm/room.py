"""Prompts that fit: a model has places for so many tokens, and a study may have more words than that."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from vlm.errors import ModelError
from vlm.model import FindingsModel
from vlm.prompts import clean, prompt_for
from vlm.study import Image, Study

# Characters of a token that a text is cut to before it is counted: no text has so many on average, and to count all of
# a text of megabytes takes minutes.
LONGEST = 16
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
    shortest = len(model.prompt_ids(prompt_for(Study("", images=[Image("")]), model.meta.prompt)))
    if shortest + most > positions:
        raise ModelError(
            f"max_new_tokens={most} leaves no room for the prompt: the model has {positions} positions, and an image "
            f"with its question takes {shortest}; use at most {max(0, positions - shortest)}"
        )


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
    return replace(study, **{name: text or None})


def _shortened(text: str, length: int) -> str:
    """Return at most `length` characters, whole words if there are several."""
    if len(text) <= length:
        return text
    return text[:length].rpartition(" ")[0] or text[:length]
