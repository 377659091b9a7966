"""Models by name: shipped, here, on the hub; and what is said where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, Dinov2Model

from encoder import hub
from encoder.convert import load_backbone
from encoder.errors import ModelError
from encoder.frozen import encoder_of
from encoder.hub import SHIPPED, _from_hub, resolve, weights_sha256
from encoder.towers import load_tower
from tests.tiny import SIZE, encoder_dir, llm_dir, make_encoder  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def asked_anew():
    _from_hub.cache_clear()
    yield
    _from_hub.cache_clear()


def test_directories_and_shipped_models(tmp_path):
    assert resolve(tmp_path) == tmp_path and resolve("mini") == SHIPPED["mini"]
    assert (resolve("mini") / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minni", "did you mean mini?"),
        ("runs/encoderr", "runs/encoderr: no such folder; did you mean runs/encoder?"),
        ("../up", "../up: no such folder, and a hub id has the form owner/name"),
        ("./up", "./up: no such folder"),
        ("~/up", "~/up: no such folder"),
        ("/up", "/up: no such folder"),
        ("a/b/c", "a/b/c: no such folder, and a hub id has the form owner/name"),
        (
            "mine/llm",
            "no such folder; for a model of that name on the hub, work where there is no folder mine",
        ),
        ("runs/notes.txt", "is a file, where a directory is expected; give runs"),
    ],
)
def test_a_misspelt_name_is_told_apart(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/encoder").mkdir(parents=True)
    Path("mine").mkdir()
    monkeypatch.setattr(hub, "_from_hub", lambda name: pytest.fail(f"the hub was asked for {name}"))
    Path("runs/notes.txt").touch()
    with pytest.raises(ModelError) as refused:
        resolve(name)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_what_trainings_write_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    """Also before there is a folder `runs`: the trainings of all examples write there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_from_hub", lambda name: pytest.fail(f"the hub was asked for {name}"))
    with pytest.raises(ModelError, match=r"^runs/findings: no such folder$"):
        resolve("runs/findings")


def test_a_shipped_model_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(SHIPPED, "mini", tmp_path / "gone")
    with pytest.raises(ModelError, match="the shipped model is missing"):
        resolve("mini")


def _errors() -> dict[str, tuple[Exception, str]]:
    """What the hub's client raises: (the error, what is to be said)."""
    from huggingface_hub import errors

    def made(kind, cause=None):
        error = kind.__new__(kind)
        Exception.__init__(error, "first line\nsecond line")
        error.response = None
        error.__cause__ = cause
        return error

    class Status(errors.HfHubHTTPError):
        def __init__(self, code):
            Exception.__init__(self, "server error")
            self.response = type("Response", (), {"status_code": code})()

    return {
        "gated": (made(errors.GatedRepoError), "terms: do that at https://huggingface.co/some/model"),
        "misspelt": (made(errors.RepositoryNotFoundError), "check the spelling"),
        "behind a cache": (
            made(errors.LocalEntryNotFoundError, made(errors.RepositoryNotFoundError)), "check the spelling",
        ),
        "gated behind a cache": (made(errors.LocalEntryNotFoundError, made(errors.GatedRepoError)), "terms"),
        "broken": (made(errors.LocalEntryNotFoundError, Status(503)), r"the hub answered with an error \(503\)"),
        "no network": (
            made(errors.LocalEntryNotFoundError, ConnectionRefusedError("no")),
            r"cannot be reached \(ConnectionRefusedError\)",
        ),
        "anything": (RuntimeError("proxy\nwants a word"), r"cannot be reached \(RuntimeError\)"),
    }  # fmt: skip


@pytest.mark.parametrize("case", list(_errors()))
def test_the_hub_says_no(case, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    error, said = _errors()[case]

    def refuse(name, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match=said) as refused:
        resolve("some/model")
    assert "\n" not in str(refused.value) and str(refused.value).startswith(
        "some/model is not a directory here, and"
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, and it has not been fetched before"),
        # a port of this machine that nobody listens at: nothing leaves it
        ({"HF_HUB_OFFLINE": "0"} | dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
         "the hub cannot be reached"),
    ],
    ids=["offline", "unreachable"],
)  # fmt: skip
def test_without_the_hub_it_takes_seconds_and_a_line(environment, said, tmp_path):
    script = (
        "import sys, time; from encoder.errors import ModelError; from encoder.hub import resolve\n"
        "begun = time.monotonic()\n"
        "try: resolve('some/model', 'encoder')\n"
        "except ModelError as error: print(error)\n"
        "print(time.monotonic() - begun)"
    )
    env = {k: v for k, v in os.environ.items() if k.lower() not in ("no_proxy", "https_proxy", "http_proxy")}
    env |= environment | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    line, seconds = run.stdout.splitlines()
    assert said in line and line.startswith("some/model is not a directory here, and"), (
        run.stdout + run.stderr
    )
    assert float(seconds) < 20


def test_what_was_fetched_is_not_asked_for_again(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append(options) or str(tmp_path)
    )
    assert resolve("some/model") == resolve("some/model") == tmp_path
    (options,) = asked
    assert not any(
        "py" in pattern.split(".")[-1] or "bin" in pattern for pattern in options["allow_patterns"]
    )


# --- a findings model where an encoder is wanted ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def findings_models(encoder_dir, llm_dir, tmp_path_factory):  # noqa: F811
    """Directories of a stock Llava and of a cxr_llava around one encoder."""
    from vlm import model as models
    from vlm.build import build

    root = tmp_path_factory.mktemp("findings")
    models.save(build(encoder_dir, llm_dir), root / "llava")
    models.save(build(encoder_dir, llm_dir, depth=3), root / "cxr_llava")
    return root


@pytest.mark.parametrize("kind", ["llava", "cxr_llava"])
def test_a_findings_model_is_its_tower(kind, findings_models, encoder_dir):  # noqa: F811
    alone, inside = Dinov2Model.from_pretrained(encoder_dir).state_dict(), findings_models / kind
    assert json.loads((inside / "config.json").read_text())["model_type"] == kind
    tower, preprocessing = load_tower(inside, "sdpa")
    assert preprocessing.size == SIZE
    for name, x in tower.state_dict().items():
        assert torch.equal(x, alone[name])
    ours, theirs = (load_backbone(folder, heads=2).backbone.state_dict() for folder in (inside, encoder_dir))
    assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found, wanted = (encoder_of(folder)(pixels) for folder in (inside, encoder_dir))
    assert torch.equal(found.cls_BC, wanted.cls_BC)


def test_a_cxr_llava_is_read_without_the_room_that_knows_it(findings_models, monkeypatch):
    """`transformers` knows that kind after `import vlm` alone, which nobody who wants an encoder needs."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "cxr_llava")
    with pytest.raises(ValueError, match="cxr_llava"):
        AutoConfig.from_pretrained(findings_models / "cxr_llava")
    assert load_tower(findings_models / "cxr_llava", "sdpa")[1].size == SIZE


def test_mini_is_an_encoder():
    tower = load_file(SHIPPED["mini"] / "model.safetensors")
    (weight,) = [x.float() for name, x in tower.items() if name.endswith("vision_tower.layernorm.weight")]
    loaded = load_backbone("mini")
    assert loaded.dialect == "transformers" and torch.equal(loaded.backbone.norm.weight, weight)
    assert loaded.preprocessing == encoder_of("mini").preprocessing
    assert encoder_of("mini").sha256 == weights_sha256(SHIPPED["mini"])


def _spoilt(what: str, folder: Path) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if what == "no weights":
        weights.unlink()
    elif what == "pickled weights":
        weights.rename(folder / "pytorch_model.bin")
    elif what == "cut-off weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif what == "cut-off config":
        config.write_text(config.read_text()[:40])
    elif what == "a list":
        config.write_text("[1, 2]")
    elif what == "an odd value":
        config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": "wide"'))
    elif what == "another width":
        config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 48'))
    elif what == "no config":
        config.unlink()
    elif what == "no preprocessing":
        (folder / "preprocessor_config.json").unlink()
    elif what == "an adapter":
        config.rename(folder / "adapter_config.json")
    elif what == "a run":
        (folder / "encoder").mkdir()
        config.rename(folder / "encoder" / "config.json")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no weights", "holds no model.safetensors"),
        ("pickled weights", "pickled weights are not read"),
        ("cut-off weights", "model.safetensors cannot be read: it is cut off"),
        ("cut-off config", "config.json cannot be read"),
        ("a list", "config.json cannot be read"),
        ("an odd value", "hidden_size must be a whole number"),
        ("another width", "cannot be read|do not fit"),
        ("no config", "is .* an encoder checkpoint directory"),
        ("no preprocessing", "its preprocessing cannot be read: .*preprocessor_config.json"),
        ("an adapter", "is an adapter; give the model it belongs to"),
        ("a run", "it is the folder of a training: give .*encoder"),
    ],
)
def test_a_spoilt_encoder_is_told_in_a_line(what, said, tmp_path):
    folder = make_encoder(tmp_path / "e")
    _spoilt(what, folder)
    with pytest.raises(ModelError, match=said) as refused:
        load_tower(folder, "sdpa")
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["config.json", "ood.safetensors", "tokenizer.json", "anything"])
def test_a_folder_with_what_is_no_file_is_no_model(tmp_path, name):
    """A pipe would be waited for, and a link to nowhere count as a file that is not there."""
    for make in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "nowhere")):
        folder = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / ".hidden").symlink_to("nowhere")
        assert resolve(folder) == folder
        make(folder / name)
        with pytest.raises(ModelError, match=f"{folder / name} is (a link to nowhere|not a regular file)"):
            resolve(folder)


@pytest.mark.parametrize("name", [5, b"mini", ["mini"], None, "x" * 5000, "a\0b"])
def test_names_that_are_none(name):
    with pytest.raises(ModelError, match="name"):
        resolve(name)
