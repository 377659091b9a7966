"""Claim: fine-tuning and generation of our findings model take less time than the same with stock transformers (Llava,
`sdpa`, padded batches in random order, the tower at work in every step), at equal model, LoRA, batch, precision and
checkpointing, in the same run: on a GPU, studies of 1 to 3 images with a language model of 7 billion parameters, at
least 1.5 times as many studies a second in training and twice as many in generation.

    python benchmarks/findings_step.py [--llm 7b | 1b | small] [--save]

Weights are random, which changes no time. The same studies, drawn once, go through each system: stock transformers as
its documentation has it (processor-like inputs with an attention mask, the model's own loss, `generate`), and our
steps as train/finetune/loop.py and vlm/findings.py make them: `ours` with features computed before, `ours, online`
with the tower in every step; generation also with a static cache (compiled on a GPU). Ratios are printed for mixed
studies and for studies of one image. Each system runs in a process of its own, in turns; the best of the turns
counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from train.common.batches import answer_loss, collate, grouped_order
from train.common.processes import multiplies_bf16, use_cores
from vlm import adapters
from vlm import projector as projectors
from vlm.decoding import Decoding, generate_ids
from vlm.model import attention_name

RAD_DINO = {"image_size": 518, "patch_size": 14}  # ViT-B is the default
SIZES = {  # tower, language model, studies a step
    "7b": (RAD_DINO, {"max_position_embeddings": 8192}, 4),  # Vicuna's shape is the default
    "1b": (
        RAD_DINO,
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "max_position_embeddings": 8192, "vocab_size": 128_256},
        8,
    ),
    "small": (
        {"image_size": 224, "patch_size": 14, "hidden_size": 384, "num_attention_heads": 6},
        {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376,
         "vocab_size": 8000, "max_position_embeddings": 2048},
        4,
    ),
}  # fmt: skip
MIXTURES = {"1,2,3": "1 to 3 images", "1": "1 image"}
TRAINING = ("ours", "ours, online", "transformers")
GENERATION = ("ours", "ours, static cache", "transformers")
PAD, IMAGE, EOS, FIRST = 0, 1, 2, 10  # token ids; words are FIRST and above


def make(size: str, attention: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Llava of random weights: the tower in float32, the language model in `dtype`."""
    vision, text, _ = SIZES[size]
    vision = Dinov2Config(**vision)
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**text, pad_token_id=PAD, eos_token_id=EOS),
        image_token_index=IMAGE, image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    with torch.device(device):
        llava = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    llava.model.language_model.to(dtype)
    llava.lm_head.to(dtype)
    return llava.requires_grad_(False)


def studies(llava: nn.Module, count: int, images: tuple[int, ...], answer: int) -> list[dict]:
    """Prompts of 1 to 3 images and 40 to 160 words, answers of `answer` or fewer, the same for every system."""
    generator = torch.Generator().manual_seed(0)
    tokens, vocabulary = llava.config.image_seq_length, llava.config.text_config.vocab_size

    def words(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(FIRST, vocabulary, (n,), generator=generator).tolist()

    made = []
    for i in range(count):
        prompt = [IMAGE] * tokens * images[i % len(images)] + words(40, 160)
        made.append(
            {
                "prompt": prompt,
                "answer": [*words(answer // 2, answer), EOS],
                "images": images[i % len(images)],
            }
        )
    order = torch.randperm(count, generator=generator).tolist()
    return [made[i] for i in order]


def film(llava: nn.Module, count: int) -> Tensor:
    size = llava.config.vision_config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def training(
    system: str, args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[], int]:
    """A function that takes one optimiser step for every batch of the studies; returns how many studies that were."""
    stock = system == "transformers"
    llava = make(args.llm, "sdpa" if stock else attention_name("cxr"), device, dtype)
    batch = args.batch or SIZES[args.llm][2]
    data = studies(llava, args.studies, args.images, 128)
    rows = [
        {"input_ids": s["prompt"] + s["answer"], "answer_from": len(s["prompt"]), "count": s["images"]}
        for s in data
    ]
    if stock:
        order = list(range(len(rows)))
    else:
        order = grouped_order([len(r["input_ids"]) for r in rows], batch, 0, 0)
        width = llava.config.vision_config.hidden_size
        standard = torch.zeros(width), torch.ones(width)
        tower = llava.model.vision_tower
        if system == "ours":
            llava.model.vision_tower = projectors.FeatureTower(*standard)
            shape = (1 + llava.config.image_seq_length, width)
        else:
            llava.model.vision_tower = projectors.StandardTower(tower, *standard, (-1,), False)
    model = adapters.add_lora(llava, 64, 128).to(device).train()
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if stock:
            model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    batches = []
    for start in range(0, len(order), batch):
        part = [rows[i] for i in order[start : start + batch]]
        count = sum(r["count"] for r in part)
        if stock:
            made = padded_batch(part)
            made["pixel_values"] = film(llava, count)
        else:
            made = collate(part, PAD, pack=True)
            made["pixel_values"] = torch.randn(count, *shape) if system == "ours" else film(llava, count)
        batches.append({k: v.to(device) if isinstance(v, Tensor) else v for k, v in made.items()})
    half = torch.autocast(device.type, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()

    def epoch() -> int:
        for inputs in batches:
            with half:
                if stock:
                    loss = model(**inputs).loss
                else:
                    labels = inputs["labels"]
                    loss = answer_loss(model(**{k: v for k, v in inputs.items() if k != "labels"}), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return len(rows)

    return epoch


def padded_batch(rows: list[dict]) -> dict[str, Tensor]:
    """What a LlavaProcessor and a collator that masks the prompt give."""
    n = max(len(r["input_ids"]) for r in rows)
    ids = torch.tensor([r["input_ids"] + [PAD] * (n - len(r["input_ids"])) for r in rows])
    lengths = torch.tensor([[len(r["input_ids"])] for r in rows])
    first = torch.tensor([[r["answer_from"]] for r in rows])
    at = torch.arange(n)[None]
    return {
        "input_ids": ids, "attention_mask": (at < lengths).long(),
        "labels": ids.masked_fill((at < first) | (at >= lengths), -100),
    }  # fmt: skip


def generation(
    system: str, args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[], int]:
    """A function that writes `--tokens` tokens for every study (random weights never end by themselves)."""
    stock = system == "transformers"
    llava = make(args.llm, "sdpa" if stock else attention_name("cxr"), device, dtype).to(dtype).eval()
    batch = args.batch or SIZES[args.llm][2]
    data = studies(llava, args.studies, args.images, 128)
    never = SimpleNamespace(pad_token_id=PAD, eos_token_id=llava.config.text_config.vocab_size + 1)
    order = range(len(data)) if stock else sorted(range(len(data)), key=lambda i: -len(data[i]["prompt"]))
    parts = [[data[i] for i in order[k : k + batch]] for k in range(0, len(data), batch)]
    films = [film(llava, sum(s["images"] for s in part)).to(device, dtype) for part in parts]

    def all_of_them() -> int:
        for part, pixels in zip(parts, films, strict=True):
            prompts = [s["prompt"] for s in part]
            if stock:
                n = max(map(len, prompts))
                ids = torch.tensor([[PAD] * (n - len(p)) + p for p in prompts], device=device)
                llava.generate(
                    input_ids=ids, attention_mask=(ids != PAD).long(), pixel_values=pixels, do_sample=False,
                    max_new_tokens=args.tokens, pad_token_id=PAD, eos_token_id=never.eos_token_id,
                )  # fmt: skip
            else:
                model = SimpleNamespace(tokenizer=never)
                static = system.endswith("static cache")
                generate_ids(llava, model, prompts, pixels, Decoding(args.tokens), static=static)
        return len(data)

    return all_of_them


def one(args: argparse.Namespace, device: torch.device) -> None:
    """In a process of its own: one system; prints a line of JSON."""
    warnings.simplefilter("ignore")
    use_cores(args.threads, 1)
    torch.manual_seed(0)
    what, system = args.one.split(": ")
    dtype = torch.bfloat16 if device.type == "cuda" or multiplies_bf16() else torch.float32
    work = (training if what == "training" else generation)(system, args, device, dtype)
    best, count = float("inf"), 0
    for turn in range(args.repeats + 1):  # the first warms up, and compiles
        start = time.perf_counter()
        count = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    print(json.dumps({"studies_per_second": count / best, "peak_gb": peak, "dtype": str(dtype)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", choices=SIZES, help="7b on a GPU, small on a CPU")
    parser.add_argument("--studies", type=int, help="that go through each system")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--tokens", type=int, default=128, help="that are generated for a study")
    parser.add_argument("--checkpointing", type=lambda x: x == "true", default=True)
    parser.add_argument("--repeats", type=int, default=2, help="in each turn; the best counts")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--only", choices=("training", "generation"))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/findings_step_*.json")
    parser.add_argument(
        "--images", choices=MIXTURES, help="of a study, in turns; both, one after the other, by default"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.llm = args.llm or ("7b" if device.type == "cuda" else "small")
    args.studies = args.studies or 8 * (args.batch or SIZES[args.llm][2])
    if args.one:
        args.images = tuple(map(int, args.images.split(",")))
        return one(args, device)

    wanted = [("training", s) for s in TRAINING] + [("generation", s) for s in GENERATION]
    wanted = [(what, system) for what, system in wanted if args.only in (None, what)]
    results: dict[str, dict[str, dict]] = {}
    for images in [args.images] if args.images else MIXTURES:
        name = MIXTURES[images]
        best: dict[str, dict] = {}
        for turn in range(args.turns):
            for what, system in wanted:
                key = f"{what}: {system}"
                command = [sys.executable, __file__, *sys.argv[1:], "--images", images, "--one", key]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{key} failed:\n{done.stderr[-3000:]}")
                found = json.loads(done.stdout.splitlines()[-1])
                memory = "" if found["peak_gb"] is None else f", {found['peak_gb']:.1f} GB"
                print(
                    f"{name}, turn {turn + 1} · {key}: {found['studies_per_second']:.3f} studies/s{memory}",
                    flush=True,
                )
                if found["studies_per_second"] > best.get(key, {}).get("studies_per_second", 0):
                    best[key] = found
        for what, system in wanted:
            if system != "transformers":
                ratio = best[f"{what}: {system}"]["studies_per_second"]
                ratio /= best[f"{what}: transformers"]["studies_per_second"]
                print(
                    f"{name} · {what}: {system} / transformers: {ratio:.2f} times the studies a second",
                    flush=True,
                )
        results[name] = best
    if args.save:
        where = torch.cuda.get_device_name().lower().replace(" ", "_") if device.type == "cuda" else "cpu"
        about = {
            "machine": where if device.type == "cuda" else platform.processor() or platform.machine(),
            "date": date.today().isoformat(), "torch": torch.__version__, "llm": args.llm, "studies": args.studies,
            "batch": args.batch or SIZES[args.llm][2], "tokens": args.tokens, "checkpointing": args.checkpointing,
            "threads": args.threads, "results": results,
        }  # fmt: skip
        file = Path(__file__).parent / "results" / f"findings_step_{where}.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"written: {file}")


if __name__ == "__main__":
    main()
