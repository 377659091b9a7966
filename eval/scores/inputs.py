"""Predictions and references brought together, with every oddity counted, listed and treated by a stated policy."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
Source = str | Path | Iterable[Record]

_BOTH = "--section both scores findings and impression, joined by an empty line"
POLICIES = {
    "reference without findings": "left out of every score",
    "reference without impression": "left out of every score",
    "reference without findings and impression": "left out of every score",
    "reference with findings alone": f"left out of every score ({_BOTH}, of references that have both)",
    "reference with impression alone": f"left out of every score ({_BOTH}, of references that have both)",
    "duplicate reference": "the first one counts",
    "duplicate prediction": "the first one counts",
    "prediction without reference": "left out of every score",
    "no prediction": "scored as an empty report",
    "failed prediction": "scored as an empty report",
    "empty prediction": "scored as an empty report",
    "placeholder prediction": "scored as an empty report (the text is a literal None, NaN or null)",
    "prediction that is no text": "scored as an empty report (a list or a number, say)",
    "prediction with findings alone": f"scored as it is ({_BOTH}): it misses what the impression says",
    "prediction with impression alone": f"scored as it is ({_BOTH}): it misses what the findings say",
}
"""Every kind of problem and what is done about it. An empty report has no words and no labels: it misses everything."""

_PLACEHOLDERS = {"none", "nan", "null", "n/a", "na", "<na>", "undefined"}


def missing(value: object) -> bool:
    """Tell whether a value is missing by the study contract: None, "" or NaN."""
    return value is None or value == "" or value != value


class ScoreError(ValueError):
    """Input that cannot be scored; the message says what, where and what to do."""

    # encoder.errors.UserError's protocol, by attribute: this room imports no other
    exit_status = 2


@dataclass(frozen=True)
class Section:
    """Say which text of a prediction, a reference or a training study counts.

    Of two fields the texts are joined by an empty line, without headings. The scores take that for white space (but for
    BERTScore, whose tokens it is), and the labeller ends a sentence there: "No opacity" and "Pneumonia" do
    not deny.
    """

    name: str
    fields: tuple[str, ...]
    said: str  # to people
    choices: Mapping[str, str] = field(default_factory=dict)  # what signatures say of it

    def read(self, record: Record) -> tuple[str, dict[str, str]]:
        """Return the text, and what is wrong with which field (see `report_text`)."""
        read = {name: report_text(record.get(name)) for name in self.fields}
        text = "\n\n".join(text for text, _ in read.values() if text)
        return text, {name: wrong for name, (_, wrong) in read.items() if wrong}

    def lack(self, what: str, wrong: Mapping[str, str]) -> str:
        """Return the kind of POLICIES for a record that lacks the `wrong` fields."""
        left = [name for name in self.fields if name not in wrong]
        return f"{what} with {left[0]} alone" if left else f"{what} without {' and '.join(self.fields)}"


SECTIONS = {
    s.name: s
    for s in (
        Section("findings", ("findings",), "findings"),  # what a signature is of that names no section
        Section("impression", ("impression",), "impression", {"section": "impression"}),
        Section(
            "both", ("findings", "impression"), "findings and impression as one text, an empty line between them",
            {"section": "both", "join": "empty-line", "lone_ref": "left-out"},
        ),
    )
}  # fmt: skip


def section_named(name: str) -> Section:
    """Return the section of this name. Raises ScoreError if there is none."""
    if name not in SECTIONS:
        raise ScoreError(f"section is {name!r}; accepted are {', '.join(SECTIONS)}")
    return SECTIONS[name]


@dataclass
class Pairs:
    """Aligned texts of N studies, in the order of the references. A miss is the empty string."""

    study_ids: list[str]
    references: list[str]
    predictions: list[str]
    studies: list[Record]
    problems: dict[str, list[str]] = field(default_factory=dict)  # kind of POLICIES -> study ids
    section: Section = SECTIONS["findings"]  # which of a record's texts; floors are read alike

    def __len__(self) -> int:
        return len(self.study_ids)

    def note(self, kind: str, study_id: str) -> None:
        """Record that a study has a problem of this kind, a key of POLICIES."""
        self.problems.setdefault(kind, []).append(study_id)


def load(source: Source, what: str) -> list[Record]:
    """Load the records of a JSON Lines file, of a CSV file with a header, or of an iterable of mappings.

    Raises ScoreError if the file is missing, empty or not UTF-8, if a line is not a JSON object, or if a record has
    no `study_id`; the message names file and line.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        records = list(_read_table(path, what) if path.suffix.lower() == ".csv" else _read_lines(path, what))
        where = str(path)
    else:
        records = [(f"{what} {i}", r) for i, r in enumerate(source)]
        where = f"the {what}s"
    if not records:
        raise ScoreError(f"{where}: there is not a single {what}")
    for place, record in records:
        if not isinstance(record, Mapping):
            raise ScoreError(f"{place}: a {what} must be a JSON object, found {type(record).__name__}")
        if missing(record.get("study_id")):
            raise ScoreError(f"{place}: a {what} needs a 'study_id'; its keys are {_keys(record)}")
        if not isinstance(record["study_id"], str | int):
            raise ScoreError(
                f"{place}: the 'study_id' of a {what} must be a text or a whole number, not "
                f"{type(record['study_id']).__name__}"
            )
    return [record for _, record in records]


def _text(path: Path, what: str) -> str:
    if not path.is_file():
        raise ScoreError(f"{path}: no such file of {what}s")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ScoreError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _read_lines(path: Path, what: str) -> Iterable[tuple[str, Any]]:
    for number, line in enumerate(_text(path, what).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line, parse_constant=lambda _: None)
        except RecursionError:
            raise ScoreError(f"{path}, line {number}: nested too deeply") from None
        except json.JSONDecodeError as error:
            raise ScoreError(
                f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})"
            ) from error
        except ValueError as error:
            raise ScoreError(f"{path}, line {number}: not JSON (a number of thousands of digits)") from error


def _read_table(path: Path, what: str) -> Iterable[tuple[str, Any]]:
    """Rows of a CSV file: `study_id`, `findings`, `impression`, whatever else; an empty cell becomes null, `age` a
    number, `view` the image's."""
    rows = csv.DictReader(io.StringIO(_text(path, what), newline=""), restkey="", strict=True)
    try:
        header = rows.fieldnames or []
        if "study_id" not in header:
            raise ScoreError(f"{path}: the first line names no column 'study_id'")
        if twice := [name for name in header if header.count(name) > 1]:
            raise ScoreError(f"{path}: there are several columns {twice[0]!r}")
        for row in rows:
            if len(row.get("") or ()):
                raise ScoreError(
                    f"{path}, line {rows.line_num}: {len(header) + len(row[''])} cells under {len(header)} names; "
                    'texts with commas must be in quotes: "..."'
                )
            record = {key: value or None for key, value in row.items() if key and value is not None}
            if re.fullmatch(r"\d+(\.\d+)?", (record.get("age") or "").strip()):
                record["age"] = float(record["age"])
            if record.get("view"):
                record["images"] = [{"view": record.pop("view").strip()}]
            yield f"{path}, line {rows.line_num}", record
    except csv.Error as error:
        raise ScoreError(f"{path}, line {rows.line_num}: not CSV ({error})") from error


def report_text(value: object) -> tuple[str, str | None]:
    """Return a report as text, and what is wrong with it: "empty", "placeholder", "no text" or None."""
    if missing(value):
        return "", "empty"
    if not isinstance(value, str):
        return "", "no text"
    text = value.strip().encode("utf-8", "replace").decode()  # half a character would stop every tokenizer
    if text.lower().rstrip(".") in _PLACEHOLDERS:
        return "", "placeholder"
    return text, None if text else "empty"


def align(
    predictions: Source, references: Source | None = None, section: Section = SECTIONS["findings"]
) -> Pairs:
    """Bring predictions to references by `study_id`, by the POLICIES. Without references each prediction brings its
    own, as `reference`, which is of the one section that is scored.

    Raises ScoreError if a source cannot be read, if no reference has the section, or if no prediction has it.
    """
    pairs = Pairs([], [], [], [], section=section)
    given: dict[str, Record] = {}
    predicted = load(predictions, "prediction")
    if references is None:
        if len(section.fields) > 1:
            raise ScoreError(
                f"--section {section.name} needs a second file, whose studies have {' and '.join(section.fields)}; a "
                "prediction's own 'reference' is one text"
            )
        references = [{**record, section.name: record.get("reference")} for record in predicted]
        if not any(record.get("reference") for record in predicted):
            raise ScoreError(
                "there are no references: give a second file, or predictions with a 'reference' each"
            )
    _check_section(predicted, section, f"{predictions}: " if isinstance(predictions, str | Path) else "")
    for record in predicted:
        key = str(record["study_id"])
        if key in given:
            pairs.note("duplicate prediction", key)
        else:
            given[key] = record
    seen: set[str] = set()
    for study in load(references, "reference"):
        key = str(study["study_id"])
        if key in seen:
            pairs.note("duplicate reference", key)
            continue
        seen.add(key)
        reference, wrong = section.read(study)
        if wrong:
            pairs.note(section.lack("reference", wrong), key)
            continue
        pairs.study_ids.append(key)
        pairs.studies.append(study)
        pairs.references.append(reference)
        pairs.predictions.append(_prediction(pairs, key, given.get(key)))
    for key in given:
        if key not in seen:
            pairs.note("prediction without reference", key)
    if not pairs.study_ids:
        wanted = " and ".join(section.fields)
        raise ScoreError(f"no reference has {wanted}: there is nothing to score against")
    if not given.keys() & set(pairs.study_ids):
        raise ScoreError(
            "no prediction belongs to a reference: the study ids do not meet "
            f"(predictions: {next(iter(given))!r}, ...; references: {pairs.study_ids[0]!r}, ...)"
        )
    return pairs


def _prediction(pairs: Pairs, key: str, record: Record | None) -> str:
    if record is None:
        pairs.note("no prediction", key)
        return ""
    if record.get("error") and not any(record.get(name) for name in pairs.section.fields):
        pairs.note("failed prediction", key)
        return ""
    text, wrong = pairs.section.read(record)
    if text and wrong:
        pairs.note(pairs.section.lack("prediction", wrong), key)
    elif wrong:
        kind = next((w for w in wrong.values() if w != "empty"), "empty")
        pairs.note("prediction that is no text" if kind == "no text" else f"{kind} prediction", key)
    return text


def _check_section(predicted: Sequence[Record], section: Section, where: str) -> None:
    """Refuse predictions if none has a field of the section. "" will do: a model that wrote nothing is
    scored."""
    absent = [
        name for name in section.fields if all(missing(r.get(name)) and r.get(name) != "" for r in predicted)
    ]
    there = [name for name in SECTIONS["both"].fields if any(report_text(r.get(name))[0] for r in predicted)]
    if there:
        hint = f"there is {there[0]!r}: give --section {there[0]}"
    elif any(r.get("error") or any(name in r for name in section.fields) for r in predicted):
        return  # all of them failed or are empty
    else:
        hint = f"the first one's keys are {_keys(predicted[0])}"
    if absent:
        named = " and no ".join(map(repr, absent))
        raise ScoreError(f"{where}no prediction has {named}, the text to be scored; {hint}")


def _keys(record: Record) -> str:
    """Names of keys for a message; a report that stands where a name should is not shown."""
    return ", ".join(key if re.fullmatch(r"\w{1,30}", str(key)) else "..." for key in map(str, record))


def patients(pairs: Pairs, groups: Mapping[str, Hashable] | Sequence[Hashable] | None) -> list[Hashable]:
    """Return the patient of every pair: from `groups` (study id -> patient, or one entry a pair), else the
    study's own `patient_id`, else the study by itself. Raises ScoreError if `groups` does not cover the
    pairs."""
    if groups is None:
        return [
            ("study", key) if missing(s.get("patient_id")) else str(s["patient_id"])
            for key, s in zip(pairs.study_ids, pairs.studies, strict=True)
        ]
    if isinstance(groups, Mapping):
        unnamed = [key for key in pairs.study_ids if key not in groups]
        if unnamed:
            raise ScoreError(f"groups name no patient for {len(unnamed)} studies, e.g. {unnamed[0]!r}")
        return [groups[key] for key in pairs.study_ids]
    if len(groups) != len(pairs):
        raise ScoreError(
            f"{len(groups)} groups for {len(pairs)} scored studies; give a mapping from study id to patient"
        )
    return list(groups)
