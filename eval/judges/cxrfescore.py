"""CXRFEScore (Messina et al. 2024, ACL Findings): facts of both reports, matched by the similarity of their embeddings.

The package `cxrfescore` of its authors runs, with its T5 that extracts facts. Of its encoders SRR-BERT-Leaves is taken;
its default, CXRFE, is Python code beside weights, which is not run here: values of that one come by `--values`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from eval.judges.local import Folder, Package, Run, judge_of, replaced
from eval.judges.panel import Tell, family_of

FACTS, ENCODER = Folder("pamessina/T5FactExtractor"), Folder("StanfordAIMI/SRR-BERT-Leaves")
TOKENIZER = Folder("microsoft/BiomedVLP-CXR-BERT-general", tokenizer=True)


def make(module: ModuleType, places: dict[str, Path], device: str) -> Run:
    """Return what runs the package."""
    theirs, encoder = module.CXRFEScore, str(places[ENCODER.name])

    # ruff: noqa: RUF012
    class Scorer(theirs):  # type: ignore[misc, valid-type]
        """It knows encoders by their name on the hub; this one is in a folder."""

        SUPPORTED_MODELS = [encoder]
        ENCODER_BACKEND = {encoder: theirs.ENCODER_BACKEND[ENCODER.repository]}
        MODEL_EMBEDDING_DIMENSIONS = {encoder: theirs.MODEL_EMBEDDING_DIMENSIONS[ENCODER.repository]}

    with replaced(module, "SRR_BERT_TOKENIZER", str(places[TOKENIZER.name])):
        # Its caches are pickles.
        scorer = Scorer(
            encoder_model_name=encoder, extractor_model_name=str(places[FACTS.name]), device=device, num_workers=0,
            use_cache=False,
        )  # fmt: skip

    def run(references: list[str], predictions: list[str], tell: Tell) -> list[float | None]:
        found = scorer.compute(predictions, references)["per_pair_similarity"]
        tell(len(references), len(references))
        return [float(value) for value in found]

    return run


JUDGE = judge_of(
    "cxrfescore", "CXRFEScore (SRR-BERT-Leaves)",
    Package("cxrfescore", "cxrfescore.metric", (FACTS, ENCODER, TOKENIZER), make, nltk=True),
    encoder=ENCODER.name,
)  # fmt: skip
FAMILY = family_of(JUDGE)
