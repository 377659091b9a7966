"""The studies of a fine-tuning: which can be learned from, and what is shown of their images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from train.common.config import ConfigError
from train.common.studies import SPLITS, split_of, with_answer
from train.finetune.config import Finetune
from train.finetune.examples import Examples
from train.finetune.images import image_features, image_films
from vlm.model import FindingsModel
from vlm.prompts import answer_for, prompt_for, shown_images
from vlm.study import Study


def load_data(
    model: FindingsModel, studies: Sequence[Study], config: Finetune, state: PartialState
) -> dict[str, Examples]:
    """Return the Examples of splits `train` and `validate`. Collective.

    Raises:
        ConfigError: none is left to train on, because of what it lacks, its images or its length.
    """
    style = model.meta.prompt
    studies = with_answer(studies, style, config.studies)
    _check_lengths(model, studies, config)
    paths = list(dict.fromkeys(Path(image.path) for s in studies for _, image in shown_images(s, style)))
    place = Path(config.features_dir) if config.features_dir else Path(config.out) / "features"
    settings = (model, paths, place, state, config.feature_batch_size, config.dataloader_num_workers)
    if config.features == "cached":
        images = dict.fromkeys(SPLITS, image_features(*settings))
    else:
        films = image_films(*settings)
        images = {"train": films.with_augmentation(config.augment), "validate": films}
    data = {}
    for split in SPLITS:
        chosen = [study for study in studies if split_of(study) == split]
        dropout = config.context_dropout if split == "train" else 0.0
        data[split] = Examples(chosen, images[split], model, dropout, config.seed)
        before = len(data[split])
        data[split].keep([i for i in range(before) if data[split].words(i) <= config.max_length])
        if long := before - len(data[split]):
            state.print(f"{split}: {long} studies of more than {config.max_length} tokens left out")
        state.print(f"{split}: {len(data[split])} studies")
    if not len(data["train"]):
        raise ConfigError(
            f"{', '.join(config.studies)}: no study of split 'train' has an image that can be read, {style.section} "
            f"and at most {config.max_length} tokens (--max_length)"
        )
    data["validate"].keep(list(range(len(data["validate"])))[: config.eval_studies])
    return data


def _check_lengths(model: FindingsModel, studies: Sequence[Study], config: Finetune) -> None:
    """Raise ConfigError if every study for training is too long. It stops at the first that is not, so that nothing is
    read twice."""
    style, least = model.meta.prompt, None
    for study in studies:
        if split_of(study) == "train":
            words = words_of(model, study)
            if words <= config.max_length:
                return
            least = words if least is None else min(least, words)
    raise ConfigError(
        f"max_length is {config.max_length}, but the shortest prompt and {style.section} have {least} tokens beside "
        "the images'; give a larger --max_length"
    )


def words_of(model: FindingsModel, study: Study) -> int:
    """Return the tokens of a study's prompt and answer beside those of its images."""
    style = model.meta.prompt
    ids = model.prompt_ids(prompt_for(study, style)) + model.answer_ids(answer_for(study, style))
    return len(ids) - model.image_tokens * len(shown_images(study, style))
