"""One encoder on labelled images: its features, and what each task makes of them."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.config import ConfigError

SEGMENTED = ("segmentation", "upernet", "vitdet", "unsupervised")  # what masks are needed for
TASKS = ("classification", "attentive", "knn", "few-shot", "metadata", "retrieval", *SEGMENTED)
ASKED_FOR = ("permuted",)  # the protocol on labels dealt out anew: twenty times the time of classification


@dataclass
class Probe:
    """Judge frozen encoders on labelled images."""

    data: str = field(metadata={"help": "KIND:FOLDER of a release, a CSV, a studies file, a folder"})
    encoders: list[str] = field(
        metadata={"help": "directories, hub ids, weights files, random:ENCODER, pixels"}
    )
    out: str = field(metadata={"help": "folder of the results"})
    # none: all that the data has labels, masks or numbers for, but permuted
    tasks: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # none: all
    vectors: str = "both"  # cls, mean (of the patch tokens), both side by side; what labels are read from
    choose: str = "auprc"  # or auroc: by what validation chooses the penalty
    size: int = 0  # pixels a side; 0: each encoder's own
    layers: int = 4  # the last so many, side by side, for segmentation; DINOv2's linear evaluation has 4
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
    batch: int = 16  # images a forward pass
    workers: int = 2  # processes that read images
    replicates: int = 1000  # of the patients, for intervals
    seed: int = 0  # of draws, heads and replicates
    attention: str = "cxr"  # our kernel; sdpa: PyTorch's; reference: the explicit formula
    threads: int = 0  # of each process on a CPU; 0: all cores, divided among the processes


class Judge:
    """One encoder on the data."""

    def __init__(self, config: Probe, found, encoder, out: Path, state) -> None:
        from encoder.features import extract

        self.config, self.found, self.encoder, self.out, self.state = config, found, encoder, out, state
        self.floor = encoder.name == "pixels"
        self.layers = min(config.layers, encoder.depth)
        patches = config.vectors != "cls" or bool(set(config.tasks or TASKS) & {*SEGMENTED, "attentive"})
        self.features = extract(
            encoder, found.paths, Path(config.features_dir or out / "features"), patches=patches,
            layers=self.layers, batch=config.batch, workers=config.workers, state=state,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
        if self.features.errors and state.is_main_process:
            print(f"{encoder.name}: {len(self.features.errors)} images cannot be read and are left out")
        self._vectors = None

    def __call__(self, task: str) -> Any:
        """The outcome of a task, from OUT/parts where it is there."""
        from eval.probes.judged import Judged
        from eval.probes.overlap import Segmentation

        settings = {
            k: v for k, v in self.config.__dict__.items()
            if k not in ("encoders", "out", "tasks", "features_dir", "batch", "workers", "threads", "replicates",
                         "attention", "pretrained_on")
        }  # fmt: skip
        images = [str(p) for p in self.found.paths]
        key = json.dumps([self.encoder.sha256, self.encoder.preprocessing.sha256, task, settings, images])
        file = self.out / "parts" / f"{task}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not file.is_file() and self.state.is_main_process:
            started = time.perf_counter()
            try:
                made = getattr(self, task.replace("-", "_"))()
            except ValueError as error:
                raise ConfigError(f"{self.encoder.name}, {task}: {error}") from None
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(json.dumps({name: judged.to_json() for name, judged in made.items()}))
            part.rename(file)
            print(f"{self.encoder.name}: {task}, {time.perf_counter() - started:.0f} s", flush=True)
        self.state.wait_for_everyone()
        kind = Segmentation if task in SEGMENTED else Judged
        return {name: kind.from_json(row) for name, row in json.loads(file.read_text()).items()}

    # --- one vector an image ------------------------------------------------------------------------------------------

    @property
    def vectors(self):
        import numpy as np
        import torch

        from eval.probes.linear import vectors

        if self._vectors is None:
            mean = None
            if not self.floor and self.config.vectors != "cls":
                width, rows = self.encoder.width, range(len(self.features))
                parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
                mean = torch.cat([self.features.patches(p)[..., -width:].mean(1) for p in parts]).numpy()
            which = "cls" if self.floor else self.config.vectors
            self._vectors = vectors(self.features.cls_NC, mean, which).astype(np.float32)
        return self._vectors

    def parts(self, y_NL, x_NC=None):
        """Train, validate, test, of the images that could be read and for which something is known, with vectors or
        what else is given for each."""
        import numpy as np

        from eval.probes.judged import Part

        made = []
        known = ~np.isnan(y_NL).all(1)
        for split in ("train", "validate", "test"):
            at = np.flatnonzero((self.found.splits[self.features.rows] == split) & known[self.features.rows])
            rows = self.features.rows[at]
            made.append(
                Part((self.vectors if x_NC is None else x_NC)[at], y_NL[rows], self.found.patients[rows])
            )
        return made

    @property
    def labels(self):
        names = self.config.labels or self.found.names
        if missing := sorted(set(names) - set(self.found.names)):
            raise ConfigError(
                f"no label is called {', '.join(missing)}; there are {', '.join(self.found.names)}"
            )
        return list(names), self.found.labels_NL[:, [self.found.names.index(n) for n in names]]

    @property
    def reduced(self) -> dict[str, Any]:
        """Principal components for what is no encoder's."""
        from eval.probes.linear import COMPONENTS

        return {
            "features": "pixels" if self.floor else self.config.vectors,
            "components": COMPONENTS if self.floor else None,
        }

    def classification(self) -> dict:
        from eval.probes.findings import linear_probe

        names, y_NL = self.labels
        return {"linear": linear_probe(*self.parts(y_NL), names, choose=self.config.choose, **self.reduced)}

    def attentive(self) -> dict:
        import numpy as np

        from eval.probes.attentive import Training, attentive_probe

        names, y_NL = self.labels
        parts = self.parts(y_NL, np.arange(len(self.features))[:, None])
        options = Training(seed=self.config.seed)
        judged = attentive_probe(
            self.features.patches, *parts, names, choose=self.config.choose, options=options,
            device=self.state.device, say=lambda line: print(line, flush=True),
        )  # fmt: skip
        return {"attentive": judged}

    def permuted(self) -> dict:
        from eval.probes.findings import permuted

        names, y_NL = self.labels
        return {"permuted": permuted(*self.parts(y_NL), names, seed=self.config.seed, **self.reduced)}

    def knn(self) -> dict:
        from eval.probes.findings import knn_probe

        names, y_NL = self.labels
        train, _, test = self.parts(y_NL)
        return {"knn": knn_probe(train, test, names, features=self.reduced["features"])}

    def few_shot(self) -> dict:
        from eval.probes.findings import few_shot

        names, y_NL = self.labels
        made = few_shot(
            *self.parts(y_NL), names, choose=self.config.choose, shares=self.config.shares, draws=self.config.draws,
            seed=self.config.seed, **self.reduced,
        )  # fmt: skip
        return {f"{share:g}": judged for share, judged in made.items()}

    def metadata(self) -> dict:
        import numpy as np

        from eval.probes.metadata import regression_probe, sex_labels, sex_probe

        made = {}
        for name, values in self.found.numbers.items():
            made[name] = regression_probe(*self.parts(values[:, None].astype(float)), [name], **self.reduced)
        if np.isin(self.found.sex, ("F", "M")).any():
            made["sex"] = sex_probe(*self.parts(sex_labels(self.found.sex)), **self.reduced)
        return made

    def retrieval(self) -> dict:
        import numpy as np

        from eval.probes.retrieval import retrieval_probe

        _, y_NL = self.labels
        test = self.parts(y_NL)[2]
        known = ~np.isnan(test.y_NL).any(1)
        unknown = (
            "left-out" if known.mean() > 0.5 else "absent"
        )  # reports leave much unsaid; the signature says which
        return {"retrieval": retrieval_probe(test, features=self.reduced["features"], unknown=unknown)}

    # --- patch tokens -------------------------------------------------------------------------------------------------

    @property
    def task(self):
        """Structures by the images that have them all annotated."""
        import numpy as np

        from eval.probes.overlap import Frame, Task

        rows = self.features.rows
        masked = set(self.found.masked().tolist())
        at = {
            split: np.array(
                [i for i, row in enumerate(rows) if row in masked and self.found.splits[row] == split], int
            )
            for split in ("train", "validate", "test")
        }
        patch = self.encoder.preprocessing.size // self.encoder.grid
        return Task(
            lambda wanted: [self.found.mask(rows[i]) for i in wanted], self.found.structures,
            at["train"], at["validate"], at["test"], self.found.patients[rows],
            Frame(self.encoder.preprocessing, patch), self.config.outside,
        )  # fmt: skip

    def segmentation(self) -> dict:
        from eval.probes.segmentation import linear, mean_mask, raw_patches, whole_image

        if not self.floor:
            return {"linear": linear(self.task, self.features.patches, seed=self.config.seed)}
        return {
            "raw patches + position": raw_patches(self.task, self.features.patches, seed=self.config.seed),
            "PCA of the whole image": whole_image(self.task, self.features.cls_NC),
            "mean mask": mean_mask(self.task),
        }

    def upernet(self) -> dict:
        return self._decoder("upernet")

    def vitdet(self) -> dict:
        return self._decoder("vitdet")

    def _decoder(self, head: str) -> dict:
        from eval.probes.decoders import SCALES, Training, decoder

        options = Training(
            head, layers=self.layers if self.layers == len(SCALES) else 1, seed=self.config.seed
        )
        say = lambda line: print(line, flush=True)  # noqa: E731
        return {head: decoder(self.task, self.features.patches, options, device=self.state.device, say=say)}

    def unsupervised(self) -> dict:
        from eval.probes import unsupervised

        settings = {"k": self.config.clusters, "seed": self.config.seed, "say": lambda line: None}
        if self.floor:
            return unsupervised.floors(self.task, self.features.patches, **settings)
        return {
            method: unsupervised.segment(self.task, self.features.patches, method=method, **settings)
            for method in unsupervised.METHODS
        }

    def pictures(self, results: dict) -> list[dict]:
        """Some test images: name of a picture -> outlines that were annotated, outlines that each head found, patches
        coloured by their principal components."""
        from encoder.radiograph import read
        from eval.probes.overlap import EXAMPLES
        from eval.probes.pictures import PatchColours, outlines

        task, tokens = self.task, self.features.patches
        colours = PatchColours.of(tokens, task.test[:64])
        every = [found for name in SEGMENTED for found in results.get(name, {}).items()]
        heads = {head: found.examples for head, found in every if found.examples}
        made = []
        for n, i in enumerate(task.test[:EXAMPLES]):
            row = int(self.features.rows[i])
            pixels = read(self.found.paths[row]).pixels
            pictures = {"annotated": outlines(pixels, self.found.mask(row))}
            for head, examples in heads.items():
                pictures[head] = outlines(pixels, enlarged(examples[n], pixels.shape))
            made.append({**pictures, "patches": colours.paint(tokens([i])[0], 256)})
        return made


def enlarged(masks_Khw, shape: tuple[int, int]):
    """Masks at the size of their image, (K, H, W)."""
    import torch

    masks = torch.from_numpy(masks_Khw).float()[None]
    return torch.nn.functional.interpolate(masks, size=shape, mode="bilinear")[0].numpy() > 0.5
