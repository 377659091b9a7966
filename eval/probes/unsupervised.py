"""What the patch tokens of one image group together by themselves, without labels: clusters of a graph of its patches,
by normalised spectral clustering (Ng, Jordan and Weiss 2001) and by modularity (Newman 2006; as the aim of UnSegGNet,
arXiv 2405.06057, here without a network).

The clusters have no names. Each structure gets those that suit it best in this very image, by its true mask: an upper
bound, which is worth something beside the same of raw pixels and of a split that looks at no image (`floors`).

Shape letters: P patches (g x g), C features, k clusters, K structures, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from sklearn.cluster import KMeans
from torch import Tensor

from encoder.progress import bar
from eval.probes.overlap import MaskTask, Segmentation
from eval.probes.segmentation import Tokens

METHODS = ("spectral", "modularity")
MATCHINGS = ("union", "hungarian")
FAINT = 1e-6  # weight of every edge at least, so that the graph is connected


def affinity(tokens_PC: np.ndarray, radius: float | None = None) -> np.ndarray:
    """Return symmetric weights (P, P) of the edges between patches: the cosine of their tokens about the
    image's mean, 0 where it is negative, and on the diagonal. With `radius` only between patches whose
    centres are at most so many apart."""
    x_PC = np.asarray(tokens_PC, np.float64)
    x_PC = x_PC - x_PC.mean(0)
    x_PC /= np.linalg.norm(x_PC, axis=1, keepdims=True).clip(min=1e-12)
    W_PP = np.maximum(x_PC @ x_PC.T, FAINT)
    if radius is not None:
        side = round(len(x_PC) ** 0.5)
        place_P2 = np.stack(np.divmod(np.arange(len(x_PC)), side), 1)
        far_PP = ((place_P2[:, None] - place_P2[None]) ** 2).sum(-1) > radius**2
        W_PP[far_PP] = FAINT
    np.fill_diagonal(W_PP, 0)
    return W_PP


def _leading(A_PP: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest eigenvalues, falling, and their vectors (P, k), signs fixed."""
    k = min(k, len(A_PP))
    values, vectors = None, None
    if k < len(A_PP):  # ARPACK finds fewer than all
        with suppress(ArpackNoConvergence):
            values, vectors = eigsh(A_PP, k, which="LA", v0=np.cos(np.arange(len(A_PP))))
    if values is None:
        values, vectors = (x[..., -k:] for x in np.linalg.eigh(A_PP))
    values, vectors = values[::-1], vectors[:, ::-1]
    return values, vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(k)])


def _grouped(x_PC: np.ndarray, k: int, seed: int) -> np.ndarray:
    k = min(k, len(np.unique(x_PC.round(9), axis=0)))
    return KMeans(k, n_init=10, random_state=seed).fit_predict(x_PC)


def spectral(W_PP: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Cluster patches, (P,), by k-means on the leading k eigenvectors of D^-1/2 W D^-1/2, rows scaled to
    length one."""
    scale_P = W_PP.sum(1).clip(min=FAINT) ** -0.5  # one patch alone has no edge
    _, x_Pk = _leading(scale_P[:, None] * W_PP * scale_P, k)
    x_Pk = x_Pk / np.linalg.norm(x_Pk, axis=1, keepdims=True).clip(min=1e-12)
    return _grouped(x_Pk, k, seed)


def modularity(W_PP: np.ndarray, labels_P: np.ndarray) -> float:
    """Compute Q (Newman 2006): the share of edge weight within clusters, minus what it would be if only
    degrees counted."""
    degree_P, total = W_PP.sum(1), W_PP.sum()
    same_PP = labels_P[:, None] == labels_P
    return float(((W_PP - np.outer(degree_P, degree_P) / total) * same_PP).sum() / total)


def by_modularity(W_PP: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Find at most k clusters (P,) of high modularity: k-means on the leading eigenvectors of the modularity
    matrix that have positive eigenvalues, each as long as their root; then single patches move, the most
    gainful first, while Q grows."""
    degree_P = W_PP.sum(1)
    B_PP = W_PP - np.outer(degree_P, degree_P) / max(degree_P.sum(), FAINT)
    values, vectors = _leading(B_PP, max(1, k - 1))
    x = vectors[:, values > 0] * np.sqrt(values[values > 0])
    labels_P = _grouped(x, k, seed) if x.shape[1] else np.zeros(len(W_PP), np.int64)
    every = np.arange(len(W_PP))
    own_P = np.diagonal(B_PP)
    links_Pk = B_PP @ np.eye(k)[labels_P]  # of each patch to each cluster
    # each move adds at least the tolerance to a bounded quantity
    while True:
        gain_Pk = links_Pk - (links_Pk[every, labels_P] - own_P)[:, None]
        gain_Pk[every, labels_P] = 0
        patch, to = np.unravel_index(gain_Pk.argmax(), gain_Pk.shape)
        if gain_Pk[patch, to] <= 1e-9 * degree_P.sum():
            return labels_P
        links_Pk[:, labels_P[patch]] -= B_PP[:, patch]
        links_Pk[:, to] += B_PP[:, patch]
        labels_P[patch] = to


def best_union(both_k: np.ndarray, sizes_k: np.ndarray, true: int) -> np.ndarray:
    """Find which clusters together have the best Dice with a structure of `true` pixels: bool (k,). None if
    it is empty.

    `both_k`: pixels of each cluster in the structure. The best set is always one of the clusters with the largest
    shares inside, for its Dice is a ratio of sums: adding a cluster raises it if both / size is over half of it.
    """
    chosen_k = np.zeros(len(both_k), bool)
    if not true:
        return chosen_k
    order = np.argsort(-both_k / np.maximum(sizes_k, 1), kind="stable")
    dice = 2 * both_k[order].cumsum() / (sizes_k[order].cumsum() + true)
    if dice.max() > 0:
        chosen_k[order[: dice.argmax() + 1]] = True
    return chosen_k


def hungarian(both_kK: np.ndarray, sizes_k: np.ndarray, true_K: np.ndarray) -> np.ndarray:
    """Match clusters and structures one to one with the largest sum of Dice: bool (k, K). Empty structures,
    and pairs whose Dice is 0, stay unmatched."""
    dice_kK = np.where(true_K > 0, 2 * both_kK / np.maximum(sizes_k[:, None] + true_K, 1), 0.0)
    chosen_kK = np.zeros(both_kK.shape, bool)
    chosen_kK[linear_sum_assignment(dice_kK, maximize=True)] = True
    return chosen_kK & (dice_kK > 0)


def matched(both_kK: np.ndarray, sizes_k: np.ndarray, true_K: np.ndarray, matching: str) -> np.ndarray:
    """Count pixels in both, predicted, true (K, 3) after the matching."""
    if matching == "hungarian":
        chosen_kK = hungarian(both_kK, sizes_k, true_K)
    else:
        unions = [best_union(both, sizes_k, n) for both, n in zip(both_kK.T, true_K, strict=True)]
        chosen_kK = np.stack(unions, 1)
    return np.stack([(both_kK * chosen_kK).sum(0), sizes_k @ chosen_kK, true_K], -1).astype(np.int64)


def clusters(
    tokens_PC: np.ndarray, method: str = "spectral", k: int = 4, radius: float | None = None, seed: int = 0
) -> np.ndarray:
    """Return the clusters of an image's patches, int (g, g), numbered from 0."""
    W_PP = affinity(tokens_PC, radius)
    labels_P = (spectral if method == "spectral" else by_modularity)(W_PP, k, seed)
    side = round(len(labels_P) ** 0.5)
    return labels_P.reshape(side, side)


def segment(
    task: MaskTask,
    tokens: Tokens,
    *,
    method: str = "spectral",
    k: int = 4,
    matching: str = "union",
    radius: float | None = None,
    seed: int = 0,
    features: str = "tokens",
    say: Callable[[str], None] = print,
) -> Segmentation:
    """Find the clusters of each test image, matched to its structures at the resolution of the image (see
    `matched`).

    `matching`: `union`, for each structure the best set of clusters; `hungarian`, one cluster each. Edges of clusters
    are enlarged as logits are: a pixel belongs to the cluster with the largest bilinear share. `features`: what they
    are called in the signature. Only `task.test` is used.
    """
    if method not in METHODS:
        raise ValueError(f"the method is {' or '.join(METHODS)}, not {method!r}")

    def labelled(row: int) -> np.ndarray:
        tokens_PC = tokens(np.array([row]))[0].float().cpu().numpy()
        return clusters(tokens_PC, method, k, radius, seed)

    return _judged(task, labelled, k, matching, say, head=method, features=features, radius=radius, seed=seed)


def centre_split(side: int, k: int) -> np.ndarray:
    """Return a split that needs no image: the rim (an eighth of the side), and the rest in k - 1 upright
    strips."""
    at = (np.arange(side) + 0.5) / side
    middle = np.abs(at - 0.5) < 3 / 8
    strip = 1 + np.clip((at - 1 / 8) / (3 / 4) * (k - 1), 0, max(0, k - 2)).astype(np.int64)
    return np.where(middle[:, None] & middle, strip, 0) if k > 1 else np.zeros((side, side), np.int64)


def with_place(pixels_PC: np.ndarray, weight: float = 1.0) -> np.ndarray:
    """Return the grey levels of patches, standardised by image, with the place beside them: as long a vector
    on average, times `weight`."""
    x_PC = np.asarray(pixels_PC, np.float64)
    x_PC = (x_PC - x_PC.mean()) / max(x_PC.std(), 1e-12) / x_PC.shape[1] ** 0.5
    side = round(len(x_PC) ** 0.5)
    place_P2 = np.stack(np.divmod(np.arange(len(x_PC)), side), 1) / max(1, side - 1) - 0.5
    place_P2 *= weight / max(np.sqrt((place_P2**2).sum(1).mean()), 1e-12)
    return np.concatenate([x_PC, place_P2], 1)


def floors(
    task: MaskTask,
    pixels: Tokens,
    *,
    method: str = "spectral",
    k: int = 4,
    matching: str = "union",
    radius: float | None = None,
    seed: int = 0,
    cells: int = 64,
    say: Callable[[str], None] = print,
) -> dict[str, Segmentation]:
    """Return the baselines: the same with raw patches and their places instead of tokens, and a fixed split
    (`centre_split`)."""

    def placed(rows: np.ndarray) -> Tensor:
        return torch.stack([torch.from_numpy(with_place(x.cpu().numpy())) for x in pixels(rows)])

    common = {"k": k, "matching": matching, "say": say}
    fixed = centre_split(cells, k)
    return {
        "raw patches + position": segment(
            task, placed, method=method, radius=radius, seed=seed, features="raw-patches", **common
        ),
        "centre split": _judged(task, lambda row: fixed, k, matching, say, head="centre-split"),
    }


def _judged(
    task: MaskTask, labelled: Callable[[int], np.ndarray], k: int, matching: str, say, **choices: object
) -> Segmentation:
    if matching not in MATCHINGS:
        raise ValueError(f"the matching is {' or '.join(MATCHINGS)}, not {matching!r}")
    if k < 1:
        raise ValueError(f"at least one cluster is needed, not {k}")
    found = []
    for row, mask_KHW in bar(task.each(task.test), str(choices["head"]), len(task.test), say=say):
        found.append(matched(*_shared(task, labelled(row), mask_KHW, k), matching))
    return Segmentation(
        list(task.structures),
        task.test,
        [task.patients[i] for i in task.test],
        np.stack(found),
        task.choices(**choices, clusters=k, matching=f"{matching},oracle"),
    )


def _shared(
    task: MaskTask, labels_gg: np.ndarray, mask_KHW: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each cluster in each structure (k, K), of each cluster (k,), of each structure (K,)."""
    maps_kgg = torch.from_numpy(np.eye(k, dtype=np.float32)[labels_gg]).permute(2, 0, 1)
    shares_kHW, inside_HW = task.frame.enlarge(maps_kgg, *mask_KHW.shape[1:])
    label_HW, inside_HW = shares_kHW.argmax(0).numpy(), inside_HW.numpy()
    inside_L = label_HW[inside_HW]
    both_kK = np.stack([np.bincount(label_HW[m & inside_HW], minlength=k) for m in mask_KHW], 1)
    truth_KHW = mask_KHW & inside_HW if task.outside == "left-out" else mask_KHW
    return both_kK, np.bincount(inside_L, minlength=k), truth_KHW.sum((1, 2))
