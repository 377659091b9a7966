"""ReXrank's interface: its file in, the same file with predictions out."""

from __future__ import annotations

import json
import shutil

import pytest

from cxr.cli.main import main as cxr
from cxr.cli.rexrank import context_of, study_of
from vlm import Findings
from vlm import model as models
from vlm.prompts import shown_image


@pytest.fixture
def model_dir(findings_model, tmp_path):
    findings_model.meta.max_new_tokens = 4
    models.save(findings_model, tmp_path / "m")
    return str(tmp_path / "m")


@pytest.fixture
def files(studies_file, tmp_path):
    rows = {
        f"study{i}": {
            "image_path": [f"/images/{i}.png", f"/images/{i + 1}.png"],
            "frontal_lateral": ["Lateral", "Frontal"],
            "key_image_path": f"/images/{i + 1}.png",
            "context": "Age:60-70.Gender:F.Indication: ___-year-old female with cough. Comparison: None.",
            "report": "FINDINGS: clear.",
        }
        for i in range(3)
    }
    rows["broken"] = {
        "image_path": ["/images/absent.png"],
        "key_image_path": "/images/absent.png",
        "context": "",
    }
    path = tmp_path / "in.json"
    path.write_text(json.dumps(rows))
    return path, tmp_path / "out.json", studies_file.parent, rows


def main(words):
    return cxr(["rexrank", *words])


def test_the_file_comes_back_with_predictions(model_dir, files, capsys):
    path, out, root, rows = files
    assert main([str(path), str(out), str(root), "--model", model_dir, "--device", "cpu"]) == 3
    found = json.loads(out.read_text())
    assert list(found) == list(rows) and "1 refused" in capsys.readouterr().err
    direct = Findings.from_pretrained(model_dir, device="cpu")
    for name, row in found.items():
        prediction, error = row.pop("model_prediction"), row.pop("model_error", None)
        assert row == rows[name]
        assert (prediction == "") == (error is not None) == (name == "broken")
        if not error:
            assert prediction == direct(study_of(name, row, root)).findings
    assert main([str(path), str(out), str(root), "--model", model_dir]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_it_goes_on_where_it_was_stopped(model_dir, files, monkeypatch):
    path, out, root, _ = files
    command = [str(path), str(out), str(root), "--model", model_dir, "--device", "cpu"]
    assert main(command) == 3
    whole = out.read_text()
    out.unlink()
    real = Findings.generate

    def interrupted(self, *args, **kwargs):
        yield next(real(self, *args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(Findings, "generate", interrupted)
    assert main(command) == 130
    monkeypatch.undo()
    assert out.with_name("out.json.part").read_text().count("\n") == 1 and not out.exists()
    assert main(command) == 3
    assert out.read_text() == whole and not out.with_name("out.json.part").exists()


def test_the_context():
    assert context_of("Age:60-70.Gender:F.Indication: Cough. Comparison: 1 May.") == {
        "age": 65.0, "sex": "F", "indication": "Cough.", "comparison": "1 May.",
    }  # fmt: skip
    assert context_of("Indication: Fall, hurt: rib.") == {"indication": "Fall, hurt: rib."}
    assert context_of("") == {} == context_of("Age:N/A.Gender:N/A.Indication: .")


def test_the_key_image_is_the_main_one(tmp_path):
    row = {"image_path": ["a.jpg", "b.jpg"], "key_image_path": "b.jpg"}
    assert shown_image(study_of("s", row, tmp_path)).path == str(tmp_path / "b.jpg")
    row = {"key_image_path": "c.jpg"}
    assert [i.path for i in study_of("s", row, tmp_path).images] == [str(tmp_path / "c.jpg")]


def test_what_is_no_such_file(model_dir, files, tmp_path, capsys):
    path, out, root, _ = files
    for text, message in (
        ("[1]", "object of studies"),
        ("{", "not JSON"),
        ('{"a": {}}', "neither image_path"),
    ):
        path.write_text(text)
        assert main([str(path), str(out), str(root), "--model", model_dir]) == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(model_dir)
    path.write_text("{}")
    assert main([str(path), str(out), str(root), "--model", model_dir]) == 2
