"""Convolutional heads on frozen patch tokens, trained: UPerNet (arXiv 1807.10221) and the simple feature pyramid of
ViTDet (arXiv 2203.16527). What they find beyond a linear head, the features do not hold in one patch alone.

Shape letters: B, N images, P patches (g x g), C channels, D channels of the pyramid, K structures, h, w cells of a map.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder.progress import Every
from eval.probes.overlap import MaskTask, Segmentation, batches, dice_of, overlap
from eval.probes.segmentation import Tokens, judged, statistics

SCALES = (4, 2, 1, 0.5)  # of the patch grid; strides of a quarter to twice the patch
HEADS = ("upernet", "vitdet")


@dataclass(frozen=True)
class DecoderTraining:
    """Set how a head is built and trained. On 500 images of 16 x 16 tokens the defaults take a few minutes on
    one core."""

    head: str = "upernet"  # or vitdet
    width: int = 32  # channels of the pyramid; the papers have 512 (UPerNet) and 256 (ViTDet)
    scales: tuple[float, ...] = SCALES  # finest first; of 4, 2, 1, 0.5
    layers: int = (
        1  # blocks of the encoder side by side in the tokens; with one a scale, the first feeds the finest
    )
    steps: int = 400
    batch: int = 8
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 20  # steps
    every: int = 50  # steps between two evaluations; the best head is kept
    patience: int = 4  # looks without a better one, after which the training ends
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"the head is {' or '.join(HEADS)}, not {self.head!r}")
        if (
            not self.scales
            or any(s not in SCALES for s in self.scales)
            or list(self.scales) != sorted(set(self.scales), reverse=True)
        ):
            raise ValueError(f"scales are some of {SCALES}, in this order, not {self.scales}")
        if self.layers not in (1, len(self.scales)):
            raise ValueError(f"layers is 1, or one a scale ({len(self.scales)}), not {self.layers}")
        if min(self.width, self.steps, self.batch, self.every, self.patience) < 1:
            raise ValueError("width, steps, batch, every and patience are at least 1")


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, D, h, w)."""

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """Normalise (B, D, h, w) over D; the shape stays."""
        return super().forward(x_BDhw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Maps of several strides from the one that a plain ViT has: (B, C, g, g) -> (B, D, s g, s g) of each scale s, by
    transposed convolutions and pooling.

    Not as in ViTDet, the channels are reduced first, so that the cost hardly depends on the encoder's width.
    """

    def __init__(self, channels: int, width: int, scales: Sequence[float], layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels // layers, width, 1), ChannelNorm(width), *_resized(width, scale)
            )
            for scale in scales
        )

    def forward(self, x_BCgg: Tensor) -> list[Tensor]:
        """Return a map (B, D, s g, s g) for each scale s; C holds one layer for each scale, or one for
        all."""
        parts = x_BCgg.chunk(self.layers, 1) if self.layers > 1 else [x_BCgg] * len(self.levels)
        return [level(part) for level, part in zip(self.levels, parts, strict=True)]


def _resized(width: int, scale: float) -> list[nn.Module]:
    def twice() -> nn.Module:
        return nn.ConvTranspose2d(width, width, 2, stride=2)

    return {
        4: lambda: [twice(), ChannelNorm(width), nn.GELU(), twice()],
        2: lambda: [twice()],
        1: lambda: [],
        # an odd last row or column is a cell of its own
        0.5: lambda: [nn.MaxPool2d(2, ceil_mode=True)],
    }[scale]()


class SimplePyramidHead(nn.Module):
    """Decode maps without connections between them, as in ViTDet.

    Each map goes through a 1 x 1 and a 3 x 3 convolution, with LayerNorm after both. Their sum at the finest
    stride goes through one convolution to the structures.
    """

    def __init__(self, width: int, levels: int, structures: int) -> None:
        super().__init__()
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 1, bias=False),
                ChannelNorm(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                ChannelNorm(width),
            )
            for _ in range(levels)
        )
        self.classifier = nn.Conv2d(width, structures, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits (B, K, h, w) at the size of the first map, the finest."""
        found = [output(x) for output, x in zip(self.outputs, maps, strict=True)]
        size = found[0].shape[-2:]
        total = sum((F.interpolate(x, size=size, mode="bilinear") for x in found[1:]), found[0])
        return self.classifier(F.gelu(total))


class Decoder(nn.Module):
    """Tokens (B, P, C) -> logits (B, K, h, w) at the finest scale."""

    def __init__(self, channels: int, structures: int, options: DecoderTraining) -> None:
        super().__init__()
        if channels % options.layers:
            raise ValueError(f"{channels} channels are not {options.layers} layers side by side")
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.pyramid = Pyramid(channels, options.width, options.scales, options.layers)
        if options.head == "upernet":
            from transformers.models.upernet.configuration_upernet import UperNetConfig
            from transformers.models.upernet.modeling_upernet import UperNetHead

            config = UperNetConfig(hidden_size=options.width, num_labels=structures)
            self.head = UperNetHead(config, [options.width] * len(options.scales))
        else:
            self.head = SimplePyramidHead(options.width, len(options.scales), structures)

    def forward(self, tokens_BPC: Tensor) -> Tensor:
        """Standardise tokens (B, P, C), P a square, and return logits (B, K, h, w)."""
        side = round(tokens_BPC.shape[1] ** 0.5)
        x_BPC = (tokens_BPC.float() - self.mean) / self.std
        return self.head(self.pyramid(x_BPC.transpose(1, 2).unflatten(2, (side, side))))


def dice_and_cross_entropy(logits_BKhw: Tensor, shares_BKhw: Tensor) -> Tensor:
    """Return the cross-entropy of each cell's share, and 1 - Dice of each structure over the batch, its sums
    smoothed by one cell for batches that lack it."""
    entropy = F.binary_cross_entropy_with_logits(logits_BKhw, shares_BKhw)
    p = logits_BKhw.sigmoid()
    both_K, total_K = (x.sum((0, 2, 3)) for x in (p * shares_BKhw, p + shares_BKhw))
    return entropy + (1 - (2 * both_K + 1) / (total_K + 1)).mean()


def decoder(
    task: MaskTask,
    tokens: Tokens,
    options: DecoderTraining | None = None,
    *,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = print,
) -> Segmentation:
    """Train a head on the tokens of `task.train` and judge it on `task.test`; of the looks at validation the one with
    the best Dice is kept (at the head's own resolution, mean over structures).

    Deterministic on a CPU with the same number of threads.
    """
    options = options or DecoderTraining()
    model, best, step = train(task, tokens, options, device=device, say=say)

    @torch.inference_mode()
    def predict(rows: np.ndarray) -> Tensor:
        return model(tokens(rows).to(device)).cpu()

    return judged(
        task,
        predict,
        dict.fromkeys(task.structures, f"step {step}"),
        dict(zip(task.structures, best.tolist(), strict=True)),
        head=options.head,
        width=options.width,
        scales=",".join(map(str, options.scales)),
        layers=options.layers,
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        decay=options.weight_decay,
        seed=options.seed,
        choice="validation",
    )


def train(
    task: MaskTask,
    tokens: Tokens,
    options: DecoderTraining,
    *,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = print,
) -> tuple[Decoder, np.ndarray, int]:
    """Return the best head in evaluation mode, its Dice of each structure on validation, and its step."""
    if len(task.train) < 2:
        raise ValueError("a decoder needs at least two training images, for the statistics of a batch")
    mean_C, std_C, P = statistics(tokens, task.train)
    if round(P**0.5) ** 2 != P:
        raise ValueError(f"{P} patches of an image make no square")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Decoder(len(mean_C), len(task.structures), options)
    model.mean.copy_(mean_C)
    model.std.copy_(std_C)
    model.to(device)
    side = math.ceil(round(P**0.5) * options.scales[0])
    shares = task.shares(task.train, side, torch.float16)
    truth = task.shares(task.validate, side) > 0.5
    if not truth.any():
        raise ValueError(f"no validation image has any of {', '.join(task.structures)}: nothing to choose by")
    optimiser = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=options.weight_decay)
    order = np.random.default_rng(options.seed)
    best, kept, of, looks = -1.0, None, None, 0
    due, queue, seen = Every(), np.empty(0, np.int64), 0
    size = max(2, min(options.batch, len(task.train)))  # of one image, UPerNet's pooled map has no variance
    model.train()
    for step in range(1, options.steps + 1):
        if len(queue) < size:
            queue = order.permutation(len(task.train))
        which, queue = queue[:size], queue[size:]
        for group in optimiser.param_groups:
            group["lr"] = options.lr * _schedule(step - 1, options.warmup, options.steps)
        x_BPC = tokens(task.train[which]).to(device)
        loss = dice_and_cross_entropy(model(x_BPC), shares[torch.from_numpy(which)].to(device).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen += len(which)
        last = step == options.steps
        if step % options.every == 0 or last:
            dice_K = _validation(model, task, tokens, truth, device)
            value, looks = float(np.nanmean(dice_K)), looks + 1
            if value > best:
                best, kept, of, looks = value, copy.deepcopy(model.state_dict()), (dice_K, step), 0
            last = last or looks >= options.patience
        if due() or last:
            say(
                f"{options.head}: step {step}/{options.steps}, loss {float(loss.detach()):.3f}, "
                + (f"validation Dice {best:.3f} at best, " if kept else "")
                + f"{seen / due.passed:.0f} images/s, {due.passed:.0f} s"
            )
        if last:
            break
    model.load_state_dict(kept)
    return model.eval(), *of


def _schedule(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


@torch.no_grad()
def _validation(model: Decoder, task: MaskTask, tokens: Tokens, truth: Tensor, device) -> np.ndarray:
    """Mean Dice over images of each structure, (K,)."""
    model.eval()
    found, place = [], 0
    for part in batches(task.validate):
        predicted = model(tokens(part).to(device)).cpu() > 0
        found.append(overlap(predicted, truth[place : place + len(part)]))
        place += len(part)
    model.train()
    dice_NK = dice_of(torch.cat(found).numpy())
    known_K = ~np.isnan(dice_NK).all(0)
    mean_K = np.full(dice_NK.shape[1], np.nan)
    mean_K[known_K] = np.nanmean(dice_NK[:, known_K], 0)
    return mean_K
