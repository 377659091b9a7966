"""`cxr verify`: verdicts on every sentence of reports, by their films. `cxr calibrate`: how sure the doubts are."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr.cli.terminal import (
    BASE,
    DEVICE,
    MODEL,
    UsageError,
    check_target,
    echo,
    json_option,
    positive,
    print_json,
    seed,
    status_of,
    tell,
)

if TYPE_CHECKING:
    from vlm.findings import Findings
    from vlm.study import Study
    from vlm.verdicts import Calibration
    from vlm.verify import Verification

STUDIES = "Studies file (.jsonl) with the films."
CALIBRATION = "Calibration of the model (default: verify.json beside its weights)."


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr verify` to `parser`."""
    add = parser.add_argument
    add(
        "reports",
        type=Path,
        metavar="REPORTS",
        help="Reports by study_id: predictions, a CSV file or studies.",
    )
    add("studies", type=Path, metavar="STUDIES", help=STUDIES)
    add("--model", default="mini", help=MODEL)
    add("--base", help=BASE)
    add("--calibration", type=Path, metavar="FILE", help=CALIBRATION)
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="Write verdicts (JSON Lines) to this file; else they are shown.",
    )
    add("--overwrite", action="store_true", help="Replace the file of --out.")
    json_option(parser, "verdicts, a line of JSON each as --out writes them,")
    add(
        "--html", type=Path, metavar="FILE", help="Write a page, too: each film beside its report, with maps."
    )
    add("--maps", action="store_true", help="Add where the film contradicts a sentence; --html does.")
    add("--no-omissions", action="store_true", help="Do not look for what reports leave out.")
    add("--split", help="Only this split of the studies file.")
    add("--limit", type=positive, metavar="N", help="Only the first N studies that have a report.")
    add("--batch-size", type=positive, metavar="N", default=16, help="Studies whose films are read together.")
    add("--device", help=DEVICE)


def calibrate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cxr calibrate` to `parser`."""
    add = parser.add_argument
    add(
        "studies",
        type=Path,
        metavar="STUDIES",
        help="Studies file (.jsonl) of films and findings nobody doubts.",
    )
    add("--model", default="mini", help=MODEL)
    add("--base", help=BASE)
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="File to write (default: verify.json in the model's directory).",
    )
    add("--overwrite", action="store_true", help="Replace the file of --out.")
    add(
        "--split",
        default="validate",
        help="Split of the studies file; none of it may have trained the model.",
    )
    add("--limit", type=positive, metavar="N", help="Only the first N studies.")
    add("--seed", type=seed, default=0, metavar="N", help="Seed of the planted errors.")
    add("--device", help=DEVICE)


def run(args: argparse.Namespace) -> int:
    """Run `cxr verify`."""
    from encoder.files import sole_writer
    from eval.scores.readers import ScoreError, read_side
    from vlm.hub import check_here

    if args.json and args.out:
        raise UsageError("--json prints what --out writes; give one of them")
    check_here(args.model, args.base)
    studies = _studies(args.studies, args.split)
    try:
        side = read_side(args.reports, "prediction")
    except ScoreError as error:
        raise UsageError(str(error)) from None
    reports: dict[str, str] = {}
    for row in side.records:
        text = row.get("findings")
        reports.setdefault(str(row["study_id"]).strip(), text if isinstance(text, str) else "")
    if not any(reports.values()):
        raise UsageError(
            f"{args.reports}: no report has 'findings'; the first one's fields are {', '.join(side.records[0])}"
        )
    pairs = [(study, reports[study.study_id]) for study in studies if study.study_id in reports][: args.limit]
    if not pairs:
        raise UsageError(
            f"no report of {args.reports} is of a study of {args.studies}: the study ids do not meet "
            f"({next(iter(reports))!r}, ... and {studies[0].study_id!r}, ...)"
        )
    known = {study.study_id for study in studies}
    if lost := [name for name in reports if name not in known]:
        tell(f"{len(lost)} reports are of no study of {args.studies} and are left out, first {lost[0]!r}")
    reads = [args.reports, args.studies, *filter(None, [args.calibration])]
    if args.html:
        from eval.page.shell import is_page

        check_target(args.html, "a page of ours", is_page, reads=[*reads, *filter(None, [args.out])])
        args.maps = True
    if args.out is None:
        rows = _show(args, pairs)
    else:
        check_target(args.out, "verdicts", _is_verdicts, reads=reads, overwrite=args.overwrite)
        with sole_writer(args.out):
            rows = _write(args, pairs)
    if args.html:
        _page(args, rows)
    return status_of(sum("error" in row for row in rows), len(rows))


def calibrate(args: argparse.Namespace) -> int:
    """Run `cxr calibrate`."""
    from eval.scores.result import is_kind
    from vlm.hub import check_here, resolve
    from vlm.verdicts import KIND

    check_here(args.model, args.base)
    if args.out is None and not Path(args.model).is_dir():
        raise UsageError(
            f"{args.model} is no directory to write verify.json to; give --out FILE, for --calibration FILE"
        )
    target = args.out or resolve(args.model) / "verify.json"
    check_target(
        target,
        "a calibration",
        lambda path: is_kind(path, KIND),
        reads=[args.studies],
        overwrite=args.overwrite,
    )
    studies = _studies(args.studies, args.split)[: args.limit]
    findings = _findings(args)
    from train.oversight import calibrated

    made = calibrated(findings, studies, seed=args.seed)
    made.save(target)
    for kind, row in made.about["kinds"].items():
        tell(
            f"{kind:9} {row['planted']} planted errors, AUROC {row['auroc']:.3f}, {row['caught']:.0%} caught where 5 % "
            "of clean reports are flagged"
        )
    if made.about["omission"]["planted"]:
        row = made.about["omission"]
        tell(
            f"omission  {row['planted']} planted errors, AUROC {row['auroc']:.3f}, {row['caught']:.0%} caught"
        )
    tell(f"wrote {target}")
    return 0


def _studies(path: Path, split: str | None) -> list[Study]:
    from vlm.study import absolute, load_studies, normalise_split

    wanted = normalise_split(split) if split else None
    found = [absolute(s, path.parent) for s in load_studies(path) if wanted in (None, s.split)]
    if not found:
        raise UsageError(f"{path} has no study" + (f" of split {wanted!r}" if wanted else ""))
    return found


def _findings(args: argparse.Namespace) -> Findings:
    from encoder.startup import importing

    with importing():
        from transformers.utils.logging import disable_progress_bar

        from vlm.findings import Findings

    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = Findings.from_pretrained(args.model, base=args.base, device=args.device, warn=False)
    tell(f"{model.model.meta.name}: {model.notice}")
    return model


def _made(
    args: argparse.Namespace,
    findings: Findings,
    calibration: Calibration | None,
    pairs: list[tuple[Study, str]],
) -> Iterator[Verification]:
    verifier = findings.verifier(calibration)
    return verifier.verify(pairs, batch_size=args.batch_size, omissions=not args.no_omissions, maps=args.maps)


def _calibration(args: argparse.Namespace) -> Calibration | None:
    from vlm.verdicts import Calibration

    return Calibration.load(args.calibration) if args.calibration else None


def _show(args: argparse.Namespace, pairs: list[tuple[Study, str]]) -> list[dict[str, Any]]:
    rows = []
    calibration = _calibration(args)
    for found in _made(args, _findings(args), calibration, pairs):
        rows.append(found.to_json())
        if args.json:
            print_json(found.to_json(), indent=None)
        elif found.error is not None:
            tell(f"{found.study_id} ({found.error['code']}): {found.error['message']}")
        else:
            for line in lines_of(found):
                echo(line)
    return rows


MARKS = {"supported": "+", "contradicted": "!", "undecidable": "?"}


def lines_of(found: Verification) -> Iterator[str]:
    """Yield a verification as lines for the terminal: the sentences with their marks, then what is left out."""
    yield f"{found.study_id}"
    for s in found.sentences:
        said = f"  {MARKS[s.verdict]} {s.text}"
        if s.better is not None:
            said += f"  [{s.kind}, {s.probability:.2f}: the film rather bears out: {s.better}]"
        yield said
    for omission in found.omissions:
        yield f"  - left out ({omission.condition}, {omission.probability:.2f}): {omission.text}"


def _write(args: argparse.Namespace, pairs: list[tuple[Study, str]]) -> list[dict[str, Any]]:
    """Write the verdicts; what an interrupted run has made of the very same studies, reports and model is kept."""
    from encoder.progress import bar
    from vlm.predictions import part_of, study_sha256, write_rows

    calibration = _calibration(args)
    findings = _findings(args)
    used = calibration or findings.calibration
    about = f"{used}{args.no_omissions}{args.maps}"
    names = {
        study.study_id: hashlib.sha256("\0".join((about, study_sha256(study), report)).encode()).hexdigest()
        for study, report in pairs
    }
    part = part_of(args.out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        row["study_id"]: row for row in _rows(part) if names.get(row["study_id"]) == row.get("input_sha256")
    }
    if rows:
        tell(f"{len(rows)} of {len(pairs)} studies are in {part} already")
    left = [pair for pair in pairs if pair[0].study_id not in rows]
    with part.open("a", encoding="utf-8") as file:
        made = _made(args, findings, calibration, left)
        for found in bar(made, "reports", len(left), unit="studies"):
            row = {**found.to_json(), "input_sha256": names[found.study_id]}
            rows[found.study_id] = row
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    ordered = [rows[study.study_id] for study, _ in pairs]
    write_rows(args.out, ordered)
    part.unlink()
    _summary(ordered)
    tell(f"wrote {args.out}")
    return ordered


def _page(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the page; a film that cannot be read is left out of it."""
    from cxr.cli.score import films_of
    from encoder.transforms import Preprocessing
    from eval.page.oversight import write_verdicts
    from eval.page.shell import about
    from vlm.hub import resolve

    known = films_of([row["study_id"] for row in rows], args.studies)
    seen = Preprocessing.from_pretrained(resolve(args.model))
    for told in known.values():
        for film in told["films"]:
            height, width = film["image"].shape[:2]
            tall, wide, top, left = seen.place(height, width)
            film["box"] = (left / wide, top / tall, seen.size / wide, seen.size / tall)
    models = ", ".join(dict.fromkeys(row["model"] for row in rows if row.get("model")))
    facts = about(model=models, files=[args.reports, args.studies], command=args.command_line)
    write_verdicts(args.html, rows, known, facts=facts)
    tell(f"wrote {args.html}")


def _summary(rows: list[dict[str, Any]]) -> None:
    verdicts = Counter(s["verdict"] for row in rows for s in row.get("sentences", ()))
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    left_out = sum(len(row.get("omissions", ())) for row in rows)
    tell(f"{len(rows)} reports; sentences: {said or 'none'}; findings left out: {left_out}")
    if refused := Counter(row["error"]["code"] for row in rows if "error" in row):
        tell("refused: " + ", ".join(f"{count} {code}" for code, count in refused.most_common()))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a file of verdicts; nothing where it is not there."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("kind") == "verification":
            yield row


def _is_verdicts(path: Path) -> bool:
    return next(_rows(path), None) is not None
