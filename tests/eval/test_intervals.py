"""Intervals against scipy, formulas and brute force, and how often they hold a value that is known."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import bca
from eval import intervals
from eval.intervals import (
    LEAST_PATIENTS,
    LEAST_POSITIVES,
    Jackknife,
    paired_interval,
    standard_error,
    too_few_positives,
    wilson,
)
from eval.resampling import bootstrap_sums, patient_sums, percentile_interval
from eval.scores.sheet import Sheet


def mean(sums):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def table(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def f1(sums):
    """Of tp, fp, fn (..., 3)."""
    tp, fp, fn = np.moveaxis(sums[..., :3], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(tp + fp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)


def macro(sums):
    """Mean F1 of tp, fp, fn (..., 3 C) over the conditions that are there."""
    values = f1(np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, -1))
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(axis=-1) / there.sum(axis=-1)


def counts(sums):
    return sums[..., :3].sum(axis=-1)


def decisions(rng, n, prevalence, sensitivity, precision):
    """tp, fp, fn of n studies, (n, 3)."""
    has = rng.random(n) < prevalence
    invented = prevalence * sensitivity * (1 - precision) / precision / (1 - prevalence)
    says = rng.random(n) < np.where(has, sensitivity, invented)
    return np.stack([has & says, ~has & says, has & ~says], axis=1).astype(float)


def test_a_mean_has_students_interval():
    values = np.random.default_rng(0).normal(5, 2, size=23)
    low, high, why = Jackknife(table(values)).interval(mean)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert [low, high] == pytest.approx([expected.low, expected.high]) and why == ""


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 9), (7, 40), (30, 30)])
def test_wilson_is_that_of_scipy(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits / n, n, stats.norm.ppf(0.975)) == pytest.approx((expected.low, expected.high))


def test_a_share_of_independent_units_solves_the_score_equation():
    """Wilson's bounds are where the value lies t standard errors of the bound away, of n - 1 units as in a variance."""
    values = (np.arange(50) < 13).astype(float)
    low, high, _ = Jackknife(table(values)).interval(mean, "share", units=lambda s: s[..., 1])
    t = stats.t.ppf(0.975, 49)
    for bound in (low, high):
        assert abs(0.26 - bound) == pytest.approx(t * np.sqrt(bound * (1 - bound) / 49))


def test_f1_is_mapped_from_the_share_of_true_positives():
    sums = decisions(np.random.default_rng(1), 200, 0.2, 0.7, 0.6)
    jackknife = Jackknife(sums)
    low, high, _ = jackknife.interval(f1, "f1", units=counts)
    share = jackknife.interval(lambda s: s[..., 0] / s[..., :3].sum(axis=-1), "share", units=counts)
    assert [low, high] == pytest.approx([2 * share[0] / (1 + share[0]), 2 * share[1] / (1 + share[1])])


def test_values_without_a_patient_are_those_of_the_others():
    rng = np.random.default_rng(2)
    sums = np.concatenate([decisions(rng, 30, p, 0.7, 0.7) for p in (0.02, 0.2, 0.4)], axis=1)
    sums = sums.reshape(30, 3, 3).transpose(0, 2, 1).reshape(30, 9)
    by_hand = [macro(np.delete(sums, i, axis=0).sum(axis=0)) for i in range(30)]
    assert Jackknife(sums).values(macro) == pytest.approx(by_hand)
    expected = np.sqrt(29 / 30 * ((by_hand - np.mean(by_hand)) ** 2).sum())
    assert standard_error(np.array(by_hand)) == pytest.approx(expected)


def test_copies_of_studies_are_no_more_information():
    values = np.random.default_rng(3).random(40)
    once = Jackknife(table(values)).interval(mean, "fraction")
    copies = patient_sums(table(np.repeat(values, 10)), list(np.repeat(np.arange(40), 10)))
    assert Jackknife(copies, copies[:, 1]).interval(mean, "fraction") == pytest.approx(once, nan_ok=True)


def test_a_patient_with_most_studies_makes_it_wider():
    values = np.random.default_rng(4).normal(size=20)
    alike, one = np.ones(20), np.r_[60, np.ones(19)]
    assert Jackknife(table(values), alike).effective == pytest.approx(20)
    assert Jackknife(table(values), one).effective == pytest.approx(79**2 / (3600 + 19))
    narrow, wide = (np.diff(Jackknife(table(values), n).interval(mean)[:2]) for n in (alike, one))
    assert wide > 2 * narrow


def test_shifts_and_scales_go_through():
    values = np.random.default_rng(5).normal(size=60)
    low, high, _ = Jackknife(table(values)).interval(mean)
    scaled = Jackknife(table(3 - 2 * values)).interval(mean)
    assert scaled[:2] == pytest.approx((3 - 2 * high, 3 - 2 * low))
    share = (values > 0.8).astype(float)
    low, high, _ = Jackknife(table(share)).interval(mean, "share", units=lambda s: s[..., 1])
    mirrored = Jackknife(table(1 - share)).interval(mean, "share", units=lambda s: s[..., 1])
    assert mirrored[:2] == pytest.approx((1 - high, 1 - low))
    assert Jackknife(table(share)).interval(mean, "fraction")[:2] == pytest.approx(
        tuple(1 - x for x in Jackknife(table(1 - share)).interval(mean, "fraction")[1::-1])
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["share", "f1", "fraction"])
def test_the_value_lies_inside_and_levels_are_nested(kind, seed):
    rng = np.random.default_rng(seed)
    sums = decisions(rng, 60, rng.uniform(0.02, 0.5), rng.uniform(0.1, 1), rng.uniform(0.1, 1))
    of = f1 if kind != "share" else lambda s: mean(np.stack([s[..., 0], counts(s)], axis=-1))
    value = of(sums.sum(axis=0))
    if np.isnan(value):
        assert Jackknife(sums).interval(of, kind, units=counts)[2] == "not defined"
        return
    bounds = [Jackknife(sums).interval(of, kind, units=counts, level=x)[:2] for x in (0.5, 0.8, 0.95, 0.99)]
    assert all(0 <= low <= value <= high <= 1 and low < high for low, high in bounds)
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in pairwise(bounds))


@pytest.mark.parametrize("kind", ["f1", "fraction"])
def test_perfect_and_hopeless_systems_have_room(kind):
    perfect = np.tile([1.0, 0, 0], (40, 1))
    low, high, _ = Jackknife(perfect).interval(f1, kind, units=counts)
    assert 0.85 < low < 1 == high
    low, high, _ = Jackknife(np.tile([0, 0, 1.0], (40, 1))).interval(f1, kind, units=counts)
    assert low == 0 < high < 0.25


def test_no_more_units_than_there_are_and_no_more_than_patients_where_all_are_alike():
    """Twenty patients of two units: 18 with one of two, one with both, one with none vary less than by chance. If all
    have both, each patient says no more than one unit."""
    t = stats.t.ppf(0.975, 19)
    for hits, share, n in ((np.r_[2, np.ones(18), 0], 0.5, 40), (np.full(20, 2.0), 1.0, 20)):
        sums = np.stack([hits, np.full(20, 2.0)], axis=1)
        assert Jackknife(sums).interval(mean, "share", units=lambda s: s[..., 1])[:2] == wilson(share, n, t)


def test_no_interval_without_enough():
    few = Jackknife(table(np.arange(LEAST_PATIENTS - 1.0)))
    assert few.interval(mean)[2] == "fewer than 5 patients" and np.isnan(few.interval(mean)[:2]).all()
    enough = Jackknife(table(np.arange(LEAST_PATIENTS + 0.0)))
    assert enough.interval(mean)[2] == ""
    assert enough.interval(mean, positives=LEAST_POSITIVES - 1)[2] == "fewer than 5 positives"
    assert enough.interval(mean, positives=LEAST_POSITIVES)[2] == ""
    assert (
        enough.interval(mean, positives=[4, 5, np.nan])[2] == "1 of 2 conditions with fewer than 5 positives"
    )
    assert too_few_positives([5, 9, np.nan]) == ""
    assert Jackknife(table(np.full(20, 0.5))).interval(mean)[2] == "equal for all patients"
    with pytest.raises(ValueError, match="'share' needs `units`"):
        enough.interval(mean, "share")


def test_paired_mean_has_the_interval_of_the_paired_t_test():
    rng = np.random.default_rng(6)
    a, b = rng.normal(0.3, 1, size=(2, 25))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    difference, low, high = paired_interval(mean, table(a), table(b))
    assert (difference, low, high) == pytest.approx(((a - b).mean(), expected.low, expected.high))

    def several(sums):
        return np.stack([mean(sums), 2 * mean(sums)], axis=-1)

    both = paired_interval(several, table(a), table(b), list(range(25)))
    assert both[0] == pytest.approx([difference, 2 * difference])
    assert both[1] == pytest.approx([low, 2 * low]) and both[2] == pytest.approx([high, 2 * high])
    assert np.isnan(paired_interval(mean, table(a), table(b), [0, 1, 2, 3] * 6 + [0])[1:]).all()
    with pytest.raises(ValueError, match="same samples"):
        paired_interval(mean, table(a), table(b[1:]))


def test_bca_of_the_benchmark_is_that_of_scipy():
    values = np.random.default_rng(7).exponential(size=40)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=8).confidence_interval
    drawn_B = np.sort(mean(bootstrap_sums(table(values), 20_000, 9)))
    ours = bca(drawn_B, values.mean(), Jackknife(table(values)).values(mean), stats.norm.ppf(0.975))
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def covered(method, draw, truth, sets=200):
    """Share of the sets, of those with an interval, in which it holds the truth."""
    rng = np.random.default_rng(10)
    bounds = np.array([method(draw(rng)) for _ in range(sets)])
    bounds = bounds[~np.isnan(bounds[:, 0])]
    assert len(bounds) > sets / 2
    return ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean()


def percentile(of):
    return lambda sums: percentile_interval(of(bootstrap_sums(sums, 300, 0)))


def test_a_rare_condition_is_covered():
    """Prevalence .06 in 100 studies of a system that is right 93 % of the time: 2 * .93 ** 2 / (.93 + .93) = .93."""

    def ours(sums):
        total = sums.sum(axis=0)
        return Jackknife(sums).interval(f1, "f1", units=counts, positives=total[0] + total[2])[:2]

    def draw(rng):
        return decisions(rng, 100, 0.06, 0.93, 0.93)

    assert covered(percentile(f1), draw, 0.93) < 0.8
    assert covered(ours, draw, 0.93) >= 0.93


def test_a_mean_over_rare_conditions_is_covered():
    """Twelve conditions of prevalence .08 in 100 studies, sensitivity and precision .3: the true macro F1 is .3."""

    def draw(rng):
        blocks = np.stack([decisions(rng, 100, 0.08, 0.3, 0.3) for _ in range(12)], axis=-1)
        return blocks.reshape(100, 36)

    assert covered(percentile(macro), draw, 0.3, 120) < 0.9
    assert covered(lambda sums: Jackknife(sums).interval(macro, "fraction")[:2], draw, 0.3, 120) >= 0.93


def test_few_patients_are_covered():
    """The mean of 8 patients: the percentile bootstrap knows neither Student's t nor n - 1."""

    def draw(rng):
        return table(rng.normal(0.5, 0.1, size=8))

    assert covered(percentile(mean), draw, 0.5, 400) < 0.92
    assert covered(lambda sums: Jackknife(sums).interval(mean)[:2], draw, 0.5, 400) >= 0.93


def test_reasons_are_short_in_tables():
    assert intervals.brief(intervals.too_few_positives(np.array([1, 9, np.nan, 3]))) == "2 rare"
    assert intervals.brief(intervals.too_few_positives(2)) == "rare"
    assert (
        intervals.brief(intervals.too_few_patients(2)) == "fewer than 5 patients"
        and intervals.brief("") == ""
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_patients_studies_twice_are_no_more_information(seed):
    """Also where the number of units, and not the jackknife, bounds the information: units that vary less than by
    chance, since each patient has one of two right."""
    rng = np.random.default_rng(seed)
    patients, rows = np.repeat(np.arange(30), 2), np.zeros((60, 3))
    rows[::2, 0], rows[1::2, 1] = 1, rng.random(30) < 0.7

    def intervals_of(rows, patients):
        sheet = Sheet(len(rows))
        where = sheet.columns(np.c_[rows, np.arange(len(rows)) % 60])
        shared = {"units": counts, "positives": lambda s: s[..., 0]}
        sheet.add("f1", "f1", f1, where, kind="f1", **shared)
        sheet.add(
            "share", "share", lambda s: s[..., 0] / np.maximum(counts(s), 1), where, kind="share", **shared
        )
        return [s.interval for s in sheet.scores(list(patients)).values()]

    once, twice = intervals_of(rows, patients), intervals_of(np.r_[rows, rows], np.r_[patients, patients])
    assert np.ravel(twice) == pytest.approx(np.ravel(once))
    # Studies that differ are units of their own.
    assert once[1] == pytest.approx(wilson_of_units(rows, patients))


def wilson_of_units(rows, patients):
    n = rows.sum()
    return wilson(rows[:, 0].sum() / n, n, stats.t.ppf(0.975, len(set(patients)) - 1))


def test_a_mean_over_conditions_that_nobody_has_has_no_interval():
    low, high, why = Jackknife(np.zeros((20, 3))).interval(
        lambda s: 0.0 * s[..., 0], positives=np.full(14, np.nan)
    )
    assert np.isnan([low, high]).all() and why == "no positives"


def test_equal_differences_have_no_interval():
    rng = np.random.default_rng(9)
    a = rng.normal(size=20)
    for b, defined in ((a - 0.25, False), (a + rng.normal(size=20), True)):
        difference, low, high = paired_interval(mean, table(a), table(b))
        assert difference == difference and (low == low) is defined is (high == high)
