"""The prompts, word for word: a model answers only the prompt it was trained with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vlm.prompts import (
    MAIRA2,
    PromptStyle,
    answer_for,
    clean,
    dropped_out,
    prompt_for,
    sections_of,
    shown_image,
    shown_images,
    style_of,
    with_images_of,
)
from vlm.study import Image, Prior, Study

FULL = Study(
    "s", images=[Image("a.png", "PA")], indication="Fever,\n and  cough", age=63.4, sex="F",
    prior=Prior(findings="Small left effusion."), findings="The effusion has grown. ",
)  # fmt: skip
STUDY = Study(
    "s", images=[Image("l.png", "lateral"), Image("f.png", "PA")], indication="Fever", technique="Two views.",
    comparison="1 May", prior=Prior([Image("q.png", "lateral"), Image("p.png", "AP")], "Clear lungs."),
    findings="New opacity.", impression="Pneumonia.",
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
        (
            STUDY,
            PromptStyle(lateral=True, prior_image=True, technique=True, comparison=True),
            "Frontal: <image>\nLateral: <image>\nPrior: <image>\nIndication: Fever.\nTechnique: Two views.\n"
            "Comparison: 1 May.\nPrior: Clear lungs.\nFindings:",
        ),
        (
            STUDY,
            PromptStyle("instruct", prior=False, prior_image=True, section="both"),
            "Frontal: <image>\nPrior: <image>\nDescribe the findings of this chest X-ray and give the impression in "
            "comparison with the prior study.\nIndication: Fever.\nFindings:",
        ),
        (
            STUDY,
            PromptStyle("instruct", prior=False, lateral=True, section="impression"),
            "Frontal: <image>\nLateral: <image>\nGive the impression of this chest X-ray.\nIndication: Fever.\n"
            "Impression:",
        ),
        (BARE, PromptStyle(lateral=True, prior_image=True), "<image>\nFindings:"),
    ],
)
def test_golden(study, style, golden):
    assert prompt_for(study, style) == golden
    without = [line for line in golden.splitlines() if "<image>" not in line]
    assert prompt_for(study, style, image=False) == "\n".join(without)
    assert prompt_for(study, style).count("<image>") == max(1, len(shown_images(study, style)))


@pytest.mark.parametrize("prior", [None, Prior(), Prior(findings="  "), Prior(images=[Image("b.png")])])
@pytest.mark.parametrize("wording", ["short", "instruct"])
def test_a_comparison_is_asked_for_only_with_prior_findings(prior, wording):
    text = prompt_for(Study("s", indication="Cough", prior=prior), PromptStyle(wording)).lower()
    assert "prior" not in text and "comparison" not in text


SYSTEM = "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  "
TASK = (
    " Provide a description of the findings in the radiology study in comparison to the prior frontal image. "
)
NOTHING = "INDICATION: N/A TECHNIQUE: N/A COMPARISON: N/A  ASSISTANT: "
TOLD = "INDICATION: Fever TECHNIQUE: Two views. COMPARISON: 1 May  ASSISTANT: "


@pytest.mark.parametrize(
    ("study", "style", "golden"),
    [
        (BARE, MAIRA2, f"{SYSTEM}Given the current frontal image only<image>{TASK}{NOTHING}"),
        (
            replace(STUDY, prior=None, technique=" two\n views XXXX "),
            MAIRA2,
            f"{SYSTEM}Given the current frontal image<image> and the current lateral image<image>{TASK}"
            "INDICATION: Fever TECHNIQUE: two views COMPARISON: 1 May  ASSISTANT: ",
        ),
        (
            STUDY,
            MAIRA2,
            f"{SYSTEM}Given the current frontal image<image> the current lateral image<image> and the prior frontal "
            f"image<image> PRIOR_REPORT: Clear lungs.{TASK}{TOLD}",
        ),
        (
            replace(STUDY, images=STUDY.images[1:]),
            MAIRA2,
            f"{SYSTEM}Given the current frontal image<image> and the prior frontal image<image> PRIOR_REPORT: Clear "
            f"lungs.{TASK}{TOLD}",
        ),
        (  # a prior without words, and one without an image, of which nothing is told
            Study("s", images=[Image("a.png")], prior=Prior([Image("b.png")])),
            MAIRA2,
            f"{SYSTEM}Given the current frontal image<image> and the prior frontal image<image> PRIOR_REPORT: N/A{TASK}"
            f"{NOTHING}",
        ),
        (
            FULL,
            MAIRA2,
            f"{SYSTEM}Given the current frontal image only<image>{TASK}INDICATION: Fever, and cough TECHNIQUE: N/A "
            "COMPARISON: N/A  ASSISTANT: ",
        ),
        (Study("s"), MAIRA2, f"{SYSTEM}Given the current frontal image only<image>{TASK}{NOTHING}"),
        (  # what the style does not show is told as missing
            STUDY,
            PromptStyle("maira2", prior_image=True, prior=False, indication=False),
            f"{SYSTEM}Given the current frontal image<image> and the prior frontal image<image> PRIOR_REPORT: N/A{TASK}"
            f"{NOTHING}",
        ),
    ],
)
def test_golden_of_maira2(study, style, golden):
    assert prompt_for(study, style) == golden
    assert prompt_for(study, style, image=False) == golden.replace("<image>", "")
    assert golden.count("<image>") == max(1, len(shown_images(study, style)))


def test_the_style_of_maira2():
    assert style_of(wording="maira2") == MAIRA2 and style_of() == PromptStyle()
    assert style_of(wording="maira2", lateral=True) == PromptStyle("maira2", lateral=True)
    assert [role for role, _ in shown_images(STUDY, MAIRA2)] == ["Frontal", "Lateral", "Prior"]
    assert answer_for(FULL, MAIRA2) == "The effusion has grown." and answer_for(BARE, MAIRA2) == ""
    hostile = Study(
        "s", indication="<image> at <x12><y3> <obj>see</obj> <lat_image>N/A <box>", findings="<box>No.</box>"
    )
    assert "INDICATION: at see N/A TECHNIQUE" in prompt_for(hostile, MAIRA2)
    assert prompt_for(hostile, MAIRA2).count("<image>") == 1 and answer_for(hostile, MAIRA2) == "No."
    nothing = dropped_out(STUDY, MAIRA2, 1.0, np.random.default_rng(0))
    assert prompt_for(nothing, MAIRA2) == prompt_for(BARE, MAIRA2)
    for refused in ({"section": "both"}, {"demographics": True}):
        with pytest.raises(ValueError, match="findings alone"):
            PromptStyle("maira2", **refused)


def test_the_answer():
    assert answer_for(FULL) == " The effusion has grown."
    assert answer_for(BARE) == ""
    assert answer_for(STUDY, PromptStyle(section="impression")) == " Pneumonia."
    both = answer_for(STUDY, PromptStyle(section="both"))
    assert both == " New opacity.\nImpression: Pneumonia."
    assert sections_of(both, "both") == {"findings": "New opacity.", "impression": "Pneumonia."}
    assert sections_of(" A.", "both") == {"findings": "A.", "impression": ""}
    assert sections_of(" A.", "impression") == {"impression": "A."}
    assert (
        answer_for(FULL, PromptStyle(section="both"))
        == answer_for(FULL, PromptStyle(section="impression"))
        == ""
    )


def test_the_images_that_are_shown():
    style = PromptStyle(lateral=True, prior_image=True)
    assert [(role, i.path) for role, i in shown_images(STUDY, style)] == [
        ("Frontal", "f.png"), ("Lateral", "l.png"), ("Prior", "p.png"),
    ]  # fmt: skip
    assert [i.path for _, i in shown_images(STUDY)] == ["f.png"]
    alone = Study("s", images=STUDY.images[:1])
    assert [(role, i.path) for role, i in shown_images(alone, style)] == [("Frontal", "l.png")]
    assert shown_images(Study("s", prior=STUDY.prior), style) == []


def test_images_of_another_study_under_the_words_of_this_one():
    style = PromptStyle(lateral=True, prior_image=True)
    mixed = with_images_of(STUDY, FULL)
    assert [i.path for _, i in shown_images(mixed, style)] == ["a.png"]
    assert mixed.prior.findings == "Clear lungs." and mixed.indication == "Fever"
    mixed = with_images_of(BARE, STUDY)
    assert [i.path for _, i in shown_images(mixed, style)] == ["f.png", "l.png", "p.png"]
    assert mixed.prior.findings is None
    assert with_images_of(BARE, FULL).prior.images == [] and STUDY.prior.images[1].path == "p.png"


def test_anything_beside_the_image_may_be_missing():
    style = PromptStyle(lateral=True, prior_image=True, demographics=True, technique=True, comparison=True)
    whole = replace(STUDY, age=63, sex="F")
    assert dropped_out(whole, style, 0.0, np.random.default_rng(0)) == whole
    nothing = dropped_out(whole, style, 1.0, np.random.default_rng(0))
    assert prompt_for(nothing, style) == "<image>\nFindings:" and answer_for(nothing) == answer_for(whole)
    prompts = {
        prompt_for(dropped_out(whole, style, 0.5, np.random.default_rng(i)), style) for i in range(300)
    }
    assert len(prompts) > 150  # of 512
    for words in (
        "Lateral",
        "Prior: <image>",
        "Prior: Clear",
        "Fever",
        "Two views",
        "1 May",
        "PA.",
        "63",
        "F",
    ):
        share = sum(words in text for text in prompts) / len(prompts)
        assert share > 0.25, words
    one, same = (dropped_out(whole, style, 0.5, np.random.default_rng(7)) for _ in range(2))
    assert one == same and whole.prior.findings == "Clear lungs."


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
    with pytest.raises(ValueError, match="short, instruct, maira2"):
        PromptStyle("poem")
    with pytest.raises(ValueError, match="findings, impression, both"):
        PromptStyle(section="conclusion")
