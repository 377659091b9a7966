"""The R2Gen profile: its cleaning by examples, its scores against pycocoevalcap's on synthetic pairs."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.scores.r2gen import METEOR, add_r2gen, cider, clean_report, document_frequencies, r2gen_samples
from eval.scores.sheet import Sheet

GOLDEN = json.loads((Path(__file__).parent / "golden" / "r2gen.json").read_text())


@pytest.mark.parametrize("cleaning", ["iu", "mimic"])
def test_scores_equal_pycocoevalcaps(cleaning):
    samples = r2gen_samples(GOLDEN["references"], GOLDEN["predictions"], cleaning)
    expected = GOLDEN[cleaning]
    assert list(samples.bleu()) == pytest.approx(expected["bleu"], abs=1e-9)
    assert list(samples.rouge_l_N) == pytest.approx(expected["rouge_l"], abs=1e-9)
    assert list(samples.cider_N) == pytest.approx(expected["cider"], abs=1e-9)
    assert max(expected["cider"]) > 1


@pytest.mark.parametrize(
    ("report", "iu", "mimic"),
    [
        ("Clear. No effusion.", "clear . no effusion .", "clear . no effusion ."),
        ("1. Clear. 2. Big heart. 3. Old.", "clear . big heart . old .", "clear . big heart . old ."),
        (
            "Left-sided (8 mm) and/or 50%; it's",
            "left-sided 8 mm andor 50 its .",
            "left-sided 8 mm andor 50 its .",
        ),
        ("In 2011. The", "in 201the .", "in 201the ."),
        ("____ was seen: x=<5>", "was seen x5 .", "was seen x5 ."),
        ("Clear.\nNo effusion", "clear no effusion .", "clear . no effusion ."),
        ("a. . b", "a . . b .", "a . . b ."),
        ("  ", "", ""),
    ],
)
def test_cleaning(report, iu, mimic):
    assert clean_report(report, "iu") == iu
    assert clean_report(report, "mimic") == mimic


def test_ciders_frequencies_are_fixed():
    """A study's value does not depend on which other studies are drawn, once the frequencies are given."""
    refs = [
        [text.split()] for text in ("no effusion seen", "no mass seen", "big heart", "no effusion or mass")
    ]
    hyps = [text.split() for text in ("no effusion seen", "mass seen", "heart big", "effusion")]
    known = document_frequencies(refs)
    assert list(cider(refs[:2], hyps[:2], known)) == pytest.approx(list(cider(refs, hyps)[:2]), abs=1e-12)
    assert list(cider(refs[:2], hyps[:2])) != pytest.approx(list(cider(refs, hyps)[:2]), abs=1e-3)
    assert list(cider(refs[:1], hyps[:1])) == [0]


def test_empty_predictions_score_nothing():
    samples = r2gen_samples(["Clear.", "Big heart. No effusion."], ["", "Big heart."])
    assert samples.cider_N[0] == samples.rouge_l_N[0] == samples.rouge_1_N[0] == samples.bleu_NK[0, 0] == 0
    assert samples.rouge_1_N[1] == pytest.approx(2 / 3)


def test_references_are_cut():
    long = "clear " * 200
    assert r2gen_samples([long], [long], max_tokens=60).bleu_NK[0, -1] == 60
    assert r2gen_samples([long], [long]).bleu_NK[0, -1] == 201


def test_sheet():
    refs, hyps = GOLDEN["references"], GOLDEN["predictions"]
    sheet = Sheet(len(refs))
    add_r2gen(sheet, r2gen_samples(refs, hyps, "iu"))
    total_K = sheet.stats_NK.sum(axis=0)
    value = {key: float(measure.of(total_K)) for key, measure in sheet.measures.items()}
    assert value["r2gen/iu/cider"] == pytest.approx(np.mean(GOLDEN["iu"]["cider"]), abs=1e-9)
    assert value["r2gen/iu/bleu-4"] == pytest.approx(GOLDEN["iu"]["bleu"][3], abs=1e-9)
    assert "|df:refs|" in sheet.measures["r2gen/iu/cider"].signature
    assert METEOR.command and not any("meteor" in key for key in value)


def test_refuses():
    with pytest.raises(ValueError, match="no cleaning 'nih'; there are iu, mimic"):
        clean_report("a", "nih")
    with pytest.raises(ValueError, match="2 references but 1 predictions"):
        r2gen_samples(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no reference"):
        r2gen_samples([[]], ["a"])


def test_signatures_say_which_of_several_references_a_score_takes():
    import cxr

    several = [["No effusion.", "No pleural effusion."], ["Edema."]]
    scores = cxr.score(several, ["No pleural effusion.", "Edema."], profiles=("coco", "r2gen-iu"))
    for key, taken in (("bleu-2/rexrank", "closest"), ("bleu-2/coco", "all"), ("r2gen/iu/bleu-1", "all")):
        assert scores[key].signature.endswith(f"|refs:{taken}")
