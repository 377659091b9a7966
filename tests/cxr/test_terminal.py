"""What goes to stdout and what to stderr, as text and as JSON; exit statuses; what a command says is next."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr.cli import demo, doctor
from cxr.cli.generate import in_words
from cxr.cli.main import PASSED_ON, STATUSES, build_parser, main
from cxr.cli.terminal import console, status_of
from tests.tiny import make_studies
from vlm import model as models
from vlm.study import load_studies

PAGE = Path(__file__).parents[2] / "docs" / "terminal.md"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with two films and something that is none."""
    folder = tmp_path_factory.mktemp("place") / "films"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (300, 300)).astype(np.uint8)).save(folder / name)
    (folder / "broken.dcm").write_text("not an image")
    return folder


@pytest.fixture
def place(films, findings_model, tmp_path, monkeypatch):
    """The current folder, with all that commands read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").symlink_to(films)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.dcm").write_text("not an image")
    models.save(findings_model, "model")
    models.save_encoder(findings_model, "encoder")
    studies = make_studies(tmp_path / "data", 10)
    made = [{"study_id": s.study_id, "model": "m", "findings": "Clear lungs."} for s in load_studies(studies)]
    Path("made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    Path("table.csv").write_text("study_id,image,findings\ns1,films/a.png,Clear.\n")
    Path("rexrank.json").write_text(
        json.dumps({"a": {"image_path": ["a.png"]}, "b": {"image_path": ["absent.png"]}})
    )
    return tmp_path


# words -> (exit status, the command that is said to be next, if any)
WRITING = {
    "generate films --model model --max-new-tokens 2 --out p.jsonl": (3, None),
    "generate data/studies.jsonl --model model --max-new-tokens 2 --split validate --out q.jsonl --floors floors": (
        0,
        "cxr score q.jsonl data/studies.jsonl --split validate --floors floors",
    ),
    "rexrank rexrank.json r.json films --model model --max-new-tokens 2": (3, None),
    # the next is Python
    "embed films --model encoder --out features": (3, None),
    "prepare films --out archive --short-side 32 --workers 1": (
        3,
        "cxr pretrain --data archive --out archive_encoder",
    ),
    "prepare films --out films.csv --workers 1": (3, "cxr pretrain --data films.csv --out films_encoder"),
    "convert encoder weights.safetensors --to timm": (0, None),
    "export model exported": (0, "cxr generate FILMS --model exported"),
    "phantom phantoms --studies 2 --size 64 --workers 1": (
        0,
        "cxr generate phantoms/studies.jsonl --out phantoms/predictions.jsonl",
    ),
    "studies make table table.csv --out made/studies.jsonl": (0, "cxr studies check made/studies.jsonl"),
    "studies make dicom films --out listed.jsonl": (3, "cxr studies check listed.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("words", WRITING)
def test_what_writes_files_prints_nothing_on_stdout_and_says_what_is_next(words, place, capsys):
    status, wanted = WRITING[words]
    assert main(words.split()) == status
    shown, told = capsys.readouterr()
    assert shown == "" and told
    said = [line.removeprefix("next: ") for line in told.splitlines() if line.startswith("next: ")]
    assert len(said) == (wanted is not None) and told.rstrip().splitlines()[-1].startswith("next: ") == bool(
        said
    )
    if wanted:
        assert said[0].startswith(wanted), said
        typed(said[0], capsys)


def typed(line: str, capsys) -> None:
    """Read a command as the shell and the parser would; of a program in Python run it."""
    first, *words = shlex.split(line.partition("  (")[0])
    if first == "python":
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        assert done.stdout == "(2, 32)\n", done.stderr
    elif words[0] in PASSED_ON:
        from train.pretrain.config import configured

        assert configured(words[1:]).data
    else:
        build_parser(words[0])[0].parse_args(words)


@pytest.mark.parametrize(
    "words", ["generate bad --model model", "embed bad --model encoder --out o", "studies make dicom bad --out o.jsonl",
              "prepare bad --out o --workers 1"],
)  # fmt: skip
def test_where_nothing_could_be_read_the_status_is_1_each_time(words, place, capsys):
    for _ in range(2):
        assert main(words.split()) == 1
        shown, told = capsys.readouterr()
        assert shown == "" and "next: " not in told


def test_features_are_read_as_the_hint_says(place, capsys):
    main(["embed", "films", "--model", "encoder", "--out", "features"])
    (hint,) = re.findall(r"^next, in Python: (.*); (.*)$", capsys.readouterr().err, re.M)
    names: dict = {}
    exec(hint[0], names)
    assert {tuple(row) for _, row in eval(hint[1], names)} == {("cls",)}


def test_the_second_run_has_the_status_of_the_first(place, capsys):
    for words in ("embed films --model encoder --out features", "prepare films --out archive --workers 1"):
        assert [main(words.split()) for _ in range(2)] == [3, 3]
    # What the user keeps out is not refused.
    (place / "kept_out.txt").write_text("broken\n")
    assert main(["prepare", "films", "--out", "other", "--workers", "1", "--exclude", "kept_out.txt"]) == 0


def test_statuses_are_in_help_and_on_the_page(capsys):
    assert [status_of(*counts) for counts in ((0, 0), (0, 4), (1, 4), (4, 4))] == [0, 0, 3, 1]
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert STATUSES in shown
    listed = re.findall(r"^  (\d[\d, ]*?)  ", STATUSES, re.M)
    rows = re.findall(r"^\| (\d[\d, ]*) \|", PAGE.read_text(), re.M)
    assert listed == rows == ["0", "1", "2", "3", "130, 143"]
    told = [name for name, row in re.findall(r"^\| (`.*) \| (JSON Lines|one doc)", PAGE.read_text(), re.M)]
    named = [re.findall(r"`(\w+)", name)[0] for name in told]
    assert named == ["generate", "verify", "score", "weights", "doctor", "studies", "plan", "leaks"]


# --- findings, and JSON -----------------------------------------------------------------------------------------------


def test_findings_alone_are_on_stdout(place, capsys):
    assert main(["generate", "films", "--model", "model", "--max-new-tokens", "4"]) == 3
    shown, told = capsys.readouterr()
    names = [line for line in shown.splitlines() if line and not line.startswith("  ")]
    assert names == ["a.png", "b.png"]
    for words in (
        "not for diagnosis",
        "broken.dcm: refused (",
        "a.png: warning (",
        "1 of 3 studies were refused",
    ):
        assert words in told and words not in shown


def test_json_of_generate_is_what_out_writes(place, capsys):
    words = ["generate", "films", "--model", "model", "--max-new-tokens", "4", "--sentences", "confidence"]
    assert main([*words, "--json"]) == 3
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*words, "--out", "p.jsonl"]) == 3
    written = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    for row in (*shown, *written):
        row.pop("seconds"), row.pop("study_sha256", None)
    assert shown == written and [row["study_id"] for row in shown] == ["a.png", "b.png", "broken.dcm"]
    assert main([*words, "--json", "--out", "q.jsonl"]) == 2 and "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "keys"),
    [
        ("score made.jsonl data/studies.jsonl --clinical none", 0, {"schema", "scores", "floors"}),
        ("weights --folder none", 0, {"folder", "models"}),
        ("doctor", None, {"packages", "weights", "transfer_syntaxes", "needed", "optional"}),
        ("doctor model", 0, {"name", "notice", "pixels", "ordinary_films"}),
        ("studies check data/studies.jsonl", 0, {"counts", "problems"}),
        ("leaks labels.csv --list data/images --workers 1", 1, {"encoder", "images", "shared"}),
        ("plan --encoder encoder --llm llm --batch_size 2", 0, {"parameters", "bytes_of_a_process"}),
    ],
)  # fmt: skip
def test_json_is_one_document(words, status, keys, place, llm_dir, capsys):
    (place / "llm").symlink_to(llm_dir)
    splits = ("train", "validate", "test")
    rows = [f"data/images/{i}.png,{splits[i % 3]},{('odd', 'even')[i % 2]}" for i in range(6)]
    (place / "labels.csv").write_text("\n".join(["file,split,labels", *rows]) + "\n")
    found = main([*words.split(), "--json"])
    shown = capsys.readouterr().out
    assert keys <= json.loads(shown).keys() and (status is None or found == status), shown[:300]
    if words.startswith("leaks"):
        assert {row["split"] for row in json.loads(shown)["shared"]} == {"train", "validate", "test"}
    if words.startswith("score"):
        assert main([*words.split(), "--out", "s.json"]) == 0
        assert json.loads(shown) == json.loads(Path("s.json").read_text())
    # and without it the same command speaks to people
    main(words.split())
    with pytest.raises(ValueError):
        json.loads(capsys.readouterr().out)


def test_problems_are_all_in_the_json_of_a_check(place, capsys):
    for name in ("1", "2"):
        (place / "data" / "images" / f"{name}.png").unlink()
    assert main(["studies", "check", "data/studies.jsonl", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["studies"] == 10
    assert [row["study_id"] for row in found["problems"]] == ["s1", "s2"]


# --- colours and pipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("no_color", [True, False])
def test_no_colour_in_reports_or_names(no_color, monkeypatch, capsys):
    from cxr.cli.generate import _show
    from vlm.prediction import Prediction

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    text = "Nodule of 12 mm at 'apex' :lung: [bold]see[/bold] /tmp/x.png https://a.b True None 1.5"
    name = "films/2024-01-01 [red]:heart:.png"
    warned = Prediction(name, findings=text, warnings=[{"code": "c", "message": "m 1"}])
    warned.sentences = [{"text": text, "confidence": -0.1}]
    _show(console(), console(stderr=True), warned)
    shown, told = capsys.readouterr()
    assert f"\n  {text}\n" in shown and f"    {text}\n" in shown and name in shown and name in told
    coloured = re.findall(r"\x1b\[[\d;]*m", shown + told)
    # bold, dim and their end are no colours
    assert {code for code in coloured if re.search(r"[34]\d", code)} == (set() if no_color else {"\x1b[33m"})


@pytest.mark.parametrize(
    "words", ["--help", "pretrain --help", "weights --folder none", "studies check studies.jsonl"]
)
@pytest.mark.parametrize("closed", [[1], [1, 2]])
def test_nobody_reads_on(words, closed, tmp_path):
    """A process of its own, for Python complains at its end of what could not be written."""
    (tmp_path / "studies.jsonl").write_text('{"study_id": "s", "images": []}\n')
    reading, writing = os.pipe()
    os.close(reading)
    streams = {1: subprocess.PIPE, 2: subprocess.PIPE} | dict.fromkeys(closed, writing)
    command = [sys.executable, "-m", "cxr", *words.split()]
    # Without a buffer there is nothing left to be written at the end.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, cwd=tmp_path, stdout=streams[1], stderr=streams[2], text=True,
        env={**environment, "PYTHONPATH": str(PAGE.parents[1])},
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 0
    assert 2 in closed or not re.search("Error|Exception|Traceback", done.stderr), done.stderr


# --- numbers in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nats", "words"),
    [
        (math.log(8), "raised this sentence's odds 8 times"),
        (math.log(1.5), "raised this sentence's odds 1.5 times"),
        (math.log(200), "raised this sentence's odds 200 times"),
        (900.0, "raised this sentence's odds more than 1,000 times"),
        (0.0, "left this sentence's odds as they were"),
        (-0.04, "left this sentence's odds as they were"),
        (-math.log(4), "divided this sentence's odds by 4"),
        (-900.0, "divided this sentence's odds by more than 1,000"),
    ],
)
def test_odds_in_words(nats, words):
    probability, said = in_words({"text": "x", "confidence": math.log(0.5), "image_dependence": nats})
    assert probability == "probability 0.50" and said == f"the image {words}"


def test_sentences_have_a_scale_on_the_screen(place, capsys):
    words = ["generate", "films/a.png", "--model", "model", "--max-new-tokens", "6"]
    assert main([*words, "--sentences", "image_dependence"]) == 0
    shown, told = capsys.readouterr()
    assert re.search(r"probability [01]\.\d\d, the image (raised|divided|left) this sentence's odds", shown)
    assert "blank one" in told and "confidence" not in shown
    assert main([*words, "--sentences", "confidence"]) == 0
    assert re.search(r"probability [01]\.\d\d\n", capsys.readouterr().out)
    # a sentence without a token has neither
    assert in_words({"text": "x"}) == []


# --- the doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_lists_every_weight_with_its_command(monkeypatch, tmp_path, capsys):
    from eval.scores.weights import MODELS

    monkeypatch.setenv("CXR_WEIGHTS", str(tmp_path))
    main(["doctor"])
    shown = capsys.readouterr().out
    for name in MODELS:
        assert re.search(rf"^  {name} +missing: cxr weights --fetch {name}  \(", shown, re.M)
    assert "All well" not in shown and "Some scores and films need missing parts: chexbert; " in shown
    for name, model in MODELS.items():
        for pattern in (*model.weights[:1], *model.beside):
            path = tmp_path / name / pattern.replace("*", "x")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    main(["doctor"])
    shown = capsys.readouterr().out
    assert "--fetch" not in shown and shown.count(f"in {tmp_path}/") == len(MODELS)


@pytest.mark.parametrize(
    ("missing", "status", "command"),
    [({}, 0, ""), ({"JPEG lossless": False}, 1, "pip install python-gdcm"),
     ({"JPEG extended, 12 bit": False}, 0, "pip install cxr-vlm[jpeg12]")],
)  # fmt: skip
def test_all_is_well_only_where_nothing_is_missing(missing, status, command, monkeypatch, capsys):
    import encoder.radiograph

    known = dict.fromkeys(encoder.radiograph.codecs(), "a decoder")
    monkeypatch.setattr(encoder.radiograph, "codecs", lambda: known | missing)
    monkeypatch.setattr(doctor, "packages", lambda: [("torch", "2.11", "")])
    real = doctor.weights
    monkeypatch.setattr(
        doctor, "weights", lambda: [{**row, "complete": True, "command": None} for row in real()]
    )
    assert main(["doctor"]) == status
    shown = capsys.readouterr().out
    assert ("All well." in shown) is (not missing) and command in shown
    assert all(
        f"{name} " in shown and name in shown.splitlines()[-1] + shown.splitlines()[-2] for name in missing
    )


# --- help, and the ends of trainings ----------------------------------------------------------------------------------


def test_the_help_of_a_data_set_is_its_own(capsys):
    said = {}
    for name in ("table", "dicom", "mimic-cxr", "padchest"):
        with pytest.raises(SystemExit) as stop:
            main(["studies", "make", name, "--help"])
        assert stop.value.code == 0
        said[name] = capsys.readouterr().out
        assert said[name].startswith(f"usage: cxr studies make {name} [-h]")
    options = {name: set(re.findall(r"--[\w-]+", text)) for name, text in said.items()}
    assert {"--column", "--label", "--drop"} <= options["table"] and "--laterals" not in options["table"]
    assert "--dates" in options["dicom"] and "--column" not in options["dicom"]
    assert "--reports" in options["mimic-cxr"] and "--reports" not in options["padchest"]
    with pytest.raises(SystemExit):
        main(["studies", "make", "--help"])
    assert {"--column", "--dates", "--reports"} <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def test_a_trained_model_is_judged_next(capsys):
    from train.common.entry import next_is_to_judge

    next_is_to_judge(Path("runs/a b/adapter"), "data/studies.jsonl", "validate")
    line = capsys.readouterr().err.removeprefix("next: ").strip()
    args = build_parser("generate")[0].parse_args(shlex.split(line)[1:])
    assert (
        args.split == "validate"
        and args.model == "runs/a b/adapter"
        and str(args.floors) == "runs/a b/floors"
    )


def test_a_program_logs_on_stderr_and_shows_results_on_stdout(capsys):
    from train.common.entry import log_on_stderr, results

    with log_on_stderr():
        print("a line of the log")
        print("a table", file=results())
    print("afterwards", file=results())
    shown, told = capsys.readouterr()
    assert shown == "a table\nafterwards\n" and told == "a line of the log\n"


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_a_demo_resumes_and_says_when_it_is_done(tmp_path, monkeypatch, capsys):
    from vlm import Findings

    out = tmp_path / "demo"
    words = ["demo", "--no-training", "--studies", "2", "--out", str(out)]
    asked, generate, write = [], Findings.generate, demo.write

    def counted(self, studies, **settings):
        asked.extend((settings["images"], name) for name in settings["only"])
        for number, prediction in enumerate(generate(self, studies, **settings)):
            if settings["images"] == "blank" and number == 1 and len(asked) <= 6:
                raise KeyboardInterrupt
            yield prediction

    monkeypatch.setattr(Findings, "generate", counted)
    monkeypatch.setattr(demo, "write", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(words) == 130 and "run the same command to resume" in capsys.readouterr().err
    assert len(asked) == 6 and not (out / demo.PAGE).exists()
    # the last answer alone is missing
    assert main(words) == 130 and "page" not in json.loads((out / demo.MARK).read_text())["done"]
    assert len(asked) == 7 and asked[-1][0] == "blank"
    monkeypatch.setattr(demo, "write", write)
    capsys.readouterr()
    assert main(words) == 0
    shown, told = capsys.readouterr()
    assert len(asked) == 7 and "resuming the demo" in told and "The page: " in told
    assert shown.count("    mini       ") == 2 and "Label F1" in shown and "wrote" not in shown
    before = (out / demo.PAGE).stat().st_mtime_ns
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "is done" in told and str(out / demo.PAGE) in told and "to start anew" in told
    assert (out / demo.PAGE).stat().st_mtime_ns == before
    assert main([*words[:-1], str(tmp_path)]) == 2 and "holds no demo" in capsys.readouterr().err
    assert main([w if w != "2" else "3" for w in words]) == 2
    assert "--studies 2 --no-training" in capsys.readouterr().err


def test_names_that_keep_nothing_out_are_told(tmp_path, capsys):
    """Patients of the test set, spelt otherwise, would stay in the training unnoticed."""
    (tmp_path / "films").mkdir()
    for name in ("p1", "p2", "p3"):
        Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(
            tmp_path / "films" / f"{name}.png"
        )
    (tmp_path / "some.txt").write_text("p1\np3\n")
    (tmp_path / "none.txt").write_text("P1\np 3\n")
    for names, out, told in (("some", "a", "2 kept out by"), ("none", "b", "none of the 2 names in")):
        words = ["prepare", str(tmp_path / "films"), "--out", str(tmp_path / out), "--short-side", "32"]
        assert main([*words, "--exclude", str(tmp_path / f"{names}.txt")]) == 0
        assert told in capsys.readouterr().err
