"""The findings model: a stock `LlavaForConditionalGeneration` where that can say it, so that plain transformers opens
it; else a `cxr_llava` (vlm/llava.py). Parts come together in vlm/build.py, LoRA in vlm/adapters.py.

    build(encoder, llm)  ->  save(merged directory)                                      load(directory)
                        ->  add_lora -> train -> save_adapter(adapter directory)        load(adapter directory)
    MAIRA-2's own checkpoint (vlm/maira2.py)                                            load(its directory)

Stock Llava reads the tower's `hidden_states[-1]`, which for DINOv2 is **before** the final LayerNorm, and drops the CLS
token. `cxr.json` beside the weights says so, and what else belongs to the model but has no place in a transformers
configuration: the prompt's style, the digests of encoder and preprocessing, an adapter's base, the notice to users.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaProcessor

from encoder.errors import did_you_mean, reading
from encoder.fields import read_object, text, truth, whole
from encoder.files import open_to_readers
from encoder.hub import weights_sha256
from encoder.transforms import Preprocessing
from vlm.adapters import TOWERS
from vlm.errors import ModelError
from vlm.hub import META, resolve, without_meta
from vlm.parts import Parts, parts
from vlm.prompts import PromptStyle, chat_template

INDEX = "model.safetensors.index.json"
DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}  # of saved weights; None: as they are


@dataclass
class Meta:
    """`cxr.json`."""

    name: str = "findings"  # what predictions call the model
    notice: str = "For research, not for diagnosis."  # shown to the user with every run
    licence: str = ""  # of somebody else's weights, where it must be passed on with what is made of them
    prompt: PromptStyle = field(
        default_factory=PromptStyle
    )  # a model answers only the prompt it was trained with
    max_new_tokens: int = 256  # enough for the longest findings of MIMIC-CXR but for a handful
    features: str = ""  # what of the encoder the model reads, in words (see `describe_features`)
    encoder_sha256: str = ""
    preprocess_sha256: str = ""
    base: str = ""  # of an adapter: the directory (relative to it) or hub id it was trained on
    base_sha256: str = ""

    def save(self, folder: Path) -> None:
        """Write the fields as JSON to the file META in `folder`. Raises OSError."""
        (folder / META).write_text(json.dumps({"schema": 1, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Meta:
        """Read a model's cxr.json. Raises ModelError if there is none, or one that says something else."""
        path = folder / META
        if not path.is_file():
            raise ModelError(without_meta(folder))
        row = read_object(path)
        if row.pop("schema", None) != 1:
            raise ModelError(f"{path}: unknown schema; this version reads schema 1")
        prompt = row.get("prompt")
        if not isinstance(prompt, dict):
            raise ModelError(f"{path}: prompt must hold the prompt's fields; restore the file")
        kinds = {"str": text, "bool": truth, "int": whole(1)}
        for said, known, where in ((row, cls, ""), (prompt, PromptStyle, "prompt.")):
            names = {f.name: kinds.get(str(f.type)) for f in fields(known)}
            for name, value in said.items():
                if name not in names:
                    raise ModelError(f"{path}: unknown field {where}{name}{did_you_mean(name, names)}")
                if (problem := names[name]) and (wanted := problem(value)):
                    raise ModelError(f"{path}: {where}{name} must be {wanted}, not {str(value)[:60]!r}")
        with reading(folder, META):
            return cls(**{**row, "prompt": PromptStyle(**prompt)})


@dataclass
class FindingsModel:
    """The model with what must accompany it."""

    llava: nn.Module  # LlavaForConditionalGeneration, or the PeftModel around it
    processor: LlavaProcessor
    preprocessing: Preprocessing
    meta: Meta
    adapter_sha256: str | None = None
    revision: str = ""  # digest of the weights (of the base, where there is an adapter)

    @property
    def parts(self) -> Parts:
        """Return the parts of `llava` as they are now."""
        return parts(self.llava)

    @property
    def config(self) -> Any:
        """Return the configuration of `llava`, whichever class that is of."""
        return self.llava.config

    @property
    def tokenizer(self):
        """Return the processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def positions(self) -> int | None:
        """Return how many tokens the language model has positions for, prompt and answer together; None if it
        has no limit."""
        found = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    @property
    def max_new_tokens(self) -> int:
        """Return the default length of an answer in tokens: what cxr.json says, at most half of the
        positions."""
        return min(self.meta.max_new_tokens, max(1, (self.positions or 1 << 62) // 2))

    @property
    def image_tokens(self) -> int:
        """Return how many tokens an image takes in the prompt."""
        return (self.preprocessing.size // self.processor.patch_size) ** 2

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt, its image tokens expanded as LlavaProcessor does it."""
        image, count = self.config.image_token_id, self.image_tokens
        ids = self.tokenizer(prompt)["input_ids"]
        return [token for i in ids for token in ([i] * count if i == image else [i])]

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer, which end with the end-of-sequence token."""
        return [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]


def attention_name(attention: str) -> str:
    """Return transformers' name for `cxr` (our kernel), `sdpa` (PyTorch's) or `reference` (the explicit
    formula)."""
    from encoder.attention.wiring import TRANSFORMERS  # importing it registers ours

    if attention not in TRANSFORMERS:
        raise ModelError(f"attention {attention!r} is unknown; there are {', '.join(TRANSFORMERS)}")
    return TRANSFORMERS[attention]


def merge(model: FindingsModel) -> FindingsModel:
    """Fold the adapter into the weights: a plain stock model with the same function."""
    if not hasattr(model.llava, "merge_and_unload"):
        return model
    meta = replace(model.meta, base="", base_sha256="")
    return replace(model, llava=model.llava.merge_and_unload(), meta=meta, adapter_sha256=None)


# --- saving and loading -----------------------------------------------------------------------------------------------


def save(model: FindingsModel, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a directory that plain transformers opens (`AutoModelForImageTextToText`, `AutoProcessor`), with
    `cxr.json`.

    `dtype` converts the saved weights (the model itself is left as it is). Raises ModelError for a model with an
    adapter, or a folder in use.
    """
    folder = Path(folder)
    if hasattr(model.llava, "peft_config"):
        raise ModelError("the model carries an adapter: merge it first, or use save_adapter")
    _fresh(folder)
    converted: dict[int, Tensor] = {}  # tied weights stay one tensor, or they would be written twice
    state = {
        k: v if dtype is None else converted.setdefault(v.data_ptr(), v.to(dtype))
        for k, v in model.llava.state_dict().items()
    }
    config = model.config
    for part in (config.text_config, config.vision_config):
        part._name_or_path = ""  # where the parts once lay is nobody else's business
    config.use_cache = config.text_config.use_cache = True  # a training switches it off
    # so that plain transformers stops where `Findings` does; its own default is 20
    model.llava.generation_config.max_new_tokens = model.max_new_tokens
    model.llava.save_pretrained(folder, state_dict=state)
    _name_weights(folder)
    _save_companions(model, folder)
    model.meta.save(folder)
    open_to_readers(folder)


def save_encoder(model: FindingsModel, folder: str | Path) -> None:
    """Write the vision tower with its preprocessing as an encoder checkpoint, for pre-training or `build` to
    start from."""
    folder = Path(folder)
    _fresh(folder)
    model.parts.vision_tower.save_pretrained(folder)
    model.preprocessing.save_pretrained(folder)
    open_to_readers(folder)


def save_adapter(model: FindingsModel, folder: str | Path, base: str | Path) -> None:
    """Write the adapter (LoRA and projector) alone, with the id and digest of its base. `base` is a directory
    written by `save`, or a hub id."""
    folder = Path(folder)
    if not hasattr(model.llava, "peft_config"):
        raise ModelError("the model has no adapter to save; use save")
    _fresh(folder)
    base_dir = resolve(base)
    where = os.path.relpath(base_dir, folder) if Path(base).is_dir() else str(base)
    model.llava.peft_config["default"].base_model_name_or_path = str(base)
    model.llava.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card
    _save_companions(model, folder)
    replace(model.meta, base=where, base_sha256=weights_sha256(base_dir)).save(folder)
    open_to_readers(folder)


def _save_companions(model: FindingsModel, folder: Path) -> None:
    model.processor.save_pretrained(folder)
    model.preprocessing.save_pretrained(folder)
    # instead of a language model's own, whose prompts this model has never seen
    (folder / "chat_template.jinja").write_text(chat_template(model.tokenizer))


def _name_weights(folder: Path) -> None:
    """Write the index of the weights, which save_pretrained does for several files only. Where there is none, vLLM
    takes every *.safetensors for weights, and `ood.safetensors` beside them holds something else."""
    if (folder / INDEX).is_file():
        return
    with (folder / "model.safetensors").open("rb") as file:
        tensors = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors.pop("__metadata__", None)
    size = sum(end - start for start, end in (t["data_offsets"] for t in tensors.values()))
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _fresh(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is not empty; choose another directory or remove it first")
    folder.mkdir(parents=True, exist_ok=True)


def parameter_table(model: nn.Module) -> list[tuple[str, int, int]]:
    """Return (part, parameters, trainable ones) for every part and the total; tied weights once."""
    parts: dict[str, list[int]] = {}
    for name, p in model.named_parameters():
        part = next((t for t in TOWERS if t in name), "lm_head")
        part = "lora" if ".lora_" in name else part
        total, trained = parts.setdefault(part, [0, 0])
        parts[part] = [total + p.numel(), trained + p.numel() * p.requires_grad]
    rows = [(part, *numbers) for part, numbers in parts.items()]
    return [*rows, ("total", sum(r[1] for r in rows), sum(r[2] for r in rows))]
