"""Where two reports differ, as HTML. Another order of sentences or words is no difference, nor is another wording of
what the rule-based labeller reads the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html import escape

from eval.scores.labels import NO_FINDING, SUPPORT_DEVICES, label_report

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
ALIKE = 0.4  # share of words that two sentences must have in common to be compared word by word
_SIDES = {"left", "right", "bilateral", "bilaterally", "both"}
_LITTLE = re.compile(
    r"an?|and|are|as|at|been|ha(?:s|ve)|in|is|its|of|on|or|seen|that|the|there|this|to|was|were|with|"
)


def mark_differences(reference: str, generated: str) -> tuple[str, str]:
    """Both texts as HTML: in <del> what only the reference says, in <ins> what only the generated text says.

    Sentences that share words are brought together and compared word by word. Of the others, one is left unmarked
    only if the other text says all its labels and sides too; devices differ too much to be told by their one label.
    """
    ref, hyp = _sentences(reference), _sentences(generated)
    left = [_unless_stated(s, generated, "del") for s in ref]
    right = [_unless_stated(s, reference, "ins") for s in hyp]
    for i, j in _partners(ref, hyp).items():
        left[i], right[j] = _marked(ref[i], hyp[j], "del"), _marked(hyp[j], ref[i], "ins")
    return " ".join(left), " ".join(right)


def _sentences(text: str) -> list[list[str]]:
    return [s.split() for s in _SENTENCE.split(text.strip()) if s]


def _bare(words: Sequence[str]) -> list[str]:
    return [w.lower().strip(".,;:!?()") for w in words]


def _unless_stated(sentence: list[str], other: str, tag: str) -> str:
    text = " ".join(sentence)
    labels, stated = label_report(text), label_report(other)
    labels.pop(NO_FINDING, None)
    same = bool(labels) and SUPPORT_DEVICES not in labels and labels.items() <= stated.items()
    if same and _SIDES.intersection(_bare(sentence)) <= set(_bare(other.split())):
        return escape(text)
    return f"<{tag}>{escape(text)}</{tag}>"


def _partners(ref: list[list[str]], hyp: list[list[str]]) -> dict[int, int]:
    """Greedy one-to-one pairs of sentences, most alike first, that share enough words."""
    likeness = []
    for i, a in enumerate(ref):
        for j, b in enumerate(hyp):
            x, y = set(_bare(a)), set(_bare(b))
            likeness.append((2 * len(x & y) / max(len(x) + len(y), 1), -abs(i - j), i, j))
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for alike, _, i, j in sorted(likeness, reverse=True):
        if alike >= ALIKE and i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return pairs


def _marked(words: list[str], other: list[str], tag: str) -> str:
    """The words as HTML; runs of words that the other sentence lacks are marked, little words alone are not."""
    left_over = Counter(_bare(other))
    runs: list[tuple[bool, list[str]]] = []
    for word, bare in zip(words, _bare(words), strict=True):
        differs = left_over[bare] == 0
        if not differs:
            left_over[bare] -= 1
        if not runs or runs[-1][0] != differs:
            runs.append((differs, []))
        runs[-1][1].append(word)
    parts = []
    for differs, run in runs:
        text = escape(" ".join(run))
        worth = differs and not all(_LITTLE.fullmatch(word) for word in _bare(run))
        parts.append(f"<{tag}>{text}</{tag}>" if worth else text)
    return " ".join(parts)
