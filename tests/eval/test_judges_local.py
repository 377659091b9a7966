"""Metrics of other packages with local weights: what is missing is said, nothing is fetched, nothing counts 0 unread.

The packages are not installed here. Stand-ins take their places, and are held against the real ones where those are.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import eval
from eval import judges
from eval.judges import cxrfescore, green, ratescore, srrbert
from eval.scores.family import Reports

SECRET = "Quillon"
STUDIES = [
    {"study_id": "a", "findings": "Clear lungs."},
    {"study_id": "b", "findings": f"Edema. {SECRET}."},
    {"study_id": "c", "findings": "Edema."},
]
PREDICTIONS = [{**STUDIES[0]}, {"study_id": "b", "findings": "Mass."}, {"study_id": "c", "findings": ""}]
MADE: list[tuple[str, object]] = []


def equal(reference: str, prediction: str) -> float:
    return float(reference == prediction)


class RaTEScore:
    def __init__(
        self,
        bert_model="Angelakeke/RaTE-NER-Deberta",
        eval_model="FremyCompany/BioLORD-2023-C",
        batch_size=1,
        use_gpu=True,
        visualization_path=None,
        affinity_matrix="long",
    ):
        MADE.append(("RaTEScore", (bert_model, eval_model, use_gpu)))

    def compute_score(self, candidate_list, reference_list):
        if not any(candidate_list) or not any(reference_list):
            raise IndexError("no sentence")
        # as the package does: a side without a sentence has no entry, and the rest is paired with others
        logging.getLogger("RuSH").error(reference_list)
        both = zip([c for c in candidate_list if c], [r for r in reference_list if r], strict=False)
        return [equal(r, c) for c, r in both]


class GREEN:
    def __init__(self, model_name=None, output_dir=".", cpu=False, num_gpus=None):
        MADE.append(("GREEN", (model_name, cpu)))

    def __call__(self, refs, hyps, on_sample_done=None):
        print(refs)
        for _ in refs:
            on_sample_done()
        # as the package does: an answer that it cannot read counts 0
        sound = "[Clinically Significant Errors]: x\n\n[Matched Findings]: y"
        answers = [sound if "Mass" not in h else "I cannot" for h in hyps]
        values = [equal(r, h) for r, h in zip(refs, hyps, strict=True)]
        return 0.0, 0.0, values, {"green_analysis": answers}


class Model:
    def to(self, device):
        MADE.append(("device", device))


class SRRBert:
    MODEL_CONFIGS = {  # noqa: RUF012
        "leaves_with_statuses": {
            "model_path": "StanfordAIMI/SRR-BERT-Leaves-with-Statuses", "mapping_file": "m.json",
        }
    }  # fmt: skip

    def __init__(self, model_type="leaves", batch_size=4, tqdm_enable=False):
        MADE.append(("SRRBert", (self.MODEL_CONFIGS[model_type], os.environ["HF_HUB_OFFLINE"])))
        self.model = Model()
        sys.modules["radeval.metrics.SRRBert.srr_bert"].BertTokenizer.from_pretrained("microsoft/on-the-hub")

    def evaluate(self, refs, hyps, on_sample_done=None):
        return {}, None, None, np.array([equal(r, h) for r, h in zip(refs, hyps, strict=True)])


class CXRFEScore:
    ENCODER_BACKEND = {"StanfordAIMI/SRR-BERT-Leaves": "cls"}  # noqa: RUF012
    MODEL_EMBEDDING_DIMENSIONS = {"StanfordAIMI/SRR-BERT-Leaves": 768}  # noqa: RUF012

    def __init__(
        self,
        encoder_model_name="pamessina/CXRFE",
        extractor_model_name="pamessina/T5FactExtractor",
        device=None,
        batch_size=128,
        num_workers=3,
        verbose=False,
        use_cache=True,
        cache_dir=None,
    ):
        module = sys.modules["cxrfescore.metric"]
        assert [encoder_model_name] == self.SUPPORTED_MODELS and self.ENCODER_BACKEND[
            encoder_model_name
        ] == "cls"
        MADE.append(
            ("CXRFEScore", (encoder_model_name, extractor_model_name, module.SRR_BERT_TOKENIZER, use_cache))
        )

    def compute(self, hyps, refs, batch_size=None, num_workers=None):
        return {
            "per_pair_similarity": np.array(
                [equal(r, h) for r, h in zip(refs, hyps, strict=True)], np.float32
            )
        }


class Tokenizer:
    @staticmethod
    def from_pretrained(name):
        MADE.append(("tokenizer", name))


MODULES = {
    "RaTEScore": {"RaTEScore": RaTEScore},
    "radeval.metrics.green_score.green": {"GREEN": GREEN},
    "radeval.metrics.SRRBert.srr_bert": {"SRRBert": SRRBert, "BertTokenizer": Tokenizer},
    "cxrfescore.metric": {"CXRFEScore": CXRFEScore, "SRR_BERT_TOKENIZER": "microsoft/on-the-hub"},
}
FOLDERS = {
    "ratescore": (ratescore.NER, ratescore.EMBEDDING),
    "green": (green.MODEL,),
    "srrbert": (srrbert.MODEL, srrbert.TOKENIZER),
    "cxrfescore": (cxrfescore.FACTS, cxrfescore.ENCODER, cxrfescore.TOKENIZER),
}


@pytest.fixture
def packages(monkeypatch):
    """Let the stand-ins be what is imported; NLTK has its sentence models."""
    import nltk

    for name, content in MODULES.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(
            sys.modules, name.partition(".")[0], sys.modules.get(name.partition(".")[0], module)
        )
    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    MADE.clear()


@pytest.fixture
def weights(tmp_path):
    """Folders with what each model needs, all of it empty."""
    for judge, folders in FOLDERS.items():
        for folder in folders:
            place = tmp_path / judge / folder.name
            place.mkdir(parents=True)
            (place / ("vocab.txt" if folder.tokenizer else "config.json")).write_text("{}")
            if not folder.tokenizer:
                (place / "model.safetensors").write_bytes(folder.name.encode())
    return tmp_path


def scored(weights: Path, *names: str, predictions=PREDICTIONS) -> eval.Scores:
    panel = judges.panel(names, weights=weights, device="cpu")
    return eval.score(predictions, STUDIES, clinical_models="none", judges=panel)


@pytest.mark.parametrize(
    ("name", "value", "over"),
    # RaTEScore has no value of an empty report, GREEN none of an answer that it cannot read
    [
        ("ratescore", 1 / 2, "2 of 3"),
        ("green", 1 / 2, "2 of 3"),
        ("srrbert", 1 / 3, ""),
        ("cxrfescore", 1 / 3, ""),
    ],
)
def test_values_come_from_the_package(packages, weights, capsys, name, value, over):
    found = scored(weights, name)
    assert found[name].value == pytest.approx(value) and found[name].over == over and found[name].headline
    assert "ckpt:" in found[name].signature and "package:" in found[name].signature
    assert found.not_computed[-1].name != found[name].title
    shown = str(found) + "".join(capsys.readouterr())
    assert found[name].title in shown and SECRET not in shown
    # every model and tokenizer was read from its folder
    read = json.dumps(MADE)
    for folder in FOLDERS[name]:
        assert str(weights / name / folder.name) in read
    assert "on-the-hub" not in read


def test_libraries_are_offline_while_a_package_runs(packages, weights, monkeypatch):
    import nltk
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen = []

    def evaluate(self, refs, hyps):
        nltk.download("punkt")
        seen.append((os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE))
        raise ZeroDivisionError

    monkeypatch.setattr(SRRBert, "evaluate", evaluate)
    monkeypatch.setattr(nltk, "download", lambda name: pytest.fail("it was downloaded"))
    found = scored(weights, "srrbert")
    assert seen == [("1", True)] and (os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE) == ("0", False)
    (lack,) = [m for m in found.not_computed if m.name == "SRR-BERT F1"]
    assert lack.reason == "radeval failed on these reports (ZeroDivisionError)"


@pytest.mark.parametrize("name", FOLDERS)
def test_without_its_package(weights, monkeypatch, name):
    for module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = scored(weights, name)
    assert name not in found.scores
    lacks = [m for m in found.not_computed if m.reason.startswith("needs the package")]
    assert lacks and all(m.command.startswith("pip install") for m in lacks)


@pytest.mark.parametrize("name", FOLDERS)
def test_without_its_weights(packages, tmp_path, name):
    found = scored(tmp_path, name)
    assert name not in found.scores and MADE == []
    (lack,) = [m for m in found.not_computed if m.reason.startswith(f"needs {name}/")]
    for folder in FOLDERS[name]:
        assert (
            f"hf download {folder.repository}" in lack.command
            and f"{tmp_path}/{name}/{folder.name}" in lack.command
        )


def test_without_the_sentences_of_nltk(packages, weights, monkeypatch):
    import nltk

    def find(name):
        raise LookupError

    monkeypatch.setattr(nltk.data, "find", find)
    monkeypatch.setattr(nltk, "download", lambda *a, **k: pytest.fail("it was downloaded"))
    found = scored(weights, "srrbert", "cxrfescore")
    assert [m.command for m in found.not_computed if "NLTK" in m.reason] == [
        "python -m nltk.downloader punkt punkt_tab"
    ] * 2


def test_code_beside_weights_is_not_run(packages, weights):
    place = weights / "green" / green.MODEL.name
    (place / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling.Green"}}')
    found = scored(weights, "green")
    (lack,) = [m for m in found.not_computed if m.name == "GREEN"]
    assert "config.json names Python code, which is not run" in lack.reason and MADE == []


def test_a_wrong_number_of_values_is_refused(packages, weights, monkeypatch):
    monkeypatch.setattr(SRRBert, "evaluate", lambda self, refs, hyps: ({}, None, None, np.ones(2)))
    found = scored(weights, "srrbert")
    assert any("gave 2 values for 3 reports" in m.reason for m in found.not_computed)


def test_the_message_of_a_package_shows_no_report(packages, weights, monkeypatch):
    def fail(self, refs, hyps):
        raise ValueError(f"cannot read {refs}")

    monkeypatch.setattr(SRRBert, "evaluate", fail)
    assert SECRET not in str(scored(weights, "srrbert"))


def test_the_splitter_of_sentences_logs_none(packages, weights, monkeypatch):
    silenced = []
    library = types.SimpleNamespace(logger=types.SimpleNamespace(disable=silenced.append))
    monkeypatch.setitem(sys.modules, "loguru", library)
    before = logging.root.manager.disable
    scored(weights, "ratescore")
    assert silenced == ["PyRuSH"] and logging.root.manager.disable == before


def test_ckpt_tells_weights_apart(packages, weights):
    first = scored(weights, "ratescore")["ratescore"].signature
    (weights / "ratescore" / ratescore.NER.name / "model.safetensors").write_bytes(b"other")
    assert scored(weights, "ratescore")["ratescore"].signature != first


def test_each_pair_alone(packages, weights):
    """The package pairs a report with the next one's reference where one has no sentence."""
    panel = judges.panel(["ratescore"], weights=weights, device="cpu")
    panel.judge({"": Reports(["Edema.", "Mass.", "Clear."], ["", "Mass.", "Clear."], [{}] * 3)}, {})
    np.testing.assert_array_equal(panel.verdicts["ratescore"][""].values_NK[:, 0], [np.nan, 1, 1])


@pytest.mark.parametrize(
    ("module", "name", "methods"),
    [
        ("RaTEScore", "RaTEScore", ("__init__", "compute_score")),
        ("radeval.metrics.green_score.green", "GREEN", ("__init__", "__call__")),
        ("radeval.metrics.SRRBert.srr_bert", "SRRBert", ("__init__", "evaluate")),
        ("cxrfescore.metric", "CXRFEScore", ("__init__", "compute")),
    ],
)
def test_stand_ins_take_what_the_packages_take(module, name, methods):
    real = pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    for method in methods:
        mine, theirs = (
            inspect.signature(getattr(c, method)) for c in (MODULES[module][name], getattr(real, name))
        )
        assert [(p.name, p.default) for p in mine.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]
    for attribute in ("ENCODER_BACKEND", "MODEL_EMBEDDING_DIMENSIONS", "MODEL_CONFIGS"):
        if hasattr(MODULES[module][name], attribute):
            assert (
                getattr(MODULES[module][name], attribute).keys()
                <= getattr(real, name).__dict__[attribute].keys()
            )
    for attribute in MODULES[module]:
        assert hasattr(real, attribute)
