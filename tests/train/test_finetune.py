"""Fine-tuning: it learns to follow the image, resumes exactly, and leaves directories that load elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from encoder.radiograph import read
from tests.tiny import make_encoder, make_older, make_studies, metrics
from train.common.batches import answer_loss, collate, grouped_order
from train.common.config import ConfigError
from train.common.entry import INTERRUPTED
from train.common.trainer import AnswerTrainer
from train.finetune.__main__ import main
from train.finetune.config import RENAMED
from train.finetune.examples import Examples
from train.finetune.images import Cached
from train.finetune.watch import macro_f1
from vlm import Findings, adapters
from vlm import model as models
from vlm.findings import OUTLIERS
from vlm.load import load_model
from vlm.prompts import PromptStyle
from vlm.study import Image, absolute, load_studies, save_studies

# A run that is not about what is learned.
ONE = ("--max_steps", "1", "--eval_steps", "0")


# 150 steps, until it has learned
@pytest.mark.slow
def test_it_follows_the_image(train, studies_file, tmp_path):
    from transformers import AutoModelForImageTextToText

    more = ["--max_steps", "150", "--eval_steps", "75", "--save_steps", "75", "--eval_studies", "16"]
    more += ["--learning_rate", "1e-2", "--max_new_tokens", "32"]
    assert train("run", "--lora", "false", *more) == 0
    findings = Findings.from_pretrained(tmp_path / "run" / "merged", device="cpu")
    studies = [s for s in load_studies(studies_file) if s.split == "validate"]
    right = {
        images: sum(
            p.findings == s.findings
            for s, p in zip(
                studies, findings.generate(studies, root=studies_file.parent, images=images), strict=True
            )
        )
        for images in ("own", "shuffled")
    }
    assert right["own"] >= 14 and right["shuffled"] <= 10  # of 16
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert best["eval_f1"] > best["eval_f1_shuffled"] + 0.3
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "merged")
    assert torch.equal(plain.lm_head.weight, plain.get_input_embeddings().weight)


# three trainings that read scores aloud
@pytest.mark.slow
def test_studies_of_several_images_whose_context_is_dropped_at_random(
    train, several_images, tmp_path, monkeypatch
):
    more = (
        "--lateral",
        "true",
        "--prior_image",
        "true",
        "--demographics",
        "true",
        "--context_dropout",
        "0.3",
    )
    more = (*more, "--token_reduction", "pool", "--projector_depth", "3", "--merge", "--max_steps", "12")
    assert train("whole", *more, studies=several_images) == 0
    step = AnswerTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 9:  # in the second epoch, which drops other things than the first
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AnswerTrainer, "training_step", interrupted)
    assert train("parts", *more, studies=several_images) == INTERRUPTED
    monkeypatch.undo()
    # by a version that had other names, and no choice of features yet
    make_older(tmp_path / "parts", RENAMED, "features", "augment")
    with pytest.raises(ConfigError, match=r"max_grad_norm: 1\.0 there, 2\.0 now"):
        train("parts", *more, "--max_grad_norm", "2", studies=several_images)
    assert train("parts", *more, studies=several_images) == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    files = [tmp_path / out / "merged" / "model.safetensors" for out in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()

    # what was learned from cached features is what the merged model does with films
    model = load_model(tmp_path / "whole" / "merged")
    assert model.meta.prompt.lateral and model.meta.prompt.demographics and model.image_tokens == 4
    known = [s for s in load_studies(several_images) if s.split == "validate"]
    found = list(Findings(model).generate(known, root=several_images.parent, max_new_tokens=8))
    assert all(p.error is None for p in found)


def test_float32_weights_in_bfloat16_arithmetic(train, tmp_path):
    """As on every GPU: learned, and in the same run read aloud for the scores."""
    assert train("run", "--precision", "bf16", "--max_steps", "3", "--eval_steps", "3") == 0
    assert any("eval_f1_shuffled" in row for row in metrics(tmp_path / "run"))


def test_a_frozen_language_model_in_bfloat16(train, tmp_path, capsys):
    assert (
        train("run", "--llm_dtype", "bf16", "--precision", "bf16", "--max_steps", "3", "--eval_steps", "3")
        == 0
    )
    assert "activations at most" in capsys.readouterr().out
    base = load_file(tmp_path / "run" / "base" / "model.safetensors")
    dtypes = {name: x.dtype for name, x in base.items()}
    assert {d for name, d in dtypes.items() if "language_model" in name} == {torch.bfloat16}
    assert {d for name, d in dtypes.items() if "projector" in name or "vision" in name} == {torch.float32}
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {x.dtype for x in adapter.values()} == {torch.float32}
    assert load_model(tmp_path / "run" / "adapter").adapter_sha256
    for wrong in (("--lora", "false"), ("--init", "mini"), ("--precision", "fp32")):
        with pytest.raises(ConfigError, match="llm_dtype bf16"):
            train("other", "--llm_dtype", "bf16", *wrong)


# three trainings
@pytest.mark.slow
def test_checkpointed_blocks_learn_the_same(train, tmp_path, monkeypatch):
    few = ("--max_steps", "3", "--eval_steps", "0")
    assert train("plain", *few) == 0
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        assert train("again", *few, "--gradient_checkpointing", "true") == 0
        checkpointed, kept[:] = sum(kept), []
        assert train("third", *few) == 0
    assert checkpointed < sum(kept)
    for a, b in zip(metrics(tmp_path / "plain"), metrics(tmp_path / "again"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_examples_change_with_the_epoch_alone(findings_model, studies_file):
    findings_model.meta.prompt = PromptStyle(lateral=True, prior_image=True, demographics=True)
    studies = [absolute(s, studies_file.parent) for s in load_studies(studies_file)[:12]]
    studies[1].images.append(Image(studies[2].images[0].path, "lateral"))
    studies[3].images[0] = Image("/absent.png", "PA")
    row_of = {Path(s.images[0].path): i for i, s in enumerate(studies) if i != 3}
    features = np.random.default_rng(0).standard_normal((12, 17, 32)).astype(np.float16)
    examples = Examples(studies, Cached(features, row_of), findings_model, dropout=0.5, seed=3)
    assert len(examples) == 11 and len(examples.shown(1)) == 2
    seen = [[examples[epoch * 11 + i] for i in range(11)] for epoch in (0, 1, 0)]
    ids = [[item["input_ids"] for item in epoch] for epoch in seen]
    assert ids[0] == ids[2] != ids[1]
    image = findings_model.llava.config.image_token_id
    for epoch in seen:
        for item in epoch:
            assert item["input_ids"].count(image) == 16 * len(item["images"])
            assert item["input_ids"][item["answer_from"] :][-1] == findings_model.tokenizer.eos_token_id
    assert {len(epoch[1]["images"]) for epoch in seen} <= {1, 2}
    batch = collate(seen[0], findings_model.tokenizer.pad_token_id)
    assert len(batch["pixel_values"]) == sum(len(item["images"]) for item in seen[0])


# four trainings
@pytest.mark.slow
def test_lora_an_interruption_and_a_kill_change_nothing(train, tmp_path, monkeypatch, capsys):
    more = ("--merge", "--align_steps", "6", "--projector_lr_mult", "0.5")
    assert train("whole", *more) == 0
    plan = capsys.readouterr().out
    assert (
        "trained" in plan and "memory:" in plan and "with shuffled images" in plan and "alignment 6/6" in plan
    )
    step = AnswerTrainer.training_step

    def stopped(how):
        def training_step(self, *args, **kwargs):
            how(self.state.global_step)
            return step(self, *args, **kwargs)

        return training_step

    def interrupt(at):
        if at == 5:
            os.kill(os.getpid(), signal.SIGINT)

    class Killed(BaseException):
        pass

    def kill(at):
        if at == 9:
            raise Killed

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.finetune.align.align", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("parts", *more)
    monkeypatch.undo()
    monkeypatch.setattr(AnswerTrainer, "training_step", stopped(interrupt))
    assert train("parts", *more) == INTERRUPTED
    assert (tmp_path / "parts" / "checkpoint-6" / "complete").exists()
    monkeypatch.setattr(AnswerTrainer, "training_step", stopped(kill))
    with pytest.raises(Killed):
        train("parts", *more)
    shutil.copytree(tmp_path / "parts" / "checkpoint-8", tmp_path / "parts" / "checkpoint-9")
    (tmp_path / "parts" / "checkpoint-9" / "complete").unlink()  # cut off while it was written
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    monkeypatch.undo()
    assert train("parts", *more) == 0
    assert capsys.readouterr().out.count("alignment 6/6") == 1  # what it gave was kept
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert metrics(parts) == metrics(whole)
    assert [r["step"] for r in metrics(whole) if "loss" in r] == list(range(1, 11))
    for file in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()

    # the adapter on its base is the merged model
    adapter, merged = (load_model(whole / name) for name in ("adapter", "merged"))
    pixels, ids = torch.randn(1, 3, 28, 28), torch.tensor([adapter.prompt_ids("<image>\nFindings:")])
    with torch.no_grad():
        outs = [m.llava(input_ids=ids, pixel_values=pixels).logits for m in (adapter, merged)]
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)
    assert adapters.count_adapters(adapter.llava)["vision_tower"] == 0


def test_it_goes_on_from_a_findings_model(train, findings_model, tmp_path):
    models.save(findings_model, tmp_path / "start")
    assert train("run", "--init", str(tmp_path / "start"), "--name", "mine") == 0
    adapter = load_model(tmp_path / "run" / "adapter")
    assert adapter.meta.name == "mine" and adapter.meta.base_sha256 == models.weights_sha256(
        tmp_path / "start"
    )
    assert not (tmp_path / "run" / "base").exists()
    with pytest.raises(ConfigError, match="merge it first"):
        train("again", "--init", str(tmp_path / "run" / "adapter"))


def test_a_model_knows_the_images_it_was_trained_on(train, findings_model, tmp_path, capsys, monkeypatch):
    """From enough training images, else from those of the model it starts from; otherwise it says that it does not."""
    assert train("few", *ONE, "--merge") == 0
    said, told = capsys.readouterr()
    assert (
        "next: cxr generate " in told and f"--split validate --model {tmp_path / 'few' / 'adapter'} " in told
    )
    assert "too few" in said and not (tmp_path / "few" / "merged" / OUTLIERS).exists()
    monkeypatch.setattr("train.finetune.finish.LEAST_KNOWN", 48)
    assert train("many", *ONE, "--merge") == 0
    merged = Findings.from_pretrained(tmp_path / "many" / "merged", device="cpu")
    root = tmp_path / "data"
    studies = make_studies(root, 40)
    paths = [root / s.images[0].path for s in load_studies(studies)]
    tower = merged.model.parts.vision_tower
    pixels = torch.stack([merged.model.preprocessing(read(p)) for p in paths])
    assert float((merged.outliers.distances(tower, pixels) < 1).float().mean()) > 0.8
    noise = torch.randn(4, *pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    assert (merged.outliers.distances(tower, noise) > 1).all()
    assert (tmp_path / "many" / "adapter" / OUTLIERS).exists()
    monkeypatch.undo()
    assert train("on", "--init", str(tmp_path / "many" / "merged"), *ONE) == 0
    a, b = (load_file(tmp_path / f / OUTLIERS) for f in ("many/merged", "on/adapter"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_patients_in_two_splits_are_warned_about(train, tmp_path, capsys):
    path = make_studies(tmp_path / "s", 20)
    assert train("clean", *ONE, studies=path) == 0
    assert "several splits" not in capsys.readouterr().out
    studies = load_studies(path)
    for study in studies:
        study.patient_id = "Jane Doe"
    save_studies(studies, path, overwrite=True)
    assert train("leaky", *ONE, studies=path) == 0
    shown = capsys.readouterr().out
    assert "warning: 1 patients of" in shown and "Jane" not in shown


def test_features_are_not_computed_by_two_runs_at_once(train, tmp_path):
    """The second waits for the first, and finds its work done."""
    shared = [*ONE, "--features_dir", str(tmp_path / "f")]
    assert train("first", *shared) == 0
    (lock,) = (tmp_path / "f").glob("*.lock")
    (done,) = (tmp_path / "f").glob("*.json")
    content = done.read_text()
    done.unlink()
    held = threading.Event()

    def finish():
        with FileLock(lock):
            held.set()
            time.sleep(1)
            done.write_text(content)

    data = next((tmp_path / "f").glob("*.npy"))
    before = data.stat().st_mtime_ns
    worker = threading.Thread(target=finish)
    worker.start()
    held.wait()
    assert train("second", *shared) == 0
    worker.join()
    assert data.stat().st_mtime_ns == before


def test_another_configuration_is_refused(train, tmp_path):
    assert train("run", *ONE) == 0
    with pytest.raises(ConfigError, match=r"learning_rate: 0.001 there, 0.1 now"):
        train("run", *ONE, "--learning_rate", "0.1")
    with pytest.raises(ConfigError, match="sha256 of encoder"):
        train("run", *ONE, encoder=make_encoder(tmp_path / "other", seed=9))
    with pytest.raises(ConfigError, match="--encoder and --llm, or --init"):
        main(["--studies", "x", "--out", str(tmp_path / "new")])
    with pytest.raises(
        ConfigError, match=r"batch_size=9 is not divisible by .* 2 accumulation steps; use 8 or 10"
    ):
        train("odd", "--batch_size", "9", "--gradient_accumulation_steps", "2")


def test_images_that_cannot_be_read_are_left_out(train, tmp_path, capsys):
    path = make_studies(tmp_path / "s", 20)
    studies = load_studies(path)
    (path.parent / studies[0].images[0].path).write_bytes(b"nothing")
    studies[1].images = [Image("images/absent.png")]
    studies[2].images, studies[3].findings = [], None
    save_studies(studies, path, overwrite=True)
    assert train("run", "--max_steps", "2", studies=path) == 0
    out = capsys.readouterr().out
    assert "train: 12 studies" in out and "validate: 4 studies" in out
    assert "left out, not_an_image" in out and "left out, unreadable" in out
    for study in studies:
        study.images = [Image("images/absent.png")]
    save_studies(studies, path, overwrite=True)
    with pytest.raises(ConfigError, match="none of 1 images"):
        train("none", "--max_steps", "2", studies=path)


def test_features_are_computed_once_and_again_when_something_changed(train, tmp_path, capsys):
    shared = [*ONE, "--features_dir", str(tmp_path / "f")]
    texts = []
    for out, encoder in (("a", None), ("b", None), ("c", make_encoder(tmp_path / "other", seed=9))):
        assert train(out, *shared, **({"encoder": encoder} if encoder else {})) == 0
        texts.append(capsys.readouterr().out)
    assert ["images/s" in text for text in texts] == [True, False, True]


def test_answers_alone_are_learned():
    rows = [{"input_ids": [5, 6, 7, 8, 9], "answer_from": 3}, {"input_ids": [5, 6, 7], "answer_from": 2}]
    logits_BNV = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    logprobs = logits_BNV.log_softmax(-1)
    expected = -(logprobs[0, 2, 8] + logprobs[0, 3, 9] + logprobs[1, 1, 7]) / 3

    padded = collate(rows, pad=0)
    assert padded["labels"].tolist() == [[-100, -100, 8, 9, -100], [-100, 7, -100, -100, -100]]
    packed = collate(rows, pad=0, pack=True)
    assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9, 5, 6, 7]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert packed["cu_seq_lens_q"].tolist() == [0, 5, 8] and packed["max_length_k"] == 5
    assert packed["labels"].tolist() == [[-100, 8, 9, 7]] and packed["logits_to_keep"].tolist() == [2, 3, 6]
    row_1TV = torch.cat([logits_BNV[0], logits_BNV[1, :3]])[None]
    for batch, logits_BKV in (
        (padded, logits_BNV[:, -padded["logits_to_keep"] :]),
        (packed, row_1TV[:, packed["logits_to_keep"]]),
    ):
        output = SimpleNamespace(logits=logits_BKV)
        torch.testing.assert_close(answer_loss(output, batch["labels"]), expected)
        torch.testing.assert_close(answer_loss(output, batch["labels"], 6), expected / 2)


def test_the_order_is_a_permutation_of_similar_lengths():
    lengths = torch.randint(5, 200, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    order = grouped_order(lengths, 8, seed=1, epoch=0)
    assert sorted(order) == list(range(1003))
    assert order == grouped_order(lengths, 8, 1, 0) and order != grouped_order(lengths, 8, 1, 1)
    batches = [[lengths[i] for i in order[b : b + 8]] for b in range(0, 1000, 8)]
    spread = [max(b) - min(b) for b in batches]
    assert sorted(spread)[len(spread) // 2] < 10


def test_macro_f1_is_that_of_sklearn():
    import numpy as np
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    names = ["Edema", "Fracture", "Pneumonia"]
    drawn = rng.integers(-2, 2, (2, 60, 3))  # -2: not mentioned
    truth, found = (
        [{n: int(v) for n, v in zip(names, row, strict=True) if v > -2} for row in rows] for rows in drawn
    )
    value, counted = macro_f1(truth, found)
    matrix = [np.array([[labels.get(n) == 1 for n in names] for labels in both]) for both in (truth, found)]
    assert counted == 3 and value == pytest.approx(f1_score(*matrix, average="macro"))
    assert macro_f1([{"Edema": 1}], [{}], least=10) == (0.0, 1)
    assert macro_f1([{}], [{}]) == (0.0, 0)
