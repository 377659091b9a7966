"""Claim: our PTB tokens are those of pycocoevalcap's Java program on real reports, and BLEU, ROUGE-L and CIDEr follow.

    pip install --target /tmp/coco --no-deps pycocoevalcap
    CXR_DATA=FOLDER python benchmarks/ptb.py --jar /tmp/coco/pycocoevalcap/tokenizer/stanford-corenlp-3.4.1.jar [--save]
    python benchmarks/ptb.py --jar PATH --golden

The first needs Java and reads findings, impressions, indications and comparisons of `iu_text` and `pairs`, and the
CheXpert labeller's sample in `text`. Counts are printed, texts never. The Java program sees a batch as one stream, so
that a text that ends in "C." depends on the next one; `alone` puts a neutral line between texts, `in_a_batch` does not.
`--golden` writes the golden files of the tests from the strings below, which are not of patients.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from eval.scores import ptb
from eval.scores.lexical import lexical_samples, ptb_tokens
from eval.scores.r2gen import cider, clean_report, r2gen_samples

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "eval" / "golden"
# What pycocoevalcap removes after the program has run; the program writes small letters.
PUNCTUATION = ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"]
PUNCTUATION += [".", "?", "!", ",", ":", "-", "--", "...", ";"]
MADE = 60_000

SYNTHETIC = {
    "numbers and units": (
        "A 8mm nodule, 1.5-cm mass, 4.5cm, 3,000 mL, -1.5 and +2, .5 mm, 5 x 6 mm, 5x6x7mm, "
        "8.5x9.5 mm.|"
        "The 9th rib and 10th-11th ribs; 1st, 2nd, 3rd.|"
        "53-year-old man, 6-day-old child, 1960s, 60's|"
        "120/80mmHg, 109/L, 5mg/dL"
    ),
    "dates and times": (
        "On 12/25/2001, 12-25-2001 and 2001-12-25 at 9:30 a.m. and 12:30pm.|"
        "1/2-12 and 12/26/01-12/27/01|"
        "9:30:15, 9.30, 12:30-13:30, 9a.m."
    ),
    "fractions": (
        "1/2 of it, 1 1/2 inches, 1-1/2, 8-1/2-inch, grade 3 2/6 murmur, \xbd, 1\xbd cm, \xbe"
    ),
    "ranges and numbers in a row": (
        "3-4 mm, 3-4mm, 1.5-2.5 cm, 1999 2000 2001, 555-123-4567, (555) 123-4567, V76.12, "
        "T39.1"
    ),
    "slashes": (
        "and/or, mid/lower, AP/lateral/oblique, a/b/c/d, w/o, w/ contrast, r/o, "
        "XXXX/XXXX/weakness/pain, a / b"
    ),
    "brackets": (
        "nodule (8 mm) [see Fig. 2] {a} lung(s) -lrb- 1) (a)"
    ),
    "quotes and apostrophes": (
        "The \"shaggy\" heart and 'sail' sign; patient's, patients', it's, O'Brien's, '90s, "
        "d'Orsay, 5' 6\"|"
        "\u201cshaggy\u201d \u2018sail\u2019 patient\u2019s don\u2019t ``x''"
    ),
    "contractions": (
        "Cannot don't can't won't isn't gonna wanna gotta 'tis they'll I'd've we're|"
        "CANNOT DON'T cannot's"
    ),
    "abbreviations": (
        "Dr. Smith vs. Mr. Jones etc. The approx. 5 cm e.g. this, i.e. that. cf. Fig. 3 and "
        "fig. three; no. 5, no. Five|"
        "St. Jude, Co. and Inc. said. Mass. is a state. A mass. No mass., Right.|"
        "p.o. b.i.d. bid., U.S. The U.K."
    ),
    "letters with periods": (
        "Vitamin C. The end. Hepatitis C. patient. C. diff; A. B. See.|"
        "The end is C. The"
    ),
    "ellipses and dashes": (
        "Clear... no, wait.... yes.. no. Left - right -- both --- all ---- none ----- line "
        "\u2013 \u2014 \u2026 a\u2013b"
    ),
    "hyphens": (
        "left-sided non-small-cell T1-weighted L4-5 C5-C6 -left left- pre-1.5 post-, x-ray"
    ),
    "signs": (
        "50% of #5, R&D, a & b, A&E, 5+6, ++, O+, +/- 5, ~5, =5, <5, >5, <=5, 5*6, a_b, "
        "___, ___-year-old, ** *** ?? ?! !!"
    ),
    "addresses": (
        "a@b.com, @radiology, #chest #covid-19, http://www.example.org/a?b=c, "
        "www.example.org, radiopaedia.org."
    ),
    "removed words": (
        "XXXX XXXX-year-old XXXX. XXXX, XXXX's XXXX.The XXXX/XXXX (XXXX) XXXX?XXXX 1XXXX"
    ),
    "missing spaces": (
        "Clear.No effusion.The heart;normal,1.5cm:wide heart?normal 3.The 1.c x"
    ),
    "marks of other alphabets": (
        "37.5\xb0C, 5\xb0, \xb15, 5 \xd7 6, \u22655, cm\xb2, \xb5m, H\u2082O, \u2022 item, "
        "caf\xe9, soft\xadhyphen, 5\u20326\u2033, \u20ac5, \xa35, \ufffd"
    ),
    "tags, entities, faces": (
        "<b>bold</b> <br> <XXXX> < 5 > &lt;br&gt; A&amp;E &nbsp; :-) :( Findings:(1) "
        "x:Diffuse <b and c>"
    ),
}  # fmt: skip


def strings() -> list[str]:
    """Return the synthetic strings, class by class."""
    return [text for texts in SYNTHETIC.values() for text in texts.split("|")]


def made(count: int, seed: int) -> list[str]:
    """Put words and marks together at random, as reports are not and may be."""
    rng = random.Random(seed)
    words = " ".join(strings()).split()
    marks = [
        " ",
        " ",
        " ",
        ". ",
        ", ",
        "-",
        "/",
        ". ",
        "'s ",
        " (",
        ") ",
        "; ",
        ": ",
        ".",
        "'",
        '"',
        "\u2013",
        "% ",
        " - ",
    ]
    return [
        "".join(rng.choice(words) + rng.choice(marks) for _ in range(rng.randint(2, 5))).strip()
        for _ in range(count)
    ]


def by_java(jar: Path, texts: Sequence[str]) -> list[list[str]]:
    """Return the tokens of the Java program in one batch, punctuation removed as pycocoevalcap does."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(text.replace("\n", " ") for text in texts))
        file.flush()
        command = [
            "java",
            "-cp",
            str(jar),
            "edu.stanford.nlp.process.PTBTokenizer",
            "-preserveLines",
            "-lowerCase",
        ]
        run = subprocess.run([*command, file.name], capture_output=True, check=True)
    lines = run.stdout.decode().split("\n")
    return [
        [word for word in line.rstrip().split(" ") if word and word not in PUNCTUATION]
        for line in lines[: len(texts)]
    ]


def by_java_alone(jar: Path, texts: Sequence[str]) -> list[list[str]]:
    """Return the tokens of each text with a neutral line behind it."""
    return by_java(jar, [line for text in texts for line in (text, "x")])[::2]


def differing(jar: Path, texts: Sequence[str], way: Callable[..., list[list[str]]] = by_java_alone) -> int:
    """Count the texts whose tokens differ from the program's."""
    return sum(theirs != ptb_tokens(text) for text, theirs in zip(texts, way(jar, texts), strict=True))


def real_texts(folder: Path) -> tuple[list[str], list[str]]:
    """Return findings and impressions, and all other texts."""
    main, other = [], []
    for name in ("iu_text", "pairs"):
        for line in (folder / name / "studies.jsonl").read_text().splitlines():
            study = json.loads(line)
            main += [study[k] for k in ("findings", "impression") if study.get(k)]
            other += [study[k] for k in ("indication", "comparison", "technique") if study.get(k)]
    for path in sorted((folder / "text").glob("*.csv")):
        with path.open(newline="") as file:
            other += [cell for row in csv.reader(file) for cell in row if len(cell) > 20]
    return main, other


def findings_pairs(folder: Path) -> tuple[list[str], list[str]]:
    """Return references and predictions: findings of `iu_text`, and those of the next study."""
    lines = (folder / "iu_text" / "studies.jsonl").read_text().splitlines()
    texts = [t for line in lines if (t := json.loads(line).get("findings"))]
    return texts[:-1], texts[1:]


def pycocoevalcap(jar: Path):
    """Return pycocoevalcap's tokenizer, BLEU, ROUGE-L and CIDEr classes of the package around the jar."""
    sys.path.insert(0, str(jar.resolve().parents[2]))
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    return PTBTokenizer, Bleu, Rouge, Cider


def clear_caches() -> None:
    """Forget all tokens, so that a time is that of the first call."""
    ptb._of_text.cache_clear()
    ptb._of_word.cache_clear()


def compare_coco(jar: Path, references: list[str], predictions: list[str]) -> dict:
    """Score pairs with both, tokens included, and time both."""
    tokenizer, bleu, rouge, _ = pycocoevalcap(jar)
    start = time.perf_counter()
    gts, res = (
        tokenizer().tokenize({i: [{"caption": t}] for i, t in enumerate(texts)})
        for texts in (references, predictions)
    )
    theirs = list(bleu(4).compute_score(gts, res, verbose=0)[0])
    theirs_rouge_N = np.asarray(rouge().compute_score(gts, res)[1])
    theirs_s = time.perf_counter() - start
    clear_caches()
    start = time.perf_counter()
    ours = lexical_samples(references, predictions, "coco", with_meteor=False)
    ours_bleu = ours.bleu()
    ours_s = time.perf_counter() - start
    both_empty = [i for i in gts if not gts[i][0] and not res[i][0]]
    apart_N = np.abs(ours.rouge_l_N - theirs_rouge_N)
    apart_N[both_empty] = 0
    return {
        "bleu": [round(float(x), 6) for x in theirs],
        "rouge_l": round(float(theirs_rouge_N.mean()), 6),
        "largest_difference": {
            "bleu": float(np.abs(ours_bleu - theirs).max()),
            "rouge_l_of_a_study": float(apart_N.max()),
        },
        "both_texts_empty": len(both_empty),
        "seconds": {"ours": round(ours_s, 3), "pycocoevalcap": round(theirs_s, 3)},
        "times_as_fast": round(theirs_s / ours_s, 1),
    }


def compare_r2gen(jar: Path, references: list[str], predictions: list[str]) -> dict:
    """Score cleaned pairs with both."""
    _, bleu, rouge, theirs_cider = pycocoevalcap(jar)
    found = {}
    for cleaning in ("iu", "mimic"):
        gts, res = (
            {i: [clean_report(t, cleaning)] for i, t in enumerate(texts)}
            for texts in (references, predictions)
        )
        start = time.perf_counter()
        theirs = list(bleu(4).compute_score(gts, res, verbose=0)[0])
        theirs_rouge_N = np.asarray(rouge().compute_score(gts, res)[1])
        theirs_cider_N = np.asarray(theirs_cider().compute_score(gts, res)[1])
        theirs_s = time.perf_counter() - start
        ours = r2gen_samples(references, predictions, cleaning)
        start = time.perf_counter()
        cider([[r[0].split()] for r in gts.values()], [h[0].split() for h in res.values()])
        ours_cider_s = time.perf_counter() - start
        start = time.perf_counter()
        theirs_cider().compute_score(gts, res)
        theirs_cider_s = time.perf_counter() - start
        found[cleaning] = {
            "bleu": [round(float(x), 6) for x in theirs],
            "rouge_l": round(float(theirs_rouge_N.mean()), 6),
            "cider": round(float(theirs_cider_N.mean()), 6),
            "largest_difference": {
                "bleu": float(np.abs(ours.bleu() - theirs).max()),
                "rouge_l_of_a_study": float(np.abs(ours.rouge_l_N - theirs_rouge_N).max()),
                "cider_of_a_study": float(np.abs(ours.cider_N - theirs_cider_N).max()),
            },
            "seconds_pycocoevalcap": round(theirs_s, 3),
            "cider_times_as_fast": round(theirs_cider_s / ours_cider_s, 1),
        }
    return found


def write_golden(jar: Path) -> None:
    """Write the golden files of the tests."""
    command = "python benchmarks/ptb.py --jar stanford-corenlp-3.4.1.jar --golden"
    texts = strings()
    cases = [[text, tokens] for text, tokens in zip(texts, by_java_alone(jar, texts), strict=True)]
    about = f"Tokens of Stanford's PTBTokenizer 3.4.1 as pycocoevalcap 1.2 calls it; made by `{command}`"
    write_json(GOLDEN / "ptb_tokens.json", {"about": about, "tokens": cases})
    references = [text for text in texts if len(text.split()) > 3]
    predictions = [
        " ".join(reversed(a.split()[:9])) + " " + b
        for a, b in zip(references, references[1:] + references[:1], strict=True)
    ]
    _, bleu, rouge, theirs_cider = pycocoevalcap(jar)
    result = {"about": f"pycocoevalcap 1.2 on cleaned synthetic pairs; made by `{command}`"}
    result |= {"references": references, "predictions": predictions}
    for cleaning in ("iu", "mimic"):
        gts, res = (
            {i: [clean_report(t, cleaning)] for i, t in enumerate(side)} for side in (references, predictions)
        )
        result[cleaning] = {
            "bleu": [float(x) for x in bleu(4).compute_score(gts, res, verbose=0)[0]],
            "rouge_l": [float(x) for x in rouge().compute_score(gts, res)[1]],
            "cider": [float(x) for x in theirs_cider().compute_score(gts, res)[1]],
        }
    write_json(GOLDEN / "r2gen.json", result)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file in plain ASCII."""
    path.write_text(json.dumps(content, indent=1) + "\n")
    print("wrote", path)


def speed(texts: list[str]) -> dict:
    """Return tokens a second, at first sight and with every word known."""
    tokens = sum(len(ptb_tokens(text)) for text in texts)
    clear_caches()
    found = {"tokens": tokens}
    for name in ("first_sight", "words_known"):
        start = time.perf_counter()
        for text in texts:
            ptb_tokens(text)
        found[f"{name}_per_second"] = round(tokens / (time.perf_counter() - start))
        ptb._of_text.cache_clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jar", type=Path, required=True, help="stanford-corenlp-3.4.1.jar inside pycocoevalcap"
    )
    parser.add_argument("--golden", action="store_true", help="write the tests' golden files and end")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/ptb.json")
    args = parser.parse_args()
    # Java 17 writes its output in the locale's encoding.
    os.environ["LC_ALL"] = "C.UTF-8"
    if args.golden:
        write_golden(args.jar)
        return
    if "CXR_DATA" not in os.environ:
        parser.error("CXR_DATA must name the folder with iu_text, pairs and text")
    folder = Path(os.environ["CXR_DATA"])
    main_texts, other_texts = real_texts(folder)
    every = main_texts + other_texts
    random_texts = made(MADE, seed=0)
    references, predictions = findings_pairs(folder)
    result = {
        "texts_that_differ": {
            "findings_and_impressions": {"differ": differing(args.jar, main_texts), "of": len(main_texts)},
            "all_texts_alone": {"differ": differing(args.jar, every), "of": len(every)},
            "all_texts_in_a_batch": {"differ": differing(args.jar, every, by_java), "of": len(every)},
            "synthetic": {"differ": differing(args.jar, strings()), "of": len(strings())},
            "random": {"differ": differing(args.jar, random_texts), "of": len(random_texts)},
        },
        "tokens": speed(every),
        "pairs": len(references),
        "coco": compare_coco(args.jar, references, predictions),
        "r2gen": compare_r2gen(args.jar, references, predictions),
        "machine": f"{platform.machine()}, one core for us, Java takes what it finds",
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=1))
    if args.save:
        write_json(ROOT / "benchmarks" / "results" / "ptb.json", result)


if __name__ == "__main__":
    main()
