"""Features of a folder of X-rays, in safetensors files: CLS, and the patches if asked for.

    out/embed.json             what they were made with
    out/index.jsonl            one line an image: its path and its row in which file, or why it could not be used;
                               the size and time of the file, by which a changed one is noticed
    out/features-00000.safetensors   cls (N, C), patches (N, P, C)

An interrupted run resumes, and of two runs on one folder the second waits for the first (encoder/store.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from encoder.frozen import Encoder
from encoder.inputs import Inputs
from encoder.radiograph import Limits
from encoder.store import ROW, Line, Store, StoreError, TensorShards

ABOUT = "embed.json"
# Images a file; a sixteenth of it with patches: 400 MB of a ViT-B at 518 px.
PER_FILE = 1024
# What tells that a file is not the one whose features these are: bytes, nanoseconds.
STAMP = ("size", "mtime_ns")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def done(out: Path) -> dict[str, Line]:
    """Return the lines of the index by path."""
    return _store(out).rows()


def up_to_date(paths: Iterable[str], out: Path) -> set[str]:
    """Return those of `paths` that `out` has as they are now: files that have changed since are not among them."""
    return _up_to_date(dict.fromkeys(paths), done(out))


def _up_to_date(paths: Iterable[str], known: Mapping[str, Line]) -> set[str]:
    # Lines of earlier versions do not say what the file was.
    return {
        p for p in paths if p in known and (STAMP[0] not in known[p] or known[p].items() >= _stamp(p).items())
    }


def _stamp(path: str) -> dict[str, int | None]:
    try:
        about = Path(path).stat()
    except (OSError, ValueError):
        return dict.fromkeys(STAMP)
    return dict(zip(STAMP, (about.st_size, about.st_mtime_ns), strict=True))


def _store(out: Path) -> Store:
    return Store(out, "path", shard="{file}", stamp=STAMP, places=ROW)


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
) -> Iterator[Line]:
    """Add features of the images that `out` does not have yet, or has of an earlier content.

    Yields their lines of the index as files are completed.

    `about` says which encoder it is; with the other choices it is kept in embed.json. Raises StoreError if `out` was
    made with others, or its disk is too small.
    """
    per_file = per_file or (PER_FILE // 16 if patches else PER_FILE)
    about = {**about, "preprocess_sha256": encoder.preprocessing.sha256, "patches": patches, "dtype": dtype}
    store, kind = _store(out), DTYPES[dtype]
    with store.writing():
        store.agree(ABOUT, about)
        known = store.rows()
        wanted = dict.fromkeys(paths)
        there = _up_to_date(wanted, known)
        missing = [(path, path) for path in wanted if path not in there]
        numbers = encoder.width + patches * encoder.grid**2 * encoder.patch_width
        if no_room := store.no_room(numbers * kind.itemsize * len(missing)):
            hint = "--dtype fp16 halves them" if dtype == "fp32" else "choose another folder"
            raise StoreError(f"features of {len(missing)} images {no_room}; {hint}")
        shards = TensorShards(store, "features-{:05d}.safetensors", known, per_file)
        parameter = next(encoder.parameters(), torch.empty(0))
        for items in Inputs(missing, encoder.preprocessing, limits).batches(min(batch_size, per_file)):
            lines, good, tensors = [], [], {}
            for item in items:
                line: Line = {"path": item.key, **_stamp(item.key)}
                if item.error:
                    lines.append({**line, "error": {"code": item.error.code, "message": str(item.error)}})
                else:
                    lines.append(line)
                    good.append(item.x)
            if good:
                tokens = encoder(torch.stack(good).to(parameter.device, parameter.dtype))
                tensors["cls"] = tokens.cls_BC.to("cpu", kind)
                if patches:
                    tensors["patches"] = tokens.patches_BPC.to("cpu", kind)
            yield from shards.add(lines, tensors)
        yield from shards.write()


def read_features(out: str | Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (path, {"cls": (C,), "patches": (P, C)}) of every image, a file at a time."""
    out, by_file = Path(out), defaultdict(list)
    for line in done(out).values():
        if "file" in line:
            by_file[line["file"]].append(line)
    for file, lines in by_file.items():
        with safe_open(out / file, "pt") as tensors:
            for line in lines:
                yield line["path"], {name: tensors.get_slice(name)[line["row"]] for name in tensors.keys()}  # noqa: SIM118
