"""Masks judged at the resolution of their images: where an encoder's square lies in an image, what of a structure it
sees, and Dice and IoU of the pixels with intervals over patients.

Shape letters: N images, K structures, J candidates, H, W pixels of an image, h, w cells of a map over the square that
an encoder sees.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from encoder.transforms import Preprocessing
from eval.resampling import (
    bootstrap_sums,
    paired_bootstrap,
    paired_permutation,
    patient_sums,
    percentile_interval,
)
from eval.signature import Score, number, signature

OUTSIDE = ("background", "left-out")
CELLS = 128  # a side of the square, on which candidates are compared on validation
BATCH = 8  # images whose tokens are in memory at once
EXAMPLES, EXAMPLE = 4, 512  # test images whose masks are kept to be shown, and pixels of their longer side
Predictor = Callable[
    [np.ndarray], Tensor
]  # rows -> logits (n, K, h, w) over the square; positive: the structure
Masks = Callable[[Sequence[int]], Iterable[np.ndarray]]  # rows -> bool (K, H, W) of each


@dataclass(frozen=True)
class Frame:
    """Say where the patches of an encoder lie in an image of any size.

    `patch`: its side in pixels of the preprocessed square, whose right and lower rim no patch covers if they do not
    divide it; without it they cover the whole square.
    """

    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(mode="stretch"))
    patch: int | None = None

    def spans(self, H: int, W: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return first and last row, first and last column of the patches, in pixels of the image; outside it
        in padding."""
        h, w, top, left = self.preprocessing.place(H, W)
        size = self.preprocessing.size
        side = size - size % self.patch if self.patch else size
        return (top * H / h, (top + side) * H / h), (left * W / w, (left + side) * W / w)

    def enlarge(self, maps_Khw: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        """Enlarge maps over the square to (K, H, W) of the image by bilinear interpolation, which continues
        the outermost cells, and bool (H, W): pixels whose centre lies in the square."""
        rows, columns = self.spans(H, W)
        y_Hh, inside_H = _bilinear(maps_Khw.shape[1], *rows, H)
        x_Ww, inside_W = _bilinear(maps_Khw.shape[2], *columns, W)
        return y_Hh @ maps_Khw.float().cpu() @ x_Ww.T, inside_H[:, None] & inside_W

    def masks(self, logits_Khw: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        """Turn logits over the square into masks of the image, bool (K, H, W), empty outside the square; and
        the pixels in it, bool (H, W)."""
        logits_KHW, inside_HW = self.enlarge(logits_Khw, H, W)
        return (logits_KHW > 0) & inside_HW, inside_HW

    def shares(self, masks_KHW: np.ndarray, side: int) -> Tensor:
        """Return the share of each of side x side cells of the square that a structure covers, (K, side,
        side)."""
        rows, columns = self.spans(*masks_KHW.shape[1:])
        y_hH = _areas(side, *rows, masks_KHW.shape[1])
        x_wW = _areas(side, *columns, masks_KHW.shape[2])
        return y_hH @ torch.from_numpy(masks_KHW).float() @ x_wW.T


def _bilinear(cells: int, low: float, high: float, pixels: int) -> tuple[Tensor, Tensor]:
    """Weights (pixels, cells) of cells that lie evenly from `low` to `high`, and which pixels lie there."""
    at = (torch.arange(pixels, dtype=torch.float64) + 0.5 - low) * cells / (high - low) - 0.5
    inside = (at >= -0.5) & (at <= cells - 0.5)
    at = at.clamp(0, cells - 1)
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0).float(), inside


def _areas(cells: int, low: float, high: float, pixels: int) -> Tensor:
    """(cells, pixels): the share of a cell that a pixel covers."""
    width = (high - low) / cells
    edges = low + width * torch.arange(cells + 1, dtype=torch.float64)
    first = torch.arange(pixels, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], first + 1) - torch.maximum(edges[:-1, None], first)
    return (overlap.clamp(min=0) / width).float()


@dataclass(frozen=True)
class MaskTask:
    """Say what is to be segmented, and in which images: rows of `train`, `validate` and `test` among N
    images.

    `masks(rows)` gives one bool array (K, H, W) a row, at the size of the image as it is on disk, and is called anew
    whenever they are needed. `patients` has one entry for each of the N. `frame`: of the encoder that is judged.
    `outside`: pixels that it does not see are `background`, so that structures cut off by the crop cost recall, or
    `left-out` of the count. `cells`: a side, at which candidates are compared on validation.
    """

    masks: Masks
    structures: Sequence[str]
    train: np.ndarray
    validate: np.ndarray
    test: np.ndarray
    patients: Sequence[Hashable]
    frame: Frame = field(default_factory=Frame)
    outside: str = "background"
    cells: int = CELLS

    def __post_init__(self) -> None:
        if self.outside not in OUTSIDE:
            raise ValueError(f"pixels outside are {' or '.join(OUTSIDE)}, not {self.outside!r}")
        for name in ("train", "validate", "test"):
            rows = np.asarray(getattr(self, name), np.int64)
            if not len(rows):
                raise ValueError(f"a segmentation needs images in all splits; {name} has none")
            if rows.min() < 0 or rows.max() >= len(self.patients):
                raise ValueError(f"{name} has rows beyond the {len(self.patients)} images")
            object.__setattr__(self, name, rows)
        every = np.concatenate([self.train, self.validate, self.test])
        if len(np.unique(every)) < len(every):
            raise ValueError("an image is in two splits, or in one of them twice")

    def each(self, rows: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        """Yield (row, bool (K, H, W)), checked."""
        for part in batches(rows):
            masks = list(self.masks(part))
            if len(masks) != len(part):
                raise ValueError(f"asked for the masks of {len(part)} images, got {len(masks)}")
            for row, mask_KHW in zip(part, masks, strict=True):
                mask_KHW = np.asarray(mask_KHW)
                if mask_KHW.dtype != bool or mask_KHW.ndim != 3 or len(mask_KHW) != len(self.structures):
                    raise ValueError(
                        f"masks of image {row} should be bool ({len(self.structures)}, H, W), one a structure; "
                        f"got {mask_KHW.dtype} {mask_KHW.shape}"
                    )
                yield int(row), mask_KHW

    def shares(self, rows: np.ndarray, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (n, K, side, side): how much of each cell of the square a structure covers."""
        return torch.stack([self.frame.shares(mask, side).to(dtype) for _, mask in self.each(rows)])

    def choices(self, **more: object) -> dict[str, object]:
        """Return the choices that stand in the signature."""
        view = self.frame.preprocessing.mode if self.outside == "left-out" else None
        return {**more, "at": "image", "outside": self.outside, "view": view, "empty": "apart"}


def batches(rows: np.ndarray, size: int = BATCH) -> list[np.ndarray]:
    """Cut rows into consecutive parts of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def overlap(A: Tensor, B: Tensor) -> Tensor:
    """Count cells in both, in A, in B, of masks (..., H, W): int64 (..., 3)."""
    return torch.stack([x.flatten(-2).sum(-1) for x in torch.broadcast_tensors(A & B, A, B)], -1)


def counts(task: MaskTask, rows: np.ndarray, predict: Predictor) -> np.ndarray:
    """Count pixels at the resolution of the images: in both, predicted, true; int64 (n, K, 3)."""
    found, masks = [], task.each(rows)
    for part in batches(rows):
        # the maps end first, so that no mask is taken in vain
        for maps_Khw, (_, mask_KHW) in zip(predict(part), masks, strict=False):
            found_KHW, inside_HW = task.frame.masks(maps_Khw, *mask_KHW.shape[1:])
            truth_KHW = torch.from_numpy(mask_KHW)
            if task.outside == "left-out":
                truth_KHW = truth_KHW & inside_HW
            found.append(overlap(found_KHW, truth_KHW))
    return torch.stack(found).numpy()


def found_masks(task: MaskTask, rows: np.ndarray, predict: Predictor) -> list[np.ndarray]:
    """Return what is found in each image, bool (K, h, w), its longer side `EXAMPLE` pixels at most."""
    found = []
    for (_, mask_KHW), maps_Khw in zip(task.each(rows), predict(rows), strict=True):
        H, W = mask_KHW.shape[1:]
        scale = min(1.0, EXAMPLE / max(H, W))
        # the frame goes by the image's shape alone
        found.append(
            task.frame.masks(maps_Khw, max(1, round(H * scale)), max(1, round(W * scale)))[0].numpy()
        )
    return found


def packed(masks_KHW: np.ndarray) -> dict[str, Any]:
    """Pack masks for JSON: a bit a pixel, deflated."""
    bits = zlib.compress(np.packbits(masks_KHW).tobytes(), 9)
    return {"shape": list(masks_KHW.shape), "bits": base64.b64encode(bits).decode()}


def unpacked(masks: dict[str, Any]) -> np.ndarray:
    """Undo `packed`."""
    shape = tuple(masks["shape"])
    bits = np.frombuffer(zlib.decompress(base64.b64decode(masks["bits"])), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def dice_of(counts_NK3: np.ndarray) -> np.ndarray:
    """Compute Dice, 2 |A and B| / (|A| + |B|); NaN where there is nothing true."""
    both, predicted, true = np.moveaxis(np.asarray(counts_NK3, np.float64), -1, 0)
    return _ratio(2 * both, predicted + true, true > 0)


def iou_of(counts_NK3: np.ndarray) -> np.ndarray:
    """Compute IoU, |A and B| / |A or B|; NaN where there is nothing true."""
    both, predicted, true = np.moveaxis(np.asarray(counts_NK3, np.float64), -1, 0)
    return _ratio(both, predicted + true - both, true > 0)


def _ratio(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """a / b; NaN where b is 0, or not `where`."""
    where = b > 0 if where is None else where & (b > 0)
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=where)


def choose(
    task: MaskTask, candidates: Callable[[np.ndarray], Tensor], names: Sequence[Any]
) -> tuple[Predictor, dict[str, Any], dict[str, float]]:
    """Choose, for each structure, the one of J candidates, rows -> (n, J, K, h, w), with the best mean Dice
    on validation. Returns the predictor, and for each structure the candidate's name and its Dice there.

    Compared on `task.cells` a side of the square. Where validation lacks the structure, the first is taken.
    """
    truth_NKhw = task.shares(task.validate, task.cells) > 0.5
    found, place = [], 0
    for part in batches(task.validate):
        for maps_JKhw in candidates(part):
            logits = F.interpolate(maps_JKhw.float().cpu(), size=(task.cells, task.cells), mode="bilinear")
            found.append(overlap(logits > 0, truth_NKhw[place]))
            place += 1
    dice_NJK = dice_of(torch.stack(found).numpy())
    known_K = ~np.isnan(dice_NJK).all((0, 1))
    mean_JK = np.full(dice_NJK.shape[1:], np.nan)
    mean_JK[:, known_K] = np.nanmean(dice_NJK[:, :, known_K], 0)
    best_K = np.where(known_K, np.nan_to_num(mean_JK, nan=-1).argmax(0), 0)
    every_K = np.arange(len(best_K))

    def predict(rows: np.ndarray) -> Tensor:
        return candidates(rows)[:, best_K, every_K]

    chosen = {s: names[j] for s, j in zip(task.structures, best_K, strict=True)}
    return predict, chosen, dict(zip(task.structures, mean_JK[best_K, every_K].tolist(), strict=True))


@dataclass
class Segmentation:
    """Hold what one way of segmenting finds in the test images: pixels `counts_NK3` in both, predicted, true.

    Per-image Dice and IoU are of images that have the structure. Those that do not are counted apart, with the share of
    them in which something is found (`false_alarms`). `dice`: mean over images; `dice_pooled`: of the pixels of all
    images together, among them those without the structure; the same of `iou`. "mean" is over the structures that any
    test image has.
    """

    structures: list[str]
    rows_N: np.ndarray
    patients_N: list[Hashable]
    counts_NK3: np.ndarray
    choices: dict[str, Any]  # of the signature
    chosen: dict[str, Any] = field(default_factory=dict)  # structure -> what was chosen on validation
    validation: dict[str, float] = field(default_factory=dict)  # structure -> Dice there
    predict: Predictor | None = field(default=None, repr=False, compare=False)
    examples: list[np.ndarray] = field(
        default_factory=list, repr=False, compare=False
    )  # `found_masks` of the first

    @property
    def dice_NK(self) -> np.ndarray:
        """Return Dice per image and structure (N, K); NaN where the image lacks the structure."""
        return dice_of(self.counts_NK3)

    @property
    def iou_NK(self) -> np.ndarray:
        """Return IoU per image and structure (N, K); NaN where the image lacks the structure."""
        return iou_of(self.counts_NK3)

    @property
    def signature(self) -> str:
        """Return every choice that can change a value, as one line of text."""
        return signature("segmentation", **self.choices)

    def scores(self, n_boot: int = 1000, seed: int = 0) -> dict[str, dict[str, Score]]:
        """Return structure or "mean" -> quantity -> value with its 95 % interval over patients."""
        sums_PS = patient_sums(self._sums(), self.patients_N)
        values = self._values(sums_PS.sum(0))
        replicates = self._values(bootstrap_sums(sums_PS, n_boot, seed))
        images = self._images()
        found: dict[str, dict[str, Score]] = {}
        for k, structure in enumerate([*self.structures, "mean"]):
            found[structure] = {
                name: Score(
                    f"{name}/{structure}",
                    float(value[k]),
                    *percentile_interval(replicates[name][:, k]),
                    images[name][k],
                    signature(name.replace("_", "-"), **self.choices),
                )
                for name, value in values.items()
            }
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the counts of each image, from which all quantities follow. Patients are numbered in order
        of appearance."""
        index: dict[Hashable, int] = {}
        return {
            "signature": self.signature,
            "choices": self.choices,
            "structures": self.structures,
            "chosen": self.chosen,
            "validation": {k: number(v) for k, v in self.validation.items()},
            "each": {
                "row": self.rows_N.tolist(),
                "patient": [index.setdefault(p, len(index)) for p in self.patients_N],
                "counts": self.counts_NK3.tolist(),
            },
            "examples": [packed(masks_KHW) for masks_KHW in self.examples],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Segmentation:
        """Make it anew from what `to_json` returned, without `predict`."""
        each = found["each"]
        return cls(
            found["structures"],
            np.array(each["row"]),
            each["patient"],
            np.array(each["counts"], np.int64),
            found["choices"],
            found["chosen"],
            {k: float("nan") if v is None else v for k, v in found["validation"].items()},
            examples=[unpacked(masks) for masks in found.get("examples", [])],
        )

    def _images(self) -> dict[str, list[int]]:
        """quantity -> of how many images it is, for each structure and the mean."""
        N, with_it_K = len(self.rows_N), (self.counts_NK3[..., 2] > 0).sum(0)
        mean, pooled = [*with_it_K.tolist(), N], [N] * (len(with_it_K) + 1)
        alarms = [*(N - with_it_K).tolist(), N]
        return {
            "dice": mean,
            "iou": mean,
            "dice_pooled": pooled,
            "iou_pooled": pooled,
            "false_alarms": alarms,
        }

    def _sums(self) -> np.ndarray:
        """Statistics of each image whose sums give all quantities, (N, 8 K)."""
        true_NK, dice_NK, iou_NK = self.counts_NK3[..., 2] > 0, self.dice_NK, self.iou_NK
        alarm_NK = ~true_NK & (self.counts_NK3[..., 1] > 0)
        parts = [np.nan_to_num(dice_NK), np.nan_to_num(iou_NK), true_NK, alarm_NK, ~true_NK]
        return np.concatenate([*parts, *np.moveaxis(self.counts_NK3, -1, 0)], axis=1).astype(np.float64)

    def _values(self, sums_S: np.ndarray) -> dict[str, np.ndarray]:
        """Sums (..., 8 K) -> quantity -> (..., K + 1), the mean over structures last."""
        dice, iou, true, alarm, none, both, predicted, truth = np.split(sums_S, 8, axis=-1)
        values = {
            "dice": _ratio(dice, true),
            "iou": _ratio(iou, true),
            "dice_pooled": _ratio(2 * both, predicted + truth),
            "iou_pooled": _ratio(both, predicted + truth - both),
            "false_alarms": _ratio(alarm, none),
        }
        present_K = (self.counts_NK3[..., 2] > 0).any(0)
        lacking_K = (self.counts_NK3[..., 2] == 0).any(0)
        return {
            name: np.concatenate([x, _mean(x, lacking_K if name == "false_alarms" else present_K)], -1)
            for name, x in values.items()
        }


def _mean(x: np.ndarray, which_K: np.ndarray) -> np.ndarray:
    if not which_K.any():
        return np.full((*x.shape[:-1], 1), np.nan)
    return x[..., which_K].mean(-1, keepdims=True)


def compare(
    a: Segmentation, b: Segmentation, *, n_boot: int = 1000, n_permutations: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Compare a minus b on the same test images: structure or "mean" -> quantity -> {"value", "interval",
    "p", "n"}, resampled and permuted by patient. Raises ValueError if they were judged on other images, masks
    or pixels."""
    same = ("at", "outside", "view", "empty")
    if a.structures != b.structures or [str(x) for x in a.rows_N] != [str(x) for x in b.rows_N]:
        raise ValueError("segmentations can be compared on the same structures of the same images only")
    if any(a.choices.get(k) != b.choices.get(k) for k in same) or not np.array_equal(
        a.counts_NK3[..., 2], b.counts_NK3[..., 2]
    ):
        raise ValueError(
            "the two were judged on other masks, or count pixels otherwise: "
            f"{a.signature} with {int(a.counts_NK3[..., 2].sum())} true pixels, "
            f"{b.signature} with {int(b.counts_NK3[..., 2].sum())}"
        )
    names = ("dice", "iou", "dice_pooled", "iou_pooled")

    def metric(sums_S: np.ndarray) -> np.ndarray:
        values = a._values(sums_S)
        return np.concatenate([values[name] for name in names], -1)

    stats = a._sums(), b._sums(), a.patients_N
    value, low, high = paired_bootstrap(metric, *stats, n_boot=n_boot, seed=seed)
    p = paired_permutation(metric, *stats, n_permutations=n_permutations, seed=seed)
    found: dict[str, Any] = {}
    every = list(enumerate([*a.structures, "mean"]))
    for i, (name, (k, structure)) in enumerate((n, s) for n in names for s in every):
        found.setdefault(structure, {})[name] = {
            "value": number(value[i]),
            "interval": [number(low[i]), number(high[i])],
            "p": number(p[i]),
            "n": a._images()[name][k],
        }
    return {"signature": f"{a.signature} minus {b.signature}", "structures": found}
