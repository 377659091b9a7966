"""Where two reports differ, as HTML: clinical disagreement marked strongly, wording faintly or not at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Literal, get_args

from eval.scores.labels import NO_FINDING, SUPPORT_DEVICES, label_report

Strength = Literal["", "wording", "clinical"]
_STRENGTHS: tuple[Strength, ...] = get_args(Strength)

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
# Share of words that two sentences must have in common to be compared word by word.
ALIKE = 0.4
# Sentences of a report that are compared: time grows with the square, and no report of a chest film has so many.
MOST = 500
_LITTLE = re.compile(
    r"an?|and|are|as|at|been|ha(?:s|ve)|in|is|its|of|on|or|seen|that|the|there|this|to|was|were|with|"
)

# kind -> group -> its words: words of one group mean the same, of two groups they disagree.
_MEANINGS = {
    "side": {
        "left": r"left|left-sided|lt|lll|lul|lingula",
        "right": r"right|right-sided|rt|rll|rml|rul",
        "left right": r"bilateral(?:ly)?|both|bibasilar|bibasal|biapical|bihilar",
    },
    "degree": {
        "little": r"trace|tiny|minimal(?:ly)?|mild(?:ly)?|small|slight(?:ly)?|subtle",
        "moderate": r"moderate(?:ly)?|medium",
        "much": r"large|severe(?:ly)?|marked(?:ly)?|massive|extensive|gross(?:ly)?",
    },
    "change": {
        "more": r"new(?:ly)?|increas(?:ed|ing)|worse|worsen(?:ed|ing)|larger|progress(?:ed|ing|ion)",
        "less": r"decreas(?:ed|ing)|improv(?:ed|ing|ement)|resolv(?:ed|ing)|smaller|reduced|diminished",
        "same": r"unchanged|stable|persist(?:s|ent|ing)|again",
    },
    "device": {
        "trachea": r"endotracheal|ett?|tracheostomy",
        "stomach": r"nasogastric|orogastric|enteric|ngt?|ogt?|feeding|dobhoff",
        "vein": r"picc|port|port-a-cath|jugular|subclavian|venous",
        "heart": r"pacemakers?|pacer|icd|aicd|defibrillator|valves?",
        "artery": r"swan-ganz|iabp|balloon",
        "chest": r"sternotomy|pigtail|drains?",
    },
}
_GROUPS = [
    (kind, frozenset(group.split()), re.compile(words))
    for kind, groups in _MEANINGS.items()
    for group, words in groups.items()
]


def mark_differences(reference: str, generated: str) -> tuple[str, str]:
    """Mark what only one of two reports says; both are returned as HTML, escaped.

    <del> in the reference and <ins> in the generated text are clinical: a finding that the other report denies or does
    not mention (uncertain counts as mentioned), another side, degree, change or device. With class `wording` they are
    faint: no label is read there, or one that the other report merely leaves undenied, or calls uncertain.

    Sentences that share words are compared word by word; where their labels, sides, degree and change agree, nothing
    is marked. Of the others, one stays unmarked if the other report says all of its labels and sides. Sentences beyond
    MOST are not compared, and a note says so.
    """
    texts = _Text.of(reference), _Text.of(generated)
    ref, hyp = (text.sentences for text in texts)
    left = [_alone(s, texts[1], "del") for s in ref]
    right = [_alone(s, texts[0], "ins") for s in hyp]
    for i, j in _partners(ref, hyp).items():
        left[i] = _paired(ref[i], hyp[j], texts[1], "del")
        right[j] = _paired(hyp[j], ref[i], texts[0], "ins")
    for marked, text in zip((left, right), texts, strict=True):
        if text.rest:
            marked += [f"<em>(not compared from here on: more than {MOST} sentences)</em>", escape(text.rest)]
    return " ".join(left), " ".join(right)


@dataclass(frozen=True)
class _Text:
    """A report: its first sentences as words, the rest, and what all of it says."""

    sentences: list[list[str]]
    rest: str
    labels: dict[str, int]
    meanings: dict[str, frozenset[str]]

    @classmethod
    def of(cls, text: str) -> _Text:
        """Read a report once, for all sentences of the other one."""
        # The last part holds all sentences beyond the most.
        parts = [part for part in _SENTENCE.split(text.strip(), maxsplit=MOST) if part]
        return cls(
            [p.split() for p in parts[:MOST]], " ".join(parts[MOST:]), _labels(text), _meanings(text.split())
        )


def disagreement(labels: Mapping[str, int], other: Mapping[str, int]) -> Strength:
    """Say how strongly `labels` (condition -> 1 present, 0 denied, -1 uncertain) disagree with another report's.

    Present or uncertain against denied or not mentioned is clinical. Present against uncertain, and a denial that the
    other does not make, are wording.
    """
    found: Strength = ""
    for condition, label in labels.items():
        if condition == NO_FINDING or label == other.get(condition):
            continue
        if bool(label) != bool(other.get(condition)):
            return "clinical"
        found = "wording"
    return found


def _bare(words: Iterable[str]) -> list[str]:
    return [w.lower().strip(".,;:!?()") for w in words]


def _labels(words: Sequence[str] | str) -> dict[str, int]:
    labels = label_report(words if isinstance(words, str) else " ".join(words))
    labels.pop(NO_FINDING, None)
    return labels


@lru_cache(maxsize=4096)
def _meaning(word: str) -> tuple[str, frozenset[str]]:
    """Return the kind and the group of a bare word of `_MEANINGS`; ("", nothing) of any other."""
    return next(((k, group) for k, group, words in _GROUPS if words.fullmatch(word)), ("", frozenset()))


def _meanings(words: Sequence[str]) -> dict[str, frozenset[str]]:
    """kind -> all groups that are said."""
    found: dict[str, frozenset[str]] = {}
    for kind, group in map(_meaning, _bare(words)):
        if kind:
            found[kind] = found.get(kind, frozenset()) | group
    return found


def _alone(words: list[str], other: _Text, tag: str) -> str:
    """Return a sentence that has no partner in the other report."""
    labels = _labels(words)
    strength = disagreement(labels, other.labels) if labels else "wording"
    # Devices differ too much to be told by their one label.
    if labels.get(SUPPORT_DEVICES):
        strength = "clinical"
    if strength:
        return _mark(words, strength, tag)
    positive = any(labels.values())
    return _marked(words, [_worth(word, other.meanings, positive) for word in words], tag)


def _paired(words: list[str], partner: list[str], other: _Text, tag: str) -> str:
    """Return a sentence, word by word against its partner; `other` is the partner's whole report."""
    labels, partners = _labels(words), _labels(partner)
    strength = disagreement(labels, other.labels) if labels or partners else "wording"
    # What only the partner finds is denied here, or not mentioned: the words that say so belong to it.
    if labels and any(v and not labels.get(c, 1) for c, v in partners.items()):
        strength = "clinical"
    positive = any(labels.values())
    left_over, meanings = Counter(_bare(partner)), _meanings(partner)
    strengths: list[Strength] = []
    for word, bare in zip(words, _bare(words), strict=True):
        if left_over[bare] > 0:
            left_over[bare] -= 1
            strengths.append("")
        else:
            strengths.append(max(_worth(word, meanings, positive), strength, key=_STRENGTHS.index))
    return _marked(words, strengths, tag)


def _worth(word: str, other: Mapping[str, frozenset[str]], positive: bool) -> Strength:
    """How a word of `_MEANINGS` disagrees with the meanings of another text; "" of any other word."""
    kind, group = _meaning(_bare([word])[0])
    if not kind:
        return ""
    theirs = other.get(kind, frozenset())
    if theirs:
        return "" if group <= theirs else "clinical"
    return "wording" if positive else ""


def _partners(ref: list[list[str]], hyp: list[list[str]]) -> dict[int, int]:
    """Greedy one-to-one pairs of sentences, most alike first, that share enough words."""
    refs, hyps = ([frozenset(_bare(words)) for words in sentences] for sentences in (ref, hyp))
    # Only sentences that share a word are compared.
    having: dict[str, list[int]] = {}
    for j, words in enumerate(hyps):
        for word in words:
            having.setdefault(word, []).append(j)
    likeness = []
    for i, x in enumerate(refs):
        shared: Counter[int] = Counter()
        for word in x:
            shared.update(having.get(word, ()))
        for j, common in shared.items():
            alike = 2 * common / max(len(x) + len(hyps[j]), 1)
            if alike >= ALIKE:
                likeness.append((alike, -abs(i - j), i, j))
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, _, i, j in sorted(likeness, reverse=True):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return pairs


def _marked(words: list[str], strengths: Sequence[Strength], tag: str) -> str:
    """Return the words as HTML, runs of one strength together. Little words at the ends of a run are not
    marked."""
    parts: list[str] = []
    start = 0
    for end in range(1, len(words) + 1):
        if end < len(words) and strengths[end] == strengths[start]:
            continue
        run, strength = words[start:end], strengths[start]
        little = [bool(_LITTLE.fullmatch(word)) for word in _bare(run)]
        if not strength or all(little):
            parts.append(escape(" ".join(run)))
        else:
            first, last = little.index(False), len(run) - little[::-1].index(False)
            pieces = (
                escape(" ".join(run[:first])),
                _mark(run[first:last], strength, tag),
                escape(" ".join(run[last:])),
            )
            parts += [piece for piece in pieces if piece]
        start = end
    return " ".join(parts)


def _mark(words: Sequence[str], strength: Strength, tag: str) -> str:
    kind = " class='wording'" if strength == "wording" else ""
    return f"<{tag}{kind}>{escape(' '.join(words))}</{tag}>"
