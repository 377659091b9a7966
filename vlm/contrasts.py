"""How much likelier the film makes each sentence of a report than its counter-sentences.

Every counter of every sentence (`eval/scores/counters.py`) is scored where the sentence stands: after the image, the
prompt, and the sentences before it. All of them go through the language model in one pass, or a few where the report is
long (`decoding.branch_logprobs`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.scores.counters import Counter, CounterKind, counters
from eval.scores.labels import NO_FINDING, label_report
from eval.scores.spans import Span, spans
from vlm.decoding import branch_logprobs, branch_logprobs_of
from vlm.model import FindingsModel

# Tokens of one pass: its attention has a number for every pair.
MOST = 1536
CELLS = 7  # a side of a map of occlusion
TOGETHER = 16  # parts of the film that are covered in one pass, each in a row of its own
# Tokens of a report that are read together; hardly any has more. Of a longer one, each part has half of them before it.
WINDOW = 512


@dataclass(frozen=True)
class Contrast:
    """The likeliest counter of one kind and condition. `margin`: log-probability of the counter less that of the
    sentence, in nats; above 0 the model would rather have written the counter."""

    kind: CounterKind
    condition: str
    margin: float
    counter: Counter


@dataclass(frozen=True)
class Contrasted:
    """A sentence with its contrasts. `logprob`: of the sentence, in nats; `labels` as the labeller reads it."""

    span: Span
    labels: dict[str, int]
    logprob: float
    contrasts: tuple[Contrast, ...]

    @property
    def hedged(self) -> bool:
        """Tell whether the sentence leaves a finding open."""
        return -1 in self.labels.values()


def contrasted(
    model: FindingsModel, prompt: list[int], report: str, pixels: Tensor, seen: Tensor
) -> list[Contrasted]:
    """Return the sentences of a report with their contrasts. `prompt` are the token ids of the study's prompt, `pixels`
    (images, 3, H, W) its images, `seen` what `image_tokens` made of them."""
    sentences = [(span, label_report(span.text), counters(span.text)) for span in spans(report)]
    most = min(WINDOW, model.positions - len(prompt) - 1) if model.positions else WINDOW
    found: dict[Span, tuple[float, list[float]]] = {}
    for context, several in _windows(model, report, [(s, c) for s, _, c in sentences], most):
        found.update(_scored(model, prompt, report, context, several, pixels, seen))
    return [
        Contrasted(span, labels, found[span][0], _best(labels, told, *found[span]))
        for span, labels, told in sentences
        if span in found
    ]


def _best(
    labels: dict[str, int], told: Sequence[Counter], own: float, others: Sequence[float]
) -> tuple[Contrast, ...]:
    """Return the likeliest counter of every kind and condition. Where one names no condition of its
    own, it is the first that the sentence asserts."""
    asserted = next((c for c, label in labels.items() if label != 0 and c != NO_FINDING), "")
    best: dict[tuple[CounterKind, str], Contrast] = {}
    for counter, logprob in zip(told, others, strict=True):
        key = (counter.kind, counter.condition or asserted)
        if key not in best or logprob - own > best[key].margin:
            best[key] = Contrast(*key, logprob - own, counter)
    return tuple(best.values())


_Told = tuple[Span, Sequence[Counter]]


def _windows(
    model: FindingsModel, report: str, sentences: Sequence[_Told], most: int
) -> list[tuple[tuple[int, int], list[_Told]]]:
    """Return (where in the report the context begins and ends, the sentences that are scored in it): one of all, or,
    where the model has no room for `most` tokens, several that each have half of them before their first sentence."""
    if len(_ids(model, report)) + 64 <= most:
        return [((0, len(report)), list(sentences))]
    length = [len(_ids(model, span.text)) for span, _ in sentences]
    found, at = [], 0
    while at < len(sentences):
        start, room = at, (most - 64) // 2
        while start and sum(length[start - 1 : at]) <= room:
            start -= 1
        end, room = at, most - 64 - sum(length[start:at])
        while end < len(sentences) and sum(length[at : end + 1]) <= room:
            end += 1
        if end == at:  # a sentence that is longer than the room is not scored
            at += 1
            continue
        found.append(((sentences[start][0].start, sentences[end - 1][0].end), list(sentences[at:end])))
        at = end
    return found


def _scored(
    model: FindingsModel,
    prompt: list[int],
    report: str,
    context: tuple[int, int],
    sentences: Sequence[_Told],
    pixels: Tensor,
    seen: Tensor,
) -> dict[Span, tuple[float, list[float]]]:
    """Return, by sentence, its log-probability and those of its counters, all of the tokens from where the sentence
    begins."""
    text = report[slice(*context)]
    trunk = _ids(model, text)
    branches: list[tuple[int, list[int]]] = []
    for span, told in sentences:
        before = text[: span.start - context[0]]
        rows = [_ids(model, before + said) for said in (span.text, *(counter.text for counter in told))]
        place = min(len(_ids(model, before.rstrip())), *(_common(trunk, row) for row in rows))
        branches += [(place, row[place:]) for row in rows]
    sums: list[float] = []
    for several in _passes(branches, max(MOST - len(prompt) - len(trunk), 1)):
        made = branch_logprobs(model.llava, model, prompt, trunk, several, pixels, seen)
        sums += [sum(tokens) for tokens in made]
    found, at = {}, 0
    for span, told in sentences:
        own, *others = sums[at : at + 1 + len(told)]
        found[span] = (own, others)
        at += 1 + len(told)
    return found


@torch.inference_mode()
def occlusion(
    model: FindingsModel,
    prompt: list[int],
    report: str,
    span: Span,
    counter: str,
    pixels: Tensor,
    seen: Tensor,
    blank: Tensor,
    cells: int = CELLS,
) -> list[list[float]]:
    """Return what each part of the first image does for the counter against the sentence, in nats: the margin less the
    margin with that part's tokens in the place of a blank image's.

    Args:
        seen, blank: `image_tokens` of the study's images, and of one blank image.
        cells: a side of the map.

    Returns:
        `cells` lines of as many numbers, top left first. Above 0 the part speaks for the counter.
    """
    each = len(seen) // len(pixels)
    side = math.isqrt(each)
    cells = min(cells, side)
    edges = [round(i * side / cells) for i in range(cells + 1)]
    place_NN = torch.arange(side * side, device=seen.device).view(side, side)
    parts = [
        place_NN[top:bottom, left:right].reshape(-1)
        for top, bottom in itertools.pairwise(edges)
        for left, right in itertools.pairwise(edges)
    ]
    before = report[: span.start]
    place = len(_ids(model, before.rstrip()))
    trunk = _ids(model, before + span.text)
    other = _ids(model, before + counter)
    branches = [(place, trunk[place:]), (place, other[place:])]

    def margins(variants_VMH: Tensor) -> list[float]:
        made = branch_logprobs_of(model.llava, model, prompt, trunk[:place], branches, pixels, variants_VMH)
        return [sum(theirs) - sum(own) for own, theirs in made]

    (whole,) = margins(seen[None])
    covered: list[float] = []
    for start in range(0, len(parts), TOGETHER):
        several = parts[start : start + TOGETHER]
        variants_VMH = seen.repeat(len(several), 1, 1)
        for variant, at in zip(variants_VMH, several, strict=True):
            variant[at] = blank[at]
        covered += margins(variants_VMH)
    return [[round(whole - x, 3) for x in covered[i : i + cells]] for i in range(0, len(covered), cells)]


def _passes(branches: Sequence[tuple[int, list[int]]], room: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Yield the branches, as many together as have at most `room` tokens."""
    several: list[tuple[int, list[int]]] = []
    for branch in branches:
        if several and sum(len(ids) for _, ids in several) + len(branch[1]) > room:
            yield several
            several = []
        several.append(branch)
    if several:
        yield several


def _ids(model: FindingsModel, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two rows begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
