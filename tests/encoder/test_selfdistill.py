"""Losses, heads, masks and teacher against golden values of DINOv2, naive formulas in float64, and two processes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from encoder.selfdistill.heads import DINOHead, Prototypes
from encoder.selfdistill.losses import (
    Centre,
    cross_entropy,
    dino_loss,
    entropy,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)
from encoder.selfdistill.masking import block_mask, crop_masks
from encoder.selfdistill.teacher import make_teacher, update_teacher
from tests.forked import together

GOLDEN = json.loads((Path(__file__).parent / "golden_dinov2_losses.json").read_text())["cases"]


def golden(name):
    cases = [case for case in GOLDEN if case["name"] == name]
    assert cases
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"B{case['B']}")


def wave(shape, f, p):
    x = torch.arange(math.prod(shape), dtype=torch.float64) * f + p
    return x.sin().float().view(shape)


def close(value, wanted):
    torch.testing.assert_close(torch.as_tensor(value), torch.tensor(wanted), rtol=1e-5, atol=1e-30)


@golden("dino_centering")
def test_golden_dino_with_centring(case):
    shape, f = (case["B"], case["K"]), case["f0"]
    centre = Centre(case["K"], case["center_momentum"])
    centre.update(wave(shape, f, 0.1) * 2)
    torch.testing.assert_close(centre.centre_1K.sum(), torch.tensor(case["centre_sum"]), rtol=1e-5, atol=1e-7)
    close(centre.centre_1K.abs().sum(), case["centre_abs_sum"])
    targets = centre.targets(wave(shape, 1.7 * f, 0.5) * 2, case["teacher_temp"])
    students = [wave(shape, 1.3 * f, 1.0), wave(shape, 2.1 * f, 2.0)]
    close(dino_loss(students, [targets], case["student_temp"]), case["loss"])
    close(dino_loss(students, [targets, targets.flip(0)], case["student_temp"]), case["loss_two_targets"])


@golden("sinkhorn_knopp")
def test_golden_dino_with_sinkhorn_knopp(case):
    shape, f = (case["B"], case["K"]), case["f0"]
    targets = sinkhorn_knopp(wave(shape, 1.7 * f, 0.5) * 2, case["teacher_temp"], case["iterations"])
    close(targets[0], case["first_row"])
    close(targets.sum(0), case["column_sums"])
    students = [wave(shape, 1.3 * f, 1.0), wave(shape, 2.1 * f, 2.0)]
    close(dino_loss(students, [targets], case["student_temp"]), case["loss"])


@golden("ibot_masked_sinkhorn")
def test_golden_ibot(case):
    masked = torch.arange(case["B"]) % case["N"]
    M, K, f = case["M"], case["K"], case["f0"]
    assert masked.sum() == M
    weights = (1 / masked.clamp(min=1)).repeat_interleave(masked)
    targets = sinkhorn_knopp(wave((M, K), 1.1 * f, 0.2) * 2, case["teacher_temp"])
    loss = ibot_loss(wave((M, K), 0.9 * f, 0.7), targets, weights, case["B"], case["student_temp"])
    close(loss, case["loss"])


@golden("koleo")
def test_golden_koleo(case):
    close(koleo_loss(wave((case["B"], case["D"]), 1.9 * case["f0"], 0.3)), case["loss"])


def naive_sinkhorn(logits, temperature, iterations=3):
    """Algorithm 1 of SwAV as published, in float64."""
    Q = (logits.double() / temperature).exp().T
    Q /= Q.sum()
    K, B = Q.shape
    for _ in range(iterations):
        Q /= Q.sum(1, keepdim=True) * K
        Q /= Q.sum(0, keepdim=True) * B
    return (Q * B).T


def test_sinkhorn_equals_the_published_algorithm():
    logits = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    for iterations in (1, 3, 10):
        ours = sinkhorn_knopp(logits, 0.1, iterations)
        torch.testing.assert_close(
            ours.double(), naive_sinkhorn(logits, 0.1, iterations), rtol=1e-4, atol=1e-12
        )
        torch.testing.assert_close(ours.sum(1), torch.ones(12))


@pytest.mark.parametrize(
    "logits",
    [
        torch.full((4, 8), 500.0),
        torch.linspace(-300, 300, 32).view(4, 8),
        torch.cat([torch.zeros(3, 8), torch.full((1, 8), -1000.0)]),
        torch.randn(1, 8),
        torch.zeros(0, 8),
    ],
    ids=["huge", "wide", "far", "one", "none"],
)
def test_sinkhorn_is_always_finite(logits):
    targets = sinkhorn_knopp(logits, 0.04)
    assert targets.shape == logits.shape and targets.isfinite().all() and (targets >= 0).all()
    assert (targets.sum(1) <= 1 + 1e-5).all()


def test_sinkhorn_uses_half_precision_logits_in_float32():
    logits = torch.randn(6, 10).bfloat16()
    assert torch.equal(sinkhorn_knopp(logits, 0.05), sinkhorn_knopp(logits.float(), 0.05))


def test_centre_survives_a_step_that_is_not_finite():
    centre = Centre(4)
    centre.update(torch.ones(2, 4))
    before = centre.centre_1K.clone()
    centre.update(torch.full((2, 4), torch.nan))
    centre.update(torch.zeros(0, 4))
    assert torch.equal(centre.centre_1K, before)


def test_gradients_of_the_losses():
    """Against the formulas written naively in float64."""
    g = torch.Generator().manual_seed(0)
    student = torch.randn(6, 9, generator=g, requires_grad=True)
    targets = torch.randn(6, 9, generator=g).softmax(-1)
    weights = torch.rand(6, generator=g)
    features = torch.randn(6, 9, generator=g, requires_grad=True)

    def log_probs(x):
        return x.double() / 0.1 - (x.double() / 0.1).exp().sum(-1, keepdim=True).log()

    def naive_koleo(x):
        x = x.double() / x.double().norm(dim=-1, keepdim=True)
        distances = (x[:, None] - x[None] + torch.eye(6)[..., None] * 9).norm(dim=-1)
        return -distances.min(1).values.log().mean()

    pairs = [
        (student, dino_loss([student], [targets], 0.1), -(targets * log_probs(student)).sum(-1).mean()),
        (
            student,
            ibot_loss(student, targets, weights, 5, 0.1),
            -((targets * log_probs(student)).sum(-1) * weights).sum() / 5,
        ),
        (features, koleo_loss(features), naive_koleo(features)),
    ]
    for leaf, ours, naive in pairs:
        torch.testing.assert_close(ours.double(), naive, rtol=1e-5, atol=1e-6)
        ours_grad, naive_grad = torch.autograd.grad(ours, leaf)[0], torch.autograd.grad(naive, leaf)[0]
        torch.testing.assert_close(ours_grad, naive_grad, rtol=1e-4, atol=1e-6)


def test_dino_loss_is_least_where_student_and_teacher_agree():
    logits = torch.randn(5, 7)
    targets = (logits / 0.1).softmax(-1)
    least = dino_loss([logits], [targets], 0.1)
    torch.testing.assert_close(least, entropy(targets), rtol=1e-4, atol=1e-5)
    assert dino_loss([logits.roll(1, 0)], [targets], 0.1) > least
    assert cross_entropy(logits, targets, 0.1).shape == (5,)


def test_ibot_without_any_masked_patch_is_zero_and_differentiable():
    student = torch.zeros(0, 8, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 8), torch.zeros(0), 4, 0.1)
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize(
    "features", [torch.randn(1, 8), torch.zeros(3, 8), torch.ones(4, 8), torch.randn(2, 8).bfloat16()]
)
def test_koleo_is_safe_for_tiny_and_collapsed_batches(features):
    features = features.requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and features.grad.isfinite().all()
    assert len(features) > 1 or loss == 0


def test_koleo_is_computed_in_float32_under_autocast():
    features = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = koleo_loss(features)
    assert torch.equal(inside, koleo_loss(features))


def test_prototypes_are_weight_normalised():
    torch.manual_seed(0)
    ours = Prototypes(6, 10)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 10, bias=False))
    with torch.no_grad():
        ours.weight_g.copy_(torch.rand(10, 1) + 0.5)
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        theirs.parametrizations.weight.original1.copy_(ours.weight_v)
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_head_has_dinov2s_names_and_bounded_logits():
    head = DINOHead(16, prototypes=20, hidden=12, bottleneck=8)
    shapes = {name: tuple(x.shape) for name, x in head.state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (12, 16),
        "mlp.0.bias": (12,),
        "mlp.2.weight": (12, 12),
        "mlp.2.bias": (12,),
        "mlp.4.weight": (8, 12),
        "mlp.4.bias": (8,),
        "last_layer.weight_g": (20, 1),
        "last_layer.weight_v": (20, 8),
    }
    logits = head(100 * torch.randn(64, 16))
    assert logits.shape == (64, 20) and logits.abs().max() <= 1 + 1e-5  # cosines
    with torch.no_grad():
        for p in head.parameters():
            p.fill_(torch.nan)
    head.reset_parameters()
    assert not any(p.isnan().any() for p in head.parameters())


@pytest.mark.parametrize("target", [0, 1, 3, 20, 98, 196])
def test_block_masks_have_exactly_as_many_patches(target):
    for seed in range(5):
        mask = block_mask(np.random.default_rng(seed), 14, 14, target)
        assert mask.dtype == bool and mask.shape == (14, 14) and mask.sum() == target


def test_block_masks_are_made_of_blocks():
    """Neighbours of masked patches are masked far more often than in a random mask of the same size."""
    rng = np.random.default_rng(0)
    masks = [block_mask(rng, 14, 14, 60) for _ in range(50)]
    together = np.mean([m[:, 1:][m[:, :-1]].mean() for m in masks])
    assert together > 0.7 > 60 / 196
    with pytest.raises(ValueError, match="cannot mask"):
        block_mask(rng, 2, 2, 5)


def test_half_of_the_crops_are_masked_by_a_tenth_to_a_half():
    shares = []
    for seed in range(100):
        masks = crop_masks(np.random.default_rng(seed), 2, 14, 14)
        assert masks.any((1, 2)).sum() == 1
        shares.append(masks.sum() / 196)
    assert 0.095 <= min(shares) < 0.2 and 0.4 < max(shares) <= 0.505
    again = crop_masks(np.random.default_rng(99), 2, 14, 14)
    assert np.array_equal(masks, again)
    assert not crop_masks(np.random.default_rng(0), 2, 14, 14, probability=0.0).any()
    assert crop_masks(np.random.default_rng(0), 2, 14, 14, probability=1.0).any((1, 2)).all()


def test_teacher_is_the_moving_average():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    teacher = make_teacher(student)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    update_teacher(teacher, student, 0.9)
    for old, new, target in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * target)
    frozen = [p.clone() for p in teacher.parameters()]
    update_teacher(teacher, student, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(frozen, teacher.parameters(), strict=True))
    with pytest.raises(ValueError, match="differ"):
        update_teacher(teacher, nn.Linear(3, 4), 0.9)


def one_of_two(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    data = torch.load(folder / "data.pt", weights_only=True)
    mine = data["logits"].chunk(2)[rank]
    # one process has nothing
    uneven = data["logits"][:1] if rank == 0 else data["logits"][1:1]
    features = data["features"].chunk(2)[rank].clone().requires_grad_()
    centre = Centre(mine.shape[1])
    centre.update(mine)
    loss = koleo_loss(features)
    loss.backward()
    out = {
        "sinkhorn": sinkhorn_knopp(mine, 0.1),
        "uneven": sinkhorn_knopp(uneven, 0.1),
        "centre": centre.centre_1K,
        "koleo": loss.detach(),
        "koleo_grad": features.grad,
        "koleo_alone": koleo_loss(features, gather=False).detach(),
    }
    torch.save(out, folder / f"out{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_gathered_batch(tmp_path):
    g = torch.Generator().manual_seed(0)
    data = {"logits": torch.randn(8, 12, generator=g), "features": torch.randn(8, 6, generator=g)}
    torch.save(data, tmp_path / "data.pt")
    together(one_of_two, 2, tmp_path)
    parts = [torch.load(tmp_path / f"out{rank}.pt", weights_only=True) for rank in range(2)]

    torch.testing.assert_close(torch.cat([p["sinkhorn"] for p in parts]), sinkhorn_knopp(data["logits"], 0.1))
    torch.testing.assert_close(parts[0]["uneven"], sinkhorn_knopp(data["logits"][:1], 0.1))
    assert parts[1]["uneven"].shape == (0, 12)
    centre = Centre(12)
    centre.update(data["logits"])
    for part in parts:
        torch.testing.assert_close(part["centre"], centre.centre_1K)
    features = data["features"].clone().requires_grad_()
    whole = koleo_loss(features)
    whole.backward()
    torch.testing.assert_close(sum(p["koleo"] for p in parts) / 2, whole.detach())
    # processes average their gradients, hence the factor
    torch.testing.assert_close(torch.cat([p["koleo_grad"] for p in parts]) / 2, features.grad)
    alone = [koleo_loss(x) for x in data["features"].chunk(2)]
    torch.testing.assert_close(torch.stack([p["koleo_alone"] for p in parts]), torch.stack(alone))
    assert F.mse_loss(torch.stack(alone), torch.stack([p["koleo"] for p in parts])) > 0
