"""The model card of an exported model: what it is, what it learned from, how good it was, and what it is not for.

Only what is known is said. No path and no text of a study goes into it, for a card is published. Its header is what the
Hugging Face hub reads (https://huggingface.co/docs/hub/model-cards): licence, base model, and scores as `model-index`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from encoder.errors import ModelError, reading
from encoder.hub import HUB_ID
from vlm.model import FindingsModel, Meta, parameter_table
from vlm.prompts import IMAGE_TOKEN, prompt_for
from vlm.study import Image, Study

# Fields of a training's run.json that say how it was done, without saying where anything lies.
RECIPE = (
    "max_steps", "batch_size", "learning_rate", "projector_lr_mult", "lora", "lora_rank", "lora_alpha", "align_steps",
    "context_dropout", "reward", "reward_weights", "num_generations", "temperature", "beta", "precision", "seed",
)  # fmt: skip
# Fields of run.json that name what a training began with.
BEGAN_WITH = ("init", "encoder", "llm")
# Licences that the hub knows by name, of those that models and data of this kind have.
HUB_LICENCES = {
    "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "llama2", "llama3", "llama3.1", "llama3.2",
    "gemma",
}  # fmt: skip
TASK = "image-text-to-text"


def write_card(
    model: FindingsModel, folder: Path, *, run: Path | None = None, scores: Path | None = None,
    licences: Sequence[str] = (), source: Path | None = None, base: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write `folder`/README.md.

    Args:
        run: folder of the fine-tuning (run.json, best/metrics.json).
        scores: a file of `cxr score --out`.
        licences: lines such as "encoder: MIT".
        source: directory that the model was exported from; what its own card says of licence, base model and scores is
            carried over where nothing newer is given.
        base: hub ids of the models that this one was made of, as far as the caller knows them.
    """
    meta, config = model.meta, model.config
    before = _card_of(source)
    stated = [line for line in (meta.licence, *licences) if line]
    if not stated and before.license and before.license != "other":
        stated = [f"the model this was exported from: {before.license}"]
    header = metadata(model, run=run, scores=scores, licences=stated, before=before, base=base)
    kind = "a stock `LlavaForConditionalGeneration`" if config.model_type == "llava" else "a `cxr_llava`"
    needs = "" if config.model_type == "llava" else "import cxr  # makes cxr_llava known\n"
    text = config.text_config
    notice = "" if meta.notice == Meta.notice else f" {meta.notice}"
    lines = [
        "---", header.to_yaml(), "---", "", f"# {meta.name}", "", f"**Research use, not for diagnosis.**{notice}", "",
        f"Writes the {'findings and impression' if meta.prompt.section == 'both' else meta.prompt.section} of a chest "
        f"X-ray: {kind} with a {config.vision_config.model_type} encoder at {model.preprocessing.size} px "
        f"({model.image_tokens:,} tokens an image) and a {text.model_type} language model of "
        f"{text.num_hidden_layers} layers, width {text.hidden_size}.",
        "", "With plain transformers, for PNG and JPEG files:", "", "```python", *snippet(model, needs), "```", "",
        'The picture belongs into the chat: `pipe("chest.png")` takes the path for text, and answers without an image.',
        "", 'With DICOM files, warnings and the right prompt: `import cxr; '
        'cxr.Findings.from_pretrained("DIRECTORY")("chest.dcm").text`.',
        "", "## What it is", "", "| part | parameters |", "|---|---|",
        *(f"| {part} | {count:,} |" for part, count, _ in parameter_table(model.llava)),
        "", f"- features of the encoder: {meta.features}",
        f"- encoder sha256 {meta.encoder_sha256[:16]}, preprocessing sha256 {meta.preprocess_sha256[:16]}",
        f"- pictures of 8 bits: {_pictures(model)}",
        f"- prompt: {_said(asdict(meta.prompt))}", f"- at most {meta.max_new_tokens} new tokens", "",
        "## What it learned from", "", *([f"- base model: {name}" for name in _as_list(header.base_model)]),
        *_training(run), "", "## How good it was", "", *_scores(run, scores, before), "",
        "## Limits", "",
        "- It may invent findings, miss them, and compare with studies it was not shown. Its text is not a report.",
        "- It knows the hospitals, devices and patients of its training data; others may fare worse, without notice.",
        "- Frontal chest films alone, unless the prompt above shows laterals; never other body parts or modalities.",
        "", "## Licences", "",
        *([f"- {line}" for line in stated] or [
            "Not stated. The licences of the encoder, of the language model and of the training data bind this model."
        ]), "",
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def metadata(
    model: FindingsModel, *, run: Path | None, scores: Path | None, licences: Sequence[str], before: ModelCardData,
    base: Sequence[str] = (),
) -> ModelCardData:  # fmt: skip
    """Return the header of a card, in the hub's terms; `before` is that of the model it was exported from."""
    known = {_licence_id(line) for line in licences}
    licence: dict[str, Any] = {}
    if known:
        (one, *others) = known
        licence = (
            {"license": one} if one and not others else {"license": "other", "license_name": "see-licences"}
        )
    results = _results(run, scores) or before.eval_results
    bases = dict.fromkeys([*base, *_bases(run)]) or dict.fromkeys(_as_list(before.base_model))
    return ModelCardData(
        language="en", pipeline_tag=TASK, library_name="transformers", tags=["radiology", "chest-x-ray"],
        base_model=list(bases) or None, model_name=model.meta.name if results else None, eval_results=results or None,
        **licence,
    )  # fmt: skip


def snippet(model: FindingsModel, needs: str = "") -> list[str]:
    """Return the lines of a program that asks the model about a picture by transformers' pipeline, as it was asked in
    its training where nothing but the picture is known."""
    prompt = prompt_for(Study("s", images=[Image("chest.png", "frontal")]), model.meta.prompt)
    lines = [*needs.splitlines(), "from transformers import pipeline", ""]
    lines.append(f'pipe = pipeline("{TASK}", model="DIRECTORY")')
    before, _, after = prompt.partition(IMAGE_TOKEN)
    if before or not after.startswith("\n"):
        # The chat template gives each image a line of its own, which this prompt does not.
        asked = f'images="chest.png", text={json.dumps(prompt)}'
    else:
        parts = [{"type": "image", "path": "chest.png"}, {"type": "text", "text": after.removeprefix("\n")}]
        lines += ["content = [", *(f"    {json.dumps(part)}," for part in parts), "]"]
        lines.append('chat = [{"role": "user", "content": content}]')
        asked = "text=chat"
    return [*lines, f'print(pipe({asked}, return_full_text=False)[0]["generated_text"])']


def hub_id(name: object, folder: Path | None = None) -> str | None:
    """Return `name` if it is a model on the hub and surely no path, in `folder` or here: it was fetched from there."""
    if not isinstance(name, str) or not HUB_ID.fullmatch(name):
        return None
    if any(Path(place, name).exists() for place in (Path(), *([folder] if folder else []))):
        return None
    return name if isinstance(try_to_load_from_cache(name, "config.json"), str) else None


def _bases(run: Path | None) -> list[str]:
    if not run or not (run / "run.json").is_file():
        return []
    with reading(run, "its run.json"):
        fields = dict(json.loads((run / "run.json").read_text()))
    return [name for field in BEGAN_WITH if (name := hub_id(fields.get(field)))]


def _licence_id(line: str) -> str | None:
    """Return what the hub calls the licence that a line such as "encoder: MIT" states, where it has a name for it."""
    name = line.rpartition(":")[2].strip().rstrip(".").lower().replace(" ", "-")
    return name if name in HUB_LICENCES else None


def _card_of(folder: Path | None) -> ModelCardData:
    """Return the header of a model's own card; an empty one where there is none that can be read."""
    path = folder and folder / "README.md"
    if not path or not path.is_file():
        return ModelCardData()
    try:
        return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    # The hub's library has no error of its own for a header that is not what it expects.
    except Exception:
        return ModelCardData()


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _results(run: Path | None, scores: Path | None) -> list[EvalResult]:
    """Return the scores in the hub's terms: those of a file of `cxr score --out`, and those of the training."""
    common = {
        "task_type": TASK,
        "task_name": "Findings of chest X-rays",
        "dataset_type": "chest-x-ray-reports",
    }
    results = []
    if scores:
        rows = scores_of(scores)
        n = max((row.get("n") or 0 for row in rows), default=0)
        for row in rows:
            if row.get("value") is not None:
                told = {
                    name: row[name] for name in ("interval", "n", "signature") if row.get(name) is not None
                }
                results.append(EvalResult(
                    **common, dataset_name=f"{n} studies with reports", metric_type=row["name"],
                    metric_name=row["name"], metric_value=row["value"], metric_args=told,
                ))  # fmt: skip
    best = _best(run)
    if best:
        results.append(EvalResult(
            **common, dataset_name="validation studies of the training", metric_type="label-f1",
            metric_name="label F1", metric_value=best["eval_f1"], metric_args={"step": best["step"]},
        ))  # fmt: skip
    return results


def _best(run: Path | None) -> dict[str, Any] | None:
    path = run and run / "best" / "metrics.json"
    return dict(json.loads(path.read_text())) if path and path.is_file() else None


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


def _scores(run: Path | None, scores: Path | None, before: ModelCardData) -> list[str]:
    lines = []
    row = _best(run)
    if row:
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
    if not lines and before.eval_results:
        lines += [
            "As the card of the model it was exported from has them:",
            "",
            "| score | value |",
            "|---|---|",
        ]
        lines += [f"| {r.metric_name or r.metric_type} | {r.metric_value} |" for r in before.eval_results]
    return lines or ["Not measured, or not given (`--scores`, of `cxr score --out`)."]
