"""Studies in, findings out.

model = Findings.from_pretrained("mini")
print(model("chest.dcm").text)
for prediction in model.generate(load_studies("studies.jsonl"), root="data"): ...
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoder.radiograph import InputError, Limits, read
from vlm import model as models
from vlm.outliers import Outliers, embedding
from vlm.prompts import prompt_for, shown_image
from vlm.study import Image, Study

IMAGES = ("true", "shuffled", "blank")
OUTLIERS = "ood.safetensors"
BLANK = 0.5  # grey level of the blank image of the floors


@dataclass
class Prediction:
    """What came of one study: findings or an error, never both."""

    study_id: str
    findings: str | None = None
    error: dict[str, str] | None = None  # {"code", "message"}, codes as in encoder.radiograph
    patient_id: str | None = None
    model: str = ""
    revision: str = ""
    adapter_sha256: str | None = None
    preprocess_sha256: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """The findings. Raises InputError if there are none."""
        if self.error is not None:
            raise InputError(self.error["code"], self.error["message"], self.study_id)
        return self.findings

    def to_json(self) -> dict[str, Any]:
        """A line of a predictions file."""
        row = {"schema": 1, **{k: getattr(self, k) for k in self.__dataclass_fields__}}
        return {k: v for k, v in row.items() if v is not None}


@dataclass
class _Task:
    study: Study
    path: Path | None
    view: str
    prediction: Prediction
    prompt_ids: list[int] = field(default_factory=list)
    pixels_CHW: Tensor | None = None


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
        model = models.load(name, base=base, attention=attention, dtype=dtype, device=device)
        folder = models.resolve(name)
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
    ) -> Iterator[Prediction]:
        """Predictions in the order of `studies` (studies, or paths of single images; image paths are relative to
        `root`), greedily decoded, `batch_size` at a time. A study whose image cannot be used yields its error.

        `images` makes the floors: "shuffled" gives every study another study's image (a derangement drawn with `seed`),
        "blank" a constant grey one; the words of the prompt stay the study's own.
        """
        if images not in IMAGES:
            raise ValueError(f"images={images!r} is unknown; there are {', '.join(IMAGES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        most = max_new_tokens or self.model.meta.max_new_tokens
        if images == "shuffled":
            studies = [_as_study(s) for s in studies]
            shown = [studies[i] for i in derangement(len(studies), seed)]
        batch: list[_Task] = []
        for i, item in enumerate(studies):
            study = _as_study(item)
            batch.append(
                self._task(study, shown[i] if images == "shuffled" else study, Path(root), images, most, seed)
            )
            if len(batch) == batch_size:
                yield from self._run(batch, images, most)
                batch = []
        if batch:
            yield from self._run(batch, images, most)

    def features(
        self, studies: Iterable[Study], *, root: str | Path = ".", batch_size: int = 16
    ) -> Iterator[np.ndarray | None]:
        """What the encoder sees in each study's image, float32 (17 C,): CLS and a 4 x 4 grid of patches. None where the
        image cannot be used."""
        tower = models.vision_tower(self.model.llava)
        remaining = iter(studies)
        while several := list(islice(remaining, batch_size)):
            tasks = [self._task(study, study, Path(root), "true", 1, 0) for study in several]
            for task in tasks:
                self._read(task, "true")
            good = [t.pixels_CHW for t in tasks if t.pixels_CHW is not None]
            found = iter(
                embedding(tower, torch.stack(good).to(self._device, self._dtype)).numpy() if good else ()
            )
            yield from (None if task.pixels_CHW is None else next(found) for task in tasks)

    def _task(self, study: Study, shown: Study, root: Path, images: str, most: int, seed: int) -> _Task:
        meta = self.model.meta
        decoding = {"method": "greedy", "max_new_tokens": most}
        if images != "true":
            decoding |= {"images": images} | ({"seed": seed} if images == "shuffled" else {})
        prediction = Prediction(
            study.study_id,
            patient_id=study.patient_id,
            model=meta.name,
            revision=self.model.revision,
            adapter_sha256=self.model.adapter_sha256,
            preprocess_sha256=meta.preprocess_sha256,
            decoding=decoding,
        )
        image = shown_image(shown)
        if image is None:
            return _Task(study, None, "unknown", prediction)
        return _Task(study, root / image.path, image.view, prediction)

    def _run(self, tasks: list[_Task], images: str, most: int) -> list[Prediction]:
        started = time.perf_counter()
        for task in tasks:
            self._read(task, images)
        good = [t for t in tasks if t.pixels_CHW is not None]
        if good:
            pixels_BCHW = torch.stack([t.pixels_CHW for t in good]).to(self._device, self._dtype)
            if self.outliers and images == "true":
                self._check(good, pixels_BCHW)
            written = generate_ids(
                self.model.llava, self.model, [t.prompt_ids for t in good], pixels_BCHW, most
            )
            for task, ids in zip(good, written, strict=True):
                text = self.model.tokenizer.decode(ids, skip_special_tokens=True).strip()
                task.prediction.findings = text
                if len(ids) == most and ids[-1] != self.model.tokenizer.eos_token_id:
                    self._warn(
                        task,
                        "cut_off",
                        f"the findings were cut off after {most} tokens; raise max_new_tokens",
                    )
                if not text:
                    self._warn(task, "empty", "the model wrote nothing")
        seconds = (time.perf_counter() - started) / len(tasks)
        for task in tasks:
            task.prediction.seconds = round(seconds, 4)
        return [t.prediction for t in tasks]

    def _read(self, task: _Task, images: str) -> None:
        try:
            if task.path is None:
                raise InputError("no_images", "the study has no image", task.study.study_id)
            radiograph = read(task.path, self.limits)
        except InputError as error:
            task.prediction.error = {"code": error.code, "message": str(error)}
            return
        pixels_HW = radiograph.pixels
        if images == "blank":
            pixels_HW = np.full_like(pixels_HW, BLANK)
        else:
            task.prediction.warnings += [{"code": w.code, "message": w.message} for w in radiograph.warnings]
            if task.view == "lateral" and all(w.code != "lateral" for w in radiograph.warnings):
                self._warn(task, "lateral", "a lateral view, as the study says")
        task.pixels_CHW = self.model.preprocessing(pixels_HW)
        task.prompt_ids = self.model.prompt_ids(prompt_for(task.study, self.model.meta.prompt))

    def _check(self, tasks: Sequence[_Task], pixels_BCHW: Tensor) -> None:
        tower = models.vision_tower(self.model.llava)
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


@torch.inference_mode()
def generate_ids(
    llava: torch.nn.Module,
    model: models.FindingsModel,
    prompts: list[list[int]],
    pixels: Tensor,
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy token ids after each prompt, up to and with the end-of-sequence token. `pixels` is (B, 3, H, W), or
    features (B, 1 + N, C) where a FeatureTower stands for the tower. Prompts are padded on the left."""
    tokenizer = model.tokenizer
    n = max(map(len, prompts))
    ids_BN = torch.full((len(prompts), n), tokenizer.pad_token_id)
    mask_BN = torch.zeros_like(ids_BN)
    for row, prompt in enumerate(prompts):
        ids_BN[row, n - len(prompt) :] = torch.tensor(prompt)
        mask_BN[row, n - len(prompt) :] = 1
    out_BN = llava.generate(
        input_ids=ids_BN.to(pixels.device),
        attention_mask=mask_BN.to(pixels.device),
        pixel_values=pixels,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
    )
    rows = out_BN[:, n:].tolist()
    eos = tokenizer.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


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
