"""The README is short, and its blocks work as they stand, after each other, in a new folder."""

from __future__ import annotations

from tests.docs.blocks import FENCE, ROOT, commands

README = ROOT / "README.md"
INSTALL = "pip install"


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_its_blocks_work_in_order_in_a_new_folder(tmp_path, monkeypatch, capsys):
    """In this process, in the environment that runs the tests; `make smoke` pastes the same into a shell, with the
    install."""
    from cxr.cli.main import main

    monkeypatch.chdir(tmp_path)
    ran = []
    for found in FENCE.finditer(README.read_text()):
        if found["language"] == "python":
            exec(compile(found["text"], "README.md", "exec"), {})
        elif found["language"] == "bash" and INSTALL not in found["text"]:
            for words in commands(found["text"]):
                assert words[0] == "cxr", words
                assert main(words[1:]) == 0, (words, capsys.readouterr().err)
                ran.append(words[1])
    assert ran == ["phantom", "generate", "generate", "score"]
    assert (tmp_path / "scores.html").is_file() and "heart" in capsys.readouterr().out.lower()
