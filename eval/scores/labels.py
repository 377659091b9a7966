"""The rule-based labeller `rules`: findings text in, the 14 CheXpert conditions out. Offline, no weights.

It follows the CheXpert labeller (Irvin et al. 2019, arXiv 1901.07031): mention, then negation and uncertainty, then one
label per condition, where positive outweighs uncertain and uncertain outweighs negative. It is not CheXbert and its
scores never carry that name. Known differences from the CheXpert labeller, all deliberate: scopes are found by words
instead of a dependency parse; a structure ("heart size") without a stated condition is not a mention; a
normal cardiomediastinal silhouette also says that the heart is normal; "borderline" is uncertain; a blunted
costophrenic angle is an uncertain pleural effusion; pleural plaques are Pleural Other, pulmonary fibrosis is
not; sternotomy wires are Support Devices; old granulomatous infection is not pneumonia; findings of other parts of the
body are not mentions; a removed device is denied, not blank; what is asked ("rule out pneumonia") is uncertain; a
text that is not an English report of a chest (`judged`) has no labels at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from eval.scores import cues, phrases
from eval.scores.language import judged
from eval.scores.phrases import CONDITIONS, OTHER
from eval.scores.sentences import split
from eval.scores.spelling import plain

__all__ = [
    "CONDITIONS",
    "LABELLER",
    "NO_FINDING",
    "SUPPORT_DEVICES",
    "judged",
    "label_matrix",
    "label_report",
    "sentences",
]

LABELLER = "rules-2"
"""Name and version in signatures. Raise the number with every change that can change a label."""

NO_FINDING = CONDITIONS[-1]
SUPPORT_DEVICES = "Support Devices"

WINDOW = 400  # characters around a mention in which its cues are looked for: some 60 words

_WEIGHT = {0: 0, -1: 1, 1: 2}  # positive outweighs uncertain, uncertain outweighs negative
_HEADING = re.compile(r"^[a-z][a-z ,/&-]{2,40}:\s*(\S.*)$")
_STATE = re.compile(
    f"(?P<normal>{cues.NORMAL.pattern})|(?P<unsettled>{cues.UNSETTLED.pattern})"
    f"|(?P<abnormal>{cues.ABNORMAL.pattern})"
)
_STATE_LABEL = {"normal": 0, "unsettled": -1, "abnormal": 1}
_ITEM = re.compile(r",| and | & ")
_WHERE = re.compile(r" (?:in|of|at|on|along|over) ")
_OPINION = r"(?:felt|thought|considered|believed|judged|deemed)"
_COPULA = re.compile(
    rf" (?:(?:is|are|was|were|(?:has|have) been)(?: {_OPINION}(?: to be)?)?|remains?|seems?|appears?(?: to be)?)"
    r"(?: (?:only|just|\w+ly))*,? $"
)
_DASH = re.compile(r" (?:--?|\u2013) ")
_OR = re.compile(r"or\b(?:(?<=\bor)|(?<=\bnor))")
_WORD = re.compile(r"[a-z]+")


def label_report(text: str) -> dict[str, int]:
    """Return the labels of the conditions that `text` mentions: 1 present, 0 denied, -1 uncertain; the others
    are left out.

    No Finding is 1 where no other condition but Support Devices, and no other abnormality such as emphysema, is
    present or uncertain (the CheXpert labeller's rule); it is never 0. A text that is not `judged` has no labels.
    """
    if not judged(text):
        return {}
    said: list[Said] = []
    for sentence in sentences(text):
        for clause in _label_sentence(sentence):
            if clause.refers is not None and said:
                said[-1], clause = _referred(said[-1], clause)
            said.append(clause)
    labels: dict[str, int] = {}
    for clause in said:
        for condition, label in clause.found:
            if condition not in labels or _WEIGHT[label] > _WEIGHT[labels[condition]]:
                labels[condition] = label
    finding = any(v != 0 for c, v in labels.items() if c != SUPPORT_DEVICES)
    labels.pop(OTHER, None)
    if not finding:
        labels[NO_FINDING] = 1
    return {c: labels[c] for c in CONDITIONS if c in labels}


def label_matrix(reports: Iterable[str | Mapping[str, int]]) -> np.ndarray:
    """Turn reports, or label dicts, into float64 (N, 14) in the order of CONDITIONS: 1, 0, -1, NaN where not
    mentioned.

    Raises ValueError for a condition that is not one of the 14 or a value other than 1, 0 or -1.
    """
    rows = [label_report(r) if isinstance(r, str) else r for r in reports]
    matrix_N14 = np.full((len(rows), len(CONDITIONS)), np.nan)
    for i, row in enumerate(rows):
        for condition, value in row.items():
            if condition not in CONDITIONS:
                raise ValueError(
                    f"{condition!r} is not one of the 14 CheXpert conditions: {', '.join(CONDITIONS)}"
                )
            if value not in (1, 0, -1):
                raise ValueError(
                    f"label of {condition!r} is {value!r}; accepted are 1, 0 and -1 (absent = not mentioned)"
                )
            matrix_N14[i, CONDITIONS.index(condition)] = value
    return matrix_N14


def sentences(text: str) -> list[str]:
    """Split a report into sentences, lower-cased and single-spaced; marks of lists are removed, a semicolon ends a
    sentence, and so does a line that is an item of its own."""
    return split(text, _an_item)


def _an_item(line: str) -> bool:
    """Is a line about a finding, a structure or a state?"""
    line = plain(line)
    return _mentions_anything(line) or (" " in line and cues.NORMAL.search(line) is not None)


What = Literal["finding", "state", "device", "placed device"]
"""What a mention is of: a state is of a structure ("enlarged heart"), a placed device has its place named."""


class Said(NamedTuple):
    """What a clause says."""

    found: tuple[tuple[str, int], ...]  # (condition, label) of each mention
    last: tuple[tuple[str, int], ...]  # those of the last finding, which a clause that follows may refer to
    text: str
    refers: int | None  # without a finding of its own: the label that it gives to the clause before


@lru_cache(maxsize=65536)  # reports repeat their sentences
def _label_sentence(sentence: str) -> tuple[Said, ...]:
    bits = _bits(sentence)
    if bits & _NOT_PLAIN:
        sentence = plain(sentence)
        bits = _bits(sentence)
    heading = _HEADING.match(sentence) if ":" in sentence else None
    if heading and _mentions_anything(heading.group(1)):
        sentence = heading.group(1)  # "Heart and mediastinum: ..." names a topic, it asserts nothing
    if bits & cues.RELATIVE.bit:
        sentence = cues.RELATIVE.pattern.sub(
            lambda told: told[0] if _mentions_anything(told[0]) else "", sentence
        )
    if bits & cues.ONE_SIDE.bit:
        sentence = cues.ONE_SIDE.pattern.sub(r"\1", sentence)
    # A dash ends a clause between two that each have a finding: "no effusion - cardiomegaly", not "effusion - none".
    parts = _DASH.split(sentence) if bits & _DASHED else [sentence]
    if len(parts) > 1 and not all(_mentions_anything(part) and not _OR.match(part) for part in parts):
        parts = [sentence]
    if len(parts) == 1 and not bits & cues.CLAUSE.bit:
        return (_label_clause(sentence, bits),)
    clauses = [clause for part in parts for clause in cues.CLAUSE.pattern.split(part)]
    return tuple(_label_clause(clause, _bits(clause)) for clause in clauses)


def _referred(before: Said, clause: Said) -> tuple[Said, Said]:
    """Give the label of a clause that has no finding of its own to the finding it stands for."""
    if clause.refers == 0:
        # "There was an effusion. It has resolved." Without the past, "it" may be anything.
        past = cues.PAST.search(before.text)
        return (before._replace(found=tuple((c, 0) for c, _ in before.found)) if past else before), clause
    denied = [c for c, label in before.last if label == 0]
    found = () if clause.refers is None else tuple((c, clause.refers) for c in denied)
    return before, clause._replace(found=clause.found + found, last=found or before.last)


def _mentions_anything(text: str) -> bool:
    findings, structures = _may_mention(_bits(text))
    return any(phrases.FINDINGS[c].search(text) for c in findings) or any(
        p.search(text) for _, p in structures
    )


# --- what a text may hold, told by its words --------------------------------------------------------------------------

_FINDINGS = len(cues.CUES)  # the bits of cues come first, then those of conditions, then those of structures
_STRUCTURES = _FINDINGS + len(phrases.FINDINGS)
_NOT_PLAIN = 1 << _STRUCTURES + len(phrases.STRUCTURES)
_MENTIONS = _NOT_PLAIN - (1 << _FINDINGS)
_DASHED = _NOT_PLAIN << 1
_SIGNS = {sign: sum(c.bit for c in cues.CUES if sign in c.signs) for c in cues.CUES for sign in c.signs}
_SIGNS |= {"/": _NOT_PLAIN, "dc'": _NOT_PLAIN}


def _may_mention(bits: int) -> tuple[list[str], list[tuple[str, re.Pattern[str]]]]:
    """Return the conditions and the structures whose words a text with these bits has, in the vocabulary's order."""
    if not bits & _MENTIONS:
        return [], []
    return (
        [c for i, c in enumerate(phrases.FINDINGS, _FINDINGS) if bits >> i & 1],
        [s for i, s in enumerate(phrases.STRUCTURES, _STRUCTURES) if bits >> i & 1],
    )


def _bits(text: str) -> int:
    """One bit for each cue, then for each condition and each structure, that `text` may hold, and one for words that
    `plain` writes otherwise."""
    bits = 0
    for token in text.split():
        bits |= _token_bits(token)
    return bits


def _by_beginning() -> dict[str, list[tuple[str, int]]]:
    """Return (word or stem, its bits) by the two characters that it begins with; a blank is the border of a word."""
    keys = [(*cue.stems, *(f" {word} " for word in cue.words)) for cue in cues.CUES]
    keys += [phrases.STEMS[c] for c in phrases.FINDINGS]
    keys += [phrases.STRUCTURE_STEMS[structure] for structure, _ in phrases.STRUCTURES]
    bits: dict[str, int] = {}
    for i, some in enumerate(keys):
        for key in some:
            bits[key] = bits.get(key, 0) | 1 << i
    found: dict[str, list[tuple[str, int]]] = {}
    for key, has in bits.items():
        found.setdefault(key[:2], []).append((key, has))
    return found


_KEYS = _by_beginning()


@lru_cache(maxsize=65536)
def _token_bits(token: str) -> int:
    """Return the bits of what stands between two blanks: words, and the signs on them."""
    # "0 nodules" is a denial; that takes more than one token.
    bits = _NOT_PLAIN if token == "0" or plain(token) != token else 0
    if token in ("-", "--", "\u2013"):
        bits |= _DASHED
    for sign, has in _SIGNS.items():
        if sign in token:
            bits |= has
    words = f" {' '.join(_WORD.findall(token))} "
    for start in range(len(words) - 2):
        for key, has in _KEYS.get(words[start : start + 2], ()):
            if words.startswith(key, start):
                bits |= has
    return bits


def _label_clause(clause: str, bits: int) -> Said:
    if not bits & _MENTIONS:
        return Said((), (), clause, _refers(clause, bits))
    found: list[tuple[int, str, int]] = []  # (where, condition, label)
    findings, structures = _may_mention(bits)
    for condition in findings:
        pattern = phrases.FINDINGS[condition]
        for mention in pattern.finditer(clause):
            start, end = mention.span()
            if phrases.elsewhere(condition, clause, start, end):
                continue
            label = _polarity(
                clause, start, end, bits, "device" if condition == SUPPORT_DEVICES else "finding"
            )
            doubtful = phrases.ALWAYS_UNCERTAIN.get(condition)
            if label == 1 and doubtful and doubtful.search(mention.group()):
                label = -1
            if condition == "Edema" and label != 0 and phrases.HEART_FAILURE.search(mention.group()):
                found.append((start, "Cardiomegaly", -1))
            found.append((start, condition, label))
    if "extubat" in clause:
        found += [(m.start(), SUPPORT_DEVICES, 0) for m in phrases.TAKEN_OUT.finditer(clause)]
    refers = None if found else _refers(clause, bits)
    labels = [(condition, label) for _, condition, label in found]
    named = [mention for mention in found if mention[1] != OTHER]
    last = max(named)[0] if named else -1
    antecedent = tuple((c, label) for where, c, label in named if where == last)
    for structure, pattern in structures:
        for mention in pattern.finditer(clause):
            state = _state(clause, *mention.span(), bits)
            if state is not None:
                labels += _structure_labels(structure, state)
    return Said(tuple(labels), antecedent, clause, refers)


def _refers(clause: str, bits: int) -> int | None:
    """Return the label that a clause without a finding gives to the one before, None if it gives none."""
    pronoun = cues.PRONOUN.pattern.match(clause) if bits & cues.PRONOUN.bit else None
    if pronoun and _polarity(clause, *pronoun.span(), bits) == 0:
        return 0
    another = cues.ELLIPSIS.pattern.search(clause) if bits & cues.ELLIPSIS.bit else None
    return (_polarity(clause, *another.span(), bits) or None) if another else None


def _structure_labels(structure: str, label: int) -> list[tuple[str, int]]:
    if structure == "cardiomediastinal":
        both = [("Enlarged Cardiomediastinum", label), ("Cardiomegaly", label)]
        return both if label == 0 else both[:1]
    if structure == "Pleural Effusion":  # a blunt angle may be a scar, a sharp one says little
        return [] if label == 0 else [(structure, -1)]
    return [(structure, label)]


# --- negation and uncertainty of one mention --------------------------------------------------------------------------


_POLAR = (
    cues.DOUBTED_BEFORE_FIRST.bit | cues.NEGATED_BEFORE.bit | cues.NEGATED_AFTER.bit | cues.DENIED_EVIDENCE.bit
    | cues.DEVICE_GONE_AFTER.bit | cues.DOUBTED_BEFORE.bit | cues.DOUBTED_AFTER.bit | cues.EITHER_BEFORE.bit
)  # fmt: skip


def _polarity(clause: str, start: int, end: int, bits: int, what: What = "finding") -> int:
    """1, 0 or -1 for the mention clause[start:end], in the CheXpert labeller's order: doubts that contain a negation
    ("cannot exclude"), then negation, then the other doubts. `bits` are the clause's."""
    if not bits & _POLAR:
        return 1
    before, after = _around(clause, start, end)
    device = what == "device"
    if device:
        if cues.PLACED.match(after):
            what = "placed device"
        part = cues.PART_OF_DEVICE.search(after)
        after = "" if cues.OF_DEVICE.search(before) else after[: part.start()] if part else after
    if _from_left(cues.DOUBTED_BEFORE_FIRST, before, after, bits, what):
        return -1
    if _from_left(cues.NEGATED_BEFORE, before, after, bits, what):
        return 0
    if _from_right(cues.NEGATED_AFTER, after, bits):
        return 0
    if _no_evidence(before, after, bits):
        return 0
    if device and _from_right(cues.DEVICE_GONE_AFTER, after, bits):
        return 0
    if _from_left(cues.DOUBTED_BEFORE, before, after, bits, what):
        return -1
    if _from_right(cues.DOUBTED_AFTER, after, bits):
        return -1
    if bits & cues.EITHER_BEFORE.bit and (
        cues.EITHER_BEFORE.pattern.search(before) or cues.EITHER_AFTER.pattern.match(after)
    ):
        return -1
    return 1


def _no_evidence(before: str, after: str, bits: int) -> bool:
    """Is the mention what something denied would be evidence of ("no opacity is seen to suggest pneumonia")?"""
    if not (bits & cues.DENIED_EVIDENCE.bit and bits & cues.PURPOSE.bit):
        return False
    for purpose in cues.PURPOSE.pattern.finditer(before):
        if not _open(before[purpose.end() :], after):
            continue
        host = before[: purpose.start()]
        for denial in cues.DENIED_EVIDENCE.pattern.finditer(host):
            if _open(cues.SEEN.sub("", host[denial.end() :]), ""):
                return True
    return False


def _around(clause: str, start: int, end: int) -> tuple[str, str]:
    """What stands before and after, at most WINDOW characters each, so that cost stays linear in hostile input."""
    before, after = clause[max(0, start - WINDOW) : start], clause[end : end + WINDOW]
    if start > WINDOW:
        before = before.partition(" ")[2]  # not the rest of a word
    return before, after


def _from_left(cue: cues.Cue, before: str, after: str, bits: int, what: What) -> bool:
    """Does a cue to the left reach the mention?"""
    return bits & cue.bit != 0 and any(
        _open(before[c.end() :], after, what) for c in cue.pattern.finditer(before)
    )


def _open(gap: str, after: str, what: What = "finding") -> bool:
    """Tell whether a scope stays open: it does over `gap` unless a verb or preposition ends it, or an item of
    a list begins an assertion.

    "No A, B or C": everything up to the item after the last "or" belongs to the list. Elsewhere an item after a comma
    or "and" belongs to it only if bare ("no effusion, pneumothorax"), not if it says how much or where ("no effusion,
    mild cardiomegaly"). Nor does an abnormal structure or a device belong to a list of findings ("no effusion, enlarged
    heart", "no effusion (enlarged heart)").
    """
    if cues.STOP.search(gap):
        return False
    stop = cues.STOP.search(after)
    listed = gap + " " + (after[: stop.start()] if stop else after)
    begin = 0
    for last in _OR.finditer(listed):
        following = _ITEM.search(listed, last.end())
        begin = following.start() if following else len(listed)
    if len(gap) < begin:
        return True
    if what != "finding" and gap.find("(", begin) > 1:
        return False
    items = _ITEM.split(gap[begin:])[1:]
    if items and what != "finding":
        if what == "placed device":
            return False
        alike = _STATE if what == "state" else phrases.FINDINGS[SUPPORT_DEVICES]
        if not alike.search(gap[: _ITEM.search(gap, begin).start()]):
            return False
    return not any(cues.ASSERTS.search(item) for item in items if not item.startswith("of "))


def _from_right(cue: cues.Cue, after: str, bits: int) -> bool:
    """Does a cue to the right ("is not seen", "cannot be excluded") belong to the mention?"""
    if not bits & cue.bit:
        return False
    for c in cue.pattern.finditer(after):
        gap = _COPULA.sub("", after[: c.start()])
        if cues.STOP_BACKWARD.search(gap):
            return False  # later cues are farther still
        if cues.RESOLVED.search(c.group()) and (
            cues.ALMOST.search(c.group())
            or cues.ALMOST_BEFORE.search(after[max(0, c.start() - 40) : c.start()])
        ):
            continue
        items = _ITEM.split(gap)[1:]
        if items and not items[-1].strip() and not cues.STANDS_APART.match(c.group()):
            continue  # "effusion and suspected mass": the cue belongs to what follows
        if items and (" and " not in gap and " & " not in gap) and not cues.IF_ANY.match(c.group()):
            continue  # "cardiomegaly, pneumonia cannot be excluded"
        if not any(cues.ASSERTS.search(_WHERE.split(item)[0]) for item in items):
            return True
    return False


# --- what a sentence says of a structure ------------------------------------------------------------------------------


def _state(clause: str, start: int, end: int, bits: int) -> int | None:
    """0 normal, 1 abnormal, -1 borderline or merely unchanged, None if nothing is said of clause[start:end]."""
    before, after = _around(clause, start, end)
    left = [state for state in _STATE.finditer(before) if not cues.FORMER.search(before, 0, state.start())]
    gap = before[left[-1].end() :] if left else ""
    if left and cues.ATTACHED.fullmatch(gap):
        state, offset = left[-1], start - len(before)
    else:
        state, offset = _predicate(after), end
        if state is None and left and cues.JOINED.fullmatch(gap):
            state, offset = left[-1], start - len(before)  # "normal heart size and mediastinal contours"
    if state is None:
        return None
    label = _STATE_LABEL[state.lastgroup]
    if label == 1:  # "no enlargement of the cardiac silhouette", "the heart may be enlarged"
        return _polarity(clause, offset + state.start(), offset + state.end(), bits, "state")
    return label


def _predicate(after: str) -> re.Match[str] | None:
    """Return the state that follows the structure: "heart size and mediastinal contours are within normal
    limits"."""
    first = None
    for state in _STATE.finditer(after):
        if first is not None:  # "stable and normal", "stable, mildly enlarged": the second says more
            between = after[first.end() : state.start()]
            if cues.VERB.search(between) or len(between) > 40:
                break
            if first.lastgroup == "unsettled" and state.lastgroup != "unsettled":
                return state
            continue
        gap = after[: state.start()]
        verbs = len(cues.VERB.findall(gap))
        of_another = cues.ATTRIBUTIVE.match(after, state.end()) and _ITEM.search(gap)
        if verbs > 1 or (verbs == 0 and of_another):
            break  # "heart size, stable mediastinal contours"
        first = state
    return first
