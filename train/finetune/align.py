"""Alignment: before the language model reads them, patch tokens learn to show what reports speak of.

LLaVA trains its projector alone first, through the frozen language model. For a small model that is slow: most of what
it is told about is wording. Here every finding that reports name, also by side ("left pleural effusion", by the
rule-based labeller), looks for itself among the projected patch tokens by attention, in an eighth of the time a step of
the language model takes. The heads that look are thrown away; the projector stays.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoder.files import write_atomically
from encoder.progress import bar
from eval.scores.labels import NO_FINDING, label_report, sentences
from train.common.processes import say_at_once, use_cores
from train.common.schedules import warmup_cosine
from train.finetune.config import Finetune
from train.finetune.examples import Examples, spaced
from train.finetune.tower import standardised
from vlm.model import FindingsModel
from vlm.projector import linears, patches, rescale, spread
from vlm.prompts import answer_for

SIDES = re.compile(r"\b(left|right|bilateral|both|bibasilar)\b")
BOTH = {"bilateral", "both", "bibasilar"}
LEAST = 0.01  # of the reports must name a target
QUERIES = 2  # per target: findings come in different shapes
CLIP = 1.0


def mentions(findings: str) -> dict[str, float]:
    """Return what a report asserts: conditions, and conditions with the side its sentence names ("left
    fracture"); 1 for certain ones, 0.5 for possible ones."""
    found: dict[str, float] = {}
    for sentence in sentences(findings):
        words = set(SIDES.findall(sentence.lower()))
        sides = {"left", "right"} if words & BOTH else words
        for condition, label in label_report(sentence).items():
            if not label or condition == NO_FINDING:
                continue
            for name in (condition, *(f"{side} {condition}" for side in sorted(sides))):
                found[name] = max(found.get(name, 0.0), 1.0 if label > 0 else 0.5)
    return found


def targets(reports: Iterable[str]) -> tuple[list[str], Tensor]:
    """Return (names, values (reports, names) of 0, 0.5 or 1) of everything that at least LEAST of the reports
    assert."""
    rows = [mentions(report) for report in reports]
    count = Counter(name for row in rows for name in row)
    names = sorted(name for name, n in count.items() if n >= LEAST * len(rows))
    return names, torch.tensor([[row.get(name, 0.0) for name in names] for row in rows])


class Reading(nn.Module):
    """Patch tokens (B, N, H) -> logits (B, targets): a target attends with QUERIES queries and sums what they find."""

    def __init__(self, width: int, places: int, names: int, generator: torch.Generator):
        super().__init__()
        random = lambda *shape: nn.Parameter(torch.randn(*shape, generator=generator))  # noqa: E731
        self.query_QH = nn.Parameter(random(names * QUERIES, width) * width**-0.5)
        self.key_HH = nn.Parameter(random(width, width) * width**-0.5)
        self.value_QH = nn.Parameter(torch.zeros(names * QUERIES, width))
        self.place_NH = nn.Parameter(torch.zeros(places, width))
        self.bias_K = nn.Parameter(torch.zeros(names))

    def forward(self, x_BNH: Tensor) -> Tensor:
        """Map tokens (B, N, H) to the logits (B, K) of K targets."""
        x_BNH = x_BNH + self.place_NH
        look_BQN = (self.query_QH @ self.key_HH @ x_BNH.transpose(1, 2)).softmax(-1)
        found_BQ = (self.value_QH * (look_BQN @ x_BNH)).sum(-1)
        return found_BQ.unflatten(1, (-1, QUERIES)).sum(-1) + self.bias_K


def align(
    projector: nn.Module,
    features: Callable[[list[int]], Tensor],
    reports: list[str],
    held_out: tuple[Callable[[list[int]], Tensor], list[str]],
    *,
    steps: int,
    batch: int = 64,
    rate: float = 3e-3,
    precision: str = "fp32",
    every: int = 500,
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
) -> None:
    """Train `projector` in place on `features(rows) -> (B, N, C)`, standardised, of the studies of `reports`.

    The projector is trained with an output of mean 0 and standard deviation 1, so that `rate` fits its weights, and
    has the mean and scale it came with afterwards. `held_out` is the same of other studies; the mean AUROC over targets
    there is said every so many steps.
    """
    names, values = targets(reports)
    if not names:
        say("alignment: the reports name nothing often enough to be looked for; left out")
        return
    other, other_reports = held_out
    truth = torch.tensor([[mentions(r).get(name, 0.0) for name in names] for r in other_reports])
    generator = torch.Generator().manual_seed(seed)
    probe_BNC = features(spaced(len(reports), 256)).to(device)
    before = spread(projector, probe_BNC)
    rescale(projector, probe_BNC, torch.zeros_like(before[0]), 1.0)
    with torch.no_grad():
        places = projector(probe_BNC[:1]).shape[1]
    reading = Reading(linears(projector)[-1].out_features, places, len(names), generator).to(device)
    trained = [*projector.parameters(), *reading.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.02)
    say(f"alignment: {steps} steps of {batch} studies, {len(names)} targets")
    order, losses, started = [], [], time.perf_counter()
    for step in bar(range(steps), "alignment", unit="steps"):
        if len(order) < batch:
            order = torch.randperm(len(reports), generator=generator).tolist()
        rows, order = order[:batch], order[batch:]
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, rate, 0.0, steps // 10, steps)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            logits = reading(projector(features(rows).to(device)))
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), values[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % every == 0 or step + 1 == steps:
            pace = (time.perf_counter() - started) / (step + 1)
            auroc = _auroc(projector, reading, other, truth, precision, device)
            say(
                f"alignment {step + 1}/{steps}  loss {float(torch.stack(losses).mean()):.4f}  "
                f"held-out AUROC {auroc:.3f}  {pace:.2f} s/step"
            )
            losses = []
    rescale(projector, probe_BNC, *before)


def align_projector(
    model: FindingsModel,
    data: dict[str, Examples],
    statistics: tuple[Tensor, Tensor],
    config: Finetune,
    state: PartialState,
) -> None:
    """Align the projector of `model`, or read what came of it before. Collective: the first process does the work."""
    projector, file = model.parts.projector, Path(config.out) / "aligned.safetensors"
    if state.is_main_process and not file.exists():
        (mean_C, std_C), learned, held_out = statistics, data["train"], data["validate"]

        def tokens(examples: Examples, rows: list[int]) -> Tensor:
            return (patches(model.llava, examples.first(rows)) - mean_C) / std_C

        threads = torch.get_num_threads()
        # The other processes wait.
        use_cores(0, 1)
        projector.to(state.device)
        with standardised(model, statistics, config):
            align(
                projector,
                partial(tokens, learned),
                _reports(learned),
                (partial(tokens, held_out), _reports(held_out)),
                steps=config.align_steps,
                precision=config.precision,
                seed=config.seed,
                device=state.device,
                say=say_at_once,
            )
            projector.cpu()
        torch.set_num_threads(threads)
        with write_atomically(file) as part:
            save_file(projector.state_dict(), part)
    state.wait_for_everyone()
    projector.load_state_dict(load_file(file))


def _reports(examples: Examples) -> list[str]:
    return [answer_for(study, examples.style) for study in examples.studies]


@torch.no_grad()
def _auroc(projector, reading, features, truth, precision: str, device) -> float:
    """Mean over the targets that held-out studies have and have not; possible ones do not count."""
    from sklearn.metrics import roc_auc_score

    if not len(truth):
        return float("nan")
    logits = []
    for rows in torch.arange(len(truth)).split(64):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            logits.append(reading(projector(features(rows.tolist()).to(device))).float().cpu())
    scores = torch.cat(logits)
    areas = []
    for k in range(truth.shape[1]):
        sure = truth[:, k] != 0.5
        if 0 < truth[sure, k].sum() < sure.sum():
            areas.append(roc_auc_score(truth[sure, k], scores[sure, k]))
    return sum(areas) / len(areas) if areas else float("nan")
