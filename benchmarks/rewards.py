"""Claim: rewards raise what they count, and a score that was not rewarded may fall: mini after GRPO beside mini.

    python benchmarks/rewards.py [--out runs/rewards] [--save]

The recipe `grpo_mini` learns label F1 with a small price on words, from phantoms that mini has not seen. Studies of the
split `test` are described before and after, and scored by patient. The extra `rl` is needed. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import eval as scoring
from train.common.launcher import StepFailed, launch, run_steps
from vlm.study import load_studies, study_to_json

STUDIES, SEED = 1200, 7
REWARDS, WEIGHTS = ["label-f1/14/micro/neg", "words/generated"], [1, -0.01]
SCORES = ("label-f1/14/micro/neg", "label-f1/14/macro/neg", "rouge-l/coco", "words/generated")


def held_out(run: Path) -> dict[str, dict[str, float]]:
    """The first and the last line of held-out rewards in a run's metrics: fields without their prefix."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    watched = [line for line in lines if "held_out/true/reward" in line]
    return {
        when: {k.removeprefix("held_out/"): v for k, v in line.items()}
        for when, line in (("before", watched[0]), ("after", watched[-1]))
    }


def scored(predictions: Path, references: list[dict]) -> dict:
    found = scoring.score(predictions, references, clinical_models="none")
    rows = found.conditions["label-f1"]["neg"]
    return {
        "studies": found.n,
        **{key: [found[key].value, found[key].low, found[key].high] for key in SCORES},
        "recall": {row["condition"]: [round(row["recall"] * row["support"]), row["support"]] for row in rows},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/rewards"))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/rewards.json")
    args = parser.parse_args()
    found: dict = {}
    status = run_steps(lambda: found.update(measured(args.out)))
    if status:
        return status
    print(json.dumps(found, indent=1))
    if args.save:
        about = {"machine": platform.machine(), "date": date.today().isoformat(), **found}
        file = Path(__file__).parent / "results" / "rewards.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"wrote {file}")
    return 0


def measured(out: Path) -> dict:
    from train.phantom.population import write_population
    from train.pipelines.judge import generate

    studies = out / "phantoms" / "studies.jsonl"
    if not studies.exists():
        write_population(studies.parent, studies=STUDIES, size=256, seed=SEED)
    launch(
        "train.grpo", recipe="grpo_mini", studies=studies, out=out / "run", reward=REWARDS,
        reward_weights=WEIGHTS,
    )  # fmt: skip
    if not (out / "run" / "adapter").is_dir():
        raise StepFailed(f"{out / 'run'} has no adapter")
    found: dict = {"held out": held_out(out / "run")}
    for when, model in (("before", "mini"), ("after", out / "run" / "adapter")):
        chosen = generate(model, studies, out / f"{when}.jsonl", out / f"{when}_floors", split="test")
        wanted = {study.study_id for study in chosen}
        references = [study_to_json(s) for s in load_studies(studies) if s.study_id in wanted]
        found[when] = scored(out / f"{when}.jsonl", references)
    return found


if __name__ == "__main__":
    sys.exit(main())
