"""Which studies belong to which subgroup: by sex, age and view, where the studies say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

AGES = ((0, "under 18"), (18, "18 to 39"), (40, "40 to 64"), (65, "65 to 79"), (80, "80 and over"))  # years


def subgroups(studies: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], np.ndarray]:
    """Map (attribute, value) to bool (N,). Studies without the attribute belong to no group; a value that all
    share is left out."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for attribute, of, order in (
        ("sex", _sex, ("F", "M")),
        ("age", _age, tuple(name for _, name in AGES)),
        ("view", _view, ("PA", "AP", "frontal", "lateral", "several")),
    ):
        values = [of(study) for study in studies]
        others = sorted(set(values) - {None, *order})
        if len(set(values)) > 1:
            for value in (*order, *others):
                members_N = np.array([v == value for v in values])
                if members_N.any():
                    found[attribute, value] = members_N
    return found


def _sex(study: Mapping[str, Any]) -> str | None:
    value = study.get("sex")
    return (value.strip().upper()[:1] or None) if isinstance(value, str) else None


def _age(study: Mapping[str, Any]) -> str | None:
    age = study.get("age")
    if isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age <= 130:
        return None
    return next(name for least, name in reversed(AGES) if age >= least)


def _view(study: Mapping[str, Any]) -> str | None:
    images = study.get("images")
    images = images if isinstance(images, list) else []
    found = (image.get("view") for image in images if isinstance(image, Mapping))
    views = {view for view in found if isinstance(view, str)} - {"unknown", ""}
    return None if not views else "several" if len(views) > 1 else views.pop()
