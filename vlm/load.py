"""Loading findings models: merged, adapters with their base, MAIRA-2's own."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, LlavaProcessor

from encoder.errors import first_line, reading
from encoder.fields import check_companions, config_is_blamed
from encoder.files import sha256_of
from encoder.hub import weights_sha256
from encoder.towers import check_layers, loading, shape_of
from encoder.transforms import Preprocessing
from encoder.weights import check_config, check_fit, check_numbers, stored_in
from vlm.adapters import ADAPTER, CONFIG, check_adapters, check_saved, quiet_peft, read_adapter
from vlm.errors import AskedError, ModelError, ModelWarning
from vlm.hub import ADAPTER_CONFIG, META, is_maira2, no_adapter, resolve
from vlm.model import DTYPES, FindingsModel, Meta, attention_name
from vlm.processor import check_tokenizer, image_processor
from vlm.prompts import IMAGE_TOKEN

STRETCHED = (
    "{folder} was trained while 8-bit pictures (PNG, JPEG) were stretched to their full range. They are now read as "
    "they are, as plain transformers reads them, so its answers to them may change. DICOM and 16-bit pictures are read "
    'as before. To keep stretching, set "cxr_full_range": true in preprocessor_config.json (of an adapter: its '
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
    """Load a merged directory, an adapter directory (with its base), a hub id, or "mini"; fp32 unless `dtype`
    is given. Also a checkpoint in the format of microsoft/maira-2, which is read into a model of ours.

    Raises ModelError if an adapter's base or preprocessing is not the one it was trained with, if tensors are missing
    or left over, or if the directory holds no findings model.
    """
    folder = resolve(name)
    adapter = (folder / ADAPTER_CONFIG).is_file()
    if base is not None and not adapter:
        raise ModelError(no_adapter(name, base))
    if adapter:
        model = _load_adapter(folder, Meta.load(folder), base, attention, dtype, trainable)
    else:
        model = _load_whole(folder, attention, dtype)
    if device is not None:
        model.llava.to(device)
    model.llava.train(trainable)
    return model


def is_findings_model(folder: Path) -> bool:
    """Tell whether `load` can open a directory as a findings model."""
    return (folder / META).is_file() or is_maira2(folder)


def _load_whole(folder: Path, attention: str, dtype: torch.dtype | None, tell: bool = True) -> FindingsModel:
    if is_maira2(folder):
        from vlm import maira2

        check_companions(folder)
        maira2.tensors_in(folder)
        # types and shapes it compares itself
        check_config(folder, stored := stored_in(folder), types=False)
        with reading(folder, "its model"):
            found = maira2.load(folder, attention=attention, dtype=dtype)
        check_numbers(found.llava, folder, stored)
        return found
    meta = Meta.load(folder)
    check_companions(folder)
    with reading(folder, "its preprocessing"):
        preprocessing = Preprocessing.from_pretrained(folder)
    meta = _digest_checked(folder, meta, preprocessing, "its preprocessor_config.json", tell)
    import vlm.llava  # noqa: F401  (which makes cxr_llava known)

    stored, name = stored_in(folder), attention_name(attention)
    row = check_config(folder, stored)
    with config_is_blamed(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ModelError(
            f"{folder / 'config.json'}: model_type {config.model_type} is not a findings model's"
        )
    check_fit(AutoModelForImageTextToText, folder, config, stored)
    processor = _processor(folder)
    _check_tokens(folder, config, processor, preprocessing)
    revision = weights_sha256(folder)
    with loading(folder, "its weights"):
        llava, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=name,
            output_loading_info=True,
        )
    odd = {k: sorted(v) for k, v in report.items() if k in ("missing_keys", "unexpected_keys") and v}
    if odd:
        kinds = (f"{len(names)} {kind.replace('_', ' ')}, first {names[0]}" for kind, names in odd.items())
        raise ModelError(f"{folder}: the weights do not fit the configuration: {'; '.join(kinds)}")
    if "quantization_config" not in row:
        check_numbers(llava, folder, stored)
    # what an earlier version wrote there may say less than the preprocessing
    processor.image_processor = image_processor(preprocessing)
    return FindingsModel(llava, processor, preprocessing, meta, revision=revision)


def _processor(folder: Path) -> LlavaProcessor:
    """Read tokenizer and processor. Raises ModelError, which names the file that is spoilt."""
    try:
        processor = LlavaProcessor.from_pretrained(folder, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    # of a library in Rust also what is no Exception
    except BaseException as error:
        with reading(folder, "its tokenizer or processor: tokenizer.json or tokenizer_config.json"):
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with reading(folder, "its tokenizer or processor: processor_config.json"):
            raise error
    check_tokenizer(folder, processor.tokenizer)
    return processor


def _check_tokens(folder: Path, config: Any, processor: LlavaProcessor, preprocessing: Preprocessing) -> None:
    """Raise ModelError where tokenizer, processor and configuration speak of other tokens."""
    tokenizer, path = processor.tokenizer, folder / "config.json"
    known = tokenizer.get_vocab()
    # tokens that only the tokenizer's class knows (Qwen's) never come out of a text
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{folder / 'tokenizer_config.json'}: the tokenizer has no end-of-sequence token (eos_token)"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{folder / 'tokenizer_config.json'}: the tokenizer has no pad_token")
    places = config.get_text_config().vocab_size
    if (highest := max((i for word, i in known.items() if word not in special), default=0)) >= places:
        raise ModelError(
            f"{folder / 'tokenizer.json'} has tokens up to {highest}, but vocab_size in {path} is {places}"
        )
    if config.image_token_id != known.get(IMAGE_TOKEN):
        raise ModelError(
            f"{path}: image_token_index is {config.image_token_id}, but {IMAGE_TOKEN} of the tokenizer is "
            f"{known.get(IMAGE_TOKEN)}"
        )
    try:
        vision = shape_of(config.vision_config)
        chosen = config.vision_feature_layer
        layers = [chosen] if isinstance(chosen, int) else list(chosen)
        check_layers(layers, vision, config.vision_config.model_type == "timm_wrapper")
    except (ModelError, TypeError) as error:
        raise ModelError(f"{path}: vision_feature_layer: {first_line(error)}") from None
    patch, wanted = processor.patch_size, config.image_seq_length
    if not patch or (preprocessing.size // patch) ** 2 != wanted:
        raise ModelError(
            f"{folder / 'processor_config.json'}: patch_size {patch} makes another number of tokens of "
            f"{preprocessing.size} px than image_seq_length in config.json, {wanted}"
        )


def _load_adapter(folder, meta: Meta, base, attention, dtype, trainable) -> FindingsModel:
    from peft import PeftModel, get_peft_model_state_dict

    saved = read_adapter(folder)
    check_companions(folder)
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
    check_saved(model.llava, folder, saved)
    with quiet_peft(), reading(folder, "adapter_config.json"):
        llava = PeftModel.from_pretrained(model.llava, folder, is_trainable=trainable)
    try:
        check_adapters(llava)
    except ModelError as error:
        raise ModelError(f"{folder / CONFIG}: target_modules: {error}") from None
    file = folder / ADAPTER
    expected = set(get_peft_model_state_dict(llava, save_embedding_layers=False))
    if saved.keys() != expected:
        odd = sorted(saved.keys() ^ expected)
        where = "which has" if odd[0] in saved else "which lacks"
        raise ModelError(
            f"{file} does not fit its base {given} and target_modules in adapter_config.json: {len(odd)} tensors "
            f"without a partner, {where} {odd[0]}"
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
