"""Attention-pooled heads: equal to the formula, and finding in one patch what a mean over all of them hides."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from eval.probes.attentive import AttentiveHeads, AttentiveTraining, attentive_probe
from eval.probes.findings import linear_probe
from eval.probes.judged import Part
from eval.probes.results import measured

NAMES = ["planted", "noise", "one kind"]
PATCHES, WIDTH = 25, 8
QUICK = AttentiveTraining(rates=(3e-3, 3e-2), epochs=12)


def images(seed: int, n: int):
    """One patch of 25 has another direction in images with `planted`; others have it weakly, so that no sum tells."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(n, PATCHES, WIDTH)).astype(np.float32)
    y = (rng.random((n, 3)) < 0.4).astype(float)
    y[:, 2] = 0
    at = rng.integers(PATCHES, size=n)
    tokens[np.arange(n), at, 3] += 6 * y[:, 0]
    tokens[..., 3] -= (tokens[..., 3].mean(1) - rng.normal(size=n) / 5)[:, None]
    y[:, :2][rng.random((n, 2)) < 0.1] = np.nan
    return tokens * 3 + 7, Part(np.arange(n)[:, None], y, [f"{seed}-{i}" for i in range(n)])


SPLITS = [images(0, 300), images(1, 150), images(2, 200)]
ALL = np.concatenate([tokens for tokens, _ in SPLITS])
STARTS = np.cumsum([0, 300, 150])
PARTS = [Part(p.x_NC + start, p.y_NL, p.patients) for (_, p), start in zip(SPLITS, STARTS, strict=True)]


def tokens_of(rows):
    return torch.from_numpy(ALL[np.asarray(rows)])


def quiet(line):
    pass


def test_heads_are_the_formula_and_begin_as_a_constant():
    options = AttentiveTraining(queries=2, rates=(1e-3, 1e-2, 1e-1))
    mean, std = torch.randn(WIDTH), torch.rand(WIDTH) + 0.5
    model = AttentiveHeads(mean, std, torch.tensor([0.3, -2.0]), options)
    x = torch.randn(4, PATCHES, WIDTH)
    torch.testing.assert_close(model(x), torch.tensor([0.3, -2.0]).expand(4, 3, 2))
    weights = {k: torch.randn_like(v) for k, v in model.named_parameters()}
    found = functional_call(model, weights, (x,)).double()
    z = (x.double() - mean) / std
    for image in range(4):
        for rate in range(3):
            for label in range(2):
                query, head = (weights[f"{k}_JLHC.{rate}"][label].double() for k in ("query", "head"))
                logit = weights[f"bias_JL.{rate}"][label].double()
                for h in range(2):
                    logit = logit + (z[image] @ query[h]).softmax(0) @ (z[image] @ head[h])
                torch.testing.assert_close(found[image, rate, label], logit, rtol=1e-4, atol=1e-4)


def test_a_patch_is_found_that_the_mean_hides():
    judged = attentive_probe(tokens_of, *PARTS, NAMES, options=QUICK, say=quiet)
    planted, noise, *_ = measured(judged, "auroc", n_boot=100)
    assert planted.low > 0.9 and noise.low < 0.5 < noise.high
    means = [Part(ALL[p.x_NC[:, 0]].mean(1), p.y_NL, p.patients) for p in PARTS]
    assert measured(linear_probe(*means, NAMES), "auroc", n_boot=100)[0].value < 0.65
    assert "head:attentive" in planted.signature and "features:patches" in planted.signature
    assert judged.chosen[0][0]["rate"] in QUICK.rates and 1 <= judged.chosen[0][0]["epoch"] <= QUICK.epochs
    assert "no positive" in judged.chosen[0][2]["reason"] and np.isnan(judged.scores_DML[0, :, 2]).all()

    again = attentive_probe(tokens_of, *PARTS, NAMES, options=QUICK, say=quiet)
    np.testing.assert_array_equal(judged.scores_DML, again.scores_DML)


def test_a_finding_learns_the_same_beside_others_and_for_itself():
    alone = [Part(p.x_NC, p.y_NL[:, :1], p.patients) for p in PARTS]
    options = AttentiveTraining(rates=(3e-2,), epochs=3, patience=9)
    both = attentive_probe(tokens_of, *PARTS, NAMES, options=options, say=quiet).scores_DML[0, :, 0]
    one = attentive_probe(tokens_of, *alone, NAMES[:1], options=options, say=quiet).scores_DML[0, :, 0]
    np.testing.assert_allclose(both, one, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_chosen_or_learnt_is_said():
    train, validate, test = PARTS
    flat = Part(validate.x_NC, np.zeros_like(validate.y_NL), validate.patients)
    judged = attentive_probe(
        tokens_of, train, flat, test, NAMES, options=AttentiveTraining(epochs=2), say=quiet
    )
    assert judged.chosen[0][0]["epoch"] == 2 and "not both kinds" in judged.chosen[0][0]["reason"]
    with pytest.raises(ValueError, match="patients are in train and in test"):
        attentive_probe(tokens_of, train, validate, train, NAMES, options=QUICK)
    nothing = Part(train.x_NC, np.zeros_like(train.y_NL), train.patients)
    with pytest.raises(ValueError, match="no finding can be learnt: no positive"):
        attentive_probe(tokens_of, nothing, validate, test, NAMES, options=QUICK)
    with pytest.raises(ValueError, match="auprc, auroc"):
        attentive_probe(tokens_of, *PARTS, NAMES, choose="f1")
