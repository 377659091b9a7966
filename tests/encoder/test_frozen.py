"""Any encoder with one face: tokens are the model's own, features are computed once."""

from __future__ import annotations

import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from encoder import features, inputs, store
from encoder.convert import load_backbone, save_backbone
from encoder.errors import ModelError
from encoder.features import CONTENTS, extract
from encoder.frozen import encoder_of
from encoder.radiograph import read
from encoder.transforms import Preprocessing
from tests.tiny import make_encoder

PIXELS_B3HW = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def test_dinov2_tokens_are_transformers(folder):
    from transformers import AutoModel

    encoder, theirs = encoder_of(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = theirs(PIXELS_B3HW, output_hidden_states=True)
    tokens = encoder(PIXELS_B3HW)
    torch.testing.assert_close(tokens.cls_BC, out.pooler_output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.patches_BPC, out.last_hidden_state[:, 1:], rtol=1e-4, atol=1e-5)
    two = encoder(PIXELS_B3HW, layers=2).patches_BPC
    before = theirs.layernorm(out.hidden_states[-2])[:, 1:].detach()
    torch.testing.assert_close(
        two, torch.cat([before, out.last_hidden_state[:, 1:]], -1), rtol=1e-4, atol=1e-5
    )
    assert (encoder.width, encoder.grid) == (32, 4)


def test_a_file_gives_what_the_directory_gives(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path / "directory"
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, patch_size=7, image_size=28, mlp_ratio=2
    )  # heads of 64, which a file does not say
    Dinov2Model(config).save_pretrained(folder)
    Preprocessing(size=28).save_pretrained(folder)
    loaded = load_backbone(folder)
    save_backbone(loaded.backbone, tmp_path / "enc.safetensors", "dinov2")
    ours, theirs = encoder_of(tmp_path / "enc.safetensors"), encoder_of(folder)
    for layers in (1, 2):
        for a, b in zip(ours(PIXELS_B3HW, layers), theirs(PIXELS_B3HW, layers), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="2 layers"):
        ours(PIXELS_B3HW, 3)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_clip_and_siglip_give_what_they_pool(kind, tmp_path):
    import transformers

    torch.manual_seed(0)
    name = {"clip": "CLIPVision", "siglip": "SiglipVision"}[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, image_size=28, patch_size=7)
    model = getattr(transformers, f"{name}Model")(config).eval()
    model.save_pretrained(tmp_path)
    Preprocessing(size=28).save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(PIXELS_B3HW).pooler_output
    tokens = encoder_of(tmp_path)(PIXELS_B3HW)
    torch.testing.assert_close(tokens.cls_BC, wanted, rtol=1e-4, atol=1e-5)
    assert tokens.patches_BPC.shape == (2, 16, 32)
    with pytest.raises(ModelError, match="only images of 28 px"):
        encoder_of(tmp_path, size=56)


def test_random_weights_and_pixels(folder):
    a, b, again = (encoder_of(f"random:{folder}@{seed}") for seed in (1, 2, 1))
    one, two, three = (e(PIXELS_B3HW).cls_BC for e in (a, b, again))
    assert torch.equal(one, three) and not torch.allclose(one, two)
    assert a.sha256 == again.sha256 != b.sha256 and a.sha256 != encoder_of(folder).sha256
    pixels = encoder_of("pixels", size=56)
    x = torch.randn(1, 1, 56, 56).expand(-1, 3, -1, -1)
    tokens = pixels(x)
    assert tokens.cls_BC.shape == (1, 64**2) and tokens.patches_BPC.shape == (1, 16, 196)
    torch.testing.assert_close(tokens.patches_BPC[0, 5], x[0, 0, 14:28, 14:28].flatten())
    for wrong, message in (
        ("random:pixels", "no weights"),
        (f"random:{folder}@x", "number"),
        ("nothing", "pixels"),
    ):
        with pytest.raises(ModelError, match=message):
            encoder_of(wrong)


def test_features_are_computed_once_whatever_a_file_is_called(folder, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path in paths[:5]:
        Picture.fromarray(rng.integers(0, 255, (40, 40)).astype(np.uint8)).save(path)
    shutil.copy(paths[0], paths[5])  # the same image
    paths[6].write_bytes(b"nothing")
    asked = [*paths, tmp_path / "absent.png"]
    encoder, store, said = encoder_of(folder), tmp_path / "features", []
    found = extract(encoder, asked, store, patches=True, batch=2, say=said.append)
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5] and found.errors == {6: "not_an_image", 7: "unreadable"}
    assert np.array_equal(found.cls_NC[0], found.cls_NC[5]) and "6/6" in said[-1]
    pixels = torch.stack([encoder.preprocessing(read(p)) for p in paths[:5]])
    tokens = encoder.cpu()(pixels)  # extraction took it to a GPU, where there is one
    np.testing.assert_allclose(found.cls_NC[:5], tokens.cls_BC.numpy(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.patches([4, 1]), tokens.patches_BPC[[4, 1]], rtol=2e-3, atol=2e-3)

    moved = tmp_path / "moved.png"
    paths[3].rename(moved)
    (index,) = store.glob("*/index-0.jsonl")
    with index.open("a") as file:
        file.write('{"sha256": "cut o')
    said.clear()
    again = extract(encoder, [moved, paths[1]], store, patches=True, say=said.append)
    assert not said and np.array_equal(again.cls_NC, found.cls_NC[[3, 1]])
    other = extract(encoder, [paths[1]], store, say=said.append)  # CLS alone is another key
    assert said and len(list(store.glob("*/about.json"))) == 2
    with pytest.raises(ModelError, match="no patches"):
        other.patches([0])
    lines = (store / f"{CONTENTS}-0.jsonl").read_text().splitlines()
    assert len(lines) == 8 and set(json.loads(lines[0])) == {"path", "size", "mtime_ns", "sha256"}


def films(folder, n, seed=0):
    rng, paths = np.random.default_rng(seed), []
    for i in range(n):
        paths.append(folder / f"{seed}-{i}.png")
        Picture.fromarray(rng.integers(0, 255, (40, 40)).astype(np.uint8)).save(paths[-1])
    return paths


def test_an_interrupted_extraction_loses_only_what_was_not_written(folder, tmp_path, monkeypatch):
    """What was cut off (an index line, a digest) takes nothing else with it; what could not be read is tried again."""
    paths, store = films(tmp_path, 7), tmp_path / "features"
    bad = paths[6].read_bytes()
    paths[6].write_bytes(b"still on its way")
    encoder = encoder_of(folder)
    monkeypatch.setattr(features, "MOST", 2)
    calls, real = [], inputs.read

    def stopping(path, limits=None):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(path, limits)

    monkeypatch.setattr(inputs, "read", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract(encoder, paths, store, batch=1)
    monkeypatch.setattr(inputs, "read", real)
    (index,) = store.glob("*/index-0.jsonl")
    assert len(index.read_text().splitlines()) == 4
    for file in (index, store / f"{CONTENTS}-0.jsonl"):
        with file.open("a") as out:
            out.write('{"sha256": "cut o')
    said: list[str] = []
    found = extract(encoder, paths, store, batch=1, say=said.append)
    assert "3/3" in said[-1] and found.errors == {6: "not_an_image"}
    paths[6].write_bytes(bad)
    found = extract(encoder, paths, store, batch=1, say=said.append)
    assert "1/1" in said[-1] and len(found) == 7 and not found.errors
    whole = extract(encoder, paths, tmp_path / "whole", batch=7)
    np.testing.assert_allclose(found.cls_NC, whole.cls_NC, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean_NC, whole.mean_NC, rtol=1e-4, atol=1e-5)
    assert found.digests == whole.digests
    tokens = encoder.cpu()(torch.stack([encoder.preprocessing(read(p)) for p in paths]))
    np.testing.assert_allclose(whole.mean_NC, tokens.patches_BPC.mean(1).numpy(), rtol=1e-4, atol=1e-5)


def test_means_of_cells_say_where(folder, tmp_path):
    """Also where the patches cannot be divided evenly: then cells share some."""
    paths, encoder = films(tmp_path, 2), encoder_of(folder)
    g = encoder.grid
    tokens = encoder(torch.stack([encoder.preprocessing(read(p)) for p in paths])).patches_BPC
    maps = tokens.reshape(2, g, g, -1).numpy()
    for cells in (2, 3):
        found = extract(encoder, paths, tmp_path / "features", cells=cells).cells_NC.reshape(
            2, cells, cells, -1
        )
        for i, j in np.ndindex(cells, cells):
            (top, bottom), (left, right) = ((k * g // cells, -(-(k + 1) * g // cells)) for k in (i, j))
            wanted = maps[:, top:bottom, left:right].mean((1, 2))
            np.testing.assert_allclose(found[:, i, j], wanted, rtol=2e-3, atol=2e-3)
    assert extract(encoder, paths, tmp_path / "features").cells_NC is None


def test_two_runs_share_a_folder(folder, tmp_path):
    """Each waits for the other, and neither's features are overwritten."""
    both, found = [films(tmp_path, 6, seed=0), films(tmp_path, 6, seed=1)], {}
    encoders = [
        encoder_of(folder) for _ in both
    ]  # not in the threads, of which transformers' loading knows nothing

    def run(which):
        found[which] = extract(
            encoders[which], both[which], tmp_path / "features", batch=2, say=lambda x: None
        )

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        alone = extract(encoder_of(folder), both[i], tmp_path / f"alone{i}")
        np.testing.assert_allclose(found[i].cls_NC, alone.cls_NC, rtol=1e-4, atol=1e-5)


def test_a_disk_that_is_too_small_is_said_before(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match="GB left"):
        extract(encoder_of(folder), films(tmp_path, 6), tmp_path / "features", patches=True)


def test_layers_are_side_by_side_and_the_last_can_be_had_alone(folder, tmp_path):
    paths = films(tmp_path, 3)
    two = extract(encoder_of(folder), paths, tmp_path / "f", patches=True, layers=2)
    one = extract(encoder_of(folder), paths, tmp_path / "f", patches=True)
    assert two.patches([0, 2]).shape == (2, 16, 64)
    torch.testing.assert_close(two.last([0, 2]), one.patches([0, 2]))


def test_bfloat16_is_near_and_kept_apart(folder, tmp_path):
    paths = films(tmp_path, 3)
    whole = extract(encoder_of(folder), paths, tmp_path / "f")
    half = extract(encoder_of(folder), paths, tmp_path / "f", half=True)
    assert half.cls_NC.dtype == np.float32 and 0 < np.abs(half.cls_NC - whole.cls_NC).max() < 0.1
    assert len(list((tmp_path / "f").glob("*/about.json"))) == 2
