"""The walls of the house: who may import whom, and what nobody may do. Read from the source, without importing it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.slow import listed

ROOT = Path(__file__).parents[1]
ROOMS = ("encoder", "vlm", "train", "eval", "cxr")
FILES = sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").rglob("*.py"))
PICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "peft",
    "accelerate",
    "sklearn",
    "scipy",
    "matplotlib",
}


def allowed(file: str) -> set[str]:
    """The rooms that a file may import: cxr -> train -> vlm, eval -> encoder."""
    room = file.split("/")[0]
    if file.startswith("eval/probes/"):
        return {"eval", "encoder"}
    return {
        "encoder": {"encoder"},
        "vlm": {"vlm", "encoder"},
        "eval": {"eval"},
        "train": {"train", "vlm", "eval", "encoder"},
        "cxr": set(ROOMS),
    }[room]


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imported_by_call(node: ast.AST) -> str | None:
    """The module that `import_module("...")` or `__import__("...")` names."""
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = ast.unparse(node.func).split(".")[-1]
        if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
            return node.args[0].value
    return None


def imports(tree: ast.AST, file: str) -> Iterator[tuple[str, int]]:
    """(dotted module, line) of every import, at whatever depth, also those through importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = file.split("/")[: -node.level] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])]), node.lineno
        elif called := imported_by_call(node):
            yield called, node.lineno


def modules_of(files: Iterable[str]) -> dict[str, str]:
    """Dotted name -> file."""
    return {file[:-3].replace("/", ".").removesuffix(".__init__"): file for file in files}


def edges(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """file -> the files it imports, at whatever depth, type-only imports too. A face imports what it hands on; what a
    file takes from its own face does not count, for the face is loaded before it in any case."""
    known = modules_of(sources)
    found: dict[str, set[str]] = {file: set() for file in sources}
    for module, file in known.items():
        package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        for node in ast.walk(parsed(sources[file])):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            elif called := imported_by_call(node):
                names = [called]
            for name in names:
                while name and name not in known:
                    name = name.rpartition(".")[0]
                if name and name != module and not module.startswith(f"{name}."):
                    found[file].add(known[name])
    return found


def circles(sources: Mapping[str, str]) -> list[list[str]]:
    """Files that import each other in a loop (Tarjan's strongly connected components)."""
    arrows, index, low = edges(sources), {}, {}
    stack: list[str] = []
    found = []

    def visit(file: str) -> None:
        index[file] = low[file] = len(index)
        stack.append(file)
        for other in sorted(arrows[file]):
            if other not in index:
                visit(other)
                low[file] = min(low[file], low[other])
            elif other in stack:
                low[file] = min(low[file], index[other])
        if low[file] == index[file]:
            loop = stack[stack.index(file) :]
            del stack[stack.index(file) :]
            if len(loop) > 1:
                found.append(sorted(loop))

    for file in sources:
        if file not in index:
            visit(file)
    return found


def trespasses(source: str, file: str) -> list[str]:
    may = allowed(file)
    return [
        f"{file}:{line} imports {module}"
        for module, line in imports(parsed(source), file)
        if module.split(".")[0] in ROOMS
        and module.split(".")[0] not in may
        # What vlm may know of eval is how texts are read.
        and not (file.startswith("vlm/") and f"{module}.".startswith("eval.scores."))
    ]


def dangers(source: str, file: str) -> list[str]:
    tree = parsed(source)
    found = [
        (line, f"imports {name}") for name, line in imports(tree, file) if name.split(".")[0] in PICKLING
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in node.keywords}
        if called == "torch.load" and given.get("weights_only") is not True:
            found.append((node.lineno, "torch.load without weights_only=True"))
        if given.get("trust_remote_code", False) is not False:
            found.append((node.lineno, "trust_remote_code"))
        if given.get("allow_pickle", False) is not False:
            found.append((node.lineno, "allow_pickle"))
        if called.split(".")[-1] == "read_pickle":
            found.append((node.lineno, "read_pickle"))
        if called == "yaml.load":
            found.append((node.lineno, "yaml.load; yaml.safe_load is meant"))
        if called in {"eval", "exec", "os.system"}:
            found.append((node.lineno, called))
    return [f"{file}:{line} {what}" for line, what in found]


@pytest.mark.parametrize("file", FILES)
def test_imports_run_one_way(file):
    assert trespasses((ROOT / file).read_text(), file) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles({file: (ROOT / file).read_text() for file in FILES}) == []


@pytest.mark.parametrize(
    ("sources", "loops"),
    [
        ({"a/x.py": "import a.y", "a/y.py": "def f():\n    from a import x"}, 1),
        ({"a/x.py": "from a.y import z", "a/y.py": "if TYPE_CHECKING:\n    from a.x import T"}, 1),
        ({"a/x.py": "import b.y", "b/y.py": "import c.z", "c/z.py": "import_module('a.x')"}, 1),
        ({"a/__init__.py": "from a.x import f", "a/x.py": "from a.y import g", "a/y.py": ""}, 0),
        ({"a/x.py": "from . import y", "a/y.py": "from .x import f"}, 1),
        ({"a/x.py": "import a.y", "a/y.py": "import numpy"}, 0),
    ],
)  # fmt: skip
def test_circles_are_seen(sources, loops):
    assert len(circles(sources)) == loops


@pytest.mark.parametrize("file", FILES + SCRIPTS)
def test_nothing_unpickles_or_runs_what_it_reads(file):
    assert dangers((ROOT / file).read_text(), file) == []


def test_recipes_ask_for_no_remote_code():
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.y*ml")):
        assert "trust_remote_code: true" not in path.read_text().lower(), path


def test_the_command_line_starts_without_the_heavy_libraries():
    script = f"import sys, cxr, cxr.cli.main; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [], "import these inside the sub-commands"


def test_no_package_is_empty_of_rooms():
    assert {file.split("/")[0] for file in FILES} == set(ROOMS)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("encoder/x.py", "from vlm.study import Study"),
        ("encoder/attention/x.py", "def f():\n    import train.common.config"),
        ("vlm/x.py", "import eval.report"),
        ("vlm/x.py", "import importlib\nimportlib.import_module('train.finetune')"),
        ("vlm/x.py", "from train import config"),
        ("eval/scores/x.py", "import encoder"),
        ("eval/baselines.py", "from encoder.radiograph import read"),
        ("eval/probes/x.py", "import vlm.model"),
        ("train/x.py", "from cxr.cli.main import main"),
    ],
)
def test_the_wall_stops(file, source):
    assert len(trespasses(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cxr/cli/main.py", "def f():\n    import train.pretrain, eval.scores, encoder.vit"),
        ("train/x.py", "import vlm.study, encoder.vit, eval.probes.linear"),
        ("eval/probes/x.py", "from encoder.radiograph import read"),
        ("eval/scores/x.py", "from eval.resampling import bootstrap\nfrom ..signature import sign"),
        ("encoder/attention/x.py", "from . import reference\nimport torch"),
        ("vlm/x.py", "from eval.scores.labels import label_report"),
    ],
)
def test_the_wall_has_doors(file, source):
    assert trespasses(source, file) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=args.trust)",
        "def f():\n    from pickle import loads",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
    ],
)
def test_the_guard_sees(source):
    assert len(dangers(source, "train/x.py")) == 1
    assert (
        dangers("torch.load(path, weights_only=True)\nf(trust_remote_code=False)\nmodel.eval()", "train/x.py")
        == []
    )


def test_slow_tests_that_are_listed_exist():
    """A test that was renamed would silently be no slow one."""
    written: dict[str, set[str]] = {}
    for name in listed():
        file, _, function = name.partition("::")
        if file not in written:
            tree = ast.parse((ROOT / file).read_text())
            written[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function.rpartition("::")[2] in written[file], f"{name}: make slow-list writes the list anew"
