"""Two systems in pairs, and subgroups."""

import numpy as np
import pytest

from eval.intervals import paired_interval
from eval.resampling import holm, paired_permutation
from eval.scores.comparison import differences
from eval.scores.sheet import Sheet
from eval.scores.subgroups import subgroups


def sheet_of(values_N):
    sheet = Sheet(len(values_N))
    sheet.add_mean("mean", "mean", values_N)
    sheet.add_mean("square", "square", np.square(values_N))
    where = sheet.columns(np.zeros((len(values_N), 2)))
    sheet.add("undefined", "undefined", lambda s: s[..., 0] / np.where(s[..., 1] == 0, np.nan, 1), where)
    return sheet


def test_all_at_once_is_each_alone():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), rng.normal(0.3, size=60)
    patients = [i // 2 for i in range(60)]
    found = differences(
        sheet_of(a),
        sheet_of(b),
        ["mean", "square", "undefined"],
        patients,
        seed=3,
        n_permutations=500,
    )
    p_values = {}
    for d, (x, y) in zip(found, ((a, b), (a**2, b**2)), strict=False):
        stats = [np.stack([np.ones(60), v], 1) for v in (x, y)]
        metric = lambda s: s[..., 1] / s[..., 0]  # noqa: E731
        wanted = paired_interval(metric, *stats, patients)
        assert (d.difference, d.low, d.high) == pytest.approx(wanted, abs=1e-12)
        p_values[d.name] = paired_permutation(metric, *stats, patients, n_permutations=500, seed=3)
        assert d.p == pytest.approx(p_values[d.name])
        assert d.value - d.other == pytest.approx(d.difference)
    assert {d.name: d.p_holm for d in found[:2]} == pytest.approx(holm(p_values))
    assert np.isnan(
        [found[2].p, found[2].p_holm, found[2].difference]
    ).all()  # and does not count in Holm's family
    assert found[2].to_json()["p"] is None


def test_a_system_against_itself():
    a = np.random.default_rng(1).normal(size=40)
    for d in differences(sheet_of(a), sheet_of(a), ["mean", "square"], range(40), n_permutations=50):
        assert (d.difference, d.p, d.p_holm, d.no_interval) == (0, 1, 1, "equal for all patients")
        assert np.isnan([d.low, d.high]).all()


def test_permutations_in_which_the_metric_is_undefined_count_as_extreme():
    stats = np.array([[1.0, 1.0], [1.0, 0.0]])
    other = np.array([[1.0, 0.0], [1.0, 1.0]])
    metric = lambda s: s[..., 0] / np.where(s[..., 1] == 2, np.nan, s[..., 1] + 1)  # noqa: E731
    assert paired_permutation(metric, stats, other, n_permutations=100) == 1


def test_subgroups():
    studies = [
        {"sex": "F", "age": 17.9, "images": [{"view": "PA"}]},
        {"sex": "m", "age": 18, "images": [{"view": "PA"}, {"view": "lateral"}]},
        {"sex": "male", "age": "80", "images": []},
        {"age": True, "images": [{"view": "unknown"}]},
        {"sex": None, "age": 200, "images": "none"},
    ]
    found = {key: rows.tolist() for key, rows in subgroups(studies).items()}
    assert found == {
        ("sex", "F"): [True, False, False, False, False],
        ("sex", "M"): [False, True, True, False, False],
        ("age", "under 18"): [True, False, False, False, False],
        ("age", "18 to 39"): [False, True, False, False, False],
        ("view", "PA"): [True, False, False, False, False],
        ("view", "several"): [False, True, False, False, False],
    }
    assert not subgroups([{"sex": "F"}, {"sex": "F"}])  # all alike: that is no subgroup
    odd = [
        {"sex": "X", "images": [{"view": ["PA"]}]},
        {"sex": " ", "age": None, "images": [{"view": "oblique"}, 3]},
    ]
    assert set(subgroups(odd)) == {("sex", "X"), ("view", "oblique")}


def macro_sheet(hits):
    """Two conditions, of which the second has few positives."""
    sheet = Sheet(len(hits))
    where = sheet.columns(np.stack([hits, np.ones(len(hits))], axis=1))
    shared = {"positives": lambda s: np.stack([s[..., 1], 0 * s[..., 1] + 3], axis=-1)}
    sheet.add("macro", "macro", lambda s: s[..., 0] / s[..., 1], where, **shared)
    sheet.add("mean", "mean", lambda s: s[..., 0] / s[..., 1] * (1 + 1e-9), where)
    return sheet


def test_a_difference_has_an_interval_where_the_score_has_one():
    rng = np.random.default_rng(3)
    a, b = (macro_sheet((rng.random(30) < p).astype(float)) for p in (0.8, 0.4))
    macro, mean = differences(a, b, ["macro", "mean"], range(30), n_permutations=50)
    own = a.scores(list(range(30)))["macro"]
    assert own.no_interval == macro.no_interval == "1 of 2 conditions with fewer than 5 positives"
    assert np.isnan([macro.low, macro.high]).all() and macro.p == mean.p and macro.difference > 0
    assert macro.to_json()["interval"] == [None, None] and "no_interval" not in mean.to_json()
    assert mean.low < mean.difference < mean.high


def test_differences_of_shares_are_at_most_one():
    hits = np.r_[np.ones(11), 0.9]
    (found,) = differences(
        macro_sheet(hits), macro_sheet(np.zeros(12)), ["mean"], range(12), n_permutations=50
    )
    assert found.low < found.difference < found.high == 1


def test_p_does_not_depend_on_the_order_of_the_references():
    from eval import score

    texts = ["No effusion.", "Small left effusion.", "Edema.", "The heart is normal.", "Rib fracture, old."]
    rng = np.random.default_rng(4)
    references, ours, theirs = (
        [{"study_id": f"s{i}", "findings": " ".join(rng.choice(texts, 3))} for i in range(24)]
        for _ in range(3)
    )
    for study in references[:8]:
        study["patient_id"] = f"p{study['study_id'][1:]}"[:2]

    def tested(rows):
        given = [references[i] for i in rows]
        (found,) = score(ours, given, compare=theirs, clinical_models="none").comparisons
        return [x for d in found.differences for x in (d.difference, d.low, d.high, d.p, d.p_holm)]

    assert tested(rng.permutation(24)) == pytest.approx(tested(range(24)), rel=1e-9, nan_ok=True)


def test_studies_of_a_tie_stand_in_the_order_of_their_ids():
    from eval import score

    rows = [{"study_id": f"s{i}", "findings": "Edema."} for i in range(6)]
    said = [{**row, "findings": "Clear."} for row in rows]
    for given in (rows, rows[::-1]):
        found = score(said, given, intervals=False, clinical_models="none")
        assert [s["study_id"] for s in found.worst(3)] == ["s0", "s1", "s2"]
