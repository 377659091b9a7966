"""Print what is said of damaged models and recipes: case, exit status, seconds, peak memory, line.

    python benchmarks/damaged.py [--save] [PART OF A NAME ...]

Each is read by the command that people read it with, in this process: seconds and memory are without its imports.
--save writes results/damaged.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

from cxr.cli.main import main as cxr
from tests.damage import CASES, Case, damaged, models
from tests.tiny import make_encoder, make_llm
from tests.train.test_damaged_recipes import FILES
from train.common.entry import entry


def words(case: Case, model: Path, film: Path, out: Path, encoder: Path) -> list[str]:
    """Return the command line that reads a model of that kind."""
    if case.model in ("findings", "adapter"):
        return ["generate", str(film), "--model", str(model), "--device", "cpu", "--max-new-tokens", "4"]
    if case.model == "language model":
        studies = film.with_name("studies.jsonl")
        return [
            "finetune",
            "--encoder",
            str(encoder),
            "--llm",
            str(model),
            "--studies",
            str(studies),
            "--out",
            str(out),
        ]
    return ["embed", str(film), "--model", str(model), "--out", str(out), "--device", "cpu"]


def cases(
    root: Path, film: Path, encoder: Path, llm: Path
) -> Iterator[tuple[str, Case, Callable[[], list[str]]]]:
    """Yield each damage, and what makes the command line that meets it."""
    sound = models(root, encoder, llm)
    for name, case in CASES.items():
        place = name.replace(" ", "_")
        model = damaged(case, sound, root / "damaged" / place)
        yield name, case, partial(words, case, model, film, root / "out" / place, encoder)
    recipe = root / "recipe.yaml"
    for name, (content, said) in FILES.items():
        recipe.write_bytes(content.encode() if isinstance(content, str) else content)
        argv = [
            "pretrain",
            "--recipe",
            str(recipe),
            "--data",
            str(film.parent),
            "--out",
            str(root / "out" / "run"),
        ]
        yield f"recipe: {name}", Case("recipe", lambda folder: None, (said,)), lambda argv=argv: argv


def run(argv: list[str]) -> tuple[int | str, str]:
    """Return the exit status of a command, or the name of what it raised, and the last line it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            if argv[0] in ("finetune", "pretrain"):
                main = import_module(f"train.{argv[0]}.__main__").main
                status: int | str = entry(main, argv[0], [*argv[1:], "--precision", "fp32", "--threads", "1"])
            else:
                status = cxr(argv)
        except BaseException as error:
            status = f"traceback ({type(error).__name__})"
            traceback.print_exc()
    lines = said.getvalue().strip().splitlines()
    return status, lines[-1] if lines else ""


def main(wanted: list[str], save: bool) -> None:
    counts: dict[str, int] = {}
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        encoder, llm = make_encoder(root / "encoder"), make_llm(root / "llm")
        film = root / "film.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48)).astype(np.uint8)).save(film)
        from vlm.study import Image as Film
        from vlm.study import Study, save_studies

        rows = [
            Study(f"s{i}", f"p{i}", "train", [Film(str(film), "PA")], findings="Clear.") for i in range(9)
        ]
        save_studies(rows, root / "studies.jsonl")
        print("| damage | status | seconds | peak MB | line |\n|---|---|---|---|---|")
        for name, case, argv in cases(root, film, encoder, llm):
            if wanted and not any(word in name for word in wanted):
                continue
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            begun = time.perf_counter()
            status, line = run(argv())
            seconds = time.perf_counter() - begun
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            fine = status == 2 and all(any(w in line for w in part.split("|")) for part in case.said)
            kind = "told" if fine else "2, but vague" if status == 2 else str(status)
            counts[kind] = counts.get(kind, 0) + 1
            line = line.replace(str(root), "").replace("|", "/")
            found.append({
                "damage": name, "of": case.model, "status": status, "told": fine, "seconds": round(seconds, 2),
                "megabytes": grown, "line": line,
            })  # fmt: skip
            print(f"| {name} | {kind} | {seconds:.2f} | +{grown} | {line[:300]} |", flush=True)
    print(counts)
    if save:
        about = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        target = Path(__file__).parent / "results" / "damaged.json"
        rows = ",\n".join(json.dumps(row) for row in found)
        target.write_text(json.dumps(about | {"counts": counts})[:-1] + f', "cases": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("wanted", nargs="*", metavar="PART", help="part of a case's name; all without one")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/damaged.json")
    given = parser.parse_args()
    main(given.wanted, given.save)
