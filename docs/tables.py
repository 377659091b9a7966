"""Tables of measured numbers, rendered from benchmarks/results/*.json: no number in the docs is typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
TABLES: dict[str, Callable[[], str]] = {}


def table(function: Callable[[], str]) -> Callable[[], str]:
    """Make `function` the table of its own name in `<!-- table: NAME -->`."""
    TABLES[function.__name__] = function
    return function


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows(head: Sequence[str], body: Iterable[Sequence[str]], made: str) -> str:
    """A table in Markdown with the sentence `made` under it, which says what made the numbers, where and when."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + f"\n\n{made}"


def made(name: str, command: str, machine: str | None = None) -> str:
    about = result(name)
    where = machine or str(about.get("machine") or about.get("gpu")).replace("NVIDIA_", "NVIDIA ")
    return f"({where}, {about['date']}: `{command}`, `benchmarks/results/{name}.json`.)"


def interval(x: Sequence[float], digits: int = 2, sign: bool = False) -> str:
    """A value and its 95 % interval."""
    value, low, high = (f"{number:{'+' if sign else ''}.{digits}f}" for number in x)
    return f"{value} [{low}, {high}]"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- encoder ----------------------------------------------------------------------------------------------------------


@table
def attention_cpu() -> str:
    body = [
        [name, f"{times['cxr']:.1f}", f"{times['sdpa']:.1f}", f"{times['sdpa'] / times['cxr']:.1f}"]
        for name, times in result("attention_cpu")["milliseconds"].items()
    ]
    head = ["one step on a CPU", "ours, ms", "`scaled_dot_product_attention`, ms", "times as fast"]
    return rows(
        head,
        body,
        made("attention_cpu", "python benchmarks/attention_cpu.py --save", "AMD EPYC, two threads"),
    )


@table
def attention_gpu() -> str:
    about = result("attention_nvidia_h200")
    body = []
    for name, case in about.items():
        if not isinstance(case, dict) or "fwd, bwd, both" not in case:
            continue
        ways = case["fwd, bwd, both"]
        if "ours" not in ways:
            continue
        ours = ways["ours"]
        others = [
            f"{rival.removeprefix('sdpa ')} {way['ms'][2]:.3g} ms ({way['ours_times_as_fast'][2]:.2f})"
            for rival, way in ways.items()
            if rival != "ours" and way.get("ours_times_as_fast")
        ]
        body.append([name, f"{ours['ms'][2]:.3g} ms, {ours['tflops'][2]:.0f} TFLOP/s", "; ".join(others)])
    head = ["forward and backward", "ours", "others, and how many times as fast ours is"]
    return rows(head, body, made("attention_nvidia_h200", "python benchmarks/attention.py --save"))


@table
def pretrain_step() -> str:
    body = []
    for name in ("pretrain_step_cpu", "pretrain_step_nvidia_h200"):
        about = result(name)
        ours, rival, recipe = about["results"]["ours"], about["results"]["rival"], about["recipe"]
        body.append(
            [
                f"{about['machine'].replace('NVIDIA_', 'NVIDIA ')}, {recipe['width']} wide, {recipe['size']} px, "
                f"batch {recipe['batch']}",
                f"{ours['images_per_second']:.3g}",
                f"{rival['images_per_second']:.3g}",
                f"{ours['images_per_second'] / rival['images_per_second']:.2f}",
                f"{ours['peak_mb'] / rival['peak_mb']:.2f}",
            ]
        )
    head = [
        "a step of pre-training",
        "ours, images/s",
        "DINOv2's modules with SDPA",
        "times as fast",
        "memory, ratio",
    ]
    command = "python benchmarks/pretrain_step.py --rival PATH --save"
    dates = " and ".join(result(name)["date"] for name in ("pretrain_step_cpu", "pretrain_step_nvidia_h200"))
    return rows(head, body, f"({dates}: `{command}`; blocks not compiled.)")


@table
def real_encoder_lungs() -> str:
    body = [
        [
            name,
            interval(row["test"], 3),
            interval(row["difference"], 3, True) if row.get("difference") else "",
        ]
        for name, row in result("real_encoder")["lungs"].items()
    ]
    head = ["features", "Dice of the lungs", "after pre-training: more by"]
    return rows(
        head, body, made("real_encoder", "python benchmarks/real_encoder.py runs/real_encoder --save")
    )


@table
def real_encoder_labels() -> str:
    body = []
    for name, row in result("real_encoder")["labels"].items():
        cells = []
        for part in ("whole image", "middle, equalised"):
            cells += [interval(row[part][way]) if part in row else "" for way in ("logistic", "k-NN")]
        body.append([name, *cells])
    head = [
        "features",
        "whole image, logistic",
        "whole, k-NN",
        "middle, equalised: logistic",
        "equalised, k-NN",
    ]
    return rows(
        head, body, made("real_encoder", "python benchmarks/real_encoder.py runs/real_encoder --save")
    )


@table
def reading() -> str:
    about = result("data")
    body = [[name, f"{ms:.2f}"] for name, ms in about["milliseconds"].items()]
    return rows(["an image takes one core", "ms"], body, made("data", "python benchmarks/data.py --save"))


@table
def isolated_decoding() -> str:
    about = result("isolated_decoding")
    body = [
        [name, f"{row['here_ms']:.0f}", f"{row['isolated_ms']:.0f}", f"{row['ratio']:.2f}"]
        for name, row in about.items()
        if isinstance(row, dict) and "ratio" in row
    ]
    head = [f"a film of {about['film']}", "in this process, ms", "in a worker, ms", "ratio of computing"]
    return rows(head, body, made("isolated_decoding", "python benchmarks/isolated_decoding.py --save"))


# --- demo -----------------------------------------------------------------------------------------------------------


@table
def demo() -> str:
    about = result("demo")
    names = list(next(iter(about["rows"].values())))
    body = [[kind, *(interval(row[name]) for name in names)] for kind, row in about["rows"].items()]
    head = [f"{about['studies']} synthetic X-rays that it never saw", *names]
    return rows(head, body, made("demo", "python benchmarks/demo.py demo_out --save"))


# --- findings ---------------------------------------------------------------------------------------------------------


@table
def context() -> str:
    about = result("context")
    body = []
    for row in about["rows"]:
        exchanged = row.get("exchanged")
        body.append(
            [
                row["given"].replace("_", " "),
                f"{row['title']} (should {row['should']}; {row['studies']} studies)",
                f"{row['without']:.3f}",
                f"{row['with']:.3f}",
                f"{row['difference']:+.3f} [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]",
                f"{exchanged['exchanged']:.3f}" if exchanged else "",
            ]
        )
    head = ["given", "score", "without", "with", "difference", "another patient's"]
    return rows(head, body, made("context", "python benchmarks/context.py --save"))


@table
def out_of_distribution() -> str:
    mini, real = result("out_of_distribution"), result("out_of_distribution_real_small_fold0_adapter")
    body = [
        [
            kind,
            *(
                f"{percent(about['images'][kind]['warned'])} of {about['images'][kind]['n']}"
                if kind in about["images"]
                else ""
                for about in (mini, real)
            ),
        ]
        for kind in mini["images"]
    ]
    head = ["warned of", "`mini`, made for phantoms", "a model that learned on real films"]
    return rows(
        head, body, made("out_of_distribution", "python benchmarks/out_of_distribution.py HELD_OUT --save")
    )


@table
def repeats() -> str:
    about = result("repeats")
    body = []
    for kind in ("case reports", "phantoms"):
        for way, said in (("allowed", "`--allow-repeats`"), ("ended", "as it is")):
            row = about[kind][way]
            f1 = row.get("label-f1/14/macro/neg")
            body.append(
                [
                    f"{about[kind]['studies']} {kind}, {said}",
                    percent(row["repeated"]),
                    percent(row["cut off"]),
                    f"{row['words']:.1f}",
                    interval(f1) if f1 else "",
                ]
            )
    head = ["`mini`", "repeat a sentence", "cut off", "words", "label F1, macro"]
    return rows(head, body, made("repeats", "python benchmarks/repeats.py HELD_OUT --save"))


@table
def oversight() -> str:
    about = result("oversight")
    true, shuffled = about["true films"], about["shuffled films"]
    body = [
        [
            kind,
            str(row["planted"]),
            interval(row["right"]),
            interval(shuffled[kind]["right"]),
            f"{row['auroc'][0]:.3f}",
            percent(row["caught"][0]),
            percent(row["corrected"][0]) if "corrected" in row else "",
        ]
        for kind, row in true.items()
    ]
    omission = about["omission"]
    body.append(
        [
            "omission",
            str(omission["planted"]),
            "",
            "",
            f"{omission['auroc'][0]:.3f}",
            percent(omission["caught"]),
            "",
        ]
    )
    head = [
        "planted error", "reports", "right at even odds", "with another's film", "AUROC", "caught", "put right exactly",
    ]  # fmt: skip
    flagged = about["clean reports flagged"]
    said = (
        f"`mini` on {about['reports']} phantoms that no part of it has seen. Caught: at a threshold that flags "
        f"{percent(flagged[0])} of the reports that are right. Verifying takes "
        f"{about['seconds a study']['times generate']} times as long as generating. "
    )
    return rows(head, body, said + made("oversight", "python benchmarks/oversight.py --save"))


@table
def rewards() -> str:
    about = result("rewards")
    held, before, after = about["held out"], about["before"], about["after"]
    f1, found = "label-f1/14/micro/neg", "recall"
    lost = sorted(
        before[found], key=lambda c: (after[found][c][0] - before[found][c][0]) / before[found][c][1]
    )[:3]
    both = (before, after)
    body = [
        ["reward of held-out studies", *(f"{held[when]['true/reward']:.2f}" for when in ("before", "after"))],
        [
            "the same with shuffled images",
            *(f"{held[w]['shuffled/reward']:.2f}" for w in ("before", "after")),
        ],
        [
            f"words a report, {after['studies']} test studies",
            *(f"{x['words/generated'][0]:.0f}" for x in both),
        ],
        ["label F1, micro", *(interval(x[f1], 3) for x in both)],
        ["label F1, macro", *(interval(x["label-f1/14/macro/neg"], 3) for x in both)],
        ["ROUGE-L", *(f"{x['rouge-l/coco'][0]:.2f}" for x in both)],
        *(
            [
                f"{condition} found, of {before[found][condition][1]}",
                *(str(x[found][condition][0]) for x in both),
            ]
            for condition in lost
        ),
    ]
    head = ["on phantoms", "before", "after"]
    return rows(head, body, made("rewards", "python benchmarks/rewards.py --save"))


@table
def findings_step() -> str:
    about = result("findings_step_cpu")
    body = []
    for case, ways in about["results"].items():
        for way, row in ways.items():
            if isinstance(row, dict) and row.get("studies_per_second"):
                body.append([case, way, f"{row['studies_per_second']:.2f}"])
    made_by = made("findings_step_cpu", "python benchmarks/findings_step.py --save", "x86-64, two threads")
    return rows(["studies", "way", "studies a second"], body, made_by)


@table
def vllm_equal() -> str:
    body = [
        [dtype, f"{row['equal']} of {row['studies']}", str(row["tokens"])]
        for dtype, row in result("vllm_equal").items()
        if isinstance(row, dict) and "equal" in row
    ]
    head = ["`mini` in vLLM and here", "equal answers", "tokens"]
    return rows(head, body, "(`python benchmarks/vllm_equal.py --save`.)")


# --- scores -----------------------------------------------------------------------------------------------------------


@table
def scoring() -> str:
    about = result("scoring")
    body = [[name, f"{seconds:.3f}"] for name, seconds in about["seconds"].items()]
    body.append(["`cxr.score` with baselines, subgroups and checks", f"{about['eval_score_seconds']:.2f}"])
    body.append(
        [
            "intervals of label F1 by scikit-learn in every replicate",
            f"{about['label_f1_intervals']['scikit_learn_seconds']:.1f} "
            f"({about['label_f1_intervals']['times_as_fast']:.0f} times as long as ours)",
        ]
    )
    return rows(
        [f"{about['pairs']} pairs of reports", "seconds"],
        body,
        made("scoring", "python benchmarks/scoring.py --save"),
    )


@table
def rivals() -> str:
    about = result("rivals")
    body = [
        [name, f"{row['greatest_difference']:.0e}", f"{row['ours_seconds']:.2f}", f"{row['theirs_seconds']:.2f}",
         f"{row['times_as_fast']:.1f}"]
        for name, row in about["scores"].items()
    ]  # fmt: skip
    test = about["paired test of BLEU-4"]
    body.append(
        ["paired test of BLEU-4, 10,000 permutations, RadEval (reckoned from 20)", "", f"{test['ours_seconds']:.2f}",
         f"{10_000 * test['theirs_seconds_a_permutation']:.0f}", f"{test['times_as_fast']:.0f}"]
    )  # fmt: skip
    head = [f"{about['pairs']} pairs", "greatest difference", "ours, s", "theirs, s", "times as fast"]
    said = "RadEval rounds to four digits. "
    return rows(head, body, said + made("rivals", "python benchmarks/rivals.py --save"))


@table
def labeller() -> str:
    body = [
        [name, str(row["weak"]), f"{row['precision']:.2f}", f"{row['recall']:.2f}", f"{row['f1']:.2f}"]
        for name, row in result("labeller")["MeSH-derived labels"].items()
        if isinstance(row, dict) and row.get("f1") is not None
    ]
    head = ["condition", "reports with its MeSH term", "precision", "recall", "F1"]
    return rows(head, body, made("labeller", "python benchmarks/labeller.py --save"))


@table
def labeller_sentences() -> str:
    about = result("labeller_sentences")
    before, after = about["before"]["kinds"], about["after"]["kinds"]

    def share(kinds: dict[str, Any], kind: str) -> str:
        held = kinds[kind]["held_back"]
        return percent(held["labels_right"] / held["labels"])

    body = [
        [kind.replace("_", " "), str(row["held_back"]["sentences"]), share(before, kind), share(after, kind)]
        for kind, row in after.items()
    ]
    style = about["after"]["MIMIC's style, held back"]
    said = (
        f"Of the held-back sentences of {' and '.join(style['kinds']).replace('_', ' ')}, a share of "
        f"{interval(style['sentences wholly right'])} is wholly right (Wilson's 95 % interval). "
        + made("labeller_sentences", "python benchmarks/labeller.py --sentences --save")
    )
    head = ["kind", "held-back sentences", "stated labels right, `rules-1`", "`rules-2`"]
    return rows(head, body, said)


# --- house ------------------------------------------------------------------------------------------------------------


@table
def damaged() -> str:
    shown = {
        "weights cut in half", "weights are an LFS pointer", "header's shape too large", "a tensor of another shape",
        "a tensor of NaN", "100,000 layers of text", "index names a file outside", "adapter pickled",
        "recipe: a billion laughs", "recipe: a Python object", "recipe: a field twice",
    }  # fmt: skip
    about = result("damaged")
    cases = about["cases"]
    body = [
        [case["damage"], _told(case), f"{case['seconds']:.2f}", f"{case['megabytes']} MB"]
        for case in cases
        if case["damage"] in shown
    ]
    missing = shown - {case["damage"] for case in cases}
    assert not missing, f"damaged.json has no {missing}"
    slowest, most = max(case["seconds"] for case in cases), max(case["megabytes"] for case in cases)
    said = (
        f"All {about['counts']['told']} of {len(cases)} end so, the slowest after {slowest:.2f} s and with at most "
        f"{most} MB more. {made('damaged', 'python benchmarks/damaged.py --save')}"
    )
    return rows(["damage", "what is said, with status 2", "seconds", "more memory"], body, said)


def _told(case: dict[str, Any]) -> str:
    said = re.sub(r"\S*/damaged/\w+/", "FOLDER/", case["line"].partition(": ")[2])
    return said.replace("|", "\\|").replace("<", "&lt;")


@table
def help_seconds() -> str:
    about = result("help")
    longest = max(about["seconds"], key=about["seconds"].get)
    body = [["the longest `--help`", f"{longest}: {about['seconds'][longest]:.2f}"]]
    return rows(
        ["of " + str(len(about["seconds"])) + " commands", "seconds of processor time"],
        body,
        made("help", "python benchmarks/help.py --save"),
    )


# --- intervals --------------------------------------------------------------------------------------------------------

COVERAGE = "python benchmarks/coverage.py --save"


def _coverages(found: Iterable[dict[str, Any]], method: str) -> str:
    """Lowest and highest coverage of some cells, in per cent, and how often the method gives an interval at all."""
    cells = [cell["methods"][method] for cell in found if method in cell["methods"]]
    given = [cell["given"] for cell in cells]
    held = [100 * cell["coverage"] for cell in cells if cell["given"] and cell["sets"] >= 20]
    if not held:
        return "too few" if any(given) else "none"
    low, high = round(min(held)), round(max(held))
    share = f" ({100 * sum(given) / len(given):.0f} % of sets)" if sum(given) < 0.99 * len(given) else ""
    return (f"{low}" if low == high else f"{low} to {high}") + share


def _named(row: str) -> str:
    return re.sub("^(micro|macro)", r"\1 F1", row).replace(">=", "≥")


@table
def coverage() -> str:
    about = result("coverage")
    systems = [about["alone"][name] for name in ("middling", "weak", "strong")]
    studies = list(systems[0])
    shown = (
        "micro", "macro, all", "macro, n >= 5", "macro, n >= 30", "F1 of a condition, 5 or more positives",
        "F1 of a condition, 2 to 4 positives", "F1 of a condition, 0 or 1 positives",
        "F1 of a condition, prevalence 0.02", "sensitivity, 5 or more positives", "score like ROUGE-L",
        "rate of 0.05", "rate of 0.3",
    )  # fmt: skip
    body = []
    for row in shown:
        cells = []
        for n in studies:
            found = [system[n][row] for system in systems if row in system[n]]
            both = (_coverages(found, "percentile"), _coverages(found, "chosen"))
            cells.append(f"{both[0]}; **{both[1]}**" if found else "")
        body.append([_named(row), *cells])
    said = f"Lowest and highest of three systems, {about['sets']} sets each. {made('coverage', COVERAGE)}"
    return rows(["coverage in %: before; **now**", *(f"{int(n):,} studies" for n in studies)], body, said)


@table
def coverage_methods() -> str:
    about = result("coverage")
    systems = [about["alone"][name]["100"] for name in ("middling", "weak", "strong")]
    shown = ("micro", "macro, n >= 5", "F1 of a condition, 5 or more positives", "rate of 0.05")
    names = dict.fromkeys(name for row in shown for name in systems[0][row]["methods"] if name != "chosen")
    body = []
    for name in names:
        cells = []
        for row in shown:
            found = [system[row] for system in systems if name in system[row]["methods"]]
            widths = [cell["methods"][name]["width"] for cell in found]
            width = f", {sum(widths) / len(widths):.2f}" if found else ""
            cells.append(f"{_coverages(found, name)}{width}" if found else "")
        body.append([name, *cells])
    said = f"Coverage in %, and mean width, in sets of 100 studies. {made('coverage', COVERAGE)}"
    return rows(["method", *map(_named, shown)], body, said)


@table
def coverage_paired() -> str:
    about = result("coverage")
    alike, trading = about["paired"]["alike"], about["paired"]["trading"]
    body = []
    for row in dict.fromkeys(row for found in alike.values() for row in found):
        cells = []
        for n in alike:
            found = [pair[n][row] for pair in (alike, trading) if row in pair[n]]
            levels = [100 * cell["level"] for cell in found if "level" in cell]
            if not found or not levels or found[0]["methods"]["chosen"].get("sets", 0) < 50:
                cells.append("")
                continue
            level = " and ".join(f"{level:.1f}" for level in levels)
            cells.append(f"{level}; {_coverages(found, 'percentile')}; **{_coverages(found, 'chosen')}**")
        body.append([_named(row), *cells])
    head = ["level in %; coverage before; **now**", *(f"{int(n):,} studies" for n in alike)]
    said = f"Level of the permutation test at .05. {made('coverage', COVERAGE)}"
    return rows(head, body, said)
