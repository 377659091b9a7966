"""What the JSON files of a model's folder may hold, told of by file and field before memory is taken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encoder.errors import ModelError, first_line

# Bytes of the largest such file.
LARGEST = 200_000_000
# Sizes in a configuration, which are whole numbers above 0.
SIZES = (
    "hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "patch_size", "image_size", "num_channels", "max_position_embeddings",
    "embed_dim", "depth", "num_heads", "projector_depth", "projector_n_layers", "grid", "reduction",
    "img_size", "image_seq_length",
)  # fmt: skip
# Of which height and width may differ.
PAIRS = ("patch_size", "image_size", "img_size")
# Other numbers that a model divides by, or whose power or root it takes.
ABOVE_ZERO = ("mlp_ratio", "layer_norm_eps", "rms_norm_eps", "rope_theta")
# Names of functions, of those that transformers knows.
NAMED = ("hidden_act", "hidden_activation", "projector_hidden_act", "rope_type")
# Fields that a model of this size needs at least as many numbers for.
COSTLY = ("hidden_size", "intermediate_size", "vocab_size", "embed_dim")
DEPTHS = ("num_hidden_layers", "depth", "projector_depth", "projector_n_layers")
MOST = 2**31
# More pixels a side than any encoder takes; a picture of so many takes gigabytes.
MOST_PIXELS = 16384


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
        raise ModelError(f"{path} cannot be read: it holds {shown(row)} instead of fields; restore the file")
    return row


class _Odd(float):
    """NaN or an infinity in a JSON file."""

    def __new__(cls, word: str) -> _Odd:
        return super().__new__(cls, float(word.replace("Infinity", "inf")))


def whole(least: int, most: int = MOST) -> Callable[[Any], str | None]:
    """Make a check for integers from `least` up to, not including, `most`; it returns None, or what is
    accepted."""

    def check(value: Any) -> str | None:
        fine = isinstance(value, int) and not isinstance(value, bool) and least <= value < most
        return None if fine else f"a whole number from {least} to {most - 1}"

    return check


def number(above: float = -math.inf) -> Callable[[Any], str | None]:
    """Make a check for finite numbers above `above`; it returns None, or what is accepted."""

    def check(value: Any) -> str | None:
        fine = isinstance(value, int | float) and not isinstance(value, bool) and above < value < math.inf
        return None if fine else "a number" + (f" above {above:g}" if above > -math.inf else "")

    return check


def _side(value: Any) -> str | None:
    """Return a side of an image in pixels, or a mapping of such sides."""
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
    """Check that `value` is a string. Returns None, or what is accepted."""
    return None if isinstance(value, str) else "a text"


def truth(value: Any) -> str | None:
    """Check that `value` is a bool. Returns None, or what is accepted."""
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
            raise ModelError(f"{path}: {name} must be {wanted}, not {shown(row[name])}")


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
    for where, field, value in walk(row):
        if isinstance(value, _Odd) and math.isnan(value):
            raise ModelError(f"{path}: {where}{field} is NaN, which is not a number; restore the file")
        if field in NAMED and value is not None and (wanted := _function(field, value)):
            raise ModelError(f"{path}: {where}{field} must be {wanted}, not {shown(value)}")
        if field not in (*SIZES, *ABOVE_ZERO) or (value is None and field not in COSTLY):
            continue
        good = number(0) if field in ABOVE_ZERO else whole(1)
        for one in value if isinstance(value, list) and field in PAIRS else [value]:
            if wanted := good(one):
                raise ModelError(f"{path}: {where}{field} must be {wanted}, not {shown(value)}")
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
            f"{path}: model_type must be a text, not {shown(kind)}; is it a model of transformers?"
        )
    return row


def _function(field: str, name: Any) -> str | None:
    """Say what is accepted unless transformers knows a function of this name: an activation, or how rotary positions
    are stretched."""
    if field == "rope_type":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        # the first does not stretch; the other, of images' positions, is read as the first
        known = {"default", "mrope", *ROPE_INIT_FUNCTIONS}
    else:
        from transformers.activations import ACT2FN

        known = set(ACT2FN)
    return None if isinstance(name, str) and name in known else f"one of {', '.join(sorted(known))}"


def walk(row: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (path of the enclosing mappings as "a.b.", field, value) of every leaf of nested mappings."""
    for field, value in row.items():
        if isinstance(value, dict):
            yield from walk(value, f"{where}{field}.")
        else:
            yield where, field, value


def _parts(row: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield where, row
    for field, value in row.items():
        if isinstance(value, dict):
            yield from _parts(value, f"{where}{field}.")


def shown(value: Any) -> str:
    """Return a value for a message: never longer than a line, nor an integer of thousands of digits."""
    if isinstance(value, int) and abs(value) > 10**40:
        return "an integer of over 40 digits"
    said = repr(value)
    return said if len(said) <= 160 else said[:157] + "..."


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
