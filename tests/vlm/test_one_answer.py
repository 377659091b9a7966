"""One picture, one answer: plain transformers, in a process that cannot import this project, gives the numbers and the
words that `Findings` gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file
from transformers import AutoProcessor

from encoder.radiograph import read
from tests.tiny import FAST_START
from vlm import Findings
from vlm import model as models
from vlm.decoding import Decoding
from vlm.load import load_model

# Run with the exported model's directory, a file to write and the pictures.
PLAIN = r"""
import contextlib, io, json, pathlib, re, sys

class Walls:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name} is not to be had here")

OURS = {"cxr", "vlm", "encoder", "train", "eval"}
sys.meta_path.insert(0, Walls())

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.image_utils import load_image

torch.set_num_threads(1)
folder, out, *paths = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
pipe = pipeline("image-text-to-text", model=model, processor=processor)
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Findings:"}]}]
prompt = processor.apply_chat_template(chat, tokenize=False)
films = [load_image(path) for path in paths]
seen = processor(images=films, text=[prompt] * len(films), return_tensors="pt", add_special_tokens=False)
ids = model.generate(**seen)[:, seen["input_ids"].shape[1]:]
words = {"generate": processor.batch_decode(ids, skip_special_tokens=True)}
options = {"return_full_text": False}
# in a batch: one after the other takes several times as long
asked = {"images": paths[-12:], "text": ["<image>\nFindings:"] * 12, "batch_size": 12}
words["pipeline"] = [found["generated_text"] for found in pipe(**asked, **options)]
words["chat"] = []
for path in paths[-3:]:
    chat[0]["content"][0]["path"] = path
    words["chat"].append(pipe(text=chat, **options)[0]["generated_text"])
# the program of the model's own card, as somebody would paste it
card = pathlib.Path(folder, "README.md").read_text()
(program,) = re.findall(r"```python\n(.*?)```", card, re.S)
assert program.count("DIRECTORY") == program.count("chest.png") == 1
said = io.StringIO()
with contextlib.redirect_stdout(said):
    exec(program.replace("DIRECTORY", folder).replace("chest.png", paths[-1]), {})
words["card"] = [said.getvalue()]
pixels = {path: x.contiguous() for path, x in zip(paths, seen["pixel_values"])}
save_file(pixels, out)
print(json.dumps({"words": words, "ours": sorted(OURS & {name.partition(".")[0] for name in sys.modules})}))
"""


def pictures(folder: Path) -> list[Path]:
    """Phantoms as PNG and JPEG: of low contrast, dark, bright, of odd sizes, smaller than the model's, in every dress
    that a grey picture wears."""
    from train.phantom.patient import draw_patient
    from train.phantom.render import render_frontal

    patients = [draw_patient(9, number, 3.0) for number in range(6)]
    films = [render_frontal(patient.studies[0], patient.sex, 300).display() for patient in patients]
    a, b, c, d, e, f = ((film * 255).round().astype(np.uint8) for film in films)

    def between(low: int, high: int, x: np.ndarray) -> np.ndarray:
        return (low + x.astype(float) / 255 * (high - low)).round().astype(np.uint8)

    def sized(x: np.ndarray, width: int, height: int) -> np.ndarray:
        return np.asarray(Picture.fromarray(x).resize((width, height), Picture.Resampling.LANCZOS))

    tinted = np.stack([a, a, between(0, 253, a)], -1)
    turned = Picture.Exif()
    turned[0x0112] = 6
    made = {
        "plain.png": (a, {}),
        "plain.jpg": (b, {"quality": 90}),
        "low-contrast.png": (between(90, 140, c), {}),
        "low-contrast.jpg": (between(90, 140, d), {"quality": 95}),
        "dark.png": (between(0, 60, e), {}),
        "bright.png": (between(190, 255, f), {}),
        "wide.png": (a[40:260], {}),
        "tall-and-odd.png": (sized(b, 223, 401), {}),
        "wide-and-odd.jpg": (sized(c, 451, 317), {}),
        "size-of-the-model.png": (sized(d, 196, 196), {}),
        "small.png": (sized(e, 150, 131), {}),
        "tiny.jpg": (sized(f, 64, 97), {}),
        "large.png": (sized(a, 1024, 1250), {}),
        "colour.png": (np.repeat(b[..., None], 3, -1), {}),
        "tinted.png": (tinted, {}),
        "turned.jpg": (c, {"exif": turned}),
    }
    for name, (levels, options) in made.items():
        Picture.fromarray(levels).save(folder / name, **options)
    Picture.fromarray(d).convert("P").save(folder / "palette.png")
    return [folder / name for name in ("palette.png", *made)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    from cxr.cli.main import main

    out = tmp_path_factory.mktemp("exported") / "mini"
    assert main(["export", "mini", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> list[Path]:
    return pictures(tmp_path_factory.mktemp("pictures"))


# a process of its own imports transformers, and four doors write findings
@pytest.mark.slow
def test_plain_transformers_sees_the_same_and_says_the_same(exported, shown, tmp_path):
    out = tmp_path / "pixels.safetensors"
    command = [sys.executable, "-P", "-c", FAST_START + PLAIN, str(exported), str(out), *map(str, shown)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ours"] == []
    ours, theirs = Findings.from_pretrained(exported, attention="sdpa", insist=True), load_file(out)
    for path in shown:
        mine = ours.model.preprocessing(read(path))
        assert torch.equal(mine, theirs[str(path)]), (path.name, (mine - theirs[str(path)]).abs().max())
    # which plain transformers does not know how to do
    free = Decoding(ours.model.max_new_tokens, stop_repeats=False)
    texts = [prediction.text for prediction in ours(shown, decoding=free)]
    for door, words in said["words"].items():
        assert [text.strip() for text in words] == texts[-len(words) :], door
    # they are answers to the pictures: a model that looks at nothing would say one thing
    assert len(shown) >= 12 and len(set(texts)) >= 6


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_the_processor_of_every_mode_makes_the_same_numbers(mode, findings_model, shown, tmp_path):
    from vlm.build import processor_of

    model = findings_model
    model.preprocessing = replace(model.preprocessing, mode=mode)
    model.meta.preprocess_sha256 = model.preprocessing.sha256
    model.processor = processor_of(model.tokenizer, model.preprocessing, 4)
    models.save(model, tmp_path / "m")
    plain, ours = AutoProcessor.from_pretrained(tmp_path / "m"), Findings.from_pretrained(tmp_path / "m")
    for path in shown:
        if path.name != "turned.jpg":
            theirs = plain(images=Picture.open(path), text="<image>", return_tensors="pt")["pixel_values"][0]
            assert torch.equal(ours.model.preprocessing(read(path)), theirs), path.name


def test_what_was_told_of_pad_before_is_mended_when_the_model_is_written_again(
    findings_model, shown, tmp_path
):
    """It was told of a crop, for which plain transformers saw less than the model had learned from."""
    model = findings_model
    model.preprocessing = replace(model.preprocessing, mode="pad")
    model.meta.preprocess_sha256 = model.preprocessing.sha256
    models.save(model, tmp_path / "before")
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = tmp_path / "before" / name
        path.write_text(re.sub(r',\s*"longest_edge": \d+|"longest_edge": \d+,', "", path.read_text()))
    assert "longest_edge" not in path.read_text()
    models.save(load_model(tmp_path / "before"), tmp_path / "again")
    ours = load_model(tmp_path / "again").preprocessing
    assert ours.mode == "pad"
    wide = next(path for path in shown if path.name == "wide-and-odd.jpg")
    for folder, same in (("before", False), ("again", True)):
        plain = AutoProcessor.from_pretrained(tmp_path / folder)
        theirs = plain(images=Picture.open(wide), text="<image>", return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours(read(wide)), theirs) is same, folder
