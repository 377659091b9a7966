"""Runs, recipes and command lines of 0.1, with the names that fields had then."""

# Fixtures are imported.
# ruff: noqa: F401, F811

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.train.pretraining import curve, fresh_accelerate, images, options, same, train, weights, whole
from train.pretrain.config import PretrainConfig, configured

# run.json as 0.1 wrote it of the tiny run; what depends on the machine stands as "?".
RECORD = json.loads((Path(__file__).parent / "pretrain_run_of_0_1.json").read_text())
# Names that 0.1 had and this version has not.
GONE = set(RECORD) - set(PretrainConfig.__dataclass_fields__) - {"images"}


def older(run: Path, **changes) -> None:
    """Put the record of 0.1 in the place of today's."""
    now = json.loads((run / "run.json").read_text())
    record = {**RECORD, "data": now["data"], "out": now["out"], "images": now["images"], **changes}
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("centring", ["sinkhorn_knopp", "running_mean"])
def test_a_run_of_0_1_resumes_with_the_same_losses(images, whole, tmp_path, capsys, centring):
    more = ("--centring", centring, "--report_to", "none")
    reference = whole
    if centring == "running_mean":
        reference = tmp_path / "reference"
        assert train(images, reference, *more) == 0
    run = tmp_path / "run"
    assert train(images, run, "--stop_at", "3", *more) == 0
    older(run, centring={"sinkhorn_knopp": "sinkhorn_knopp", "running_mean": "centring"}[centring])
    capsys.readouterr()
    # Its precision is taken from the record, by its old name and word.
    assert train(images, run, *more, "--precision", "auto") == 0
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    assert curve(run) == curve(reference) and same(weights(run), weights(reference))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("lr", 0.02, "learning_rate: 0.02 there, 0.01 now"),
        ("mixed_precision", "bf16", "precision: 'bf16' there, 'fp32' now"),
        ("centring", "centring", "centring: 'running_mean' there, 'sinkhorn_knopp' now"),
        ("mask_ratio", [0.1, 0.4], "mask_ratio_min_max: [0.1, 0.4] there, [0.1, 0.5] now"),
    ],
)
def test_another_run_of_0_1_is_refused_by_todays_names(images, whole, tmp_path, capsys, field, value, told):
    shutil.copytree(whole, tmp_path / "run")
    older(tmp_path / "run", **{field: value})
    assert train(images, tmp_path / "run") == 2
    assert told in capsys.readouterr().err


def test_a_recipe_of_0_1_gives_the_same_config(tmp_path, capsys):
    now = configured(options(Path("x"), Path("y"), "--stop_at", "3", "--report_to", "none"))
    fields = {k: v for k, v in RECORD.items() if k != "images"} | {"data": ["x"], "out": "y"}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"pretrain": fields}))
    assert configured(["--recipe", str(tmp_path / "old.yaml")]) == now
    notes = capsys.readouterr().err.splitlines()
    assert "note: old.yaml: lr is now learning_rate; the old name goes with the next release" in notes
    assert "note: precision no is now called fp32; the old word goes with the next release" in notes
    assert len(notes) == len(GONE) + 1


def test_a_command_line_of_0_1_gives_the_same_config(capsys):
    now = configured(options(Path("x"), Path("y"), "--stop_at", "3", "--report_to", "none"))
    words = []
    for name, value in {**RECORD, "data": ["x"], "out": "y"}.items():
        if name != "images" and value is not None and value != []:
            several = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in several)]
    assert configured(words) == now
    notes = capsys.readouterr().err
    assert "note: --lr is now --learning_rate; the old name goes with the next release\n" in notes
    assert notes.count("the old name goes with the next release") == len(GONE)


def test_old_words_are_understood_where_the_field_has_kept_its_name(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text("pretrain:\n  centring: centring\n")
    assert configured(["--recipe", str(tmp_path / "old.yaml")]).centring == "running_mean"
    assert configured(["--centring", "centring"]).centring == "running_mean"
    assert capsys.readouterr().err.count("centring centring is now called running_mean") == 2
