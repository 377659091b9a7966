"""Every field of a pre-training, with its default and why it has it."""

from __future__ import annotations

from dataclasses import dataclass, field

from accelerate.utils import LoggerType

from encoder.attention import CHOICES
from train.common.config import ConfigError


@dataclass
class PretrainConfig:
    """Image-only pre-training of a ViT on radiographs (DINO + iBOT + KoLeo)."""

    data: list[str] = field(default_factory=list)  # folders, CSVs, study files, archives of cxr prepare
    out: str = "runs/pretrain"  # everything the run leaves behind lies here
    init: str | None = None  # encoder to start from, in any form `cxr convert` reads; None: random weights
    init_head: str | None = (
        None  # released DINO head to start from (dino_head.safetensors); None: a fresh one
    )
    weights: list[float] = field(default_factory=list)  # images of a source in an epoch, times; empty: 1
    split: str | None = "train"  # part of each source that has one; test images stay unseen
    exclude: str | None = None  # file with patients, studies or files to keep out, a name a line
    short_side: int = 256  # pixels that images are shrunk to; more than the global crop, for crops zoom in
    cache: str | None = None  # folder for the shrunk images; None: decode at each access
    seed: int = 0  # of initial weights, order, crops, masks and stochastic depth

    # the encoder
    size: int = 518  # pixels of a global crop and of the finished encoder; RAD-DINO's
    patch: int = 14  # pixels; DINOv2's
    width: int = 768  # ViT-B
    depth: int = 12  # ViT-B
    heads: int = 12  # of width 64
    layerscale: float = 1e-5  # DINOv2's initial value; small depths learn faster with 0.1
    position_embedding: str = "random"  # DINOv2's start; sincos: short runs from nothing find places sooner
    weight_init: str = (
        "dinov2"  # standard deviation 0.02; fan_in: 1 / sqrt(inputs), for widths far below ViT-B's
    )
    drop_path: float = 0.3  # stochastic depth at every block, DINOv2's; 0 for short runs

    # crops; more about each in encoder/transforms.py
    local_size: int = 98  # pixels
    local_crops: int = 8  # DINOv2's; the cost grows with them
    global_scale: list[float] = field(default_factory=lambda: [0.4, 1.0])  # share of the area
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.4])  # share of the area
    flip_probability: float = 0.0  # left and right matter in findings
    brightness: float = 0.1  # greatest shift of the grey levels; at 0.2 small runs learned nothing
    contrast: float = 0.2  # greatest relative change
    blur_probability: float = 0.2  # of each crop
    blur_sigma: list[float] = field(
        default_factory=lambda: [0.1, 1.0]
    )  # pixels; mild, for findings are small

    # heads and losses
    prototypes: int = 65536  # DINOv2's; about a thousand are enough for thousands of images
    head_hidden: int = 2048  # DINOv2's
    head_bottleneck: int = 256  # DINOv2's
    separate_ibot_head: bool = False  # one head for CLS and patches, as RAD-DINO most likely had
    dino_weight: float = 1.0  # DINOv2's
    ibot_weight: float = 1.0  # DINOv2's; the part that sees small findings
    koleo_weight: float = 0.1  # DINOv2's
    koleo_gather: bool = True  # neighbours among the images of all processes; false: of each, as DINOv2
    mask_probability: float = 0.5  # share of global crops with masked patches
    mask_ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])  # share of patches masked in those
    centring: str = "sinkhorn_knopp"  # or "centring"; the first needs no warm-up and no momentum
    student_temp: float = 0.1  # DINO's
    teacher_temp: float = 0.07  # DINO's, reached after the warm-up
    teacher_temp_start: float = 0.04  # sharp targets first, against collapse
    teacher_temp_warmup: int = 3000  # steps
    momentum: float = (
        0.992  # of the teacher at the start, rising to 1; for batches of about a thousand and below
    )

    # optimisation
    steps: int = 100_000  # length of all schedules
    stop_at: int | None = None  # stop after this step without touching the schedules; None: run to the end
    batch: int = 64  # images a step over all processes
    accumulate: int = 1  # parts a step is computed in, to save memory; targets and KoLeo then see one part
    lr: float = 1e-3  # peak, as it is (not scaled by the batch)
    lr_end: float = 1e-6  # DINOv2's
    warmup: int = 2500  # steps of linear warm-up
    weight_decay: float = 0.04  # at the start, DINOv2's
    weight_decay_end: float = 0.4  # at the end, DINOv2's
    beta2: float = 0.999  # AdamW's
    layer_decay: float = 0.9  # learning rate of a block relative to the next one's, DINOv2's
    patch_embed_lr: float = 0.2  # relative, against instability (MoCo v3)
    clip: float = 3.0  # greatest gradient norm, DINOv2's
    freeze_last_layer: int = 1250  # steps in which the prototypes stand still, DINO's first epoch
    head_warmup: int = (
        0  # steps in which only the heads learn; needed with --init, fresh heads wreck a backbone
    )
    mixed_precision: str = "auto"  # matrix products: bf16 where the hardware multiplies it, else no (float32)
    compile: bool = False  # torch.compile of the blocks: minutes at the start, for long runs on a GPU
    attention: str = "cxr"  # our kernel; sdpa: PyTorch's; reference: the explicit formula

    # the run
    probe: str | None = None  # labelled images (CSV, studies file, folder of classes) for a k-NN now and then
    probe_every: int = 1000  # steps
    log_every: int = 10  # steps between lines
    save_every: int = 250  # steps between checkpoints
    keep_last: int = 2  # checkpoints kept; two, for one may be damaged
    tracker: str = "auto"  # tensorboard where it is installed; or none, wandb, mlflow, ... (accelerate's)
    workers: int = 0  # processes that cut crops; 0: in the main one
    threads: int = (
        0  # of each process on CPUs; 0: all cores, shared among processes (accelerate would leave one)
    )

    def __post_init__(self) -> None:
        problems = []
        if self.size % self.patch or self.local_size % self.patch:
            problems.append(
                f"size {self.size} and local_size {self.local_size} must be multiples of patch {self.patch}"
            )
        if self.weights and len(self.weights) != len(self.data):
            problems.append(f"{len(self.weights)} weights for {len(self.data)} data sources")
        if any(w <= 0 for w in self.weights):
            problems.append("weights must be positive")
        if self.centring not in ("sinkhorn_knopp", "centring"):
            problems.append(f"centring must be sinkhorn_knopp or centring, not {self.centring!r}")
        if self.position_embedding not in ("random", "sincos"):
            problems.append(f"position_embedding must be random or sincos, not {self.position_embedding!r}")
        if self.position_embedding == "sincos" and self.width % 4:
            problems.append(f"sincos needs a width that is a multiple of 4, not {self.width}")
        if self.weight_init not in ("dinov2", "fan_in"):
            problems.append(f"weight_init must be dinov2 or fan_in, not {self.weight_init!r}")
        if self.mixed_precision not in ("auto", "bf16", "no"):
            problems.append(f"mixed_precision must be auto, bf16 or no, not {self.mixed_precision!r}")
        if self.tracker not in ("auto", "none", *map(str, LoggerType)):
            problems.append(
                f"tracker must be auto, none, {', '.join(map(str, LoggerType))}, not {self.tracker!r}"
            )
        if self.attention not in CHOICES:
            problems.append(f"attention must be {', '.join(CHOICES)}, not {self.attention!r}")
        for name in ("global_scale", "local_scale", "blur_sigma", "mask_ratio"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
                problems.append(f"{name} must be two numbers in order, not {pair}")
        for name in (
            "steps",
            "batch",
            "accumulate",
            "log_every",
            "probe_every",
            "save_every",
            "keep_last",
            "prototypes",
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be at least 1")
        if not 0 <= self.drop_path < 1:
            problems.append(f"drop_path must be in [0, 1), not {self.drop_path}")
        if problems:
            raise ConfigError("; ".join(problems))


# Fields that may differ when a run goes on: they change nothing that is computed.
FREE = (
    "out",
    "tracker",
    "stop_at",
    "log_every",
    "save_every",
    "probe",
    "probe_every",
    "keep_last",
    "workers",
    "threads",
    "cache",
    "compile",
    "attention",
)
GLOBAL_CROPS = 2  # as in DINO
