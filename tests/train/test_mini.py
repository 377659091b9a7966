"""The card of the shipped model takes its numbers and shapes from what was measured and saved."""

import json
import re

from cxr.cli.main import main as cxr
from train.pipelines.mini import card, headline


def test_the_card_reads_the_scores_of_cxr_score(tmp_path):
    references, predictions, floors = tmp_path / "r.jsonl", tmp_path / "p.jsonl", tmp_path / "floors"
    floors.mkdir()
    texts = ["Small left pleural effusion.", "Cardiomegaly. No pneumothorax."] * 30
    rows = [
        {"schema": 1, "study_id": f"s{i}", "patient_id": f"p{i}", "findings": text}
        for i, text in enumerate(texts)
    ]
    write(references, rows)
    write(predictions, rows)
    write(floors / "shuffled.jsonl", [dict(row, findings="Clear lungs.") for row in rows])
    assert (
        cxr(
            [
                "score",
                str(predictions),
                str(references),
                "--floors",
                str(floors),
                "--out",
                str(tmp_path / "s.json"),
            ]
        )
        == 0
    )
    scores = json.loads((tmp_path / "s.json").read_text())

    by_name = dict(headline(scores))
    assert by_name["label F1, macro over labels with 30 positives, uncertain as negative"].startswith(
        "1.000 ["
    )
    assert by_name["the same F1, shuffled images"].startswith("0.000 [")

    shape = {
        "vision_config": {"image_size": 56, "patch_size": 14, "hidden_size": 31, "num_hidden_layers": 2},
        "text_config": {"hidden_size": 37, "num_hidden_layers": 3},
    }
    text = card(scores, shape, 1.5, with_nih=True)
    assert "56 px, patch 14, width 31, 2 blocks" in text and "width 37, 3 layers" in text
    # a perfect score has room below
    assert re.search(r"1\.000 \[0\.9\d\d, 1\.000\]", text) and "NIH ChestX-ray14" in text


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
