"""CheXbert, BERTScore and RadCliQ on files of the real format with random numbers, against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

from eval.scores import bertscore, chexbert, lexical
from eval.scores.bertscore import BertScore
from eval.scores.chexbert import CheXbert
from eval.scores.readers import ScoreError
from tests.clinical import write_chexbert, write_distilroberta

REPORTS = [
    "No pleural effusion.",
    "The heart is mildly\n enlarged.   No pneumothorax.",
    "",
    "Lungs are clear.",
    "The left lung is unusual xyz " * 40,
    "No pleural effusion.",
]


def by_hand(folder, report):
    """A BERT written out: -> (class of each head, last hidden state of [CLS])."""
    state = torch.load(folder / "chexbert.pth", weights_only=True)["model_state_dict"]
    w = {k.removeprefix("module."): v.double() for k, v in state.items()}
    vocabulary = (folder / "bert-base-uncased" / "vocab.txt").read_text().split("\n")
    words = report.lower().replace(".", " . ").split()
    ids = [vocabulary.index(word) if word in vocabulary else 1 for word in words]
    ids = [2, *ids[:62], 3]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    e = "bert.embeddings"
    x = w[f"{e}.word_embeddings.weight"][ids] + w[f"{e}.position_embeddings.weight"][: len(ids)]
    x = norm(x + w[f"{e}.token_type_embeddings.weight"][0], f"{e}.LayerNorm")
    for layer in range(2):
        name = f"bert.encoder.layer.{layer}"
        q, k, v = (linear(x, f"{name}.attention.self.{part}").view(-1, 2, 64).transpose(0, 1) for part in
                   ("query", "key", "value"))  # fmt: skip
        attended = ((q @ k.mT / 8).softmax(-1) @ v).transpose(0, 1).reshape(-1, 128)
        x = norm(x + linear(attended, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = linear(x, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return [int(linear(x[0], f"linear_heads.{i}").argmax()) for i in range(14)], x[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chexbert(tmp_path_factory.mktemp("weights") / "chexbert")


def test_chexbert_is_the_model_written_out(folder):
    model = CheXbert.load(folder, device="cpu")
    seen = []
    found = model(REPORTS, progress=lambda *n: seen.append(n))
    assert seen[-1] == (4, 4)  # different texts, the empty one not among them
    meaning = [math.nan, 1, 0, -1]
    for report, labels, vector in zip(REPORTS, found.labels_N14, found.vectors_NC, strict=True):
        if not report:
            assert np.isnan(labels).all() and not vector.any()
            continue
        classes, cls = by_hand(folder, report)
        np.testing.assert_array_equal(labels, [meaning[c] for c in classes])
        np.testing.assert_allclose(vector, cls, rtol=1e-4, atol=1e-5)
    assert (
        len({tuple(np.nan_to_num(row, nan=9)) for row in found.labels_N14}) > 2
    )  # or the test shows nothing
    assert model([]).labels_N14.shape == (0, 14)
    assert len(model.sha256) == 64


def test_chexbert_reads_batches_as_it_reads_one(folder, monkeypatch):
    model = CheXbert.load(folder, device="cpu")
    together = model(REPORTS)
    monkeypatch.setattr(chexbert, "BATCH_TOKENS", 1)
    alone = model(REPORTS)
    np.testing.assert_array_equal(together.labels_N14, alone.labels_N14)
    np.testing.assert_allclose(together.vectors_NC, alone.vectors_NC, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("position_ids", [True, False])
def test_checkpoints_of_all_ages_load(tmp_path, prefix, position_ids):
    drop = set() if position_ids else {"bert.embeddings.position_ids"}
    write_chexbert(tmp_path, change=lambda s: {k: v for k, v in s.items() if k not in drop}, prefix=prefix)
    CheXbert.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "linear_heads.13.weight"}, "linear_heads.13.weight"),
        (lambda s: {**s, "surplus": torch.zeros(1)}, "surplus"),
        (lambda s: {**s, "linear_heads.13.weight": torch.zeros(4, 128)}, "linear_heads.13.weight"),
        (lambda s: {k: v for k, v in s.items() if "word_embeddings" not in k}, "word_embeddings"),
        (lambda s: {k.replace("bert.", "roberta."): v for k, v in s.items()}, "not a CheXbert checkpoint"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, change, message):
    write_chexbert(tmp_path, change=change)
    with pytest.raises(ScoreError, match=message):
        CheXbert.load(tmp_path)


def test_what_is_missing_is_named(tmp_path, folder):
    with pytest.raises(ScoreError, match=r"chexbert\.pth, which is not there; see: cxr weights"):
        CheXbert.load(tmp_path)
    (tmp_path / "bert-base-uncased").mkdir()
    (tmp_path / "bert-base-uncased" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nno\n")
    (tmp_path / "chexbert.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ScoreError, match="read safely"):
        CheXbert.load(tmp_path)
    (tmp_path / "chexbert.pth").write_bytes((folder / "chexbert.pth").read_bytes())
    with pytest.raises(ScoreError, match="tokenizer knows 6 pieces"):
        CheXbert.load(tmp_path)


def test_checkpoints_of_something_else_are_refused(tmp_path, folder):
    (tmp_path / "bert-base-uncased").symlink_to(folder / "bert-base-uncased")
    for state in ({1: 2}, {"bert.x": [1]}, {}):
        torch.save({"model_state_dict": state}, tmp_path / "chexbert.pth")
        with pytest.raises(ScoreError, match=r"(?i)chexbert"):
            CheXbert.load(tmp_path)


def test_batches_do_not_depend_on_the_order_of_reports(folder, monkeypatch):
    model, seen = CheXbert.load(folder, device="cpu"), []
    monkeypatch.setattr(chexbert, "BATCH_TOKENS", 24)
    batches = model._batches
    monkeypatch.setattr(model, "_batches", lambda texts: seen.append(list(texts)) or batches(texts))
    texts = [f"{a} {b}." for a in ("no", "left", "the", "heart") for b in ("effusion", "clear", "lungs")]
    first, second = model(texts), model(texts[::-1])
    assert seen[0] == seen[1]
    np.testing.assert_array_equal(first.vectors_NC, second.vectors_NC[::-1])


def test_cosine():
    a, b = np.array([[1.0, 0], [1, 1], [0, 0]]), np.array([[1.0, 1], [2, 2], [1, 0]])
    np.testing.assert_allclose(chexbert.cosine(a, b), [math.sqrt(0.5), 1, 0])


# ------------------------------------------------------------------------------------------------------------ BERTScore

PAIRS = [
    ("No pleural effusion.", "No pleural effusion."),
    ("The heart is enlarged.", "The heart is mildly enlarged. Lungs are clear."),
    ("Lungs are clear.", ""),
    ("Left pneumothorax " * 30, "Right pneumothorax."),
]
REFERENCES, PREDICTIONS = map(list, zip(*PAIRS, strict=True))


@pytest.fixture(scope="module")
def distilroberta(tmp_path_factory):
    return write_distilroberta(
        tmp_path_factory.mktemp("weights") / "distilroberta-base", [*REFERENCES, *PREDICTIONS]
    )


def bertscore_by_hand(folder, idf):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = RobertaModel.from_pretrained(folder).eval()

    def encode(text):
        return tokenizer(" " + text.strip() if text else "", truncation=True, max_length=64)["input_ids"]

    documents = [set(encode(text)) for text in REFERENCES]

    def weight(token):
        if not idf:
            return 0.0 if token in (0, 2) else 1.0
        return math.log((len(documents) + 1) / (sum(token in d for d in documents) + 1))

    found = []
    for texts in PAIRS:
        ids = [encode(text) for text in texts]
        if min(map(len, ids)) <= 2:
            found.append((0 - 0.8473319) / (1 - 0.8473319))
            continue
        with torch.no_grad():
            vectors = [
                model(torch.tensor([i]), output_hidden_states=True).hidden_states[5][0].double() for i in ids
            ]
        ref, hyp = (v / v.norm(dim=1, keepdim=True) for v in vectors)
        similar = hyp @ ref.T
        w_ref, w_hyp = ([weight(token) for token in i] for i in ids)
        precision = sum(w * s for w, s in zip(w_hyp, similar.amax(1).tolist(), strict=True)) / sum(w_hyp)
        recall = sum(w * s for w, s in zip(w_ref, similar.amax(0).tolist(), strict=True)) / sum(w_ref)
        found.append((2 * precision * recall / (precision + recall) - 0.8473319) / (1 - 0.8473319))
    return found


@pytest.mark.parametrize("idf", [False, True])
def test_bertscore_is_its_formula(distilroberta, idf):
    score = BertScore.load(distilroberta, device="cpu")
    found = score.f1(REFERENCES, PREDICTIONS, idf=idf)
    np.testing.assert_allclose(found, bertscore_by_hand(distilroberta, idf), atol=2e-5)
    assert found[0] == pytest.approx(1, abs=1e-5)


def test_bertscore_refuses_idf_over_one_reference(distilroberta):
    with pytest.raises(ScoreError, match="1 reference"):
        BertScore.load(distilroberta, device="cpu").f1(REFERENCES[:1], PREDICTIONS[:1], idf=True)


def test_bertscore_names_what_is_missing(tmp_path, distilroberta):
    with pytest.raises(ScoreError, match=r"model\.safetensors; see: cxr weights"):
        BertScore.load(tmp_path)
    RobertaModel(RobertaConfig(**{**RobertaConfig.from_pretrained(distilroberta).to_dict(), "num_hidden_layers": 3})
                 ).save_pretrained(tmp_path)  # fmt: skip
    RobertaTokenizerFast.from_pretrained(distilroberta).save_pretrained(tmp_path)
    with pytest.raises(ScoreError, match="layer 5"):
        BertScore.load(tmp_path)


# -------------------------------------------------------------------------------------------------------------- RadCliQ


def test_radcliq_bleu_2_is_nltks():
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    for value, (reference, prediction) in zip(lexical.bleu_2(REFERENCES, PREDICTIONS), PAIRS, strict=True):
        ref, hyp = (text.lower().replace(".", " .").split() for text in (reference, prediction))
        wanted = sentence_bleu([ref], hyp, (0.5, 0.5), SmoothingFunction().method1) if hyp else 0
        assert value == pytest.approx(wanted, abs=1e-12)
    assert bertscore.LAYER == 5
