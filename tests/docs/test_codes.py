"""Every code that a prediction can have stands in a table of the docs: warnings and refusals, read from the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from encoder.radiograph.types import CODES
from tests.docs.blocks import ROOT

GUIDES = ROOT / "docs" / "guides"
FILES = sorted([*(ROOT / "encoder").rglob("*.py"), *(ROOT / "vlm").rglob("*.py")])
WORD = re.compile(r"[a-z]+(_[a-z]+)*")


def codes_of(tree: ast.AST) -> Iterator[str]:
    """Yield the constant codes: the first argument of `Warn` or of anything called warn, and {"code": ...}."""
    for node in ast.walk(tree):
        value: ast.expr | None = None
        if isinstance(node, ast.Call) and node.args:
            named = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            of_warnings = (
                isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "warnings"
            )
            if named.lower().strip("_") in ("warn", "warning") and not of_warnings:
                value = node.args[0]
        elif isinstance(node, ast.Dict):
            value = next((v for k, v in zip(node.keys, node.values, strict=True)
                          if isinstance(k, ast.Constant) and k.value == "code"), None)  # fmt: skip
        for part in ast.walk(value) if value is not None else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and WORD.fullmatch(part.value):
                yield part.value


def said() -> set[str]:
    return {code for file in FILES for code in codes_of(ast.parse(file.read_text()))} | set(CODES)


def listed() -> set[str]:
    """The codes in the first cells of the tables of these guides."""
    text = "".join((GUIDES / name).read_text() for name in ("dicoms.md", "generate.md", "verify.md"))
    first = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return {code for cell in first for code in re.findall(r"`([a-z_]+)`", cell)}


def test_they_are_found_in_the_code():
    found = said()
    assert {
        "lateral",
        "turned",
        "truncated",
        "out_of_distribution",
        "abstained",
        "too_long",
        "no_images",
        "empty",
    } <= found
    assert set(codes_of(ast.parse('task.warn("a_code", "x"); y = {"code": "b" if z else "c"}'))) == {
        "a_code",
        "b",
        "c",
    }


@pytest.mark.parametrize("code", sorted(said()))
def test_each_stands_in_a_table(code):
    assert code in listed(), f"docs/guides/dicoms.md, generate.md or verify.md: add a row for `{code}`"
