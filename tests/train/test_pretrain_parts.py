"""The parts of train.pretrain: recipes, samples, parameter groups, schedules, what is counted and measured."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoder.selfdistill.heads import DINOHead
from encoder.vit import sincos_positions
from tests.train.pretraining import config
from train.common.config import load_config, recipe_path
from train.pretrain.config import PretrainConfig
from train.pretrain.data import Samples, collate, multi_crop
from train.pretrain.model import Distilled
from train.pretrain.optim import apply_schedules, parameter_groups
from train.pretrain.watch import effective_rank, flops_per_image


def grey_images(n):
    return [np.random.default_rng(i).integers(0, 256, (36, 40)).astype(np.uint8) for i in range(n)]


def test_effective_rank():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(40, 8)))
    q -= q.mean(0)
    for rank in (1, 3, 8):
        x = q[:, :rank] @ rng.normal(size=(rank, 20))
        values = np.linalg.svd(x - x.mean(0), compute_uv=False)[:rank]
        shares = values / values.sum()
        wanted = np.exp(-(shares * np.log(shares)).sum())
        assert float(effective_rank(torch.tensor(x))) == pytest.approx(wanted, rel=1e-6)
    assert float(effective_rank(torch.ones(5, 3))) == 1


def test_the_head_of_the_recipe_is_that_of_the_released_file():
    """dino_head.safetensors of microsoft/rad-dino is 92.6 MB."""
    c = load_config(PretrainConfig, "pretrain", ["--recipe", "rad_dino_vitb14_518"])
    with torch.device("meta"):
        head = DINOHead(c.hidden_size, c.head_n_prototypes, c.head_hidden_dim, c.head_bottleneck_dim)
    assert sum(p.numel() for p in head.parameters()) * 4 / 1e6 == pytest.approx(92.6, abs=0.1)


@pytest.mark.parametrize("recipe", ["rad_dino_vitb14_518", "rad_dino_1gpu", "continue_pretraining"])
def test_recipes_say_why(recipe):
    c = load_config(PretrainConfig, "pretrain", ["--recipe", recipe])
    assert (
        c.size,
        c.patch_size,
        c.hidden_size,
        c.num_hidden_layers,
        c.num_attention_heads,
        c.local_crops_size,
    ) == (518, 14, 768, 12, 12, 98)
    assert (
        c.warmup_steps < c.max_steps
        and c.head_warmup_steps < c.max_steps
        and c.warmup_teacher_temp_steps < c.max_steps
    )
    lines = recipe_path(recipe).read_text().partition("pretrain:\n")[2].splitlines()
    plain = ("save_steps", "dataloader_num_workers")
    unsaid = [line for line in lines if "#" not in line and not line.strip().startswith(plain)]
    assert not unsaid


@pytest.mark.parametrize("recipe", ["demo", "mini", "real_encoder", "real_small"])
def test_the_small_recipes_load(recipe):
    c = load_config(PretrainConfig, "pretrain", ["--recipe", recipe])
    assert c.size % c.patch_size == c.local_crops_size % c.patch_size == 0 and c.warmup_steps < c.max_steps


def test_samples_depend_on_seed_and_number_alone():
    images = grey_images(5)
    one, two = Samples(images, [5], config()), Samples(images, [5], config())
    later = [two[i] for i in (7, 3)]  # in another order, as in another process
    for (crops, masks, residual), position in zip(later, (7, 3), strict=True):
        crops2, masks2, residual2 = one[position]
        assert all(np.array_equal(a, b) for a, b in zip(crops, crops2, strict=True))
        assert np.array_equal(masks, masks2) and np.array_equal(residual, residual2)
    other = Samples(images, [5], config(seed=1))[3]
    assert not np.array_equal(other[0].global_GHW, one[3][0].global_GHW)


def test_an_epoch_holds_each_image_as_often_as_weighted():
    samples = Samples(grey_images(7), [4, 3], config(data=["a", "b"], weights=[1.5, 2.0]))
    assert samples.epoch_length == 12
    epochs = [[samples.image_index(12 * e + i) for i in range(12)] for e in range(3)]
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=7)
        assert sorted(counts[:4]) == [1, 1, 2, 2] and list(counts[4:]) == [2, 2, 2]
    assert epochs[0] != epochs[1]
    assert samples.image_index(3) == epochs[0][3]


def test_collate_orders_crop_by_crop():
    samples = Samples(grey_images(5), [5], config())
    items = [samples[i] for i in range(3)]
    batch = collate(items)
    assert batch.global_GBHW.shape == (6, 28, 28) and batch.local_LBHW.shape == (6, 14, 14)
    for g in range(2):
        for b in range(3):
            assert np.array_equal(batch.global_GBHW[g * 3 + b], items[b][0].global_GHW[g])
            assert np.array_equal(batch.masks_GBP[g * 3 + b], items[b][1][g].ravel())
            assert np.array_equal(batch.residual_LRS[:, :, g * 3 + b], items[b][2][:, :, g])
    flat = batch.masks_GBP.flatten()
    assert flat[batch.masked_M].all() and len(batch.masked_M) == flat.sum()
    per_image = torch.zeros(6).index_add(0, batch.masked_M // 16, batch.weights_M)
    torch.testing.assert_close(per_image, batch.masks_GBP.any(1).float())


def test_parameter_groups_are_dinov2s():
    c = config(layerwise_decay=0.5, patch_embed_lr_mult=0.2)
    model = Distilled(c)
    by_parameter = {id(p): group for group in parameter_groups(model, c) for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(by_parameter) == len(names)

    def group(name):
        g = by_parameter[id(names[name])]
        return g["lr_scale"], g["decays"], g["last_layer"]

    assert group("backbone.patch_embed.proj.weight") == (0.2 * 0.125, True, False)
    assert group("backbone.patch_embed.proj.bias") == (0.2 * 0.125, False, False)
    assert group("backbone.pos_embed") == group("backbone.mask_token") == (0.125, True, False)
    assert group("backbone.blocks.0.attn.qkv.weight") == (0.25, True, False)
    assert group("backbone.blocks.1.ls1.gamma") == (0.5, False, False)
    assert group("backbone.blocks.1.norm2.weight") == (0.5, False, False)
    assert group("backbone.norm.weight") == (1.0, False, False)
    assert group("dino_head.mlp.0.weight") == (1.0, True, False)
    assert group("dino_head.last_layer.weight_v") == (1.0, True, True)


def test_schedules_reach_the_groups():
    c = config(
        warmup_steps=2,
        freeze_last_layer_steps=3,
        head_warmup_steps=2,
        weight_decay=0.1,
        weight_decay_end=0.3,
        learning_rate=1.0,
        layerwise_decay=1.0,
    )
    model = Distilled(c)
    optimizer = torch.optim.AdamW(parameter_groups(model, c))

    def at(step):
        apply_schedules(optimizer, step, c)
        groups = optimizer.param_groups
        pick = lambda **want: next(g for g in groups if all(g[k] == v for k, v in want.items()))  # noqa: E731
        last = pick(last_layer=True, decays=True)["lr"]
        head = pick(last_layer=False, backbone=False, decays=True)
        return pick(backbone=True, lr_scale=1.0)["lr"], head["lr"], last, head["weight_decay"]

    assert at(0)[0] == at(1)[0] == 0 < at(2)[0] < at(5)[0] * 10
    assert at(0)[1] == pytest.approx(1 / 3) and at(2)[1] == 1.0
    assert at(2)[2] == 0 < at(3)[2]
    assert at(0)[3] == 0.1 < at(3)[3] < at(6)[3] == 0.3
    assert all(g["weight_decay"] == 0 for g in optimizer.param_groups if not g["decays"])


def test_counted_operations_are_those_of_pytorch():
    c = config(drop_path_rate=0.0, separate_ibot_head=True)
    model = Distilled(c)
    batch = collate([Samples(grey_images(4), [4], c)[i] for i in range(4)])
    augment = multi_crop(c).on_device
    global_x, local_x = (
        augment(batch.global_GBHW, batch.global_look),
        augment(batch.local_LBHW, batch.local_look),
    )
    with sdpa_kernel(SDPBackend.MATH):  # whose products every version counts
        with FlopCounterMode(display=False) as teacher, torch.no_grad():
            model(global_x, None, batch, masked=False)
        with FlopCounterMode(display=False) as student:
            out = model(global_x, local_x, batch, masked=True)
            sum(x.sum() for x in out).backward()
    counted = (teacher.get_total_flops() + student.get_total_flops()) / 4
    assert flops_per_image(c) == pytest.approx(counted, rel=0.15)  # masks vary; no gradient for pixels


@pytest.mark.parametrize(("init", "stds"), [("dinov2", (0.02, 0.02)), ("fan_in", (64**-0.5, 256**-0.5))])
def test_initial_weights(init, stds):
    c = config(hidden_size=64, num_attention_heads=1, weight_init=init, position_embedding="sincos")
    torch.manual_seed(0)
    backbone = Distilled(c).backbone
    for layer, std in zip((backbone.blocks[1].attn.qkv, backbone.blocks[1].mlp.fc2), stds, strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
    torch.testing.assert_close(backbone.pos_embed[0, 1:], sincos_positions(4, 64))
