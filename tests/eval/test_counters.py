"""Counter-sentences and planted errors, held by the labeller and by grammar."""

import itertools
import json
import os
import random
import re
from pathlib import Path

import pytest

from eval.planted import ERROR_KINDS, Planter, plant_all
from eval.scores.counters import COUNTER_KINDS, assertions, counters
from eval.scores.labels import CONDITIONS, NO_FINDING, label_report
from eval.scores.spans import spans
from train.phantom import draw_patient, write_report

REPORTS = [write_report(draw_patient(95, i, 2.0).studies[0]).findings for i in range(150)]
SENTENCES = sorted({span.text for report in REPORTS for span in spans(report)})


def slips(sentence: str) -> set[tuple[str, str]]:
    """Words that stand twice, and "a" before a vowel."""
    pairs = [(a.lower(), b.lower()) for a, b in itertools.pairwise(sentence.split())]
    return {(a, b) for a, b in pairs if a == b or (a == "a" and b[0] in "aeio")}


def kinds(sentence: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for counter in counters(sentence):
        found.setdefault(counter.kind, []).append(counter.text)
    return found


@pytest.mark.parametrize(
    ("sentence", "kind", "expected"),
    [
        ("Small left pleural effusion.", "side", ["Small right pleural effusion."]),
        ("There are small bilateral pleural effusions.", "side",
         ["There is a small left pleural effusion.", "There is a small right pleural effusion."]),
        ("Moderate bilateral pleural effusions are present.", "side",
         ["Moderate left pleural effusion is present.", "Moderate right pleural effusion is present."]),
        ("LEFT lower lobe opacity, left effusion.", "side", ["RIGHT lower lobe opacity, right effusion."]),
        ("Right middle lobe pneumonia.", "side", ["Lingula pneumonia."]),
        ("Leads over the right ventricle; left pacemaker.", "side",
         ["Leads over the right ventricle; right pacemaker."]),
        ("Left upper lobe nodule.", "zone", ["Left lower lobe nodule."]),
        ("Opacity in the right lower lung.", "zone",
         ["Opacity in the right upper lung.", "Opacity in the right mid lung."]),
        ("Atelectasis at the left base.", "zone", ["Atelectasis at the left apex."]),
        ("Opacities in the upper and lower lobes.", "zone", None),
        ("A small effusion.", "extent", ["A large effusion."]),
        ("Moderate cardiomegaly.", "extent", ["Mild cardiomegaly.", "Severe cardiomegaly."]),
        ("An extensive consolidation.", "extent", ["A minimal consolidation."]),
        ("Small to moderate left effusion.", "extent", ["Large left effusion."]),
        ("Nonobstructive small bowel gas pattern.", "extent", None),
        ("Left effusion, increased from prior.", "change", ["Left effusion, decreased from prior."]),
        ("Opacity, new from the prior study.", "change", ["Opacity, unchanged from the prior study."]),
        ("Increased interstitial markings, unchanged.", "change",
         ["Increased interstitial markings, increased.", "Increased interstitial markings, decreased."]),
        ("The lungs are clear.", "side", None),
        ("Comparison is made to the prior study.", "denial", None),
    ],
)  # fmt: skip
def test_counters(sentence, kind, expected):
    assert kinds(sentence).get(kind) == expected


def test_denials_and_inventions_name_their_condition():
    assert "No left pleural effusion." in kinds("Small left pleural effusion.")["denial"]
    found = counters("No pleural effusion or pneumothorax.")
    assert {c.condition for c in found if c.kind == "invented"} == {"Pleural Effusion", "Pneumothorax"}
    assert {c.condition for c in counters("The lungs are clear.")} == {
        "Lung Opacity", "Consolidation", "Atelectasis", "Edema", "Lung Lesion",
    }  # fmt: skip


@pytest.mark.parametrize("condition", [c for c in CONDITIONS if c not in (NO_FINDING, "Support Devices")])
def test_assertions_assert_their_condition(condition):
    assert assertions(condition)
    for text in assertions(condition):
        assert label_report(text)[condition] == 1


def test_the_labeller_reads_every_counter_as_it_is_meant():
    seen = set()
    for sentence in SENTENCES:
        labels = label_report(sentence)
        for counter in counters(sentence):
            seen.add(counter.kind)
            read = label_report(counter.text)
            if counter.kind in ("side", "zone", "extent", "change"):
                assert read == labels, counter
            elif counter.kind == "denial":
                assert read.get(counter.condition, 0) == 0 and labels[counter.condition] == 1
            else:
                assert read[counter.condition] == 1 and labels.get(counter.condition, 0) == 0
            assert counter.text != sentence and counter.text[0] == counter.text[0].upper()
    assert seen == set(COUNTER_KINDS) - {"change"}  # phantoms without a prior do not change


def test_the_counter_of_a_side_s_counter_is_the_sentence():
    for sentence in SENTENCES:
        if not re.search(r"bilateral|both|\bbi(?:basilar|apical)", sentence, re.I):
            for other in kinds(sentence).get("side", []):
                assert sentence in kinds(other)["side"]


@pytest.mark.parametrize("kind", ERROR_KINDS)
def test_an_error_stands_where_it_says_and_the_rest_is_the_report(kind):
    planter = Planter(REPORTS)
    count = 0
    for i, report in enumerate(REPORTS):
        planted = planter.plant(report, random.Random(i), [kind])
        if planted is None:
            continue
        count += 1
        assert planted.kind == kind and planted.original == report != planted.text
        assert planted.text[planted.start : planted.end] == planted.now
        if planted.was and planted.now:
            assert report == planted.text[: planted.start] + planted.was + planted.text[planted.end :]
        if kind == "omission":
            assert not planted.now and label_report(report)[planted.condition] == 1
            assert label_report(planted.text).get(planted.condition, 0) == 0
        if kind == "invented":
            assert label_report(planted.text)[planted.condition] == 1
            assert label_report(report).get(planted.condition, 0) == 0
        if kind == "denial":
            assert label_report(report)[planted.condition] == 1
            assert label_report(planted.text).get(planted.condition, 0) == 0
    assert count == 0 if kind == "change" else count > 40


def test_the_same_seed_plants_the_same():
    assert plant_all(REPORTS[:40], seed=3) == plant_all(REPORTS[:40], seed=3)
    assert plant_all(REPORTS[:40], seed=3) != plant_all(REPORTS[:40], seed=4)
    assert [p.kind for p in plant_all(REPORTS[:40], kinds=["side"]) if p] == ["side"] * sum(
        "side" in {c.kind for s in spans(r) for c in counters(s.text)} for r in REPORTS[:40]
    )


def test_texts_without_anything_to_plant():
    assert Planter().plant("Comparison is made.", random.Random(0)) is None
    assert Planter().plant("", random.Random(0)) is None
    assert plant_all(["Kein Erguss."]) == [None]


def test_errors_in_real_reports_keep_their_grammar():
    if not os.environ.get("CXR_DATA"):
        pytest.skip("CXR_DATA is not set, so there are no real reports")
    path = Path(os.environ["CXR_DATA"], "iu_text", "studies.jsonl")
    reports = [r for line in path.read_text().splitlines() if (r := json.loads(line).get("findings"))][:600]
    planted = [p for p in plant_all(reports, kinds=["side", "zone", "extent", "change"]) if p]
    assert len(planted) > 60
    for p in planted:
        assert label_report(p.text) == label_report(p.original)
        assert slips(p.now) <= slips(p.was), p.now


def test_devices_are_denied_only_where_reports_do_so():
    report = "Right PICC ends in the superior vena cava. The heart is normal in size."
    denied = "No lines or tubes."
    assert Planter([report]).plant(report, random.Random(0), ["denial"]) is None
    assert Planter([report, denied]).plant(report, random.Random(0), ["denial"]).now == denied
