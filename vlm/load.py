"""Loading findings models: merged, adapters with their base, MAIRA-2's own."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForImageTextToText,
    LlavaProcessor,
)

from encoder.errors import first_line, reading
from encoder.files import sha256_of
from encoder.hub import weights_sha256
from encoder.towers import loading
from encoder.transforms import Preprocessing
from vlm.adapters import check_adapters, quiet_peft
from vlm.errors import AskedError, ModelError, ModelWarning
from vlm.hub import resolve
from vlm.model import DTYPES, META, FindingsModel, Meta, attention_name
from vlm.processor import image_processor

STRETCHED = (
    "{folder} was trained while 8-bit pictures (PNG, JPEG) were stretched to their full range. They are now read as "
    "they are, as plain transformers reads them, so its answers to them may change. DICOM and 16-bit pictures are read "
    'as before. To go on stretching, set "cxr_full_range": true in preprocessor_config.json (of an adapter: its '
    "base's). To accept the new rule for good, write the model anew with `cxr export`."
)


def usable(device: str | torch.device | None) -> torch.device:
    """Return the device of that name, by default a GPU where there is one. Raises ModelError where it cannot be used:
    it is unknown or absent, torch was built without it, or it holds no numbers."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError, TypeError) as error:
        # the first sentence: what follows lists all devices that torch has ever known, or its backends
        why = first_line(error).partition(". ")[0].partition(" device type at start")[0]
        raise ModelError(
            f"device {str(device)!r} cannot be used here: {why}; accepted are cpu, cuda, cuda:1, ..."
        ) from None
    return found


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a type of weights, also by its name here ("bf16") or torch's ("bfloat16"); None is as they are. Raises
    AskedError for what no weights can have."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        found = getattr(torch, dtype, None)
    else:
        found = DTYPES[dtype] if isinstance(dtype, str) else dtype
        if found is None:
            return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise AskedError(f"dtype={dtype!r} is not a type of weights; there are {', '.join(DTYPES)}")
    return found


def load_model(
    name: str | Path,
    *,
    base: str | Path | None = None,
    attention: str = "cxr",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    trainable: bool = False,
) -> FindingsModel:
    """A merged directory, an adapter directory (with its base), a hub id, or "mini"; fp32 unless `dtype` is given. Also
    a checkpoint in the format of microsoft/maira-2, which is read into a model of ours.

    Raises ModelError if an adapter's base or preprocessing is not the one it was trained with, if tensors are missing
    or left over, or if the directory holds no findings model.
    """
    folder = resolve(name)
    adapter = (folder / "adapter_config.json").is_file()
    if base is not None and not adapter:
        raise ModelError(f"{name} is not an adapter: it has no base, so leave {base} out")
    if adapter:
        model = _load_adapter(folder, Meta.load(folder), base, attention, dtype, trainable)
    else:
        model = _load_whole(folder, attention, dtype)
    if device is not None:
        model.llava.to(device)
    model.llava.train(trainable)
    return model


def is_maira2(folder: Path) -> bool:
    """Whether config.json says that a directory is in MAIRA-2's format."""
    path = folder / "config.json"
    with reading(folder, "config.json"):
        row = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return isinstance(row, dict) and row.get("model_type") == "maira2"


def is_findings_model(folder: Path) -> bool:
    """Whether `load` takes a directory for one of its own kinds."""
    return (folder / META).is_file() or is_maira2(folder)


def _load_whole(folder: Path, attention: str, dtype: torch.dtype | None, tell: bool = True) -> FindingsModel:
    if is_maira2(folder):
        from vlm import maira2

        return maira2.load(folder, attention=attention, dtype=dtype)
    meta = Meta.load(folder)
    with reading(folder, "its preprocessing"):
        preprocessing = Preprocessing.from_pretrained(folder)
    meta = _digest_checked(folder, meta, preprocessing, "its preprocessor_config.json", tell)
    import vlm.llava  # noqa: F401  (which makes cxr_llava known)

    revision, name = weights_sha256(folder), attention_name(attention)
    with loading(folder, "its weights"):
        llava, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            attn_implementation=name,
            output_loading_info=True,
        )
    odd = {k: sorted(v) for k, v in report.items() if k in ("missing_keys", "unexpected_keys") and v}
    if odd:
        kinds = (f"{len(names)} {kind.replace('_', ' ')}, first {names[0]}" for kind, names in odd.items())
        raise ModelError(f"{folder}: the weights do not fit the configuration: {'; '.join(kinds)}")
    with reading(folder, "its tokenizer or processor"):
        processor = LlavaProcessor.from_pretrained(folder)
    # what an earlier version wrote there may say less than the preprocessing
    processor.image_processor = image_processor(preprocessing)
    return FindingsModel(llava, processor, preprocessing, meta, revision=revision)


def _load_adapter(folder, meta: Meta, base, attention, dtype, trainable) -> FindingsModel:
    from peft import PeftModel, get_peft_model_state_dict

    given = base if base is not None else _base_of(folder, meta)
    base_dir = resolve(given)
    digest = weights_sha256(base_dir)
    if digest != meta.base_sha256:
        raise ModelError(
            f"{folder} was trained on {meta.base} with weights {meta.base_sha256[:12]}, but {given} holds weights "
            f"{digest[:12]}"
        )
    # a base may be older than its adapter, whose digest says what pictures the two learned from
    model = _load_whole(base_dir, attention, dtype, tell=False)
    meta = _digest_checked(folder, meta, model.preprocessing, str(given))
    with quiet_peft(), reading(folder, "its adapter"):
        llava = PeftModel.from_pretrained(model.llava, folder, is_trainable=trainable)
    check_adapters(llava)
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as tensors:
        saved = set(tensors.keys())
    expected = set(get_peft_model_state_dict(llava, save_embedding_layers=False))
    if saved != expected:
        odd = sorted(saved ^ expected)
        raise ModelError(
            f"{folder} does not fit its base {given}: {len(odd)} tensors without a partner, first {odd[0]}"
        )
    return replace(model, llava=llava, meta=meta, adapter_sha256=sha256_of(file))


def _digest_checked(
    folder: Path, meta: Meta, preprocessing: Preprocessing, where: str, tell: bool = True
) -> Meta:
    """Compare the digest in `folder`'s cxr.json with the preprocessing found at `where`.

    Returns:
        Meta with the digest of today. If `tell`, warns of a model that was trained under the rule before.

    Raises:
        ModelError: the model was trained with another preprocessing.
    """
    if meta.preprocess_sha256 == preprocessing.sha256_before:
        if tell and not preprocessing.full_range:
            warnings.warn(STRETCHED.format(folder=folder), ModelWarning, stacklevel=4)
    elif meta.preprocess_sha256 not in (preprocessing.sha256, preprocessing.sha256_of_pictures):
        raise ModelError(
            f"{folder} was trained with preprocessing {meta.preprocess_sha256[:12]}, but {where} says "
            f"{preprocessing.sha256[:12]}: restore the file that the model came with"
        )
    return replace(meta, preprocess_sha256=preprocessing.sha256)


def _base_of(folder: Path, meta: Meta) -> str | Path:
    beside = folder / meta.base
    return beside if beside.is_dir() else meta.base
