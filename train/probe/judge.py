"""One encoder on labelled images: its features, and what each task makes of them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from encoder.files import key_of, read_json, write_json
from train.common.processes import say_at_once as say
from train.probe.config import SEGMENTED, SETTINGS, SEVERAL_LAYERS, Probe

SCHEMA = 2  # of OUT/parts; another one where a task has come to mean something else


class Judge:
    """One encoder on the data, for some tasks."""

    def __init__(self, config: Probe, found, encoder, tasks: Sequence[str], out: Path, state) -> None:
        from encoder.features import extract
        from eval.probes.linear import CELLS

        self.config, self.found, self.encoder, self.out, self.state = config, found, encoder, out, state
        self.floor = encoder.name == "pixels"
        self.layers = min(config.layers, encoder.depth) if set(tasks) & set(SEVERAL_LAYERS) else 1
        self.features = extract(
            encoder, found.paths, Path(config.features_dir or out / "features"),
            patches=bool(set(tasks) & {*SEGMENTED, "attentive"}), layers=self.layers,
            cells=CELLS if config.vectors == "grid" and not self.floor else 0, batch=config.batch_size,
            workers=config.dataloader_num_workers, state=state, half=config.precision == "bf16", say=say,
        )  # fmt: skip
        if self.features.errors and state.is_main_process:
            print(f"{encoder.name}: {len(self.features.errors)} images cannot be read and are left out")

    def __call__(self, task: str) -> dict[str, Any]:
        """The outcomes of a task, from OUT/parts where they are there; in the first process alone. Raises ValueError
        where it cannot be done."""
        from eval.probes.judged import Judged
        from eval.probes.overlap import Segmentation
        from train.common.processes import all_cores

        if not self.state.is_main_process:
            return {}
        kind = Segmentation if task in SEGMENTED else Judged
        settings = {name: getattr(self.config, name) for name in SETTINGS[task]}
        about = {
            "schema": SCHEMA, "task": task, "settings": settings, "encoder_sha256": self.encoder.sha256,
            "preprocessing_sha256": self.encoder.preprocessing.sha256, "layers": self.layers,
            "precision": self.config.precision, "data_sha256": self.data_sha256(task),
        }  # fmt: skip
        key = key_of(about)
        name = re.sub(r"\W+", "-", Path(self.encoder.name).name)[:40]
        file = self.out / "parts" / f"{task}-{name}-{key}.json"
        if not file.is_file():
            started = time.perf_counter()
            with all_cores(self.config.threads, self.state.num_processes):
                made = getattr(self, task.replace("-", "_"))()
            content = {
                **about, "encoder": self.encoder.name, "images": self.images,
                "outcomes": {name: judged.to_json() for name, judged in made.items()},
            }  # fmt: skip
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, content, indent=None)
            say(f"{self.encoder.name}: {task}, {time.perf_counter() - started:.0f} s")
        outcomes = read_json(file)["outcomes"]
        return {name: kind.from_json(row) for name, row in outcomes.items()}

    @property
    def images(self) -> list[str]:
        """Return the paths of the images that could be read."""
        return [str(self.found.paths[row]) for row in self.features.rows]

    def data_sha256(self, task: str) -> str:
        """Digest of all that a task is told: images by what they contain, splits, patients, and the truth."""
        found, rows = self.found, self.features.rows
        truth: list[Any] = [self.features.digests, found.splits[rows].tolist(), found.patients[rows].tolist()]
        if task in SEGMENTED:
            truth += [found.structures, [_stamps(found.masks[row]) for row in rows]]
        elif task == "metadata":
            truth += [
                found.sex[rows].tolist(),
                {n: np.nan_to_num(x[rows], nan=-1).tolist() for n, x in found.numbers.items()},
            ]
        else:
            names, y_NL = self.labels
            truth += [names, np.nan_to_num(y_NL[rows], nan=-1).tolist()]
        return hashlib.sha256(json.dumps(truth).encode()).hexdigest()

    # --- one vector an image ------------------------------------------------------------------------------------------

    @cached_property
    def vectors(self) -> np.ndarray:
        """Return the vectors (N, C) that heads of whole images learn from, as the config's `vectors` names
        them."""
        from eval.probes.linear import vectors

        which = "cls" if self.floor else self.config.vectors
        return vectors(self.features.cls_NC, self.features.mean_NC, which, self.features.cells_NC)

    def parts(self, y_NL: np.ndarray, x_NC: np.ndarray | None = None) -> list:
        """Return train, validate and test, of the readable images with a known label; features are `vectors`
        unless `x_NC` is given."""
        from eval.probes.judged import Part

        x_NC, images = self.vectors if x_NC is None else x_NC, self.images
        known = ~np.isnan(y_NL).all(1)
        made = []
        for split in ("train", "validate", "test"):
            at = np.flatnonzero((self.found.splits[self.features.rows] == split) & known[self.features.rows])
            rows = self.features.rows[at]
            made.append(Part(x_NC[at], y_NL[rows], self.found.patients[rows], [images[i] for i in at]))
        return made

    @property
    def labels(self):
        """Return the names of the L findings, and their labels (images, L): 1, 0 or NaN where unknown."""
        names = self.config.labels or self.found.names
        return list(names), self.found.labels_NL[:, [self.found.names.index(n) for n in names]]

    @property
    def reduced(self) -> dict[str, Any]:
        """Return options of a head: principal components if the features are not an encoder's."""
        from eval.probes.linear import COMPONENTS

        return {
            "features": "pixels" if self.floor else self.config.vectors,
            "components": COMPONENTS if self.floor else None,
        }

    def classification(self) -> dict:
        """Judge a linear head for each finding."""
        from eval.probes.findings import linear_probe

        names, y_NL = self.labels
        return {"linear": linear_probe(*self.parts(y_NL), names, choose=self.config.choose, **self.reduced)}

    def attentive(self) -> dict:
        """Judge heads that attend over the patch tokens."""
        from eval.probes.attentive import AttentiveTraining, attentive_probe

        names, y_NL = self.labels
        parts = self.parts(y_NL, np.arange(len(self.features))[:, None])
        options = AttentiveTraining(seed=self.config.seed)
        judged = attentive_probe(
            self.features.last, *parts, names, choose=self.config.choose, options=options, device=self.state.device,
            say=say,
        )  # fmt: skip
        return {"attentive": judged}

    def permuted(self) -> dict:
        """Judge a linear head that learned from permuted labels: what chance alone gives."""
        from eval.probes.findings import permuted

        names, y_NL = self.labels
        options = {"choose": self.config.choose, "seed": self.config.seed}
        return {"permuted": permuted(*self.parts(y_NL), names, **options, **self.reduced)}

    def knn(self) -> dict:
        """Judge nearest neighbours in the training images."""
        from eval.probes.findings import knn_probe

        names, y_NL = self.labels
        train, _, test = self.parts(y_NL)
        return {"knn": knn_probe(train, test, names, features=self.reduced["features"])}

    def few_shot(self) -> dict:
        """Judge linear heads that learned from each of the config's `shares` of the training images."""
        from eval.probes.findings import few_shot

        names, y_NL = self.labels
        fewer = [share for share in self.config.shares if share != 1]
        made = few_shot(
            *self.parts(y_NL), names, choose=self.config.choose, shares=fewer, draws=self.config.draws,
            seed=self.config.seed, **self.reduced,
        ) if fewer else {}  # fmt: skip
        if len(fewer) < len(self.config.shares):
            made[1.0] = self("classification")["linear"]  # kept, and the same
        return {f"{share:g}": judged for share, judged in made.items()}

    def metadata(self) -> dict:
        """Judge linear heads for numbers, such as age, and for sex, where the data give them."""
        from eval.probes.metadata import regression_probe, sex_labels, sex_probe

        numbers, sex = told(self.found)
        made = {}
        for name in numbers:
            values_N1 = self.found.numbers[name][:, None].astype(float)
            made[name] = regression_probe(*self.parts(values_N1), [name], **self.reduced)
        if sex:
            made["sex"] = sex_probe(*self.parts(sex_labels(self.found.sex)), **self.reduced)
        return made

    def retrieval(self) -> dict:
        """Judge whether the nearest test images share findings.

        Images with an unknown label are left out; if they are the majority, unknown counts as absent.
        """
        from eval.probes.retrieval import retrieval_probe

        _, y_NL = self.labels
        test = self.parts(y_NL)[2]
        known = ~np.isnan(test.y_NL).any(1)
        unknown = (
            "left-out" if known.mean() > 0.5 else "absent"
        )  # reports leave much unsaid; the signature says which
        return {"retrieval": retrieval_probe(test, features=self.reduced["features"], unknown=unknown)}

    # --- patch tokens -------------------------------------------------------------------------------------------------

    @cached_property
    def task(self):
        """Return the segmentation task, of the images that have all structures annotated."""
        from eval.probes.overlap import Frame, MaskTask

        rows, masked = self.features.rows, self.found.masked()
        at = {
            split: np.flatnonzero(np.isin(rows, masked) & (self.found.splits[rows] == split))
            for split in ("train", "validate", "test")
        }
        return MaskTask(
            lambda wanted: [self.found.mask(rows[i]) for i in wanted], self.found.structures,
            at["train"], at["validate"], at["test"], self.found.patients[rows],
            Frame(self.encoder.preprocessing, self.encoder.patch), self.config.outside,
        )  # fmt: skip

    def segmentation(self) -> dict:
        """Judge a linear head on patch tokens; for the baseline, three answers that use no encoder."""
        from eval.probes.segmentation import linear, mean_mask, raw_patches, whole_image

        options = {"seed": self.config.seed, "device": self.state.device}
        if not self.floor:
            return {"linear": linear(self.task, self.features.patches, layers=self.layers, **options)}
        return {
            "raw patches + position": raw_patches(self.task, self.features.patches, **options),
            "PCA of the whole image": whole_image(self.task, self.features.cls_NC),
            "mean mask": mean_mask(self.task),
        }

    def upernet(self) -> dict:
        """Judge UPerNet's decoder on frozen patch tokens (arXiv 1807.10221)."""
        return self._decoder("upernet")

    def vitdet(self) -> dict:
        """Judge ViTDet's simple feature pyramid on frozen patch tokens (arXiv 2203.16527)."""
        return self._decoder("vitdet")

    def _decoder(self, head: str) -> dict:
        from eval.probes.decoders import SCALES, DecoderTraining, decoder

        options = DecoderTraining(
            head, layers=self.layers if self.layers == len(SCALES) else 1, seed=self.config.seed
        )
        return {head: decoder(self.task, self.features.patches, options, device=self.state.device, say=say)}

    def unsupervised(self) -> dict:
        """Judge segmentations that learn from no mask, one for each method; for the baseline, its own."""
        from eval.probes import unsupervised

        settings = {"k": self.config.clusters, "seed": self.config.seed, "say": lambda line: None}
        if self.floor:
            return unsupervised.floors(self.task, self.features.last, **settings)
        return {
            method: unsupervised.segment(self.task, self.features.last, method=method, **settings)
            for method in unsupervised.METHODS
        }

    def pictures(self, results: dict) -> list[dict]:
        """Paint some test images: name of a picture -> outlines that were annotated, outlines that each head
        found, patches coloured by their principal components."""
        from encoder.radiograph import read
        from eval.probes.overlap import EXAMPLES
        from eval.probes.pictures import PatchColours, outlines

        task, tokens = self.task, self.features.last
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


def told(found) -> tuple[list[str], bool]:
    """Tell which numbers are known of images of every split, and whether the sex is."""
    splits = [found.splits == split for split in ("train", "validate", "test")]
    numbers = [n for n, x in found.numbers.items() if all((~np.isnan(x[rows])).any() for rows in splits)]
    return numbers, all(np.isin(found.sex[rows], ("F", "M")).any() for rows in splits)


def _stamps(masks: Mapping[str, Any]) -> dict[str, list]:
    """What tells whether the masks of an image are still the same, wherever the folder is named from."""
    stamps: dict[str, list] = {}
    for name, parts in masks.items():
        stamps[name] = []
        for part in parts:
            if isinstance(part, Path):
                about = part.stat() if part.is_file() else None
                stamps[name].append(
                    [str(part.absolute()), about and about.st_size, about and about.st_mtime_ns]
                )
            else:
                stamps[name].append(repr(part))
    return stamps


def enlarged(masks_Khw, shape: tuple[int, int]):
    """Masks at the size of their image, (K, H, W)."""
    import torch

    masks = torch.from_numpy(masks_Khw).float()[None]
    return torch.nn.functional.interpolate(masks, size=shape, mode="bilinear")[0].numpy() > 0.5
