"""Print what is said of damaged models: case, exit status, seconds, peak memory, line.

python benchmarks/damaged.py [PART OF A NAME ...]
"""

from __future__ import annotations

import contextlib
import io
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

from cxr.cli.main import main as cxr
from tests.damage import CASES, Case, damaged, models
from tests.tiny import make_encoder, make_llm
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


def run(argv: list[str]) -> tuple[int | str, str]:
    """Return the exit status of a command, or the name of what it raised, and the last line it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            if argv[0] == "finetune":
                from train.finetune.__main__ import main as finetune

                status: int | str = entry(
                    finetune, "finetune", [*argv[1:], "--precision", "fp32", "--threads", "1"]
                )
            else:
                status = cxr(argv)
        except BaseException as error:
            status = f"traceback ({type(error).__name__})"
            traceback.print_exc()
    lines = said.getvalue().strip().splitlines()
    return status, lines[-1] if lines else ""


def main(wanted: list[str]) -> None:
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        encoder, llm = make_encoder(root / "encoder"), make_llm(root / "llm")
        sound = models(root, encoder, llm)
        film = root / "film.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48)).astype(np.uint8)).save(film)
        from vlm.study import Image as Film
        from vlm.study import Study, save_studies

        rows = [
            Study(f"s{i}", f"p{i}", "train", [Film(str(film), "PA")], findings="Clear.") for i in range(9)
        ]
        save_studies(rows, root / "studies.jsonl")
        print("| damage | status | seconds | peak MB | line |\n|---|---|---|---|---|")
        for name, case in CASES.items():
            if wanted and not any(word in name for word in wanted):
                continue
            model = damaged(case, sound, root / "damaged" / name.replace(" ", "_"))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            begun = time.perf_counter()
            status, line = run(words(case, model, film, root / "out" / name.replace(" ", "_"), encoder))
            seconds = time.perf_counter() - begun
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            fine = status == 2 and all(any(w in line for w in part.split("|")) for part in case.said)
            kind = "told" if fine else "2, but vague" if status == 2 else str(status)
            counts[kind] = counts.get(kind, 0) + 1
            line = line.replace(str(root), "").replace("|", "/")
            print(f"| {name} | {kind} | {seconds:.2f} | +{grown} | {line[:300]} |", flush=True)
    print(counts)


if __name__ == "__main__":
    main(sys.argv[1:])
