"""The JSRT data base of films with and without a lung nodule, with the SCR masks -> labelled images.

What is read, from the folder `root`, at whatever depth:

- `JPCLN001.png` ... (154 films with a nodule) and `JPCNN001.png` ... (93 without). The release has `.IMG` files
  instead: 2048 x 2048 big-endian 16-bit integers of which 12 bits are used, bright = air. This makes PNG files of 16
  bits with dark = air of them, which all of cxr reads:

      python -m train.datasets.labels.jsrt FOLDER_OF_IMG FOLDER_OF_PNG

- `CLNDAT_EN.txt` and `CNNDAT_EN.TXT` (in Clinical_Information): among other things age and sex, of a film per line;
  may be absent. Lines end in a carriage return, columns are set apart by tabs in the one and spaces in the other, and
  some say ? for the age
- `fold1/masks/heart/JPCLN001.gif`, and the same in fold2 and for left lung, right lung, left clavicle, right clavicle
  (also with _ for the space): the SCR masks, 1024 x 1024; may be absent. Their names are SCR's own

That bright = air in the .IMG files, and how the lines look, is taken from code of others. There is no official split
but the two folds of SCR, which are halves for cross-validation; nothing says whose films belong together.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from encoder.files import write_atomically
from encoder.radiograph import parse_age
from train.datasets.labelled import SHARES, Labelled, Row, gather
from train.datasets.masks import Parts
from train.datasets.release import SUFFIXES, hashed_split
from train.datasets.table import SEXES
from vlm.study import StudyError

STRUCTURES = ("heart", "left lung", "right lung", "left clavicle", "right clavicle")
FILM = re.compile(r"JPC[LN]N\d{3}", re.I)
PERSON = re.compile(r"(\S+)\s+(male|female)\b", re.I)  # in all forms the age stands before the sex
SIDE, TOP = 2048, 4095


def labelled(root: str | Path) -> Labelled:
    """Read JSRT. The label is Nodule. Splits (70, 10 and 20 %) come from a hash of the film's name. Raises
    StudyError if there is no image; where there are .IMG files only, it says what to do."""
    root = Path(root)
    images, masks = _files(root)
    if not images:
        if any(FILM.fullmatch(path.stem) for path in root.rglob("*.[iI][mM][gG]")):
            raise StudyError(
                f"{root} holds .IMG files, which are raw numbers; "
                f"python -m train.datasets.labels.jsrt {root} {root}/png makes PNG files of them"
            )
        raise StudyError(
            f"{root}: no JPCLN001.png or JPCNN001.png is there (JSRT, http://db.jsrt.or.jp/eng.php)"
        )
    people = _people(root)
    rows = []
    for film, path in sorted(images.items()):
        age, sex = people.get(film, (None, ""))
        nodule = float(film.startswith("JPCLN"))
        rows.append(
            Row(
                path,
                hashed_split(film, SHARES),
                film,
                {"Nodule": nodule},
                {"age": age},
                sex,
                masks.get(film, {}),
            )
        )
    structures = [name for name in STRUCTURES if any(name in of for of in masks.values())]
    return gather(rows, "jsrt", structures=structures)


def _people(root: Path) -> dict[str, tuple[float | None, str | None]]:
    """film -> (age, sex)."""
    found: dict[str, tuple[float | None, str | None]] = {}
    for path in root.rglob("*"):
        if path.name.lower() in ("clndat_en.txt", "cnndat_en.txt"):
            pieces = re.split(f"({FILM.pattern})\\.IMG", path.read_text("utf-8", "replace"), flags=re.I)
            for film, text in zip(pieces[1::2], pieces[2::2], strict=True):
                if match := PERSON.search(text):
                    found[film.upper()] = (parse_age(match[1]), SEXES[match[2].lower()])
    return found


def _files(root: Path) -> tuple[dict[str, Path], dict[str, dict[str, Parts]]]:
    """Return (film -> image, film -> its masks)."""
    images: dict[str, Path] = {}
    masks: dict[str, dict[str, Parts]] = {}
    for path in sorted(root.rglob("*")):
        if FILM.fullmatch(path.stem) and path.suffix.lower() in (*SUFFIXES, ".gif"):
            film, folder = path.stem.upper(), path.parent.name.lower().replace("_", " ")
            if folder in STRUCTURES:
                masks.setdefault(film, {})[folder] = (path,)
            elif path.suffix.lower() in SUFFIXES:
                images[film] = path
    return images, masks


def convert(source: Path, out: Path) -> int:
    """Write each .IMG below `source` as a PNG in `out`; existing files are left alone. Returns how many were
    written. Raises StudyError for a file of another length."""
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    for path in sorted(p for p in source.rglob("*.[iI][mM][gG]") if FILM.fullmatch(p.stem)):
        target = out / f"{path.stem.upper()}.png"
        if target.exists():
            continue
        stored = np.fromfile(path, ">u2")
        if stored.size != SIDE * SIDE:
            raise StudyError(f"{path} has {path.stat().st_size} bytes, and a film {2 * SIDE * SIDE}")
        pixels_HW = (TOP - stored.clip(0, TOP)).astype(np.uint16).reshape(SIDE, SIDE)
        with write_atomically(target) as part:
            Image.fromarray(pixels_HW).save(part, format="PNG")
        written += 1
    return written


def main(argv: list[str] | None = None) -> int:
    """Run as a command: convert a folder of .IMG films. Returns 0, or 2 if there are none or one is
    damaged."""
    parser = argparse.ArgumentParser(
        prog="python -m train.datasets.labels.jsrt",
        description="JSRT's .IMG files become PNG files of 16 bits.",
    )
    parser.add_argument("source", type=Path, help="folder that holds the .IMG files, at whatever depth")
    parser.add_argument("out", type=Path, help="folder to write to; what is there is left alone")
    args = parser.parse_args(argv)
    try:
        written = convert(args.source, args.out)
    except (StudyError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    there = len(list(args.out.glob("JPC*.png")))
    print(f"wrote {written} images; {there} are in {args.out}")
    if not there:
        print(f"there is no JPCLN001.IMG or the like below {args.source}", file=sys.stderr)
    return 0 if there else 2


if __name__ == "__main__":
    raise SystemExit(main())
