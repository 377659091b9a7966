"""Reinforcement: what the model reads, which reference an answer is compared with, advantages, loss and gradient
against formulas written out, rewards that rise, runs that resume, and what stays as it was."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file

import train.grpo.__main__ as grpo
import vlm
from encoder.radiograph import read
from eval import metric
from tests.tiny import FINDINGS, make_older
from train.common.config import ConfigError, check_fields, load_config
from train.common.entry import INTERRUPTED
from train.common.resume import ExactResume
from train.grpo.config import RENAMED, Grpo, check
from train.grpo.loop import run
from train.grpo.rollouts import REFERENCE, Groups, Reward, StudyProcessor, answers, exchanged, rows_of
from vlm import adapters
from vlm import model as models
from vlm import projector as projectors
from vlm.build import build
from vlm.decoding import embed
from vlm.load import load_model
from vlm.projector import layers_of, tower_features
from vlm.prompts import prompt_for, shown_images
from vlm.study import Image, Prior, absolute, load_studies

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason='trl is not installed: pip install "cxr-vlm[rl]"'
)


@pytest.fixture(scope="module")
def studies(studies_file):
    """Some with one image, some with two or three; the images of others serve."""
    found = [absolute(s, studies_file.parent) for s in load_studies(studies_file)]
    for i, study in enumerate(found):
        if i % 3 == 0:
            study.images.append(Image(found[i - 1].images[0].path, "lateral"))
        if i % 4 == 0:
            study.prior = Prior(found[i - 2].images[:1], study.prior and study.prior.findings)
    return found


def built(encoder_dir, llm_dir, **more):
    """A model that shows lateral and prior images."""
    model = build(encoder_dir, llm_dir, **more)
    pixels_BCHW = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    norm = getattr(model.llava.config, "feature_norm", False)
    features = tower_features(model.llava.model.vision_tower, pixels_BCHW, layers_of(model.llava), norm)
    projectors.calibrate(model.llava, features)
    model.meta.prompt = replace(model.meta.prompt, lateral=True, prior_image=True)
    model.meta.max_new_tokens = 20
    return model


@pytest.fixture(scope="module")
def init(encoder_dir, llm_dir, studies, tmp_path_factory):
    """A merged directory of a model that has learned to write one of FINDINGS, any, whatever it is shown."""
    model = built(encoder_dir, llm_dir)
    processor, rows = StudyProcessor.of(model), rows_of(studies, model.meta.prompt)
    optimizer = torch.optim.AdamW(model.llava.model.language_model.parameters(), lr=1e-2)
    for step in range(40):
        some = [rows[(8 * step + i) % len(rows)] for i in range(8)]
        said = processor([row["images"] for row in some], [row["prompt"][0]["content"] for row in some])
        answers = [model.answer_ids(f" {FINDINGS[(i + step) % 4]}") for i in range(8)]
        whole = [p + a for p, a in zip(said["input_ids"], answers, strict=True)]
        x_BNH, mask_BN = embed(model.llava, model, whole, said["pixel_values"], left=False)
        logits_BNV = model.llava(inputs_embeds=x_BNH, attention_mask=mask_BN).logits
        loss = sum(
            torch.nn.functional.cross_entropy(logits[len(p) - 1 : len(p) - 1 + len(a)], torch.tensor(a))
            for logits, p, a in zip(logits_BNV, said["input_ids"], answers, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    processor.restore()
    folder = tmp_path_factory.mktemp("init") / "merged"
    models.save(model, folder)
    return folder


# --- without trl ------------------------------------------------------------------------------------------------------


OWN = {"layers": [-2, -1], "norm": True, "depth": 3, "reduction": "pool"}  # what stock Llava cannot say


@pytest.mark.parametrize("more", [{}, OWN], ids=["llava", "cxr_llava"])
def test_the_model_reads_what_it_reads_when_it_generates(encoder_dir, llm_dir, studies, more):
    model, few = built(encoder_dir, llm_dir, **more), studies[:9]
    style = model.meta.prompt
    rows = rows_of(few, style)
    assert sorted({len(row["images"]) for row in rows}) == [1, 2, 3]
    expected = [p.findings for p in vlm.Findings(model).generate(few, max_new_tokens=12)]
    pixels = [
        torch.stack([model.preprocessing(read(image.path)) for _, image in shown_images(s, style)])
        for s in few
    ]
    with torch.no_grad():
        tokens = [torch.cat(list(model.llava.model.get_image_features(x).pooler_output)) for x in pixels]

    processor = StudyProcessor.of(model)
    # a group of two for each study, the images put into the message, as trl does it
    chats = []
    for row in rows:
        images = [{"type": "image", "image": path} for path in row["images"]]
        content = [*images, {"type": "text", "text": row["prompt"][0]["content"]}]
        chats += [[{"role": "user", "content": content}]] * 2
    asked = processor.apply_chat_template(conversation=chats, tokenize=True, add_generation_prompt=True)
    assert [processor.apply_chat_template(chat, tokenize=False) for chat in chats[::2]] == [
        prompt_for(s, style) for s in few
    ]
    for i, (study, x) in enumerate(zip(few, pixels, strict=True)):
        stock = model.processor(
            text=prompt_for(study, style), images=list(x)
        )  # transformers' own, as an oracle
        assert asked["input_ids"][2 * i] == asked["input_ids"][2 * i + 1] == list(stock["input_ids"][0])
    with torch.no_grad():
        seen = torch.cat(list(model.llava.model.get_image_features(asked["pixel_values"]).pooler_output))
    assert torch.allclose(seen, torch.cat([x for x in tokens for _ in range(2)]), atol=1e-4)
    assert answers(model.llava, processor, rows, 12, 4, "cpu") == expected
    processor.restore()
    assert [p.findings for p in vlm.Findings(model).generate(few, max_new_tokens=12)] == expected
    with pytest.raises(ConfigError, match="1 image tokens in a prompt with 2 images"):
        processor([["a.png", "b.png"]], ["<image>\nFindings:"])


def test_a_study_without_image_or_answer_gives_no_row(studies):
    style = models.PromptStyle()
    bare = [replace(studies[0], images=[]), replace(studies[1], findings=None), studies[2]]
    (row,) = rows_of(bare, style)
    assert row["study_id"] == studies[2].study_id and row[REFERENCE] == studies[2].findings
    other = exchanged(studies[1:3], [1, 0], style)
    assert [r["images"] for r in other] == [[s.images[0].path] for s in (studies[2], studies[1])]
    assert [r[REFERENCE] for r in other] == [s.findings for s in studies[1:3]]


def test_a_reward_compares_every_answer_with_its_reference():
    reward, score = Reward("rouge-l/coco"), metric("rouge-l/coco")
    answers_, references = [FINDINGS[i] for i in (0, 1, 2, 3, 0)], [FINDINGS[i] for i in (0, 2, 1, 3, 1)]
    ids = [f"s{i}" for i in range(5)]
    values = reward(completions=answers_, study_id=ids, reference=references, images=[[]] * 5)
    assert values == [float(score.per_sample([r], [a])[0]) for r, a in zip(references, answers_, strict=True)]
    assert values[0] == values[3] == 1 > max(values[1], values[2], values[4])
    chats = [[{"role": "assistant", "content": a}] for a in answers_]
    assert reward(completions=chats, study_id=ids, reference=references) == values


def test_what_is_no_reward_is_refused():
    with pytest.raises(ConfigError, match="no score 'rouge-x'"):
        Reward("rouge-x")
    with pytest.raises(ConfigError, match=r"macro-30/neg is nan for an answer to study s7"):
        Reward("label-f1/14/macro-30/neg")(["Clear."], ["s7"], reference=["Clear."])
    with pytest.raises(ConfigError, match="gave 1 values for 2 answers"):
        Reward(lambda completions, **columns: [1.0])(["a", "b"], ["s1", "s2"])


def test_groups_come_whole_and_in_an_order_of_the_seed_alone():
    rounds = list(Groups(studies=7, batch=3, group=2, rounds=5, repeats=2, seed=1))
    assert len(rounds) == len(Groups(7, 3, 2, 5, 2, 1)) == 5 * 2 * 3 * 2
    rounds = torch.tensor(rounds).view(5, 2, 3, 2)
    assert (rounds == rounds[:, :1, :, :1]).all()  # repeats and groups
    for twice in (rounds[0:2], rounds[2:4]):  # two rounds of three in seven: no study comes twice
        assert len(twice.unique()) == 6
    assert list(Groups(7, 3, 2, 5, 2, 1)) == rounds.flatten().tolist() != list(Groups(7, 3, 2, 5, 2, 2))


def test_an_adapter_without_projector(findings_model, tmp_path):
    model = findings_model
    models.save(model, tmp_path / "base")
    model.llava = adapters.add_lora(model.llava, rank=2, projector=False)
    assert adapters.count_adapters(model.llava) == {
        "vision_tower": 0, "multi_modal_projector": 0, "language_model": 14,
    }  # fmt: skip
    assert all(".lora_" in name for name, p in model.llava.named_parameters() if p.requires_grad)
    for name, p in model.llava.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.1)
    models.save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    assert all(".lora_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    again = load_model(tmp_path / "adapter")
    ids = torch.tensor([model.tokenizer("Findings: The heart")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model.llava.eval()(input_ids=ids).logits, again.llava(input_ids=ids).logits)


def test_what_cannot_be_is_said_before_anything_is_loaded(monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "trl" or known(name))
    config = Grpo(out="o", studies=["s"], init="mini", reward=["rouge-l/coco"])
    check(config)
    for wrong, words in (
        ({"num_generations": 1}, "num_generations must be at least 2, not 1"),
        ({"reward_weights": [1.0, 2.0]}, "1 rewards but 2 reward_weights"),
        ({"num_iterations": 3}, "save_steps 50 is not a multiple of num_iterations 3"),
        ({"dtype": "bf16", "projector": True}, "frozen projector"),
    ):
        with pytest.raises(ConfigError, match=words):
            check(replace(config, **wrong))
    assert check_fields(replace(config, loss_type="ppo")) == [
        "loss_type must be one of dapo, grpo, dr_grpo, not 'ppo'"
    ]
    with pytest.raises(ConfigError, match="names of their own"):
        run(replace(config, init="mini", reward=["rouge-l/coco"] * 2, threads=1))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="without FSDP"):
        check(config)


def test_without_trl_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    argv = [
        "--init",
        "mini",
        "--studies",
        "s.jsonl",
        "--reward",
        "rouge-l/coco",
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(ConfigError, match=r'pip install "cxr-vlm\[rl\]"'):
        grpo.main(argv)
    assert not (tmp_path / "o").exists()


def test_the_recipe_fits():
    more = ["--reward", "rouge-l/coco", "words/generated", "--reward_weights", "1", "-0.01"]
    config = load_config(Grpo, "grpo", ["--recipe", "grpo_mini", "--studies", "s", "--out", "o", *more])
    assert config.init == "mini" and config.reward_weights == [1, -0.01] and config.num_generations == 8


# --- with trl ---------------------------------------------------------------------------------------------------------

SMALL = {
    "batch_size": 4, "num_generations": 4, "eval_steps": 0, "save_steps": 2,
    "logging_steps": 2, "lora_rank": 4, "precision": "fp32",
    "threads": 1, "warmup_steps": 0,
}  # fmt: skip


def configured(out, init, studies_file, **more) -> Grpo:
    return Grpo(
        **{"out": str(out), "studies": [str(studies_file)], "init": str(init), "reward": [], **SMALL, **more}
    )


def arbitrary(completions, study_id, **columns):
    """A reward that depends on answer and study."""
    return [
        (sum(map(ord, text)) % 11) / 10 + int(s[1:]) for text, s in zip(completions, study_id, strict=True)
    ]


def references_agree(completions, study_id, reference, prompts, images, **columns):
    """Every column is of one study: the tiny studies' findings follow from their number."""
    for text, s, truth, path in zip(completions, study_id, reference, images, strict=True):
        assert (
            isinstance(text, str) and truth == FINDINGS[int(s[1:]) % 4] and path[0].endswith(f"/{s[1:]}.png")
        )
    return [0.0] * len(completions)


@needs_trl
@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_advantages_and_gradient_against_formulas_written_out(init, studies, tmp_path, loss):
    """Shao et al., arXiv 2402.03300, eq. 3 and 4, at the point where the answers were drawn, so that the ratio is 1 and
    the gradient is that of A log p; the KL divergence by its gradient, E[log(p/q) d log p]."""
    from accelerate import PartialState

    from train.grpo.trainer import GrpoTrainer

    beta, most = 0.3, 20
    config = configured(tmp_path / "run", init, "", loss_type=loss, beta=beta, projector=True)
    model = load_model(init)
    model.llava.requires_grad_(False)
    rows = rows_of(studies, model.meta.prompt)
    processor = StudyProcessor.of(model)
    rewards = [Reward(arbitrary), Reward(references_agree)]
    loop = GrpoTrainer(config, model, processor, rewards, [2.0, 1.0], rows, PartialState())
    llava = model.llava
    torch.manual_seed(0)
    for name, p in llava.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.05)  # away from the start, or there would be no KL divergence
    batch = next(iter(loop.get_train_dataloader()))
    assert [row["study_id"] for row in batch[:8]] == [batch[0]["study_id"]] * 4 + [batch[4]["study_id"]] * 4
    llava.train()
    loop.current_gradient_accumulation_steps = 1
    drawn = loop._generate_and_score_completions(batch)

    ids = [
        row[mask.bool()].tolist()
        for row, mask in zip(drawn["completion_ids"], drawn["completion_mask"], strict=True)
    ]
    texts = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    r = 2 * torch.tensor(arbitrary(texts, [row["study_id"] for row in batch])).view(4, 4)
    wanted = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(drawn["advantages"], wanted.flatten(), atol=1e-4)

    loop.compute_loss(llava, drawn).backward()
    found = {name: p.grad.clone() for name, p in llava.named_parameters() if p.requires_grad}
    llava.zero_grad()
    total = torch.zeros(())
    for i, row in enumerate(batch):  # one by one, so that nothing can be mixed up
        prompt = model.prompt_ids(row["prompt"][0]["content"])
        seen = torch.cat([processor([[path]], ["<image>"])["pixel_values"] for path in row["images"]])

        def logps(prompt=prompt, seen=seen, answer=ids[i]):
            x_1NH, _ = embed(llava, model, [prompt + answer], seen, left=False)
            logp_AV = llava(inputs_embeds=x_1NH).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            return logp_AV[range(len(answer)), answer]

        logp_A = logps()
        with torch.no_grad(), llava.disable_adapter():
            start_A = logps()
        kl_A = start_A.sub(logp_A).exp() - start_A.sub(logp_A) - 1
        ratio_A = (logp_A - logp_A.detach()).exp()
        terms = ratio_A * (beta * kl_A - wanted.flatten()[i])
        count = {"dapo": sum(map(len, ids)), "grpo": len(ids[i]) * 16, "dr_grpo": 16 * most}[loss]
        total = total + terms.sum() / count
    total.backward()
    for name, p in llava.named_parameters():
        if p.requires_grad:
            assert torch.allclose(found[name], p.grad, atol=1e-5, rtol=1e-3), name
    assert sum(float(g.abs().sum()) for g in found.values()) > 0.1


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@needs_trl
def test_a_planted_reward_rises_and_the_rest_stays(init, studies_file, tmp_path, capsys):
    """The reward: whether the answer speaks of the lungs, as a quarter do at the start."""

    def lungs(completions, **columns):
        return [float("lungs" in text) for text in completions]

    out = tmp_path / "run"
    before = load_file(init / "model.safetensors")
    config = configured(
        out, init, studies_file, reward=["words/generated"], reward_weights=[0.0], max_steps=16,
        num_generations=8, learning_rate=3e-3, eval_steps=8, eval_studies=6, merge=True,
    )  # fmt: skip
    assert run(config, [lungs]) == 0
    lines = metrics(out)
    rewards = [line["rewards/lungs/mean"] for line in lines if "reward" in line]
    assert len(rewards) == 16 and sum(rewards[-4:]) / 4 > 0.25 + sum(rewards[:2]) / 2
    watched = [line for line in lines if "held_out/true/reward" in line]
    assert [line["step"] for line in watched] == [0, 8, 16]
    assert watched[-1]["held_out/true/lungs"] > 0.9
    assert watched[-1]["held_out/true/reward"] == watched[-1]["held_out/true/lungs"]  # words weigh 0
    said, told = capsys.readouterr()
    assert "next: cxr generate " in told and f"--model {out / 'adapter'} " in told
    assert "of groups equal" in said and "with shuffled images" in said
    assert not any(truth in said for truth in FINDINGS)

    # what is frozen is bit-equal, the tower has no adapter, and the adapter is what runs elsewhere
    assert all(torch.equal(x, before[name]) for name, x in load_file(init / "model.safetensors").items())
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert adapter and all("language_model" in name for name in adapter)
    merged = load_file(out / "merged" / "model.safetensors")
    changed = {name for name, x in merged.items() if not torch.equal(x, before[name])}
    assert changed and all("proj.weight" in name and "language_model" in name for name in changed)
    held = [s for s in load_studies(studies_file) if s.split == "validate"][:4]
    texts = [
        [
            p.findings
            for p in vlm.Findings.from_pretrained(out / part).generate(held, root=studies_file.parent)
        ]
        for part in ("adapter", "merged")
    ]
    assert texts[0] == texts[1]
    assert run(config, [lungs]) == 0 and "is finished" in capsys.readouterr().out


@needs_trl
@pytest.mark.parametrize(
    "more",
    [{"gradient_accumulation_steps": 2}, {"num_iterations": 2, "beta": 0.1, "projector": True}],
    ids=["accumulated", "iterated"],
)
def test_an_interrupted_run_goes_on_exactly(init, studies_file, tmp_path, monkeypatch, more):
    asked = []

    def stopping(completions, **columns):
        asked.append(len(completions))
        if stop and len(asked) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return [len(text) / 10 for text in completions]

    # 64 studies, 24 a step: the third step begins a new order
    common = {
        "batch_size": 24,
        "num_generations": 2,
        "max_steps": 6,
        "max_new_tokens": 4,
        "learning_rate": 1e-2,
        **more,
    }
    stop = 0
    assert run(configured(tmp_path / "whole", init, studies_file, **common), [stopping]) == 0
    parts = configured(tmp_path / "parts", init, studies_file, **common)
    stop, asked[:] = 5 if "gradient_accumulation_steps" in more else 2, []
    with monkeypatch.context() as before:
        if "beta" not in more:
            # as before 0.2, when Trainer wrote the optimiser, and fields had other names
            before.setattr(
                ExactResume,
                "_save_optimizer_and_scheduler",
                transformers.Trainer._save_optimizer_and_scheduler,
            )
        assert run(parts, [stopping]) == INTERRUPTED
    kind = "safetensors" if "beta" in more else "pt"
    assert list((tmp_path / "parts").glob(f"checkpoint-*/optimizer.{kind}"))
    if kind == "pt":
        make_older(tmp_path / "parts", RENAMED, "beta")
    assert not (tmp_path / "parts" / "adapter").exists()
    stop = 0
    assert run(parts, [stopping]) == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    weights = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "parts")
    ]
    assert weights[0] == weights[1]
    with pytest.raises(ConfigError, match="max_steps: 6 there, 8 now"):
        run(replace(parts, max_steps=8), [stopping])


@needs_trl
def test_trl_takes_a_score_as_it_is(llm_dir, tmp_path):
    """`eval.metric` is a reward of trl's, also without our trainer: text alone, the references in a column."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    data = Dataset.from_list([{"prompt": "Findings:", "findings": text} for text in FINDINGS])
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(llm_dir),
        processing_class=AutoTokenizer.from_pretrained(llm_dir),
        reward_funcs=metric("rouge-l/coco"),
        train_dataset=data,
        args=GRPOConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
            report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no", logging_steps=1,
            disable_tqdm=True,
        ),
    )  # fmt: skip
    trainer.train()
    assert 0 <= trainer.state.log_history[0]["rewards/rouge-l/coco/mean"] <= 1
