"""Scoring where nothing else of the system is installed: it works, and what needs more says so in a line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from encoder.errors import UserError, not_installed

ROOT = Path(__file__).parents[2]
HIDDEN = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from cxr.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def needed() -> set[str]:
    """Names of packages in requirements-score.txt."""
    lines = (ROOT / "requirements-score.txt").read_text().splitlines()
    return {re.match(r"[\w-]+", line)[0] for line in lines if line and not line.startswith("#")}


def run(folder, *words):
    """Run the command line in a process that finds only what requirements-score.txt brings."""
    declared = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("]")[0]
    every = set(re.findall(r'"([\w-]+)', declared)) | {"PIL", "yaml", "huggingface_hub", "gdcm"}
    hidden = {name.replace("-", "_") for name in every - needed()} - {
        "scikit_learn",
        "rouge_score",
        "tokenizers",
    }
    command = [sys.executable, "-c", HIDDEN.format(hidden=hidden), *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CXR_WEIGHTS": str(folder / "none")}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_scores_and_a_page_without_the_rest(tmp_path):
    studies = [
        {"schema": 1, "study_id": str(i), "images": [{"path": "x.png"}], "findings": "Small left effusion."}
        for i in range(12)
    ]
    said = [{"study_id": str(i), "findings": "Small effusion."} for i in range(12)]
    for name, rows in (("r", studies), ("p", said)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run(tmp_path, *["score", "p.jsonl", "r.jsonl", "--out", "s.json", "--html", "x.html"])
    assert done.returncode == 0, done.stderr
    assert "the page has no X-rays" in done.stderr and (tmp_path / "x.html").exists()
    found = {s["name"]: s["value"] for s in json.loads((tmp_path / "s.json").read_text())["scores"]}
    assert found["label-f1/14/micro/neg"] == 1 and found["rouge-l/coco"] > 0.5
    refused = run(tmp_path, "generate", "p.jsonl")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "needs the package" in refused.stderr and "docs/install.md" in refused.stderr


def test_only_a_package_of_others_is_missing():
    told = not_installed(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert isinstance(told, UserError) and "needs the package torch," in str(told)
    for ours in (
        ModuleNotFoundError("x", name="vlm.absent"),
        ImportError("x", name="torch"),
        ValueError("x"),
    ):
        assert not_installed(ours) is None


def test_what_scoring_needs_is_a_part_of_what_is_declared():
    declared = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("\n]")[0]
    assert needed() <= set(re.findall(r'^    "([\w-]+)', declared, re.MULTILINE))


@pytest.mark.parametrize("word", sorted(needed()))
def test_each_is_pinned_for_the_tests(word):
    assert re.search(
        rf"^{word.replace('-', '[-_]')}==",
        (ROOT / "constraints.txt").read_text(),
        re.MULTILINE | re.IGNORECASE,
    )
