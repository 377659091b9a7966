"""Verdicts on sentences: the packed pass against teacher forcing, windows of long reports, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoder.errors import ModelError
from eval.scores.counters import Counter
from eval.scores.spans import Span
from train.phantom.population import write_population
from vlm import contrasts
from vlm.contrasts import Contrast, Contrasted, contrasted, occlusion
from vlm.decoding import answer_logprobs, branch_logprobs, image_tokens
from vlm.errors import AskedError
from vlm.films import blank_film
from vlm.findings import Findings
from vlm.study import load_studies
from vlm.verdicts import Calibration, Curve, Doubt, verdict_of
from vlm.verify import Verifier, films_of, left_out, revision_of


@pytest.fixture(scope="module")
def mini() -> Findings:
    return Findings.from_pretrained("mini", warn=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_population(folder, studies=3, seed=12, prevalence=2.0, laterals=0.0, masks=False, size=256)
    root = folder
    return next(s for s in load_studies(root / "studies.jsonl") if s.findings), root


@pytest.fixture(scope="module")
def calibration(mini) -> Calibration:
    curve = Curve((-1.0, 0.5), (0.0, 0.0), {"Pleural Effusion": (0.5, 0.1)}, 0.9, 0.4)
    kinds = ("side", "zone", "extent", "denial", "invented")
    return Calibration(revision_of(mini), dict.fromkeys(kinds, curve), 0.5)


def film(mini, study):
    one, root = study
    return films_of(mini, [(one, one.findings)], root)[0]


def test_one_packed_pass_gives_what_teacher_forcing_gives(mini, study):
    model, seen = mini.model, film(mini, study)
    ids = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    trunk = ids(study[0].findings)
    branches = [(0, ids("No effusion.")), (4, ids(" Left nodule.")), (len(trunk), ids(" Large effusion."))]
    made = branch_logprobs(model.llava, model, seen.prompt, trunk, branches, seen.pixels, seen.tokens)
    for (place, branch), packed in zip(branches, made, strict=True):
        prompt = seen.prompt + trunk[:place]
        (alone,) = answer_logprobs(model.llava, model, [prompt], [branch], seen.pixels, seen.tokens)
        torch.testing.assert_close(torch.tensor(packed), torch.tensor(alone), atol=1e-4, rtol=0)


def test_margins_are_those_of_whole_reports_read_one_by_one(mini, study):
    """Independent of branches: the log-probability of everything up to the sentence's end, by teacher forcing."""
    model, seen, report = mini.model, film(mini, study), study[0].findings
    upto = lambda text: sum(  # noqa: E731
        answer_logprobs(
            model.llava, model, [seen.prompt], [model.tokenizer(text, add_special_tokens=False)["input_ids"]],
            seen.pixels, seen.tokens,
        )[0]
    )  # fmt: skip
    checked = 0
    for sentence in contrasted(model, seen.prompt, report, seen.pixels, seen.tokens):
        before = report[: sentence.span.start]
        own = upto(before + sentence.span.text)
        for contrast in sentence.contrasts[:2]:
            expected = upto(before + contrast.counter.text) - own
            assert contrast.margin == pytest.approx(expected, abs=2e-3)
            checked += 1
    assert checked >= 3


def test_a_report_longer_than_the_room_is_read_in_windows(mini, study, monkeypatch):
    model, seen = mini.model, film(mini, study)
    monkeypatch.setattr(contrasts, "WINDOW", 160)
    report = " ".join([study[0].findings] * 5)
    found = contrasted(model, seen.prompt, report, seen.pixels, seen.tokens)
    assert [s.span.text for s in found] == [s.text for s in contrasts.spans(report)]
    # In the first window the context is that of the report alone.
    alone = contrasted(model, seen.prompt, study[0].findings, seen.pixels, seen.tokens)
    for a, b in zip(found, alone, strict=False):
        assert [c.margin for c in a.contrasts] == pytest.approx([c.margin for c in b.contrasts], abs=2e-3)


def test_passes_of_few_tokens_give_the_same(mini, study, monkeypatch):
    model, seen = mini.model, film(mini, study)
    whole = contrasted(model, seen.prompt, study[0].findings, seen.pixels, seen.tokens)
    monkeypatch.setattr(contrasts, "MOST", 1)
    pieces = contrasted(model, seen.prompt, study[0].findings, seen.pixels, seen.tokens)
    for a, b in zip(whole, pieces, strict=True):
        assert [c.margin for c in a.contrasts] == pytest.approx([c.margin for c in b.contrasts], abs=1e-3)


def test_a_curve_is_the_logistic_function_it_says():
    curve = Curve((-1.0, 0.5), (0.2, -0.1), {"Edema": (0.3, 0.05)})
    logistic = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert curve.probability(2.0, "Fracture", False) == pytest.approx(logistic(-1 + 1.0))
    assert curve.probability(2.0, "Edema", True) == pytest.approx(
        logistic(-1 + 0.3 + 0.2 + 2 * (0.5 + 0.05 - 0.1))
    )
    assert 0 <= curve.probability(-1e9, "", False) < curve.probability(1e9, "", False) <= 1


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([("side", "supported"), ("denial", "supported")], "supported"),
        ([("side", "supported"), ("extent", "undecidable"), ("denial", "supported")], "supported"),
        ([("side", "undecidable"), ("denial", "supported")], "undecidable"),
        ([("extent", "contradicted"), ("denial", "supported")], "contradicted"),
        ([("extent", "supported")], "undecidable"),
        ([], "undecidable"),
    ],
)
def test_the_verdict_on_a_sentence(verdicts, expected):
    doubts = [Doubt(kind, "", 0.5, verdict, Counter(kind, "")) for kind, verdict in verdicts]
    assert verdict_of(doubts) == expected


def test_what_is_left_out():
    shown = {
        "Edema": ("Mild edema.", 0.9),
        "Consolidation": ("Consolidation.", 0.8),
        "Fracture": ("Fracture.", 0.3),
    }
    found = left_out(shown, "No pulmonary edema. Hazy opacity in the left lung.")
    # Said in other words: opacity stands for consolidation. Denied: edema.
    assert [(o.condition, o.denied) for o in found] == [("Edema", True), ("Fracture", False)]


def test_a_study_is_verified_and_python_and_json_agree(mini, study, calibration):
    one, root = study
    found = mini.verify(one, one.findings, root=root, calibration=calibration)
    assert "".join(one.findings[s.start : s.end] for s in found.sentences) == "".join(
        s.text for s in found.sentences
    )
    assert found.error is None and found.written
    assert all(s.better for s in found.contradicted)
    row = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [s["verdict"] for s in row["sentences"]] == [s.verdict for s in found.sentences]
    again = next(mini.verifier(calibration).verify([(one, one.findings)], root=root))
    assert again == found


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("", "there is no report"), ("Kein Pneumothorax. Herz normal groß.", "another language"),
        ("The liver and the kidneys are normal. The spleen is normal.", "another part of the body"),
    ],
)  # fmt: skip
def test_what_is_no_report_of_a_chest_gets_an_answer(mini, study, calibration, report, said):
    found = mini.verify(study[0], report, root=study[1], calibration=calibration)
    assert found.error["code"] == "report_not_judged" and said in found.error["message"]
    assert not found.sentences


def test_a_film_that_cannot_be_read_costs_its_study_alone(mini, study, calibration, tmp_path):
    one, root = study
    (tmp_path / "junk.png").write_bytes(b"junk")
    bad = replace(one, study_id="bad", images=[replace(one.images[0], path=str(tmp_path / "junk.png"))])
    first, second = mini.verifier(calibration).verify([(bad, one.findings), (one, one.findings)], root=root)
    assert first.error is not None and second.error is None


def test_a_calibration_round_trips_and_damage_is_told(mini, calibration, tmp_path):
    path = tmp_path / "verify.json"
    calibration.save(path)
    assert Calibration.load(path) == calibration
    row = json.loads(path.read_text())
    for change in (
        {"kind": "other"},
        {"curves": {"side": {}}},
        {"curves": {"colour": row["curves"]["side"]}},
    ):
        path.write_text(json.dumps(row | change))
        with pytest.raises(ModelError, match=r"verify\.json"):
            Calibration.load(path)
    with pytest.raises(AskedError, match="of another model"):
        Verifier(mini, replace(calibration, revision="0" * 64))
    with pytest.raises(AskedError, match="cxr calibrate"):
        Findings(mini.model).verifier()


def test_a_sentence_is_judged_by_its_likeliest_counters(mini, calibration):
    counter = Counter("side", "Right effusion.")
    sentence = Contrasted(
        Span("Left effusion.", 0, 14), {"Pleural Effusion": 1}, -3.0,
        (Contrast("side", "Pleural Effusion", 9.0, counter),),
    )  # fmt: skip
    (doubt,) = calibration.doubts(sentence)
    assert (
        doubt.probability == pytest.approx(1 / (1 + math.exp(-(-0.5 + 0.6 * 9))))
        and doubt.verdict == "contradicted"
    )


def test_the_shipped_calibration_is_mini_s(mini):
    if mini.calibration is None:
        pytest.fail("vlm/mini/verify.json is missing")
    assert mini.verifier().calibration.revision == revision_of(mini)
    assert Path("vlm/mini/verify.json")


def test_covering_all_of_the_film_is_showing_a_blank_one(mini, study):
    model, seen = mini.model, film(mini, study)
    grey = blank_film(model.preprocessing)[None]
    blank = image_tokens(model.llava, grey)
    sentences = contrasted(model, seen.prompt, study[0].findings, seen.pixels, seen.tokens)
    without = contrasted(model, seen.prompt, study[0].findings, grey, blank)
    at = next(i for i, s in enumerate(sentences) if i and s.contrasts)
    contrast = sentences[at].contrasts[0]
    span, counter = sentences[at].span, contrast.counter.text
    own = next(
        c for c in without[at].contrasts if c.kind == contrast.kind and c.condition == contrast.condition
    )
    if own.counter != contrast.counter:
        pytest.skip("another counter is the likeliest without a film")
    report = study[0].findings
    ((whole,),) = occlusion(model, seen.prompt, report, span, counter, seen.pixels, seen.tokens, blank, 1)
    assert whole == pytest.approx(contrast.margin - own.margin, abs=5e-3)
    cells = occlusion(model, seen.prompt, report, span, counter, seen.pixels, seen.tokens, blank)
    assert len(cells) == 7 and {len(line) for line in cells} == {7}
    # A part that is blank already does nothing.
    side = math.isqrt(len(seen.tokens))
    half = seen.tokens.clone()
    half[: side * side // 2] = blank[: side * side // 2]
    upper = occlusion(model, seen.prompt, report, span, counter, seen.pixels, half, blank, 2)
    assert upper[0] == pytest.approx([0.0, 0.0], abs=1e-3) and any(abs(x) > 1e-3 for x in upper[1])
