"""A model that is not there, or the folder of a training in its place, is told at once: before torch is imported, and
without asking the hub."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from encoder.errors import ModelError
from vlm.hub import check_here
from vlm.model import Meta

SCRIPT = """
import contextlib, io, json, sys
from cxr.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(words)
    found.append([status, said.getvalue(), [name for name in ("torch", "huggingface_hub") if name in sys.modules]])
print(json.dumps(found))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("begun", "done"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    (tmp_path / "runs" / "done" / "adapter").mkdir()
    (tmp_path / "runs" / "done" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "film.png").touch()
    (tmp_path / "in.json").write_text("{}")
    (tmp_path / "studies.jsonl").touch()
    return tmp_path


def test_every_command_says_it_before_it_imports_torch_or_asks_the_hub(folder):
    """`runs/findings` has the form of a hub id; without a network the answer took 39 s and spoke of the network."""
    trained = ["--studies", "studies.jsonl", "--out", "new"]
    cases = {
        "runs/findings: no such folder": [
            ["generate", "film.png", "--model", "runs/findings"],
            ["generate", "film.png", "--model", "runs/done/adapter", "--base", "runs/findings"],
            ["rexrank", "in.json", "out.json", ".", "--model", "runs/findings"],
            ["outliers", "runs/findings", "film.png", "--out", "x.safetensors"],
            ["doctor", "runs/findings"],
            ["finetune", "--encoder", "runs/findings", "--llm", "runs/llm", *trained],
            ["finetune", "--init", "runs/findings", *trained],
        ],
        "it is the folder of a training: give runs/done/adapter": [
            ["generate", "film.png", "--model", "runs/done"],
            ["doctor", "runs/done"],
        ],
        "it is the folder of a training that is not finished: run the same command again": [
            ["generate", "film.png", "--model", "runs/begun"],
        ],
    }  # fmt: skip
    expected = [(said, words) for said, several in cases.items() for words in several]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([words for _, words in expected])],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (said, words), (status, told, imported) in zip(expected, json.loads(done.stdout), strict=True):
        assert status == 2 and said in told and not imported, (words, status, told, imported)
        assert told.count("\n") == 1, told


def test_what_is_said_early_is_what_is_said_when_it_is_loaded(folder):
    for name in ("begun", "done"):
        with pytest.raises(ModelError) as early:
            check_here(f"runs/{name}")
        with pytest.raises(ModelError) as late:
            Meta.load(folder / "runs" / name)
        assert str(early.value).replace("runs/", f"{folder}/runs/") == str(late.value)
    check_here("mini")
