"""Fit a model's calibration for `cxr verify`: how probable an error is at a margin, by kind and condition.

Studies with films and reports that nobody doubts are the clean ones; in each an error of every kind that it has room
for is planted (`eval/planted.py`). One logistic regression a kind tells planted sentences from clean ones. Its
thresholds come from predictions out of the fold, by patient: at most `FLAGGED` of the clean reports have a sentence
that is called contradicted, and at most `MISSED` of the planted errors of a kind are called supported.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from encoder.errors import UserError
from encoder.progress import bar
from eval.planted import ERROR_KINDS, ErrorKind, Planted, Planter
from eval.scores.counters import COUNTER_KINDS
from eval.scores.labels import label_report
from vlm.contrasts import Contrasted, contrasted
from vlm.findings import Findings
from vlm.study import Study
from vlm.verdicts import Calibration, Curve
from vlm.verify import films_of, left_out, revision_of, shown_findings, written

FLAGGED = 0.05
MISSED = 0.10
FOLDS = 5
LEAST = 20  # planted errors of a kind, for a curve of its own
SCALE = 5.0  # nats: margins of this size are numbers about 1
STRENGTH = 1.0  # of the regression's L2 penalty, scikit-learn's C

# Which counter of a wrong sentence is the truth, where that is another kind: a denied finding is there.
TRUTH = {"denial": "invented", "invented": "denial"}


@dataclass(frozen=True)
class Sample:
    """A contrast of a sentence of which is known whether it is wrong in this. `report` numbers the clean report that it
    is of; a planted one has -1."""

    kind: str
    condition: str
    margin: float
    hedged: bool
    wrong: bool
    group: str
    report: int = -1


@dataclass(frozen=True)
class Read:
    """What the model made of one study: its clean report, reports with an error, and its own report."""

    study: Study
    clean: list[Contrasted]
    wrong: dict[ErrorKind, tuple[Planted, list[Contrasted]]]
    own: list[Contrasted]

    @property
    def group(self) -> str:
        """Return the patient, or the study where none is named."""
        return self.study.patient_id or f"study {self.study.study_id}"


def read_studies(
    findings: Findings,
    studies: Sequence[Study],
    *,
    root: str | Path = ".",
    seed: int = 0,
    batch_size: int = 16,
    kinds: Sequence[ErrorKind] = ERROR_KINDS,
) -> Iterator[Read]:
    """Read every study's report as it is and with an error of each kind; studies whose films cannot be used are left
    out."""
    planter = Planter([study.findings for study in studies if study.findings])
    model = findings.model
    for start in range(0, len(studies), batch_size):
        batch = [(study, study.findings or "") for study in studies[start : start + batch_size]]
        seen = films_of(findings, batch, Path(root))
        own = written(findings, seen)
        for i, (study, report) in enumerate(batch):
            film = seen[i]
            if film.tokens is None or not report:
                continue

            def read(text: str, film: Any = film) -> list[Contrasted]:
                return contrasted(model, film.prompt, text, film.pixels, film.tokens)

            rng = random.Random(f"{seed}\0{study.study_id}")
            planted = {kind: planter.plant(report, rng, [kind]) for kind in kinds}
            wrong = {
                kind: (error, read(error.text) if kind != "omission" else [])
                for kind, error in planted.items()
                if error
            }
            yield Read(study, read(report), wrong, read(own[i]))


def samples_of(read: Iterable[Read]) -> list[Sample]:
    """Return the contrasts of clean sentences, and those of planted ones that are the truth."""
    found = []
    for number, one in enumerate(read):
        for sentence in one.clean:
            found += [_sample(sentence, c, False, one.group, number) for c in sentence.contrasts]
        for error, sentences in one.wrong.values():
            for sentence in sentences:
                if sentence.span.start <= error.start < sentence.span.end:
                    truth = TRUTH.get(error.kind, error.kind)
                    found += [
                        _sample(sentence, c, True, one.group)
                        for c in sentence.contrasts
                        if c.kind == truth and error.condition in (None, c.condition)
                    ]
    return found


def _sample(sentence: Contrasted, contrast: Any, wrong: bool, group: str, report: int = -1) -> Sample:
    return Sample(contrast.kind, contrast.condition, contrast.margin, sentence.hedged, wrong, group, report)


def fit(read: Sequence[Read], findings: Findings, *, say: Callable[[str], None] = print) -> Calibration:
    """Fit the calibration on studies that were read. Raises UserError where errors of no kind are enough."""
    samples = samples_of(read)
    folds = _folds([one.group for one in read])
    curves: dict[str, Curve] = {}
    unseen: dict[str, tuple[list[Sample], np.ndarray]] = {}
    about: dict[str, Any] = {"studies": len(read), "date": date.today().isoformat(), "kinds": {}}
    for kind in map(str, COUNTER_KINDS):
        of_kind = [s for s in samples if s.kind == kind]
        count = sum(s.wrong for s in of_kind)
        if count < LEAST or count == len(of_kind):
            if count:
                say(
                    f"{kind}: {count} planted errors, and {LEAST} are needed; sentences are not judged in this"
                )
            continue
        p = np.zeros(len(of_kind))
        for fold in range(FOLDS):
            here = np.array([folds[s.group] == fold for s in of_kind])
            if here.any():
                p[here] = _probabilities(
                    _curve([s for s, h in zip(of_kind, here, strict=True) if not h]), of_kind, here
                )
        unseen[kind] = (of_kind, p)
        curves[kind] = _curve(of_kind)
    if not curves:
        raise UserError(
            f"there are too few errors to be planted in {len(read)} reports: {LEAST} of a kind are needed; give more "
            "studies with films and findings"
        )
    flagged = _flagged(unseen, len(read))
    for kind, (of_kind, p) in unseen.items():
        wrong = np.array([s.wrong for s in of_kind])
        supported = min(float(np.quantile(p[wrong], MISSED)), np.nextafter(flagged, 0))
        curves[kind] = Curve(
            curves[kind].every,
            curves[kind].hedged,
            curves[kind].conditions,
            round(flagged, 6),
            round(supported, 6),
        )
        about["kinds"][kind] = {
            "planted": int(wrong.sum()), "clean": int((~wrong).sum()), "auroc": round(_auroc(wrong, p), 4),
            "caught": round(float((p[wrong] >= flagged).mean()), 4),
        }  # fmt: skip
    calibration = Calibration(revision_of(findings), curves, 1.0, about)
    omitted, about["omission"] = _omitted(read, calibration)
    return Calibration(revision_of(findings), curves, omitted, about)


def _folds(groups: Sequence[str]) -> dict[str, int]:
    """Return the fold of each patient, the same whatever their order."""
    named = sorted(set(groups))
    random.Random(0).shuffle(named)
    return {group: i % FOLDS for i, group in enumerate(named)}


def _curve(samples: Sequence[Sample]) -> Curve:
    """Fit one kind's logistic regression; clean and planted sentences weigh the same in all."""
    from sklearn.linear_model import LogisticRegression

    conditions = sorted({s.condition for s in samples})
    x = np.zeros((len(samples), 3 + 2 * len(conditions)))
    for row, s in zip(x, samples, strict=True):
        m, at = s.margin / SCALE, 3 + 2 * conditions.index(s.condition)
        row[0], row[1], row[2] = m, s.hedged, s.hedged * m
        row[at : at + 2] = 1, m
    fitted = LogisticRegression(C=STRENGTH, max_iter=5000, class_weight="balanced")
    fitted.fit(x, [s.wrong for s in samples])
    w = fitted.coef_[0]
    of = {c: (float(w[3 + 2 * i]), float(w[4 + 2 * i]) / SCALE) for i, c in enumerate(conditions)}
    return Curve((float(fitted.intercept_[0]), float(w[0]) / SCALE), (float(w[1]), float(w[2]) / SCALE), of)


def _probabilities(curve: Curve, samples: Sequence[Sample], here: np.ndarray) -> np.ndarray:
    chosen = [s for s, h in zip(samples, here, strict=True) if h]
    return np.array([curve.probability(s.margin, s.condition, s.hedged) for s in chosen])


def _flagged(unseen: dict[str, tuple[list[Sample], np.ndarray]], reports: int) -> float:
    """Return the probability that at most FLAGGED of the clean reports reach in any sentence."""
    highest = np.zeros(reports)
    for samples, p in unseen.values():
        for s, probability in zip(samples, p, strict=True):
            if s.report >= 0:
                highest[s.report] = max(highest[s.report], probability)
    return float(min(np.nextafter(np.quantile(highest, 1 - FLAGGED, method="higher"), 1), 1.0))


def surest_omission(one: Read, report: str, calibration: Calibration) -> float:
    """Return the probability of what a report leaves out most surely, 0 where the model's own has nothing more."""
    found = left_out(shown_findings(calibration, one.own), report)
    return max((omission.probability for omission in found), default=0.0)


def _omitted(read: Sequence[Read], calibration: Calibration) -> tuple[float, dict[str, Any]]:
    """Return the probability from which on at most FLAGGED of the clean reports leave something out, and how well it
    tells reports from which a finding was taken."""
    clean = np.array([surest_omission(one, one.study.findings or "", calibration) for one in read])
    taken = np.array(
        [
            surest_omission(one, one.wrong["omission"][0].text, calibration)
            for one in read
            if "omission" in one.wrong
        ]
    )
    limit = float(max(np.nextafter(np.quantile(clean, 1 - FLAGGED, method="higher"), 2), 0.5))
    if not len(taken):
        return limit, {"planted": 0}
    wrong = np.repeat([False, True], [len(clean), len(taken)])
    p = np.concatenate([clean, taken])
    return limit, {
        "planted": len(taken),
        "auroc": round(_auroc(wrong, p), 4),
        "caught": round(float((taken >= limit).mean()), 4),
    }


def _auroc(wrong: np.ndarray, p: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(wrong, p))


def calibrated(
    findings: Findings, studies: Sequence[Study], *, root: str | Path = ".", seed: int = 0
) -> Calibration:
    """Read studies and fit the calibration. Raises UserError where there are too few."""
    usable = [s for s in studies if s.findings and s.images and label_report(s.findings)]
    if not usable:
        raise UserError("no study has a film and findings; a calibration needs both")
    read = list(
        bar(read_studies(findings, usable, root=root, seed=seed), "reports", len(usable), unit="studies")
    )
    return fit(read, findings)
