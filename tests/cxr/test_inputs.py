"""What is named on a command line and cannot be an input: pipes and devices without end, empty paths, thousands of
processes. Each is told at once."""

from __future__ import annotations

import os

import pytest

from cxr.cli.main import main
from encoder.files import LONGEST_LINE, InputFileError, check_input, text_lines
from encoder.workers import MOST_WORKERS, pool
from vlm.study import StudyError, load_studies

ENDLESS = ["/dev/zero", "{pipe}"]
COMMANDS = [
    "generate {it}", "generate {film} --patient-key {it}", "generate {film} --training {it}", "studies check {it}",
    "studies make table {it} --out o.jsonl", "score {it} {film}", "score {film} {it}", "prepare {it} --out o",
    "embed {it} --out o", "leaks {it}", "leaks {film} --list {it}", "outliers mini {it} --out o.safetensors",
    "rexrank {it} o.json .", "export mini o --scores {it}",
]  # fmt: skip
TRAININGS = [
    "pretrain --data {it} --out o", "pretrain --data {film} --exclude {it} --out o", "pretrain --recipe {it}",
    "finetune --studies {it} --encoder mini --llm x --out o", "language-model --studies {it} --out o",
    "grpo --studies {it} --init mini --reward rouge-l/coco --out o", "scaling {it} --out o",
]  # fmt: skip


def said(words, capsys):
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("it", ENDLESS)
@pytest.mark.parametrize("command", COMMANDS + TRAININGS)
def test_what_has_no_end_is_not_read(command, it, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "film.png").write_bytes(b"no film")
    it = it.format(pipe=tmp_path / "pipe")
    status, err = said([word.format(it=it, film=tmp_path / "film.png") for word in command.split()], capsys)
    assert status == 2 and it in err and len(err.strip().splitlines()) == 1, err
    assert "give a regular file" in err or "no recipe is called" in err, err
    assert "COMMAND" not in err, err


@pytest.mark.parametrize("command", ["generate", "studies check", "prepare", "embed"])
def test_an_empty_path_is_not_the_current_folder(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["--out", "o"] if command in ("prepare", "embed") else []
    status, err = said([*command.split(), "", *more], capsys)
    assert status == 2 and "is an empty path; give . for the current folder" in err


@pytest.mark.parametrize(
    "command",
    ["prepare {film} --out o --workers {n}", "phantom o --workers {n}", "generate {film} --out o --processes {n}",
     "pretrain --data {film} --out o --processes {n}", "pretrain --data {film} --out o --dataloader_num_workers {n}"],
)  # fmt: skip
def test_processes_without_number_are_refused(command, capsys, tmp_path):
    (tmp_path / "film.png").write_bytes(b"no film")
    words = command.format(film=tmp_path / "film.png", n=MOST_WORKERS + 1).split()
    status, err = said(words, capsys)
    assert status == 2 and f"at most {MOST_WORKERS}" in err, err


def test_a_pool_never_has_more():
    with pool(10**8) as workers:
        assert workers._max_workers == MOST_WORKERS


def test_lines_have_an_end(tmp_path):
    (tmp_path / "a").write_text("one\ntwo")
    assert list(text_lines(tmp_path / "a")) == ["one\n", "two"]
    check_input(tmp_path / "a")
    check_input(tmp_path / "nowhere")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(LONGEST_LINE + 5)
    with pytest.raises(InputFileError, match="has a line of over"):
        load_studies(tmp_path / "long")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputFileError, match="pipe"):
        load_studies(tmp_path / "pipe")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(StudyError, match="not UTF-8"):
        load_studies(tmp_path / "b")
