"""Probes of findings: linear heads, k nearest neighbours, fewer training patients, and labels that mean nothing.

Each gives a `Judged` (eval/probes/judged.py); `measured` (eval/probes/results.py) makes AUPRC and AUROC of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.probes.judged import Judged, Part, check_parts
from eval.probes.linear import NEIGHBOURS, PENALTIES, TEMPERATURE, Heads, fit_heads, knn_scores

SHARES, DRAWS = (0.01, 0.1, 1.0), 5
PERMUTATIONS = 20
ATTEMPTS = 200  # orders of the patients tried for one that begins with both kinds of every finding


def linear_probe(
    train: Part,
    validate: Part,
    test: Part,
    names: Sequence[str],
    *,
    features: str = "cls",
    choose: str = "auprc",
    penalties: Sequence[float] = PENALTIES,
    components: Sequence[int] | None = None,
) -> Judged:
    """Fit a logistic regression for every finding and return its logits (`eval.probes.linear.fit_heads`).

    features: what they are, for the signature. components: how many principal components validation may choose from,
    for features that are not an encoder's (`eval.probes.linear.COMPONENTS` for pixels).

    Raises ValueError where a patient is in two parts.
    """
    check_parts(names, train=train, validate=validate, test=test)
    heads = _fitted(train, validate, choose, penalties, components)
    return _judged([heads], [train], test, names, _choices(features, choose, penalties, components))


def knn_probe(
    train: Part, test: Part, names: Sequence[str], *, features: str = "cls", k: int = NEIGHBOURS
) -> Judged:
    """Return the share of positives among the k nearest training images; if none of them has a known label,
    among all. Raises ValueError if a patient is in both parts."""
    check_parts(names, train=train, test=test)
    prior_1L = share_of_positives(train)
    scores_ML = knn_scores(train.x_NC, train.y_NL, test.x_NC, k)
    scores_ML = np.where(np.isnan(scores_ML), prior_1L, scores_ML)
    choices = {"features": features, "head": "knn", "neighbours": str(k), "temperature": str(TEMPERATURE)}
    reasons = [{"reason": "no known label to learn from"} if share != share else {} for share in prior_1L[0]]
    return Judged(
        list(names),
        test.y_NL,
        scores_ML[None],
        constant_floor(prior_1L),
        test.patients,
        _names(test),
        choices,
        [reasons],
    )


def few_shot(
    train: Part,
    validate: Part,
    test: Part,
    names: Sequence[str],
    *,
    features: str = "cls",
    choose: str = "auprc",
    shares: Sequence[float] = SHARES,
    draws: int = DRAWS,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
    components: Sequence[int] | None = None,
) -> dict[float, Judged]:
    """Fit the linear probe on shares of the training patients: for every share, a `Judged` with the scores of
    each draw (one draw of all patients).

    A draw's smaller shares lie within its larger ones (`nested_draws`). Validation is the whole of it at every share,
    as the signature says: what changes is what is learnt from.
    """
    check_parts(names, train=train, validate=validate, test=test)
    nested = nested_draws(train.patients, train.y_NL, shares, draws, seed)
    found = {}
    for share in sorted(shares):
        rows = [draw[share] for draw in nested[: 1 if share == 1 else None]]
        parts = [train.rows(r) for r in rows]
        heads = [_fitted(part, validate, choose, penalties, components) for part in parts]
        choices = _choices(features, choose, penalties, components)
        choices |= {"share": f"{share:g}", "draws": str(len(rows)), "seed": str(seed), "validate": "all"}
        found[share] = _judged(heads, parts, test, names, choices)
    return found


def nested_draws(
    patients: Sequence[str], labels_NL: np.ndarray, shares: Sequence[float], draws: int = DRAWS, seed: int = 0
) -> list[dict[float, np.ndarray]]:
    """Draw the training rows of every draw and share: all images of the first patients of a random order, of
    which a smaller share takes fewer. The same seed gives the same rows for every encoder.

    Orders are drawn again until the smallest share has both kinds of every label that has both at all; if `ATTEMPTS`
    orders do not, the one with most. So small draws are as random as those with something to learn from can be.
    Raises ValueError for shares that are not within (0, 1].
    """
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(
            f"shares of the training patients must be above 0 and at most 1; found {list(shares)}"
        )
    _, patient_N = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    count = patient_N.max() + 1
    kinds_PK = np.zeros((count, 2 * labels_NL.shape[1]), bool)  # whether a patient has an image of that kind
    np.logical_or.at(kinds_PK, patient_N, np.concatenate([labels_NL == 0, labels_NL == 1], axis=1))
    most = _both(kinds_PK).sum()
    taken = {share: max(1, round(share * count)) for share in shares}
    found = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        best, best_order = -1, np.arange(count)
        for _ in range(ATTEMPTS):
            order = rng.permutation(count)
            has = _both(kinds_PK[order[: taken[min(shares)]]]).sum()
            if has > best:
                best, best_order = has, order
            if has == most:
                break
        place = np.empty(count, np.int64)
        place[best_order] = np.arange(count)
        found.append({share: np.flatnonzero(place[patient_N] < n) for share, n in taken.items()})
    return found


def permuted(
    train: Part,
    validate: Part,
    test: Part,
    names: Sequence[str],
    *,
    features: str = "cls",
    choose: str = "auroc",
    n: int = PERMUTATIONS,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
    components: Sequence[int] | None = None,
) -> Judged:
    """Fit the linear probe on labels permuted among the images: what the protocol finds where there is
    nothing, a mean AUROC of 0.5.

    An image gets all labels of another. Those of validation are dealt out too: true ones would choose, of heads that
    know nothing, the one that is right by chance.
    """
    check_parts(names, train=train, validate=validate, test=test)
    rng = np.random.default_rng(seed)
    heads = []
    for _ in range(n):
        dealt = [Part(x.x_NC, x.y_NL[rng.permutation(len(x))], x.patients) for x in (train, validate)]
        heads.append(_fitted(*dealt, choose, penalties, components))
    choices = _choices(features, choose, penalties, components)
    choices |= {"labels": "permuted", "draws": str(n), "seed": str(seed)}
    return _judged(heads, [train] * n, test, names, choices)


def _fitted(
    train: Part, validate: Part, choose: str, penalties: Sequence[float], components: Sequence[int] | None
) -> Heads:
    rows = [(part.x_NC, part.y_NL) for part in (train, validate)]
    return fit_heads(*rows, choose=choose, penalties=penalties, components=components)


def _judged(
    heads: list[Heads], learnt: list[Part], test: Part, names: Sequence[str], choices: dict[str, str]
) -> Judged:
    scores_DML = np.stack([h.scores(test.x_NC) for h in heads]).astype(np.float32)
    chosen: list[list[dict[str, Any]]] = [h.chosen for h in heads]
    floor_1L = constant_floor(share_of_positives(learnt[0]))
    return Judged(list(names), test.y_NL, scores_DML, floor_1L, test.patients, _names(test), choices, chosen)


def _choices(
    features: str, choose: str, penalties: Sequence[float], components: Sequence[int] | None
) -> dict[str, str]:
    penalty = f"validation-{choose}" if len(penalties) > 1 else f"{penalties[0]:g}"
    choices = {"features": features, "head": "logistic", "penalty": penalty}
    if components is not None:
        choices["pca"] = f"validation-{choose}-{'-'.join(map(str, sorted(components)))}"
    return choices


def share_of_positives(part: Part) -> np.ndarray:
    """Return the share of positives (1, L); NaN if no label is known."""
    known = (~np.isnan(part.y_NL)).sum(0)
    positives = np.nansum(part.y_NL, 0)
    return np.divide(positives, known, out=np.full(len(known), np.nan), where=known > 0)[None]


def constant_floor(share_1L: np.ndarray) -> np.ndarray:
    """Return the answer that does not look at the images."""
    return np.where(np.isnan(share_1L), 0.5, share_1L)  # any constant: AUPRC and AUROC know only the order


def _both(kinds_PK: np.ndarray) -> np.ndarray:
    negative, positive = np.split(kinds_PK.any(0), 2)
    return negative & positive


def _names(part: Part) -> list[str] | None:
    return None if part.images is None else list(part.images)
