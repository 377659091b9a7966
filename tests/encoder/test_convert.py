"""Encoder weights of every origin: names and shapes at full size, as they are published, and numbers at a sixth of the
width."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from cxr.cli.main import main
from encoder.convert import Loaded, difference, load_backbone, save_backbone
from encoder.state_dicts import ConversionError, load_encoder, timm_to_dinov2, timm_to_transformers
from encoder.transforms import Preprocessing
from encoder.vit import CropViT

TENSORS = {"transformers": 223, "timm": 174, "dinov2": 175}  # of a ViT-B with 12 layers


HUB = {"num_hidden_layers": 12, "image_size": 518}


def test_names_and_shapes_are_those_of_the_published_weights():
    """RAD-DINO's: ViT-B/14 at 518 pixels."""
    with torch.device("meta"):
        ours = CropViT(518, 14, 768, 12, 12, layerscale=0.5).state_dict()
        by_transformers = Dinov2Model(
            Dinov2Config(hidden_size=768, num_attention_heads=12, **HUB)
        ).state_dict()
        by_timm = timm.create_model("vit_base_patch14_dinov2", num_classes=0, img_size=518).state_dict()

    def shapes(state):
        return {name: x.shape for name, x in state.items()}

    # transformers renames in memory what it reads; the names in files are compared in `published`
    assert sorted(shapes(timm_to_transformers(ours)).values()) == sorted(shapes(by_transformers).values())
    dinov2 = shapes(timm_to_dinov2(ours))
    assert len(dinov2) == TENSORS["dinov2"] and dinov2.pop("mask_token")
    assert dinov2 == shapes(by_timm)


@pytest.fixture(scope="module")
def narrow():
    """RAD-DINO's layers and pixels at a sixth of its width, with numbers at which nothing is zero."""
    torch.manual_seed(0)
    model = CropViT(518, 14, 128, 12, 2, layerscale=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module")
def published(narrow, tmp_path_factory):
    """Files like those of microsoft/rad-dino and facebook/dinov2-base, and timm's."""
    folder = tmp_path_factory.mktemp("weights")
    hub = Dinov2Model(Dinov2Config(hidden_size=128, num_attention_heads=2, **HUB))
    save_backbone(narrow, folder / "ours", "transformers")
    ours = load_file(folder / "ours" / "model.safetensors")
    hub.save_pretrained(folder / "rad-dino")  # by transformers itself: names and shapes are the library's
    theirs = load_file(folder / "rad-dino" / "model.safetensors")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    save_file(ours, folder / "rad-dino" / "model.safetensors", {"format": "pt"})
    (folder / "rad-dino" / "preprocessor_config.json").write_text(
        (folder / "ours" / "preprocessor_config.json").read_text()
    )
    save_backbone(narrow, folder / "backbone_compatible.safetensors", "dinov2")
    plain = load_file(folder / "backbone_compatible.safetensors")
    chunked = {k.replace("blocks.", "blocks.0.", 1): v for k, v in plain.items()}
    heads = {f"dino_head.mlp.{i}.weight": torch.zeros(2, 2) for i in (0, 2, 4)}
    checkpoint = {"teacher": {**{f"backbone.{k}": v for k, v in chunked.items()}, **heads}, "iteration": 3}
    torch.save(checkpoint, folder / "teacher_checkpoint.pth")
    model = timm.create_model(
        "vit_base_patch14_dinov2", num_classes=0, img_size=518, embed_dim=128, num_heads=2
    )
    state = {k: v for k, v in plain.items() if k != "mask_token"}
    model.load_state_dict(state)
    save_file(state, folder / "timm.safetensors")
    return folder, model.eval()


ORIGINS = {
    "rad-dino": ("transformers", 0, 0),
    "rad-dino/model.safetensors": ("transformers", 0, 0),
    "backbone_compatible.safetensors": ("dinov2", 0, 0),
    "teacher_checkpoint.pth": ("dinov2", 3, 0),
    "timm.safetensors": ("timm", 0, 1),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_every_origin_is_the_same_encoder(published, narrow, origin):
    dialect, left_out, added = ORIGINS[origin]
    loaded = load_backbone(published[0] / origin)
    assert (loaded.dialect, len(loaded.left_out), len(loaded.added)) == (dialect, left_out, added)
    assert loaded.tensors == TENSORS[dialect]
    assert (loaded.backbone.size, loaded.backbone.heads, loaded.backbone.depth) == (518, 2, 12)
    assert difference(loaded.backbone, narrow) < 1e-5
    assert (loaded.preprocessing == Preprocessing()) == (origin == "rad-dino")


@torch.inference_mode()
def test_outputs_are_those_of_the_libraries(published, narrow):
    folder, by_timm = published
    x = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(1))
    ours = narrow.forward_features(x)
    assert (load_encoder(folder / "rad-dino", "sdpa")(x).last_hidden_state - ours).abs().max() < 1e-5
    assert (by_timm.forward_features(x) - ours).abs().max() < 1e-5


def test_another_size_resamples_positions(published, narrow):
    small = load_backbone(published[0] / "backbone_compatible.safetensors", size=224).backbone
    assert small.pos_embed.shape == (1, 1 + 16 * 16, 128) and small.size == 224
    torch.testing.assert_close(small.pos_embed[:, 0], narrow.pos_embed[:, 0])


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return CropViT(56, 14, 128, 2, 2, layerscale=0.5).eval()


@pytest.mark.parametrize("to", ["transformers", "timm", "dinov2"])
@pytest.mark.parametrize("source", ["transformers", "timm", "dinov2"])
def test_the_command(tiny, tmp_path, capsys, source, to):
    given = tmp_path / ("in" if source == "transformers" else "in.safetensors")
    out = tmp_path / "deeper" / ("out" if to == "transformers" else "out.safetensors")
    save_backbone(tiny, given, source, Preprocessing(size=56, mode="pad"))
    assert main(["convert", str(given), str(out), "--to", to]) == 0
    assert "read again, its tokens differ by 0.0e+00" in capsys.readouterr().err
    loaded = load_backbone(out)
    assert isinstance(loaded, Loaded) and loaded.dialect == to
    if source == to == "transformers":
        assert loaded.preprocessing == Preprocessing(size=56, mode="pad")
    assert main(["convert", str(given), str(out), "--to", to]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["convert", str(given), str(out), "--to", to, "--overwrite", "--size", "28"]) == 0
    assert load_backbone(out).backbone.size == 28


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "register_tokens": torch.zeros(1, 4, 128)}, "register tokens"),
        (lambda s: {k.replace("fc1", "w12"): v for k, v in s.items()}, "SwiGLU"),
        (
            lambda s: {k: v for k, v in s.items() if k != "blocks.1.norm1.bias"},
            r"missing blocks\.1\.norm1\.bias",
        ),
        (lambda s: {**s, "blocks.1.surplus.bias": torch.zeros(1)}, "surplus"),
        (lambda s: {**s, "norm.weight": torch.zeros(3)}, r"norm\.weight has shape \(3,\)"),
        (lambda s: {k: v for k, v in s.items() if k != "pos_embed"}, "it has no 'pos_embed'"),
        (lambda s: {k: v for k, v in s.items() if ".ls" not in k}, "no DINOv2 encoder"),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 7, 128)}, "not those of a DINOv2 encoder"),
    ],
)
def test_what_is_no_plain_dinov2_is_refused(tiny, tmp_path, change, message):
    save_backbone(tiny, tmp_path / "x.safetensors", "dinov2")
    state = change(load_file(tmp_path / "x.safetensors"))
    save_file(state, tmp_path / "y.safetensors")
    with pytest.raises(ConversionError, match=message):
        load_backbone(tmp_path / "y.safetensors")


def test_files_that_hold_no_weights(tmp_path, capsys):
    with pytest.raises(FileNotFoundError):
        load_backbone(tmp_path / "absent.safetensors")
    for name in ("x.safetensors", "x.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ConversionError, match=r"no weights that can be read safely|cannot be read"):
            load_backbone(tmp_path / name)
    torch.save(
        {"model": Preprocessing()}, tmp_path / "code.pth"
    )  # would run code if it were unpickled freely
    with pytest.raises(ConversionError, match="read safely"):
        load_backbone(tmp_path / "code.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    assert (
        main(["convert", str(tmp_path / "empty.pth"), str(tmp_path / "out.safetensors"), "--to", "timm"]) == 2
    )
    assert "holds no tensors" in capsys.readouterr().err


def test_heads_of_another_width_are_asked_for(tmp_path):
    save_backbone(CropViT(56, 14, 96, 2, 3, layerscale=0.5), tmp_path / "x.safetensors", "dinov2")
    with pytest.raises(ConversionError, match="give the number of heads"):
        load_backbone(tmp_path / "x.safetensors")
    assert load_backbone(tmp_path / "x.safetensors", heads=3).backbone.heads == 3
