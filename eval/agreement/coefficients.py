"""Kendall's tau-b and Spearman's rho of a sample and of its bootstrap replicates over studies.

Both coefficients are sums over pairs of reports. With w the number of times that a bootstrap replicate draws a report,
and S and T the signs of the differences of metric and rating,

    tau-b = w'(S * T)w / sqrt(w'|S|w  w'|T|w)

and the mid-ranks that rho correlates are S w / 2 but for a constant. So all replicates are matrix products, and nothing
is sorted anew. Reports of one study are drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CHUNK = 512

LEAST_STUDIES = 10
"""With fewer there are no intervals and no tests: replicates of so few do not hold their level."""
# A metric that is defined of fewer of the rated reports cannot be the best.
COVERED = 0.9


class Coefficients:
    """Tau-b and rho of metrics with one rating, of all reports and in bootstrap replicates over studies.

    `rating_N` is higher for better reports; `studies` say which reports are drawn together.
    """

    def __init__(self, rating_N: np.ndarray, studies: Sequence[str], *, n_boot: int, seed: int) -> None:
        # Sorted, so that draws do not depend on the order of the reports.
        index = {study: at for at, study in enumerate(sorted(set(studies)))}
        study_N = np.array([index[study] for study in studies])
        # Reports of a study stand together, so that their rows can be added up.
        self._order_N = np.argsort(study_N, kind="stable")
        self._study_N = study_N[self._order_N]
        self._rating_N = np.asarray(rating_N, np.float64)[self._order_N]
        p = len(index)
        drawn_BP = np.random.default_rng(seed).multinomial(p, np.full(p, 1 / p), size=n_boot)
        # The first row is the sample itself.
        self._weights_BP = np.concatenate([np.ones((1, p)), drawn_BP]).astype(np.float32)
        self._ratings: dict[bytes, tuple[np.ndarray, ...]] = {}

    def of(self, values_N: np.ndarray, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (tau-b, rho), each (1 + n_boot,), the first of all reports; NaN where metric or rating is constant.

        values_N: the metric, higher for better reports. rows_N (bool): the reports that count.
        """
        rows_N = rows_N[self._order_N]
        x_n = np.asarray(values_N, np.float64)[self._order_N][rows_N]
        _, starts, study_n = np.unique(self._study_N[rows_N], return_index=True, return_inverse=True)
        kept_P = np.unique(self._study_N[rows_N])
        if not len(x_n):
            nothing = np.full(len(self._weights_BP), np.nan)
            return nothing, nothing
        key = rows_N.tobytes()
        if key not in self._ratings:
            t_nn = _signs(self._rating_N[rows_N])
            self._ratings[key] = t_nn, _added(np.abs(t_nn), starts), _rows_added(t_nn, starts)
        t_nn, tied_t_pp, ranks_t_pn = self._ratings[key]
        s_nn = _signs(x_n)
        both_pp, tied_s_pp, ranks_s_pn = (
            _added(s_nn * t_nn, starts), _added(np.abs(s_nn), starts), _rows_added(s_nn, starts),
        )  # fmt: skip
        taus, rhos = [], []
        for start in range(0, len(self._weights_BP), _CHUNK):
            w_Bp = self._weights_BP[start : start + _CHUNK][:, kept_P]
            w_Bn = w_Bp if len(kept_P) == len(x_n) else w_Bp[:, study_n]
            taus.append(_ratio(*(_dot(w_Bp @ m, w_Bp) for m in (both_pp, tied_s_pp, tied_t_pp))))
            x_Bn, y_Bn = w_Bp @ ranks_s_pn, w_Bp @ ranks_t_pn
            rhos.append(_ratio(*(_dot(a, b, w_Bn) for a, b in ((x_Bn, y_Bn), (x_Bn, x_Bn), (y_Bn, y_Bn)))))
        return np.concatenate(taus), np.concatenate(rhos)


def _signs(x_N: np.ndarray) -> np.ndarray:
    """Return the sign of x_j - x_i at (i, j)."""
    return (x_N[None, :] > x_N[:, None]).astype(np.int8) - (x_N[None, :] < x_N[:, None]).astype(np.int8)


def _rows_added(m_NN: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(m_NN, starts, axis=0, dtype=np.float32)


def _added(m_NN: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(_rows_added(m_NN, starts), starts, axis=1)


def _dot(*factors: np.ndarray) -> np.ndarray:
    """Return the sums of products along the rows, (B,)."""
    # What was summed until here is whole and below 2^24, exact in float32; these sums are not.
    first, *others = (f.astype(np.float64) for f in factors)
    for other in others[:-1]:
        first *= other
    return np.einsum("bn,bn->b", first, others[-1])


def _ratio(both_B: np.ndarray, x_B: np.ndarray, y_B: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((x_B > 0) & (y_B > 0), both_B / (np.sqrt(x_B) * np.sqrt(y_B)), np.nan)
