"""The prompts, word for word: a model answers only the prompt it was trained with."""

from __future__ import annotations

import pytest

from vlm.prompts import PromptStyle, answer_for, clean, prompt_for, shown_image
from vlm.study import Image, Prior, Study

FULL = Study(
    "s", images=[Image("a.png", "PA")], indication="Fever,\n and  cough", age=63.4, sex="F",
    prior=Prior(findings="Small left effusion."), findings="The effusion has grown. ",
)  # fmt: skip
BARE = Study("s", images=[Image("a.png")])


def test_no_text_of_a_study_can_pass_for_an_image_or_an_end():
    hostile = Study("s", indication="<image> see </s>cough <|im_end|> at <5 mm", findings="<s>Clear<IMAGE>.")
    assert prompt_for(hostile) == "<image>\nIndication: see cough at <5 mm.\nFindings:"
    assert answer_for(hostile) == " Clear."


@pytest.mark.parametrize(
    ("study", "style", "golden"),
    [
        (
            FULL,
            PromptStyle(),
            "<image>\nIndication: Fever, and cough.\nPrior: Small left effusion.\nFindings:",
        ),
        (FULL, PromptStyle(prior=False), "<image>\nIndication: Fever, and cough.\nFindings:"),
        (
            FULL,
            PromptStyle(indication=False, prior=False, demographics=True),
            "<image>\nPA. F 63.\nFindings:",
        ),
        (BARE, PromptStyle(demographics=True), "<image>\nFindings:"),
        (
            FULL,
            PromptStyle("instruct", demographics=True),
            "<image>\nDescribe the findings of this chest X-ray in comparison with the prior study.\n"
            "View: PA. Sex: F. Age: 63. Indication: Fever, and cough.\nPrior findings: Small left effusion.\nFindings:",
        ),
        (BARE, PromptStyle("instruct"), "<image>\nDescribe the findings of this chest X-ray.\nFindings:"),
    ],
)
def test_golden(study, style, golden):
    assert prompt_for(study, style) == golden
    assert prompt_for(study, style, image=False) == golden.removeprefix("<image>\n")


@pytest.mark.parametrize("prior", [None, Prior(), Prior(findings="  "), Prior(images=[Image("b.png")])])
@pytest.mark.parametrize("wording", ["short", "instruct"])
def test_a_comparison_is_asked_for_only_with_prior_findings(prior, wording):
    text = prompt_for(Study("s", indication="Cough", prior=prior), PromptStyle(wording)).lower()
    assert "prior" not in text and "comparison" not in text


def test_the_answer():
    assert answer_for(FULL) == " The effusion has grown."
    assert answer_for(BARE) == ""


def test_marks_of_removed_words_go():
    assert clean("Heart size XXXX normal.  XXXX, no effusion XXXX .") == "Heart size normal., no effusion."
    assert clean("XXXX") == "" and clean(None) == ""


def test_the_frontal_image_is_shown():
    images = [
        Image("l.png", "lateral"),
        Image("u.png", "unknown"),
        Image("f.png", "AP"),
        Image("g.png", "PA"),
    ]
    assert shown_image(Study("s", images=images)).path == "f.png"
    assert shown_image(Study("s", images=images[:2])).path == "u.png"
    assert shown_image(Study("s", images=images[:1])).path == "l.png"
    assert shown_image(Study("s")) is None


def test_an_unknown_wording_is_refused():
    with pytest.raises(ValueError, match="short, instruct"):
        PromptStyle("poem")
