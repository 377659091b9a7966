"""Every command that writes, and what a disk, a terminal or a kill can do to it.

Each command is run once as it should be; then again in a process of its own, forked off this one, that meets a fault.
It must end in one line and no traceback, leave what was there as it was and nothing half written; and the same command
run again must give what the first run gave. The trainings have the same in tests/train/test_faults.py.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from cxr.cli.main import main
from tests.faults import Run, content, forked, meets, no_more_than, nobody, remove
from vlm import model as models
from vlm.study import Image, Study, save_studies

# name -> (its words, what it writes)
COMMANDS = {
    "generate": ("generate films --model model --out p.jsonl --max-new-tokens 3", "p.jsonl"),
    "generate --floors": ("generate films --model model --max-new-tokens 3 --out q.jsonl --floors floors", "floors"),
    "rexrank": ("rexrank rexrank.json r.json . --model model --max-new-tokens 3", "r.json"),
    "embed": ("embed films --model model --out features", "features"),
    "prepare": ("prepare films --out archive --short-side 64 --workers 1", "archive"),
    "prepare --out .csv": ("prepare films --out films.csv --workers 1", "films.csv"),
    "score": ("score made.jsonl studies.jsonl --out scores.json --clinical none", "scores.json"),
    "score --html": ("score made.jsonl studies.jsonl --html page.html --clinical none", "page.html"),
    "studies make": ("studies make table table.csv --out listed.jsonl", "listed.jsonl"),
    "export": ("export model merged", "merged"),
    "convert": ("convert encoder weights.safetensors --to timm", "weights.safetensors"),
    "phantom": ("phantom phantoms --studies 3 --size 64 --workers 1", "phantoms"),
}  # fmt: skip
FILES = [name for name, (_, out) in COMMANDS.items() if "." in out]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that other users may enter, with all that the commands read."""
    # Not in pytest's own, which is closed to others.
    folder = Path(tempfile.mkdtemp(prefix="cxr-faults-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def here(place, findings_model, monkeypatch):
    folder = Path(tempfile.mkdtemp(dir=place))
    folder.chmod(0o755)
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(0)
    (folder / "films").mkdir()
    studies = []
    for i in range(4):
        Picture.fromarray(rng.integers(0, 255, (260, 260)).astype(np.uint8)).save(f"films/{i}.png")
        studies.append(Study(f"{i}", images=[Image(f"films/{i}.png")], findings="The lungs are clear."))
    save_studies(studies, "studies.jsonl")
    made = [{"study_id": s.study_id, "model": "m", "findings": "Clear lungs."} for s in studies]
    Path("made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    Path("rexrank.json").write_text(
        json.dumps({s.study_id: {"image_path": [s.images[0].path]} for s in studies})
    )
    Path("table.csv").write_text(
        "study_id,image,findings\n" + "".join(f"{i},films/{i}.png,Clear.\n" for i in "012")
    )
    models.save(findings_model, "model")
    models.save_encoder(findings_model, "encoder")
    return folder


def command(words: str) -> Run:
    return lambda: main(words.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_and_a_closed_folder(here, name):
    words, written = COMMANDS[name]
    out = here / written
    listed = set(os.listdir(here))
    assert main(words.split()) == 0
    whole = content(out)
    new = set(os.listdir(here)) - listed
    for file in new:
        remove(here / file)
    for size in (0, 64) if name == "generate" else (64,):
        status, said = meets(no_more_than(size), command(words))
        assert status == 2 and "Traceback" not in said, (size, said)
        (line,) = [x for x in said.splitlines() if x.startswith(f"cxr {words.split()[0]}")]
        assert "too large" in line.lower() and str(here) not in line.partition("too large")[2], line
        # A model's processor writes a file for itself, too.
        assert re.match(
            rf"cxr [\w ]+: [^:]*({re.escape(written)}|q\.jsonl|preprocessor_config)[^:]*: ", line
        ), line
        assert "; raise the limit" in line, line
        # An index grows line by line, and is resumed.
        if "." in written and name != "prepare --out .csv":
            assert not out.exists()
        assert not [f for f in here.rglob("*.new") if f.is_file()]
    here.chmod(0o555)
    status, said = meets(nobody, command(words))
    here.chmod(0o755)
    assert status == 2 and "Traceback" not in said and "ermission denied" in said, said
    # room again: the same command gives what it would have given
    if name in ("export", "phantom"):
        for file in new:
            remove(here / file)
    assert main(words.split()) == 0
    assert content(out) == whole


@pytest.mark.parametrize("name", COMMANDS)
def test_something_else_is_in_the_place(here, name, capsys):
    words, written = COMMANDS[name]
    out = here / written
    if name in FILES:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out.write_text("mine")
    overwritten = ["--overwrite"] if words.split()[0] in ("generate", "rexrank", "studies", "convert") else []
    for more in ([], overwritten):
        assert main([*words.split(), *more]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len([x for x in said if x.startswith("cxr ")]) == 1 and written in said[-1], said
        assert (out / "mine.txt" if out.is_dir() else out).read_text() == "mine"


@pytest.mark.parametrize(
    "words", ["generate films --model model --max-new-tokens 3", "studies check studies.jsonl"]
)
def test_nobody_reads_on(here, words):
    """As `| head` does it: the reader closes the pipe."""

    def closed():
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)

    main(words.split())
    status, said = meets(closed, command(words))
    # The notice of the model is for people, and they have stderr.
    assert status == 0 and said.count("\n") == words.startswith("generate"), said


# How often each command is killed; a hundred times each took 35 s on a busy core.
KILLS = int(os.environ.get("CXR_KILLS", "4"))


@pytest.mark.parametrize("name", ["generate", "prepare", "embed"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_moment(here, name, how):
    """Nothing is lost, doubled or mixed: what comes of it is what one run gives."""
    words, written = COMMANDS[name]
    out = here / written
    started = time.perf_counter()
    assert main(words.split()) == 0
    lasted = time.perf_counter() - started
    whole = content(out)
    remove(out)
    chance, silent = random.Random(0), os.open(os.devnull, os.O_WRONLY)
    for _ in range(KILLS):
        child = forked(command(words), silent)
        time.sleep(chance.uniform(0, 1.2 * lasted))
        os.kill(child, how)
        os.waitpid(child, 0)
        if name == "generate" and out.exists():
            assert content(out) == whole
            remove(out)
    # a finished predictions file is not replaced
    assert (name == "generate" and out.exists()) or main(words.split()) == 0
    assert _rows(name, out) == _rows(name, out, whole)


def _rows(name, out, whole=None):
    """What the files hold by image, for how it is spread over files depends on the kills."""
    if name == "generate":
        return content(out) if whole is None else whole
    if name == "embed":
        from encoder.embed import read_features

        if whole is None:
            return sorted(Path(path).name for path, _ in read_features(out))
        return [f"{i}.png" for i in range(4)]
    from train.datasets.archive import Archive

    if whole is None:
        archive = Archive(out)
        return sorted((path.name, archive[i].shape) for i, path in enumerate(archive.paths))
    return [(f"{i}.png", (64, 64)) for i in range(4)]


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_the_place_is_refused_and_never_waited_for(here, name):
    """Whoever reads a pipe to see what it holds waits for ever, as `--out /dev/stdout | cat` did."""
    words, written = COMMANDS[name]
    os.mkfifo(written)
    status, said = meets(lambda: signal.alarm(20), command(words))
    (line,) = [x for x in said.splitlines() if x.startswith("cxr ")]
    assert status == 2 and f"{written} is not a regular file" in line and "give a regular file" in line, (
        status,
        said,
    )
    assert Path(written).is_fifo()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which no file can be made")
@pytest.mark.parametrize("words", ["studies make table table.csv --out", "prepare films --out"])
def test_an_output_that_cannot_be_made_is_not_waited_for(here, words):
    status, said = meets(lambda: signal.alarm(20), command(f"{words} /proc/listed.csv"))
    assert status == 2 and "waiting" not in said, (status, said)
    (line,) = [x for x in said.splitlines() if not x.startswith("column ")]
    assert "/proc/listed.csv: No such file or directory" in line, said
