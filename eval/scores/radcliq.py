"""RadCliQ v0 and v1 (Yu et al. 2023, Patterns 4, 100802): an affine map of four scores, fitted to the number of errors
that radiologists found in a report. Lower is better; it has no bounds, and is never inverted here.

The constants are those of the published models (rajpurkarlab/CXR-Report-Metric). v0 gives BLEU-2 a positive weight: a
better BLEU makes it worse. v1 gives it none. An identical report scores about -0.24 (v0) and -1.44 (v1), and more if it
has no relations, for those then count 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eval.scores.sheet import Sheet
from eval.signature import signature

FEATURES = ("radgraph", "bertscore", "chexbert-vector", "bleu-2")


class Constants(NamedTuple):
    """score = ((x - mean) / scale) @ coefficients + intercept, x in the order of FEATURES."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float


VERSIONS = {
    "v0": Constants(
        (0.5398376019082272, 0.6312549595000001, 0.7716797866672277, 0.4607372064809605),
        (0.3018344440559102, 0.22466950746141123, 0.24750333805236252, 0.30336670936092264),
        (-0.4796252644863446, -0.6762170542369337, -0.46366575161751994, 0.2165861905287535),
        1.641666666666666,
    ),
    "v1": Constants(
        (0.5379231241355762, 0.6175725628125001, 0.7647942121140658, 0.44738335396242174),
        (0.3028258411486429, 0.22430938459304575, 0.2539439110169773, 0.2989271671041838),
        (-0.37708368261038905, -0.37030009974480316, -0.25261621789593225, 4.315048405024756e-12),
        2.466552561323256e-10,
    ),
}


def radcliq(features_N4: np.ndarray, version: str) -> np.ndarray:
    """Return RadCliQ of features (..., 4) in the order of FEATURES, (...). Affine: the score of means is the
    mean score."""
    mean, scale, coefficients, intercept = VERSIONS[version]
    return (np.asarray(features_N4, np.float64) - mean) / scale @ np.array(coefficients) + intercept


def add_radcliq(sheet: Sheet, features_N4: np.ndarray, *, models: str, idf: bool) -> None:
    """Put `radcliq/v0` and `radcliq/v1` on a sheet. `models` are the first digits of the SHA-256 of the RadGraph,
    BERTScore and CheXbert weights, joined by "+"."""
    for version in VERSIONS:
        details = signature(f"radcliq-{version}", lower="better", idf="yes" if idf else "no", ckpt=models)
        key = f"radcliq/{version}{'/idf' if idf else ''}"
        sheet.add_mean(
            key, details, radcliq(features_N4, version), title=f"RadCliQ {version}{', idf' if idf else ''}",
            better="lower", headline=not idf, kind="number",
        )  # fmt: skip
