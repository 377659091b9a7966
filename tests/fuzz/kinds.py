"""What is damaged: small files of each kind, made on the spot, and how each is read."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless
from safetensors.numpy import save as save_tensors

from encoder.errors import UserError
from encoder.radiograph import CODES, InputError, read
from encoder.weights import check_config, read_header
from eval.scores.inputs import align
from eval.scores.readers import ScoreError
from tests.encoder.test_grey_levels import (
    FILM,
    JLS_12,
    SMALL,
    by_gdcm,
    j2k,
    jpeg,
    lossless_jpeg,
    small,
    stream,
)
from tests.encoder.test_radiograph import dataset, frame_of, lut, save
from tests.fuzz import mutators
from train.pretrain.config import configured
from vlm.study import load_studies, study_from_json, study_to_json, validate

FOUND = ("ok", "warned")
# What must not happen.
FAULTS = ("UNTYPED", "NAN", "TIMEOUT", "DEATH")


class Kind(NamedTuple):
    """A kind of file. `read` takes its bytes and a folder for it; it returns an outcome or raises."""

    seeds: list[bytes]
    mutators: tuple[mutators.Mutator, ...]
    read: Callable[[bytes, Path], str]
    # of a thousand mutants
    share: int


def mutant(kind: Kind, rng: Generator) -> bytes:
    return mutators.damage(rng, kind.seeds[int(rng.integers(len(kind.seeds)))], kind.mutators)


def outcome(kind: Kind, data: bytes, folder: Path) -> str:
    """`ok`, `warned`, `refused: CODE`, `UNTYPED: ...` or `NAN`."""
    try:
        return kind.read(data, folder)
    except InputError as error:
        if error.code not in CODES:
            return f"UNTYPED: code {error.code}"
        # what no check foresaw, and the reader's net caught
        net = re.fullmatch(r"it cannot be decoded \((\w+)\)", error.message)
        return f"refused: {error.code}" + (f" by the net ({net[1]})" if net else "")
    except (UserError, ScoreError) as error:
        return f"refused: {type(error).__name__}"
    except SystemExit as error:
        return "refused: usage" if error.code == 2 else f"UNTYPED: exit {error.code}"
    except BaseException as error:
        return f"UNTYPED: {type(error).__name__}: {str(error)[:80]}"


def _image(data: bytes, folder: Path) -> str:
    film = read(data)
    x = film.pixels
    if (
        x.dtype != np.float32
        or x.ndim != 2
        or not x.size
        or not np.isfinite(x).all()
        or x.min() < 0
        or x.max() > 1
    ):
        return "NAN"
    return "warned" if set(film.warnings) - {w for w in film.warnings if w.code == "low_resolution"} else "ok"


def _studies(data: bytes, folder: Path) -> str:
    path = folder / "studies.jsonl"
    path.write_bytes(data)
    studies = load_studies(path)
    for study in studies:
        json.dumps(study_to_json(study), allow_nan=False)
        repr(study)
        assert study_from_json(study_to_json(study)) == study, "not what it was, once written and read"
    return "warned" if validate(studies, folder) else "ok"


def _predictions(data: bytes, folder: Path) -> str:
    path = folder / "predictions.jsonl"
    path.write_bytes(data)
    pairs = align(path)
    assert all(isinstance(text, str) for text in (*pairs.references, *pairs.predictions))
    return "warned" if pairs.problems else "ok"


def _recipe(data: bytes, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    with contextlib.redirect_stderr(io.StringIO()):
        configured(["--recipe", str(path)])
    return "ok"


def _config(data: bytes, folder: Path) -> str:
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(TENSORS)
    check_config(folder, read_header(folder / "model.safetensors"))
    return "ok"


def _tensors(data: bytes, folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    read_header(path)
    return "ok"


TENSORS = save_tensors({f"encoder.layer.{i}.weight": np.ones((8, 8), np.float32) for i in range(2)})
CONFIG = {
    "model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6, "architectures": ["Dinov2Model"],
}  # fmt: skip
STUDIES = [
    {
        "schema": 1, "study_id": f"s{i}", "patient_id": f"p{i}", "split": "train", "age": 50 + i, "sex": "F",
        "images": [{"path": f"{i}.png", "view": "PA"}], "indication": "Cough.", "findings": "No effusion.",
        "labels": {"Edema": 0}, "prior": {"images": [{"path": "old.png"}], "findings": "Clear lungs."},
    }
    for i in range(3)
]  # fmt: skip
PREDICTIONS = [
    {"study_id": f"s{i}", "findings": "The lungs are clear.", "reference": "Clear lungs.", "model": "m"}
    for i in range(3)
]
RECIPE = b"""# a recipe
pretrain:
  size: 196
  patch_size: 14
  hidden_size: 192
  local_crops_scale: [0.1, 0.4]
  separate_ibot_head: true
  learning_rate: 1.0e-3
  weight_decay: 0.04
  ibot_loss_weight: 2.0  # as much for patches as for images
  brightness: 0.05
  contrast: 0.1
  seed: 7
  warmup_steps: 100
  max_steps: 2000
"""


def _lines(rows: list[dict[str, object]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def kinds() -> dict[str, Kind]:
    """Make the seeds."""
    eight = (FILM >> 4).astype(np.uint8)
    rle = dataset(FILM, 12)
    rle.compress(RLELossless)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        windowed = dataset(FILM, 12, WindowCenter="2048", WindowWidth="3000", PatientOrientation=["L", "F"])
        windowed.PixelSpacing, windowed.RescaleSlope, windowed.RescaleIntercept = ["0.2", "0.2"], "2", "-5"
        gamma = dataset(FILM, 12, VOILUTSequence=[lut((np.arange(4096) * 16).astype(np.uint16), 0, 16)])
        written = {
            "plain": [windowed, gamma, dataset(eight, PhotometricInterpretation="MONOCHROME1"), rle],
            "isolated": [
                stream(JPEGLosslessSV1, lossless_jpeg(FILM, 12), 16, 12),
                stream(JPEGLosslessSV1, by_gdcm(FILM, 12, "JPEGLosslessProcess14_1", folder), 16, 12),
                stream(JPEGLSLossless, by_gdcm(FILM, 12, "JPEGLSLossless", folder), 16, 12),
                small(JLS_12, 16, 12),
                stream(JPEG2000Lossless, j2k(FILM), 16, 12),
                stream(JPEGBaseline8Bit, jpeg(eight), 8, 8),
            ],
        }
        files = {
            key: [save(ds, folder / "x.dcm").read_bytes() for ds in all_] for key, all_ in written.items()
        }
    assert SMALL.shape == (12, 16)
    colours = np.stack([eight] * 3, -1)
    pngs = [frame_of(x, "PNG") for x in (eight, FILM, colours)]
    jpegs = [jpeg(eight), jpeg(eight, progressive=True), jpeg(colours), jpeg(eight, restart_marker_rows=1)]
    return {
        "DICOM": Kind(files["plain"], mutators.DICOM, _image, 300),
        "DICOM, compressed": Kind(files["isolated"], (*mutators.DICOM, *mutators.STREAM * 2), _image, 250),
        "PNG": Kind(pngs, mutators.PNG, _image, 100),
        "JPEG": Kind(jpegs, mutators.JPEG, _image, 100),
        "studies": Kind([_lines(STUDIES)], mutators.JSON, _studies, 70),
        "predictions": Kind([_lines(PREDICTIONS)], mutators.JSON, _predictions, 70),
        "recipe": Kind([RECIPE], mutators.YAML, _recipe, 50),
        "config.json": Kind([json.dumps(CONFIG).encode()], mutators.JSON, _config, 30),
        "safetensors": Kind([TENSORS], mutators.TENSORS, _tensors, 30),
    }
