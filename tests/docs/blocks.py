"""The fenced blocks, headings and links of a Markdown page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- needs: (?P<needs>[\w, ]+) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """`needs`: modules without which it cannot run, as the comment `<!-- needs: trl -->` above it says."""

    page: Path
    line: int
    language: str
    text: str
    needs: tuple[str, ...]


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page,
            text[: found.start()].count("\n") + 1,
            found["language"],
            found["text"],
            tuple(re.findall(r"\w+", found["needs"] or "")),
        )
        for found in FENCE.finditer(text)
        if found["language"] == language
    ]


def prose(page: Path) -> str:
    """The page without its blocks, comments and generated tables."""
    text = FENCE.sub("", page.read_text())
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", text, flags=re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """The simple commands of a bash block, split into words: without comments, pipes, redirections and assignments."""
    text = block.replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in [*lexer, ";"]:
            if word == ".":
                words.append("source")
            elif skip:
                skip = False
            elif set(word) <= set("|&;"):
                if words:
                    yield words
                words = []
            elif set(word) <= set("<>&"):
                skip = True
            elif words or not re.match(r"\w+=", word):
                words.append(word)
