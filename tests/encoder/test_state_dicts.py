"""The three dialects of an encoder's weights: outputs equal, nothing lost, nothing left over."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

from encoder.state_dicts import (
    ConversionError,
    dinov2_config,
    dinov2_to_timm,
    from_dinov2,
    load_encoder,
    load_strict,
    save_dinov2,
    timm_to_dinov2,
    timm_to_transformers,
    transformers_to_timm,
)
from encoder.transforms import Preprocessing
from encoder.vit import CropViT


@pytest.fixture
def vit():
    torch.manual_seed(0)
    model = CropViT(size=56, patch=14, width=32, depth=2, heads=2, layerscale=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def compare(vit, dinov2, size, mask=None):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = vit.forward_crops([x], [mask])[0]
        theirs = dinov2(x, bool_masked_pos=mask)
    torch.testing.assert_close(ours.cls_BC, theirs.pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.patches_BPC, theirs.last_hidden_state[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [56, 28, 84])
def test_saved_encoder_opens_in_plain_transformers_with_equal_outputs(vit, tmp_path, size):
    save_dinov2(vit, tmp_path, Preprocessing(size=56))
    model = AutoModel.from_pretrained(tmp_path)
    assert isinstance(model, Dinov2Model)
    compare(vit, model.eval(), size)
    mask = torch.rand(2, (size // 14) ** 2, generator=torch.Generator().manual_seed(2)) < 0.5
    compare(vit, model, size, mask)
    assert AutoImageProcessor.from_pretrained(tmp_path).crop_size["height"] == 56


def test_load_encoder_uses_our_attention_and_goes_back(vit, tmp_path):
    save_dinov2(vit, tmp_path, Preprocessing(size=56))
    model = load_encoder(tmp_path)
    assert model.config._attn_implementation == "cxr_attention" and not model.training
    compare(vit, model, 56)
    again = from_dinov2(model)
    for name, tensor in vit.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_model_made_by_transformers_converts(tmp_path):
    """Weights that never went through our names: saved by the library, read by us."""
    torch.manual_seed(1)
    model = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42)
    ).eval()
    compare(from_dinov2(model), model, 42)
    model.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    in_memory = model.state_dict()
    assert len(on_disk) == len(in_memory)
    a, b = transformers_to_timm(on_disk), transformers_to_timm(in_memory)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert timm_to_transformers(a).keys() == on_disk.keys()
    assert all(torch.equal(x, on_disk[k]) for k, x in timm_to_transformers(a).items())


def dinov2_names(depth):
    """As in the DINOv2 repository's released checkpoints."""
    names = ["cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    for i in range(depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            names += [f"blocks.{i}.{part}.weight", f"blocks.{i}.{part}.bias"]
        names += [f"blocks.{i}.ls1.gamma", f"blocks.{i}.ls2.gamma"]
    return [*names, "norm.weight", "norm.bias"]


def test_dinov2_repository_names(vit):
    state = vit.state_dict()
    assert set(timm_to_dinov2(state)) == set(dinov2_names(2))
    chunked = {re.sub(r"^blocks\.(\d+)\.", r"blocks.0.\1.", name): x for name, x in state.items()}
    assert set(dinov2_to_timm(chunked)) == set(state)
    with pytest.raises(ConversionError, match="register_tokens"):
        dinov2_to_timm({**state, "register_tokens": torch.zeros(1, 4, 32)})
    with pytest.raises(ConversionError, match="coincide"):
        dinov2_to_timm({**state, "blocks.0.1.norm1.weight": torch.zeros(32)})


def test_vit_b_has_every_tensor_of_the_hub_file():
    """At full size, without memory: counts and shapes of a ViT-B/14 at 518 px."""
    with torch.device("meta"):
        vit = CropViT(size=518, patch=14, width=768, depth=12, heads=12)
        theirs = Dinov2Model(dinov2_config(vit))
        converted = timm_to_transformers(vit.state_dict())
        back = transformers_to_timm(theirs.state_dict())
    assert len(converted) == len(theirs.state_dict()) == 223
    assert {k: x.shape for k, x in back.items()} == {k: x.shape for k, x in vit.state_dict().items()}
    assert converted["encoder.layer.11.attention.attention.key.weight"].shape == (768, 768)


def test_position_embeddings_are_resampled_when_the_size_differs(vit):
    bigger = CropViT(size=84, patch=14, width=32, depth=2, heads=2, layerscale=0.5).eval()
    assert load_strict(bigger, vit.state_dict()) == len(vit.state_dict())
    x = torch.randn(1, 3, 84, 84)
    with torch.no_grad():
        torch.testing.assert_close(bigger.forward_crops([x])[0].cls_BC, vit.forward_crops([x])[0].cls_BC)


def test_nothing_may_be_missing_left_over_or_misshapen(vit, tmp_path):
    state = vit.state_dict()
    for broken, message in (
        ({k: x for k, x in state.items() if k != "norm.bias"}, "missing norm.bias"),
        ({**state, "head.weight": torch.zeros(1)}, "left over head.weight"),
        ({**state, "norm.bias": torch.zeros(31)}, "norm.bias has shape"),
    ):
        with pytest.raises(ConversionError, match=message):
            load_strict(vit, broken)
    with pytest.raises(ConversionError, match=r"head\.weight"):
        timm_to_transformers({**state, "head.weight": torch.zeros(1)})
    with pytest.raises(ConversionError, match=r"blocks\.0\.norm1\.gamma"):
        timm_to_transformers({"blocks.0.norm1.gamma": torch.zeros(1)})
    theirs = timm_to_transformers(state)
    del theirs["encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(ConversionError, match="siblings"):
        transformers_to_timm(theirs)
    with pytest.raises(ConversionError, match="classifier"):
        transformers_to_timm({**theirs, "classifier.weight": torch.zeros(1)})


def test_a_damaged_checkpoint_directory_is_refused(vit, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_encoder(tmp_path)
    save_dinov2(vit, tmp_path, Preprocessing(size=56))
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConversionError, match="extra"):
        load_encoder(tmp_path)
    state.pop("layernorm.bias")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConversionError, match=r"layernorm\.bias"):
        load_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(ConversionError, match="vit"):
        load_encoder(tmp_path)
