"""ReXrank's interface (https://rexrank.ai): findings for the studies of its JSON file.

    python -m cxr.cli.rexrank IN.json OUT.json IMAGE_ROOT --model runs/findings/merged

IN is {study id: {"image_path": [...], "frontal_lateral": [...], "key_image_path": ..., "context": "Age:60-70.Gender:F.
Indication: ... Comparison: ...", "report": ...}}; OUT is the same with "model_prediction" in every study. A study whose
images cannot be used gets an empty one and "model_error". The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from cxr.cli.generate import go_on
from cxr.cli.terminal import UsageError
from vlm.study import Image, Study

CONTEXT = re.compile(r"(Age|Gender|Indication|Comparison)\s*:", re.I)
VIEWS = {"frontal": "frontal", "lateral": "lateral"}


def study_of(study_id: str, row: dict[str, Any], root: Path) -> Study:
    """A study of ReXrank's file; the key image comes first. Age is the middle of its range of years. Raises UsageError
    for one without images."""
    paths = row.get("image_path") or []
    paths = [paths] if isinstance(paths, str) else list(paths)
    views = row.get("frontal_lateral") or []
    views = [views] if isinstance(views, str) else list(views)
    key = row.get("key_image_path")
    if key and key not in paths:
        paths, views = [key, *paths], ["frontal", *views]
    if not paths:
        raise UsageError(f"study {study_id} has neither image_path nor key_image_path")
    views += [""] * (len(paths) - len(views))
    images = [
        Image(str(root / path.lstrip("/")), VIEWS.get(str(view).lower(), "unknown"))
        for path, view in sorted(zip(paths, views, strict=False), key=lambda pair: pair[0] != key)
    ]
    said = context_of(row.get("context") or "")
    return Study(study_id, images=images, **said)


def context_of(text: str) -> dict[str, Any]:
    """ "Age:60-70.Gender:F.Indication: Cough. Comparison: None." -> the fields of a study that it gives."""
    parts = CONTEXT.split(text)[1:]
    named = {name.lower(): words.strip() for name, words in zip(parts[::2], parts[1::2], strict=True)}
    found: dict[str, Any] = {}
    if age := re.match(r"(\d{1,3})(?:\s*-\s*(\d{1,3}))?", named.get("age", "")):
        first, last = int(age[1]), int(age[2] or age[1])
        found["age"] = (first + last) / 2
    if sex := re.match(r"[FM]", named.get("gender", "").upper()):
        found["sex"] = sex[0]
    for name in ("indication", "comparison"):
        if named.get(name, "").strip(" ."):
            found[name] = named[name]
    return found


def write(path: Path, predictions: list[dict], rows: dict[str, dict]) -> None:
    """ReXrank's rows with what was predicted, in one piece."""
    out = {}
    for prediction in predictions:
        texts = [prediction.get(section) for section in ("findings", "impression")]
        out[prediction["study_id"]] = {
            **rows[prediction["study_id"]], "model_prediction": "\n".join(text for text in texts if text),
        }  # fmt: skip
        if "error" in prediction:
            out[prediction["study_id"]]["model_error"] = prediction["error"]["message"]
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(out, indent=4) + "\n")
    temporary.replace(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxr.cli.rexrank", description="ReXrank's inference interface."
    )
    parser.add_argument("input", type=Path, metavar="IN.json")
    parser.add_argument("output", type=Path, metavar="OUT.json")
    parser.add_argument("root", type=Path, metavar="IMAGE_ROOT")
    parser.add_argument("--model", default="mini", help="model directory (default: the shipped mini)")
    parser.add_argument("--base", help="base model of an adapter")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    from vlm.errors import ModelError

    try:
        return run(args)
    except (UsageError, ModelError, OSError) as error:
        print(f"cxr.cli.rexrank: {error}", file=sys.stderr)
        return 2


def run(args) -> int:
    from vlm.decoding import Decoding
    from vlm.findings import Findings

    try:
        rows = json.loads(args.input.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{args.input} is not JSON: {error}") from None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UsageError(f"{args.input}: expected an object of studies by id")
    if args.output.exists() and not args.overwrite:
        raise UsageError(f"{args.output} exists; choose another file or give --overwrite")
    studies = [study_of(name, row, args.root) for name, row in rows.items()]
    model = Findings.from_pretrained(args.model, base=args.base, device=args.device)
    decoding = Decoding(args.max_new_tokens or model.model.meta.max_new_tokens)
    settings = {
        "batch_size": args.batch_size, "images": "true", "seed": 0, "decoding": decoding, "sentences": "none",
    }  # fmt: skip
    about = model.about(decoding)
    refused = go_on(args.output, model, studies, settings, about, None, partial(write, rows=rows))
    print(f"wrote {args.output}: {len(rows)} studies" + (f", {refused} refused" if refused else ""))
    return 1 if refused == len(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
