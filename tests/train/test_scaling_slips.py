"""A study that cannot be carried through is refused as a whole: one line, and neither a folder nor a training."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import yaml
from PIL import Image as Picture

import train.pretrain.__main__ as pretrain
from cxr.cli.main import main as cxr
from train.common import launcher
from train.common.entry import entry
from train.probe.scaling import main

FIELDS = {"size": 28, "patch_size": 7, "local_crops_size": 14, "max_steps": 3}
LONG = "z" * 300


@pytest.fixture
def content(tmp_path):
    """A study that is right, of images that are only counted."""
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(12):
        Picture.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"images/{i}.png")
        split = ("train", "validate", "test")[i // 2 % 3]
        labels = ("Left", "Right")[i % 2]
        rows.append({"image": f"images/{i}.png", "labels": labels, "split": split, "patient_id": f"p{i}"})
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return {
        "data": str(tmp_path / "images"), "fields": dict(FIELDS), "amounts": [2], "seeds": [0],
        "variants": {"all": {}, "b": {"ibot_loss_weight": 0}},
        "probe": {"data": str(tmp_path / "labels.csv"), "tasks": ["knn"], "dataloader_num_workers": 0},
    }  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """The command lines of the pre-trainings that were begun; each ends at once, stopped."""
    begun = []
    monkeypatch.setattr(pretrain, "main", lambda words: begun.append(words) or 130)
    return begun


@pytest.fixture
def refused(content, trained, tmp_path, capsys):
    """Run the study with some keys changed -> what it is refused with; nothing may be there then."""

    def run(changes: dict, out: str = "out") -> str:
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
        before = sorted(tmp_path.rglob("*"))
        assert entry(main, "cxr scaling", [str(file), "--out", str(tmp_path / out), "--threads", "1"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"cxr scaling: {file}: ") and error.count("\n") == 1, error
        assert not trained and sorted(tmp_path.rglob("*")) == before
        return error.removeprefix(f"cxr scaling: {file}: ").strip()

    return run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # nothing to do, or twice the same
        ({"variants": {}}, "variants has no entry"),
        ({"seeds": []}, "seeds are whole numbers from 0 to 4294967295, at least one, not []"),
        ({"amounts": [4, 4]}, "amounts: 4 is given twice"),
        ({"seeds": [0, 0]}, "seeds: 0 is given twice"),
        # numbers that nothing can be drawn from
        ({"seeds": [-1]}, "seeds are whole numbers from 0"),
        ({"seeds": [2**32]}, "seeds are whole numbers from 0"),
        # sources of another kind
        *(({"data": odd}, "data must be a path or a list of paths") for odd in (5, None, [5], [], {}, "", [""], "\0")),
        ({"fields": {"data": 7}}, "fields: data must be a path or a list of paths, not 7"),
        *(
            ({"variants": {"a": {"data": odd}}}, "variant a: data must be a path or a list of paths")
            for odd in (5, [5], [], {}, None)
        ),
        *(({"recipe": odd}, "recipe must be a name or the path") for odd in (5, ["a"], {"a": 1}, "", "\0")),
        ({"recipe": "nope"}, "no recipe is called 'nope'"),
        # names that are no folder's
        ({"variants": {LONG: {}}}, "its name has over 150 bytes"),
        ({"variants": {"ä" * 80: {}}}, "its name has over 150 bytes"),
        ({"variants": {"\0": {}}}, "its name holds a character that cannot be shown"),
        ({"variants": {"": {}}}, "a variant needs a name"),
        ({"variants": {" ": {}}}, "a variant needs a name"),
        ({"variants": {"a/b": {}, "a b": {}}}, "variants a/b and a b have the same name"),
        # fields of the pre-training
        ({"variants": {"a": {1: 2}}}, "variant a: a pre-training has no 1"),
        ({"variants": {"a": {"sise": 28}}}, "variant a: a pre-training has no sise; did you mean size?"),
        ({"variants": {"a": {}, "b": {"size": "x"}}}, "variant b: size must be a whole number, not 'x'"),
        ({"variants": {"a": {"size": 15}}}, "variant a: size=15 and local_crops_size=14 must be multiples"),
        ({"variants": {"a": {"size": [28]}}}, "variant a: size must be a whole number, not [28]"),
        ({"variants": {"a": {"init": "--help"}}, "amounts": [99]}, "variant a: 99 images are asked for"),
        ({"variants": {"a": {"weights": []}}}, "variant a: weights has no entry"),
        ({"variants": {"a": {"steps": 1, "max_steps": 2}}}, "variant a: steps is max_steps, which is given, too"),
        ({"variants": {"a": {"seed": 5}}}, "variant a: seed comes from the study's seeds"),
        ({"fields": {"seed": 5}}, "fields: seed comes from the study's seeds; leave it out here"),
        ({"fields": {"threads": -1}}, "fields: threads must be at least 0, not -1"),
        ({"fields": {"out": "x"}}, "fields: out comes from --out"),
        ({"fields": {"size": float("nan")}}, "fields: size must be a whole number, not 'nan'"),
        ({"fields": {"max_steps": -1}}, "fields: max_steps must be at least 1, not -1"),
        ({"fields": {"learning_rate": None}}, "fields: learning_rate must be a number, not None"),
        ({"fields": {"global_crops_scale": {}}}, "fields: global_crops_scale must be a list"),
        # the probe
        ({"probe": {"nonsense": 1}}, "probe: a probe has no nonsense"),
        ({"probe": {"tasks": ["nope"]}}, "probe: tasks: there is no nope"),
        ({"probe": {"tasks": ["segmentation"]}}, "probe: task segmentation: no image of"),
        ({"probe": {"labels": ["Up"]}}, "probe: no label is called Up; there are Left, Right"),
        ({"probe": {"labels": ["--help"]}}, "probe: labels: '--help' begins with a dash"),
        ({"probe": {"labels": []}}, "probe: labels has no entry"),
        ({"probe": {"batch": 1, "batch_size": 2}}, "probe: a field is given by its old and by its new name"),
        *(({"probe": {key: "x"}}, f"probe: {key} comes from") for key in ("out", "encoders", "pretrained_on")),
        ({"probe": {"bootstrap": float("nan")}}, "probe: bootstrap must be a whole number, not 'nan'"),
        ({"probe": {"data": ["a", "b"]}}, "probe: data must be a text, not ['a', 'b']"),
        ({"probe": {"data": "nope"}}, "probe: data nope: nope is neither"),
        # images
        ({"data": "nope"}, "variant all: data nope: nope does not exist"),
        ({"amounts": [2, 5]}, "variant all: 5 images are asked for, and there are 4"),
        ({"amounts": [10**20]}, "images are asked for, and there are 4"),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_before_anything_is_written(content, refused, changes, said):
    for key in ("fields", "probe"):
        if key in changes:
            changes = {**changes, key: {**content[key], **changes[key]}}
            # so that it is the fields' own
            changes.setdefault("variants", {"all": {}})
    told = refused(changes)
    assert said in told and len(told) < 500, told


def test_what_is_right_reaches_the_training(content, trained, tmp_path):
    content["fields"] |= {"layerscale": "1e-3", "init": None, "lr": 1e-4, "koleo_gather": False}
    content["probe"] |= {"tasks": "knn", "workers": 0}
    del content["probe"]["dataloader_num_workers"]
    content["fields"]["threads"] = 3
    content["variants"] = {"a b/c": None, "-": {"weight_decay": 0}}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main([str(file), "--out", str(tmp_path / "out"), "--threads", "1"]) == 130
    from train.pretrain.config import configured

    (words,) = trained
    config = configured(words)
    assert (config.layerscale, config.init, config.learning_rate, config.koleo_gather) == (
        1e-3,
        None,
        1e-4,
        False,
    )
    assert (config.seed, config.threads, config.size) == (0, 3, 28)
    assert config.data == [str(tmp_path / "out/data/a_b_c-2-0.csv")] and config.out.endswith(
        "points/a_b_c-2-0"
    )


def test_a_point_with_other_settings_is_told_before_the_first_is_trained(content, trained, tmp_path, refused):
    file, command = tmp_path / "study.yaml", [str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    content["variants"] = {"b": {"ibot_loss_weight": 0}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(command) == 130
    trained.clear()
    assert "variant b: " in refused({"variants": {"new": {}, "b": {"ibot_loss_weight": 1}}})
    # images that were drawn are not asked for again
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    for image in (tmp_path / "images").iterdir():
        if image.stem in ("0", "1", "6", "7"):
            image.rename(tmp_path / image.name)
    assert main(command) == 130 and len(trained) == 1


def test_the_command_tells_it_before_a_launch(content, tmp_path, monkeypatch, capsys):
    launched = []
    monkeypatch.setattr(launcher, "launch", lambda *words, **_: launched.append(words))
    file = tmp_path / "study.yaml"
    words = ["scaling", str(file), "--out", str(tmp_path / "out")]
    file.write_text(yaml.safe_dump(content | {"variants": {"a": {"size": 15}}}))
    assert cxr(words) == 2 and not launched
    assert capsys.readouterr().err.startswith(f"cxr scaling: {file}: variant a: size=15")
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert cxr(words) == 0 and len(launched) == 1


@pytest.mark.parametrize("threads", ["-1", "99999"])
def test_threads_are_a_number_that_a_training_takes(threads, tmp_path, capsys):
    assert entry(main, "cxr scaling", ["study.yaml", "--out", str(tmp_path / "o"), "--threads", threads]) == 2
    assert "--threads must be from 0 to 16384" in capsys.readouterr().err
