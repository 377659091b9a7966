"""The clinical scores end to end, on files of the published formats with random numbers: on the sheet, on the page,
as metrics and rewards."""

import json

import numpy as np
import pytest

import eval
from cxr.cli.main import main
from eval import ScoreError, score
from eval.report import write_page
from eval.scores import clinical, weights
from eval.scores.bertscore import BertScore
from eval.scores.chexbert import CheXbert, cosine
from eval.scores.label_f1 import binarize, confusion, micro_f1
from eval.scores.lexical import bleu_2
from eval.scores.radcliq import radcliq
from eval.scores.radgraph import RadGraph, entity_relation_f1, rewards
from eval.signature import parse_signature
from tests.clinical import write_archive, write_chexbert, write_distilroberta, write_extracted

REFERENCES = [
    "No pleural effusion. The heart is mildly enlarged.",
    "Small right basal opacity. No left pneumothorax.",
    "The lungs are clear.",
    "Increased opacity, left. Small effusion.",
]
PREDICTIONS = [
    "No pleural effusion. The heart is enlarged.",
    "Small left basal opacity. No pneumothorax.",
    "",
    "Increased opacity, left. Small effusion.",
]
STUDIES = [
    {"study_id": str(i), "patient_id": str(i // 2), "findings": text} for i, text in enumerate(REFERENCES)
]
PREDICTED = [{"study_id": str(i), "findings": text} for i, text in enumerate(PREDICTIONS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("weights")
    write_chexbert(base / "chexbert")
    write_extracted(base / "radgraph", "radgraph")
    write_archive(
        write_extracted(tmp_path_factory.mktemp("extracted"), "radgraph-xl"),
        base / "radgraph-xl",
        "radgraph-xl",
    )
    write_distilroberta(base / "distilroberta-base", REFERENCES)
    return base


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scores(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return score(PREDICTED, STUDIES, weights=folder, device="cpu")


def test_every_score_is_that_of_its_model(scores, folder):
    chexbert = CheXbert.load(folder / "chexbert", "cpu")
    ref, hyp = chexbert(REFERENCES), chexbert(PREDICTIONS)
    for policy in ("neg", "pos"):
        counts = confusion(binarize(ref.labels_N14, policy), binarize(hyp.labels_N14, policy)).sum(axis=0)
        assert scores[f"chexbert-f1/14/micro/{policy}"].value == pytest.approx(micro_f1(counts))
    vectors = cosine(ref.vectors_NC, hyp.vectors_NC)
    assert scores["chexbert-vector"].value == pytest.approx(vectors.mean())
    for name in ("radgraph", "radgraph-xl"):
        model = RadGraph.load(folder / name, model=name, device="cpu")
        read = list(zip(model(REFERENCES), model(PREDICTIONS), strict=True))
        partial = np.mean([rewards(r, h)[1] for r, h in read], axis=0)
        for kind, value in zip(("precision", "recall", "f1"), partial, strict=True):
            assert scores[f"radgraph-{kind}/{name}/partial"].value == pytest.approx(value)
        if name == "radgraph":
            combined = np.array([entity_relation_f1(r, h) for r, h in read])
    bert = BertScore.load(folder / "distilroberta-base", "cpu").f1(REFERENCES, PREDICTIONS)
    assert scores["bertscore"].value == pytest.approx(bert.mean())
    features_N4 = np.stack([combined, bert, vectors, bleu_2(REFERENCES, PREDICTIONS)], 1)
    for version in ("v0", "v1"):
        assert scores[f"radcliq/{version}"].value == pytest.approx(radcliq(features_N4, version).mean())


def test_signatures_name_the_weights(scores, folder):
    name, choices = parse_signature(scores["chexbert-f1/14/macro/neg"].signature)
    sha256 = weights.find("chexbert", folder).sha256()
    assert name == "chexbert-f1" and "labeller" not in choices
    assert choices == {
        "n": "14", "avg": "macro", "support": "either", "unc": "neg", "ckpt": f"sha256:{sha256[:12]}",
    }  # fmt: skip
    xl = parse_signature(scores["radgraph-f1/radgraph-xl/partial"].signature)[1]
    assert xl["ckpt"] == f"sha256:{weights.find('radgraph-xl', folder).sha256()[:12]}"  # of an archive, too
    assert len({s.signature for s in scores.scores.values()}) == len(scores.scores)
    assert not {m.name for m in scores.not_computed} & {s for w in weights.MODELS.values() for s in w.serves}


def test_floors_tables_and_page_have_them(scores, tmp_path):
    text = str(scores)
    for title in (
        "CheXbert F1-14 micro",
        "RadGraph-XL F1 partial",
        "RadCliQ v1",
        "By condition, CheXbert",
        "recall",
    ):
        assert title in text, title
    assert all("radcliq/v1" in f.scores and "chexbert-f1/14/micro/neg" in f.scores for f in scores.floors)
    page = write_page(tmp_path / "page.html", title="x", scores=scores, worst=2).read_text()
    assert (
        "RadCliQ v1" in page and "By condition, CheXbert" in page and "The 2 studies with most errors" in page
    )
    assert set(scores.to_json()["conditions"]) == {"label-f1", "chexbert-f1"}


def test_annotations_of_references_alone_are_kept(folder, tmp_path):
    score(PREDICTED, STUDIES, weights=folder, device="cpu")
    kept = list((tmp_path / "cache" / "cxr" / "annotations").rglob("*.json"))
    assert len(kept) == 2 * len(REFERENCES)


def test_paired_differences_have_them(folder):
    compared = score(PREDICTED, STUDIES, compare=PREDICTED, weights=folder, device="cpu").comparisons[0]
    names = {d.name for d in compared.differences}
    assert {"chexbert-f1/14/micro/neg", "radgraph-f1/radgraph/partial", "bertscore", "radcliq/v1"} <= names
    assert all(d.difference == 0 and d.p == 1 for d in compared.differences)


def test_progress_is_told(folder):
    told = {}
    score(
        PREDICTED, STUDIES, weights=folder, device="cpu",
        progress=lambda what, done, of: told.setdefault(what, []).append((done, of)),
    )  # fmt: skip
    assert set(told) == {"CheXbert", "radgraph", "radgraph-xl", "BERTScore"}
    assert all(done <= of for steps in told.values() for done, of in steps)


def test_one_model_that_cannot_be_read_does_not_stop_the_others(folder, tmp_path):
    for name in ("chexbert", "radgraph"):
        (tmp_path / name).symlink_to(folder / name)
    broken = tmp_path / "distilroberta-base"
    broken.mkdir()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (broken / file).write_text("{")
    scores = score(PREDICTED, STUDIES, weights=tmp_path, device="cpu")
    missing = {m.name: m for m in scores.not_computed}
    assert "chexbert-vector" in scores.scores and "radcliq/v1" not in scores.scores
    assert str(broken) in missing["BERTScore"].reason and "RadCliQ v0, v1" in missing
    with pytest.raises(ScoreError, match="distilroberta"):
        score(PREDICTED, STUDIES, weights=tmp_path, clinical_models=["distilroberta-base"])
    with pytest.raises(ScoreError, match="no clinical model"):
        clinical.load("gpt")


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    for name, rows in (("p", PREDICTED), ("r", STUDIES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("CXR_WEIGHTS", str(folder))
    arguments = [str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl"), "--device", "cpu"]
    assert main(["score", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "RadCliQ v1" in out and not any(text in err for text in REFERENCES)
    assert main(["score", *arguments, "--clinical", "chexbert"]) == 0
    assert "RadCliQ v1" not in capsys.readouterr().out
    assert main(["weights"]) == 0
    out = capsys.readouterr().out
    assert weights.find("chexbert", folder).sha256()[:12] in out and "no " not in out and "--fetch" not in out
    assert main(["weights", "--folder", str(tmp_path / "none")]) == 0
    assert "--fetch chexbert\n" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ as metric and reward

KEYS = ("label-f1/14/micro/neg", "rouge-l/coco", "bleu-2/plain", "repeated-4-grams", "empty")
CLINICAL = ("chexbert-f1/14/micro/pos", "radgraph-f1/radgraph/partial", "bertscore", "radcliq/v1")


@pytest.mark.parametrize("key", [*KEYS, *CLINICAL])
def test_a_metric_is_the_score(scores, folder, key):
    metric = eval.metric(key, weights=folder, device="cpu")
    found = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert found == {key: pytest.approx(scores[key].value)}
    each = metric.per_sample(REFERENCES, PREDICTIONS)
    assert each.shape == (4,) and metric.__name__ == key
    for i, value in enumerate(each):  # in a batch as alone
        assert metric.per_sample(REFERENCES[i : i + 1], PREDICTIONS[i : i + 1])[0] == pytest.approx(
            value, abs=1e-6
        )
    chats = [[{"role": "assistant", "content": text}] for text in PREDICTIONS]
    reward = metric(prompts=[""] * 4, completions=chats, findings=REFERENCES, other=[1] * 4)
    lower = key.startswith(("radcliq", "repeated", "empty"))
    assert reward == pytest.approx((-each if lower else each).tolist())


def test_the_headline_is_a_metric(scores):
    metric = eval.metric("label-f1/14/macro-30/neg")
    assert np.isnan(metric.per_sample(REFERENCES, PREDICTIONS)).all()  # none has 30 positives
    many = eval.metric("label-f1/14/macro-2/neg").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert 0 < many["label-f1/14/macro-2/neg"] <= 1


def test_metrics_refuse(folder, tmp_path):
    with pytest.raises(
        ScoreError,
        match=r"no score 'label-f1/14'; did you mean .*; of its kind there are label-f1/14/macro/neg",
    ):
        eval.metric("label-f1/14")
    with pytest.raises(ScoreError, match="no score 'unheard-of'"):
        eval.metric("unheard-of")
    with pytest.raises(ScoreError, match="CheXbert needs"):
        eval.metric("chexbert-vector", weights=tmp_path)
    metric = eval.metric("rouge-l/coco")
    with pytest.raises(ScoreError, match="2 references but 1 predictions"):
        metric.per_sample(["a", "b"], ["a"])
    with pytest.raises(ScoreError, match="a column 'findings'"):
        metric(completions=["a"], reports=["a"])
    assert metric.per_sample([], []).shape == (0,)
    assert metric.per_sample(["Clear."], [None])[0] == 0
