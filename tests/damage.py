"""What can be wrong with a model's folder: a table of damages, each a function on a copy of a sound one.

`tests/vlm/test_damaged_models.py` holds that each is told in a line; `benchmarks/damaged.py` prints the lines.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Damage = Callable[[Path], object]
WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
ADAPTER, ADAPTER_CONFIG, META = "adapter_model.safetensors", "adapter_config.json", "cxr.json"


# A module that no model has.
NONE = "base_model.model.nonesuch"


class Case(NamedTuple):
    """A damage to one of the models that `models` makes."""

    # findings, adapter, encoder, language model, or file (of an encoder's weights)
    model: str
    damage: Damage
    # what the line must say
    said: tuple[str, ...]


def models(root: Path, encoder: Path, llm: Path) -> dict[str, Path]:
    """Make a sound model of each kind below `root`."""
    from encoder.convert import load_backbone, save_backbone
    from vlm import adapters
    from vlm import model as findings
    from vlm.build import build

    model = build(encoder, llm)
    findings.save(model, root / "findings")
    model.llava = adapters.add_lora(model.llava, 2)
    findings.save_adapter(model, root / "adapter", root / "findings")
    # wherever its copies lie
    rewrite(root / "adapter" / META, lambda row: row.update(base=str(root / "findings")))
    save_backbone(load_backbone(encoder).backbone, root / "file" / "weights.safetensors", "dinov2")
    return {"findings": root / "findings", "adapter": root / "adapter", "encoder": encoder, "language model": llm,
            "file": root / "file"}  # fmt: skip


def damaged(case: Case, sound: dict[str, Path], to: Path) -> Path:
    """Copy the sound model and damage the copy; returns what a command is to be given."""
    shutil.copytree(sound[case.model], to)
    case.damage(to)
    return to / "weights.safetensors" if case.model == "file" else to


def rewrite(file: Path, change: Callable[[Any], object]) -> None:
    row = json.loads(file.read_text())
    changed = change(row)
    file.write_text(json.dumps(row if changed is None else changed))


def put(name: str, *where: str | int, value: Any) -> Damage:
    """Put a value at a place in a JSON file."""

    def change(row: Any) -> None:
        for key in where[:-1]:
            row = row[key]
        row[where[-1]] = value

    return lambda folder: rewrite(folder / name, change)


def around(token: str) -> dict[str, Any]:
    """A tokenizer's template that puts `token` before a text; of "<s>" it has no ids."""
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": token, "type_id": 0}}, a], "pair": [a, b],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [], "tokens": ["<s>"]}},
    }  # fmt: skip


def without(name: str, *where: str) -> Damage:
    """Take a field out of a JSON file."""

    def change(row: Any) -> None:
        for key in where[:-1]:
            row = row[key]
        del row[where[-1]]

    return lambda folder: rewrite(folder / name, change)


def bytes_(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def text(name: str, words: str) -> Damage:
    return lambda folder: (folder / name).write_text(words)


def header(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of a safetensors file, and leave its numbers as they are."""

    def changed(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        row = json.loads(data[8 : 8 + length])
        new = change(row)
        text = json.dumps(row if new is None else new).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return bytes_(name, changed)


def tensors(name: str, change: Callable[[dict[str, Tensor]], object]) -> Damage:
    """Change the tensors of a safetensors file."""

    def changed(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file({key: x.contiguous().clone() for key, x in state.items()}, folder / name, {"format": "pt"})

    return changed


def tensor(name: str, part: str, change: Callable[[Tensor], Tensor]) -> Damage:
    """Change the first tensor whose name has `part` in it."""

    def changed(state: dict[str, Tensor]) -> None:
        key = next(key for key in sorted(state) if part in key)
        state[key] = change(state[key])

    return tensors(name, changed)


def filled(value: float) -> Callable[[Tensor], Tensor]:
    """Put `value` in the last place of a tensor."""

    def change(x: Tensor) -> Tensor:
        x.view(-1)[-1] = value
        return x

    return change


def first(row: dict[str, Any]) -> dict[str, Any]:
    return row[next(key for key in sorted(row) if key != "__metadata__")]


def sharded(folder: Path) -> None:
    """Split the weights in two files with an index."""
    state = load_file(folder / WEIGHTS)
    names = sorted(state)
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def shards(then: Damage) -> Damage:
    return lambda folder: (sharded(folder), then(folder))


def pickled(name: str, instead_of: str) -> Damage:
    """Weights as a pickle that writes a file when it is read."""

    class Trap:
        def __reduce__(self):
            return open, (str(Path(__file__).parent / "pickle_ran"), "w")

    return lambda folder: (
        (folder / instead_of).unlink(),
        (folder / name).write_bytes(pickle.dumps({"w": Trap()})),
    )


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def folder_for(name: str) -> Damage:
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


T, V = "text_config", "vision_config"
# name -> case
CASES: dict[str, Case] = {
    # ---- the file of weights
    "weights cut in half": Case("findings", bytes_(WEIGHTS, half), (WEIGHTS, "cut off")),
    "weights empty": Case("findings", bytes_(WEIGHTS, lambda b: b""), (WEIGHTS,)),
    "weights of 5 bytes": Case("findings", bytes_(WEIGHTS, lambda b: b[:5]), (WEIGHTS,)),
    "weights with a tail": Case("findings", bytes_(WEIGHTS, lambda b: b + b"\0" * 100), (WEIGHTS,)),
    "weights are a web page": Case("findings", bytes_(WEIGHTS, lambda b: b"<!DOCTYPE html>" * 99), (WEIGHTS,)),
    "weights are an LFS pointer": Case(
        "findings", text(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        (WEIGHTS, "LFS"),
    ),
    "weights are a folder": Case("findings", folder_for(WEIGHTS), (WEIGHTS,)),
    "header longer than the file": Case(
        "findings", bytes_(WEIGHTS, lambda b: struct.pack("<Q", 2**60) + b[8:]), (WEIGHTS,)
    ),
    "header is not JSON": Case("findings", bytes_(WEIGHTS, lambda b: b[:8] + b"x" + b[9:]), (WEIGHTS,)),
    "header is a list": Case("findings", header(WEIGHTS, lambda row: [1]), (WEIGHTS,)),
    "header of 10,000 brackets": Case(
        "findings", bytes_(WEIGHTS, lambda b: struct.pack("<Q", 20000) + deep(10000).encode() + b), (WEIGHTS,)
    ),
    "header's type unknown": Case(
        "findings", header(WEIGHTS, lambda row: first(row).update(dtype="F99")), (WEIGHTS, "F99")
    ),
    "header's shape negative": Case(
        "findings", header(WEIGHTS, lambda row: first(row).update(shape=[-1])), (WEIGHTS, "lm_head|model")
    ),
    "header's shape too large": Case(
        "findings", header(WEIGHTS, lambda row: first(row).update(shape=[2**40])), (WEIGHTS,)
    ),
    "header's places overlap": Case(
        "findings", header(WEIGHTS, lambda row: [first(row).update(data_offsets=[4, 8]), row][1]), (WEIGHTS,)
    ),
    "header's places outside": Case(
        "findings", header(WEIGHTS, lambda row: first(row).update(data_offsets=[2**50, 2**51])), (WEIGHTS,)
    ),
    # ---- the tensors
    "a tensor missing": Case(
        "findings", tensors(WEIGHTS, lambda s: s.pop(next(k for k in sorted(s) if "q_proj" in k))),
        (WEIGHTS, "q_proj", "missing"),
    ),
    "a tensor too many": Case(
        "findings", tensors(WEIGHTS, lambda s: s.update(stray=torch.zeros(3))), (WEIGHTS, "stray")
    ),
    "a tensor of another shape": Case(
        "findings", tensor(WEIGHTS, "k_proj", lambda x: x[:16]), (WEIGHTS, "k_proj", "[16, 32]", "[32, 32]")
    ),
    "a tensor turned round": Case(
        "findings", tensor(WEIGHTS, "gate_proj", lambda x: x.T), (WEIGHTS, "gate_proj", "[32, 64]", "[64, 32]")
    ),
    "a tensor of NaN": Case("findings", tensor(WEIGHTS, "v_proj", filled(math.nan)), (WEIGHTS, "v_proj")),
    "a tensor of infinity": Case("findings", tensor(WEIGHTS, "o_proj", filled(math.inf)), (WEIGHTS, "o_proj")),
    "a tower of NaN": Case("findings", tensor(WEIGHTS, "vision_tower", filled(math.nan)), (WEIGHTS, "vision")),
    "a projector of infinity": Case(
        "findings", tensor(WEIGHTS, "projector", filled(-math.inf)), (WEIGHTS, "projector")
    ),
    "a tensor of integers": Case("findings", tensor(WEIGHTS, "q_proj", lambda x: x.int()), (WEIGHTS, "q_proj")),
    "all tensors of integers": Case(
        "findings", tensors(WEIGHTS, lambda s: s.update({k: (x * 99).char() for k, x in s.items()})), (WEIGHTS,)
    ),
    # ---- config.json
    "config cut in half": Case("findings", bytes_(CONFIG, half), (CONFIG,)),
    "config empty": Case("findings", text(CONFIG, ""), (CONFIG,)),
    "config absent": Case("findings", gone(CONFIG), (CONFIG,)),
    "config a list": Case("findings", text(CONFIG, "[1, 2]"), (CONFIG,)),
    "config a number": Case("findings", text(CONFIG, "7"), (CONFIG,)),
    "config not UTF-8": Case("findings", bytes_(CONFIG, lambda b: b"\xff\xfe" + b), (CONFIG,)),
    "config of 100,000 brackets": Case("findings", text(CONFIG, deep(100_000)), (CONFIG,)),
    "config of an integer of 5,000 digits": Case(
        "findings", bytes_(CONFIG, lambda b: b.replace(b'"vocab_size": ', b'"vocab_size": ' + b"9" * 5000)),
        (CONFIG,),
    ),
    "config a folder": Case("findings", folder_for(CONFIG), (CONFIG,)),
    "model_type unknown": Case("findings", put(CONFIG, "model_type", value="nonesuch"), (CONFIG, "nonesuch")),
    "model_type a number": Case("findings", put(CONFIG, "model_type", value=7), (CONFIG, "model_type")),
    "model_type absent": Case("findings", without(CONFIG, "model_type"), (CONFIG, "model_type")),
    "text model_type unknown": Case("findings", put(CONFIG, T, "model_type", value="nonesuch"), (CONFIG, "nonesuch")),
    "text_config a text": Case("findings", put(CONFIG, T, value="llama"), (CONFIG, T)),
    "vision_config absent": Case("findings", without(CONFIG, V), (CONFIG, V)),
    "100,000 layers of text": Case(
        "findings", put(CONFIG, T, "num_hidden_layers", value=100_000), (CONFIG, "num_hidden_layers", "100000")
    ),
    "100,000 layers of vision": Case(
        "findings", put(CONFIG, V, "num_hidden_layers", value=100_000), (CONFIG, "num_hidden_layers", "100000")
    ),
    "one layer too few": Case("findings", put(CONFIG, T, "num_hidden_layers", value=1), (WEIGHTS, "layers.1.")),
    "a layer as a text": Case(
        "findings", put(CONFIG, T, "num_hidden_layers", value="2"), (CONFIG, "num_hidden_layers")
    ),
    "no layers": Case("findings", put(CONFIG, T, "num_hidden_layers", value=0), (CONFIG, "num_hidden_layers")),
    "-2 layers": Case("findings", put(CONFIG, V, "num_hidden_layers", value=-2), (CONFIG, "num_hidden_layers")),
    "2.5 layers": Case("findings", put(CONFIG, V, "num_hidden_layers", value=2.5), (CONFIG, "num_hidden_layers")),
    "layers true": Case("findings", put(CONFIG, T, "num_hidden_layers", value=True), (CONFIG, "num_hidden_layers")),
    "hidden_size 2**40": Case("findings", put(CONFIG, T, "hidden_size", value=2**40), (CONFIG, "hidden_size")),
    "hidden_size 64": Case("findings", put(CONFIG, T, "hidden_size", value=64), (WEIGHTS, "[", "64")),
    "vocab_size 10**9": Case("findings", put(CONFIG, T, "vocab_size", value=10**9), (CONFIG, "vocab_size")),
    "vocab_size of one less": Case("findings", put(CONFIG, T, "vocab_size", value=300), (WEIGHTS, "300")),
    "intermediate_size nothing": Case(
        "findings", put(CONFIG, T, "intermediate_size", value=None), (CONFIG, "intermediate_size")
    ),
    "3 heads of 32": Case("findings", put(CONFIG, V, "num_attention_heads", value=3), (CONFIG, "num_attention_heads")),
    "heads a list": Case(
        "findings", put(CONFIG, V, "num_attention_heads", value=[2, 2]), (CONFIG, "num_attention_heads")
    ),
    "patch_size 0": Case("findings", put(CONFIG, V, "patch_size", value=0), (CONFIG, "patch_size")),
    "image_size 10**7": Case("findings", put(CONFIG, V, "image_size", value=10**7), ("image_size|position",)),
    "layer_norm_eps NaN": Case("findings", put(CONFIG, V, "layer_norm_eps", value=math.nan), (CONFIG, "NaN")),
    "layer_norm_eps 0": Case("findings", put(CONFIG, V, "layer_norm_eps", value=0), (CONFIG, "layer_norm_eps")),
    "rms_norm_eps -1": Case("findings", put(CONFIG, T, "rms_norm_eps", value=-1), (CONFIG, "rms_norm_eps")),
    "rope_theta 0": Case(
        "findings", put(CONFIG, T, "rope_parameters", value={"rope_type": "default", "rope_theta": 0}),
        (CONFIG, "rope_theta"),
    ),
    "hidden_act unknown": Case(
        "findings", put(CONFIG, T, "hidden_act", value="nonesuch"), (CONFIG, "hidden_act", "gelu")
    ),
    "features of layer 99": Case("findings", put(CONFIG, "vision_feature_layer", value=99), (CONFIG, "99")),
    "image token elsewhere": Case("findings", put(CONFIG, "image_token_index", value=7), (CONFIG, "image_token")),
    "image token beyond": Case("findings", put(CONFIG, "image_token_index", value=10**6), (CONFIG, "image_token")),
    "rope of a kind unknown": Case(
        "findings", put(CONFIG, T, "rope_parameters", value={"rope_type": "nonesuch"}),
        (CONFIG, "rope_type", "yarn"),
    ),
    # the library's own error ends a process, unless it is caught as what it is
    "template of a token that is none": Case(
        "findings", put(TOKENIZER, "post_processor", value=around("")), (TOKENIZER,)
    ),
    "template of a token without ids": Case(
        "findings", put(TOKENIZER, "post_processor", value=around("<s>")), (TOKENIZER, "post_processor")
    ),
    "max_position_embeddings -1": Case(
        "findings", put(CONFIG, T, "max_position_embeddings", value=-1), (CONFIG, "max_position_embeddings")
    ),
    # ---- the index
    "index cut in half": Case("findings", bytes_(INDEX, half), (INDEX,)),
    "index without a map": Case("findings", text(INDEX, "{}"), (INDEX, "weight_map")),
    "index names a file that is not there": Case(
        "findings", shards(gone("model-00002-of-00002.safetensors")), ("model-00002-of-00002.safetensors",)
    ),
    "index names a file outside": Case(
        "findings", shards(lambda f: rewrite(f / INDEX, lambda r: r["weight_map"].update(stray="../x.safetensors"))),
        (INDEX, "../x.safetensors"),
    ),
    "index names a tensor that is not there": Case(
        "findings", shards(lambda f: rewrite(
            f / INDEX, lambda r: r["weight_map"].update(stray="model-00001-of-00002.safetensors"))),
        (INDEX, "stray"),
    ),
    "index absent": Case("findings", shards(gone(INDEX)), (WEIGHTS,)),
    "a shard cut in half": Case(
        "findings", shards(bytes_("model-00002-of-00002.safetensors", half)), ("model-00002-of-00002", "cut off")
    ),
    # ---- what lies beside the weights
    "cxr.json cut in half": Case("findings", bytes_(META, half), (META,)),
    "cxr.json a list": Case("findings", text(META, "[]"), (META,)),
    "cxr.json of schema 9": Case("findings", put(META, "schema", value=9), (META, "schema")),
    "cxr.json without a prompt": Case("findings", without(META, "prompt"), (META, "prompt")),
    "cxr.json: prompt a text": Case("findings", put(META, "prompt", value="short"), (META, "prompt")),
    "cxr.json: wording unknown": Case("findings", put(META, "prompt", "wording", value="x"), (META, "wording")),
    "cxr.json: prior a text": Case("findings", put(META, "prompt", "prior", value="no"), (META, "prior")),
    "cxr.json: a field unknown": Case("findings", put(META, "nonesuch", value=1), (META, "nonesuch")),
    "cxr.json: max_new_tokens a text": Case(
        "findings", put(META, "max_new_tokens", value="9"), (META, "max_new_tokens")
    ),
    "cxr.json: max_new_tokens -1": Case("findings", put(META, "max_new_tokens", value=-1), (META, "max_new_tokens")),
    "cxr.json: name nothing": Case("findings", put(META, "name", value=None), (META, "name")),
    "preprocessor cut in half": Case(
        "findings", bytes_("preprocessor_config.json", half), ("preprocessor_config.json",)
    ),
    "preprocessor a list": Case("findings", text("preprocessor_config.json", "[]"), ("preprocessor_config.json",)),
    "preprocessor: size 0": Case(
        "findings", put("preprocessor_config.json", "size", value={"shortest_edge": 0}),
        ("preprocessor_config.json", "size"),
    ),
    "preprocessor: size a text": Case(
        "findings", put("preprocessor_config.json", "size", value="28"), ("preprocessor_config.json", "size")
    ),
    "preprocessor: mean NaN": Case(
        "findings", put("preprocessor_config.json", "image_mean", value=[math.nan] * 3),
        ("preprocessor_config.json",),
    ),
    "preprocessor: std 0": Case(
        "findings", put("preprocessor_config.json", "image_std", value=[0, 0, 0]),
        ("preprocessor_config.json", "std"),
    ),
    "tokenizer cut in half": Case("findings", bytes_("tokenizer.json", half), ("tokenizer.json",)),
    "tokenizer empty": Case("findings", text("tokenizer.json", "{}"), ("tokenizer.json",)),
    "tokenizer absent": Case("findings", gone("tokenizer.json"), ("tokenizer",)),
    "tokenizer's vocabulary a list": Case(
        "findings", put("tokenizer.json", "model", "vocab", value=[1, 2]), ("tokenizer.json",)
    ),
    "tokenizer's ids beyond the model": Case(
        "findings", put("tokenizer.json", "model", "vocab", "zzz", value=10**6), ("tokenizer.json", "vocab_size")
    ),
    "tokenizer_config a list": Case("findings", text("tokenizer_config.json", "[]"), ("tokenizer_config.json",)),
    "tokenizer_config cut in half": Case(
        "findings", bytes_("tokenizer_config.json", half), ("tokenizer_config.json",)
    ),
    "no end of a text": Case(
        "findings", put("tokenizer_config.json", "eos_token", value=None), ("tokenizer", "end-of-sequence")
    ),
    "processor_config cut in half": Case("findings", bytes_("processor_config.json", half), ("processor_config.json",)),
    "processor: patch_size 0": Case(
        "findings", put("processor_config.json", "patch_size", value=0), ("processor_config.json", "patch_size")
    ),
    "processor: patch_size a text": Case(
        "findings", put("processor_config.json", "patch_size", value="7"), ("processor_config.json", "patch_size")
    ),
    "processor: another patch_size": Case(
        "findings", put("processor_config.json", "patch_size", value=14), ("processor_config.json", "patch_size")
    ),
    "generation_config cut in half": Case(
        "findings", bytes_("generation_config.json", half), ("generation_config.json",)
    ),
    "generation: temperature a text": Case(
        "findings", put("generation_config.json", "temperature", value="hot"), ("generation_config.json", "temperature")
    ),
    "generation: eos a text": Case(
        "findings", put("generation_config.json", "eos_token_id", value="x"), ("generation_config.json", "eos_token_id")
    ),
    "pickled weights": Case("findings", pickled("pytorch_model.bin", WEIGHTS), ("holds no model.safetensors",)),
    "reference statistics cut": Case(
        "findings", text("ood.safetensors", "x" * 99),
        ("ood.safetensors",),
    ),
    # ---- adapters
    "adapter cut in half": Case("adapter", bytes_(ADAPTER, half), (ADAPTER, "cut off")),
    "adapter absent": Case("adapter", gone(ADAPTER), (ADAPTER,)),
    "adapter pickled": Case("adapter", pickled("adapter_model.bin", ADAPTER), (ADAPTER, "pickle")),
    "adapter of NaN": Case("adapter", tensor(ADAPTER, "lora_B", filled(math.nan)), (ADAPTER, "lora_B")),
    "adapter of integers": Case("adapter", tensor(ADAPTER, "lora_A", lambda x: x.int()), (ADAPTER, "lora_A")),
    "adapter of another width": Case(
        "adapter", tensor(ADAPTER, "lora_A", lambda x: x[:, :16]), (ADAPTER, "lora_A", "[2, 16]", "[2, 64]")
    ),
    "adapter lacks a tensor": Case(
        "adapter", tensors(ADAPTER, lambda s: s.pop(next(k for k in sorted(s) if "lora_A" in k))), (ADAPTER, "lora_A")
    ),
    "adapter's module unknown": Case(
        "adapter", tensors(ADAPTER, lambda s: s.update({f"{NONE}.lora_A.weight": torch.zeros(2, 32)})),
        (ADAPTER, "nonesuch"),
    ),
    "adapter of another rank": Case("adapter", put(ADAPTER_CONFIG, "r", value=3), (ADAPTER_CONFIG, "r")),
    "adapter of rank 10**9": Case("adapter", put(ADAPTER_CONFIG, "r", value=10**9), (ADAPTER_CONFIG, "r")),
    "adapter of rank a text": Case("adapter", put(ADAPTER_CONFIG, "r", value="2"), (ADAPTER_CONFIG, "r")),
    "adapter's alpha NaN": Case(
        "adapter", put(ADAPTER_CONFIG, "lora_alpha", value=math.nan), (ADAPTER_CONFIG, "lora_alpha|NaN")
    ),
    "adapter's modules others": Case(
        "adapter", put(ADAPTER_CONFIG, "target_modules", value=["fc1"]), (ADAPTER_CONFIG, "target_modules")
    ),
    "adapter's modules a bad pattern": Case(
        "adapter", put(ADAPTER_CONFIG, "target_modules", value="(((("), (ADAPTER_CONFIG, "target_modules")
    ),
    "adapter of a kind unknown": Case(
        "adapter", put(ADAPTER_CONFIG, "peft_type", value="X"), (ADAPTER_CONFIG, "peft_type")
    ),
    "adapter copies layers": Case(
        "adapter", put(ADAPTER_CONFIG, "layer_replication", value=[[0, 2]] * 10**5),
        (ADAPTER_CONFIG, "layer_replication"),
    ),
    "adapter_config cut in half": Case("adapter", bytes_(ADAPTER_CONFIG, half), (ADAPTER_CONFIG,)),
    "adapter_config a list": Case("adapter", text(ADAPTER_CONFIG, "[]"), (ADAPTER_CONFIG,)),
    "adapter's base not there": Case("adapter", put(META, "base", value="nowhere"), ("nowhere",)),
    "adapter's base of another digest": Case("adapter", put(META, "base_sha256", value="0" * 64), ("trained on",)),
    "adapter's base a number": Case("adapter", put(META, "base", value=7), (META, "base")),
    # ---- encoders
    "encoder cut in half": Case("encoder", bytes_(WEIGHTS, half), (WEIGHTS, "cut off")),
    "encoder of NaN": Case("encoder", tensor(WEIGHTS, "fc1.weight", filled(math.nan)), (WEIGHTS, "fc1")),
    "encoder of integers": Case("encoder", tensor(WEIGHTS, "fc1.weight", lambda x: x.int()), (WEIGHTS, "fc1")),
    "encoder of 100,000 layers": Case(
        "encoder", put(CONFIG, "num_hidden_layers", value=100_000), (CONFIG, "num_hidden_layers")
    ),
    "encoder of another width": Case("encoder", put(CONFIG, "hidden_size", value=64), (WEIGHTS, "[")),
    "encoder of 3 heads": Case("encoder", put(CONFIG, "num_attention_heads", value=3), (CONFIG, "num_attention_heads")),
    "encoder lacks a tensor": Case(
        "encoder", tensors(WEIGHTS, lambda s: s.pop("layernorm.weight")), (WEIGHTS, "layernorm.weight")
    ),
    "encoder without patches": Case("encoder", put(CONFIG, "patch_size", value="7"), (CONFIG, "patch_size")),
    "encoder a list": Case("encoder", text(CONFIG, "[]"), (CONFIG,)),
    "weights file cut in half": Case("file", bytes_("weights.safetensors", half), ("weights.safetensors", "cut off")),
    "weights file of NaN": Case(
        "file", tensor("weights.safetensors", "fc1.weight", filled(math.nan)), ("weights.safetensors", "fc1")
    ),
    "weights file of integers": Case(
        "file", tensor("weights.safetensors", "fc1.weight", lambda x: x.int()), ("weights.safetensors", "fc1")
    ),
    "weights file of a flat tensor": Case(
        "file", tensor("weights.safetensors", "pos_embed", lambda x: x.flatten()), ("weights.safetensors", "pos_embed")
    ),
    # ---- language models
    "language model cut in half": Case("language model", bytes_(WEIGHTS, half), (WEIGHTS, "cut off")),
    "language model of NaN": Case("language model", tensor(WEIGHTS, "up_proj", filled(math.nan)), (WEIGHTS, "up_proj")),
    "language model of 100,000 layers": Case(
        "language model", put(CONFIG, "num_hidden_layers", value=100_000), (CONFIG, "num_hidden_layers")
    ),
    "language model of another shape": Case(
        "language model", tensor(WEIGHTS, "k_proj", lambda x: x[:16]), (WEIGHTS, "k_proj", "[16, 32]", "[32, 32]")
    ),
    "language model's tokenizer": Case("language model", text("tokenizer.json", "{}"), ("tokenizer.json",)),
    "language model's tokenizer_config": Case(
        "language model", text("tokenizer_config.json", "[]"), ("tokenizer_config.json",)
    ),
}  # fmt: skip
