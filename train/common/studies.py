"""The studies of a training: read, and chosen by what they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from train.common.config import ConfigError
from vlm.prompts import PromptStyle, answer_for, shown_image
from vlm.study import Study, absolute, load_studies, patients_across_splits

SPLITS = ("train", "validate")


def split_of(study: Study) -> str:
    """Return a study's split; one that has none is for training."""
    return study.split or "train"


def studies_of(listings: Sequence[str], state: PartialState) -> list[Study]:
    """Return the studies of files that are for training or validation, their paths absolute.

    Raises:
        StudyError: a line is not a study.
        ConfigError: no study is for training; the message says which splits there are.
    """
    found = [absolute(s, Path(path).parent) for path in listings for s in load_listing(path, state)]
    splits = Counter(map(split_of, found))
    if not splits["train"]:
        there = ", ".join(f"{count} of {split!r}" for split, count in sorted(splits.items())) or "no study"
        raise ConfigError(
            f"{', '.join(listings)}: no study is of split 'train' (there is {there}); a study without a split counts "
            "as one, and `cxr prepare` assigns splits"
        )
    return [study for study in found if split_of(study) in SPLITS]


def with_answer(
    studies: Sequence[Study], style: PromptStyle, listings: Sequence[str], images: bool = True
) -> list[Study]:
    """Return the studies that say what a model is to write, and with `images` have an image. Raises ConfigError, with
    what is lacking, if none for training does."""
    usable = [s for s in studies if answer_for(s, style) and (shown_image(s) or not images)]
    if not any(split_of(study) == "train" for study in usable):
        learned = [study for study in studies if split_of(study) == "train"]
        told = sum(bool(answer_for(study, style)) for study in learned)
        shown = f" and {sum(bool(shown_image(s)) for s in learned)} an image" if images else ""
        needed = "; a study needs both" if images else ""
        what = "findings and an impression" if style.section == "both" else style.section
        raise ConfigError(
            f"{', '.join(listings)}: of {len(learned)} studies of split 'train' {told} have {what}{shown}{needed}"
        )
    return usable


def load_listing(path: str | Path, state: PartialState) -> list[Study]:
    """Return the studies of a file, after a word of warning where splits share patients."""
    studies = load_studies(path)
    if shared := patients_across_splits(studies):
        state.print(
            f"warning: {len(shared)} patients of {path} are in several splits, so validation and test scores will be "
            f"too good; cxr studies check {path} names them"
        )
    return studies
