"""`score()`: predictions against references, all scores of this version, with intervals and floors."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval import baselines
from eval.scores import registry, tables
from eval.scores.inputs import POLICIES, Pairs, ScoreError, Source, align, load, patients, report_text
from eval.scores.label_f1 import (
    add_label_f1,
    binarize,
    condition_table,
    confusion,
    macro_f1,
    micro_f1,
    support,
)
from eval.scores.labels import LABELLER, label_matrix
from eval.scores.lexical import PROFILES, LexicalSamples, add_lexical, lexical_samples
from eval.scores.phrases import CONDITIONS
from eval.scores.registry import NotComputed
from eval.scores.sheet import Sheet
from eval.signature import Score, number

KIND = "cxr-scores"


@dataclass
class Floor:
    """Scores of a report that did not look at the image."""

    name: str
    how: str
    scores: dict[str, Score]


@dataclass
class Scores:
    """All scores of one set of predictions; `scores[key]` is one of them, `print(scores)` a table."""

    n: int
    patients: int
    scores: dict[str, Score]
    conditions: dict[str, list[dict]]  # uncertainty policy -> one row a condition
    floors: list[Floor]
    not_computed: list[NotComputed]
    problems: dict[str, list[str]]  # kind of inputs.POLICIES -> study ids
    studies: list[dict]  # per study: study_id, rouge-l, label errors
    settings: dict[str, Any]
    labeller_check: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Score:
        if key not in self.scores:
            raise KeyError(f"no score {key!r}; there are {', '.join(self.scores)}")
        return self.scores[key]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (schema 1); numbers that are not defined are null."""
        return {
            "schema": 1,
            "kind": KIND,
            "n": self.n,
            "patients": self.patients,
            "settings": self.settings,
            "scores": [s.to_json() for s in self.scores.values()],
            "conditions": self.conditions,
            "floors": [
                {"name": f.name, "how": f.how, "scores": [s.to_json() for s in f.scores.values()]}
                for f in self.floors
            ],
            "not_computed": [m.to_json() for m in self.not_computed],
            "inputs": {
                kind: {"count": len(ids), "policy": POLICIES[kind], "study_ids": ids}
                for kind, ids in self.problems.items()
            },
            "labeller_check": {k: number(v) for k, v in self.labeller_check.items()},
            "studies": self.studies,
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `to_json()`. Scores written earlier are replaced, another file only with `overwrite`.

        Raises FileExistsError otherwise.
        """
        path = Path(path)
        if path.exists() and not overwrite and not _is_scores(path):
            raise FileExistsError(
                f"{path} exists and holds no scores; choose another name or pass overwrite=True"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def table(self, width: int = 110) -> str:
        """The scores as plain text: label F1, text overlap, floors, conditions, what was not computed, odd input."""
        return tables.render(self, width)

    def __str__(self) -> str:
        return self.table()


def score(
    predictions: Source,
    references: Source,
    *,
    floors: str | Path | Mapping[str, Source] | None = None,
    groups: Mapping[str, Hashable] | Sequence[Hashable] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    training: Source | None = None,
    reference_labels: str = "text",
    profiles: Sequence[str] = tuple(PROFILES),
    min_support: int = 30,
) -> Scores:
    """Score predictions against references.

    predictions, references: JSON Lines files or lists of records in the project's contracts, matched by `study_id`.
    floors: a directory of predictions for shuffled and blank images (`cxr generate --floors DIR`), or a mapping from
        a floor's name to its predictions, for instance nearest neighbours made with `eval.baselines`.
    groups: the patient of every study (mapping by study id, or one entry for each scored study); by default the
        references' `patient_id`. Whole patients are resampled.
    training: studies whose reports the constant report is chosen from; without them it comes from the references,
        which makes that floor a little higher than an honest guess, and its name says so.
    reference_labels: "text" reads both sides with the rule-based labeller; "study" takes a study's own `labels` where
        it has them. The signature says which.
    min_support: label F1 is also averaged over the conditions with at least this many positive references.

    Raises ScoreError for input that cannot be scored.
    """
    if reference_labels not in ("text", "study"):
        raise ScoreError(f"reference_labels is {reference_labels!r}; accepted are 'text' and 'study'")
    unknown = [name for name in profiles if name not in PROFILES]
    if unknown:
        raise ScoreError(f"no lexical profile {unknown[0]!r}; there are {', '.join(PROFILES)}")
    pairs = align(predictions, references)
    patient_ids = patients(pairs, groups)
    reference_N14, source = _reference_labels(pairs, reference_labels)
    ready, missing = _floors(pairs, floors, training)
    protocol = _Protocol(pairs, reference_N14, source, patient_ids, n_boot, seed, min_support)

    predicted_N14 = label_matrix(pairs.predictions)
    samples = [lexical_samples(pairs.references, pairs.predictions, name) for name in profiles]
    return Scores(
        n=len(pairs),
        patients=len(set(patient_ids)),
        scores=protocol.scores(predicted_N14, samples),
        conditions={
            policy: condition_table(reference_N14, predicted_N14, policy) for policy in ("neg", "pos")
        },
        floors=[Floor(name, how, protocol.headline(reports)) for name, how, reports in ready],
        not_computed=[*missing, *registry.CLINICAL],
        problems=pairs.problems,
        studies=_per_study(pairs, reference_N14, predicted_N14),
        settings={
            "interval": "95 % percentile bootstrap over patients",
            "n_boot": n_boot,
            "seed": seed,
            "reference_labels": source,
            "min_support": min_support,
        },
        labeller_check=_labeller_check(pairs),
    )


@dataclass(frozen=True)
class _Protocol:
    """How a set of reports is scored: the same for the predictions and for every floor."""

    pairs: Pairs
    reference_N14: np.ndarray
    source: str
    patient_ids: list[Hashable]
    n_boot: int
    seed: int
    min_support: int

    def scores(self, predicted_N14: np.ndarray, samples: Sequence[LexicalSamples]) -> dict[str, Score]:
        sheet = Sheet(len(self.pairs))
        choices = {"labeller": LABELLER, "reference": self.source, "min_support": self.min_support}
        add_label_f1(sheet, self.reference_N14, predicted_N14, **choices)
        for profile in samples:
            add_lexical(sheet, profile)
        return sheet.scores(self.patient_ids, n_boot=self.n_boot, seed=self.seed)

    def headline(self, reports: list[str]) -> dict[str, Score]:
        samples = lexical_samples(self.pairs.references, reports, "coco", with_meteor=False)
        scores = self.scores(label_matrix(reports), [samples])
        shown = ("bleu-4/coco", "rouge-l/coco")
        return {key: s for key, s in scores.items() if key.startswith("label-f1/14/") or key in shown}


def _reference_labels(pairs: Pairs, reference_labels: str) -> tuple[np.ndarray, str]:
    """Label matrix of the references and its source: text, study, or mixed where only some studies have labels."""
    if reference_labels == "text":
        return label_matrix(pairs.references), "text"
    given = [bool(s.get("labels")) for s in pairs.studies]
    rows = [
        _study_labels(key, s) if has else label_matrix([text])[0]
        for key, s, has, text in zip(pairs.study_ids, pairs.studies, given, pairs.references, strict=True)
    ]
    return np.stack(rows), "study" if all(given) else "mixed" if any(given) else "text"


def _study_labels(key: str, study: Mapping[str, Any]) -> np.ndarray:
    try:
        return label_matrix([{c: v for c, v in study["labels"].items() if v is not None}])[0]
    except (ValueError, AttributeError) as error:
        raise ScoreError(f"study {key!r}: its labels cannot be used: {error}") from error


def _labeller_check(pairs: Pairs) -> dict[str, float]:
    """How well the labeller reads the reference texts, where studies bring labels of their own."""
    chosen = [(key, s, t) for key, s, t in zip(pairs.study_ids, pairs.studies, pairs.references, strict=True)]
    chosen = [(key, s, t) for key, s, t in chosen if s.get("labels")]
    if not chosen:
        return {}
    truth_N14 = np.stack([_study_labels(key, s) for key, s, _ in chosen])
    counts = confusion(
        binarize(truth_N14, "neg"), binarize(label_matrix(t for _, _, t in chosen), "neg")
    ).sum(axis=0)
    return {
        "n": len(chosen),
        "micro_f1": float(micro_f1(counts)),
        "macro_f1_supported": float(macro_f1(counts, support(counts) > 0)),
    }


def _floors(
    pairs: Pairs, floors: str | Path | Mapping[str, Source] | None, training: Source | None
) -> tuple[list[tuple[str, str, list[str]]], list[NotComputed]]:
    """(name, how, one report a study) of every floor that can be had, and those that cannot."""
    bank = _training_reports(training)
    source = "training" if bank else "references"
    constant = baselines.typical_report([text for _, text in bank] or pairs.references)
    ready = [
        (
            f"constant report ({source})",
            "the most typical report for every study",
            [constant] * len(pairs),
        )
    ]

    told = [(study["indication"], text) for study, text in bank if isinstance(study.get("indication"), str)]
    if told:
        queries = [s.get("indication") or "" for s in pairs.studies]
        nearest = baselines.nearest_by_text(queries, [i for i, _ in told], [t for _, t in told])
        how = "the training report with the most similar indication"
        ready.append(("nearest neighbour (indication)", how, nearest))

    if isinstance(floors, Mapping):
        files, missing = (
            dict(floors),
            [m for m in baselines.read_floors(None)[1] if m.name.split()[0] not in floors],
        )
    else:
        files, missing = baselines.read_floors(floors)
    for name, predictions in files.items():
        try:
            aligned = align(predictions, pairs.studies)
        except ScoreError as error:
            raise ScoreError(f"floor {name!r}: {error}") from error
        missed = sum(not text for text in aligned.predictions)
        how = baselines.FLOORS.get(name, "given") + (
            f" ({missed} of {len(pairs)} empty or missing)" if missed else ""
        )
        ready.append((f"{name} images" if name in baselines.FLOORS else name, how, aligned.predictions))
    if not any("nearest" in name for name, _, _ in ready):
        reason = "needs training studies with indications, or predictions made with eval.baselines.nearest_by_features"
        missing.append(NotComputed("nearest neighbour", reason, "cxr score --training STUDIES"))
    return ready, missing


def _training_reports(training: Source | None) -> list[tuple[Mapping[str, Any], str]]:
    if training is None:
        return []
    studies = load(training, "training study")
    bank = [(study, text) for study in studies if (text := report_text(study.get("findings"))[0])]
    if not bank:
        raise ScoreError("the training studies have no findings to choose a constant report from")
    return bank


def _per_study(pairs: Pairs, reference_N14: np.ndarray, predicted_N14: np.ndarray) -> list[dict]:
    """What each study contributes: ROUGE-L (coco) and the conditions missed and invented, uncertain as absent."""
    ref, hyp = binarize(reference_N14, "neg"), binarize(predicted_N14, "neg")
    rouge_l = PROFILES["coco"].rouge_l
    return [
        {
            "study_id": key,
            "rouge_l": rouge_l(reference, prediction),
            "missed": [c for c, r, h in zip(CONDITIONS, ref[i], hyp[i], strict=True) if r and not h],
            "invented": [c for c, r, h in zip(CONDITIONS, ref[i], hyp[i], strict=True) if h and not r],
        }
        for i, (key, reference, prediction) in enumerate(
            zip(pairs.study_ids, pairs.references, pairs.predictions, strict=True)
        )
    ]


def _is_scores(path: Path) -> bool:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and written.get("kind") == KIND
