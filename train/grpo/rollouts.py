"""What trl's GRPOTrainer needs of a findings model: studies as rows of a data set, a processor that words and shows
them as `vlm` does, and rewards. Nothing here imports trl.

trl knows conversations whose messages hold images and text, and leaves it to the processor to make token ids and
pixels of them. So a prompt is a conversation of one message: its text is the whole prompt of `vlm.prompts`, image
tokens included, its images are paths. No chat template is involved, and what the model reads while it learns is what
it reads in `cxr generate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchFeature, LlavaProcessor

import eval
from encoder.radiograph import InputError, read
from eval.scores.readers import ScoreError
from train.common.config import ConfigError
from vlm.decoding import Decoding, generate_ids
from vlm.model import FindingsModel
from vlm.parts import put_tower
from vlm.projector import layers_of, normed, tower_features
from vlm.prompts import IMAGE_TOKEN, PromptStyle, answer_for, prompt_for, shown_images, with_images_of
from vlm.study import Study

# The column that rewards compare answers with.
REFERENCE = "reference"


def rows_of(studies: Sequence[Study], style: PromptStyle) -> list[dict[str, Any]]:
    """Return a row for each study that has an image and an answer: `prompt` (a conversation), `images`
    (paths, in the order of the image tokens), `reference` (what the study's radiologist wrote) and
    `study_id`."""
    rows = []
    for study in studies:
        images = [image.path for _, image in shown_images(study, style)]
        answer = answer_for(study, style).strip()
        if images and answer:
            prompt = [{"role": "user", "content": prompt_for(study, style)}]
            rows.append({"prompt": prompt, "images": images, REFERENCE: answer, "study_id": study.study_id})
    return rows


def unreadable(paths: Sequence[str]) -> list[str]:
    """Return the images that cannot be read, as "code: path". Each is decoded, as training will decode it."""
    found = []
    for path in paths:
        try:
            read(path)
        except InputError as error:
            found.append(f"{error.code}: {path}")
    return found


class Seen(nn.Module):
    """Stand in for the frozen vision tower: the "pixels" it is given are features that the tower made before,
    and it leaves them as they are (vlm.projector.FeatureTower standardises, in float32)."""

    def __init__(self, layers: Sequence[int]):
        super().__init__()
        # Features that are read after the norm are kept so.
        self.layers, self.final_norm = list(layers), nn.Identity()

    def forward(self, pixel_values: Tensor, **_) -> SimpleNamespace:
        """Split features (B, 1 + N, C layers) by layer and return them as a tower's hidden states."""
        parts = pixel_values.chunk(len(self.layers), dim=-1)
        return SimpleNamespace(
            hidden_states=dict(zip(self.layers, parts, strict=True)), last_hidden_state=parts[-1]
        )


class StudyProcessor(LlavaProcessor):
    """Conversations as `rows_of` makes them -> token ids, and what the tower sees in the images. Make it with `of`.
    trl calls three methods: `apply_chat_template`, the call, and `batch_decode`, which is the tokenizer's.

    trl runs the model two or three times on every answer, and the answers of a group share their images. So the tower
    is taken out of the model (`restore` puts it back), looks at every image once, and its features go for the pixels:
    half the time of a small model.
    """

    @classmethod
    def of(cls, model: FindingsModel) -> StudyProcessor:
        """Make the processor of a findings model, and take the model's tower out; `restore` puts it back."""
        stock = model.processor
        processor = cls(
            image_processor=stock.image_processor,
            tokenizer=stock.tokenizer,
            patch_size=stock.patch_size,
            vision_feature_select_strategy=stock.vision_feature_select_strategy,
            image_token=stock.image_token,
            num_additional_image_tokens=stock.num_additional_image_tokens,
        )
        processor.model, processor.features = model, {}
        processor.layers = layers_of(model.llava)
        processor.norm = normed(model.llava)
        processor.tower = model.parts.vision_tower.eval()
        put_tower(model.llava, Seen(processor.layers))
        return processor

    def restore(self) -> None:
        """Put the tower back into the model."""
        put_tower(self.model.llava, self.tower)

    def apply_chat_template(self, conversation: list, *, tokenize: bool = False, **_) -> Any:
        """Return the text of a conversation (of several: a list); with `tokenize` what the call makes of
        texts and images."""
        several = isinstance(conversation[0], list)
        texts, images = zip(*map(_text_and_images, conversation if several else [conversation]), strict=True)
        if tokenize:
            return self(list(images), list(texts))
        return list(texts) if several else texts[0]

    def __call__(self, images: list[list[str]], text: list[str], **_) -> BatchFeature:
        """Paths of the images of each text -> `input_ids` (lists, not padded) and `pixel_values`, the features
        (images, extra + N, C) in the order of the image tokens. Raises ConfigError where a text has not as many image
        tokens as images."""
        for words, paths in zip(text, images, strict=True):
            if words.count(IMAGE_TOKEN) != len(paths):
                raise ConfigError(
                    f"{words.count(IMAGE_TOKEN)} image tokens in a prompt with {len(paths)} images"
                )
        wanted = [path for paths in images for path in paths]
        once = dict.fromkeys(wanted)
        # Of the call before.
        self.features = {path: x for path, x in self.features.items() if path in once}
        if new := [path for path in once if path not in self.features]:
            weight = next(self.tower.parameters())
            pixels = torch.stack([self.model.preprocessing(read(path)) for path in new])
            seen = tower_features(self.tower, pixels.to(weight.device, weight.dtype), self.layers, self.norm)
            self.features |= dict(zip(new, seen, strict=True))
        ids = [self.model.prompt_ids(words) for words in text]
        return BatchFeature(
            {"input_ids": ids, "pixel_values": torch.stack([self.features[p] for p in wanted])}
        )


def _text_and_images(conversation: list[dict]) -> tuple[str, list[str]]:
    (message,) = conversation
    parts = message["content"]
    if isinstance(parts, str):
        return parts, []
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return text, [part["image"] for part in parts if part["type"] == "image"]


class Reward:
    """A reward as trl calls it: a key of `eval.metric` (label-f1/14/micro/neg), or your own function, which
    gets `completions` (texts) and the columns of `rows_of`, and returns as many numbers.

    Where no reward has a value, trl writes the whole row to the screen and continues; here that is a
    ConfigError which names the study.
    """

    def __init__(self, what: str | Callable, weights: str | None = None, device: str | None = None) -> None:
        self.__name__ = what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)
        try:
            key = isinstance(what, str)
            self.score = eval.metric(what, column=REFERENCE, weights=weights, device=device) if key else what
        except ScoreError as error:
            raise ConfigError(f"reward {what}: {error}") from error

    def __call__(self, completions: Sequence[Any], study_id: Sequence[str], **columns) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        values = [float(v) for v in self.score(completions=texts, study_id=study_id, **columns)]
        if len(values) != len(texts):
            raise ConfigError(f"reward {self.__name__} gave {len(values)} values for {len(texts)} answers")
        for value, study in zip(values, study_id, strict=True):
            if not math.isfinite(value):
                raise ConfigError(
                    f"reward {self.__name__} is {value} for an answer to study {study}; a reward needs a score that "
                    "single reports have, as label-f1/14/micro/neg, rouge-l/coco or radgraph-f1/radgraph/partial"
                )
        return values


class Groups(torch.utils.data.Sampler[int]):
    """Indices of the studies of `rounds` rounds: `batch` studies each, every one `group` times in a row, and every
    round `repeats` times. Drawn without replacement until all have been seen (a rest that makes no round is left out),
    and again; a function of `seed` alone, so that a resumed run sees the same."""

    def __init__(self, studies: int, batch: int, group: int, rounds: int, repeats: int, seed: int):
        self.studies, self.batch, self.group = studies, batch, group
        self.rounds, self.repeats, self.seed = rounds, repeats, seed

    def __len__(self) -> int:
        return self.rounds * self.repeats * self.batch * self.group

    def __iter__(self) -> Iterator[int]:
        generator, order = torch.Generator().manual_seed(self.seed), []
        for _ in range(self.rounds):
            if len(order) < self.batch:
                order = torch.randperm(self.studies, generator=generator).tolist()
            chosen, order = order[: self.batch], order[self.batch :]
            for _ in range(self.repeats):
                yield from (i for i in chosen for _ in range(self.group))


def answers(
    llava, processor: StudyProcessor, rows: Sequence[dict], most: int, batch: int, device: torch.device | str
) -> list[str]:
    """Generate what the model writes about each row under greedy decoding, at most `most` tokens."""
    texts = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        said = processor([r["images"] for r in part], [r["prompt"][0]["content"] for r in part])
        seen = said["pixel_values"].to(device)
        ids = generate_ids(
            llava, processor.model, said["input_ids"], seen, Decoding(most, stop_repeats=False)
        )
        texts += [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    return texts


def exchanged(studies: Sequence[Study], order: Sequence[int], style: PromptStyle) -> list[dict]:
    """Return the rows of the studies, each about the images of another."""
    return rows_of([with_images_of(s, studies[order[i]]) for i, s in enumerate(studies)], style)
