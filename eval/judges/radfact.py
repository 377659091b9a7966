"""RadFact (Bannur et al. 2024, MAIRA-2, arXiv 2406.04449), its logical scores: phrases, then entailment both ways.

A language model splits both reports into phrases of one statement each. It is then asked of every phrase, one at a
time, whether the phrases of the other report entail it. Precision is the share of the prediction's phrases that the
reference entails, recall that of the reference's phrases that the prediction entails; both are means over studies, and
F1 is the harmonic mean of the two means. A report without phrases has no share, and is left out of that mean.

The prompts are our own, and so is the choice of the model: values compare with others of the same signature alone, not
with published ones. The published tool counts a question without an answer as "not entailed"; here it costs the study.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.judges.answers import Asker, digest
from eval.judges.panel import Judge, Opened, Panel, Tell, Verdicts, add_mean, safe, verdicts_of
from eval.judges.server import Message, Unreadable, object_in
from eval.scores.family import Family, Reports
from eval.scores.sheet import Sheet, ratio
from eval.signature import signature

SPLIT = """\
You split the findings of a chest X-ray report into single statements.

- Each statement says one thing about one structure, finding or device, and can be checked on the image by itself.
- Findings that a sentence joins become statements of their own; each keeps the side, place, size, certainty and change
  that the sentence gives it.
- Statements that something is normal or absent are kept, one for each thing that is absent.
- What cannot be seen on the image is left out: recommendations, history, the technique, who was told.
- Use the words of the report. Add nothing.

Answer with one JSON object: {"phrases": ["...", "..."]}."""
ENTAIL = """\
You compare statements about one chest X-ray. You get the statements of a report, and one more statement. Decide whether
the report entails that statement: whether whoever believes the report must also believe it.

- The same meaning in other words is entailed, and so is a statement that says less than the report.
- A statement is not entailed if it gives another side, place, size, certainty or change, says more than the report, or
  contradicts it.
- What the report does not mention is not entailed, unless it follows: normal lungs have no consolidation.

Answer with one JSON object: {"evidence": [statements of the report that show it], "entailed": true or false}."""
SPLIT_EXAMPLES = (
    (
        "There is a small left pleural effusion with adjacent atelectasis, unchanged. No pneumothorax or focal "
        "consolidation. Follow-up in two weeks is advised.",
        [
            "small left pleural effusion, unchanged",
            "left atelectasis adjacent to the effusion, unchanged",
            "no pneumothorax",
            "no focal consolidation",
        ],
    ),
    (
        "Heart size is normal. The endotracheal tube ends 4 cm above the carina.",
        ["heart size is normal", "endotracheal tube ends 4 cm above the carina"],
    ),
)
_REPORT = ["small left pleural effusion", "the heart is mildly enlarged", "no pneumothorax"]
ENTAIL_EXAMPLES: tuple[tuple[list[str], str, list[str], bool], ...] = (
    (_REPORT, "there is fluid in the left pleural space", ["small left pleural effusion"], True),
    (_REPORT, "large left pleural effusion", [], False),
    (_REPORT, "cardiomegaly", ["the heart is mildly enlarged"], True),
    (_REPORT, "no consolidation", [], False),
)
TEXTS = {"type": "array", "items": {"type": "string"}}
PHRASES = {
    "type": "object", "properties": {"phrases": TEXTS}, "required": ["phrases"], "additionalProperties": False,
}  # fmt: skip
ENTAILED = {
    "type": "object", "properties": {"evidence": TEXTS, "entailed": {"type": "boolean"}},
    "required": ["evidence", "entailed"], "additionalProperties": False,
}  # fmt: skip
VERSION = digest(SPLIT, ENTAIL, SPLIT_EXAMPLES, ENTAIL_EXAMPLES, PHRASES, ENTAILED)
# More phrases than any report has: the model repeats itself.
MOST = 300


def to_split(report: str) -> list[Message]:
    """Return the question for the phrases of a report."""
    shown = [(text, {"phrases": phrases}) for text, phrases in SPLIT_EXAMPLES]
    return _chat(SPLIT, shown, report)


def to_entail(premises: Sequence[str], phrase: str) -> list[Message]:
    """Return the question whether a report of these phrases entails a phrase."""
    shown = [
        (_pair(report, statement), {"evidence": evidence, "entailed": entailed})
        for report, statement, evidence, entailed in ENTAIL_EXAMPLES
    ]
    return _chat(ENTAIL, shown, _pair(premises, phrase))


def _pair(premises: Sequence[str], phrase: str) -> str:
    return json.dumps({"report": list(premises), "statement": phrase}, ensure_ascii=False)


def _chat(system: str, shown: Sequence[tuple[str, Any]], question: str) -> list[Message]:
    messages = [{"role": "system", "content": system}]
    for asked, answer in shown:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)})
    return [*messages, {"role": "user", "content": question}]


def phrases_in(answer: str) -> list[str]:
    """Return the phrases of an answer. Raises Unreadable."""
    found = object_in(answer).get("phrases")
    if not isinstance(found, list) or not all(isinstance(phrase, str) for phrase in found):
        raise Unreadable("no list of phrases")
    if len(found) > MOST:
        raise Unreadable("phrases without end")
    return [phrase.strip() for phrase in found if phrase.strip()]


def entailed_in(answer: str) -> bool:
    """Tell what an answer decides. Raises Unreadable."""
    found = object_in(answer).get("entailed")
    if not isinstance(found, bool):
        raise Unreadable("no decision")
    return found


def one_study(ask: Asker, reference: str, prediction: str) -> tuple[float, float]:
    """Return logical precision and recall of a study; NaN for a side without phrases. Raises Unreadable."""
    sides = [
        ask(to_split(text), phrases_in, PHRASES) if text.strip() else [] for text in (reference, prediction)
    ]
    recall, precision = (
        # Nothing entails nothing, which need not be asked.
        np.mean([bool(other) and ask(to_entail(other, phrase), entailed_in, ENTAILED) for phrase in own])
        if own
        else np.nan
        for own, other in (sides, sides[::-1])
    )
    return float(precision), float(recall)


def _open(panel: Panel) -> Opened:
    ask = panel.asker("radfact", VERSION)

    def judge(reports: Reports, tell: Tell) -> Verdicts:
        found = panel.each_study(
            len(reports), lambda i: one_study(ask, reports.references[i], reports.predictions[i]), tell
        )
        return Verdicts(
            np.array([(np.nan, np.nan) if one is None else one for one in found]).reshape(-1, 2),
            np.array([one is not None for one in found]),
            {"prompts": VERSION, "model": safe(panel.model), "temperature": "0"},
        )

    return judge


def _f1(sums: np.ndarray) -> np.ndarray:
    """Return the harmonic mean (...) of mean precision and mean recall, of sums (..., 5)."""
    precision, recall = ratio(sums[..., 0:2]), ratio(sums[..., 2:4])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(precision + recall == 0, 0.0, 2 * precision * recall / (precision + recall))


def _add(sheet: Sheet, reports: Reports) -> None:
    found = verdicts_of(reports, JUDGE.name)
    if not found:
        return
    values_N2, judged_N = found.values_NK, found.judged_N
    there_N2 = ~np.isnan(values_N2)
    columns = [np.where(there_N2, values_N2, 0.0)[:, 0], there_N2[:, 0]]
    columns += [np.where(there_N2, values_N2, 0.0)[:, 1], there_N2[:, 1], judged_N]
    where = sheet.columns(np.stack(columns, axis=1))
    lack: dict[str, Any] = (
        {"whole": len(judged_N), "over": lambda sums: sums[..., 4]} if not judged_N.all() else {}
    )
    sheet.add(
        "radfact/f1", signature("radfact-f1", **found.choices), _f1, where, title="RadFact F1", headline=True,
        studies=lambda sums: sums[..., 4], **lack,
    )  # fmt: skip
    for i, name in enumerate(("precision", "recall")):
        add_mean(sheet, f"radfact/{name}", values_N2[:, i], found, title=f"RadFact {name}")


JUDGE = Judge("radfact", "RadFact", _open, asks=True)
FAMILY = Family(
    "radfact", "RadFact (logical)", _add, known=("radfact/f1", "radfact/precision", "radfact/recall")
)
