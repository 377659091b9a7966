"""A logistic head that looks where the finding is: attention over the frozen patch tokens, then a linear head.

A mean over all patches hides what lies in a few of them (a nodule is two patches of 196, or eight of 1,369). Here each
finding has queries of its own that weigh the patches first, as in attentive probing (arXiv 2202.03026, 2404.08471), in
its smallest form: a query and a head, both linear in the tokens, nothing else. With queries of zero it is the linear
head on the mean patch.

Shape letters: B images of a batch, P patches, C channels, L findings, H queries of each, J learning rates tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder.progress import Every
from eval.probes.findings import constant_floor, share_of_positives
from eval.probes.judged import Judged, Part, check_parts
from eval.probes.linear import CHOICES, one_kind
from eval.probes.overlap import batches
from eval.probes.segmentation import Tokens, statistics


@dataclass(frozen=True)
class AttentiveTraining:
    """Set how the heads learn. What the data can decide is chosen on validation, for each finding by itself:
    the learning rate and the epoch."""

    queries: int = 2  # of each finding; one may look left and one right
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    epochs: int = 30  # at most; a head that is best at an early one is kept as it was then
    patience: int = 8  # epochs in which no finding became better
    batch: int = 32
    weight_decay: float = 0.01
    seed: int = 0


class AttentiveHeads(nn.Module):
    """Tokens (B, P, C) -> logits (B, J, L): for every learning rate tried, and every finding, the sum over its queries
    of softmax_P(query . token) (head . token), and a bias."""

    def __init__(self, mean_C: Tensor, std_C: Tensor, bias_L: Tensor, options: AttentiveTraining) -> None:
        super().__init__()
        J, L, H, C = len(options.rates), len(bias_L), options.queries, len(mean_C)
        generator = torch.Generator().manual_seed(options.seed)
        start_LHC = (
            torch.randn(L, H, C, generator=generator) / C
        )  # the same for all; alike queries would stay alike
        self.register_buffer("mean_C", mean_C)
        self.register_buffer("std_C", std_C)
        self.query_JLHC = nn.ParameterList(start_LHC.clone() for _ in range(J))
        self.head_JLHC = nn.ParameterList(torch.zeros(L, H, C) for _ in range(J))
        self.bias_JL = nn.ParameterList(bias_L.clone() for _ in range(J))

    def forward(self, tokens_BPC: Tensor) -> Tensor:
        """Standardise tokens (B, P, C) and return the logits (B, J, L) of J learning rates and L findings."""
        z_BPC = (tokens_BPC - self.mean_C) / self.std_C
        queries_JLHC, heads_JLHC = torch.stack(list(self.query_JLHC)), torch.stack(list(self.head_JLHC))
        shape = queries_JLHC.shape[:3]
        score_BPX, value_BPX = (z_BPC @ w.flatten(0, 2).T for w in (queries_JLHC, heads_JLHC))
        pooled_BX = (score_BPX.softmax(1) * value_BPX).sum(1)
        return pooled_BX.unflatten(1, shape).sum(-1) + torch.stack(list(self.bias_JL))


def attentive_probe(
    tokens: Tokens,
    train: Part,
    validate: Part,
    test: Part,
    names: Sequence[str],
    *,
    choose: str = "auprc",
    options: AttentiveTraining | None = None,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = print,
) -> Judged:
    """Fit attention-pooled logistic heads and return their logits.

    The features of the parts are not vectors but numbers (N, 1): what `tokens` gives the patch tokens (n, P,
    C) of. AdamW trains on all findings at once. Each finding keeps the learning rate and the epoch with the
    best `choose` (auprc or auroc) on validation. If validation cannot choose, it keeps the last epoch of the
    middle rate.

    Deterministic on a CPU with the same number of threads. Raises ValueError if a patient is in two parts, if
    nothing can be learnt, or for another `choose`.
    """
    options = options or AttentiveTraining()
    if choose not in CHOICES:
        raise ValueError(f"validation cannot go by {choose!r}; there are {', '.join(CHOICES)}")
    check_parts(names, train=train, validate=validate, test=test)
    prior_1L = share_of_positives(train)
    lacking_L = [one_kind(y[~np.isnan(y)]) for y in train.y_NL.T]
    if all(lacking_L):
        raise ValueError(f"no finding can be learnt: {lacking_L[0] if lacking_L else 'there is none'}")
    rows = {name: part.x_NC[:, 0].astype(np.int64) for name, part in
            (("train", train), ("validate", validate), ("test", test))}  # fmt: skip
    mean_C, std_C, _ = statistics(tokens, rows["train"])
    bias_L = torch.from_numpy(np.where(np.isnan(prior_1L[0]), 0.5, prior_1L[0])).float().logit(eps=1e-3)
    model = AttentiveHeads(mean_C, std_C, bias_L, options).to(device)
    kept = _learnt(model, tokens, train, validate, rows, choose, options, device, say)
    chosen = []
    for label, lack in enumerate(lacking_L):
        if lack:
            known = int((~np.isnan(train.y_NL[:, label])).sum())
            chosen.append({"reason": f"{lack} among the {known} images to learn from"})
            continue
        kept.into(model, label)
        chosen.append(kept.said(label, options))
    scores_ML = _answers(model, tokens, rows["test"], device)[:, 0]
    scores_ML[:, [bool(lack) for lack in lacking_L]] = np.nan
    choices = {
        "features": "patches", "head": "attentive", "queries": str(options.queries),
        "rate": f"validation-{choose}-" + "-".join(f"{r:g}" for r in options.rates), "epochs": str(options.epochs),
        "patience": str(options.patience), "batch": str(options.batch), "decay": f"{options.weight_decay:g}",
        "seed": str(options.seed),
    }  # fmt: skip
    return Judged(
        list(names), test.y_NL, scores_ML[None], constant_floor(prior_1L), test.patients,
        None if test.images is None else list(test.images), choices, [chosen],
    )  # fmt: skip


class _Kept:
    """The best of every finding so far."""

    def __init__(self, findings: int) -> None:
        self.value_L = np.full(findings, -np.inf)
        self.of_L: list[tuple[int, int]] = [(0, 0)] * findings  # learning rate and epoch
        self.weights_L: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * findings

    def look(self, model: AttentiveHeads, label: int, rate: int, epoch: int, value: float) -> bool:
        if self.weights_L[label] is not None and not value > self.value_L[label]:
            return False
        self.value_L[label], self.of_L[label] = value, (rate, epoch)
        three = (model.query_JLHC[rate], model.head_JLHC[rate], model.bias_JL[rate])
        self.weights_L[label] = tuple(x[label].detach().clone() for x in three)
        return True

    def into(self, model: AttentiveHeads, label: int) -> None:
        """Put the best weights in the place of the first learning rate, where `_answers` reads them."""
        three = (model.query_JLHC[0], model.head_JLHC[0], model.bias_JL[0])
        with torch.no_grad():
            for x, best in zip(three, self.weights_L[label], strict=True):
                x[label] = best

    def said(self, label: int, options: AttentiveTraining) -> dict:
        rate, epoch = self.of_L[label]
        found = {"rate": options.rates[rate], "epoch": epoch, "validation": float(self.value_L[label])}
        if not np.isfinite(self.value_L[label]):
            found |= {"validation": None, "reason": "validation has not both kinds: nothing was chosen"}
        return found


def _learnt(model, tokens, train, validate, rows, choose, options: AttentiveTraining, device, say) -> _Kept:
    groups = [
        {"params": [model.query_JLHC[j], model.head_JLHC[j], model.bias_JL[j]], "lr": rate, "rate": rate}
        for j, rate in enumerate(options.rates)
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
    y_NL = torch.from_numpy(train.y_NL).float()
    order = np.random.default_rng(options.seed)
    kept = _Kept(y_NL.shape[1])
    chooses_L = [not one_kind(y[~np.isnan(y)]) for y in validate.y_NL.T]
    steps = options.epochs * math.ceil(len(rows["train"]) / options.batch)
    due, step, looks = Every(), 0, 0
    for epoch in range(1, options.epochs + 1):
        queue = order.permutation(len(rows["train"]))
        for start in range(0, len(queue), options.batch):
            which = queue[start : start + options.batch]
            for group in optimiser.param_groups:
                group["lr"] = group["rate"] * (1 + math.cos(math.pi * step / steps)) / 2
            y_BL = y_NL[torch.from_numpy(which)].to(device)[:, None]
            logits_BJL = model(tokens(rows["train"][which]).to(device))
            known_BJL = (~y_BL.isnan()).expand_as(logits_BJL)
            entropy_BJL = F.binary_cross_entropy_with_logits(
                logits_BJL, y_BL.nan_to_num().expand_as(logits_BJL), reduction="none"
            )
            # summed over findings and learning rates: each has the problem that it would have alone
            loss = (entropy_BJL * known_BJL).sum() / len(which)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
        answers_NJL = _answers(model, tokens, rows["validate"], device)
        better = False
        for label, chooses in enumerate(chooses_L):
            known = ~np.isnan(validate.y_NL[:, label])
            if not chooses:
                kept.weights_L[label] = None  # the last epoch's
                kept.look(model, label, len(options.rates) // 2, epoch, -np.inf)
                continue
            for j in range(len(options.rates)):
                value = CHOICES[choose](validate.y_NL[known, label], answers_NJL[known, j, label])
                better |= kept.look(model, label, j, epoch, value)
        looks = 0 if better else looks + 1
        last = epoch == options.epochs or looks >= options.patience
        if due() or last:
            best = kept.value_L[np.isfinite(kept.value_L)]
            say(
                f"attentive: epoch {epoch}/{options.epochs}, "
                + (f"validation {choose} {best.mean():.3f} at best, " if len(best) else "")
                + f"{epoch * len(queue) / due.passed:.0f} images/s, {due.passed:.0f} s"
            )
        if last:
            break
    return kept


@torch.inference_mode()
def _answers(model: AttentiveHeads, tokens: Tokens, rows: np.ndarray, device) -> np.ndarray:
    """Logits (N, J, L)."""
    found = [model(tokens(part).to(device)).cpu() for part in batches(rows)]
    if not found:
        return np.empty((0, len(model.bias_JL), len(model.bias_JL[0])))
    return torch.cat(found).double().numpy()
