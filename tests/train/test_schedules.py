"""Schedules at their corners."""

import math

import pytest

from train.common.schedules import cosine, linear, warmup_cosine


def test_linear():
    assert [linear(step, 1.0, 3.0, 4) for step in (0, 1, 4, 9)] == [1.0, 1.5, 3.0, 3.0]
    assert linear(0, 1.0, 3.0, 0) == 3.0


def test_cosine():
    assert cosine(0, 2.0, 1.0, 10) == 2.0
    assert cosine(5, 2.0, 1.0, 10) == pytest.approx(1.5)
    assert cosine(10, 2.0, 1.0, 10) == cosine(99, 2.0, 1.0, 10) == 1.0
    assert cosine(2, 1.0, 0.0, 8) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_warmup_cosine_starts_above_zero_and_never_exceeds_its_peak():
    values = [warmup_cosine(step, 1.0, 0.1, 5, 50) for step in range(60)]
    assert values[0] == pytest.approx(1 / 6)
    assert max(values) == values[5] == 1.0
    assert values[:6] == sorted(values[:6]) and values[5:] == sorted(values[5:], reverse=True)
    assert values[50:] == [0.1] * 10
    assert warmup_cosine(0, 1.0, 0.1, 0, 50) == 1.0
