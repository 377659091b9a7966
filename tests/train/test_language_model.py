"""The small language model: its tokenizer, that it learns to write, and that an interrupted run goes on exactly."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.tiny import FINDINGS, make_older
from train.common.config import ConfigError
from train.common.entry import INTERRUPTED
from train.common.trainer import AnswerTrainer
from train.finetune.language_model.__main__ import main
from train.finetune.language_model.config import RENAMED
from train.finetune.language_model.loop import train_tokenizer

SMALL = [
    "--vocab_size", "320", "--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2",
    "--intermediate_size", "64",
    "--batch_size", "8", "--warmup_steps", "2", "--eval_steps", "6", "--save_steps", "4", "--logging_steps", "3",
    "--precision", "fp32", "--threads", "1",
]  # fmt: skip


def train(studies, out, *more):
    return main(["--studies", str(studies), "--out", str(out), *SMALL, *more])


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_tokenizer_writes_any_text(tmp_path):
    from transformers import AutoTokenizer

    train_tokenizer(list(FINDINGS), 330).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Nodule of 12 mm, 1.4 cm; Größe → ∅.\nFindings: none"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.pad_token_id == 0 and len({tokenizer.eos_token_id, tokenizer.bos_token_id, 0}) == 3
    assert tokenizer("<image><image>", add_special_tokens=False)["input_ids"] == [3, 3]
    apart = tokenizer("12", add_special_tokens=False)["input_ids"]
    assert len(apart) == 2  # digit by digit


# until it has learned
@pytest.mark.slow
def test_it_learns_to_write(studies_file, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "llm"
    seldom = ("--eval_steps", "50", "--save_steps", "100")
    assert train(studies_file, out, "--max_steps", "100", "--learning_rate", "1e-2", *seldom) == 0
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([tokenizer("Findings:")["input_ids"]])
    text = tokenizer.decode(
        model.generate(ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True
    )
    assert text.removeprefix("Findings: ") in FINDINGS
    losses = [row["loss"] for row in metrics(out) if "loss" in row]
    assert len(losses) == 100 and sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert any("eval_loss" in row for row in metrics(out))


def test_an_interrupted_run_goes_on_exactly(studies_file, tmp_path, monkeypatch, capsys):
    assert train(studies_file, tmp_path / "whole", "--max_steps", "11") == 0
    wanted = f"next: cxr finetune --encoder mini --llm {tmp_path / 'whole'} --studies {studies_file} --out "
    assert wanted in capsys.readouterr().err
    step = AnswerTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AnswerTrainer, "training_step", interrupted)
    assert train(studies_file, tmp_path / "parts", "--max_steps", "11") == INTERRUPTED
    assert "stopped at step 6 of 11; run the same command to resume" in capsys.readouterr().out
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    monkeypatch.undo()
    # by a version that had other names
    make_older(tmp_path / "parts", RENAMED, "weight_decay")
    assert train(studies_file, tmp_path / "parts", "--max_steps", "11") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_a_run_killed_before_its_model_was_written_trains_no_step_more(studies_file, tmp_path):
    out = tmp_path / "llm"
    assert train(studies_file, out, "--max_steps", "3") == 0
    lines, weights = metrics(out), (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    assert train(studies_file, out, "--max_steps", "3") == 0
    assert metrics(out) == lines and (out / "model.safetensors").read_bytes() == weights


def test_a_folder_of_another_configuration_is_refused(studies_file, tmp_path):
    out = tmp_path / "llm"
    assert train(studies_file, out, "--max_steps", "3") == 0
    with pytest.raises(ConfigError, match=r"max_steps: 3 there, 4 now.*seed: 0 there, 7 now"):
        train(studies_file, out, "--max_steps", "4", "--seed", "7")
    assert train(studies_file, out, "--max_steps", "3") == 0  # finished: nothing to do
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not a run"):
        train(studies_file, tmp_path / "mine")


def test_studies_without_findings_are_refused(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"schema": 1, "study_id": "a"}\n')
    with pytest.raises(ConfigError, match="findings"):
        train(tmp_path / "s.jsonl", tmp_path / "llm")
    with pytest.raises(ConfigError, match="does not exist"):
        train(tmp_path / "absent.jsonl", tmp_path / "llm")
