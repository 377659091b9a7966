"""`train`, `eval`, `encoder` and `vlm` are names a user's own files may have: ours are never replaced by them, and
theirs are never run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CXR = Path(sys.executable).with_name("cxr")
RAN = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()\n"
EVERY_COMMAND = """
import contextlib
from cxr.cli.main import COMMANDS, main
for name in COMMANDS:
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
"""
FOREIGN = {
    "files": ("train.py", "eval.py", "vlm.py", "encoder.py"),
    "packages": ("train/__init__.py", "eval/__init__.py", "vlm/__init__.py", "encoder/__init__.py"),
}


def run(folder, *command):
    # as a user's shell has it: no root of ours on the path, nothing that pytest set
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(params=FOREIGN)
def folder(request, tmp_path):
    for name in FOREIGN[request.param]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(RAN)
    return tmp_path


def assert_nothing_ran(folder):
    assert not list(folder.rglob("*.ran"))


@pytest.mark.skipif(not CXR.exists(), reason="cxr is not installed beside this Python")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_work_beside_foreign_files(folder):
    phantoms = folder / "phantoms"
    tiny = "--size 28 --short_side 32 --patch_size 14 --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2"
    tiny += " --local_crops_size 14 --local_crops_number 1 --head_n_prototypes 8 --head_hidden_dim 8 --max_steps 1"
    tiny += " --head_bottleneck_dim 8 --batch_size 2 --warmup_steps 0 --threads 1 --report_to none"
    for command in (
        "phantom phantoms --studies 6 --size 64 --format png --workers 1",
        "studies check phantoms/studies.jsonl",
        "generate phantoms/studies.jsonl --out p.jsonl --max-new-tokens 4 --processes 2",
        "score p.jsonl phantoms/studies.jsonl --bootstrap 10 --clinical none",
        "embed phantoms/images --out features",
        "prepare phantoms/images --out archive --short-side 32 --workers 2",
        f"pretrain --data phantoms/images --out run --processes 2 {tiny}",
    ):
        status, said = run(folder, CXR, *command.split())
        assert status == 0, (command, said)
    assert (phantoms / "studies.jsonl").is_file() and (folder / "run" / "encoder" / "config.json").is_file()
    assert_nothing_ran(folder)


@pytest.mark.parametrize(
    "name", ["train.py", "eval/__init__.py", "eval.py", "vlm.py", "encoder/__init__.py", "encoder/notes.txt"]
)
def test_every_command_explains_itself_beside_a_foreign_file(tmp_path, name):
    """As the script `cxr` does it, whose own folder is where Python looks first: all commands in one process."""
    folder, script = tmp_path / "folder", tmp_path / "bin" / "all.py"
    for file, text in ((folder / name, RAN), (script, EVERY_COMMAND)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    status, said = run(folder, sys.executable, script)
    assert status == 0 and said.count("usage: cxr") >= 20, said
    assert_nothing_ran(folder)


@pytest.mark.parametrize("room", ["eval", "encoder", "vlm"])
def test_a_training_refuses_a_foreign_name_and_names_the_file(tmp_path, room):
    (tmp_path / f"{room}.py").write_text(RAN)
    status, said = run(tmp_path, sys.executable, "-m", "train.pretrain", "--help")
    assert status != 0 and f"`{room}` is {tmp_path / room}.py, and not cxr's" in said
    assert_nothing_ran(tmp_path)


@pytest.mark.parametrize("room", ["train", "eval", "encoder", "vlm"])
def test_python_refuses_a_foreign_name_and_names_the_file(tmp_path, room):
    (tmp_path / f"{room}.py").write_text(RAN)
    code = {
        "train": "import cxr.cli.main",
        "eval": "import cxr; cxr.score",
        "encoder": "import cxr; cxr.read",
        "vlm": "import cxr; cxr.Study",
    }[room]
    status, said = run(tmp_path, sys.executable, "-c", code)
    assert status != 0 and f"`{room}` is {tmp_path / room}.py, and not cxr's" in said
    assert_nothing_ran(tmp_path)


def test_what_is_ours_is_not_refused(tmp_path):
    shutil.rmtree(tmp_path)
    from train.names import ROOMS, refuse_strangers

    refuse_strangers(*ROOMS)
