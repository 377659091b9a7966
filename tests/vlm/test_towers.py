"""Every vision tower, projector and choice of features: built, trained, saved, loaded, merged, and the same in plain
transformers (stock Llava) or after `import vlm`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file, save_file

from encoder import towers
from tests.tiny import SIZE, make_llm, make_tower
from vlm import adapters
from vlm import model as models
from vlm import projector as projectors
from vlm.build import build
from vlm.llava import token_grid
from vlm.load import load_model
from vlm.prompts import prompt_for
from vlm.study import Study

CHOICES = {
    "stock": ("dinov2", {}),
    "stock, two layers": ("dinov2", {"layers": (1, -1)}),
    "normed": ("dinov2", {"norm": True}),
    "normed, four linears, two layers": ("dinov2", {"norm": True, "depth": 4, "layers": (1, -1)}),
    "one linear": ("dinov2", {"depth": 1}),
    "pixel shuffle of an odd grid": ("dinov2", {"reduction": "pixel_shuffle", "factor": 3}),
    "pool": ("dinov2", {"reduction": "pool", "factor": 2}),
    "resampler": ("dinov2", {"reduction": "resampler", "factor": 2, "depth": 3}),
    "registers": ("registers", {"norm": True}),
    "clip, stock": ("clip", {"layers": (-2,)}),
    "clip, normed": ("clip", {"norm": True}),
    "siglip, stock": ("siglip", {}),
    "siglip, pixel shuffle": ("siglip", {"reduction": "pixel_shuffle"}),
    "timm": ("timm", {}),
    "timm, normed, two layers": ("timm", {"norm": True, "layers": (1, -1)}),
}


@pytest.fixture(scope="module", params=CHOICES)
def made(request, tower_dirs, llm_dir):
    """(a calibrated model, whether it is stock)."""
    kind, options = CHOICES[request.param]
    model = build(tower_dirs[kind], llm_dir, **options)
    with torch.no_grad():
        x_BNC = features(model, pixels(8))
    projectors.calibrate(model.llava, x_BNC)
    stock = request.param.startswith("stock") or request.param.endswith("stock")
    assert model.llava.config.model_type == ("llava" if stock else "cxr_llava")
    return model, stock


def pixels(n, seed=0):
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def features(model, pixels_BCHW):
    norm = getattr(model.llava.config, "feature_norm", False)
    tower = model.parts.vision_tower
    return projectors.tower_features(tower, pixels_BCHW, projectors.layers_of(model.llava), norm)


def logits(llava, model, x):
    ids = model.prompt_ids(prompt_for(Study("s", indication="Fever"), model.meta.prompt))
    return llava(input_ids=torch.tensor([ids] * len(x)), pixel_values=x).logits


def test_trained_saved_loaded_merged_the_logits_are_equal(made, tmp_path):
    model, stock = made
    models.save(model, tmp_path / "base")
    ours = load_model(tmp_path / "base", trainable=True)
    ours.llava = adapters.add_lora(ours.llava, rank=2, alpha=4)
    trained = [p for p in ours.llava.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for step in range(2):
        loss = logits(ours.llava, ours, pixels(2, step)).square().mean()
        loss.backward()
        if not step:  # everything that is to learn does, and nothing of the tower
            grads = {n: p.grad for n, p in ours.llava.named_parameters() if p.grad is not None}
            assert not any("vision_tower" in name for name in grads)
            assert all(
                n in grads for n, p in ours.llava.named_parameters() if p.requires_grad and "lora_A" not in n
            )
            assert all(g.isfinite().all() for g in grads.values())
        optimizer.step()
        optimizer.zero_grad()
    assert adapters.count_adapters(ours.llava)["vision_tower"] == 0
    ours.llava.eval()
    x = pixels(2, 9)
    with torch.no_grad():
        wanted = logits(ours.llava, ours, x)
        assert (wanted - logits(model.llava, model, x)).abs().max() > 1e-3  # it has learned something
        assert (wanted[0] - wanted[1]).abs().max() > 1e-4  # and sees the image
        models.save_adapter(ours, tmp_path / "adapter", tmp_path / "base")
        loaded = load_model(tmp_path / "adapter")
        torch.testing.assert_close(logits(loaded.llava, loaded, x), wanted)
        models.save(models.merge(loaded), tmp_path / "merged")
        merged = load_model(tmp_path / "merged")
        torch.testing.assert_close(logits(merged.llava, merged, x), wanted, rtol=1e-4, atol=1e-5)

        from transformers import AutoModelForImageTextToText

        plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", attn_implementation="eager")
        assert type(plain).__name__ == ("" if stock else "Cxr") + "LlavaForConditionalGeneration"
        torch.testing.assert_close(logits(plain, merged, x), wanted, rtol=1e-3, atol=1e-4)


def test_cached_features_give_the_same_logits(made):
    model, _ = made
    x = pixels(2)
    with torch.no_grad():
        wanted, x_BNC = logits(model.llava, model, x), features(model, x)
        projector, tower = model.llava.model.multi_modal_projector, model.llava.model.vision_tower
        mean_C, std_C = projectors.statistics(model.llava, features(model, pixels(8)))
        layers = projectors.layers_of(model.llava)
        model.llava.model.vision_tower = projectors.FeatureTower(mean_C, std_C, layers)
        if not hasattr(projector, "resampler"):
            projectors.unfold(projector, mean_C, std_C)
        torch.testing.assert_close(logits(model.llava, model, x_BNC), wanted, rtol=1e-4, atol=1e-4)
        if not hasattr(projector, "resampler"):
            projectors.fold(projector, mean_C, std_C)
        model.llava.model.vision_tower = tower
        torch.testing.assert_close(logits(model.llava, model, x), wanted, rtol=1e-4, atol=1e-4)


def test_the_processor_expands_the_image_as_we_do(made, tmp_path):
    from transformers import AutoProcessor

    model, _ = made
    models.save(model, tmp_path / "m")
    picture = Picture.fromarray(np.random.default_rng(0).integers(0, 255, (40, 52), dtype=np.uint8))
    prompt = prompt_for(Study("s", indication="Fever"))
    found = AutoProcessor.from_pretrained(tmp_path / "m")(images=picture, text=prompt, return_tensors="pt")
    assert found["input_ids"][0].tolist() == model.prompt_ids(prompt)
    ours = model.preprocessing(np.asarray(picture, np.float32) / 255)
    assert (found["pixel_values"][0] - ours).abs().max() <= 1.1 / 255 / 0.25


def test_clip_reads_its_vision_tower_alone(tower_dirs):
    from transformers import CLIPModel

    tower, preprocessing = towers.load_tower(tower_dirs["clip"], "sdpa")
    whole = CLIPModel.from_pretrained(tower_dirs["clip"])
    with torch.no_grad():
        x = pixels(2)
        torch.testing.assert_close(tower(x).last_hidden_state, whole.vision_model(x).last_hidden_state)
    assert preprocessing.mean == (0.481, 0.458, 0.408)


@pytest.mark.parametrize("layers", [(-1,), (1, 2)])
def test_hidden_states_of_timm_are_those_of_its_blocks(tower_dirs, layers):
    tower, _ = towers.load_tower(tower_dirs["timm"], "sdpa")
    seen = {}
    for i, block in enumerate(tower.timm_model.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(i + 1, out[:, 1:]))
    with torch.no_grad():
        found = towers.hidden_states(tower, pixels(2), layers)
        tower(pixels(2))
    for layer, x_BNC in zip(layers, found, strict=True):
        torch.testing.assert_close(x_BNC, seen[layer if layer > 0 else 2])
    with torch.no_grad():
        (normed,) = towers.hidden_states(tower, pixels(2), [-1], norm=True)
        torch.testing.assert_close(normed, tower.timm_model.forward_features(pixels(2))[:, 1:])


def test_an_odd_grid_is_shuffled_with_its_edge_repeated(tower_dirs, llm_dir):
    model = build(tower_dirs["dinov2"], llm_dir, reduction="pixel_shuffle", factor=3)
    x_BNC = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 32)
    out = model.llava.model.multi_modal_projector.fewer(x_BNC)
    assert out.shape == (1, 4, 9 * 32)
    rows = out.view(4, 9, 32)[..., 0].int().tolist()
    assert rows[0] == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert rows[1] == [3, 3, 3, 7, 7, 7, 11, 11, 11]
    assert rows[3] == [15] * 9


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "phi3"])
def test_other_language_models(tower_dirs, tmp_path, kind):
    import transformers as tr

    llm = make_llm(tmp_path / "llm")
    tokenizer = tr.AutoTokenizer.from_pretrained(llm)
    common = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": kind == "qwen2",
    }  # fmt: skip
    (llm / "model.safetensors").unlink()
    tr.AutoModelForCausalLM.from_config(tr.AutoConfig.for_model(kind, **common)).save_pretrained(llm)
    model = build(tower_dirs["dinov2"], llm)
    projectors.calibrate(model.llava, features(model, pixels(4)))
    models.save(model, tmp_path / "m")
    lora = adapters.add_lora(load_model(tmp_path / "m").llava, rank=2)
    assert adapters.count_adapters(lora)["language_model"] == 2 * (4 if kind == "phi3" else 7)
    plain = tr.AutoModelForImageTextToText.from_pretrained(tmp_path / "m", attn_implementation="eager")
    with torch.no_grad():
        x = pixels(2)
        torch.testing.assert_close(
            logits(plain, model, x), logits(model.llava, model, x), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 5}, "1 to 4 layers"),
        ({"reduction": "zip"}, "pixel_shuffle"),
        ({"layers": (3,)}, "hidden states 0 to 2"),
        ({"reduction": "resampler", "factor": 20}, "tokens a side"),
    ],
)
def test_what_cannot_be_built(tower_dirs, llm_dir, options, message):
    with pytest.raises(models.ModelError, match=message):
        build(tower_dirs["dinov2"], llm_dir, **options)


def test_parts_that_are_none(tower_dirs, llm_dir, tmp_path):
    with pytest.raises(models.ModelError, match="a llama model; vision towers are dinov2"):
        build(llm_dir, llm_dir)
    with pytest.raises(models.ModelError, match="no causal language model"):
        build(tower_dirs["dinov2"], tower_dirs["clip"])
    make_tower("siglip", tmp_path / "s")
    weights = load_file(tmp_path / "s" / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "s" / "model.safetensors", {"format": "pt"})
    with pytest.raises(models.ModelError, match=r"tensor embeddings\.patch_embedding\.bias is missing"):
        build(tmp_path / "s", llm_dir)


def test_token_grids():
    assert [token_grid(37, "none", 2), token_grid(37, "pool", 2), token_grid(37, "pixel_shuffle", 3)] == [
        37,
        19,
        13,
    ]
    assert token_grid(37, "resampler", 8) == 8
