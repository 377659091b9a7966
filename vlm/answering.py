"""A batch of studies, answered: images read and checked, words written, sentences scored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from encoder.radiograph import Limits
from vlm.decoding import Decoding, answer_logprobs, generate_ids, image_tokens
from vlm.films import Images, Task, blank_film, read_films
from vlm.model import FindingsModel
from vlm.outliers import Outliers
from vlm.prompts import sections_of
from vlm.repeats import without_repeats
from vlm.sentences import scored_sentences

# What may be asked for of every sentence.
Sentences = Literal["none", "confidence", "image_dependence"]


@dataclass(frozen=True)
class Settings:
    """Set how studies are answered."""

    decoding: Decoding
    images: Images = "own"
    sentences: Sentences = "none"
    static_cache: bool = False
    # write findings even of an image that is not a chest film
    insist: bool = False


class Answerer:
    """A model with what it knows of its own limits."""

    def __init__(self, model: FindingsModel, outliers: Outliers | None, limits: Limits | None) -> None:
        self.model, self.outliers, self.limits = model, outliers, limits

    def answer(self, tasks: Sequence[Task], root: Path, asked: Settings) -> None:
        """Put into the prediction of each task its findings, or why there are none."""
        started = time.perf_counter()
        good = self.readable(tasks, root, asked.images, asked.insist)
        if good:
            self._write(good, asked)
        seconds = (time.perf_counter() - started) / len(tasks)
        for task in tasks:
            task.pixels_ICHW = None
            task.prediction.seconds = round(seconds, 4)

    def readable(self, tasks: Sequence[Task], root: Path, images: Images, insist: bool) -> list[Task]:
        """Read the films of the tasks, and return those that can be written about; the predictions of the others say
        why not."""
        for task in tasks:
            if task.prediction.error is None:
                read_films(task, self.model, root, images, self.limits)
        good = [t for t in tasks if t.pixels_ICHW is not None]
        if good and self.outliers and images == "own":
            self._check_images(good, self.outliers, insist)
        return [t for t in good if t.prediction.error is None]

    def _write(self, tasks: Sequence[Task], asked: Settings) -> None:
        model = self.model
        pixels = torch.cat([t.pixels_ICHW for t in tasks if t.pixels_ICHW is not None])
        pixels = self.placed(pixels)
        prompts = [t.prompt_ids for t in tasks]
        with torch.inference_mode():
            seen = image_tokens(model.llava, pixels)
        if self.outliers and self.outliers.words is not None:
            self._check_words(tasks, self.outliers.words, pixels, seen)
        written = generate_ids(
            model.llava, model, prompts, pixels, asked.decoding, static=asked.static_cache, seen=seen
        )
        for i, task in enumerate(tasks):
            written[i] = self._tell(task, written[i], asked.decoding)
        if asked.sentences != "none":
            self._score(tasks, prompts, written, pixels, seen, asked.sentences == "image_dependence")

    def _tell(self, task: Task, ids: list[int], decoding: Decoding) -> list[int]:
        """Put the words into the prediction; returns the tokens that were kept."""
        tokenizer, most = self.model.tokenizer, decoding.max_new_tokens
        kept, repeats = without_repeats(tokenizer, ids)
        if repeats and decoding.stop_repeats:
            ids = kept
            task.warn(
                "repeats",
                "the model began to repeat itself, and the findings end there; check them with care",
            )
        elif repeats:
            task.warn("repeats", "the findings repeat themselves; check them with care")
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        for section, words in sections_of(text, self.model.meta.prompt.section).items():
            setattr(task.prediction, section, words)
        if len(ids) == most and ids[-1] != tokenizer.eos_token_id:
            task.warn("cut_off", f"the findings were cut off after {most} tokens; raise max_new_tokens")
        if not text:
            task.warn("empty", "the model wrote nothing")
        return ids

    def _score(
        self,
        tasks: Sequence[Task],
        prompts: list[list[int]],
        written: list[list[int]],
        pixels: Tensor,
        seen: Tensor,
        dependence: bool,
    ) -> None:
        """Say of every sentence how sure the model was."""
        llava, model = self.model.llava, self.model
        own = answer_logprobs(llava, model, prompts, written, pixels, seen)
        blank: Sequence[list[float] | None] = [None] * len(tasks)
        if dependence:
            grey = blank_film(model.preprocessing).to(pixels)
            blank = answer_logprobs(llava, model, prompts, written, grey.expand_as(pixels))
        for task, ids, one, other in zip(tasks, written, own, blank, strict=True):
            task.prediction.sentences = scored_sentences(model.tokenizer, ids, one, other)

    def _check_images(self, tasks: Sequence[Task], outliers: Outliers, insist: bool) -> None:
        """Warn of main images that are unlike those the model knows; write nothing if one is not a chest
        film."""
        first = self.placed(torch.stack([t.pixels_ICHW[0] for t in tasks if t.pixels_ICHW is not None]))
        found = outliers.judged(self.model.parts.vision_tower, first)
        for task, (distance, foreign) in zip(tasks, found, strict=True):
            if foreign and not insist:
                task.prediction.error = {"code": "abstained", "message": outliers.abstains(foreign)}
            elif foreign or distance > outliers.threshold:
                task.warn("out_of_distribution", outliers.message(max(distance, foreign)))

    def _check_words(self, tasks: Sequence[Task], limit: float, pixels: Tensor, seen: Tensor) -> None:
        """Warn of words that are unlike those the model learned with."""
        found = surprise(self.model, [t.prompt_ids for t in tasks], pixels, seen)
        for task, nats in zip(tasks, found, strict=True):
            if nats > limit:
                task.warn(
                    "unfamiliar_words",
                    f"the words of the study are unlike those the model learned with ({nats / limit:.1f} times the "
                    "usual surprise); they may lead it astray",
                )

    def placed(self, pixels: Tensor) -> Tensor:
        """Return pixels on the model's device, of its type."""
        like = next(self.model.llava.parameters())
        return pixels.to(like.device, like.dtype)


def surprise(
    model: FindingsModel, prompts: list[list[int]], pixels: Tensor, seen: Tensor | None = None
) -> list[float]:
    """Return the mean negative log-probability, in nats a token, of the words of each prompt that follow its images.

    `pixels` (images, 3, H, W) are those of the first prompt, then of the second, ...; `seen` what `image_tokens` made
    of them before.
    """
    image = model.config.image_token_id
    starts = [len(ids) - ids[::-1].index(image) if image in ids else 1 for ids in prompts]
    heads = [ids[:start] for ids, start in zip(prompts, starts, strict=True)]
    tails = [ids[start:] for ids, start in zip(prompts, starts, strict=True)]
    found = answer_logprobs(model.llava, model, heads, tails, pixels, seen)
    return [-sum(one) / max(1, len(one)) for one in found]
