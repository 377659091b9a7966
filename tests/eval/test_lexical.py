"""BLEU, ROUGE-L and METEOR against nltk, sacrebleu and rouge-score on random texts, and at the edges."""

import random
import warnings

import numpy as np
import pytest

from eval.scores import lexical
from eval.scores.lexical import (
    PROFILES,
    bleu_nltk,
    bleu_sacrebleu,
    bleu_statistics,
    lcs_length,
    lexical_samples,
    meteor,
    mteval_13a_tokens,
    nltk_totals,
    plain_tokens,
    ptb_words,
    rouge_l_tokens,
)

SENTENCE = "no effusion effusions the left lung clear clearing opacity , . heart is normal Normally 4.5 cm"
WORDS = SENTENCE.split()


def random_texts(seed, n=25, shortest=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(shortest, 14))) for _ in range(n)]


@pytest.mark.parametrize("seed", range(4))
def test_bleu_equals_nltk(seed):
    from nltk.translate.bleu_score import corpus_bleu

    refs = [t.split() for t in random_texts(seed)]
    more = [t.split() for t in random_texts(seed + 200)]
    hyps = [t.split() for t in random_texts(seed + 100, shortest=1)]
    stats = nltk_totals(bleu_statistics(list(zip(refs, more, strict=True)), hyps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in (1, 2, 3, 4):
            oracle = corpus_bleu(list(zip(refs, more, strict=True)), hyps, weights=(1 / n,) * n)
            assert bleu_nltk(stats.sum(axis=0))[n - 1] == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_texts", [1, 3, 25])
def test_bleu_equals_sacrebleu(seed, n_texts):
    from sacrebleu.metrics import BLEU

    refs, hyps = random_texts(seed, n_texts), random_texts(seed + 100, n_texts)
    stats = bleu_statistics([[mteval_13a_tokens(r)] for r in refs], [mteval_13a_tokens(h) for h in hyps])
    for n in (1, 2, 3, 4):
        oracle = BLEU(max_ngram_order=n).corpus_score(hyps, [refs]).score / 100
        assert bleu_sacrebleu(stats.sum(axis=0))[n - 1] == pytest.approx(oracle, abs=1e-12), n


@pytest.mark.parametrize("seed", range(4))
def test_weighted_sums_are_the_resampled_corpus(seed):
    """What the bootstrap relies on: weights times statistics = scoring the drawn texts again."""
    refs, hyps = random_texts(seed), random_texts(seed + 100)
    drawn = np.random.default_rng(seed).integers(0, len(refs), len(refs))
    for profile in PROFILES.values():
        whole = lexical_samples(refs, hyps, profile.name)
        again = lexical_samples([refs[i] for i in drawn], [hyps[i] for i in drawn], profile.name)
        weights = np.bincount(drawn, minlength=len(refs)).astype(float)
        assert profile.bleu(weights @ whole.bleu_NK) == pytest.approx(again.bleu(), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_lcs_equals_the_table(seed):
    for a, b in zip(random_texts(seed), random_texts(seed + 50), strict=True):
        a, b = a.split(), b.split()
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert lcs_length(a, b) == table[-1][-1]


def test_rouge_l_over_tokens_equals_rouge_score():
    scorer = lexical.rouge_scorer()
    for ref, hyp in zip(random_texts(3, 60), random_texts(4, 60), strict=True):
        ref, hyp = (" ".join(c for c in t.lower() if c.isalpha() or c == " ") for t in (ref, hyp))
        oracle = scorer.score(ref, hyp)["rougeL"].fmeasure
        assert rouge_l_tokens(ref.split(), hyp.split()) == pytest.approx(oracle, abs=1e-12)


def test_meteor_is_nltks_own_without_synonyms():
    from nltk.translate.meteor_score import single_meteor_score

    for ref, hyp in zip(random_texts(5, 40), random_texts(6, 40), strict=True):
        oracle = single_meteor_score(ref.split(), hyp.split(), wordnet=lexical.NoSynonyms())
        assert meteor(ref.split(), hyp.split()) == oracle


@pytest.mark.parametrize("profile", PROFILES)
def test_edges(profile):
    text = "The lungs are clear. No pleural effusion."
    same = lexical_samples([text], [text], profile)
    assert same.bleu()[3] == pytest.approx(1, abs=1e-6) and same.rouge_l_N[0] == 1
    empty = lexical_samples([text], [""], profile)
    assert list(empty.bleu()) == pytest.approx([0] * 4, abs=1e-9)
    assert empty.rouge_l_N[0] == 0 and empty.meteor_N[0] == 0
    other = lexical_samples([text], ["Cardiomegaly"], profile)
    assert list(other.bleu()) == pytest.approx([0] * 4, abs=1e-3)
    marks = lexical_samples([text], ["... ,,, !!!"], profile)
    assert np.isfinite(marks.bleu()).all() and np.isfinite(marks.rouge_l_N).all()


def test_a_missing_prediction_costs_its_length():
    refs = ["no pleural effusion is seen", "the heart is normal in size"]
    both = lexical_samples(refs, refs, "plain").bleu()[3]
    half = lexical_samples(refs, [refs[0], ""], "plain").bleu()[3]
    assert both == 1 and 0 < half < 0.5


@pytest.mark.timeout(60)
def test_a_report_of_ten_thousand_words():
    long = " ".join(random_texts(0, 1500, shortest=6))
    assert len(long.split()) > 10_000
    for profile in PROFILES:
        assert 0 <= lexical_samples(["No pleural effusion."], [long], profile).rouge_l_N[0] < 0.1


def test_tokens():
    assert plain_tokens("Left-sided 4.5 cm!") == ["left", "-", "sided", "4", ".", "5", "cm", "!"]
    expected = [
        "left-sided",
        "4.5",
        "cm",
        "do",
        "n't",
        "can",
        "not",
        "50",
        "%",
        "-lrb-",
        "patient",
        "'s",
        "-rrb-",
    ]
    assert ptb_words("Left-sided, 4.5 cm; don't cannot 50% (patient's).") == expected
    assert mteval_13a_tokens("No effusion.") == ["No", "effusion", "."]


def test_refuses():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        lexical_samples(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no lexical profile 'rouge'; there are coco, sacrebleu-13a, plain"):
        lexical_samples(["a"], ["a"], "rouge")
    with pytest.raises(ValueError, match="no reference"):
        bleu_statistics([[]], [["a"]])
