"""The findings model is stock, its adapter stays in the language model, and parts that do not fit are refused."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from encoder.towers import load_tower
from tests.tiny import SIZE, make_encoder
from vlm import adapters
from vlm import model as models
from vlm import projector as projectors
from vlm.build import build
from vlm.errors import ModelWarning
from vlm.hub import resolve
from vlm.load import load_model
from vlm.prompts import prompt_for
from vlm.study import Study

PIXELS = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def logits(llava, model, pixels=PIXELS, **more):
    ids = model.prompt_ids(prompt_for(Study("s", indication="Fever"), model.meta.prompt))
    with torch.no_grad():
        return llava(input_ids=torch.tensor([ids] * len(pixels)), pixel_values=pixels, **more).logits


def trained_adapter(model, seed=5):
    """LoRA B starts at zero: give it, and the projector, something to say."""
    model.llava = adapters.add_lora(model.llava, rank=4, alpha=8)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in model.llava.named_parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model.llava.eval()
    return model


def test_plain_transformers_gives_the_same_logits(findings_model, tmp_path):
    from transformers import AutoModelForImageTextToText

    models.save(findings_model, tmp_path / "m")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "m", attn_implementation="eager")
    assert type(plain).__name__ == "LlavaForConditionalGeneration"
    torch.testing.assert_close(
        logits(plain, findings_model), logits(findings_model.llava, findings_model), rtol=1e-4, atol=1e-4
    )


def test_the_processor_expands_the_image_as_we_do(findings_model, tmp_path):
    import numpy as np
    from PIL import Image as Picture
    from transformers import AutoProcessor

    models.save(findings_model, tmp_path / "m")
    prompt = prompt_for(Study("s", indication="Fever"))
    picture = Picture.fromarray(np.random.default_rng(0).integers(0, 255, (40, 52), dtype=np.uint8))
    ids = AutoProcessor.from_pretrained(tmp_path / "m")(images=picture, text=prompt)["input_ids"][0]
    assert list(ids) == findings_model.prompt_ids(prompt)
    assert list(ids).count(findings_model.llava.config.image_token_id) == (SIZE // 7) ** 2


def test_the_features_are_those_before_the_final_layer_norm(findings_model):
    tower = findings_model.llava.model.vision_tower
    with torch.no_grad():
        x_BNC = projectors.tower_features(tower, PIXELS)
        torch.testing.assert_close(tower.layernorm(x_BNC), tower(PIXELS).last_hidden_state)
        mean_C, std_C = projectors.statistics(findings_model.llava, x_BNC)
        expected = findings_model.llava.model.multi_modal_projector(x_BNC[:, 1:])
        got = torch.stack(list(findings_model.llava.get_image_features(PIXELS).pooler_output))
        torch.testing.assert_close(got, expected)
    assert not torch.allclose(x_BNC, tower(PIXELS).last_hidden_state, atol=1e-2)
    assert mean_C.shape == std_C.shape == (32,)


def test_calibration(encoder_dir, llm_dir):
    model = build(encoder_dir, llm_dir)
    x_BNC = 5 * torch.randn(64, 17, 32) + torch.linspace(-30, 30, 32)
    projectors.calibrate(model.llava, x_BNC, gain=3.0)
    with torch.no_grad():
        out = model.llava.model.multi_modal_projector(x_BNC[:, 1:]).flatten(0, 1)
    embedding_std = float(model.llava.get_input_embeddings().weight.detach().std())
    assert float((out - out.mean(0)).std()) / embedding_std == pytest.approx(3.0, rel=1e-3)
    assert out.mean(0).abs().max() < 0.01 * embedding_std


def test_fold_is_the_inverse_of_unfold_and_the_stand_in_gives_the_same_logits(findings_model):
    before = logits(findings_model.llava, findings_model)
    tower, projector = (
        findings_model.llava.model.vision_tower,
        findings_model.llava.model.multi_modal_projector,
    )
    x_BNC = projectors.tower_features(tower, PIXELS)
    mean_C, std_C = projectors.statistics(findings_model.llava, x_BNC)
    findings_model.llava.model.vision_tower = projectors.FeatureTower(mean_C, std_C)
    projectors.unfold(projector, mean_C, std_C)
    torch.testing.assert_close(
        logits(findings_model.llava, findings_model, x_BNC), before, rtol=1e-4, atol=1e-4
    )
    projectors.fold(projector, mean_C, std_C)
    findings_model.llava.model.vision_tower = tower
    torch.testing.assert_close(logits(findings_model.llava, findings_model), before, rtol=1e-4, atol=1e-4)


def test_several_layers_side_by_side(encoder_dir, llm_dir, tmp_path):
    """Stock Llava reads what `tower_features` gives, reloads to equal logits, and the stand-in splits it again."""
    model = build(encoder_dir, llm_dir, layers=(-2, -1))
    tower = model.llava.model.vision_tower
    x_BNC = projectors.tower_features(tower, PIXELS, projectors.layers_of(model.llava)).detach()
    assert x_BNC.shape[-1] == 2 * 32 and not torch.equal(x_BNC[..., :32], x_BNC[..., 32:])
    projectors.calibrate(model.llava, x_BNC)
    before = logits(model.llava, model)
    models.save(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert projectors.layers_of(again.llava) == [-2, -1] and "[-2, -1]" in again.meta.features
    torch.testing.assert_close(logits(again.llava, again), before)
    mean_C, std_C = torch.zeros(64), torch.ones(64)
    model.llava.model.vision_tower = projectors.FeatureTower(mean_C, std_C, [-2, -1])
    torch.testing.assert_close(logits(model.llava, model, x_BNC), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [(), (3,), (-4, -1)])
def test_layers_the_encoder_does_not_have(encoder_dir, llm_dir, layers):
    with pytest.raises(models.ModelError, match="hidden states 0 to 2"):
        build(encoder_dir, llm_dir, layers=layers)


def test_the_image_is_not_ignored(findings_model):
    out = logits(findings_model.llava, findings_model)
    assert (out[0, -1] - out[1, -1]).abs().max() > 1e-3


def test_the_adapter_touches_the_language_model_alone(findings_model):
    llava = adapters.add_lora(findings_model.llava)
    assert adapters.count_adapters(llava) == {
        "vision_tower": 0,
        "multi_modal_projector": 0,
        "language_model": 14,
    }
    trained = {name for name, p in llava.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n or "multi_modal_projector" in n for n in trained)


def test_an_adapter_in_the_vision_tower_is_an_error(findings_model, monkeypatch):
    monkeypatch.setattr(adapters, "LORA_TARGETS", r".*\.(q_proj|v_proj|query|value)")
    with pytest.raises(models.ModelError, match=r"language model alone.*'vision_tower': 4"):
        adapters.add_lora(findings_model.llava)


def test_adapter_on_base_equals_merged(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "base")
    model = trained_adapter(findings_model)
    expected = logits(model.llava, model)
    models.save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    loaded = load_model(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded.llava, loaded), expected, rtol=0, atol=0)
    assert loaded.adapter_sha256 and loaded.meta.base_sha256 == models.weights_sha256(tmp_path / "base")
    merged = models.merge(model)
    models.save(merged, tmp_path / "merged")
    again = load_model(tmp_path / "merged")
    torch.testing.assert_close(logits(again.llava, again), expected, rtol=1e-4, atol=1e-4)
    assert again.adapter_sha256 is None and not again.meta.base


def test_an_adapter_moves_with_its_base(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "run" / "base")
    models.save_adapter(
        trained_adapter(findings_model), tmp_path / "run" / "adapter", tmp_path / "run" / "base"
    )
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    load_model(tmp_path / "elsewhere" / "adapter")


def test_the_wrong_base_is_refused(findings_model, encoder_dir, llm_dir, tmp_path):
    models.save(findings_model, tmp_path / "base")
    other = build(encoder_dir, llm_dir, seed=1)
    models.save(other, tmp_path / "other")
    models.save_adapter(trained_adapter(findings_model), tmp_path / "adapter", tmp_path / "base")
    with pytest.raises(models.ModelError) as error:
        load_model(tmp_path / "adapter", base=tmp_path / "other")
    for folder in ("base", "other"):
        assert models.weights_sha256(tmp_path / folder)[:12] in str(error.value)


def test_another_preprocessing_is_refused(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "m")
    path = tmp_path / "m" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.5] * 3}))
    with pytest.raises(models.ModelError, match="preprocessing"):
        load_model(tmp_path / "m")


def of_the_rule_before(folder, preprocessing):
    """What a version wrote that stretched 8-bit pictures."""
    path = folder / models.META
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"preprocess_sha256": preprocessing.sha256_before})
    )


def test_models_of_the_rule_before_load_and_say_what_changed(findings_model, tmp_path):
    preprocessing = findings_model.preprocessing
    models.save(findings_model, tmp_path / "m")
    wanted = logits(load_model(tmp_path / "m").llava, findings_model)
    of_the_rule_before(tmp_path / "m", preprocessing)
    with pytest.warns(ModelWarning, match=r"m was trained while 8-bit pictures .*DICOM .* as before") as told:
        loaded = load_model(tmp_path / "m")
    assert len(told) == 1 and told[0].filename == __file__
    assert torch.equal(logits(loaded.llava, loaded), wanted)
    # predictions name the rule by which the images are read now
    assert loaded.meta.preprocess_sha256 == preprocessing.sha256
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        models.save(loaded, tmp_path / "again")
        load_model(tmp_path / "again")
        # whoever wants them stretched says so
        config = tmp_path / "m" / "preprocessor_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"cxr_full_range": True}))
        stretching = load_model(tmp_path / "m")
    assert stretching.preprocessing == replace(preprocessing, full_range=True)
    assert stretching.meta.preprocess_sha256 not in (preprocessing.sha256, preprocessing.sha256_before)


def test_adapters_of_the_rule_before_load_and_say_what_changed(findings_model, tmp_path):
    preprocessing = findings_model.preprocessing
    models.save(findings_model, tmp_path / "base")
    models.save_adapter(trained_adapter(findings_model), tmp_path / "adapter", tmp_path / "base")
    of_the_rule_before(tmp_path / "base", preprocessing)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        load_model(tmp_path / "adapter")  # trained since, whatever its base was
    of_the_rule_before(tmp_path / "adapter", preprocessing)
    with pytest.warns(ModelWarning, match="adapter was trained while") as told:
        loaded = load_model(tmp_path / "adapter")
    assert len(told) == 1 and loaded.meta.preprocess_sha256 == preprocessing.sha256
    path = tmp_path / "adapter" / models.META
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocess_sha256": "f" * 64}))
    with pytest.raises(models.ModelError, match="was trained with preprocessing ffffffffffff, but "):
        load_model(tmp_path / "adapter")


def test_an_export_says_how_plain_transformers_differs(findings_model, tmp_path):
    from vlm.card import write_card

    write_card(findings_model, tmp_path)
    assert "as they are, here and by transformers" in (tmp_path / "README.md").read_text()
    findings_model.preprocessing = replace(findings_model.preprocessing, full_range=True)
    write_card(findings_model, tmp_path)
    assert "which transformers' processor does not do" in (tmp_path / "README.md").read_text()


def test_plain_transformers_stops_where_we_do(findings_model, tmp_path):
    findings_model.meta.max_new_tokens = 37
    models.save(findings_model, tmp_path / "m")
    assert load_model(tmp_path / "m").llava.generation_config.max_new_tokens == 37


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_adapter_tensors_without_a_partner_are_an_error(findings_model, tmp_path, change):
    models.save(findings_model, tmp_path / "base")
    models.save_adapter(trained_adapter(findings_model), tmp_path / "adapter", tmp_path / "base")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "lora_A" in n)
    if change == "missing":
        del tensors[name]
    else:
        tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()
    save_file(tensors, path)
    with pytest.raises(models.ModelError, match="without a partner"):
        load_model(tmp_path / "adapter")


def test_merged_weights_that_do_not_fit_are_an_error(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors.pop(next(n for n in tensors if "projector" in n))
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(models.ModelError, match=r"tensor .*projector.* is missing|names tensor .*projector"):
        load_model(tmp_path / "m")


def test_half_precision_halves_the_file_and_leaves_the_model(findings_model, tmp_path):
    models.save(findings_model, tmp_path / "full")
    models.save(findings_model, tmp_path / "half", torch.float16)
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("full", "half")]
    tensors = sum(t.numel() for t in load_file(tmp_path / "half" / "model.safetensors").values())
    assert tensors == sum(p.numel() for p in findings_model.llava.parameters())  # tied weights once
    assert sizes[1] < 0.6 * sizes[0]
    assert findings_model.llava.dtype == torch.float32
    assert load_model(tmp_path / "half").llava.dtype == torch.float32


def test_a_saved_model_keeps_no_trace_of_its_training(findings_model, encoder_dir, tmp_path):
    findings_model.llava.config.text_config.use_cache = False
    models.save(findings_model, tmp_path / "m")
    config = (tmp_path / "m" / "config.json").read_text()
    assert str(encoder_dir) not in config and '"use_cache": false' not in config


def test_nothing_is_overwritten(findings_model, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(models.ModelError, match="not empty"):
        models.save(findings_model, tmp_path / "m")


def test_the_encoder_comes_out_as_it_went_in(findings_model, encoder_dir, tmp_path):
    models.save_encoder(findings_model, tmp_path / "e")
    there, here = (load_file(d / "model.safetensors") for d in (encoder_dir, tmp_path / "e"))
    assert there.keys() == here.keys() and all(torch.equal(there[k], here[k]) for k in there)
    alone, preprocessing = load_tower(tmp_path / "e", "sdpa")
    assert preprocessing == findings_model.preprocessing

    models.save(
        findings_model, tmp_path / "m"
    )  # and a findings model is its tower to whoever asks for an encoder
    tower, preprocessing = load_tower(tmp_path / "m", "sdpa")
    assert preprocessing == findings_model.preprocessing
    weights = tower.state_dict()
    assert all(torch.equal(v, weights.pop(k)) for k, v in alone.state_dict().items()) and not weights


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/dir", "no such folder"),
        ("nonsense", "neither a directory"),
        ("../up", "no such folder"),
    ],
)
def test_a_model_that_is_nowhere(name, says):
    with pytest.raises(models.ModelError, match=says):
        resolve(name)


def test_loading_shows_no_bars_and_leaves_those_of_others(findings_model, tmp_path, capfd):
    from transformers.utils import logging

    models.save(findings_model, tmp_path / "m")
    # A command that ran in this process may have turned them off.
    logging.enable_progress_bar()
    capfd.readouterr()
    load_model(tmp_path / "m")
    assert capfd.readouterr() == ("", "") and logging.is_progress_bar_enabled()


def test_a_gated_model_says_where_its_terms_are(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(name, **options):
        raise GatedRepoError.__new__(GatedRepoError)  # whose own making needs an answer of the hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(models.ModelError, match=r"terms: do that at https://huggingface\.co/some/model"):
        resolve("some/model")


def test_directories_that_hold_something_else(encoder_dir, llm_dir, tmp_path):
    with pytest.raises(models.ModelError, match=r"cxr\.json"):
        load_model(llm_dir)
    with pytest.raises(models.ModelError, match="dinov2"):
        build(llm_dir, llm_dir)
    with pytest.raises(models.ModelError, match=r"is .* an encoder checkpoint"):
        build(tmp_path, llm_dir)
    shutil.copytree(encoder_dir, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(models.ModelError, match="safetensors"):
        build(tmp_path / "pickled", llm_dir)
    odd = make_encoder(tmp_path / "odd")
    path = odd / "preprocessor_config.json"
    path.write_text(path.read_text().replace("28", "30"))
    with pytest.raises(models.ModelError, match="not a multiple"):
        build(odd, llm_dir)


def test_a_tokenizer_without_image_token_gets_one(encoder_dir, llm_dir, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    shutil.copytree(llm_dir, tmp_path / "llm")
    text = (tmp_path / "llm" / "tokenizer.json").read_text().replace("<image>", "<other>")
    (tmp_path / "llm" / "tokenizer.json").write_text(text)
    PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "llm" / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(tmp_path / "llm")
    before = len(AutoTokenizer.from_pretrained(tmp_path / "llm"))
    model = build(encoder_dir, tmp_path / "llm")
    assert len(model.tokenizer) == before + 1 == model.llava.config.text_config.vocab_size
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    assert logits(model.llava, model).shape[-1] == before + 1
