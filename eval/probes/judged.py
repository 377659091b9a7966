"""Images to probe with, and what a probe said of every test image.

A `Judged` keeps the answers themselves, so that any number (eval/probes/results.py), and a comparison with another
encoder, can be computed later. All probes end in one.

Shape letters: N images of a split, C features, M test images, L answers an image, D draws of training images.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.signature import signature


@dataclass(frozen=True)
class Part:
    """Images of one split: features (N, C); labels or numbers (N, L), NaN where not known; patients (N,); and
    optionally what the images are called.

    Raises ValueError for counts that differ and for features that are not finite.
    """

    x_NC: np.ndarray
    y_NL: np.ndarray
    patients: Sequence[Hashable]
    images: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "x_NC", np.asarray(self.x_NC))
        object.__setattr__(self, "y_NL", np.asarray(self.y_NL, np.float64))
        object.__setattr__(self, "patients", np.array([str(p) for p in self.patients], dtype=str))
        counts = [len(self.x_NC), len(self.y_NL), len(self.patients)]
        counts += [len(self.images)] if self.images is not None else []
        if len(set(counts)) > 1 or self.x_NC.ndim != 2 or self.y_NL.ndim != 2:
            raise ValueError(
                f"features {self.x_NC.shape}, labels {self.y_NL.shape}, patients and names of images {counts[2:]}: "
                "an image has a row of features, a row of labels and a patient"
            )
        odd = np.flatnonzero(~np.isfinite(self.x_NC).all(1))
        if len(odd):
            raise ValueError(f"features of {len(odd)} images are not finite, those of row {odd[0]} first")

    def __len__(self) -> int:
        return len(self.x_NC)

    def rows(self, which: np.ndarray) -> Part:
        """Return the images that `which`, indices or a mask, selects."""
        images = None if self.images is None else [self.images[i] for i in np.arange(len(self))[which]]
        return Part(self.x_NC[which], self.y_NL[which], self.patients[which], images)


def check_parts(names: Sequence[str], labels: bool = True, **parts: Part) -> None:
    """Raise ValueError if a patient is in two parts, if numbers of features or labels differ, and with
    `labels` for a label that is not 1, 0 or NaN."""
    for split, part in parts.items():
        if part.y_NL.shape[1] != len(names):
            raise ValueError(f"{split}: {part.y_NL.shape[1]} columns of labels, but {len(names)} names")
        known = part.y_NL[~np.isnan(part.y_NL)]
        if labels and not np.isin(known, (0, 1)).all():
            raise ValueError(f"{split}: labels are 1, 0 or NaN; found {known[~np.isin(known, (0, 1))][0]:g}")
    if len({part.x_NC.shape[1] for part in parts.values()}) > 1:
        raise ValueError(f"features of other widths: { {s: p.x_NC.shape[1] for s, p in parts.items()} }")
    splits = list(parts)
    for i, a in enumerate(splits):
        for b in splits[i + 1 :]:
            both = np.isin(parts[b].patients, parts[a].patients)
            if both.any():
                raise ValueError(
                    f"{len(np.unique(parts[b].patients[both]))} patients are in {a} and in {b} (row "
                    f"{np.flatnonzero(both)[0]} of {b} first): split by patient"
                )


@dataclass(frozen=True)
class Judged:
    """Answers of a probe: `scores_DML`, of several draws of the training images or of one (D = 1), NaN throughout
    where a draw gave no head. `floor_ML`, or (1, L) where it is the same for all, is what would have been said without
    looking. `choices` go into signatures; `chosen` says of every draw and answer what validation chose, or why not.

    Raises ValueError for shapes that do not fit, for answers that lack some of the images, and for choices that cannot
    be part of a signature.
    """

    names: list[str]
    truth_ML: np.ndarray
    scores_DML: np.ndarray  # float32
    floor_ML: np.ndarray
    patients: np.ndarray  # numbers of patients, (M,)
    images: list[str] | None = None
    choices: dict[str, str] = field(default_factory=dict)
    chosen: list[list[dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _, numbers = np.unique(np.asarray(self.patients).astype(str), return_inverse=True)
        first = {}
        for name, value in {
            "truth_ML": np.asarray(self.truth_ML, np.float64),
            "scores_DML": np.asarray(self.scores_DML, np.float32),
            "floor_ML": np.asarray(self.floor_ML, np.float64),
            "patients": np.array([first.setdefault(p, len(first)) for p in numbers.tolist()], dtype=np.int64),
        }.items():
            object.__setattr__(self, name, value)
        M, L = len(self.patients), len(self.names)
        fits = self.truth_ML.shape == (M, L) and self.scores_DML.shape[1:] == (M, L)
        if not fits or self.floor_ML.shape not in {(1, L), (M, L)}:
            raise ValueError(
                f"{M} patients and {L} names, but truth {self.truth_ML.shape}, scores {self.scores_DML.shape}, "
                f"floor {self.floor_ML.shape}"
            )
        nan = np.isnan(self.scores_DML) & ~np.isnan(self.truth_ML)
        if (nan.any(1) & ~np.isnan(self.scores_DML).all(1)).any():
            raise ValueError("some images have no answer; leave them out, or answer with the floor")
        signature("", **self.choices)

    def to_json(self) -> dict[str, Any]:
        """Return it as a dict for JSON: patients are numbers, answers keep float32's nine digits."""
        return {
            "names": self.names, "choices": self.choices, "chosen": self.chosen, "images": self.images,
            "patients": self.patients.tolist(), "truth": _listed(self.truth_ML), "floor": _listed(self.floor_ML),
            "scores": [_listed(scores_ML) for scores_ML in self.scores_DML],
        }  # fmt: skip

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Judged:
        """Make it anew from what `to_json` returned. Raises ValueError if the shapes do not fit."""
        L = len(found["names"])
        truth, floor, *scores = (
            np.array(x, dtype=np.float64).reshape(-1, L)
            for x in (found["truth"], found["floor"], *found["scores"])
        )
        return cls(
            found["names"], truth, np.stack(scores), floor, np.array(found["patients"]), found["images"],
            found["choices"], found["chosen"],
        )  # fmt: skip


def _listed(x: np.ndarray) -> list:
    digits = 9 if x.dtype == np.float32 else 17
    return [[None if v != v else float(f"{v:.{digits}g}") for v in row] for row in x.tolist()]
