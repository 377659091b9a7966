"""Slips of a hurried user on the command line: each is one line, early, with status 2, and nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cxr.cli.main import main
from train.common.config import ConfigError, read_section
from train.common.launcher import accelerate_command
from train.pretrain.config import configured

TEXT, BINARY = "hello\n", b"\xff\xfe\x00"
REXRANK = {
    "paths.json": {"a": {"image_path": 5}},
    "no_path.json": {"a": {"image_path": [None]}},
    "context.json": {"a": {"image_path": ["film.png"], "context": 5}},
    "key.json": {"a": {"image_path": ["film.png"], "key_image_path": 7}},
    "views.json": {"a": {"image_path": ["film.png"], "frontal_lateral": {"a": 1}}},
}
STUDY = {
    "data": ["x"],
    "amounts": [2],
    "probe": {"data": "x"},
    "fields": {},
    "variants": {"all": {}},
    "seeds": [0],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of what is given by mistake."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray((np.arange(6400).reshape(80, 80) % 251).astype(np.uint8)).save("film.png")
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "row.json").write_text('{"some": "row"}')
    for suffix in ("jsonl", "csv", "yaml", "json"):
        (tmp_path / f"binary.{suffix}").write_bytes(BINARY)
    (tmp_path / "twice.yaml").write_text("finetune:\n  batch_size: 8\n  batch_size: 9\n")
    (tmp_path / "cut.yaml").write_text("finetune: [\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("[]")
    for name, rows in REXRANK.items():
        (tmp_path / name).write_text(json.dumps(rows))
    for key, odd in {"amounts": 5, "seeds": ["a"], "fields": [1], "variants": {"a": 3}, "probe": "x"}.items():
        (tmp_path / f"{key}.yaml").write_text(json.dumps(STUDY | {key: odd}))
    return tmp_path


def status_of(words):
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # a misspelt option is the mistake, not what is missing because of it
        ("--hlep", "unknown option --hlep; did you mean --help?"),
        ("embed film.png --otu e", "unknown option --otu; did you mean --out?"),
        ("embed film.png --out e --size 999999", "at least 1 and at most 4096"),
        ("generate film.png --out p.jsonl --share a", "not 'a'"),
        ("generate film.png --out p.jsonl --share 2/2", "not '2/2'"),
        ("generate --modell=x", "unknown option --modell; did you mean --model?"),
        ("studies make --outt x", "unknown option --outt; did you mean --out?"),
        ("finetune --lora_rnk 3", "unknown option --lora_rnk; did you mean --lora_rank?"),
        ("finetune --out x --initt mini", "unknown option --initt; did you mean --init?"),
        ("plan --encodr mini", "cxr plan: unknown option --encodr; did you mean --encoder?"),
        ("--model mini generate film.png", "--model stands before COMMAND"),
        # numbers
        ("pretrain --data x --learning_rate -1e-3", "learning_rate must be at least 0, not -0.001"),
        ("pretrain --data x --seed 99999999999999999999", "it must be below 2**63"),
        ("pretrain --data x --max_steps 99999999999999999999", "it must be below 2**63"),
        ("phantom p --prevalence nan", "must be a number, not 'nan'"),
        ("phantom p --followups 1.5", "must be a number from 0 to 1, not '1.5'"),
        ("phantom p --laterals inf", "must be a number, not 'inf'"),
        ("leaks x --pixels y --tolerance nan", "must be a number, not 'nan'"),
        ("outliers mini film.png --out o --quantile 98", "must be a number from 0 to 1, not '98'"),
        # recipes and launch files
        ("pretrain --recipe", "--recipe needs a name or the path of a .yaml file"),
        ("finetune --recipe twice.yaml", "line 3: 'batch_size' is given twice"),
        ("finetune --recipe cut.yaml", "is not valid YAML, line 2"),
        ("pretrain --data x --config_file a.txt", "a.txt is not a launch file of accelerate: it holds no"),
        ("pretrain --data x --config_file row.json", "row.json is not a launch file of accelerate"),
        ("pretrain --data x --config_file twice.yaml", "'batch_size' is given twice"),
        ("pretrain --data x --config_file binary.json", "is not valid YAML"),
        ("plan --encoder mini --llm mini", "holds no causal language model, but a llava"),
        ("plan --encoder mini --llm folder", "folder: its config.json cannot be read"),
        # models and devices
        ("generate film.png --base x", "mini is not an adapter: it has no base, so leave x out"),
        ("generate film.png --device meta", "device 'meta' cannot be used here"),
        ("embed film.png --out e --device nonsense", "device 'nonsense' cannot be used here"),
        ("embed film.png --out e --device meta", "device 'meta' cannot be used here"),
        ("embed film.png --out e --size 1", "images of 1 px are smaller than a patch of 14 px"),
        ("embed film.png --out e --model=", "the name of the model is empty"),
        ("convert mini c.safetensors --to timm --size 15", "15 is not a multiple of the patch size 14"),
        ("convert mini c.safetensors --to timm --heads 7", "its blocks have 3 heads; leave out --heads"),
        ("convert mini c --to timm", "--to timm writes a file, whose name ends in .safetensors"),
        ("convert mini c.bin --to dinov2", "--to dinov2 writes a file, whose name ends in .safetensors"),
        ("convert mini c.safetensors --to transformers", "--to transformers writes a directory"),
        ("convert mini a.txt --to transformers --overwrite", "a.txt is a file"),
        ("export mini e --scores a.txt", "a.txt does not hold scores; give what cxr score --out wrote"),
        ("export mini e --scores row.json", "row.json does not hold scores"),
        ("export mini e --run run", "run.json is not the record of a run"),
        # files of another kind
        *((f"rexrank {name} o.json .", "study a: ") for name in REXRANK),
        ("studies make table binary.jsonl --out s.jsonl", "binary.jsonl is not UTF-8 text"),
        ("studies make table binary.csv --out s.jsonl", "binary.csv is not UTF-8 text"),
    ],
)
def test_a_slip_is_one_line_and_writes_nothing(here, words, said, capsys):
    before = sorted(here.rglob("*"))
    assert status_of(words.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", ["amounts", "seeds", "fields", "variants", "probe", "binary", "twice"])
def test_a_study_of_scaling_says_what_is_odd(here, name):
    from train.probe.scaling import read_study

    with pytest.raises(ConfigError, match=rf"{name}\.yaml"):
        read_study(here / f"{name}.yaml")


def test_negative_numbers_are_values_however_they_are_written():
    for number in ("-1", "-.5", "-1.", "-1e-3", "-2.5E+4"):
        with pytest.raises(ConfigError, match=f"learning_rate must be at least 0, not {float(number)}"):
            configured(["--data", "x", "--learning_rate", number])


def test_an_old_recipe_may_say_no(tmp_path, capsys):
    recipe = tmp_path / "old.yaml"
    # YAML reads this `no` as false
    recipe.write_text("pretrain:\n  mixed_precision: no\n  data: [x]\n")
    assert configured(["--recipe", str(recipe)]).precision == "fp32"
    assert "precision no is now called fp32" in capsys.readouterr().err


def test_yaml_keeps_its_merges(tmp_path):
    recipe = tmp_path / "merged.yaml"
    recipe.write_text("base: &base\n  a: 1\n  b: 2\nmine:\n  <<: *base\n  b: 3\n")
    assert read_section(recipe, "mine") == {"a": 1, "b": 3}


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_shipped_launch_files_are_read_by_accelerate(name):
    command = accelerate_command("train.pretrain", config_file=name)
    assert command[command.index("--config_file") + 1].endswith(f"{name}.yaml")


@pytest.mark.parametrize("room", ["train", "eval", "encoder"])
def test_python_m_cxr_is_the_command_and_runs_no_foreign_file(tmp_path, room):
    command = [sys.executable, "-m", "cxr", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("cxr "), done.stderr
    (tmp_path / f"{room}.py").write_text("open('it_ran', 'w')")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and f"{room}.py" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "it_ran").exists()
