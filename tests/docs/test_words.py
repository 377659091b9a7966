"""One voice: short sentences, and none of the phrases that HOUSE rewrites."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.blocks import PAGES, ROOT, prose

LONGEST = 30
# Phrases of a translation, and what to write instead is in CONTRIBUTING.md.
GONE = (
    "May lie anywhere they see less", "goes on where that stopped", "says what is short", "is no disease",
    "may be had without looking", "hardly counts is what went", "Settle what follows from what",
    "in the place of the tower, and out of", "All processes must ask", "or what else is given for each",
    "less each of the others", "compares, though no prior was given", "is no radiograph", "choose words otherwise",
    "choose words\notherwise",
)  # fmt: skip
SOURCES = [
    path
    for folder in ("cxr", "encoder", "vlm", "train", "eval", "benchmarks", "docs")
    for pattern in ("*.py", "*.md", "*.yaml")
    for path in sorted((ROOT / folder).rglob(pattern))
] + [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
ROOMS = [
    path
    for room in ("cxr", "encoder", "vlm", "train", "eval")
    for path in sorted((ROOT / room).rglob("*.py"))
]


def sentences(text: str) -> list[str]:
    """Sentences of prose: of paragraphs, list items and table cells."""
    found: list[str] = []
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "X", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*[-*] |\s*\d+\. |#+ |\|)", text)
    for paragraph in paragraphs:
        for part in paragraph.split("|"):
            found += re.split(r"(?<=[.!?])\s+", " ".join(part.split()))
    return [sentence for sentence in found if sentence]


def words(sentence: str) -> int:
    return len(re.findall(r"[\w'’+.-]*\w[\w'’+.-]*", sentence))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_is_long(page):
    if page.parent.name == "reference" and page.stem in ("commands", "recipes"):
        pytest.skip("written from the code, whose help has tests of its own")
    long = [s for s in sentences(prose(page)) if words(s) > LONGEST]
    assert not long, "\n".join(f"{words(s)}: {s}" for s in long)


def test_long_sentences_are_counted():
    assert words("The heart is large.") == 4
    assert [words(s) for s in sentences("One two. Three `four five` six!\n\n- seven")] == [2, 3, 1]


def test_phrases_of_a_translation_are_gone():
    found = [
        f"{path.relative_to(ROOT)}: {phrase}"
        for path in SOURCES
        for phrase in GONE
        if phrase.lower() in path.read_text().lower()
    ]
    assert not found, "\n".join(found)


def public(node: ast.AST, within: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Yield (name, definition) of functions, classes and methods whose names do not begin with an underscore.

    Functions within functions are nobody's to call, and a private class has no public methods.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not child.name.startswith("_"):
                yield within + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from public(child, f"{within}{child.name}.")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from public(child, within)


def undocumented(source: str) -> list[str]:
    """Return the public names of `source` that have no docstring, or an empty one."""
    return [name for name, node in public(ast.parse(source)) if not (ast.get_docstring(node) or "").strip()]


# What a docstring begins with that says what something is, not what a function does.
VERBLESS = re.compile(r"(The|A|An|What|Whether|Which|How|Where|Whose|Who|Of|Why|Those|It|This|Its)\b|->")


def verbless(source: str) -> list[str]:
    """Return the public functions and methods of `source` whose docstring does not begin with a verb."""
    return [
        name
        for name, node in public(ast.parse(source))
        if not isinstance(node, ast.ClassDef) and VERBLESS.match(ast.get_docstring(node) or "")
    ]


def test_docstrings_of_functions_begin_with_a_verb():
    found = [f"{path.relative_to(ROOT)}: {name}" for path in ROOMS for name in verbless(path.read_text())]
    assert not found, "\n".join(found)


def test_a_docstring_without_a_verb_is_found():
    planted = """
class Noun:
    "A class may be a noun."
    def name(self):
        "The name."
    def said(self):
        "Return the name."
def known():
    "-> (x, y)."
def _private():
    "Whether it is."
"""
    assert verbless(planted) == ["Noun.name", "known"]


def test_every_public_name_has_a_docstring():
    found = [f"{path.relative_to(ROOT)}: {name}" for path in ROOMS for name in undocumented(path.read_text())]
    assert len(ROOMS) > 200
    assert not found, "\n".join(found)


def test_a_name_without_a_docstring_is_found():
    planted = '''
import sys

def said():
    "Say it."
    def inside(): ...

async def waits(): ...

class Open:
    """   """
    def _hidden(self): ...
    def seen(self): ...
    @property
    def told(self):
        """Tell it."""

class _Private:
    def method(self): ...

if sys.version_info:
    def branch(): ...
'''
    assert undocumented(planted) == ["waits", "Open", "Open.seen", "branch"]
