"""Bootstrap, paired tests and Holm against brute force."""

import itertools

import numpy as np
import pytest

from eval.resampling import (
    bootstrap,
    bootstrap_sums,
    holm,
    paired_bootstrap,
    paired_permutation,
    patient_sums,
    percentile_interval,
)


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def table(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def test_replicates_are_resampled_patients():
    """The same draw written out with choice: equal distribution, and every replicate holds as many patients."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    sums_BK = bootstrap_sums(table(values), n_boot=4000, seed=1)
    assert (sums_BK[:, 1] == 40).all()
    by_hand = np.array([rng.choice(values, 40).mean() for _ in range(4000)])
    for q in (0.025, 0.5, 0.975):
        assert np.quantile(mean(sums_BK), q) == pytest.approx(np.quantile(by_hand, q), abs=0.02)


def test_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(3).normal(5, 2, size=2000)
    value, low, high = bootstrap(mean, table(values), n_boot=4000)
    assert value == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert [low, high] == pytest.approx([value - half, value + half], abs=0.15 * half)


def test_seeded_and_in_any_chunks():
    values = table(np.arange(600.0))
    assert bootstrap(mean, values, seed=4) == bootstrap(mean, values, seed=4)
    assert bootstrap(mean, values, seed=4) != bootstrap(mean, values, seed=5)
    assert np.array_equal(bootstrap_sums(values, 300, 9)[:256], bootstrap_sums(values, 256, 9))


def test_patients_are_drawn_whole():
    """Ten copies of every study carry no new information: by patient the interval stays, by study it shrinks."""
    values = np.random.default_rng(5).normal(size=100)
    copies, ids = np.repeat(values, 10), np.repeat(np.arange(100), 10)
    _, low, high = bootstrap(mean, table(values))
    _, low_p, high_p = bootstrap(mean, table(copies), list(ids))
    _, low_s, high_s = bootstrap(mean, table(copies))
    assert high_p - low_p == pytest.approx(high - low, rel=1e-9)
    assert high_s - low_s < 0.5 * (high - low)


def test_patient_sums():
    sums = patient_sums(np.array([[1.0], [2.0], [4.0]]), ["b", "a", "b"])
    assert sums.tolist() == [[5.0], [2.0]]
    with pytest.raises(ValueError, match="3 samples but 2 patient ids"):
        patient_sums(np.ones((3, 1)), ["a", "b"])
    with pytest.raises(ValueError, match="no sample"):
        patient_sums(np.ones((0, 1)))


def test_undefined_replicates_are_left_out():
    assert percentile_interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(percentile_interval(np.array([np.nan]))).all()


def test_paired_bootstrap_sees_what_the_unpaired_cannot():
    rng = np.random.default_rng(6)
    difficulty = rng.normal(0, 3, size=300)
    a, b = difficulty + 0.3 + rng.normal(0, 0.5, 300), difficulty + rng.normal(0, 0.5, 300)
    difference, low, high = paired_bootstrap(mean, table(a), table(b))
    assert difference == pytest.approx((a - b).mean()) and 0 < low < difference < high
    _, low_a, _ = bootstrap(mean, table(a))
    _, _, high_b = bootstrap(mean, table(b))
    assert low_a < high_b  # the intervals of the two overlap all the same


def test_permutation_equals_enumeration():
    rng = np.random.default_rng(8)
    a, b = rng.normal(0.5, 1, size=8), rng.normal(size=8)
    observed = abs((a - b).mean())
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = (np.abs((signs * (a - b)).mean(axis=1)) >= observed - 1e-12).mean()
    p = paired_permutation(mean, table(a), table(b), n_permutations=20_000)
    assert p == pytest.approx(exact, abs=0.015)


def test_permutation_p_is_never_zero_and_one_for_equals():
    a = np.arange(50.0)
    assert paired_permutation(mean, table(a + 9), table(a), n_permutations=999) == 1 / 1000
    assert paired_permutation(mean, table(a), table(a), n_permutations=999) == 1


def test_permutation_swaps_patients_whole():
    """Two patients with many studies each can be swapped in four ways only: p cannot be small."""
    a, ids = np.r_[np.ones(50), np.ones(50)], ["x"] * 50 + ["y"] * 50
    assert paired_permutation(mean, table(a), table(a - 1), ids, n_permutations=2000) > 0.4
    assert paired_permutation(mean, table(a), table(a - 1), n_permutations=2000) < 0.01


def test_permutation_under_the_null_is_uniform():
    rng = np.random.default_rng(10)
    p = [
        paired_permutation(
            mean, table(rng.normal(size=30)), table(rng.normal(size=30)), n_permutations=199, seed=i
        )
        for i in range(300)
    ]
    assert np.mean(np.array(p) <= 0.05) < 0.1 and abs(np.mean(p) - 0.5) < 0.06


def test_paired_needs_the_same_samples():
    with pytest.raises(ValueError, match="same samples"):
        paired_permutation(mean, table(np.ones(3)), table(np.ones(4)))


def test_holm():
    """Worked by hand: 4 x .01, then 3 x .013, 2 x .03 and 1 x .04, never falling."""
    p = {"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.013}
    adjusted = holm(p)
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"b": 0.04, "d": 0.04, "c": 0.06, "a": 0.06})
    assert holm({"x": 0.9, "y": 0.8}) == {"x": 1.0, "y": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_ties_are_ties_at_every_scale(scale, offset):
    """By enumeration in whole numbers, where nothing is rounded. Thirds of them are not exact, and neither are sums."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        a, b = rng.integers(1, 4, size=6), rng.integers(-3, 2, size=6)
        signs = np.array(list(itertools.product([-1, 1], repeat=6)))
        exact = (np.abs(signs @ (a - b)) >= abs((a - b).sum())).mean()
        made = [table((x / 3 + offset) * scale) for x in (a, b)]
        p = paired_permutation(mean, *made, n_permutations=4000, seed=seed)
        # five standard deviations of the draws
        assert p == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 4000) + 1e-3)


def test_small_differences_of_large_sums_are_no_ties():
    """Sums of +-1e9 that cancel: what differs by 1 is more than what rounding does."""
    rng = np.random.default_rng(0)
    a = np.array([1e9, -1e9] * 4)
    b = a - rng.permutation(np.arange(1.0, 9.0))
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = (np.abs(signs @ (a - b)) >= 36).mean()
    assert paired_permutation(mean, table(a), table(b), n_permutations=20_000) == pytest.approx(
        exact, abs=0.004
    )


def test_what_is_drawn_depends_on_the_patients_and_not_on_the_order_of_rows():
    rng = np.random.default_rng(11)
    a, b = table(rng.normal(size=30)), table(rng.normal(0.3, size=30))
    patients = [("study", f"s{i}") if i % 3 else f"p{i // 6}" for i in range(30)]
    patients[0], patients[3] = 7, "7"
    test = lambda rows: (  # noqa: E731
        paired_permutation(mean, a[rows], b[rows], [patients[i] for i in rows], n_permutations=500),
        *paired_bootstrap(mean, a[rows], b[rows], [patients[i] for i in rows], n_boot=50),
        *bootstrap(mean, a[rows], [patients[i] for i in rows], n_boot=50),
    )
    expected = test(np.arange(30))
    for _ in range(3):
        assert test(rng.permutation(30)) == pytest.approx(expected, rel=1e-12)
