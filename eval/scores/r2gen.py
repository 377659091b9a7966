"""The R2Gen profile: BLEU, ROUGE and CIDEr as R2Gen and its followers score cleaned reports.

R2Gen (Chen et al., EMNLP 2020) cleans a report and scores it with pycocoevalcap, one reference per study. A token is
what stands between two spaces: no PTB tokenizer runs, and the full stops between sentences count as words. Followers
add CIDEr (R2GenGPT) and ROUGE-1 and -2 (CvT2DistilGPT2). `clean_report` cleans for IU X-Ray and for MIMIC-CXR.

| key                          | value                                                                              |
|------------------------------|------------------------------------------------------------------------------------|
| `r2gen/CLEANING/bleu-1` .. 4 | pycocoevalcap's corpus BLEU                                                        |
| `r2gen/CLEANING/rouge-l`     | pycocoevalcap's, beta 1.2                                                          |
| `r2gen/CLEANING/cider`       | pycocoevalcap's CIDEr, 0 to 10                                                     |
| `r2gen/CLEANING/rouge-1`, 2  | rouge-score's F1, no stems                                                         |

CIDEr weighs n-grams by how many references hold them. The frequencies are those of all references that are scored, also
in a bootstrap replicate or a subgroup (`df:refs`): each study then has one value, and CIDEr is their mean.

R2Gen cuts references to 60 (IU X-Ray) or 100 (MIMIC-CXR) tokens, which `max_tokens` does here. It also writes `<unk>`
for words that are rare in its training reports; that needs its vocabulary and is not done. Predictions are cleaned as
the references are: a model of R2Gen's writes cleaned text anyway. METEOR 1.5 is not computed: METEOR says why.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from eval.scores.family import Family, Reports
from eval.scores.lexical import ORDERS, Tokens, bleu_coco, bleu_statistics, lcs_length, rouge_scorer
from eval.scores.registry import NotComputed
from eval.scores.sheet import Sheet
from eval.signature import signature, version

VERSION = 1
"""Version of the cleaning in signatures."""
Cleaning = Literal["iu", "mimic"]
MAX_TOKENS = {"iu": 60, "mimic": 100}
"""To how many tokens R2Gen cuts its references."""
METEOR = NotComputed(
    "METEOR 1.5",
    "its aligner is a Java program with a paraphrase table and WordNet synonyms of its own, and any other METEOR has "
    "other values",
    "score it with pycocoevalcap where there is Java, or use meteor/coco, which has its own signature",
)

# --- cleaning ---------------------------------------------------------------------------------------------------------

_NUMBERING = (
    ("1. ", ""),
    *((f". {n}. ", ". ") for n in range(2, 6)),
    *((f" {n}. ", ". ") for n in range(2, 6)),
)
# Quotes and slashes join what they part; hyphens stay.
_REMOVED = re.compile(r"[\"/\\'.,?;*!%^&_+():<=>@\[\]{}]")


def clean_report(report: str, cleaning: Cleaning) -> str:
    """Clean a report as R2Gen does, with one space between tokens; an empty one stays empty.

    "1. " goes wherever it stands ("in 2011. The" becomes "in 201the"), and " 2. " to " 5. " end a sentence. Sentences
    part at ". ", letters become small, marks go, and " ." ends each sentence. MIMIC-CXR's lines are joined first, and
    runs of underscores, spaces and full stops become shorter. Raises ValueError for another cleaning.
    """
    if cleaning not in get_args(Cleaning):
        raise ValueError(f"no cleaning {cleaning!r}; there are {', '.join(get_args(Cleaning))}")
    if not report.strip():
        return ""
    if cleaning == "mimic":
        report = _halved(report.replace("\n", " "), "_", 7)
        report = _halved(_halved(report, " ", 6), ".", 8)
    else:
        report = _halved(report, ".", 3)
    for old, new in _NUMBERING:
        report = report.replace(old, new)
    sentences = (_REMOVED.sub("", sentence) for sentence in report.strip().lower().split(". "))
    return " ".join(" ".join([*sentence.split(), "."]) for sentence in sentences)


def _halved(text: str, mark: str, times: int) -> str:
    """Replace two marks by one, `times` times over."""
    for _ in range(times):
        text = text.replace(2 * mark, mark)
    return text


# --- scores -----------------------------------------------------------------------------------------------------------

SIGMA = 6.0
"""Width of CIDEr's penalty of different lengths."""


@dataclass(frozen=True)
class Frequencies:
    """In how many studies' references an n-gram occurs, and how many studies there are."""

    counts: Counter
    studies: int


def document_frequencies(references: Sequence[Sequence[Tokens]]) -> Frequencies:
    """Count n-grams of order 1 to 4 by study, over all references of each study."""
    counts: Counter = Counter()
    for refs in references:
        counts.update(set().union(*(_grams(ref) for ref in refs)))
    return Frequencies(counts, len(references))


def _grams(tokens: Tokens) -> Counter:
    return Counter(
        gram for n in range(1, ORDERS + 1) for gram in zip(*(tokens[i:] for i in range(n)), strict=False)
    )


def cider(
    references: Sequence[Sequence[Tokens]],
    hypotheses: Sequence[Tokens],
    frequencies: Frequencies | None = None,
) -> np.ndarray:
    """Return pycocoevalcap's CIDEr of each study, (N,), 0 to 10: Vedantam et al. (2015), CIDEr-D with clipped counts.

    The cosine of tf-idf vectors per order, a Gaussian penalty of the difference in bigrams, the mean over orders and
    references, times 10. `frequencies` are by default those of the references. With a single study all is 0.
    Raises ValueError if the counts differ.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    frequencies = frequencies or document_frequencies(references)
    log_n = math.log(max(frequencies.studies, 1))
    found = frequencies.counts

    def weighted(tokens: Tokens) -> tuple[list[dict], list[float]]:
        vectors: list[dict] = [{} for _ in range(ORDERS)]
        for gram, count in _grams(tokens).items():
            vectors[len(gram) - 1][gram] = count * (log_n - math.log(max(1, found[gram])))
        return vectors, [math.sqrt(sum(weight**2 for weight in v.values())) for v in vectors]

    scores = np.zeros(len(hypotheses))
    for i, (refs, hyp) in enumerate(zip(references, hypotheses, strict=True)):
        vectors, norms = weighted(hyp)
        for ref in refs:
            ref_vectors, ref_norms = weighted(ref)
            shorter = max(len(hyp) - 1, 0) - max(len(ref) - 1, 0)
            total = 0.0
            for vector, norm, ref_vector, ref_norm in zip(
                vectors, norms, ref_vectors, ref_norms, strict=True
            ):
                if norm and ref_norm:
                    common = sum(
                        min(vector[g], ref_vector[g]) * ref_vector[g] for g in vector if g in ref_vector
                    )
                    total += common / (norm * ref_norm)
            scores[i] += total * math.exp(-(shorter**2) / (2 * SIGMA**2))
        scores[i] *= 10 / (ORDERS * len(refs))
    return scores


def rouge_l_coco(references: Sequence[Tokens], hypothesis: Tokens, beta: float = 1.2) -> float:
    """Return pycocoevalcap's ROUGE-L of one study: the best precision with the best recall over its references."""
    common = [lcs_length(ref, hypothesis) for ref in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(c / len(ref) for c, ref in zip(common, references, strict=True) if ref)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


# --- samples and sheet ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class R2GenSamples:
    """Hold what the profile keeps of N studies."""

    cleaning: Cleaning
    max_tokens: int | None
    bleu_NK: np.ndarray  # int64 (N, lexical.STATISTICS)
    rouge_l_N: np.ndarray
    cider_N: np.ndarray
    rouge_1_N: np.ndarray
    rouge_2_N: np.ndarray

    def bleu(self) -> np.ndarray:
        """Return the corpus BLEU-1..4, (4,)."""
        return bleu_coco(self.bleu_NK.sum(axis=0))


def r2gen_samples(
    references: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    cleaning: Cleaning = "mimic",
    *,
    max_tokens: int | None = None,
) -> R2GenSamples:
    """Clean both sides and score N predictions, each against a reference or several.

    `max_tokens` cuts the references (MAX_TOKENS holds R2Gen's lengths); None keeps them whole. Raises ValueError for
    unequal counts, another cleaning, or a study without a reference.
    """
    several = [[r] if isinstance(r, str) else list(r) for r in references]
    if len(several) != len(predictions):
        raise ValueError(f"{len(several)} references but {len(predictions)} predictions")
    refs = [[clean_report(r, cleaning).split()[:max_tokens] for r in each] for each in several]
    hyps = [clean_report(text, cleaning).split() for text in predictions]
    bleu_NK = bleu_statistics(refs, hyps)
    scorer = rouge_scorer(("rouge1", "rouge2"))
    best_N2 = np.zeros((len(hyps), 2))
    for row, each, hyp in zip(best_N2, refs, hyps, strict=True):
        found = [scorer.score(" ".join(ref), " ".join(hyp)) for ref in each]
        row[:] = [max(f[kind].fmeasure for f in found) for kind in ("rouge1", "rouge2")]
    rouge_l_N = np.array([rouge_l_coco(each, hyp) for each, hyp in zip(refs, hyps, strict=True)])
    return R2GenSamples(
        cleaning, max_tokens, bleu_NK, rouge_l_N, cider(refs, hyps), best_N2[:, 0], best_N2[:, 1]
    )


def add_r2gen(sheet: Sheet, samples: R2GenSamples) -> None:
    """Put the scores of the profile on a sheet, under `r2gen/CLEANING/...`."""
    where = sheet.columns(samples.bleu_NK)
    base = {"clean": f"r2gen-{samples.cleaning}-{VERSION}", "max": samples.max_tokens, "tok": "space"}

    def key(name: str) -> str:
        return f"r2gen/{samples.cleaning}/{name}"

    def shown(title: str) -> dict[str, Any]:
        return {"title": f"{title} R2Gen ({samples.cleaning})"}

    for n in range(1, ORDERS + 1):
        sheet.add(
            key(f"bleu-{n}"), signature(f"bleu-{n}", **base, smooth="none"),
            lambda sums, n=n: bleu_coco(sums)[..., n - 1], where, **shown(f"BLEU-{n}"),
        )  # fmt: skip
    details = signature("rouge-l", **base, beta="1.2")
    sheet.add_mean(key("rouge-l"), details, samples.rouge_l_N, **shown("ROUGE-L"))
    details = signature("cider", **base, df="refs", n=ORDERS, sigma=f"{SIGMA:g}")
    sheet.add_mean(key("cider"), details, samples.cider_N, **shown("CIDEr"))
    tool = {"clean": base["clean"], "max": base["max"], "tool": f"rouge-score-{version('rouge-score')}"}
    for n, values_N in ((1, samples.rouge_1_N), (2, samples.rouge_2_N)):
        details = signature(f"rouge-{n}", **tool, stem="no")
        sheet.add_mean(key(f"rouge-{n}"), details, values_N, **shown(f"ROUGE-{n}"))


NAMES = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "cider", "rouge-1", "rouge-2")
PROFILES = tuple(f"r2gen-{cleaning}" for cleaning in get_args(Cleaning))
"""Names by which the profile is asked for."""


def _add(sheet: Sheet, reports: Reports) -> None:
    cleanings = [name.removeprefix("r2gen-") for name in reports.profiles if name in PROFILES]
    if reports.key:
        cleanings = reports.key.split("/")[1:2]
    for cleaning in cleanings if not reports.headline_only else ():
        add_r2gen(sheet, r2gen_samples(reports.several or reports.references, reports.predictions, cleaning))


def not_computed(profiles: Sequence[str]) -> list[NotComputed]:
    """Return what R2Gen reports and this does not, where one of its profiles is asked for."""
    return [METEOR] if set(profiles) & set(PROFILES) else []


FAMILY = Family(
    "r2gen", "R2Gen's profile", _add,
    known=tuple(f"r2gen/{cleaning}/{name}" for cleaning in get_args(Cleaning) for name in NAMES),
    several=True,
)  # fmt: skip
