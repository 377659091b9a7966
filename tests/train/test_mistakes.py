"""What a user can get wrong in fine-tuning, language model and rewards: status 2, one line that says what, and no
traceback, before features are computed and without a folder left behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import train.finetune.__main__ as finetune
import train.finetune.config as finetune_config
import train.finetune.language_model.__main__ as language_model
import train.finetune.language_model.config as language_model_config
import train.grpo.__main__ as grpo
import train.grpo.config as grpo_config
from tests.tiny import SMALL, make_studies
from train.common.config import ConfigError
from train.common.entry import entry
from vlm import adapters
from vlm import model as models
from vlm.build import build
from vlm.study import Image, load_studies, save_studies

MAINS = {
    "train.finetune": finetune.main, "train.finetune.language_model": language_model.main, "train.grpo": grpo.main,
}  # fmt: skip
TEXTS = ["--batch_size", "8", "--max_steps", "2", "--precision", "fp32", "--threads", "1"]
REWARDS = [
    *TEXTS,
    "--reward",
    "rouge-l/coco",
    "--num_generations",
    "2",
    "--eval_steps",
    "0",
    "--save_steps",
    "2",
]


@pytest.fixture(scope="module")
def parts(encoder_dir, llm_dir, tmp_path_factory) -> dict[str, Path]:
    """An encoder, a language model, a merged findings model and its adapter."""
    root = tmp_path_factory.mktemp("parts")
    model = build(encoder_dir, llm_dir)
    models.save(model, root / "merged")
    model.llava = adapters.add_lora(model.llava, 2)
    models.save_adapter(model, root / "adapter", root / "merged")
    return {"encoder": encoder_dir, "llm": llm_dir, "init": root / "merged", "adapter": root / "adapter"}


@pytest.fixture(scope="module")
def listing(tmp_path_factory) -> Path:
    return make_studies(tmp_path_factory.mktemp("mistakes") / "studies", 12)


@pytest.fixture
def told(parts, listing, tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Run a training whose command line, as words by name, was changed; -> the one line it ended with."""
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "trl" or known(name, *rest))

    def run(name: str, reads_images: bool = False, **changed: str | list[str] | None) -> str:
        given: dict[str, str | list[str] | None] = {"studies": str(listing), "out": str(tmp_path / "out")}
        if name == "train.finetune":
            given |= {"encoder": str(parts["encoder"]), "llm": str(parts["llm"])}
        elif name == "train.grpo":
            given |= {"init": str(parts["init"])}
        given |= changed
        argv = {"train.finetune": SMALL, "train.finetune.language_model": TEXTS, "train.grpo": REWARDS}[name]
        for option, value in given.items():
            if value is not None:
                argv = [*argv, f"--{option}", *([value] if isinstance(value, str) else value)]
        status = entry(MAINS[name], name, argv)
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith(name)]
        assert status == 2, (status, out, err)
        assert len(lines) == 1 and "Traceback" not in err, err
        assert reads_images or "images/s" not in out, "features were computed before it was said"
        return lines[0].removeprefix(f"{name}: ")

    return run


ALL = list(MAINS)
WITH_IMAGES = ["train.finetune", "train.grpo"]


def spoilt_studies(what: str, listing: Path, folder: Path) -> Path:
    """A studies file in which something is wrong."""
    folder.mkdir()
    file = folder / "studies.jsonl"
    if what == "absent":
        return file
    if what == "a folder":
        return folder
    if what == "empty":
        file.write_text("")
        return file
    if what == "no JSON":
        file.write_text('{"study_id": "a"}\n{"study_id": \n')
        return file
    if what == "no UTF-8":
        file.write_bytes(b"\xff\xfe\x00")
        return file
    studies = load_studies(listing)
    for study in studies:
        study.images = [Image(str(listing.parent / image.path), image.view) for image in study.images]
        if what == "no split train":
            study.split = "test"
        elif what == "no findings":
            study.findings = None
        elif what == "no images":
            study.images = []
        elif what == "absent images":
            study.images = [Image(str(folder / f"{study.study_id}.png"))]
        elif what == "broken images":
            (folder / f"{study.study_id}.png").write_bytes(b"nothing")
            study.images = [Image(str(folder / f"{study.study_id}.png"))]
    save_studies(studies, file)
    return file


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("absent", "studies.jsonl does not exist; give a studies file"),
        ("a folder", "is a folder; give the studies file in it"),
        ("empty", "no study is of split 'train' (there is no study)"),
        ("no JSON", "line 2: not valid JSON"),
        ("no UTF-8", "is not UTF-8 text"),
        ("no split train", "no study is of split 'train' (there is 12 of 'test')"),
        ("no findings", "of 10 studies of split 'train' 0 have findings"),
        ("no images", "of 10 studies of split 'train' 10 have findings and 0 an image"),
        ("absent images", "be read"),
        ("broken images", "be read"),
    ],
)
def test_studies(name, what, said, told, listing, tmp_path):
    if "image" in what and name not in WITH_IMAGES:
        pytest.skip("reads no images")
    file = spoilt_studies(what, listing, tmp_path / "s")
    line = told(name, "images" in what, studies=str(file))
    assert said in line
    assert not (tmp_path / "out" / "run.json").exists(), "the folder is taken by a run that never began"


def spoilt(what: str, folder: Path, to: Path) -> str:
    """A copy of a model's directory in which something is wrong."""
    shutil.copytree(folder, to)
    if what.startswith("no "):
        for file in to.glob(what.removeprefix("no ")):
            file.unlink()
    elif what.startswith("half "):
        file = to / what.removeprefix("half ")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return str(to)


@pytest.mark.parametrize(
    ("part", "what", "said"),
    [
        ("encoder", "no *.safetensors", "holds no model.safetensors"),
        ("encoder", "no preprocessor_config.json", "its preprocessing cannot be read"),
        ("encoder", "half config.json", "config.json cannot be read"),
        ("encoder", "half model.safetensors", "model.safetensors cannot be read"),
        ("encoder", "no config.json", "an encoder checkpoint directory?"),
        ("llm", "no tokenizer*", "its tokenizer: tokenizer.json"),
        ("llm", "half tokenizer.json", "tokenizer.json cannot be read"),
        ("llm", "no *.safetensors", "holds no model.safetensors"),
        ("llm", "half model.safetensors", "model.safetensors cannot be read"),
        ("llm", "half config.json", "config.json cannot be read"),
        ("init", "no cxr.json", "has no cxr.json"),
        ("init", "half cxr.json", "cxr.json cannot be read"),
        ("init", "no model.safetensors", "holds no model.safetensors"),
        ("init", "half model.safetensors", "model.safetensors cannot be read"),
        ("init", "half config.json", "config.json cannot be read"),
        ("init", "no tokenizer*", "its tokenizer or processor: tokenizer.json"),
    ],
)
def test_spoilt_models(part, what, said, told, parts, tmp_path):
    folder = spoilt(what, parts[part], tmp_path / "spoilt")
    changed = {part: folder} | ({"encoder": None, "llm": None} if part == "init" else {})
    for name in ["train.finetune", *(["train.grpo"] if part == "init" else [])]:
        line = told(name, **(changed if name == "train.finetune" else {"init": folder}))
        assert said in line
        assert str(folder) in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"encoder": "llm"}, "a llama model; vision towers are"),
        ({"encoder": "adapter"}, "is an adapter; give the model it belongs to"),
        ({"encoder": "minni"}, "did you mean mini?"),
        ({"llm": "encoder"}, "holds no causal language model, but a dinov2"),
        ({"llm": "init"}, "holds no causal language model, but a llava"),
        ({"llm": "some/model"}, "HF_HUB_OFFLINE is set"),
        ({"init": "adapter"}, "is an adapter: merge it first"),
        ({"init": "encoder"}, "has no cxr.json"),
        ({"init": "minni"}, "did you mean mini?"),
        ({"init": "init", "encoder": "encoder"}, "give either --encoder and --llm, or --init"),
    ],
)
def test_one_part_for_another(changed, said, told, parts, tmp_path):
    words = {option: str(parts.get(value, value)) for option, value in changed.items()}
    rewards = {"init"} == set(words)
    if "init" in words:
        words = {"encoder": None, "llm": None} | words
    assert said in told("train.finetune", **words)
    if rewards:
        assert said in told("train.grpo", init=words["init"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a file", "is a file"),
        ("below a file", "is a file"),
        ("no place", "cannot be written"),
        ("somebody's", "is not a run of this training"),
        ("another run's", "holds a run of another config"),
        ("a broken record", "run.json is not JSON"),
    ],
)
def test_folders(name, what, said, told, tmp_path):
    out = tmp_path / "taken"
    if what in ("a file", "below a file"):
        out.write_text("dear")
    elif what != "no place":
        out.mkdir()
        text = {"somebody's": "dear", "another run's": json.dumps({"seed": 7}), "a broken record": '{"seed'}[
            what
        ]
        (out / ("letter.txt" if what == "somebody's" else "run.json")).write_text(text)
    words = {"below a file": str(out / "run"), "no place": "/proc/nobody/run"}
    assert said in told(name, out=words.get(what, str(out)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("batch_size", "0", "batch_size must be at least 1, not 0"),
        ("max_steps", "0", "max_steps must be at least 1"),
        ("logging_steps", "0", "logging_steps must be at least 1"),
        ("save_steps", "-1", "save_steps must be at least 1"),
        ("gradient_accumulation_steps", "0", "gradient_accumulation_steps must be at least 1"),
        ("learning_rate", "-1", "learning_rate must be at least 0"),
        ("adam_beta2", "1", "adam_beta2 must be at least 0 and below 1"),
        ("seed", "-1", "seed must be at least 0"),
        ("max_steps", "many", "max_steps"),
    ],
)
def test_numbers(name, field, value, said, told, tmp_path):
    changed: dict = {field: value}
    if value == "many":
        argv = ["--studies", "s", "--out", str(tmp_path / "out"), f"--{field}", value]
        argv += [] if name != "train.grpo" else ["--init", "mini", "--reward", "rouge-l/coco"]
        assert entry(MAINS[name], name, argv) == 2
        return
    assert said in told(name, **changed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("train.finetune", {"layers": ["9"]}, "there are hidden states 0 to 2"),
        ("train.finetune", {"projector_depth": "7"}, "1 to 4 layers, not 7"),
        ("train.finetune", {"token_reduction": "resampler", "reduction_factor": "40"}, "tokens a side"),
        ("train.finetune", {"max_length": "4"}, "give a larger --max_length"),
        ("train.finetune", {"batch_size": "9", "gradient_accumulation_steps": "2"}, "use 8 or 10"),
        ("train.finetune", {"projector_steps": "2", "projector_batch_size": "9", "gradient_accumulation_steps": "2"},
         "projector_batch_size=9"),
        ("train.finetune", {"lora_rank": "0"}, "lora_rank must be at least 1"),
        ("train.finetune", {"eval_batch_size": "0"}, "eval_batch_size must be at least 1"),
        ("train.finetune", {"wording": "maira2", "section": "impression"}, "findings alone"),
        ("train.finetune.language_model", {"hidden_size": "50", "num_attention_heads": "4"}, "use 48"),
        ("train.finetune.language_model", {"max_length": "1"}, "max_length must be at least 3"),
        ("train.finetune.language_model", {"max_length": "90", "max_position_embeddings": "60"}, "is more than"),
        ("train.grpo", {"reward": ["rouge-x"]}, "no score 'rouge-x'"),
        ("train.grpo", {"reward": ["rouge-l/coco", "rouge-l/coco"]}, "names of their own"),
        ("train.grpo", {"temperature": "0"}, "temperature must be above 0"),
        ("train.grpo", {"max_length": "2"}, "a step takes 8"),
        ("train.grpo", {"batch_size": "64"}, "a step takes 64"),
        ("train.grpo", {"gradient_accumulation_steps": "3"}, "cannot be shared"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(name, changed, said, told, tmp_path):
    assert said in told(name, **changed)
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(
    ("name", "config", "given"),
    [
        ("finetune", finetune_config, {"encoder": "e", "llm": "l", "features": "online"}),
        ("language_model", language_model_config, {}),
        ("grpo", grpo_config, {"init": "mini", "reward": ["rouge-l/coco"]}),
    ],
)
def test_names_of_before(name, config, given, told, tmp_path, capsys):
    """A recipe with them is the recipe with today's, and each is noted; a name that never was is refused."""
    value = {"loss": "grpo", "scale": "none"}
    found = []
    for names in (config.RENAMED, config.RENAMED.values()):
        values = {n: value.get(old, 2) for n, old in zip(names, config.RENAMED, strict=True)}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({name: given | values}))
        found.append(config.configured(["--recipe", str(file), "--studies", "s", "--out", "o"]))
        noted = capsys.readouterr().err
        assert [f"{old} is now {new}" in noted for old, new in config.RENAMED.items()] == [
            names is config.RENAMED
        ] * len(values)
    assert found[0] == found[1]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({name: given | {"max_stepz": 4}}))
    with pytest.raises(ConfigError, match=r"unknown field 'max_stepz'; did you mean max_steps\?"):
        config.configured(["--recipe", str(tmp_path / "recipe.yaml"), "--studies", "s", "--out", "o"])


def test_a_mended_studies_file_begins_in_the_same_folder(told, train, listing, tmp_path):
    """A run that was refused has not taken its folder, although what it reads is part of what a run is."""
    file = spoilt_studies("no findings", listing, tmp_path / "s")
    told("train.finetune", studies=str(file))
    shutil.copytree(listing.parent / "images", tmp_path / "s" / "images")
    shutil.copy(listing, file)
    assert train("out", "--max_steps", "1", "--eval_steps", "0", studies=file) == 0


def test_a_disk_that_fills_up_while_it_trains(told, listing, monkeypatch):
    def full(tensors, file):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("train.common.resume.save_file", full)
    line = told("train.finetune.language_model", studies=str(listing), save_steps="1")
    assert "No space left on device" in line and "run the same command to resume" in line
