"""Image-only pre-training: DINO + iBOT + KoLeo self-distillation of a ViT on radiographs, with no labels and no text.

    accelerate launch -m train.pretrain --recipe mini --data FOLDER|CSV|JSONL ... --out runs/mini_encoder

The same command goes on where an interrupted run stopped. Left in OUT: `encoder/` (the teacher's backbone, a
transformers Dinov2 directory), `checkpoints/`, `metrics.jsonl`, `run.json`. Everything random comes from (seed,
number of the sample in the run), so that neither a resume nor the number of processes changes what is learned.

Shape letters: B images, G global and L local crops an image, P patches, M masked patches, C width, K prototypes.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, fsdp2_prepare_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from encoder.selfdistill.losses import (
    all_reduce,
)
from encoder.selfdistill.teacher import make_teacher, update_teacher
from encoder.state_dicts import load_strict, save_dinov2
from encoder.transforms import Preprocessing
from train.common import checkpoints
from train.common.config import ConfigError
from train.common.interrupts import Interrupts
from train.common.processes import is_main, settled_precision, split_again, use_cores, whole
from train.common.schedules import cosine, linear
from train.pretrain.config import MAY_DIFFER, OLD_VALUES, RENAMED, PretrainConfig
from train.pretrain.data import collate, load_data, multi_crop, positions
from train.pretrain.knn import Probe
from train.pretrain.model import Distilled, Targets, backbone_of, initialise, losses
from train.pretrain.optim import apply_schedules, parameter_groups
from train.pretrain.watch import (
    MAX_BAD_STEPS,
    Flags,
    dump,
    flops_per_image,
    log_line,
    measurements,
    peak_flops,
    tracker,
)

NAMES = checkpoints.Names(RENAMED, OLD_VALUES)


def check_kind(accelerator: Accelerator) -> None:
    """Raises ConfigError for what accelerate offers and `spread` does not know."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise ConfigError(
            f"pre-training runs on DistributedDataParallel or FSDP2 (train/launch/*.yaml), not on {kind.value}"
            + (" of version 1" if kind == DistributedType.FSDP else "")
        )


def spread(accelerator: Accelerator, student: Distilled, teacher: Distilled, compiled: bool) -> nn.Module:
    """What the student's forward pass goes through in a run of several processes: DistributedDataParallel, or, as the
    launch file says, FSDP2, which splits the weights of both models among the processes in place."""
    if compiled:
        for block in (*student.backbone.blocks, *teacher.backbone.blocks):
            block.compile()
    if not accelerator.is_fsdp2:
        parallel = accelerator.prepare_model(student)
        # It made a forward pass return float32, which would double the memory of the logits.
        accelerator.unwrap_model(parallel, keep_fp32_wrapper=False)
        return parallel
    accelerator.state.fsdp_plugin.mixed_precision_policy = None  # autocast sees to it, as in every other run
    fsdp2_prepare_model(accelerator, teacher)
    return fsdp2_prepare_model(accelerator, student)


def run(c: PretrainConfig) -> int:
    before = checkpoints.recorded(Path(c.out), NAMES) or {}
    c.precision = settled_precision(c.precision, before.get("precision"))
    half = "no" if c.precision == "fp32" else c.precision
    accelerator = Accelerator(mixed_precision=half, log_with=tracker(c), project_dir=c.out)
    check_kind(accelerator)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    say = accelerator.print
    if c.batch_size % (world * c.gradient_accumulation_steps):
        raise ConfigError(
            f"batch {c.batch_size} does not divide into {c.gradient_accumulation_steps} parts among {world} processes"
        )
    use_cores(c.threads, world)
    out = Path(c.out)

    # Data, model, optimiser. The seed makes all processes start from the same weights.
    samples, fingerprint = load_data(c)
    probe = Probe(c.probe, c.size, c.cache) if c.probe and is_main() else None
    torch.manual_seed(c.seed)
    student = Distilled(c)
    if c.init or c.init_head:
        say(f"started from {initialise(student, c)}")
    if c.init and not c.init_head and not c.head_warmup_steps:
        say(
            "note: --init without --head_warmup_steps or --init_head; fresh heads can wreck a trained backbone"
        )
    teacher, targets = make_teacher(student), Targets(c)

    # Begin or go on.
    resumed, refused = False, None
    if accelerator.is_main_process:
        try:
            defaults = asdict(PretrainConfig())  # a run begun before an option existed had its default
            resumed = checkpoints.claim(
                out, {**asdict(c), "images": fingerprint}, MAY_DIFFER, defaults, NAMES
            )
        except checkpoints.CheckpointError as error:
            refused = error
    if all_reduce(torch.tensor(float(refused is not None), device=device)) > 0:  # all leave together
        raise refused or checkpoints.CheckpointError("refused by the main process")
    last, step, tensors = checkpoints.latest(out), 0, {}
    if last is not None:
        tensors, state = checkpoints.load(last)
        load_strict(student, tensors["student"])
        load_strict(teacher, tensors["teacher"])
        targets.load_state_dict(tensors["targets"])
        step = state["step"]
        say(f"going on after step {step} of {c.max_steps} ({last})")
    elif resumed:
        say(f"{out} has no checkpoint yet; starting at step 0")
    for model in (student, teacher, targets):
        model.to(device)
    parallel = spread(accelerator, student, teacher, c.torch_compile)
    optimizer = torch.optim.AdamW(
        parameter_groups(student, c), lr=c.learning_rate, betas=(0.9, c.adam_beta2), fused=True
    )
    names = {parameter: name for name, parameter in student.named_parameters()}
    if last is not None:
        checkpoints.load_optimizer_tensors(optimizer, names, tensors["optimizer"])
    augment = multi_crop(c).on_device
    accelerator.init_trackers("tensorboard" if c.report_to == "auto" else "cxr-pretrain")
    metrics = out / "metrics.jsonl"
    if accelerator.is_main_process:
        checkpoints.truncate_metrics(metrics, step)

    parameters = sum(p.numel() for p in student.backbone.parameters())
    flops, peak = flops_per_image(c), peak_flops(device)
    say(
        f"{len(samples.images):,} images · encoder {parameters / 1e6:.1f} M parameters · {c.size} px -> "
        f"{(c.size // c.patch_size) ** 2} tokens · batch {c.batch_size} on {world} x {device.type} · "
        f"{c.precision} · {flops / 1e9:.1f} GFLOP an image"
    )

    def save() -> None:
        groups = {  # by all processes: each may hold a part
            "student": whole(student.state_dict()),
            "teacher": whole(teacher.state_dict()),
            "optimizer": whole(checkpoints.optimizer_tensors(optimizer, names)),
            "targets": targets.state_dict(),
        }
        if accelerator.is_main_process:
            temporary = out / ".encoder.new"
            shutil.rmtree(temporary, ignore_errors=True)
            save_dinov2(backbone_of(groups["teacher"], c), temporary, Preprocessing(size=c.size))
            checkpoints.replace_folder(temporary, out / "encoder")
            # The checkpoint comes last: where the run's last one is, its encoder is.
            checkpoints.save(out, step, groups, {"schema": 1}, c.save_total_limit)
        accelerator.wait_for_everyone()

    def probed() -> float | None:
        """k-NN on labelled images, by the first process while the others wait."""
        state = whole(teacher.state_dict())
        found = probe(backbone_of(state, c), device) if probe else None
        accelerator.wait_for_everyone()
        return found

    if c.probe and step == 0 and (auroc := probed()) is not None:
        say(f"k-NN AUROC before training {auroc:.3f} ({', '.join(probe.names)})")
    end = c.max_steps if c.stop_at is None else min(c.stop_at, c.max_steps)
    loader = iter(
        DataLoader(
            samples,
            batch_sampler=positions(
                range(step, end), c.batch_size, rank, world, c.gradient_accumulation_steps
            ),
            num_workers=c.dataloader_num_workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
        )
    )
    interrupts = Interrupts()
    flags = Flags(rank, world)
    since, started, stop = step, time.perf_counter(), False
    try:
        while step < end:
            # One step: crops on the device, teacher's targets, student's losses, update, teacher's update.
            lr = apply_schedules(optimizer, step, c)
            temperature = linear(step, c.warmup_teacher_temp, c.teacher_temp, c.warmup_teacher_temp_steps)
            parts: dict[str, Tensor] = {}
            for part in range(c.gradient_accumulation_steps):
                batch = next(loader).to(device)
                global_x = augment(batch.global_GBHW, batch.global_look)
                local_x = augment(batch.local_LBHW, batch.local_look) if c.local_crops_number else None
                with torch.no_grad(), accelerator.autocast():
                    _, teacher_SK, teacher_MK = teacher(global_x, None, batch, masked=False)
                split_again(teacher)
                targets_SK, targets_MK = targets(teacher_SK, teacher_MK, temperature)
                last = part == c.gradient_accumulation_steps - 1
                with nullcontext() if last else accelerator.no_sync(parallel):
                    with accelerator.autocast():
                        student_out = parallel(global_x, local_x, batch, masked=True)
                    found = losses(c, student_out, (targets_SK, targets_MK), batch)
                    accelerator.backward(found["loss"] / c.gradient_accumulation_steps)
                for name, x in found.items():
                    parts[name] = parts.get(name, 0) + x.detach() / c.gradient_accumulation_steps
            grad_norm = nn.utils.clip_grad_norm_(student.parameters(), c.max_grad_norm)
            grad_norm = whole({"": grad_norm})[""]

            # A step that is not finite on some process changes no weight on any; three in a row end the run. The
            # optimizer leaves it out on the device: asking here would let the device wait for the host.
            optimizer.found_inf = flags.put({**parts, "gradient norm": grad_norm}, interrupts.signal > 0)
            optimizer.step()
            update_teacher(teacher, student, cosine(step, c.momentum_teacher, 1.0, c.max_steps))
            optimizer.zero_grad(set_to_none=True)
            step += 1
            saving = step % c.save_steps == 0 or step == end
            for asked in flags.take(wait=saving):
                stop = stop or asked
            if flags.bad_steps == MAX_BAD_STEPS:
                bad = step - 1 - flags.waiting
                which = [
                    i
                    for part in positions(
                        range(bad, bad + 1), c.batch_size, rank, world, c.gradient_accumulation_steps
                    )
                    for i in part
                ]
                file = dump(out, bad, rank, which, samples)
                accelerator.wait_for_everyone()
                say(f"stopped: {MAX_BAD_STEPS} steps in a row were not finite, up to {bad}: {flags.culprits}")
                say(f"the last batch of each process: {file.parent}; last good: {checkpoints.latest(out)}")
                say("try a lower --learning_rate, or --precision fp32")
                return 1

            probing = c.probe and (step % c.probe_steps == 0 or step == end)
            if step % c.logging_steps == 0 or step == end or probing:
                line = measurements(parts, targets_SK, student_out[0], rank, world)
                line |= {"grad_norm": float(grad_norm), "lr": lr}
                speed = (step - since) * c.batch_size / (time.perf_counter() - started)
                if probing and (auroc := probed()) is not None:
                    line["knn_auroc"] = auroc
                since, started = step, time.perf_counter()
                if accelerator.is_main_process:
                    record = {"step": step, **line, "images_per_second": round(speed, 2)}
                    with metrics.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                accelerator.log({**line, "images_per_second": speed}, step=step)
                say(log_line(step, c, line, speed, flops, peak and peak * world))
            if saving or stop:
                save()
            if stop:
                say(
                    f"stopped after step {step} of {c.max_steps}, saved in {out}; run the same command to go on"
                )
                return 128 + (interrupts.signal or signal.SIGINT)
    finally:
        interrupts.restore()
        accelerator.end_training()
    if step == c.max_steps:
        say(f"done: {step} steps; the encoder is in {out / 'encoder'}")
    else:
        say(f"stopped at step {step} as --stop_at asks; the encoder so far is in {out / 'encoder'}")
    return 0
