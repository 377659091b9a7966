"""`import cxr`: at once, lazily, whole, and never somebody else's file."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import cxr

FILE = Path(cxr.__file__)
HEAVY = {"torch", "transformers", "numpy", "PIL", "pydicom", "rich"}


def python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def printed(code: str, folder: Path | None = None) -> str:
    run = python(code, folder)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_it_is_imported_at_once_and_brings_nothing_heavy():
    code = f"""
import sys, time
start = time.process_time()
import cxr
print(time.process_time() - start, *({HEAVY!r} & set(sys.modules)))
"""
    took, *heavy = printed(code, FILE.parents[1]).split()
    assert float(took) < 0.1 and heavy == []


def test_every_name_is_there_and_is_the_rooms_own():
    assert dir(cxr) == sorted(cxr.__all__)
    for name in cxr.__all__:
        found = getattr(cxr, name)
        if name != "__version__":
            module = importlib.import_module(cxr._HOME[name][0])
            assert found is getattr(module, name) and name in vars(cxr)
    assert set(cxr._HOME) | {"__version__"} == set(cxr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Finding'; it has Findings"):
        _ = cxr.Finding


def test_type_checkers_see_what_is_there():
    """The block under TYPE_CHECKING names every lazy name, from where it is imported when it is used."""
    (block,) = [
        node
        for node in ast.parse(FILE.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: home[0] for name, home in cxr._HOME.items()}
    assert (FILE.parent / "py.typed").is_file()


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert cxr.__version__ == version("cxr-vlm")


@pytest.mark.parametrize(
    ("theirs", "lost"),
    [
        ("train.py", []),
        ("eval.py", ["metric", "score"]),
        ("eval/__init__.py", ["metric", "score"]),
        ("encoder/__init__.py", ["Findings", "read", "score", "load_studies"]),
        # a folder without __init__.py hides an editable install, too
        ("encoder/notes.txt", ["Findings", "read", "score", "load_studies"]),
        ("vlm.py", None),
        ("vlm/__init__.py", None),
    ],
)
def test_somebody_elses_files_are_named_not_run(theirs, lost, tmp_path):
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("raise SystemExit('somebody else was run')")
    place = tmp_path / theirs if theirs.endswith(".py") else tmp_path / "encoder"
    code = """
import cxr
for name in ("metric", "load_studies", "read", *lost):
    try:
        getattr(cxr, name)
        print(name, "is there")
    except ImportError as error:
        print(name, error)
"""
    run = python(f"lost = {lost or []}{code}", tmp_path)
    assert "somebody else was run" not in run.stderr
    if lost is None:
        assert f"is {place}, and not cxr's" in run.stderr
        return
    said = dict(line.split(" ", 1) for line in run.stdout.splitlines())
    assert said, run.stderr
    for name, words in said.items():
        assert (f"is {place}, and not cxr's" in words) if name in lost else words == "is there", name
