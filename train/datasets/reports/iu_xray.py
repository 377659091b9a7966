"""The Indiana University chest X-rays of Open-i ("IU X-Ray") -> studies, in any of the three forms they come in.

- `r2gen`: `annotation.json` with `images/CXR2384_IM-0942/0.png`, as prepared for R2Gen and used by its successors
- `xml`: Open-i's own reports, `ecgen-radiology/1.xml` of NLMCXR_reports.tgz, with the images of NLMCXR_png.tgz or
  NLMCXR_dcm.tgz anywhere below the folder
- `csv`: Kaggle's `indiana_reports.csv` and `indiana_projections.csv`, with `images/images_normalized/`

Only Kaggle's projections tell frontal images from lateral ones; where the file lies beside the XML reports, it is used
for them too. Nothing tells which reports are of one patient, so there are neither patient ids nor priors. `XXXX`, which
stands for removed words, is left out of all texts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from encoder.radiograph import parse_view
from train.datasets.release import read_table
from train.datasets.table import known
from vlm.prompts import clean
from vlm.study import Image, Study, StudyError, normalise_split

SOURCES = ("r2gen", "xml", "csv")
ANNOTATION, REPORTS, PROJECTIONS = "annotation.json", "indiana_reports.csv", "indiana_projections.csv"
XML_FOLDERS = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology", "reports/ecgen-radiology", "")
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")  # the earlier one is taken where an image exists as several
REMOVED = re.compile(r"-?\bX{3,}\b-?")  # "XXXX-year-old": the hyphen goes with the word
LEFT_OVER = re.compile(r"[,;:]+(?=[.!?])")  # of "opacity, XXXX."
IMAGE_ID = re.compile(r"(?:CXR)?(\d+)_(?:\1_)?(IM-.+)", re.I)
ORDER = {"PA": 0, "AP": 0, "frontal": 0, "unknown": 1}  # lateral last; that of `vlm.prompts.shown_image`


def studies(root: str | Path, source: str | None = None, frontal_only: bool = True) -> list[Study]:
    """Read the data set below `root`, in its own order, or by report number for `xml`. Paths are relative to `root`.

    `source` is one of SOURCES; by default the first whose files are there. R2Gen's ids and splits are kept, the other
    two have ids like CXR1 and no split. R2Gen's `report` is a single text, which becomes the findings, marked as
    `"text": "r2gen"`. MeSH terms become the diagnoses, without their qualifiers ("Cardiomegaly/mild"), which `mesh`
    keeps. Images are in the order frontal, unknown, lateral; none is opened, and none need exist. `frontal_only` leaves
    out studies that have no image, or lateral ones only; images of unknown view count as frontal here.

    Raises StudyError where a file, a column or a key is missing or cannot be read, and for XML with a DOCTYPE.
    """
    root = Path(root)
    if not root.exists():
        raise StudyError(f"{root} does not exist")
    source = source or _source(root)
    if source not in SOURCES:
        raise StudyError(f"source {source!r} is unknown; there are {', '.join(SOURCES)}")
    read = {"r2gen": _from_r2gen, "xml": _from_xml, "csv": _from_csv}[source]
    found = list(read(root))
    for study in found:
        study.images.sort(key=lambda image: ORDER.get(image.view, 2))
    if frontal_only:
        found = [s for s in found if any(image.view != "lateral" for image in s.images)]
    return found


def _source(root: Path) -> str:
    if (root / ANNOTATION).is_file():
        return "r2gen"
    if _xml_files(root):
        return "xml"
    if (root / REPORTS).is_file():
        return "csv"
    raise StudyError(
        f"{root}: none of {ANNOTATION} (R2Gen), ecgen-radiology/*.xml (Open-i's NLMCXR_reports.tgz) and {REPORTS} "
        "(Kaggle, raddar/chest-xrays-indiana-university) is there"
    )


def _text(value: Any) -> str | None:
    """Without the marks of removed words; None if no letter is left."""
    text = clean(REMOVED.sub(" ", str(value))) if known(value) is not None else ""
    text = LEFT_OVER.sub("", text)
    return text if known(text) is not None and any(map(str.isalnum, text)) else None


def _diagnoses(terms: Iterable[str]) -> list[str] | None:
    return list(dict.fromkeys(term.partition("/")[0].strip() for term in terms)) or None


# R2Gen


def _from_r2gen(root: Path) -> Iterator[Study]:
    path = root / ANNOTATION
    try:
        splits = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise StudyError(f"{path} is missing; it is part of R2Gen's iu_xray.zip") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{path} cannot be read ({type(error).__name__}); is it complete?") from None
    if not isinstance(splits, dict):
        raise StudyError(f"{path} must be an object with the keys train, val and test")
    folder = "" if not (root / "images").is_dir() and any(root.glob("CXR*_IM-*")) else "images"
    for name, entries in splits.items():
        try:
            split = normalise_split(name)
        except StudyError as error:
            raise StudyError(f"{path}: {error}") from None
        if not isinstance(entries, list):
            raise StudyError(f"{path}: {name!r} must be a list of studies")
        for number, entry in enumerate(entries):
            yield _r2gen_study(entry, f"{path}, {name}[{number}]", split, folder)


def _r2gen_study(entry: Any, where: str, split: str, folder: str) -> Study:
    if not isinstance(entry, dict):
        raise StudyError(f"{where} is not an object")
    if missing := [key for key in ("id", "report", "image_path") if key not in entry]:
        raise StudyError(f"{where}: the key(s) {', '.join(missing)} are missing")
    if "subject_id" in entry:  # the same file name and form, so it would pass unnoticed
        raise StudyError(f"{where} has a subject_id: this is R2Gen's copy of MIMIC-CXR, not IU X-Ray")
    paths = [entry["image_path"]] if isinstance(entry["image_path"], str) else entry["image_path"]
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise StudyError(f"{where}: 'image_path' must be a list of paths")
    return Study(
        str(entry["id"]),
        split=split,
        images=[Image(str(PurePosixPath(folder, path))) for path in paths],
        findings=_text(entry["report"]),
        extra={"text": "r2gen"},
    )


# Open-i's XML


def _xml_files(root: Path) -> list[Path]:
    """Return the reports, by number."""
    for folder in XML_FOLDERS:
        if files := [path for path in (root / folder).glob("*.xml") if path.stem.isdigit()]:
            return sorted(files, key=lambda path: int(path.stem))
    return []


def _from_xml(root: Path) -> Iterator[Study]:
    files = _xml_files(root)
    if not files:
        raise StudyError(
            f"{root}: ecgen-radiology/*.xml is missing; it is part of Open-i's NLMCXR_reports.tgz"
        )
    views = {}
    if (root / PROJECTIONS).is_file():
        views = {_key(name): view for _, name, view in _projections(root)}
    images = _scan(root)
    for path in files:
        tree = _parse(path)
        sections: dict[str, list[str]] = {}
        for element in tree.iter("AbstractText"):
            text = " ".join("".join(element.itertext()).split())
            sections.setdefault((element.get("Label") or "").strip().upper(), []).append(text)
        texts = {name: _text(" ".join(parts)) for name, parts in sections.items()}
        parents = [element for element in tree.iter("parentImage") if element.get("id")]
        captions = list(dict.fromkeys(filter(None, (_text(p.findtext("caption")) for p in parents))))
        # A caption is about the examination; only that of a single image can be about the image.
        caption_view = parse_view(captions[0]) if len(parents) == 1 and captions else "unknown"
        mesh = _terms(tree, "major")
        extra = {"mesh": mesh, "mesh_automatic": _terms(tree, "automatic")}
        uid = tree.find("uId")
        yield Study(
            (uid is not None and uid.get("id")) or f"CXR{path.stem}",
            images=[
                Image(
                    images.get(_key(parent.get("id", "")), f"NLMCXR_png/{parent.get('id')}.png"),
                    views.get(_key(parent.get("id", "")), caption_view),
                )
                for parent in parents
            ],
            indication=texts.get("INDICATION"),
            technique="; ".join(captions) or None,
            comparison=texts.get("COMPARISON"),
            findings=texts.get("FINDINGS"),
            impression=texts.get("IMPRESSION"),
            diagnoses=_diagnoses(mesh),
            extra={key: terms for key, terms in extra.items() if terms},
        )


def _parse(path: Path) -> ElementTree.Element:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read as UTF-8 text ({type(error).__name__})") from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow to any size; the reports have none
        raise StudyError(f"{path} has a DOCTYPE or ENTITY declaration, which no report of Open-i has")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        at = " line {}, column {}".format(*getattr(error, "position", ("?", "?")))
        raise StudyError(f"{path} is not well-formed XML:{at}") from None


def _terms(tree: ElementTree.Element, kind: str) -> list[str]:
    texts = (
        " ".join((element.text or "").split()) for mesh in tree.iter("MeSH") for element in mesh.iter(kind)
    )
    return [text for text in texts if text]


# Kaggle's tables


def _from_csv(root: Path) -> Iterator[Study]:
    path = root / REPORTS
    if not path.is_file():
        raise StudyError(f"{path} is missing; it is part of Kaggle's raddar/chest-xrays-indiana-university")
    images = _scan(root)
    of_study: dict[str, list[Image]] = {}
    for uid, name, view in _projections(root):
        place = images.get(_key(name), f"images/images_normalized/{name}")
        of_study.setdefault(uid, []).append(Image(place, view))
    columns = ("uid", "findings", "impression")
    optional = ("indication", "comparison", "image", "MeSH", "Problems")
    for uid, findings, impression, indication, comparison, title, mesh, problems in read_table(
        path, columns, optional
    ):
        terms, heads = _split(mesh), _split(problems)
        yield Study(
            f"CXR{uid}",
            images=of_study.get(uid, []),
            indication=_text(indication),
            technique=_text(title),
            comparison=_text(comparison),
            findings=_text(findings),
            impression=_text(impression),
            diagnoses=_diagnoses(heads or terms),
            extra={"mesh": terms} if terms else {},
        )


def _split(cell: str) -> list[str]:
    return [term.strip() for term in cell.split(";") if term.strip()] if known(cell) is not None else []


def _projections(root: Path) -> Iterator[tuple[str, str, str]]:
    """Return study number, file name, view of each image."""
    path = root / PROJECTIONS
    if not path.is_file():
        raise StudyError(
            f"{path} is missing; it lies beside {REPORTS} in Kaggle's data set and names the images"
        )
    for uid, name, projection in read_table(path, ("uid", "filename", "projection")):
        yield uid, name, parse_view(projection)


# Images


def _key(name: str) -> tuple[str, str]:
    """What the names of an image have in common: `CXR1_1_IM-0001-3001`, `1_IM-0001-3001.dcm.png`."""
    while (suffix := PurePosixPath(name).suffix.lower()) in SUFFIXES:
        name = name[: -len(suffix)]
    found = IMAGE_ID.fullmatch(name)
    return (found[1], found[2].upper()) if found else ("", name)


def _scan(root: Path) -> dict[tuple[str, str], str]:
    """Where below `root` the images lie, relative to it."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root).as_posix()
        for name in sorted(names):
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in SUFFIXES:
                candidate = (SUFFIXES.index(suffix), str(PurePosixPath(relative, name)))
                key = _key(name)
                if key not in found or candidate[0] < found[key][0]:
                    found[key] = candidate
    return {key: path for key, (_, path) in found.items()}
