"""Views and ages as people write them."""

from __future__ import annotations

import re

VIEWS = (  # decubitus first: "left lateral decubitus" is a frontal film
    ("frontal", re.compile(r"decub|\b[LR]LD\b", re.I)),
    ("lateral", re.compile(r"\b[LR]?LAT|^ ?[LR]L ?$", re.I)),
    ("PA", re.compile(r"\bP ?A\b|postero ?anterior", re.I)),  # also "p.a."
    ("AP", re.compile(r"\bA ?P\b|antero ?posterior", re.I)),
    ("frontal", re.compile(r"\bfrontal", re.I)),
)


AGE_UNITS = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1, "": 1}  # in a year; some leave the Y out


def parse_view(text: str) -> str:
    """Read a view as people write it ("Chest PA", "LATERAL", "CHEST_AP_PORT") -> PA, AP, frontal, lateral or
    unknown. A text that names several, such as "PA and lateral", names none."""
    text = re.sub(r"[\W_]+", " ", text)
    if VIEWS[0][1].search(text):
        return "frontal"
    found = {name for name, pattern in VIEWS if pattern.search(text)}
    if found & {"PA", "AP"}:
        found.discard("frontal")
    return found.pop() if len(found) == 1 else "unknown"


def parse_age(text: str) -> float | None:
    """Return years from DICOM's "045Y", "006M", "003W", "010D", or from a plain number; None for anything
    else."""
    found = re.fullmatch(r"\s*(\d{1,3}(?:\.\d*)?)\s*([DWMY]?)\s*", text.upper())
    years = float(found[1]) / AGE_UNITS[found[2]] if found else None
    return years if years is not None and years <= 120 else None
