"""The model card that `cxr export` writes, read as the Hugging Face hub's own library reads cards; the program in it is
run in tests/vlm/test_one_answer.py, without our packages."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from cxr.cli.main import main
from vlm import adapters
from vlm import model as models
from vlm.findings import OUTLIERS
from vlm.prompts import IMAGE_TOKEN, PromptStyle, chat_template, prompt_for
from vlm.study import Image, Study

ROWS = [
    {"name": "rouge-l/coco", "value": 0.25, "interval": [0.2, 0.3], "n": 9, "signature": "rouge-l|p:coco"},
    {"name": "undefined", "value": None, "n": 9},
]
# What a directory on the hub says of itself.
CARD = """---
license: cc-by-nc-4.0
base_model: somebody/encoder
model-index:
- name: theirs
  results:
  - task: {type: image-text-to-text}
    dataset: {type: reports, name: theirs}
    metrics: [{type: bleu, value: 0.125}]
---
# theirs
"""


@pytest.fixture
def folder(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "m")
    return tmp_path / "m"


def exported(folder, out, *more):
    assert main(["export", str(folder), str(out), *map(str, more)]) == 0
    card = ModelCard.load(out / "README.md")
    return card.data, card.text


def test_licence_base_model_and_scores_are_in_the_header(folder, tmp_path, capsys):
    (tmp_path / "scores.json").write_text(json.dumps({"scores": ROWS}))
    more = [
        "--scores",
        tmp_path / "scores.json",
        "--licence",
        "encoder: MIT",
        "--base-model",
        "somebody/a-model",
    ]
    data, text = exported(folder, tmp_path / "out", *more)
    assert (data.license, data.base_model, data.pipeline_tag) == (
        "mit",
        ["somebody/a-model"],
        "image-text-to-text",
    )
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("rouge-l/coco", 0.25)
    assert result.metric_args == {"interval": [0.2, 0.3], "n": 9, "signature": "rouge-l|p:coco"}
    assert '`pipe("chest.png")` takes the path for text' in text and "- base model: somebody/a-model" in text
    # Nothing in it of where anything lies.
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()
    assert f"next: cxr generate FILMS --model {tmp_path / 'out'}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(folder), str(tmp_path / "no"), "--base-model", "/home/me/model"])
    assert "hub id" in capsys.readouterr().err


def test_what_the_source_says_of_itself_is_carried_over(folder, tmp_path):
    (folder / "README.md").write_text(CARD)
    data, text = exported(folder, tmp_path / "out")
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", ["somebody/encoder"])
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [("bleu", 0.125)]
    assert "exported from: cc-by-nc-4.0" in text and "| bleu | 0.125 |" in text
    again, _ = exported(tmp_path / "out", tmp_path / "again")
    assert again.to_dict() == data.to_dict()
    # What is newer counts.
    (tmp_path / "scores.json").write_text(json.dumps({"scores": ROWS}))
    newer, _ = exported(folder, tmp_path / "newer", "--scores", tmp_path / "scores.json")
    assert [r.metric_type for r in newer.eval_results] == ["rouge-l/coco"]


@pytest.mark.parametrize("words", ["---\n[\n---\n", "---\nlicense: [3\n", "", "no header"])
def test_a_card_that_cannot_be_read_is_none(folder, tmp_path, words):
    (folder / "README.md").write_text(words)
    data, text = exported(folder, tmp_path / "out")
    assert (
        data.license is None
        and data.base_model is None
        and data.eval_results is None
        and "Not stated" in text
    )


def test_licences_that_the_hub_has_no_one_name_for(folder, tmp_path):
    more = ["--licence", "encoder: MIT", "--licence", "language model: Apache 2.0"]
    data, text = exported(folder, tmp_path / "out", *more)
    assert data.license == "other" and "- encoder: MIT" in text and "- language model: Apache 2.0" in text


def test_a_path_is_never_taken_for_a_name_on_the_hub(findings_model, tmp_path, monkeypatch):
    """`runs/base` looks like one."""
    monkeypatch.chdir(tmp_path)
    models.save(findings_model, "runs/base")
    findings_model.llava = adapters.add_lora(findings_model.llava, rank=4)
    models.save_adapter(findings_model, "runs/adapter", "runs/base")
    (tmp_path / "run").mkdir()
    fields = {"encoder": "runs/gone", "llm": "runs/base", "init": None, "sha256 of studies": []}
    (tmp_path / "run" / "run.json").write_text(json.dumps(fields))
    assert exported("runs/adapter", tmp_path / "out", "--run", "run")[0].base_model is None
    cached = {"owner/llm", "runs/base"}
    monkeypatch.setattr(
        "vlm.card.try_to_load_from_cache", lambda name, file: "there" if name in cached else None
    )
    (tmp_path / "run" / "run.json").write_text(json.dumps({**fields, "encoder": "owner/llm"}))
    assert exported("runs/adapter", tmp_path / "named", "--run", "run")[0].base_model == ["owner/llm"]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_exported_files_can_be_read_by_others(folder, tmp_path, umask):
    (folder / OUTLIERS).write_bytes(b"known")
    (folder / OUTLIERS).chmod(0o600)
    before = os.umask(umask)
    try:
        exported(folder, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "model.safetensors", OUTLIERS, "cxr.json"} <= modes.keys()
    assert set(modes.values()) == {0o666 & ~umask}, modes


@pytest.mark.parametrize("wording", ["short", "instruct", "maira2"])
@pytest.mark.parametrize("section", ["findings", "impression"])
def test_the_chat_of_the_card_is_the_prompt_of_the_training(findings_model, tmp_path, wording, section):
    """The chat goes through the template as transformers renders it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if (wording, section) == ("maira2", "impression"):
        pytest.skip("MAIRA-2 writes findings alone")
    style = PromptStyle(wording=wording, section=section)
    model = replace(findings_model, meta=replace(findings_model.meta, prompt=style))
    models.save(model, tmp_path / "m")
    _, text = exported(tmp_path / "m", tmp_path / "out")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.S)
    wanted = prompt_for(Study("s", images=[Image("x", "frontal")]), style)
    if wording == "maira2":
        # Its image stands in a line, for which the template of chats has no word.
        assert f"text={json.dumps(wanted)}" in program and IMAGE_TOKEN in wanted
        return
    names: dict = {}
    exec(program[program.index("content = ") : program.index("print(")], names)
    template = chat_template(model.tokenizer)
    ((rendered,), _) = render_jinja_template([names["chat"]], chat_template=template)
    # A start token, and nothing else.
    assert rendered in (wanted, model.tokenizer.bos_token + wanted)
