"""Claim: phantom studies are written as uncompressed 512-px DICOM files at 2,000 a minute or more on two cores.

python benchmarks/phantoms.py [--studies 600] [--save]
"""

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

from train.phantom.population import write_population


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/phantoms.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_population(f"{folder}/out", studies=args.studies, workers=args.workers)
        seconds = time.perf_counter() - started
        films = len(list(Path(folder, "out", "images").iterdir()))
    result = {
        "studies_per_minute": round(60 * args.studies / seconds),
        "films_per_minute": round(60 * films / seconds),
        "studies": args.studies,
        "workers": args.workers,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=2))
    if args.save:
        target = Path(__file__).parent / "results" / "phantoms.json"
        target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
