"""The `cxr` command, called as a user would."""

import json
import os
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cxr.cli import generate
from cxr.cli.generate import Counted, in_order
from cxr.cli.main import main
from tests.forked import ForkedModule, context
from tests.tiny import make_studies
from train.common import launcher
from vlm import adapters
from vlm import model as models
from vlm.findings import OUTLIERS
from vlm.load import load_model
from vlm.study import load_studies, save_studies


@pytest.fixture
def model_dir(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def films(tmp_path):
    """Three readable images, one text file under an image's name and one file that is no image at all."""
    folder = tmp_path / "films"
    (folder / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "deeper/c.png"):
        Image.fromarray(rng.integers(0, 255, (300, 300)).astype(np.uint8)).save(folder / name)
    (folder / "broken.dcm").write_text("not an image")
    (folder / "README.md").write_text("about these films")
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_bad_file_does_not_stop_the_rest(model_dir, films, tmp_path, capsys):
    out = tmp_path / "predictions.jsonl"
    assert (
        main(["generate", str(films), "--model", model_dir, "--out", str(out), "--max-new-tokens", "4"]) == 3
    )
    found = {row["study_id"]: row for row in rows(out)}
    assert set(found) == {"a.png", "b.png", "deeper/c.png", "broken.dcm"}
    assert found["broken.dcm"]["error"]["code"] == "not_an_image" and "findings" not in found["broken.dcm"]
    assert all("findings" in row for name, row in found.items() if name != "broken.dcm")
    err = capsys.readouterr().err
    assert (
        f"warned: 3 cut_off; see `warnings` in {out}\n1 of 4 studies were refused: 1 not_an_image; see" in err
    )
    lines = [row | {"warnings": [{"code": code, "message": ""} for code in codes]} for row, codes in
             zip(rows(out), (["lateral", "lateral"], ["turned", "lateral"], [], ["cut_off"]), strict=True)]  # fmt: skip
    counted = Counted()
    for row in lines:
        counted.add(row)
    assert in_order(counted.warned) == "2 lateral, 1 cut_off, 1 turned"


def test_with_a_file_the_warnings_are_counted_by_code(model_dir, films, tmp_path, capsys):
    out = tmp_path / "predictions.jsonl"
    command = [
        "generate",
        str(films / "a.png"),
        str(films / "b.png"),
        "--model",
        model_dir,
        "--max-new-tokens",
        "1",
    ]
    assert main([*command, "--out", str(out)]) == 0
    codes = [{warning["code"] for warning in row["warnings"]} for row in rows(out)]
    assert all("cut_off" in code for code in codes)
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warned: "))
    assert "2 cut_off" in said and said.endswith(f"; see `warnings` in {out}")
    # on the screen each stands beside its study
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "warned: " not in err and err.count("warning (cut_off)") == 2


def test_to_the_screen(model_dir, films, capsys):
    assert main(["generate", str(films / "a.png"), str(films / "broken.dcm"), "--model", model_dir]) == 3
    shown, told = capsys.readouterr()
    assert shown.startswith("\na.png\n  ") and "broken" not in shown and "diagnosis" not in shown
    assert "broken.dcm: refused (not_an_image)" in told and "not for diagnosis" in told


def test_all_refused_is_a_failure(model_dir, films, capsys):
    assert main(["generate", str(films / "broken.dcm"), "--model", model_dir]) == 1


def test_two_runs_are_identical_but_for_seconds(model_dir, films, tmp_path):
    texts = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.jsonl"
        main(["generate", str(films), "--model", model_dir, "--out", str(out), "--max-new-tokens", "8"])
        texts.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows(out)])
    assert texts[0] == texts[1]


def test_nothing_is_overwritten_unasked(model_dir, films, tmp_path, capsys):
    out = tmp_path / "predictions.jsonl"
    out.write_text("mine")
    command = [
        "generate",
        str(films / "a.png"),
        "--model",
        model_dir,
        "--out",
        str(out),
        "--max-new-tokens",
        "2",
    ]
    assert main(command) == 2
    assert out.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 2
    assert out.read_text() == "mine" and "does not hold predictions" in capsys.readouterr().err
    out.unlink()
    assert main(command) == 0 and main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    assert rows(out)[0]["study_id"] == "a.png"


def test_what_an_interrupted_run_wrote_is_kept(model_dir, films, tmp_path, capsys, monkeypatch):
    from vlm import Findings

    real = Findings.generate

    def interrupted(self, *args, **kwargs):
        predictions = real(self, *args, **kwargs)
        yield next(predictions)
        raise KeyboardInterrupt

    monkeypatch.setattr(Findings, "generate", interrupted)
    out = tmp_path / "predictions.jsonl"
    command = ["generate", str(films), "--model", model_dir, "--out", str(out), "--max-new-tokens", "2"]
    assert main(command) == 130
    part = tmp_path / "predictions.jsonl.part"
    assert not out.exists() and len(rows(part)) == 1 and str(part) in capsys.readouterr().err
    monkeypatch.undo()
    with part.open("a") as file:
        file.write('{"study_id": "cut o')
    (first,) = [json.loads(line) for line in part.read_text().splitlines()[:1]]
    assert main([*command, "--beams", "2"]) == 2 and "another decoding" in capsys.readouterr().err
    assert main([*command, "--sentences", "confidence"]) == 2
    assert "another sentences" in capsys.readouterr().err
    assert main(command) == 3 and not part.exists()
    assert "1 of 4 studies" in capsys.readouterr().err
    assert rows(out)[0] == first and len(rows(out)) == 4  # it was not made again
    assert main([*command, "--overwrite"]) == 3 and len(rows(out)) == 4


class ForkedCommand:
    """In the place of subprocess.Popen: the command in a process that has imported everything. Commands that are
    started for real are in test_names.py."""

    def __init__(self, command, env):
        assert command[:3] == [sys.executable, "-m", "cxr.cli.main"]
        self.process = context().Process(target=_run_command, args=(command[3:], env))
        self.process.start()

    def wait(self):
        self.process.join(200)
        return self.process.exitcode


def _run_command(words, env):
    os.environ.update(env)
    sys.exit(main(words))


def test_several_processes_write_what_one_writes(model_dir, studies_file, tmp_path, monkeypatch):
    command = ["generate", str(studies_file), "--model", model_dir, "--limit", "6", "--max-new-tokens", "4"]
    command += ["--device", "cpu", "--sentences", "confidence"]
    one, two = (
        ["--out", str(tmp_path / n / "p.jsonl"), "--floors", str(tmp_path / n / "floors")]
        for n in ("one", "two")
    )
    assert main([*command, *one]) == 0
    shared = [*command, *two, "--processes", "2"]
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "cxr.cli.main", *shared])
    monkeypatch.setattr(generate, "subprocess", SimpleNamespace(Popen=ForkedCommand))
    assert main(shared) == 0
    for file in ("p.jsonl", "floors/shuffled.jsonl", "floors/blank.jsonl"):
        one, two = (
            [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / name / file)]
            for name in ("one", "two")
        )
        assert one == two and len(one) == 6
    assert not list(tmp_path.rglob("*.part*"))


def test_files_of_one_name_and_names_that_are_not_utf8(model_dir, films, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    odd = os.fsdecode(b"M\xfcller.png")
    for name in ("a.png", odd):
        shutil.copy(films / "a.png", other / name)
    out = tmp_path / "predictions.jsonl"
    inputs = [str(films / "a.png"), str(other / "a.png"), str(other / odd)]
    command = ["generate", *inputs, "--model", model_dir, "--max-new-tokens", "2"]
    assert main([*command, "--out", str(out)]) == 0
    assert [row["study_id"] for row in rows(out)] == [*inputs[:2], odd]
    assert main(command) == 0 and "M\\udcfcller.png" in capsys.readouterr().out


def test_splits_go_by_all_their_names_and_lines_end_at_line_feeds(model_dir, tmp_path):
    studies = make_studies(tmp_path / "data", 10)
    text = studies.read_text().replace('"split": "validate"', '"split": "val"')
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [row | {"findings": row["findings"] + "\u0085 No\u2028 change."} for row in lines]
    texts = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
    studies.write_bytes(b"\xef\xbb\xbf" + texts.encode())
    out = tmp_path / "predictions.jsonl"
    command = ["generate", str(studies), "--model", model_dir, "--split", "dev", "--max-new-tokens", "2"]
    assert main([*command, "--out", str(out)]) == 0
    scores = tmp_path / "scores.json"
    command = ["score", str(out), str(studies), "--split", "validation"]
    assert main([*command, "--out", str(scores)]) == 0
    assert json.loads(scores.read_text())["n"] == 2


def test_studies_to_scores(model_dir, tmp_path, capsys):
    studies = make_studies(tmp_path / "data", 10)
    out, floors = tmp_path / "predictions.jsonl", tmp_path / "floors"
    command = ["generate", str(studies), "--model", model_dir, "--split", "validate", "--max-new-tokens", "4"]
    assert main([*command, "--out", str(out), "--floors", str(floors)]) == 0
    assert len(rows(out)) == len(rows(floors / "shuffled.jsonl")) == len(rows(floors / "blank.jsonl")) == 2
    command = [
        "score",
        str(out),
        str(studies),
        "--split",
        "validate",
        "--floors",
        str(floors),
    ]
    assert (
        main([*command, "--out", str(tmp_path / "scores.json"), "--html", str(tmp_path / "page.html")]) == 0
    )
    shown = capsys.readouterr().out
    assert "shuffled" in shown and "blank" in shown and "2 studies" in shown
    assert json.loads((tmp_path / "scores.json").read_text())["n"] == 2
    assert "<html" in (tmp_path / "page.html").read_text()


def test_the_nearest_training_xray_is_a_floor(model_dir, tmp_path, capsys):
    studies, floors = make_studies(tmp_path / "data", 24), tmp_path / "floors"
    for validate, train in ((4, 0), (9, 1), (14, 2), (19, 3)):  # the same X-ray, of another patient
        shutil.copy(studies.parent / f"images/{validate}.png", studies.parent / f"images/{train}.png")
    command = ["generate", str(studies), "--model", model_dir, "--split", "validate", "--max-new-tokens", "2"]
    out, training = ["--out", str(tmp_path / "p.jsonl")], ["--training", str(studies)]
    assert main([*command, *out, *training, "--floors", str(floors)]) == 0
    known = {s.study_id: s for s in load_studies(studies)}
    found = rows(floors / "nearest.jsonl")
    assert [row["study_id"] for row in found] == [row["study_id"] for row in rows(tmp_path / "p.jsonl")]
    assert [row["findings"] for row in found] == [known[f"s{i}"].findings for i in range(4)]
    scored = ["score", str(tmp_path / "p.jsonl"), str(studies), "--split", "validate"]
    assert main([*scored, "--floors", str(floors), "--out", str(tmp_path / "s.json")]) == 0
    assert "nearest neighbour (image)" in [
        f["name"] for f in json.loads((tmp_path / "s.json").read_text())["floors"]
    ]
    capsys.readouterr()
    assert main([*command, *training]) == 2
    assert "give --floors DIR" in capsys.readouterr().err
    all_of_them = [word for word in command if word not in ("--split", "validate")]
    assert main([*all_of_them, *training, "--floors", str(tmp_path / "other")]) == 2
    assert "no training study is left" in capsys.readouterr().err


@pytest.mark.parametrize("section", ["impression", "both"])
def test_the_nearest_floor_is_what_the_model_writes(findings_model, section, tmp_path, capsys):
    style = replace(findings_model.meta.prompt, section=section)
    models.save(replace(findings_model, meta=replace(findings_model.meta, prompt=style)), tmp_path / "model")
    file, floors = make_studies(tmp_path / "data", 15), tmp_path / "floors"
    for validate, train in ((4, 0), (4, 1), (9, 2), (14, 3)):  # the same X-ray, of another patient
        shutil.copy(file.parent / f"images/{validate}.png", file.parent / f"images/{train}.png")
    studies = load_studies(file)
    for i, study in enumerate(studies):
        study.impression = None if i == 0 else f"Impression {i}."  # without one it is nobody's neighbour
    save_studies(studies, file, overwrite=True)
    command = ["generate", str(file), "--model", str(tmp_path / "model"), "--split", "validate"]
    command += ["--max-new-tokens", "2", "--out", str(tmp_path / "p.jsonl")]
    assert main([*command, "--floors", str(floors), "--training", str(file)]) == 0
    found = rows(floors / "nearest.jsonl")
    assert [row["impression"] for row in found] == ["Impression 1.", "Impression 2.", "Impression 3."]
    wanted = [studies[i].findings if section == "both" else None for i in (1, 2, 3)]
    assert [row.get("findings") for row in found] == wanted
    scored = ["score", str(tmp_path / "p.jsonl"), str(file), "--split", "validate"]
    scored += ["--floors", str(floors), "--section", section, "--out", str(tmp_path / "s.json")]
    assert main(scored) == 0
    written = {f["name"]: f["how"] for f in json.loads((tmp_path / "s.json").read_text())["floors"]}
    assert {"nearest neighbour (image)", "shuffled images", "blank images"} <= written.keys()
    assert "missing" not in written["nearest neighbour (image)"]
    for study in studies:
        study.impression = None
    save_studies(studies, tmp_path / "data" / "findings_alone.jsonl")
    training = ["--training", str(tmp_path / "data" / "findings_alone.jsonl")]
    capsys.readouterr()
    assert main([*command, "--overwrite", "--floors", str(tmp_path / "other"), *training]) == 2
    assert "no impression, has no image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "nowhere.dcm"], "nowhere.dcm does not exist"),
        (["generate", "{films}/a.png", "--model", "nowhere"], "nowhere"),
        (["generate", "{films}/a.png", "--floors", "floors"], "at least two studies"),
        (["score", "nowhere.jsonl", "nowhere.jsonl"], "nowhere.jsonl"),
        (["studies", "check", "nowhere.jsonl"], "nowhere.jsonl"),
        (["studies", "check", "{films}"], "{films}"),
        (["generate", "{films}/a.png", "--out", "{films}"], "is a folder"),
        (["generate", "{films}/a.png", "--out", "findings.csv"], "JSON Lines; give a name that says so"),
        (["generate", "{films}/a.png", "--device", "nonsense"], "nonsense"),
        (["generate", "{films}/a.png", "--device", "cuda:77"], "cuda:77"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(words, message, films, capsys):
    assert main([w.format(films=films) for w in words]) == 2
    err = capsys.readouterr().err
    assert (
        message.format(films=films) in err and "Traceback" not in err and len(err.strip().splitlines()) == 1
    )


@pytest.mark.parametrize("option", ["--batch-size", "--limit", "--max-new-tokens"])
def test_counts_are_positive(option, films, capsys):
    with pytest.raises(SystemExit):
        main(["generate", str(films), option, "0"])
    assert "must be a whole number of at least 1, not '0'" in capsys.readouterr().err


def test_an_empty_folder_is_said_to_be_empty(tmp_path, capsys):
    assert main(["generate", str(tmp_path)]) == 2
    assert "no study found" in capsys.readouterr().err


def test_export_merges_an_adapter(findings_model, tmp_path, capsys):
    from transformers import AutoModelForImageTextToText

    models.save(findings_model, tmp_path / "base")
    findings_model.llava = adapters.add_lora(findings_model.llava, rank=4)
    models.save_adapter(findings_model, tmp_path / "adapter", tmp_path / "base")
    (tmp_path / "adapter" / OUTLIERS).write_bytes(b"known")
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not load_model(tmp_path / "merged").meta.base
    assert (tmp_path / "merged" / OUTLIERS).read_bytes() == b"known"
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 2  # not overwritten
    assert "not empty" in capsys.readouterr().err


def test_trainings_get_their_options(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        "train.common.launcher.launch", lambda *words, **options: calls.append((words, options))
    )
    assert main(["pretrain", "--recipe", "mini", "--processes", "2", "--out", "x"]) == 0
    assert main(["finetune", "--init", "mini", "--studies", "s", "--out", "x", "--config_file", "ddp"]) == 0
    assert calls == [
        (("train.pretrain", "--recipe", "mini", "--out", "x"), {"processes": 2, "config_file": None}),
        (
            ("train.finetune", "--init", "mini", "--studies", "s", "--out", "x"),
            {"processes": None, "config_file": "ddp"},
        ),
    ]


# the training in a process of its own
@pytest.mark.slow
def test_a_training_ends_with_its_own_status_and_one_line(tmp_path, capfd, monkeypatch):
    """accelerate ends with 1, whatever its training ended with."""
    monkeypatch.setattr(launcher, "subprocess", SimpleNamespace(Popen=ForkedModule))
    out = tmp_path / "out"
    out.touch()
    assert main(["probe", "--data", "data.csv", "--encoders", "pixels", "--out", str(out)]) == 2
    said, told = capfd.readouterr()
    *log, last = told.splitlines()
    assert last == f"train.probe: {out} is a file; choose another --out" and not said
    assert log == [
        "",
        f"runs: accelerate launch -m train.probe --data data.csv --encoders pixels --out {out}",
    ]


def test_studies_check(tmp_path, capsys):
    studies = make_studies(tmp_path / "data", 5)
    assert main(["studies", "check", str(studies)]) == 0
    (tmp_path / "data" / "images" / "3.png").unlink()
    assert main(["studies", "check", str(studies)]) == 1
    assert "s3" in capsys.readouterr().out


def test_doctor(capsys):
    main(["doctor"])
    shown = capsys.readouterr().out
    for what in ("torch", "cxr on ", "JPEG lossless", "mini"):
        assert what in shown


def test_the_model_card_says_what_is_known_and_nothing_else(findings_model, tmp_path, capsys):
    models.save(findings_model, tmp_path / "m")
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    digest = "ab" * 32
    fields = {
        "max_steps": 7,
        "lora_rank": 4,
        "studies": ["/secret/patients.jsonl"],
        "sha256 of studies": [digest],
    }
    (run / "run.json").write_text(json.dumps(fields))
    best = {"step": 5, "eval_loss": 1.5, "eval_f1": 0.4, "eval_f1_shuffled": 0.1}
    (run / "best" / "metrics.json").write_text(json.dumps(best))
    row = {
        "name": "rouge-l/coco",
        "value": 0.25,
        "interval": [0.2, 0.3],
        "n": 9,
        "signature": "rouge-l|p:coco",
    }
    (tmp_path / "scores.json").write_text(json.dumps({"scores": [row, {"name": "x", "value": None}]}))
    command = ["export", str(tmp_path / "m"), str(tmp_path / "out"), "--run", str(run)]
    command += ["--scores", str(tmp_path / "scores.json"), "--licence", "encoder: MIT"]
    assert main(command) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "not for diagnosis", "stock `LlavaForConditionalGeneration`", "max_steps 7", digest[:16], "label F1 0.400",
        r"| rouge-l/coco | 0.250 | 0.200 to 0.300 | 9 | `rouge-l\|p:coco` |", "encoder: MIT", "16 tokens an image",
    ):  # fmt: skip
        assert words in card, words
    assert "secret" not in card
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "bare")]) == 0
    card = (tmp_path / "bare" / "README.md").read_text()
    assert "Not known here" in card and "Not measured" in card and "Not stated" in card
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "no"), "--run", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_a_studies_file_of_a_table(films, tmp_path, capsys):
    (films / "table.csv").write_text("study_id,image,view,findings\ns1,a.png,PA,Clear.\ns2,b.png,AP,\n")
    out = tmp_path / "made" / "studies.jsonl"
    command = ["studies", "make", "table", str(films / "table.csv"), "--out", str(out)]
    assert main(command) == 0
    assert "studies                2" in capsys.readouterr().err
    made = load_studies(out)
    assert [s.study_id for s in made] == ["s1", "s2"] and made[0].image_paths(out.parent)[0].is_file()
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert main(["studies", "check", str(out)]) == 1
    assert "1 problem: 1 no_findings" in capsys.readouterr().out
    assert main([*command[:2], "nothing", *command[3:], "--overwrite"]) == 2
    assert "there are mimic-cxr" in capsys.readouterr().err


def test_the_doctor_says_what_a_model_knows(findings_model, model_dir, capsys):
    from pathlib import Path

    import torch

    from vlm.outliers import Outliers

    assert main(["doctor", model_dir]) == 0 and "it never warns of unusual images" in capsys.readouterr().out
    known = Outliers.fit(torch.randn(120, 8), parts=1, quantile=0.96)
    known.chest, known.words = Outliers.fit(torch.randn(200, 8), parts=1), 4.25
    known.save(Path(model_dir) / OUTLIERS)
    assert main(["doctor", model_dir]) == 0
    said = capsys.readouterr().out
    for words in (
        "120 films of its own domain, 4% with a warning",
        "4.2 nats",
        "200 chest films",
        "research",
    ):
        assert words in said
    assert main(["doctor", "no-such-model"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_chest_film_gets_no_findings_unless_insisted_on(
    findings_model, model_dir, films, tmp_path, capsys
):
    """A reference that one film is of, and the others are not."""
    from pathlib import Path

    import torch

    from encoder.radiograph import read
    from vlm.outliers import Outliers, embedding

    x = findings_model.preprocessing(read(films / "a.png"))[None]
    x_C = embedding(findings_model.parts.vision_tower, x)[0]
    near = x_C + 0.02 * x_C.std() * torch.randn(80, len(x_C), generator=torch.Generator().manual_seed(0))
    known = Outliers.fit(near, parts=1, encoder_sha256=findings_model.meta.encoder_sha256)
    known.chest = Outliers.fit(near, parts=1, encoder_sha256=findings_model.meta.encoder_sha256)
    known.save(Path(model_dir) / OUTLIERS)
    command = [
        "generate",
        str(films / "a.png"),
        str(films / "b.png"),
        "--model",
        model_dir,
        "--max-new-tokens",
        "3",
    ]
    assert main([*command, "--out", str(tmp_path / "p.jsonl")]) == 3
    a, b = rows(tmp_path / "p.jsonl")
    assert "findings" in a and "findings" not in b and b["error"]["code"] == "abstained"
    assert "--insist" in b["error"]["message"] and "1 of 2 studies were refused" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "q.jsonl"), "--insist"]) == 0
    a, b = rows(tmp_path / "q.jsonl")
    assert "findings" in b and [w["code"] for w in b["warnings"]].count("out_of_distribution") == 1
    assert b["decoding"]["insist"] is True
