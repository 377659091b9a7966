"""check_dist finds what a build has lost or picked up."""

import io
import tarfile
import zipfile

import pytest

from tests.smoke.check_dist import PACKAGES, ROOT, check_papers, check_sdist, check_wheel, compare, tracked

TRACKED = {
    ".gitignore",
    "pyproject.toml",
    "tests/test_walls.py",
    "cxr/cli/main.py",
    "train/recipes/mini.yaml",
    "train/launch/ddp.yaml",
    "vlm/mini/model.safetensors",
    *(f"{package}/{file}" for package in PACKAGES for file in ("__init__.py", "py.typed")),
}
ABOUT = {
    "METADATA": "Metadata-Version: 2.4\nName: cxr-vlm\nVersion: 1.2.3\n",
    "entry_points.txt": "[console_scripts]\ncxr = cxr.cli.main:main\n",
    "licenses/LICENSE": "words",
    "RECORD": "",
}


def wheel_of(folder, *, without=(), more=(), main="def main(): pass", about=ABOUT):
    path = folder / "cxr_vlm-1.2.3-py3-none-any.whl"
    inside = {name for name in TRACKED if name.split("/")[0] in PACKAGES} - set(without) | set(more)
    with zipfile.ZipFile(path, "w") as archive:
        for name in inside:
            archive.writestr(name, main if name == "cxr/cli/main.py" else "")
        for name, text in about.items():
            archive.writestr(f"cxr_vlm-1.2.3.dist-info/{name}", text)
    return path


def test_a_whole_wheel_passes(tmp_path):
    assert check_wheel(wheel_of(tmp_path), TRACKED, "1.2.3") == []


@pytest.mark.parametrize(
    "name", ["train/recipes/mini.yaml", "train/launch/ddp.yaml", "vlm/mini/model.safetensors"]
)
def test_what_a_wheel_lacks(tmp_path, name):
    (problem,) = check_wheel(wheel_of(tmp_path, without=[name]), TRACKED, "1.2.3")
    assert f"{name} is missing" in problem


@pytest.mark.parametrize(
    "name", ["tests/test_walls.py", "benchmarks/data.py", "vlm/mini/film.dcm", "train_runs/a.json"]
)
def test_what_a_wheel_has_picked_up(tmp_path, name):
    (problem,) = check_wheel(wheel_of(tmp_path, more=[name]), TRACKED, "1.2.3")
    assert f"{name} is not one of the packages' files" in problem


def test_types_are_marked_in_every_package_also_where_git_has_no_marker(tmp_path):
    without = {"eval/py.typed"}
    found = check_wheel(wheel_of(tmp_path, without=without), TRACKED - without, "1.2.3")
    assert found == ["wheel: eval/py.typed is missing"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"METADATA": "Name: cxr-vlm\nVersion: 1.2.2\n"},
            "its version is 1.2.2, and pyproject.toml says 1.2.3",
        ),
        ({"entry_points.txt": ""}, "there is no command cxr"),
        ({"entry_points.txt": "[console_scripts]\ncxr = vlm.cli:main\n"}, "vlm/cli.py has no such function"),
        ({"entry_points.txt": "[console_scripts]\ncxr = cxr.cli.main:run\n"}, "main.py has no such function"),
    ],
)
def test_what_a_wheel_says_of_itself(tmp_path, change, said):
    (problem,) = check_wheel(wheel_of(tmp_path, about=ABOUT | change), TRACKED, "1.2.3")
    assert said in problem


def test_the_licence_goes_along(tmp_path):
    about = {name: text for name, text in ABOUT.items() if "LICENSE" not in name}
    assert check_wheel(wheel_of(tmp_path, about=about), TRACKED, "1.2.3") == ["wheel: the licence is missing"]


def sdist_of(folder, names):
    path = folder / "cxr_vlm-1.2.3.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"cxr_vlm-1.2.3/{name}"), io.BytesIO())
    return path


def test_source_distributions(tmp_path):
    whole = {*TRACKED, "PKG-INFO", "setup.cfg", "cxr_vlm.egg-info/SOURCES.txt"} - {".gitignore"}
    assert check_sdist(sdist_of(tmp_path, whole), TRACKED) == []
    (lost,) = check_sdist(sdist_of(tmp_path, whole - {"tests/test_walls.py"}), TRACKED)
    assert "tests/test_walls.py is missing" in lost
    (odd,) = check_sdist(sdist_of(tmp_path, whole | {"tests/film.png"}), TRACKED)
    assert "tests/film.png is not one of the files that git tracks" in odd


def test_both_sides_are_named():
    assert compare("wheel", {"a", "b"}, {"b", "c"}) == [
        "wheel: c is missing; add it to package-data in pyproject.toml",
        "wheel: a is not one of the packages' files that git tracks",
    ]


@pytest.mark.parametrize(
    ("version", "problems"),
    [
        ("0.2.0", 0),
        ("0.3.0.dev0", 0),
        ("0.2.1", 2),
        ("0.3.0", 2),
        ("0.2", 2),
        ("0.4.0.dev0", 1),
    ],
)
def test_papers_name_the_version(version, problems):
    citation = "cff-version: 1.2.0\nversion: 0.2.0\n"
    changelog = "# Changelog\n\n## 0.3.0 (unreleased)\n\n## 0.2.0 (2026-12-24)\n"
    assert len(check_papers(version, citation, changelog)) == problems


def test_git_is_asked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is nothing to compare with")
    assert {"pyproject.toml", "vlm/mini/model.safetensors", "train/recipes/mini.yaml"} <= tracked()
