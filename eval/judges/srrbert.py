"""SRR-BERT (Delbrouck et al. 2025): labels of 55 leaves with their status, sentence by sentence. RadEval's copy runs.

The value of a study is its F1, the mean over the labels that either report has; RadEval's headline is another number,
the F1 by label weighted by support.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

from eval.judges.local import Folder, Package, Run, judge_of, replaced
from eval.judges.panel import Tell, family_of

MODEL = Folder("StanfordAIMI/SRR-BERT-Leaves-with-Statuses")
TOKENIZER = Folder("microsoft/BiomedVLP-CXR-BERT-general", tokenizer=True)
KIND = "leaves_with_statuses"


def make(module: ModuleType, places: dict[str, Path], device: str) -> Run:
    """Return what runs the package."""
    theirs = module.SRRBert

    class Scorer(theirs):  # type: ignore[misc, valid-type]
        """Its model is in a folder."""

        MODEL_CONFIGS = {KIND: {**theirs.MODEL_CONFIGS[KIND], "model_path": str(places[MODEL.name])}}  # noqa: RUF012

    tokenizer = module.BertTokenizer
    here = SimpleNamespace(
        from_pretrained=lambda name: tokenizer.from_pretrained(str(places[TOKENIZER.name]))
    )
    with replaced(module, "BertTokenizer", here):
        scorer = Scorer(model_type=KIND)
    scorer.device = device
    scorer.model.to(device)

    def run(references: list[str], predictions: list[str], tell: Tell) -> list[float | None]:
        _, _, _, values = scorer.evaluate(references, predictions)
        tell(len(references), len(references))
        return list(values)

    return run


JUDGE = judge_of(
    "srrbert", "SRR-BERT F1",
    Package("radeval", "radeval.metrics.SRRBert.srr_bert", (MODEL, TOKENIZER), make, nltk=True),
    labels=KIND.replace("_", "-"), avg="labels-of-a-report",
)  # fmt: skip
FAMILY = family_of(JUDGE)
