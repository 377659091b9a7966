"""`cxr score --section`: impressions, or findings and impression together, in place of findings.

The oracle is the scoring of findings: files whose findings are the text in question must get the same numbers.
"""

import json

import pytest

import eval as eval_room
from cxr.cli.main import main
from eval.baselines import as_predictions, nearest_by_features
from eval.scores.inputs import POLICIES, SECTIONS
from eval.scores.readers import ScoreError
from eval.signature import parse_signature
from tests.eval.test_bad_input import lines
from vlm import prompts

IMPRESSIONS = {
    "a": "No acute cardiopulmonary process.",
    "b": "Small left pleural effusion, unchanged",  # without a full stop, on purpose
    "c": "1. Right lower lobe pneumonia. 2. No effusion.",
    "d": "Mild pulmonary edema with cardiomegaly.",
}
FINDINGS = {
    "a": "The lungs are clear. No pleural effusion or pneumothorax.",
    "b": "The left costophrenic angle is blunted. No pneumothorax.",
    "c": "There is consolidation in the right lower lobe. The heart is normal",
    "d": "Moderate cardiomegaly. Kerley lines. A left pacemaker is in place.",
}
TRAINING = [
    ("t1", "Cough.", "The lungs are clear.", "Normal chest."),
    ("t2", "Fever.", "Consolidation in the left lung.", "Left pneumonia."),
    ("t3", "Dyspnoea.", "Large heart and effusions.", "Heart failure."),
    ("t4", "Dyspnoea.", "Large heart and effusions.", None),  # has no impression, and so no part in it
]
NAMES = list(IMPRESSIONS)


@pytest.fixture(autouse=True)
def no_models(monkeypatch, tmp_path):
    monkeypatch.setenv("CXR_WEIGHTS", str(tmp_path / "no weights"))


def study(key, **texts):
    about = {"patient_id": f"p{key in 'ab'}", "sex": "F" if key in "ac" else "M", "split": "test"}
    images = [{"path": f"{key}.png", "view": "PA"}]
    return {"study_id": key, "indication": "Fever.", "images": images, **about, **texts}


def turned(texts, by):
    """Everybody gets the text of the study `by` places further on."""
    return dict(zip(texts, [*list(texts.values())[by:], *list(texts.values())[:by]], strict=True))


def score(folder, section, **files):
    """`cxr score --section` of the records of every file -> what --out says, and the page."""
    folder.mkdir()
    (folder / "floors").mkdir()
    for name, records in files.items():
        (folder / f"{name.replace('__', '/')}.jsonl").write_bytes(lines(*records))
    command = ["score", str(folder / "said.jsonl"), str(folder / "studies.jsonl"), "--split", "test"]
    command += ["--compare", str(folder / "others.jsonl"), "--floors", str(folder / "floors")]
    command += ["--training", str(folder / "training.jsonl")]
    command += ["--out", str(folder / "s.json"), "--html", str(folder / "page.html")]
    assert main([*command, "--section", section] if section else command) == 0
    return json.loads((folder / "s.json").read_text()), (folder / "page.html").read_text()


def all_files(text_of):
    """The files of a scoring; `text_of(findings, impression)` are the fields of every record."""
    both = lambda by=0: (  # noqa: E731
        {"study_id": k, **text_of(turned(FINDINGS, by)[k], turned(IMPRESSIONS, by)[k])} for k in NAMES
    )
    words = {**IMPRESSIONS, "d": "Right effusion.", "b": ""}
    return {
        "said": [{"study_id": k, **text_of(FINDINGS[k], words[k])} for k in NAMES[::-1]],
        "studies": [study(k, **text_of(FINDINGS[k], IMPRESSIONS[k])) for k in NAMES]
        + [study("z", **text_of("Nothing but findings.", None))],
        "others": both(1),
        "floors__shuffled": both(2),
        "floors__blank": both(3),
        "floors__nearest": both(1),
        "training": [
            {"study_id": k, "indication": asked, **text_of(*texts)} for k, asked, *texts in TRAINING
        ],
    }


def without_signatures(found, kinds=("findings", "impression")):
    """Signatures are looked at apart, and so is what names the section."""
    text = json.dumps({**found, "settings": {**found["settings"], "section": ""}})
    found = json.loads(text.replace(f"reference without {kinds[1]}", f"reference without {kinds[0]}"))

    def drop(value):
        if isinstance(value, dict):
            return {k: drop(v) for k, v in value.items() if k != "signature"}
        return [drop(v) for v in value] if isinstance(value, list) else value

    return drop(found)


def signatures(found):
    every = [found["scores"], found["comparisons"][0]["scores"]]
    every += [group["scores"] for group in [*found["floors"], *found["subgroups"]]]
    return [s["signature"] for scores in every for s in scores]


def test_impressions_score_as_findings_of_the_same_words_do(tmp_path, capsys):
    found, page = score(
        tmp_path / "i", "impression", **all_files(lambda f, i: {"findings": f, "impression": i})
    )
    shown = capsys.readouterr().out
    copied, other = score(tmp_path / "f", None, **all_files(lambda _, i: {"findings": i, "impression": "x"}))
    assert without_signatures(found) == without_signatures(copied)
    assert found["n"] == 4 and found["settings"]["section"] == "impression"
    assert found["inputs"]["reference without impression"]["study_ids"] == ["z"]
    assert copied["settings"]["section"] == "findings"
    assert {f["name"] for f in found["floors"]} == {
        "constant report (training)", "nearest neighbour (indication)", "nearest neighbour (image)", "shuffled images",
        "blank images",
    }  # fmt: skip
    assert len(found["subgroups"]) == 2 and found["comparisons"][0]["differences"]
    said, plain = signatures(found), signatures(copied)
    assert said == [f"{s}|section:impression" for s in plain] and len(said) > 400
    assert "scored: impression" in shown and "Scored: impression." in page and "Scored: findings." in other
    assert "costophrenic" not in page and "effusion, unchanged" in page  # the text that was scored is shown
    direct, _ = score(tmp_path / "d", "findings", **all_files(lambda f, i: {"findings": f, "impression": i}))
    assert direct["scores"][0]["value"] != found["scores"][0]["value"]  # else the test would prove nothing


def test_both_are_joined_by_an_empty_line(tmp_path, capsys):
    found, page = score(tmp_path / "b", "both", **all_files(lambda f, i: {"findings": f, "impression": i}))
    shown = " ".join(capsys.readouterr().out.split())
    join = lambda f, i: {"findings": None if i is None else f"{f}\n\n{i}"}  # noqa: E731
    copied, _ = score(tmp_path / "f", "findings", **all_files(join))
    inputs = found.pop("inputs")
    copied.pop("inputs")
    assert without_signatures(found) == without_signatures(copied)
    assert inputs == {
        kind: {"count": 1, "policy": POLICIES[kind], "study_ids": [key]}
        for kind, key in (("reference with findings alone", "z"), ("prediction with findings alone", "b"))
    }
    for kind in inputs:
        assert kind in shown and kind in page and "joined by an empty line" in POLICIES[kind]
    assert "an empty line between them" in shown and "an empty line between them" in page
    wanted = {"section": "both", "join": "empty-line", "lone-ref": "left-out"}
    assert all(wanted.items() <= parse_signature(s)[1].items() for s in signatures(found))


def test_no_sentence_runs_over_the_join():
    """Joined by a space or a line break this would be a denied pneumonia; and no heading is a free match."""
    texts = {"findings": "No focal opacity", "impression": "Pneumonia"}
    scores = eval_room.score([{"study_id": "a", **texts}], [{"study_id": "a", **texts}], section="both")
    assert scores["label-f1/Pneumonia/neg"].value == 1
    assert list(scores.texts["a"]) == ["No focal opacity\n\nPneumonia"] * 2
    assert scores["words/generated"].value == 4


def test_what_both_lack_is_counted_by_kind():
    refs = [{"study_id": k, "findings": FINDINGS["a"], "impression": IMPRESSIONS["a"]} for k in "abcdefg"]
    refs += [{"study_id": "h", "impression": "Clear."}, {"study_id": "i", "findings": "None"}]
    hyps = [
        {"study_id": "a", "findings": FINDINGS["a"], "impression": IMPRESSIONS["a"]},
        {"study_id": "b", "findings": "None", "impression": IMPRESSIONS["b"]},
        {"study_id": "c", "findings": FINDINGS["c"], "impression": ["Clear."]},
        {"study_id": "d", "findings": "null", "impression": ""},
        {"study_id": "e", "findings": "", "impression": " "},
        {"study_id": "f", "error": {"code": "truncated", "message": "cut off"}},
    ]
    scores = eval_room.score(hyps, refs, section="both", floors={"blank": hyps})
    assert scores.n == 7
    assert scores.problems == {
        "prediction with impression alone": ["b"],
        "prediction with findings alone": ["c"],
        "placeholder prediction": ["d"],
        "empty prediction": ["e"],
        "failed prediction": ["f"],
        "no prediction": ["g"],
        "reference with impression alone": ["h"],
        "reference without findings and impression": ["i"],
    }
    assert set(scores.problems) <= set(POLICIES)
    (how,) = (f.how for f in scores.floors if f.name == "blank images")
    assert "4 of 7 empty or missing" in how and "2 of 7 with one section alone" in how


def test_a_section_nobody_wrote_is_scored_where_others_were_written():
    """A model of both that never came to its impression: a miss of each, in predictions and in floors."""
    refs = [study(k, findings=FINDINGS[k], impression=IMPRESSIONS[k]) for k in NAMES]
    cut_off = [{"study_id": k, "findings": FINDINGS[k], "impression": ""} for k in NAMES]
    scores = eval_room.score(cut_off, refs, section="impression", floors={"blank": cut_off})
    assert scores.problems == {"empty prediction": NAMES} and scores["label-f1/14/micro/neg"].value == 0
    assert "4 of 4 empty or missing" in next(f.how for f in scores.floors if f.name == "blank images")


def test_sections_are_the_models(tmp_path):
    assert tuple(SECTIONS) == prompts.SECTIONS
    assert all(section.fields == prompts.fields_of(name) for name, section in SECTIONS.items())
    with pytest.raises(ScoreError, match="section is 'conclusion'; accepted are findings, impression, both"):
        eval_room.score(
            [{"study_id": "a", "findings": "x"}], [study("a", findings="x")], section="conclusion"
        )


def test_floors_and_rewards_of_impressions_in_python():
    refs = [study(k, impression=IMPRESSIONS[k]) for k in NAMES]
    given = as_predictions(
        NAMES, nearest_by_features([[1.0, 0.0]] * 4, [[1.0, 0.1]], ["Edema."]), "impression"
    )
    said = as_predictions(NAMES, list(IMPRESSIONS.values()), "impression")
    scores = eval_room.score(said, refs, section="impression", floors={"nearest": given})
    floor = next(f for f in scores.floors if f.name == "nearest neighbour (image)")
    assert scores["label-f1/14/micro/neg"].value == 1 > floor.scores["label-f1/14/micro/neg"].value > 0
    reward = eval_room.metric("rouge-l/coco", column="impression")
    completions = ["Edema."] * 4
    assert reward(
        completions=completions, impression=list(IMPRESSIONS.values()), findings=completions
    ) == list(reward.per_sample(list(IMPRESSIONS.values()), completions))
