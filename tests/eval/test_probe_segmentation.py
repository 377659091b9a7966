"""Segmentation probes: overlap at the resolution of the image against scikit-learn, and heads on planted structures."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, jaccard_score

from encoder.transforms import Preprocessing
from eval.probes import overlap
from eval.probes.overlap import Frame, MaskTask, Segmentation, compare
from eval.probes.segmentation import LinearHead, floors, linear

SIZES = ((40, 40), (61, 40), (40, 57), (64, 48))  # of images, also not square


def blobs(n: int, K: int = 2, seed: int = 0, sizes=SIZES) -> list[np.ndarray]:
    """Smooth masks (K, H, W), of images of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        coarse = torch.rand(1, K, 4, 4, generator=generator)
        found.append((F.interpolate(coarse, sizes[i % len(sizes)], mode="bicubic")[0] > 0.5).numpy())
    return found


def task_of(masks: list[np.ndarray], frame: Frame | None = None, **options) -> MaskTask:
    n = len(masks)
    parts = np.split(np.arange(n), [n // 2, 3 * n // 4])
    names = [f"s{k}" for k in range(len(masks[0]))]
    patients = [f"p{i // 2}" for i in range(n)]
    return MaskTask(
        lambda rows: [masks[i] for i in rows],
        names,
        *parts,
        patients,
        frame or Frame(),
        **{"cells": 32, **options},
    )


def planted(task: MaskTask, side: int = 8, seed: int = 1, noise: float = 1.0) -> torch.Tensor:
    """Tokens that tell how much of their patch each structure covers, among other things."""
    generator = torch.Generator().manual_seed(seed)
    shares_NKP = task.shares(np.arange(len(task.patients)), side).flatten(2)
    n, K, P = shares_NKP.shape
    x_NPC = torch.randn(n, P, K + 3, generator=generator) * noise
    x_NPC[..., 1 : 1 + K] = 20 * shares_NKP.transpose(1, 2) - 10
    return x_NPC


# Where the square lies.


def test_without_a_crop_enlarging_is_bilinear_interpolation():
    maps = torch.randn(3, 5, 5)
    found, inside = Frame().enlarge(maps, 33, 21)
    assert inside.all()
    assert found == pytest.approx(F.interpolate(maps[None], (33, 21), mode="bilinear")[0], abs=1e-5)
    assert Frame().enlarge(maps[:, :1, :1], 4, 4)[0] == pytest.approx(maps[:, :1, :1].expand(3, 4, 4))


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("H", "W"), [(90, 60), (61, 97), (64, 64)])
def test_the_frame_undoes_the_preprocessing(mode, H, W):
    """An image of coordinates, preprocessed: each cell of the square says where it came from."""
    preprocessing = Preprocessing(size=30, mode=mode, mean=0.0, std=1.0)
    frame = Frame(preprocessing)
    for axis, length in ((0, H), (1, W)):
        at = (np.arange(length, dtype=np.float32) + 0.5) / length
        image = np.broadcast_to(at[:, None] if axis == 0 else at, (H, W))
        square = preprocessing(np.ascontiguousarray(image))[0]
        back, inside = frame.enlarge(square[None], H, W)
        rim = 4  # pixels, where resampling bends the ramp or the padding begins
        kept = inside.clone()
        kept[:rim] = kept[-rim:] = kept[:, :rim] = kept[:, -rim:] = False
        assert np.abs(back[0].numpy() - image)[kept].max() < 0.5 / min(H, W)
    cropped = mode == "crop" and H != W
    assert bool(inside.all()) != cropped
    if cropped:
        assert float(inside.float().mean()) == pytest.approx(min(H, W) / max(H, W), abs=0.03)


def test_patches_need_not_cover_the_square():
    frame = Frame(Preprocessing(size=30, mode="stretch"), patch=7)
    assert frame.spans(60, 90) == ((0, 56), (0, 84))
    _, inside = frame.enlarge(torch.ones(1, 4, 4), 60, 90)
    assert inside[:56, :84].all() and not inside[56:].any() and not inside[:, 84:].any()


def test_shares_are_area_means():
    masks = np.random.default_rng(0).random((2, 24, 36)) < 0.4
    wanted = F.adaptive_avg_pool2d(torch.from_numpy(masks).float(), 6)
    assert Frame().shares(masks, 6) == pytest.approx(wanted, abs=1e-6)
    # where cells cut pixels, the whole area is kept
    assert Frame().shares(masks, 7).mean((1, 2)).numpy() == pytest.approx(masks.mean((1, 2)), abs=1e-6)
    padded = Frame(Preprocessing(size=12, mode="pad")).shares(np.ones((1, 12, 24), bool), 4)
    assert padded[0].tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


# Overlap.


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("outside", overlap.OUTSIDE)
def test_dice_and_iou_are_scikit_learns(mode, outside):
    masks = blobs(8)
    task = task_of(masks, Frame(Preprocessing(size=32, mode=mode)), outside=outside)
    maps = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    counts = overlap.counts(task, np.arange(8), lambda rows: maps[rows])
    dice, iou = overlap.dice_of(counts), overlap.iou_of(counts)
    for i, truth in enumerate(masks):
        logits, inside = task.frame.enlarge(maps[i], *truth.shape[1:])
        predicted, inside = ((logits > 0) & inside).numpy(), inside.numpy()
        assert inside.all() == (mode != "crop" or truth.shape[1] == truth.shape[2])
        where = inside if outside == "left-out" else np.ones_like(inside)
        for k in range(2):
            pair = truth[k][where], predicted[k][where]
            assert dice[i, k] == pytest.approx(f1_score(*pair), abs=1e-6)
            assert iou[i, k] == pytest.approx(jaccard_score(*pair), abs=1e-6)


def test_a_structure_cut_off_by_the_crop_costs_recall_or_is_left_out():
    mask = np.zeros((1, 40, 80), bool)
    mask[0, :, 50:] = True  # the centre crop shows columns 20 to 60
    everywhere = lambda rows: torch.ones(len(rows), 1, 4, 4)  # noqa: E731
    found = {}
    for outside in overlap.OUTSIDE:
        task = task_of([mask] * 8, Frame(Preprocessing(size=16)), outside=outside)
        found[outside] = overlap.counts(task, task.test, everywhere)[0, 0].tolist()
        assert f"outside:{outside}" in Segmentation([], [], [], None, task.choices()).signature
    assert found == {"background": [400, 1600, 1200], "left-out": [400, 1600, 400]}


def test_images_without_the_structure_are_counted_apart():
    counts = np.array(
        [[[5, 10, 10], [0, 0, 0]], [[0, 3, 0], [0, 0, 0]], [[0, 0, 0], [0, 2, 0]], [[4, 4, 4], [0, 0, 0]]]
    )
    found = Segmentation(["a", "b"], np.arange(4), ["p", "p", "q", "r"], counts, {"head": "test"})
    assert np.isnan(found.dice_NK[1:3, 0]).all() and np.isnan(found.dice_NK[:, 1]).all()
    scores = found.scores()
    a, b = scores["a"], scores["b"]
    assert (a["dice"].value, a["dice"].n) == (0.75, 2)
    assert a["iou"].value == pytest.approx((1 / 3 + 1) / 2)
    assert a["dice_pooled"].value == pytest.approx(18 / 31) and a["dice_pooled"].n == 4
    assert (a["false_alarms"].value, a["false_alarms"].n) == (0.5, 2)
    assert np.isnan(b["dice"].value) and b["dice"].n == 0 and b["false_alarms"].value == 0.25
    assert scores["mean"]["dice"].value == 0.75  # of the structures there are
    text = json.dumps(found.to_json(), allow_nan=False)
    again = Segmentation.from_json(json.loads(text))
    assert again.to_json() == json.loads(text)
    assert {k: v["dice"].value for k, v in again.scores().items()} == pytest.approx(
        {k: v["dice"].value for k, v in scores.items()}, nan_ok=True
    )


def test_intervals_and_differences_are_by_patient():
    rng = np.random.default_rng(0)
    true, both = np.full((30, 1), 100), rng.integers(40, 60, (30, 1))
    worse, better = (np.stack([b, true, true], -1) for b in (both, both + rng.integers(5, 12, (30, 1))))
    make = lambda counts, patients: Segmentation(["a"], np.arange(30), patients, counts, {"head": "t"})  # noqa: E731
    patients = [i // 10 for i in range(30)]
    narrow, wide = (make(worse, p).scores()["a"]["dice"] for p in (list(range(30)), patients))
    assert narrow.low < narrow.value < narrow.high
    assert narrow.value == wide.value and (narrow.low, narrow.high) != (wide.low, wide.high)
    same = make(worse, [0] * 30).scores()["a"]["dice"]
    assert same.low == pytest.approx(same.high)  # one patient alone
    found = compare(make(better, range(30)), make(worse, range(30)))["structures"]
    difference = found["a"]["dice"]
    assert difference["value"] == pytest.approx(float((better - worse)[..., 0].mean() / 100))
    assert difference["interval"][0] > 0 and difference["p"] < 0.01
    assert found["mean"]["dice"] == difference
    other = make(better, range(30))
    other.counts_NK3[0, 0, 2] += 1
    with pytest.raises(ValueError, match="other masks"):
        compare(other, make(worse, range(30)))


def test_bad_tasks_are_refused():
    masks = blobs(8)
    with pytest.raises(ValueError, match="two splits"):
        MaskTask(
            lambda rows: masks, ["a", "b"], np.arange(4), np.arange(3, 6), np.arange(6, 8), list(range(8))
        )
    with pytest.raises(ValueError, match="test has none"):
        MaskTask(lambda rows: masks, ["a", "b"], np.arange(4), np.arange(4, 6), np.arange(0), list(range(8)))
    with pytest.raises(ValueError, match="left-out"):
        task_of(masks, outside="ignored")
    for bad in ([m.astype(np.uint8) for m in masks], [m[:1] for m in masks]):
        task = MaskTask(
            lambda rows, bad=bad: [bad[i] for i in rows],
            ["a", "b"],
            *np.split(np.arange(8), [4, 6]),
            list(range(8)),
        )
        with pytest.raises(ValueError, match="image 0"):
            task.shares(task.train, 4)


# The linear head.


def test_the_linear_head_finds_planted_structures_and_no_permuted_ones():
    task = task_of(blobs(24))
    tokens = planted(task)
    asked = []

    def lazily(rows):
        asked.append(len(rows))
        return tokens[rows]

    found = linear(task, lazily, patches=600)
    scores = found.scores(100)
    assert min(scores[s]["dice"].value for s in task.structures) > 0.85 and max(asked) <= overlap.BATCH
    assert set(found.chosen) == set(task.structures) and "patches:600" in found.signature
    shuffled = tokens[:, torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0))]
    blind = linear(task, lambda rows: shuffled[rows])
    assert blind.scores(100)["mean"]["dice"].value < 0.65
    assert (
        compare(found, blind, n_boot=100, n_permutations=100)["structures"]["mean"]["dice"]["interval"][0]
        > 0.1
    )


def test_two_starts_give_the_same_head_and_each_structure_is_alone():
    masks = torch.from_numpy(np.stack(blobs(12, sizes=((32, 32),))))
    tokens = torch.randn(12, 64, 5, generator=torch.Generator().manual_seed(2))
    tokens[..., 0] += 3 * F.adaptive_avg_pool2d(masks.float(), 8)[:, 0].flatten(1)
    fit = lambda y, start=None: LinearHead(1e-2, position=True).fit(tokens, y, start)  # noqa: E731
    a, b, first = fit(masks), fit(masks, 1), fit(masks[:, 0])
    assert a.slope < 1e-4 and b.slope < 1e-4
    assert a.logits(tokens) == pytest.approx(b.logits(tokens), abs=1e-3)
    assert a.logits(tokens)[:, :1] == pytest.approx(first.logits(tokens), abs=1e-3)
    assert a.predict(tokens, 32).shape == (12, 2, 32, 32) and first.predict(tokens, 32).shape == (12, 32, 32)


@pytest.mark.parametrize("position", [False, True])
def test_correlated_tokens_do_not_stop_it_short(position):
    """Features with spreads from 1 to 0.001 after mixing, of which the last tells: the curvature finds it at once."""
    generator = torch.Generator().manual_seed(4)
    masks = torch.rand(16, 1, 6, 6, generator=generator) < 0.5
    hidden = torch.randn(16, 36, 12, generator=generator) * torch.logspace(0, -3, 12)
    hidden[..., -1] += 0.003 * masks.flatten(1)
    tokens = hidden @ torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    head = LinearHead(1e-6, position=position).fit(tokens, masks)
    assert head.slope < 4e-5 and head.taken < 30
    assert ((head.logits(tokens) > 0) == masks).float().mean() > 0.9


def test_the_linear_head_is_scikit_learns_also_with_places():
    """Masks that cover patches whole or not at all; places as features of their own."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(10, 1, 4, 4, generator=generator) < 0.4
    tokens = torch.randn(10, 16, 3, generator=generator) + 2 * masks.flatten(2).transpose(1, 2)
    ridge = 1e-2
    for position in (False, True):
        places = torch.eye(16).expand(10, -1, -1)
        x = (torch.cat([tokens, places], -1) if position else tokens).flatten(0, 1)
        x = ((x - x.mean(0)) / x.std(0)).numpy()
        y = masks.flatten().numpy()
        model = LogisticRegression(C=1 / (ridge * len(x)), tol=1e-8, max_iter=5000).fit(x, y)
        head = LinearHead(ridge, position=position).fit(tokens, masks)
        assert head.logits(tokens).flatten().numpy() == pytest.approx(model.decision_function(x), abs=1e-3)


def test_floors_know_where_things_usually_are():
    """The same place in all images: no encoder is needed. Another in each, told by the image: only the second."""
    rng = np.random.default_rng(0)
    fixed = [np.zeros((1, 40, 40), bool) for _ in range(24)]
    moving = [np.zeros((1, 40, 40), bool) for _ in range(24)]
    for mask in fixed:
        mask[0, 10:30, 10:30] = True
    for mask in moving:
        at = rng.integers(0, 20)
        mask[0, at : at + 20, 10:30] = True
    pixels = torch.randn(24, 64, 4, generator=torch.Generator().manual_seed(0))
    images = np.stack(
        [F.adaptive_avg_pool2d(torch.from_numpy(m).float(), 16).flatten().numpy() for m in moving]
    )
    still, moved = (floors(task_of(m), lambda rows: pixels[rows], images) for m in (fixed, moving))
    assert all(
        f.scores(20)["mean"]["dice"].value > 0.9
        for f in (still["mean mask"], still["raw patches + position"])
    )
    dice = {name: f.scores(20)["mean"]["dice"].value for name, f in moved.items()}
    assert (
        dice["PCA of the whole image"] > 0.85 > 0.8 > max(dice["mean mask"], dice["raw patches + position"])
    )


def test_masks_to_be_shown_are_those_that_are_counted():
    """Kept with the answers, through JSON; larger images are shown smaller."""
    masks = blobs(24)
    task = task_of(masks, Frame(Preprocessing(size=32)))
    found = linear(task, lambda rows: planted(task)[rows])
    assert len(found.examples) == min(overlap.EXAMPLES, len(task.test)) > 0
    for example, row, counts in zip(found.examples, task.test, found.counts_NK3, strict=False):
        assert example.shape == masks[row].shape
        assert counts[:, 1].tolist() == example.sum((1, 2)).tolist()
        assert counts[:, 0].tolist() == (example & masks[row]).sum((1, 2)).tolist()
    again = Segmentation.from_json(json.loads(json.dumps(found.to_json())))
    for a, b in zip(found.examples, again.examples, strict=True):
        np.testing.assert_array_equal(a, b)
    large = task_of([np.kron(m, np.ones((1, 12, 12), bool)) for m in masks], Frame(Preprocessing(size=32)))
    (small,) = overlap.found_masks(large, large.test[:1], lambda rows: found.predict(rows))
    assert max(small.shape[1:]) == overlap.EXAMPLE
    assert small.mean((1, 2)) == pytest.approx(found.examples[0].mean((1, 2)), abs=0.01)
