"""A baseline that writes no word of its own: the report of the training study whose X-ray is most similar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cxr.cli.terminal import UsageError
from encoder.progress import bar
from eval.baselines import nearest_by_features
from vlm.findings import Findings
from vlm.hub import resolve
from vlm.model import Meta
from vlm.prediction import Prediction
from vlm.predictions import write_rows
from vlm.prompts import fields_of
from vlm.study import Study, StudyError, absolute, load_studies, normalise_split


def training_bank(path: Path, model: str, studies: Sequence[Study]) -> list[Study]:
    """Return training studies that have images and the model's section, without patients and studies that are
    generated for. Raises UsageError if none is left."""

    def of_training(split: str | None) -> bool:
        try:
            return split is None or normalise_split(split) == "train"
        except StudyError:  # fold1, say
            return False

    fields = fields_of(Meta.load(resolve(model)).prompt.section)
    own, patients = {s.study_id for s in studies}, {s.patient_id for s in studies} - {None}
    bank = [
        absolute(s, path.parent)
        for s in load_studies(path)
        if all(getattr(s, name) for name in fields) and s.images and s.study_id not in own
        and s.patient_id not in patients and of_training(s.split)
    ]  # fmt: skip
    if not bank:
        raise UsageError(
            f"{path}: no training study is left: each has no {' or no '.join(fields)}, has no image, is among the "
            "studies to be described or of one of their patients, or is not of split 'train'"
        )
    return bank


def write_nearest(
    path: Path, model: Findings, studies: Sequence[Study], bank: Sequence[Study], batch_size: int
) -> int:
    """Write the nearest neighbours' reports as predictions; returns how many studies were refused."""
    fields = fields_of(model.model.meta.prompt.section)
    vectors = model.features(bar(bank, "training images"), batch_size=batch_size)
    known = [(vector, s) for s, vector in zip(bank, vectors, strict=True) if vector is not None]
    if not known:
        raise UsageError("no image of the training studies can be used")
    bank_MD, neighbours = np.stack([vector for vector, _ in known]), [study for _, study in known]

    def predictions() -> Iterator[Prediction]:
        for study, vector in zip(studies, model.features(studies, batch_size=batch_size), strict=True):
            made = Prediction(study.study_id, patient_id=study.patient_id, model="nearest neighbour by image")
            if vector is None:
                made.error = {"code": "no_features", "message": f"{study.study_id}: its image cannot be used"}
            else:
                nearest = nearest_by_features(vector[None], bank_MD, neighbours)[0]
                for name in fields:
                    setattr(made, name, getattr(nearest, name))
            yield made

    rows = [made.to_json() for made in bar(predictions(), "nearest neighbours", len(studies), unit="studies")]
    write_rows(path, rows)
    return sum("error" in row for row in rows)
