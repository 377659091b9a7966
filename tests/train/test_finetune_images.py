"""Features for fine-tuning on disk: an interrupted run keeps what it has, and what cannot be read is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image as Picture

from encoder.radiograph import read
from train.common.config import ConfigError
from train.finetune import images
from train.finetune.images import image_features, image_films


@pytest.fixture
def films(tmp_path):
    rng, found = np.random.default_rng(0), []
    for i in range(7):
        found.append(tmp_path / f"{i}.png")
        Picture.fromarray(rng.integers(0, 256, (40, 30 + i), dtype=np.uint8)).save(found[-1])
    found[2].write_bytes(b"no film")
    return found


def wanted(model, path):
    with torch.no_grad():
        tower, pixels = model.llava.model.vision_tower, model.preprocessing(read(path))[None]
        states = tower(pixels, output_hidden_states=True).hidden_states
    return torch.cat([states[i] for i in images.layers_of(model.llava)], -1)[0]


def watch(monkeypatch, stop=99):
    """The rows that are computed, batch by batch; interrupted before batch `stop`."""
    batches, real = [], images.tower_features

    def watched(tower, pixels, *rest):
        if len(batches) + 1 == stop:
            raise KeyboardInterrupt
        batches.append(len(pixels))
        return real(tower, pixels, *rest)

    monkeypatch.setattr(images, "tower_features", watched)
    return batches


def test_an_interrupted_run_resumes(findings_model, films, tmp_path, monkeypatch, capsys):
    model, folder, state = findings_model, tmp_path / "features", PartialState()
    # A batch is on the disk as soon as it is computed, as it is where batches take a minute.
    monkeypatch.setattr(images, "PATIENCE", -1)
    with monkeypatch.context() as patch:
        batches = watch(patch, stop=3)
        with pytest.raises(KeyboardInterrupt):
            image_features(model, films, folder, state, batch=2)
    assert batches == [2, 1] and not list(folder.glob("*.json"))
    (lines,) = folder.glob("*-0.jsonl")
    with lines.open("a") as file:
        file.write('{"row": 4')
    batches = watch(monkeypatch)
    capsys.readouterr()
    cached = image_features(model, films, folder, state, batch=2)
    out = capsys.readouterr().out
    assert batches == [2, 1] and "3/3 images" in out and f"left out, not_an_image: {films[2]}" in out
    assert films[2] not in cached and sorted(f.suffix for f in folder.iterdir()) == [".json", ".lock", ".npy"]
    for path in films[:2] + films[3:]:
        np.testing.assert_allclose(cached([path])[0], wanted(model, path), rtol=2e-3, atol=2e-3)
    batches.clear()
    assert image_features(model, films, folder, state).row_of == cached.row_of and not batches


def test_lines_without_their_file_are_no_rows(findings_model, films, tmp_path, monkeypatch):
    folder, state = tmp_path / "features", PartialState()
    monkeypatch.setattr(images, "PATIENCE", -1)
    with monkeypatch.context() as patch:
        watch(patch, stop=3)
        with pytest.raises(KeyboardInterrupt):
            image_features(findings_model, films, folder, state, batch=2)
    (array,) = folder.glob("*.npy")
    array.write_bytes(array.read_bytes()[:-1])
    batches = watch(monkeypatch)
    cached = image_features(findings_model, films, folder, state, batch=7)
    assert batches == [6]
    np.testing.assert_allclose(cached(films[:1])[0], wanted(findings_model, films[0]), rtol=2e-3, atol=2e-3)


def test_films_are_looked_at_once(findings_model, films, tmp_path, capsys):
    folder, state = tmp_path / "films", PartialState()
    found = image_films(findings_model, films, folder, state)
    assert found.readable == {*films} - {films[2]} and "7/7 images" in capsys.readouterr().out
    (done,) = folder.glob("*.json")
    assert json.loads(done.read_text()) == {"unreadable": [f"not_an_image: {films[2]}"]}
    assert image_films(findings_model, films, folder, state).readable == found.readable
    assert "7/7" not in capsys.readouterr().out


def test_no_images_at_all(findings_model, tmp_path):
    with pytest.raises(ConfigError, match="no study of split 'train'"):
        image_features(findings_model, [], tmp_path, PartialState())
