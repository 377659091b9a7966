"""Where the sentences of a report stand, in its own letters."""

from __future__ import annotations

import re
from typing import NamedTuple

SENTENCE = re.compile(r".+?(?:[.?!](?=\s|$)|$)\s*", re.S)


class Span(NamedTuple):
    """A sentence without the blanks around it: text == report[start:end]."""

    text: str
    start: int
    end: int


def spans(report: str) -> list[Span]:
    """Return the sentences of a report with their places."""
    found = []
    for match in SENTENCE.finditer(report):
        text = match.group().strip()
        if text:
            start = match.start() + len(match.group()) - len(match.group().lstrip())
            found.append(Span(text, start, start + len(text)))
    return found
