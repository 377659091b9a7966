"""`eval.score` as a whole: what is scored, what is counted, what is written, what is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest

import eval as eval_room
from eval import ScoreError, score
from eval.scores.inputs import POLICIES
from eval.scores.labels import LABELLER
from eval.scores.tables import with_interval
from eval.signature import Score, parse_signature, signature

NORMAL = "The lungs are clear. No pleural effusion or pneumothorax. Heart size is normal."
REPORTS = {
    "a": NORMAL,
    "b": "Small left pleural effusion. No pneumothorax. The heart is mildly enlarged.",
    "c": "Right lower lobe consolidation, possible pneumonia. No effusion.",
    "d": "Left PICC in place. Mild pulmonary edema. Moderate cardiomegaly.",
    "e": NORMAL.replace("clear", "well expanded and clear"),
    "f": "Nodule in the right upper lung. Old left rib fracture.",
}
MACRO, MICRO = "label-f1/14/macro-supported/neg", "label-f1/14/micro/neg"


def studies(**more):
    return [
        {"schema": 1, "study_id": k, "patient_id": f"p-{i // 2}", "findings": t, **more}
        for i, (k, t) in enumerate(REPORTS.items())
    ]


def predictions(reports=REPORTS):
    return [{"schema": 1, "study_id": k, "findings": t} for k, t in reports.items()]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def fast(p, r, **more):
    return score(p, r, **more)


@pytest.fixture(autouse=True)
def no_models(monkeypatch, tmp_path):
    monkeypatch.setenv("CXR_WEIGHTS", str(tmp_path / "no weights"))


def test_perfect_predictions():
    scores = fast(predictions(), studies())
    assert scores.n == 6 and scores.patients == 3 and not scores.problems
    for key in (MACRO, MICRO, "bleu-4/plain", "bleu-4/sacrebleu-13a", "rouge-l/coco", "label-f1/Edema/neg"):
        assert scores[key].value == pytest.approx(1), key
    assert scores["label-f1/14/macro-all/neg"].value < 1  # conditions that never occur count 0
    assert scores["label-f1/14/macro/neg"].value == 1 and scores["label-f1/14/macro/neg"].over == "8 of 14"
    assert scores["bleu-4/coco"].value == pytest.approx(1, abs=1e-6)
    assert all(
        s.low <= s.value + 1e-9 and s.value <= s.high + 1e-9 for s in scores.scores.values() if s.low == s.low
    )


def test_a_report_that_misses_and_invents():
    said = {**REPORTS, "b": NORMAL, "a": "Large right pneumothorax."}
    scores = fast(predictions(said), studies())
    by_id = {s["study_id"]: s for s in scores.studies}
    assert by_id["b"]["missed"] == ["Cardiomegaly", "Pleural Effusion"] and by_id["b"]["invented"] == [
        "No Finding"
    ]
    assert by_id["a"]["invented"] == ["Pneumothorax"] and by_id["a"]["missed"] == ["No Finding"]
    assert by_id["c"]["missed"] == by_id["c"]["invented"] == []
    assert 0 < scores[MICRO].value < 1
    row = next(r for r in scores.conditions["label-f1"]["neg"] if r["condition"] == "Cardiomegaly")
    assert (row["support"], row["predicted"], row["precision"], row["recall"]) == (2, 1, 1.0, 0.5)


def test_both_uncertainty_policies():
    said = {**REPORTS, "c": "Right lower lobe consolidation. No effusion."}
    scores = fast(predictions(said), studies())
    # uncertain in the reference: absent, and so it is on neither side
    assert np.isnan(scores["label-f1/Pneumonia/neg"].value)
    by = {
        u: next(r for r in scores.conditions["label-f1"][u] if r["condition"] == "Pneumonia")
        for u in ("neg", "pos")
    }
    assert by["neg"]["support"] == 0 and by["pos"]["support"] == 1 and by["pos"]["recall"] == 0


def test_order_and_files_do_not_matter(tmp_path):
    listed = fast(predictions()[::-1], studies())
    filed = fast(write(tmp_path / "p.jsonl", predictions()), str(write(tmp_path / "r.jsonl", studies())))
    assert listed.to_json() == filed.to_json()


def test_odd_input_is_counted_listed_and_treated():
    given = [
        {"study_id": "a", "findings": NORMAL},
        {"study_id": "a", "findings": "Large effusion."},
        {"study_id": "b", "error": {"code": "truncated", "message": "cut off"}},
        {"study_id": "c", "findings": float("nan")},
        {"study_id": "d", "findings": " None "},
        {"study_id": "e", "findings": "  \n"},
        {"study_id": "nobody", "findings": NORMAL},
    ]
    references = [
        *studies(),
        dict(studies()[0], findings="Other."),
        {"study_id": "g", "findings": "nan"},
        {"study_id": "h"},
    ]
    scores = fast(given, references)
    assert scores.problems == {
        "duplicate prediction": ["a"],
        "failed prediction": ["b"],
        "empty prediction": ["c", "e"],
        "placeholder prediction": ["d"],
        "no prediction": ["f"],
        "duplicate reference": ["a"],
        "reference without findings": ["g", "h"],
        "prediction without reference": ["nobody"],
    }
    assert set(scores.problems) <= set(POLICIES)
    assert scores.n == 6  # a miss is a miss, not a study less
    by_id = {s["study_id"]: s for s in scores.studies}
    assert by_id["a"]["missed"] == [] and by_id["e"]["missed"] == [
        "No Finding"
    ]  # no words earn no "No Finding"
    text = str(scores)
    assert all(kind in text for kind in scores.problems)


def test_leaving_studies_out_never_pays():
    everything = fast(predictions(), studies())
    for k in REPORTS:
        fewer = fast([p for p in predictions() if p["study_id"] != k], studies())
        for key in (MICRO, "bleu-4/coco", "rouge-l/coco", "meteor/plain"):
            assert fewer[key].value < everything[key].value, (k, key)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a single prediction"),
        (b"\n\n", "not a single prediction"),
        (b'{"study_id": "a"}\n{"study_id": ', r"p\.jsonl, line 2: not JSON"),
        (b'{"study_id": "a", "findings": "caf\xe9"}\n', r"p\.jsonl, line 1: not UTF-8"),
        (b'["a"]\n', "must be a JSON object, found list"),
        (b'{"findings": "x"}\n', "the predictions have no ids, and the references have"),
        (b'{"study_id": "zz", "findings": "x"}\n', "the study ids do not meet"),
    ],
)
def test_bad_files_are_refused_with_place_and_reason(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(ScoreError, match=message):
        fast(path, studies())


def test_other_refusals(tmp_path):
    with pytest.raises(ScoreError, match="no such file"):
        fast(tmp_path / "absent.jsonl", studies())
    with pytest.raises(ScoreError, match="no reference has findings"):
        fast(predictions(), [{"study_id": "a"}, {"study_id": "b", "findings": "None"}])
    with pytest.raises(ScoreError, match="accepted are 'text' and 'study'"):
        fast(predictions(), studies(), reference_labels="image")
    with pytest.raises(ScoreError, match="no lexical profile 'bleu'"):
        fast(predictions(), studies(), profiles=("bleu",))
    with pytest.raises(ScoreError, match="groups name no patient for 5 studies"):
        fast(predictions(), studies(), groups={"a": 1})
    with pytest.raises(ScoreError, match="study 'a': its labels cannot be used: 'Efusion'"):
        fast(predictions(), studies(labels={"Efusion": 1}), reference_labels="study")
    with pytest.raises(ScoreError, match="no such directory of baselines"):
        fast(predictions(), studies(), floors=tmp_path / "floors")
    with pytest.raises(KeyError, match=r"no score 'bleu'; did you mean bleu-1/coco or "):
        fast(predictions(), studies())["bleu"]


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(p) for p in predictions()).encode())
    assert not fast(path, studies()).problems


def test_reference_labels_from_the_study_or_its_text():
    labels = {"Pneumothorax": 1, "Edema": None}
    by_text = fast(predictions(), studies(labels=labels))
    by_study = fast(predictions(), studies(labels=labels), reference_labels="study")
    some = [dict(s, labels=labels) if s["study_id"] == "a" else s for s in studies()]
    mixed = fast(predictions(), some, reference_labels="study")
    sources = [parse_signature(s[MICRO].signature)[1]["ref"] for s in (by_text, by_study, mixed)]
    assert sources == ["text", "study", "mixed"]
    assert by_text[MICRO].value == 1 and by_study[MICRO].value == 0
    assert by_text.labeller_check["n"] == 6 and by_text.labeller_check["micro_f1"] == 0
    assert not fast(predictions(), studies()).labeller_check


def test_groups_widen_the_interval():
    said = {k: (t if k in "ab" else NORMAL) for k, t in REPORTS.items()}
    many = [(f"{k}{i}", t, said[k]) for i in range(20) for k, t in REPORTS.items()]
    refs = [{"study_id": k, "findings": t} for k, t, _ in many]
    hyps = [{"study_id": k, "findings": t} for k, _, t in many]
    patient = {k: f"{k[0]}{int(k[1:]) % 2}" for k, _, _ in many}
    alone = score(hyps, refs)["rouge-l/coco"]
    grouped = score(hyps, refs, groups=patient)["rouge-l/coco"]
    listed = score(hyps, refs, groups=list(patient.values()))["rouge-l/coco"]
    assert alone.value == pytest.approx(grouped.value)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert (listed.low, listed.high) == (grouped.low, grouped.high)


def test_floors_from_a_directory(tmp_path):
    reports = list(REPORTS.values())
    write(
        tmp_path / "shuffled.jsonl", predictions(dict(zip(REPORTS, reports[2:] + reports[:2], strict=True)))
    )
    scores = fast(predictions(), studies(), floors=tmp_path)
    floors = {f.name: f for f in scores.floors}
    assert set(floors) == {"constant report (references)", "shuffled images"}
    assert all(f.scores[MICRO].value < scores[MICRO].value for f in scores.floors)
    missing = {m.name: m for m in scores.not_computed}
    assert "blank.jsonl" in missing["blank images"].reason and "--floors" in missing["blank images"].command
    assert "shuffled images" not in missing


def test_floors_given_and_from_training():
    training = [
        {"study_id": f"t{i}", "findings": t, "indication": "cough" if "clear" in t else "fever"}
        for i, t in enumerate([NORMAL, NORMAL, "Right lower lobe consolidation."])
    ]
    nearest = predictions(dict.fromkeys(list(REPORTS)[:5], NORMAL))
    scores = fast(
        predictions(),
        studies(indication="fever"),
        training=training,
        floors={"nearest": nearest},
    )
    floors = {f.name: f for f in scores.floors}
    assert set(floors) == {
        "constant report (training)", "nearest neighbour (indication)", "nearest neighbour (image)"
    }  # fmt: skip
    assert "1 of 6 empty or missing" in floors["nearest neighbour (image)"].how
    assert {m.name for m in scores.not_computed} >= {"shuffled images", "blank images"}
    told = floors["nearest neighbour (indication)"].scores
    assert told["label-f1/14/micro/neg"].value < floors["constant report (training)"].scores[MICRO].value


def test_training_studies_that_would_give_the_answer_are_left_out():
    own = [dict(s, indication="fever") for s in studies()]
    patient = {**own[1], "study_id": "earlier study of a scored patient"}
    held_out = {"study_id": "h", "split": "test", "indication": "fever", "findings": "Held out."}
    with pytest.raises(ScoreError, match="no training study is left"):
        fast(predictions(), own, training=[*own, patient, held_out])
    good = {"study_id": "t", "split": "train", "indication": "cough", "findings": NORMAL}
    scores = fast(predictions(), own, training=[*own, patient, held_out, good])
    floors = {f.name: f.scores[MICRO].value for f in scores.floors}
    assert floors["nearest neighbour (indication)"] == floors["constant report (training)"] < 1


def test_missing_is_missing_in_every_spelling():
    """NaN of a data frame is no patient, no label, no indication and no prior."""
    nan = float("nan")
    odd = [
        {**s, "patient_id": nan, "labels": {"Edema": nan}, "indication": nan, "prior": nan} for s in studies()
    ]
    training = [{"study_id": "t", "indication": nan, "split": "Train", "findings": NORMAL}]
    scores = fast(predictions(), odd, training=training)
    assert scores.patients == 6 and "6 of them name no patient" in str(scores)
    assert scores["hallucinated-prior/reports"].value == 6
    missing = {m.name: m.reason for m in scores.not_computed}
    assert "nearest neighbour (indication)" in missing
    told = [
        {"study_id": "t", "indication": "cough", "findings": "Told."},
        {"study_id": "u", "findings": NORMAL},
    ]
    assert (
        "no scored study"
        in {m.name: m.reason for m in fast(predictions(), odd, training=told).not_computed}[
            "nearest neighbour (indication)"
        ]
    )
    some = [{**s, "indication": "cough" if i < 2 else ""} for i, s in enumerate(studies())]
    how = {f.name: f.how for f in fast(predictions(), some, training=told).floors}
    assert "4 of 6 without an indication" in how["nearest neighbour (indication)"]


def test_labels_of_another_kind_only_matter_where_they_are_asked_for():
    odd = [{**studies()[0], "labels": {"Airspace": 1}}, {**studies()[1], "labels": {"Cardiomegaly": 1}}]
    assert fast(predictions(), odd).labeller_check["unusable"] == 1
    with pytest.raises(ScoreError, match="'Airspace'"):
        fast(predictions(), odd, reference_labels="study")


def test_subgroups_are_scored_as_the_whole_is():
    people = [dict(s, sex="F" if i < 3 else "M", age=30 + i) for i, s in enumerate(studies())]
    scores = fast(predictions({**REPORTS, "b": NORMAL}), people)
    groups = {(g.attribute, g.value): g for g in scores.subgroups}
    assert set(groups) == {("sex", "F"), ("sex", "M")}  # all are of one age band, and that is the whole
    women = groups["sex", "F"]
    assert women.n == 3 and women.patients == 2
    alone = fast(predictions({**REPORTS, "b": NORMAL}), people[:3])
    for key, found in alone.scores.items():
        assert women.scores[key].value == pytest.approx(found.value, nan_ok=True), key
        assert (women.scores[key].low, women.scores[key].high) == pytest.approx(
            (found.low, found.high), nan_ok=True
        )


def test_worst_studies_come_first():
    said = {**REPORTS, "b": NORMAL, "a": "Large right pneumothorax.", "f": "No fracture."}
    scores = fast(predictions(said), studies())
    worst = [s["study_id"] for s in scores.worst(3)]
    assert set(worst[:2]) == {"b", "f"} and worst[2] == "a"  # two missed and one invented; one and one


def test_what_is_missing_is_said_with_its_command():
    scores = fast(predictions(), studies())
    missing = {m.name: m for m in scores.not_computed}
    assert set(missing) == {
        "CheXbert F1", "CheXbert vector", "RadGraph F1 (radgraph)", "RadGraph F1 (radgraph-xl)", "BERTScore",
        "RadCliQ v0, v1", "shuffled images", "blank images", "nearest neighbour (image)",
        "nearest neighbour (indication)",
    }  # fmt: skip
    assert all(m.reason and m.command.startswith("cxr ") for m in missing.values())
    assert not any("chexbert" in key.lower() for key in scores.scores)
    assert "chexbert" not in " ".join(s.signature for s in scores.scores.values()).lower()


def test_json_and_saving(tmp_path):
    scores = fast(predictions(), studies())
    path = scores.save(tmp_path / "new" / "scores.json")
    written = json.loads(path.read_text())
    assert written["schema"] == 1 and written["n"] == 6 and written["patients"] == 3
    first = written["scores"][0]
    assert set(first) == {
        "name", "value", "interval", "n", "signature", "title", "better", "headline", "over",
    }  # fmt: skip
    assert (first["title"], first["better"], first["over"]) == ("F1-14 macro", "higher", "8 of 14")
    assert written["settings"]["interval"] == "none: fewer than 5 patients" and first["interval"] == [
        None,
        None,
    ]
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert not any(text in path.read_text() for text in REPORTS.values())  # numbers and ids, no report text
    scores.save(path)  # its own earlier output may be replaced
    other = tmp_path / "notes.json"
    other.write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match="holds no scores"):
        scores.save(other)
    assert other.read_text() == '{"mine": 1}'
    scores.save(other, overwrite=True)


def test_repeatable():
    assert fast(predictions(), studies()).to_json() == fast(predictions(), studies()).to_json()


def test_every_number_has_a_signature_of_its_own():
    scores = score(predictions(), studies(), min_support=2)
    signatures = [s.signature for s in scores.scores.values()]
    assert len(set(signatures)) == len(signatures)
    assert scores["label-f1/14/macro/neg"].signature == (
        f"label-f1|labeller:{LABELLER}|n:14|avg:macro|support:either|unc:neg|ref:text"
    )
    for key in ("meteor/coco", "meteor/plain"):
        assert "wordnet:none" in scores[key].signature and "tool:nltk-" in scores[key].signature


def test_signature_refuses_what_would_break_it():
    with pytest.raises(ValueError, match="bar or white space"):
        signature("f1", condition="Lung Lesion")
    assert signature("f1", a_b=1, c=None) == "f1|a-b:1"


def test_table_escapes_nothing_and_loses_nothing():
    said = [*predictions(), {"study_id": "[red]x[/red]", "findings": "x"}]
    text = str(fast(said, studies()))
    assert "[red]x[/red]" in text and "not CheXbert" in text and "no intervals: fewer than 5 patients" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ((0.4, 0.30, 0.5), "0.400 [.300 .500]"),
        ((27.75, 10.5, 30.668), "27.750 [10.500 30.668]"),
        ((-0.2, -0.5, 0.0), "-0.200 [-.500 .000]"),
        ((float("nan"), 0, 0), "-"),
    ],
)
def test_numbers_as_shown(numbers, shown):
    assert with_interval(Score("x", *numbers, 5, "x")) == shown


def test_the_room_needs_no_torch_at_import_nor_to_score_without_models(tmp_path):
    write(tmp_path / "p.jsonl", [{**p, "reference": NORMAL} for p in predictions()])
    heavy = "{'torch', 'transformers', 'sklearn', 'nltk', 'matplotlib', 'rich', 'scipy'}"
    code = f"""
import sys, eval, eval.report, eval.baselines
print(*sorted({heavy} & set(sys.modules)))
from cxr.cli.main import main
assert main(['score', {str(tmp_path / "p.jsonl")!r}, '--clinical', 'none', '--json']) == 0
print('torch' in sys.modules)
"""
    root = next(iter(eval_room.__path__)) + "/.."
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("", "False")


def test_what_the_readme_says_of_a_score():
    """value, interval, n, signature; and a metric that is printed says which one it is."""
    found = score(predictions(), studies())["rouge-l/coco"]
    assert found.to_json()["interval"] == [None, None]
    assert found.n == len(studies()) and found.signature
    assert repr(eval_room.metric("rouge-l/coco")) == "metric('rouge-l/coco')"


GERMAN = "Kein Pleuraerguss. Herz nicht vergrößert. Verschattung im linken Unterfeld."
MRI = "MRI of the abdomen. The liver shows no focal lesion. Both kidneys are of normal size."


def test_texts_that_are_not_judged_are_counted_and_never_no_finding():
    """A German or abdominal report is no healthy chest, on either side."""
    references = [*studies(), {"study_id": "g", "findings": GERMAN}, {"study_id": "m", "findings": MRI}]
    said = [*predictions(), {"study_id": "g", "findings": NORMAL}, {"study_id": "m", "findings": MRI}]
    with_them, without = fast(said, references), fast(predictions(), studies())
    assert with_them.problems["reference that is not judged"] == ["g", "m"]
    assert with_them.problems["prediction that is not judged"] == ["m"]
    for key, score_ in without.scores.items():
        if key.startswith("label-f1/"):
            assert with_them[key].value == pytest.approx(score_.value, nan_ok=True), key
    assert with_them["label-f1/14/example/neg"].n == 6
    # as predictions they miss everything
    wrong = fast([{"study_id": k, "findings": GERMAN} for k in REPORTS], studies())
    assert wrong["label-f1/14/micro/neg"].value == 0 and "prediction that is not judged" in str(wrong)
