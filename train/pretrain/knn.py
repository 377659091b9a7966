"""Does the encoder learn what matters? k nearest neighbours on labelled images, now and then during a pre-training.

It has nothing to fit and nothing to choose, so that its curve is the encoder's. What the encoder is worth in the end is
for `eval.probes` to say, on images that no decision was made on.
"""

from __future__ import annotations

import numpy as np
import torch

from encoder.radiograph import InputError
from encoder.transforms import Preprocessing
from encoder.vit import CropViT
from eval.probes.linear import auroc, knn_scores
from train.common.config import ConfigError
from train.datasets.folder import Radiographs
from train.datasets.labelled import labelled_images

FEWEST = 5  # images of either kind, in either part, for a label to count
BATCH = 32


class Probe:
    """Mean AUROC of k-NN over the labels, from CLS features: neighbours from split `train`, judged on `validate` (or
    `test`, where there is none).

    Raises ConfigError for a source that cannot be used, with the reason.
    """

    def __init__(self, source: str, size: int, cache: str | None = None) -> None:
        try:
            found = labelled_images(source)
            judged = "validate" if len(found.part("validate")) else "test"
            rows = np.concatenate([found.part("train"), found.part(judged)])
            self.images = Radiographs([found.paths[i] for i in rows], size, cache=cache)
        except (InputError, OSError, ValueError) as error:
            raise ConfigError(f"--probe {source}: {error}") from error
        row_of = {found.paths[i]: i for i in rows}
        rows = np.array([row_of[path] for path in self.images.paths])  # unreadable ones are gone
        self.fit, self.judged = found.splits[rows] == "train", found.splits[rows] == judged
        self.labels_NL = found.labels_NL[rows]
        kinds = [
            (self.labels_NL[part] == value).sum(0) >= FEWEST
            for part in (self.fit, self.judged)
            for value in (0, 1)
        ]
        counts = np.logical_and.reduce(kinds)
        self.names = [name for name, enough in zip(found.names, counts, strict=True) if enough]
        self.labels_NL = self.labels_NL[:, counts]
        if not self.names:
            raise ConfigError(
                f"--probe {source}: no label has {FEWEST} images with it and {FEWEST} without it in both train and "
                f"{judged}"
            )
        self.preprocessing = Preprocessing(size=size)

    @torch.inference_mode()
    def __call__(self, backbone: CropViT, device: torch.device) -> float:
        backbone = backbone.to(device).eval()
        features = []
        for start in range(0, len(self.images), BATCH):
            several = [self.images[i] for i in range(start, min(start + BATCH, len(self.images)))]
            x_BCHW = torch.stack([self.preprocessing(x.astype(np.float32) / 255) for x in several]).to(device)
            features.append(backbone.forward_features(x_BCHW)[:, 0].cpu().numpy())
        x_NC = np.concatenate(features)
        scores_ML = knn_scores(x_NC[self.fit], self.labels_NL[self.fit], x_NC[self.judged])
        found = []
        for y_M, s_M in zip(self.labels_NL[self.judged].T, scores_ML.T, strict=True):
            known = ~np.isnan(y_M) & ~np.isnan(s_M)
            found.append(auroc(y_M[known], s_M[known]))
        return float(np.nanmean(found))
