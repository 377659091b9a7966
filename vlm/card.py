"""The model card of an exported model: what it is, what it learned from, how good it was, and what it is not for.

Only what is known is said. No path and no text of a study goes into it, for a card is published.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from encoder.errors import ModelError, reading
from vlm.model import FindingsModel, Meta, parameter_table

# Fields of a training's run.json that say how it was done, without saying where anything lies.
RECIPE = (
    "max_steps", "batch_size", "learning_rate", "projector_lr_mult", "lora", "lora_rank", "lora_alpha", "align_steps",
    "context_dropout", "reward", "reward_weights", "num_generations", "temperature", "beta", "precision", "seed",
)  # fmt: skip


def write_card(
    model: FindingsModel, folder: Path, *, run: Path | None = None, scores: Path | None = None,
    licences: Sequence[str] = (),
) -> None:  # fmt: skip
    """`folder`/README.md. `run` is the folder of the fine-tuning (run.json, best/metrics.json), `scores` a file of
    `cxr score --out`, `licences` lines such as "encoder: MIT"."""
    meta, config = model.meta, model.config
    kind = "a stock `LlavaForConditionalGeneration`" if config.model_type == "llava" else "a `cxr_llava`"
    needs = "" if config.model_type == "llava" else "import cxr  # makes cxr_llava known\n"
    text = config.text_config
    notice = "" if meta.notice == Meta.notice else f" {meta.notice}"
    lines = [
        "---", "pipeline_tag: image-text-to-text", "library_name: transformers", "tags: [radiology, chest-x-ray]",
        "---", "", f"# {meta.name}", "", f"**Research use, not for diagnosis.**{notice}", "",
        f"Writes the {'findings and impression' if meta.prompt.section == 'both' else meta.prompt.section} of a chest "
        f"X-ray: {kind} with a {config.vision_config.model_type} encoder at {model.preprocessing.size} px "
        f"({model.image_tokens:,} tokens an image) and a {text.model_type} language model of "
        f"{text.num_hidden_layers} layers, width {text.hidden_size}.",
        "", "```python", f"{needs}from transformers import AutoModelForImageTextToText, AutoProcessor",
        'model = AutoModelForImageTextToText.from_pretrained("DIRECTORY")', "```", "",
        'or, with DICOM files, warnings and the right prompt: `import cxr; '
        'cxr.Findings.from_pretrained("DIRECTORY")("chest.dcm").text`.',
        "", "## What it is", "", "| part | parameters |", "|---|---|",
        *(f"| {part} | {count:,} |" for part, count, _ in parameter_table(model.llava)),
        "", f"- features of the encoder: {meta.features}",
        f"- encoder sha256 {meta.encoder_sha256[:16]}, preprocessing sha256 {meta.preprocess_sha256[:16]}",
        f"- pictures of 8 bits: {_pictures(model)}",
        f"- prompt: {_said(asdict(meta.prompt))}", f"- at most {meta.max_new_tokens} new tokens", "",
        "## What it learned from", "", *_training(run), "", "## How good it was", "", *_scores(run, scores), "",
        "## Limits", "",
        "- It may invent findings, miss them, and compare with studies it was not shown. Its text is no report.",
        "- It knows the hospitals, devices and patients of its training data; others may fare worse, without a sign.",
        "- Frontal chest films alone, unless the prompt above shows laterals; never other body parts or modalities.",
        "", "## Licences", "",
        *([f"- {line}" for line in (meta.licence, *licences) if line] or [
            "Not stated. The licences of the encoder, of the language model and of the training data bind this model."
        ]), "",
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _pictures(model: FindingsModel) -> str:
    unsaid = model.preprocessing.unsaid
    if unsaid:
        return f"{unsaid}, which transformers' processor does not do; spread them yourself before it"
    return "as they are, here and by transformers' processor"


def scores_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of what `cxr score --out` wrote. Raises ModelError for a file of another kind."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["scores"]
        if all({"name", "value"} <= row.keys() for row in rows):
            return list(rows)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ModelError(f"{path} does not hold scores; give what cxr score --out wrote")


def _said(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value).lower()}" for name, value in fields.items())


def _training(run: Path | None) -> list[str]:
    path = run and run / "run.json"
    if not path or not path.is_file():
        return ["Not known here: the folder of the fine-tuning was not given (`--run`)."]
    with reading(path.parent, "its run.json"):
        fields = dict(json.loads(path.read_text()))
    count = len(fields.get("sha256 of studies", []))
    digests = ", ".join(digest[:16] for digest in fields.get("sha256 of studies", []))
    made = {name: fields[name] for name in RECIPE if name in fields}
    return [f"- {count} studies file{'s' * (count != 1)}, sha256 {digests}", f"- recipe: {_said(made)}"]


def _scores(run: Path | None, scores: Path | None) -> list[str]:
    lines = []
    best = run and run / "best" / "metrics.json"
    if best and best.is_file():
        row = json.loads(best.read_text())
        lines.append(
            f"- on validation studies, at step {row['step']}: loss {row['eval_loss']:.3f}, "
            f"label F1 {row['eval_f1']:.3f}; with another study's images {row['eval_f1_shuffled']:.3f}"
        )
    if scores:
        lines += ["", "| score | value | 95 % interval | n | signature |", "|---|---|---|---|---|"]
        for row in scores_of(scores):
            if row.get("value") is not None:
                low, high = row.get("interval") or (None, None)
                between = "" if low is None else f"{low:.3f} to {high:.3f}"
                signature = row.get("signature", "").replace("|", r"\|")
                cells = (row["name"], f"{row['value']:.3f}", between, str(row.get("n", "")), f"`{signature}`")
                lines.append(f"| {' | '.join(cells)} |")
    return lines or ["Not measured, or not given (`--scores`, of `cxr score --out`)."]
