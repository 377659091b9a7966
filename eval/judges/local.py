"""Metrics of other packages whose models lie in folders: what each needs, and how it is run without any download.

A package or a folder that is missing makes a score that is not computed, with the command that brings it. While a
package runs, the Hugging Face libraries are offline. Nothing that a package prints is shown: it may be of reports.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from eval.judges.panel import Judge, Missing, Opened, Panel, Tell, Verdicts, safe
from eval.scores import weights
from eval.scores.family import Reports
from eval.signature import version

DIGITS = 12
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
Run = Callable[[list[str], list[str], Tell], Sequence[float | None]]
"""References, predictions, progress -> a value each; None or NaN where there is none."""


@dataclass(frozen=True)
class Folder:
    """A folder below that of the judge: its name is that of the repository on the hub. `tokenizer` alone is needed of
    some, which have a vocabulary."""

    repository: str
    tokenizer: bool = False

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return self.repository.rpartition("/")[2]

    def there(self, place: Path) -> bool:
        """Tell whether the folder holds what is needed."""
        if self.tokenizer:
            return (place / "vocab.txt").is_file()
        return (place / "config.json").is_file() and bool(files_of(place))

    def command(self, place: Path) -> str:
        """Return the command that brings it."""
        only = " --include '*.txt' '*.json'" if self.tokenizer else ""
        return f"hf download {self.repository}{only} --local-dir {place}"


@dataclass(frozen=True)
class Package:
    """A package of others: how it is installed, the module that is used, its folders, and `make`, which returns what
    runs it: make(module, folders, device)."""

    distribution: str
    module: str
    folders: tuple[Folder, ...]
    make: Callable[[ModuleType, dict[str, Path], str], Run]
    nltk: bool = False


def judge_of(name: str, title: str, package: Package, **choices: str) -> Judge:
    """Return the judge that a package is. `choices` go into its signature."""

    def opened(panel: Panel) -> Opened:
        _installed(package)
        places = _found(package, weights.folder(panel.weights) / name)
        if package.nltk:
            _nltk()
        try:
            with alone():
                run = package.make(importlib.import_module(package.module), places, device_of(panel.device))
        except Missing:
            raise
        except ModuleNotFoundError as error:
            lack = (error.name or package.distribution).partition(".")[0]
            raise Missing(f"needs the package {lack}", f"pip install {lack}") from None
        # A package of others may break in any way; nothing has seen a report yet.
        except Exception as error:
            raise Missing(
                f"{package.distribution} cannot be loaded ({type(error).__name__})",
                f"pip install {package.distribution}",
            ) from error
        about = {
            "package": f"{package.distribution}-{version(package.distribution)}", **choices,
            "ckpt": "+".join(sha256(places[f.name])[:DIGITS] for f in package.folders if not f.tokenizer),
        }  # fmt: skip

        def judge(reports: Reports, tell: Tell) -> Verdicts:
            tell(0, len(reports))
            try:
                with alone():
                    values = run(list(reports.references), list(reports.predictions), tell)
            # Its message may hold a report.
            except Exception as error:
                raise Missing(
                    f"{package.distribution} failed on these reports ({type(error).__name__})",
                    f"pip install --upgrade {package.distribution}",
                ) from None
            values_N = np.array([np.nan if v is None else v for v in values], np.float64)
            if values_N.shape != (len(reports),):
                raise Missing(
                    f"{package.distribution} gave {values_N.size} values for {len(reports)} reports",
                    f"pip install --upgrade {package.distribution}",
                )
            return Verdicts(values_N[:, None], ~np.isnan(values_N), {k: safe(v) for k, v in about.items()})

        return judge

    return Judge(name, title, opened)


def _installed(package: Package) -> None:
    top = package.module.partition(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        raise Missing(f"needs the package {package.distribution}", f"pip install {package.distribution}")


def _found(package: Package, below: Path) -> dict[str, Path]:
    places = {folder.name: below / folder.name for folder in package.folders}
    lacking = [folder for folder in package.folders if not folder.there(places[folder.name])]
    if lacking:
        names = ", ".join(f"{below.name}/{folder.name}" for folder in lacking)
        raise Missing(f"needs {names}", "; ".join(f.command(places[f.name]) for f in lacking))
    return places


def _nltk() -> None:
    """Raise Missing where a package would download NLTK's sentence models."""
    import nltk

    for name in ("punkt", "punkt_tab"):
        try:
            nltk.data.find(f"tokenizers/{name}")
        except (LookupError, OSError):
            raise Missing(f"needs NLTK's {name}", "python -m nltk.downloader punkt punkt_tab") from None


def device_of(device: str | None) -> str:
    """Return the device that was chosen, else a GPU if there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def no_code(folder: Path) -> None:
    """Raise Missing if the files of a model name Python code, which a package would run."""
    for file in folder.glob("*.json"):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and "auto_map" in content:
            raise Missing(
                f"{folder.name}/{file.name} names Python code, which is not run",
                "run the package itself, and bring its values by cxr score --values FILE",
            )


def files_of(folder: Path) -> list[Path]:
    """Return the weights in a folder: of safetensors, else of PyTorch."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def sha256(folder: Path) -> str:
    """Return a SHA-256 of the weights in a folder; of one file it is that file's."""
    each = [weights.file_sha256(file) for file in files_of(folder)]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep Hugging Face libraries and NLTK from the network, and what a package prints and logs to itself."""
    import nltk

    constants = importlib.import_module("huggingface_hub.constants")
    before = {name: os.environ.get(name) for name in OFFLINE}
    level = logging.root.manager.disable
    with (
        replaced(constants, "HF_HUB_OFFLINE", True),
        # radeval calls it whenever it is imported
        replaced(nltk, "download", lambda *names, **choices: False),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value for the time of the block."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
