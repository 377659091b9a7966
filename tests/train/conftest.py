"""Fixtures of `tests/tiny.py`, and a tiny fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import SMALL, calibrated_model, encoder_dir, findings_model, llm_dir, studies_file  # noqa: F401
from vlm.study import Image, Prior, load_studies, save_studies


@pytest.fixture(scope="session")
def features_dir(tmp_path_factory) -> Path:
    """Features that all fine-tunings share: most read the same films."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def train(encoder_dir, llm_dir, studies_file, features_dir, tmp_path):  # noqa: F811
    """Run train.finetune with tiny parts; OUT is below tmp_path."""
    from train.finetune.__main__ import main

    shared = [*SMALL, "--features_dir", str(features_dir)]

    def run(out: str, *more: str, studies: Path = studies_file, encoder: Path = encoder_dir) -> int:
        parts = [] if "--init" in more else ["--encoder", str(encoder), "--llm", str(llm_dir)]
        return main(["--studies", str(studies), "--out", str(tmp_path / out), *parts, *shared, *more])

    return run


@pytest.fixture
def several_images(studies_file):  # noqa: F811
    """Every third study with a lateral film, every fourth with a prior's; the images of others serve."""
    studies = load_studies(studies_file)
    for i, study in enumerate(studies):
        if i % 3 == 0:
            study.images.append(Image(studies[i - 1].images[0].path, "lateral"))
        if i % 4 == 0:
            study.prior = Prior(studies[i - 2].images, studies[i - 2].findings)
        study.age, study.sex = 20 + i, "FM"[i % 2]
    studies[6].images[1].path = "images/absent.png"  # is left out, the study stays
    file = studies_file.with_name("several.jsonl")
    save_studies(studies, file, overwrite=True)
    return file
