"""Which studies make a step, and how they become a batch: grouped by length, padded or packed; the loss on answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def grouped_order(lengths: list[int], batch: int, seed: int, epoch: int) -> list[int]:
    """Return a shuffled order in which neighbours have similar lengths: shuffled, then sorted within spans of
    50 batches, then the batches shuffled. A function of (seed, epoch) alone, so that a resumed run sees the
    same."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    span = 50 * batch
    spans = [sorted(order[i : i + span], key=lengths.__getitem__) for i in range(0, len(order), span)]
    batches = [s[i : i + batch] for s in spans for i in range(0, len(s), batch)]
    last = [batches.pop()] if batches and len(batches[-1]) < batch else []  # the incomplete batch stays last
    shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return [i for b in shuffled + last for i in b]


class GroupedSampler(torch.utils.data.Sampler[int]):
    """Yield the examples of one epoch so that those of a batch have similar lengths (see `grouped_order`)."""

    def __init__(self, lengths: list[int], batch: int, seed: int):
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which seeds the order; the training loop calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """`epoch * len + i`, for an example may look different in every epoch (see Examples)."""
        order = grouped_order(self.lengths, self.batch, self.seed, self.epoch)
        return (self.epoch * len(self.lengths) + i for i in order)


def collate(rows: list[dict], pad: int, pack: bool = False) -> dict[str, Any]:
    """Collate studies into a batch. Logits are asked for where an answer's token is next (`logits_to_keep`),
    and `labels` are those next tokens, after a column without any: Trainer counts from the second column on,
    or all, by its version. -100 means no label.

    Padded: (B, N), padded on the right, logits of the last K positions. No attention mask: under causal attention no
    real token sees what lies to its right. Packed: all studies in one row (1, T), told apart by `cu_seq_lens` and
    positions that start anew, and logits of exactly the labels.
    """
    ids = [row["input_ids"] for row in rows]
    if pack:
        batch = _packed(ids, [row["answer_from"] for row in rows])
    else:
        n = max(map(len, ids))
        keep = n - min(row["answer_from"] for row in rows) + 1
        labels = [
            [-100] * (row["answer_from"] - 1) + i[row["answer_from"] :] + [-100] * (n - len(i) + 1)
            for row, i in zip(rows, ids, strict=True)
        ]
        next_BK = torch.tensor(labels)[:, n - keep :]
        batch = {
            "input_ids": torch.tensor([i + [pad] * (n - len(i)) for i in ids]),
            "labels": nn.functional.pad(next_BK, (1, 0), value=-100),
            "logits_to_keep": keep,
        }
    if "images" in rows[0]:
        batch["pixel_values"] = torch.cat([row["images"] for row in rows])  # of all studies, in order
    return batch


def _packed(ids: list[list[int]], answer_from: list[int]) -> dict[str, Any]:
    lengths = [len(i) for i in ids]
    ends_B = torch.tensor(lengths).cumsum(0)
    starts = (ends_B - torch.tensor(lengths)).tolist()
    cu_seqlens = nn.functional.pad(ends_B, (1, 0)).to(torch.int32)
    before = [  # the position before each token of an answer
        at
        for start, first, n in zip(starts, answer_from, lengths, strict=True)
        for at in range(start + first - 1, start + n - 1)
    ]
    row_T = torch.tensor([token for i in ids for token in i])
    return {
        "input_ids": row_T[None],
        "labels": nn.functional.pad(row_T[torch.tensor(before) + 1], (1, 0), value=-100)[None],
        "logits_to_keep": torch.tensor(before),
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        # of ones, or transformers would take positions that start anew for a pattern of its own
        "attention_mask": torch.ones(1, len(row_T), dtype=torch.long),
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def answer_loss(outputs, labels_BL: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the cross-entropy of `collate`'s labels (B, 1 + K) under the logits (B, K, V), where they are
    not -100."""
    next_BK = labels_BL[:, 1:]
    counted = next_BK != -100
    total = nn.functional.cross_entropy(outputs.logits[counted].float(), next_BK[counted], reduction="sum")
    return total / (counted.sum() if num_items_in_batch is None else num_items_in_batch)
