"""CRIMSON (Baharoon et al. 2026, arXiv 2603.06183): errors by clinical significance, told by a language model.

Prompt, repair of what the model answers, and the score are those of its authors' package `crimson-score` (MIT), whose
code runs; only the call of the model is ours, so that it goes to the server of --server and nowhere else. Age and
indication of the study go with the reports where the study has them. The model of the authors was trained without the
guidelines of the prompt, and gets the prompt without them.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from eval.judges.answers import digest
from eval.judges.panel import Judge, Missing, Opened, Panel, Tell, Verdicts, family_of, safe
from eval.judges.server import Message, Unreadable, bare
from eval.scores.family import Reports, Study
from eval.scores.readers import ScoreError, missing
from eval.signature import version

INSTALL = "pip install --no-deps 'crimson-score>=0.2,<0.3'"
# A model of this name was trained without the guidelines.
TRAINED = "medgemma-4b-it-crimson"
LISTS = ("reference_findings", "predicted_findings", "matched_findings")
ERRORS = ("false_findings", "missing_findings", "attribute_errors")
PARAMETERS = ("self", "reference_findings", "predicted_findings", "patient_context", "include_guidelines")


def scorer() -> type[Any]:
    """Return the package's scorer with another client than OpenAI's. Raises Missing."""
    try:
        from CRIMSON import CRIMSONScore
    except ImportError as error:
        raise Missing(f"needs the package {error.name or 'crimson-score'}", INSTALL) from None
    taken = tuple(inspect.signature(CRIMSONScore.evaluate).parameters)
    if taken != PARAMETERS:
        raise Missing(f"crimson-score {version('crimson-score')} is another version than we know", INSTALL)

    class Scorer(CRIMSONScore):  # type: ignore[misc]
        """Its own constructor would make a client of OpenAI's, or fetch a model."""

        def __init__(self, answer: Callable[[list[Message]], str]) -> None:
            def create(**asked: Any) -> Any:
                message = SimpleNamespace(content=answer(asked["messages"]))
                return SimpleNamespace(choices=[SimpleNamespace(message=message)])

            completions = SimpleNamespace(create=create)
            self.client = SimpleNamespace(chat=SimpleNamespace(completions=completions))
            self.api, self.model_name = "openai", "local"

    return Scorer


def context_of(study: Study) -> dict[str, str]:
    """Return what the prompt says of the patient: age in years, and the indication."""
    age, indication = study.get("age"), study.get("indication")
    found = {}
    if isinstance(age, int | float) and not missing(age) and not isinstance(age, bool):
        found["Age"] = f"{age:g}"
    elif isinstance(age, str) and age.strip():
        found["Age"] = age.strip()
    if isinstance(indication, str) and indication.strip():
        found["Indication"] = indication.strip()
    return found


def result_of(
    made: type[Any],
    answer: Callable[[list[Message]], str],
    reference: str,
    prediction: str,
    context: Mapping[str, str],
    guidelines: bool,
) -> float:
    """Return CRIMSON of a study, above -1 and at most 1. Raises Unreadable for an answer of another form."""
    try:
        result = made(answer).evaluate(reference, prediction, dict(context) or None, guidelines)
        said, value = result["raw_evaluation"], float(result["crimson_score"])
    except (Unreadable, ScoreError):
        raise
    # Its messages hold the answer, which repeats the reports.
    except Exception as error:
        raise Unreadable(f"not what CRIMSON reads ({type(error).__name__})") from None
    # It would take an empty object for a perfect report.
    if not _sound(said) or not math.isfinite(value):
        raise Unreadable("JSON of another form than CRIMSON's")
    return value


def _sound(said: Any) -> bool:
    if not isinstance(said, dict) or not isinstance(said.get("errors"), dict):
        return False
    return all(isinstance(said.get(name), list) for name in LISTS) and all(
        isinstance(said["errors"].get(name), list) for name in ERRORS
    )


def _open(panel: Panel) -> Opened:
    made, guidelines = scorer(), TRAINED not in panel.model.lower()
    prompts = [_prompt(made, context, guidelines) for context in ({}, {"Age": "", "Indication": ""})]
    prompts_digest = digest(prompts)
    ask = panel.asker("crimson", prompts_digest)

    def one(study: Study, reference: str, prediction: str) -> float:
        given = (reference, prediction, context_of(study), guidelines)

        # Only what gives a score is kept on disk.
        def read(text: str) -> str:
            result_of(made, lambda messages: bare(text), *given)
            return bare(text)

        return result_of(made, lambda messages: ask(messages, read), *given)

    def judge(reports: Reports, tell: Tell) -> Verdicts:
        found = panel.each_study(
            len(reports),
            lambda i: one(reports.studies[i], reports.references[i], reports.predictions[i]),
            tell,
        )
        told = sorted({name.lower() for study in reports.studies for name in context_of(study)})
        return Verdicts(
            np.array([np.nan if value is None else value for value in found]).reshape(-1, 1),
            np.array([value is not None for value in found]),
            {
                "package": version("crimson-score"), "prompts": prompts_digest, "model": safe(panel.model),
                "guidelines": "yes" if guidelines else "no", "context": "+".join(told) or "none", "temperature": "0",
            },
        )  # fmt: skip

    return judge


def _prompt(made: type[Any], context: Mapping[str, str], guidelines: bool) -> list[Message]:
    """Return what the package asks of two empty reports. Raises Missing if it asks nothing."""
    asked: list[Message] = []

    def note(messages: list[Message]) -> str:
        asked.extend(messages)
        raise Unreadable("a rehearsal")

    with contextlib.suppress(Unreadable):
        result_of(made, note, "", "", context, guidelines)
    if not asked:
        raise Missing(f"crimson-score {version('crimson-score')} is another version than we know", INSTALL)
    return asked


JUDGE = Judge("crimson", "CRIMSON", _open, asks=True)
# above -1 and at most 1
FAMILY = family_of(JUDGE, kind="number")
