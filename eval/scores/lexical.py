"""BLEU, ROUGE-L and METEOR under three named profiles: under common tools the same texts score BLEU-4 .33 to .49.

| profile         | tokens                                | BLEU                             | ROUGE-L               |
|-----------------|---------------------------------------|----------------------------------|-----------------------|
| `coco`          | PTB, lower case, no punctuation       | pycocoevalcap's formula          | beta 1.2, as there    |
| `sacrebleu-13a` | mteval 13a, case kept                 | sacrebleu's, smoothing exp       | rouge-score, no stems |
| `plain`         | lower-case words, punctuation marks   | nltk's corpus BLEU, no smoothing | F1 over these tokens  |

METEOR is nltk's in every profile, with exact and stem matches and no WordNet, so that it needs no download and has one
value everywhere (the METEOR 1.5 jar of the captioning literature gives about half of it: never compare). Under
`sacrebleu-13a` its words are those of `plain`. All scores are fractions in [0, 1].

BLEU is kept as sufficient statistics per sample, columns [matches 1..4, n-grams 1..4, length, reference length], whose
sums determine the corpus score: the bootstrap weighs and sums them instead of scoring again.

The tokens of `coco` equal those of the Java program behind pycocoevalcap (`eval.scores.ptb`). Two things differ:
ROUGE-L of two empty texts is 0, not 1, and of several references the best F counts, not the best precision with the
best recall.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from eval.scores import ptb
from eval.scores.family import Family, Grid, Reports
from eval.scores.ptb import ptb_tokens, ptb_words
from eval.scores.sheet import Sheet
from eval.signature import signature, version

Tokens = Sequence[str]
VERSION = 1
"""Version of our tokens in signatures; raise it with every change that can change one."""
ORDERS = 4
STATISTICS = 2 * ORDERS + 2
"""Columns of the BLEU statistics."""


# --- tokens -----------------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"\w+|[^\w\s]")


def plain_tokens(text: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return _PLAIN.findall(text.lower())


@cache
def _tokenizer_13a() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def mteval_13a_tokens(text: str) -> list[str]:
    """Tokenise as sacrebleu's 13a does, case kept."""
    return _tokenizer_13a()(text.strip()).split()


# --- BLEU -------------------------------------------------------------------------------------------------------------


def bleu_statistics(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> np.ndarray:
    """Return sufficient statistics of BLEU-1..4, int64 (N, STATISTICS); every hypothesis may have several
    references.

    The reference length is that of the closest in length, the shorter of two equally close ones. Raises ValueError if
    the counts differ or a hypothesis has no reference.
    """
    _same_length(references, hypotheses)
    stats_NK = np.zeros((len(hypotheses), STATISTICS), dtype=np.int64)
    for row, refs, hyp in zip(stats_NK, references, hypotheses, strict=True):
        if not refs:
            raise ValueError("a hypothesis has no reference")
        for n in range(1, ORDERS + 1):
            counts = _ngrams(hyp, n)
            best: Counter = Counter()
            for ref in refs:
                best |= _ngrams(ref, n)
            row[n - 1] = sum((counts & best).values())
            row[ORDERS + n - 1] = max(len(hyp) - n + 1, 0)
        row[2 * ORDERS] = len(hyp)
        row[2 * ORDERS + 1] = min((abs(len(r) - len(hyp)), len(r)) for r in refs)[1]
    return stats_NK


def _ngrams(tokens: Tokens, n: int) -> Counter:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def bleu_coco(stats: np.ndarray, tiny: float = 1e-15, small: float = 1e-9) -> np.ndarray:
    """Return pycocoevalcap's BLEU-1..4, (..., 4), from sums of statistics (..., STATISTICS)."""
    match, total, length, ref_length = _columns(stats)
    precision = (match + tiny) / (total + small)
    bleu = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + tiny) / (ref_length + small)
    return bleu * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)[..., None]


def bleu_sacrebleu(stats: np.ndarray) -> np.ndarray:
    """Return sacrebleu's corpus BLEU with max_ngram_order 1..4 and smoothing "exp", (..., 4), as
    fractions."""
    match, total, length, ref_length = _columns(stats)
    missed = np.cumsum((match == 0) & (total > 0), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(match > 0, match / total, 0.5**missed / total)
    precision = np.where(total > 0, precision, 0.0)
    # sacrebleu looks at all orders for "no match at all"; with one missing order nothing above it can match
    return _geometric(precision, match[..., :1] > 0, _brevity(length, ref_length))


def sentence_bleu_sacrebleu(stats: np.ndarray) -> np.ndarray:
    """Return sacrebleu's sentence BLEU with max_ngram_order 1..4, (..., 4): orders longer than the text do not count
    (`effective_order`)."""
    bleu = bleu_sacrebleu(stats)
    total = _columns(stats)[1]
    longest = np.maximum((total > 0).sum(axis=-1, keepdims=True), 1)
    return np.take_along_axis(bleu, np.minimum(np.arange(1, ORDERS + 1), longest) - 1, axis=-1)


def bleu_nltk(stats: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """Return nltk's BLEU-1..4, (..., 4), from sums over samples of `nltk_totals(statistics)`.

    `epsilon` is added to matches of zero: 0 is nltk's corpus BLEU without smoothing, 0.1 its smoothing `method1`.
    """
    match, total, length, ref_length = _columns(stats)
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothed = epsilon / total if epsilon else np.finfo(float).tiny
        precision = np.where(match > 0, match / total, smoothed)
    return _geometric(precision, match[..., :1] > 0, _brevity(length, ref_length))


def nltk_totals(stats_NK: np.ndarray) -> np.ndarray:
    """Return the totals as nltk counts them: at least one n-gram per hypothesis, even in one shorter than
    n."""
    stats_NK = stats_NK.copy()
    stats_NK[:, ORDERS : 2 * ORDERS] = np.maximum(stats_NK[:, ORDERS : 2 * ORDERS], 1)
    return stats_NK


def _columns(stats: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    stats = np.asarray(stats, dtype=np.float64)
    return stats[..., :ORDERS], stats[..., ORDERS : 2 * ORDERS], stats[..., -2], stats[..., -1]


def _brevity(length: np.ndarray, ref_length: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        penalty = np.where(length < ref_length, np.exp(1 - ref_length / length), 1.0)
    return np.where(length > 0, penalty, 0.0)


def _geometric(precision: np.ndarray, matched: np.ndarray, brevity: np.ndarray) -> np.ndarray:
    """Geometric mean of the first 1..4 precisions; 0 where not one word matched."""
    with np.errstate(divide="ignore"):
        mean = np.exp(np.cumsum(np.log(precision), axis=-1) / np.arange(1, ORDERS + 1))
    return np.where(matched, mean * brevity[..., None], 0.0)


def bleu_2(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """Return RadCliQ's sentence BLEU-2, (N,): lower case, full stops apart, split at spaces, smoothed as
    nltk's method1."""
    references, predictions = (
        [text.lower().replace(".", " .").split() for text in texts] for texts in (references, predictions)
    )
    stats_NK = nltk_totals(bleu_statistics([[r] for r in references], predictions))
    return bleu_nltk(stats_NK, epsilon=0.1)[:, 1]


# --- ROUGE-L ----------------------------------------------------------------------------------------------------------


def lcs_length(a: Tokens, b: Tokens) -> int:
    """Return the length of the longest common subsequence, bit-parallel (Hyyroe 2004): one big-integer step
    per token of `b`."""
    where: dict[str, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | (1 << i)
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        hit = row & where.get(token, 0)
        row = ((row + hit) | (row - hit)) & full
    return len(a) - row.bit_count()


def rouge_l_tokens(reference: Tokens, hypothesis: Tokens, beta: float = 1.0) -> float:
    """Return the ROUGE-L F over tokens, recall weighted `beta` times as much as precision (pycocoevalcap:
    1.2)."""
    common = lcs_length(reference, hypothesis)
    if not common:
        return 0.0
    precision, recall = common / len(hypothesis), common / len(reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


@cache
def rouge_scorer(kinds: tuple[str, ...] = ("rougeL",), stemmer: bool = False):
    """Return rouge-score's scorer, with its own tokenizer."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=stemmer)


# --- METEOR -----------------------------------------------------------------------------------------------------------


class NoSynonyms:
    """Stand in for WordNet: no word has synonyms, so METEOR matches words and stems and needs no download."""

    def synsets(self, word: str) -> list:
        """Return no synonyms, whatever the word."""
        return []


@cache
def _meteor_tools():
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    porter = PorterStemmer()

    class CachedStemmer:
        stem = staticmethod(lru_cache(maxsize=65536)(porter.stem))

    return single_meteor_score, CachedStemmer(), NoSynonyms()


def meteor(reference: Tokens, hypothesis: Tokens) -> float:
    """Return nltk's METEOR (alpha 0.9, beta 3, gamma 0.5) of one pair, exact and stem matches, no WordNet."""
    score, stemmer, wordnet = _meteor_tools()
    return float(score(reference, hypothesis, stemmer=stemmer, wordnet=wordnet))


# --- profiles ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """One way to compute the lexical scores; its details go into the signatures."""

    name: str
    tokens: Callable[[str], list[str]]
    bleu: Callable[[np.ndarray], np.ndarray]  # sums of statistics (..., STATISTICS) -> BLEU-1..4 (..., 4)
    rouge_l: Callable[[str, str], float]  # reference and hypothesis text
    meteor_tokens: Callable[[str], list[str]]
    bleu_details: dict[str, str]
    rouge_details: dict[str, str]
    meteor_details: dict[str, str]
    # per-sample correction of statistics
    prepare: Callable[[np.ndarray], np.ndarray] = lambda stats_NK: stats_NK
    # BLEU-1..4 of one study, where it is another formula than of a corpus
    sentence_bleu: Callable[[np.ndarray], np.ndarray] | None = None


def _rouge_over(tokens: Callable[[str], list[str]], beta: float) -> Callable[[str, str], float]:
    return lambda ref, hyp: rouge_l_tokens(tokens(ref), tokens(hyp), beta)


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile(
            name="coco",
            tokens=ptb_words,
            bleu=bleu_coco,
            rouge_l=_rouge_over(ptb_tokens, 1.2),
            meteor_tokens=ptb_words,
            bleu_details={"tok": f"ptb-{ptb.VERSION}", "case": "lower", "smooth": "none"},
            rouge_details={"tok": f"ptb-{ptb.VERSION}", "beta": "1.2"},
            meteor_details={"tok": f"ptb-{ptb.VERSION}"},
        ),
        Profile(
            name="sacrebleu-13a",
            tokens=mteval_13a_tokens,
            bleu=bleu_sacrebleu,
            rouge_l=lambda ref, hyp: rouge_scorer().score(ref, hyp)["rougeL"].fmeasure,
            meteor_tokens=plain_tokens,
            sentence_bleu=sentence_bleu_sacrebleu,
            bleu_details={"tok": "13a", "case": "mixed", "smooth": "exp", "tool": "sacrebleu"},
            rouge_details={"tool": "rouge-score", "stem": "no"},
            meteor_details={"tok": f"plain-{VERSION}"},
        ),
        Profile(
            name="plain",
            tokens=plain_tokens,
            bleu=bleu_nltk,
            rouge_l=_rouge_over(plain_tokens, 1.0),
            meteor_tokens=plain_tokens,
            bleu_details={"tok": f"plain-{VERSION}", "case": "lower", "smooth": "none", "formula": "nltk"},
            rouge_details={"tok": f"plain-{VERSION}", "beta": "1"},
            meteor_details={"tok": f"plain-{VERSION}"},
            prepare=nltk_totals,
        ),
    )
}


@dataclass(frozen=True)
class LexicalSamples:
    """Hold what one profile keeps of N pairs."""

    profile: Profile
    bleu_NK: np.ndarray  # int64 (N, STATISTICS)
    rouge_l_N: np.ndarray  # float64 (N,)
    meteor_N: np.ndarray | None  # float64 (N,); None where it was not asked for

    def bleu(self) -> np.ndarray:
        """Return the corpus BLEU-1..4, (4,)."""
        return self.profile.bleu(self.bleu_NK.sum(axis=0))


def lexical_samples(
    references: Sequence[str | Sequence[str]],
    hypotheses: Sequence[str],
    profile: str = "coco",
    *,
    with_meteor: bool = True,
) -> LexicalSamples:
    """Score N hypotheses under a profile, each against a reference or several. An empty hypothesis scores 0 and counts
    with its reference's length.

    Of several references BLEU takes the most matches of an n-gram and the closest length, ROUGE-L and METEOR the best
    score. Raises ValueError for an unknown profile, unequal counts, or a hypothesis without a reference.
    """
    _same_length(references, hypotheses)
    if profile not in PROFILES:
        raise ValueError(f"no lexical profile {profile!r}; there are {', '.join(PROFILES)}")
    p = PROFILES[profile]
    several = [[r] if isinstance(r, str) else list(r) for r in references]
    pairs = list(zip(several, hypotheses, strict=True))
    stats_NK = bleu_statistics(
        [[p.tokens(r) for r in refs] for refs in several], [p.tokens(h) for h in hypotheses]
    )
    rouge_l_N = np.array([max(p.rouge_l(r, h) for r in refs) for refs, h in pairs], dtype=np.float64)
    meteor_N = None
    if with_meteor:
        words = [([p.meteor_tokens(r) for r in refs], p.meteor_tokens(h)) for refs, h in pairs]
        meteor_N = np.array([max(meteor(r, h) for r in refs) for refs, h in words], dtype=np.float64)
    return LexicalSamples(p, p.prepare(stats_NK), rouge_l_N, meteor_N)


def closest(several: Sequence[Sequence[str]], predictions: Sequence[str]) -> list[str]:
    """Return, of each study's references, the closest to its prediction by ROUGE-L (coco); the first of equals."""
    close = PROFILES["coco"].rouge_l
    return [
        max(refs, key=lambda ref: close(ref, text)) if len(refs) > 1 else refs[0]
        for refs, text in zip(several, predictions, strict=True)
    ]


def _same_length(references: Sequence, hypotheses: Sequence) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")


def add_lexical(sheet: Sheet, samples: LexicalSamples) -> None:
    """Put the scores of one profile on a sheet: `bleu-1/coco` .. `bleu-4/coco`, `rouge-l/coco`, `meteor/coco`."""
    p = samples.profile
    where = sheet.columns(samples.bleu_NK)

    def shown(name: str, title: str) -> dict[str, Any]:
        return {"title": f"{title} {p.name}", "headline": f"{name}/{p.name}" in HEADLINES}

    for n in range(1, ORDERS + 1):
        name = f"bleu-{n}"
        details = signature(name, profile=p.name, **_tool_version(p.bleu_details))
        sheet.add(
            f"{name}/{p.name}", details, lambda sums, n=n: p.bleu(sums)[..., n - 1], where,
            each=(lambda sums, n=n: p.sentence_bleu(sums)[..., n - 1]) if p.sentence_bleu else None,
            **shown(name, f"BLEU-{n}"),
        )  # fmt: skip
    details = signature("rouge-l", profile=p.name, **_tool_version(p.rouge_details))
    sheet.add_mean(f"rouge-l/{p.name}", details, samples.rouge_l_N, **shown("rouge-l", "ROUGE-L"))
    if samples.meteor_N is not None:
        details = signature(
            "meteor", profile=p.name, **_tool_version({**p.meteor_details, "tool": "nltk"}), wordnet="none"
        )
        sheet.add_mean(f"meteor/{p.name}", details, samples.meteor_N, **shown("meteor", "METEOR"))


def _tool_version(details: dict[str, str]) -> dict[str, str]:
    if "tool" not in details:
        return details
    return {**details, "tool": f"{details['tool']}-{version(details['tool'])}"}


# --- how it is shown --------------------------------------------------------------------------------------------------

NAMES = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "meteor")
HEADLINES = ("bleu-4/coco", "rouge-l/coco")


def _add(sheet: Sheet, reports: Reports) -> None:
    profiles = list(reports.profiles)
    if reports.key:
        profiles = [reports.key.partition("/")[2]]
    if reports.headline_only:
        profiles = ["coco"]
    for name in profiles:
        if name in PROFILES:
            with_meteor = not reports.headline_only
            samples = lexical_samples(
                reports.several or reports.references, reports.predictions, name, with_meteor=with_meteor
            )
            add_lexical(sheet, samples)
    if reports.key == "bleu-2/rexrank" or not (reports.key or reports.headline_only):
        _add_rexrank(sheet, reports)


def _add_rexrank(sheet: Sheet, reports: Reports) -> None:
    """Put the leaderboard's BLEU on a sheet, the mean of BLEU-2 of single reports: `bleu-2/rexrank`."""
    details = signature(
        "bleu-2", profile="rexrank", tok="spaces", case="lower", smooth="method1", avg="report"
    )
    values_N = bleu_2(reports.references, reports.predictions)
    # Of several references it takes the closest alone, unlike the rest of its family.
    more, sheet.more = sheet.more, sheet.more.replace("refs:all", "refs:closest")
    sheet.add_mean("bleu-2/rexrank", details, values_N, title="BLEU-2 of ReXrank")
    sheet.more = more


def profiles_of(scores: Any) -> list[str]:
    """Return the names of the profiles that BLEU-4 was computed with, in the order of the scores."""
    return [key.split("/")[1] for key in scores.scores if key.startswith("bleu-4/")]


def _tables(scores: Any) -> list[Grid]:
    profiles = profiles_of(scores)
    rows: list[tuple[Any, ...]] = [
        (name.upper(), *(scores.scores.get(f"{name}/{p}") for p in profiles)) for name in NAMES
    ]
    if rexrank := scores.scores.get("bleu-2/rexrank"):
        rows.append((rexrank.title, rexrank, *([None] * (len(profiles) - 1))))
    rows = [row for row in rows if any(row[1:])]
    return [Grid("Text overlap by profile", ("", *profiles), rows, "overlap")]


FAMILY = Family(
    "lexical", "Text overlap by profile", _add, NAMES, _tables,
    known=(*(f"{name}/{profile}" for name in NAMES for profile in PROFILES), "bleu-2/rexrank"), several=True,
)  # fmt: skip
