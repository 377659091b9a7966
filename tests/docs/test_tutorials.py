"""The tutorials run as they are, print what their pages say, and the pages show their code."""

from __future__ import annotations

import json
import re
import runpy
import sys

import pytest
from safetensors.numpy import load_file

from tests.docs.blocks import ROOT
from vlm.study import load_studies

TUTORIALS = ROOT / "docs" / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("*.py"))
NUMBER = r"[+-]?\d\.\d{3}"
INTERVAL = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a tutorial as its page says; returns what it prints. In this process: a new one would import for seconds."""

    def printed(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path / "work")])
        runpy.run_path(str(TUTORIALS / f"{name}.py"), run_name="__main__")
        assert [path.name for path in tmp_path.iterdir()] == ["work"], "it wrote outside of its folder"
        return capsys.readouterr().out

    return printed


def test_own_archive(run, tmp_path):
    said = run("own_archive")
    work = tmp_path / "work"
    films = sorted((work / "phantoms" / "images").glob("*.dcm"))
    studies = load_studies(work / "studies.jsonl")
    assert sum(len(study.images) for study in studies) == len(films) >= 16
    assert f"{len(studies)} studies of {len({s.patient_id for s in studies})} patients" in said
    # no name of the archive's own gets into the file
    assert "phantom" not in " ".join(study.patient_id for study in studies)
    lines = [json.loads(line) for line in (work / "encoder_run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    (shard,) = (work / "features").glob("features-*.safetensors")
    found = load_file(shard)
    assert found["cls"].shape == (len(films), 64) and found["patches"].shape == (len(films), 16, 64)
    assert f"features of {len(films)} films" in said


def test_score_your_reports(run, tmp_path):
    said = run("score_your_reports")
    saved = json.loads((tmp_path / "work" / "scores.json").read_text())
    value = {score["name"]: score["value"] for score in saved["scores"]}
    for key in ("label-f1/14/micro/neg", "rouge-l/coco"):
        line = next(line for line in said.splitlines() if line.split()[:1] == [key])
        shown, low, high = map(float, INTERVAL.search(line).groups())
        assert low < shown < high and shown == pytest.approx(value[key], abs=5e-4)
    baselines = re.findall(r"(constant report.*|always normal): label-f1/14/micro/neg (0\.\d+)", said)
    assert len(baselines) == 2
    assert all(float(found) < value["label-f1/14/micro/neg"] for _, found in baselines)
    gaps = re.findall(rf"^   ([\w/-]+) +{INTERVAL.pattern}   p (0\.\d+)$", said, re.MULTILINE)
    # macro F1 has rare conditions, hence no interval, and none of its difference
    assert len(gaps) == 3
    assert re.search(r"^   label-f1/14/macro/neg +\+0\.\d+ \([^\n]+\)   p 0\.0\d+$", said, re.MULTILINE)
    # a wrong report in every third study costs more than the last sentence
    assert all(float(low) > 0 and float(p) < 0.05 for _, _, low, _, p in gaps)


def test_probe_two_encoders(run, tmp_path):
    said = run("probe_two_encoders")
    assert len(list((tmp_path / "work" / "features").glob("*/about.json"))) == 2
    found = {
        name: float(re.search(rf"^{name}: \d+ films.*?auroc/macro +({NUMBER})", said, re.M | re.S)[1])
        for name in ("mini", "random:mini")
    }
    gap, low, high = map(float, re.search(rf"mean difference {INTERVAL.pattern}", said).groups())
    assert gap == pytest.approx(found["mini"] - found["random:mini"], abs=1.1e-3)
    assert low <= gap <= high
    assert ("excludes 0" in said.splitlines()[-1]) == (low > 0 or high < 0)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_short_and_their_pages_show_their_code(script):
    code = script.read_text()
    assert len(code.splitlines()) < 80
    page = script.with_suffix(".md").read_text()
    shown = re.findall(r"<!-- from: (\S+) -->\n```text\n(.*?)```", page, re.DOTALL)
    assert shown and {name for name, _ in shown} == {script.name}
    for _, part in shown:
        assert part in code, f"not in {script.name}:\n{part}"
