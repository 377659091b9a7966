"""What a user can get wrong in a pre-training: one line, exit status 2, and no run folder where there was none."""

# Fixtures are imported.
# ruff: noqa: F401, F811

import json
import resource
import shutil

import pytest
import yaml

from encoder.state_dicts import save_dinov2
from encoder.transforms import Preprocessing
from encoder.vit import CropViT
from tests.train.pretraining import (
    TINY,
    curve,
    fresh_accelerate,
    images,
    options,
    pretraining,
    same,
    train,
    weights,
    whole,
)
from train.common.config import ConfigError
from train.common.processes import first_alone
from train.pretrain.config import PretrainConfig
from train.pretrain.session import DivergedError

# A name that no file system takes: the operating system itself refuses it.
TOO_LONG = "x" * 300


@pytest.fixture
def refused(capsys):
    """Run a command line that is to be refused; returns the line that says why."""

    def run(words):
        status = pretraining(*words)
        error = capsys.readouterr().err
        assert status == 2, error
        told = [
            line for line in error.splitlines() if line.startswith(("train.pretrain: ", "cxr pretrain: "))
        ]
        assert len(told) == 1 and error.endswith(f"{told[0]}\n") and "Traceback" not in error, error
        return told[0]

    return run


@pytest.fixture
def odd(tmp_path, images):
    """A folder of things that are not what they should be."""
    folder = tmp_path / "odd"
    (folder / "broken").mkdir(parents=True)
    (folder / "empty").mkdir()
    for i in range(3):
        (folder / "broken" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (folder / "letters.txt").write_text("an essay")
    (folder / "noise.csv").write_bytes(bytes(range(256)) * 3)
    (folder / "other.csv").write_text("name,age\nx,3\n")
    (folder / "gone.csv").write_text("file\nnowhere.png\n")
    (folder / "studies.jsonl").write_text('{"study_id": 3}\n')
    (folder / "archive").mkdir()
    (folder / "archive" / "prepared.json").write_text("{")
    (folder / "loop").symlink_to("loop")
    save_dinov2(CropViT(28, 7, 32, 2, 2, 0.5), folder / "wide", Preprocessing(size=28))
    shutil.copytree(folder / "wide", folder / "headless")
    (folder / "headless" / "model.safetensors").unlink()
    shutil.copytree(folder / "wide", folder / "cut")
    cut = folder / "cut" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:5000])
    shutil.copytree(folder / "wide", folder / "torn")
    (folder / "torn" / "config.json").write_text('{"model_type": "dinov2", "hidden')
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # Data.
        ("--data nowhere", "nowhere does not exist"),
        ("--data ODD/empty", "holds no images"),
        ("--data ODD/broken", "none of the 3 images can be read"),
        ("--data ODD/broken --cache ODD/cache", "none of the 3 images can be read"),
        ("--data ODD/broken --dataloader_num_workers 2", "none of the 3 images can be read"),
        ("--data ODD/letters.txt", "neither a folder nor a .csv"),
        ("--data ODD/noise.csv", "noise.csv"),
        ("--data ODD/other.csv", "no column file or path or image; it has name, age"),
        ("--data ODD/gone.csv", "none of the 1 images can be read"),
        ("--data ODD/studies.jsonl", "studies.jsonl"),
        ("--data ODD/archive", "archive"),
        ("--data ODD/loop", "loop"),
        (f"--data {TOO_LONG}", "File name too long"),
        ("--cache ODD/letters.txt/cache", ": Not a directory"),
        ("--cache /proc/nowhere", "/proc/nowhere"),
        ("--exclude nowhere", "--exclude nowhere"),
        ("--exclude ODD/noise.csv", "--exclude"),
        ("--weights 1 2", "2 weights for 1"),
        # Weights to start from.
        ("--init nowhere", "--init nowhere: "),
        ("--init ODD/wide", "hidden_size is 32 there and 16 in the recipe"),
        ("--init ODD/headless", "model.safetensors does not exist"),
        ("--init ODD/cut", "--init"),
        ("--init ODD/torn", "--init"),
        ("--init ODD/letters.txt", "no weights that can be read safely"),
        ("--init_head nowhere", "--init_head nowhere: nowhere does not exist"),
        ("--init_head ODD/letters.txt", "no weights that can be read safely"),
        ("--init_head ODD/wide/model.safetensors", "--init_head"),
        # Labelled images.
        ("--probe nowhere", "--probe nowhere: nowhere does not exist"),
        ("--probe ODD/broken", "--probe"),
        ("--probe ODD/other.csv", "lacks the column(s)"),
        # Numbers.
        ("--size 30", "must be multiples of patch_size=7"),
        ("--patch_size 0", "patch_size must be at least 1, not 0"),
        ("--num_attention_heads 3", "hidden_size=16 must be a multiple of num_attention_heads=3"),
        ("--centring none", "must be one of sinkhorn_knopp, running_mean, not 'none'"),
        ("--precision fp8", "must be one of auto, bf16, fp32, not 'fp8'"),
        ("--mask_ratio_min_max 0.5 0.1", "two numbers in order, from 0 to 1, not [0.5, 0.1]"),
        ("--mask_ratio_min_max 0.5 2", "two numbers in order, from 0 to 1"),
        ("--blur_sigma 1", "two numbers in order"),
        ("--drop_path_rate 1.0", "drop_path_rate must be at least 0 and below 1"),
        ("--adam_beta2 1", "adam_beta2 must be at least 0 and below 1, not 1.0"),
        ("--learning_rate -1", "learning_rate must be at least 0"),
        ("--learning_rate fast", "must be a number, not 'fast'"),
        ("--seed -1", "seed must be at least 0"),
        ("--threads -1", "threads must be at least 0"),
        ("--local_crops_number -1", "local_crops_number must be at least 0"),
        ("--stop_at 0", "stop_at must be at least 1"),
        ("--student_temp 0", "student_temp must be above 0"),
        ("--batch_size 7 --gradient_accumulation_steps 2", "by 1 process x 2 accumulation steps; use 6 or 8"),
        ("--report_to paper", "report_to must be"),
        ("--report_to tensorbord", "did you mean tensorboard?"),
        ("--max_step 3", "unknown option --max_step; did you mean --max_steps?"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_is_written(images, odd, refused, tmp_path, words, message):
    words = [word.replace("ODD", str(odd)) for word in words.split()]
    assert message in refused(options(images, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_no_data_is_refused(refused, tmp_path):
    assert "give --data with a folder" in refused([*TINY, "--out", str(tmp_path / "run")])


def test_a_folder_that_may_not_be_read_is_refused(images, refused, tmp_path, monkeypatch):
    """As root may read everything, the system's answer is played here."""

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", forbidden)
    monkeypatch.setattr("os.scandir", forbidden)
    assert f"{images}: Permission denied" in refused(options(images, tmp_path / "run"))


def test_config_errors_name_all_problems():
    with pytest.raises(ConfigError) as error:
        PretrainConfig(max_steps=0, learning_rate="fast", weight_init="he", seed=-1)
    for message in (
        "max_steps must be at least 1, not 0",
        "learning_rate must be a number, not 'fast'",
        "weight_init must be one of dinov2, fan_in, not 'he'",
        "seed must be at least 0, not -1",
    ):
        assert message in str(error.value)
    with pytest.raises(ConfigError) as error:
        PretrainConfig(size=515, hidden_size=30, position_embedding="sincos")
    assert "multiples of patch_size=14" in str(error.value) and "multiple of 4, not 30" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", "fast", "learning_rate must be a number, not 'fast'"),
        ("max_steps", [6], "max_steps must be a whole number, not [6]"),
        ("max_steps", 6.5, "max_steps must be a whole number, not 6.5"),
        ("max_steps", None, "max_steps must be a whole number, not None"),
        ("max_steps", True, "max_steps must be a whole number, not True"),
        ("learning_rate", float("nan"), "learning_rate must be a number, not nan"),
        ("data", "images", "data must be a list"),
        ("data", [["images"]], "data must be a list, each entry a text"),
        ("blur_sigma", {"from": 0}, "blur_sigma must be a list, each entry a number"),
        ("koleo_gather", "perhaps", "koleo_gather must be true or false, not 'perhaps'"),
        ("out", 3, "out must be a text, not 3"),
        ("centring", "sinkhorn", "did you mean sinkhorn_knopp?"),
        ("max_step", 6, "unknown field 'max_step'; did you mean max_steps?"),
        (3, 6, "unknown field 3"),
    ],
)
def test_recipes_with_wrong_types_are_refused(refused, tmp_path, field, value, message):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"pretrain": {field: value}}))
    assert message in refused(["--recipe", str(tmp_path / "own.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a mapping of sections"),
        ("- a\n- b\n", "not a mapping of sections"),
        ("pretrain: fast\n", "no section 'pretrain:' with fields"),
        ("finetune:\n  max_steps: 3\n", "its sections are finetune"),
        ("pretrain: {max_steps: 3\n", "not valid YAML, line 2"),
        ("pretrain:\n  max_steps: 3\n  steps: 4\n", "gives max_steps twice"),
    ],
)
def test_recipes_of_another_shape_are_refused(refused, capsys, tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    assert message in refused(["--recipe", str(tmp_path / "own.yaml")])


def test_another_config_or_other_images_are_refused(images, whole, refused, tmp_path):
    said = refused(options(images, whole, "--learning_rate", "0.02", "--momentum_teacher", "0.9"))
    assert "learning_rate: 0.01 there, 0.02 now" in said and "momentum_teacher: 0.992 there" in said
    assert "--out" in said
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for path in sorted(images.iterdir())[:5]:
        shutil.copy(path, fewer)
    assert "images" in refused(options(fewer, whole))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "file is a file; choose another --out"),
        ("file/run", "file is a file; choose another --out"),
        ("/proc/run", "/proc/run cannot be written: "),
        (TOO_LONG, "File name too long; choose another --out"),
        ("thesis", "exists and is not a run of this training"),
    ],
)
def test_an_out_that_cannot_be_a_run_is_refused(images, refused, tmp_path, out, message):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    assert message in refused(options(images, tmp_path / out))
    assert (tmp_path / "file").read_text() == "precious"
    assert [p.name for p in (tmp_path / "thesis").iterdir() if p.name != ".lock"] == ["chapter.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": ["x"], "max_st', "run.json is not JSON"),
        (b"\x00\xff\x80", "run.json is not JSON"),
        (b"[1, 2]", "run.json is not the record of a run"),
        (b"{}", "there,"),
        (b'{"precision": 3}', "precision: 3 there"),
        (b'{"precision": ["fp32"], "size": "large"}', "size: 'large' there, 28 now"),
    ],
)
def test_a_damaged_record_of_a_run_is_refused(images, whole, refused, tmp_path, content, message):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(content)
    assert message in refused(options(images, tmp_path / "run", "--precision", "auto"))
    assert (tmp_path / "run" / "run.json").read_bytes() == content
    assert same(weights(tmp_path / "run"), weights(whole))


def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_resumes(images, whole, refused, tmp_path):
    """Metrics go to a device that is always full; then no file may grow beyond what the first checkpoint needs."""
    run, plain = tmp_path / "run", ("--report_to", "none")
    assert train(images, run, "--stop_at", "2", *plain) == 0
    kept = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    said = refused(options(images, run, *plain))
    assert "No space left on device" in said and "the same command" in said

    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").write_bytes(kept)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        said = refused(options(images, run, *plain))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in said and str(run) in said

    assert train(images, run, *plain) == 0
    assert curve(run) == curve(whole) and same(weights(run), weights(whole))


def test_images_that_vanish_end_the_run_in_one_line(images, refused, tmp_path, monkeypatch):
    """After the first look at them, in the main process and in one that cuts crops."""
    for workers in ("0", "1"):
        copies = tmp_path / f"images-{workers}"
        shutil.copytree(images, copies)

        def vanish(work, device, folder=copies):
            shutil.rmtree(folder, ignore_errors=True)
            return first_alone(work, device)

        monkeypatch.setattr("train.pretrain.session.first_alone", vanish)
        out = tmp_path / f"run-{workers}"
        said = refused(options(copies, out, "--dataloader_num_workers", workers))
        assert "can no longer be read" in said and "none of the 10 images can be read" in said


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay"])
def test_an_encoder_that_is_no_numbers_is_not_written(images, tmp_path, field, capsys):
    """One bad step at the end is too few to stop a run; its weights are bad all the same."""
    words = (f"--{field}", "1e308", "--max_steps", "1", "--warmup_steps", "0")
    assert train(images, tmp_path / "run", *words) == DivergedError.exit_status == 1
    assert "is not finite; nothing was saved. Lower learning_rate" in capsys.readouterr().err
    assert not (tmp_path / "run" / "encoder").exists() and not list(tmp_path.glob("run/checkpoints/*"))


def test_a_diverging_run_says_what_to_try(images, tmp_path, capsys):
    """A learning rate that makes features infinite, on the screen at each step: lines, not a traceback of LAPACK's."""
    assert train(images, tmp_path / "run", "--learning_rate", "1e30", "--report_to", "none") == 1
    said = capsys.readouterr().out
    assert "3 steps in a row were not finite" in said and "try a lower --learning_rate" in said
