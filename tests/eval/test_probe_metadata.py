"""Age, weight and sex from features, against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.preprocessing import StandardScaler

from eval.probes.judged import Part
from eval.probes.metadata import RIDGES, fit_ridges, regression_probe, sex_labels, sex_probe
from eval.probes.results import compared, measured

NAMES = ["age", "weight", "bmi"]


def part(seed: int, n: int, width: int = 30) -> Part:
    """Feature 0 says the age, several the weight a little, none the BMI."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * 3 + 1
    age = 60 + 5 * (x[:, 0] - 1) + 5 * rng.normal(size=n)
    weight = 75 + x[:, :20].sum(1) + 15 * rng.normal(size=n)
    y = np.stack([age, weight, 25 + 4 * rng.normal(size=n)], 1)
    y[rng.random(y.shape) < 0.15] = np.nan
    return Part(x, y, [f"{seed}-{i // 2}" for i in range(n)])


TRAIN, VALIDATE, TEST = part(0, 200), part(1, 80), part(2, 120)


def test_age_is_found_and_chance_is_not():
    judged = regression_probe(TRAIN, VALIDATE, TEST, NAMES)
    age, weight, bmi = measured(judged, "r2", n_boot=100)
    assert age.low > 0.8 and 0 < weight.value < age.value and bmi.value < 0.1
    known = ~np.isnan(TEST.y_NL[:, 0])
    truth, said = TEST.y_NL[known, 0], judged.scores_DML[0, known, 0]
    assert age.value == pytest.approx(r2_score(truth, said), abs=1e-6)
    mae = measured(judged, "mae", n_boot=100)[0]
    assert (
        mae.value == pytest.approx(mean_absolute_error(truth, said), abs=1e-6)
        and mae.low < mae.value < mae.high
    )
    mean = np.full(known.sum(), np.nanmean(TRAIN.y_NL[:, 0]))
    assert age.floor == pytest.approx(r2_score(truth, mean)) and age.floor <= 0
    assert mae.floor == pytest.approx(mean_absolute_error(truth, mean)) and mae.floor > 2 * mae.value
    assert mae.patients == len(np.unique(np.array(TEST.patients)[known])) and mae.positives is None
    assert age.signature == "r2|features:cls|head:ridge|penalty:validation-r2|boot:100-patients"
    poor = regression_probe(
        *(Part(p.x_NC[:, 5:], p.y_NL, p.patients) for p in (TRAIN, VALIDATE, TEST)), NAMES, features="less"
    )
    gap = compared(judged, poor, "mae", n_boot=200)[0]
    assert gap.high < 0 and gap.p_holm < 0.05 and "features:cls-less-less" in gap.signature


@pytest.mark.parametrize("rows", [200, 25])  # more images than features, and fewer
def test_heads_are_scikit_learns_with_the_least_error(rows):
    x, y = TRAIN.x_NC[:rows], np.nan_to_num(TRAIN.y_NL[:rows, :1], nan=60)
    y_validate = np.nan_to_num(VALIDATE.y_NL[:, :1], nan=60)
    heads = fit_ridges((x, y), (VALIDATE.x_NC, y_validate))
    scale = StandardScaler().fit(x)
    models = {ridge: Ridge(alpha=ridge * rows).fit(scale.transform(x), y[:, 0]) for ridge in RIDGES}
    errors = {
        r: np.square(m.predict(scale.transform(VALIDATE.x_NC)) - y_validate[:, 0]).mean() ** 0.5
        for r, m in models.items()
    }
    best = min(errors, key=errors.get)
    assert heads.chosen[0] == {"ridge": best, "validation": pytest.approx(errors[best])}
    wanted = models[best].predict(scale.transform(TEST.x_NC))
    assert heads.scores(TEST.x_NC)[:, 0] == pytest.approx(wanted, abs=1e-6)


def test_what_cannot_be_learnt_or_chosen_is_said():
    y = TRAIN.y_NL.copy()
    y[:, 1], y[:, 2] = np.nan, 25
    empty = Part(np.zeros((0, 30)), np.zeros((0, 3)), [])
    judged = regression_probe(Part(TRAIN.x_NC, y, TRAIN.patients), empty, TEST, NAMES, components=(4, 30))
    age, weight, bmi = measured(judged, "r2", n_boot=20)
    assert age.value > 0.5 and "not chosen" in age.more["reasons"][0] and judged.chosen[0][0]["ridge"] == 0.1
    assert np.isnan(weight.value) and "no two values among the 0 images" in weight.more["reasons"][0]
    assert np.isnan(weight.floor) and np.isnan(bmi.value) and not np.isnan(bmi.floor)


def test_sex():
    assert sex_labels(["F", " male", None, "O", "female"])[:, 0] == pytest.approx(
        [1, 0, np.nan, np.nan, 1], nan_ok=True
    )
    assert sex_labels([]).shape == (0, 1)
    parts = [
        Part(p.x_NC, sex_labels(np.where(p.x_NC[:, 4] > 1, "F", "M")), p.patients)
        for p in (TRAIN, VALIDATE, TEST)
    ]
    (found,) = measured(sex_probe(*parts), "auroc", n_boot=20)
    assert found.name == "auroc/sex" and found.low > 0.95 and found.floor == 0.5
    assert "penalty:validation-auroc" in found.signature
