"""The images of a study that is to be written about: read, checked, and put into the model's form."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor

from encoder.radiograph import InputError, Limits, read
from encoder.radiograph.html import thumbnail
from encoder.transforms import Preprocessing
from vlm.errors import AskedError
from vlm.given import Held
from vlm.model import FindingsModel
from vlm.prediction import Prediction
from vlm.prompts import prompt_for, shown_images
from vlm.study import Image, Study

# Whose images a study is shown with: its own, another study's, or constant grey ones.
Images = Literal["own", "shuffled", "blank"]
# Pixels of the longer side of what a prediction keeps of its film: 64 kB, where a film takes up to 160 MB.
SMALL = 256
# Grey level of the blank image of the floors.
BLANK = 0.5


@dataclass
class Task:
    """Hold one study on its way to a prediction: its prompt, the images that are shown, and the warnings
    so far."""

    study: Study  # whose words, and whose images
    prediction: Prediction
    prompt_ids: list[int]
    pixels_ICHW: Tensor | None = None  # of the images shown
    # whether the prediction keeps a small picture of its main image
    keep_film: bool = False

    def warn(self, code: str, message: str) -> None:
        """Add a warning to the prediction; `code` is for programs, `message` for people."""
        self.prediction.warnings.append({"code": code, "message": message})


class Film(NamedTuple):
    """An image that was read."""

    pixels_CHW: Tensor
    warnings: list[dict[str, str]]
    thumbnail: np.ndarray | None = None


def images_named(images: str) -> Images:
    """Return the images of a name; "true" is what "own" was called, and is read for one release more. Raises
    AskedError."""
    if images == "true":
        warnings.warn("images='true' is called 'own' now", FutureWarning, stacklevel=3)
        return "own"
    if images not in get_args(Images):
        raise AskedError(f"images={images!r} is unknown; there are {', '.join(get_args(Images))}")
    return cast(Images, images)


def blank_film(preprocessing: Preprocessing) -> Tensor:
    """Return a constant grey image in the model's form, (3, H, W)."""
    return preprocessing(np.full((8, 8), BLANK, np.float32))


def read_films(task: Task, model: FindingsModel, root: Path, images: Images, limits: Limits | None) -> None:
    """Read the images shown, and say in the prediction which they were.

    One that cannot be used is left out of the prompt; the main one is replaced by another of the study that is not
    lateral, which the warning names, and is an error if there is none.
    """
    style, study, films = model.meta.prompt, task.study, {}
    # Warnings of main images that gave way: the study may be called by one of them.
    replaced: list[dict[str, str]] = []
    while bad := [shown for shown in shown_images(study, style) if shown.image.path not in films]:
        for role, image in bad:
            film = film_of(image, model.preprocessing, root, limits, task.keep_film and role == "Frontal")
            if isinstance(film, Film):
                films[image.path] = film
                if film.thumbnail is not None:
                    task.prediction.thumbnail = film.thumbnail
                if images != "blank":
                    _pass_on(task, role, image, film)
            elif role == "Frontal" and not _has_another(study, image):
                task.prediction.error = {"code": film.code, "message": film.sentence}
                return
            else:
                task.warn(film.code, f"the {role.lower()} image was left out: {film.message}")
                if role == "Frontal":
                    replaced.append(task.prediction.warnings[-1])
                prior = study.prior
                study = replace(
                    study,
                    images=[i for i in study.images if i.path != image.path],
                    prior=prior and replace(prior, images=[i for i in prior.images if i.path != image.path]),
                )
    for image in study.prior.images if study.prior and not style.prior_image else ():
        if not isinstance(image, Held) and not os.path.isfile(os.path.join(root, image.path)):
            task.warn("missing_file", "the prior image could not be used: there is no such file")
    if study is not task.study:
        task.study, task.prompt_ids = study, model.prompt_ids(prompt_for(study, style))
    seen = shown_images(study, style)
    shown = [films[image.path].pixels_CHW for _, image in seen]
    if not shown:
        task.prediction.error = {"code": "no_images", "message": f"{study.study_id}: the study has no image"}
        return
    if instead := next((image.path for role, image in seen if role == "Frontal"), None):
        for warning in replaced:
            warning["message"] += f". Shown in its place: {instead}"
    if images == "blank":
        shown = [blank_film(model.preprocessing)] * len(shown)
    else:
        task.prediction.images = [{"role": role, "path": image.path} for role, image in seen]
    task.pixels_ICHW = torch.stack(shown)


def _has_another(study: Study, main: Image) -> bool:
    """Tell whether a study has an image to show instead of its main one: not a lateral one, nor the same
    file."""
    return main.view != "lateral" and any(
        image.view != "lateral" and image.path != main.path for image in study.images
    )


def film_of(
    image: Image, preprocessing: Preprocessing, root: str | Path, limits: Limits | None, keep: bool = False
) -> Film | InputError:
    """Read one image; `keep` makes a thumbnail, too."""
    try:
        radiograph = read(image.source if isinstance(image, Held) else Path(root) / image.path, limits)
    except InputError as error:
        return error
    warned = [{"code": w.code, "message": w.message} for w in radiograph.warnings]
    return Film(preprocessing(radiograph), warned, thumbnail(radiograph.pixels, SMALL) if keep else None)


def _pass_on(task: Task, role: str, image: Image, film: Film) -> None:
    """Pass on what the reader warned about; of a lateral film only where a frontal one is expected."""
    lateral_wanted = role == "Lateral"
    for warning in film.warnings:
        if not (lateral_wanted and warning["code"] == "lateral"):
            task.prediction.warnings.append(warning)
    if image.view == "lateral" and not lateral_wanted and all(w["code"] != "lateral" for w in film.warnings):
        task.warn("lateral", "a lateral view, as the study says")
