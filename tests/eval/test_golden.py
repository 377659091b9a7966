"""Golden values of upstream tools. Every case of every JSON file in golden/ is run by the first form that fits it."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.scores import lexical, radcliq, radgraph
from eval.scores.label_f1 import (
    FIVE,
    columns,
    confusion,
    example_f1,
    macro_f1_all,
    micro_f1,
    precision_recall_f1,
    weighted_f1,
)

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    case for path in sorted(GOLDEN.glob("*.json")) for case in json.loads(path.read_text()).get("cases", ())
]


def statistics(references, hypotheses, tokens=str.split):
    several = [[r] if isinstance(r, str) else r for r in references]
    return lexical.bleu_statistics(
        [[tokens(r) for r in refs] for refs in several], [tokens(h) for h in hypotheses]
    )


def check_bleu(case, tol):
    stats = lexical.nltk_totals(statistics(case["refs"], case["hyps"]))
    assert lexical.bleu_nltk(stats.sum(axis=0))[3] == pytest.approx(case["expected"], abs=tol)


def check_meteor(case, tol):
    for ref, hyp in zip(case["refs"], case["hyps"], strict=True):
        value = lexical.meteor(ref.split(), hyp.split())
        assert value == pytest.approx(case["expected"], abs=tol)
        if "exact" in case:
            assert value == pytest.approx(case["exact"], abs=1e-12)


def check_rouge_score(case, tol):
    kind = case["metric"].split()[0]
    stemmer = "no stemmer" not in case["metric"]
    result = lexical.rouge_scorer((kind,), stemmer).score(case["refs"][0], case["hyps"][0])[kind]
    assert [*result] == pytest.approx(case["expected"], abs=tol)


def check_coco(case, tol):
    expected = case["expected"]
    bleu = lexical.bleu_coco(statistics(case["refs"], case["hyps"]).sum(axis=0))
    assert list(bleu) == pytest.approx([expected[f"Bleu_{n}"] for n in (1, 2, 3, 4)], abs=tol)
    pairs = zip(case["refs"], case["hyps"], strict=True)
    rouge = [lexical.rouge_l_tokens(r.split(), h.split(), 1.2) for r, h in pairs]
    assert np.mean(rouge) == pytest.approx(expected["ROUGE_L_beta1.2"], abs=tol)


def check_lexical_table(case, tol):
    data, tol = case["data"], max(tol, 1e-6)
    refs, hyps = data["refs"], data["hyps"]
    lower = lambda tokens: lambda text: tokens(text.lower())  # noqa: E731
    for name, tokens in (("str.split", str.split), ("lower+wordpunct", lexical.plain_tokens)):
        stats = lexical.nltk_totals(statistics(refs, hyps, tokens))
        corpus = data["bleu"][f"nltk_corpus_bleu1..4[{name}]"]
        assert list(lexical.bleu_nltk(stats.sum(axis=0))) == pytest.approx(corpus, abs=tol)
        sentence = data["bleu"][f"nltk_sentence_bleu4_method1[{name}]"]
        assert list(lexical.bleu_nltk(stats, epsilon=0.1)[:, 3]) == pytest.approx(sentence, abs=tol)
    for flag, tokens in ((False, lexical.mteval_13a_tokens), (True, lower(lexical.mteval_13a_tokens))):
        bleu = 100 * lexical.bleu_sacrebleu(statistics(refs, hyps, tokens).sum(axis=0))
        for n in (1, 2, 4):
            assert bleu[n - 1] == pytest.approx(data["bleu"][f"sacrebleu13a_lc={flag}_max{n}"], abs=100 * tol)
    for stemmer in (False, True):
        for kind, expected in data["rouge"][f"rouge_score_stem={stemmer}"].items():
            scorer = lexical.rouge_scorer((kind,), stemmer)
            values = [scorer.score(r, h)[kind].fmeasure for r, h in zip(refs, hyps, strict=True)]
            assert values == pytest.approx(expected, abs=tol), kind
    for name, tokens in (("wordpunct", lexical.plain_tokens), ("split", str.split)):
        values = [lexical.meteor(tokens(r), tokens(h)) for r, h in zip(refs, hyps, strict=True)]
        assert values == pytest.approx(data["meteor"][f"nltk_no_wordnet_{name}"], abs=tol)
    # The coco profile against pycocoevalcap: equal on its PTB tokens, and our tokens equal its tokens on these texts.
    coco = {
        "pycocoevalcap_raw_whitespace": str.split,
        "pycocoevalcap_lower_whitespace": lower(str.split),
        "pycocoevalcap_PTB": lexical.ptb_words,
    }
    for name, tokens in coco.items():
        stats, expected = statistics(refs, hyps, tokens), data["bleu"][name]
        assert list(lexical.bleu_coco(stats.sum(axis=0))) == pytest.approx(expected["corpus"], abs=tol), name
        assert list(lexical.bleu_coco(stats)[:, 3]) == pytest.approx(expected["sentence_bleu4"], abs=tol), (
            name
        )
        assert list(lexical.bleu_coco(stats)[:, 1]) == pytest.approx(expected["sentence_bleu2"], abs=tol), (
            name
        )
    for name, tokens in (("raw", str.split), ("PTB", lexical.ptb_words)):
        values = [lexical.rouge_l_tokens(tokens(r), tokens(h), 1.2) for r, h in zip(refs, hyps, strict=True)]
        assert values == pytest.approx(data["rouge"][f"pycocoevalcap_rougeL_beta1.2_{name}"], abs=tol), name
    assert [" ".join(lexical.ptb_words(t)) for t in refs] == data["ptb_refs"]
    assert [" ".join(lexical.ptb_words(t)) for t in hyps] == data["ptb_hyps"]


def check_label_f1(case, tol):
    reference, predicted = np.array(case["ref_labels"]), np.array(case["hyp_labels"])
    counts_N3C = confusion(reference, predicted)
    for name, chosen in (("14", slice(None)), ("5", columns(FIVE))):
        expected, counts = case["expected"][name], counts_N3C[:, :, chosen]
        total = counts.sum(axis=0)
        precision, recall, _ = precision_recall_f1(total)
        pooled_p, pooled_r, _ = precision_recall_f1(total.sum(axis=-1, keepdims=True))
        got = {
            "micro_f1": micro_f1(total),
            "macro_f1": macro_f1_all(total),
            "weighted_f1": weighted_f1(total),
            "samples_f1": example_f1(counts).mean(),
            "micro": {"p": pooled_p[0], "r": pooled_r[0], "f1": micro_f1(total)},
            "macro": {"p": precision.mean(), "r": recall.mean(), "f1": macro_f1_all(total)},
        }
        for key, value in expected.items():
            assert got[key] == pytest.approx(value, abs=tol), (name, key)


def check_radcliq(case, tol):
    for name in ("v0", "v1"):
        constants = radcliq.VERSIONS[name]
        for field, value in (("mean", constants.mean), ("scale", constants.scale)):
            assert list(value) == case[name][field]
        assert list(constants.coefficients) == case[name]["coef"]
        assert list(radcliq.radcliq(case["features"], name)) == pytest.approx(
            case[f"expected_{name}"], abs=tol
        )


def check_radcliq_rows(case, tol):
    for row in case["rows"]:
        for name in ("v0", "v1"):
            found = radcliq.radcliq(row["features"], name)
            assert found == pytest.approx(row[f"radcliq_{name}"], abs=tol), (row["file"], row["model"])


def check_radgraph(case, tol):
    for pair in case["cases"]:
        sides = pair["ref"]["entities"], pair["hyp"]["entities"]
        for rule, expected in (("released", "expected_pypi_0_1_18"), ("lower", "expected_git_87f11a1")):
            f1 = dict(zip(radgraph.LEVELS, radgraph.rewards(*sides, rule)[:, 2], strict=True))
            assert f1 == pytest.approx(pair[expected], abs=tol), (pair["name"], rule)
        expected = pair["expected_cxr_report_metric"]
        entities, combined = radgraph.rewards(*sides)[0, 2], radgraph.entity_relation_f1(*sides)
        assert entities == pytest.approx(expected["entity_f1"], abs=tol), pair["name"]
        assert 2 * combined - entities == pytest.approx(expected["relation_f1"], abs=tol), pair["name"]
        assert combined == pytest.approx(expected["radgraph_combined"], abs=tol), pair["name"]


FORMS = (
    (lambda c: "expected_v0" in c, check_radcliq),
    (lambda c: "radcliq_v0" in c.get("rows", [{}])[0], check_radcliq_rows),
    (lambda c: "expected_git_87f11a1" in c.get("cases", [{}])[0], check_radgraph),
    (lambda c: "ref_labels" in c, check_label_f1),
    (lambda c: "bleu" in c.get("data", {}), check_lexical_table),
    (lambda c: c["metric"].startswith("BLEU-4"), check_bleu),
    (lambda c: c["metric"].startswith("METEOR nltk"), check_meteor),
    (lambda c: "rouge-score" in c["metric"], check_rouge_score),
    (lambda c: c["metric"].startswith("pycocoevalcap"), check_coco),
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_golden(case):
    check = next((check for fits, check in FORMS if fits(case)), None)
    if check is None:
        pytest.skip(f"this version has no score for: {case['metric']}")
    check(case, case.get("tol", 0))


def test_golden_cases_are_there():
    assert len(CASES) >= 10
