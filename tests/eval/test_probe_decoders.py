"""Trained heads on patch tokens: they learn a toy set by heart, and take odd grids."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.probes.decoders import HEADS, Decoder, DecoderTraining, decoder, dice_and_cross_entropy, train
from eval.probes.overlap import Frame, MaskTask

SMALL = dict(width=8, scales=(2, 1, 0.5), steps=80, batch=4, lr=1e-2, warmup=5, every=20)  # noqa: C408


def toy(n: int = 8, side: int = 5, seed: int = 0) -> tuple[MaskTask, torch.Tensor]:
    """Two structures of random outline; tokens are what a fixed random map makes of their halves of each patch. The
    images of `validate` and `test` are those of `train` again."""
    generator = torch.Generator().manual_seed(seed)
    masks = F.interpolate(torch.rand(n, 2, 3, 3, generator=generator), 40, mode="bicubic") > 0.5
    fine = F.adaptive_avg_pool2d(masks.float(), 2 * side)
    tokens = F.unfold(fine, 2, stride=2).transpose(1, 2) @ torch.randn(8, 12, generator=generator)
    task = MaskTask(
        lambda rows: masks.repeat(3, 1, 1, 1)[rows].numpy(), ["a", "b"], np.arange(n), np.arange(n, 2 * n),
        np.arange(2 * n, 3 * n), [i % n for i in range(3 * n)], Frame(),
    )  # fmt: skip
    return task, tokens.repeat(3, 1, 1)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_learns_a_toy_set_by_heart(head):
    task, tokens = toy()
    lines = []
    found = decoder(task, lambda rows: tokens[rows], DecoderTraining(head=head, **SMALL), say=lines.append)
    assert found.scores(20)["mean"]["dice"].value > 0.93
    assert min(found.validation.values()) > 0.93 and f"head:{head}" in found.signature
    assert lines and lines[-1].startswith(f"{head}: step ")


@pytest.mark.parametrize("head", HEADS)
def test_equal_seeds_give_equal_heads(head):
    task, tokens = toy(4)
    options = {**SMALL, "steps": 4, "every": 2}

    def logits(seed):
        torch.manual_seed(torch.seed())  # the world outside does not matter, nor is it changed
        before = torch.random.get_rng_state()
        model, _, _ = train(
            task,
            lambda rows: tokens[rows],
            DecoderTraining(head=head, seed=seed, **options),
            say=lambda line: None,
        )
        assert torch.equal(before, torch.random.get_rng_state())
        return model(tokens[:4]).detach()

    first = logits(0)
    assert torch.equal(first, logits(0)) and not torch.equal(first, logits(1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("side", [1, 3, 5, 8])
def test_grids_may_be_odd(head, side):
    for scales, finest in (((4, 2, 1, 0.5), 4 * side), ((1, 0.5), side), ((0.5,), -(-side // 2))):
        model = Decoder(6, 3, DecoderTraining(head=head, width=4, scales=scales)).eval()
        assert model(torch.randn(2, side * side, 6)).shape == (2, 3, finest, finest)


def test_several_layers_feed_one_scale_each():
    model = Decoder(8, 1, DecoderTraining(head="vitdet", width=4, scales=(2, 1), layers=2)).eval()
    tokens = torch.randn(1, 9, 8)
    maps = model.pyramid(tokens.transpose(1, 2).unflatten(2, (3, 3)))
    tokens[..., 4:] = 0  # the second layer
    changed = model.pyramid(tokens.transpose(1, 2).unflatten(2, (3, 3)))
    assert torch.equal(maps[0], changed[0]) and not torch.equal(maps[1], changed[1])
    with pytest.raises(ValueError, match="7 channels"):
        Decoder(7, 1, DecoderTraining(scales=(2, 1), layers=2))


def test_the_loss_by_hand():
    logits, truth = torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    # both: 0.5, predicted: 1, true: 1
    assert float(dice_and_cross_entropy(logits, truth)) == pytest.approx(
        np.log(2) + 1 - (2 * 0.5 + 1) / (2 + 1)
    )
    nothing = torch.zeros(1, 1, 2, 2)
    assert float(dice_and_cross_entropy(nothing - 50, nothing)) == pytest.approx(0, abs=1e-6)


def test_the_best_look_at_validation_is_kept():
    """A rate at which it falls apart after a while: what is judged is from before."""
    task, tokens = toy(4)
    options = DecoderTraining(**{**SMALL, "head": "vitdet", "steps": 40, "every": 5, "patience": 2})
    model, dice, step = train(task, lambda rows: tokens[rows], options, say=lambda line: None)
    predicted = model(tokens[task.validate]) > 0
    truth = task.shares(task.validate, predicted.shape[-1]) > 0.5
    both = (predicted & truth).sum((2, 3))
    wanted = (2 * both / (predicted.sum((2, 3)) + truth.sum((2, 3)))).mean(0)
    assert dice == pytest.approx(wanted.numpy(), abs=1e-6) and 0 < step <= 40 and step % 5 == 0


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"head": "unet"}, "upernet or vitdet"),
        ({"scales": (1, 4)}, "in this order"),
        ({"scales": (3,)}, "scales are some of"),
        ({"layers": 3}, "one a scale"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_impossible_trainings_are_refused(fields, wrong):
    with pytest.raises(ValueError, match=wrong):
        DecoderTraining(**fields)


def test_what_cannot_be_trained_is_refused():
    task, tokens = toy(2)
    one = MaskTask(task.masks, task.structures, [0], [2], [4], task.patients)
    with pytest.raises(ValueError, match="at least two training images"):
        train(one, lambda rows: tokens[rows], DecoderTraining())
    empty = MaskTask(
        lambda rows: np.zeros((len(rows), 2, 9, 9), bool), task.structures, [0, 1], [2], [4], task.patients
    )
    with pytest.raises(ValueError, match="nothing to choose by"):
        train(empty, lambda rows: tokens[rows], DecoderTraining())
