"""What the sub-commands of `cxr` do that belong to this room: generate, export, studies."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Beside radiographs, folders hold these; whatever else lies there is tried, for DICOM files may have any name.
NOT_IMAGES = {".md", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".html", ".pdf", ".py"}


class UsageError(Exception):
    """Something about the command line; printed without a traceback, exit status 2."""


def generate(args, nearest_by_features) -> int:
    """`cxr generate`. `nearest_by_features` is that of `eval.baselines`, which this room may not import."""
    studies = list(_studies(args))
    if not studies:
        raise UsageError(f"no study found in {', '.join(map(str, args.inputs))}")
    targets = {"true": args.out}
    if args.floors:
        targets |= {name: args.floors / f"{name}.jsonl" for name in ("shuffled", "blank")}
        bank = _training_bank(args.training, studies) if args.training else []
    elif args.training:
        raise UsageError("--training serves a floor: give --floors, too")
    if args.training:
        targets["nearest"] = args.floors / "nearest.jsonl"
    for path in filter(None, targets.values()):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give a file to write")
        if path.exists() and not args.overwrite:
            raise UsageError(f"{path} exists; choose another file or give --overwrite")
        if _part(path).exists() and not args.overwrite:
            raise UsageError(f"{_part(path)} is of an interrupted run; remove it or give --overwrite")
    if args.floors and len(studies) < 2:
        raise UsageError(
            "--floors needs at least two studies, for one image has no other to be exchanged with"
        )

    from rich.console import Console
    from rich.markup import escape
    from transformers.utils.logging import disable_progress_bar

    from vlm.generate import Findings

    disable_progress_bar()  # of loading weights: it is over before it is read
    console = Console(soft_wrap=True)
    model = Findings.from_pretrained(args.model, base=args.base, device=args.device, attention=args.attention)
    console.print(f"[dim]{escape(f'{model.model.meta.name}: {model.notice}')}[/dim]")
    refused = 0
    for images, path in targets.items():
        if images == "nearest":
            predictions = _nearest(model, studies, bank, args.batch_size, nearest_by_features)
        else:
            predictions = model.generate(
                studies,
                batch_size=args.batch_size,
                max_new_tokens=args.max_new_tokens,
                images=images,
                seed=args.seed,
            )
        count = _write(path, _progress(predictions, len(studies), images, show=path is not None or images != "true"),
                       None if path else console)  # fmt: skip
        if path:
            console.print(f"wrote {path}")
        if images == "true":
            refused = count
    if refused:
        where = "" if args.out is None else f", see the errors in {args.out}"
        print(f"{refused} of {len(studies)} studies were refused{where}", file=sys.stderr)
    return 1 if refused == len(studies) else 0


def _training_bank(path: Path, studies: list) -> list:
    """Training studies with findings and images, none of a patient or a study that findings are generated for."""
    from vlm.study import StudyError, absolute, load_studies, normalise_split

    def of_training(split: str | None) -> bool:
        try:
            return split is None or normalise_split(split) == "train"
        except StudyError:  # fold1, say
            return False

    own, patients = {s.study_id for s in studies}, {s.patient_id for s in studies} - {None}
    bank = [
        absolute(s, path.parent)
        for s in load_studies(path)
        if s.findings and s.images and s.study_id not in own and s.patient_id not in patients
        and of_training(s.split)
    ]  # fmt: skip
    if not bank:
        raise UsageError(
            f"{path}: no training study is left: each has no findings or no image, or is one that findings are "
            "generated for or of such a patient, or is of another split than train"
        )
    return bank


def _nearest(model, studies: list, bank: list, batch_size: int, nearest_by_features):
    """Predictions that are the report of the training study whose X-ray the model's encoder finds most similar."""
    from vlm.generate import Prediction

    vectors = model.features(_bar(bank, "training images"), batch_size=batch_size)
    known = [(vector, s.findings) for s, vector in zip(bank, vectors, strict=True) if vector is not None]
    if not known:
        raise UsageError("no image of the training studies can be used")
    bank_MD, reports = np.stack([vector for vector, _ in known]), [text for _, text in known]

    def predictions():
        for study, vector in zip(studies, model.features(studies, batch_size=batch_size), strict=True):
            made = Prediction(study.study_id, patient_id=study.patient_id, model="nearest neighbour by image")
            if vector is None:
                made.error = {"code": "no_features", "message": f"{study.study_id}: its image cannot be used"}
            else:
                made.findings = nearest_by_features(vector[None], bank_MD, reports)[0]
            yield made

    return predictions()


def _studies(args):
    """Studies of all inputs with absolute image paths, in the order given. Files are called by their name in their
    folder, or, where two inputs have the same, by their path as given."""
    from collections import Counter

    from vlm.study import Image, Study, absolute, load_studies, normalise_split

    split = normalise_split(args.split) if args.split else None
    left = args.limit if args.limit is not None else sys.maxsize
    files = {
        given: sorted(_files(given)) if given.is_dir() else [given]
        for given in args.inputs
        if given.suffix != ".jsonl"
    }
    times = Counter(_name(given, f) for given, several in files.items() for f in several)
    for given in args.inputs:
        if not given.exists():
            raise UsageError(f"{given} does not exist")
        if given.suffix == ".jsonl":
            found = load_studies(given)
            if split:
                found = [s for s in found if s.split == split]
            found = [absolute(s, given.parent) for s in found]
        else:
            found = [
                Study(
                    study_id=_name(given, f) if times[_name(given, f)] == 1 else str(f),
                    images=[Image(str(f.absolute()))],
                    indication=args.indication,
                )
                for f in files[given]
            ]
        yield from found[:left]
        left -= len(found[:left])


def _name(given: Path, file: Path) -> str:
    return str(file.relative_to(given)) if given.is_dir() else file.name


def _files(folder: Path):
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix.lower() not in NOT_IMAGES:
            yield path


def _progress(predictions, total: int, images: str, show: bool):
    if not show:
        return predictions
    return _bar(predictions, "findings" if images == "true" else f"{images} images", total)


def _bar(items, what: str, total: int | None = None):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=len(items) if total is None else total)
        for item in items:
            bar.advance(task)
            yield item


def _write(path: Path | None, predictions, console) -> int:
    """To a file (first under another name, so that an interrupted run leaves nothing half-made) or to the screen.
    Returns how many studies were refused."""
    refused, file, part = 0, None, None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        # a file name that is not UTF-8 comes out as JSON's \udcXX
        file = part.open("w", encoding="utf-8", errors="backslashreplace")
    try:
        for prediction in predictions:
            refused += prediction.error is not None
            if file:
                file.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
            else:
                _show(console, prediction)
    except KeyboardInterrupt:
        if part:
            print(f"\nwhat is finished lies in {part}", file=sys.stderr)
        raise
    finally:
        if file:
            file.close()
    if part:
        part.replace(path)
    return refused


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def printable(text: str) -> str:
    """Without what no terminal can show: the bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _show(console, prediction) -> None:
    from rich.markup import escape as escape_markup

    def escape(text: str) -> str:
        return escape_markup(printable(text))

    console.print(f"\n[bold]{escape(prediction.study_id)}[/bold]")
    if prediction.error:
        console.print(
            f"  [red]refused ({prediction.error['code']})[/red] {escape(prediction.error['message'])}"
        )
        return
    console.print(f"  {escape(prediction.findings)}")
    for warning in prediction.warnings:
        console.print(f"  [yellow]warning ({warning['code']})[/yellow] {escape(warning['message'])}")


def images_of(study_ids: Iterable[str], listing: Path) -> dict[str, np.ndarray]:
    """Pixels of the first image of each study that can be read; a page without a picture is a page still."""
    from encoder.radiograph import InputError, read
    from vlm.study import load_studies

    wanted = set(study_ids)
    images = {}
    for study in load_studies(listing):
        if study.study_id in wanted and study.images:
            try:
                images[study.study_id] = read(study.image_paths(listing.parent)[0]).pixels
            except (InputError, OSError):
                continue
    return images


def export(args) -> int:
    from transformers.utils.logging import disable_progress_bar

    from vlm import model as models
    from vlm.generate import OUTLIERS

    disable_progress_bar()
    model = models.merge(models.load(args.model, base=args.base))
    models.save(model, args.out, models.DTYPES[args.dtype])
    known = models.resolve(args.model) / OUTLIERS  # what the model takes for an ordinary chest
    if known.is_file():
        shutil.copy(known, args.out)
    print(f"wrote {args.out}: AutoModelForImageTextToText and AutoProcessor of transformers open it")
    return 0


def studies(args) -> int:
    from vlm.study import counts, load_studies, validate

    found = load_studies(args.studies)
    for name, value in counts(found).items():
        print(f"{name:22} {value}")
    problems = validate(found, args.studies.parent)
    for problem in problems:
        print(f"{problem.code:22} {problem.study_id}: {problem.message}")
    print("no problems" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def convert(args) -> int:
    """`cxr convert`."""
    from dataclasses import replace

    from encoder.convert import difference, load_backbone, save_backbone

    if args.out.exists() and not args.overwrite:
        raise UsageError(f"{args.out} exists; choose another name or give --overwrite")
    loaded = load_backbone(args.weights, size=args.size, heads=args.heads)
    vit = loaded.backbone
    print(
        f"read {loaded.tensors} tensors ({loaded.dialect}): width {vit.embed_dim}, {vit.depth} layers, "
        f"{vit.heads} heads, patches of {vit.patch} px, {vit.size} px"
    )
    for what, names in (("left out (heads)", loaded.left_out), ("not in the file, zero", loaded.added)):
        if names:
            print(f"{what}: {len(names)}: {', '.join(names[:4])}{', ...' if names[4:] else ''}")
    preprocessing = loaded.preprocessing
    if preprocessing is not None:
        preprocessing = replace(preprocessing, size=vit.size)
    save_backbone(vit, args.out, args.to, preprocessing)
    off = difference(vit, load_backbone(args.out, heads=vit.heads).backbone)
    print(f"wrote {args.out} ({args.to}); read again, its tokens differ by {off:.1e} at most")
    return 0 if off < 1e-5 else 1


def embed(args) -> int:
    """`cxr embed`."""
    import torch

    from encoder.embed import done, embed

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    paths = []
    for given in args.inputs:
        if not given.exists():
            raise UsageError(f"{given} does not exist")
        paths += (
            [str(f.absolute()) for f in sorted(_files(given))] if given.is_dir() else [str(given.absolute())]
        )
    if not paths:
        raise UsageError(f"no image found in {', '.join(map(str, args.inputs))}")
    backbone, preprocessing, about = _encoder(args.model, args.size)
    there = len(set(paths) & done(args.out).keys())
    if there:
        print(f"{there} of {len(paths)} images are in {args.out} already")
    made = embed(
        paths, backbone.to(device), preprocessing, args.out, about=about, patches=args.patches, dtype=args.dtype,
        batch_size=args.batch_size,
    )  # fmt: skip
    refused = 0
    for row in _bar(made, "images", len(paths) - there):
        if "error" in row:
            refused += 1
            print(f"{row['path']}: {row['error']['code']}", file=sys.stderr)
    print(
        f"wrote {args.out}: {len(paths) - there - refused} images"
        + (f", {refused} refused" if refused else "")
    )
    return 1 if refused == len(paths) else 0


def _encoder(name: str, size: int | None):
    """-> (backbone, preprocessing, what to say of it): of a findings model, an encoder directory or a weights file."""
    from dataclasses import replace

    from encoder.convert import load_backbone
    from encoder.state_dicts import from_dinov2
    from encoder.transforms import Preprocessing
    from vlm import model as models

    path = Path(name)
    if not path.is_file():
        path = models.resolve(name)
        if (path / models.META).is_file():
            model = models.load(path)
            about = {"encoder": model.meta.name, "encoder_sha256": model.meta.encoder_sha256}
            return from_dinov2(models.vision_tower(model.llava)), model.preprocessing, about
    loaded = load_backbone(path, size=size)
    preprocessing = loaded.preprocessing or Preprocessing()
    sha256 = models.weights_sha256(path) if path.is_dir() else models.sha256_of([path])
    about = {"encoder": path.name, "encoder_sha256": sha256}
    return loaded.backbone, replace(preprocessing, size=loaded.backbone.size), about
