"""`cxr verify` as its users call it."""

from __future__ import annotations

import json

import pytest

from cxr.cli.main import main
from train.phantom.population import write_population


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    return write_population(folder, studies=3, seed=12, prevalence=2.0, laterals=0.0, masks=False, size=256)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_own_reports_are_shown_and_written_and_agree(studies, tmp_path, capsys):
    assert main(["verify", str(studies), str(studies), "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    out = tmp_path / "verdicts.jsonl"
    assert main(["verify", str(studies), str(studies), "--out", str(out)]) == 0
    assert "sentences: " in capsys.readouterr().err
    for row, said in zip(rows(out), shown, strict=True):
        assert row.pop("input_sha256")
        assert row == said
    ids = [row["study_id"] for row in rows(studies)]
    assert [row["study_id"] for row in shown] == ids
    # Nothing is written over, unless asked for; nor is what it reads.
    assert main(["verify", str(studies), str(studies), "--out", str(out)]) == 2
    assert main(["verify", str(studies), str(studies), "--out", str(studies), "--overwrite"]) == 2
    assert "is what this command reads" in capsys.readouterr().err


def test_an_interrupted_run_resumes_with_the_very_same_inputs(studies, tmp_path, capsys):
    out = tmp_path / "verdicts.jsonl"
    assert main(["verify", str(studies), str(studies), "--out", str(out), "--no-omissions"]) == 0
    whole = rows(out)
    marked = [{**row, "warnings": [{"code": "kept", "message": "from the part"}]} for row in whole]
    part = tmp_path / "verdicts.jsonl.part"
    reports = tmp_path / "reports.jsonl"
    changed = [{"study_id": r["study_id"], "findings": r["findings"]} for r in rows(studies)]
    changed[1]["findings"] = "No pleural effusion."
    reports.write_text("".join(json.dumps(r) + "\n" for r in changed))
    # Two whole rows, one of which is of another report now, and one that was cut off.
    part.write_text(json.dumps(marked[0]) + "\n" + json.dumps(marked[1]) + "\n" + json.dumps(marked[2])[:40])
    arguments = ["verify", str(reports), str(studies), "--out", str(out), "--no-omissions", "--overwrite"]
    assert main(arguments) == 0
    found = rows(out)
    kept = [any(w["code"] == "kept" for w in row["warnings"]) for row in found]
    assert kept == [True, False, False] and not part.exists()
    assert [s["text"] for s in found[1]["sentences"]] == ["No pleural effusion."]
    assert found[2] == whole[2]


def test_mistakes_are_told_in_a_line(studies, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text('{"study_id": "elsewhere", "findings": "No effusion."}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"study_id": "elsewhere", "text_of_it": "No effusion."}\n')
    for reports, said in (
        (other, "the study ids do not meet"), (empty, "no report has 'findings'"), (tmp_path, "is a folder"),
    ):  # fmt: skip
        assert main(["verify", str(reports), str(studies)]) == 2
        assert said in capsys.readouterr().err
    assert main(["calibrate", str(studies), "--out", str(studies), "--overwrite", "--split", "train"]) == 2
    assert main(["calibrate", str(studies)]) == 2
    assert "give --out FILE" in capsys.readouterr().err


def test_a_report_that_is_none_costs_its_study_alone(studies, tmp_path, capsys):
    reports = tmp_path / "reports.csv"
    first, second, _ = (row["study_id"] for row in rows(studies))
    reports.write_text(
        f"study_id,findings\n{first},Kein Erguss. Das Herz ist normal groß.\n{second},No effusion.\n"
    )
    assert main(["verify", str(reports), str(studies)]) == 3
    shown = capsys.readouterr()
    assert "report_not_judged" in shown.err and second in shown.out
