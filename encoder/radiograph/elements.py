"""Values of a DICOM header, taken as they are written. Nothing here raises on a damaged value."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

# Value representations that are text; what has another one is converted by pydicom.
TEXTS = {None, "DS", "IS", "UN", "LO", "SH", "CS", "ST", "LT", "UT"}
# PS3.5 6.2: a decimal string. Python's float would take "nan", "inf" and "1_0", too.
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.A)


def first(dataset: Dataset, key: str) -> Any:
    """Return the first value; None if it is missing or cannot be converted."""
    try:
        value = dataset.get(key)
    # pydicom converts on access and raises anything on a damaged value
    except Exception:
        return None
    if isinstance(value, MultiValue | list | tuple):
        return value[0] if value else None
    return value


def text(dataset: Dataset, key: str) -> str:
    """Return the first value as text without padding; "" if it is missing or damaged."""
    value = first(dataset, key)
    return "" if value is None else str(value).strip("\0 ")


def number(dataset: Dataset, key: str) -> float | None:
    """Return the first value as a float; None if it is missing, damaged or not finite."""
    try:
        value = float(first(dataset, key))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if np.isfinite(value) else None


def integer(dataset: Dataset, key: str, default: int) -> int:
    """Return the first value, truncated to an integer; `default` if it is missing, damaged or not finite."""
    value = number(dataset, key)
    return default if value is None else int(value)


def items(dataset: Dataset, key: str) -> list[Dataset]:
    """Return the items of a sequence; none if it is missing, damaged or not a sequence."""
    try:
        return [item for item in dataset.get(key) or [] if isinstance(item, Dataset)]
    except Exception:
        return []


def is_empty(dataset: Dataset, key: str) -> bool:
    """Tell whether a sequence is there and holds nothing. One that cannot be read counts as holding
    something."""
    try:
        value = dataset.get(key)
        return value is None or len(value) == 0
    except Exception:
        return False


def decimals(dataset: Dataset, key: str) -> list[float | None] | None:
    """Return all values of a decimal string; None for each that is not a finite number, and for an attribute
    that is absent. An empty attribute has no values: []."""
    tag = tag_for_keyword(key)
    if tag is None or tag not in dataset:
        return None
    try:
        element = dataset.get_item(tag)
        value: Any = element.value
        if isinstance(value, bytes):
            if element.VR in TEXTS:
                value = value.decode("latin-1")
            else:
                value = dataset.get(key)
    except Exception:
        return [None]
    if isinstance(value, str):
        value = value.strip("\0 ").split("\\") if value.strip("\0 \\") else []
    elif not isinstance(value, MultiValue | list | tuple):
        value = [] if value is None else [value]
    return [_decimal(one) for one in value]


def _decimal(value: Any) -> float | None:
    if isinstance(value, str):
        value = value.strip("\0 ")
        if not DECIMAL.fullmatch(value):
            return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if np.isfinite(found) else None
