"""Checkpoints: complete or absent, the newest good one wins, nothing is overwritten."""

import json

import pytest
import torch
from torch import nn

from train.common import checkpoints
from train.common.checkpoints import CheckpointError, claim


def save(run, step, keep_last=2, value=0.0):
    return checkpoints.save(
        run, step, {"model": {"w": torch.full((3,), value)}, "empty": {}}, {"note": "x"}, keep_last
    )


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path, 7, value=1.5)
    tensors, state = checkpoints.load(path)
    assert torch.equal(tensors["model"]["w"], torch.full((3,), 1.5)) and tensors["empty"] == {}
    assert state["step"] == 7 and state["note"] == "x"
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_only_the_newest_are_kept(tmp_path):
    for step in (9, 10, 100):
        save(tmp_path, step)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000010", "step_00000100"]
    assert checkpoints.latest(tmp_path).name == "step_00000100"


def test_the_same_step_may_be_saved_again(tmp_path):
    save(tmp_path, 3, value=1.0)
    save(tmp_path, 3, value=2.0)
    assert checkpoints.load(checkpoints.latest(tmp_path))[0]["model"]["w"][0] == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_no_checkpoint_yet(tmp_path):
    assert checkpoints.latest(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing", "no state", "state cut off"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, capsys):
    good = save(tmp_path, 1)
    bad = save(tmp_path, 2)
    file = bad / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "garbage":
        file.write_bytes(b"\xff" * file.stat().st_size)
    elif damage == "missing":
        file.unlink()
    elif damage == "no state":
        (bad / "state.json").unlink()
    else:
        (bad / "state.json").write_text('{"step": 2, "fil')
    assert checkpoints.latest(tmp_path) == good
    assert "damaged" in capsys.readouterr().out


def test_a_kill_while_writing_leaves_the_one_before(tmp_path, monkeypatch):
    good = save(tmp_path, 1)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "replace_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert checkpoints.latest(tmp_path) == good
    monkeypatch.undo()
    save(tmp_path, 3)
    assert not list((tmp_path / "checkpoints").glob(".*"))  # the leavings are swept up


def test_a_run_of_another_config_is_refused_with_the_fields(tmp_path):
    config = {"lr": 0.1, "scale": (1, 2), "log_every": 10}
    assert not checkpoints.claim(tmp_path / "a", config, may_differ=("log_every",))
    assert checkpoints.claim(tmp_path / "a", {**config, "log_every": 99}, may_differ=("log_every",))
    with pytest.raises(CheckpointError, match=r"lr: 0\.1 there, 0\.2 now"):
        checkpoints.claim(tmp_path / "a", {**config, "lr": 0.2}, may_differ=("log_every",))
    with pytest.raises(CheckpointError, match="new"):
        checkpoints.claim(tmp_path / "a", {**config, "new": 1})


def test_digests_are_told_by_their_first_digits(tmp_path):
    """64 of them twice tell a reader nothing that eight do not."""
    ours, theirs = "ab" * 32, "cd" * 32
    known = {"sha256 of studies": [ours], "sha256 of encoder": ours, "images": ours, "seed": 0}
    claim(tmp_path / "run", known)
    for key, said in {
        "sha256 of studies": "another studies file (sha256 of studies: abababab there, cdcdcdcd now)",
        "sha256 of encoder": "another encoder (sha256 of encoder: abababab there, cdcdcdcd now)",
        "images": "other images (images: abababab there, cdcdcdcd now)",
    }.items():
        changed = [theirs] if isinstance(known[key], list) else theirs
        with pytest.raises(CheckpointError) as refused:
            claim(tmp_path / "run", known | {key: changed})
        assert said in str(refused.value) and ours not in str(refused.value)
    with pytest.raises(
        CheckpointError, match=r"run of another config \(sha256 of encoder: abababab there, None now\)"
    ):
        claim(tmp_path / "run", known | {"sha256 of encoder": None})


def test_a_new_option_at_its_default_is_no_other_config(tmp_path):
    checkpoints.claim(tmp_path, {"lr": 0.1})
    assert checkpoints.claim(tmp_path, {"lr": 0.1, "new": [1]}, defaults={"lr": 9, "new": (1,)})
    with pytest.raises(CheckpointError, match=r"new: \[1\] there, \[2\] now"):
        checkpoints.claim(tmp_path, {"lr": 0.1, "new": [2]}, defaults={"lr": 9, "new": (1,)})


def test_checkpoints_of_unknown_origin_are_left_alone(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="not a run of this training"):
        checkpoints.claim(tmp_path, {"lr": 0.1})


def test_metrics_end_at_the_step_that_is_resumed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    checkpoints.truncate_metrics(path, 3)  # there is none: nothing happens
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    checkpoints.truncate_metrics(path, 9)
    assert len(path.read_text().splitlines()) == 5
    checkpoints.truncate_metrics(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_goes_on_bit_for_bit(fused):
    def make():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=0.1, fused=fused)
        return model, optimizer, {p: name for name, p in model.named_parameters()}

    def step(model, optimizer, seed):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    model, optimizer, names = make()
    step(model, optimizer, 1)
    tensors = {k: x.clone() for k, x in checkpoints.optimizer_tensors(optimizer, names).items()}
    weights = {k: x.clone() for k, x in model.state_dict().items()}
    step(model, optimizer, 2)

    again, fresh, fresh_names = make()
    again.load_state_dict(weights)
    checkpoints.load_optimizer_tensors(fresh, fresh_names, tensors)
    step(again, fresh, 2)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="bias"):
        checkpoints.load_optimizer_tensors(
            fresh, fresh_names, {k: x for k, x in tensors.items() if "bias" not in k}
        )
