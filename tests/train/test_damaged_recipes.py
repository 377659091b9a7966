"""Recipes that lie: each damage is answered in one line with status 2, before anything is loaded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import train.finetune.config as finetune
import train.finetune.language_model.config as language_model
import train.grpo.config as grpo
import train.pretrain.config as pretrain
import train.probe.config as probe
from train.common.config import ConfigError, read_yaml
from train.common.entry import entry

CONFIGURED = {
    "pretrain": (pretrain.configured, ["--data", "x"]),
    "finetune": (finetune.configured, ["--studies", "x", "--init", "x", "--out", "x"]),
    "language_model": (language_model.configured, ["--studies", "x", "--out", "x"]),
    "probe": (probe.configured, ["--data", "x", "--encoders", "x", "--out", "x"]),
    "grpo": (grpo.configured, ["--studies", "x", "--init", "x", "--out", "x", "--reward", "rouge-l/coco"]),
}


def laughs(line: str, levels: int = 12) -> str:
    """YAML whose value has 10 ** levels entries, by aliases."""
    lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, levels):
        lists.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "\n".join([*lists, "pretrain:", f"  {line}"])


def merges(levels: int = 30) -> str:
    """YAML whose mapping has 2 ** levels pairs, by merging."""
    maps = ["a0: &a0 {x: 1}"]
    for i in range(1, levels):
        maps.append(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}")
    return "\n".join([*maps, "pretrain:", f"  <<: *a{levels - 1}"])


# Files that are not recipes: name -> (content, what the line says).
FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is not a mapping"),
    "a comment": ("# nothing", "is not a mapping"),
    "a text": ("pretrain", "is not a mapping"),
    "a list": ("- pretrain", "is not a mapping"),
    "another section": ("pretrian:\n  seed: 1", "has no section 'pretrain:'"),
    "a section that is null": ("pretrain:", "has no section 'pretrain:'"),
    "a section that is a list": ("pretrain: [1]", "has no section 'pretrain:'"),
    "keys of megabytes": (f"? {'k' * 300_000}\n: 1", "has no section"),
    "cut in a quotation": ('pretrain:\n  out: "runs', "is not valid YAML"),
    "a tab": ("pretrain:\n\tseed: 1", "is not valid YAML"),
    "binary": (bytes(range(256)), "is not valid YAML"),
    "latin-1": ("pretrain:\n  out: Röntgen".encode("latin-1"), "is not UTF-8"),
    "UTF-16": ("pretrain:\n  seed: 1".encode("utf-16"), "is not valid YAML"),
    "a zero byte": (b"pretrain:\n  out: a\0b", "is not valid YAML"),
    "two documents": ("pretrain:\n  seed: 1\n---\npretrain:\n  seed: 2", "is not valid YAML"),
    "a field twice": ("pretrain:\n  seed: 1\n  seed: 2", "'seed' is given twice"),
    "a section twice": ("pretrain:\n  seed: 1\npretrain:\n  seed: 2", "'pretrain' is given twice"),
    "10,000 lists": (f"pretrain:\n  data: {'[' * 10_000}{']' * 10_000}", "deep"),
    "10,000 mappings": (f"pretrain:\n  data: {'{a: ' * 10_000}", "deep"),
    "10,000 dashes": (f"pretrain:\n  data:\n    {'- ' * 10_000}x", "deep"),
    "a billion laughs": (laughs("data: *a11"), "aliases"),
    "a billion laughs for a number": (laughs("seed: *a11"), "aliases"),
    "a billion laughs elsewhere": (laughs("seed: 1"), "aliases"),
    "merges without end": (merges(), "aliases"),
    "an alias of itself": ("pretrain: &a\n  data: [*a]", "aliases"),
    "an alias of nothing": ("pretrain:\n  data: *a", "is not valid YAML"),
    "a Python object": ("pretrain:\n  out: !!python/object/apply:os.system ['touch ran']", "python/object"),
    "a Python name": ("pretrain:\n  out: !!python/name:os.system", "python/name"),
    "a Python module": ("pretrain:\n  out: !!python/module:os", "python/module"),
    "an unknown tag": ("pretrain:\n  out: !env HOME", "!env"),
    "an integer of 5,000 digits": (f"pretrain:\n  seed: {'9' * 5000}", "is not valid YAML"),
    "a date that is none": ("pretrain:\n  out: 2001-99-99", "is not valid YAML"),
    "a tag of another kind": ("pretrain:\n  seed: !!int nine", "is not valid YAML"),
    "a truth that is none": ("pretrain:\n  seed: !!bool nine", "not of the kind"),
    "a time that is none": ("pretrain:\n  seed: !!timestamp nine", "not of the kind"),
    "a key that is a list": ("pretrain:\n  [a, b]: 1", "is not valid YAML"),
    "of megabytes": ("pretrain:\n  data: [" + "x, " * 700_000 + "]", "bytes"),
}
# Values that a field of each kind cannot have: (section, field, value in YAML, what the line says).
HEX = "0x" + "f" * 6000
VALUES: list[tuple[str, str, str, str]] = [
    *[
        ("pretrain", field, value, f"{field} must be")
        for field, values in {
            "seed": ["[1]", "one", "1.5", "true", "null", ".nan", ".inf", "1e400", "{a: 1}", HEX, "-1", "4294967296"],
            "learning_rate": ["[1]", "one", "true", "null", ".nan", ".inf", "1e400", "{a: 1}", HEX, "-1"],
            "out": ["[a]", "1", "true", "null", ".nan", "2001-01-01", "{a: 1}", '"a\\0b"', '"\\ud800"',
                    "!!binary YQ=="],
            "torch_compile": ["[true]", "1", "maybe", "null", ".nan", "{a: 1}", '"true"'],
            "precision": ["[bf16]", "1", "bf61", "null", "{a: 1}", "true"],
            "data": ["x", "1", "[1]", "[[x]]", "null", "{a: 1}", "[null]", "!!set {x}"],
            "weights": ["1", "[x]", "[.nan]", "[.inf]", "[-1]", "[true]", "[1e400]", f"[{HEX}]"],
            "batch_size": ["0", "-1", "1000000000"],
            "stop_at": ["0", "[1]", "x"],
            "hidden_size": ["0", "-64", "1200000000"],
            "num_hidden_layers": ["1000000000"],
            "dataloader_num_workers": ["-1", "1000000"],
        }.items()
        for value in values
    ],
    *[
        (section, "batch_size", value, "batch_size must be")
        for section in ("finetune", "language_model", "probe", "grpo")
        for value in ("0", "-1", "1000000000")
    ],
    *[
        (section, "seed", value, "seed must be")
        for section in ("finetune", "language_model", "probe", "grpo")
        for value in ("-1", "4294967296", "1.0")
    ],
    *[("language_model", name, value, f"{name} must be") for name in ("hidden_size", "vocab_size", "num_hidden_layers")
      for value in ("0", "-3", "1000000000")],
    ("finetune", "lora_rank", "0", "lora_rank must be"),
    ("finetune", "lora_rank", "1000000000", "lora_rank must be"),
    ("finetune", "lora_dropout", "1.0", "lora_dropout must be"),
    ("finetune", "layers", "-1", "layers must be"),
    ("finetune", "dataloader_num_workers", "-1", "dataloader_num_workers must be"),
    ("finetune", "threads", "1000000", "threads must be"),
    ("grpo", "num_generations", "1000000000", "num_generations must be"),
    ("grpo", "temperature", "0", "temperature must be"),
    ("probe", "bootstrap", "1000000000", "bootstrap must be"),
    ("probe", "shares", "2.0", "shares must be"),
]  # fmt: skip
UNKNOWN = {
    "pretrain": ("batchsize", "batch_size"),
    "finetune": ("learning-rate", "learning_rate"),
    "grpo": ("num_generation", "num_generations"),
}


@pytest.fixture
def told(tmp_path, capsys, monkeypatch):
    """Read a recipe as a training does; -> the one line it ended with."""
    import importlib.util

    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "trl" or known(name, *rest))
    monkeypatch.chdir(tmp_path)

    def read(section: str, recipe: Path | list[str]) -> str:
        configured, words = CONFIGURED[section]

        def main(argv: list[str]) -> int:
            configured(argv)
            return 0

        begun = time.perf_counter()
        status = entry(
            main, section, [*(recipe if isinstance(recipe, list) else ["--recipe", str(recipe)]), *words]
        )
        seconds = time.perf_counter() - begun
        err = capsys.readouterr().err
        assert status == 2, f"it was read: {err}"
        lines = err.splitlines()
        assert len(lines) == 1 and "Traceback" not in err and " at 0x" not in err, err[:2000]
        assert len(lines[0]) < 1000 and seconds < 1.5, (len(lines[0]), seconds)
        assert not (tmp_path / "ran").exists()
        return lines[0]

    return read


def recipe_of(folder: Path, content: str | bytes) -> Path:
    file = folder / "recipe.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize("name", FILES)
def test_files(name, told, tmp_path):
    content, said = FILES[name]
    file = recipe_of(tmp_path, content)
    line = told("pretrain", file)
    assert str(file) in line and said in line


@pytest.mark.parametrize(("section", "field", "value", "said"), VALUES, ids=lambda x: x[:24])
def test_values(section, field, value, said, told, tmp_path):
    # a probe has no recipes
    recipe = recipe_of(tmp_path, f"{section}:\n  {field}: {value}\n")
    line = told(section, [f"--{field}={value}"] if section == "probe" else recipe)
    assert said in line.replace("argument --seed:", "seed")


@pytest.mark.parametrize("section", UNKNOWN)
def test_unknown_fields(section, told, tmp_path):
    wrong, right = UNKNOWN[section]
    line = told(section, recipe_of(tmp_path, f"{section}:\n  {wrong}: 1\n"))
    assert f"unknown field '{wrong}'" in line and f"did you mean {right}?" in line


def test_places(told, tmp_path):
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert "is a folder" in told("pretrain", folder)
    assert "does not exist" in told("pretrain", tmp_path / "nothing.yaml")
    assert "cannot be read" in told("pretrain", tmp_path / ("x" * 300 + ".yaml"))


def test_aliases_of_a_sound_recipe_are_read(tmp_path):
    file = recipe_of(
        tmp_path, "base: &base {seed: 3}\nsizes: &s [0.1, 0.4]\npretrain:\n  <<: *base\n  blur_sigma: *s\n"
    )
    assert read_yaml(file)["pretrain"] == {"seed": 3, "blur_sigma": [0.1, 0.4]}


@pytest.mark.parametrize("value", ["1e-3", "0.001", ".001", "1.0e-3"])
def test_numbers_are_read(value, tmp_path):
    file = recipe_of(tmp_path, f"pretrain:\n  learning_rate: {value}\n  seed: 4294967295\n")
    config = pretrain.configured(["--recipe", str(file), "--data", "x"])
    assert config.learning_rate == 0.001 and config.seed == 2**32 - 1


def test_the_command_line_has_the_same_ranges(tmp_path):
    with pytest.raises(ConfigError, match="seed must be"):
        finetune.configured(["--studies", "x", "--init", "x", "--out", "x", "--seed", str(2**32)])


def test_numbers_in_lists_and_whole_numbers_are_numbers(tmp_path):
    """YAML's 1e-1 is a text, its 0 an integer; a model's configuration wants a float."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text("pretrain:\n  layerscale: 1\n  blur_sigma: [1e-1, 2]\n  learning_rate: 1e-3\n")
    found = pretrain.configured(["--recipe", str(recipe), "--data", "x", "--out", "y"])
    assert (found.layerscale, list(found.blur_sigma), found.learning_rate) == (1.0, [0.1, 2.0], 0.001)
    assert all(type(x) is float for x in (found.layerscale, *found.blur_sigma, found.learning_rate))


def test_probe_takes_a_recipe_as_its_help_says(tmp_path):
    from train.probe.config import configured as probe

    recipe = tmp_path / "r.yaml"
    recipe.write_text("probe:\n  bootstrap: 7\n")
    words = ["--recipe", str(recipe), "--data", "x", "--encoders", "mini", "--out", "y"]
    assert probe(words).bootstrap == 7
