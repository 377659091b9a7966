"""Claim: a findings model tells true sentences of a report from their counters, with no training for it, only where it
sees the right film.

    python benchmarks/oversight.py [--studies 700] [--calibration FILE] [--out runs/oversight] [--save]

Phantoms of patients that no part of `mini` or of its calibration has seen; in each report an error of every kind that
it has room for is planted. For each kind: how often an even choice falls right (of true sentences and of planted ones
the mean of the shares that are on their side of p = .5), AUROC, the share of errors caught where 5 % of clean reports
are flagged, and the share that is corrected to the very sentence that stood there. The same with the films shuffled
among the studies. Intervals are bootstraps over patients.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from encoder.progress import bar
from train.oversight import Read, read_studies, samples_of, surest_omission
from train.phantom.population import write_population
from vlm.decoding import Decoding, generate_ids
from vlm.findings import Findings
from vlm.prompts import shown_with
from vlm.study import Study, absolute, load_studies
from vlm.verdicts import Calibration, verdict_of
from vlm.verify import films_of

SEED, BOOT = 910, 1000
# The planted kind whose truth is a counter of the kind on the right.
KINDS = {
    "side": "side", "zone": "zone", "extent": "extent", "denial": "invented", "invented": "denial",
}  # fmt: skip


def phantoms(out: Path, studies: int) -> list[Study]:
    file = out / "phantoms" / "studies.jsonl"
    if not file.exists():
        write_population(
            out / "phantoms", studies=studies, seed=SEED, prevalence=2.0, followups=0.0, hidden=0.25,
            laterals=0.33, masks=False, size=256, split="test",
        )  # fmt: skip
    return [absolute(s, file.parent) for s in load_studies(file)][:studies]


def interval(of: Callable[[np.ndarray], float], groups: Sequence[str]) -> list[float]:
    """The value of a function of rows, and its percentile interval over patients."""
    rng = np.random.default_rng(0)
    named = {g: np.flatnonzero(np.array(groups) == g) for g in dict.fromkeys(groups)}
    members = list(named.values())
    drawn = []
    for _ in range(BOOT):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        value = of(rows)
        if value == value:
            drawn.append(value)
    return [round(float(x), 4) for x in (of(np.arange(len(groups))), *np.percentile(drawn, [2.5, 97.5]))]


def share(happened: Sequence[bool]) -> Callable[[np.ndarray], float]:
    known = np.array(happened, float)
    return lambda at: float(known[at].mean())


def table(read: list[Read], calibration: Calibration) -> dict[str, dict]:
    """One row a planted kind."""
    samples = [s for s in samples_of(read) if s.kind in calibration.curves]
    found = {}
    for planted, kind in KINDS.items():
        rows = [s for s in samples if s.kind == kind]
        if not rows:
            continue
        curve = calibration.curves[kind]
        p = np.array([curve.probability(s.margin, s.condition, s.hedged) for s in rows])
        wrong, groups = np.array([s.wrong for s in rows]), [s.group for s in rows]

        def even(at: np.ndarray, p: np.ndarray = p, wrong: np.ndarray = wrong) -> float:
            right = (p[at] > 0.5) == wrong[at]
            return float(np.mean([right[wrong[at] == w].mean() for w in (True, False)]))

        def auroc(at: np.ndarray, p: np.ndarray = p, wrong: np.ndarray = wrong) -> float:
            return float(roc_auc_score(wrong[at], p[at])) if len(set(wrong[at])) == 2 else float("nan")

        found[planted] = {
            "planted": int(wrong.sum()), "true": int((~wrong).sum()),
            "right": interval(even, groups), "auroc": interval(auroc, groups),
        }  # fmt: skip
    for planted, row in found.items():
        errors = [(one, *one.wrong[planted]) for one in read if planted in one.wrong]
        caught, corrected = [], []
        for _, error, sentences in errors:
            at = next(s for s in sentences if s.span.start <= error.start < s.span.end)
            doubts = calibration.doubts(at)
            caught.append(verdict_of(doubts) == "contradicted")
            corrected.append(bool(doubts) and doubts[0].counter.text == error.was)
        groups = [one.group for one, *_ in errors]
        row["caught"] = interval(share(caught), groups)
        if planted in ("side", "zone"):
            row["corrected"] = interval(share(corrected), groups)
    return found


def whole_reports(read: list[Read], calibration: Calibration) -> dict:
    """Clean reports that are flagged, and omissions."""

    flagged = [any(verdict_of(calibration.doubts(s)) == "contradicted" for s in one.clean) for one in read]
    clean = [surest_omission(one, one.study.findings or "", calibration) for one in read]
    taken = [
        (surest_omission(one, one.wrong["omission"][0].text, calibration), one.group)
        for one in read
        if "omission" in one.wrong
    ]
    groups = [one.group for one in read] + [group for _, group in taken]
    p = np.array(clean + [x for x, _ in taken])
    wrong = np.repeat([False, True], [len(clean), len(taken)])
    auroc = lambda at: (  # noqa: E731
        float(roc_auc_score(wrong[at], p[at])) if len(set(wrong[at])) == 2 else float("nan")
    )
    hidden = [
        verdict_of(calibration.doubts(s)) for one in read for s in one.clean if "lateral" in s.span.text.lower()
        or "posterior" in s.span.text.lower() or "retrosternal" in s.span.text.lower()
    ]  # fmt: skip
    plain = [
        verdict_of(calibration.doubts(s)) for one in read for s in one.clean
        if 1 in s.labels.values() and "lateral" not in s.span.text.lower()
        and "posterior" not in s.span.text.lower() and "retrosternal" not in s.span.text.lower()
    ]  # fmt: skip
    return {
        "reports": len(read),
        "clean reports flagged": interval(share(flagged), groups[: len(read)]),
        "omission": {
            "planted": len(taken), "auroc": interval(auroc, groups),
            "caught": round(float(np.mean([x >= calibration.omitted for x, _ in taken])), 4),
        },
        "undecidable": {
            "what only a lateral film shows": [round(np.mean([v == "undecidable" for v in hidden]), 4), len(hidden)]
            if hidden else None,
            "other findings": [round(np.mean([v == "undecidable" for v in plain]), 4), len(plain)],
        },
    }  # fmt: skip


def cost(findings: Findings, calibration: Calibration, studies: list[Study]) -> dict:
    """Seconds a study of generating a report, and of verifying one, with and without omissions."""
    pairs = [(s, s.findings or "") for s in studies]
    verifier = findings.verifier(calibration)

    def timed(work: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - start)
        return best / len(pairs)

    def generate() -> None:
        seen = films_of(findings, pairs, Path())
        model = findings.model
        generate_ids(
            model.llava, model, [f.prompt for f in seen], torch.cat([f.pixels for f in seen]),
            Decoding(model.max_new_tokens), seen=torch.cat([f.tokens for f in seen]),
        )  # fmt: skip

    seconds = {
        "generate": timed(generate),
        "verify": timed(lambda: list(verifier.verify(pairs, omissions=False))),
        "verify, with omissions": timed(lambda: list(verifier.verify(pairs))),
    }
    return {k: round(v, 4) for k, v in seconds.items()} | {
        "times generate": round(seconds["verify, with omissions"] / seconds["generate"], 2)
    }


def show(name: str, rows: dict[str, dict]) -> None:
    print(f"\n{name:10}{'planted':>8}{'right at even odds':>24}{'AUROC':>24}{'caught':>24}{'corrected':>24}")
    text = lambda x: f"{x[0]:.3f} [{x[1]:.3f}, {x[2]:.3f}]" if x else ""  # noqa: E731
    for kind, row in rows.items():
        cells = "".join(f"{text(row.get(k)):>24}" for k in ("right", "auroc", "caught", "corrected"))
        print(f"{kind:10}{row['planted']:8}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=700)
    parser.add_argument("--calibration", type=Path, help="default: mini's own")
    parser.add_argument("--out", type=Path, default=Path("runs/oversight"))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/oversight.json")
    args = parser.parse_args()
    findings = Findings.from_pretrained("mini", warn=False)
    calibration = Calibration.load(args.calibration) if args.calibration else findings.calibration
    if calibration is None:
        parser.error("mini has no calibration; give --calibration FILE (cxr calibrate)")
    studies = phantoms(args.out, args.studies)
    read = list(bar(read_studies(findings, studies), "reports", len(studies), unit="studies"))
    result = {"true films": table(read, calibration), **whole_reports(read, calibration)}
    show("films", result["true films"])
    others = list(shown_with(studies, "shuffled", SEED))
    shuffled = list(bar(read_studies(findings, others), "shuffled", len(others), unit="studies"))
    result["shuffled films"] = table(shuffled, calibration)
    show("shuffled", result["shuffled films"])
    result["seconds a study"] = cost(findings, calibration, studies[:32])
    print(json.dumps({k: v for k, v in result.items() if "films" not in k}, indent=1))
    if args.save:
        about = {"machine": platform.machine(), "date": date.today().isoformat(), "model": "mini", **result}
        target = Path(__file__).parent / "results" / "oversight.json"
        target.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
