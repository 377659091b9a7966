"""`cxr generate`: studies or files in, a predictions file out, in one process or several; it goes on where it stopped.

What is being written is called FILE.part until it is whole (FILE.part.2 by the third of several processes).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cxr.cli.terminal import UsageError, bar, files_below, printable

SAME = ("revision", "adapter_sha256", "preprocess_sha256", "decoding")  # in all predictions of a file


def generate(args, nearest_by_features) -> int:
    """`nearest_by_features` is that of `eval.baselines`, which this room may not import."""
    studies = list(_studies(args))
    if not studies:
        raise UsageError(f"no study found in {', '.join(map(str, args.inputs))}")
    twice = [name for name, times in Counter(s.study_id for s in studies).items() if times > 1]
    if twice:
        raise UsageError(
            f"{len(twice)} study ids occur more than once, first {printable(twice[0])!r}: each study needs its own"
        )
    targets = _targets(args, studies)
    bank = _training_bank(args, studies) if args.training else []
    decoding = _decoding(args)
    if args.processes > 1 and args.share is None:
        if args.out is None:
            raise UsageError("--processes needs --out, where the parts come together")
        _spread(args)
    return _generate(args, studies, targets, bank, decoding, nearest_by_features)


def _targets(args, studies: list) -> dict[str, Path | None]:
    """What is shown -> where its predictions go."""
    targets = {"true": args.out}
    if args.floors:
        targets |= {name: args.floors / f"{name}.jsonl" for name in ("shuffled", "blank")}
        if args.training:
            targets["nearest"] = args.floors / "nearest.jsonl"
        if len(studies) < 2:
            raise UsageError(
                "--floors needs at least two studies, for one image has no other to be exchanged with"
            )
    elif args.training:
        raise UsageError("--training serves a floor: give --floors, too")
    for path in filter(None, targets.values()):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give a file to write")
        if path.exists() and not args.overwrite:
            raise UsageError(f"{path} exists; choose another file or give --overwrite")
        if args.overwrite and args.share is None:
            for part in path.parent.glob(f"{path.name}.part*"):
                part.unlink()
    return targets


def _decoding(args):
    """What of the decoding was asked for; None for the model's own."""
    from vlm.decoding import Decoding

    asked = {
        "method": args.decoding or ("beam" if args.beams else "greedy"), "beams": args.beams or 1,
        "length_penalty": args.length_penalty, "temperature": args.temperature, "top_p": args.top_p,
    }  # fmt: skip
    if args.static_cache and asked["method"] == "beam":
        raise UsageError("--static-cache is for greedy decoding and sampling, not for --beams")
    try:
        return Decoding(max_new_tokens=args.max_new_tokens or 1, seed=args.seed, **asked)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _generate(args, studies, targets, bank, decoding, nearest_by_features) -> int:
    from dataclasses import replace

    from rich.console import Console
    from rich.markup import escape
    from transformers.utils.logging import disable_progress_bar

    from vlm.findings import Findings
    from vlm.model import DTYPES

    disable_progress_bar()  # of loading weights: it is over before it is read
    console = Console(soft_wrap=True)
    model = Findings.from_pretrained(
        args.model, base=args.base, device=args.device, attention=args.attention, dtype=DTYPES[args.dtype]
    )
    if args.max_new_tokens is None:
        decoding = replace(decoding, max_new_tokens=model.model.meta.max_new_tokens)
    alone = args.share is None
    if alone:
        console.print(f"[dim]{escape(f'{model.model.meta.name}: {model.notice}')}[/dim]")
    refused = 0
    for images, path in targets.items():
        if images == "nearest":
            if not alone:
                continue
            rows = _nearest(model, studies, bank, args.batch_size, nearest_by_features)
            count = _write(path, rows, len(studies), "nearest neighbours")
        else:
            settings = {
                "batch_size": args.batch_size, "images": images, "seed": args.seed, "decoding": decoding,
                "sentences": args.sentences, "static_cache": args.static_cache,
            }  # fmt: skip
            if path is None:
                count = 0
                for prediction in model.generate(studies, **settings):
                    count += prediction.error is not None
                    _show(console, prediction)
            else:
                said = model.about(decoding, images, args.seed)
                count = go_on(path, model, studies, settings, said, args.share)
        if path and alone:
            console.print(f"wrote {path}")
        if images == "true":
            refused = count
    if refused and alone:
        where = "" if args.out is None else f", see the errors in {args.out}"
        print(f"{refused} of {len(studies)} studies were refused{where}", file=sys.stderr)
    return 1 if refused == len(studies) else 0


def go_on(
    path: Path,
    model,
    studies: list,
    settings: dict,
    said: dict[str, Any],
    share: str | None = None,
    write: Callable[[Path, list[dict]], None] | None = None,
) -> int:
    """Make the predictions that no part of `path` has yet; all of them together, `write` gives the file its name (as
    JSON Lines, if it is not given). Returns how many were refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    for part in [_part(path), *sorted(path.parent.glob(f"{path.name}.part.*"))]:
        rows |= _finished(part, said, settings["sentences"])
    mine, part = studies, _part(path)
    if share is not None:
        number, count = map(int, share.split("/"))
        mine, part = studies[number::count], _part(path).with_name(f"{_part(path).name}.{number}")
    left = {s.study_id for s in mine} - rows.keys()
    if rows and share is None and left:
        print(f"{len(rows)} of {len(studies)} studies are in {part} already")
    what = "findings" if settings["images"] == "true" else f"{settings['images']} images"
    # a file name that is not UTF-8 comes out as JSON's \udcXX
    with part.open("a", encoding="utf-8", errors="backslashreplace") as file:
        try:
            made = model.generate(studies, only=left, **settings)
            for prediction in bar(made, what, len(left)) if share is None else made:
                rows[prediction.study_id] = prediction.to_json()
                file.write(json.dumps(rows[prediction.study_id], ensure_ascii=False) + "\n")
                file.flush()
        except KeyboardInterrupt:
            print(f"\nwhat is finished lies in {part}; the same command goes on from there", file=sys.stderr)
            raise
    if share is not None:
        return 0
    ordered = [rows[s.study_id] for s in studies]
    (write or _replace)(path, ordered)
    for part in path.parent.glob(f"{path.name}.part*"):
        part.unlink()
    return sum("error" in row for row in ordered)


def _finished(part: Path, said: dict[str, Any], sentences: str) -> dict[str, dict]:
    """The predictions of a part by study; a line that was cut off is dropped. Raises UsageError for those of another
    model, decoding or preprocessing."""
    rows: dict[str, dict] = {}
    if not part.exists():
        return rows
    whole = 0
    with part.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None:
                break
            whole += len(line)
            other = [k for k in SAME if row.get(k) != said.get(k)]
            if not other and "error" not in row and ("sentences" in row) != (sentences != "none"):
                other = ["sentences"]
            if other:
                raise UsageError(
                    f"{part} was begun with another {', '.join(other)}: finish it so, remove it, or give --overwrite"
                )
            rows[row["study_id"]] = row
    with part.open("rb+") as file:
        file.truncate(whole)
    return rows


def _spread(args) -> None:
    """The same command in several processes, each with its share of the studies: on a GPU of its own, or on the cores
    divided. Raises UsageError where one of them failed."""
    import os

    import torch

    gpus = torch.cuda.device_count() if args.device in (None, "cuda") else 0
    command = [sys.executable, *sys.orig_argv[1:]]
    children = []
    for number in range(args.processes):
        env = dict(os.environ)
        more = ["--share", f"{number}/{args.processes}"]
        if gpus:
            more += ["--device", f"cuda:{number % gpus}"]
        else:
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.processes)))
        children.append(subprocess.Popen([*command, *more], env=env))
    try:
        failed = [child.wait() for child in children]
    except KeyboardInterrupt:  # which they got, too
        for child in children:
            child.wait()
        raise
    if any(status not in (0, 1) for status in failed):
        raise UsageError("a process failed, as it says above; the same command goes on from what is finished")


def _training_bank(args, studies: list) -> list:
    """Training studies with images and what the model writes, none of a patient or a study that it writes for."""
    from vlm.hub import resolve
    from vlm.model import Meta
    from vlm.prompts import fields_of
    from vlm.study import StudyError, absolute, load_studies, normalise_split

    def of_training(split: str | None) -> bool:
        try:
            return split is None or normalise_split(split) == "train"
        except StudyError:  # fold1, say
            return False

    path, fields = args.training, fields_of(Meta.load(resolve(args.model)).prompt.section)
    own, patients = {s.study_id for s in studies}, {s.patient_id for s in studies} - {None}
    bank = [
        absolute(s, path.parent)
        for s in load_studies(path)
        if all(getattr(s, name) for name in fields) and s.images and s.study_id not in own
        and s.patient_id not in patients and of_training(s.split)
    ]  # fmt: skip
    if not bank:
        raise UsageError(
            f"{path}: no training study is left: each has no {' or no '.join(fields)} or no image, or is one that "
            f"{' and '.join(fields)} are generated for or of such a patient, or is of another split than train"
        )
    return bank


def _nearest(model, studies: list, bank: list, batch_size: int, nearest_by_features):
    """Predictions that are the report of the training study whose X-ray the model's encoder finds most similar."""
    from vlm.findings import Prediction
    from vlm.prompts import fields_of

    fields = fields_of(model.model.meta.prompt.section)
    vectors = model.features(bar(bank, "training images"), batch_size=batch_size)
    known = [(vector, s) for s, vector in zip(bank, vectors, strict=True) if vector is not None]
    if not known:
        raise UsageError("no image of the training studies can be used")
    bank_MD, neighbours = np.stack([vector for vector, _ in known]), [study for _, study in known]

    def predictions():
        for study, vector in zip(studies, model.features(studies, batch_size=batch_size), strict=True):
            made = Prediction(study.study_id, patient_id=study.patient_id, model="nearest neighbour by image")
            if vector is None:
                made.error = {"code": "no_features", "message": f"{study.study_id}: its image cannot be used"}
            else:
                nearest = nearest_by_features(vector[None], bank_MD, neighbours)[0]
                for name in fields:
                    setattr(made, name, getattr(nearest, name))
            yield made

    return predictions()


def _studies(args):
    """Studies of all inputs with absolute image paths, in the order given. Files are called by their name in their
    folder, or, where two inputs have the same, by their path as given."""
    from vlm.study import Image, Study, absolute, load_studies, normalise_split

    split = normalise_split(args.split) if args.split else None
    left = args.limit if args.limit is not None else sys.maxsize
    files = {
        given: sorted(files_below(given)) if given.is_dir() else [given]
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


def _write(path: Path, predictions: Iterable, total: int, what: str) -> int:
    """All of them at once, first under another name. Returns how many were refused."""
    rows = [prediction.to_json() for prediction in bar(predictions, what, total)]
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, rows)
    return sum("error" in row for row in rows)


def _replace(path: Path, rows: list[dict]) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


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
    console.print(f"  {escape(prediction.text)}")
    for row in prediction.sentences or ():
        sure = "".join(f"  {k.replace('_', ' ')} {v:+.2f}" for k, v in row.items() if k != "text")
        console.print(f"    [dim]{sure.strip()}  {escape(row['text'])}[/dim]")
    for warning in prediction.warnings:
        console.print(f"  [yellow]warning ({warning['code']})[/yellow] {escape(warning['message'])}")
