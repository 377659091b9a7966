"""Probes of findings on planted features: what is there is found, what is not is not."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eval.probes.findings import few_shot, knn_probe, linear_probe, nested_draws, permuted
from eval.probes.judged import Part
from eval.probes.linear import PENALTIES, fit_heads, vectors
from eval.probes.measures import auprc
from eval.probes.results import compared, measured

NAMES = ["planted", "noise", "rare"]


def part(seed: int, n: int = 200, *, images: int = 2, width: int = 12) -> Part:
    """Two images a patient; feature 3 says `planted`, nothing says `noise`, feature 5 says `rare`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * 20 + 5
    y = np.stack([x[:, 3] + 8 * rng.normal(size=n) > 5, rng.random(n) < 0.4, x[:, 5] > 35], axis=1).astype(
        float
    )
    y[rng.random(y.shape) < 0.1] = np.nan
    return Part(x, y, [f"{seed}-{i // images}" for i in range(n)], [f"{seed}/{i}.png" for i in range(n)])


TRAIN, VALIDATE, TEST = part(0), part(1, 100), part(2)


def test_planted_information_is_found_and_nothing_else():
    judged = linear_probe(TRAIN, VALIDATE, TEST, NAMES)
    planted, noise, rare, macro = measured(judged, "auroc", n_boot=100)
    assert planted.low > 0.85 and noise.low < 0.5 < noise.high and rare.value > 0.9
    assert planted.patients == 100 and planted.n == (~np.isnan(TEST.y_NL[:, 0])).sum()
    assert planted.signature == "auroc|features:cls|head:logistic|penalty:validation-auprc|boot:100-patients"
    assert "planted" in macro.more["findings"] and judged.images == TEST.images
    assert judged.chosen[0][0]["C"] in PENALTIES
    neighbours = measured(knn_probe(TRAIN, TEST, NAMES), "auroc", n_boot=50)
    assert neighbours[0].low > 0.6 and "head:knn" in neighbours[0].signature


def test_permuted_labels_are_not_found():
    judged = permuted(TRAIN, VALIDATE, TEST, NAMES, penalties=(1e-2, 1.0))
    for found in measured(judged, "auroc", n_boot=20)[:2]:
        assert 0.45 <= found.value <= 0.55 and len(found.more["draws"]) == 20
        assert "labels:permuted" in found.signature


def test_heads_are_scikit_learns_with_the_best_penalty_of_validation():
    x, y = TRAIN.x_NC, np.nan_to_num(TRAIN.y_NL[:, :1])
    heads = fit_heads((x, y), (VALIDATE.x_NC, np.nan_to_num(VALIDATE.y_NL[:, :1])), choose="auprc")
    scale = StandardScaler().fit(x)
    found = {}
    for C in PENALTIES:
        model = LogisticRegression(C=C, max_iter=2000, tol=1e-8).fit(scale.transform(x), y[:, 0])
        on_validation = model.decision_function(scale.transform(VALIDATE.x_NC))
        found[C] = auprc(np.nan_to_num(VALIDATE.y_NL[:, 0]), on_validation), model
    best = heads.chosen[0]["C"]
    assert found[best][0] == pytest.approx(max(v for v, _ in found.values()), abs=1e-3)
    wanted = found[best][1].decision_function(scale.transform(TEST.x_NC))
    assert heads.scores(TEST.x_NC)[:, 0] == pytest.approx(wanted, abs=0.02)


def test_pca_sees_training_images_alone_and_validation_chooses_how_much():
    rng = np.random.default_rng(3)
    many = [Part(p.x_NC @ rng.normal(size=(12, 12)), p.y_NL, p.patients) for p in (TRAIN, VALIDATE, TEST)]
    heads = fit_heads(*((p.x_NC, p.y_NL) for p in many[:2]), choose="auprc", components=(2, 5, 400))
    assert {h["components"] for h in heads.chosen} <= {2, 5, 12}
    label = 0
    k, C = heads.chosen[label]["components"], heads.chosen[label]["C"]
    known = ~np.isnan(many[0].y_NL[:, label])
    pca = PCA(k, random_state=0, whiten=True).fit(many[0].x_NC)
    model = LogisticRegression(C=C, max_iter=2000, tol=1e-8)
    model.fit(pca.transform(many[0].x_NC)[known], many[0].y_NL[known, label])
    wanted = model.decision_function(pca.transform(many[2].x_NC))
    assert heads.scores(many[2].x_NC)[:, label] == pytest.approx(wanted, abs=0.02)
    judged = linear_probe(*many, NAMES, features="pixels", components=(2, 5))
    assert "pca:validation-auprc-2-5" in measured(judged, "auprc", n_boot=5)[0].signature


def test_what_validation_cannot_choose_is_said():
    empty = Part(np.zeros((0, 12)), np.zeros((0, 3)), [])
    one_kind = Part(VALIDATE.x_NC, np.where(np.isnan(VALIDATE.y_NL), np.nan, 0), VALIDATE.patients)
    for validate, why in ((empty, "no known label"), (one_kind, "no positive")):
        judged = linear_probe(TRAIN, validate, TEST, NAMES)
        assert judged.chosen[0][0]["C"] == 1e-2 and judged.chosen[0][0]["reason"].startswith(why)
        planted = measured(judged, "auroc", n_boot=20)[0]
        assert planted.value > 0.85 and "not chosen" in planted.more["reasons"][0]


def test_what_training_lacks_is_said():
    y = TRAIN.y_NL.copy()
    y[:, 0], y[:, 1], y[:, 2] = 1, np.nan, np.where(np.isnan(y[:, 2]), np.nan, 0)
    judged = linear_probe(Part(TRAIN.x_NC, y, TRAIN.patients), VALIDATE, TEST, NAMES)
    found = measured(judged, "auprc", n_boot=5)
    assert all(np.isnan(f.value) and f.to_json()["interval"] == [None, None] for f in found)
    reasons = [f.more["reasons"][0].split(" among")[0] for f in found[:3]]
    assert reasons == ["no negative", "no known label", "no positive"]


def test_patients_are_on_one_side():
    with pytest.raises(ValueError, match=r"100 patients are in train and in test \(row 0 of test first\)"):
        linear_probe(TRAIN, VALIDATE, TRAIN, NAMES)
    with pytest.raises(ValueError, match="in validate and in test"):
        few_shot(TRAIN, TEST, TEST, NAMES)
    with pytest.raises(ValueError, match="labels are 1, 0 or NaN; found -1"):
        linear_probe(Part(TRAIN.x_NC, TRAIN.y_NL * 0 - 1, TRAIN.patients), VALIDATE, TEST, NAMES)
    with pytest.raises(ValueError, match="3 columns of labels, but 1 names"):
        knn_probe(TRAIN, TEST, ["planted"])


def test_draws_are_nested_and_of_whole_patients():
    y = np.zeros((300, 2))
    y[[0, 1, 150], 0] = 1  # two patients
    patients = np.arange(300) // 2
    draws = nested_draws(patients, y, (0.05, 0.2, 1.0), draws=4, seed=1)
    for draw in draws:
        small, middle, whole = (set(draw[s].tolist()) for s in (0.05, 0.2, 1.0))
        assert small < middle < whole and len(whole) == 300 and len(small) == 2 * round(0.05 * 150)
        for rows in (small, middle):
            assert rows == {i for i in range(300) if patients[i] in patients[list(rows)]}
        assert y[list(small), 0].any()  # one in eight orders would do
    assert len({tuple(draw[0.05]) for draw in draws}) == 4
    again = nested_draws(patients, y, (0.05, 0.2, 1.0), draws=4, seed=1)
    assert all(np.array_equal(a[0.05], b[0.05]) for a, b in zip(draws, again, strict=True))
    with pytest.raises(ValueError, match="shares of the training patients"):
        nested_draws(patients, y, (0.0, 1.0))


def test_more_patients_know_more():
    curve = few_shot(TRAIN, VALIDATE, TEST, NAMES, shares=(0.03, 0.2, 1.0), draws=3, penalties=(1e-2, 1.0))
    few, some, all_of_them = (measured(curve[s], "auroc", n_boot=40)[0] for s in (0.03, 0.2, 1.0))
    assert few.value < some.value < all_of_them.value and few.more["spread"] > 0
    assert len(few.more["draws"]) == 3 and "draws" not in all_of_them.more
    assert "share:0.03|draws:3|seed:0|validate:all" in few.signature and few.low < few.value < few.high
    direct = linear_probe(TRAIN, VALIDATE, TEST, NAMES, penalties=(1e-2, 1.0))
    assert np.array_equal(direct.scores_DML, curve[1.0].scores_DML, equal_nan=True)
    single = Part(TRAIN.x_NC[::2], TRAIN.y_NL[::2], TRAIN.patients[::2])
    hopeless = few_shot(single, VALIDATE, TEST, NAMES, shares=(0.01,), draws=2, components=(4,))[0.01]
    for found in measured(hopeless, "auroc", n_boot=5)[:3]:  # of one image
        assert np.isnan(found.value) and found.more["reasons"][0].endswith("images to learn from")
    assert all(gap.difference == 0 for gap in compared(curve[0.03], curve[0.03], "auprc", n_boot=9))


def test_vectors():
    cls, mean = np.ones((2, 3), np.float16), np.zeros((2, 4))
    assert vectors(cls, None, "cls").dtype == np.float32 and vectors(cls, mean, "mean").shape == (2, 4)
    assert vectors(cls, mean, "both").tolist() == [[1, 1, 1, 0, 0, 0, 0]] * 2
    assert vectors(cls, mean, "grid", np.full((2, 2), 7)).tolist() == [[1, 1, 1, 7, 7]] * 2
    for arguments, what in (
        ((cls, None, "both"), "'both' need means"),
        ((cls, mean, "grid"), "'grid' need means"),
        ((cls, mean, "all"), "there are cls, mean, both"),
        ((cls, mean[:1], "both"), "CLS of 2 images"),
    ):
        with pytest.raises(ValueError, match=what):
            vectors(*arguments)
