"""Oversight of reports: which sentence does the film not bear out, and what does the report leave out?

    model = Findings.from_pretrained("mini")
    found = model.verify("chest.dcm", "Small left pleural effusion. The heart is normal in size.")
    for sentence in found.sentences: print(sentence.verdict, sentence.text, sentence.better)

Each sentence is weighed against its counters where it stands (`vlm/contrasts.py`), and judged by the model's
calibration (`vlm/verdicts.py`). What a report omits is looked for in the report that the model writes itself: a finding
there that the film bears out, and that the report does not mention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from eval.scores.labels import NO_FINDING, label_report
from eval.scores.language import why_not_judged
from eval.scores.spans import Span
from vlm.answering import Answerer
from vlm.contrasts import Contrasted, contrasted, occlusion
from vlm.decoding import Decoding, generate_ids, image_tokens
from vlm.errors import AskedError
from vlm.films import Task, blank_film
from vlm.prediction import Prediction
from vlm.room import fit
from vlm.verdicts import Calibration, Doubt, Verdict, verdict_of

if TYPE_CHECKING:
    from encoder.radiograph import Limits
    from vlm.model import FindingsModel
    from vlm.outliers import Outliers
    from vlm.study import Study


class Reader(Protocol):
    """What a `Findings` has that is needed here."""

    model: FindingsModel
    outliers: Outliers | None
    limits: Limits | None
    insist: bool


# Of each group one finding stands for all: a report that says "opacity" does not leave out the consolidation.
ALIKE = (frozenset({"Lung Opacity", "Consolidation", "Pneumonia", "Atelectasis"}),)

WHY = {
    "no words": "there is no report",
    "another script": "the report is in another script; English reports of a chest are judged",
    "another language": "the report is in another language; English reports of a chest are judged",
    "another part of the body": "the report is of another part of the body; reports of a chest are judged",
    "not a report": "the text is no report of a chest",
}


@dataclass(frozen=True)
class JudgedSentence:
    """A sentence, at report[start:end]. `probability` that it is wrong, if as many are wrong as right; None where it
    says nothing that a film can show. `better`: what the film would rather bear out, of a contradicted sentence."""

    text: str
    start: int
    end: int
    verdict: Verdict
    probability: float | None = None
    kind: str | None = None
    condition: str | None = None
    better: str | None = None
    # What each part of the main image does for the better sentence, in nats: of contradicted sentences, if asked for.
    map: list[list[float]] | None = None
    doubts: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Omission:
    """A finding that the film shows, as the model would write it, and that the report does not have. `denied`: whether
    the report says that it is not there."""

    condition: str
    text: str
    probability: float
    denied: bool


@dataclass
class Verification:
    """What came of one report: its sentences with verdicts and what it leaves out, or an error."""

    study_id: str
    sentences: list[JudgedSentence] = field(default_factory=list)
    omissions: list[Omission] = field(default_factory=list)
    written: str | None = None  # the model's own report
    warnings: list[dict[str, str]] = field(default_factory=list)
    error: dict[str, str] | None = None
    patient_id: str | None = None
    model: str = ""
    revision: str = ""

    @property
    def contradicted(self) -> list[JudgedSentence]:
        """Return the sentences that the film contradicts, the surest first."""
        found = [s for s in self.sentences if s.verdict == "contradicted"]
        return sorted(found, key=lambda s: -(s.probability or 0))

    def to_json(self) -> dict[str, Any]:
        """Make a line of a file of verifications."""
        row = {k: v for k, v in asdict(self).items() if v is not None}
        return {"schema": 1, "kind": "verification", **row}


class Verifier:
    """A findings model with its calibration. Raises AskedError if the calibration is of another model."""

    def __init__(self, findings: Reader, calibration: Calibration) -> None:
        if calibration.revision != revision_of(findings):
            raise AskedError(
                f"the calibration is of another model ({calibration.revision[:12]}, and this one is "
                f"{revision_of(findings)[:12]}); make one with cxr calibrate"
            )
        self.findings, self.calibration = findings, calibration
        self._blank_tokens: Tensor | None = None

    def verify(
        self,
        reports: Iterable[tuple[Study, str]],
        *,
        root: str | Path = ".",
        batch_size: int = 16,
        omissions: bool = True,
        maps: bool = False,
    ) -> Iterator[Verification]:
        """Yield the verification of each study's report, in order. `omissions` also writes the model's own reports,
        `maps` shows where the film contradicts a sentence."""
        remaining = iter(reports)
        while batch := list(islice(remaining, batch_size)):
            seen = films_of(self.findings, batch, Path(root))
            own = written(self.findings, seen) if omissions else {}
            for i, (study, report) in enumerate(batch):
                yield self._judged(study, report, seen[i], own.get(i), maps)

    def _judged(self, study: Study, report: str, film: Seen, own: str | None, maps: bool) -> Verification:
        model = self.findings.model
        made = Verification(
            study.study_id,
            patient_id=study.patient_id,
            warnings=film.prediction.warnings,
            model=model.meta.name,
            revision=self.calibration.revision,
        )
        if film.tokens is None:
            made.error = film.prediction.error
            return made
        if why := why_not_judged(report):
            made.error = {"code": "report_not_judged", "message": f"{study.study_id}: {WHY[why]}"}
            return made
        sentences = contrasted(model, film.prompt, report, film.pixels, film.tokens)
        made.sentences = [self._sentence(sentence) for sentence in sentences]
        if maps:
            made.sentences = [
                replace(said, map=self._map(film, report, s.span, said.better)) if said.better else said
                for said, s in zip(made.sentences, sentences, strict=True)
            ]
        if own is not None:
            made.written = own
            found = contrasted(model, film.prompt, own, film.pixels, film.tokens)
            shown = shown_findings(self.calibration, found)
            made.omissions = [
                omission
                for omission in left_out(shown, report)
                if omission.probability >= self.calibration.omitted
            ]
        return made

    def _map(self, film: Seen, report: str, span: Span, better: str) -> list[list[float]]:
        model = self.findings.model
        return occlusion(
            model, film.prompt, report, span, better, film.pixels, film.tokens, self._blank(film.pixels)
        )

    @torch.inference_mode()
    def _blank(self, like: Tensor) -> Tensor:
        if self._blank_tokens is None:
            model = self.findings.model
            self._blank_tokens = image_tokens(model.llava, blank_film(model.preprocessing).to(like)[None])
        return self._blank_tokens

    def _sentence(self, sentence: Contrasted) -> JudgedSentence:
        doubts = self.calibration.doubts(sentence)
        verdict = verdict_of(doubts)
        first = _leading(doubts, verdict)
        span = sentence.span
        if first is None:
            return JudgedSentence(span.text, span.start, span.end, verdict)
        return JudgedSentence(
            span.text, span.start, span.end, verdict, round(first.probability, 4), first.kind,
            first.condition or None, first.counter.text if verdict == "contradicted" else None, None,
            tuple(_row(doubt) for doubt in doubts),
        )  # fmt: skip


def _leading(doubts: list[Doubt], verdict: Verdict) -> Doubt | None:
    """Return the doubt that the verdict stands on: of a contradicted sentence the surest contradiction."""
    if verdict == "contradicted":
        return next(doubt for doubt in doubts if doubt.verdict == "contradicted")
    return doubts[0] if doubts else None


def _row(doubt: Doubt) -> dict[str, Any]:
    return {
        "kind": doubt.kind,
        "condition": doubt.condition or None,
        "probability": round(doubt.probability, 4),
        "verdict": doubt.verdict,
        "counter": doubt.counter.text,
    }


# --- what is shared with the fit --------------------------------------------------------------------------------------


@dataclass
class Seen:
    """A study's prompt and images as the model sees them; `tokens` is None where the prediction has an error."""

    prediction: Prediction
    prompt: list[int]
    pixels: Any = None
    tokens: Any = None


def revision_of(findings: Reader) -> str:
    """Return the digests of the model's weights, and of its adapter."""
    return ":".join(filter(None, (findings.model.revision, findings.model.adapter_sha256)))


@torch.inference_mode()
def films_of(findings: Reader, batch: list[tuple[Study, str]], root: Path) -> list[Seen]:
    """Read the images of a batch of studies, and run the encoder on all of them together."""
    model = findings.model
    answerer = Answerer(model, findings.outliers, findings.limits)
    tasks = []
    for study, _ in batch:
        fitted = fit(study, model, model.max_new_tokens)
        prediction = Prediction(study.study_id, patient_id=study.patient_id)
        tasks.append(Task(fitted.study, prediction, fitted.ids))
    good = answerer.readable(tasks, root, "own", findings.insist)
    found = [Seen(task.prediction, task.prompt_ids) for task in tasks]
    if good:
        pixels = answerer.placed(
            torch.cat([task.pixels_ICHW for task in good if task.pixels_ICHW is not None])
        )
        tokens = image_tokens(model.llava, pixels)
        each, images = len(tokens) // len(pixels), 0
        for task, seen in zip(tasks, found, strict=True):
            if task in good and task.pixels_ICHW is not None:
                count = len(task.pixels_ICHW)
                seen.prompt = task.prompt_ids
                seen.pixels = pixels[images : images + count]
                seen.tokens = tokens[images * each : (images + count) * each]
                images += count
    return found


def written(findings: Reader, seen: list[Seen]) -> dict[int, str]:
    """Return the reports that the model writes itself, greedily, by the place of their study."""
    model = findings.model
    good = [i for i, film in enumerate(seen) if film.tokens is not None]
    if not good:
        return {}
    rows = generate_ids(
        model.llava,
        model,
        [seen[i].prompt for i in good],
        torch.cat([seen[i].pixels for i in good]),
        Decoding(model.max_new_tokens),
        seen=torch.cat([seen[i].tokens for i in good]),
    )
    texts = (model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows)
    return dict(zip(good, texts, strict=True))


def shown_findings(calibration: Calibration, own: list[Contrasted]) -> dict[str, tuple[str, float]]:
    """Return the conditions that the model's own report asserts, with the sentence and the probability that the film
    bears it out."""
    curve = calibration.curves.get("denial")
    shown: dict[str, tuple[str, float]] = {}
    if curve is None:
        return shown
    for sentence in own:
        for contrast in sentence.contrasts:
            if contrast.kind != "denial" or contrast.condition == NO_FINDING:
                continue
            p = 1 - curve.probability(contrast.margin, contrast.condition, sentence.hedged)
            if p > shown.get(contrast.condition, ("", 0.0))[1]:
                shown[contrast.condition] = (sentence.span.text, round(p, 4))
    return shown


def left_out(shown: dict[str, tuple[str, float]], report: str) -> list[Omission]:
    """Return what is shown and not asserted in a report, nor anything that stands for it, the surest first."""
    labels = label_report(report)
    said = {condition for condition, label in labels.items() if label != 0}
    found = [
        Omission(condition, text, p, labels.get(condition) == 0)
        for condition, (text, p) in shown.items()
        if condition not in said and not any(condition in group and group & said for group in ALIKE)
    ]
    return sorted(found, key=lambda omission: -omission.probability)
