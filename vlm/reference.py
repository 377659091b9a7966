"""What a findings model takes for an ordinary study, from films and studies of its own domain: for `cxr outliers`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoder.progress import bar
from encoder.radiograph import InputError, read
from vlm.answering import surprise
from vlm.errors import ModelError
from vlm.films import Task, read_films
from vlm.load import load_model
from vlm.model import FindingsModel
from vlm.outliers import Outliers, embedding
from vlm.prediction import Prediction
from vlm.prompts import prompt_for, shown_image
from vlm.study import Study

# An image is not a chest film if it is this many times as far as 99 of 100 chest films that were left out of
# the fit. Measured on 1,840 real chest films of other sources: 2 % are farther.
NO_CHEST, CHEST_QUANTILE = 1.2, 0.99


def fit_outliers(
    model_dir: str | Path,
    image_paths: Sequence[Path],
    out: str | Path,
    *,
    quantile: float = 0.98,
    batch: int = 32,
    studies: Sequence[Study] = (),
    chest: Sequence[Path] = (),
    refused: list[str] | None = None,
) -> Outliers:
    """Fit to films of the model's own domain with its encoder, and write `out`.

    Args:
        image_paths: films of the model's own domain; those that cannot be read are left out.
        quantile: share of them that shall not be warned of, of their words likewise.
        studies: studies of that domain, image paths absolute: their main images count, and their words.
        chest: other chest films. With them, an image that is unlike these and its own is taken for no chest film.
        refused: gets the names of the films that cannot be read.

    Raises:
        ModelError: none of the films can be read, or too few.
    """
    model = load_model(model_dir)
    # Whose film it is; a path stands for a patient of its own.
    own = {Path(path): str(path) for path in image_paths}
    own |= {Path(image.path): s.patient_id or s.study_id for s in studies if (image := shown_image(s))}
    known_NC, known = features_of(model, list(own), batch, refused)
    patients = [own[path] for path in known]
    result = _fitted(known_NC, quantile, model, patients)
    if chest:
        others_NC, others = features_of(model, chest, batch, refused)
        x_NC, patients = torch.cat([known_NC, others_NC]), [*patients, *map(str, others)]
        result.chest = _fitted(x_NC, CHEST_QUANTILE, model, patients)
        result.chest.threshold = NO_CHEST
    if studies:
        parts = bar(batches(studies, batch), "words", -(-len(studies) // batch), unit="batches")
        nats = [x for part in parts for x in surprises(model, part)]
        if nats:
            result.words = float(np.quantile(nats, quantile))
    result.save(out)
    return result


def _fitted(x_NC: Tensor, quantile: float, model: FindingsModel, patients: Sequence[str]) -> Outliers:
    sha256 = model.meta.encoder_sha256
    try:
        return Outliers.fit(x_NC, quantile=quantile, encoder_sha256=sha256, patients=patients)
    except ValueError as error:
        raise ModelError(str(error)) from None


def features_of(
    model: FindingsModel, films: Sequence[Any], batch: int = 32, refused: list[str] | None = None
) -> tuple[Tensor, list[Any]]:
    """Return what the check looks at, (N, 17 C), of the films that can be read, and which these are. The names of the
    others are appended to `refused`.

    Raises ModelError where none can be read.
    """
    rows: list[Tensor] = []
    pixels: list[Tensor] = []
    readable: list[Any] = []

    def flush() -> None:
        if pixels:
            rows.append(embedding(model.parts.vision_tower, torch.stack(pixels)))
            pixels.clear()

    for film in bar(films, "films", len(films), unit="images"):
        try:
            pixels.append(model.preprocessing(read(film)))
        except InputError:
            if refused is not None:
                refused.append(str(film))
            continue
        readable.append(film)
        if len(pixels) == batch:
            flush()
    flush()
    if unreadable := len(films) - len(readable):
        print(f"{unreadable} images cannot be read and were left out", file=sys.stderr)
    if not rows:
        raise ModelError("none of the reference images could be read")
    return torch.cat(rows), readable


def surprises(model: FindingsModel, studies: Sequence[Study]) -> list[float]:
    """Return the surprise of each study's words beside its images, in nats a token; studies without a
    readable image are left out."""
    tasks = []
    for study in studies:
        ids = model.prompt_ids(prompt_for(study, model.meta.prompt))
        task = Task(study, Prediction(study.study_id), ids)
        read_films(task, model, Path(), "own", None)
        if task.pixels_ICHW is not None:
            tasks.append(task)
    if not tasks:
        return []
    pixels = torch.cat([t.pixels_ICHW for t in tasks if t.pixels_ICHW is not None])
    return surprise(model, [t.prompt_ids for t in tasks], pixels)


def batches(items: Sequence, size: int) -> Iterator[Sequence]:
    """Yield consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
