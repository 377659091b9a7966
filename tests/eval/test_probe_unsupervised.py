"""Clusters of patches without labels: planted regions, modularity against networkx, matching by brute force."""

from itertools import permutations, product

import networkx
import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from eval.probes import unsupervised as u
from eval.probes.overlap import Frame, MaskTask, dice_of


def regions(side: int = 8) -> np.ndarray:
    """Two boxes (1 and 2) on a ground (0), (side, side)."""
    labels = np.zeros((side, side), np.int64)
    labels[1:6, 1:4] = 1
    labels[2:7, 5:7] = 2
    return labels


def tokens_of(labels: np.ndarray, noise: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, 16))[labels.ravel()] + noise * rng.normal(size=(labels.size, 16)) + 5


def toy(n: int = 4, side: int = 8, size: int = 64) -> tuple[MaskTask, torch.Tensor]:
    labels = regions(side)
    big = labels.repeat(size // side, 0).repeat(size // side, 1)
    masks = np.stack([big == 1, big == 2])
    tokens = np.stack([tokens_of(labels, seed=i) for i in range(n + 2)])
    task = MaskTask(
        lambda rows: [masks] * len(rows), ["a", "b"], [0], [1], np.arange(2, n + 2), range(n + 2), Frame()
    )
    return task, torch.from_numpy(tokens)


@pytest.mark.parametrize("method", u.METHODS)
@pytest.mark.parametrize("radius", [None, 3])
def test_planted_regions_are_found(method, radius):
    labels = regions()
    found = u.clusters(tokens_of(labels), method, 3, radius)
    assert found.shape == (8, 8) and adjusted_rand_score(labels.ravel(), found.ravel()) > 0.95


def test_spectral_clusters_are_scikit_learns():
    W = u.affinity(tokens_of(regions(), noise=0.6, seed=3))
    other = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(W)
    assert adjusted_rand_score(other, u.spectral(W, 3)) > 0.95


def test_affinity_is_the_cosine_about_the_mean():
    x = np.random.default_rng(0).normal(size=(9, 4))
    W = u.affinity(x)
    centred = x - x.mean(0)
    assert (W == W.T).all() and (np.diagonal(W) == 0).all() and (W >= 0).all()
    wanted = centred[0] @ centred[5] / np.linalg.norm(centred[0]) / np.linalg.norm(centred[5])
    assert W[0, 5] == pytest.approx(max(wanted, u.FAINT))
    near = u.affinity(x, radius=1) > u.FAINT
    assert not near[0, 4] and not near[0, 2] and near.sum() <= 24  # 12 edges of a 3 x 3 grid
    assert (u.affinity(x, radius=1.5)[0, 4] == W[0, 4]) and (u.affinity(x, radius=1)[0, 1] == W[0, 1])


def test_modularity_is_networkxs():
    rng = np.random.default_rng(1)
    W = u.affinity(rng.normal(size=(16, 5)))
    labels = rng.integers(0, 3, 16)
    graph = networkx.from_numpy_array(W)
    sets = [set(np.flatnonzero(labels == c).tolist()) for c in range(3)]
    assert u.modularity(W, labels) == pytest.approx(networkx.community.modularity(graph, sets), abs=1e-12)


def test_modularity_is_as_high_as_it_can_be():
    """Of all splits in two of graphs of 9 patches."""
    for seed in range(4):
        W = u.affinity(np.random.default_rng(seed).normal(size=(9, 3)))
        best = max(u.modularity(W, np.array(split)) for split in product((0, 1), repeat=9))
        found = u.modularity(W, u.by_modularity(W, 2))
        assert found > 0 and found >= 0.97 * best - 1e-12
    louvain = networkx.community.louvain_communities(networkx.from_numpy_array(W), seed=0)
    wanted = networkx.community.modularity(networkx.from_numpy_array(W), louvain)
    assert u.modularity(W, u.by_modularity(W, max(2, len(louvain)))) >= wanted - 0.02


def test_no_structure_is_no_error():
    for method in u.METHODS:
        assert u.clusters(np.ones((9, 4)), method, 3).shape == (3, 3)
        assert u.clusters(np.random.default_rng(0).normal(size=(1, 4)), method, 1).shape == (1, 1)


def test_the_best_union_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(0, 30, 5)
        both, rest = rng.binomial(sizes, rng.random(5)), rng.integers(0, 5)
        true = int(both.sum() + rest)
        dice = lambda s, b=both, n=sizes, t=true: 2 * b[s].sum() / max(1, n[s].sum() + t)  # noqa: E731
        best = max(dice(np.array(s, bool)) for s in product((0, 1), repeat=5))
        assert dice(u.best_union(both, sizes, true)) == pytest.approx(best)
    assert not u.best_union(np.zeros(3, int), np.array([4, 5, 6]), 0).any()
    assert not u.best_union(np.zeros(3, int), np.array([4, 5, 6]), 7).any()


@pytest.mark.parametrize(("k", "K"), [(4, 2), (2, 4), (3, 3)])
def test_hungarian_matching_by_brute_force(k, K):
    rng = np.random.default_rng(k)
    for _ in range(20):
        sizes = rng.integers(1, 30, k)
        both = rng.binomial(sizes[:, None], rng.random((k, K)) / K)
        true = both.sum(0) + rng.integers(0, 5, K)
        true[0], both[:, 0] = 0, 0  # not there
        counts = u.matched(both, sizes, true, "hungarian")
        dice = np.nan_to_num(dice_of(counts))
        if k >= K:
            pairs = ([(c, s) for s, c in enumerate(p)] for p in permutations(range(k), K))
        else:
            pairs = ([(c, s) for c, s in enumerate(p)] for p in permutations(range(K), k))
        best = max(sum(2 * both[c, s] / (sizes[c] + true[s]) for c, s in p) for p in pairs)
        assert dice.sum() == pytest.approx(best) and counts[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", u.METHODS)
@pytest.mark.parametrize("matching", u.MATCHINGS)
def test_planted_structures_stand_above_the_floors(method, matching):
    task, tokens = toy()
    grey = torch.rand(6, 64, 4, generator=torch.Generator().manual_seed(0))  # says nothing
    options = {"method": method, "matching": matching, "k": 3}
    found = u.segment(task, lambda rows: tokens[rows], **options)
    floors = u.floors(task, lambda rows: grey[rows], **options)
    value = found.scores(50)["mean"]["dice"].value
    assert value > 0.95 and matching in found.signature and "oracle" in found.signature
    assert set(floors) == {"raw patches + position", "centre split"}
    dice = {name: f.scores(50)["mean"]["dice"].value for name, f in floors.items()}
    assert dice["raw patches + position"] < 0.6 and dice["centre split"] < 0.85


def test_the_centre_split():
    split = u.centre_split(16, 3)
    assert (split[:2] == 0).all() and (split[:, -2:] == 0).all()
    assert (split[2:14, 2:8] == 1).all() and (split[2:14, 8:14] == 2).all()
    assert u.centre_split(4, 1).max() == 0


def test_unknown_ways_are_refused():
    task, tokens = toy(1)
    with pytest.raises(ValueError, match="spectral or modularity"):
        u.segment(task, lambda rows: tokens[rows], method="gnn")
    with pytest.raises(ValueError, match="union or hungarian"):
        u.segment(task, lambda rows: tokens[rows], matching="greedy")
