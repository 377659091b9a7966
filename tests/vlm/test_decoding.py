"""Decoding: batches of mixed studies equal their singles, whatever the method; sentences say how sure the model is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from tests.tiny import make_llm
from vlm import Findings
from vlm import projector as projectors
from vlm.build import build
from vlm.decoding import Decoding, answer_logprobs, generate_ids
from vlm.errors import AskedError
from vlm.prompts import PromptStyle, prompt_for, shown_images
from vlm.sentences import scored_sentences, sentences
from vlm.study import Image, Prior, Study

STYLE = PromptStyle(lateral=True, prior_image=True)
GREEDY, BEAM = Decoding(10), Decoding(10, "beam", beams=3)
SAMPLE = Decoding(10, "sample", temperature=0.7, top_p=0.9, seed=4)


@pytest.fixture(scope="module")
def model(encoder_dir, tmp_path_factory):
    model = build(encoder_dir, make_llm(tmp_path_factory.mktemp("llm"), seed=3), prompt=STYLE)
    pixels_BCHW = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    projectors.calibrate(model.llava, projectors.tower_features(model.llava.model.vision_tower, pixels_BCHW))
    return model


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Studies of one, two and three images, with prompts of different lengths."""
    folder, rng, made = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0), []

    def film(name: str, view: str) -> Image:
        Picture.fromarray(rng.integers(0, 255, (40, 40)).astype(np.uint8)).save(folder / name)
        return Image(str(folder / name), view)

    for i in range(6):
        images = [film(f"{i}.png", "PA")] + ([film(f"{i}-l.png", "lateral")] if i % 2 else [])
        prior = Prior([film(f"{i}-p.png", "AP")], "The heart is enlarged.") if i % 3 == 2 else None
        made.append(Study(f"s{i}", images=images, prior=prior, indication="Fever and cough " * i))
    assert {len(shown_images(s, STYLE)) for s in made} == {1, 2, 3}
    return made


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=["greedy", "beam"])
@pytest.mark.parametrize("size", [2, 6])
def test_a_batch_of_mixed_studies_equals_its_singles(model, mixed, decoding, size):
    findings = Findings(model)
    singles = list(findings.generate(mixed, batch_size=1, decoding=decoding))
    batched = list(findings.generate(mixed, batch_size=size, decoding=decoding))
    assert [p.study_id for p in batched] == [s.study_id for s in mixed]
    assert [p.findings for p in batched] == [p.findings for p in singles]
    assert len({p.findings for p in singles}) > 1 and not any(p.error for p in singles)


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLE], ids=["greedy", "sample"])
def test_a_static_cache_changes_nothing(model, mixed, decoding):
    findings = Findings(model)
    wanted = list(findings.generate(mixed, batch_size=4, decoding=decoding))
    static = list(findings.generate(mixed, batch_size=4, decoding=decoding, static_cache=True))
    assert [p.findings for p in static] == [p.findings for p in wanted]
    assert model.llava.model.language_model.config._attn_implementation == "cxr_attention"
    with pytest.raises(ValueError, match="beam search"):
        next(findings.generate(mixed, decoding=BEAM, static_cache=True))


def inputs(model, studies):
    prompts = [model.prompt_ids(prompt_for(s, STYLE)) for s in studies]
    count = sum(len(shown_images(s, STYLE)) for s in studies)
    return prompts, torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def test_greedy_is_the_likeliest_token_each_time(model, mixed):
    """Against a loop without cache, padding or batches, through the model's own forward with pixels."""
    prompts, pixels = inputs(model, mixed)
    written = generate_ids(model.llava, model, prompts, pixels, GREEDY)
    counts = [len(shown_images(s, STYLE)) for s in mixed]
    for prompt, ids, part in zip(prompts, written, pixels.split(counts), strict=True):
        row = list(prompt)
        with torch.no_grad():
            for _ in range(len(ids)):
                logits = model.llava(input_ids=torch.tensor([row]), pixel_values=part).logits
                row.append(int(logits[0, -1].argmax()))
        assert row[len(prompt) :] == ids


def test_beams_find_an_answer_at_least_as_likely(model, mixed):
    prompts, pixels = inputs(model, mixed)
    sums = {}
    for name, decoding in (("greedy", GREEDY), ("beam", replace(BEAM, length_penalty=0.0))):
        written = generate_ids(model.llava, model, prompts, pixels, decoding)
        sums[name] = sum(map(sum, answer_logprobs(model.llava, model, prompts, written, pixels)))
    assert sums["beam"] > sums["greedy"]


def test_sampling_repeats_with_its_seed_and_leaves_the_generator_alone(model, mixed):
    prompts, pixels = inputs(model, mixed)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same = (generate_ids(model.llava, model, prompts, pixels, SAMPLE) for _ in range(2))
    assert one == same != generate_ids(model.llava, model, prompts, pixels, replace(SAMPLE, seed=5))
    assert torch.equal(before, torch.get_rng_state())


def test_log_probabilities_are_those_of_the_forward_pass(model, mixed):
    prompts, pixels = inputs(model, mixed)
    answers = [[*(7, 9, 11)[: 1 + i % 3], model.tokenizer.eos_token_id] for i in range(len(prompts))]
    found = answer_logprobs(model.llava, model, prompts, answers, pixels)
    counts = [len(shown_images(s, STYLE)) for s in mixed]
    for prompt, answer, values, part in zip(prompts, answers, found, pixels.split(counts), strict=True):
        with torch.no_grad():
            row = torch.tensor([prompt + answer])
            logp_NV = model.llava(input_ids=row, pixel_values=part).logits[0].log_softmax(-1)
        wanted = [float(logp_NV[len(prompt) - 1 + j, token]) for j, token in enumerate(answer)]
        assert values == pytest.approx(wanted, abs=1e-4)


def test_sentences_and_their_scores(model, mixed):
    ids = model.answer_ids(" The heart is enlarged. There is a 3.5 cm mass? No")
    texts = sentences(model.tokenizer, ids)
    assert [t for t, _ in texts] == ["The heart is enlarged.", "There is a 3.5 cm mass?", "No"]
    assert [i for _, places in texts for i in places] == list(range(len(ids) - 1))
    rows = scored_sentences(model.tokenizer, ids, [-0.5] * len(ids), [-1.5] * len(ids))
    assert all(row["confidence"] == -0.5 for row in rows)
    assert [row["image_dependence"] for row in rows] == [len(places) for _, places in texts]

    findings = Findings(model)
    plain = list(findings.generate(mixed, decoding=GREEDY))
    (scored, dependent) = (
        list(findings.generate(mixed, decoding=GREEDY, sentences=s))
        for s in ("confidence", "image_dependence")
    )
    assert [p.findings for p in plain] == [p.findings for p in scored] == [p.findings for p in dependent]
    assert plain[0].sentences is None and "sentences" not in plain[0].to_json()
    assert all(row["confidence"] <= 0 for p in scored for row in p.sentences)
    assert all("image_dependence" not in row for p in scored for row in p.sentences)
    assert any(row.get("image_dependence") for p in dependent for row in p.sentences)
    (blank,) = findings.generate(mixed[:1], decoding=GREEDY, sentences="image_dependence", images="blank")
    assert all(row.get("image_dependence", 0) == pytest.approx(0, abs=1e-3) for row in blank.sentences)


def test_a_lateral_or_prior_image_that_cannot_be_used_is_left_out(model, mixed, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    empty = str(tmp_path / "empty.png")
    whole = mixed[5]
    broken = replace(
        whole,
        images=[whole.images[0], Image(empty, "lateral"), whole.images[1]],
        prior=Prior([Image(empty, "PA")], whole.prior.findings),
    )
    left = replace(whole, prior=Prior([], whole.prior.findings))
    findings = Findings(model)
    got, wanted = findings.generate([broken, left], decoding=GREEDY)
    assert got.findings == wanted.findings and got.error is None
    (lateral, prior) = (w["message"] for w in got.warnings if w["code"] == "not_an_image")
    assert "lateral image was left out" in lateral and "prior image was left out" in prior
    assert all(w["code"] != "not_an_image" for w in wanted.warnings)
    main = replace(whole, images=[Image(empty, "PA"), whole.images[1]])
    assert next(findings.generate([main], decoding=GREEDY)).error is not None


@pytest.mark.parametrize("section", ["impression", "both"])
def test_other_sections(model, mixed, section):
    model = replace(model, meta=replace(model.meta, prompt=replace(STYLE, section=section)))
    (row,) = (p.to_json() for p in Findings(model).generate(mixed[:1], decoding=GREEDY))
    assert ("findings" in row) == (section == "both") and "impression" in row


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "guess"}, {"method": "beam"}, {"beams": 2}, {"temperature": 0.5}, {"method": "sample", "top_p": 0.0},
        {"method": "sample", "temperature": 0.0},
    ],
)  # fmt: skip
def test_what_does_not_go_together(wrong):
    with pytest.raises(ValueError, match=r"beam|sampl|temperature|decoding"):
        Decoding(**wrong)


@pytest.mark.parametrize(
    "asked", [{"method": "sample", "temperature": 1e-320}, {"method": "sample", "temperature": 1e300},
              {"method": "beam", "beams": 2, "length_penalty": 1e308}, {"length_penalty": float("nan")}],
)  # fmt: skip
def test_numbers_that_overflow_are_refused(asked):
    with pytest.raises(AskedError, match="must be from"):
        Decoding(**asked)
