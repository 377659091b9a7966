"""What a command says before it does anything: help, mistakes, and how little it imports for that."""

import argparse
import subprocess
import sys

import pytest

from cxr.cli.main import COMMANDS, PASSED_ON, build_parser, main
from cxr.cli.trainings import TRAININGS

HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "timm",
    "peft",
    "sklearn",
    "scipy",
    "matplotlib",
)


def parsers(parser):
    """A parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_sentence(command, capsys, monkeypatch):
    seen = []
    print_help = argparse.ArgumentParser.print_help
    monkeypatch.setattr(
        argparse.ArgumentParser,
        "print_help",
        lambda self, file=None: seen.append(self) or print_help(self, file),
    )
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and seen
    words = capsys.readouterr().out
    for parser in [p for whole in seen for p in parsers(whole)]:
        for action in parser._actions:
            if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
                continue
            name = "/".join(action.option_strings) or action.dest
            assert action.help and action.help[0].isupper(), f"{parser.prog} {name}: {action.help!r}"
            assert action.help.rstrip().endswith((".", ")", "?")), f"{parser.prog} {name}: {action.help!r}"
            if action.option_strings and parser is seen[0]:
                assert action.option_strings[-1] in words


def test_help_imports_nothing_heavy():
    """In one process, all commands after each other: what one of them imports shows."""
    code = f"""
import contextlib, io, sys
from cxr.cli.main import COMMANDS, main
for words in [["--help"], *([name, "--help"] for name in COMMANDS)]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(words)
    heavy = sorted(set({HEAVY!r}) & set(sys.modules))
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_launch_is_explained_with_the_training(capsys):
    for name in TRAININGS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = capsys.readouterr().out
        assert "--processes" in said and "--config_file" in said, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generat", "x"], "did you mean generate?"),
        (["generate", "x", "--batchsize", "3"], "unknown option --batchsize; did you mean --batch-size?"),
        (["generate", "x", "--dtype", "fp31"], "must be fp32, bf16, fp16, not 'fp31'; did you mean fp32?"),
        (["generate", "x", "--limit", "0"], "must be a whole number of at least 1, not '0'"),
        (["pretrain", "--recipe", "mimi"], "no recipe is called 'mimi'; did you mean mini?"),
        (
            ["pretrain", "--data", "x", "--max_step", "3"],
            "unknown option --max_step; did you mean --max_steps?",
        ),
        (["pretrain", "--data", "x", "--max_steps", "3.5"], "must be a whole number, not '3.5'"),
        (["finetune", "--out", "x"], "--studies"),
        (["finetune", "--precision", "fp8"], "one of auto, bf16, fp32, not 'fp8'"),
        (["studies", "mak", "x"], "did you mean make?"),
        (["studies", "make", "mimic-cxrr", "x", "--out", "y"], "did you mean mimic-cxr?"),
        (["probe", "--data", "x", "--out", "y", "--encoders", "z", "--tasks", "knm"], "did you mean knn?"),
        (["doctor", "mini", "now"], "unknown argument now"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_meant(words, said, capsys):
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and said in error and error.count("\n") == 1, error


def test_options_of_commands_may_be_spelt_either_way():
    for command in set(COMMANDS) - set(PASSED_ON):
        _, chosen = build_parser(command)
        for option in [o for o in chosen._option_string_actions if "-" in o[2:]]:
            other = "--" + option[2:].replace("-", "_")
            assert chosen._parse_optional(other)[0] is chosen._option_string_actions[option], option
