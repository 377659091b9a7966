"""Studies in, findings out.

model = Findings.from_pretrained("mini")
print(model("chest.dcm").text)
for prediction in model.generate(load_studies("studies.jsonl"), root="data"): ...
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from encoder.radiograph import InputError, Limits, read
from vlm import model as models
from vlm.decoding import Decoding, answer_logprobs, generate_ids, scored_sentences
from vlm.hub import resolve
from vlm.load import load_model
from vlm.outliers import Outliers, embedding
from vlm.prompts import prompt_for, sections_of, shown_image, shown_images, with_images_of
from vlm.study import Image, Study

IMAGES = ("true", "shuffled", "blank")
OUTLIERS = "ood.safetensors"
BLANK = 0.5  # grey level of the blank image of the floors
SORTED = 8  # batches whose studies are sorted by length before they are run, so that little is padded
CONFIDENCE = ("none", "confidence", "image_dependence")  # what may be asked for of every sentence


@dataclass
class Prediction:
    """What came of one study: findings or an error, never both."""

    study_id: str
    findings: str | None = None
    impression: str | None = None  # of models that write one
    error: dict[str, str] | None = None  # {"code", "message"}, codes as in encoder.radiograph
    patient_id: str | None = None
    model: str = ""
    revision: str = ""
    adapter_sha256: str | None = None
    preprocess_sha256: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    sentences: list[dict[str, Any]] | None = None  # text, confidence, image_dependence; see vlm.decoding
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """The findings, or of a model that writes no findings the impression; both under their headings of one that
        writes both. Raises InputError if there are none."""
        if self.error is not None:
            raise InputError(self.error["code"], self.error["message"], self.study_id)
        if self.findings is None or self.impression is None:
            return self.impression if self.findings is None else self.findings
        return f"{self.findings}\nImpression: {self.impression}"

    def to_json(self) -> dict[str, Any]:
        """A line of a predictions file."""
        row = {"schema": 1, **{k: getattr(self, k) for k in self.__dataclass_fields__}}
        return {k: v for k, v in row.items() if v is not None}


@dataclass
class _Task:
    study: Study  # whose words, and whose images
    prediction: Prediction
    prompt_ids: list[int]
    pixels_ICHW: Tensor | None = None  # of the images shown


class _Film(NamedTuple):
    """An image that was read."""

    pixels_CHW: Tensor
    warnings: list[dict[str, str]]


class Findings:
    """The findings model, ready to generate. `notice` is the line every user should be shown."""

    def __init__(
        self, model: models.FindingsModel, outliers: Outliers | None = None, limits: Limits | None = None
    ):
        self.model, self.outliers, self.limits = model, outliers, limits
        self.notice = model.meta.notice

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "mini",
        *,
        base: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        attention: str = "cxr",
        limits: Limits | None = None,
    ) -> Findings:
        """The shipped "mini", a merged or an adapter directory, or a hub id. Without `device` a GPU is used where there
        is one; `dtype` is float32 unless given. Raises vlm.model.ModelError."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:  # unknown, absent, or torch built without it
            why = str(error).partition("\n")[0]
            raise models.ModelError(f"device {str(device)!r} cannot be used here: {why}") from None
        model = load_model(name, base=base, attention=attention, dtype=dtype, device=device)
        folder = resolve(name)
        outliers = Outliers.load(folder / OUTLIERS) if (folder / OUTLIERS).is_file() else None
        if outliers and outliers.encoder_sha256 != model.meta.encoder_sha256:
            raise models.ModelError(
                f"{folder / OUTLIERS} was fitted with encoder {outliers.encoder_sha256[:12]}, the model has "
                f"{model.meta.encoder_sha256[:12]}; fit it again"
            )
        return cls(model, outliers, limits)

    def __call__(self, image: str | Path | Study) -> Prediction:
        """Findings of one image file or study."""
        return next(self.generate([image], batch_size=1))

    def generate(
        self,
        studies: Iterable[Study | str | Path],
        *,
        root: str | Path = ".",
        batch_size: int = 16,
        max_new_tokens: int | None = None,
        images: str = "true",
        seed: int = 0,
        decoding: Decoding | None = None,
        sentences: str = "none",
        only: Set[str] | None = None,
        static_cache: bool = False,
    ) -> Iterator[Prediction]:
        """Predictions in the order of `studies` (studies, or paths of single images; image paths are relative to
        `root`), `batch_size` at a time, greedily decoded unless `decoding` says otherwise. A study whose image cannot
        be used yields its error; of a lateral or prior image that cannot, a warning.

        `images` makes the floors: "shuffled" gives every study another study's images (a derangement drawn with
        `seed`), "blank" constant grey ones; the words of the prompt stay the study's own. `sentences` asks for the
        "confidence" of every sentence, or also its "image_dependence" (see vlm.decoding.scored_sentences), at the price
        of one or two passes more. `only` names the studies whose predictions are wanted: the images that others get
        when they are shuffled stay what they were. `static_cache` is for a GPU, where the step is compiled then.
        """
        if images not in IMAGES:
            raise ValueError(f"images={images!r} is unknown; there are {', '.join(IMAGES)}")
        if sentences not in CONFIDENCE:
            raise ValueError(f"sentences={sentences!r} is unknown; there are {', '.join(CONFIDENCE)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if static_cache and decoding and decoding.method == "beam":
            raise ValueError(
                "beam search moves its cache from row to row: a static one is for greedy decoding and sampling"
            )
        if decoding is None:
            decoding = Decoding(max_new_tokens or self.model.meta.max_new_tokens)
        if images == "shuffled":
            studies = [_as_study(s) for s in studies]
            order = derangement(len(studies), seed)
            studies = [with_images_of(s, studies[order[i]]) for i, s in enumerate(studies)]
        about = self.about(decoding, images, seed)
        remaining = (
            self._task(study, about)
            for study in map(_as_study, studies)
            if only is None or study.study_id in only
        )
        while tasks := list(islice(remaining, batch_size * SORTED)):
            by_length = sorted(tasks, key=lambda task: -len(task.prompt_ids))
            for start in range(0, len(tasks), batch_size):
                self._run(
                    by_length[start : start + batch_size],
                    Path(root),
                    images,
                    decoding,
                    sentences,
                    static_cache,
                )
            yield from (task.prediction for task in tasks)

    def features(
        self, studies: Iterable[Study], *, root: str | Path = ".", batch_size: int = 16
    ) -> Iterator[np.ndarray | None]:
        """What the encoder sees in each study's image, float32 (17 C,): CLS and a 4 x 4 grid of patches. None where the
        image cannot be used."""
        tower = models.vision_tower(self.model.llava)
        remaining = iter(studies)
        while several := list(islice(remaining, batch_size)):
            found = [self._pixels(root, image.path) if (image := shown_image(s)) else None for s in several]
            good = [x.pixels_CHW for x in found if isinstance(x, _Film)]
            vectors = iter(
                embedding(tower, torch.stack(good).to(self._device, self._dtype)).numpy() if good else ()
            )
            yield from (next(vectors) if isinstance(x, _Film) else None for x in found)

    def about(self, decoding: Decoding, images: str = "true", seed: int = 0) -> dict[str, Any]:
        """What every prediction says of the model and the decoding."""
        said = decoding.to_json()
        if images != "true":
            said |= {"images": images} | ({"seed": seed} if images == "shuffled" else {})
        if self._dtype != torch.float32:
            said["dtype"] = str(self._dtype).removeprefix("torch.")
        meta = self.model.meta
        return {
            "model": meta.name, "revision": self.model.revision, "adapter_sha256": self.model.adapter_sha256,
            "preprocess_sha256": meta.preprocess_sha256, "decoding": said,
        }  # fmt: skip

    def _task(self, study: Study, about: dict[str, Any]) -> _Task:
        prediction = Prediction(study.study_id, patient_id=study.patient_id, **deepcopy(about))
        return _Task(study, prediction, self.model.prompt_ids(prompt_for(study, self.model.meta.prompt)))

    def _run(
        self,
        tasks: list[_Task],
        root: Path,
        images: str,
        decoding: Decoding,
        sentences: str,
        static_cache: bool,
    ) -> None:
        started = time.perf_counter()
        for task in tasks:
            self._read(task, root, images)
        good = [t for t in tasks if t.pixels_ICHW is not None]
        if good:
            pixels = torch.cat([t.pixels_ICHW for t in good]).to(self._device, self._dtype)
            if self.outliers and images == "true":
                self._check(good)
            prompts = [t.prompt_ids for t in good]
            written = generate_ids(
                self.model.llava, self.model, prompts, pixels, decoding, static=static_cache
            )
            for task, ids in zip(good, written, strict=True):
                self._tell(task, ids, decoding.max_new_tokens)
            if sentences != "none":
                self._score(good, prompts, written, pixels, sentences == "image_dependence")
        seconds = (time.perf_counter() - started) / len(tasks)
        for task in tasks:
            task.pixels_ICHW = None
            task.prediction.seconds = round(seconds, 4)

    def _tell(self, task: _Task, ids: list[int], most: int) -> None:
        """Put the words into the prediction."""
        text = self.model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        for section, words in sections_of(text, self.model.meta.prompt.section).items():
            setattr(task.prediction, section, words)
        if len(ids) == most and ids[-1] != self.model.tokenizer.eos_token_id:
            self._warn(
                task, "cut_off", f"the findings were cut off after {most} tokens; raise max_new_tokens"
            )
        if not text:
            self._warn(task, "empty", "the model wrote nothing")

    def _score(self, tasks, prompts, written, pixels: Tensor, dependence: bool) -> None:
        llava, model = self.model.llava, self.model
        seen, blank = answer_logprobs(llava, model, prompts, written, pixels), [None] * len(tasks)
        if dependence:
            grey = model.preprocessing(np.full((8, 8), BLANK, np.float32)).to(pixels)
            blank = answer_logprobs(llava, model, prompts, written, grey.expand_as(pixels))
        for task, ids, one, other in zip(tasks, written, seen, blank, strict=True):
            task.prediction.sentences = scored_sentences(model.tokenizer, ids, one, other)

    def _read(self, task: _Task, root: Path, images: str) -> None:
        """The images shown. One that cannot be used is an error if it is the main one, else left out of the prompt."""
        style, study, films = self.model.meta.prompt, task.study, {}
        while bad := [shown for shown in shown_images(study, style) if shown.image.path not in films]:
            for role, image in bad:
                film = self._pixels(root, image.path)
                if isinstance(film, _Film):
                    films[image.path] = film
                    if images != "blank":
                        self._pass_on(task, role, image, film)
                elif role == "Frontal":
                    task.prediction.error = {"code": film.code, "message": str(film)}
                    return
                else:
                    self._warn(task, film.code, f"the {role.lower()} image was left out: {film}")
                    prior = study.prior
                    study = replace(
                        study,
                        images=[i for i in study.images if i.path != image.path],
                        prior=prior
                        and replace(prior, images=[i for i in prior.images if i.path != image.path]),
                    )
        if study is not task.study:
            task.study, task.prompt_ids = study, self.model.prompt_ids(prompt_for(study, style))
        films = [films[image.path].pixels_CHW for _, image in shown_images(study, style)]
        if not films:
            error = InputError("no_images", "the study has no image", study.study_id)
            task.prediction.error = {"code": error.code, "message": str(error)}
            return
        if images == "blank":
            grey = self.model.preprocessing(np.full((8, 8), BLANK, np.float32))
            films = [grey] * len(films)
        task.pixels_ICHW = torch.stack(films)

    def _pixels(self, root: str | Path, path: str) -> _Film | InputError:
        try:
            radiograph = read(Path(root) / path, self.limits)
        except InputError as error:
            return error
        warnings = [{"code": w.code, "message": w.message} for w in radiograph.warnings]
        return _Film(self.model.preprocessing(radiograph.pixels), warnings)

    def _pass_on(self, task: _Task, role: str, image: Image, film: _Film) -> None:
        """What the reader warned about; of a lateral film only where a frontal one is expected."""
        lateral_wanted = role == "Lateral"
        for warning in film.warnings:
            if not (lateral_wanted and warning["code"] == "lateral"):
                task.prediction.warnings.append(warning)
        if (
            image.view == "lateral"
            and not lateral_wanted
            and all(w["code"] != "lateral" for w in film.warnings)
        ):
            self._warn(task, "lateral", "a lateral view, as the study says")

    def _check(self, tasks: Sequence[_Task]) -> None:
        """Whether the main images are like those the model knows."""
        tower = models.vision_tower(self.model.llava)
        pixels_BCHW = torch.stack([t.pixels_ICHW[0] for t in tasks]).to(self._device, self._dtype)
        for task, distance in zip(tasks, self.outliers.distances(tower, pixels_BCHW).tolist(), strict=True):
            if distance > self.outliers.threshold:
                self._warn(task, "out_of_distribution", self.outliers.message(distance))

    @staticmethod
    def _warn(task: _Task, code: str, message: str) -> None:
        task.prediction.warnings.append({"code": code, "message": message})

    @property
    def _device(self) -> torch.device:
        return next(self.model.llava.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.llava.parameters()).dtype


def derangement(n: int, seed: int = 0) -> list[int]:
    """A random order in which nothing is in its own place (n = 1 has none: it stays). The positions are shuffled and
    each takes the next one's, so that every study's image is used once."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    result = [0] * n
    for place, following in zip(order, order[1:] + order[:1], strict=True):
        result[place] = following
    return result


def _as_study(item: Study | str | Path) -> Study:
    if isinstance(item, Study):
        return item
    path = Path(item)
    return Study(study_id=path.name, images=[Image(str(path.absolute()))])
