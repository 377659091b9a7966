"""Ask during a pre-training whether the encoder learns what matters: k nearest neighbours on labelled images.

k-NN has nothing to fit and nothing to choose, so its curve shows the encoder alone. `eval.probes` says what the encoder
is worth in the end, on images that no decision was made on.
"""

from __future__ import annotations

import numpy as np
import torch

from encoder.radiograph import InputError
from encoder.transforms import Preprocessing
from encoder.vit import CropViT
from train.common.config import ConfigError
from train.datasets.folder import Radiographs
from train.datasets.labelled import labelled_images

# Images with a label, and without it, that each part needs for the label to count.
FEWEST = 5
BATCH = 32


class KnnProbe:
    """Score CLS features by k-NN: the mean AUROC over the labels.

    Neighbours come from split `train`; the judged images come from `validate`, or from `test` where there is none.
    """

    def __init__(self, source: str, size: int, cache: str | None = None) -> None:
        """Read labels and images of side `size` pixels. Raises ConfigError for a source that cannot be used."""
        try:
            found = labelled_images(source)
            judged = "validate" if len(found.part("validate")) else "test"
            rows = np.concatenate([found.part("train"), found.part(judged)])
            self.images = Radiographs([found.paths[i] for i in rows], size, cache=cache)
        except (InputError, OSError, ValueError) as error:
            raise ConfigError(f"--probe {source}: {error}") from error
        row_of = {found.paths[i]: i for i in rows}
        # Images that cannot be read are gone.
        rows = np.array([row_of[path] for path in self.images.paths])
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
        """Return the mean AUROC with this backbone, which is moved to `device`."""
        # scikit-learn takes a second or two, which a run without a probe need not wait for
        from eval.probes.linear import auroc, knn_scores

        backbone = backbone.to(device).eval()
        features = []
        for start in range(0, len(self.images), BATCH):
            several = [self.images[i] for i in range(start, min(start + BATCH, len(self.images)))]
            x_BCHW = torch.stack([self.preprocessing(x) for x in several]).to(device)
            features.append(backbone.forward_features(x_BCHW)[:, 0].cpu().numpy())
        x_NC = np.concatenate(features)
        scores_ML = knn_scores(x_NC[self.fit], self.labels_NL[self.fit], x_NC[self.judged])
        found = []
        for y_M, s_M in zip(self.labels_NL[self.judged].T, scores_ML.T, strict=True):
            known = ~np.isnan(y_M) & ~np.isnan(s_M)
            found.append(auroc(y_M[known], s_M[known]))
        return float(np.nanmean(found))
