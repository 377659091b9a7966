"""Claim: one step of our pre-training takes less time than one made of facebookresearch/dinov2's own modules, at equal
recipe, batch and precision on the same machine: at least 1.3 times as many images a second on a CPU (ViT-S, 224 and
98 px), as many on a GPU, in less memory (ViT-B/14, 518 and 98 px; rival with PyTorch's attention).

    git clone https://github.com/facebookresearch/dinov2 /somewhere/dinov2
    python benchmarks/pretrain_step.py --rival /somewhere/dinov2 [--save]

A step is what both repositories do with a batch of crops: teacher, targets, student, losses, backward pass, clipping,
AdamW, moving average. The crops are on the device before, with the same masks. The rival's backbone, head, losses and
parameter groups are imported as they are; what its training script does between them is written out here, without its
SLURM, FSDP and logging. Its pass over both resolutions at once needs xFormers; without it each resolution goes through
by itself, with PyTorch's scaled_dot_product_attention. Where xFormers is installed, both are measured.

Each system runs in a process of its own, in turns; the best of the turns counts. Memory is the peak of the process less
what it held before the model was built.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import nn

from encoder.selfdistill.teacher import make_teacher, update_teacher
from train.common.processes import use_cores
from train.pretrain.config import GLOBAL_CROPS, PretrainConfig
from train.pretrain.data import Batch, Samples, collate, multi_crop
from train.pretrain.model import Distilled, Targets, losses
from train.pretrain.optim import parameter_groups
from train.pretrain.watch import flops_per_image, peak_flops

RECIPES = {  # DINOv2's heads, losses and stochastic depth in both
    "cpu": {"size": 224, "hidden_size": 384, "num_attention_heads": 6, "batch_size": 8},
    "cuda": {"size": 518, "hidden_size": 768, "num_attention_heads": 12, "batch_size": 32},
}
TEACHER_TEMPERATURE, MOMENTUM = 0.07, 0.992
Step = Callable[[], float]


def batch_of(c: PretrainConfig, device: torch.device) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (c.size + 40, c.size), dtype=np.uint8) for _ in range(c.batch_size)]
    samples = Samples(images, [len(images)], c)
    batch = collate([samples[i] for i in range(c.batch_size)]).to(device)
    augment = multi_crop(c).on_device
    return batch, augment(batch.global_GBHW, batch.global_look), augment(batch.local_LBHW, batch.local_look)


def ours(c: PretrainConfig, device: torch.device) -> Step:
    batch, global_x, local_x = batch_of(c, device)
    student = Distilled(c).to(device)
    teacher, targets = make_teacher(student), Targets(c).to(device)
    if c.torch_compile:
        for block in (*student.backbone.blocks, *teacher.backbone.blocks):
            block.compile()
    optimizer = torch.optim.AdamW(parameter_groups(student, c), lr=1e-4, fused=True)

    def step() -> float:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            _, teacher_SK, teacher_MK = teacher(global_x, None, batch, masked=False)
        wanted = targets(teacher_SK, teacher_MK, TEACHER_TEMPERATURE)
        with torch.autocast(device.type, torch.bfloat16):
            out = student(global_x, local_x, batch, masked=True)
        loss = losses(c, out, wanted, batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), c.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_teacher(teacher, student, MOMENTUM)
        return loss

    return step


def rival(c: PretrainConfig, device: torch.device, path: Path, nested: bool) -> Step:
    sys.path.insert(0, str(path))
    from dinov2.layers import DINOHead, MemEffAttention, NestedTensorBlock
    from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss
    from dinov2.models.vision_transformer import DinoVisionTransformer
    from dinov2.utils.param_groups import fuse_params_groups, get_params_groups_with_decay

    if not torch.distributed.is_initialized():  # its Sinkhorn-Knopp on patches asks for a process group
        store = torch.distributed.HashStore()
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    batch, global_x, local_x = batch_of(c, device)

    def block(**options) -> nn.Module:
        return NestedTensorBlock(attn_class=MemEffAttention, **options)

    def model(drop_path: float) -> nn.ModuleDict:
        backbone = DinoVisionTransformer(
            img_size=c.size, patch_size=c.patch_size, embed_dim=c.hidden_size, depth=c.num_hidden_layers,
            num_heads=c.num_attention_heads,
            init_values=c.layerscale, drop_path_rate=drop_path, drop_path_uniform=True, block_fn=block,
            block_chunks=0,
        )  # fmt: skip
        head = DINOHead(
            c.hidden_size,
            c.head_n_prototypes,
            hidden_dim=c.head_hidden_dim,
            bottleneck_dim=c.head_bottleneck_dim,
        )
        return nn.ModuleDict({"backbone": backbone, "head": head}).to(device)

    student, teacher = model(c.drop_path_rate).train(), model(0.0).eval().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    dino, ibot = DINOLoss(c.head_n_prototypes).to(device), iBOTPatchLoss(c.head_n_prototypes).to(device)
    koleo = KoLeoLoss()
    groups = []
    for part in student.values():
        found = get_params_groups_with_decay(part, c.layerwise_decay, c.patch_embed_lr_mult)
        groups += [{**group, "foreach": True} for group in fuse_params_groups(found)]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    ours_, theirs = list(student.parameters()), list(teacher.parameters())
    masks, index, weights = batch.masks_GBP, batch.masked_M, batch.weights_M
    terms = GLOBAL_CROPS * (GLOBAL_CROPS - 1) + GLOBAL_CROPS * c.local_crops_number

    @torch.no_grad()
    def wanted() -> tuple[list[torch.Tensor], torch.Tensor]:
        found = teacher["backbone"](global_x, is_training=True)
        cls = torch.cat(found["x_norm_clstoken"].chunk(2)[::-1])  # each crop is matched with the other
        patches = found["x_norm_patchtokens"].flatten(0, 1).index_select(0, index)
        cls, patches = teacher["head"](torch.cat([cls, patches])).split([len(cls), len(patches)])
        if c.centring == "sinkhorn_knopp":
            count = torch.full((1,), len(index), dtype=torch.long, device=device)
            return (
                dino.sinkhorn_knopp_teacher(cls, TEACHER_TEMPERATURE).chunk(2),
                ibot.sinkhorn_knopp_teacher(patches, TEACHER_TEMPERATURE, count),
            )
        targets = dino.softmax_center_teacher(cls, TEACHER_TEMPERATURE).chunk(2)
        dino.update_center(cls)
        patch_targets = ibot.softmax_center_teacher(patches[None], TEACHER_TEMPERATURE)[0]
        ibot.update_center(patches[None])
        return targets, patch_targets

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            cls_targets, patch_targets = wanted()
            backbone = student["backbone"]
            if nested:
                big, small = backbone([global_x, local_x], masks=[masks, None], is_training=True)
            else:
                big = backbone(global_x, masks=masks, is_training=True)
                small = backbone(local_x, is_training=True)
            cls, local = big["x_norm_clstoken"], small["x_norm_clstoken"]
            patches = big["x_norm_patchtokens"].flatten(0, 1).index_select(0, index)
            sizes = [len(local), len(cls), len(patches)]
            local_out, cls_out, patch_out = student["head"](torch.cat([local, cls, patches])).split(sizes)
        loss = dino(local_out.float().chunk(c.local_crops_number), cls_targets) / terms
        loss = loss + dino([cls_out.float()], [torch.cat(list(cls_targets))]) * 2 / terms
        loss = loss + c.koleo_loss_weight * sum(koleo(part) for part in cls.float().chunk(2))
        patch_loss = ibot.forward_masked(patch_out.float(), patch_targets, masks, len(index), weights)
        loss = loss + c.ibot_loss_weight * patch_loss
        loss.backward()
        for part in student.values():
            nn.utils.clip_grad_norm_(part.parameters(), c.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(theirs, MOMENTUM)
            torch._foreach_add_(theirs, ours_, alpha=1 - MOMENTUM)
        return loss

    return step


def measure(step: Step, device: torch.device, steps: int, batch: int) -> dict[str, float]:
    """Images a second of the best step, and the loss of the first."""
    first = float(step())
    for _ in range(3):  # until no memory is new
        step()
    seconds = []
    for _ in range(steps):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"images_per_second": batch / min(seconds), "loss": first}


def peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(args: argparse.Namespace, c: PretrainConfig, device: torch.device) -> None:
    """In a process of its own: one system; prints a line of JSON."""
    warnings.simplefilter("ignore")
    use_cores(
        args.threads, 1
    )  # both systems: it also lets glibc keep freed memory, which helps the rival as much
    torch.manual_seed(0)
    before = peak_mb(device)
    if args.one == "ours":
        step = ours(c, device)
    else:
        step = rival(c, device, args.rival, nested=args.one == "rival, nested")
    found = measure(step, device, args.steps, c.batch_size)
    print(json.dumps({**found, "peak_mb": peak_mb(device) - before}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival", type=Path, required=True, help="a checkout of facebookresearch/dinov2")
    parser.add_argument("--steps", type=int, default=5, help="timed in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--drop_path", type=float, default=0.3)
    parser.add_argument("--centring", default="sinkhorn_knopp", choices=("sinkhorn_knopp", "running_mean"))
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/pretrain_step_*.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.rival / "dinov2" / "layers").is_dir():
        parser.error(f"{args.rival} is no checkout of facebookresearch/dinov2")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = {**RECIPES[device.type], **({"batch_size": args.batch} if args.batch else {})}
    c = PretrainConfig(
        data=["-"],
        drop_path_rate=args.drop_path,
        centring=args.centring,
        torch_compile=args.compile,
        **recipe,
    )
    if args.one:
        return one(args, c, device)

    try:
        import xformers  # noqa: F401

        systems = ("ours", "rival", "rival, nested")
    except ImportError:
        systems = ("ours", "rival")
        print("xFormers is not installed: the rival's pass over both resolutions at once cannot run")
    best: dict[str, dict[str, float]] = {}
    for turn in range(args.turns):
        for system in systems:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", system]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{system} failed:\n{done.stderr[-3000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"turn {turn + 1} · {system}: {found['images_per_second']:.2f} images/s, {found['peak_mb']:.0f} MB"
            )
            if found["images_per_second"] > best.get(system, {}).get("images_per_second", 0):
                best[system] = found
    flops, peak = flops_per_image(c), peak_flops(device)
    for system, found in best.items():
        rate = found["images_per_second"] * flops
        mfu = f" · {rate / peak:.1%} of the datasheet's peak" if peak else ""
        print(f"{system}: {found['images_per_second']:.2f} images/s · {rate / 1e12:.3f} TFLOP/s{mfu}")
    for system in systems[1:]:
        speed = best["ours"]["images_per_second"] / best[system]["images_per_second"]
        memory = best["ours"]["peak_mb"] / best[system]["peak_mb"]
        print(f"ours / {system}: {speed:.2f} times the images a second, {memory:.2f} times the memory")
    if args.save:
        name = torch.cuda.get_device_name().lower().replace(" ", "_") if device.type == "cuda" else "cpu"
        about = {
            "machine": name if device.type == "cuda" else platform.processor() or platform.machine(),
            "date": date.today().isoformat(), "torch": torch.__version__, "threads": args.threads,
            "recipe": {**recipe, "drop_path_rate": c.drop_path_rate, "centring": c.centring,
                "torch_compile": c.torch_compile},
            "results": best,
        }  # fmt: skip
        file = Path(__file__).parent / "results" / f"pretrain_step_{name}.json"
        file.write_text(json.dumps(about, indent=1) + "\n")
        print(f"written: {file}")


if __name__ == "__main__":
    main()
