"""Studies in, findings out.

model = Findings.from_pretrained("mini")
print(model("chest.dcm").text)
print(model(array, indication="Fever", prior="old.dcm").text)
for prediction in model.generate(load_studies("studies.jsonl"), root="data"): ...
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence, Set, Sized
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast, get_args, overload

import numpy as np
import torch

from encoder.radiograph import Limits, Source
from encoder.radiograph.html import figure
from vlm import model as models
from vlm.answering import Answerer, Sentences, Settings
from vlm.decoding import Decoding
from vlm.errors import AskedError, ModelError
from vlm.films import Film, Images, Task, film_of, images_named
from vlm.given import (
    Beside,
    Given,
    GivenPrior,
    Misfit,
    Told,
    as_study,
    fill,
    images_of,
    one_each,
    several,
    unused,
    whole_number,
)
from vlm.hub import resolve
from vlm.load import dtype_of, load_model, usable
from vlm.notices import tell
from vlm.outliers import Outliers, embedding
from vlm.prediction import Prediction
from vlm.prompts import shown_image, shown_with
from vlm.room import check_memory, check_room, fit
from vlm.study import OLDEST, Image, Study, is_age

if TYPE_CHECKING:
    from vlm.verdicts import Calibration
    from vlm.verify import Verification, Verifier

OUTLIERS = "ood.safetensors"
CALIBRATION = "verify.json"
SORTED = 8  # batches whose studies are sorted by length before they are run, so that little is padded


class Asked(Told, total=False):
    """The keywords of `Findings.__call__`."""

    root: str | Path
    batch_size: int
    max_new_tokens: int | None
    decoding: Decoding | None
    sentences: Sentences


class Findings:
    """The findings model, ready to generate. `notice` is the line every user should be shown.

    What a prediction warns of is also told by `warnings.warn`, once a kind a process, and so is the notice of a model
    that is loaded; `warn=False` is for programs that show both themselves.
    """

    def __init__(
        self,
        model: models.FindingsModel,
        outliers: Outliers | None = None,
        limits: Limits | None = None,
        warn: bool = True,
        insist: bool = False,
        calibration: Path | None = None,
    ) -> None:
        if not isinstance(model, models.FindingsModel):
            raise AskedError(
                f"Findings(...) takes a model that is loaded; use Findings.from_pretrained({model!r})"
            )
        self.model, self.outliers, self.limits = model, outliers, limits
        self.warn, self.insist, self._calibration = warn, insist, calibration
        self.notice = model.meta.notice

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "mini",
        *,
        base: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        attention: str = "cxr",
        limits: Limits | None = None,
        warn: bool = True,
        insist: bool = False,
    ) -> Findings:
        """Load the shipped "mini", a merged or an adapter directory, or a hub id. Without `device` a GPU is used where
        there is one; `dtype` is float32 unless given, as torch.bfloat16 or "bf16". `insist` writes findings even of
        images that the model takes for no chest film. Raises vlm.model.ModelError, or AskedError for a type that no
        weights can have."""
        model = load_model(name, base=base, attention=attention, dtype=dtype_of(dtype), device=usable(device))
        folder = resolve(name)
        # a folder in its place is an error, and no reason to do without the check
        outliers = Outliers.load(folder / OUTLIERS) if (folder / OUTLIERS).exists() else None
        if outliers and outliers.encoder_sha256 != model.meta.encoder_sha256:
            raise ModelError(
                f"{folder / OUTLIERS} was fitted with encoder {outliers.encoder_sha256[:12]}, the model has "
                f"{model.meta.encoder_sha256[:12]}; fit it again"
            )
        if outliers:
            outliers.check_tower(model.parts.vision_tower, folder / OUTLIERS)
        calibration = folder / CALIBRATION if (folder / CALIBRATION).exists() else None
        if warn and model.meta.notice:
            tell(f"notice of {model.meta.name}", f"{model.meta.name}: {model.meta.notice}")
        return cls(model, outliers, limits, warn, insist, calibration)

    @overload
    def __call__(
        self, images: list[Given] | tuple[Given, ...], **asked: Unpack[Asked]
    ) -> list[Prediction]: ...

    @overload
    def __call__(self, images: Given, **asked: Unpack[Asked]) -> Prediction: ...

    def __call__(
        self,
        images: Given | list[Given] | tuple[Given, ...],
        *,
        indication: str | list[str | None] | None = None,
        prior: GivenPrior | list[GivenPrior | None] | None = None,
        age: float | list[float | None] | None = None,
        sex: str | list[str | None] | None = None,
        view: str | list[str | None] | None = None,
        lateral: Source | Image | list[Source | Image | None] | None = None,
        root: str | Path = ".",
        batch_size: int = 16,
        max_new_tokens: int | None = None,
        decoding: Decoding | None = None,
        sentences: Sentences = "none",
    ) -> Prediction | list[Prediction]:
        """Write the findings of one image or study, or of a list of them, `batch_size` at a time.

        An image is whatever `encoder.radiograph.read` reads: a path, bytes, an open file, a Pillow image, a NumPy array
        or torch tensor, a pydicom Dataset, a Radiograph; or an Image of a study. Of arrays and tensors, uint8 and
        uint16 are the stored levels of a picture, and floating-point numbers must lie in [0, 1], dark = air;
        encoder/radiograph/arrays.py has the rule. Equal pixels give equal findings, whatever holds them.

        Args:
            indication: why the X-ray was taken.
            prior: the examination before: a Study, an image, a text of findings, or (image, text). A str is an image if
                it names a file, or ends as a picture's name does (.dcm, .png, .jpg); else it is the text.
            age: years.
            sex: "F" or "M".
            view: of the image: PA, AP, frontal or lateral.
            lateral: a lateral image beside it.
            root: the folder that image paths of studies are relative to.
            batch_size: images that go through the model together.
            max_new_tokens: the longest answer, in tokens; the model's own length unless given.
            decoding: how words are chosen, as in `generate`.
            sentences: what is said of each sentence, as in `generate`.

        With a list of images, or a column of their names, what is told beside them (from `indication` to `lateral`) may
        be a list or column, too, with one entry, or None, for each; anything else is told of all. A warning,
        `not_used`, names what the model's prompt has no place for.

        Raises:
            StudyError: a keyword is of another kind, or a study says something else already.
            AskedError: a setting is out of its range.
            TypeError: an image is none of the above.
        An image that cannot be used raises nothing: its prediction has an `error`, which `Prediction.text` raises.
        """
        listed = images_of(images)
        items: Sequence[Given] = [cast(Given, images)] if listed is None else listed
        told = Told(indication=indication, prior=prior, age=age, sex=sex, view=view, lateral=lateral)
        if listed is None and any(isinstance(value, list) for value in told.values()):
            raise TypeError("a keyword is a list, but there is one image; lists are for a list of images")
        each = one_each(told, len(items))
        names = [f"image {i}" for i in range(len(items))] if listed is not None else ["image"]
        studies = [
            fill(as_study(item, name), beside) for item, name, beside in zip(items, names, each, strict=True)
        ]
        found = []
        made = self._predictions(
            studies,
            Path(root),
            batch_size,
            decoding or self._decoding(max_new_tokens),
            sentences,
            keep_films=True,
            count=len(studies),
        )
        for study, beside, prediction in zip(studies, each, made, strict=True):
            if idle := unused(study, beside, self.model.meta.prompt):
                message = f"the model's prompt has no place for: {', '.join(idle)}"
                prediction.warnings.append({"code": "not_used", "message": message})
            found.append(self._say(prediction))
        return found[0] if listed is None else found

    def generate(
        self,
        studies: Iterable[Given],
        *,
        root: str | Path = ".",
        batch_size: int = 16,
        max_new_tokens: int | None = None,
        images: Images = "own",
        seed: int = 0,
        decoding: Decoding | None = None,
        sentences: Sentences = "none",
        only: Set[str] | None = None,
        static_cache: bool = False,
    ) -> Iterator[Prediction]:
        """Yield predictions in the order of `studies` (studies, or single images of any kind; image paths of studies
        are relative to `root`), `batch_size` at a time, greedily decoded unless `decoding` says otherwise. A study
        whose image cannot be used yields its error; a lateral or prior image that cannot is left out with a warning.

        `images` makes the floors: "shuffled" gives every study another study's images (a derangement drawn with
        `seed`), "blank" constant grey ones; the words of the prompt stay the study's own. `sentences` asks for the
        "confidence" of every sentence, or also its "image_dependence" (see vlm.decoding.scored_sentences), at the price
        of one or two passes more. `only` names the studies whose predictions are wanted: the images that others get
        when they are shuffled stay what they were. `static_cache` is for a GPU, where the step is compiled then.
        """
        images = images_named(images)
        if isinstance(only, str):
            raise AskedError(f"only is a set of study ids, not one: {{{only!r}}}")
        seed = whole_number("seed", seed, 0)
        studies = several(studies, "of one image or study ask model(x)")
        named: Iterable[Study] = (as_study(item, f"image {i}") for i, item in enumerate(studies))
        named = shown_with(named, images, seed)
        if only is not None:
            named = (study for study in named if study.study_id in only)
        made = self._predictions(
            named, Path(root), batch_size, decoding or self._decoding(max_new_tokens), sentences,
            images=images, seed=seed, static_cache=static_cache,
            count=len(studies) if isinstance(studies, Sized) else None,
        )  # fmt: skip
        return map(self._say, made)

    def verify(
        self,
        image: Given,
        report: str,
        *,
        root: str | Path = ".",
        omissions: bool = True,
        calibration: Calibration | None = None,
        **told: Unpack[Beside],
    ) -> Verification:
        """Say of each sentence of a report whether the image bears it out, and what the report leaves out.

        Args:
            image: an image or study, as of `model(image)`; `told` are that call's keywords from `indication` on.
            report: an English report of a chest.
            root: the folder that image paths of a study are relative to.
            omissions: whether to look for what is left out, for which the model writes a report of its own.
            calibration: the model's own unless given (vlm/verdicts.py).

        Raises AskedError where the model has no calibration. Files of reports: `cxr verify`, `Verifier.verify`.
        """
        study = fill(as_study(image, "image"), told)
        return next(self.verifier(calibration).verify([(study, report)], root=root, omissions=omissions))

    @cached_property
    def calibration(self) -> Calibration | None:
        """Return the model's calibration of verify (vlm/verdicts.py), None where it has none. Raises ModelError for a
        damaged one."""
        # What reads reports is not imported where they are only written.
        from vlm.verdicts import Calibration

        return Calibration.load(self._calibration) if self._calibration else None

    def verifier(self, calibration: Calibration | None = None) -> Verifier:
        """Return what verifies many reports. Raises AskedError where the model has no calibration, or another one's."""
        from vlm.verify import Verifier

        calibration = calibration or self.calibration
        if calibration is None:
            raise AskedError(
                f"{self.model.meta.name} has no calibration of verify, which says how sure a doubt is; make one with "
                "cxr calibrate STUDIES --model MODEL"
            )
        return Verifier(self, calibration)

    def _predictions(
        self,
        studies: Iterable[Study],
        root: Path,
        batch_size: int,
        decoding: Decoding,
        sentences: Sentences,
        *,
        images: Images = "own",
        seed: int = 0,
        static_cache: bool = False,
        keep_films: bool = False,
        count: int | None = None,
    ) -> Iterator[Prediction]:
        """Check the settings now, and make the predictions when they are asked for."""
        if sentences not in get_args(Sentences):
            raise AskedError(
                f"sentences={sentences!r} is unknown; there are {', '.join(get_args(Sentences))}"
            )
        batch_size = whole_number("batch_size", batch_size, 1)
        if not isinstance(decoding, Decoding):
            raise AskedError(
                f"decoding must be a Decoding, as Decoding(method='beam', beams=4) of vlm.decoding, not {decoding!r}"
            )
        if static_cache and decoding.method == "beam":
            raise AskedError(
                "beam search moves its cache from row to row: a static one is for greedy decoding and sampling"
            )
        check_room(self.model, decoding.max_new_tokens)
        check_memory(self.model, decoding, batch_size, count)
        about = self.about(decoding, images, seed)
        asked = Settings(decoding, images, sentences, static_cache, self.insist)
        answerer = Answerer(self.model, self.outliers, self.limits)
        remaining = (self._task(study, about, decoding, keep_films) for study in studies)

        def made() -> Iterator[Prediction]:
            while tasks := list(islice(remaining, batch_size * SORTED)):
                by_length = sorted(tasks, key=lambda task: -len(task.prompt_ids))
                for start in range(0, len(tasks), batch_size):
                    batch = by_length[start : start + batch_size]
                    answerer.answer(batch, root, asked)
                yield from (task.prediction for task in tasks)

        return made()

    def _decoding(self, max_new_tokens: int | None) -> Decoding:
        if max_new_tokens is None:
            return Decoding(self.model.max_new_tokens)
        return Decoding(whole_number("max_new_tokens", max_new_tokens, 1))

    def _say(self, prediction: Prediction) -> Prediction:
        """Tell a Python user of each kind of warning once. The study is not named: file names may name patients."""
        if self.warn:
            for warning in prediction.warnings:
                code, message = warning["code"], warning["message"]
                tell(code, f"{message} [{code}] (told once; each prediction has its own `warnings`)")
        return prediction

    def features(
        self, studies: Iterable[Given], *, root: str | Path = ".", batch_size: int = 16
    ) -> Iterator[np.ndarray | None]:
        """Yield what the encoder sees in each study's image, float32 (17 C,): CLS and a 4 x 4 grid of patches. None
        where the image cannot be used."""
        tower = self.model.parts.vision_tower
        batch_size = whole_number("batch_size", batch_size, 1)
        given = several(studies, "give [x] of one")
        remaining = iter(as_study(item, f"image {i}") for i, item in enumerate(given))
        while batch := list(islice(remaining, batch_size)):
            found = [
                film_of(image, self.model.preprocessing, root, self.limits)
                if (image := shown_image(s))
                else None
                for s in batch
            ]
            good = [x.pixels_CHW for x in found if isinstance(x, Film)]
            vectors = iter(
                embedding(tower, torch.stack(good).to(self._device, self._dtype)).numpy() if good else ()
            )
            yield from (next(vectors) if isinstance(x, Film) else None for x in found)

    @cached_property
    def setup_sha256(self) -> str:
        """Return a hex digest of what answers depend on beside the weights, the pixels and the decoding: the
        prompt, the tokenizer, and the reference of ordinary films and words."""
        reference = self.outliers.sha256 if self.outliers else ""
        tokenizer = self.model.tokenizer
        whole = getattr(tokenizer, "backend_tokenizer", None)
        tokens = whole.to_str() if whole else tokenizer.get_vocab()
        setup = [asdict(self.model.meta.prompt), tokenizer.chat_template, tokens, reference]
        return hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()

    def about(self, decoding: Decoding, images: Images = "own", seed: int = 0) -> dict[str, Any]:
        """Say of the model and the decoding what every prediction says."""
        said, images = decoding.to_json(), images_named(images)
        if images != "own":
            said |= {"images": images} | ({"seed": seed} if images == "shuffled" else {})
        if self.insist:
            said["insist"] = True
        if self._dtype != torch.float32:
            said["dtype"] = str(self._dtype).removeprefix("torch.")
        meta = self.model.meta
        return {
            "model": meta.name, "revision": self.model.revision, "adapter_sha256": self.model.adapter_sha256,
            "preprocess_sha256": meta.preprocess_sha256, "setup_sha256": self.setup_sha256, "decoding": said,
        }  # fmt: skip

    def _task(self, study: Study, about: dict[str, Any], decoding: Decoding, keep_film: bool) -> Task:
        prediction = Prediction(study.study_id, patient_id=study.patient_id, **deepcopy(about))
        if isinstance(study, Misfit):
            prediction.error = {"code": "bad_study", "message": study.why}
            return Task(study, prediction, [])
        fitted = fit(study, self.model, decoding.max_new_tokens)
        task = Task(fitted.study, prediction, fitted.ids, keep_film=keep_film)
        if fitted.room is not None and len(fitted.ids) > fitted.room:
            message = (
                f"its images and the question take {len(fitted.ids)} tokens, and the model has {fitted.room}"
            )
            prediction.error = {
                "code": "too_long",
                "message": f"{message}; give fewer images or max_new_tokens",
            }
        if not is_age(study.age):
            task.warn("bad_age", f"the age is left out: it is not a number of years from 0 to {OLDEST}")
        if fitted.cut and prediction.error is None:
            task.warn(
                "words_cut",
                f"{', '.join(fitted.cut)} was cut: the model takes {fitted.room} tokens of a study",
            )
        return task

    def __repr__(self) -> str:
        """Say what is loaded, where, and what it is asked."""
        return f"Findings({', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        """Show the same in a notebook, with the notice."""
        return figure(None, [", ".join(self._facts()), self.notice])

    def _facts(self) -> list[str]:
        meta, style = self.model.meta, self.model.meta.prompt.to_json()
        told = [name for name, value in style.items() if value is True]
        return [
            repr(meta.name), f"writes {style['section']}", f"is told {', '.join(told) or 'nothing'}",
            f"{self.model.preprocessing.size} px", f"{self._device}, {str(self._dtype).removeprefix('torch.')}",
        ]  # fmt: skip

    @property
    def _device(self) -> torch.device:
        return next(self.model.llava.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.llava.parameters()).dtype
