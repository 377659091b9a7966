"""Retrieval, by hand and against a slow count."""

import numpy as np
import pytest

from eval.probes.judged import Part
from eval.probes.results import compared, measured
from eval.probes.retrieval import retrieval_probe


def by_name(judged) -> dict:
    return {f.name.removeprefix("precision/"): f for f in measured(judged, "precision", n_boot=50)}


def angles(*degrees: float) -> np.ndarray:
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)


def test_by_hand():
    """a0 and a1 are one patient. Nearest first: a0: b c d; a1: b c d; b: a1 a0 c d; c: b a1 a0 d; d: c b a1 a0."""
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 1], [0, 0]])
    part = Part(angles(0, 5, 10, 40, 80) * 7, labels, ["a", "a", "b", "c", "d"])
    judged = retrieval_probe(part, ks=(1, 2, 4))
    scores = dict(zip(judged.names, judged.scores_DML[0].T, strict=True))
    truth = dict(zip(judged.names, judged.truth_ML.T, strict=True))
    assert scores["shared@1"][:4].tolist() == [1, 1, 1, 0]  # a0-b, a1-b, b-a1, c-b
    assert np.isnan(truth["shared@1"][4])  # d has no label to share
    assert scores["shared@2"][:4].tolist() == [0.5, 1, 1, 0.5]  # a0-bc, a1-bc, b-a1a0, c-ba1
    assert scores["exact@1"].tolist() == [1, 0, 0, 0, 0]
    assert scores["exact@2"].tolist() == [0.5, 0, 0.5, 0, 0]
    assert np.isnan(truth["exact@4"][:2]).all()  # three images of others
    found = by_name(judged)
    assert found["shared@1"].value == pytest.approx(3 / 4) and found["shared@1"].n == 4
    assert found["shared@1"].floor == pytest.approx((1 / 3 + 2 / 3 + 2 / 4 + 1 / 4) / 4)
    assert found["exact@1"].floor == pytest.approx((1 / 3 + 0 + 1 / 4 + 0 + 0) / 5)
    assert found["exact@2"].patients == 4 and found["exact@2"].positives is None
    sign = "precision|features:cls|similarity:cosine|gallery:queries|unknown:left-out|boot:50-patients"
    assert found["exact@2"].signature == sign


def test_against_a_slow_count_with_a_gallery():
    rng = np.random.default_rng(0)
    queries = Part(rng.normal(size=(300, 5)), rng.random((300, 3)) < 0.3, rng.integers(0, 60, 300))
    gallery = Part(rng.normal(size=(50, 5)), rng.random((50, 3)) < 0.3, rng.integers(0, 90, 50))
    judged = retrieval_probe(queries, gallery=gallery, ks=(1, 5))
    for q in range(0, 300, 13):
        others = [g for g in range(50) if gallery.patients[g] != queries.patients[q]]
        cosine = {
            g: queries.x_NC[q]
            @ gallery.x_NC[g]
            / np.linalg.norm(queries.x_NC[q])
            / np.linalg.norm(gallery.x_NC[g])
            for g in others
        }
        nearest = sorted(others, key=lambda g: -cosine[g])
        y = queries.y_NL[q]
        for k in (1, 5):
            shared = np.mean([(y * gallery.y_NL[g]).any() for g in nearest[:k]])
            exact = np.mean([(y == gallery.y_NL[g]).all() for g in nearest[:k]])
            if y.any():
                assert judged.scores_DML[0, q, judged.names.index(f"shared@{k}")] == pytest.approx(shared)
            assert judged.scores_DML[0, q, judged.names.index(f"exact@{k}")] == pytest.approx(exact)
        floor = np.mean([(y == gallery.y_NL[g]).all() for g in others])
        assert judged.floor_ML[q, judged.names.index("exact@5")] == pytest.approx(floor)


def test_features_that_tell_nothing_reach_the_floor_and_those_that_tell_more():
    rng = np.random.default_rng(1)
    y = rng.random((120, 3)) < 0.3
    patients = rng.integers(0, 40, 120)
    blind = by_name(retrieval_probe(Part(np.ones((120, 4)), y, patients)))
    for found in blind.values():
        assert found.value == pytest.approx(found.floor, abs=1e-6)
    seeing = retrieval_probe(Part(2.0 * y - 1 + 0.3 * rng.normal(size=(120, 3)), y, patients))
    assert by_name(seeing)["exact@5"].low > blind["exact@5"].floor + 0.2
    # the most similar image of all is the query itself, then those of its patient
    own = retrieval_probe(Part(np.eye(40)[patients], y, patients))
    assert by_name(own)["exact@10"].value == pytest.approx(by_name(own)["exact@10"].floor, abs=1e-6)
    assert all(gap.difference == 0 for gap in compared(seeing, seeing, "precision", n_boot=20))


def test_unknown_labels():
    y = np.array([[1.0, np.nan], [1, 0], [1, 0]])
    part = Part(angles(0, 10, 20), y, list("abc"), ["0", "1", "2"])
    assert retrieval_probe(part, ks=(1,)).images == ["1", "2"]
    absent = retrieval_probe(part, ks=(1, 10), unknown="absent")
    found = by_name(absent)
    assert absent.images == ["0", "1", "2"] and found["exact@1"].value == 1
    assert np.isnan(found["exact@10"].value)  # fewer than ten
    for arguments, what in (
        ({"unknown": "negative"}, "left-out or absent"),
        ({"ks": (0,)}, "at least 1"),
        ({"gallery": Part(np.ones((1, 3)), np.ones((1, 2)), ["x"])}, "other features"),
    ):
        with pytest.raises(ValueError, match=what):
            retrieval_probe(part, **arguments)
    with pytest.raises(ValueError, match="no image without an unknown label"):
        retrieval_probe(Part(np.ones((2, 2)), np.full((2, 1), np.nan), list("ab")))
