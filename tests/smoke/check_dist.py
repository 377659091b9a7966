"""Compare the files of a source distribution and a wheel with what git tracks: nothing lost, nothing picked up.

    python tests/smoke/check_dist.py dist

A wheel holds every tracked file of the five packages and nothing else; a source distribution every tracked file that
is not hidden. So a recipe, a launch file, weights or py.typed cannot go missing, and neither a test nor a film that
lies about in the checkout is ever published.
"""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
PACKAGES = ("cxr", "encoder", "vlm", "train", "eval")
# What may be in it, and where files are listed
BELONGS = {
    "wheel": ("the packages' files that git tracks", "package-data in pyproject.toml"),
    "sdist": ("the files that git tracks", "MANIFEST.in"),
}
# Written by the build itself
GENERATED = {"PKG-INFO", "setup.cfg"}
# MB; the weights of mini take 8.5 of them, and 12 is what they may take
MOST_MEGABYTES = 14


def tracked(root: Path = ROOT) -> set[str]:
    """Files that git tracks, relative to `root`. Raises CalledProcessError outside a repository."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (root / name).exists()}


def compare(kind: str, found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Name every file that is on one side only, and where to mend that."""
    found, expected = set(found), set(expected)
    wanted, listed = BELONGS[kind]
    lost = [f"{kind}: {name} is missing; add it to {listed}" for name in sorted(expected - found)]
    return lost + [f"{kind}: {name} is not one of {wanted}" for name in sorted(found - expected)]


def check_wheel(wheel: Path, files: set[str], version: str) -> list[str]:
    """Problems of a wheel. `files` are those that git tracks, `version` is that of pyproject.toml."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = {n.split("/", 1)[1]: archive.read(n).decode() for n in names if is_about(n)}
        sources = {name: archive.read(name) for name in names if name.endswith(".py")}
    shipped = {name for name in names if not is_about(name)}
    problems = compare("wheel", shipped, (n for n in files if n.split("/")[0] in PACKAGES))
    problems += [f"wheel: {name}/py.typed is missing" for name in PACKAGES if f"{name}/py.typed" not in names]
    built = HeaderParser().parsestr(about.get("METADATA", ""))["Version"]
    if built != version:
        problems.append(f"wheel: its version is {built}, and pyproject.toml says {version}")
    if not any(name.endswith("LICENSE") for name in about):
        problems.append("wheel: the licence is missing")
    problems += [
        f"wheel: {problem}" for problem in check_commands(about.get("entry_points.txt", ""), sources)
    ]
    if (size := wheel.stat().st_size / 1e6) > MOST_MEGABYTES:
        problems.append(f"wheel: {size:.1f} MB, and at most {MOST_MEGABYTES} are meant")
    return problems


def is_about(name: str) -> bool:
    """Whether a file of a wheel describes it."""
    return name.split("/")[0].endswith(".dist-info")


def check_commands(entry_points: str, sources: dict[str, bytes]) -> list[str]:
    """Problems of the console scripts, which must name functions of files in the wheel."""
    parser = configparser.ConfigParser()
    parser.read_string(entry_points)
    scripts = dict(parser["console_scripts"]) if parser.has_section("console_scripts") else {}
    problems = [] if "cxr" in scripts else ["there is no command cxr"]
    for command, target in scripts.items():
        module, _, function = target.partition(":")
        file = f"{module.replace('.', '/')}.py"
        defined = {n.name for n in ast.parse(sources.get(file, b"")).body if isinstance(n, ast.FunctionDef)}
        if function not in defined:
            problems.append(f"the command {command} calls {target}, and {file} has no such function")
    return problems


def check_sdist(sdist: Path, files: set[str]) -> list[str]:
    """Problems of a source distribution. `files` are those that git tracks."""
    with tarfile.open(sdist) as archive:
        names = {PurePosixPath(m.name) for m in archive.getmembers() if not m.isdir()}
    inside = {PurePosixPath(*name.parts[1:]).as_posix() for name in names}
    found = {n for n in inside if n not in GENERATED and not n.split("/")[0].endswith(".egg-info")}
    return compare("sdist", found, (name for name in files if not name.startswith(".")))


def check_papers(version: str, citation: str, changelog: str) -> list[str]:
    """Problems of the two files that name the version. Between releases (0.2.0.dev0) the last one is cited."""
    release, problems = version.split(".dev")[0], []
    if version == release and f"version: {version}" not in citation.splitlines():
        problems.append(f"CITATION.cff has no line `version: {version}`")
    headings = [line for line in changelog.splitlines() if line.startswith("## ") and release in line.split()]
    if not headings:
        problems.append(f"CHANGELOG.md has no heading `## {release}`")
    elif version == release and "unreleased" in headings[0]:
        problems.append(f"CHANGELOG.md gives no date: `{headings[0]}`")
    return problems


def main(argv: list[str] | None = None) -> int:
    """Check the one wheel and the one source distribution of a folder; returns the exit status."""
    (folder,) = map(Path, sys.argv[1:] if argv is None else argv)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if (len(wheels), len(sdists)) != (1, 1):
        print(
            f"{folder} holds {len(wheels)} wheels and {len(sdists)} sdists, not one of each; make dist builds them"
        )
        return 2
    files = tracked()
    problems = check_wheel(wheels[0], files, version) + check_sdist(sdists[0], files)
    problems += check_papers(
        version, *((ROOT / name).read_text() for name in ("CITATION.cff", "CHANGELOG.md"))
    )
    print("\n".join(problems) or f"{wheels[0].name} and {sdists[0].name} hold what git tracks")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
