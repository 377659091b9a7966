"""What overlap scores do not see: words of change, priors that nobody gave, length, repetition, left for right.

By word lists of this project's own: offline, one value everywhere, and blunt. "Increased markings" is a word of change
though it may state an appearance; a text without a final full stop is truncated, a list too, so the references' share
stands beside; a swapped side may be two findings of one condition.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from eval.intervals import Kind
from eval.scores.family import Family, Grid
from eval.scores.inputs import report_text
from eval.scores.labels import LABELLER, label_report, sentences
from eval.scores.lexical import VERSION, plain_tokens
from eval.scores.phrases import CONDITIONS
from eval.scores.sheet import Better, Sheet, ratio
from eval.signature import signature

LEXICON = "safety-1"
"""Name and version of the word lists in signatures. Raise the number with every change that can change a value."""

Study = Mapping[str, Any]
_UNSIDED = {"Enlarged Cardiomediastinum", "Cardiomegaly", "Support Devices", "No Finding"}
SIDED = tuple(c for c in CONDITIONS if c not in _UNSIDED)
"""Conditions whose side is compared. Not devices: a pacemaker on the left and a line on the right are not a
swap."""


def _groups(**alternatives: str) -> re.Pattern[str]:
    """One pattern of whole words, a named group for each entry; the first that matches wins."""
    named = "|".join(f"(?P<{name}>{words})" for name, words in alternatives.items())
    return re.compile(rf"(?<![\w-])(?:{named})(?!\w)")


_DEGREE = (
    r"(?:interval|significant|appreciable|substantial|relevant|definite|marked|major|overall|any|been|\w+ly)"
)
_NO_CHANGE = rf"(?:no|not|without|little)(?: {_DEGREE}){{0,3}} chang(?:ed?|es)"
# "Bibasilar opacities, worse on the right" compares sides, not days; "resolution" may be the detector's.
_WORSE = r"worse(?! (?:on|in|at|within|over|than (?:on |in )?(?:the )?(?:left|right)))"
_RESOLUTION = r"(?<!high )(?<!high-)resolution"

TEMPORAL = _groups(
    unchanged=rf"unchanged|unaltered|constant|{_NO_CHANGE}",
    change=rf"chang(?:ed|ing)|{_DEGREE} changes?|changes? (?:since|from|compared|in (?:the interval|size|appearance))",
    stable=r"stab(?:le|ly|ility)", develop=r"develop(?:ed|ing|ment)", new=r"new(?:ly)?(?![- ]onset)",
    worse=rf"worsen\w*|{_WORSE}", resolve=rf"resolv\w+|{_RESOLUTION}", clear=r"clear(?:ed|ing|ance)",
    remain=r"remain(?:s|ed)?", again=r"again|re-?demonstrat\w+", remove=r"remov(?:al|ed)",
    larger=r"larger|bigger|enlarging", smaller=r"smaller", grow=r"grew|grow(?:n|ing|th)",
    expand=r"re-?expan\w+", evolve=r"evolv\w+|evolution",
    **{stem: rf"{stem}\w*" for stem in ("increas", "decreas", "improv", "persist", "progress", "regress")},
    **{stem: rf"{stem}\w*" for stem in ("reduc", "diminish", "recur")},
)  # fmt: skip
"""Words of change by stem. "No change" is `unchanged`; "degenerative changes", "elevated" and "enlarged" name states
and are left out."""

_EXAM = r"(?:stud(?:y|ies)|exam\w*|radiographs?|films?|x-?rays?|imag(?:es?|ing)|scans?|ct|reports?|cxrs?|comparisons?)"
_KIND = r"(?:chest|portable|outside|frontal|lateral|pa|ap|ct|most|recent|available|multiple|several|upright|x{3,})"
_PRIOR = r"(?:prior|previous|preceding|earlier|last|old|outside|recent)"
_PRIOR_EXAM = rf"{_PRIOR}(?: {_KIND}){{0,3}} {_EXAM}"
_ELSEWHERE = r"(?:the )?(?:left|right|contralateral|opposite|other|rest|adjacent|upper|lower)\b"
_END = r" *(?:[.,;:)]|$)"

COMPARISON = _groups(
    examination=rf"{_PRIOR_EXAM}|comparison {_EXAM}|(?:than|as|from) before|since (?:yesterday|admission)"
    rf"|compar(?:ed|ison)(?: is| was)?(?: made)? (?:to|with)(?! {_ELSEWHERE})"
    rf"|(?:from|since|to|with|than|on|as) (?:the )?(?:priors?|previous|comparison)(?={_END}| (?:and|or|but|which)\b)"
    r"|previously(?! (?:fractured|healed|operated|resected|treated|healthy|known))",
    stability=rf"unchanged|unaltered|{_NO_CHANGE}|(?<!clinically )(?<!hemodynamically )(?:stable|stability)"
    r"|persist(?:s|ed|ent|ently|ence|ing)?|again|re-?demonstrat\w+|remains?|still (?:present|seen|visible|noted)",
    new=r"new(?:ly)?(?![- ]onset)",
    change=rf"interval(?! follow)|worsen\w*|{_WORSE}|improv(?:ed|ing|ement)|resolv(?:ed|ing)|{_RESOLUTION}"
    rf"|cleared|clearing|progression|(?:in|de)creasing|enlarging|h(?:as|ave|ad)(?: \w+ly| since)? "
    r"(?:(?:in|de)creased|enlarged|diminished|progressed|regressed|developed|changed|grown)|developing|development of"
    r"|(?:in|de)creased in (?:size|number|extent)|been (?:\w+ly )?(?:removed|extubated|withdrawn|exchanged)",
)
"""What only a look at an earlier examination can tell, by category. "Prior sternotomy", "old fracture" and "increased
markings" do not count."""
_NO_COMPARISON = re.compile(  # says that there is nothing to compare with, and so invents no prior
    rf"\b(?:no|without|lack of)(?: an?| any)?(?: relevant| available)? (?:{_PRIOR}s?|comparisons?)(?: {_KIND}){{0,3}}"
    rf"(?: {_EXAM})?(?={_END}| (?:is|are|was|were|for|to|available)\b)"
    rf"|\b{_PRIOR_EXAM} (?:is |are |was |were )?(?:not |un)available|\bcomparison: none"
)

_SIDE = re.compile(  # but "the right atrium" and "a left lateral view" are not sides
    r"\b(?:(?P<left>left|lt|lll|lul|lingular?)|(?P<right>right|rt|rll|rml|rul)"
    r"|(?P<both>bilateral(?:ly)?|both|bi(?:basilar|basal|basally|apical|hilar)))"
    r"\b(?![ -](?:sided )?(?:atri|ventric|heart|cardiac|aort|lateral (?:decub|view|film)))"
)
_PART = re.compile(r", | and | with |(?= without | no )| (?:but|however|although|though|whereas|while) ")
_CLEAR = re.compile(r"\b(?:clear|normal|unremarkable)\b")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*$")


@dataclass(frozen=True)
class ReportFacts:
    """Hold what the scores need of one report."""

    words: int
    temporal: frozenset[str]  # groups of TEMPORAL
    comparison: tuple[str, ...]  # groups of COMPARISON
    truncated: bool  # not empty, and its last sentence has no end
    repeated_4_grams: float  # share of its 4-grams that were there before
    repeated_sentence: bool  # a sentence of two words or more is said twice
    sides: tuple[tuple[str, str], ...]  # asserted condition of SIDED -> "left", "right" or "both"


@lru_cache(maxsize=16384)  # references are read again for every set of predictions
def read(text: str) -> ReportFacts:
    """Read one report. A text without a word is empty: nothing else is said of it."""
    said = [w for w in plain_tokens(text) if w[0].isalnum()]
    if not said:
        return ReportFacts(0, frozenset(), (), False, 0.0, False, ())
    parts = sentences(text)
    spoken = [tuple(words) for s in parts if len(words := re.findall(r"\w+", s)) > 1]
    compares = {m.lastgroup for s in parts for m in COMPARISON.finditer(_NO_COMPARISON.sub(" ", s))}
    grams = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return ReportFacts(
        words=len(said),
        temporal=frozenset(m.lastgroup for s in parts for m in TEMPORAL.finditer(s)),
        comparison=tuple(group for group in COMPARISON.groupindex if group in compares),
        truncated=not _SENTENCE_END.search(text.rstrip()),
        repeated_4_grams=1 - len(set(grams)) / len(grams) if grams else 0.0,
        repeated_sentence=len(set(spoken)) < len(spoken),
        sides=tuple(_sides(parts).items()),
    )


def _sides(parts: list[str]) -> dict[str, str]:
    """Side of every condition that is asserted with one; both sides, anywhere in the text, are "both"."""
    found: dict[str, set[str]] = {}
    for sentence in parts:
        if not _SIDE.search(sentence):
            continue
        whole = label_report(
            sentence
        )  # denials reach over the parts: "no effusion, left pneumothorax or mass"
        for part, labels in _findings(sentence):
            sides = {m.lastgroup for m in _SIDE.finditer(part)}
            for condition in SIDED:
                if sides and labels.get(condition) == 1 == whole.get(condition):
                    found.setdefault(condition, set()).update(sides)
    return {c: next(iter(s)) if len(s) == 1 else "both" for c, s in found.items()}


def _findings(sentence: str) -> list[tuple[str, dict[str, int]]]:
    """Parts of a sentence that mention a condition, and their labels. What mentions none belongs to the part before
    it ("opacity in the right upper | and left lower lobe"), at the beginning to the next; "left lung is clear" goes."""
    found: list[tuple[list[str], dict[str, int]]] = []
    waiting: list[str] = []
    for part in _PART.split(sentence):
        labels = {c: v for c, v in label_report(part).items() if c != "No Finding"}
        if labels:
            found.append(([*waiting, part], labels))
            waiting = []
        elif not _CLEAR.search(part):
            (found[-1][0] if found else waiting).append(part)
    return [(" ".join(pieces), labels) for pieces, labels in found]


def swapped_sides(reference: ReportFacts, predicted: ReportFacts) -> tuple[list[str], list[str]]:
    """Return the conditions whose side both reports name, and those of them whose sides differ."""
    ref, hyp = dict(reference.sides), dict(predicted.sides)
    compared = [c for c in SIDED if {ref.get(c), hyp.get(c)} <= {"left", "right"}]
    return compared, [c for c in compared if ref[c] != hyp[c]]


def prior_given(study: Study) -> bool:
    """Tell whether a study brings an earlier examination: images or findings in `prior`. Its `comparison`
    does not count: it tells what the radiologist had, not what a model was given."""
    prior = study.get("prior")
    if isinstance(prior, Mapping):
        return bool(prior.get("images") or report_text(prior.get("findings"))[0])
    return bool(report_text(prior)[0])


def temporal_scores(reference: ReportFacts, predicted: ReportFacts) -> tuple[float, float, float]:
    """Return precision, recall and F1 between two sets of temporal words; 0 where one is empty, also if both
    are."""
    ref, hyp = reference.temporal, predicted.temporal
    common = len(ref & hyp)
    return (
        (common / len(hyp), common / len(ref), 2 * common / (len(ref) + len(hyp))) if common else (0.0,) * 3
    )


def per_study(references: Sequence[str], predictions: Sequence[str], studies: Sequence[Study]) -> list[dict]:
    """Return what is odd about each generated report, without its words: `swapped` conditions,
    `invented_prior` (groups of COMPARISON, none where a prior was given), `repeated_4_grams` (share),
    `repeated_sentence`, `truncated`, `empty`."""
    return [
        {
            "swapped": swapped_sides(read(reference), hyp)[1],
            "invented_prior": [] if prior_given(study) else list(hyp.comparison),
            "repeated_4_grams": hyp.repeated_4_grams,
            "repeated_sentence": hyp.repeated_sentence,
            "truncated": hyp.truncated,
            "empty": not hyp.words,
        }
        for reference, hyp, study in zip(references, map(read, predictions), studies, strict=True)
    ]


def add_safety(
    sheet: Sheet, references: Sequence[str], predictions: Sequence[str], studies: Sequence[Study]
) -> None:
    """Put all of it on a sheet. Keys, with the references' own value of the starred under `<key>/reference`:

    `temporal-precision`, `temporal-recall`, `temporal-f1`: means over the `temporal-f1/reports` with a temporal word on
        either side (BioViL-T's idea, arXiv 2301.04558). Words on one side only score 0; none at all is left out.
    `temporal-f1/libra`: the same over all reports, where none at all counts 1, as Libra (arXiv 2411.19378) and RadEval
        have it; with our words.
    `hallucinated-prior`*: share that compares, among the `hallucinated-prior/reports` of studies without a prior.
    `words/generated`, `words/reference`: mean words; `words/ratio`: of their sums.
    `empty`, `truncated`*, `repeated-sentence`*: shares of all reports; `repeated-4-grams`*: mean share of 4-grams.
    `unique`*: distinct texts (but for case and white space) over reports. A study counts 1 / the reports on the sheet
        with its text, once and for all: a study drawn twice is not a repetition, and a subgroup's value is of
        the sheet.
    `side-swap`: share of swapped ones among `side-swap/conditions`, whose side both reports name.

    Not defined (NaN) where no report qualifies. Raises ValueError if the counts differ.
    """
    pairs = [(read(r), read(p)) for r, p, _ in zip(references, predictions, studies, strict=True)]
    words, tok = LEXICON, f"plain-{VERSION}-words"

    def add(
        key: str, values: Sequence | np.ndarray, among: Sequence | np.ndarray | None = None, count: str = "",
        better: Better = "neither",
        kind: Kind = "share", **choices: Any,
    ) -> None:  # fmt: skip
        """Sum of values over sum of `among`, without it over the number of reports; the sum of `among` as `count`."""
        over = np.ones(len(pairs)) if among is None else among
        where = sheet.columns(np.array([values, over], dtype=np.float64).T)
        title = SHOWN[key][0] if key in SHOWN else key
        more: dict[str, Any] = {"title": title, "better": better, "kind": kind}
        # Of a ratio of words the second column is no count of studies.
        if key == "words/ratio":
            sheet.add(key, signature(key, **choices), ratio, where, **more)
        else:
            sheet.add_ratio(key, signature(key, **choices), where, **more)
        if count:
            sheet.add(
                count,
                signature(count, sum="all", **choices),
                lambda sums: sums[..., 1],
                where,
                better="neither",
                kind="count",
            )

    timed = [bool(ref.temporal or hyp.temporal) for ref, hyp in pairs]
    scores_N3 = np.array([temporal_scores(*pair) for pair in pairs]).reshape(-1, 3)
    choices: dict[str, Any] = {
        "words": words,
        "match": "stem-sets",
        "avg": "report",
        "one_side": 0,
        "neither": "left-out",
    }
    for i, (name, count) in enumerate((("precision", ""), ("recall", ""), ("f1", "temporal-f1/reports"))):
        add(f"temporal-{name}", scores_N3[:, i], timed, count, "higher", "fraction", **choices)

    both_empty = [
        1.0 if not (ref.temporal or hyp.temporal) else f1
        for (ref, hyp), f1 in zip(pairs, scores_N3[:, 2], strict=True)
    ]
    libra = {**choices, "neither": 1}
    add("temporal-f1/libra", both_empty, None, "", "higher", **libra)

    unaided = [not prior_given(study) for study in studies]
    for i, texts, suffix in ((1, predictions, ""), (0, references, "/reference")):
        said = [pair[i] for pair in pairs]
        compares = [bool(r.comparison) and alone for r, alone in zip(said, unaided, strict=True)]
        count = "" if suffix else "hallucinated-prior/reports"
        lower: Better = "neither" if suffix else "lower"
        add(f"hallucinated-prior{suffix}", compares, unaided, count, lower, words=words, given="prior")
        add(f"words{suffix or '/generated'}", [r.words for r in said], kind="number", tok=tok)
        add(f"truncated{suffix}", [r.truncated for r in said], better=lower, end="full-stop")
        add(f"repeated-sentence{suffix}", [r.repeated_sentence for r in said], better=lower, least_words=2)
        add(
            f"repeated-4-grams{suffix}",
            [r.repeated_4_grams for r in said],
            better=lower,
            tok=tok,
            avg="report",
        )
        number = Counter(same := [" ".join(text.lower().split()) for text in texts])
        add(f"unique{suffix}", [1 / number[text] for text in same], case="lower", counted="sheet")
    add(
        "words/ratio",
        [hyp.words for _, hyp in pairs],
        [ref.words for ref, _ in pairs],
        kind="number",
        tok=tok,
    )
    add("empty", [not hyp.words for _, hyp in pairs], better="lower", tok=tok)

    sides_N2 = np.array([[len(found) for found in swapped_sides(*pair)] for pair in pairs]).reshape(-1, 2)
    choices = {"labeller": LABELLER, "words": words, "unc": "neg", "both_sides": "left-out"}
    add("side-swap", sides_N2[:, 1], sides_N2[:, 0], "side-swap/conditions", "lower", **choices)


# --- how it is shown --------------------------------------------------------------------------------------------------

SHOWN = {  # where it says nothing else, a share of reports; and the key of the same for the references
    "temporal-f1": ("words of change: F1", ""),
    "temporal-f1/libra": ("the same, no word of change on either side counts 1", ""),
    "hallucinated-prior": ("compares with a prior that was not given", "hallucinated-prior/reference"),
    "side-swap": ("wrong side, of findings with a side in both", ""),
    "words/generated": ("words", "words/reference"),
    "empty": ("empty", ""),
    "truncated": ("no end of a sentence", "truncated/reference"),
    "repeated-4-grams": ("repeated 4-grams, share of all", "repeated-4-grams/reference"),
    "repeated-sentence": ("says a sentence twice", "repeated-sentence/reference"),
    "unique": ("distinct texts", "unique/reference"),
}


def _tables(scores: Any) -> list[Grid]:
    rows = [
        (name, scores.scores.get(key), scores.scores.get(reference))
        for key, (name, reference) in SHOWN.items()
    ]
    return [Grid(TITLE, ("", "predictions", "references"), rows, "safety")]


TITLE = "Change, sides, length, repetition"
FAMILY = Family(
    "safety", TITLE, lambda sheet, reports: add_safety(sheet, reports.references, reports.predictions, reports.studies),
    (
        "temporal-precision", "temporal-recall", "temporal-f1", "hallucinated-prior", "words", "empty", "truncated",
        "repeated-sentence", "repeated-4-grams", "unique", "side-swap",
    ), _tables,
)  # fmt: skip
