"""What `cxr` writes: never another study's findings, never over what it reads, never two writers at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from cxr.cli.main import main
from encoder.files import sole_writer
from tests.cxr.test_cli import rows
from vlm import Findings, adapters
from vlm import model as models
from vlm.load import load_model
from vlm.predictions import parts_of, study_sha256, write_rows
from vlm.study import Image, Prior, Study, save_studies

SHORT = ["--max-new-tokens", "3"]


@pytest.fixture
def model_dir(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "model")
    return str(tmp_path / "model")


def films_in(folder: Path, seed: int, count: int = 3) -> Path:
    """Films with the same names in every folder, and other pixels for every seed."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        Picture.fromarray(rng.integers(0, 255, (260, 260)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def without_seconds(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(path)]


@pytest.fixture
def interrupt(monkeypatch):
    """Generation that stops after the first prediction, as Ctrl-C stops it."""

    def stop():
        real = Findings.generate

        def interrupted(self, *args, **kwargs):
            yield next(real(self, *args, **kwargs))
            raise KeyboardInterrupt

        monkeypatch.setattr(Findings, "generate", interrupted)

    yield stop
    monkeypatch.undo()


def test_another_folders_findings_are_never_handed_on(model_dir, tmp_path, interrupt, monkeypatch, capsys):
    one, other = films_in(tmp_path / "one", 1), films_in(tmp_path / "other", 2)
    out, alone = tmp_path / "s.jsonl", tmp_path / "alone.jsonl"
    command = ["--model", model_dir, *SHORT]
    interrupt()
    assert main(["generate", str(one), *command, "--out", str(out)]) == 130
    monkeypatch.undo()
    begun = rows(tmp_path / "s.jsonl.part")
    assert len(begun) == 1
    assert main(["generate", str(other), *command, "--out", str(out)]) == 0
    assert "1 predictions in" in capsys.readouterr().err
    assert main(["generate", str(other), *command, "--out", str(alone)]) == 0
    assert without_seconds(out) == without_seconds(alone)
    # what the first run had made is not lost
    assert rows(tmp_path / "s.jsonl.other") == begun


@pytest.mark.parametrize("what", ["words", "image", "lateral", "view", "prior"])
def test_a_changed_study_is_answered_anew(model_dir, tmp_path, interrupt, monkeypatch, what):
    films = films_in(tmp_path / "films", 1)
    file, out = tmp_path / "studies.jsonl", tmp_path / "p.jsonl"

    def studies(changed=False):
        first = Study(
            "s0",
            images=[Image("films/0.png", "AP" if changed and what == "view" else "PA")],
            indication="cough" if changed and what == "words" else "fever",
            prior=Prior(findings="clear lungs") if changed and what == "prior" else None,
        )
        if changed and what == "lateral":
            first.images.append(Image("films/2.png", "lateral"))
        save_studies([first, Study("s1", images=[Image("films/1.png")])], file, overwrite=True)

    studies()
    command = ["generate", str(file), "--model", model_dir, *SHORT, "--out", str(out)]
    interrupt()
    assert main(command) == 130
    monkeypatch.undo()
    (begun,) = rows(tmp_path / "p.jsonl.part")
    if what == "image":
        shutil.copy(films / "2.png", films / "0.png")
    studies(changed=True)
    assert main(command) == 0
    assert rows(out)[0]["study_sha256"] != begun["study_sha256"]


def test_what_cannot_change_the_findings_changes_no_digest(tmp_path):
    films_in(tmp_path / "films", 1)
    study = Study("s0", images=[Image("films/0.png", "PA")], indication="fever", age=63)
    digest = study_sha256(study, tmp_path)
    told = Study("s0", images=[Image("films/0.png", "PA")], indication="fever", age=63, findings="Clear lungs.",
                 labels={"Edema": 1}, split="test", extra={"n": 1})  # fmt: skip
    assert study_sha256(told, tmp_path) == digest
    shutil.copytree(tmp_path / "films", tmp_path / "elsewhere")
    moved = Study("s0", images=[Image("elsewhere/0.png", "PA")], indication="fever", age=63)
    assert study_sha256(moved, tmp_path) == digest
    # a file that is missing, and one that nobody may ask for, are no defects
    assert study_sha256(Study("s", images=[Image("none.png"), Image("a\0b")]), tmp_path)


def test_shuffled_images_count_as_they_are_shown(model_dir, tmp_path, interrupt, monkeypatch):
    films = films_in(tmp_path / "films", 1)
    command = ["generate", str(films), "--model", model_dir, *SHORT, "--out", str(tmp_path / "p.jsonl")]
    command += ["--floors", str(tmp_path / "floors")]
    assert main(command) == 0
    own, shuffled = rows(tmp_path / "p.jsonl"), rows(tmp_path / "floors" / "shuffled.jsonl")
    assert all(a["study_sha256"] != b["study_sha256"] for a, b in zip(own, shuffled, strict=True))


@pytest.mark.parametrize(
    "command, target",
    [
        ("generate studies.jsonl", "studies.jsonl"),
        ("generate films/0.png", "films/0.png"),
        ("generate films", "films/1.png"),
        ("generate studies.jsonl", "films/0.png"),
        ("generate studies.jsonl --floors floors --training training.jsonl", "training.jsonl"),
        ("generate studies.jsonl", "link.jsonl"),
    ],
)
def test_nothing_is_written_over_what_is_read(model_dir, tmp_path, monkeypatch, capsys, command, target):
    monkeypatch.chdir(tmp_path)
    films_in(tmp_path / "films", 1)
    studies = [Study(f"s{i}", images=[Image(f"films/{i}.png")], findings="Clear.") for i in range(3)]
    for name in ("studies.jsonl", "training.jsonl"):
        save_studies(studies, name)
    os.symlink("studies.jsonl", "link.jsonl")
    before = Path(target).read_bytes()
    assert main([*command.split(), "--model", model_dir, "--out", target, "--overwrite"]) == 2
    assert "is what this command reads" in capsys.readouterr().err
    assert Path(target).read_bytes() == before


@pytest.mark.parametrize("kind", ["film", "studies", "text", "json", "pdf"])
@pytest.mark.parametrize("command", ["generate films", "score p.jsonl studies.jsonl", "score-html"])
def test_a_file_of_another_kind_is_never_replaced(model_dir, tmp_path, monkeypatch, capsys, command, kind):
    monkeypatch.chdir(tmp_path)
    films_in(tmp_path / "films", 1)
    save_studies([Study("s0", images=[Image("films/0.png")], findings="Clear.")], "studies.jsonl")
    write_rows(Path("p.jsonl"), [{"study_id": "s0", "model": "m", "findings": "Clear."}])
    if kind == "film":
        shutil.copy("films/0.png", "mine")
    elif kind == "studies":
        shutil.copy("studies.jsonl", "mine")
    else:
        Path("mine").write_bytes({"text": b"my notes", "json": b'{"a": 1}', "pdf": b"%PDF-1.4"}[kind])
    before = Path("mine").read_bytes()
    if command == "score-html":
        words = ["score", "p.jsonl", "studies.jsonl", "--html", "mine"]
    else:
        words = [*command.split(), "--out", "mine"]
        words += ["--model", model_dir, "--overwrite"] if command.startswith("generate") else []
    assert main(words) == 2
    assert "choose another" in capsys.readouterr().err and Path("mine").read_bytes() == before


def test_a_second_run_waits_and_replaces_nothing(model_dir, tmp_path, capsys):
    films, out = films_in(tmp_path / "films", 1), tmp_path / "p.jsonl"
    began, may_end = threading.Event(), threading.Event()

    def other_run():
        with sole_writer(out):
            began.set()
            may_end.wait(60)
            write_rows(out, [{"study_id": "theirs", "model": "m", "findings": ""}])

    thread = threading.Thread(target=other_run)
    thread.start()
    began.wait(60)
    threading.Timer(1.0, may_end.set).start()
    assert main(["generate", str(films), "--model", model_dir, *SHORT, "--out", str(out)]) == 2
    thread.join()
    said = capsys.readouterr()
    assert "another process is writing" in said.err and "exists" in said.err
    assert [row["study_id"] for row in rows(out)] == ["theirs"]
    assert not list(tmp_path.glob(".*.lock"))


def test_two_processes_never_hold_one_file(tmp_path):
    """Ten processes count in one file, each under the lock: not one addition is lost."""
    code = """
import sys
from pathlib import Path
from encoder.files import sole_writer
file = Path(sys.argv[1])
for _ in range(20):
    with sole_writer(file):
        n = int(file.read_text()) if file.exists() else 0
        file.write_text(str(n + 1))
"""
    file = tmp_path / "count"
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.DEVNULL) for _ in range(5)
    ]
    assert [child.wait() for child in children] == [0] * 5
    assert file.read_text() == "100" and sorted(os.listdir(tmp_path)) == ["count"]


def test_only_our_own_parts_are_taken(model_dir, tmp_path):
    """Names with brackets are no patterns, and files that merely begin like a part are the user's own."""
    films = films_in(tmp_path / "films", 1)
    out = tmp_path / "p[1].jsonl"
    theirs = [tmp_path / name for name in ("p[1].jsonl.part.notes", "p1.jsonl.part", "p[1].jsonl.partial")]
    for file in theirs:
        file.write_text("mine")
    (tmp_path / "p[1].jsonl.part.3").write_text('{"study_id": "cut o')
    assert [p.name for p in parts_of(out)] == ["p[1].jsonl.part.3"]
    command = ["generate", str(films), "--model", model_dir, *SHORT, "--out", str(out)]
    assert main(command) == 0 and main([*command, "--overwrite"]) == 0
    assert len(rows(out)) == 3 and all(file.read_text() == "mine" for file in theirs)
    assert not (tmp_path / "p[1].jsonl.part.3").exists()


@pytest.mark.parametrize("field", ["indication", "sex", "prior", "view"])
@pytest.mark.parametrize("words", ["a \ud800 b", "<image>", "x\0y", "<|im_end|>"])
def test_words_that_are_no_text_end_no_run(model_dir, tmp_path, field, words):
    films_in(tmp_path / "films", 1)
    odd = {"schema": 1, "study_id": "odd", "images": [{"path": "films/0.png", "view": "PA"}]}
    if field == "prior":
        odd["prior"] = {"findings": words}
    elif field == "view":
        odd["images"][0]["view"] = words
    else:
        odd[field] = words
    good = {"schema": 1, "study_id": "good", "images": [{"path": "films/1.png"}]}
    file, out = tmp_path / "studies.jsonl", tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (odd, good)))
    assert main(["generate", str(file), "--model", model_dir, *SHORT, "--out", str(out)]) == 0
    assert [row["study_id"] for row in rows(out)] == ["odd", "good"]
    assert all("findings" in row for row in rows(out))


@pytest.mark.parametrize("field", ["indication", "prior"])
def test_words_without_end_are_cut_and_said(model_dir, tmp_path, field):
    films_in(tmp_path / "films", 1)
    words = "fever and cough " * 100_000
    told = {"indication": words} if field == "indication" else {"prior": {"findings": words}}
    row = {"schema": 1, "study_id": "long", "images": [{"path": "films/0.png"}], **told}
    file, out = tmp_path / "studies.jsonl", tmp_path / "p.jsonl"
    file.write_text(json.dumps(row) + "\n")
    started = time.process_time()
    assert main(["generate", str(file), "--model", model_dir, *SHORT, "--out", str(out)]) == 0
    assert time.process_time() - started < 30
    (made,) = rows(out)
    (warning,) = [w for w in made["warnings"] if w["code"] == "words_cut"]
    assert {"indication": "the indication", "prior": "the prior's findings"}[field] in warning["message"]


def test_words_are_cut_to_what_the_model_takes(findings_model):
    """As many as fit: with one word more the prompt is too long."""
    from vlm.prompts import prompt_for
    from vlm.room import check_room, fit

    most = 40
    study = Study("s", images=[Image("a.png")], indication=" ".join(f"word{i}" for i in range(900)))
    fitted = fit(study, findings_model, most)
    room = findings_model.positions - most
    assert fitted.room == room and room - 24 <= len(fitted.ids) <= room
    assert study.indication.startswith(fitted.study.indication) and fitted.cut == ["the indication"]
    assert fitted.ids == findings_model.prompt_ids(prompt_for(fitted.study, findings_model.meta.prompt))
    short = Study("s", images=[Image("a.png")], indication="fever")
    assert fit(short, findings_model, most).study is short
    with pytest.raises(models.ModelError, match="leaves no room"):
        check_room(findings_model, findings_model.positions)


@pytest.mark.parametrize(
    "option",
    ["--temperature nan", "--temperature inf", "--top-p nan", "--seed 36893488147419103232", "--seed -1",
     "--length-penalty nan", "--max-new-tokens 100000000"],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(model_dir, tmp_path, capsys, option):
    films = films_in(tmp_path / "films", 1)
    command = ["generate", str(films), "--model", model_dir, *option.split()]
    if "temperature" in option or "top-p" in option or "seed" in option:
        command += ["--decoding", "sample"]
    elif "penalty" in option:
        command += ["--beams", "2"]
    try:
        status = main(command)
    except SystemExit as error:  # the parser's
        status = error.code
    # After the notice of the model, where that is asked how much it has room for.
    said = capsys.readouterr().err.removeprefix("findings: For research, not for diagnosis.\n")
    assert status == 2 and said.startswith("cxr generate: ") and said.count("\n") == 1


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch, capsys):
    from cxr.cli.terminal import files_below

    films = films_in(tmp_path / "films", 1)
    (films / "locked").mkdir()
    real = os.scandir

    def scandir(where):
        if str(where).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(where))
        return real(where)

    # root may read everything, so the lock is one of the test's own
    monkeypatch.setattr(os, "scandir", scandir)
    assert len(list(files_below(films))) == 3
    said = capsys.readouterr().err
    assert "locked cannot be read and is left out: Permission denied" in said


def test_what_is_saved_can_be_read_by_others(findings_model, tmp_path):
    """safetensors files are their owner's alone unless somebody opens them."""
    model = load_model(_saved(findings_model, tmp_path / "merged"))
    model.llava = adapters.add_lora(model.llava, rank=2)
    models.save_adapter(model, tmp_path / "adapter", tmp_path / "merged")
    models.save_encoder(findings_model, tmp_path / "encoder")
    umask = os.umask(0)
    os.umask(umask)
    for name in ("merged", "adapter", "encoder"):
        modes = {f.name: f.stat().st_mode & 0o777 for f in (tmp_path / name).iterdir() if f.is_file()}
        assert len(modes) > 1 and set(modes.values()) == {0o666 & ~umask}, modes


def _saved(model, folder):
    models.save(model, folder)
    return folder


# Colours, the title of the window, the start of a line, a line of one's own, the C1 form of ESC [, right to left.
ODD = "a\x1b[31mb\x1b]0;x\x07c\rd\nforged\x9b2Je\u202efdp\x7f"


def test_a_terminal_is_shown_what_it_would_obey():
    """By Unicode's own tables: controls, surrogates, ends of lines and paragraphs, and what turns the direction."""
    from encoder.errors import printable

    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for number in (*range(0x3000), *range(0xD700, 0x10000)):
        character = chr(number)
        obeyed = (
            unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
            or unicodedata.bidirectional(character) in turns
            or character in "\u061c\u200e\u200f"
        )
        assert (printable(character) == character) != obeyed, hex(number)
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@pytest.mark.parametrize(
    "command",
    [
        "generate films --model MODEL --max-new-tokens 3",
        "generate films/ODD --model MODEL --max-new-tokens 3 --out ODD.jsonl",
        "generate films.zip --model MODEL --max-new-tokens 3",
        "generate ODD",
        "generate ODD.jsonl --limit ODD",
        "generate --ODD",
        "score made.jsonl studies.jsonl --clinical none",
        "score made.jsonl studies.jsonl --clinical none --out ODD.json",
        "studies check studies.jsonl",
        "studies make dicom films --laterals --out ODD.jsonl",
        "studies make table table.csv --out s.jsonl",
        "embed films --model MODEL --out ODD",
    ],
)
def test_names_do_nothing_to_a_terminal(findings_model, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    films_in(tmp_path / "films", 1, 1)
    odd = ODD.replace("/", "")
    shutil.copy("films/0.png", f"films/{odd}.png")
    shutil.copy("films/0.png", f"films/{odd}")
    Path("films", f"{odd}.dcm").write_bytes(bytes(128) + b"DICM cut off")
    with zipfile.ZipFile("films.zip", "w") as file:
        file.write("films/0.png", f"{odd}.png")
        file.writestr(f"{odd}.dcm", bytes(128) + b"DICM cut off")
        file.writestr(f"{odd}.zip", b"PK\x03\x04" + bytes(40))
    row = {"schema": 1, "images": [{"path": f"films/none{odd}.png"}], "findings": "Clear.", "sex": odd}
    made = {"model": "m", "findings": "Clear."}
    Path("studies.jsonl").write_text(
        "".join(json.dumps({**row, "study_id": f"{i}{odd}"}) + "\n" for i in "01")
    )
    Path("made.jsonl").write_text("".join(json.dumps({**made, "study_id": f"{i}{odd}"}) + "\n" for i in "12"))
    column = odd.replace("\n", "").replace("\r", "")
    Path("table.csv").write_text(f"study_id,image,{column},sex\n1,films/0.png,x,{column}\n", newline="")
    if "MODEL" in command:
        models.save(findings_model, "model")
    # transformers' bar
    capsys.readouterr()
    with suppress(SystemExit):
        main([word.replace("ODD", odd).replace("MODEL", "model") for word in command.split()])
    said = "".join(capsys.readouterr())
    assert "a\\x1b[31mb" in said, said
    assert not set(said) & set("\x1b\x07\r\x9b\u202e\x7f"), ascii(said)
    assert not [line for line in said.split("\n") if line.startswith("forged")], said
