"""Every field of a pre-training. The comment above a field is its --help; what stands after a dash says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from train.common.config import Also, ConfigError, check_fields, load_config


@dataclass(kw_only=True)
class PretrainConfig:
    """Pre-train a ViT on radiographs alone (DINO + iBOT + KoLeo): no labels, no text."""

    # ---- what it reads and writes
    # Images to learn from: folders, CSVs, studies files, archives of cxr prepare.
    data: list[str] = field(default_factory=list)
    # Folder of the run: encoder, checkpoints, metrics.
    out: str = "runs/pretrain"
    # Encoder to start from: mini, a hub id, or any form that cxr convert reads. Without it weights are random.
    init: str | None = None
    # Released DINO head to start from (dino_head.safetensors). Without it the head is fresh.
    init_head: str | None = None
    # How often each source's images are seen in an epoch, one number a source; without it once.
    weights: list[float] = field(default_factory=list)
    # Part of each source to learn from, where a source has parts; images of other parts stay unseen.
    split: str | None = "train"
    # File that names patients, studies or files to keep out, a name a line.
    exclude: str | None = None
    # Shorter side in pixels to which images are shrunk once - more than the global crop, for crops zoom in.
    short_side: int = 256
    # Folder that keeps the shrunk images. Without it images are decoded at each access.
    cache: str | None = None
    # Seed of initial weights, order, crops, masks and stochastic depth.
    seed: int = 0

    # ---- the encoder
    # Side of a global crop and of the finished encoder's input in pixels - 518 is RAD-DINO's.
    size: int = 518
    # Side of a patch in pixels - DINOv2's.
    patch_size: int = 14
    # Width of a token - 768 is ViT-B.
    hidden_size: int = 768
    # Number of blocks - 12 is ViT-B.
    num_hidden_layers: int = 12
    # Attention heads of a block - 12 of 64 channels is ViT-B.
    num_attention_heads: int = 12
    # Initial value of LayerScale - DINOv2's; small depths learn faster with 0.1.
    layerscale: float = 1e-5
    # How position embeddings start: random is DINOv2's; with sincos short runs from nothing find places sooner.
    position_embedding: Literal["random", "sincos"] = "random"
    # Standard deviation of initial weights: dinov2 is 0.02; fan_in is 1 / sqrt(inputs), for widths far below ViT-B's.
    weight_init: Literal["dinov2", "fan_in"] = "dinov2"
    # Stochastic depth: share of residual branches left out at every block - DINOv2's; 0 for short runs.
    drop_path_rate: float = 0.3

    # ---- crops (see encoder/transforms.py)
    # Side of a local crop in pixels, a multiple of the patch.
    local_crops_size: int = 98
    # Local crops an image - DINOv2's; the cost grows with them.
    local_crops_number: int = 8
    # Least and greatest share of the image's area in a global crop.
    global_crops_scale: list[float] = field(default_factory=lambda: [0.4, 1.0])
    # Least and greatest share of the image's area in a local crop.
    local_crops_scale: list[float] = field(default_factory=lambda: [0.05, 0.4])
    # Share of crops that are mirrored - none, because left and right matter in findings.
    flip_probability: float = 0.0
    # Greatest shift of the grey levels, which span 0 to 1 - at 0.2 small runs learned nothing.
    brightness: float = 0.1
    # Greatest relative change of contrast.
    contrast: float = 0.2
    # Share of crops that are blurred.
    blur_probability: float = 0.2
    # Least and greatest standard deviation of the blur in pixels - mild, for findings are small.
    blur_sigma: list[float] = field(default_factory=lambda: [0.1, 1.0])

    # ---- heads and losses
    # Prototypes of a head - DINOv2's; about a thousand are enough for thousands of images.
    head_n_prototypes: int = 65536
    # Width of a head's hidden layers - DINOv2's.
    head_hidden_dim: int = 2048
    # Width of a head's bottleneck - DINOv2's.
    head_bottleneck_dim: int = 256
    # Give masked patches a head of their own - RAD-DINO most likely had one for CLS and patches.
    separate_ibot_head: bool = False
    # Weight of DINO's loss - DINOv2's.
    dino_loss_weight: float = 1.0
    # Weight of iBOT's loss, which learns small findings - DINOv2's.
    ibot_loss_weight: float = 1.0
    # Weight of KoLeo's loss, which spreads the features - DINOv2's.
    koleo_loss_weight: float = 0.1
    # Look for KoLeo's nearest neighbours among the images of all processes; false: of each process, as DINOv2.
    koleo_gather: bool = True
    # Share of global crops that have masked patches - DINOv2's.
    mask_sample_probability: float = 0.5
    # Least and greatest share of patches masked in such a crop - DINOv2's.
    mask_ratio_min_max: list[float] = field(default_factory=lambda: [0.1, 0.5])
    # How teacher targets are balanced: sinkhorn_knopp needs no warm-up and no momentum, running_mean is DINO's centre.
    centring: Literal["sinkhorn_knopp", "running_mean"] = "sinkhorn_knopp"
    # Temperature of the student - DINO's.
    student_temp: float = 0.1
    # Temperature of the teacher after its warm-up - DINO's.
    teacher_temp: float = 0.07
    # Temperature of the teacher at the start - sharp targets first, against collapse.
    warmup_teacher_temp: float = 0.04
    # Steps until the teacher reaches teacher_temp.
    warmup_teacher_temp_steps: int = 3000
    # Momentum of the teacher at the start, rising to 1 - for batches of about a thousand and below.
    momentum_teacher: float = 0.992

    # ---- optimisation
    # Steps of the run, the length of all schedules.
    max_steps: int = 100_000
    # Stop after this step without touching the schedules; without it the run goes to its end.
    stop_at: int | None = None
    # Images a step over all processes.
    batch_size: int = 64
    # Parts in which a step is computed, to save memory - targets and KoLeo then see one part.
    gradient_accumulation_steps: int = 1
    # Peak learning rate, as it is (not scaled by the batch).
    learning_rate: float = 1e-3
    # Learning rate at the end - DINOv2's.
    learning_rate_end: float = 1e-6
    # Steps of linear warm-up of the learning rate.
    warmup_steps: int = 2500
    # Weight decay at the start - DINOv2's.
    weight_decay: float = 0.04
    # Weight decay at the end - DINOv2's.
    weight_decay_end: float = 0.4
    # AdamW's beta2.
    adam_beta2: float = 0.999
    # Learning rate of a block relative to that of the block above it - DINOv2's.
    layerwise_decay: float = 0.9
    # Learning rate of the patch embedding, relative - against instability (MoCo v3).
    patch_embed_lr_mult: float = 0.2
    # Greatest norm of the gradient - DINOv2's.
    max_grad_norm: float = 3.0
    # Steps in which the prototypes stand still - DINO's first epoch.
    freeze_last_layer_steps: int = 1250
    # Steps in which only the heads learn - needed with init, since fresh heads wreck a backbone.
    head_warmup_steps: int = 0
    # Arithmetic of matrix products: auto is bf16 where the hardware multiplies it, else fp32.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Compile the blocks with torch.compile - minutes at the start, for long runs on a GPU.
    torch_compile: bool = False
    # Attention: cxr is our kernel, sdpa PyTorch's, reference the explicit formula.
    attention: Literal["cxr", "sdpa", "reference"] = "cxr"

    # ---- the run
    # Labelled images (CSV, studies file, folder of classes) for a k-NN classification now and then.
    probe: str | None = None
    # Steps between k-NN classifications.
    probe_steps: int = 1000
    # Steps between lines on the screen.
    logging_steps: int = 10
    # Steps between checkpoints.
    save_steps: int = 250
    # Checkpoints kept - two, for one may be damaged.
    save_total_limit: int = 2
    # Where numbers go besides metrics.jsonl: none, tensorboard, wandb, mlflow, ... (accelerate's trackers); auto is
    # tensorboard where it is installed.
    report_to: str = "auto"
    # Processes that cut crops; 0: the main one does.
    dataloader_num_workers: int = 0
    # Threads of each process on a CPU; 0: all cores, divided among the processes.
    threads: int = 0

    def __post_init__(self) -> None:
        problems = check_fields(self)
        problems += self._out_of_range(but={problem.split()[0] for problem in problems})
        # What fields are to one another can be asked once each is right by itself.
        problems = problems or list(self._inconsistencies())
        if problems:
            raise ConfigError("; ".join(problems))

    def _out_of_range(self, but: set[str]) -> Iterator[str]:
        for fits, wanted, names in RANGES:
            for name in names.split():
                value = getattr(self, name)
                if name not in but and value is not None and not fits(value):
                    yield f"{name} must be {wanted}, not {value}"

    def _inconsistencies(self) -> Iterator[str]:
        if self.size % self.patch_size or self.local_crops_size % self.patch_size:
            yield (
                f"size={self.size} and local_crops_size={self.local_crops_size} must be multiples of "
                f"patch_size={self.patch_size}"
            )
        if self.weights and len(self.weights) != len(self.data):
            yield f"{len(self.weights)} weights for {len(self.data)} data sources; give one for each"
        if self.hidden_size % self.num_attention_heads:
            yield f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
        if self.position_embedding == "sincos" and self.hidden_size % 4:
            yield f"sincos needs a hidden_size that is a multiple of 4, not {self.hidden_size}"


# What the values of a field must be, in code and in words. Fields that may be absent count only where they are given.
RANGES: tuple[tuple[Callable[[Any], bool], str, str], ...] = (
    (
        lambda x: x >= 1,
        "at least 1",
        "max_steps stop_at batch_size gradient_accumulation_steps logging_steps probe_steps save_steps "
        "save_total_limit head_n_prototypes head_hidden_dim head_bottleneck_dim size patch_size local_crops_size "
        "hidden_size num_hidden_layers num_attention_heads short_side",
    ),
    (
        lambda x: x >= 0,
        "at least 0",
        "seed local_crops_number warmup_teacher_temp_steps warmup_steps freeze_last_layer_steps head_warmup_steps "
        "dataloader_num_workers threads dino_loss_weight ibot_loss_weight koleo_loss_weight learning_rate "
        "learning_rate_end weight_decay weight_decay_end patch_embed_lr_mult",
    ),
    (lambda x: x > 0, "above 0", "student_temp teacher_temp warmup_teacher_temp max_grad_norm"),
    (
        lambda x: 0 <= x <= 1,
        "from 0 to 1",
        "layerscale flip_probability blur_probability brightness contrast mask_sample_probability momentum_teacher "
        "layerwise_decay",
    ),
    (lambda x: 0 <= x < 1, "at least 0 and below 1", "drop_path_rate adam_beta2"),
    (lambda x: all(w > 0 for w in x), "numbers above 0", "weights"),
    (lambda x: len(x) == 2 and 0 <= x[0] <= x[1], "two numbers in order, at least 0", "blur_sigma"),
    (
        lambda x: len(x) == 2 and 0 <= x[0] <= x[1] <= 1,
        "two numbers in order, from 0 to 1",
        "global_crops_scale local_crops_scale mask_ratio_min_max",
    ),
)
# Fields that may differ when a run is resumed: they change nothing that is computed.
MAY_DIFFER = {
    "out", "report_to", "stop_at", "logging_steps", "save_steps", "probe", "probe_steps", "save_total_limit",
    "dataloader_num_workers", "threads", "cache", "torch_compile", "attention",
}  # fmt: skip
# Global crops an image - DINO's.
GLOBAL_CROPS = 2
# Names that recipes and runs before 0.2 have, and words that were fields' values.
RENAMED = {
    "batch": "batch_size", "accumulate": "gradient_accumulation_steps", "lr": "learning_rate",
    "lr_end": "learning_rate_end", "warmup": "warmup_steps", "steps": "max_steps", "beta2": "adam_beta2",
    "clip": "max_grad_norm", "freeze_last_layer": "freeze_last_layer_steps", "head_warmup": "head_warmup_steps",
    "teacher_temp_start": "warmup_teacher_temp", "teacher_temp_warmup": "warmup_teacher_temp_steps",
    "momentum": "momentum_teacher", "mask_ratio": "mask_ratio_min_max", "mask_probability": "mask_sample_probability",
    "prototypes": "head_n_prototypes", "head_hidden": "head_hidden_dim", "head_bottleneck": "head_bottleneck_dim",
    "dino_weight": "dino_loss_weight", "ibot_weight": "ibot_loss_weight", "koleo_weight": "koleo_loss_weight",
    "local_size": "local_crops_size", "local_crops": "local_crops_number", "global_scale": "global_crops_scale",
    "local_scale": "local_crops_scale", "drop_path": "drop_path_rate", "patch": "patch_size", "width": "hidden_size",
    "depth": "num_hidden_layers", "heads": "num_attention_heads", "patch_embed_lr": "patch_embed_lr_mult",
    "layer_decay": "layerwise_decay", "mixed_precision": "precision", "compile": "torch_compile",
    "probe_every": "probe_steps", "log_every": "logging_steps", "save_every": "save_steps",
    "keep_last": "save_total_limit", "workers": "dataloader_num_workers", "tracker": "report_to",
}  # fmt: skip
OLD_VALUES = {"centring": {"centring": "running_mean"}, "precision": {"no": "fp32"}}


def configured(argv: list[str] | None = None, also: Also | None = None) -> PretrainConfig:
    """Read a command line. Raises ConfigError, or SystemExit as argparse does."""
    return load_config(PretrainConfig, "pretrain", argv, renamed=RENAMED, old_values=OLD_VALUES, also=also)
