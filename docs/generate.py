"""Write what the docs hold of the code and of measured numbers: tables, commands, recipes.

    python docs/generate.py            rewrite what has changed
    python docs/generate.py --check    name what would change, status 1

A table stands between `<!-- table: NAME -->` and `<!-- end -->` in README.md or a page; NAME is a function of
docs/tables.py. reference/commands.md and reference/recipes.md are whole pages.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from unittest.mock import patch

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]
# ruff: noqa: E402

from tables import TABLES

from cxr.cli.main import COMMANDS
from cxr.cli.main import main as main_of_cxr
from train.common.config import RECIPES

BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MADE = "<!-- Written by docs/generate.py. -->\n"


def pages() -> list[Path]:
    """README.md and every page of the docs."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def with_tables(text: str) -> str:
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that `cxr COMMAND --help` prints, with all of its options."""

    class Found(Exception):
        pass

    def print_help(self: argparse.ArgumentParser, file: object = None) -> None:
        raise Found(self)

    with patch.object(argparse.ArgumentParser, "print_help", print_help):
        try:
            main_of_cxr([command, "--help"])
        except Found as found:
            return found.args[0]
    raise AssertionError(command)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def of_parser(parser: argparse.ArgumentParser, level: int) -> list[str]:
    """A command's sentence, its options by group, and its sub-commands."""
    lines = [f"{'#' * level} {parser.prog}", "", cell(parser.description or ""), ""]
    below: dict[str, argparse.ArgumentParser] = {}
    for group in parser._action_groups:
        body = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                below = dict(action.choices)
            elif action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
                body.append(of_action(action))
        if body:
            lines += [
                f"**{(group.title or 'options').capitalize()}**",
                "",
                "| option | values | default | what it does |",
            ]
            lines += ["|---|---|---|---|", *body, ""]
    for parser_below in below.values():
        lines += of_parser(parser_below, level + 1)
    return lines


def of_action(action: argparse.Action) -> str:
    name = (
        ", ".join(f"`{word}`" for word in action.option_strings[:2]) or f"`{action.metavar or action.dest}`"
    )
    if action.choices is not None:
        values = ", ".join(f"`{choice}`" for choice in action.choices)
    else:
        values = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    default = action.default
    given = "" if default in (None, argparse.SUPPRESS, False, [], ()) else f"`{default}`"
    said = (
        (action.help or "") % {**vars(action), "prog": "cxr"}
        if "%(" in (action.help or "")
        else action.help or ""
    )
    return f"| {name} | {cell(values)} | {cell(given)} | {cell(said.replace('%%', '%'))} |"


def commands() -> str:
    lines = [
        "# Commands", "", MADE,
        "`cxr COMMAND --help` prints the same. A training takes every field of its recipe as an option.", "",
    ]  # fmt: skip
    for command in COMMANDS:
        lines += of_parser(parser_of(command), 2)
    return "\n".join(lines).rstrip() + "\n"


def recipes() -> str:
    lines = [
        "# Recipes", "", MADE,
        "A recipe is a YAML file with a section for each training. `--recipe NAME` takes a shipped one and",
        "`--recipe PATH` one of your own. Options given beside it win.",
        "[Commands](commands.md) explains every field.", "",
    ]  # fmt: skip
    for path in sorted(RECIPES.glob("*.yaml")):
        lines += [f"## {path.stem}", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def written() -> dict[Path, str]:
    """Every file that is or holds something generated, with what it should be."""
    whole = {DOCS / "reference" / "commands.md": commands(), DOCS / "reference" / "recipes.md": recipes()}
    return whole | {page: with_tables(page.read_text()) for page in pages() if page not in whole}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Write nothing; name what would change.")
    check = parser.parse_args().check
    texts = written()
    changed = [page for page, text in texts.items() if not page.exists() or page.read_text() != text]
    for page in changed:
        print(page.relative_to(ROOT))
        if not check:
            page.parent.mkdir(exist_ok=True)
            page.write_text(texts[page])
    return int(bool(changed) and check)


if __name__ == "__main__":
    sys.exit(main())
