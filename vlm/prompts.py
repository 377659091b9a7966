"""How a study is put into words. Every prompt of training, generation and scoring comes from here.

    short   <image>                        instruct   <image>
            PA. F 63.                                 Describe the findings of this chest X-ray in comparison ...
            Indication: Fever.                        View: PA. Sex: F. Age: 63. Indication: Fever.
            Prior: The lungs are clear.               Prior findings: The lungs are clear.
            Findings:                                 Findings:

`short` is for small language models trained by us, for which every token is time; `instruct` for ready-made large ones.
What a study does not say is left out. A comparison is asked for only where prior findings are given.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from vlm.study import Image, Study

IMAGE_TOKEN = "<image>"
WORDINGS = ("short", "instruct")
# What tokenizers take for an image or the end of a text, which no report may say (Llama's, ChatML's, and the like).
CONTROL = re.compile(r"</?(?:image|s|pad|unk|bos|eos|mask)>|<\|[^<>|\s]*\|>", re.I)
REMOVED_WORD = re.compile(r"\bX{3,}\b")  # Open-i's de-identification; a model would learn to write it


@dataclass(frozen=True)
class PromptStyle:
    """What of a study enters its prompt; saved with every model, since a model answers only the prompt it knows."""

    wording: str = "short"  # small models are the default, and their time goes by the token
    indication: bool = True  # known before the image is read, and what a radiologist starts from
    prior: bool = True  # the prior's findings: without them "unchanged" can only be made up
    demographics: bool = False  # view, sex, age: a shortcut for small models, so on request only

    def __post_init__(self):
        if self.wording not in WORDINGS:
            raise ValueError(f"prompt wording {self.wording!r} is unknown; there are {', '.join(WORDINGS)}")

    def to_json(self) -> dict:
        return asdict(self)


def clean(text: str | None) -> str:
    """One line, single spaces, without the marks of removed words and without control tokens; "" for nothing."""
    text = " ".join(REMOVED_WORD.sub(" ", CONTROL.sub(" ", text or "")).split())
    return re.sub(r" +([.,;:])", r"\1", text).strip(" ,;")


def shown_image(study: Study) -> Image | None:
    """The image a one-image model is shown: the first frontal one, else the first whose view is unknown, else the
    first. None if the study has no image."""
    order = {"PA": 0, "AP": 0, "frontal": 0, "unknown": 1}
    return min(study.images, key=lambda image: order.get(image.view, 2), default=None)


def prompt_for(study: Study, style: PromptStyle | None = None, *, image: bool = True) -> str:
    """The words before the findings, ending in "Findings:"; `image=False` leaves out the image (text-only training)."""
    style = style or PromptStyle()
    context = _short(study, style) if style.wording == "short" else _instruct(study, style)
    return "\n".join([IMAGE_TOKEN] * image + context + ["Findings:"])


def answer_for(study: Study) -> str:
    """What the model is to write after the prompt; "" if the study has no findings."""
    findings = clean(study.findings)
    return f" {findings}" if findings else ""


def _short(study: Study, style: PromptStyle) -> list[str]:
    lines = []
    if style.demographics:
        person = " ".join(filter(None, (study.sex, _age(study))))
        lines.append(" ".join(f"{part}." for part in (_view(study), person) if part))
    if style.indication:
        lines.append(_field("Indication", study.indication))
    if style.prior and study.prior:
        lines.append(_field("Prior", study.prior.findings))
    return [line for line in lines if line]


def _instruct(study: Study, style: PromptStyle) -> list[str]:
    prior = clean(study.prior.findings) if style.prior and study.prior else ""
    task = "Describe the findings of this chest X-ray"
    task += " in comparison with the prior study." if prior else "."
    parts = []
    if style.demographics:
        parts += [_field("View", _view(study)), _field("Sex", study.sex), _field("Age", _age(study))]
    if style.indication:
        parts.append(_field("Indication", study.indication))
    context = " ".join(part for part in parts if part)
    return [line for line in (task, context, _field("Prior findings", prior)) if line]


def _field(name: str, text: str | None) -> str:
    text = clean(text)
    if not text:
        return ""
    return f"{name}: {text}" if text[-1] in ".?!" else f"{name}: {text}."


def _age(study: Study) -> str:
    return "" if study.age is None else f"{study.age:.0f}"


def _view(study: Study) -> str:
    image = shown_image(study)
    return "" if image is None or image.view == "unknown" else image.view
