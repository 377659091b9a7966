"""What a resumed predictions file takes of a run before, and what a study can do to it."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

from vlm import Findings
from vlm.decoding import Decoding
from vlm.outliers import Outliers, embedding
from vlm.predictions import PredictionsError, part_of, write_predictions
from vlm.study import Image, Study, load_studies, validate


@pytest.fixture
def resumed(findings_model, studies_file, tmp_path):
    """Make predictions of four studies, two of which lie in a part; -> by what model, and with what settings."""
    studies, path = load_studies(studies_file)[:4], tmp_path / "p.jsonl"

    def run(model: Findings, **more) -> list[dict]:
        settings = {"decoding": Decoding(4), "root": studies_file.parent, **more}
        write_predictions(path, model, studies, settings)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.rename(part_of(path))
        kept = part_of(path).read_text().splitlines(keepends=True)[:2]
        part_of(path).write_text("".join(kept))
        return rows

    return run


def test_rows_of_the_same_model_are_taken(findings_model, resumed):
    first = resumed(Findings(findings_model))
    again = resumed(Findings(findings_model))
    assert [row["seconds"] for row in again[:2]] == [row["seconds"] for row in first[:2]]
    assert {row["setup_sha256"] for row in first} == {Findings(findings_model).setup_sha256}


@pytest.mark.parametrize("change", ["prompt", "chat template", "reference", "threshold"])
def test_rows_of_another_setup_are_not_taken(findings_model, resumed, change):
    """The weights are the same, the answers or their warnings are not."""
    pixels = torch.randn(60, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    features = embedding(findings_model.parts.vision_tower, pixels)
    outliers = Outliers.fit(features)
    resumed(Findings(findings_model, outliers))
    if change == "prompt":
        findings_model.meta.prompt = replace(findings_model.meta.prompt, indication=False)
    elif change == "chat template":
        findings_model.tokenizer.chat_template = "{{ messages }}"
    elif change == "reference":
        outliers = Outliers.fit(features[:50])
    else:
        outliers = replace(outliers, threshold=2.0)
    with pytest.raises(PredictionsError, match="begun with another setup_sha256"):
        resumed(Findings(findings_model, outliers))


@pytest.mark.parametrize(
    ("before", "after"),
    [("none", "confidence"), ("confidence", "image_dependence"), ("image_dependence", "confidence")],
)
def test_rows_whose_sentences_have_other_scores_are_not_taken(findings_model, resumed, before, after):
    resumed(Findings(findings_model), sentences=before)
    with pytest.raises(PredictionsError, match="begun with another sentences"):
        resumed(Findings(findings_model), sentences=after)
    resumed(Findings(findings_model), sentences=before)


def test_a_path_that_is_no_file_costs_one_study(findings_model, studies_file, tmp_path):
    """A name that is too long, a null character, a pipe nobody writes to, a device without end."""
    os.mkfifo(tmp_path / "pipe")
    paths = ["a" * 5000, "b" * 300, "c\0d", str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)]
    good = load_studies(studies_file)[0].images[0]
    bad = [Study(f"bad{i}", images=[Image(path)]) for i, path in enumerate(paths)]
    studies = [*bad, Study("good", images=[Image(str(studies_file.parent / good.path))])]
    settings = {"decoding": Decoding(4), "root": "."}
    assert write_predictions(tmp_path / "p.jsonl", Findings(findings_model), studies, settings) == len(paths)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [("error" in row) for row in rows] == [True] * len(paths) + [False]
    problems = [p for p in validate(studies, ".") if p.code == "missing_file"]
    assert [p.study_id for p in problems] == [s.study_id for s in bad]
    assert all(len(p.message) < 400 for p in problems)
