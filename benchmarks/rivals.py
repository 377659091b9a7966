"""Claim: where definitions are equal our numbers equal those of RadEval, pycocoevalcap, sacrebleu and rouge-score, and
take a fraction of the time.

    pip install --no-deps radeval pycocoevalcap      # in an environment of its own; no weights and no Java are needed
    CXR_DATA=FOLDER python benchmarks/rivals.py [--pairs 2000] [--save]

Pairs are findings of Open-i (CXR_DATA/iu_text): each report's "prediction" is the report of another study, so that
scores are neither 0 nor 1. Both sides see the same texts in the same run, processor time is counted, the best of three
turns. RadEval and pycocoevalcap split BLEU's texts at spaces; so does ours here, through the same functions that
`cxr score` uses. A paired test of BLEU-4 costs RadEval a scoring a permutation: what one costs is measured, and the
10,000 of `cxr score` are reckoned from it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from eval.resampling import paired_permutation
from eval.scores.lexical import (
    bleu_coco,
    bleu_sacrebleu,
    bleu_statistics,
    meteor,
    mteval_13a_tokens,
    plain_tokens,
    rouge_l_tokens,
    rouge_scorer,
)

TURNS = 3


def pairs_of(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """References and predictions: findings of Open-i, and those of the study 17 further on."""
    lines = (folder / "iu_text" / "studies.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [s["findings"] for s in map(json.loads, lines) if s.get("findings")][:count]
    return texts, texts[17:] + texts[:17]


def timed(work: Callable[[], object]) -> tuple[object, float]:
    """The result and the least processor time of some turns; what is printed is not shown."""
    best, found = float("inf"), None
    for _ in range(TURNS):
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            found = work()
        best = min(best, time.process_time() - start)
    return found, best


def split_bleu(refs: list[str], hyps: list[str]) -> np.ndarray:
    return bleu_statistics([[r.split()] for r in refs], [h.split() for h in hyps])


def cases(refs: list[str], hyps: list[str]) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name -> ours and theirs, each gives numbers to compare."""
    from nltk.translate.meteor_score import single_meteor_score
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge
    from radeval import RadEval
    from sacrebleu.metrics import BLEU

    from eval.scores.lexical import NoSynonyms

    gts, res = ({i: [t] for i, t in enumerate(side)} for side in (refs, hyps))

    def radeval(*names: str) -> dict:
        return RadEval(metrics=list(names), show_progress=False)(refs=refs, hyps=hyps)

    def stems() -> np.ndarray:
        kinds = ("rouge1", "rouge2", "rougeL")
        scorer = rouge_scorer(kinds, stemmer=True)
        found = [scorer.score(r, h) for r, h in zip(refs, hyps, strict=True)]
        return np.array([np.mean([f[k].fmeasure for f in found]) for k in kinds])

    def meteors() -> float:
        return float(
            np.mean([meteor(plain_tokens(r), plain_tokens(h)) for r, h in zip(refs, hyps, strict=True)])
        )

    def nltk_meteors() -> float:
        words = [(plain_tokens(r), plain_tokens(h)) for r, h in zip(refs, hyps, strict=True)]
        return float(np.mean([single_meteor_score(r, h, wordnet=NoSynonyms()) for r, h in words]))

    thirteen_a = lambda: bleu_sacrebleu(  # noqa: E731
        bleu_statistics([[mteval_13a_tokens(r)] for r in refs], [mteval_13a_tokens(h) for h in hyps]).sum(0)
    )[3]
    return {
        "BLEU-1 to 4, pycocoevalcap": (
            lambda: bleu_coco(split_bleu(refs, hyps).sum(0)), lambda: Bleu(4).compute_score(gts, res, verbose=0)[0]
        ),
        "ROUGE-L, pycocoevalcap": (
            lambda: np.mean([rouge_l_tokens(r.split(" "), h.split(" "), 1.2) for r, h in zip(refs, hyps, strict=True)]),
            lambda: Rouge().compute_score(gts, res)[0],
        ),
        "BLEU-4, RadEval": (
            lambda: bleu_coco(split_bleu(refs, hyps).sum(0))[3], lambda: radeval("bleu")["bleu"]
        ),
        "ROUGE-1, 2, L with stems, RadEval": (
            stems, lambda: list(radeval("rouge").values())
        ),
        "BLEU-4 13a, sacrebleu": (thirteen_a, lambda: BLEU().corpus_score(hyps, [refs]).score / 100),
        "METEOR without WordNet, nltk": (meteors, nltk_meteors),
    }  # fmt: skip


def permutation(refs: list[str], hyps: list[str]) -> dict:
    """A paired test of BLEU-4 between two systems: ours with 10,000 permutations, RadEval's with 20."""
    from radeval import RadEval, compare_systems

    others = hyps[5:] + hyps[:5]
    a_NK, b_NK = split_bleu(refs, hyps), split_bleu(refs, others)
    _, ours = timed(
        lambda: paired_permutation(lambda s: bleu_coco(s)[..., 3], a_NK, b_NK, n_permutations=10_000)
    )
    score = RadEval(metrics=["bleu"], show_progress=False)
    measure = {"bleu": lambda hyp, ref: score(refs=ref, hyps=hyp)["bleu"]}
    count = 20
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        compare_systems(
            {"a": hyps, "b": others}, measure, references=refs, n_samples=count, print_results=False
        )
    each = (time.process_time() - start) / count
    return {"ours_seconds": ours, "theirs_seconds_a_permutation": each, "times_as_fast": 10_000 * each / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/rivals.json")
    args = parser.parse_args()
    if "CXR_DATA" not in os.environ:
        parser.error("CXR_DATA is not set: there are no reports")
    for package in ("radeval", "pycocoevalcap", "sacrebleu"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            parser.error(f"{error}; pip install --no-deps radeval pycocoevalcap")
    refs, hyps = pairs_of(Path(os.environ["CXR_DATA"]), args.pairs)
    rows = {}
    for name, (ours, theirs) in cases(refs, hyps).items():
        (a, a_seconds), (b, b_seconds) = timed(ours), timed(theirs)
        gap = float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())
        rows[name] = {
            "value": np.asarray(a, float).ravel().round(6).tolist(), "greatest_difference": gap,
            "ours_seconds": round(a_seconds, 3), "theirs_seconds": round(b_seconds, 3),
            "times_as_fast": round(b_seconds / a_seconds, 2),
        }  # fmt: skip
        print(name, rows[name], flush=True)
    test = permutation(refs, hyps)
    print("paired test", test)
    if args.save:
        packages = {}
        for package in ("radeval", "pycocoevalcap", "sacrebleu", "nltk", "rouge-score"):
            with contextlib.suppress(PackageNotFoundError):
                packages[package] = version(package)
        about = {
            "machine": f"{platform.machine()}, one core", "date": date.today().isoformat(), "pairs": len(refs),
            "packages": packages, "scores": rows, "paired test of BLEU-4": test,
        }  # fmt: skip
        file = Path(__file__).parent / "results" / "rivals.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
