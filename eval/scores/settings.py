"""Settings of `score` and `metric`, checked before anything is read. A message names the argument, what was got, and
what is accepted."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.scores.lexical import PROFILES
from eval.scores.r2gen import PROFILES as R2GEN
from eval.scores.readers import ScoreError
from eval.scores.weights import MODELS


class Settings(NamedTuple):
    """The settings of `score` that are numbers and names; `score` explains them."""

    intervals: bool
    seed: int
    min_support: int
    reference_labels: str
    profiles: tuple[str, ...]
    clinical_models: str | tuple[str, ...]
    weights: str | Path | None
    device: str | None


def checked(
    *,
    intervals: Any = True,
    seed: Any = 0,
    min_support: Any = 30,
    reference_labels: Any = "text",
    profiles: Any = tuple(PROFILES),
    clinical_models: Any = "auto",
    weights: Any = None,
    device: Any = None,
) -> Settings:
    """Return the settings in one form. Raises ScoreError for one that cannot be."""
    if reference_labels not in ("text", "study"):
        raise ScoreError(f"reference_labels is {_shown(reference_labels)}; accepted are 'text' and 'study'")
    if not isinstance(intervals, bool | np.bool_):
        raise ScoreError(f"intervals is True or False, not {_shown(intervals)}")
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise ScoreError(f"weights is the folder of the clinical models' weights, not {_shown(weights)}")
    # a torch.device, which this room does not import for
    if device is not None and not isinstance(device, str) and type(device).__name__ != "device":
        raise ScoreError(f"device is a name such as 'cpu' or 'cuda:1', not {_shown(device)}")
    if clinical_models is None:
        clinical_models = "none"
    if clinical_models not in ("auto", "none"):
        clinical_models = names(
            "clinical_models", clinical_models, "clinical model", MODELS, ("auto", "none")
        )
    return Settings(
        bool(intervals),
        whole("seed", seed, 0),
        whole("min_support", min_support, 0),
        reference_labels,
        names("profiles", profiles, "lexical profile", (*PROFILES, *R2GEN)),
        clinical_models,
        Path(weights) if isinstance(weights, os.PathLike) else weights,
        None if device is None else str(device),
    )


def whole(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int:
    """Return a whole number from `least` to `most`. Raises ScoreError for anything else."""
    if isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most:
        return int(value)
    upto = "" if most == 2**63 - 1 else f" and at most {most}"
    raise ScoreError(f"{name} must be a whole number of at least {least}{upto}, not {_shown(value)}")


def names(
    name: str, value: Any, kind: str, known: Collection[str], also: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return one name, or several, of those of a `kind` that are `known`. Raises ScoreError for anything else."""
    accepted = ", ".join((*also, *known))
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    found = tuple(dict.fromkeys(found)) if all(isinstance(one, str) for one in found) else found
    for one in found:
        if not isinstance(one, str):
            raise ScoreError(f"{name} are names, of {accepted}, not {_shown(one)}")
        if one not in known:
            raise ScoreError(f"no {kind} {_shown(one)}; there are {accepted}")
    return found


def texts(name: str, value: Any) -> list[Any]:
    """Return a list of texts. Raises ScoreError for one text, and if it is not a list."""
    if isinstance(value, str):
        raise ScoreError(f"{name} is one text, where a list of texts is meant")
    if not isinstance(value, Iterable):
        raise ScoreError(f"{name} must be a list of texts, not {type(value).__name__}")
    return list(value)


def _shown(value: Any) -> str:
    """Return a value in a message, short and without an address."""
    if isinstance(value, str | bytes | float | Integral | type(None)):
        try:
            return repr(value)[:40]
        except ValueError:
            return "a number of thousands of digits"
    return type(value).__name__
