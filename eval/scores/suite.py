"""`score()`: predictions against references, all scores of this version, with intervals, baselines and
subgroups."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.intervals import too_few_patients
from eval.judges.panel import Panel
from eval.scores import clinical, r2gen, safety
from eval.scores.comparison import Comparison, adjusted, differences
from eval.scores.families import failed, sheet_of, unusable
from eval.scores.family import Reports
from eval.scores.floors import Floor, Given, floor_reports
from eval.scores.inputs import Pairs, align, patients, section_named
from eval.scores.label_f1 import binarize, condition_table, confusion, macro_f1_reference, micro_f1
from eval.scores.labels import judged, label_matrix
from eval.scores.lexical import PROFILES, closest
from eval.scores.phrases import CONDITIONS
from eval.scores.readers import ScoreError, Source, missing
from eval.scores.result import Scores, Subgroup
from eval.scores.settings import checked
from eval.scores.sheet import Sheet, SheetScore
from eval.scores.subgroups import subgroups
from eval.scores.values import Values, read_values


def score(
    predictions: Source,
    references: Source | None = None,
    *,
    section: str = "findings",
    compare: Source | Mapping[str, Source] | None = None,
    floors: Given = None,
    groups: Mapping[str, Hashable] | Sequence[Hashable] | None = None,
    intervals: bool = True,
    seed: int = 0,
    training: Source | None = None,
    values: Source | None = None,
    reference_labels: str = "text",
    profiles: Sequence[str] = tuple(PROFILES),
    min_support: int = 30,
    clinical_models: str | Sequence[str] = "auto",
    weights: str | Path | None = None,
    device: str | None = None,
    judges: Panel | None = None,
    progress: clinical.Progress | None = None,
) -> Scores:
    """Score predictions against references.

    predictions, references: JSON Lines or CSV files, or lists of records in the project's contracts, matched by
        `study_id`. Without references every prediction brings its own, as `reference`.
    section: "findings", "impression", or "both": the two joined by an empty line, where a reference must have both. It
        holds for the floors, the training reports and what is compared, too.
    compare: other predictions for the same references, or a mapping from names to several; differences are tested in
        pairs, and p adjusted over all scores and systems.
    floors: a directory of predictions for shuffled and blank images (`cxr generate --floors DIR`), or a mapping from
        a floor's name to its predictions, for instance nearest neighbours made with `eval.baselines`.
    profiles: of overlap scores: coco, sacrebleu-13a, plain; r2gen-iu and r2gen-mimic add those of R2Gen's line of work.
    intervals: whether numbers have 95 % intervals over patients (`eval.intervals`).
    seed: of the permutations of `compare`.
    groups: the patient of every study (mapping by study id, or one entry for each scored study); by default the
        references' `patient_id`. Patients, not studies, are the unit of intervals.
    training: studies whose reports the constant report is chosen from; without them it comes from the references,
        which makes that floor a little higher than an honest guess, and its name says so.
    values: what another tool or a person gave each study (`eval.scores.values`): study_id, name, value, better, system.
    reference_labels: "text" reads both sides with the rule-based labeller; "study" takes a study's own `labels` where
        it has them. The signature says which.
    min_support: label F1 is also averaged over the conditions with at least this many positive references.
    clinical_models: "auto" (those whose weights are there), "none", or names of `eval.scores.weights.MODELS`;
        `weights` is the folder to look in, `device` where they run.
    judges: metrics of others that ask a language model or have weights of their own (`eval.judges.panel`).
    progress: called with (what, done, of how many) while models read.

    Raises ScoreError for input that cannot be scored.
    """
    intervals, seed, min_support, reference_labels, profiles, clinical_models, weights, device = checked(
        intervals=intervals, seed=seed, min_support=min_support, reference_labels=reference_labels, profiles=profiles,
        clinical_models=clinical_models, weights=weights, device=device,
    )  # fmt: skip
    pairs = align(predictions, references, section_named(section))
    if pairs.several:
        # Of several references the closest that can be judged stands for all where one is needed.
        usable = [[r for r in refs if judged(r)] or refs for refs in pairs.several]
        pairs.references = closest(usable, pairs.predictions)
    patient_ids = patients(pairs, groups)
    # Said once, and not beside every number.
    few = too_few_patients(len(set(patient_ids)))
    made = f"none: {few}" if few else "95 %, patients left out one by one"
    intervals = intervals and not few
    reference_N14, judged_N, source = _reference_labels(pairs, reference_labels)
    _note_unjudged(pairs, judged_N)
    ready, no_floors = floor_reports(pairs, floors, training)
    others = {
        name: align(other, pairs.studies, pairs.section, by_order=pairs.by_order)
        for name, other in _systems(compare).items()
    }
    given = read_values(values) if values is not None else None
    if given:
        for key in given.of_nothing(pairs.study_ids):
            pairs.note("value without study", key)
        given.check_systems([*(name for name, _, _ in ready), *others], list(others), pairs.study_ids)
    models, without = clinical.load(clinical_models, weights, device)
    protocol = _Protocol(
        pairs, reference_N14, judged_N, source, patient_ids, intervals, seed, min_support,
        models, models.read(pairs.references, progress, keep=True), progress, given, tuple(profiles), judges,
    )  # fmt: skip

    reports = protocol.reports(pairs.predictions)
    if judges:
        _judge(protocol, reports, others, ready)
    sheet, _ = sheet_of(reports, **pairs.section.choices)
    while True:
        lost = len(sheet.failed)
        found = protocol.scores(sheet)
        groups_found = protocol.subgroups(sheet)
        compared = [_compare(protocol, sheet, other, name) for name, other in others.items()]
        # A family of another package that failed on a part of the studies has no part in the rest.
        if len(sheet.failed) == lost:
            break
    return Scores(
        n=len(pairs),
        patients=len(set(patient_ids)),
        scores=found,
        conditions={
            name: {policy: condition_table(*both, policy) for policy in ("neg", "pos")}
            for name, both in reports.labels.items()
        },
        floors=[Floor(name, how, protocol.of_floor(name, texts)) for name, how, texts in ready],
        not_computed=[
            *no_floors,
            *without,
            *(judges.not_computed if judges else ()),
            *r2gen.not_computed(profiles),
            *unusable(),
            *failed(sheet),
        ],
        problems=pairs.problems,
        studies=_per_study(pairs, *reports.labels["label-f1"]),
        settings={
            "section": pairs.section.name,
            "interval": made if intervals or few else "none",
            "seed": seed,
            "reference_labels": source,
            "min_support": min_support,
            "without_patient": sum(isinstance(g, tuple) for g in patient_ids) if groups is None else 0,
        },
        labeller_check=_labeller_check(pairs),
        subgroups=groups_found,
        comparisons=adjusted(compared),
        said=pairs.said,
        texts={
            key: both for key, *both in zip(pairs.study_ids, pairs.references, pairs.predictions, strict=True)
        },
    )


@dataclass(frozen=True)
class _Protocol:
    """How a set of reports is scored: the same for the predictions, for others they are compared with, for floors."""

    pairs: Pairs
    reference_N14: np.ndarray
    judged_N: np.ndarray
    source: str
    patient_ids: list[Hashable]
    intervals: bool
    seed: int
    min_support: int
    models: clinical.Clinical
    read: clinical.Readings  # of the references
    progress: clinical.Progress | None
    values: Values | None
    profiles: tuple[str, ...]
    judges: Panel | None = None

    def reports(self, texts: list[str], **settings: Any) -> Reports:
        """Return what families see of one text a study."""
        several = self.pairs.several
        references = closest(several, texts) if several else self.pairs.references
        # The labels are then those of the reference that is closest to the texts.
        own = several and self.source == "text"
        return Reports(
            references, texts, self.pairs.studies, several,
            None if own else self.reference_N14, None if own else self.judged_N,
            label_source=self.source, min_support=self.min_support, models=self.models,
            read_references=None if several else self.read, progress=self.progress, values=self.values,
            study_ids=self.pairs.study_ids, profiles=self.profiles, judges=self.judges, **settings,
        )  # fmt: skip

    def scores(self, sheet: Sheet, rows_N: np.ndarray | None = None) -> dict[str, SheetScore]:
        return sheet.scores(self.patient_ids, intervals=self.intervals, rows_N=rows_N)

    def of_floor(self, name: str, texts: list[str]) -> dict[str, SheetScore]:
        """Return the headlines, and all averages of label F1."""
        reports = self.reports(texts, headline_only=True, system=name)
        sheet, _ = sheet_of(reports, **self.pairs.section.choices)
        found = self.scores(sheet)
        return {key: s for key, s in found.items() if s.headline or key.startswith("label-f1/14/")}

    def subgroups(self, sheet: Sheet) -> list[Subgroup]:
        found = []
        for (attribute, value), rows_N in subgroups(self.pairs.studies).items():
            members = {g for g, row in zip(self.patient_ids, rows_N, strict=True) if row}
            scores = self.scores(sheet, rows_N)
            found.append(Subgroup(attribute, value, int(rows_N.sum()), len(members), scores))
        return found


def _systems(compare: Source | Mapping[str, Source] | None) -> dict[str, Source]:
    """Return what is compared by its name."""
    if compare is None:
        return {}
    if isinstance(compare, Mapping):
        return dict(compare)
    return {Path(compare).name if isinstance(compare, str | Path) else "the other predictions": compare}


def _compare(protocol: _Protocol, sheet: Sheet, others: Pairs, name: str) -> Comparison:
    other, _ = sheet_of(protocol.reports(others.predictions, system=name), **others.section.choices)
    keys = [key for key, m in sheet.measures.items() if m.headline and key in other.measures]
    tested = differences(
        sheet, other, keys, protocol.patient_ids, seed=protocol.seed, intervals=protocol.intervals
    )
    return Comparison(name, protocol.scores(other), tested, others.problems)


def _judge(
    protocol: _Protocol,
    reports: Reports,
    others: Mapping[str, Pairs],
    ready: list[tuple[str, str, list[str]]],
) -> None:
    """Let the judges read all systems before any is scored: what one is not judged on is left out of all."""
    judges, pairs = protocol.judges, protocol.pairs
    assert judges is not None
    systems = {name: protocol.reports(other.predictions, system=name) for name, other in others.items()}
    baselines = {name: protocol.reports(texts, system=name) for name, _, texts in ready}
    judges.judge({"": reports, **systems}, baselines, protocol.progress)
    for missed_N in judges.unjudged().values():
        for key, missed in zip(pairs.study_ids, missed_N, strict=True):
            if missed and key not in pairs.problems.get("study without a judge's answer", ()):
                pairs.note("study without a judge's answer", key)


def _reference_labels(pairs: Pairs, reference_labels: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Label matrix of the references, whose are judged, and the source of the labels: text, study, or mixed where only
    some studies have labels. Raises ScoreError if labels of studies are asked for and no study has any."""
    judged_N = np.array([judged(text) for text in pairs.references], bool)
    if reference_labels == "text":
        return label_matrix(pairs.references), judged_N, "text"
    given = [bool(s.get("labels")) for s in pairs.studies]
    if not any(given):
        raise ScoreError(
            "no study has labels of its own (a field `labels`: {condition: 1, 0 or -1}), and reference_labels is "
            "'study'; give references with labels, or leave reference_labels at 'text'"
        )
    rows = [
        _study_labels(key, s) if has else label_matrix([text])[0]
        for key, s, has, text in zip(pairs.study_ids, pairs.studies, given, pairs.references, strict=True)
    ]
    return np.stack(rows), judged_N | np.array(given), "study" if all(given) else "mixed"


def _note_unjudged(pairs: Pairs, judged_N: np.ndarray) -> None:
    """Record which texts the labeller does not judge; of predictions those that say something."""
    for key, usable, text in zip(pairs.study_ids, judged_N, pairs.predictions, strict=True):
        if not usable:
            pairs.note("reference that is not judged", key)
        if text and not judged(text):
            pairs.note("prediction that is not judged", key)


def _study_labels(key: str, study: Mapping[str, Any]) -> np.ndarray:
    try:
        return label_matrix([{c: v for c, v in study["labels"].items() if not missing(v)}])[0]
    except (ValueError, AttributeError) as error:
        raise ScoreError(f"study {key!r}: its labels cannot be used: {error}") from error


def _labeller_check(pairs: Pairs) -> dict[str, float]:
    """How well the labeller reads the reference texts, where studies bring labels of their own."""
    chosen = [(key, s, t) for key, s, t in zip(pairs.study_ids, pairs.studies, pairs.references, strict=True)]
    truth, texts, unusable = [], [], 0
    for key, study, text in chosen:
        try:
            if study.get("labels"):
                truth.append(_study_labels(key, study))
                texts.append(text)
        except ScoreError:  # other labels than the 14; only --reference-labels study insists on them
            unusable += 1
    if not truth:
        return {}
    counts = confusion(binarize(np.stack(truth), "neg"), binarize(label_matrix(texts), "neg")).sum(axis=0)
    return {
        "n": len(truth),
        "unusable": unusable,
        "micro_f1": float(micro_f1(counts)),
        "macro_f1_supported": float(macro_f1_reference(counts, np.ones(len(CONDITIONS), bool))),
    }


def _per_study(pairs: Pairs, reference_N14: np.ndarray, predicted_N14: np.ndarray) -> list[dict]:
    """What each study contributes: ROUGE-L (coco), the conditions missed and invented (uncertain as absent), and what
    else is odd (`safety.per_study`)."""
    ref, hyp = binarize(reference_N14, "neg"), binarize(predicted_N14, "neg")
    rouge_l = PROFILES["coco"].rouge_l
    odd = safety.per_study(pairs.references, pairs.predictions, pairs.studies)
    return [
        {
            "study_id": key,
            "rouge_l": rouge_l(reference, prediction),
            "missed": [c for c, r, h in zip(CONDITIONS, ref[i], hyp[i], strict=True) if r and not h],
            "invented": [c for c, r, h in zip(CONDITIONS, ref[i], hyp[i], strict=True) if h and not r],
            **odd[i],
        }
        for i, (key, reference, prediction) in enumerate(
            zip(pairs.study_ids, pairs.references, pairs.predictions, strict=True)
        )
    ]
