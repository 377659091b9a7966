"""Directories of models: here, or on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from encoder.errors import ModelError
from encoder.files import sha256_of

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # nothing pickled, no code


def fetched(name: str | Path, what: str = "model", others: str = "") -> Path:
    """A directory, or a hub id (owner/name) -> a local directory. `others` are words for what else it may be. Raises
    ModelError if there is none."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or str(name).startswith("."):
        raise ModelError(
            f"no {what} {str(name)!r}: it is neither a directory, {others}nor a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=HUB_FILES))
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is given only to those who accept its terms: do that at https://huggingface.co/{name}, then log "
            "in here (hf auth login)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name} is no directory here, and the hub did not give it: {type(error).__name__}"
        ) from error


def weights_sha256(folder: str | Path) -> str:
    """Return the digest of a directory's safetensors files. Raises ModelError if there are none."""
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no model.safetensors (pickled weights are not read)")
    return sha256_of(*files)
