"""What a training says is next leads along the quick start: its recipe, and what was trained beside it."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

from tests.train import test_language_model as language_model
from train.common.entry import free_beside, made_beside
from train.pretrain.config import configured
from train.pretrain.loop import say_next


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def said(err: str) -> list[str]:
    """The words of the last `next: ...`, without what explains them."""
    line = err.splitlines()[-1]
    return shlex.split(line.removeprefix("next: ").partition("  (")[0])


def after_pretraining(runs, capsys, *words: str) -> list[str]:
    config = configured(["--out", str(runs / "encoder"), *words])
    say_next(config, SimpleNamespace(out=runs / "encoder", encoder=runs / "encoder" / "encoder"))
    return said(capsys.readouterr().err)


def test_a_pretraining_of_a_recipe_leads_to_its_language_model_and_then_to_fine_tuning(tmp_path, capsys):
    archive, runs = tmp_path / "archive", tmp_path / "runs"
    touch(archive / "images" / "1.dcm", archive / "studies.jsonl")
    words = ("--recipe", "first", "--data", str(archive / "images"))
    studies = ["--studies", str(archive / "studies.jsonl")]
    recipe = ["--recipe", "first"]
    wanted = ["cxr", "language-model", *recipe, *studies, "--out", str(runs / "llm")]
    assert after_pretraining(runs, capsys, *words) == wanted
    # tokenizer alone: not finished
    touch(runs / "llm" / "run.json", runs / "llm" / "tokenizer.json")
    assert made_beside(runs / "encoder", "llm") is None
    touch(runs / "llm" / "model.safetensors")
    parts = ["--encoder", str(runs / "encoder" / "encoder"), "--llm", str(runs / "llm")]
    wanted = ["cxr", "finetune", *recipe, *parts, *studies, "--out", str(runs / "findings")]
    assert after_pretraining(runs, capsys, *words) == wanted
    # and without a recipe, of images that have no studies beside them
    other = after_pretraining(tmp_path / "elsewhere", capsys, "--data", str(tmp_path / "elsewhere"))
    assert (
        other[:2] == ["cxr", "finetune"] and "LLM" in other and "STUDIES" in other and "--recipe" not in other
    )


def test_a_language_model_leads_to_the_encoder_that_was_trained_beside_it(studies_file, tmp_path, capsys):
    touch(tmp_path / "encoder" / "encoder" / "config.json")
    more = ("--recipe", "first", "--max_steps", "1")
    assert language_model.train(studies_file, tmp_path / "llm", *more) == 0
    parts = ["--encoder", str(tmp_path / "encoder" / "encoder"), "--llm", str(tmp_path / "llm")]
    wanted = ["cxr", "finetune", "--recipe", "first", *parts, "--studies", str(studies_file)]
    assert said(capsys.readouterr().err) == [*wanted, "--out", str(tmp_path / "findings")]
    (tmp_path / "findings").mkdir()
    assert free_beside(tmp_path / "llm", "findings") == tmp_path / "llm_findings"
