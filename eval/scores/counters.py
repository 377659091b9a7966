"""Counter-sentences: what a sentence of a report would say if it were wrong about one thing.

"Small left pleural effusion." has the counters "Small right pleural effusion." (side), "Large left pleural effusion."
(extent) and "No left pleural effusion." (denial). A film bears a sentence out if it makes it likelier than its counters
(`vlm/verify.py`); one of them in place of a true sentence is an error to be found (`eval/planted.py`).

Words alone decide, the same everywhere. Whether a counter says what it should is checked by the labeller `rules`: a
side, a zone, an extent or a change leaves the conditions as they are, a denial or an invention turns one over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, get_args

from eval.scores.labels import NO_FINDING, SUPPORT_DEVICES, label_report

CounterKind = Literal["side", "zone", "extent", "denial", "invented", "change"]
COUNTER_KINDS: tuple[CounterKind, ...] = get_args(CounterKind)


class Counter(NamedTuple):
    """A sentence as it would be if it were wrong about one thing."""

    kind: CounterKind
    text: str
    condition: str | None = None
    """What a denial denies and an invention asserts, one of the 14 conditions."""


def counters(sentence: str) -> list[Counter]:
    """Return what `sentence` would be with another side, zone, extent or change, with its findings denied, and with
    what it denies asserted; each text once, in the order of COUNTER_KINDS.

    A sentence of which nothing of this can be said ("Comparison is made to the prior study.") has none.
    """
    sentence = " ".join(sentence.split())
    labels = label_report(sentence)
    found: dict[str, Counter] = {}
    rewritings: tuple[tuple[CounterKind, Callable[[str], Iterator[str]]], ...] = (
        ("side", _sides), ("zone", _zones), ("extent", _extents),
    )  # fmt: skip
    for kind, rewrite in rewritings:
        if any(label != 0 for condition, label in labels.items() if condition != NO_FINDING):
            for text in rewrite(sentence):
                if text != sentence and label_report(text) == labels:
                    found.setdefault(text, Counter(kind, text))
    for condition, label in labels.items():
        if condition == NO_FINDING:
            continue
        if label == 1:
            for text in _denials(condition, sentence):
                found.setdefault(text, Counter("denial", text, condition))
    for condition in denied(sentence, labels):
        for text in assertions(condition):
            found.setdefault(text, Counter("invented", text, condition))
    of_findings = any(v != 0 for c, v in labels.items() if c not in (NO_FINDING, SUPPORT_DEVICES))
    for text in _changes(sentence) if of_findings else ():
        if text != sentence and label_report(text) == labels:
            found.setdefault(text, Counter("change", text))
    return sorted(found.values(), key=lambda c: COUNTER_KINDS.index(c.kind))


def denied(sentence: str, labels: dict[str, int] | None = None) -> list[str]:
    """Return the conditions that a sentence denies; "the lungs are clear" denies those of the lungs."""
    labels = label_report(sentence) if labels is None else labels
    found = [c for c, label in labels.items() if label == 0 and c in _NOUN and c != SUPPORT_DEVICES]
    if _CLEAR_LUNGS.search(sentence):
        found += [c for c in _OF_LUNGS if c not in labels]
    return found


# --- exchanges of words -----------------------------------------------------------------------------------------------


def _exchange(sentence: str, pattern: re.Pattern[str], words: dict[str, str]) -> str:
    """Return `sentence` with each match replaced by its word, written as the match is: "Left" -> "Right"."""

    def other(match: re.Match[str]) -> str:
        return _as_written(words[match.group().lower()], match.group())

    return _articles(pattern.sub(other, sentence))


def _as_written(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w+))")


def _articles(sentence: str) -> str:
    """Write "a" or "an" as the word that follows asks for."""
    return _ARTICLE.sub(
        lambda m: m[1] + ("n " if m[2][0].lower() in "aeiou" and not m[2].lower().startswith("uni") else " "),
        sentence,
    )


# Names that keep their side: the heart's chambers, vessels and bronchi that both sides have.
_SIDE = re.compile(
    r"\b(?:left|right)(?![- ](?:heart|atri|ventric|main|coronary|upper quadrant|pulmonary (?:arter|vein)|aortic))"
    r"(?=[- ]|[.,;:)]|$|sided|ward)",
    re.IGNORECASE,
)
_MIDDLE = re.compile(r"\bright middle lobes?\b", re.IGNORECASE)
_LINGULA = re.compile(r"\b(?:the )?(?:left )?lingula\b", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "right": "left"}
_BOTH = re.compile(r"\b(?:bilateral(?:ly)?|bibasilar|bibasal|biapical)\b", re.IGNORECASE)
_ONE_OF_BOTH = {"bilateral": "{}", "bibasilar": "{} basilar", "bibasal": "{} basal", "biapical": "{} apical"}
_PLURAL = re.compile(
    r"\b(?:effusion|opacit(?=ies)|consolidation|pneumothora(?=ces)|nodule|infiltrate|fracture|mass(?=es))"
    r"(?:s|ies|ces|es)\b"
)
_ARE = re.compile(r"\b(effusion|opacity|consolidation|pneumothorax|nodule|infiltrate|fracture|mass) are\b")
_SINGULAR = (("opacities", "opacity"), ("pneumothoraces", "pneumothorax"), ("masses", "mass"))


def _sides(sentence: str) -> Iterator[str]:
    """The other side throughout; of both sides, either one."""
    if _MIDDLE.search(sentence):
        yield _MIDDLE.sub(lambda m: _as_written("lingula", m.group()), sentence)
        return
    if _LINGULA.search(sentence):
        yield _LINGULA.sub(lambda m: _as_written("the right middle lobe", m.group()), sentence)
        return
    if _SIDE.search(sentence):
        yield _exchange(sentence, _SIDE, _OTHER_SIDE)
    both = _BOTH.search(sentence)
    if both and both.group().lower() in _ONE_OF_BOTH and not _SIDE.search(sentence):
        for side in ("left", "right"):
            word = _as_written(_ONE_OF_BOTH[both.group().lower()].format(side), both.group())
            rest = _PLURAL.sub(lambda m: _singular(m.group()), sentence[both.end() :])
            start = re.sub(r"\b([Tt])here are (?=[\w ]*$)", r"\1here is a ", sentence[: both.start()])
            yield _articles(_ARE.sub(r"\1 is", start + word + rest))


def _singular(word: str) -> str:
    return dict(_SINGULAR).get(word, word.removesuffix("s"))


_LUNG = r"(?=[- ](?:lobes?|lobar|lungs?|zones?|hemithorax|fields?|ribs?)\b)"
_ZONE = re.compile(
    rf"\b(?:upper|lower|mid|middle){_LUNG}|\b(?:basilar|basal|apical)\b"
    r"|(?<!cardiac )(?<!heart )\b(?:base|bases|apex|apices)\b",
    re.IGNORECASE,
)
_OTHER_ZONES = (
    {"upper": "lower", "lower": "upper", "mid": "lower", "middle": "lower", "basilar": "apical", "basal": "apical",
     "apical": "basilar", "base": "apex", "bases": "apices", "apex": "base", "apices": "bases"},
    {"upper": "mid", "lower": "mid", "mid": "upper", "middle": "upper", "basilar": "apical", "basal": "apical",
     "apical": "basilar", "base": "apex", "bases": "apices", "apex": "base", "apices": "bases"},
)  # fmt: skip
_ZONES = re.compile(r"\b(?:upper|lower|mid|middle) (?:and|or|and/or|to) (?:upper|lower|mid|middle)\b", re.I)
_MID_LOBE = re.compile(r"\b(?:mid) lobes?\b", re.IGNORECASE)


def _zones(sentence: str) -> Iterator[str]:
    named = {match.group().lower() for match in _ZONE.finditer(sentence)}
    if len(named) > 1 or _ZONES.search(sentence):
        return
    for words in _OTHER_ZONES:
        other = _exchange(sentence, _ZONE, words)
        if not _MID_LOBE.search(other):  # there is a middle lobe on the right alone
            yield other


_NO_EXTENT = r"(?![- ](?:bowel|vessels?|airways?|bore|calibers?|body|amount of (?:bowel )?gas|hiatal))"
_EXTENT = re.compile(
    r"\b(?:(?:small|mild|moderate)[- ]to[- ](?:moderate|large|severe)|tiny|trace|minimal|small|slight|mild|moderate"
    r"|moderately|large|severe|marked|massive|extensive|mildly|slightly|minimally|severely|markedly)\b"
    + _NO_EXTENT,
    re.IGNORECASE,
)
_SIZED = re.compile(
    r"effusion|pneumothora|opacit|nodule|mass|consolidation|hernia|collection|in size|sized", re.I
)
_MORE = {
    "tiny": "large", "trace": "large", "minimal": "severe", "small": "large", "slight": "severe", "mild": "severe",
    "mildly": "severely", "slightly": "severely", "minimally": "severely", "large": "small", "massive": "small",
    "extensive": "minimal", "severe": "mild", "severely": "mildly", "marked": "mild", "markedly": "mildly",
}  # fmt: skip


def _extents(sentence: str) -> Iterator[str]:
    """Each word of extent by its opposite; a moderate one by both."""
    for match in _EXTENT.finditer(sentence):
        word = match.group().lower()
        sized = _SIZED.search(sentence)
        others: tuple[str, ...]
        if re.search("[- ]to[- ]", word):
            less = word.startswith(("small", "mild")) and word.endswith("moderate")
            others = ("large" if sized else "severe",) if less else ("small" if sized else "mild",)
        elif word.startswith("moderate"):
            others = ("small", "large") if sized and word == "moderate" else ("mild", "severe")
            others = tuple(other + "ly" for other in others) if word.endswith("ly") else others
        else:
            others = ("large" if sized and word == "minimal" else _MORE[word],)
        for other in others:
            yield _articles(
                sentence[: match.start()] + _as_written(other, match.group()) + sentence[match.end() :]
            )


# --- denials and inventions -------------------------------------------------------------------------------------------

_NOUN = {
    "Enlarged Cardiomediastinum": "mediastinal widening", "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "opacity", "Lung Lesion": "nodule", "Edema": "pulmonary edema", "Consolidation": "consolidation",
    "Pneumonia": "pneumonia", "Atelectasis": "atelectasis", "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion", "Pleural Other": "pleural thickening", "Fracture": "fracture",
    SUPPORT_DEVICES: "lines or tubes",
}  # fmt: skip
_DENIED = {
    "Enlarged Cardiomediastinum": ("The mediastinal contours are normal.",),
    "Cardiomegaly": ("The heart is normal in size.",),
    "Lung Opacity": ("The lungs are clear.",),
    "Lung Lesion": ("No pulmonary nodule.", "The lungs are clear."),
    "Consolidation": ("No focal consolidation.", "The lungs are clear."),
    "Pneumonia": ("No focal consolidation.", "The lungs are clear."),
    "Atelectasis": ("The lungs are clear.",),
    "Pneumothorax": ("No pleural effusion or pneumothorax.",),
    "Pleural Effusion": ("No pleural effusion or pneumothorax.",),
    "Pleural Other": ("No pleural effusion or pneumothorax.",),
    "Fracture": ("No rib fracture.", "The bones are intact."),
}
"""How reports say so, each in its own words: a model finds a wording that no report has unlikely, whatever the film."""
_OF_LUNGS = ("Lung Opacity", "Consolidation", "Atelectasis", "Edema", "Lung Lesion")
_CLEAR_LUNGS = re.compile(
    r"\b(?:clear lungs?|lungs? (?:is|are|remains?|appears?)(?: \w+){0,3} clear|lungs? (?:is|are) normal)(?! of)",
    re.I,
)
_SIDED = frozenset(_NOUN) - {"Enlarged Cardiomediastinum", "Cardiomegaly", "Edema", SUPPORT_DEVICES}
_ASSERTED = {
    "Enlarged Cardiomediastinum": ("The mediastinum is widened.", "Mediastinal widening."),
    "Cardiomegaly": ("The heart is mildly enlarged.", "Moderate cardiomegaly."),
    "Lung Opacity": ("Hazy opacity in the {side} lower lung.", "Hazy opacity in the {side} upper lung."),
    "Lung Lesion": ("Nodule in the {side} upper lung.", "Nodule in the {side} lower lung."),
    "Edema": ("Mild pulmonary edema.", "Moderate pulmonary edema."),
    "Consolidation": ("Consolidation in the {side} lower lung.", "Consolidation in the {side} upper lung."),
    "Pneumonia": ("Consolidation in the {side} lower lung consistent with pneumonia.",),
    "Atelectasis": ("{Side} basilar atelectasis.",),
    "Pneumothorax": ("Small {side} pneumothorax.", "Large {side} pneumothorax."),
    "Pleural Effusion": ("Small {side} pleural effusion.", "Large {side} pleural effusion."),
    "Pleural Other": ("{Side} apical pleural thickening.",),
    "Fracture": ("{Side} rib fracture.",),
}


def assertions(condition: str) -> list[str]:
    """Return sentences that assert a condition, on either side where it has one; none for devices."""
    return [
        text.format(side=side, Side=side.capitalize())
        for text in _ASSERTED.get(condition, ())
        for side in (("left", "right") if "{" in text else ("",))
    ]


def _denials(condition: str, sentence: str) -> Iterator[str]:
    """The condition denied, on the side that the sentence names and altogether."""
    sides = {match.group().lower() for match in _SIDE.finditer(sentence)}
    noun = _NOUN[condition]
    if condition in _SIDED and len(sides) == 1:
        yield f"No {sides.pop()} {noun}."
    yield f"No {noun}."
    yield from _DENIED.get(condition, ())


# --- changes ----------------------------------------------------------------------------------------------------------

COMPARED = re.compile(
    r"\b(?:prior|previous(?:ly)?|before|interval|since|compar(?:ed|ison)|again|earlier|last|former|now|progress\w*"
    r"|unchanged|stable|has|have|today|yesterday)\b",
    re.I,
)
"""Words that a sentence has which compares the film with an earlier one."""
_CHANGES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(rf"\b{words}\b", re.I), others)
    for words, others in (
        # "Increased density" or "increased markings" describe a film, not a change.
        (
            r"increased(?! (?:densit|interstitial|lucen|opac|markings|attenuation|retro|perihilar|vascular|bronch))",
            ("decreased",),
        ),
        (r"decreased(?! (?:lung|volumes?|lucen|densit|translucen))", ("increased",)),
        (r"increase", ("decrease",)),
        (r"decrease", ("increase",)),
        (r"increasing", ("decreasing",)),
        (r"decreasing", ("increasing",)),
        (r"worsened", ("improved",)),
        (r"improved(?! aeration| inspirat)", ("worsened",)),
        (r"worsening", ("improving",)),
        (r"improving", ("worsening",)),
        (r"improvement", ("worsening",)),
        (r"worse", ("better",)),
        (r"better", ("worse",)),
        (r"larger", ("smaller",)),
        (r"smaller", ("larger",)),
        (r"unchanged", ("increased", "decreased")),
        (r"stable", ("increased", "decreased")),
        (r"similar to", ("larger than on", "smaller than on")),
        (r"new (?=from|since)", ("unchanged ",)),
    )
)


def _changes(sentence: str) -> Iterator[str]:
    found = [(match, others) for pattern, others in _CHANGES for match in pattern.finditer(sentence)]
    # Of several, one alone would contradict the others.
    if len(found) != 1 or not COMPARED.search(sentence):
        return
    match, others = found[0]
    for other in others:
        text = sentence[: match.start()] + _as_written(other, match.group()) + sentence[match.end() :]
        yield _articles(text)
