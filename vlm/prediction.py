"""What came of one study."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from encoder.radiograph import InputError


def is_prediction(row: Any) -> bool:
    """Say whether a decoded line of a predictions file can be one that `Prediction.to_json` made: findings or an error,
    every field of its kind, every number finite. A file may have been damaged, or edited."""
    if not isinstance(row, dict) or not isinstance(row.get("study_id"), str):
        return False
    said = [row.get(name) for name in ("findings", "impression", "error")]
    if any(text is not None and not isinstance(text, str) for text in said[:2]):
        return False
    if (said[2] is None) == (said[0] is None and said[1] is None):
        return False
    if said[2] is not None and not _texts(said[2], "code", "message"):
        return False
    sentences = row.get("sentences")
    if sentences is not None and not (
        isinstance(sentences, list) and all(_texts(x, "text") for x in sentences)
    ):
        return False
    for name in ("warnings", "images"):
        keys = ("code", "message") if name == "warnings" else ("role", "path")
        if not (isinstance(row.get(name, []), list) and all(_texts(x, *keys) for x in row.get(name, []))):
            return False
    try:
        json.dumps(row, allow_nan=False)
    except ValueError:
        return False
    return True


def _texts(x: Any, *keys: str) -> bool:
    return isinstance(x, dict) and all(isinstance(x.get(key), str) for key in keys)


@dataclass
class Prediction:
    """Hold the outcome of one study: findings or an error, never both."""

    study_id: str
    findings: str | None = None
    impression: str | None = None  # of models that write one
    error: dict[str, str] | None = None  # {"code", "message"}, codes as in encoder.radiograph
    patient_id: str | None = None
    model: str = ""
    revision: str = ""
    adapter_sha256: str | None = None
    preprocess_sha256: str = ""
    setup_sha256: str = ""  # of the prompt, the tokenizer and the reference of ordinary films
    decoding: dict[str, Any] = field(default_factory=dict)
    # {"role": Frontal | Lateral | Prior, "path"} of each image that the model was really shown, in their order in the
    # prompt: another study's where they were shuffled, none where they were blank or the study was refused.
    images: list[dict[str, str]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    sentences: list[dict[str, Any]] | None = None  # text, confidence, image_dependence; see vlm.decoding
    seconds: float = 0.0
    # The main film, small, uint8 (h, w), for notebooks to show. Kept by `model(...)` alone; never written.
    thumbnail: np.ndarray | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """Return the findings; the impression of a model that writes no findings; or both under their
        headings. Raises InputError if there are none."""
        if self.error is not None:
            raise InputError(self.error["code"], self.error["message"])
        if self.findings is None or self.impression is None:
            return (self.impression if self.findings is None else self.findings) or ""
        return f"{self.findings}\nImpression: {self.impression}"

    def to_json(self) -> dict[str, Any]:
        """Make a line of a predictions file."""
        row = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "thumbnail"}
        return {"schema": 1, **{k: v for k, v in row.items() if v is not None}}

    def __repr__(self) -> str:
        """Say what was found, shortened, and what was warned about."""
        if self.error is not None:
            said = f"error={self.error['code']!r}"
        else:
            said = repr(textwrap.shorten(self.text, 160, placeholder=" ..."))
        codes = list(dict.fromkeys(w["code"] for w in self.warnings))
        warned = f", warnings={codes}" if codes else ""
        return f"Prediction({self.study_id!r}, {said}, model={self.model!r}{warned})"

    def _repr_html_(self) -> str:
        """Show the film, the findings and the warnings in a notebook."""
        from encoder.radiograph.html import figure

        lines = [f"{self.study_id} ({self.model})"]
        warnings = [f"{w['code']}: {w['message']}" for w in self.warnings]
        if self.error is not None:
            warnings = [f"refused, {self.error['code']}: {self.error['message']}", *warnings]
        else:
            lines += self.text.split("\n")
        return figure(self.thumbnail, [*lines, "For research, not for diagnosis."], warnings)
