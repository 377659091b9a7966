"""Models by name: a directory, one that is shipped, or one on the hub."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from encoder.errors import ModelError, did_you_mean
from encoder.files import no_file, sha256_of

# Of the packages around this one the folders alone are known, and nothing is imported.
SHIPPED = {"mini": Path(__file__).parents[1] / "vlm" / "mini"}
# Nothing pickled, no code.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
# Letters of a path, on any system.
LONGEST_NAME = 4096
# What a training writes first into its folder.
RECORD = "run.json"
# Where trainings write in all examples; nobody on the hub is called so.
RUNS = "runs"
HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")


def plain_files(folder: Path) -> Path:
    """Return the folder of a model. Raises ModelError for an entry that is a pipe, a device or a link to nowhere: it
    would be waited for, or count as not there."""
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if not entry.exists():
            raise ModelError(f"{entry} is a link to nowhere; restore the file")
        if problem := no_file(entry):
            raise ModelError(problem)
    return folder


def resolve(name: str | Path, what: str = "model", others: str = "") -> Path:
    """Return the local directory of a model.

    Args:
        name: a directory, the name of a shipped model, or a hub id (owner/name), whose files are fetched once.
        what: what it is called in messages.
        others: words for what else the caller would have accepted, each with "nor" before and a comma after it.

    Raises:
        ModelError: there is none; the message says whether the name is misspelt, the hub cannot be reached, or it
            gives the model only to those who accept its terms.
    """
    if folder := here(name, what, others):
        return folder
    name = str(name)
    try:
        return _from_hub(name)
    # The hub's client lets through whatever its network library raises, and changes that library between versions.
    except Exception as error:
        raise ModelError(f"{name} is not a directory here, and {_why(error, name)}") from error


def here(name: str | Path, what: str = "model", others: str = "") -> Path | None:
    """Return the directory of a model that is on this machine, None for one that only the hub can have. The hub is not
    asked.

    The arguments are those of `resolve`. Raises ModelError for a name that neither a directory nor the hub can have,
    and for a path where there is nothing: owner/name is one if the folder `owner` is here.
    """
    if not str(name).strip():
        raise ModelError(f"the name of the {what} is empty")
    if not isinstance(name, str | Path):
        raise ModelError(f"the name of a {what} is a text or a path, not {type(name).__name__}")
    if len(str(name)) > LONGEST_NAME or "\0" in str(name):
        raise ModelError(f"no {what} has a name of {len(str(name))} letters that begins {str(name)[:40]!r}")
    if Path(name).is_dir():
        return plain_files(Path(name))
    name = str(name)
    if name in SHIPPED:
        if not SHIPPED[name].is_dir():
            raise ModelError(
                f"the shipped model is missing: {SHIPPED[name]} does not exist; reinstall, or run `make {name}`"
            )
        return SHIPPED[name]
    if Path(name).is_file():
        raise ModelError(f"{name} is a file, where a directory is expected; give {Path(name).parent}")
    nothing = f"{name}: no such {'file or folder' if others else 'folder'}"
    if HUB_ID.fullmatch(name):
        owner = name.partition("/")[0]
        if owner == RUNS:
            raise ModelError(f"{nothing}{_near(name)}")
        if Path(owner).is_dir():
            hub = f"; for a model of that name on the hub, work where there is no folder {owner}"
            raise ModelError(f"{nothing}{_near(name) or hub}")
        return None
    if any(separator in name for separator in "/\\"):
        raise ModelError(f"{nothing}, and a hub id has the form owner/name{_near(name)}")
    shipped = "".join(f"nor {known!r}, " for known in SHIPPED)
    raise ModelError(
        f"no {what} {name!r}: it is neither a directory, {shipped}{others}nor a hub id (owner/name){_near(name)}"
    )


@cache
def _from_hub(name: str) -> Path:
    """Ask the hub once in a process; what failed is tried again."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=HUB_FILES))


def _why(error: BaseException, name: str) -> str:
    """Say why the hub did not give a model: by the first of an error and its causes that tells."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)

    def is_there(kind: type | tuple[type, ...]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if is_there(GatedRepoError):
        return (
            f"the hub gives it only to those who accept its terms: do that at https://huggingface.co/{name}, then "
            "log in here (hf auth login)"
        )
    if is_there((RepositoryNotFoundError, HFValidationError)):
        return (
            f"the hub has none that you may see: check the spelling, or log in if it is private (hf auth login)"
            f"{_near(name)}"
        )
    if is_there(OfflineModeIsEnabled) or _offline():
        return f"HF_HUB_OFFLINE is set, and it has not been fetched before: unset it, or give a directory{_near(name)}"
    answers = [cause for cause in causes if isinstance(cause, HfHubHTTPError)]
    if answers and (status := getattr(answers[0].response, "status_code", None)):
        return f"the hub answered with an error ({status}): try again later, or give a directory{_near(name)}"
    return (
        f"the hub cannot be reached ({type(causes[-1]).__name__}): check the network and its proxy, or give a directory"
        f"{_near(name)}"
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _near(name: str) -> str:
    """`; did you mean X?` of shipped models and of the directories beside where `name` would be, or nothing."""
    beside = Path(name).parent
    try:
        folders = [str(path) for path in beside.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        folders = []
    return did_you_mean(name, [*SHIPPED, *folders])


def weights_files(folder: str | Path) -> list[Path]:
    """Return a directory's safetensors files of weights. Raises ModelError if there are none."""
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files and (Path(folder) / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is an adapter; give the model it belongs to, or a merged one")
    if not files:
        raise ModelError(
            f"{folder} holds no model.safetensors (pickled weights are not read){of_a_run(folder)}"
        )
    return files


def weights_sha256(folder: str | Path) -> str:
    """Return the digest of a directory's safetensors files. Raises ModelError if there are none."""
    return sha256_of(*weights_files(folder))


def of_a_run(folder: str | Path) -> str:
    """Say where in the folder of a training its model lies, or that it is not finished; nothing if it is not such a
    folder."""
    parts = ("encoder", "merged", "adapter")
    there = [str(Path(folder) / part) for part in parts if any((Path(folder) / part).glob("*config.json"))]
    if there:
        return f"; it is the folder of a training: give {' or '.join(there)}"
    if (Path(folder) / RECORD).is_file():
        return "; it is the folder of a training that is not finished: run the same command again to resume"
    return ""
