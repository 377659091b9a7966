"""GREEN (Ostmeier et al. 2024, EMNLP Findings): matched findings against clinically significant errors, told by a model
of 7 billion parameters. RadEval's copy of it runs; a GPU is as good as needed.

The package gives an answer that it cannot read the value 0. Here such a study has no value.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from eval.judges.local import Folder, Package, Run, judge_of, no_code
from eval.judges.panel import Tell, family_of

MODEL = Folder("StanfordAIMI/GREEN-radllama2-7b")
# Both stand in every answer that can be read.
PARTS = ("[Clinically Significant Errors]:", "[Matched Findings]:")


def make(module: ModuleType, places: dict[str, Path], device: str) -> Run:
    """Return what runs the package."""
    # It would run the code that files of the model name.
    no_code(places[MODEL.name])
    # On one GPU: on several it starts processes of its own, which are not kept from the network.
    scorer = module.GREEN(str(places[MODEL.name]), cpu=not device.startswith("cuda"), num_gpus=1)

    def run(references: list[str], predictions: list[str], tell: Tell) -> list[float | None]:
        done = 0

        def one() -> None:
            nonlocal done
            done += 1
            tell(done, len(references))

        _, _, values, rows = scorer(references, predictions, on_sample_done=one)
        answers = list(rows["green_analysis"])
        return [
            value if all(part in answer for part in PARTS) else None
            for value, answer in zip(values, answers, strict=True)
        ]

    return run


JUDGE = judge_of("green", "GREEN", Package("radeval", "radeval.metrics.green_score.green", (MODEL,), make))
FAMILY = family_of(JUDGE)
