"""What the docs say is what the code does: commands parse, Python runs, links lead somewhere, tables are measured."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cxr.cli.main import COMMANDS, build_parser
from cxr.cli.trainings import TRAININGS
from tests.docs.blocks import FENCE, PAGES, ROOT, blocks, commands, prose

# Whatever else a block may call.
OTHERS = {
    "make",
    "pip",
    "git",
    "cd",
    "export",
    "source",
    ".",
    "curl",
    "sha256sum",
    "tensorboard",
    "ls",
    "docker",
    "grep",
    "hf",
}
BASH = [block for page in PAGES for block in blocks(page, "bash")]
PYTHON = [page for page in PAGES if blocks(page, "python")]


def named(block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def of_cxr(words: list[str]) -> None:
    """Parse `cxr ...` as the command does."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name in TRAININGS:
        from cxr.cli import trainings

        parser, _ = build_parser(name)
        rest = parser.parse_known_args(words)[1]
        of_training(TRAININGS[name].config, rest, trainings.options)
    elif name == "plan":
        from cxr.cli.tools import plan_options
        from train.finetune.config import configured

        configured([*words[1:], "--out", "-", "--studies", "-"], plan_options)
    else:
        parser, chosen = build_parser(name)
        rest = parser.parse_known_args(words)[1]
        assert not rest, chosen.unknown(rest)


def of_training(config: str, words: list[str], also=None) -> None:
    module = importlib.import_module(config)
    module.configured(words, also) if also else module.configured(words)


def check(words: list[str]) -> None:
    """Raise for a command that does not exist, or does not take these options."""
    program, rest = Path(words[0]).name, words[1:]
    if program == "cxr":
        of_cxr(rest)
    elif program == "accelerate" and rest[0] == "launch":
        from accelerate.commands.launch import launch_command_parser

        at = rest.index("-m")
        launch_command_parser().parse_args([*rest[1:at], "-m", rest[at + 1]])
        config = next(training.config for training in TRAININGS.values() if training.module == rest[at + 1])
        of_training(config, rest[at + 2 :])
    elif program.startswith("python"):
        if rest[:1] == ["-m"]:
            assert importlib.util.find_spec(rest[1].split(".")[0]) or rest[1].split(".")[0] in (
                "vllm",
                "trl",
            ), rest
        elif rest and rest[0].endswith(".py"):
            assert (ROOT / rest[0]).is_file(), rest
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets for word in rest if "=" not in word), rest
    else:
        assert program in OTHERS, words


@pytest.mark.parametrize("block", BASH, ids=named)
def test_commands_are_real(block, capsys, monkeypatch):
    # Options of `cxr grpo` are read as where trl is installed.
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == "trl" or found(name, *more))
    for words in commands(block.text):
        try:
            check(words)
        except SystemExit as stop:
            assert stop.code == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize(
    "line",
    [
        "cxr generate x.dcm --outt y", "cxr nosuch", "cxr pretrain --max_stepz 3", "make nosuch", "frobnicate",
        "accelerate launch -m train.finetune --recipe nosuch", "accelerate launch --num_proc 2 -m train.pretrain",
        "python benchmarks/nosuch.py",
    ],
)  # fmt: skip
def test_commands_that_are_not_real_are_found(line):
    with pytest.raises((SystemExit, AssertionError, Exception)):
        for words in commands(line):
            check(words)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A folder with the files that the pages speak of: chest.dcm, lateral.dcm, images/, studies.jsonl,
    predictions.jsonl."""
    from cxr.cli.main import main

    folder = tmp_path_factory.mktemp("sample")
    drawn = folder / "phantoms"
    assert (
        main(["phantom", str(drawn), "--studies", "12", "--size", "128", "--workers", "1", "--seed", "1"])
        == 0
    )
    films = sorted((drawn / "images").glob("*.dcm"))
    for name in ("chest.dcm", "lateral.dcm"):
        shutil.copy(films[0], folder / name)
    # as the README and the quick start call what they draw
    for name in ("films", "xrays"):
        shutil.copytree(drawn, folder / name)
    shutil.move(drawn / "images", folder / "images")
    shutil.move(drawn / "studies.jsonl", folder / "studies.jsonl")
    given = [json.loads(line) for line in (folder / "studies.jsonl").read_text().splitlines()]
    for name in ("predictions.jsonl", "others.jsonl"):
        lines = [json.dumps({"study_id": row["study_id"], "findings": row["findings"]}) for row in given]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_runs(page, sample, tmp_path, monkeypatch, capsys):
    """All blocks of a page after each other, in a folder that holds the sample files."""
    shutil.copytree(sample, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    names: dict = {}
    left = []
    for block in blocks(page, "python"):
        missing = [name for name in block.needs if not importlib.util.find_spec(name)]
        if missing:
            left.append(f"{named(block)} needs {', '.join(missing)}")
            compile(block.text, named(block), "exec")
            continue
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    if left and len(left) == len(blocks(page, "python")):
        pytest.skip("; ".join(left))


@pytest.mark.parametrize("language", ["json", "yaml"])
def test_data_parses(language):
    for page in PAGES:
        for block in blocks(page, language):
            if language == "yaml":
                yaml.safe_load(block.text)
            else:
                for line in block.text.splitlines() if "\n{" in block.text else [block.text]:
                    json.loads(line)


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
        found.add(re.sub(r"[\s-]+", "-", slug))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), (
                f"{page.name} links to {target}, which has {sorted(anchors(there))}"
            )
        # a page of the site can only show what is in the docs
        if page.is_relative_to(ROOT / "docs"):
            assert there.is_relative_to(ROOT / "docs"), f"{page.name} links out of the docs: {target}"


def test_every_page_is_in_the_contents():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}


def test_tables_and_reference_are_what_the_code_and_the_numbers_say():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, f"run python docs/generate.py; changed:\n{done.stdout}{done.stderr[-2000:]}"


def test_every_command_has_a_page():
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    assert all(f"\n## cxr {name}\n" in text for name in COMMANDS)


def test_the_releases_of_pytorch_on_the_page_are_those_that_the_tests_ran_on():
    """`pip install torch==A torchvision==B` for the CPU build conflicts with the constraints if these differ."""
    pinned = set(re.findall(r"^torch(?:vision)?==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    (line,) = re.findall(r"^pip install torch==.*$", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert pinned and pinned <= set(line.split())
