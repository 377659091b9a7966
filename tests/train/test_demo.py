"""A step of each training of the demo recipe, of its own size but for the batch: every attention in it is our
operator's."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.calls import Calls
from train.finetune.__main__ import main as finetune
from train.phantom.population import write_population
from train.pretrain.__main__ import main as pretrain
from vlm import model as models
from vlm.load import load_model

# four steps, each with all that comes before and after one
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_population(folder, studies=12, seed=5, size=256, format="png", masks=False, workers=1)
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("attention", ["cxr", "sdpa"])
def test_a_step_of_pretraining(phantoms, tmp_path, attention):
    mini = load_model("mini")
    encoder = tmp_path / "encoder"
    models.save_encoder(mini, encoder)
    shape = mini.parts.vision_tower.config
    with Calls() as calls:
        status = pretrain([
            "--recipe=demo", f"--init={encoder}", f"--hidden_size={shape.hidden_size}",
            f"--num_hidden_layers={shape.num_hidden_layers}", f"--num_attention_heads={shape.num_attention_heads}",
            f"--data={phantoms / 'images'}", f"--out={tmp_path / 'run'}",
            "--batch_size=2", "--stop_at=1", f"--attention={attention}",
        ])  # fmt: skip
    assert status == 0
    ours = attention == "cxr"
    # The teacher sees the global crops, the student the global and the local ones (on a GPU in one call), and only the
    # student goes back.
    student = 1 if torch.cuda.is_available() else 2
    assert calls.count("attention") == (1 + student) * shape.num_hidden_layers * ours
    assert calls.count("attention_backward") == student * shape.num_hidden_layers * ours


@pytest.mark.parametrize("attention", ["cxr", "reference"])
def test_a_step_of_finetuning(phantoms, tmp_path, attention):
    with Calls() as calls:
        status = finetune([
            "--recipe=demo", "--init=mini", f"--studies={phantoms / 'studies.jsonl'}", f"--out={tmp_path / 'run'}",
            "--batch_size=2", "--max_steps=1", "--save_steps=1", f"--attention={attention}",
        ])  # fmt: skip
    assert status == 0
    layers = load_model("mini").llava.config.text_config.num_hidden_layers
    ours = attention == "cxr"
    causal = [name for name, arguments in calls.made if arguments["causal"]]
    assert causal.count("attention_backward") == layers * ours
    assert (calls.count("attention") > 0) == ours
