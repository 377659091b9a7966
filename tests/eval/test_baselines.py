"""Floors: the typical report, nearest neighbours, and their files."""

import numpy as np
import pytest

from eval.baselines import (
    as_predictions,
    nearest_by_features,
    nearest_by_text,
    read_floors,
    typical_report,
)


def test_typical_report_is_the_medoid():
    """Against the definition: most cosine similarity to all reports, by a dense matrix."""
    reports = [
        "no effusion",
        "no effusion or edema",
        "large mass",
        "no effusion",
        "no edema seen",
        "heart normal",
    ]
    vocabulary = sorted({w for r in reports for w in r.split()})
    counts = np.array([[r.split().count(w) for w in vocabulary] for r in reports], dtype=float)
    unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    assert typical_report(reports) == reports[int((unit @ unit.T).sum(axis=1).argmax())] == "no effusion"


def test_typical_report_at_the_edges():
    assert typical_report(["a", "b", "a"]) == "a"
    assert typical_report(["...", ""]) in {"...", ""}
    with pytest.raises(ValueError, match="at least one"):
        typical_report([])


def test_nearest_by_features_is_the_cosine_neighbour():
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(300, 8)), rng.normal(size=(40, 8))
    cosine = queries @ bank.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(bank, axis=1)
    assert nearest_by_features(queries, bank, list(range(40))) == cosine.argmax(axis=1).tolist()
    assert nearest_by_features(queries * 100, bank, list(range(40))) == cosine.argmax(axis=1).tolist()


def test_nobody_is_answered_with_a_report_of_the_same_patient():
    x = np.eye(3)
    assert nearest_by_features(x, x, ["a", "b", "c"]) == ["a", "b", "c"]
    others = nearest_by_features(x, x, ["a", "b", "c"], groups=["p", "q", "r"], bank_groups=["p", "q", "r"])
    assert all(own != other for own, other in zip("abc", others, strict=True))
    with pytest.raises(ValueError, match="no other patient"):
        nearest_by_features(x[:1], x[:1], ["a"], groups=["p"], bank_groups=["p"])


@pytest.mark.parametrize(
    ("queries", "bank", "reports", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), ["a", "b"], r"\(N, D\) and \(M, D\)"),
        (np.ones((2, 3)), np.ones((2, 3)), ["a"], "2 rows in the bank but 1 reports"),
        (np.full((1, 3), np.nan), np.ones((1, 3)), ["a"], "NaN or infinity"),
    ],
)
def test_nearest_by_features_refuses(queries, bank, reports, message):
    with pytest.raises(ValueError, match=message):
        nearest_by_features(queries, bank, reports)


def test_nearest_by_text():
    bank = ["cough and fever", "fall, rib pain", "line placement"]
    found = nearest_by_text(
        ["fever", "pain after a fall", "check line", ""], bank, ["pneumonia", "fracture", "PICC"]
    )
    assert found[:3] == ["pneumonia", "fracture", "PICC"] and found[3] in {"pneumonia", "fracture", "PICC"}
    with pytest.raises(ValueError, match="as many texts as reports"):
        nearest_by_text(["x"], ["a"], [])


def test_as_predictions_and_floor_files(tmp_path):
    assert as_predictions(["a"], ["clear"]) == [{"study_id": "a", "findings": "clear"}]
    files, missing = read_floors(None)
    assert not files
    assert [m.name for m in missing] == ["shuffled images", "blank images", "nearest neighbour (image)"]
    (tmp_path / "blank.jsonl").write_text("{}")
    files, missing = read_floors(tmp_path)
    assert list(files) == ["blank"]
    assert [m.name for m in missing] == ["shuffled images", "nearest neighbour (image)"]
