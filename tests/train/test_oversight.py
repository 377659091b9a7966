"""The calibration of verdicts, fitted on contrasts whose law is known."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from encoder.errors import UserError
from eval.planted import Planted
from eval.scores.counters import Counter
from eval.scores.spans import Span
from train.oversight import FLAGGED, MISSED, Read, fit, samples_of
from vlm.contrasts import Contrast, Contrasted
from vlm.study import Study
from vlm.verdicts import verdict_of

OFFSET = {"Edema": 3.0, "Fracture": -2.0}  # nats: how likely a wording is, whatever the film
FINDINGS = SimpleNamespace(model=SimpleNamespace(revision="r" * 64, adapter_sha256=None))


def sentence(rng: np.random.Generator, wrong: bool, condition: str, sides: bool = True) -> Contrasted:
    """Margins are normal, of variance 2, at 1 where the sentence is wrong and at -1 where it is not: their log-odds are
    the margin itself, less the offset of its condition."""
    margin = rng.normal(1.0 if wrong else -1.0, math.sqrt(2.0)) + OFFSET[condition]
    contrast = Contrast("side", condition, margin, Counter("side", "Right."))
    return Contrasted(Span("Left.", 0, 5), {condition: 1}, -1.0, (contrast,) if sides else ())


def reads(patients: int, seed: int = 0) -> list[Read]:
    rng = np.random.default_rng(seed)
    error = Planted("side", "Left.", "Right.", 0, 5, "Left.", "Right.")
    made = []
    for i in range(patients):
        condition = ("Edema", "Fracture")[i % 2]
        study = Study(f"s{i}", patient_id=f"p{i // 2}", findings="Right.")
        made.append(
            Read(
                study,
                [sentence(rng, False, condition)],
                {"side": (error, [sentence(rng, True, condition)])},
                [],
            )
        )
    return made


def test_the_curve_is_the_log_odds_of_what_it_was_fitted_on():
    calibration = fit(reads(3000), FINDINGS)
    curve = calibration.curves["side"]
    for condition, offset in OFFSET.items():
        for margin in (-2.0, 0.0, 1.5):
            expected = 1 / (1 + math.exp(-margin))
            assert curve.probability(margin + offset, condition, False) == pytest.approx(expected, abs=0.05)
    # Two normals two means apart, of a standard deviation of the root of 2: Phi(2 / 2).
    assert calibration.about["kinds"]["side"]["auroc"] == pytest.approx(0.8413, abs=0.02)


def test_thresholds_keep_what_they_promise_on_others():
    calibration = fit(reads(1500), FINDINGS)
    others = reads(1500, seed=1)
    doubts = lambda s: calibration.doubts(s)  # noqa: E731
    flagged = np.mean([verdict_of(doubts(one.clean[0])) == "contradicted" for one in others])
    wrong = [one.wrong["side"][1][0] for one in others]
    missed = np.mean([doubts(s)[0].verdict == "supported" for s in wrong])
    assert flagged == pytest.approx(FLAGGED, abs=0.02)
    assert missed == pytest.approx(MISSED, abs=0.03)


def test_only_what_is_wrong_with_a_planted_sentence_counts_as_wrong():
    one = reads(2)[0]
    error, (planted,) = one.wrong["side"]
    extent = Contrast("extent", "Edema", 0.0, Counter("extent", "Large."))
    both = replace(planted, contrasts=(*planted.contrasts, extent))
    samples = samples_of([replace(one, wrong={"side": (error, [both])})])
    assert [(s.kind, s.wrong) for s in samples] == [("side", False), ("side", True)]
    # A finding that is denied wrongly is there: its counter asserts it.
    denied = replace(error, kind="denial", condition="Edema")
    asserted = Contrast("invented", "Edema", 2.0, Counter("invented", "Edema.", "Edema"))
    other = Contrast("invented", "Fracture", 2.0, Counter("invented", "Fracture.", "Fracture"))
    said = replace(planted, contrasts=(asserted, other))
    samples = samples_of([replace(one, wrong={"denial": (denied, [said])})])
    assert [(s.kind, s.condition) for s in samples if s.wrong] == [("invented", "Edema")]


def test_the_order_of_patients_changes_nothing():
    forwards, backwards = fit(reads(200), FINDINGS), fit(reads(200)[::-1], FINDINGS)
    for a, b in zip(forwards.curves.values(), backwards.curves.values(), strict=True):
        assert a.every == pytest.approx(b.every, abs=1e-3)
        assert a.contradicted == pytest.approx(b.contradicted, abs=1e-3)


def test_too_few_errors_are_told():
    with pytest.raises(UserError, match="too few errors"):
        fit(reads(10), FINDINGS)
