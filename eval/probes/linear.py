"""What frozen features know of labels: k nearest neighbours, and logistic regressions whose penalty validation chooses.

Shape letters: N images to learn from, M to judge, C features, K features after PCA, L labels. Labels are 1, 0, or NaN
where it is not known.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eval.probes.measures import auprc, auroc

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C; the best on validation is kept
COMPONENTS = (16, 32, 64, 128)  # of PCA, for features that are not an encoder's
CHOICES = {"auprc": auprc, "auroc": auroc}  # what validation goes by
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of DINO's weighted k-NN (arXiv 2104.14294)
WHICH = ("cls", "mean", "both", "grid")
CELLS = 4  # a side, of `grid`

Rows = tuple[np.ndarray, np.ndarray]  # features (N, C), labels (N, L)


def vectors(
    cls_NC: np.ndarray, mean_NC: np.ndarray | None, which: str, cells_NC: np.ndarray | None = None
) -> np.ndarray:
    """Return one vector for each image, float32.

    `which` is `cls`, `mean` (of the patch tokens), both side by side, or `grid`. `grid` puts CLS beside the
    means of the patch tokens in each of CELLS x CELLS parts of the image; they say where something is, which
    a mean of all does not.

    Side by side each keeps its length, so that the longest one rules a cosine; heads standardise every
    feature. Raises ValueError for another word, for means that are not there, or for means of other images.
    """
    if which not in WHICH:
        raise ValueError(f"features {which!r} are unknown; there are {', '.join(WHICH)}")
    means_NC = cells_NC if which == "grid" else mean_NC
    if which == "cls":
        return np.asarray(cls_NC, np.float32)
    if means_NC is None:
        raise ValueError(f"features {which!r} need means of the patch tokens, which are not there")
    if which == "mean":
        return np.asarray(means_NC, np.float32)
    if len(cls_NC) != len(means_NC):
        raise ValueError(f"CLS of {len(cls_NC)} images but means of {len(means_NC)}")
    return np.concatenate([cls_NC, means_NC], axis=1, dtype=np.float32)


def knn_scores(
    train_NC: np.ndarray,
    labels_NL: np.ndarray,
    test_MC: np.ndarray,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Return the share of positives (M, L) among the k most similar images, weighted by exp(cosine /
    temperature).

    Images whose label is not known have no vote on it; NaN where none of the k has one.
    """
    train_NC, test_MC = (unit(x) for x in (train_NC, test_MC))
    k = min(k, len(train_NC))
    scores_ML = np.empty((len(test_MC), labels_NL.shape[1]))
    for start in range(0, len(test_MC), 1024):
        similar = test_MC[start : start + 1024] @ train_NC.T
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(similar, nearest, 1) - 1) / temperature)
        votes = labels_NL[nearest]
        known = ~np.isnan(votes)
        total = (weights[..., None] * known).sum(1)
        positive = (weights[..., None] * np.where(known, votes, 0)).sum(1)
        scores_ML[start : start + 1024] = np.divide(
            positive, total, out=np.full(total.shape, np.nan), where=total > 0
        )
    return scores_ML


@dataclass(frozen=True)
class Heads:
    """One linear head a label, on the features as the encoder gives them: the standardisation and the PCA that it was
    fitted behind are folded into its weights. NaN for labels that could not be learnt."""

    weights_LC: np.ndarray
    bias_L: np.ndarray
    chosen: list[
        dict[str, Any]
    ]  # of each label: penalty, components, value on validation, or the reason why not

    def scores(self, x_MC: np.ndarray) -> np.ndarray:
        """Return logits, or a regression's values, (M, L)."""
        return np.asarray(x_MC, np.float64) @ self.weights_LC.T + self.bias_L


def fit_heads(
    train: Rows,
    validate: Rows,
    *,
    choose: str = "auroc",
    penalties: Sequence[float] = PENALTIES,
    components: Sequence[int] | None = None,
) -> Heads:
    """Fit a logistic regression for each label on standardised features.

    The penalty is the one with the best `choose` (auprc or auroc) of this label on `validate`; of equals, the
    strongest. With `components` the number of principal components of the training images is chosen likewise.

    If validation lacks images of both kinds and cannot choose, the middle one is taken. A label without both
    kinds in `train` has no head. `chosen` gives the reasons. Raises ValueError for another `choose`.
    """
    if choose not in CHOICES:
        raise ValueError(f"validation cannot go by {choose!r}; there are {', '.join(CHOICES)}")
    (x_NC, y_NL), (_, y_validate_NL) = train, validate
    heads = Heads(np.full((y_NL.shape[1], x_NC.shape[1]), np.nan), np.full(y_NL.shape[1], np.nan), [])
    spaces = spaces_of(x_NC, components) if len(x_NC) > 1 else []  # one image has no two kinds
    seen = [[space.of(x).astype(np.float32) for x in (x_NC, validate[0])] for space in spaces]
    for label in range(y_NL.shape[1]):
        y, y_validate = y_NL[:, label], y_validate_NL[:, label]
        known, judges = ~np.isnan(y), ~np.isnan(y_validate)
        lacking = one_kind(y[known])
        if lacking:
            heads.chosen.append({"reason": f"{lacking} among the {known.sum()} images to learn from"})
            continue
        lacking = one_kind(y_validate[judges])
        chosen: dict[str, Any] = {}
        for space, (z, z_validate) in candidates(list(zip(spaces, seen, strict=True)), lacking):
            model = LogisticRegression(max_iter=1000, warm_start=True)
            z, z_validate = z if known.all() else z[known], z_validate[judges]
            for C in candidates(sorted(penalties), lacking):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model.set_params(C=C).fit(z, y[known])
                found = (
                    float("nan")
                    if lacking
                    else CHOICES[choose](y_validate[judges], z_validate @ model.coef_[0])
                )
                if not chosen or found > chosen["validation"]:
                    chosen = {"C": C, "validation": found}
                    if space.basis_CK is not None:
                        chosen["components"] = len(space.scale_K)
                    w_K, b = model.coef_[0].astype(np.float64), float(model.intercept_[0])
                    heads.weights_LC[label], heads.bias_L[label] = space.folded(w_K, b)
        heads.chosen.append(explained(chosen, lacking))
    return heads


def logistic_scores(
    train: Rows,
    validate: Rows,
    test_MC: np.ndarray,
    choose: str = "auroc",
    components: Sequence[int] | None = None,
) -> np.ndarray:
    """Return the logits (M, L) of `fit_heads`. NaN for labels without both kinds in `train`."""
    return fit_heads(train, validate, choose=choose, components=components).scores(test_MC)


# What heads of labels and of numbers (eval/probes/metadata.py) have in common.


class Space(NamedTuple):
    """Map features to the space where a head is fitted: centred, perhaps projected, each of unit spread on
    the training images."""

    mean_C: np.ndarray
    basis_CK: np.ndarray | None
    scale_K: np.ndarray

    def of(self, x_NC: np.ndarray) -> np.ndarray:
        """Map features (N, C) into the space: (N, K) in float64."""
        x_NC = np.asarray(x_NC, np.float64) - self.mean_C
        return (x_NC if self.basis_CK is None else x_NC @ self.basis_CK) / self.scale_K

    def folded(self, w_K: np.ndarray, b: float) -> tuple[np.ndarray, float]:
        """Return the same head for features that are not standardised."""
        w_C = w_K / self.scale_K if self.basis_CK is None else self.basis_CK @ (w_K / self.scale_K)
        return w_C, b - float(self.mean_C @ w_C)


def spaces_of(train_NC: np.ndarray, components: Sequence[int] | None = None) -> list[Space]:
    """Return the space of standardised features, or one of principal components for each of `components`;
    more than the training images have are not tried. Only the training images are looked at."""
    if components is None:
        scale = StandardScaler().fit(np.asarray(train_NC, np.float64))
        return [Space(scale.mean_, None, scale.scale_)]
    most = min(max(components), len(train_NC) - 1, train_NC.shape[1])
    if most < 1:
        raise ValueError(f"{len(train_NC)} images to learn from are too few for principal components")
    pca = PCA(most, random_state=0).fit(np.asarray(train_NC, np.float64))
    deviation = np.sqrt(pca.explained_variance_)
    scale_K = np.where(
        deviation > 1e-6 * deviation[0], deviation, 1.0
    )  # what is left after the last is rounding
    basis_CK = pca.components_.T
    return [
        Space(pca.mean_, basis_CK[:, :k], scale_K[:k]) for k in sorted({min(k, most) for k in components})
    ]


def one_kind(y_N: np.ndarray) -> str:
    """Say which kind is missing among known labels; "" if there are both."""
    if not len(y_N):
        return "no known label"
    return "" if y_N.min() < y_N.max() else f"no {'negative' if y_N[0] else 'positive'}"


def candidates(all_of_them: Sequence, lacking: str) -> Sequence:
    """Return the candidates to try: all, or the middle one if validation cannot choose."""
    return [all_of_them[len(all_of_them) // 2]] if lacking else all_of_them


def explained(chosen: dict[str, Any], lacking: str) -> dict[str, Any]:
    """Return `chosen`, with the reason why nothing was validated if `lacking` names one ("" if not)."""
    if not lacking:
        return chosen
    return {**chosen, "validation": None, "reason": f"{lacking} to validate on: the penalty was not chosen"}


def unit(x: np.ndarray) -> np.ndarray:
    """Return float32 rows of length 1."""
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
