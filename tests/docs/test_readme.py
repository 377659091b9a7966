"""The README is short, and its blocks work as they stand, after each other, in a new folder; so do those of the quick
start in the folder that they leave."""

from __future__ import annotations

from pathlib import Path

from tests.docs.blocks import FENCE, ROOT, commands
from tests.docs.test_pages import check

README, QUICK_START = ROOT / "README.md", ROOT / "docs" / "quick_start.md"
INSTALL = "pip install"
# What needs minutes is only read by its parser: three trainings, their studies, and the model that comes of them.
LONG = ("archive", "runs/")


def paste(page: Path, capsys) -> list[str]:
    """Run the blocks of a page in this process, in the current folder; returns the `cxr` commands that ran."""
    from cxr.cli.main import main

    ran = []
    for found in FENCE.finditer(page.read_text()):
        if found["language"] == "python":
            exec(compile(found["text"], page.name, "exec"), {})
        elif found["language"] == "bash" and INSTALL not in found["text"]:
            for words in commands(found["text"]):
                assert words[0] == "cxr", words
                if any(word.startswith(LONG) for word in words):
                    check(words)
                    continue
                assert main(words[1:]) == 0, (words, capsys.readouterr().err)
                ran.append(words[1])
    return ran


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_the_blocks_of_both_work_in_order_in_a_new_folder(tmp_path, monkeypatch, capsys):
    """In this process, in the environment that runs the tests; `make smoke` pastes the README into a shell, with the
    install."""
    monkeypatch.chdir(tmp_path)
    assert paste(README, capsys) == ["phantom", "generate", "generate", "score"]
    assert (tmp_path / "scores.html").is_file() and "heart" in capsys.readouterr().out.lower()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert paste(QUICK_START, capsys) == ["phantom", "generate", "generate", "score"]
    said = capsys.readouterr()
    assert "heart" in said.out.lower() and "already" not in said.err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_reader_who_follows_the_quick_start_needs_no_file_that_nobody_made():
    """What a training reads, a command above it writes: in the words of the page."""
    made: set[str] = set()
    for found in FENCE.finditer(QUICK_START.read_text()):
        if found["language"] != "bash":
            continue
        for words in commands(found["text"]):
            outs = [words[i + 1] for i, word in enumerate(words) if word in ("--out", "--html")]
            if words[1] == "phantom":
                outs.append(words[2])
            read = [
                word for word in words[2:] if not word.startswith("-") and "/" in word and word not in outs
            ]
            for path in read:
                assert any(Path(path).is_relative_to(out) for out in made), (words, path)
            made.update(outs)
    assert {"xrays", "archive", "runs/encoder", "runs/llm", "runs/findings"} <= made
