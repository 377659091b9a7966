"""Every training, and what a disk or a kill can do to it: the table of tests/cxr/test_faults.py for what learns.

A training meets the fault in a process of its own. It must end in one line and no traceback, leave nothing half
written, and the same command run again must give what it would have given.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as Picture

from tests import faults
from tests.tiny import SMALL
from tests.train.pretraining import TINY
from train.common.entry import INTERRUPTED

# Seconds after which a training counts as one that hangs.
PATIENCE = 120
SAVED = ("model.safetensors", "adapter_model.safetensors")
PROBE = {"tasks": ["knn"], "dataloader_num_workers": 0, "bootstrap": 20, "vectors": "cls"}
LLM = ["--vocab_size", "300", "--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "1"]
RUN = [
    "--batch_size",
    "8",
    "--warmup_steps",
    "0",
    "--logging_steps",
    "1",
    "--precision",
    "fp32",
    "--threads",
    "1",
]
STEPS = ["--max_steps", "3", "--save_steps", "1", "--eval_steps", "0"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """A folder with twenty pictures, bright on the left or on the right, and labels.csv of them."""
    folder, rng, rows = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0), []
    (folder / "films").mkdir()
    for i in range(20):
        pixels = rng.integers(0, 60, (36, 40))
        pixels[:, slice(0, 20) if i % 2 else slice(20, 40)] += 150
        Picture.fromarray(pixels.astype(np.uint8)).save(folder / "films" / f"{i}.png")
        split = ("train", "train", "validate", "test", "test")[i // 2 % 5]
        rows.append({
            "image": f"films/{i}.png", "labels": "Left" if i % 2 else "Right", "split": split, "patient_id": f"p{i}"
        })  # fmt: skip
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def place():
    """A folder that other users may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="cxr-faults-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def commands(labelled, encoder_dir, llm_dir, studies_file, place):
    """Training -> the command line of a tiny run, but for --out."""
    films, table = str(labelled / "films"), str(labelled / "labels.csv")
    few = [*TINY, "--max_steps=3", "--warmup_steps=1", "--save_steps=1"]
    words = (word.lstrip("-").split("=") for word in few)
    fields = {name: yaml.safe_load(value) for name, value in words} | {"dataloader_num_workers": 0}
    made = {
        "data": [films], "fields": fields, "amounts": [4], "seeds": [0], "variants": {"all": {}},
        "probe": {"data": table, **PROBE},
    }  # fmt: skip
    (place / "study.yaml").write_text(yaml.safe_dump(made))
    encoder, llm, studies = str(encoder_dir), str(llm_dir), str(studies_file)
    return {
        "pretrain": [*few, "--data", films, "--dataloader_num_workers", "0"],
        "finetune": ["--encoder", encoder, "--llm", llm, "--studies", studies, *SMALL, *STEPS],
        "finetune.language_model": ["--studies", studies, *LLM, *RUN, *STEPS],
        "probe": ["--data", table, "--encoders", "pixels", "--threads", "1", "--tasks", "knn", "--bootstrap", "20",
                  "--dataloader_num_workers", "0"],
        "probe.scaling": [str(place / "study.yaml"), "--threads", "1"],
    }  # fmt: skip


@pytest.fixture(params=["pretrain", "finetune", "finetune.language_model", "probe", "probe.scaling"])
def training(request, commands, place):
    """-> (its name, its command line by the name of --out)."""
    words = commands[request.param]
    return f"train.{request.param}", lambda out: [*words, "--out", str(place / out)]


@pytest.fixture
def meets():
    """Run a training that meets a fault; -> its exit status and what it complained."""

    def run(name: str, words: list[str], **fault) -> tuple[int, str]:
        process, complaints = faults.training(name, words, **fault)
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            raise AssertionError("it hangs")
        with open(complaints.fileno(), errors="replace", closefd=False) as pipe:
            return process.exitcode, pipe.read()

    return run


def learned(out: Path) -> dict[str, object]:
    """What a run left: weights, losses and scores, but for times."""
    found: dict[str, object] = {}
    for file in sorted(
        f for f in out.rglob("*") if f.is_file() and "checkpoint" not in str(f.relative_to(out))
    ):
        name = file.relative_to(out).as_posix()
        if file.name in SAVED:
            found[name] = file.read_bytes()
        elif file.name == "metrics.jsonl":
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if "second" not in k} for row in rows]
        elif file.name == "probe.json":
            text = file.read_text().replace(f"{out}/", "")
            found[name] = [task["scores"] for task in json.loads(text)["tasks"].values()]
    return found


def one_line(name: str, status: int, said: str) -> str:
    """Return the line that a training ended with."""
    assert status == 2 and "Traceback" not in said, (status, said)
    told = [line for line in said.splitlines() if line.startswith(f"{name}: ")]
    assert len(told) == 1 and said.rstrip().endswith(told[0]), said
    return told[0]


# every training six times
@pytest.mark.slow
def test_full_disks_closed_folders_and_kills(training, meets, place):
    name, words = training
    started = time.perf_counter()
    status, said = meets(name, words("whole"))
    assert status == 0, said
    lasted = time.perf_counter() - started
    whole = learned(place / "whole")
    assert whole
    # room for the record of the run, and none for its weights; then not even for that
    for size in (4096, 64):
        line = one_line(name, *meets(name, words("run"), size=size))
        assert "too large" in line.lower() or "disk" in line.lower(), line
        left = [f for f in (place / "run").rglob("*") if f.is_file()]
        assert not [f for f in left if f.name in SAVED and f.stat().st_size == size], left
    (place / "closed").mkdir()
    (place / "closed").chmod(0o555)
    line = one_line(name, *meets(name, words("closed"), closed=True))
    assert "ermission denied" in line, line
    chance = random.Random(0)
    for how in (signal.SIGKILL, signal.SIGTERM):
        process, _ = faults.training(name, words("run"))
        time.sleep(chance.uniform(0, lasted))
        with suppress(ProcessLookupError):
            os.kill(process.pid, how)
        process.join(PATIENCE)
        # 143 and 130: it has saved and says so; 0: it was finished before
        assert process.exitcode in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, INTERRUPTED, 0)
    status, said = meets(name, words("run"))
    assert status == 0, said
    found = learned(place / "run")
    assert found.keys() == whole.keys() and [k for k in whole if found[k] != whole[k]] == []


def test_something_else_is_in_the_place(training, meets, place):
    name, words = training
    (place / "mine").write_text("mine")
    line = one_line(name, *meets(name, words("mine")))
    assert f"{place / 'mine'} is a file; choose another --out" in line
    assert (place / "mine").read_text() == "mine"


@pytest.mark.skipif(find_spec("trl") is None, reason='trl is not installed: pip install "cxr-vlm[rl]"')
def test_grpo_too(findings_model, studies_file, meets, place):
    """What is its own; it saves and resumes by the loop of fine-tuning, which is above."""
    from vlm import model as models

    models.save(findings_model, place / "model")
    words = [
        "--studies",
        str(studies_file),
        "--init",
        str(place / "model"),
        "--reward",
        "rouge-l/coco",
        *RUN,
        *STEPS,
    ]
    words += ["--num_generations", "4", "--batch_size", "4", "--lora_rank", "4", "--max_new_tokens", "4"]
    words += ["--out", str(place / "run")]
    line = one_line("train.grpo", *meets("train.grpo", words, size=4096))
    assert "too large" in line.lower() or "disk" in line.lower(), line
    assert meets("train.grpo", words)[0] == 0
