"""The clinical scores together: which models there are, what they read in a set of reports, what enters the
sheet.

Each model reads a report once, whatever it is compared with. Without a model its scores are `NotComputed`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.scores import weights
from eval.scores.inputs import ScoreError
from eval.scores.label_f1 import add_label_f1
from eval.scores.radcliq import add_radcliq, bleu_2
from eval.scores.registry import NotComputed, merged
from eval.scores.sheet import Sheet
from eval.signature import signature

if TYPE_CHECKING:
    from eval.scores.bertscore import BertScore
    from eval.scores.chexbert import CheXbert, ChexbertLabels
    from eval.scores.radgraph import RadGraph

Progress = Callable[[str, int, int], None]  # (what is read, done, of how many)
CHOICES = ("auto", "none", *weights.MODELS)
DIGITS = 12  # of a SHA-256 in a signature


@dataclass
class Readings:
    """Hold what the models make of N reports."""

    reports: Sequence[str]
    chexbert: ChexbertLabels | None = None
    radgraph: dict[str, list[Any]] = field(default_factory=dict)  # model -> annotations


@dataclass
class Clinical:
    """The models that are there."""

    chexbert: CheXbert | None = None
    radgraph: dict[str, RadGraph] = field(default_factory=dict)
    bertscore: BertScore | None = None

    def read(
        self, reports: Sequence[str], progress: Progress | None = None, *, keep: bool = False
    ) -> Readings:
        """Read the texts with every model. `keep` stores RadGraph's annotations on disk; those of references
        are needed again."""
        found = Readings(reports)
        if self.chexbert:
            found.chexbert = self.chexbert(reports, _named(progress, "CheXbert"))
        for name, model in self.radgraph.items():
            found.radgraph[name] = model(reports, _named(progress, name), keep=keep)
        return found

    def add(
        self,
        sheet: Sheet,
        reference: Readings,
        predicted: Readings,
        progress: Progress | None,
        min_support: int,
    ) -> None:
        """Put every score that can be computed on a sheet."""
        from eval.scores.radgraph import add_radgraph, entity_relation_f1

        features, used = {}, {}
        if self.chexbert:
            from eval.scores.chexbert import cosine

            used["chexbert"] = self.chexbert.sha256[:DIGITS]
            ckpt = f"sha256:{used['chexbert']}"
            add_label_f1(
                sheet,
                reference.chexbert.labels_N14,
                predicted.chexbert.labels_N14,
                name="chexbert-f1",
                min_support=min_support,
                ckpt=ckpt,
            )
            features["chexbert"] = cosine(reference.chexbert.vectors_NC, predicted.chexbert.vectors_NC)
            sheet.add_mean(
                "chexbert-vector", signature("chexbert-vector", sim="cosine", ckpt=ckpt), features["chexbert"]
            )
        for name, model in self.radgraph.items():
            read = reference.radgraph[name], predicted.radgraph[name]
            add_radgraph(sheet, *read, model=name, sha256=model.sha256)
            if name == "radgraph":  # the original, which RadCliQ was fitted with
                used["radgraph"] = model.sha256[:DIGITS]
                features["radgraph"] = np.array(
                    [entity_relation_f1(r, h) for r, h in zip(*read, strict=True)]
                )
                ckpt = f"sha256:{used['radgraph']}"
                details = signature(
                    "radgraph-f1", model=name, level="entity+relation", case="as-is", ckpt=ckpt
                )
                sheet.add_mean("radgraph-f1/radgraph/entity-relation", details, features["radgraph"])
        if self.bertscore:
            used["bertscore"] = self.bertscore.sha256[:DIGITS]
            features["bertscore"] = self.bertscore.f1(
                reference.reports, predicted.reports, progress=_named(progress, "BERTScore")
            )
            details = signature(
                "bertscore", model="distilroberta-base", layer=5, rescaled="yes", idf="no",
                ckpt=f"sha256:{used['bertscore']}",
            )  # fmt: skip
            sheet.add_mean("bertscore", details, features["bertscore"])
        if len(features) == 3:
            features_N4 = np.stack(
                [
                    features["radgraph"],
                    features["bertscore"],
                    features["chexbert"],
                    bleu_2(reference.reports, predicted.reports),
                ],
                axis=1,
            )
            models = "+".join(used[name] for name in ("radgraph", "bertscore", "chexbert"))
            add_radcliq(sheet, features_N4, models=models, idf=False)


def load(
    which: str | Sequence[str] = "auto", folder: str | Path | None = None, device: str | None = None
) -> tuple[Clinical, list[NotComputed]]:
    """Load the models that `which` names ("auto": those that are there; "none"; or names); return them and
    what cannot be computed without the others.

    Raises ScoreError for a model that was asked for by name and is not there or cannot be read.
    """
    named = [] if which in ("auto", "none") else [which] if isinstance(which, str) else list(which)
    unknown = [name for name in named if name not in weights.MODELS]
    if unknown:
        raise ScoreError(f"no clinical model {unknown[0]!r}; there are {', '.join(CHOICES)}")
    clinical, missing = Clinical(), []
    if which != "none":
        _check_device(device)
    for name in weights.MODELS:
        found = weights.find(name, folder)
        if name in named or (which == "auto" and found.complete):
            try:
                _load(clinical, found, device)
                continue
            except ScoreError as error:
                if name in named:
                    raise
                reason, command = str(error), "cxr weights"
        elif which == "auto":
            missing += weights.not_computed(found, folder)
            continue
        else:
            reason, command = "left out by --clinical", "cxr score --clinical auto"
        missing += [NotComputed(score, reason, command) for score in found.model.serves]
    return clinical, merged(missing)


def _check_device(device: str | None) -> None:
    if device is None:
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, absent, or torch built without it
        why = str(error).partition("\n")[0]
        raise ScoreError(f"device {device!r} cannot be used here: {why}") from None


def _load(clinical: Clinical, found: weights.FoundWeights, device: str | None) -> None:
    name, folder = found.model.name, found.folder
    if name == "chexbert":
        from eval.scores.chexbert import CheXbert

        clinical.chexbert = CheXbert.load(folder, device)
    elif found.model.is_radgraph:
        from eval.scores.radgraph import RadGraph

        clinical.radgraph[name] = RadGraph.load(folder, model=name, device=device, cache=annotations())
    else:
        from eval.scores.bertscore import BertScore

        clinical.bertscore = BertScore.load(folder, device)


def annotations() -> Path:
    """Return where RadGraph's annotations of references are kept. They hold words of the reports, so only
    their user can read them."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr" / "annotations"


def _named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, of: progress(what, done, of)
