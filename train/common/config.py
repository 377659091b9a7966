"""Recipes: YAML files whose sections fill the dataclasses of the trainings.

A recipe says *what* is trained; how it is spread over processes is the business of `accelerate`.
Precedence: the dataclass default, then the recipe, then the command line.
"""

from __future__ import annotations

import argparse
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

import yaml

from encoder.errors import UserError, did_you_mean, first_line
from encoder.files import check_input
from train.common.options import (
    Parser,
    add_options,
    check_fields,
    note,
    options_of,
    out_of_range,
    shown,
    updated,
)

__all__ = [
    "RECIPES",
    "ConfigError",
    "check_fields",
    "load_config",
    "parser_of",
    "read_section",
    "read_yaml",
    "recipe_path",
]

RECIPES = Path(__file__).parents[1] / "recipes"
T = TypeVar("T")
Also: TypeAlias = Callable[[argparse._ArgumentGroup], None]


# Bytes of a recipe, how deep it may be nested, and how much it may hold once its aliases are written out.
LONGEST, DEEPEST, MOST = 1_000_000, 50, 100_000
DEEP = f"it is nested too deep, over {DEEPEST} levels"


class _Loader(yaml.SafeLoader):
    """YAML in which no key may stand twice; PyYAML itself takes the last one, silently. Neither depth nor aliases may
    make more of a file than anybody writes by hand."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # of each finished node, what it holds with its aliases written out
        self._held: dict[int, int] = {}

    def fetch_flow_collection_start(self, token: Any) -> None:
        # the time of the scanner goes with the square of the depth
        if self.flow_level >= DEEPEST:  # type: ignore[has-type]
            raise _too_much(DEEP, self)
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            # one that is not finished is within itself
            if self._held.get(id(node), MOST + 1) > MOST:
                raise _too_much("its aliases repeat too much", event)
            return node
        self._depth += 1
        if self._depth > DEEPEST:
            raise _too_much(DEEP, event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        held = 1
        if isinstance(node, yaml.CollectionNode):
            for child in node.value:
                held += sum(self._held[id(part)] for part in (child if isinstance(child, tuple) else [child]))
        if held > MOST:
            raise _too_much("its aliases repeat too much, or it holds too much", event)
        self._held[id(node)] = held
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{shown(key.value)} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _too_much(what: str, where: Any) -> yaml.YAMLError:
    mark = where.get_mark() if isinstance(where, _Loader) else where.start_mark
    return yaml.composer.ComposerError(None, None, what, mark)


class _Probe(argparse.ArgumentParser):
    """Looks for one option; a mistake is told as ours are."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError("--recipe needs a name or the path of a .yaml file")


class ConfigError(UserError, ValueError):
    """A recipe or an option that cannot be used; the message names the file, the field and what would be accepted."""


def recipe_path(name: str) -> Path:
    """Return the path of a recipe, given the name of a shipped one (`mini`) or a path. Raises ConfigError."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        try:
            if stat.S_ISDIR(path.stat().st_mode):
                raise ConfigError(f"recipe {path} is a folder; give the path of a .yaml file")
            return path
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"recipe {path} does not exist") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or first_line(error)
            raise ConfigError(f"recipe {shown(str(path))} cannot be read: {why}") from None
    shipped = RECIPES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    raise ConfigError(
        f"no recipe is called {name!r}{did_you_mean(name, known)}; shipped are {', '.join(known)}; or give "
        "the path of a .yaml file"
    )


def read_section(path: Path, section: str) -> dict[str, Any]:
    """Return one section of a recipe. Raises ConfigError if the file is not a mapping or lacks the section."""
    recipe = read_yaml(path)
    if not isinstance(recipe, dict):
        raise ConfigError(f"{path} is not a mapping of sections; it needs a section '{section}:'")
    if not isinstance(recipe.get(section), dict):
        there = ", ".join(key if isinstance(key, str) else shown(key) for key in list(recipe)[:9])
        there = (there if len(there) <= 200 else there[:197] + "...") or "none"
        raise ConfigError(
            f"{path} has no section '{section}:' with fields below it; its sections are {there}"
        )
    return recipe[section]


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds. Raises ConfigError, with the line, if it is not YAML or gives a key twice."""
    try:
        # not of a pipe, which may have no end
        if not path.is_file():
            raise ConfigError(f"{path} is not a file")
        if path.stat().st_size > LONGEST:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {LONGEST}")
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UserError:
        raise
    # Values whose tag says one kind and whose text another end in errors of any kind.
    except Exception as error:
        where = getattr(error, "problem_mark", None)
        place = f", line {where.line + 1}" if where else ""
        # Python's words for an integer of over 4,300 digits have advice that is not for users
        why = (getattr(error, "problem", None) or first_line(error)).partition(";")[0]
        if isinstance(error, UnicodeDecodeError):
            why = f"it is not UTF-8 text (byte {error.start} on)"
        elif isinstance(error, (AttributeError, KeyError, TypeError)):
            why = "a value is not of the kind that its tag says"
        raise ConfigError(f"{path} is not valid YAML{place}: {why[:200]}") from error


def parser_of(
    cls: type,
    section: str,
    renamed: Mapping[str, str] | None = None,
    old_values: Mapping[str, Mapping[str, Any]] | None = None,
    also: Also | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> Parser:
    """Return the parser of a training's command line: `--recipe` and an option for each field of `cls`;
    `also` adds those that the launcher has taken already, for --help. `prog` and `description` are of
    another command with these fields."""
    prog = prog or f"cxr {section.replace('_', '-')}"
    usage = f"{prog} [--recipe NAME] [--OPTION VALUE ...]"
    parser = Parser(prog=prog, description=description or (cls.__doc__ or "").strip(), usage=usage)
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml") if _has(p, section)))
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"Recipe whose section '{section}' gives fields: {known and f'{known}, or '}the path of a YAML file.",
    )
    add_options(parser, cls, renamed or {}, old_values or {})
    if also:
        also(parser.add_argument_group("the launch"))
    return parser


def load_config(
    cls: type[T],
    section: str,
    argv: Sequence[str] | None = None,
    *,
    renamed: Mapping[str, str] | None = None,
    old_values: Mapping[str, Mapping[str, Any]] | None = None,
    also: Also | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> T:
    """Fill dataclass `cls` from `--recipe NAME` (its `section`) and then from the other options in `argv`.

    `renamed` (old field -> new) and `old_values` (new field -> old value -> new) are read with a note; the others
    are `parser_of`'s.

    Raises:
        ConfigError: an unknown recipe, section or field, naming the nearest field that exists, or a value of another
            type than the field's.
        InputFileError: a pipe or a device is named where a file belongs.
        SystemExit: `--help`, or a mistake on the command line, told in one line (status 2).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = parser_of(cls, section, renamed, old_values, also, prog, description)
    if recipe := _recipe_of(argv):
        path = recipe_path(recipe)
        values = _values(cls, path, section, renamed or {}, old_values or {})
        parser.set_defaults(**values)
        for action in parser._actions:  # a field the recipe gives is no longer required on the command line
            if action.dest in values:
                action.required = False
    arguments = parser.parse_args(argv)
    found = {f.name: getattr(arguments, f.name) for f in fields(cls)}  # type: ignore[arg-type]
    config = cls(**found)
    if recipe:
        # beside the fields: it is no part of the run
        vars(config)["recipe_given"] = recipe
    if problems := check_fields(config) or out_of_range(config):
        raise ConfigError("; ".join(problems))
    for value in found.values():
        for entry in value if isinstance(value, list | tuple) else [value]:
            # a text that is not a path names no file
            if isinstance(entry, str):
                check_input(entry)
    return config


def recipe_for(config: Any, section: str) -> list[str]:
    """Return `--recipe NAME` for the training that comes after one of this config, if its recipe has that section."""
    recipe = vars(config).get("recipe_given")
    return ["--recipe", recipe] if recipe and _has(recipe_path(recipe), section) else []


def _values(
    cls: type,
    path: Path,
    section: str,
    renamed: Mapping[str, str],
    old_values: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the fields a recipe gives. Raises ConfigError for one that does not exist or has a value of
    another type."""
    known = {option.name: option for option in options_of(cls)}
    values: dict[str, Any] = {}
    for key, value in read_section(path, section).items():
        name = key
        if key not in known and key in renamed:
            name = renamed[key]
            note(f"{path.name}: {key} is now {name}; the old name goes with the next release")
        if name not in known:
            near = did_you_mean(str(key), known)
            raise ConfigError(f"{path}: section '{section}' has an unknown field {shown(key)}{near}")
        if name in values:
            raise ConfigError(f"{path}: section '{section}' gives {name} twice")
        option = known[name]
        if option.kind is float:
            value = [_number(entry) for entry in value] if isinstance(value, list) else _number(value)
        # and `no`, which was a value of 0.1, as false
        if value is False and "no" in old_values.get(name, {}):
            value = "no"
        values[name] = updated(name, value, old_values.get(name, {}))
        if problem := option.problem(values[name]):
            raise ConfigError(f"{path}: {problem}")
    return values


def _number(value: Any) -> Any:
    """A number as a float: YAML reads 1e-3 as a text, which is a number to everybody else, and 0 as a whole one."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    return value


def _recipe_of(argv: Sequence[str]) -> str | None:
    """Return the word after the last `--recipe`."""
    probe = _Probe(add_help=False, allow_abbrev=False)
    probe.add_argument("--recipe")
    return probe.parse_known_args(argv)[0].recipe


def _has(path: Path, section: str) -> bool:
    return any(line.startswith(f"{section}:") for line in path.read_text(encoding="utf-8").split("\n"))
