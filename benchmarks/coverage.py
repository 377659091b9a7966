"""Claim: the 95 % intervals of `eval.intervals` hold the true value 93 to 98 % of the time from 100 studies on. That
goes for micro F1, for macro F1 over conditions with 5 positives and more, and for single conditions with 5 and more.
Where they do not hold, none is given. The paired permutation test at .05 errs no more often than that, beyond chance,
and less often for rare conditions.

    python benchmarks/coverage.py [--sets 300] [--save]

Studies of a known population, so that the true values are exact: 14 conditions with prevalences .01 to .35, 1 to 6
studies of a patient that resemble each other, and systems whose errors are correlated within a study and a patient.
Every set is given to each method. Before: the percentile bootstrap over patients. Rivals: the percentile bootstrap
expanded for few patients (Hesterberg 2015), BCa, the studentised bootstrap, the Bayesian bootstrap with a Jeffreys cell
of true positives and of errors a condition, Jeffreys' and Clopper-Pearson's intervals with effective counts.

The true macro F1 is that of all conditions of the population. In a set, a condition that neither side has is left out,
and F1 of few cases is too low on average (it is concave in the share of true positives): the mean of sets lies below.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri
from threadpoolctl import threadpool_limits

from eval import intervals
from eval.intervals import Jackknife, paired_interval, standard_error, wilson
from eval.resampling import paired_bootstrap, paired_permutation, patient_sums

STUDIES = (30, 100, 300, 1000)
C = 14
PREVALENCE = np.geomspace(0.01, 0.35, C)
# Sensitivity and precision of each condition, rarest first.
SYSTEMS = {
    "middling": (
        np.array([0.55, 0.45, 0.7, 0.5, 0.65, 0.8, 0.6, 0.75, 0.5, 0.85, 0.7, 0.6, 0.8, 0.75]),
        np.array([0.5, 0.4, 0.6, 0.45, 0.7, 0.6, 0.5, 0.75, 0.55, 0.8, 0.6, 0.65, 0.75, 0.8]),
    ),
    "weak": (
        np.array([0.1, 0.2, 0.15, 0.1, 0.3, 0.25, 0.2, 0.4, 0.2, 0.3, 0.35, 0.2, 0.4, 0.5]),
        np.array([0.1, 0.15, 0.2, 0.3, 0.2, 0.3, 0.25, 0.3, 0.4, 0.3, 0.4, 0.35, 0.5, 0.5]),
    ),
    "strong": (np.full(C, 0.93), np.full(C, 0.93)),
}
RATES = (0.01, 0.05, 0.3)
# Columns of a study: tp, fp, fn of C conditions, 1, a score like ROUGE-L, and whether it is odd, for each of RATES.
COUNT, SCORE, ODD = 3 * C, 3 * C + 1, 3 * C + 2
SCORE_MEAN, SCORE_SPREAD = -0.6, 0.6
TRUE_SCORE = float(ndtr(SCORE_MEAN / np.sqrt(1 + SCORE_SPREAD**2)))
REPLICATES, PERMUTATIONS = 500, 499


# --- the population ---------------------------------------------------------------------------------------------------


class System:
    """A system with given sensitivity and false positive rate of each condition, and what is true of it."""

    def __init__(self, sensitivity: np.ndarray, false_positive_rate: np.ndarray):
        self.sensitivity, self.false_positive_rate = sensitivity, false_positive_rate
        self.tp, self.fp = PREVALENCE * sensitivity, (1 - PREVALENCE) * false_positive_rate
        self.fn = PREVALENCE - self.tp
        self.precision = self.tp / (self.tp + self.fp)
        self.f1 = 2 * self.tp / (2 * self.tp + self.fp + self.fn)
        self.micro = 2 * self.tp.sum() / (2 * self.tp + self.fp + self.fn).sum()

    @classmethod
    def of_precision(cls, sensitivity: np.ndarray, precision: np.ndarray) -> System:
        return cls(sensitivity, PREVALENCE * sensitivity * (1 - precision) / precision / (1 - PREVALENCE))

    def trading(self, gain: float = 1.25) -> System:
        """A system that finds more, and invents so much more that its micro F1 is the same."""
        sensitivity = np.minimum(gain * self.sensitivity, 0.97)
        found = (PREVALENCE * sensitivity).sum()
        invented = 2 * found / self.micro - PREVALENCE.sum() - found
        return System(sensitivity, self.false_positive_rate * invented / self.fp.sum())


def noise(rng: np.random.Generator, patient_N: np.ndarray, *shape: int) -> np.ndarray:
    """Standard normal numbers (N, *shape), equal for the studies of a patient."""
    return rng.normal(size=(patient_N[-1] + 1, *shape))[patient_N]


def mixed(parts: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """A sum of standard normal numbers with shares of its variance."""
    return sum(np.sqrt(share) * part for share, part in parts)


def draw(
    rng: np.random.Generator, n: int, systems: list[System], *, single: bool = False
) -> tuple[list[int], list[np.ndarray]]:
    """Patients of `n` studies, and the columns (N, K) of every system; of several, the errors are correlated."""
    sizes = np.ones(n, int) if single else rng.integers(1, 7, size=n)
    patient_N = np.repeat(np.arange(n), sizes)[:n]
    ill = [(0.5, noise(rng, patient_N, C)), (0.1, noise(rng, patient_N, 1)), (0.4, rng.normal(size=(n, C)))]
    has_NC = mixed(ill) > ndtri(1 - PREVALENCE)
    hard, same = rng.normal(size=(n, 1)), noise(rng, patient_N, C)
    shared, wording = noise(rng, patient_N), rng.normal(size=n)
    found = []
    for system in systems:
        own = 0.35 if len(systems) == 1 else 0.15
        errors = [
            (0.15, hard),
            (0.35 - own, same),
            (own, noise(rng, patient_N, C)),
            (0.5, rng.normal(size=(n, C))),
        ]
        says_NC = mixed(errors) < ndtri(np.where(has_NC, system.sensitivity, system.false_positive_rate))
        score_N = mixed([(0.4, shared), (0.2, wording), (0.4, rng.normal(size=n))])
        odd_N = mixed([(0.5, noise(rng, patient_N)), (0.5, rng.normal(size=n))])
        columns = [has_NC & says_NC, ~has_NC & says_NC, has_NC & ~says_NC, np.ones((n, 1))]
        columns += [
            ndtr(SCORE_MEAN + SCORE_SPREAD * score_N)[:, None],
            odd_N[:, None] < ndtri(np.array(RATES)),
        ]
        found.append(np.concatenate(columns, axis=1, dtype=np.float64))
    return patient_N.tolist(), found


# --- scores as functions of sums --------------------------------------------------------------------------------------


def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(b > 0, a / b, np.nan)


def cells(sums: np.ndarray) -> np.ndarray:
    """tp, fp, fn, (..., 3, C)."""
    return sums[..., :COUNT].reshape(*sums.shape[:-1], 3, C)


def f1(sums: np.ndarray) -> np.ndarray:
    tp, fp, fn = np.moveaxis(cells(sums), -2, 0)
    return ratio(2 * tp, 2 * tp + fp + fn)


def micro(sums: np.ndarray) -> np.ndarray:
    tp, fp, fn = np.moveaxis(cells(sums).sum(axis=-1), -1, 0)
    return ratio(2 * tp, 2 * tp + fp + fn)


def macro(sums: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Mean F1 of the conditions that either side has, of those `among`."""
    values = f1(sums)
    counts = ~np.isnan(values) & (True if among is None else among)
    return ratio(np.where(counts, values, 0).sum(axis=-1), counts.sum(axis=-1))


class Case:
    """A score of one set, its true value, and what the methods need to know of it.

    `cell` are functions of sums that give true positives and all units, where the score is one share or one F1.
    """

    def __init__(self, row: str, of, truth: float, kind: str, *, cell=None, positives=None, jeffreys=False):
        self.row, self.of, self.truth, self.kind = row, of, float(truth), kind
        self.cell, self.positives, self.jeffreys = cell, positives, jeffreys


def cases(system: System, total_K: np.ndarray) -> Iterator[Case]:
    """The scores of a set with these total sums."""
    tp, fp, fn = cells(total_K)
    positives, predicted = tp + fn, tp + fp
    most, seen = np.maximum(positives, predicted), tp + fp + fn > 0
    yield Case("micro", micro, system.micro, "fraction", positives=positives.sum(), jeffreys=True)
    yield Case(
        "macro, all",
        macro,
        system.f1.mean(),
        "fraction",
        positives=np.where(seen, most, np.nan),
        jeffreys=True,
    )
    if seen.any():
        yield Case(
            "macro, all, of those seen", macro, system.f1[seen].mean(), "fraction",
            positives=np.where(seen, most, np.nan), jeffreys=True,
        )  # fmt: skip
    for least in (5, 30):
        among = most >= least
        if among.any():
            yield Case(
                f"macro, n >= {least}", lambda s, among=among: macro(s, among), system.f1[among].mean(), "fraction",
                jeffreys=True,
            )  # fmt: skip
    yield Case("score like ROUGE-L", lambda s: ratio(s[..., SCORE], s[..., COUNT]), TRUE_SCORE, "fraction")
    for i, rate in enumerate(RATES):
        yield share(f"rate of {rate:g}", ODD + i, [COUNT], rate)
    for i in range(C):
        columns = [i, C + i, 2 * C + i]
        if not seen[i]:
            continue
        many = "5 or more" if positives[i] >= 5 else "2 to 4" if positives[i] >= 2 else "0 or 1"
        rows = [f"F1 of a condition, {many} positives"]
        if i in (2, 7, 13):
            rows.append(f"F1 of a condition, prevalence {PREVALENCE[i]:.2f}")
        for row in rows:
            yield share(row, i, columns, system.f1[i], positives[i], "f1")
        if positives[i] >= 5:
            yield share("sensitivity, 5 or more positives", i, [i, 2 * C + i], system.sensitivity[i])
        if predicted[i] >= 5:
            yield share("precision, 5 or more predicted", i, [i, C + i], system.precision[i])


def share(row: str, hit: int, all_: list[int], truth: float, positives=None, kind: str = "share") -> Case:
    def cell(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return sums[..., hit], sums[..., all_].sum(axis=-1)

    def of(sums: np.ndarray) -> np.ndarray:
        return f1_of(ratio(*cell(sums))) if kind == "f1" else ratio(*cell(sums))

    return Case(row, of, truth, kind, cell=cell, positives=positives)


def f1_of(jaccard):
    return 2 * jaccard / (1 + jaccard)


# --- methods ----------------------------------------------------------------------------------------------------------


class Set:
    """A set of studies with its replicates, drawn once for all scores."""

    def __init__(self, rng: np.random.Generator, patients: list[int], columns_NK: np.ndarray):
        self.rng, self.sums_PK = rng, patient_sums(columns_NK, patients)
        sums_PK = self.sums_PK
        self.jackknife = Jackknife(sums_PK, sums_PK[:, COUNT])
        self.total_K, count = self.jackknife.total_K, len(sums_PK)
        self.weights_BP = rng.multinomial(count, np.full(count, 1 / count), size=REPLICATES).astype(
            np.float64
        )
        self.drawn_BK = self.weights_BP @ sums_PK
        self.bayes_BK = rng.exponential(size=(REPLICATES, count)) @ sums_PK
        self.jeffreys_BK = self.bayes_BK.copy()
        self.jeffreys_BK[:, : 2 * C] += rng.gamma(0.5, size=(REPLICATES, 2 * C))
        self.z = float(np.sqrt(count / (count - 1)) * self.jackknife.quantile())
        self.tails = float(ndtr(-self.z)), float(ndtr(self.z))


def methods(case: Case, one: Set) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each method's interval of a score."""
    value, jackknife = float(case.of(one.total_K)), one.jackknife
    drawn_B = np.sort(case.of(one.drawn_BK))
    drawn_B = drawn_B[~np.isnan(drawn_B)]
    yield "percentile", quantiles(drawn_B, 0.025, 0.975)
    yield "percentile, expanded", quantiles(drawn_B, *one.tails)
    values_P = jackknife.values(case.of)
    yield "BCa", bca(drawn_B, value, values_P, one.z)
    if case.jeffreys:
        yield (
            "Bayesian bootstrap with Jeffreys cells",
            quantiles(np.sort(case.of(one.jeffreys_BK)), *one.tails),
        )
    se, t = float(standard_error(values_P)), jackknife.quantile()
    yield "jackknife, t", (value - t * se, value + t * se)
    if case.kind == "fraction":
        low, high, _ = jackknife.interval(case.of, "fraction")
        yield "jackknife, t on the logit scale", (low, high)
    if case.cell:
        yield from of_cells(case, one, value)


def of_cells(case: Case, one: Set, value: float) -> Iterator[tuple[str, tuple[float, float]]]:
    """Intervals of a share or of one condition's F1, from true positives and all units."""
    back = f1_of if case.kind == "f1" else float
    hits_P, units_P = case.cell(one.sums_PK)
    hits_B, units_B = case.cell(one.bayes_BK)
    p, units, t = float(hits_P.sum() / units_P.sum()), float(units_P.sum()), one.jackknife.quantile()
    prior_B, other_B = one.rng.gamma(0.5, size=(2, REPLICATES))
    low, high = quantiles(np.sort((hits_B + prior_B) / (units_B + prior_B + other_B)), *one.tails)
    yield "Bayesian bootstrap with Jeffreys cells", (back(low), back(high))
    # The studentised bootstrap needs a standard error in each replicate: that of a ratio, from squares of residuals.
    patients = len(hits_P)
    moments_PK = np.stack([hits_P, units_P, hits_P**2, hits_P * units_P, units_P**2], axis=1)
    x, n, xx, xn, nn = (one.weights_BP @ moments_PK).T
    q = ratio(x, n)
    se = float(standard_error(ratio(p * units - hits_P, units - units_P)[units_P < units]))
    with np.errstate(divide="ignore", invalid="ignore"):
        each_B = np.sqrt(patients / (patients - 1) * np.maximum(xx - 2 * q * xn + q * q * nn, 0)) / n
        t_B = (q - p) / each_B
    low_t, high_t = quantiles(np.sort(t_B[np.isfinite(t_B)]), 0.025, 0.975)
    low, high = (max(p - high_t * se, 0), min(p - low_t * se, 1)) if se > 0 and low_t == low_t else (p, p)
    yield "studentised bootstrap", (back(low), back(high))
    independent = p * (1 - p) / se**2 if se > 0 and 0 < p < 1 else float((units_P > 0).sum())
    n_eff = min(independent, units)
    yield "Wilson, effective n", tuple(back(x) for x in wilson(p, n_eff, t))
    n_eff *= (1.96 / t) ** 2
    hit, miss = p * n_eff, (1 - p) * n_eff
    tails = np.array([0.025, 0.975])
    yield "Jeffreys, effective n", tuple(back(float(x)) for x in betaincinv(hit + 0.5, miss + 0.5, tails))
    low = float(betaincinv(hit, miss + 1, 0.025)) if hit > 0 else 0.0
    high = float(betaincinv(hit + 1, miss, 0.975)) if miss > 0 else 1.0
    yield "Clopper-Pearson, effective n", (back(low), back(high))


def bca(drawn_B: np.ndarray, value: float, values_P: np.ndarray, z: float) -> tuple[float, float]:
    """The bias-corrected and accelerated interval (Efron 1987) of sorted replicates, acceleration from the
    jackknife."""
    if not len(drawn_B):
        return value, value
    below = ((drawn_B < value).sum() + 0.5 * (drawn_B == value).sum()) / len(drawn_B)
    bias = ndtri(np.clip(below, 0.5 / len(drawn_B), 1 - 0.5 / len(drawn_B)))
    gap_P = values_P.mean() - values_P
    squares = (gap_P**2).sum()
    skew = (gap_P**3).sum() / (6 * squares**1.5) if squares > 0 else 0.0
    ends = bias + np.array([-z, z])
    return quantiles(drawn_B, *ndtr(bias + ends / (1 - skew * ends)))


def quantiles(sorted_B: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Two quantiles of sorted values, NaN of none; numpy's own function takes ten times as long for so few."""
    if not len(sorted_B):
        return float("nan"), float("nan")
    at = np.array([low, high]) * (len(sorted_B) - 1)
    found = np.interp(at, np.arange(len(sorted_B)), sorted_B)
    return float(found[0]), float(found[1])


# --- the study --------------------------------------------------------------------------------------------------------


class Tally:
    """How often intervals held the true value."""

    def __init__(self) -> None:
        self.held: list[float] = []
        self.width: list[float] = []
        self.sets: set[int] = set()
        self.asked = 0

    def add(self, number: int, low: float, high: float, truth: float) -> None:
        self.asked += 1
        if low != low:
            return
        self.sets.add(number)
        self.held.append(low <= truth <= high)
        self.width.append(high - low)

    def row(self) -> dict:
        """Coverage with its own 95 % interval over sets, mean width, shares of zero width and of intervals given."""
        if not self.held:
            return {"given": 0.0}
        held = float(np.mean(self.held))
        return {
            "coverage": round(held, 4),
            "coverage_interval": [round(x, 4) for x in wilson(held, len(self.sets), 1.96)],
            "width": round(float(np.mean(self.width)), 4),
            "zero_width": round(float((np.array(self.width) < 1e-12).mean()), 4),
            "given": round(len(self.held) / self.asked, 4),
            "sets": len(self.sets),
        }


def single_system(system: System, n: int, sets: int, *, single: bool = False) -> dict:
    """Rows of scores, in each the methods."""
    rng = np.random.default_rng(n)
    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    values: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(sets):
        patients, columns = draw(rng, n, [system], single=single)
        one = Set(rng, patients, columns[0])
        for case in cases(system, one.total_K):
            value = float(case.of(one.total_K))
            if value != value:
                continue
            values[case.row].append((value, case.truth))
            row = tallies[case.row]
            for name, (low, high) in methods(case, one):
                row[name].add(number, low, high, case.truth)
            low, high, _ = one.jackknife.interval(
                case.of, case.kind, units=case.cell and (lambda s, case=case: case.cell(s)[1]),
                positives=case.positives,
            )  # fmt: skip
            row["chosen"].add(number, low, high, case.truth)
    return {
        row: {
            "mean": round(float(np.mean([v for v, _ in values[row]])), 4),
            "truth": round(float(np.mean([t for _, t in values[row]])), 4),
            "methods": {name: tally.row() for name, tally in found.items()},
        }
        for row, found in sorted(tallies.items())
    }


def few_patients(system: System, sets: int) -> dict:
    """Coverage by the number of patients, without the rule that asks for LEAST_PATIENTS of them."""
    rng = np.random.default_rng(0)
    tallies: dict[int, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    least, intervals.LEAST_PATIENTS = intervals.LEAST_PATIENTS, 2
    for number in range(5 * sets):
        patients, (columns_NK,) = draw(rng, (8, 12, 16, 20, 25)[number % 5], [system])
        sums_PK = patient_sums(columns_NK, patients)
        jackknife = Jackknife(sums_PK, sums_PK[:, COUNT])
        for case in cases(system, jackknife.total_K):
            if case.row in ("micro", "score like ROUGE-L", "rate of 0.05", "rate of 0.3"):
                low, high, _ = jackknife.interval(
                    case.of, case.kind, units=case.cell and (lambda s, case=case: case.cell(s)[1]),
                    positives=case.positives,
                )  # fmt: skip
                tallies[len(sums_PK)][case.row].add(number, low, high, case.truth)
    intervals.LEAST_PATIENTS = least
    rows = {row for found in tallies.values() for row in found}
    return {
        row: {"methods": {f"{p} patients": tallies[p][row].row() for p in sorted(tallies) if 2 <= p <= 10}}
        for row in sorted(rows)
    }


def two_systems(first: System, second: System, n: int, sets: int) -> dict:
    """Level of the permutation test where both are equal, and coverage of the paired intervals."""
    rng = np.random.default_rng(n)
    gap_C = first.f1 - second.f1
    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    rejected: dict[str, list[bool]] = defaultdict(list)
    for number in range(sets):
        patients, (a_NK, b_NK) = draw(rng, n, [first, second])
        support_C = cells(a_NK.sum(axis=0))[[0, 2]].sum(axis=0)
        scores = {
            "micro": (micro, first.micro - second.micro),
            "score like ROUGE-L": (lambda s: ratio(s[..., SCORE], s[..., COUNT]), 0.0),
            "macro, all": (macro, gap_C.mean()),
        }
        for least in (5, 30):
            if (among := support_C >= least).any():
                scores[f"macro, n >= {least}"] = (lambda s, among=among: macro(s, among)), gap_C[among].mean()
        for i in (5, 9, 13):
            if support_C[i] >= 5:
                name = f"F1 of a condition, prevalence {PREVALENCE[i]:.2f}"
                scores[name] = (lambda s, i=i: f1(s)[..., i]), gap_C[i]
        names = list(scores)

        def all_scores(sums: np.ndarray, scores=scores) -> np.ndarray:
            return np.stack([of(sums) for of, _ in scores.values()], axis=-1)

        seed = int(rng.integers(2**31))
        before = paired_bootstrap(all_scores, a_NK, b_NK, patients, n_boot=REPLICATES, seed=seed)
        chosen = paired_interval(all_scores, a_NK, b_NK, patients)
        p = paired_permutation(all_scores, a_NK, b_NK, patients, n_permutations=PERMUTATIONS, seed=seed)
        for i, name in enumerate(names):
            truth = float(scores[name][1])
            for method, (_, low, high) in (("percentile", before), ("chosen", chosen)):
                tallies[name][method].add(number, float(low[i]), float(high[i]), truth)
            if abs(truth) < 1e-9 and p[i] == p[i]:
                rejected[name].append(bool(p[i] <= 0.05))
    found = {}
    for name, row in tallies.items():
        found[name] = {"methods": {method: tally.row() for method, tally in row.items()}}
        if rejected[name]:
            level = float(np.mean(rejected[name]))
            bounds = [round(x, 4) for x in wilson(level, len(rejected[name]), 1.96)]
            found[name] |= {"level": round(level, 4), "level_interval": bounds}
    return found


def show(title: str, rows: dict) -> None:
    print(f"\n{title}")
    for row, found in rows.items():
        cells_ = [
            f"{name} {100 * m['coverage']:.0f} ({m['width']:.2f})" if "coverage" in m else f"{name} none"
            for name, m in found["methods"].items()
            if name in ("percentile", "BCa", "jackknife, t on the logit scale", "chosen")
            or "patients" in name
        ]
        level = f"level {100 * found['level']:.1f}; " if "level" in found else ""
        print(f"  {row:44} {level}{'; '.join(cells_)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=300, help="sets of studies in every cell")
    parser.add_argument("--studies", type=int, nargs="+", default=STUDIES, help="studies in a set")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/coverage.json")
    args = parser.parse_args()
    start = time.perf_counter()
    systems = {name: System.of_precision(*given) for name, given in SYSTEMS.items()}
    alone: dict[str, dict] = {name: {} for name in systems} | {"one study a patient": {}}
    paired: dict[str, dict] = {"alike": {}, "trading": {}}
    with threadpool_limits(1):
        few = few_patients(systems["middling"], args.sets)
        show(f"few patients ({time.perf_counter() - start:.0f} s)", few)
        for n in args.studies:
            for name, system in systems.items():
                alone[name][str(n)] = single_system(system, n, args.sets)
                show(f"{name}, {n} studies ({time.perf_counter() - start:.0f} s)", alone[name][str(n)])
            if n <= 300:
                rows = single_system(systems["middling"], n, args.sets, single=True)
                alone["one study a patient"][str(n)] = rows
                show(f"one study a patient, {n} studies ({time.perf_counter() - start:.0f} s)", rows)
            for name, other in (("alike", systems["middling"]), ("trading", systems["middling"].trading())):
                paired[name][str(n)] = two_systems(systems["middling"], other, n, args.sets)
                show(
                    f"paired, {name}, {n} studies ({time.perf_counter() - start:.0f} s)", paired[name][str(n)]
                )
    if args.save:
        about = {
            "machine": platform.processor() or platform.machine(),
            "date": date.today().isoformat(),
            "seconds": round(time.perf_counter() - start),
            "sets": args.sets,
            "replicates": REPLICATES,
            "permutations": PERMUTATIONS,
            "least": {"patients": intervals.LEAST_PATIENTS, "positives": intervals.LEAST_POSITIVES},
            "few": few,
            "alone": alone,
            "paired": paired,
        }
        file = Path(__file__).parent / "results" / "coverage.json"
        file.write_text(compact(about) + "\n")
        print(f"wrote {file}")
    return 0


def compact(value, depth: int = 0) -> str:
    """JSON with one line a method."""
    if not isinstance(value, dict) or not any(isinstance(v, dict) for v in value.values()):
        return json.dumps(value)
    inner = ",\n".join(
        f"{' ' * (depth + 1)}{json.dumps(k)}: {compact(v, depth + 1)}" for k, v in value.items()
    )
    return f"{{\n{inner}\n{' ' * depth}}}"


if __name__ == "__main__":
    sys.exit(main())
