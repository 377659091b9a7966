"""The clinical scores together: which models there are, what they read in a set of reports, what enters the
sheet.

Each model reads a report once, whatever it is compared with. Without a model its scores are `NotComputed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.scores import weights
from eval.scores.family import Family, Grid, Reports
from eval.scores.lexical import bleu_2
from eval.scores.private import kept
from eval.scores.radcliq import add_radcliq
from eval.scores.readers import ScoreError
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


# --- the families -----------------------------------------------------------------------------------------------------


def _models(reports: Reports) -> tuple[Clinical, Readings, Readings] | None:
    """Return the models, and what they read in references and predictions; each text is read once."""
    models = reports.models
    if models is None:
        return None
    if reports.read_references is None:
        reports.read_references = models.read(reports.references, reports.progress)
    if reports.read_predictions is None:
        reports.read_predictions = models.read(reports.predictions, reports.progress)
    return models, reports.read_references, reports.read_predictions


def _add_chexbert(sheet: Sheet, reports: Reports) -> None:
    from eval.scores.label_f1 import add_label_f1, least_of

    found = _models(reports)
    if not found or not found[0].chexbert:
        return
    from eval.scores.chexbert import cosine

    models, reference, predicted = found
    ckpt = f"sha256:{models.chexbert.sha256[:DIGITS]}"
    reports.labels["chexbert-f1"] = (reference.chexbert.labels_N14, predicted.chexbert.labels_N14)
    add_label_f1(
        sheet, *reports.labels["chexbert-f1"], name="chexbert-f1", min_support=least_of(reports), ckpt=ckpt
    )
    similar = cosine(reference.chexbert.vectors_NC, predicted.chexbert.vectors_NC)
    reports.features["chexbert-vector"] = similar
    details = signature("chexbert-vector", sim="cosine", ckpt=ckpt)
    sheet.add_mean("chexbert-vector", details, similar, title="CheXbert vector", kind="number")


def _chexbert_tables(scores: Any) -> list[Grid]:
    from eval.scores.label_f1 import label_tables

    vector = scores.scores["chexbert-vector"]
    more = Grid(
        "CheXbert vector",
        ("", "predictions"),
        [("cosine of the reports' vectors", vector)],
        "conditions-chexbert",
    )
    return [*label_tables(scores, "chexbert-f1"), more]


def _add_radgraph(sheet: Sheet, reports: Reports) -> None:
    found = _models(reports)
    if not found or not found[0].radgraph:
        return
    from eval.scores.radgraph import add_radgraph, entity_relation_f1

    models, reference, predicted = found
    for name, model in models.radgraph.items():
        read = reference.radgraph[name], predicted.radgraph[name]
        add_radgraph(sheet, *read, model=name, sha256=model.sha256)
        # The original, which RadCliQ was fitted with.
        if name == "radgraph":
            values = np.array([entity_relation_f1(r, h) for r, h in zip(*read, strict=True)])
            reports.features["radgraph"] = values
            ckpt = f"sha256:{model.sha256[:DIGITS]}"
            details = signature("radgraph-f1", model=name, level="entity+relation", case="as-is", ckpt=ckpt)
            sheet.add_mean(
                "radgraph-f1/radgraph/entity-relation", details, values, title="RadGraph F1 in RadCliQ"
            )


def _radgraph_tables(scores: Any) -> list[Grid]:
    kinds = ("precision", "recall", "f1")
    rows = []
    for key in scores.scores:
        name, *rest = key.split("/")
        if name == "radgraph-f1" and len(rest) == 2:
            rows.append(
                (" ".join(rest), *(scores.scores.get("/".join([f"radgraph-{k}", *rest])) for k in kinds))
            )
    return [Grid("RadGraph", ("model and level", *kinds), rows, "radgraph")]


def _add_bertscore(sheet: Sheet, reports: Reports) -> None:
    found = _models(reports)
    if not found or not found[0].bertscore:
        return
    model = found[0].bertscore
    # Of one reference all weights were 0.
    idfs = (False, True) if len(reports) > 1 else (False,)
    values_KN = model.f1s(
        reports.references, reports.predictions, idfs, progress=_named(reports.progress, "BERTScore")
    )
    for idf, values_N in zip(idfs, values_KN, strict=True):
        reports.features[f"bertscore{'/idf' if idf else ''}"] = values_N
        details = signature(
            "bertscore", model="distilroberta-base", layer=5, rescaled="yes", idf="yes" if idf else "no",
            ckpt=f"sha256:{model.sha256[:DIGITS]}",
        )  # fmt: skip
        key, title = ("bertscore/idf", "BERTScore, idf") if idf else ("bertscore", "BERTScore")
        sheet.add_mean(key, details, values_N, title=title, headline=not idf, kind="number")


def _add_radcliq(sheet: Sheet, reports: Reports) -> None:
    features = reports.features
    if reports.models is None or not {"radgraph", "bertscore", "chexbert-vector"} <= features.keys():
        return
    loaded = (reports.models.radgraph["radgraph"], reports.models.bertscore, reports.models.chexbert)
    models = "+".join(model.sha256[:DIGITS] for model in loaded)
    for idf in (False, True):
        if (bertscore := features.get(f"bertscore{'/idf' if idf else ''}")) is None:
            continue
        features_N4 = np.stack(
            [
                features["radgraph"], bertscore, features["chexbert-vector"],
                bleu_2(reports.references, reports.predictions),
            ],
            axis=1,
        )  # fmt: skip
        add_radcliq(sheet, features_N4, models=models, idf=idf)


def _needed_radgraph(key: str) -> tuple[str, ...]:
    return tuple(key.split("/")[1:2])


_FOR_RADCLIQ = ("chexbert", "radgraph", "distilroberta-base")
CHEXBERT = Family(
    "chexbert", "CheXbert", _add_chexbert, ("chexbert-f1", "chexbert-vector"), _chexbert_tables,
    lambda key: ("chexbert",),
)  # fmt: skip
RADGRAPH = Family(
    "radgraph", "RadGraph", _add_radgraph, ("radgraph-f1", "radgraph-precision", "radgraph-recall"),
    _radgraph_tables, _needed_radgraph,
)  # fmt: skip
BERTSCORE = Family("bertscore", "BERTScore", _add_bertscore, needs=lambda key: ("distilroberta-base",))
RADCLIQ = Family(
    "radcliq", "RadCliQ (lower is better)", _add_radcliq, needs=lambda key: _FOR_RADCLIQ,
    after=("chexbert", "radgraph", "bertscore"),
)  # fmt: skip
FAMILIES = (CHEXBERT, RADGRAPH, BERTSCORE, RADCLIQ)
"""In this order: RadCliQ needs what the others have made."""


# --- loading ----------------------------------------------------------------------------------------------------------


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
    if which != "none" and device is not None:
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


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, absent, or torch built without it
        why = str(error).partition("\n")[0]
        raise ScoreError(f"device {device!r} cannot be used here: {why}") from None


def _load(clinical: Clinical, found: weights.FoundWeights, device: str | None) -> None:
    try:
        _load_model(clinical, found, device)
    except ModuleNotFoundError as error:
        raise ScoreError(
            f"{found.model.name} needs the package {error.name}; `pip install cxr-vlm` brings it"
        ) from error


def _load_model(clinical: Clinical, found: weights.FoundWeights, device: str | None) -> None:
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
    return kept("annotations")


def _named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, of: progress(what, done, of)
