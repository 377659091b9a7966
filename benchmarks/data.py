"""Claim: from an archive of `cxr prepare`, decoding an X-ray and cutting its crops (2 x 518 + 8 x 98 pixels) takes a
CPU core at most 60 ms; what is left for the device (jitter, blur, normalisation) is printed beside it, and so is the
pipeline of DINOv2 (PIL in RGB, torchvision's transforms, float tensors) on the same images, as the ratio of the two.

    python benchmarks/data.py [--images 24] [--save]

The images are phantoms, 518 pixels on the shorter side, drawn into a temporary folder. One core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from encoder.transforms import MultiCrop
from train.datasets.archive import Archive, prepare
from train.phantom.population import write_population

LIMIT = 60.0  # ms


class DINOv2Crops:
    """The augmentations that DINOv2 describes (arXiv 2304.07193, section 3 and its released defaults), at our sizes."""

    def __init__(self) -> None:
        bicubic = transforms.InterpolationMode.BICUBIC
        flip = transforms.RandomHorizontalFlip(0.5)
        self.big = transforms.Compose(
            [transforms.RandomResizedCrop(518, (0.32, 1.0), interpolation=bicubic), flip]
        )
        self.small = transforms.Compose(
            [transforms.RandomResizedCrop(98, (0.05, 0.32), interpolation=bicubic), flip]
        )
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8)
        colour = [jitter, transforms.RandomGrayscale(0.2)]
        tensor = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]

        def blur(probability: float):
            return transforms.RandomApply([transforms.GaussianBlur(9, (0.1, 2.0))], probability)

        self.first = transforms.Compose([*colour, blur(1.0), *tensor])
        self.second = transforms.Compose([*colour, blur(0.1), transforms.RandomSolarize(128, 0.2), *tensor])
        self.local = transforms.Compose([*colour, blur(0.5), *tensor])

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        views = [self.first(self.big(image)), self.second(self.big(image))]
        return views + [self.local(self.small(image)) for _ in range(8)]


def milliseconds(function, count: int, repeats: int = 3) -> float:
    """The best of `repeats` rounds over all images, per image."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for i in range(count):
            function(i)
        best = min(best, 1e3 * (time.perf_counter() - start) / count)
    return round(best, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/data.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_population(out / "phantoms", studies=args.images, size=1024, format="png")
        files = sorted((out / "phantoms" / "images").glob("*.png"))[: args.images]
        list(prepare(files, out / "archive", short_side=518))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        archive, crop, rival = Archive(out / "archive"), MultiCrop(), DINOv2Crops()
        pixels = [archive[i] for i in range(len(archive))]
        rng = np.random.default_rng(0)
        cut = [crop(image, rng) for image in pixels[:8]]
        shrunk = [out / f"{i}.png" for i in range(len(pixels))]
        for path, image in zip(shrunk, pixels, strict=True):
            Image.fromarray(image).save(path)

        def on_device(i: int) -> None:
            found = cut[i % len(cut)]
            for crops, looks in ((found.global_GHW, found.global_look), (found.local_LHW, found.local_look)):
                crop.on_device(torch.from_numpy(crops), torch.from_numpy(looks))

        count = len(pixels)
        result = {
            "milliseconds": {
                "decode": milliseconds(lambda i: archive[i], count),
                "crops": milliseconds(lambda i: crop(pixels[i], rng), count),
                "decode and crops": milliseconds(lambda i: crop(archive[i], rng), count),
                "jitter, blur, normalisation (the device's part)": milliseconds(on_device, count),
                "DINOv2's pipeline": milliseconds(
                    lambda i: rival(Image.open(shrunk[i]).convert("RGB")), count
                ),
            },
            "images": count,
        }
    ours, theirs = (result["milliseconds"][name] for name in ("decode and crops", "DINOv2's pipeline"))
    result |= {
        "times as fast": round(theirs / ours, 2),
        "times as fast, the device's part counted": round(
            theirs / (ours + result["milliseconds"]["jitter, blur, normalisation (the device's part)"]), 2
        ),
        "holds": ours <= LIMIT,
        "machine": f"{platform.machine()}, one core",
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=1))
    if args.save:
        target = Path(__file__).parent / "results" / "data.json"
        target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
