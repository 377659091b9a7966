"""What a pre-training has and keeps: its processes, models and optimiser, the run folder, and k-NN in between."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, fsdp2_prepare_model
from torch import Tensor, nn

from encoder.errors import UserError
from encoder.files import replace_folder
from encoder.selfdistill.teacher import make_teacher
from encoder.state_dicts import load_strict, save_dinov2
from encoder.transforms import Preprocessing
from encoder.weights import first_odd
from train.common import checkpoints
from train.common.config import ConfigError
from train.common.processes import first_alone, settled_precision, use_cores, whole
from train.common.runs import check_batch
from train.pretrain.config import MAY_DIFFER, OLD_VALUES, RENAMED, PretrainConfig
from train.pretrain.knn import KnnProbe
from train.pretrain.model import Distilled, Targets, backbone_of, initialise
from train.pretrain.optim import parameter_groups
from train.pretrain.watch import tracker

NAMES = checkpoints.Names(RENAMED, OLD_VALUES)
# What `auto` may have become in an earlier part of the run.
SETTLED = ("bf16", "fp32")


def begin(c: PretrainConfig) -> Accelerator:
    """Bring the processes together, share the cores among them and settle `c.precision`.

    Raises ConfigError for a launch that pre-training does not know, and for a batch that the processes cannot share.
    """
    before = (checkpoints.recorded(Path(c.out), NAMES) or {}).get("precision")
    c.precision = settled_precision(c.precision, before if before in SETTLED else None)
    half = "no" if c.precision == "fp32" else c.precision
    accelerator = Accelerator(mixed_precision=half, log_with=tracker(c), project_dir=c.out)
    check_kind(accelerator)
    check_batch(c.batch_size, c.gradient_accumulation_steps, accelerator.num_processes)
    use_cores(c.threads, accelerator.num_processes)
    return accelerator


def check_kind(accelerator: Accelerator) -> None:
    """Raise ConfigError for what accelerate offers and `spread` does not know."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise ConfigError(
            f"pre-training runs on DistributedDataParallel or FSDP2 (train/launch/*.yaml), not on {kind.value}"
            + (" of version 1" if kind == DistributedType.FSDP else "")
        )


def spread(accelerator: Accelerator, student: Distilled, teacher: Distilled, compiled: bool) -> nn.Module:
    """Return what the student's forward pass goes through, compiled block by block if asked.

    In several processes that is DistributedDataParallel. Where the launch file says FSDP2, the weights of both models
    are split among the processes in place.
    """
    if compiled:
        for block in (*student.backbone.blocks, *teacher.backbone.blocks):
            block.compile()
    if not accelerator.is_fsdp2:
        parallel = accelerator.prepare_model(student)
        # accelerate made a forward pass return float32, which would double the memory of the logits.
        accelerator.unwrap_model(parallel, keep_fp32_wrapper=False)
        return parallel
    # autocast sees to the precision, as in every other run
    accelerator.state.fsdp_plugin.mixed_precision_policy = None
    fsdp2_prepare_model(accelerator, teacher)
    return fsdp2_prepare_model(accelerator, student)


class DivergedError(UserError):
    """Weights that are NaN or infinite; the checkpoint before stays."""

    exit_status = 1


class Session:
    """A run in its folder: it begins or resumes when it is made; `save` and `probe` are for the loop to call.

    `step` counts the steps done and is for the loop to raise. Everything here is collective: every process must call
    it. As a context manager it closes trackers and processes at the end.
    """

    def __init__(self, c: PretrainConfig, accelerator: Accelerator, images: str) -> None:
        """Build both models, claim the run folder, and take up the newest good checkpoint there.

        `images` is the digest of the list of images. Raises ConfigError for a --probe or --init that cannot be used,
        CheckpointError for a folder of another run.
        """
        self.c, self.accelerator, self.out = c, accelerator, Path(c.out)
        self.encoder = self.out / "encoder"
        self.step = 0
        device = accelerator.device
        # Only the first process looks for neighbours.
        self.knn = first_alone(lambda: KnnProbe(c.probe, c.size, c.cache), device) if c.probe else None

        # The seed makes all processes start from the same weights.
        torch.manual_seed(c.seed)
        self.student = Distilled(c)
        if c.init or c.init_head:
            accelerator.print(f"started from {initialise(self.student, c)}")
        if c.init and not c.init_head and not c.head_warmup_steps:
            accelerator.print(
                "note: --init without --head_warmup_steps or --init_head; fresh heads can wreck a trained backbone"
            )
        self.teacher, self.targets = make_teacher(self.student), Targets(c)

        # The optimiser's state can only be taken up once FSDP2 has split the weights.
        optimizer_state = self._resume(images)
        for model in (self.student, self.teacher, self.targets):
            model.to(device)
        self.parallel = spread(accelerator, self.student, self.teacher, c.torch_compile)
        groups = parameter_groups(self.student, c)
        self.optimizer = torch.optim.AdamW(groups, lr=c.learning_rate, betas=(0.9, c.adam_beta2), fused=True)
        self.names = {parameter: name for name, parameter in self.student.named_parameters()}
        if optimizer_state is not None:
            checkpoints.load_optimizer_tensors(self.optimizer, self.names, optimizer_state)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.accelerator.end_training()

    def _resume(self, images: str) -> dict[str, Tensor] | None:
        """Claim the folder and load models and `step` from its newest good checkpoint. -> the optimiser's state, None
        without a checkpoint."""
        known = first_alone(lambda: self._claim(images), self.accelerator.device)
        last = checkpoints.latest(self.out)
        if last is None:
            if known:
                self.accelerator.print(f"{self.out} has no checkpoint yet; starting at step 0")
            return None
        tensors, state = checkpoints.load(last)
        load_strict(self.student, tensors["student"])
        load_strict(self.teacher, tensors["teacher"])
        self.targets.load_state_dict(tensors["targets"])
        self.step = state["step"]
        self.accelerator.print(f"resuming at step {self.step} of {self.c.max_steps} ({last})")
        return tensors["optimizer"]

    def _claim(self, images: str) -> bool:
        # A run begun before an option existed had its default.
        defaults = asdict(PretrainConfig())
        return checkpoints.claim(self.out, {**asdict(self.c), "images": images}, MAY_DIFFER, defaults, NAMES)

    def save(self) -> None:
        """Write a checkpoint, and the encoder as it is now. Raises CheckpointError where the disk refuses, and
        DivergedError for weights that are no numbers any more."""
        # Each process may hold a part of each tensor.
        groups = {
            "student": whole(self.student.state_dict()),
            "teacher": whole(self.teacher.state_dict()),
            "optimizer": whole(checkpoints.optimizer_tensors(self.optimizer, self.names)),
            "targets": self.targets.state_dict(),
        }
        first_alone(lambda: self._write(groups), self.accelerator.device)

    def _write(self, groups: dict[str, dict[str, Tensor]]) -> None:
        # three bad steps in a row end a run; of one or two at the end, the weights are bad already
        for name in ("student", "teacher"):
            if odd := first_odd(groups[name].items()):
                raise DivergedError(
                    f"after step {self.step} the {name}'s {odd} is not finite; nothing was saved. Lower learning_rate, "
                    "or look at the losses in metrics.jsonl for what grew"
                )
        with checkpoints.writing(self.out):
            temporary = self.out / ".encoder.new"
            shutil.rmtree(temporary, ignore_errors=True)
            save_dinov2(backbone_of(groups["teacher"], self.c), temporary, Preprocessing(size=self.c.size))
            replace_folder(temporary, self.encoder)
            # The checkpoint comes last: where the run's last one is, its encoder is.
            checkpoints.save(self.out, self.step, groups, {"schema": 1}, self.c.save_total_limit)

    def probe(self) -> dict[str, float]:
        """Classify the labelled images by k-NN. -> {"knn_auroc": mean AUROC}; empty in all processes but the first, and
        without --probe."""
        if not self.c.probe:
            return {}
        state = whole(self.teacher.state_dict())
        device = self.accelerator.device
        auroc = first_alone(lambda: self.knn(backbone_of(state, self.c), device), device)
        return {} if auroc is None else {"knn_auroc": auroc}
