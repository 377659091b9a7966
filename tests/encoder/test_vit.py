"""The trainable ViT: initialisation, several sizes in one pass, masks, stochastic depth."""

import math

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from encoder.vit import CropViT, Features, resample_pos_embed, sincos_positions
from tests.calls import Calls


def vit(**kwargs) -> CropViT:
    torch.manual_seed(0)
    model = CropViT(
        **{"size": 56, "patch": 14, "width": 32, "depth": 3, "heads": 2, "layerscale": 0.5, **kwargs}
    )
    with torch.no_grad():  # so that no parameter is zero, as biases and the mask token are at first
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def images(n, size, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_names_and_shapes_are_those_of_timms_dinov2():
    with torch.device("meta"):
        ours = CropViT(size=518, patch=14, width=768, depth=12, heads=12)
        theirs = timm.create_model("vit_base_patch14_dinov2", num_classes=0)
    shapes = {name: tuple(x.shape) for name, x in ours.state_dict().items()}
    assert shapes.pop("mask_token") == (1, 768)
    assert shapes == {name: tuple(x.shape) for name, x in theirs.state_dict().items()}


def test_every_parameter_is_initialised():
    model = CropViT(size=56, patch=14, width=32, depth=2, heads=2)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    model.init_weights(needs_reset=True)
    forgotten = [name for name, p in model.named_parameters() if p.isnan().any()]
    assert not forgotten


def test_sizes_in_one_pass_equal_each_alone():
    model = vit()
    groups = [images(3, 56), images(5, 28, 1), images(2, 42, 2)]
    together = model.forward_crops(groups)
    for x, features in zip(groups, together, strict=True):
        tokens = model.forward_features(x)
        torch.testing.assert_close(features.cls_BC, tokens[:, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(features.patches_BPC, tokens[:, 1:], rtol=1e-5, atol=1e-6)


def packed_features(model, tokens, residual):
    """What an accelerator computes: all resolutions as one pack."""
    x, found = model._blocks(tokens, residual), []
    for group in tokens:
        part, x = x.split([group.shape[0] * group.shape[1], len(x) - group.shape[0] * group.shape[1]])
        part = part.view(*group.shape)
        found.append(Features(part[:, 0], part[:, 1:]))
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("depth", [False, True])
def test_wanted_tokens_are_those_of_the_whole_pass(packed, depth, monkeypatch):
    model, crops = vit(), [images(3, 56), images(2, 28, 1)]
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[0, [1, 5]] = mask[2, 15] = True
    residual = None
    if depth:
        residual = (torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(1)) < 0.6) * 1.7
    if packed:  # as on an accelerator
        monkeypatch.setattr(
            CropViT, "_passes", lambda self, crops, masks, residual: iter(
                [([self._embed(x, m) for x, m in zip(crops, masks, strict=True)], residual)]
            ),
        )  # fmt: skip
    whole = model.forward_crops(crops, [mask, None], residual)
    for wanted in (mask.flatten().nonzero()[:, 0], torch.zeros(0, dtype=torch.long)):
        cls, patches = model.forward_wanted(crops, [mask, None], residual, wanted)
        torch.testing.assert_close(cls, torch.cat([f.cls_BC for f in whole]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(patches, whole[0].patches_BPC.flatten(0, 1)[wanted], rtol=1e-5, atol=1e-6)


def test_packed_pass_equals_one_pass_a_resolution():
    """What runs on an accelerator, with stochastic depth, run here."""
    model = vit()
    groups = [images(2, 56), images(3, 28, 1)]
    residual = (torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(3)) > 0.4) * 2.0
    tokens = [model._embed(x, None) for x in groups]
    packed = packed_features(model, tokens, residual)
    for a, b in zip(packed, model.forward_crops(groups, residual_LRS=residual), strict=True):
        torch.testing.assert_close(a.cls_BC, b.cls_BC, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.patches_BPC, b.patches_BPC, rtol=1e-5, atol=1e-6)


def test_training_after_inference_mode():
    """What the first pass keeps for later ones serves training too."""
    model, shapes = vit(), (3, 5)
    tokens = [torch.randn(2, n, 32, requires_grad=True) for n in shapes]
    with torch.inference_mode():
        model._blocks(tokens, None)
    model._blocks(tokens, None)[0].sum().backward()
    assert all(x.grad is not None for x in tokens)


def test_attention_is_our_operator():
    with Calls() as calls:
        vit().forward_crops([images(2, 56), images(2, 28)])
    assert calls.count("attention") == 2 * 3


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_other_attention_gives_the_same(attention):
    crops = [images(2, 56), images(3, 28)]
    with Calls() as calls:
        found = vit(attention=attention).forward_crops(crops)
        packed = packed_features(vit(attention=attention), [vit()._embed(x, None) for x in crops], None)
    assert not calls.made
    for x, y, z in zip(found, packed, vit().forward_crops(crops), strict=True):
        torch.testing.assert_close(x, z, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)


def test_masked_patches_are_not_seen():
    model = vit()
    x = images(2, 56)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = mask[1, [0, 15]] = True
    features = model.forward_crops([x], [mask])[0]
    changed = x.clone()
    changed[0, :, 14:28, 14:28] += 1  # patch 5 of image 0
    torch.testing.assert_close(model.forward_crops([changed], [mask])[0].patches_BPC, features.patches_BPC)
    assert not torch.allclose(
        model.forward_crops([changed])[0].patches_BPC[0], features.patches_BPC[0], atol=1e-3
    )
    features.patches_BPC.sum().backward()
    assert model.mask_token.grad.abs().sum() > 0


def test_stochastic_depth_drops_whole_branches():
    model = vit()
    x = images(2, 56)
    none = model.forward_crops([x], residual_LRS=torch.zeros(3, 2, 2))[0]
    torch.testing.assert_close(none.patches_BPC, model.norm(model._embed(x, None))[:, 1:])
    all_kept = model.forward_crops([x], residual_LRS=torch.ones(3, 2, 2))[0]
    torch.testing.assert_close(all_kept.cls_BC, model.forward_crops([x])[0].cls_BC)
    one = torch.ones(3, 2, 2)
    one[:, :, 1] = 0
    mixed = model.forward_crops([x], residual_LRS=one)[0]
    torch.testing.assert_close(mixed.cls_BC[0], all_kept.cls_BC[0])
    torch.testing.assert_close(mixed.cls_BC[1], none.cls_BC[1])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_stochastic_depth_is_multiplication_by_zero(packed, share):
    """What is left out is what would be multiplied by 0; its gradient too, and every parameter has one."""
    generator = torch.Generator().manual_seed(5)
    residual = (
        (torch.rand(3, 2, 5, generator=generator) < share) * torch.rand(3, 2, 5, generator=generator) * 2
    )
    model, crops = vit(), [images(2, 56), images(3, 28, 1)]

    def gradients(features):
        model.zero_grad()
        sum((f.cls_BC.sin().sum() + f.patches_BPC.cos().sum()) for f in features).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if name != "mask_token"}

    def multiplied():
        out = []
        for x, scale in zip(crops, residual.split([2, 3], dim=-1), strict=True):
            x = model._embed(x, None)
            for block, (attention, mlp) in zip(model.blocks, scale, strict=True):
                x = x + block.ls1(block.attn(block.norm1(x))) * attention[:, None, None]
                x = x + block.ls2(block.mlp(block.norm2(x))) * mlp[:, None, None]
            x = model.norm(x)
            out.append(Features(x[:, 0], x[:, 1:]))
        return out

    found = (
        packed_features(model, [model._embed(x, None) for x in crops], residual)
        if packed
        else model.forward_crops(crops, residual_LRS=residual)
    )
    wanted = multiplied()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.cls_BC, b.cls_BC, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.patches_BPC, b.patches_BPC, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(found), gradients(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_stochastic_depth_saves_what_it_leaves_out(packed):
    model, crops = vit(attention="reference"), [images(4, 56), images(4, 28, 1)]
    residual = torch.zeros(3, 2, 8)
    residual[:, :, ::2] = 2.0

    def operations(residual):
        tokens = [model._embed(x, None) for x in crops]
        with FlopCounterMode(display=False) as counter:
            if packed:
                model._blocks(tokens, residual)
            else:
                for x, r in zip(
                    tokens, (None, None) if residual is None else residual.split(4, -1), strict=True
                ):
                    model._blocks([x], r)
        return counter.get_total_flops()

    assert operations(residual) == operations(None) / 2


def test_every_parameter_gets_a_gradient():
    model = vit()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 0] = True
    features = model.forward_crops([images(2, 56), images(2, 28)], [mask, None])
    sum((f.cls_BC.square().sum() + f.patches_BPC.square().sum()) for f in features).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_position_embeddings_keep_their_grid_and_refuse_others():
    pos = torch.randn(1, 16, 8)
    torch.testing.assert_close(resample_pos_embed(pos, (4, 4)), pos)
    with pytest.raises(ValueError, match="square"):
        resample_pos_embed(torch.randn(1, 15, 8), (4, 4))


def test_sincos_positions_where_linspace_stays_on_the_cpu(monkeypatch):
    """As transformers 5 leaves it for torch.device("meta"), once it has opened a model in the same process."""
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args: linspace(*args, device="cpu"))
    wanted = sincos_positions(4, 16)
    with torch.device("meta"):
        assert torch.equal(sincos_positions(4, 16), wanted)


def test_sincos_positions_are_waves_of_row_and_column():
    side, width = 6, 24
    pos = sincos_positions(side, width).view(side, side, width)
    for row, column in ((0, 0), (2, 5), (5, 1)):
        waves = []
        for place in (row, column):
            angles = [place * math.pi / side ** (i / 5) for i in range(6)]  # wavelengths of 2 to 12 patches
            waves += [0.5 * math.sin(a) for a in angles] + [0.5 * math.cos(a) for a in angles]
        torch.testing.assert_close(pos[row, column], torch.tensor(waves), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(4, 30)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"size": 50}, "patch size"), ({"heads": 5}, "number of heads")]
)
def test_shapes_that_do_not_divide_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        vit(**kwargs)
