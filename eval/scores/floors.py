"""The floors of a comparison are baselines: reports that did not look at the image, scored as the predictions
are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import baselines
from eval.scores.inputs import Pairs, align, report_text
from eval.scores.readers import ScoreError, Source, load, missing
from eval.scores.registry import NotComputed
from eval.scores.sheet import SheetScore

Given = str | Path | Mapping[str, Source] | None


@dataclass
class Floor:
    """Scores of a report that did not look at the image."""

    name: str
    how: str
    scores: dict[str, SheetScore]


def floor_reports(
    pairs: Pairs, floors: Given, training: Source | None
) -> tuple[list[tuple[str, str, list[str]]], list[NotComputed]]:
    """Return (name, how, one report a study) of every baseline that can be made, and those that cannot.

    Raises ScoreError for floors or training studies that cannot be read.
    """
    bank = _training_reports(training, pairs)
    source = "training" if bank else "references"
    constant = baselines.typical_report([text for _, text in bank] or pairs.references)
    how = "the most typical report for every study"
    ready = [(f"constant report ({source})", how, [constant] * len(pairs))]

    told = [(asked, text) for study, text in bank if (asked := report_text(study.get("indication"))[0])]
    queries = [report_text(study.get("indication"))[0] for study in pairs.studies]
    if told and any(queries):
        nearest = baselines.nearest_by_text(queries, [i for i, _ in told], [t for _, t in told])
        nearest = [text if asked else constant for asked, text in zip(queries, nearest, strict=True)]
        how = "the training report with the most similar indication"
        if not all(queries):
            how += f" (the constant report for the {queries.count('')} of {len(pairs)} without an indication)"
        ready.append(("nearest neighbour (indication)", how, nearest))

    if isinstance(floors, Mapping):
        titles = {baselines.FLOORS[name].title for name in baselines.FLOORS if name in floors}
        files, absent = dict(floors), [m for m in baselines.read_floors(None)[1] if m.name not in titles]
    else:
        files, absent = baselines.read_floors(floors)
    for name, predictions in files.items():
        try:
            aligned = align(predictions, pairs.studies, pairs.section, by_order=pairs.by_order)
        except ScoreError as error:
            raise ScoreError(f"floor {name!r}: {error}") from error
        missed = sum(not text for text in aligned.predictions)
        lone = sum(len(aligned.problems.get(f"prediction with {f} alone", ())) for f in pairs.section.fields)
        incomplete = f" ({missed} of {len(pairs)} empty or missing)" if missed else ""
        incomplete += f" ({lone} of {len(pairs)} with one section alone)" if lone else ""
        known = baselines.FLOORS.get(name, baselines.FloorFile(name, "given"))
        ready.append((known.title, known.how + incomplete, aligned.predictions))
    if not told or not any(queries):
        reason = (
            "needs training studies with indications" if not told else "no scored study has an indication"
        )
        absent.append(NotComputed("nearest neighbour (indication)", reason, "cxr score --training STUDIES"))
    return ready, absent


def _training_reports(training: Source | None, pairs: Pairs) -> list[tuple[Mapping[str, Any], str]]:
    """Of studies that are neither scored nor of a scored patient nor of another split than train."""
    if training is None:
        return []
    scored = set(pairs.study_ids)
    patients = {str(s["patient_id"]) for s in pairs.studies if not missing(s.get("patient_id"))}
    bank = [
        (study, text)
        for study in load(training, "training study")
        for text, wrong in [pairs.section.read(study)]
        if not wrong
        and str(study["study_id"]) not in scored
        and str(study.get("patient_id")) not in patients
        and (missing(study.get("split")) or str(study["split"]).strip().lower() in ("train", "training"))
    ]
    if not bank:
        raise ScoreError(
            f"no training study is left: each has no {' or no '.join(pairs.section.fields)}, is scored itself, is "
            "of a scored patient, or is not of split 'train'"
        )
    return bank
