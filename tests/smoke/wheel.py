"""Install a wheel into a new environment and use it as a stranger would: an empty folder, an empty home, no checkout.

    python tests/smoke/wheel.py dist/cxr_vlm-0.1.0-py3-none-any.whl --constraints constraints.txt

Prints every command. Stops at the first one that fails, with all it printed, and exits with 1. Takes about ten
minutes on two cores, two of them for the installation. `--env DIR` keeps the environment in DIR and uses it again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("cxr", "encoder", "vlm", "train", "eval")
# Seconds a command may take; the installation downloads some gigabytes on a machine without a cache
PATIENCE, INSTALLATION = 900, 3600
# Variables of the caller's that the installed commands see; of a checkout they see nothing
KEPT = ("LANG", "LC_ALL", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
# Files a user may have in the current folder. Each leaves a mark if it is run.
FOREIGN = ("train.py", "vlm.py", "eval.py", "encoder/__init__.py")
MARK = "open(__file__ + '.was_run', 'w').close(); raise SystemExit(__file__ + ' of the user was run')\n"


class Failed(Exception):
    """A step of the smoke test has failed; the message says which and shows the output."""


def run(command: list[str | Path], cwd: Path, env: dict[str, str], patience: float = PATIENCE) -> str:
    """Run a command and return what it printed, errors included. Raises Failed unless it exits with 0 in time."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join([Path(words[0]).name, *words[1:]])}", end="", flush=True)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            timeout=patience,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired as error:
        shown = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout
        raise Failed(f"no end within {patience:.0f} s. It printed:\n{shown or ''}") from None
    print(f"  # {time.perf_counter() - started:.1f} s", flush=True)
    if done.returncode:
        raise Failed(f"exit status {done.returncode}. It printed:\n{done.stdout}")
    return done.stdout


def expect(holds: bool, what: str, output: str = "") -> None:
    """Raise Failed unless `holds`; `what` says what was expected."""
    if not holds:
        raise Failed(f"expected {what}.{f' It printed:{chr(10)}{output}' if output else ''}")


def install(wheel: Path, constraints: Path | None, env: Path) -> Path:
    """Make the environment `env`, or use it again, with the wheel in it; returns its folder of commands."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    commands = env / ("Scripts" if os.name == "nt" else "bin")
    new = not commands.exists()
    if new:
        run([sys.executable, "-m", "venv", env], env.parent, ours)
    pip = [commands / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if constraints:
        pip += ["--constraint", constraints.absolute()]
    run([*pip, wheel.absolute()], env.parent, ours, INSTALLATION)
    if not new:
        # The version may be the same, so only this replaces what an earlier wheel left.
        run([*pip, "--force-reinstall", "--no-deps", wheel.absolute()], env.parent, ours)
    run([commands / "python", "-m", "pip", "check"], env.parent, ours)
    return commands


class Stranger:
    """Somebody who has only the wheel: a home and a working folder of their own, both empty at first."""

    def __init__(self, commands: Path, folder: Path) -> None:
        self.commands, self.folder = commands, folder / "work"
        self.folder.mkdir()
        (folder / "home").mkdir()
        self.env = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.env |= {"HOME": str(folder / "home"), "PATH": f"{commands}{os.pathsep}{os.defpath}"}
        # Nothing here needs the network: the shipped model is the default.
        self.env["HF_HUB_OFFLINE"] = "1"

    def __call__(self, command: str, *words: str | Path, cwd: Path | None = None) -> str:
        return run([self.commands / command, *words], cwd or self.folder, self.env)

    def python(self, code: str, cwd: Path | None = None) -> str:
        """What a line of Python prints."""
        return self("python", "-c", code, cwd=cwd).strip()


def rows(path: Path) -> list[dict]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def it_is_the_wheel(user: Stranger, version: str) -> None:
    """The packages come from the environment, and the command knows its version."""
    files = user.python(
        f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})), sep='\\n')"
    )
    inside = user.commands.parent.resolve()
    for file in files.splitlines():
        expect(Path(file).resolve().is_relative_to(inside), f"a package below {inside}, not {file}")
    printed = user("cxr", "--version")
    expect(version in printed, f"version {version}", printed)


def findings(user: Stranger) -> None:
    """The shipped model writes findings for a phantom."""
    user("cxr", "phantom", "phantoms", "--studies", "20", "--seed", "5", "--no-masks")
    film = rows(user.folder / "phantoms" / "studies.jsonl")[0]["images"][0]["path"]
    printed = user("cxr", "generate", Path("phantoms", film))
    expect("not for diagnosis" in printed, "the notice of the demonstration model", printed)
    user("cxr", "generate", Path("phantoms", film), "--out", "predictions.jsonl")
    (row,) = rows(user.folder / "predictions.jsonl")
    expect(len(row.get("findings", "").split()) > 5, f"findings of several words, not {row}")


def demo(user: Stranger) -> None:
    """The demo writes its page, and the model beats what looks at nothing."""
    printed = user("cxr", "demo", "--no-training", "--studies", "24")
    out = user.folder / "demo_out"
    expect((out / "index.html").stat().st_size > 10_000, "a page with films in it", printed)
    scores = json.loads((out / "scores.json").read_text())
    key = "label-f1/14/micro/neg"
    blank = next(floor for floor in scores["floors"] if "blank" in floor["name"])
    value, blank = (next(s["value"] for s in of["scores"] if s["name"] == key) for of in (scores, blank))
    expect(
        value > 0.6 > blank + 0.2,
        f"a label F1 far above {blank:.2f} of blank images, not {value:.2f}",
        printed,
    )


def pretraining(user: Stranger) -> None:
    """Both ways to launch a training with shipped files: a recipe by name, a launch file by path."""
    asked = "import torch, train; print(torch.cuda.is_available(), train.__path__[0])"
    on_gpu, package = user.python(asked).splitlines()[-1].split(" ", 1)
    words = ["-m", "train.pretrain", "--recipe", "mini", "--data", "phantoms/images", "--batch_size", "4"]
    words += ["--max_steps", "2", "--logging_steps", "1", "--dataloader_num_workers", "0"]
    words = words if on_gpu == "True" else ["--cpu", *words]
    launch_file = ["--config_file", Path(package, "launch", "ddp.yaml")]
    for out, options in (("one", ["--num_processes", "1"]), ("two", [*launch_file, "--num_processes", "2"])):
        printed = user("accelerate", "launch", *options, *words, "--out", f"runs/{out}")
        losses = [row["loss"] for row in rows(user.folder / "runs" / out / "metrics.jsonl") if "loss" in row]
        expect(len(losses) == 2 and all(map(math.isfinite, losses)), f"two losses, not {losses}", printed)
    opened = "from transformers import AutoModel; print(type(AutoModel.from_pretrained('runs/one/encoder')).__name__)"
    expect("Dinov2Model" in user.python(opened), "an encoder that plain transformers opens")


def foreign_files(user: Stranger) -> None:
    """Files of the user's that are called like our packages are never run, and do not stop the commands."""
    script, folder = user.folder / "beside a train.py", user.folder / "beside all names"
    for file in (script / "train.py", *(folder / name for name in FOREIGN)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(MARK)
    film = next((user.folder / "phantoms" / "images").iterdir())
    user.python(f"import cxr; print(cxr.__version__, cxr.read({str(film)!r}))", cwd=script)
    user("cxr", "generate", film, cwd=folder)
    # By its name a launch file is found wherever the package lies.
    words = ["--config_file", "ddp", "--processes", "1", "--recipe", "mini", "--data", "../phantoms/images"]
    user(
        "cxr",
        "pretrain",
        *words,
        "--batch_size",
        "2",
        "--max_steps",
        "1",
        "--out",
        "../runs/foreign",
        cwd=folder,
    )
    marks = sorted(path.name for path in user.folder.rglob("*.was_run"))
    expect(not marks, f"none of the user's files to be run, but found {', '.join(marks)}")


STEPS: tuple[Callable[[Stranger], None], ...] = (findings, demo, pretraining, foreign_files)


def main(argv: list[str] | None = None) -> int:
    """Run all steps; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, help="the wheel to install")
    parser.add_argument(
        "--constraints", type=Path, metavar="FILE", help="versions to install (pip's --constraint)"
    )
    parser.add_argument(
        "--env", type=Path, metavar="DIR", help="environment to make, or to use again, and to keep"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cxr-smoke-") as temporary:
        folder = Path(temporary)
        try:
            commands = install(args.wheel, args.constraints, (args.env or folder / "env").absolute())
            user = Stranger(commands, folder)
            print("\n# the wheel")
            it_is_the_wheel(user, args.wheel.name.split("-")[1])
            for step in STEPS:
                print(f"\n# {step.__name__.replace('_', ' ')}")
                step(user)
        except Failed as error:
            print(f"\nFAILED: {error}")
            return 1
    print("\nthe wheel works without the checkout")
    return 0


if __name__ == "__main__":
    sys.exit(main())
