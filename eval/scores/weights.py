"""The weights of the clinical scores: what each needs, where it is looked for, whether it is there, and fetching.

They are looked for in one folder, `$CXR_WEIGHTS` or else `~/.cache/cxr/weights`, under the names by which their authors
publish them; copied there by hand they serve as well:

    chexbert/chexbert.pth, chexbert/bert-base-uncased/         CheXbert and its tokenizer
    radgraph/radgraph.tar.gz, radgraph/<its encoder>/          RadGraph; the encoder's tokenizer and configuration
    radgraph-xl/radgraph-xl.tar.gz, radgraph-xl/<its encoder>/
    distilroberta-base/                                        for BERTScore
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.scores.readers import ScoreError
from eval.scores.registry import NotComputed

SCORERS, BERT, ROBERTA = (
    "StanfordAIMI/RRG_scorers",
    "google-bert/bert-base-uncased",
    "distilbert/distilroberta-base",
)  # on the Hugging Face hub
FETCH = "cxr weights --fetch"
TOKENIZER_FILES = {
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
    "special_tokens_map.json",
}


@dataclass(frozen=True)
class Weights:
    """Name the files of one model. One of `weights` must be there, and is hashed, and all of `beside`."""

    name: str
    serves: tuple[str, ...]
    weights: tuple[str, ...]
    beside: tuple[str, ...]  # globs within its folder
    hub: tuple[tuple[str, str, str], ...]  # (repository, file, where to, within the folder)

    @property
    def is_radgraph(self) -> bool:
        """Tell whether this is one of RadGraph's models, which another library loads."""
        return self.name.startswith("radgraph")


def _radgraph(name: str, *serves: str) -> Weights:
    archive = f"{name}.tar.gz"
    return Weights(name, serves, (archive, "weights.th"), ("*/config.json",), ((SCORERS, archive, "."),))


MODELS = {
    w.name: w
    for w in (
        Weights(
            "chexbert",
            ("CheXbert F1", "CheXbert vector", "RadCliQ v0, v1"),
            ("chexbert.pth",),
            ("bert-base-uncased/vocab.txt",),
            (
                (SCORERS, "chexbert.pth", "."),
                (BERT, "vocab.txt", "bert-base-uncased"),
                (BERT, "tokenizer_config.json", "bert-base-uncased"),
            ),
        ),
        _radgraph("radgraph", "RadGraph F1 (radgraph)", "RadCliQ v0, v1"),
        _radgraph("radgraph-xl", "RadGraph F1 (radgraph-xl)"),
        Weights(
            "distilroberta-base",
            ("BERTScore", "RadCliQ v0, v1"),
            ("model.safetensors", "pytorch_model.bin"),
            ("config.json", "tokenizer*.json"),
            tuple(
                (ROBERTA, name, ".")
                for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
            ),
        ),
    )
}  # fmt: skip


def folder(chosen: str | Path | None = None) -> Path:
    """Return where weights are looked for: `chosen`, else `$CXR_WEIGHTS`, else the user's cache."""
    if chosen or os.environ.get("CXR_WEIGHTS"):
        return Path(chosen or os.environ["CXR_WEIGHTS"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr" / "weights"


@dataclass(frozen=True)
class FoundWeights:
    """Hold which files of one model are there."""

    model: Weights
    folder: Path
    weights: Path | None
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Tell whether no file is missing."""
        return not self.missing

    def sha256(self) -> str | None:
        """Return the SHA-256 of the weights, as signatures have it; for an archive, of the `weights.th` in it
        (it takes seconds)."""
        if self.weights is None or self.weights.suffixes[-2:] != [".tar", ".gz"]:
            return file_sha256(self.weights) if self.weights else None
        try:
            with tarfile.open(self.weights) as archive:
                member = next(m for m in archive if m.isfile() and Path(m.name).name == "weights.th")
                return hashlib.file_digest(archive.extractfile(member), "sha256").hexdigest()
        except (OSError, EOFError, StopIteration, tarfile.TarError):
            return None  # it is not such an archive; reading it says so


def find(name: str, chosen: str | Path | None = None) -> FoundWeights:
    """Look for the files of one of MODELS. Raises ScoreError for another name."""
    if name not in MODELS:
        raise ScoreError(f"no clinical model {name!r}; there are {', '.join(MODELS)}")
    model, place = MODELS[name], folder(chosen) / name
    present = [place / file for file in model.weights if (place / file).is_file()]
    missing = () if present else (model.weights[0],)
    missing += tuple(pattern for pattern in model.beside if not any(place.glob(pattern)))
    return FoundWeights(model, place, present[0] if present else None, missing)


def command_for(name: str, chosen: str | Path | None = None) -> str:
    """Return the command that fetches one of MODELS."""
    where = f" --folder {shlex.quote(str(chosen))}" if chosen else ""
    return f"cxr weights{where} --fetch {name}"


def state(name: str, chosen: str | Path | None = None, *, hashed: bool = True) -> dict[str, Any]:
    """Say for programs what there is of one of MODELS, and the command that brings what is missing (else None). With
    `hashed` the weights are read, which takes seconds."""
    found = find(name, chosen)
    return {
        "name": name,
        "serves": list(found.model.serves),
        "folder": str(found.folder),
        "complete": found.complete,
        "missing": list(found.missing),
        "sha256": found.sha256() if hashed else None,
        "command": None if found.complete else command_for(name, chosen),
    }


def not_computed(found: FoundWeights, chosen: str | Path | None = None) -> list[NotComputed]:
    """Return the scores that one model's missing files rule out, each with the command that fetches them."""
    reason = f"needs {found.model.name}/{found.missing[0]}"
    command = command_for(found.model.name, chosen)
    return [NotComputed(score, reason, command) for score in found.model.serves]


def fetch(
    name: str, chosen: str | Path | None = None, progress: Callable[[str], None] | None = None
) -> FoundWeights:
    """Bring what is missing of one model from the Hugging Face hub.

    Raises ScoreError if the hub cannot be reached or refuses; what is already there stays.
    """
    from huggingface_hub import HfApi, hf_hub_download

    found = find(name, chosen)
    wanted = [
        (repository, file, found.folder / within)
        for repository, file, within in found.model.hub
        if not (file in found.model.weights and found.weights)
        and not (found.folder / within / file).is_file()
    ]
    try:
        for repository, file, place in wanted:
            if progress:
                progress(f"{repository}/{file}")
            hf_hub_download(repository, file, local_dir=place)
        if found.model.is_radgraph:
            repository = encoder_repository(find(name, chosen))
            place = found.folder / repository.rsplit("/", 1)[-1]
            offered = [] if any(place.glob("config.json")) else HfApi().list_repo_files(repository)
            for file in sorted(TOKENIZER_FILES.intersection(offered)):
                if progress:
                    progress(f"{repository}/{file}")
                hf_hub_download(repository, file, local_dir=place)
    except ScoreError:
        raise
    except Exception as error:  # of httpx, requests or the hub, by version
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ScoreError(
            f"{name}: the hub cannot be reached or refused ({message}). Copy the files to {found.folder} by hand: "
            + ", ".join(
                f"{file} of {repository}" + (f" into {within}/" if within != "." else "")
                for repository, file, within in found.model.hub
            )
            + (
                ", and the configuration and tokenizer of its encoder into a folder of that name"
                if found.model.is_radgraph
                else ""
            )
        ) from error
    return find(name, chosen)


def encoder_repository(found: FoundWeights) -> str:
    """Return the repository of the encoder that a RadGraph archive names in its configuration."""
    try:
        if found.weights.name == "weights.th":
            config = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
        else:
            with tarfile.open(found.weights) as archive:
                member = next(m for m in archive if m.isfile() and Path(m.name).name == "config.json")
                config = json.load(archive.extractfile(member))
        return config["dataset_reader"]["token_indexers"]["bert"]["model_name"]
    except (OSError, ValueError, KeyError, TypeError, StopIteration, tarfile.TarError) as error:
        raise ScoreError(f"{found.weights}: no RadGraph archive ({error or type(error).__name__})") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
