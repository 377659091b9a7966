"""What `cxr score` does with input as it comes: exit code, message, and that nothing is lost."""

import json

import pytest

from cxr.cli.main import main

NORMAL = "The lungs are clear. No pleural effusion or pneumothorax."
IDS = ("a", "b", "c")
REFERENCES = [
    {"study_id": k, "patient_id": k, "findings": f"{NORMAL} Heart size is normal. Study {k}."} for k in IDS
]


def lines(*records):
    return "".join(json.dumps(r) + "\n" for r in records).encode()


def said(**changed):
    return [{"study_id": k, "findings": changed.get(k, NORMAL)} for k in IDS]


TABLE = {  # what the file holds -> exit code, what is said, scored studies
    "fine": (lines(*said()), 0, ["3 studies"]),
    "empty file": (b"", 2, ["p.jsonl: there is not a single prediction"]),
    "no common ids": (lines({"study_id": "x", "findings": NORMAL}), 2, ["the study ids do not meet", "'x'", "'a'"]),
    "unequal ids": (
        lines(*said()[:2], {"study_id": "x", "findings": NORMAL}),
        0,
        ["no prediction", "scored as an empty report", "prediction without reference", "left out of every score"],
    ),
    "duplicate ids": (
        lines(*said(), {"study_id": "a", "findings": "Effusion."}), 0, ["duplicate prediction", "the first one counts"]
    ),
    "empty strings": (lines(*said(b="", c="  \n")), 0, ["empty prediction", "2", "b, c"]),
    "NaN": (
        b'{"study_id": "a", "findings": NaN}\n' + lines(*said()[1:]), 0, ["empty prediction", "scored as an empty"]
    ),
    "the word None": (lines(*said(b="None")), 0, ["placeholder prediction", "the text is a literal None"]),
    "a report of 10,000 words": (lines(*said(c="no effusion and " * 3333 + "clear")), 0, ["3 studies"]),
    "not UTF-8": (lines(*said()[:2]) + b'{"study_id": "c", "findings": "caf\xe9"}', 2, ["p.jsonl, line 3: not UTF-8"]),
    "not JSON": (lines(*said()[:1]) + b"{'study_id': 'b'}\n", 2, ["p.jsonl, line 2: not JSON"]),
    "no id": (lines({"findings": NORMAL}), 2, ["the predictions have no ids, and the references have"]),
    "an id is missing": (
        lines({"findings": NORMAL}, *said()), 2, ["p.jsonl, line 1: a prediction needs a 'study_id'", "findings"]
    ),
    "another name for the text": (
        lines({"study_id": "a", "wording": NORMAL}), 2, ["no prediction has 'findings'", "study_id, wording"]
    ),
    "two names for the text": (
        lines({"study_id": "a", "generated": NORMAL, "output": NORMAL}), 2,
        ["p.jsonl: which column holds the predictions, 'generated' or 'output'?"],
    ),
    "impressions alone": (
        lines(*({"study_id": k, "impression": NORMAL} for k in IDS)), 2,
        ["p.jsonl: no prediction has 'findings'", "there is 'impression': give --section impression"],
    ),
    "impressions and a failure": (
        lines({"study_id": "a", "impression": NORMAL, "findings": None}, {"study_id": "b", "error": {"code": "x"}}), 2,
        ["no prediction has 'findings'", "give --section impression"],
    ),
    "an impression among findings": (
        lines(*said()[:2], {"study_id": "c", "impression": NORMAL}), 0, ["empty prediction", "scored: findings"]
    ),
    "a list of sentences": (
        lines({"study_id": "a", "findings": [NORMAL]}, *said()[1:]), 0, ["prediction that is no text", "a list"]
    ),
    "half a character": (
        b'{"study_id": "a", "findings": "Clear \\ud83d lungs."}\n' + lines(*said()[1:]), 0, ["3 studies"]
    ),
    "a number for an id": (lines({"study_id": 1.5, "findings": NORMAL}), 2, ["a text or a whole number, not float"]),
    "brackets": (b"[" * 200_000, 2, ["p.jsonl, line 1: "]),
    "cut off in the middle": (lines(*said())[:-20], 2, ["p.jsonl, line 3: not JSON"]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_models(monkeypatch, tmp_path):
    monkeypatch.setenv("CXR_WEIGHTS", str(tmp_path / "no weights"))


@pytest.mark.parametrize("kind", TABLE)
def test_bad_input(kind, tmp_path, capsys):
    content, code, messages = TABLE[kind]
    (tmp_path / "p.jsonl").write_bytes(content)
    (tmp_path / "r.jsonl").write_bytes(lines(*REFERENCES))
    earlier = '{"kind": "cxr-scores", "schema": 1}'
    (tmp_path / "scores.json").write_text(earlier)
    arguments = ["score", str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl")]
    assert (
        main([*arguments, "--out", str(tmp_path / "scores.json"), "--html", str(tmp_path / "page.html")])
        == code
    )
    out, err = capsys.readouterr()
    shown = " ".join((out if code == 0 else err).split())
    assert all(" ".join(message.split()) in shown for message in messages), shown
    assert (tmp_path / "p.jsonl").read_bytes() == content and "Traceback" not in err
    if code:
        assert (tmp_path / "scores.json").read_text() == earlier and not (tmp_path / "page.html").exists()
        return
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["n"] == len(IDS)  # a study that got nothing counts as missed, not as left out
    assert sorted(s["study_id"] for s in scores["studies"]) == sorted(IDS)


def test_a_table_instead_of_lines(tmp_path, capsys):
    header = "study_id,findings,reference,age,sex,view\n"
    text = header + 'a,"Clear, no effusion.",Clear.,70,F,PA\nb,Effusion.,Clear.,20,M,AP\n'
    (tmp_path / "p.csv").write_text(text, encoding="utf-8-sig")
    assert main(["score", str(tmp_path / "p.csv"), "--out", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["n"] == 2
    groups = {(g["attribute"], g["value"]): g["n"] for g in scores["subgroups"]}
    assert groups == {
        ("sex", "F"): 1, ("sex", "M"): 1, ("age", "18 to 39"): 1, ("age", "65 to 79"): 1, ("view", "PA"): 1,
        ("view", "AP"): 1,
    }  # fmt: skip
    (tmp_path / "p.csv").write_text("id,findings\na,Clear.\n")
    assert main(["score", str(tmp_path / "p.csv")]) == 2
    assert "there are no references: give a second file" in capsys.readouterr().err
    (tmp_path / "p.csv").write_text('study_id,findings\na,"Clear.\n')
    assert main(["score", str(tmp_path / "p.csv")]) == 2
    assert "not CSV" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study_id,findings\na,Small effusion, large heart.\n", "line 2: 3 cells under 2 names"),
        ("study_id,findings,findings\na,Clear.,\n", "several columns 'findings'"),
        (
            "a,Small effusion in a named patient.\n",
            "the first line names no column that is known: an id (study_id, id",
        ),
    ],
)
def test_tables_that_would_lose_text(tmp_path, capsys, text, message):
    (tmp_path / "p.csv").write_text(text)
    (tmp_path / "r.jsonl").write_bytes(lines(*REFERENCES))
    assert main(["score", str(tmp_path / "p.csv"), str(tmp_path / "r.jsonl")]) == 2
    err = capsys.readouterr().err
    assert message in err and "effusion" not in err  # what a report says is not repeated


def test_targets_are_looked_at_before_the_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "p.jsonl").write_bytes(lines(*said()))
    (tmp_path / "r.jsonl").write_bytes(lines(*REFERENCES))
    mine = tmp_path / "mine"
    mine.write_text("my own")
    monkeypatch.setattr("eval.score", lambda *a, **k: pytest.fail("scored before the target was looked at"))
    for option in ("--out", "--html"):
        for target in (mine, tmp_path):
            assert (
                main(["score", str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl"), option, str(target)])
                == 2
            )
    assert "does not hold scores" in capsys.readouterr().err and mine.read_text() == "my own"


def test_odd_studies_still_get_a_page(tmp_path, capsys):
    """What the studies contract would refuse, scoring and the page put up with; names are no markup."""
    odd = [
        {**r, "age": "63", "labels": {"Airspace": 1}, "prior": "no", "indication": None} for r in REFERENCES
    ]
    odd[0]["images"] = [{"path": "x.png", "view": "[/x]"}]
    (tmp_path / "r.jsonl").write_bytes(lines(*odd))
    (tmp_path / "p.jsonl").write_bytes(lines(*said(b="")))
    (tmp_path / "floors").mkdir()
    (tmp_path / "floors" / "retrieval[k=5].jsonl").write_bytes(lines(*said()))
    (tmp_path / "theirs[bold].jsonl").write_bytes(lines(*said()[:1]))
    arguments = [str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl"), "--floors", str(tmp_path / "floors")]
    arguments += ["--compare", str(tmp_path / "theirs[bold].jsonl"), "--html", str(tmp_path / "page.html")]
    assert main(["score", *arguments]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "retrieval[k=5]" in shown and "Against theirs[bold].jsonl" in shown
    assert "Odd input of theirs[bold].jsonl" in shown and "b, c" in shown  # what the other lacks is said
    assert "Odd input of theirs[bold].jsonl" in (tmp_path / "page.html").read_text()


def wrong_section(tmp_path, capsys, section, predictions, *more):
    """What `cxr score --section` says to predictions it refuses."""
    (tmp_path / "p.jsonl").write_bytes(lines(*predictions))
    (tmp_path / "r.jsonl").write_bytes(lines(*({**r, "impression": NORMAL} for r in REFERENCES)))
    arguments = [str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl"), "--section", section, *more]
    assert main(["score", *arguments]) == 2
    return capsys.readouterr().err


def test_the_wrong_section(tmp_path, capsys):
    written = [{**p, "impression": "Normal."} for p in said()]
    for section, lacking in (("impression", "impression"), ("both", "impression")):
        err = wrong_section(tmp_path, capsys, section, said())
        assert f"no prediction has '{lacking}'" in err and "give --section findings" in err
    err = wrong_section(tmp_path, capsys, "both", [{"study_id": k, "report": NORMAL} for k in IDS])
    assert "no prediction has 'findings' and no 'impression'" in err and "study_id, report" in err
    (tmp_path / "others.jsonl").write_bytes(
        lines(*said())
    )  # of another model, or of floors made for another section
    err = wrong_section(tmp_path, capsys, "impression", written, "--compare", str(tmp_path / "others.jsonl"))
    assert "others.jsonl: no prediction has 'impression'" in err
    (tmp_path / "floors").mkdir()
    (tmp_path / "floors" / "nearest.jsonl").write_bytes(lines(*said()))
    err = wrong_section(tmp_path, capsys, "impression", written, "--floors", str(tmp_path / "floors"))
    assert "floor 'nearest'" in err and "no prediction has 'impression'" in err
    training = tmp_path / "others.jsonl"
    training.write_bytes(lines({"study_id": "t", "findings": NORMAL}))
    err = wrong_section(tmp_path, capsys, "impression", written, "--training", str(training))
    assert "no training study is left: each has no impression" in err
    err = wrong_section(tmp_path, capsys, "both", written, "--training", str(training))
    assert "each has no findings or no impression" in err
    (tmp_path / "r.jsonl").write_bytes(lines(*REFERENCES))
    for section, lacking in (("impression", "impression"), ("both", "findings and impression")):
        assert (
            main(["score", str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl"), "--section", section]) == 2
        )
        assert f"no reference has {lacking}: there is nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["score", str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl"), "--section", "conclusion"])
    assert "must be findings, impression, both, not 'conclusion'" in capsys.readouterr().err


def test_both_need_studies_of_their_own(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_bytes(
        lines(*({**p, "impression": "x", "reference": NORMAL} for p in said()))
    )
    assert main(["score", str(tmp_path / "p.jsonl"), "--section", "both"]) == 2
    assert "--section both needs a second file" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "p.jsonl"), "--section", "impression"]) == 0


def test_tables_of_impressions(tmp_path, capsys):
    """An empty cell is no text: a column without one is no section."""
    (tmp_path / "r.csv").write_text("study_id,findings,impression\na,Effusion.,Clear.\nb,,Edema.\n")
    (tmp_path / "p.csv").write_text("study_id,findings,impression\na,,Clear.\nb,,Edema.\n")
    files = [str(tmp_path / "p.csv"), str(tmp_path / "r.csv")]
    assert main(["score", *files]) == 2
    assert "p.csv: no prediction has 'findings'" in capsys.readouterr().err
    assert main(["score", *files, "--section", "impression", "--out", str(tmp_path / "s.json")]) == 0
    found = {s["name"]: s["value"] for s in json.loads((tmp_path / "s.json").read_text())["scores"]}
    assert found["label-f1/14/micro/neg"] == 1 and found["rouge-l/coco"] == pytest.approx(1)


def test_without_references(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_bytes(lines(*said()))
    assert main(["score", str(tmp_path / "p.jsonl")]) == 2
    assert "there are no references" in capsys.readouterr().err
    (tmp_path / "p.jsonl").write_bytes(lines(*({**r, "reference": NORMAL} for r in said())))
    assert main(["score", str(tmp_path / "p.jsonl")]) == 0
    assert "3 studies" in capsys.readouterr().out
    assert main(["score", str(tmp_path / "p.jsonl"), "--split", "test"]) == 2
    assert "give one" in capsys.readouterr().err


def test_compared_with_others(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_bytes(lines(*said()))
    (tmp_path / "o.jsonl").write_bytes(lines(*said(a="Effusion.", b="")))
    (tmp_path / "r.jsonl").write_bytes(lines(*REFERENCES))
    arguments = [str(tmp_path / name) for name in ("p.jsonl", "r.jsonl")]
    out, page = tmp_path / "s.json", tmp_path / "page.html"
    arguments += ["--compare", str(tmp_path / "o.jsonl"), "--out", str(out), "--html", str(page)]
    assert main(["score", *arguments]) == 0
    assert "Against o.jsonl, in pairs" in capsys.readouterr().out
    found = json.loads(out.read_text())["comparisons"][0]
    assert found["other"] == "o.jsonl" and found["inputs"]["empty prediction"]["study_ids"] == ["b"]
    assert all(0 < d["p"] <= d["p_holm"] <= 1 and d["difference"] > 0 for d in found["differences"])
    assert "Against o.jsonl" in page.read_text() and "studies with most errors" in page.read_text()


def test_clinical_models_by_name(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_bytes(lines(*said()))
    (tmp_path / "r.jsonl").write_bytes(lines(*REFERENCES))
    arguments = [
        "score",
        str(tmp_path / "p.jsonl"),
        str(tmp_path / "r.jsonl"),
        "--clinical",
    ]
    assert main([*arguments, "chexbert"]) == 2
    assert "CheXbert needs" in capsys.readouterr().err
    assert main([*arguments, "gpt"]) == 2
    assert "no clinical model 'gpt'; there are auto, none, chexbert" in capsys.readouterr().err
    assert main([*arguments, "chexbert,gpt"]) == 2
    assert main([*arguments, "auto", "--device", "nonsense"]) == 2
    assert "device 'nonsense' cannot be used here" in capsys.readouterr().err
    assert main([*arguments, "none"]) == 0
    assert "left out by --clinical" in " ".join(capsys.readouterr().out.split())
