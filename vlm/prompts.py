"""How a study is put into words. Every prompt of training, generation and scoring comes from here.

    short   <image>                        instruct   <image>
            PA. F 63.                                 Describe the findings of this chest X-ray in comparison ...
            Indication: Fever.                        View: PA. Sex: F. Age: 63. Indication: Fever.
            Prior: The lungs are clear.               Prior findings: The lungs are clear.
            Findings:                                 Findings:

`short` is for small language models trained by us, for which every token is time; `instruct` for ready-made large ones.
What a study does not say is left out. A comparison is asked for only where there is something to compare with. With a
lateral or a prior image beside the frontal one, each has its name before it ("Frontal: <image>").

`maira2` is the prompt that MAIRA-2 was trained with (Bannur, Bouzid et al., arXiv:2406.04449), for its findings
without boxes. Nothing is left out of it: what a study does not say is "N/A", and the comparison is asked for even
without a prior, whose findings are told beside its image only. Its words, and the two spaces between its turns, are
those of the checkpoint's processor and chat template; vlm/maira2.py says how far they are certain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm.study import Image, Prior, Study, is_age

if TYPE_CHECKING:
    import numpy as np

IMAGE_TOKEN = "<image>"
WORDINGS = ("short", "instruct", "maira2")
SECTIONS = ("findings", "impression", "both")
# What tokenizers take for an image, a place in it or the end of a text, which no report may say (Llama's, ChatML's,
# MAIRA-2's, and the like).
CONTROL = re.compile(
    r"</?(?:image|s|pad|unk|bos|eos|mask|obj|box|[xy]\d+|lat_im\w*|prev_im\w*)>|<\|[^<>|\s]*\|>", re.I
)
# Halves of a character that belong to no other half, and control characters: no tokenizer takes the first, and no
# report has the others.
NO_TEXT = re.compile("[\ud800-\udfff\x00-\x1f\x7f-\x9f]")
MISSING = "N/A"  # what MAIRA-2 is told of a section that a study lacks
REMOVED_WORD = re.compile(r"\bX{3,}\b")  # Open-i's de-identification; a model would learn to write it


@dataclass(frozen=True)
class PromptStyle:
    """Set what enters a prompt of a study; saved with every model, since a model answers only the prompt it
    knows."""

    wording: str = "short"  # small models are the default, and their time goes by the token
    indication: bool = True  # known before the image is read, and what a radiologist starts from
    prior: bool = True  # the prior's findings: without them "unchanged" can only be made up
    demographics: bool = False  # view, sex, age: a shortcut for small models, so on request only
    technique: bool = False  # how the films were taken, where the report says so
    comparison: bool = False  # the report's own words on what it compares with
    lateral: bool = False  # a second image, where there is one: the cost of an image
    prior_image: bool = False  # the prior's frontal image, likewise
    section: str = "findings"  # what is to be written: findings, impression, or both

    def __post_init__(self) -> None:
        if self.wording not in WORDINGS:
            raise ValueError(f"prompt wording {self.wording!r} is unknown; there are {', '.join(WORDINGS)}")
        if self.section not in SECTIONS:
            raise ValueError(f"section {self.section!r} is unknown; there are {', '.join(SECTIONS)}")
        if self.wording == "maira2" and (self.section != "findings" or self.demographics):
            raise ValueError(
                "wording maira2 asks for the findings alone, and has no place for view, sex and age: use another "
                "wording, or section findings without demographics"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict for the file of a model's settings."""
        return asdict(self)


MAIRA2 = PromptStyle("maira2", technique=True, comparison=True, lateral=True, prior_image=True)


def style_of(**options: Any) -> PromptStyle:
    """Return the style of options given by hand: `maira2` alone means all that its prompt has a place for.
    Raises ValueError."""
    style = PromptStyle(**options)
    return MAIRA2 if style == PromptStyle("maira2") else style


class Shown(NamedTuple):
    """An image that enters the prompt."""

    role: str  # Frontal | Lateral | Prior
    image: Image


def clean(text: str | None) -> str:
    """Reduce a text to one line with single spaces, without marks of removed words, control tokens and
    characters that are not text; "" if nothing is left."""
    text = " ".join(REMOVED_WORD.sub(" ", CONTROL.sub(" ", NO_TEXT.sub(" ", text or ""))).split())
    return re.sub(r" +([.,;:])", r"\1", text).strip(" ,;")


def shown_image(study: Study | Prior) -> Image | None:
    """Return the image that a one-image model sees: the first frontal one, else the first of unknown view,
    else the first. None if the study has no image."""
    order = {"PA": 0, "AP": 0, "frontal": 0, "unknown": 1}
    return min(study.images, key=lambda image: order.get(image.view, 2), default=None)


def shown_images(study: Study, style: PromptStyle | None = None) -> list[Shown]:
    """Return the images of a study that enter its prompt, in their order there: the frontal one, the first
    lateral one, the prior's frontal one. Without an image of the study itself there is none."""
    style = style or PromptStyle()
    main = shown_image(study)
    if main is None:
        return []
    shown = [Shown("Frontal", main)]
    if style.lateral:
        shown += [Shown("Lateral", i) for i in study.images if i.view == "lateral" and i is not main][:1]
    if style.prior_image and study.prior and (before := shown_image(study.prior)):
        shown.append(Shown("Prior", before))
    return shown


def prompt_for(study: Study, style: PromptStyle | None = None, *, image: bool = True) -> str:
    """Return the words before the answer, ending in "Findings:" (or "Impression:", or "ASSISTANT: " of
    `maira2`).

    They hold an image token for each of `shown_images`, or one if the study has none; `image=False` leaves
    them out (text-only training).
    """
    style = style or PromptStyle()
    shown = shown_images(study, style)
    if style.wording == "maira2":
        text = _maira2(study, style, {role for role, _ in shown})
        return text if image else text.replace(IMAGE_TOKEN, "")
    images = [IMAGE_TOKEN] if len(shown) < 2 else [f"{role}: {IMAGE_TOKEN}" for role, _ in shown]
    context = _short(study, style) if style.wording == "short" else _instruct(study, style)
    last = "Impression:" if style.section == "impression" else "Findings:"
    return "\n".join([*(images if image else ()), *context, last])


def chat_template(tokenizer: Any) -> str:
    """Return the Jinja template by which a chat server writes a message as the model knows prompts: its parts
    in their order, a line for each image, and nothing of the language model's own chat. The start token is
    written out where the tokenizer would put one, for servers tokenize the rendered text without special
    tokens."""
    marked, plain = (tokenizer("x", add_special_tokens=special)["input_ids"] for special in (True, False))
    before = tokenizer.decode(marked[: len(marked) - len(plain)])
    return (
        f"{before}{{% for message in messages %}}{{% if message.content is string %}}{{{{ message.content }}}}"
        "{% else %}{% for part in message.content %}"
        f"{{{{ '{IMAGE_TOKEN}\\n' if part.type == 'image' else part.text }}}}"
        "{% endfor %}{% endif %}{% endfor %}"
    )


def answer_for(study: Study, style: PromptStyle | None = None) -> str:
    """Return what the model is to write after the prompt; "" if the study lacks a section that is asked
    for."""
    style = style or PromptStyle()
    section = style.section
    findings, impression = clean(study.findings), clean(study.impression)
    if style.wording == "maira2":
        return findings  # its prompt ends in a space
    if section == "both":
        return f" {findings}\nImpression: {impression}" if findings and impression else ""
    text = findings if section == "findings" else impression
    return f" {text}" if text else ""


def fields_of(section: str) -> tuple[str, ...]:
    """Return the fields of studies and predictions that make up a section."""
    return ("findings", "impression") if section == "both" else (section,)


def sections_of(text: str, section: str) -> dict[str, str]:
    """Split a generated text into {"findings": ..., "impression": ...}, those that were asked for."""
    if section != "both":
        return {section: text.strip()}
    findings, _, impression = text.partition("Impression:")
    return {"findings": findings.strip(), "impression": impression.strip()}


def with_images_of(study: Study, other: Study) -> Study:
    """Return `study` with the images of `other`, for the baselines: the prior's findings stay, its image
    goes."""
    prior = study.prior
    if prior or other.prior:
        before = prior or Prior()
        prior = replace(before, images=other.prior.images if other.prior else [])
    return replace(study, images=other.images, prior=prior)


def shown_with(studies: Iterable[Study], images: str, seed: int = 0) -> Iterable[Study]:
    """Return the studies as the model is shown them: with `images` "shuffled" each has another's images, in a
    `derangement` drawn with `seed`; else they are as they are."""
    if images != "shuffled":
        return studies
    own = list(studies)
    order = derangement(len(own), seed)
    return [with_images_of(study, own[order[i]]) for i, study in enumerate(own)]


def derangement(n: int, seed: int = 0) -> list[int]:
    """Return a random order in which nothing is in its own place (n = 1 has none: it stays). The positions
    are shuffled and each takes the next one's, so that every study's image is used once."""
    import torch

    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    result = [0] * n
    for place, following in zip(order, order[1:] + order[:1], strict=True):
        result[place] = following
    return result


def dropped_out(study: Study, style: PromptStyle, probability: float, rng: np.random.Generator) -> Study:
    """Return the study without some of what a user's study may lack.

    Indication, technique, comparison, view, age, sex, lateral image, prior image and prior findings are each
    left out with `probability`, if the style shows them. The draws are the same in number whatever a study
    has.
    """
    lost = dict(
        zip(
            (
                "indication",
                "technique",
                "comparison",
                "view",
                "age",
                "sex",
                "lateral",
                "prior_image",
                "prior",
            ),
            rng.random(9) < probability,
            strict=True,
        )
    )
    gone: dict[str, Any] = {
        k: None for k in ("indication", "technique", "comparison", "age", "sex") if lost[k]
    }
    images, prior = study.images, study.prior
    main = shown_image(study)
    if lost["lateral"]:
        images = [i for i in images if i is main or i.view != "lateral"]
    if lost["view"]:
        images = [replace(i, view="unknown") if i is main and i.view != "lateral" else i for i in images]
    if prior and (lost["prior"] or lost["prior_image"]):
        left = replace(
            prior,
            images=[] if lost["prior_image"] else prior.images,
            findings=None if lost["prior"] else prior.findings,
        )
        prior = left if left.images or left.findings else None
    return replace(study, images=images, prior=prior, **gone)


def _prior_findings(study: Study, style: PromptStyle) -> str:
    return clean(study.prior.findings) if style.prior and study.prior else ""


def _short(study: Study, style: PromptStyle) -> list[str]:
    lines = []
    if style.demographics:
        person = " ".join(filter(None, (clean(study.sex), _age(study))))
        lines.append(" ".join(f"{part}." for part in (_view(study), person) if part))
    lines += _context(study, style)
    lines.append(_field("Prior", _prior_findings(study, style)))
    return [line for line in lines if line]


def _instruct(study: Study, style: PromptStyle) -> list[str]:
    before = _prior_findings(study, style)
    compared = before or any(role == "Prior" for role, _ in shown_images(study, style))
    task = {
        "findings": "Describe the findings of this chest X-ray",
        "impression": "Give the impression of this chest X-ray",
        "both": "Describe the findings of this chest X-ray and give the impression",
    }[style.section]
    task += " in comparison with the prior study." if compared else "."
    parts = []
    if style.demographics:
        parts += [_field("View", _view(study)), _field("Sex", study.sex), _field("Age", _age(study))]
    parts += _context(study, style)
    context = " ".join(part for part in parts if part)
    return [line for line in (task, context, _field("Prior findings", before)) if line]


def _maira2(study: Study, style: PromptStyle, roles: set[str]) -> str:
    """Each image after its name, then the words of the study, each after its own; no full stops are added."""
    if not roles & {"Lateral", "Prior"}:
        told = f"Given the current frontal image only{IMAGE_TOKEN}"
    else:
        told = f"Given the current frontal image{IMAGE_TOKEN}"
        if "Lateral" in roles:
            told += f"{'' if 'Prior' in roles else ' and'} the current lateral image{IMAGE_TOKEN}"
        if "Prior" in roles:
            before = _prior_findings(study, style) or MISSING
            told += f" and the prior frontal image{IMAGE_TOKEN} PRIOR_REPORT: {before}"
    told += " Provide a description of the findings in the radiology study in comparison to the prior frontal image."
    for name in ("indication", "technique", "comparison"):
        words = clean(getattr(study, name)) if getattr(style, name) else ""
        told += f" {name.upper()}: {words or MISSING}"
    return (
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  "
        f"USER:  {told}  ASSISTANT: "
    )


def _context(study: Study, style: PromptStyle) -> list[str]:
    names = [name for name in ("indication", "technique", "comparison") if getattr(style, name)]
    return [_field(name.capitalize(), getattr(study, name)) for name in names]


def _field(name: str, text: str | None) -> str:
    text = clean(text)
    if not text:
        return ""
    return f"{name}: {text}" if text[-1] in ".?!" else f"{name}: {text}."


def _age(study: Study) -> str:
    return "" if study.age is None or study.age != study.age or not is_age(study.age) else f"{study.age:.0f}"


def _view(study: Study) -> str:
    image = shown_image(study)
    return "" if image is None or image.view == "unknown" else clean(image.view)
