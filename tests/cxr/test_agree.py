"""`cxr agree`: each set end to end, and each kind of damage told in one line."""

from __future__ import annotations

import json

import pytest
from scipy.stats import kendalltau, spearmanr

from cxr.cli.agree import SETS
from cxr.cli.main import main
from eval.agreement import ratings
from tests.eval import rated as mini

LIGHT = ["--clinical", "none", "--bootstrap", "20"]
METRICS = ["rouge-l/coco", "bleu-2/plain", "label-f1/14/micro/neg"]


def agree(*words):
    return main(["agree", *map(str, words)])


def refused(capsys, *words) -> str:
    assert agree(*words) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and not any(text[:-1] in err for text in mini.SENTENCES), err
    return err


def make(name, folder):
    """The set of a name, and the options that it needs."""
    if name == "rexval":
        mini.rexval(folder)
    elif name == "radevalx":
        mini.radevalx(folder)
    elif name == "radeval-expert":
        mini.expert(folder / "reader_study_final_with_annotationsv3.csv")
    elif name == "rate-eval":
        mini.rate_eval(folder / "task.jsonl")
    else:
        mini.own(folder / "mine.csv")
        return ["--rating", "slips"]
    return []


def test_help_names_the_sets():
    assert tuple(ratings.SETS) == SETS


@pytest.mark.parametrize("name", SETS)
def test_every_set_gives_scipys_numbers_and_no_report(name, tmp_path, capsys):
    words = [tmp_path, *make(name, tmp_path), *LIGHT, "--metrics", *METRICS, "--out", tmp_path / "out.txt"]
    assert agree(*words) == 0
    out, err = capsys.readouterr()
    assert f"wrote {tmp_path / 'out.txt'}" in err and "positive: the metric ranks reports as" in out
    written = (tmp_path / "out.txt").read_text()
    assert not any(text[:-1] in both for text in mini.SENTENCES for both in (out, written))
    found = json.loads(written)
    assert (found["set"], found["kind"]) == (name, "cxr-agreement")
    for rating in found["ratings"]:
        sign = -1 if rating["better"] == "lower" else 1
        assert {row["name"] for row in rating["metrics"]} == set(METRICS)
        taus = [row["tau_b"] for row in rating["metrics"]]
        assert taus == sorted(taus, reverse=True) and rating["best"] == rating["metrics"][0]["name"]
        for row in rating["metrics"]:
            pairs = [(v["metrics"][row["name"]], v["ratings"][rating["name"]]) for v in found["values"]]
            pairs = [(round(x, 12), sign * y) for x, y in pairs if None not in (x, y)]
            x, y = zip(*pairs, strict=True)
            assert row["reports"] == len(pairs)
            assert row["tau_b"] == pytest.approx(kendalltau(x, y)[0], abs=1e-12)
            assert row["spearman"] == pytest.approx(spearmanr(x, y)[0], abs=1e-12)
            assert row["tau_b_interval"][0] < row["tau_b"] < row["tau_b_interval"][1]
            assert f"{row['tau_b']:.3f}" in out
    # It may be written again, as its own file.
    assert agree(*words) == 0


def test_what_is_known_of_rexval_stands_beside_its_numbers(tmp_path, capsys):
    mini.rexval(tmp_path)
    rows = [
        {"id": f"{i}/{name}", "name": "RadCliQ-v1", "value": i, "better": "lower"}
        for i in range(12)
        for name in mini.CANDIDATES
    ]
    values = mini.write_csv(tmp_path / "values.csv", rows)
    assert (
        agree(
            tmp_path / "50_samples_gt_and_candidates.csv",
            *LIGHT,
            "--metrics",
            "bleu-2/coco",
            "--values",
            values,
        )
        == 0
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "value/RadCliQ-v1 v *" in out and "bleu-2/coco +" in out
    assert "* RadCliQ's coefficients were fitted on these ratings" in out
    assert "+ the four candidates of a study were chosen by these metrics" in out
    assert "v: less is better, so the metric is turned round" in out


def test_the_default_metrics_and_what_is_not_computed(tmp_path, capsys):
    make("radevalx", tmp_path)
    assert agree(tmp_path, "--bootstrap", "5", "--weights", tmp_path / "none", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    names = {row["name"] for row in found["ratings"][0]["metrics"]}
    assert {"label-f1/14/macro/neg", "meteor/coco", "rouge-l/sacrebleu-13a"} <= names
    assert "label-f1/5/micro/pos" not in names and "words/generated" not in names
    commands = [row["command"] for row in found["not_computed"]]
    assert any(command.startswith("cxr weights") and "chexbert" in command for command in commands)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def drop(rows, column):
    return [{k: v for k, v in row.items() if k != column} for row in rows]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t, c: (t, drop(c, "num_errors")), "no num_errors"),
        (lambda t, c: (drop(t, "s_emb"), c), "no s_emb"),
        (lambda t, c: (t, [*c, {**c[0], "study_number": 57}]), "study_number 57 is neither a study_id"),
        (lambda t, c: (t, [*c, {**c[0], "study_number": ""}]), "no study_number"),
        (
            lambda t, c: (t, [*c, {**c[0], "candidate_type": "green"}]),
            "candidate_type must be one of radgraph",
        ),
        (lambda t, c: (t, [*c, c[0]]), "a second time"),
        (lambda t, c: (t, [{**c[0], "num_errors": "many"}, *c[1:]]), "line 2: num_errors must be a number"),
        (lambda t, c: (t, [{**c[0], "num_errors": 1.5}, *c[1:]]), "num_errors must be a whole number"),
        (
            lambda t, c: (t, [{**c[0], "num_errors": mini.SENTENCES[0]}, *c[1:]]),
            "must be a number, not a text",
        ),
        (lambda t, c: (t, [{**c[0], "clinically_significant": "maybe"}, *c[1:]]), "must be True or False"),
        (lambda t, c: (t, [{**row, "num_errors": ""} for row in c]), "0 rated reports; at least 3"),
    ],
)
def test_damage_to_rexval_is_told(damage, said, tmp_path, capsys):
    texts, counts = mini.rexval(tmp_path)
    mini.write_rexval(tmp_path, *damage(texts, counts))
    assert said in refused(capsys, tmp_path, *LIGHT)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t, c: (drop(t, "candidate_report"), c), "no candidate_report or prediction"),
        (
            lambda t, c: (t, drop(c, "eight")),
            "this is closest to RadEvalX, but another.csv has no column eight",
        ),
        (lambda t, c: (t, [{**c[0], "error_type": "grave"}, *c[1:]]), "error_type must be significant or"),
        (lambda t, c: (t, [{**c[0], "report_id": "x"}, *c[1:]]), "report_id x is neither a study_id"),
    ],
)
def test_damage_to_radevalx_is_told(damage, said, tmp_path, capsys):
    texts, counts = damage(*mini.radevalx(tmp_path))
    mini.write_csv(tmp_path / "any_name.csv", texts)
    mini.write_csv(tmp_path / "another.csv", counts)
    assert said in refused(capsys, tmp_path, *LIGHT)


def test_damage_to_the_others_is_told(tmp_path, capsys):
    path = tmp_path / "x.csv"
    rows = mini.expert(path)
    mini.write_csv(path, [{**row, **{f"annotation{i}": "none" for i in (1, 2, 3)}} for row in rows])
    assert "no annotation cell can be read" in refused(capsys, path, *LIGHT)
    mini.write_csv(path, drop(rows, "annotation2"))
    assert "closest to RadEvalExpertDataset, but x.csv has no column annotation2" in refused(
        capsys, path, *LIGHT
    )
    mini.rate_eval(path, ("gt", "pred", "opinion"))
    assert "x.csv, has no score or human_score or rating" in refused(
        capsys, path, *LIGHT, "--set", "rate-eval"
    )
    said = refused(capsys, path, *LIGHT)
    assert (
        "closest to RaTE-Eval, but x.csv has no column score or" in said
        and "it has gt, pred, opinion" in said
    )
    mini.write_csv(path, [{**row, "score": "good"} for row in mini.rate_eval(path)])
    assert "line 2: score must be a number, not good" in refused(capsys, path, *LIGHT)
    mini.own(path)
    assert "Give --rating NAME; other columns of x.csv are slips, overall_quality" in refused(
        capsys, path, *LIGHT
    )
    assert "no column 'errors'; other columns" in refused(capsys, path, *LIGHT, "--rating", "errors")
    mini.rate_eval(path)
    said = refused(capsys, path, *LIGHT, "--higher-is-better")
    assert "--rating and --higher-is-better are for a table of your own" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            b"a,b\n1,2\n",
            "not a set of ratings that is known by its columns; a.csv has the columns a, b",
        ),
        ("a.csv", b"", "there is not a single row"),
        ("a.csv", b"a,b\n\xff,2\n", "a.csv, line 2: not UTF-8"),
        ("a.csv", b"a,b\n1,2,3\n", "a.csv, line 2: 3 cells under 2 names"),
        ("a.csv", b'a,b\n1,"2\n', "not CSV"),
        ("a.csv", b"a,a\n1,2\n", "several columns 'a'"),
        ("a.jsonl", b"{\n", "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b"[1]\n", "a row must be a JSON object, found list"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.parquet", b"PAR1", "ratings are read from .csv, .json, .jsonl"),
    ],
)
def test_files_that_hold_no_ratings(name, content, said, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert said in refused(capsys, tmp_path / name, *LIGHT)


def test_places_that_hold_no_ratings(tmp_path, capsys):
    assert "no such file or folder" in refused(capsys, tmp_path / "absent", *LIGHT)
    assert "holds no file of ratings" in refused(capsys, tmp_path, *LIGHT)
    mini.rate_eval(tmp_path / "a.csv")
    mini.rate_eval(tmp_path / "b.csv")
    assert "a.csv and b.csv have the same columns" in refused(capsys, tmp_path, *LIGHT)


def test_mistakes_in_the_options(tmp_path, capsys):
    make("rate-eval", tmp_path)
    assert "did you mean rouge-l/coco?" in refused(capsys, tmp_path, "--metrics", "rouge-l/coc")
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    assert "does not hold an agreement" in refused(capsys, tmp_path, *LIGHT, "--out", other)
    assert "is what this command reads" in refused(capsys, tmp_path, *LIGHT, "--out", tmp_path / "task.jsonl")
    assert other.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "x"}, "no id is one of this set's, which are like '1', '30'"),
        ({"better": "more"}, "accepted are higher and lower"),
        ({"value": "good"}, "a value is a number, not 'good'"),
        ({"name": "rouge-l/coco"}, "a name has letters, digits"),
    ],
)
def test_a_mistake_in_the_values_of_others(change, said, tmp_path, capsys):
    make("rate-eval", tmp_path)
    rows = [{"id": "1", "name": "judge", "value": 1, "better": "higher", **change}]
    (folder := tmp_path / "more").mkdir()
    values = mini.write_csv(folder / "values.csv", rows)
    words = [tmp_path, *LIGHT, "--metrics", "rouge-l/coco", "--values", values]
    assert said in refused(capsys, *words)
    mini.write_csv(values, drop(rows, "better"))
    assert "has no better" in refused(capsys, *words)


def test_a_second_value_for_a_report_is_told(tmp_path, capsys):
    make("rate-eval", tmp_path)
    (tmp_path / "more").mkdir()
    row = {"id": "1", "name": "judge", "value": 1, "better": "higher"}
    for again, said in (
        (row, "has a second value of judge"),
        ({**row, "id": "2", "better": "lower"}, "is better"),
    ):
        values = mini.write_csv(tmp_path / "more" / "values.csv", [row, again])
        assert said in refused(capsys, tmp_path, *LIGHT, "--metrics", "rouge-l/coco", "--values", values)
