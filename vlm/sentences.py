"""The sentences of an answer, by its tokens."""

from __future__ import annotations

import re
from typing import Any

SENTENCE = re.compile(r".+?(?:[.?!](?=\s|$)|$)\s*", re.S)


def split(text: str) -> list[str]:
    """Return the sentences of a text."""
    return [said for match in SENTENCE.finditer(text) if (said := match.group().strip())]


def sentences(tokenizer, ids: list[int]) -> list[tuple[str, list[int]]]:
    """Return the sentences of an answer with the places of their tokens in `ids`. A token belongs to the
    sentence that its last character lies in; the end-of-sequence token to none."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    ends = [len(tokenizer.decode(ids[: i + 1], skip_special_tokens=True)) for i in range(len(ids))]
    found, last = [], 0
    for match in SENTENCE.finditer(text):
        places = [
            i for i in range(last, len(ids)) if ends[i] <= match.end() and ids[i] != tokenizer.eos_token_id
        ]
        last = places[-1] + 1 if places else last
        if match.group().strip():
            found.append((match.group().strip(), places))
    return found


def scored_sentences(
    tokenizer, ids: list[int], seen: list[float], blank: list[float] | None = None
) -> list[dict]:
    """Return for each sentence `confidence`, the mean token log-probability; and with `blank` (the same
    answer's under a blank image) `image_dependence`, how much likelier the image makes it: the difference of
    the sums, in nats."""
    rows = []
    for text, places in sentences(tokenizer, ids):
        row: dict[str, Any] = {"text": text}
        if places:
            row["confidence"] = round(sum(seen[i] for i in places) / len(places), 4)
            if blank is not None:
                row["image_dependence"] = round(sum(seen[i] - blank[i] for i in places), 4)
        rows.append(row)
    return rows
