"""A command line out of a dataclass: the comment above a field is its --help, its annotation says what it accepts.

    @dataclass(kw_only=True)
    class Config:
        # ---- the run
        # Folder to write.
        out: str
        # Steps between lines on the screen.
        logging_steps: int = 10

A comment that begins with dashes opens a group of options. Nothing here imports torch, so that --help is quick.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import re
import reprlib
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from encoder.errors import did_you_mean, printable
from encoder.files import no_file
from encoder.workers import MOST_WORKERS

YES, NO = ("true", "yes", "1", "on"), ("false", "no", "0", "off")
# How a value of each type is called in messages and in --help.
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
HEADING = "----"
# A word that begins with a dash and is a number; argparse itself knows -1 and -.5 only.
NEGATIVE = re.compile(r"-((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf|nan)$", re.I)
# What no name of a file and no text of a report may hold: a zero byte, halves of a character.
UNWRITABLE = re.compile("[\\x00\ud800-\udfff]")
# Beyond it no library counts, seeds or steps.
BOUND = 2**63


@dataclass(frozen=True)
class Option:
    """A field of a config as a user sees it."""

    name: str
    group: str
    help: str
    # str, int, float or bool; of a list that of its entries
    kind: type
    choices: tuple[str, ...]
    several: bool
    may_be_absent: bool
    default: Any

    @property
    def required(self) -> bool:
        """Tell whether the field has no default."""
        return self.default is MISSING

    def accepted(self) -> str:
        """Say what may be given."""
        what = f"one of {', '.join(self.choices)}" if self.choices else WORDS[self.kind]
        if self.several:
            what = f"a list, each entry {what}"
        return f"{what}, or nothing" if self.may_be_absent else what

    def problem(self, value: Any) -> str | None:
        """Say why `value` cannot be this field's; None if it can."""
        if value is None and self.may_be_absent:
            return None
        entries = value if self.several and isinstance(value, list | tuple) else [value]
        if (self.several and not isinstance(value, list | tuple)) or not all(map(self._fits, entries)):
            near = did_you_mean(value, self.choices) if self.choices and isinstance(value, str) else ""
            if self.kind is int and any(isinstance(entry, int) and abs(entry) >= BOUND for entry in entries):
                near = "; it must be below 2**63"
            return f"{self.name} must be {self.accepted()}, not {shown(value)}{near}"
        return None

    def _fits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind is float:
            whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < BOUND
            return whole or (isinstance(value, float) and math.isfinite(value))
        if self.kind is int:
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) < BOUND
        if self.kind is str and isinstance(value, str) and UNWRITABLE.search(value):
            return False
        return isinstance(value, self.kind)


@cache
def options_of(cls: type) -> tuple[Option, ...]:
    """Return the fields of a config class in their order. Raises TypeError for a field without a comment, or
    of a type that no option can have."""
    comments = _comments(cls)
    hints = get_type_hints(cls)
    found = []
    for f in fields(cls):
        group, said = comments[f.name]
        if not said:
            raise TypeError(f"{cls.__name__}.{f.name} has no comment above it, which would be its --help")
        kind, choices, several, absent = _kind_of(hints[f.name], f"{cls.__name__}.{f.name}")
        default = f.default if f.default_factory is MISSING else f.default_factory()
        found.append(Option(f.name, group, said, kind, choices, several, absent, default))
    return tuple(found)


def check_fields(config: Any) -> list[str]:
    """Return a sentence for each value of a config that is not of its field's type or choices."""
    problems = (option.problem(getattr(config, option.name)) for option in options_of(type(config)))
    return [problem for problem in problems if problem]


# What the values of fields must be, in code and in words, whatever the training: what no library draws from, counts or
# holds. A training may ask for more. Of lists each entry is asked.
LIMITS: tuple[tuple[Callable[[Any], bool], str, str], ...] = (
    # NumPy's, which the trainings' libraries draw from
    (lambda x: x < 2**32, "at most 4294967295", "seed"),
    (
        lambda x: x >= 1,
        "at least 1",
        "max_steps batch_size gradient_accumulation_steps logging_steps save_steps eval_batch_size feature_batch_size "
        "projector_batch_size lora_rank lora_alpha reduction_factor vocab_size hidden_size num_hidden_layers "
        "num_attention_heads intermediate_size max_position_embeddings max_length num_iterations clusters draws",
    ),
    (
        lambda x: x >= 0,
        "at least 0",
        "warmup_steps eval_steps eval_studies align_steps projector_steps max_new_tokens threads size bootstrap "
        "dataloader_num_workers learning_rate projector_learning_rate weight_decay max_grad_norm seed",
    ),
    (lambda x: x > 0, "above 0", "temperature"),
    (lambda x: 0 <= x < 1, "at least 0 and below 1", "adam_beta2 lora_dropout context_dropout"),
    (lambda x: 0 < x <= 1, "above 0 and at most 1", "shares"),
    (
        lambda x: x <= 2**20,
        "at most 1048576",
        "batch_size gradient_accumulation_steps eval_batch_size feature_batch_size projector_batch_size "
        "num_generations hidden_size intermediate_size head_hidden_dim head_bottleneck_dim lora_rank",
    ),
    (
        lambda x: x <= 2**24,
        "at most 16777216",
        "vocab_size head_n_prototypes max_position_embeddings max_length",
    ),
    (
        lambda x: x <= 16384,
        "at most 16384",
        "size patch_size local_crops_size short_side num_hidden_layers num_attention_heads threads clusters",
    ),
    (lambda x: x <= 1024, "at most 1024", "local_crops_number"),
    (lambda x: x <= MOST_WORKERS, f"at most {MOST_WORKERS} on this machine", "dataloader_num_workers"),
    (lambda x: x <= 1_000_000, "at most 1000000", "bootstrap draws"),
)


def out_of_range(config: Any) -> list[str]:
    """Return a sentence for each number of a config that no training can have."""
    known = {option.name for option in options_of(type(config))}
    problems = {}
    for fits, accepted, names in LIMITS:
        for name in known.intersection(names.split()):
            value = getattr(config, name)
            entries = value if isinstance(value, list | tuple) else [] if value is None else [value]
            if not all(map(fits, entries)):
                problems.setdefault(name, f"{name} must be {accepted}, not {shown(value)}")
    return sorted(problems.values())


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake in one line, with what was probably meant, and takes `--batch-size` and
    `--batch_size` for the same option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Help)
        kwargs.setdefault("allow_abbrev", False)
        own_help = kwargs.pop("add_help", True)
        super().__init__(*args, add_help=False, **kwargs)
        self._negative_number_matcher = NEGATIVE
        self._words: list[str] = []
        if own_help:
            self.add_argument("-h", "--help", action="help", help="Show this help and exit.")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, as argparse does. Exits with status 2 on an unknown option, and suggests the nearest one."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self.unknown(rest))
        return found

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse what is known, as argparse does: (namespace, the rest)."""
        # kept for `error`, which argparse tells only what is missing
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def unknown(self, words: Sequence[str]) -> str:
        """Return the message for words that are not options, or are too many."""
        odd = [w for w in words if w.startswith("-")] or list(words)
        known = sorted({o for parser in self._parsers() for o in parser._option_string_actions})
        name = odd[0].partition("=")[0]
        hint = did_you_mean(name, known) if name.startswith("-") else ""
        what = "option" if name.startswith("-") else "argument"
        return f"unknown {what} {name}{hint}"

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line, which the main process alone prints on standard error."""
        from train.common.processes import is_main

        # Of a misspelt option and what is missing because of it, the first is the mistake.
        if message.startswith("the following arguments are required") and (odd := self._unknown_options()):
            message = self.unknown(odd)
        said = f"{self.prog}: {printable(message)}; `{self.prog} --help` lists what there is\n"
        self.exit(2, said if is_main() else None)

    def _parse_optional(self, arg_string: str) -> Any:
        return super()._parse_optional(self._as_spelt(arg_string))

    def _as_spelt(self, word: str) -> str:
        """Return the option that a word means, whichever of - and _ stands between its parts; another word as
        it is."""
        if word.startswith("--") and word not in self._option_string_actions:
            name, equals, value = word.partition("=")
            for other in (name[:2] + name[2:].replace("_", "-"), name[:2] + name[2:].replace("-", "_")):
                if other in self._option_string_actions:
                    return other + equals + value
        return word

    def _unknown_options(self) -> list[str]:
        """Return the words given that look like options and are not."""
        given = self._words[: self._words.index("--")] if "--" in self._words else self._words
        names = [self._as_spelt(word).partition("=")[0] for word in given if word.startswith("--")]
        return [name for name in names if name not in self._option_string_actions]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            if isinstance(action, argparse._SubParsersAction) and (odd := self._unknown_options()):
                # its value was taken for the command
                raise argparse.ArgumentError(
                    None, f"{odd[0]} stands before {action.metavar}, whose options follow it"
                )
            known = [str(c) for c in action.choices]
            what = "" if action.option_strings else f"{action.metavar or action.dest} "
            raise argparse.ArgumentError(
                action if action.option_strings else None,
                f"{what}must be {', '.join(known)}, not {value!r}{did_you_mean(str(value), known)}",
            )

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # argparse hands all words of a sub-command to the action that chooses it
        if action.type in (None, Path) and not isinstance(action, argparse._SubParsersAction):
            if not arg_string and (action.type is Path or not action.option_strings):
                # as "$X" is in a shell where X is not set; Python takes it for the current folder
                raise argparse.ArgumentError(action, "is an empty path; give . for the current folder")
            if problem := no_file(arg_string):
                raise argparse.ArgumentError(action, problem)
        return super()._get_value(action, arg_string)  # type: ignore[misc]

    def _parsers(self) -> Iterable[argparse.ArgumentParser]:
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._parsers() if isinstance(parser, Parser) else [parser]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Sentences wrapped; the default behind each where the sentence has none."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(110, argparse.HelpFormatter(prog)._width + 2))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        nothing = action.default is None or action.default is False or action.default == []
        if action.required or nothing or "default" in text or action.default is argparse.SUPPRESS:
            return text
        if not action.option_strings or isinstance(action, argparse._HelpAction | argparse._VersionAction):
            return text
        default = action.default
        if isinstance(default, list | tuple):
            return f"{text} (default: {' '.join(map(str, default))})".replace("%", "%%")
        return f"{text} (default: %(default)s)"


def add_options(
    parser: argparse.ArgumentParser,
    cls: type,
    renamed: Mapping[str, str],
    old_values: Mapping[str, Mapping[str, Any]],
) -> None:
    """Give `parser` an option for each field of `cls`, in its groups.

    `renamed` (old name -> new) and `old_values` (field -> old value -> new) are understood, and a line says so.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    by_name = {}
    for option in options_of(cls):
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        settings: dict[str, Any] = {"help": option.help.replace("%", "%%"), "dest": option.name}
        settings["default"] = argparse.SUPPRESS if option.required else option.default
        settings["required"] = option.required
        if option.kind is bool:
            settings |= {"nargs": "?", "const": True, "type": boolean, "metavar": "true|false"}
        else:
            settings |= {"type": _entry(option, old_values.get(option.name, {})), "metavar": _metavar(option)}
            settings |= {"nargs": "+"} if option.several else {}
        groups[option.group].add_argument(f"--{option.name}", **settings)
        by_name[option.name] = option, settings
        if option.kind is bool and option.default is True:
            parser.add_argument(
                f"--no_{option.name}", dest=option.name, action="store_false", default=True,
                help=argparse.SUPPRESS,
            )  # fmt: skip
    for old, new in renamed.items():
        if f"--{old}" not in parser._option_string_actions and new in by_name:
            _, settings = by_name[new]
            settings = {
                **settings,
                "required": False,
                "help": argparse.SUPPRESS,
                "default": argparse.SUPPRESS,
            }
            parser.add_argument(f"--{old}", action=_renamed(new), **settings)


def _renamed(new: str) -> type[argparse.Action]:
    class Renamed(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):
            note(f"{option_string} is now --{new}; the old name goes with the next release")
            setattr(namespace, new, values)
            for action in parser._actions:
                if action.dest == new:
                    action.required = False

    return Renamed


def note(line: str) -> None:
    """Say something on the error stream, in the first process alone."""
    from train.common.processes import is_main

    if is_main():
        print(f"note: {printable(line)}", file=sys.stderr, flush=True)


def updated(name: str, value: Any, old_values: Mapping[str, Any]) -> Any:
    """Return the present name of a field's old value, with a note."""
    if not isinstance(value, str) or value not in old_values:
        return value
    note(f"{name} {value} is now called {old_values[value]}; the old word goes with the next release")
    return old_values[value]


def boolean(text: str) -> bool:
    """Read a YES or NO word in any case. Raises argparse.ArgumentTypeError for any other."""
    if text.lower() in YES:
        return True
    if text.lower() in NO:
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")


class _Short(reprlib.Repr):
    """repr that looks at no more of a value than it shows: lists of lists of lists have no end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother, self.maxstring = 3, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out integers of thousands of digits
        return "an integer of over 40 digits" if abs(x) > 10**40 else repr(x)


def shown(value: Any) -> str:
    """Return a value for a message: never longer than a line."""
    text = _Short().repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _entry(option: Option, old_values: Mapping[str, Any]):
    def parse(text: str) -> Any:
        text = updated(option.name, text, old_values)
        if option.may_be_absent and not option.several and text.lower() in ("none", "null"):
            return None
        try:
            value = option.kind(text)
        except (ValueError, OverflowError):
            value = text
        single = Option(**{**option.__dict__, "several": False})
        if problem := single.problem(value):
            raise argparse.ArgumentTypeError(problem.removeprefix(f"{option.name} "))
        return value

    return parse


def _metavar(option: Option) -> str:
    if option.choices:
        return "|".join(option.choices)
    return {int: "N", float: "X", str: "TEXT"}[option.kind]


def _kind_of(hint: Any, where: str) -> tuple[type, tuple[str, ...], bool, bool]:
    """(type, choices, whether it is a list, whether it may be None) of an annotation."""
    absent = several = False
    if get_origin(hint) in (Union, types.UnionType):
        rest = [a for a in get_args(hint) if a is not type(None)]
        absent = len(rest) < len(get_args(hint))
        hint = rest[0] if len(rest) == 1 else hint
    if get_origin(hint) is list:
        several, (hint,) = True, get_args(hint)
    if get_origin(hint) is Literal:
        return str, tuple(get_args(hint)), several, absent
    if hint not in WORDS:
        raise TypeError(f"{where}: {hint} is not a type that an option can have")
    return hint, (), several, absent


def _comments(cls: type) -> dict[str, tuple[str, str]]:
    """field -> (group, the comment above it)."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.split("\n")
    (node,) = ast.parse(source).body
    found, group = {}, "options"
    assert isinstance(node, ast.ClassDef)
    for statement in node.body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        above: list[str] = []
        line = statement.lineno - 2
        while lines[line].strip().startswith("#"):
            above.insert(0, lines[line].strip().lstrip("#").strip())
            line -= 1
        for said in [s for s in above if s.startswith(HEADING)]:
            group = said.strip("- ")
            above.remove(said)
        found[statement.target.id] = (group, " ".join(above))
    return found
