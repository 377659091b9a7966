"""Recipes: YAML files whose sections fill the dataclasses of the training scripts.

A recipe says *what* is trained; how it is spread over processes is the business of `accelerate`.
Precedence: the dataclass default, then the recipe, then the command line.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from encoder.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A recipe or an option that cannot be used; the message names the file, the field and what would be accepted."""


def recipe_path(name: str) -> Path:
    """A recipe by the name of a shipped one (`mini`) or by the path of one's own."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise ConfigError(f"recipe {path} does not exist")
    shipped = RECIPES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise ConfigError(f"no recipe is called {name!r}; shipped are: {known}; or give the path of a .yaml file")


def read_section(path: Path, section: str) -> dict[str, Any]:
    """One section of a recipe. Raises ConfigError if the file is not a mapping or lacks the section."""
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get(section), dict):
        raise ConfigError(f"{path} has no section '{section}:'")
    return recipe[section]


def load_config(cls: type[T], section: str, argv: Sequence[str] | None = None) -> T:
    """Fill dataclass `cls` from `--recipe NAME` (its `section`) and then from the other options in `argv`.

    Raises ConfigError for an unknown recipe, section or field, naming the nearest field that exists.
    """
    from transformers import HfArgumentParser

    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(cls, description=(cls.__doc__ or "").strip(), allow_abbrev=False)
    parser.add_argument("--recipe", default=None, help="name of a shipped recipe or path of a YAML file")
    # The recipe becomes defaults, so that an option given on the command line wins over it.
    probe = [a for i, a in enumerate(argv) if a == "--recipe" or (i and argv[i - 1] == "--recipe")]
    probe += [a for a in argv if a.startswith("--recipe=")]
    if probe:
        recipe = parser.parse_known_args(probe + _required_fillers(cls))[0].recipe
        path = recipe_path(recipe)
        values = read_section(path, section)
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"{path}: section '{section}' has an unknown field {key!r}{hint}")
        parser.set_defaults(**values)
        for action in parser._actions:  # a field the recipe gives is no longer required on the command line
            if action.dest in values:
                action.required = False
    arguments = parser.parse_args(argv)
    return cls(**{f.name: getattr(arguments, f.name) for f in fields(cls)})


def _required_fillers(cls: type) -> list[str]:
    from dataclasses import MISSING

    needed = [f for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return [word for f in needed for word in (f"--{f.name}", "0")]
