"""Every field of a probe, with its default and why it has it."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass
class Probe:
    """Judge frozen encoders on labelled images."""

    data: str = field(metadata={"help": "KIND:FOLDER of a release, a CSV, a studies file, a folder"})
    encoders: list[str] = field(
        metadata={"help": "directories, hub ids, weights files, random:ENCODER, pixels"}
    )
    out: str = field(metadata={"help": "folder of the results"})
    tasks: list[str] = field(default_factory=list)  # none: all that the data has labels, masks or numbers for
    also: list[str] = field(
        default_factory=list
    )  # beside them: attentive (pools all patch tokens), permuted (labels)
    labels: list[str] = field(default_factory=list)  # none: all
    vectors: str = "both"  # cls, mean (of the patch tokens), both, grid (CLS and 4 x 4 means): what heads see
    choose: str = "auprc"  # or auroc: by what validation chooses the penalty
    size: int = 0  # pixels a side; 0: each encoder's own
    layers: int = (
        4  # the last so many, side by side, for linear, UPerNet and ViTDet; DINOv2's evaluation has 4
    )
    outside: str = "background"  # pixels that the crop cuts off: background, or left-out of the count
    clusters: int = 8  # an image, of the unsupervised segmentation
    shares: list[float] = field(
        default_factory=lambda: [0.01, 0.1, 1.0]
    )  # of the training patients, few-shot
    draws: int = 5  # of each share below 1
    pretrained_on: list[str] = field(default_factory=list)  # lists of images that an encoder saw, to look for
    features_dir: str | None = (
        None  # where features lie (OUT/features); probes of the same images can share it
    )
    precision: str = "fp32"  # of the encoders; bf16 takes half the time where the hardware multiplies it
    batch: int = 16  # images a forward pass
    workers: int = 2  # processes that read images
    replicates: int = 1000  # of the patients, for intervals
    seed: int = 0  # of draws, heads and replicates
    attention: str = "cxr"  # our kernel; sdpa: PyTorch's; reference: the explicit formula
    threads: int = 0  # of each process on a CPU; 0: all cores, divided among the processes
