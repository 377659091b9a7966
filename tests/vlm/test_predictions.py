"""Predictions files: what is resumed, added to or removed is the run's own, and nothing else is touched."""

from __future__ import annotations

import json
import os

import pytest

from vlm.prediction import Prediction, is_prediction
from vlm.predictions import PredictionsError, _finished, check_beside, other_of, part_of

SOUND = Prediction(
    "s1", "Clear lungs.", model="mini", warnings=[{"code": "repeats", "message": "It repeats."}],
    images=[{"role": "Frontal", "path": "a.png"}], sentences=[{"text": "Clear lungs.", "confidence": 0.5}],
)  # fmt: skip


def refused(row):
    return not is_prediction(json.loads(json.dumps(row)) if not isinstance(row, str) else json.loads(row))


def test_what_was_written_is_read():
    for prediction in (
        SOUND, Prediction("s2", error={"code": "truncated", "message": "half"}), Prediction("s3", impression="None."),
        Prediction("s4", findings=""),
    ):  # fmt: skip
        assert is_prediction(json.loads(json.dumps(prediction.to_json())))


@pytest.mark.parametrize(
    "change",
    [
        {"study_id": [1]}, {"study_id": None}, {"findings": 5}, {"findings": None}, {"findings": {"a": 1}},
        {"impression": []}, {"error": "no"}, {"error": {"code": 1, "message": ""}},
        {"error": {"code": "x", "message": "both"}}, {"warnings": "x"}, {"warnings": [1]}, {"warnings": [{"code": 1}]},
        {"images": {"role": 1}}, {"images": [{"role": "Frontal"}]}, {"sentences": "x"}, {"sentences": [{"text": 1}]},
        {"seconds": float("inf")}, {"sentences": [{"text": "a", "confidence": float("nan")}]},
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_are_no_predictions_are_not_resumed(tmp_path, change):
    rows = [SOUND.to_json(), {**SOUND.to_json(), **change}, {**SOUND.to_json(), "study_id": "s9"}]
    part = tmp_path / "p.jsonl.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["study_id"] for row in _finished(part)] == ["s1", "s9"]


def test_a_number_beyond_all_others_is_none(tmp_path):
    part = tmp_path / "p.jsonl.part"
    part.write_text(json.dumps(SOUND.to_json()).replace('"seconds": 0.0', '"seconds": 1e999') + "\n")
    assert "1e999" in part.read_text() and _finished(part) == []


def test_only_the_line_that_was_cut_off_goes(tmp_path):
    whole = json.dumps(SOUND.to_json()) + "\n"
    part = tmp_path / "p.jsonl.part"
    for damage in ("[1]\n", "\0\0\n", "[" * 90_000 + "\n", "9" * 5_000 + "\n", "{}\n"):
        part.write_text(whole + damage + whole + whole[:30])
        assert len(_finished(part)) == 2 and part.read_text() == whole + damage + whole


@pytest.mark.parametrize("name", ["p.jsonl.part", "p.jsonl.part.1", "p.jsonl.part.12", "p.jsonl.other"])
def test_files_of_the_user_are_named_and_stay(tmp_path, name):
    out, film = tmp_path / "p.jsonl", tmp_path / "film.png"
    film.write_bytes(b"\x89PNG pixels")
    check_beside(out, [film])
    beside = tmp_path / name
    for make in (
        lambda: beside.write_text("user data"), lambda: beside.symlink_to(film), lambda: os.link(film, beside),
        lambda: beside.mkdir(), lambda: beside.symlink_to(tmp_path / "nowhere"),
    ):  # fmt: skip
        make()
        with pytest.raises(
            PredictionsError, match=f"{name} .*; move it away, or choose another name than p.jsonl"
        ):
            check_beside(out, [film])
        beside.rmdir() if beside.is_dir() and not beside.is_symlink() else beside.unlink()
    # a run's own: rows, none yet, the first cut off
    for text in (json.dumps(SOUND.to_json()) + "\n", "", '{"schema": 1, "study'):
        beside.write_text(text)
        check_beside(out, [film])
    assert film.read_bytes() == b"\x89PNG pixels"


def test_the_names_beside(tmp_path):
    assert part_of(tmp_path / "p[1].jsonl").name == "p[1].jsonl.part"
    assert other_of(tmp_path / "p.jsonl").name == "p.jsonl.other"
