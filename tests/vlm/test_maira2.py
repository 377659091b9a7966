"""MAIRA-2's format: a tiny checkpoint of it, made here from the library's own parts under the original's names, is read
into a model that says the same; and what is not that format is refused by name."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors, trainers
from tokenizers import models as tokenizer_models
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    Dinov2Backbone,
    Dinov2Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from vlm import Findings, maira2
from vlm import model as models
from vlm.decoding import Decoding, generate_ids
from vlm.load import load_model
from vlm.prompts import MAIRA2, prompt_for
from vlm.sentences import sentences
from vlm.study import Image, Prior, Study, save_studies

SIZE, PATCH, WIDTH = 28, 7, 32
TOKENS = (SIZE // PATCH) ** 2
INDEX = "model.safetensors.index.json"
WORDS = (
    "There is a small left pleural effusion. The heart is enlarged. The lungs are clear. Fever and cough. N/A",
    prompt_for(Study("s"), MAIRA2),
)
# The order of the original's 207 added tokens
ADDED = [
    "<obj>", "</obj>", *(f"<x{i}>" for i in range(100)), *(f"<y{i}>" for i in range(100)), "<box>", "</box>", "<image>",
    "<prev_im>", "<lat_image>",
]  # fmt: skip
VISION = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": SIZE,
    "patch_size": PATCH, "out_features": ["stage2"], "out_indices": [2], "apply_layernorm": True,
    "reshape_hidden_states": False, "layer_norm_eps": 1e-6,
}  # fmt: skip
TEXT = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64, "pad_token_id": 0,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "rope_scaling": {"factor": 1.5, "type": "linear"},
}  # fmt: skip


class Original(nn.Module):
    """The composition as it is described, under the names that its files have."""

    def __init__(self, vocabulary: int, vision=VISION, text=TEXT):
        super().__init__()
        self.vision_tower = Dinov2Backbone(Dinov2Config(**vision))
        wide = text["hidden_size"]
        linears = [nn.Linear(WIDTH, wide), *(nn.Linear(wide, wide) for _ in range(3))]
        self.multi_modal_projector = nn.Module()
        self.multi_modal_projector.layers = nn.Sequential(
            linears[0], nn.GELU(), linears[1], nn.GELU(), linears[2], nn.GELU(), linears[3]
        )
        self.language_model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **text))

    @torch.no_grad()
    def logits(self, ids: list[int], image: int, pixels_ICHW: torch.Tensor) -> torch.Tensor:
        x_INC = self.vision_tower(pixels_ICHW).feature_maps[-1][:, 1:]
        x_TH = self.multi_modal_projector.layers(x_INC).flatten(0, 1)
        ids_N = torch.tensor(ids)
        embeds_NH = self.language_model.model.embed_tokens(ids_N)
        embeds_NH[ids_N == image] = x_TH
        return self.language_model(inputs_embeds=embeds_NH[None]).logits[0]

    def greedy(self, ids: list[int], image: int, pixels_ICHW: torch.Tensor, most: int) -> list[int]:
        """Without a cache."""
        written = []
        while len(written) < most and 2 not in written:
            written.append(int(self.logits(ids + written, image, pixels_ICHW)[-1].argmax()))
        return written


def make_tokenizer(folder: Path) -> Tokenizer:
    """Vicuna's kind: BPE over "▁", which is also put before every piece of text beside an added token."""
    tokenizer = Tokenizer(tokenizer_models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([text.replace("<image>", "") for text in WORDS], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "LlamaTokenizer", "processor_class": "Maira2Processor", "legacy": True,
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<unk>", "model_max_length": 4096, "padding_side": "right", "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def make_config(folder: Path, vocabulary: int, image: int) -> None:
    row = {
        "architectures": ["Maira2ForConditionalGeneration"], "model_type": "maira2", "torch_dtype": "float32",
        "auto_map": {"AutoModelForCausalLM": "modeling_maira2.Maira2ForConditionalGeneration"},
        "image_token_index": image, "image_seq_length": 576, "multimodal_projector_bias": True, "pad_token_id": 0,
        "hidden_size": TEXT["hidden_size"], "ignore_index": -100, "projector_hidden_act": "gelu",
        "projector_n_layers": 4, "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
        "text_config": {
            **TEXT, "vocab_size": vocabulary, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "torch_dtype": "float32", "use_cache": False,
        },
        "vision_config": {
            **VISION, "model_type": "dinov2", "architectures": ["Dinov2Model"],
            "stage_names": ["stem", "stage1", "stage2"],
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(row))


def original_tensors(model: Original) -> dict[str, torch.Tensor]:
    """As transformers 4 saved them: the tower under the names that it has in files to this day, the rest as the modules
    are called."""
    with tempfile.TemporaryDirectory() as folder:
        model.vision_tower.save_pretrained(folder)
        tower = load_file(Path(folder) / "model.safetensors")
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("vision_tower.")}
    return state | {f"vision_tower.{name}": tensor.clone() for name, tensor in tower.items()}


def write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    for old in folder.glob("model*"):
        old.unlink()
    ordered = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": ordered[::2],
        "model-00002-of-00002.safetensors": ordered[1::2],
    }
    for file, mine in shards.items():
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, mine in shards.items() for name in mine}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def shuffle_weights(model: nn.Module, seed: int) -> None:
    """Norms and biases, too: what is one or zero would hide its absence."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.12 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, Original]:
    folder = tmp_path_factory.mktemp("maira2")
    tokenizer = make_tokenizer(folder)
    make_config(folder, tokenizer.get_vocab_size(), tokenizer.token_to_id("<image>"))
    square = {"height": SIZE, "width": SIZE}
    processor = {
        "image_processor_type": "BitImageProcessor", "processor_class": "Maira2Processor", "crop_size": square,
        "size": {"shortest_edge": SIZE}, "image_mean": [0.5307] * 3, "image_std": [0.2583] * 3, "resample": 3,
        "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "rescale_factor": 0.00392156862745098, "auto_map": {"AutoProcessor": "processing_maira2.Maira2Processor"},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    torch.manual_seed(0)
    model = Original(tokenizer.get_vocab_size()).eval()
    shuffle_weights(model, 1)
    write_shards(folder, original_tensors(model))
    return folder, model


@pytest.fixture(scope="module")
def held(checkpoint) -> dict[str, torch.Tensor]:
    return original_tensors(checkpoint[1])


@pytest.fixture(scope="module")
def loaded(checkpoint) -> models.FindingsModel:
    return load_model(checkpoint[0])


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint[0], tmp_path / "copy"))


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[str, Study]:
    """A frontal film alone, and one with a lateral film and a prior."""
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)

    def film(name: str, view: str) -> Image:
        Picture.fromarray(rng.integers(0, 255, (40, 34)).astype(np.uint8)).save(folder / name)
        return Image(str(folder / name), view)

    prior = Prior([film("before.png", "AP")], "The lungs are clear.")
    images = [film("side.png", "lateral"), film("front.png", "PA")]
    return {
        "frontal": Study(
            "frontal", images=[film("alone.png", "PA")], indication="Fever and cough.", split="train"
        ),
        "three": Study(
            "three", images=images, prior=prior, findings="There is a small effusion.", split="train"
        ),
    }


def seen(study: Study, model: models.FindingsModel) -> torch.Tensor:
    from encoder.radiograph import read
    from vlm.prompts import shown_images

    shown = shown_images(study, model.meta.prompt)
    return torch.stack([model.preprocessing(read(image.path)) for _, image in shown])


@pytest.mark.parametrize("which", ["frontal", "three"])
def test_it_says_what_the_original_says(checkpoint, loaded, studies, which):
    folder, original = checkpoint
    text, pixels_ICHW = prompt_for(studies[which], MAIRA2), seen(studies[which], loaded)
    ids = loaded.prompt_ids(text)
    image = loaded.tokenizer.convert_tokens_to_ids("<image>")
    # as the original's processor does it: the image token repeated in the text, tokenizer.json word for word
    verbatim = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids == verbatim.encode(text.replace("<image>", "<image>" * TOKENS)).ids
    assert ids.count(image) == TOKENS * len(pixels_ICHW) == TOKENS * {"frontal": 1, "three": 3}[which]
    with torch.no_grad():
        got = loaded.llava(input_ids=torch.tensor([ids]), pixel_values=pixels_ICHW).logits[0]
    expected = original.logits(ids, image, pixels_ICHW)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1  # they differ enough for the comparison to mean something
    written = generate_ids(loaded.llava, loaded, [ids], pixels_ICHW, Decoding(12))
    assert written == [original.greedy(ids, image, pixels_ICHW, 12)]
    # random weights may repeat a token for ever, and which do depends on PyTorch's version; but not at every position
    assert len(set(expected.argmax(-1).tolist())) > 2


def test_scaled_positions_and_the_last_norm_matter_here(checkpoint, loaded, studies):
    """What the comparison above would not see if it did not."""
    _, original = checkpoint
    ids, pixels_ICHW = loaded.prompt_ids(prompt_for(studies["three"], MAIRA2)), seen(studies["three"], loaded)
    image, vocabulary = loaded.llava.config.image_token_id, len(loaded.tokenizer)
    expected = original.logits(ids, image, pixels_ICHW)
    for vision, text in (
        (VISION | {"apply_layernorm": False}, TEXT),
        (VISION, TEXT | {"rope_scaling": None}),
    ):
        other = Original(vocabulary, vision, text).eval()
        other.load_state_dict(original.state_dict())
        assert (other.logits(ids, image, pixels_ICHW) - expected).abs().max() > 0.05


def test_spaces_beside_images_are_those_of_its_tokenizer(checkpoint, loaded):
    ids = loaded.prompt_ids(prompt_for(Study("s", indication="Fever"), MAIRA2))
    image, bos = loaded.llava.config.image_token_id, loaded.tokenizer.bos_token_id
    assert ids[0] == bos and ids.count(bos) == 1 and loaded.tokenizer.eos_token_id not in ids
    first = ids.index(image)
    assert ids[first : first + TOKENS] == [image] * TOKENS and image not in ids[first + TOKENS :]
    pieces = loaded.tokenizer.convert_ids_to_tokens(ids)
    before, after = "".join(pieces[1:first]), "".join(pieces[first + TOKENS :])
    assert before.startswith("▁You▁are") and before.endswith(
        "study.▁▁USER:▁▁Given▁the▁current▁frontal▁image▁only"
    )
    assert after.startswith("▁▁Provide") and after.endswith("COMPARISON:▁N/A▁▁ASSISTANT:▁")
    answer = loaded.answer_ids("The lungs are clear.")
    assert "".join(loaded.tokenizer.convert_ids_to_tokens(answer)) == "▁The▁lungs▁are▁clear.</s>"


def test_what_accompanies_it(loaded, checkpoint):
    meta = loaded.meta
    assert meta.prompt == MAIRA2 and meta.max_new_tokens == 300 and meta.name == "MAIRA-2"
    assert "not for diagnosis" in meta.notice and "MSRLA" in meta.notice
    assert meta.features == "hidden_states[-1], after the final LayerNorm, without CLS"
    assert loaded.image_tokens == TOKENS and loaded.preprocessing.size == SIZE
    assert loaded.revision == models.weights_sha256(checkpoint[0])
    assert loaded.llava.dtype == torch.float32 and not loaded.llava.training
    assert (
        loaded.tokenizer.pad_token_id == 0
        and len(loaded.tokenizer) == loaded.llava.config.text_config.vocab_size
    )
    assert load_model(checkpoint[0], dtype=torch.bfloat16).llava.dtype == torch.bfloat16


def test_places_are_left_out_of_texts(loaded):
    """The tokens of boxes keep their ids, and are no words."""
    tokenizer = loaded.tokenizer
    assert tokenizer.convert_tokens_to_ids(ADDED) == list(range(len(tokenizer) - 207, len(tokenizer)))
    text = "<obj>The heart <box><x1><y99><x30><y0></box>is enlarged.</obj><prev_im><lat_image>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert " ".join(tokenizer.decode(ids, skip_special_tokens=True).split()) == "The heart is enlarged."
    (sentence,) = [words for words, _ in sentences(tokenizer, [*ids, tokenizer.eos_token_id])]
    assert " ".join(sentence.split()) == "The heart is enlarged."


def test_findings_of_files(checkpoint, loaded, studies, tmp_path):
    """Batched, from disk; saved as ours it loads without the original, and says the same."""
    both = list(studies.values())
    findings = Findings.from_pretrained(checkpoint[0], device="cpu")
    first = list(findings.generate(both, max_new_tokens=8))
    assert not any(p.error for p in first) and all(p.model == "MAIRA-2" for p in first)
    for study, prediction in zip(both, first, strict=True):
        ids = loaded.prompt_ids(prompt_for(study, MAIRA2))
        written = checkpoint[1].greedy(ids, loaded.llava.config.image_token_id, seen(study, loaded), 8)
        assert prediction.findings == loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    models.save(loaded, tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert ours.meta == loaded.meta and ours.llava.config.model_type == "cxr_llava"
    ids, pixels_ICHW = loaded.prompt_ids(prompt_for(studies["three"], MAIRA2)), seen(studies["three"], loaded)
    assert ours.prompt_ids(prompt_for(studies["three"], MAIRA2)) == ids
    with torch.no_grad():
        one, other, third = (
            llava(input_ids=torch.tensor([ids]), pixel_values=pixels_ICHW).logits
            for llava in (loaded.llava, ours.llava, plain)
        )
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(one, third, rtol=0, atol=1e-5)
    again = list(Findings(ours).generate(both, max_new_tokens=8))
    assert [p.findings for p in again] == [p.findings for p in first]


def test_the_commands(checkpoint, studies, tmp_path, capsys):
    from cxr.cli.main import main

    folder = str(checkpoint[0])
    save_studies(studies.values(), tmp_path / "studies.jsonl")
    command = ["generate", str(tmp_path / "studies.jsonl"), "--model", folder, "--max-new-tokens", "4"]
    assert main([*command, "--out", str(tmp_path / "p.jsonl"), "--device", "cpu"]) == 0
    assert "MSRLA" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["study_id"] for row in rows] == ["frontal", "three"] and all(
        "findings" in row for row in rows
    )
    assert main(["export", folder, str(tmp_path / "out"), "--dtype", "bf16", "--licence", "data: ours"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- {maira2.LICENCE}\n- data: ours" in card
    assert load_model(tmp_path / "out").meta.prompt == MAIRA2
    film = studies["frontal"].images[0].path
    assert main(["embed", film, "--model", folder, "--out", str(tmp_path / "features")]) == 0


def test_it_goes_on_learning_under_its_own_prompt(checkpoint, studies, tmp_path, capsys):
    from train.finetune.__main__ import main

    listed = [
        replace(s, findings="The lungs are clear.", study_id=f"{s.study_id}{i}")
        for i in range(2)
        for s in studies.values()
    ]
    save_studies(listed, tmp_path / "studies.jsonl")
    command = [
        "--init", str(checkpoint[0]), "--studies", str(tmp_path / "studies.jsonl"), "--out", str(tmp_path / "run"),
        "--batch_size", "2", "--max_steps", "3", "--warmup_steps", "0", "--dataloader_num_workers", "0",
        "--lora_rank", "2",
        "--precision", "fp32", "--save_steps", "3", "--logging_steps", "1",
    ]  # fmt: skip
    assert main([*command, "--wording", "maira2"]) == 0
    assert "changes to" not in capsys.readouterr().out
    adapter = load_model(tmp_path / "run" / "adapter")
    assert adapter.meta.prompt == MAIRA2 and "MSRLA" in adapter.meta.notice
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in losses if "loss" in row]
    assert losses[-1] < losses[0]


def test_a_prompt_that_it_has_no_place_for_is_refused(checkpoint, tmp_path):
    from train.common.config import ConfigError
    from train.finetune.__main__ import main

    command = [
        "--init",
        str(checkpoint[0]),
        "--studies",
        str(tmp_path / "s.jsonl"),
        "--out",
        str(tmp_path / "run"),
    ]
    (tmp_path / "s.jsonl").write_text("")
    with pytest.raises(ConfigError, match="findings alone"):
        main([*command, "--wording", "maira2", "--section", "both"])


# --- what is refused --------------------------------------------------------------------------------------------------

NAMES = [
    "language_model.model.layers.1.mlp.up_proj.weight", "language_model.lm_head.weight",
    "multi_modal_projector.layers.6.bias", "vision_tower.encoder.layer.0.attention.attention.query.weight",
    "vision_tower.layernorm.weight", "vision_tower.embeddings.mask_token",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["missing", "left over", "shape"])
def test_tensors_that_do_not_fit_are_named(held, copy, name, change):
    tensors = dict(held)
    if change == "missing":
        del tensors[name]
    elif change == "left over":
        tensors[name := name + "_scale"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    write_shards(copy, tensors)
    with pytest.raises(models.ModelError) as error:
        load_model(copy)
    assert name in str(error.value) and change in str(error.value)


def test_files_and_index_must_agree(copy):
    index = json.loads((copy / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    for said, message in (
        ({**index["weight_map"], "more.weight": file}, "more.weight"),
        ({k: v for k, v in index["weight_map"].items() if k != name}, name),
        ({**index["weight_map"], name: "../model.safetensors"}, "not a safetensors file beside it"),
        ({**index["weight_map"], name: "pytorch_model.bin"}, "not a safetensors file beside it"),
        ({**index["weight_map"], name: "model-00003-of-00002.safetensors"}, "does not exist"),
    ):
        (copy / INDEX).write_text(json.dumps({"weight_map": said}))
        with pytest.raises(models.ModelError, match=message):
            load_model(copy)
    (copy / INDEX).write_text("[]")
    with pytest.raises(models.ModelError, match="weight_map"):
        load_model(copy)


def test_one_file_without_an_index_will_do(held, copy, loaded):
    tensors = dict(held)
    for old in copy.glob("model*"):
        old.unlink()
    save_file({k: v.to(torch.bfloat16) for k, v in tensors.items()}, copy / "model.safetensors")
    model = load_model(copy)
    assert model.llava.dtype == torch.float32
    torch.testing.assert_close(model.llava.lm_head.weight, loaded.llava.lm_head.weight, rtol=1e-2, atol=1e-2)
    (copy / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(models.ModelError, match="cannot be read"):
        load_model(copy)


def test_pickled_weights_are_refused(held, copy):
    tensors = dict(held)
    for old in copy.glob("model*"):
        old.unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    with pytest.raises(models.ModelError, match="pickled weights are not read"):
        load_model(copy)


def test_quantised_weights_are_refused(held, copy):
    tensors = dict(held)
    tensors["language_model.lm_head.weight"] = tensors["language_model.lm_head.weight"].to(torch.int8)
    write_shards(copy, tensors)
    with pytest.raises(models.ModelError, match=r"lm_head.*int8"):
        load_model(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        (
            {"vision_feature_layer": -2},
            r"vision_feature_layer -2 names none of the out_features \['stage2'\]",
        ),
        ({"vision_feature_layer": [-1]}, "vision_feature_layer"),
        ({"projector_n_layers": 0}, "projector_n_layers"),
        ({"projector_n_layers": 3}, "left over 2, first multi_modal_projector.layers.6.bias"),
        ({"projector_hidden_act": "wobble"}, "wobble"),
        ({"image_token_index": 7}, "<image>"),
        ({"text_config": {"model_type": "mistral"}}, "text_config must be of a llama model"),
        ({"text_config": {"rope_scaling": {"type": "yarn", "factor": 2.0}}}, "yarn"),
        ({"text_config": {"rope_scaling": {"type": "linear"}}}, "needs a factor"),
        ({"text_config": {"tie_word_embeddings": True}}, "tie"),
        ({"text_config": {"vocab_size": 100}}, "100"),
        ({"text_config": {"hidden_size": 64}}, "hidden size"),
        ({"text_config": {"num_hidden_layers": "two"}}, "num_hidden_layers"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config must be of a dinov2 model"),
        ({"vision_config": {"reshape_hidden_states": True}}, "reshape_hidden_states"),
        ({"vision_config": {"out_features": ["stage9"], "out_indices": None}}, "stage9"),
        ({"vision_config": {"patch_size": 5}}, "not a multiple of patch size 5"),
        ({"vision_config": None}, "vision_config"),
    ],
)
def test_configurations_that_mean_something_else(copy, change, message):
    path = copy / "config.json"
    row = json.loads(path.read_text())
    for key, value in change.items():
        row[key] = row[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(row))
    with pytest.raises(models.ModelError, match=message):
        load_model(copy)


def test_what_may_be_absent_is_as_its_classes_have_it(checkpoint, copy, loaded, studies):
    path = copy / "config.json"
    row = json.loads(path.read_text())
    for key in (
        "projector_n_layers", "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy",
        "multimodal_projector_bias", "image_seq_length", "image_token_index",
    ):  # fmt: skip
        del row[key]
    row["vision_config"] = {
        k: v for k, v in row["vision_config"].items() if k not in ("model_type", "reshape_hidden_states")
    }
    row["vision_config"]["_out_features"] = row["vision_config"].pop("out_features")
    row["text_config"]["rope_scaling"]["rope_type"] = row["text_config"]["rope_scaling"].pop("type")
    path.write_text(json.dumps(row))
    model = load_model(copy)
    ids, pixels_ICHW = (
        loaded.prompt_ids(prompt_for(studies["frontal"], MAIRA2)),
        seen(studies["frontal"], loaded),
    )
    with torch.no_grad():
        one, other = (
            m.llava(input_ids=torch.tensor([ids]), pixel_values=pixels_ICHW).logits for m in (loaded, model)
        )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [{"out_features": ["stage1"], "out_indices": [1]}, {"apply_layernorm": False}],
    ids=["stage1", "no norm"],
)
def test_other_features_are_read_as_the_backbone_gives_them(checkpoint, copy, loaded, studies, change):
    path = copy / "config.json"
    row = json.loads(path.read_text())
    row["vision_config"] |= change
    path.write_text(json.dumps(row))
    model = load_model(copy)
    other = Original(len(loaded.tokenizer), VISION | change).eval()
    other.load_state_dict(checkpoint[1].state_dict())
    ids, pixels_ICHW = (
        loaded.prompt_ids(prompt_for(studies["frontal"], MAIRA2)),
        seen(studies["frontal"], loaded),
    )
    with torch.no_grad():
        got = model.llava(input_ids=torch.tensor([ids]), pixel_values=pixels_ICHW).logits[0]
    torch.testing.assert_close(
        got, other.logits(ids, model.llava.config.image_token_id, pixels_ICHW), rtol=0, atol=1e-5
    )


def test_pictures_are_spread_over_the_whole_range_first(checkpoint, loaded, tmp_path):
    """As the original's processor does, before the library's takes them."""
    from transformers import BitImageProcessor

    from encoder.radiograph import read

    levels = np.random.default_rng(3).integers(90, 141, (61, 47)).astype(np.uint8)
    Picture.fromarray(levels).save(tmp_path / "x.png")
    shown = levels.astype(float)
    shown -= shown.min()
    shown = (shown / shown.max() * 255).astype(np.uint8)
    library = BitImageProcessor.from_pretrained(checkpoint[0])
    wanted = library(Picture.fromarray(shown), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(loaded.preprocessing(read(tmp_path / "x.png")), wanted)


def test_its_other_files_must_be_there(copy):
    for change, message in (
        (lambda row: row | {"do_normalize": False}, "do_normalize"),
        (lambda row: row | {"rescale_factor": 1.0}, "rescale_factor"),
    ):
        path = copy / "preprocessor_config.json"
        text = path.read_text()
        path.write_text(json.dumps(change(json.loads(text))))
        with pytest.raises(models.ModelError, match=message):
            load_model(copy)
        path.write_text(text)
    path.unlink()
    with pytest.raises(models.ModelError, match=r"preprocessor_config\.json"):
        load_model(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(models.ModelError, match=r"tokenizer\.json"):
        load_model(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(models.ModelError, match=r"config\.json cannot be read"):
        load_model(copy)


def test_every_name_is_one_of_the_original(loaded, held):
    assert {maira2.original_name(name) for name in loaded.llava.state_dict()} == set(held)
