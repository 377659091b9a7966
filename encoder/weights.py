"""What a model's folder says of itself, checked before memory is taken: its JSON files, and the headers of its
safetensors files. Nothing here reads a weight but `check_numbers`, which passes once over those that are loaded.

The format of safetensors: 8 bytes with the length of the header (little endian), the header (JSON: name -> dtype,
shape, data_offsets), then the numbers of all tensors without gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from encoder.errors import ModelError, first_line
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
# safetensors' own limit of a header, and ours of any other JSON file, in bytes.
LONGEST, LARGEST = 100_000_000, 200_000_000
# Sizes in a configuration, which are whole numbers above 0, or pairs of them.
SIZES = (
    "hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "patch_size", "image_size", "num_channels", "max_position_embeddings",
    "embed_dim", "depth", "num_heads", "projector_depth", "projector_n_layers", "grid", "reduction",
    "img_size", "image_seq_length",
)  # fmt: skip
# Other numbers that a model divides by, or whose power or root it takes.
ABOVE_ZERO = ("mlp_ratio", "layer_norm_eps", "rms_norm_eps", "rope_theta")
# Those of which a model with so many has at least as many numbers.
COSTLY = ("hidden_size", "intermediate_size", "vocab_size", "embed_dim")
DEPTHS = ("num_hidden_layers", "depth", "projector_depth", "projector_n_layers")
MOST = 2**31
# More pixels a side than any encoder takes; a picture of so many takes gigabytes.
MOST_PIXELS = 16384


class Stored(NamedTuple):
    """A tensor as the header of its file has it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


# --- JSON files -------------------------------------------------------------------------------------------------------


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises ModelError, which names the file, and the line if it is not
    JSON."""
    try:
        if path.stat().st_size > LARGEST:
            raise ModelError(
                f"{path} has {path.stat().st_size} bytes; no file of its kind has over {LARGEST}"
            )
        row = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: _Odd(word))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path} cannot be read: it is not UTF-8; restore the file") from None
    except RecursionError:
        raise ModelError(f"{path} cannot be read: its lists are nested too deep; restore the file") from None
    except ValueError as error:
        # json's own words for an integer of over 4,300 digits have advice that is not for users
        why = first_line(error).partition(";")[0]
        raise ModelError(f"{path} cannot be read: it is not JSON ({why}); restore the file") from None
    if not isinstance(row, dict):
        raise ModelError(f"{path} cannot be read: it holds {_shown(row)} instead of fields; restore the file")
    return row


class _Odd(float):
    """NaN or an infinity in a JSON file."""

    def __new__(cls, word: str) -> _Odd:
        return super().__new__(cls, float(word.replace("Infinity", "inf")))


def whole(least: int, most: int = MOST) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        fine = isinstance(value, int) and not isinstance(value, bool) and least <= value < most
        return None if fine else f"a whole number from {least} to {most - 1}"

    return check


def number(above: float = -math.inf) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        fine = isinstance(value, int | float) and not isinstance(value, bool) and above < value < math.inf
        return None if fine else "a number" + (f" above {above:g}" if above > -math.inf else "")

    return check


def _side(value: Any) -> str | None:
    """A side of an image in pixels, or a mapping of such sides."""
    sides = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    good = whole(1, MOST_PIXELS)
    fine = bool(sides) and all(side is None or good(side) is None for side in sides)
    return None if fine else f"pixels a side, from 1 to {MOST_PIXELS - 1}"


def _channels(above: float) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        entries = value if isinstance(value, list) else [value]
        fine = len(entries) in (1, 3) and all(number(above)(entry) is None for entry in entries)
        return None if fine else "one number or three" + (f", above {above:g}" if above > -math.inf else "")

    return check


def text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a text"


def truth(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _ids(value: Any) -> str | None:
    entries = value if isinstance(value, list) else [value]
    return (
        None if all(whole(0)(entry) is None for entry in entries) else "a token's number, or a list of them"
    )


def _token(value: Any) -> str | None:
    fine = isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))
    return None if fine else "a token's text"


# What the fields of the smaller files may hold, where they are given and not null.
FIELDS: dict[str, dict[str, Callable[[Any], str | None]]] = {
    "generation_config.json": {
        "max_new_tokens": whole(1), "max_length": whole(1), "min_length": whole(0), "num_beams": whole(1),
        "num_return_sequences": whole(1), "top_k": whole(0), "temperature": number(), "top_p": number(),
        "repetition_penalty": number(0), "length_penalty": number(), "no_repeat_ngram_size": whole(0),
        "do_sample": truth, "bos_token_id": _ids, "eos_token_id": _ids, "pad_token_id": _ids,
    },
    "tokenizer_config.json": {
        "bos_token": _token, "eos_token": _token, "unk_token": _token, "pad_token": _token,
        "model_max_length": number(0), "tokenizer_class": text,
    },
    "processor_config.json": {
        "patch_size": whole(1), "num_additional_image_tokens": whole(0), "image_token": text,
        "vision_feature_select_strategy": text,
    },
    "preprocessor_config.json": {
        "size": _side, "crop_size": _side, "image_mean": _channels(-math.inf), "image_std": _channels(0),
        "rescale_factor": number(0), "do_center_crop": truth, "cxr_full_range": truth, "cxr_mode": text,
    },
    "special_tokens_map.json": {}, "added_tokens.json": {}, "tokenizer.json": {},
}  # fmt: skip


def check_fields(
    path: Path, row: Mapping[str, Any], fields: Mapping[str, Callable[[Any], str | None]]
) -> None:
    """Raise ModelError for a field that holds what it cannot; null is a field that is not given."""
    for name, problem in fields.items():
        if row.get(name) is not None and (wanted := problem(row[name])):
            raise ModelError(f"{path}: {name} must be {wanted}, not {_shown(row[name])}")


def check_companions(folder: Path) -> None:
    """Raise ModelError for a file beside the weights (tokenizer, processor, generation) that is not JSON, or has a
    field of another kind."""
    for name, fields in FIELDS.items():
        if (folder / name).exists():
            check_fields(folder / name, read_object(folder / name), fields)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, with sizes that are sizes. Raises ModelError."""
    path = folder / "config.json"
    row = read_object(path)
    for where, field, value in _walk(row):
        if isinstance(value, _Odd) and math.isnan(value):
            raise ModelError(f"{path}: {where}{field} is NaN, which is not a number; restore the file")
        if field not in (*SIZES, *ABOVE_ZERO) or (value is None and field not in COSTLY):
            continue
        good = number(0) if field in ABOVE_ZERO else whole(1)
        for one in value if isinstance(value, list) else [value]:
            if wanted := good(one):
                raise ModelError(f"{path}: {where}{field} must be {wanted}, not {_shown(value)}")
    for where, part in _parts(row):
        heads, width = part.get("num_attention_heads"), part.get("hidden_size")
        if heads and isinstance(width, int) and not part.get("head_dim") and width % heads:
            raise ModelError(
                f"{path}: {where}num_attention_heads {heads} does not divide the hidden size {width}"
            )
        if heads and (few := part.get("num_key_value_heads")) and heads % few:
            raise ModelError(
                f"{path}: {where}num_key_value_heads {few} does not divide num_attention_heads {heads}"
            )
    kind = row.get("model_type")
    if not isinstance(kind, str) and "architecture" not in row:
        raise ModelError(
            f"{path}: model_type must be a text, not {_shown(kind)}; is it a model of transformers?"
        )
    return row


def check_config(folder: Path, stored: Mapping[str, Stored], types: bool = True) -> dict[str, Any]:
    """Compare the sizes in config.json with what the headers of the weights hold, so that nothing is built that the
    files cannot fill, and `types` of weights; returns the configuration. Raises ModelError."""
    row, path = read_config(folder), folder / "config.json"
    numbers = sum(math.prod(tensor.shape) for tensor in stored.values())
    layers = 1 + max((int(n) for name in stored for n in re.findall(r"\.(\d{1,9})\.", name)), default=0)
    for where, field, value in _walk(row):
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


def _walk(row: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str, Any]]:
    for field, value in row.items():
        if isinstance(value, dict):
            yield from _walk(value, f"{where}{field}.")
        else:
            yield where, field, value


def _parts(row: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield where, row
    for field, value in row.items():
        if isinstance(value, dict):
            yield from _parts(value, f"{where}{field}.")


def _shown(value: Any) -> str:
    """A value in a message: never longer than a line, nor an integer of thousands of digits."""
    if isinstance(value, int) and abs(value) > 10**40:
        return "an integer of over 40 digits"
    said = repr(value)
    return said if len(said) <= 160 else said[:157] + "..."


# --- safetensors ------------------------------------------------------------------------------------------------------


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
            raise ModelError(f"{file}: the header's places {what} tensor {_shown(name)}; fetch it anew")
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
        raise ModelError(f"{file}: tensor {_shown(name)} is of type {_shown(dtype)}, which is unknown")
    if not isinstance(shape, list) or any(whole(0, 2**60)(n) for n in shape):
        raise ModelError(f"{file}: tensor {_shown(name)} has shape {_shown(shape)}, which is not one")
    if not isinstance(place, list) or len(place) != 2 or any(whole(0, 2**62)(n) for n in place):
        raise ModelError(
            f"{file}: tensor {_shown(name)} has data_offsets {_shown(place)}, which are no place"
        )
    wanted, held = math.prod(shape) * WIDTHS[dtype], place[1] - place[0]
    if wanted != held:
        raise ModelError(
            f"{file}: tensor {_shown(name)} of shape {shape} takes {wanted} bytes, and its header gives it {held}"
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
            raise ModelError(
                f"{index} names tensor {_shown(name)}, which {file} does not hold; fetch it anew"
            )
    used = [SINGLE] if single.exists() else list(headers)
    return {name: tensor for file in used for name, tensor in headers[file].items()}


def _index(path: Path) -> dict[str, str]:
    named = read_object(path).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ModelError(f"{path} has no weight_map of tensors and files; fetch it anew")
    for file in set(named.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{path} names {_shown(file)}, which is not a safetensors file beside it")
    return named


def check_types(stored: Mapping[str, Stored]) -> None:
    """Raise ModelError for weights that are integers, as those of quantised models and of spoilt files are."""
    odd = [(n, t) for n, t in stored.items() if t.dtype not in FLOATS and not COUNTED.search(n)]
    if odd:
        name, tensor = odd[0]
        more = f" ({len(odd)} tensors are such)" if len(odd) > 1 else ""
        raise ModelError(
            f"{tensor.file}: tensor {_shown(name)} is of type {tensor.dtype}{more}; weights are {', '.join(FLOATS)}"
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

    with _no_bar(), config_is_blamed(folder):
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


@contextmanager
def config_is_blamed(folder: Path) -> Iterator[None]:
    """Turn what transformers raises at a configuration into a ModelError of one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError | AttributeError):
            why = f"{type(error).__name__} {why}"
        raise ModelError(f"{folder / 'config.json'} cannot be read: {why[:300]}") from error


def _more(names: list[Any]) -> str:
    return f" ({len(names)} tensors are such)" if len(names) > 1 else ""


@contextmanager
def _no_bar() -> Iterator[None]:
    """While transformers is asked about weights that it does not load."""
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
    return ModelError(
        f"{file}: tensor {_shown(name)} holds numbers that are none (NaN or infinite); fetch it anew"
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
