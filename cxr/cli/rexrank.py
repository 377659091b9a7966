"""ReXrank's interface (https://rexrank.ai): findings for the studies of its JSON file.

    cxr rexrank IN.json OUT.json IMAGE_ROOT --model runs/findings/merged

IN is {study id: {"image_path": [...], "frontal_lateral": [...], "key_image_path": ..., "context": "Age:60-70.Gender:F.
Indication: ... Comparison: ...", "report": ...}}; OUT is the same with "model_prediction" in every study. A study whose
images cannot be used gets an empty one and "model_error". Run the same command to resume.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from cxr.cli.terminal import BASE, DEVICE, MODEL, UsageError, check_target, positive, status_of, tell
from encoder.errors import naming
from encoder.files import sole_writer, write_json
from eval.scores.readers import context_of
from vlm.study import Image, Study

VIEWS = {"frontal": "frontal", "lateral": "lateral"}


def study_of(study_id: str, row: dict[str, Any], root: Path) -> Study:
    """Return a study of ReXrank's file; the key image comes first. Age is the middle of its range of years.
    Raises UsageError for one without images."""
    paths = _texts(row, "image_path", study_id)
    views = _texts(row, "frontal_lateral", study_id)
    key, context = row.get("key_image_path") or "", row.get("context") or ""
    for name, value in (("key_image_path", key), ("context", context)):
        if not isinstance(value, str):
            raise UsageError(f"study {study_id}: {name} must be a text, not {type(value).__name__}")
    if key and key not in paths:
        paths, views = [key, *paths], ["frontal", *views]
    if not paths:
        raise UsageError(f"study {study_id} has neither image_path nor key_image_path")
    views = [*views, *[""] * (len(paths) - len(views))]
    images = [
        Image(str(root / path.lstrip("/")), VIEWS.get(str(view).lower(), "unknown"))
        for path, view in sorted(zip(paths, views, strict=False), key=lambda pair: pair[0] != key)
    ]
    return Study(study_id, images=images, **context_of(context))


def _texts(row: dict[str, Any], name: str, study_id: str) -> list[str]:
    """Return the texts of a field, which may be one alone. Raises UsageError for anything else."""
    value = row.get(name) or []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"study {study_id}: {name} must be a list of texts, not {json.dumps(value)[:60]}")
    return texts


def write(path: Path, predictions: list[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> None:
    """Write ReXrank's rows with the predictions, atomically."""
    out = {}
    for prediction in predictions:
        texts = [prediction.get(section) for section in ("findings", "impression")]
        out[prediction["study_id"]] = {
            **rows[prediction["study_id"]], "model_prediction": "\n".join(text for text in texts if text),
        }  # fmt: skip
        if "error" in prediction:
            out[prediction["study_id"]]["model_error"] = prediction["error"]["message"]
    write_json(path, out, indent=4)


def is_ours(path: Path) -> bool:
    """Say whether a file holds ReXrank's rows with predictions."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(rows, dict) and all(
        isinstance(row, dict) and "model_prediction" in row for row in rows.values()
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr rexrank` to `parser`."""
    add = parser.add_argument
    add("input", type=Path, metavar="IN.json", help="ReXrank's file of studies.")
    add("output", type=Path, metavar="OUT.json", help="File to write: the same with predictions.")
    add("root", type=Path, metavar="IMAGE_ROOT", help="Folder that the image paths are below.")
    add("--model", default="mini", help=MODEL)
    add("--base", help=BASE)
    add("--device", help=DEVICE)
    add("--batch-size", type=positive, metavar="N", default=16, help="Studies generated together.")
    add(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help="Longest findings in tokens (default: the model's).",
    )
    add("--overwrite", action="store_true", help="Replace OUT.json.")


def run(args: argparse.Namespace) -> int:
    """Run `cxr rexrank`."""
    from vlm.hub import check_here

    check_here(args.model, args.base)
    from vlm.decoding import Decoding
    from vlm.findings import Findings
    from vlm.predictions import check_beside, write_predictions

    try:
        rows = json.loads(args.input.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{args.input} is not JSON: {error}") from None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UsageError(f"{args.input}: expected an object of studies by id")
    studies = [study_of(name, row, args.root) for name, row in rows.items()]
    reads = [args.input, *(Path(image.path) for study in studies for image in study.images)]

    def check() -> None:
        check_target(args.output, "ReXrank's predictions", is_ours, reads=reads, overwrite=args.overwrite)
        check_beside(args.output, reads)

    check()
    model = Findings.from_pretrained(args.model, base=args.base, device=args.device, warn=False)
    decoding = Decoding(args.max_new_tokens or model.model.max_new_tokens)
    settings = {
        "batch_size": args.batch_size, "images": "own", "seed": 0, "decoding": decoding, "sentences": "none",
    }  # fmt: skip
    with sole_writer(args.output):
        # Another run may have finished it meanwhile.
        check()
        with naming(args.output):
            refused = write_predictions(
                args.output, model, studies, settings, write=partial(write, rows=rows)
            )
    tell(f"wrote {args.output}: {len(rows)} studies" + (f", {refused} refused" if refused else ""))
    return status_of(refused, len(rows))
