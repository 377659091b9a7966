"""Image-only pre-training: DINO + iBOT + KoLeo self-distillation of a ViT on radiographs, with no labels and no text.

    accelerate launch -m train.pretrain --recipe mini --data FOLDER|CSV|JSONL ... --out runs/mini_encoder

The same command resumes an interrupted run. Left in OUT: `encoder/` (the teacher's backbone, a transformers Dinov2
directory), `checkpoints/`, `metrics.jsonl`, `run.json`. Everything random comes from (seed, number of the sample in
the run), so that neither a resume nor the number of processes changes what is learned.

Shape letters: B images, G global and L local crops an image, S crops, M masked patches, C width, K prototypes.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from encoder.selfdistill.teacher import update_teacher
from train.common.config import recipe_for
from train.common.entry import free_beside, made_beside, next_command
from train.common.interrupts import Interrupts
from train.common.processes import split_again, whole
from train.common.schedules import cosine, linear
from train.pretrain.config import PretrainConfig
from train.pretrain.data import batches, load_data, multi_crop
from train.pretrain.model import losses
from train.pretrain.optim import apply_schedules
from train.pretrain.session import Session, begin
from train.pretrain.watch import MAX_BAD_STEPS, Flags, Report, give_up, measurements


def run(c: PretrainConfig) -> int:
    """Train until the end, a stop or too many bad steps; returns the exit status. Raises UserError."""
    # ------------------------------------------------------------------------------------------------------------
    # Begin: accelerate brings the processes together, and all of them list the same images.
    accelerator = begin(c)
    device, say = accelerator.device, accelerator.print
    rank, world = accelerator.process_index, accelerator.num_processes
    samples, listing = load_data(c)

    # ------------------------------------------------------------------------------------------------------------
    # Student, teacher and optimiser are fresh, or come from the newest good checkpoint in OUT.
    session = Session(c, accelerator, listing)
    student, teacher, optimizer = session.student, session.teacher, session.optimizer
    report = Report(c, accelerator, session.step)
    report.headline(len(samples.images), student.backbone)
    if session.step == 0 and (found := session.probe()):
        say(f"k-NN AUROC before training {found['knn_auroc']:.3f} ({', '.join(session.knn.names)})")

    # ------------------------------------------------------------------------------------------------------------
    # Crops are cut on the CPU, a batch after the other; grey levels and blur follow on the device.
    end = c.max_steps if c.stop_at is None else min(c.stop_at, c.max_steps)
    loader = batches(samples, range(session.step, end), rank, world, device)
    augment = multi_crop(c).on_device
    flags = Flags(rank, world)
    report.start(session.step)
    with session, Interrupts() as interrupts:
        for step in range(session.step, end):
            # ----------------------------------------------------------------------------------------------------
            # What changes over the run follows from the number of the step alone.
            lr = apply_schedules(optimizer, step, c)
            temperature = linear(step, c.warmup_teacher_temp, c.teacher_temp, c.warmup_teacher_temp_steps)
            momentum = cosine(step, c.momentum_teacher, 1.0, c.max_steps)

            # ----------------------------------------------------------------------------------------------------
            # The teacher looks at whole global crops, and the student learns to say the same of masked and local
            # ones. A batch may go through in parts, whose gradients add up.
            values: dict[str, Tensor] = {}
            for part in range(1, c.gradient_accumulation_steps + 1):
                batch = next(loader).to(device)
                global_x = augment(batch.global_GBHW, batch.global_look)
                local_x = augment(batch.local_LBHW, batch.local_look) if c.local_crops_number else None
                with torch.no_grad(), accelerator.autocast():
                    _, teacher_SK, teacher_MK = teacher(global_x, None, batch, masked=False)
                split_again(teacher)
                targets = session.targets(teacher_SK, teacher_MK, temperature)
                last = part == c.gradient_accumulation_steps
                with nullcontext() if last else accelerator.no_sync(session.parallel):
                    with accelerator.autocast():
                        answers = session.parallel(global_x, local_x, batch, masked=True)
                    found = losses(c, answers, targets, batch)
                    accelerator.backward(found["loss"] / c.gradient_accumulation_steps)
                for name, x in found.items():
                    values[name] = values.get(name, 0) + x.detach() / c.gradient_accumulation_steps

            # ----------------------------------------------------------------------------------------------------
            # The student takes a step and the teacher follows. A step that is not finite on some process changes no
            # weight on any: the optimizer leaves it out on the device, which never waits for the host to ask.
            norm = whole({"norm": nn.utils.clip_grad_norm_(student.parameters(), c.max_grad_norm)})["norm"]
            optimizer.found_inf = flags.put({**values, "gradient norm": norm}, interrupts.signal > 0)
            optimizer.step()
            update_teacher(teacher, student, momentum)
            optimizer.zero_grad(set_to_none=True)
            session.step = done = step + 1

            # ----------------------------------------------------------------------------------------------------
            # The host reads the flags of the step before; several bad steps in a row end the run.
            saving = done % c.save_steps == 0 or done == end
            stop = flags.take(wait=saving)
            if flags.bad_steps == MAX_BAD_STEPS:
                return give_up(accelerator, flags, samples, done)

            # ----------------------------------------------------------------------------------------------------
            # A line now and then: losses, whether they still mean something, speed, and k-NN if asked for.
            probing = c.probe and (done % c.probe_steps == 0 or done == end)
            if done % c.logging_steps == 0 or done == end or probing:
                line = measurements(values, targets[0], answers[0], rank, world)
                line |= {"grad_norm": float(norm), "lr": lr}
                speed = report.speed(done)
                report.write(done, line | (session.probe() if probing else {}), speed)

            # ----------------------------------------------------------------------------------------------------
            # A checkpoint now and then, at the end, and before a stop.
            if saving or stop:
                session.save()
            if stop:
                say(f"stopped after step {done} of {c.max_steps}, saved in {c.out}; the same command resumes")
                return interrupts.exit_status

    if session.step == c.max_steps:
        say(f"done: {session.step} steps; the encoder is in {session.encoder}")
        if accelerator.is_main_process:
            say_next(c, session)
    else:
        say(f"stopped at step {session.step} as --stop_at asks; the encoder so far is in {session.encoder}")
    return 0


def say_next(c: PretrainConfig, session: Session) -> None:
    """Say what is next: a fine-tuning on this encoder, or the language model that its recipe trains before."""
    # phantoms and data sets that were made by `cxr studies` have their studies file beside the images
    beside = [str(file) for path in c.data if (file := Path(path).parent / "studies.jsonl").is_file()]
    studies = next((path for path in c.data if path.endswith(".jsonl")), beside[0] if beside else "STUDIES")
    meant = {"STUDIES": "a studies file with reports"} if studies == "STUDIES" else {}
    llm = made_beside(session.out, "llm")
    recipe = recipe_for(c, "language_model")
    if recipe and not llm:
        next_command(
            "cxr", "language-model", *recipe, "--studies", studies, "--out", free_beside(session.out, "llm"),
            where="; ".join(f"{word}: {what}" for word, what in meant.items()),
        )  # fmt: skip
        return
    if not llm:
        meant = {"LLM": "what cxr language-model wrote, or a hub id"} | meant
    next_command(
        "cxr", "finetune", *recipe_for(c, "finetune"), "--encoder", session.encoder, "--llm", llm or "LLM",
        "--studies", studies, "--out", free_beside(session.out, "findings"),
        where="; ".join(f"{word}: {what}" for word, what in meant.items()),
    )  # fmt: skip
