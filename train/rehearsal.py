"""Rehearsing with words what will be read from images.

A language model that is to describe images first learns, from reports alone, to find what was seen: words for it
("left pleural effusion", by the rule-based labeller) are scattered over the places where patch tokens will be, most of
which stay empty, and the report follows. It then knows how to search the patches, topic by topic, for what it writes
about, and fine-tuning only has to make patch tokens say what such words say.
"""

from __future__ import annotations

import random
import re

from eval.scores.labels import NO_FINDING, label_report, sentences

PLACE = re.compile(
    r"\b(left|right|bilateral|both|bibasilar|upper|mid|lower|apical|small|mild|moderate|large|severe)(?:ly)?\b"
)
COPIES = 6  # a finding covers up to so many places


def seen(findings: str) -> list[str]:
    """What a report says was seen, in its order; empty for a normal film."""
    said = []
    for sentence in sentences(findings):
        where = " ".join(dict.fromkeys(PLACE.findall(sentence.lower())))
        for condition, label in label_report(sentence).items():
            if label and condition != NO_FINDING:
                words = ("possible" if label < 0 else "", where, condition.lower())
                said.append(" ".join(word for word in words if word))
    return said


def scatter(phrases: list[list[int]], places: int, empty: int, rng: random.Random) -> list[int]:
    """Token ids of phrases over `places`, each phrase whole and one to COPIES times, `empty` elsewhere."""
    grid = [empty] * places
    for phrase in phrases:
        for _ in range(rng.randint(1, COPIES)):
            start = rng.randint(0, max(0, places - len(phrase)))
            free = grid[start : start + len(phrase)]
            if len(free) == len(phrase) and set(free) == {empty}:
                grid[start : start + len(phrase)] = phrase
    return grid
