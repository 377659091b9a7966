"""Features of a folder of X-rays, in safetensors files: CLS, and the patches if asked for.

    out/embed.json             what they were made with
    out/index.jsonl            one line an image: its path and its row in which file, or why it could not be used
    out/features-00000.safetensors   cls (N, C), patches (N, P, C)

An interrupted run goes on where it stopped. A file is written under another name and renamed before its rows enter the
index, so that the index never promises what is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from encoder.errors import UserError
from encoder.files import whole_lines
from encoder.frozen import Encoder
from encoder.radiograph import InputError, Limits, read

ABOUT, INDEX = "embed.json", "index.jsonl"
PER_FILE = 1024  # images; a sixteenth of it with patches: 400 MB of a ViT-B at 518 px
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class EmbedError(UserError, ValueError):
    """Features that cannot be added to what is already there; the message says why."""


def done(out: Path) -> dict[str, dict]:
    """The lines of the index by path; a last line that was cut off is forgotten (and cut away)."""
    index = out / INDEX
    if not index.is_file():
        return {}
    return {row["path"]: row for row in map(json.loads, whole_lines(index).splitlines())}


@torch.inference_mode()
def embed(
    paths: Sequence[str],
    encoder: Encoder,
    out: Path,
    *,
    about: dict,
    patches: bool = False,
    dtype: str = "fp32",
    batch_size: int = 16,
    per_file: int | None = None,
    limits: Limits | None = None,
) -> Iterator[dict]:
    """Add features of the images that `out` does not have yet; yields their lines of the index as files are completed.

    `about` says which encoder it is; with the other choices it is kept in embed.json. Raises EmbedError if `out` was
    made with others.
    """
    per_file = per_file or (PER_FILE // 16 if patches else PER_FILE)
    out.mkdir(parents=True, exist_ok=True)
    about = {**about, "preprocess_sha256": encoder.preprocessing.sha256, "patches": patches, "dtype": dtype}
    _agree(out / ABOUT, about)
    known = done(out)
    number = 1 + max((int(row["file"][9:14]) for row in known.values() if "file" in row), default=-1)
    remaining = (path for path in dict.fromkeys(paths) if path not in known)
    while several := list(islice(remaining, per_file)):
        file = f"features-{number:05d}.safetensors"
        rows, tensors = _features(several, encoder, patches, DTYPES[dtype], batch_size, limits)
        if tensors["cls"].shape[0]:
            part = out / f"{file}.part"
            save_file(tensors, part)
            part.replace(out / file)
            number += 1
        lines = [{**row, "file": file} if "row" in row else row for row in rows]
        with (out / INDEX).open("a", encoding="utf-8") as index:
            index.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        yield from lines


def _agree(path: Path, about: dict) -> None:
    if not path.is_file():
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key in {**earlier, **about} if earlier.get(key) != about.get(key)]
    if other:
        said = ", ".join(f"{key} {earlier.get(key)} (now {about.get(key)})" for key in other)
        raise EmbedError(f"{path.parent} holds features made with {said}; choose another folder")


def _features(
    paths: Sequence[str], encoder: Encoder, patches: bool, dtype, batch_size: int, limits
) -> tuple[list[dict], dict[str, Tensor]]:
    """-> lines of the index, in the order of paths, and the features of those that could be read."""
    parameter = next(encoder.parameters(), torch.empty(0))
    rows: list[dict] = []
    cls, grids = [torch.empty(0, encoder.width, dtype=dtype)], []
    remaining = iter(paths)
    count = 0
    while several := list(islice(remaining, batch_size)):
        images = []
        for path in several:
            try:
                images.append(encoder.preprocessing(read(path, limits).pixels))
                rows.append({"path": path, "row": count})
                count += 1
            except InputError as error:
                rows.append({"path": path, "error": {"code": error.code, "message": str(error)}})
        if images:
            x_BCHW = torch.stack(images).to(parameter.device, parameter.dtype)
            tokens = encoder(x_BCHW)
            cls.append(tokens.cls_BC.to("cpu", dtype))
            grids += [tokens.patches_BPC.to("cpu", dtype)] if patches else []
    tensors = {"cls": torch.cat(cls)}
    if grids:
        tensors["patches"] = torch.cat(grids)
    return rows, tensors


def read_features(out: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(path, {"cls": (C,), "patches": (P, C)}) of every image, a file at a time."""
    from safetensors import safe_open

    by_file: dict[str, list[dict]] = {}
    for row in done(out).values():
        if "file" in row:
            by_file.setdefault(row["file"], []).append(row)
    for file, rows in by_file.items():
        with safe_open(out / file, "pt") as tensors:
            for row in rows:
                yield row["path"], {name: tensors.get_slice(name)[row["row"]] for name in tensors.keys()}  # noqa: SIM118
