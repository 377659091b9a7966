"""Models that go round in a circle: where an answer begins to repeat itself it ends.

A small model, or any model that is shown what it has never seen, may write one sentence over and over. Two signs are
looked for, of each answer by itself, so that a batch gives what single studies give: a sentence that the same section
has already, and a few tokens that come again and again. From there on the model may only end its answer, and what it
said twice is cut off.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vlm.sentences import sentences, split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Words of a sentence that may not come twice; shorter ones ("Stable.") may.
LEAST_WORDS = 3
# Tokens of a circle at most, and how many in all must be one and the same circle before it counts.
LONGEST, CIRCLING = 12, 36
# Every so many tokens an answer is searched for circles.
EVERY = 6
# A new section may say what the last one said.
SECTION = re.compile(r"^\W*Impression:\s*", re.I)


def said_again(texts: Iterable[str]) -> Iterator[int]:
    """Yield which of the sentences of an answer its section has already."""
    seen: set[str] = set()
    for i, text in enumerate(texts):
        if heading := SECTION.match(text):
            seen, text = set(), text[heading.end() :]
        words = re.findall(r"\w+", text.lower())
        said = " ".join(words)
        if len(words) >= LEAST_WORDS and said in seen:
            yield i
        seen.add(said)


def first_repeat(tokenizer: Any, ids: list[int]) -> int | None:
    """Return where in `ids` the answer begins to say what it has said, or None where it does not."""
    found = sentences(tokenizer, ids)
    for i in said_again(text for text, _ in found):
        if places := found[i][1]:
            return places[0]
    if period := circle(ids):
        first = len(ids) - 1
        while first >= period and ids[first] == ids[first - period]:
            first -= 1
        # One round of the circle stays.
        return first + 1
    return None


def circle(ids: Sequence[int]) -> int:
    """Return the length of the shortest circle that the last CIRCLING tokens are made of; 0 where they are not."""
    tail = list(ids[-CIRCLING:])
    if len(tail) < CIRCLING:
        return 0
    for period in range(1, LONGEST + 1):
        if all(tail[i] == tail[i - period] for i in range(period, CIRCLING)):
            return period
    return 0


class StopRepeats(LogitsProcessor):
    """Let an answer that repeats itself only end. It sees the tokens of the answers alone, for the prompts are given as
    embeddings."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ends_V = _ends(tokenizer, len(tokenizer))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        answers, eos = input_ids.tolist(), self.tokenizer.eos_token_id
        for i, ids in enumerate(answers):
            # A sentence is over where another begins, so one of the tokens before the last may have ended it.
            if eos in ids or not (self.ends_V[ids[-3:]].any() or len(ids) % EVERY == 0):
                continue
            # The last sentence is just being written: it may end differently.
            whole = split(self.tokenizer.decode(ids, skip_special_tokens=True))[:-1]
            if any(True for _ in said_again(whole)) or circle(ids):
                scores[i] = -torch.inf
                scores[i, eos] = 0
        return scores


# One tokenizer is asked for every batch, and to decode a vocabulary of 100,000 tokens takes a while.
@lru_cache(maxsize=4)
def _ends(tokenizer: Any, size: int) -> Tensor:
    """Which tokens (V,) may end a sentence, of a vocabulary of that size."""
    texts = tokenizer.batch_decode([[i] for i in range(size)])
    return torch.tensor([any(c in text for c in ".?!\n") for text in texts])


def without_repeats(tokenizer: Any, ids: list[int]) -> tuple[list[int], bool]:
    """Return an answer without what it says twice, and whether it did. What is cut ends as every answer does."""
    eos = tokenizer.eos_token_id
    body = ids[:-1] if ids and ids[-1] == eos else ids
    first = first_repeat(tokenizer, body)
    return (ids, False) if first is None else ([*body[:first], eos], True)
