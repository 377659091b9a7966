"""Checkpoints in the format of microsoft/maira-2, read into a findings model of ours.

    cxr generate folder/ --model microsoft/maira-2        cxr export microsoft/maira-2 OUT

Such a directory holds config.json (model_type "maira2"), safetensors in several files with their index, the tokenizer
of Vicuna with 207 more tokens, and a processor's files. Its model is a DINOv2 tower read after the final LayerNorm
without CLS, a projector of four linear layers with GELU between, and a Llama with linearly scaled positions: a
`cxr_llava` (vlm/llava.py). The Python files beside the weights are neither fetched nor run; they need transformers 4.

How far this is certain. The weights are given to those who accept their terms; this was never run on them. Names of
tensors, projector, features, order of the images and "N/A" are read off public copies of Microsoft's
`configuration_`, `modeling_` and `processing_maira2.py` (github johannes2moll/maira_rrg and others); the chat template
off copies of `chat_template.json` that have the original's 611 bytes. The copy of `processing_maira2.py` asks for a
"structured description", which is that project's word: without it, and with the three lines that the processor's
`num_additional_image_tokens` takes, the file has the original's 27,708 bytes, and Libra's README quotes the sentence
so. That there are 32,207 tokens, 522 tensors and a RoPE factor of 1.5 is what others report; here they are read from
the files. Not known is what stood between "ASSISTANT:" and the answer in training: fine-tuning here has the prompt's
one space there.

Findings with boxes, and finding a phrase's place, have prompts of their own, which are not offered. Should the model
write a box unasked, its tokens are left out of the text.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AddedToken, Dinov2Config, LlamaConfig, PreTrainedTokenizerFast
from transformers.activations import ACT2FN

from encoder.transforms import FILE as PREPROCESSOR
from encoder.transforms import Preprocessing
from vlm import model as models
from vlm.errors import ModelError
from vlm.llava import CxrLlavaConfig, CxrLlavaForConditionalGeneration
from vlm.processor import greedy, processor_of
from vlm.projector import describe_features
from vlm.prompts import IMAGE_TOKEN, MAIRA2

NOTICE = "For research, not for diagnosis or any other clinical use."
LICENCE = "MAIRA-2's weights are under Microsoft's research licence (MSRLA)."
MAX_NEW_TOKENS = 300  # its model card's, for findings without boxes
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PLACES = re.compile(r"</?(?:obj|box)>|<[xy]\d+>|<(?:lat_im|prev_im)\w*>")  # tokens that are not words
# Keys of a configuration that say how it was saved, and nothing of the model
ABOUT = ("_name_or_path", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version")
DINOV2 = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "output.dense",
}


def load(folder: Path, *, attention: str = "cxr", dtype: torch.dtype | None = None) -> models.FindingsModel:
    """Load a directory in MAIRA-2's format: a model in evaluation mode, fp32 unless `dtype` is given.

    At most one tensor is held beside the model.

    Raises ModelError, which names the file and the key or tensor. Reasons are a configuration that this model
    cannot express, a tokenizer that does not belong to it, and tensors that are missing, left over, of
    another shape, or pickled.
    """
    dtype = dtype or torch.float32
    where = tensors_in(folder)
    tokenizer = read_tokenizer(folder)
    preprocessing = read_preprocessing(folder)
    config = read_config(folder, tokenizer, preprocessing)
    implementation = models.attention_name(attention)
    with torch.device("meta"):
        llava = CxrLlavaForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation=implementation
        )
    fill(llava, where, folder, dtype)
    llava.generation_config = greedy(tokenizer)
    digest = models.weights_sha256(folder)
    meta = models.Meta(
        name="MAIRA-2",
        notice=f"{NOTICE} {LICENCE}",
        licence=LICENCE,
        prompt=MAIRA2,
        max_new_tokens=MAX_NEW_TOKENS,
        features=describe_features([config.vision_feature_layer], config.feature_norm),
        encoder_sha256=digest,  # of the files that hold it
        preprocess_sha256=preprocessing.sha256,
    )
    processor = processor_of(tokenizer, preprocessing, config.grid)
    return models.FindingsModel(llava.eval(), processor, preprocessing, meta, revision=digest)


def read_config(folder: Path, tokenizer, preprocessing: Preprocessing) -> CxrLlavaConfig:
    """Read config.json into our config. Absent keys get the defaults of the checkpoint's own classes. Raises
    ModelError."""
    path = folder / "config.json"
    row = json.loads(path.read_text())
    text, vision = _part(row, path, "text_config", "llama"), _part(row, path, "vision_config", "dinov2")
    if text.get("tie_word_embeddings"):
        raise ModelError(f"{path}: text_config ties its embeddings, and MAIRA-2's are not tied")
    strategy = row.get("vision_feature_select_strategy", "default")
    if strategy != "default":
        raise ModelError(
            f"{path}: vision_feature_select_strategy {strategy!r} is not supported: 'default', patches without CLS, is"
        )
    depth, act = row.get("projector_n_layers", 4), row.get("projector_hidden_act", "gelu")
    if not isinstance(depth, int) or depth < 1:
        raise ModelError(f"{path}: projector_n_layers {depth!r} is not a number of layers")
    if act not in ACT2FN:
        raise ModelError(f"{path}: projector_hidden_act {act!r} is unknown")
    positions = _positions(text, path)
    try:
        llama, dinov2 = LlamaConfig(**text), Dinov2Config(**vision)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"{path}: {error}") from None
    held = llama.rope_parameters
    if any(held.get(key) != value for key, value in positions.items()):
        raise ModelError(f"{path}: positions {positions} are read as {held} by this version of transformers")
    layer = _feature_layer(dinov2, vision, row.get("vision_feature_layer"), path)
    image = row.get("image_token_index", row.get("image_token_id"))
    known = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image not in (None, known) or len(tokenizer) > llama.vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, {IMAGE_TOKEN} being {known}; config.json has "
            f"{llama.vocab_size} and {image}"
        )
    if not isinstance(dinov2.patch_size, int) or preprocessing.size % dinov2.patch_size:
        raise ModelError(
            f"{folder}: {preprocessing.size} px is not a multiple of patch size {dinov2.patch_size}"
        )
    grid = preprocessing.size // dinov2.patch_size
    return CxrLlavaConfig(
        vision_config=dinov2,
        text_config=llama,
        image_token_index=known,
        image_seq_length=grid**2,
        vision_feature_layer=layer,
        vision_feature_select_strategy="full",  # a cxr_llava takes the last grid x grid tokens
        projector_hidden_act=act,
        multimodal_projector_bias=True,  # MAIRA-2's projector has them whatever its configuration says
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        projector_depth=depth,
        feature_norm=bool(dinov2.apply_layernorm),
        grid=grid,
    )


def _part(row: dict, path: Path, name: str, kind: str) -> dict:
    """Return the configuration of a tower without what says nothing of it."""
    part = row.get(name)
    if not isinstance(part, dict) or part.get("model_type", kind) != kind:
        found = part.get("model_type") if isinstance(part, dict) else part
        raise ModelError(f"{path}: {name} must be of a {kind} model, and is of {found!r}")
    part = {key: value for key, value in part.items() if key not in ABOUT and key != "model_type"}
    for key in ("out_features", "out_indices"):  # as older versions wrote them
        if (value := part.pop(f"_{key}", None)) is not None:
            part.setdefault(key, value)
    return part


def _positions(text: dict, path: Path) -> dict:
    """What the configuration says of rotary positions, in transformers' words."""
    asked = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = asked.get("rope_type", asked.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ModelError(f"{path}: rope_scaling of type {kind!r} is not supported; only linear is")
    positions = {"rope_type": kind, "rope_theta": text.get("rope_theta", asked.get("rope_theta", 10000.0))}
    if kind == "linear":
        if not isinstance(asked.get("factor"), int | float) or asked["factor"] < 1:
            raise ModelError(
                f"{path}: linear rope_scaling needs a factor of 1 or more, and has {asked.get('factor')}"
            )
        positions["factor"] = asked["factor"]
    return positions


def _feature_layer(dinov2: Dinov2Config, vision: dict, given, path: Path) -> int:
    """Return the hidden state that is read: `vision_feature_layer` counts the backbone's `out_features`."""
    if vision.get("reshape_hidden_states"):
        raise ModelError(
            f"{path}: vision_config.reshape_hidden_states gives maps instead of tokens; it must be false"
        )
    stages = dinov2.out_features
    chosen = (-1 if len(stages) == 1 else None) if given is None else given
    if not isinstance(chosen, int) or not -len(stages) <= chosen < len(stages):
        raise ModelError(f"{path}: vision_feature_layer {given!r} names none of the out_features {stages}")
    layer = dinov2.stage_names.index(stages[chosen])
    return -1 if layer == dinov2.num_hidden_layers else layer


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read tokenizer.json word for word. Raises ModelError.

    transformers 5 would make a LlamaTokenizer of its vocabulary, with rules of its own for the spaces beside added
    tokens such as `<image>`; MAIRA-2 was trained with those of the file.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be read: {error}") from None
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        raise ModelError(f"{folder}: the tokenizer has no {IMAGE_TOKEN}")
    places = [
        AddedToken(
            token.content, lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized, special=True
        )
        for token in tokenizer.added_tokens_decoder.values()
        if PLACES.fullmatch(token.content) and not token.special
    ]
    if places:  # to be left out of texts; their ids stay
        tokenizer.add_tokens(places, special_tokens=True)
    return tokenizer


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read preprocessor_config.json. MAIRA-2's processor first stretches the grey levels of each image to the
    whole range. Raises ModelError."""
    path = folder / PREPROCESSOR
    try:
        preprocessing = replace(Preprocessing.from_pretrained(folder), full_range=True)
        row = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: {error}") from None
    off = [key for key in ("do_resize", "do_rescale", "do_normalize") if row.get(key) is False]
    if off or abs(row.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ModelError(
            f"{path}: {', '.join(off) or 'rescale_factor'} is not MAIRA-2's: images are resized, taken to [0, 1] and "
            "normalised"
        )
    return preprocessing


# --- weights ----------------------------------------------------------------------------------------------------------


def tensors_in(folder: Path) -> dict[str, Path]:
    """Return each tensor's file; the index and the files must agree. Raises ModelError."""
    index = folder / INDEX
    if index.is_file():
        try:
            said = json.loads(index.read_text())["weight_map"]
            names = sorted({str(name) for name in said.values()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{index} has no weight_map that can be read") from None
    else:
        said, names = None, [SINGLE]
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: {name!r} is not a safetensors file beside it")
        if not (folder / name).is_file():
            hint = "" if said else " (pickled weights are not read)"
            raise ModelError(f"{folder / name} does not exist{hint}; is the checkpoint complete?")
    where: dict[str, Path] = {}
    for name in names:
        file = folder / name
        with _open(file) as tensors:
            for tensor in tensors.keys():  # noqa: SIM118 (it is not a mapping)
                if tensor in where or (said is not None and said.get(tensor) != name):
                    raise ModelError(f"{file} holds {tensor}, which {INDEX} has elsewhere or not at all")
                where[tensor] = file
    lost = sorted(set(said or ()) - where.keys())
    if lost:
        raise ModelError(f"{index} names {len(lost)} tensors that its files do not hold, first {lost[0]}")
    return where


def original_name(name: str) -> str:
    """Return the name in MAIRA-2's files of a tensor of ours."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.", 1)
    name = name.removeprefix("model.")
    name = re.sub(
        r"^multi_modal_projector\.linear_(\d+)\.",
        lambda m: f"multi_modal_projector.layers.{2 * int(m[1]) - 2}.",  # activations lie between
        name,
    )
    # the names of files, which transformers 5 maps to those of its modules
    return re.sub(r"(\.attention)\.([qkvo]_proj)\.", lambda m: f"{m[1]}.{DINOV2[m[2]]}.", name)


def fill(llava: nn.Module, where: dict[str, Path], folder: Path, dtype: torch.dtype) -> None:
    """Fill `llava`, which has no tensors yet (device "meta"), with the tensors of the files. Nothing is read
    before names and shapes agree."""
    ours = {original_name(name): (name, tensor.shape) for name, tensor in llava.state_dict().items()}
    counts = f"{folder}: {len(where)} tensors, {len(ours)} expected"
    if missing := sorted(ours.keys() - where.keys()):
        raise ModelError(f"{counts}; missing {len(missing)}, first {missing[0]}")
    if extra := sorted(where.keys() - ours.keys()):
        raise ModelError(f"{counts}; left over {len(extra)}, first {extra[0]}")
    files = {file: [name for name in where if where[name] == file] for file in sorted(set(where.values()))}
    for file, names in files.items():
        with _open(file) as tensors:
            for name in names:
                shape, wanted = list(tensors.get_slice(name).get_shape()), list(ours[name][1])
                if shape != wanted:
                    raise ModelError(f"{file}: {name} has shape {shape}, expected {wanted}")
    for file, names in files.items():
        state = {}
        with _open(file) as tensors:
            for name in names:
                tensor = tensors.get_tensor(name)
                if not tensor.is_floating_point():
                    raise ModelError(f"{file}: {name} is {tensor.dtype}; quantised weights are not read")
                state[ours[name][0]] = tensor.to(dtype, copy=True)
        llava.load_state_dict(state, strict=False, assign=True)
    body = llava.model.language_model
    body.rotary_emb = type(body.rotary_emb)(body.config)  # computed, never stored
    left = [name for name, x in chain(llava.named_parameters(), llava.named_buffers()) if x.is_meta]
    assert not left, left


def _open(file: Path):
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
