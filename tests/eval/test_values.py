"""Values of other tools and people beside our scores: intervals by patient, baselines, paired tests, refusals."""

import json

import numpy as np
import pytest

from cxr.cli.main import main
from eval import ScoreError, score
from eval.scores.values import read_values

IDS = [f"s{i}" for i in range(24)]
TEXTS = ["The lungs are clear.", "Small left effusion.", "Rib fracture."]
STUDIES = [
    {"study_id": k, "patient_id": f"p{i // 2}", "sex": "FM"[i % 4 > 1], "findings": TEXTS[i % 3]}
    for i, k in enumerate(IDS)
]
PREDICTIONS = [{"study_id": k, "findings": TEXTS[i % 2]} for i, k in enumerate(IDS)]


def rows(name="GREEN", better="higher", system="", shift=0.0, ids=IDS):
    return [
        {"study_id": k, "name": name, "value": i / 24 + shift, "better": better, "system": system}
        for i, k in enumerate(ids)
    ]


def scored(values, **more):
    return score(PREDICTIONS, STUDIES, values=values, clinical_models="none", **more)


def test_a_column_of_others_is_a_score_like_ours():
    found = scored([*rows(), *rows("rated errors", "lower", ids=IDS[:12])])
    green, errors = found["value/GREEN"], found["value/rated errors"]
    assert green.value == pytest.approx(np.mean(np.arange(24) / 24)) and green.low < green.value < green.high
    assert (green.n, green.over, green.better) == (24, "", "higher") and green.headline
    # by patient: pairs of neighbours vary less within than between, so the interval is wider than by study
    alone = score(
        PREDICTIONS, [{**s, "patient_id": s["study_id"]} for s in STUDIES], values=rows(),
        clinical_models="none",
    )["value/GREEN"]  # fmt: skip
    assert green.high - green.low > 1.1 * (alone.high - alone.low)
    # a study without a value is left out, and the number says so
    assert (errors.n, errors.over, errors.better) == (12, "12 of 24", "lower")
    assert "file:sha256:" in errors.signature and "of:rated~errors" in errors.signature
    assert "GREEN" in str(found) and "rated errors (lower is better)" in str(found)
    assert {g.value: g.scores["value/GREEN"].n for g in found.subgroups if g.attribute == "sex"} == {
        "F": 12,
        "M": 12,
    }


def test_other_systems_have_values_too():
    values = [*rows(), *rows(system="worse.jsonl", shift=-0.5), *rows(system="shuffled images", shift=-0.9)]
    shuffled = [{"study_id": k, "findings": "Clear."} for k in IDS]
    found = scored(
        values, compare={"worse.jsonl": shuffled, "none.jsonl": PREDICTIONS}, floors={"shuffled": shuffled}
    )
    first, second = found.comparisons
    gap = {d.name: d for d in first.differences}["value/GREEN"]
    assert gap.difference == pytest.approx(0.5) and gap.p < 0.01 and gap.p_holm >= gap.p
    assert "value/GREEN" not in {d.name for d in second.differences}
    (floor,) = (f for f in found.floors if f.name == "shuffled images")
    assert floor.scores["value/GREEN"].value == pytest.approx(found["value/GREEN"].value - 0.9)
    # p is adjusted over all scores of both systems: by hand
    every = sorted(d.p for c in found.comparisons for d in c.differences if d.p == d.p)
    least = min(d.p_holm for c in found.comparisons for d in c.differences if d.p == d.p)
    assert least == pytest.approx(min(1.0, every[0] * len(every)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"value": "high"}, "value 0: a value is a number, not 'high'"),
        ({"value": float("nan")}, "no 'value'"),
        ({"value": True}, "a value is a number"),
        ({"better": "more"}, "better is 'more'; accepted are higher and lower"),
        (
            {"better": None},
            "no 'better'; there are study_id, name, value; needed are study_id, name, value, better",
        ),
        ({"name": "a|b"}, "a name has letters, digits"),
        ({"study_id": None}, "no 'study_id'"),
    ],
)
def test_what_is_no_value_is_refused(row, message):
    with pytest.raises(ScoreError, match=message.replace("|", r"\|")):
        read_values([{"study_id": "a", "name": "GREEN", "value": 1, "better": "higher", **row}])


def test_contradictions_are_refused():
    with pytest.raises(ScoreError, match="study 's0' has a second value of GREEN"):
        read_values([*rows(), *rows(ids=["s0"])])
    with pytest.raises(ScoreError, match="GREEN is better when lower here, and higher in an earlier line"):
        read_values([*rows(), *rows(better="lower", system="x")])
    with pytest.raises(ScoreError, match="no system is called 'shufled'"):
        scored([*rows(), *rows(system="shufled")])
    with pytest.raises(ScoreError, match="'q' has them for other studies"):
        scored([*rows(), *rows(system="q", ids=IDS[2:])], compare={"q": PREDICTIONS})


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXR_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    for name, content in (("p", PREDICTIONS), ("q", PREDICTIONS[::-1]), ("r", STUDIES)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    lines = ["study_id,name,value,better", *(f"{r['study_id']},GREEN,{r['value']},higher" for r in rows())]
    (tmp_path / "v.csv").write_text("\n".join(lines))
    command = [
        "score",
        "p.jsonl",
        "r.jsonl",
        "--compare",
        "q.jsonl",
        "p.jsonl",
        "--values",
        "v.csv",
    ]
    more = ["--worst", "1", "--html", "x.html", "--rexrank", "row.json", "--out", "s.json"]
    assert main([*command, *more]) == 0
    shown = capsys.readouterr().out
    assert "Against q.jsonl, in pairs" in shown and "Against p.jsonl, in pairs" in shown and "GREEN" in shown
    page = (tmp_path / "x.html").read_text()
    assert "The study with most errors" in page
    row = json.loads((tmp_path / "row.json").read_text())
    found = {s["name"]: s["value"] for s in json.loads((tmp_path / "s.json").read_text())["scores"]}
    assert (
        row["BLEU"] == found["bleu-2/rexrank"] and row["RadCliQ-v1"] is None and row["1/RadCliQ-v1"] is None
    )
    assert row["not_computed"] == ["BertScore", "SembScore", "RadGraph", "RadCliQ-v1"] and row["why"]
    assert main([*command, *more]) == 0  # its own files are replaced
    capsys.readouterr()
    assert main([*command, "--rexrank", "p.jsonl"]) == 2
    assert main([*command, "--rexrank", "y.json", "--out", "y.json"]) == 2
    assert "would be written by --" in capsys.readouterr().err


def test_missing_predictions_stand_on_top(tmp_path):
    found = score(PREDICTIONS[:8], STUDIES, intervals=False, clinical_models="none")
    top = "\n".join(str(found).splitlines()[:6])
    assert "16 of 24 studies got no report, and are scored as empty: 16 no prediction" in top
    assert "16 of 24 studies got no report" in found._repr_html_()


def test_r2gens_profile_is_there_when_asked_for():
    found = score(PREDICTIONS, STUDIES, profiles=["coco", "r2gen-mimic"], clinical_models="none")
    assert {"r2gen/mimic/cider", "r2gen/mimic/rouge-2", "bleu-4/coco"} <= found.scores.keys()
    assert "rouge-l/plain" not in found.scores and "METEOR 1.5" in {m.name for m in found.not_computed}
    assert "R2Gen's profile" in str(found)
    assert "METEOR 1.5" not in {
        m.name for m in score(PREDICTIONS, STUDIES, clinical_models="none").not_computed
    }


def test_values_of_no_scored_study_are_refused():
    with pytest.raises(
        ScoreError, match=r"values of GREEN: none is of a study that is scored \(they name 'zzz'"
    ):
        scored(rows(ids=["zzz"]))
    assert scored([{**r, "study_id": f" {r['study_id']} "} for r in rows()])["value/GREEN"].n == 24
    for huge in (10**400, 1e308):
        with pytest.raises(ScoreError, match="a value is a number"):
            read_values([{"study_id": "a", "name": "x", "value": huge, "better": "higher"}])


def test_a_profile_named_twice_is_one():
    assert (
        score(PREDICTIONS, STUDIES, profiles=["coco", "coco"], clinical_models="none")["bleu-1/coco"].n == 24
    )


def test_values_of_no_study_are_said_and_a_subgroup_counts_its_own_studies():
    ids = [str(i) for i in range(24)]
    studies = [{"study_id": i, "findings": "No effusion.", "sex": "F" if int(i) < 12 else "M"} for i in ids]
    said = [{"study_id": i, "findings": "No effusion."} for i in ids]
    values = [
        {"study_id": i, "name": "GREEN", "value": 0.5, "better": "higher"} for i in [*ids[:5], "elsewhere"]
    ]
    scores = score(said, studies, values=values, clinical_models="none")
    assert scores.problems["value without study"] == ["elsewhere"]
    assert scores["value/GREEN"].over == "5 of 24"
    (women,) = [g for g in scores.subgroups if g.value == "F"]
    assert women.scores["value/GREEN"].over == "5 of 12"


def test_the_signature_does_not_depend_on_the_order_of_rows():
    assert read_values(rows()).digest == read_values(rows()[::-1]).digest
    assert read_values(rows()).digest != read_values(rows(shift=0.1)).digest
