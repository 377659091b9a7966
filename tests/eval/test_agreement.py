"""Agreement with radiologists: scipy is the oracle of the coefficients, plain loops are that of the loaders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

import eval as eval_room
from eval.agreement.coefficients import Coefficients
from eval.agreement.metrics import Metric, metrics_of, values_of
from eval.agreement.ratings import Rated, Rating, load_ratings
from eval.agreement.result import agree
from eval.agreement.sets import annotated
from eval.agreement.tables import render
from eval.scores.readers import ScoreError
from tests.eval import rated as mini

NAN = float("nan")


def made(ratings_N, studies=None, better="lower") -> Rated:
    """Ratings without reports, for metrics whose values are given."""
    n = len(ratings_N)
    ids = [str(i) for i in range(n)]
    rating = Rating("errors", better, np.asarray(ratings_N, np.float64))
    return Rated("own", "own ratings", ids, studies or ids, [""] * n, [""] * n, [rating], [])


def given(name, values_N, better="higher") -> Metric:
    return Metric(name, name, better, np.asarray(values_N, np.float64))


# --- coefficients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_coefficients_are_scipys_in_the_sample_and_in_every_replicate(levels):
    rng = np.random.default_rng(levels)
    n, studies = 40, [str(i) for i in rng.integers(0, 12, 40)]
    rating_N = rng.integers(0, levels, n).astype(float)
    values_N = np.round(rating_N / levels + rng.normal(size=n), 1)
    rows_N = rng.random(n) < 0.8
    coefficients = Coefficients(rating_N, studies, n_boot=20, seed=3)
    tau, rho = coefficients.of(values_N, rows_N)
    names = sorted(set(studies))
    weights_BP = np.random.default_rng(3).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=20
    )
    weights_BP = np.concatenate([np.ones((1, len(names)), int), weights_BP])
    for b, weights_P in enumerate(weights_BP):
        times = dict(zip(names, weights_P, strict=True))
        drawn = [i for i in range(n) for _ in range(times[studies[i]]) if rows_N[i]]
        assert tau[b] == pytest.approx(kendalltau(values_N[drawn], rating_N[drawn])[0], abs=1e-12)
        assert rho[b] == pytest.approx(spearmanr(values_N[drawn], rating_N[drawn])[0], abs=1e-12)


def correlated(rng, studies, each, count=1):
    """Studies of several reports: error counts with ties, and metrics that see the same quality through noise."""
    of_study_N = np.repeat(np.arange(studies), each)
    quality_N = rng.normal(size=studies)[of_study_N] + 0.7 * rng.normal(size=studies * each)
    errors_N = np.round(2 * np.exp(0.3 - 0.5 * quality_N))
    shared_N = rng.normal(size=studies)[of_study_N]
    values = [quality_N + shared_N + 0.7 * rng.normal(size=studies * each) for _ in range(count)]
    return [str(s) for s in of_study_N], errors_N, values


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    big = [correlated(rng, 1200, 2) for _ in range(4)]
    truth = np.mean([kendalltau(values[0], -errors)[0] for _, errors, values in big])
    hits = 0
    for run in range(100):
        studies, errors_N, values = correlated(rng, 50, 4)
        tau = Coefficients(-errors_N, studies, n_boot=200, seed=run).of(values[0], np.ones(200, bool))[0]
        low, high = np.quantile(tau[1:], [0.025, 0.975])
        hits += low <= truth <= high
    # At a level of 95 % fewer than 88 hits of 100 have a probability of 0.0015. Drawn by report, as if those of a study
    # were independent, there are 72.
    assert 88 <= hits <= 100


def test_metrics_that_are_equally_good_are_seldom_found_different():
    """Also where the best of them is picked afterwards: as many tests as pairs, not as metrics."""
    rng = np.random.default_rng(1)
    false = 0
    for run in range(60):
        studies, errors_N, values = correlated(rng, 30, 2, count=6)
        metrics = [given(f"m{i}", v) for i, v in enumerate(values)]
        found = agree(made(errors_N, studies), metrics, n_boot=200, seed=run).ratings[0]
        false += any(pair.p_holm < 0.05 for pair in found.pairs)
    # Above 8 of 60 lies a probability of 0.003 at a level of 5 %.
    assert false <= 8


# --- agreement --------------------------------------------------------------------------------------------------------


def test_positive_means_that_a_metric_ranks_as_radiologists_do():
    rng = np.random.default_rng(2)
    errors_N = rng.integers(0, 5, 30).astype(float)
    noise_N = rng.normal(size=30)
    metrics = [given("good", -errors_N), given("bad", errors_N), given("lower", errors_N + noise_N, "lower")]
    found = {a.metric.key: a for a in agree(made(errors_N), metrics, n_boot=50).ratings[0].metrics}
    assert (found["good"].tau, found["bad"].tau) == pytest.approx((1, -1))
    assert found["lower"].tau == pytest.approx(kendalltau(errors_N + noise_N, errors_N)[0])
    turned = agree(made(errors_N, better="higher"), metrics, n_boot=50).ratings[0].metrics
    assert {a.metric.key: a.tau for a in turned}["good"] == pytest.approx(-1)
    assert [a.metric.key for a in turned] == ["bad", "lower", "good"]


def test_undefined_values_are_left_out_in_pairs_and_counted():
    rng = np.random.default_rng(4)
    studies, errors_N, (a_N, b_N, c_N) = correlated(rng, 20, 2, count=3)
    a_N, b_N = a_N.copy(), b_N.copy()
    a_N[3], b_N[[5, 6, 7]] = NAN, NAN
    found = agree(
        made(errors_N, studies), [given("a", a_N), given("b", b_N), given("c", c_N)], n_boot=50
    ).ratings[0]
    rows = {row.metric.key: row for row in found.metrics}
    assert [(rows[k].reports, rows[k].undefined) for k in "abc"] == [(39, 1), (37, 3), (40, 0)]
    there = ~np.isnan(a_N)
    assert rows["a"].tau == pytest.approx(kendalltau(a_N[there], -errors_N[there])[0])
    pair = next(p for p in found.pairs if (p.first, p.second) == ("a", "b"))
    both = there & ~np.isnan(b_N)
    taus = [kendalltau(x[both], -errors_N[both])[0] for x in (a_N, b_N)]
    assert pair.difference == pytest.approx(taus[0] - taus[1])
    # The best's own row has no difference; another one's is its tau less the best's.
    for key, row in rows.items():
        if key == found.best:
            assert row.difference != row.difference
        else:
            match = next(p for p in found.pairs if {p.first, p.second} == {key, found.best})
            assert row.difference == pytest.approx(match.difference * (1 if match.first == key else -1))
            assert row.difference_interval[0] <= row.difference <= row.difference_interval[1]


def test_a_metric_of_few_reports_is_not_the_best():
    rng = np.random.default_rng(5)
    studies, errors_N, (a_N,) = correlated(rng, 20, 2)
    few_N = np.where(np.arange(40) < 30, -errors_N, NAN)
    found = agree(made(errors_N, studies), [given("few", few_N), given("all", a_N)], n_boot=20).ratings[0]
    assert found.best == "all" and found.metrics[0].metric.key == "few"


def test_a_better_metric_is_found_and_the_same_one_is_not():
    rng = np.random.default_rng(6)
    studies, errors_N, (a_N,) = correlated(rng, 50, 4)
    close_N = -errors_N + 0.1 * rng.normal(size=200)
    # The same, ties included, but for the order of additions.
    a_N = np.round(a_N, 1)
    again_N = a_N + 1e-15 * rng.normal(size=200)
    found = agree(
        made(errors_N, studies),
        [given("close", close_N), given("a", a_N), given("again", again_N)],
        n_boot=200,
    ).ratings[0]
    p = {frozenset((pair.first, pair.second)): pair for pair in found.pairs}
    assert found.best == "close" and p[frozenset(("close", "a"))].p_holm < 0.001
    # Holm's family is all pairs, for which one is the best is known only afterwards.
    assert len(found.pairs) == 3
    assert min(q.p_holm for q in found.pairs) == pytest.approx(3 * min(q.p for q in found.pairs))
    same = p[frozenset(("a", "again"))]
    assert same.difference == 0 and same.p == same.p_holm == 1


def test_a_constant_metric_has_no_tau():
    found = agree(made([0, 1, 2, 3] * 5), [given("flat", [1] * 20), given("rank", range(20))], n_boot=20)
    flat = found.ratings[0].metrics[-1]
    assert flat.metric.key == "flat" and flat.tau != flat.tau
    assert found.to_json()["ratings"][0]["metrics"][-1]["tau_b"] is None
    line = next(line for line in render(found).splitlines() if line.strip().startswith("flat"))
    assert line.split() == ["flat", "-", "-", "-", "-", "20/20"]
    assert "nan" not in render(found).lower()


def test_few_studies_have_no_interval():
    found = agree(made([0, 1, 2, 3, 4]), [given("a", [5, 3, 4, 1, 0]), given("b", range(5))], n_boot=20)
    a = found.ratings[0].metrics[0]
    assert (
        a.tau == pytest.approx(0.8)
        and np.isnan(a.tau_interval).all()
        and np.isnan(found.ratings[0].pairs[0].p)
    )
    assert "no intervals and no tests: 5 studies" in render(found)


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(ScoreError, match="two metrics called 'a'"):
        agree(made(range(12)), [given("a", range(12)), given("a", range(12))])


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_values_are_those_of_one_metric_at_a_time(tmp_path):
    mini.rexval(tmp_path, studies=3)
    rated = load_ratings(tmp_path)
    metrics, missing = metrics_of(rated, clinical_models="none")
    found = {m.key: m for m in metrics}
    assert {"label-f1/14/macro/neg", "bleu-4/coco", "meteor/plain", "rouge-l/sacrebleu-13a"} <= found.keys()
    assert any("BERTScore" in m.name for m in missing)
    for key in ("label-f1/14/micro/neg", "bleu-2/sacrebleu-13a", "rouge-l/plain"):
        expected = eval_room.metric(key).per_sample(rated.references, rated.predictions)
        np.testing.assert_allclose(found[key].values_N, expected)
    # One that is not on the sheet by itself, and one that needs weights.
    own, _ = metrics_of(rated, ["label-f1/14/macro-2/neg", "words/generated"])
    assert [m.key for m in own] == ["label-f1/14/macro-2/neg", "words/generated"]
    assert own[1].values_N[0] == len(rated.predictions[0].split()) and own[1].better == "neither"
    with pytest.raises(ScoreError, match="did you mean"):
        metrics_of(rated, ["rouge-l/cocoo"])


def test_values_of_others_are_matched_by_id(tmp_path):
    mini.rexval(tmp_path, studies=3)
    rated = load_ratings(tmp_path)
    rows = [
        {"id": key, "name": "judge", "value": i if i else "", "better": "lower"}
        for i, key in enumerate(rated.ids)
    ]
    path = mini.write_csv(tmp_path / "values.csv", [*rows[::-1], {**rows[1], "id": "9/bleu"}])
    (judge,), notes = values_of(path, rated)
    assert judge.better == "lower" and np.isnan(judge.values_N[0])
    assert judge.values_N[1:].tolist() == list(range(1, 12)) and "1 ids" in notes[0]


# --- loaders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said", "first"),
    [
        ({}, "counted from 0", "0"),
        ({"first": 1}, "counted from 1", "1"),
        ({"by_id": True}, "as the study_id", "50000"),
    ],
)
def test_rexval_counts_errors_whatever_its_studies_are_called(tmp_path, settings, said, first):
    texts, counts = mini.rexval(tmp_path, **settings)
    rated = load_ratings(tmp_path)
    assert rated.name == "rexval" and any(said in note for note in rated.notes)
    assert (
        len(rated) == 48
        and len(set(rated.studies)) == 12
        and rated.ids[:2] == [f"{first}/radgraph", f"{first}/bertscore"]
    )
    assert rated.references[5] == texts[1]["gt_report"] and rated.predictions[7] == texts[1]["bleu"]
    number = counts[0]["study_number"]
    for name, kinds in (("errors", (True, False)), ("significant errors", (True,))):
        rating = next(r for r in rated.ratings if r.name == name)
        for i, candidate in enumerate(mini.CANDIDATES):
            total = sum(
                row["num_errors"] for row in counts if row["study_number"] == number
                and row["candidate_type"] == candidate and row["clinically_significant"] in kinds
            )  # fmt: skip
            assert rating.better == "lower" and rating.values_N[i] == total / 2
    # A file of the two is enough.
    assert load_ratings(next(tmp_path.glob("50*"))).ids == rated.ids


def test_a_reading_of_rexval_without_all_counts_is_missing(tmp_path):
    texts, counts = mini.rexval(tmp_path)
    # of the first rater of the first report: one blank, so the second rater's sum remains
    total = sum(row["num_errors"] for row in counts[12:24])
    counts[3]["num_errors"] = ""
    # of the second report nobody's counts are whole
    mini.write_rexval(tmp_path, texts, counts[:24] + counts[25:36] + counts[37:])
    rated = load_ratings(tmp_path)
    assert rated.ratings[0].values_N[0] == total and "0/bertscore" not in rated.ids
    assert any("3 readings" in note for note in rated.notes) and any(
        "1 of 48" in note for note in rated.notes
    )


def test_a_rexval_that_lists_errors_alone(tmp_path):
    texts, counts = mini.rexval(tmp_path)
    mini.write_rexval(tmp_path, texts, [row for row in counts if row["num_errors"]])
    rated = load_ratings(tmp_path)
    assert any("no count is 0" in note for note in rated.notes)


def test_radevalx_leaves_out_what_is_blank(tmp_path):
    _, counts = mini.radevalx(tmp_path)
    whole = load_ratings(tmp_path)
    assert whole.name == "radevalx" and len(whole) == 14
    expected = [sum(counts[2 * i + k][n] for k in (0, 1) for n in mini.NUMBERS) for i in range(14)]
    assert whole.ratings[0].values_N.tolist() == expected
    assert whole.ratings[1].values_N[3] == sum(counts[6][n] for n in mini.NUMBERS)
    # report 2: significant errors are blank; report 5: insignificant ones
    counts[4]["eight"] = counts[11]["one"] = ""
    mini.write_csv(tmp_path / "another.csv", counts)
    rated = load_ratings(tmp_path)
    errors, significant = rated.ratings
    assert rated.ids == [str(i) for i in range(14) if i != 2]
    assert (
        np.isnan(errors.values_N[rated.ids.index("5")])
        and significant.values_N[4] == whole.ratings[1].values_N[5]
    )
    assert any("1 of 14" in note for note in rated.notes) and any(
        "none of 'errors'" in note for note in rated.notes
    )


ZEROS = [0] * 7


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (mini.annotation([2, 1, 0, 0, 0, 0, 3], [0, 0, 4, 0, 0, 0, 0]), (6, 4)),
        (mini.annotation([1, *ZEROS[1:]], ZEROS, colon=")"), (1, 0)),
        ("**Significant:**\n1. Lost 2 of 3: 1\n- 2. b = 12.\n\nInsignificant\n(1) a: 0\n2: b 5\n", (13, 5)),
        # the number of a category is not its count
        ("Clinically significant errors:\n1. False finding\n2. b: 0\nInsignificant:\n1. a: 2\n2. b: 0", (None, 2)),
        ("Significant:\n1. a: 1.5\nInsignificant:\n1. a: -1", (None, None)),
        ("Significant:\n1. a: 1\n1. a: 2\nInsignificant:\n1. a: 0", (None, 0)),
        ("Significant:\n1. a: 1\nnothing else\nInsignificant:\n1. a: 0", (None, 0)),
        ("1. a: 1\nSignificant:\n1. a: 1", (None, None)),
        ("Significant:\n1. a: 1", (1, None)),
        ("no errors", (None, None)), ("", (None, None)), (None, (None, None)), (3, (None, None)),
    ],
)  # fmt: skip
def test_the_grammar_of_annotations(cell, expected):
    found = annotated(cell)
    assert tuple(sum(found[k].values()) if k in found else None for k in (True, False)) == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_the_expert_set(tmp_path, suffix):
    path = tmp_path / f"reader_study_final_with_annotationsv3.{suffix}"
    rows = mini.expert(path)
    # a cell that cannot be read, and one whose insignificant errors lack a category
    rows[1]["annotation2"] = "see above"
    rows[2]["annotation3"] = mini.annotation(ZEROS, ZEROS).rstrip().removesuffix("7. Grammar: 0")
    mini.write_csv(path, rows) if suffix == "csv" else mini.write_json(path, rows)
    rated = load_ratings(path)
    assert rated.name == "radeval-expert" and len(rated) == 35 and "2/2" not in rated.ids
    # findings and impression of the same films are drawn together
    assert len(set(rated.studies)) == 11 and rated.studies[-1] == rated.studies[-4]
    errors, significant = rated.ratings
    at = rated.ids.index("3/3")
    assert np.isnan(errors.values_N[at]) and significant.values_N[at] == 0
    assert any("2 of 36 annotation cells" in note and "2/2, 3/3" in note for note in rated.notes)
    counts = [
        int(line.rpartition(" ")[2]) for line in rows[0]["annotation1"].splitlines() if line[:1].isdigit()
    ]
    assert errors.values_N[0] == sum(counts) and significant.values_N[0] == sum(counts[:7])


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        ("csv", ("gt_report", "similar_report", "Score")),
        ("json", ("ground_truth", "prediction", "human_score")),
        ("jsonl", ("Reference", "candidate", "rating")),
    ],
)
def test_rate_eval_is_found_by_the_names_of_its_columns(tmp_path, suffix, names):
    rows = mini.rate_eval(tmp_path / f"task.{suffix}", names)
    rated = load_ratings(tmp_path)
    assert rated.name == "rate-eval" and rated.ratings[0].better == "higher"
    assert rated.ratings[0].values_N.tolist() == [row[names[2]] for row in rows]
    # two candidates of one reference are one study, whose name is no report
    references = [row[names[0]] for row in rows]
    places = {text: str(i) for i, text in enumerate(sorted(set(references)), 1)}
    assert rated.studies == [places[text] for text in references] and rated.studies[0] == rated.studies[1]


def test_the_hubs_json_of_rows(tmp_path):
    path = tmp_path / "rows.json"
    rows = mini.rate_eval(path)
    path.write_text(
        json.dumps(
            {"features": [{"name": "gt"}], "rows": [{"row_idx": i, "row": r} for i, r in enumerate(rows)]}
        )
    )
    assert len(load_ratings(path)) == len(rows)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_of_ones_own(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    rows = mini.own(path)
    rated = load_ratings(path, ratings=["slips", "overall quality"])
    assert (
        rated.name == "own"
        and rated.ids[:3] == ["s0/1", "s0/2", "s1/1"]
        and rated.studies[:2] == ["s0", "s0"]
    )
    assert rated.ratings[0].values_N.tolist() == [row["slips"] for row in rows]
    assert [r.better for r in rated.ratings] == ["lower", "lower"]
    assert load_ratings(path, ratings=["overall quality"], higher=True).ratings[0].better == "higher"


def test_ratings_that_are_all_missing_are_refused(tmp_path):
    path = tmp_path / "mine.csv"
    rows = mini.own(path)
    mini.write_csv(path, [{**row, "slips": ""} for row in rows])
    with pytest.raises(ScoreError, match="0 rated reports; at least 3"):
        load_ratings(path, ratings=["slips"])


def test_a_table_of_values_is_refused_by_its_line(tmp_path):
    mini.rexval(tmp_path, studies=3)
    rated = load_ratings(tmp_path)
    row = {"id": rated.ids[0], "name": "judge", "value": 1, "better": "lower"}
    path = mini.write_csv(tmp_path / "values.csv", [row, {**row, "id": rated.ids[1]}, row])
    with pytest.raises(ScoreError, match=r"values.csv, line 4: study .* has a second value of judge"):
        values_of(path, rated)


def test_nothing_depends_on_the_order_of_the_reports():
    rng = np.random.default_rng(8)
    studies, errors_N, (a_N, b_N) = correlated(rng, 20, 3, count=2)
    found = []
    for order in (np.arange(60), rng.permutation(60)):
        rated = made(errors_N[order], [studies[i] for i in order])
        (of,) = agree(rated, [given("a", a_N[order]), given("b", b_N[order])], n_boot=100).ratings
        found.append(
            [x for m in of.metrics for x in (m.tau, *m.tau_interval, *m.rho_interval, m.difference, m.p)]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-9, nan_ok=True)


def test_studies_without_names_are_the_same_in_any_order(tmp_path):
    rows = mini.rate_eval(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    found = []
    for name, given_rows in (("a", rows), ("b", rows[::-1])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in given_rows))
        rated = load_ratings(path)
        found.append(dict(zip(rated.studies, rated.references, strict=True)))
    assert found[0] == found[1]


@pytest.mark.parametrize("scale", [1e-13, 1.0, 1e9])
def test_ties_are_found_whatever_the_scale(scale):
    rng = np.random.default_rng(9)
    errors_N, values_N = rng.integers(0, 4, 40), rng.integers(1, 9, 40) / 7
    noisy_N = values_N * scale * (1 + 1e-15 * rng.normal(size=40))
    (row,) = agree(made(errors_N), [given("a", noisy_N)], n_boot=20).ratings[0].metrics
    assert row.tau == pytest.approx(kendalltau(values_N, -errors_N)[0])


def test_what_is_nothing_beside_other_values_is_nothing():
    """BLEU of captioning adds tiny numbers, so that no match is not quite 0, and never twice the same."""
    values_N = np.r_[np.linspace(0.1, 0.9, 20), np.zeros(20)]
    tiny_N = values_N + np.where(values_N == 0, 1e-17 * np.arange(40), 0)
    errors_N = np.random.default_rng(1).integers(0, 5, 40)
    (row,) = agree(made(errors_N), [given("a", tiny_N)], n_boot=20).ratings[0].metrics
    assert row.tau == pytest.approx(kendalltau(values_N, -errors_N)[0])


def test_the_table_says_which_reports_a_difference_is_of():
    rng = np.random.default_rng(5)
    studies, errors_N, (a_N,) = correlated(rng, 20, 2)
    few_N = np.where(np.arange(40) < 30, -errors_N, NAN)
    note = "differences use the reports that both metrics have"
    shown = render(agree(made(errors_N, studies), [given("few", few_N), given("all", a_N)], n_boot=20), 400)
    assert note in shown and "fewer than 90 % of the reports cannot be best" in shown
    assert note not in render(agree(made(errors_N, studies), [given("all", a_N)], n_boot=20), 400)
