"""Studies as what a fine-tuning step takes: token ids, and what is shown of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.finetune.images import Cached, Films
from vlm.model import FindingsModel
from vlm.prompts import answer_for, dropped_out, prompt_for, shown_image, shown_images, with_images_of
from vlm.study import Image, Study


def spaced(count: int, most: int) -> list[int]:
    """Return numbers from 0 to `count` - 1, evenly spaced: all of them, or `most`."""
    return torch.linspace(0, count - 1, min(most, count)).long().tolist()


class Examples:
    """Hold the studies of a training as token ids and images.

    `images` has what is shown of an image, by its path. Studies whose main image it lacks are left out, and
    of the others the lateral or prior images that it lacks.

    An item `epoch * len(examples) + i` is study i as epoch `epoch` sees it. With `dropout`, each part of its
    context is left out with that probability, and its images may be augmented. Both are drawn from (seed,
    epoch, i) alone, so that a resumed run sees the same.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        images: Cached | Films,
        model: FindingsModel,
        dropout: float = 0.0,
        seed: int = 0,
    ):
        self.images, self.model = images, model
        self.style, self.dropout, self.seed = model.meta.prompt, dropout, seed
        self.studies = [self._readable(s) for s in studies if self._known(shown_image(s))]
        self.prompts = [self.prompt(s) for s in self.studies]
        self.answers = [model.answer_ids(answer_for(s, self.style)) for s in self.studies]
        self.lengths = [len(p) + len(a) for p, a in zip(self.prompts, self.answers, strict=True)]

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, item: int) -> dict:
        epoch, i = divmod(item, len(self))
        study, prompt = self.studies[i], self.prompts[i]
        if self.dropout:
            study = dropped_out(study, self.style, self.dropout, np.random.default_rng([self.seed, epoch, i]))
            prompt = self.prompt(study)
        return {
            "input_ids": prompt + self.answers[i],
            "answer_from": len(prompt),
            "images": self.images_of([study], np.random.default_rng([self.seed, epoch, i, 1])),
        }

    def prompt(self, study: Study) -> list[int]:
        """Return the token ids of a study's prompt, image tokens included."""
        return self.model.prompt_ids(prompt_for(study, self.style))

    def shown(self, i: int) -> list:
        """Return the images that the prompt of study i shows, in its order, as `shown_images` does."""
        return shown_images(self.studies[i], self.style)

    def words(self, i: int) -> int:
        """Count the tokens of study i without those of its images."""
        return self.lengths[i] - self.model.image_tokens * len(self.shown(i))

    def exchanged(self, i: int, other: int) -> tuple[list[int], Study]:
        """Return (prompt, study): the words of study i about the images of another."""
        study = with_images_of(self.studies[i], self.studies[other])
        return self.prompt(study), study

    def images_of(self, studies: Sequence[Study], draw: np.random.Generator | None = None) -> Tensor:
        """Return what is shown of the images of the studies, in the order of their prompts: features (images,
        tokens, C) or pixels (images, 3, H, W), augmented with what is drawn from `draw`."""
        return self.images([Path(i.path) for s in studies for _, i in shown_images(s, self.style)], draw)

    def first(self, wanted: Sequence[int]) -> Tensor:
        """Return the features (B, tokens, C) of the main images."""
        return self.images.features([Path(shown_image(self.studies[i]).path) for i in wanted])

    def keep(self, wanted: Sequence[int]) -> None:
        """Keep the studies with these indices, in this order, and drop the others."""
        for name in ("studies", "prompts", "answers", "lengths"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in wanted])

    def _known(self, image: Image | None) -> bool:
        return image is not None and Path(image.path) in self.images

    def _readable(self, study: Study) -> Study:
        prior = study.prior
        if prior:
            # Its other images are not shown in its place.
            before = shown_image(prior)
            prior = replace(prior, images=[before] if self._known(before) else [])
        main = shown_image(study)
        others = [i for i in study.images if i is main or not self.style.lateral or self._known(i)]
        return replace(study, images=others, prior=prior)
