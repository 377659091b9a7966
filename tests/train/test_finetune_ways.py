"""The ways a fine-tuning can go: packed or padded, features computed before or in every step, a trained encoder, two
stages, four bits."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from tests.tiny import SMALL, metrics
from train.common.config import ConfigError, check_fields
from train.common.entry import INTERRUPTED
from train.common.trainer import AnswerTrainer
from train.finetune.__main__ import main
from train.finetune.config import Finetune, check
from train.finetune.images import Films, augmented
from vlm import Findings
from vlm import model as models
from vlm.load import load_model
from vlm.study import load_studies

SEVERAL = ("--lateral", "true", "--prior_image", "true", "--context_dropout", "0.3", "--max_steps", "6")


def close(a: list[dict], b: list[dict], rel: float) -> bool:
    """Whether the losses are."""
    return [r["loss"] for r in a if "loss" in r] == pytest.approx(
        [r["loss"] for r in b if "loss" in r], rel=rel
    )


# three trainings
@pytest.mark.slow
def test_packed_studies_learn_what_padded_ones_learn(train, several_images, tmp_path, monkeypatch):
    """Of one to three images, with another attention, and where nothing of a study may see another's."""
    lengths = []
    step = AnswerTrainer.training_step

    def watched(self, model, inputs, *rest):
        lengths.append(tuple(inputs["input_ids"].shape))
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(AnswerTrainer, "training_step", watched)
    several = (*SEVERAL, "--eval_steps", "0")
    assert train("packed", *several, studies=several_images) == 0
    packed, lengths[:] = list(lengths), []
    assert train("padded", *several, "--packing", "false", studies=several_images) == 0
    padded = list(lengths)
    assert train("sdpa", *several, "--attention", "sdpa", studies=several_images) == 0
    assert {rows for rows, _ in packed} == {1} and {rows for rows, _ in padded} == {8}
    assert all(p[1] <= rows * n for p, (rows, n) in zip(packed, padded, strict=True)) and packed != padded
    for other in ("padded", "sdpa"):
        assert close(metrics(tmp_path / "packed"), metrics(tmp_path / other), 2e-4)


# two trainings, one of which reads images all the time
@pytest.mark.slow
def test_features_in_every_step_are_those_of_the_disk(train, several_images, tmp_path, capsys):
    """But for the rounding to float16 on disk. An image that cannot be read is left out of both."""
    assert train("cached", *SEVERAL, "--feature_norm", "true", studies=several_images) == 0
    cached = capsys.readouterr().out
    options = (
        *SEVERAL,
        "--feature_norm",
        "true",
        "--features",
        "online",
        "--features_dir",
        str(tmp_path / "online" / "features"),
        "--dataloader_num_workers",
        "1",
        "--merge",
    )
    assert train("online", *options, studies=several_images) == 0
    online = capsys.readouterr().out
    assert close(metrics(tmp_path / "cached"), metrics(tmp_path / "online"), 5e-3)
    assert "images/s" in online and not list((tmp_path / "online" / "features").glob("*.npy"))
    assert [line for line in cached.splitlines() if "left out" in line] == [
        line for line in online.splitlines() if "left out" in line
    ]
    known = [s for s in load_studies(several_images) if s.split == "validate"]
    model = load_model(tmp_path / "online" / "merged")
    assert all(
        p.error is None for p in Findings(model).generate(known, root=several_images.parent, max_new_tokens=4)
    )


def test_a_trained_encoder(train, encoder_dir, tmp_path):
    """It changes where a gradient reaches it and nowhere else; what is written is the model that was trained."""
    options = (
        "--features",
        "online",
        "--train_encoder",
        "true",
        "--merge",
        "--augment",
        "true",
        "--encoder_lr_mult",
        "1",
    )
    assert train("run", *options, "--max_steps", "3", "--eval_steps", "0") == 0
    assert not (tmp_path / "run" / "adapter").exists()
    before, after = (load_file(f / "model.safetensors") for f in (encoder_dir, tmp_path / "run" / "encoder"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n != "embeddings.mask_token" and not n.startswith("layernorm")}
    merged = load_model(tmp_path / "run" / "merged")
    encoder = AutoModel.from_pretrained(tmp_path / "run" / "encoder").state_dict()
    for name, x in merged.llava.model.vision_tower.state_dict().items():
        assert torch.equal(x, encoder[name])
    assert merged.meta.encoder_sha256 == models.weights_sha256(tmp_path / "run" / "encoder")


# five trainings
@pytest.mark.slow
def test_the_projector_first(train, tmp_path, monkeypatch, capsys):
    """In the first stage nothing else moves; the second goes on from there; interruptions change nothing."""
    options = ("--projector_steps", "4", "--projector_batch_size", "16", "--merge")
    options = (*options, "--max_steps", "4", "--eval_steps", "0")
    assert train("whole", *options) == 0
    assert train("without", "--max_steps", "1", "--eval_steps", "0") == 0
    base, plain = (load_file(tmp_path / run / "base" / "model.safetensors") for run in ("whole", "without"))
    moved = {name for name in base if not torch.equal(base[name], plain[name])}
    assert moved and all("multi_modal_projector" in name for name in moved)
    stage, second = metrics(tmp_path / "whole" / "projector"), metrics(tmp_path / "whole")
    assert [r["step"] for r in stage] == list(range(1, 5))
    assert second[0]["loss"] < metrics(tmp_path / "without")[0]["loss"]
    step = AnswerTrainer.training_step

    def interrupted(self, *args, **kwargs):
        self.interrupts.signal = signal.SIGINT if self.state.global_step == 2 else 0
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AnswerTrainer, "training_step", interrupted)
    assert train("parts", *options) == INTERRUPTED and "in the first stage" in capsys.readouterr().out
    assert train("parts", *options) == INTERRUPTED
    monkeypatch.undo()
    assert train("parts", *options) == 0
    assert metrics(tmp_path / "parts" / "projector") == stage and metrics(tmp_path / "parts") == second
    name = "merged/model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_four_bits(train, tmp_path):
    """The adapter of a language model in nf4 belongs to the base that was not quantised, and merges with it."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (the extra qlora)")
    few = ("--max_steps", "6", "--eval_steps", "3", "--merge")
    assert train("four", *few, "--llm_dtype", "nf4", "--precision", "bf16") == 0
    assert train("sixteen", *few, "--llm_dtype", "bf16", "--precision", "bf16") == 0
    four, sixteen = (
        [r["loss"] for r in metrics(tmp_path / run) if "loss" in r] for run in ("four", "sixteen")
    )
    assert four == pytest.approx(sixteen, rel=0.05) and four != sixteen
    base = load_file(tmp_path / "four" / "base" / "model.safetensors")
    assert torch.bfloat16 in {x.dtype for x in base.values()} and torch.uint8 not in {
        x.dtype for x in base.values()
    }
    adapter, merged = (load_model(tmp_path / "four" / name) for name in ("adapter", "merged"))
    ids = torch.tensor([merged.prompt_ids("<image>\nFindings:")])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [m.llava(input_ids=ids, pixel_values=pixels).logits for m in (adapter, merged)]
    torch.testing.assert_close(*logits, rtol=2e-2, atol=5e-2)  # merged in bfloat16


def test_augmented_films_differ_a_little_and_by_the_draw_alone():
    film_CHW = torch.zeros(3, 64, 64) - 2.0
    film_CHW[:, 16:48, 8:28] = 1.5  # the bright half is the patient's right
    draws = [augmented(film_CHW, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    for seed in range(20):
        x_CHW = augmented(film_CHW, np.random.default_rng(seed))
        assert x_CHW.shape == film_CHW.shape and torch.isfinite(x_CHW).all()
        assert x_CHW[0, :, :32].mean() > x_CHW[0, :, 32:].mean() + 0.6  # never flipped
        assert (x_CHW - film_CHW).abs().mean() < 0.5
    films = Films.__new__(Films)
    films.tower, films.augment = None, False
    assert films.with_augmentation(True).augment and not films.augment


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": True}, "--features online"),
        ({"train_encoder": True}, "--features online"),
        ({"train_encoder": True, "features": "online"}, "--merge"),
        ({"features": "online", "align_steps": 5}, "--features cached"),
        ({"llm_dtype": "nf4", "lora": False}, "frozen language model"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        check(Finetune(out="-", studies=["-"], encoder="e", llm="l", **fields))


def test_a_value_that_is_not_among_the_choices():
    config = Finetune(out="-", studies=["-"], features="disk", llm_dtype="int8")
    assert check_fields(config) == [
        "llm_dtype must be one of fp32, bf16, nf4, not 'int8'",
        "features must be one of cached, online, not 'disk'",
    ]


def test_a_disk_that_is_too_small(train, tmp_path, monkeypatch):
    monkeypatch.setattr("encoder.store.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ConfigError, match="--features online"):
        train("run", "--max_steps", "1", "--features_dir", str(tmp_path / "features"))


def test_a_sliding_window_is_not_packed(encoder_dir, studies_file, tmp_path, llm_dir, capsys):
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(llm_dir)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=48, sliding_window=200, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    command = [
        "--encoder",
        str(encoder_dir),
        "--llm",
        str(tmp_path / "mistral"),
        "--studies",
        str(studies_file),
    ]
    assert (
        main([*command, "--out", str(tmp_path / "run"), *SMALL, "--max_steps", "2", "--eval_steps", "0"]) == 0
    )
    assert "a sliding window of 200 tokens" in capsys.readouterr().out
