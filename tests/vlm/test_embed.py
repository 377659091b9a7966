"""`cxr embed`: features of a folder, interrupted and gone on with."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cxr.cli.main import main
from encoder import embed as embedding
from encoder import inputs
from encoder.convert import save_backbone
from encoder.embed import done, read_features
from encoder.frozen import encoder_of
from encoder.radiograph import read
from encoder.transforms import Preprocessing
from encoder.vit import CropViT


@pytest.fixture
def encoder_file(tmp_path):
    torch.manual_seed(0)
    vit = CropViT(28, 14, 64, 2, 1, layerscale=0.5).eval()
    save_backbone(vit, tmp_path / "encoder", "transformers", Preprocessing(size=28))
    return vit, str(tmp_path / "encoder")


@pytest.fixture
def films(tmp_path):
    folder, rng = tmp_path / "films", np.random.default_rng(0)
    (folder / "deeper").mkdir(parents=True)
    for i in range(7):
        pixels = rng.integers(0, 255, (40, 50), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("deeper" if i % 2 else ".") / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    return folder


def test_features_are_the_encoders(encoder_file, films, tmp_path, capsys):
    vit, model = encoder_file
    out = tmp_path / "out"
    assert (
        main(["embed", str(films), "--model", model, "--out", str(out), "--patches", "--batch-size", "3"])
        == 3
    )
    assert "7 images, 1 refused" in capsys.readouterr().err
    found = dict(read_features(out))
    assert len(found) == 7 and not any("broken" in path or "notes" in path for path in found)
    for path, features in found.items():
        with torch.inference_mode():
            tokens = vit.forward_features(Preprocessing(size=28)(read(path))[None])[0]
        torch.testing.assert_close(features["cls"], tokens[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features["patches"], tokens[1:], rtol=1e-4, atol=1e-5)
    errors = [row for row in done(out).values() if "error" in row]
    assert len(errors) == 1 and errors[0]["path"].endswith("broken.png")
    about = json.loads((out / "embed.json").read_text())
    assert about["encoder"] == "encoder" and len(about["encoder_sha256"]) == 64 and about["patches"]


def test_an_interrupted_run_goes_on(encoder_file, films, tmp_path, monkeypatch, capsys):
    model, out, whole = encoder_file[1], tmp_path / "out", tmp_path / "whole"
    monkeypatch.setattr(embedding, "PER_FILE", 2)
    assert main(["embed", str(films), "--model", model, "--out", str(whole)]) == 3
    calls, real = [], inputs.read

    def interrupted(path, limits=None):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(path, limits)

    monkeypatch.setattr(inputs, "read", interrupted)
    assert main(["embed", str(films), "--model", model, "--out", str(out)]) == 130
    kept = {p.name: p.read_bytes() for p in out.glob("features-*.safetensors")}
    assert 0 < len(done(out)) < 8
    with (out / "index.jsonl").open("a") as index:
        index.write('{"path": "cut o')  # the machine went down while this was written
    monkeypatch.setattr(inputs, "read", real)
    capsys.readouterr()
    assert main(["embed", str(films), "--model", model, "--out", str(out)]) == 3
    assert "are in" in capsys.readouterr().err
    assert {name: (out / name).read_bytes() for name in kept} == kept  # nothing was done twice
    a, b = dict(read_features(out)), dict(read_features(whole))
    assert a.keys() == b.keys() and all(torch.allclose(a[k]["cls"], b[k]["cls"], atol=1e-5) for k in a)
    assert not list(out.glob("*.part"))
    before = (out / "index.jsonl").read_bytes()
    assert main(["embed", str(films), "--model", model, "--out", str(out)]) == 3
    assert (out / "index.jsonl").read_bytes() == before


def test_other_choices_need_another_folder(encoder_file, films, tmp_path, capsys):
    model, out = encoder_file[1], tmp_path / "out"
    assert main(["embed", str(films), "--model", model, "--out", str(out), "--dtype", "fp16"]) == 3
    assert load_file(out / "features-00000.safetensors")["cls"].dtype == torch.float16
    assert main(["embed", str(films), "--model", model, "--out", str(out)]) == 2
    assert "dtype fp16 (now fp32)" in capsys.readouterr().err
    shutil.rmtree(films)
    assert main(["embed", str(films), "--model", model, "--out", str(out)]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_shipped_model(films, tmp_path, capsys):
    assert main(["embed", str(films), "--out", str(tmp_path / "out")]) == 3
    assert next(iter(read_features(tmp_path / "out")))[1]["cls"].shape == (192,)


@pytest.mark.parametrize("kind", ["clip", "siglip", "timm", "pixels"])
def test_any_encoder(kind, tower_dirs, films, tmp_path, capsys):
    model, out = str(tower_dirs[kind]) if kind != "pixels" else kind, tmp_path / "out"
    assert main(["embed", str(films), "--model", model, "--out", str(out), "--patches"]) == 3
    encoder = encoder_of(model)
    for path, features in read_features(out):
        tokens = encoder(encoder.preprocessing(read(path))[None])
        torch.testing.assert_close(features["cls"], tokens.cls_BC[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features["patches"], tokens.patches_BPC[0], rtol=1e-4, atol=1e-5)
    if kind != "pixels":
        capsys.readouterr()
        more = ["--size", "56", "--out", str(tmp_path / "other")]
        assert main(["embed", str(films), "--model", model, *more]) == 2
        assert "only images of 28 px" in capsys.readouterr().err
