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
# Commands, each read from a line, by the `main` of all: as the script `cxr`, which need not be started for each. One of
# --processes is started with the words of this process and more. It shows that it would look for modules where this one
# does and finds ours; its work is then done by a fork of this one, which has imported torch already.
MANY_COMMANDS = """
import json, os, subprocess, sys
path = list(sys.path)
from types import SimpleNamespace
from cxr.cli import generate
from cxr.cli.main import main
lines = sys.argv[1:]
if "--share" in lines:
    import encoder, eval, train, vlm
    from train.names import ROOMS, refuse_strangers
    refuse_strangers(*ROOMS)
    sys.exit(json.dumps(path))
# `import cxr` has made cxr_llava known to Auto classes that had not been imported
assert {"torch", "transformers"}.isdisjoint(sys.modules) and "vlm" in sys.modules
from encoder.startup import begin_program, importing
begin_program()
with importing():
    from transformers import AutoConfig, AutoModelForImageTextToText as Auto
known = Auto._model_mapping[type(AutoConfig.for_model("cxr_llava"))].__name__
assert known == "CxrLlavaForConditionalGeneration", known

class OneOfProcesses:
    def __init__(self, command, env):
        self.more = command[command.index("--share"):]
        self.started = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    def wait(self):
        said = self.started.communicate()[1]
        if said.strip() != json.dumps(path):
            sys.exit(said)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os._exit(main([*line.split(), *self.more]))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

generate.subprocess = SimpleNamespace(Popen=OneOfProcesses)
for line in lines:
    if status := main(line.split()):
        sys.exit(f"{line}: {status}")
"""
# A file and a package of each kind that one folder can hold; each alone is in the test after.
FOREIGN = ("train.py", "eval.py", "eval/__init__.py", "vlm.py", "encoder/__init__.py")


def run(folder, *command):
    # as a user's shell has it: no root of ours on the path, nothing that pytest set
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    for name in FOREIGN:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(RAN)
    return folder


def assert_nothing_ran(folder):
    assert not list(folder.rglob("*.ran"))


@pytest.mark.skipif(not CXR.exists(), reason="cxr is not installed beside this Python")
# three processes of their own, which import torch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_work_beside_foreign_files(folder, tmp_path):
    """In a process that also shows what transformers' Auto classes know after `import cxr`, which imports nothing
    heavy: to import them in one more would take seconds."""
    phantoms, script = folder / "phantoms", tmp_path / "bin" / "all.py"
    script.parent.mkdir()
    script.write_text(MANY_COMMANDS)
    tiny = "--size 28 --short_side 32 --patch_size 14 --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2"
    tiny += " --local_crops_size 14 --local_crops_number 1 --head_n_prototypes 8 --head_hidden_dim 8 --max_steps 1"
    tiny += " --head_bottleneck_dim 8 --batch_size 2 --warmup_steps 0 --threads 1 --report_to none"
    several = (
        "phantom phantoms --studies 6 --size 64 --format png --workers 1",
        "studies check phantoms/studies.jsonl",
        "embed phantoms/images --out features",
        "prepare phantoms/images --out archive --short-side 32 --workers 2",
        "generate phantoms/studies.jsonl --out p.jsonl --max-new-tokens 4 --processes 2",
        "score p.jsonl phantoms/studies.jsonl --clinical none",
    )
    for command in (
        (sys.executable, script, *several),
        (CXR, *f"pretrain --data phantoms/images --out run --processes 1 {tiny}".split()),
    ):
        status, said = run(folder, *command)
        assert status == 0, (command, said)
        # Triton's C++ does, of what Python does not collect at the end
        assert "leaked" not in said, said
    # the last that was said
    assert "on 1 x cpu" in said
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
