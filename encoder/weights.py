"""What the headers of a model's safetensors files say, checked against config.json before memory is taken. Nothing here
reads a weight but `check_numbers`, which passes once over those that are loaded.

The format of safetensors: 8 bytes with the length of the header (little endian), the header (JSON: name -> dtype,
shape, data_offsets), then the numbers of all tensors without gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from encoder.errors import ModelError
from encoder.fields import COSTLY, DEPTHS, config_is_blamed, read_config, read_object, shown, walk, whole
from encoder.hub import weights_files

if TYPE_CHECKING:
    from torch import Tensor, nn

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Bytes of a number of each type.
WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
# Integers that older versions of transformers saved beside the weights.
COUNTED = re.compile(r"(?:^|\.)(?:position_ids|num_batches_tracked)$")
# safetensors' own limit of a header, in bytes.
LONGEST = 100_000_000


class Stored(NamedTuple):
    """A tensor as the header of its file has it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def check_config(folder: Path, stored: Mapping[str, Stored], types: bool = True) -> dict[str, Any]:
    """Compare the sizes in config.json with what the headers of the weights hold, so that nothing is built that the
    files cannot fill, and `types` of weights; returns the configuration. Raises ModelError."""
    row, path = read_config(folder), folder / "config.json"
    numbers = sum(math.prod(tensor.shape) for tensor in stored.values())
    layers = 1 + max((int(n) for name in stored for n in re.findall(r"\.(\d{1,9})\.", name)), default=0)
    for where, field, value in walk(row):
        if field in DEPTHS and isinstance(value, int):
            most = len(stored) if field.startswith("projector") else layers
            if value > most:
                raise ModelError(
                    f"{path}: {where}{field} is {value}, but the weights beside it hold {most} layers"
                )
        if field in COSTLY and isinstance(value, int) and value > numbers:
            raise ModelError(
                f"{path}: {where}{field} is {value}, but the weights beside it hold {numbers} numbers in all"
            )
    if types and "quantization_config" not in row:
        check_types(stored)
    return row


def read_header(file: Path) -> dict[str, Stored]:
    """Read name, type and shape of each tensor of a safetensors file from its header alone. Raises ModelError where
    the header is not one, or speaks of other bytes than the file has."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == b"version ":
                raise ModelError(
                    f"{file} cannot be read: it is a pointer of Git LFS, not the weights; use git lfs pull"
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if length < 2 or length > LONGEST:
                raise ModelError(f"{file} cannot be read: it is not a safetensors file; fetch it anew")
            if length > size - 8:
                raise _cut_off(file, size, 8 + length)
            raw = stream.read(length)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    try:
        row = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(f"{file} cannot be read: its header is not JSON; fetch it anew") from None
    if not isinstance(row, dict):
        raise ModelError(f"{file} cannot be read: its header holds no names; fetch it anew")
    row.pop("__metadata__", None)
    found, places = {}, []
    for name, about in row.items():
        found[name], place = _stored(file, name, about)
        places.append((*place, name))
    end = 0
    for begins, ends, name in sorted(places):
        if begins != end:
            what = "overlap" if begins < end else "leave a gap before"
            raise ModelError(f"{file}: the header's places {what} tensor {shown(name)}; fetch it anew")
        end = ends
    if 8 + length + end > size:
        raise _cut_off(file, size, 8 + length + end)
    if 8 + length + end < size:
        raise ModelError(
            f"{file} has {size} bytes, but its header speaks of {8 + length + end}; fetch it anew"
        )
    return found


def _cut_off(file: Path, size: int, wanted: int) -> ModelError:
    return ModelError(f"{file} cannot be read: it is cut off, with {size} bytes of {wanted}; fetch it anew")


def _stored(file: Path, name: str, about: Any) -> tuple[Stored, tuple[int, int]]:
    about = about if isinstance(about, dict) else {}
    dtype, shape, place = about.get("dtype"), about.get("shape"), about.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise ModelError(f"{file}: tensor {shown(name)} is of type {shown(dtype)}, which is unknown")
    if not isinstance(shape, list) or any(whole(0, 2**60)(n) for n in shape):
        raise ModelError(f"{file}: tensor {shown(name)} has {shown(shape)} for a shape")
    if not isinstance(place, list) or len(place) != 2 or any(whole(0, 2**62)(n) for n in place):
        raise ModelError(
            f"{file}: tensor {shown(name)} has data_offsets {shown(place)}, not a range of bytes"
        )
    wanted, held = math.prod(shape) * WIDTHS[dtype], place[1] - place[0]
    if wanted != held:
        raise ModelError(
            f"{file}: tensor {shown(name)} of shape {shape} takes {wanted} bytes, and its header gives it {held}"
        )
    return Stored(file, dtype, tuple(shape)), (place[0], place[1])


def stored_in(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a model's folder by name, from the headers alone: of model.safetensors, or of the files
    that the index names. Raises ModelError where files, headers and index do not agree."""
    weights_files(folder)
    single, index = folder / SINGLE, folder / INDEX
    named = _index(index) if index.exists() else None
    if single.exists():
        headers = {SINGLE: read_header(single)}
    elif named is None:
        raise ModelError(f"{folder} has weights in parts, but neither {SINGLE} nor {INDEX}; fetch it")
    else:
        headers = {}
    for file in sorted(set((named or {}).values()) - headers.keys()):
        if not (folder / file).is_file():
            raise ModelError(f"{folder / file} does not exist, but {INDEX} names it; fetch it")
        headers[file] = read_header(folder / file)
    for name, file in (named or {}).items():
        if name not in headers[file]:
            raise ModelError(f"{index} names tensor {shown(name)}, which {file} does not hold; fetch it anew")
    used = [SINGLE] if single.exists() else list(headers)
    return {name: tensor for file in used for name, tensor in headers[file].items()}


def _index(path: Path) -> dict[str, str]:
    named = read_object(path).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ModelError(f"{path} has no weight_map of tensors and files; fetch it anew")
    for file in set(named.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{path} names {shown(file)}, which is not a safetensors file beside it")
    return named


def check_types(stored: Mapping[str, Stored]) -> None:
    """Raise ModelError for weights that are integers, as those of quantised models and of spoilt files are."""
    odd = [(n, t) for n, t in stored.items() if t.dtype not in FLOATS and not COUNTED.search(n)]
    if odd:
        name, tensor = odd[0]
        more = f" ({len(odd)} tensors are such)" if len(odd) > 1 else ""
        raise ModelError(
            f"{tensor.file}: tensor {shown(name)} is of type {tensor.dtype}{more}; weights are {', '.join(FLOATS)}"
        )


# What has been found to fit in this process, so that a model which is loaded again is not made twice for each time.
_FITTING: set[tuple] = set()


def check_fit(
    cls: Any, folder: Path, config: Any, stored: Mapping[str, Stored], part: bool = False, **options: Any
) -> None:
    """Compare names and shapes in the headers with those of a model of class `cls`, which is made without memory.

    Args:
        part: whether the weights may be those of a larger model, of which `cls` is a part.
        options: further arguments of `from_pretrained`, as key_mapping.

    Raises:
        ModelError: a tensor is missing, left over or of another shape; the message names file, tensor and shapes.
    """
    import torch

    with quiet_loading(), config_is_blamed(folder):
        cls = cls._model_mapping[type(config)] if hasattr(cls, "_model_mapping") else cls
        shapes = tuple((name, tensor.shape) for name, tensor in stored.items())
        asked = (cls, config.to_json_string(use_diff=False), shapes, part, repr(sorted(options.items())))
        if asked in _FITTING:
            return
        _, report = cls.from_pretrained(
            None,
            config=config,
            state_dict={n: torch.empty(t.shape, device="meta") for n, t in stored.items()},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map={"": "meta"},
            **options,
        )
    where = folder / (SINGLE if (folder / SINGLE).exists() else INDEX)
    if odd := sorted(report.get("mismatched_keys") or (), key=lambda row: row[0]):
        name, found, wanted = odd[0]
        file = stored[name].file if name in stored else where
        raise ModelError(
            f"{file}: the weights do not fit the configuration: tensor {name} has shape {list(found)}, where "
            f"config.json asks for {list(wanted)}{_more(odd)}"
        )
    if lost := sorted(report.get("missing_keys") or ()):
        raise ModelError(
            f"{where}: the weights do not fit the configuration: tensor {lost[0]} is missing{_more(lost)}"
        )
    if (left := sorted(report.get("unexpected_keys") or ())) and not part:
        file = stored[left[0]].file if left[0] in stored else where
        raise ModelError(
            f"{file}: the weights do not fit the configuration: tensor {left[0]} is left over{_more(left)}"
        )
    _FITTING.add(asked)


def _more(names: list[Any]) -> str:
    return f" ({len(names)} tensors are such)" if len(names) > 1 else ""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the bars and the tables of missing and unused weights that transformers prints while it loads, or while
    it is asked about weights that it does not load."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def check_numbers(model: nn.Module, folder: Path, stored: Mapping[str, Stored]) -> None:
    """Raise ModelError where a loaded weight is NaN or infinite: one pass over all of them; if there is one, a second
    over the files names it."""
    state = model.state_dict()
    odd = first_odd((name, x) for name, x in state.items() if not x.is_meta)
    if odd is None:
        return
    from safetensors import safe_open

    for file in sorted({tensor.file for tensor in stored.values()}):
        with safe_open(file, "pt") as tensors:
            names = [name for name, tensor in stored.items() if tensor.file == file]
            if found := first_odd((name, tensors.get_tensor(name)) for name in names):
                raise none_of_them(file, found)
    raise ModelError(
        f"{folder}: tensor {odd} holds numbers that {state[odd].dtype} has no place for; use bf16 or fp32"
    )


def none_of_them(file: Path, name: str) -> ModelError:
    """Return the error that says that a tensor of `file` holds NaN or an infinity."""
    return ModelError(
        f"{file}: tensor {shown(name)} holds numbers that are none (NaN or infinite); fetch it anew"
    )


def first_odd(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity."""
    for name, x in tensors:
        if x.is_floating_point() and x.numel():
            # NaN goes into both, an infinity into one; nothing of the tensor's size is made
            low, high = x.detach().aminmax()
            if not (math.isfinite(low) and math.isfinite(high)):
                return name
    return None
