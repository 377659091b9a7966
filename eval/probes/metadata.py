"""Probes of what is not a finding: age, weight, BMI by ridge regression, sex by the linear probe.

What an encoder knows of the patient. Its floor is the training mean, said of everybody.

Shape letters: N images to learn from, M to judge, C features, K after PCA, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.probes.findings import linear_probe
from eval.probes.judged import Judged, Part, check_parts
from eval.probes.linear import Heads, Rows, candidates, explained, spaces_of

RIDGES = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
    10.0,
)  # an image, on standardised features; the best on validation is kept
SEXES = {"F": 1.0, "FEMALE": 1.0, "M": 0.0, "MALE": 0.0}


def regression_probe(
    train: Part,
    validate: Part,
    test: Part,
    names: Sequence[str],
    *,
    features: str = "cls",
    ridges: Sequence[float] = RIDGES,
    components: Sequence[int] | None = None,
) -> Judged:
    """Fit ridge regressions and return predictions of numbers, each in its own unit, for `measured(...,
    "r2")` and `"mae"`.

    Raises ValueError where a patient is in two parts.
    """
    check_parts(names, labels=False, train=train, validate=validate, test=test)
    rows = [(part.x_NC, part.y_NL) for part in (train, validate)]
    heads = fit_ridges(*rows, ridges=ridges, components=components)
    choices = {"features": features, "head": "ridge", "penalty": "validation-r2"}
    if components is not None:
        choices["pca"] = f"validation-r2-{'-'.join(map(str, sorted(components)))}"
    known_T = (~np.isnan(train.y_NL)).sum(0)
    mean_T = np.divide(np.nansum(train.y_NL, 0), known_T, out=np.full(len(names), np.nan), where=known_T > 0)
    return Judged(
        list(names), test.y_NL, heads.scores(test.x_NC)[None], mean_T[None], test.patients,
        None if test.images is None else list(test.images), choices, [heads.chosen],
    )  # fmt: skip


def fit_ridges(
    train: Rows, validate: Rows, *, ridges: Sequence[float] = RIDGES, components: Sequence[int] | None = None
) -> Heads:
    """Fit a ridge regression for each target on standardised features, as scikit-learn's with alpha = ridge x
    images. The penalty, and with `components` their number, are those with the least squared error on
    `validate`.

    Where validation knows nothing of a target the middle ones are taken; a target without two values in `train` has
    no head; `chosen` gives the reasons.
    """
    (x_NC, y_NT), (x_validate_MC, y_validate_MT) = train, validate
    heads = Heads(np.full((y_NT.shape[1], x_NC.shape[1]), np.nan), np.full(y_NT.shape[1], np.nan), [])
    spaces = spaces_of(x_NC, components)
    for target in range(y_NT.shape[1]):
        y, y_validate = y_NT[:, target], y_validate_MT[:, target]
        known, judges = ~np.isnan(y), ~np.isnan(y_validate)
        if len(np.unique(y[known])) < 2:
            heads.chosen.append({"reason": f"no two values among the {known.sum()} images to learn from"})
            continue
        lacking = "" if judges.any() else "no known value"
        chosen: dict[str, Any] = {}
        least = np.inf
        for space in candidates(spaces, lacking):
            z_validate = space.of(x_validate_MC[judges])
            path = zip(
                sorted(ridges), _ridge_path(space.of(x_NC[known]), y[known], sorted(ridges)), strict=True
            )
            for ridge, (w_K, b) in candidates(list(path), lacking):
                error = 0.0 if lacking else float(np.square(z_validate @ w_K + b - y_validate[judges]).mean())
                if error < least:
                    least, chosen = error, {"ridge": ridge, "validation": error**0.5}
                    if space.basis_CK is not None:
                        chosen["components"] = len(space.scale_K)
                    heads.weights_LC[target], heads.bias_L[target] = space.folded(w_K, b)
        heads.chosen.append(explained(chosen, lacking))
    return heads


def sex_labels(sexes: Sequence[str | None]) -> np.ndarray:
    """Return labels (N, 1): 1 female, 0 male, NaN for anything else."""
    return np.array([[SEXES.get((sex or "").strip().upper(), np.nan)] for sex in sexes]).reshape(-1, 1)


def sex_probe(train: Part, validate: Part, test: Part, **options: Any) -> Judged:
    """Fit the linear probe with labels of `sex_labels`, chosen by AUROC; options as of `linear_probe`."""
    return linear_probe(train, validate, test, ["sex"], **{"choose": "auroc", **options})


def _ridge_path(z_NK: np.ndarray, y_N: np.ndarray, ridges: Sequence[float]) -> list[tuple[np.ndarray, float]]:
    """Weights and bias for every penalty from one eigendecomposition, of the smaller of the two Gram matrices."""
    mean_K, mean_y = z_NK.mean(0), y_N.mean()
    z, y = z_NK - mean_K, y_N - mean_y
    n = len(y)
    if z.shape[1] <= n:
        e, V = np.linalg.eigh(z.T @ z)
        c = V.T @ (z.T @ y)
        weights = [V @ (c / (e.clip(min=0) + ridge * n)) for ridge in ridges]
    else:
        e, V = np.linalg.eigh(z @ z.T)
        c = V.T @ y
        weights = [z.T @ (V @ (c / (e.clip(min=0) + ridge * n))) for ridge in ridges]
    return [(w_K, float(mean_y - mean_K @ w_K)) for w_K in weights]
