"""Every field of a probe, with its default and why it has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from encoder.errors import did_you_mean
from train.common.config import Also, ConfigError, load_config

SEGMENTED = ("segmentation", "upernet", "vitdet", "unsupervised")  # what masks are needed for
TASKS = ("classification", "knn", "few-shot", "metadata", "retrieval", *SEGMENTED)
ALSO = ("attentive", "permuted")  # which cost more: every patch token on disk; twenty times classification
ON_LABELS = ("classification", "knn", "few-shot", "retrieval", *ALSO)
SEVERAL_LAYERS = ("segmentation", "upernet", "vitdet")  # the others see the last
SETTINGS = {  # what the outcome of a task depends on, beside the encoder and the data
    "classification": ("vectors", "choose"),
    "attentive": ("choose", "seed"),
    "knn": ("vectors",),
    "few-shot": ("vectors", "choose", "shares", "draws", "seed"),
    "permuted": ("vectors", "choose", "seed"),
    "metadata": ("vectors",),
    "retrieval": ("vectors",),
    "segmentation": ("layers", "outside", "seed"),
    "upernet": ("layers", "outside", "seed"),
    "vitdet": ("layers", "outside", "seed"),
    "unsupervised": ("clusters", "outside", "seed"),
}


@dataclass(kw_only=True)
class Probe:
    """Judge frozen encoders on labelled images, side by side."""

    # ---- what it reads and writes
    # Labelled images: KIND:FOLDER of a release, a CSV, a studies file, a folder.
    data: str
    # Encoders: mini, directories, hub ids, weights files, random:ENCODER, pixels.
    encoders: list[str]
    # Folder of the results.
    out: str
    # Lists of images that an encoder saw in its training, to be looked for in the data.
    pretrained_on: list[str] = field(default_factory=list)

    # ---- what is judged
    # Tasks: classification, knn, few-shot, metadata, retrieval, segmentation, upernet, vitdet, unsupervised. Without it
    # all that the data has labels, masks or numbers for.
    tasks: list[str] = field(default_factory=list)
    # Beside them: attentive (pools all patch tokens), permuted (labels dealt out anew).
    also: list[str] = field(default_factory=list)
    # Labels to judge; without it all.
    labels: list[str] = field(default_factory=list)
    # What heads see: cls, mean of the patch tokens, both, or grid (CLS and means of 4 x 4 parts).
    vectors: Literal["cls", "mean", "both", "grid"] = "both"
    # Score by which validation chooses the penalty.
    choose: Literal["auprc", "auroc"] = "auprc"
    # Side of an image in pixels; 0: each encoder's own.
    size: int = 0
    # Last blocks whose tokens are read side by side by linear heads, UPerNet and ViTDet - DINOv2's evaluation has 4.
    layers: int = 4
    # Pixels that the crop cuts off: counted as background, or left-out of the count.
    outside: Literal["background", "left-out"] = "background"
    # Clusters an image, of the unsupervised segmentation.
    clusters: int = 8
    # Shares of the training patients, of few-shot.
    shares: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0])
    # Draws of each share below 1.
    draws: int = 5
    # Bootstrap replicates of the patients, for intervals.
    bootstrap: int = 1000
    # Seed of draws, heads and replicates.
    seed: int = 0

    # ---- the run
    # Folder of features (without it OUT/features); probes of the same images can share it.
    features_dir: str | None = None
    # Arithmetic of the encoders; bf16 takes half the time where the hardware multiplies it.
    precision: Literal["fp32", "bf16"] = "fp32"
    # Images a forward pass.
    batch_size: int = 16
    # Processes that read images.
    dataloader_num_workers: int = 2
    # Attention: cxr is our kernel, sdpa PyTorch's, reference the explicit formula.
    attention: Literal["cxr", "sdpa", "reference"] = "cxr"
    # Threads of each process on a CPU; 0: all cores, divided among the processes.
    threads: int = 0


# Names that runs before 0.2 have.
RENAMED = {"batch": "batch_size", "workers": "dataloader_num_workers", "replicates": "bootstrap"}


def configured(argv: list[str] | None = None, also: Also | None = None) -> Probe:
    """Read a command line. Raises ConfigError, or SystemExit as argparse does."""
    return check(load_config(Probe, "probe", argv, renamed=RENAMED, also=also))


def check(config: Probe) -> Probe:
    """Validate the config. Raises ConfigError for tasks that do not exist and encoders named twice."""
    for name, known in (("tasks", (*TASKS, *ALSO)), ("also", ALSO)):
        if unknown := sorted(set(getattr(config, name)) - set(known)):
            raise ConfigError(
                f"{name}: there is no {', '.join(unknown)}{did_you_mean(unknown[0], known)}; there are "
                f"{', '.join(known)}"
            )
    if len(set(config.encoders)) < len(config.encoders):
        raise ConfigError("an encoder is named twice; give each once")
    return config
